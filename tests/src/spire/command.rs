//! Commands of SPIRE, and what they say.

use serde_json::Value;
use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// One command of `spire-server`, to the server at this socket.
pub(super) fn call(socket: &Path, words: &[&str], input: Option<String>) -> Result<String, String> {
    // Flags come behind the words of the command and before anything else.
    let flags = words.iter().position(|word| word.starts_with('-'));
    let (command, flags) = words.split_at(flags.unwrap_or(words.len()));
    let mut child = Command::new(program("spire-server"))
        .args(command)
        .arg("-socketPath")
        .arg(socket)
        .args(flags)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(input.unwrap_or_default().as_bytes())
        .unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(said + &String::from_utf8_lossy(&output.stderr))
    }
}

pub(super) fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

pub(super) fn string(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value}"))
        .to_owned()
}

/// A program of SPIRE on the `PATH`.
pub(super) fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let executable = |file: &PathBuf| {
        let found = fs::metadata(file);
        found.is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(executable)
        .unwrap_or_else(|| panic!("{name} is not on the PATH; install a release of SPIRE"))
}
