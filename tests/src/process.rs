//! Processes that never outlive the test.

use rustix::process::{Pid, Signal, kill_process};
use std::{
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    net::TcpListener,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    time::Duration,
};
use tokio::time::{sleep, timeout};

/// So many lines of standard error are shown of a process whose test failed.
const TAIL: usize = 80;

/// A child process with its standard error in a file. Killed when dropped, and by the kernel when
/// the test process dies first.
pub struct Process {
    name: String,
    child: Child,
    stderr: PathBuf,
}

impl Process {
    /// Starts a program; what it writes to standard error and output is appended to a file.
    pub fn start<A: AsRef<OsStr>>(
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        stderr: &Path,
    ) -> Self {
        Self::start_behind(&[], program, arguments, stderr)
    }

    /// As [`Self::start`], by a command that becomes the program (`env`, `ip netns exec`).
    pub fn start_behind<A: AsRef<OsStr>>(
        prefix: &[OsString],
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        stderr: &Path,
    ) -> Self {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .args(prefix)
            .arg(program)
            .args(arguments)
            .stdin(Stdio::null());
        Self::spawn(command, program, stderr)
    }

    /// Starts a command that was made elsewhere, for example with an environment of its own.
    pub fn spawn(mut command: Command, program: &Path, stderr: &Path) -> Self {
        let log = append(stderr);
        let child = command
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            // A Ctrl-C at the terminal is the test's affair.
            .process_group(0)
            .spawn()
            .unwrap_or_else(|e| panic!("{} cannot be started: {e}", program.display()));
        Self {
            name: program.file_name().unwrap().display().to_string(),
            child,
            stderr: stderr.to_owned(),
        }
    }

    /// The other end of its standard input, where that is a pipe.
    pub(crate) fn input(&mut self) -> ChildStdin {
        self.child.stdin.take().unwrap()
    }

    /// Its id. Whatever starts it becomes it.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// `kill -9`, and waits for the end.
    pub fn kill(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        self.child.wait().unwrap();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end.
    pub async fn wait(&mut self, patience: Duration) -> ExitStatus {
        let waited = timeout(patience, async {
            loop {
                if let Some(status) = self.ended() {
                    return status;
                }
                sleep(Duration::from_millis(5)).await;
            }
        });
        match waited.await {
            Ok(status) => status,
            Err(_) => panic!("{} has not ended after {patience:?}", self.name),
        }
    }

    /// What it wrote so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let text = self.output();
            let lines: Vec<_> = text.lines().collect();
            let from = lines.len().saturating_sub(TAIL);
            println!("---- {} said last:", self.name);
            lines[from..].iter().for_each(|line| println!("{line}"));
        }
    }
}

fn append(path: &Path) -> File {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap()
}

/// A binary of this workspace: in `PORTARIUM_BIN_DIR`, or where cargo put it beside the tests.
pub fn binary(name: &str) -> PathBuf {
    let dir = std::env::var_os("PORTARIUM_BIN_DIR").map_or_else(
        || {
            // target/debug/deps/test-… → target/debug
            let test = std::env::current_exe().unwrap();
            test.ancestors().nth(2).unwrap().to_owned()
        },
        PathBuf::from,
    );
    let path = dir.join(name);
    assert!(
        path.exists(),
        "{} is not built; run tests/run, or cargo build --workspace first",
        path.display()
    );
    path
}

/// A TCP port on loopback that nobody listens on now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}
