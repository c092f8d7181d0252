//! A disk of the test's own, which can be filled.

use std::{
    fs::{self, OpenOptions},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// A small file system in memory. Needs root. Gone when dropped.
pub struct SmallDisk {
    dir: TempDir,
}

impl SmallDisk {
    /// With room for so many MiB.
    pub fn new(mebibytes: usize) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("portarium-disk-")
            .tempdir()
            .unwrap();
        let size = format!("size={mebibytes}m");
        mount(["-t", "tmpfs", "-o", &size, "tmpfs"], dir.path());
        Self { dir }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Takes all the room that is left.
    pub fn fill(&self) {
        let mut ballast = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.ballast())
            .unwrap();
        let full = loop {
            if let Err(error) = ballast.write_all(&[7; 4096]) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull, "{full}");
    }

    /// Gives the room back.
    pub fn free(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    /// Nothing can be written any more. Nobody may have a file open for writing.
    pub fn make_read_only(&self) {
        mount(["-o", "remount,ro", "tmpfs"], self.path());
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process that is about to be killed may still have a file open.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.path())
            .status();
    }
}

fn mount<const N: usize>(arguments: [&str; N], at: &Path) {
    let mounted = Command::new("mount")
        .args(arguments)
        .arg(at)
        .output()
        .unwrap();
    assert!(
        mounted.status.success(),
        "a disk of the test's own needs root: {}",
        String::from_utf8_lossy(&mounted.stderr)
    );
}
