//! Faults below a gateway process: a disk that is slow or fails, a wall clock that is stepped, and
//! a record of what was done to the journal's files. See `tests/shim/faults.c`.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// An error number as Linux has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Errno {
    /// The device failed.
    Io = 5,
    /// No space is left.
    NoSpace = 28,
    /// The file system is read-only.
    ReadOnly = 30,
}

/// What is to go wrong below one process, or several of the same folder.
pub struct Shim {
    library: PathBuf,
    dir: PathBuf,
    control: File,
    records: bool,
}

impl Shim {
    /// Compiles it into this folder, which is the gateway's; nothing goes wrong yet.
    pub fn build(dir: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("shim/faults.c");
        let library = dir.join("faults.so");
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let compiled = Command::new(compiler)
            .args(["-shared", "-fPIC", "-O2", "-Wall", "-Werror", "-o"])
            .args([&library, &source])
            .arg("-ldl")
            .output()
            .unwrap();
        assert!(
            compiled.status.success(),
            "{}",
            String::from_utf8_lossy(&compiled.stderr)
        );
        let control = dir.join("faults.control");
        fs::write(&control, [0; 32]).unwrap();
        Self {
            library,
            dir: dir.to_owned(),
            control: File::options().write(true).open(&control).unwrap(),
            records: false,
        }
    }

    /// Also writes down what is done to the journal's files.
    pub fn recording(self) -> Self {
        Self {
            records: true,
            ..self
        }
    }

    /// The command behind which a process has it.
    pub fn prefix(&self, journal: &Path) -> Vec<OsString> {
        let set = |name: &str, value: &Path| {
            let mut word = OsString::from(format!("{name}="));
            word.push(value);
            word
        };
        let mut words = vec![
            "env".into(),
            set("LD_PRELOAD", &self.library),
            set("FAULTS_CONTROL", &self.dir.join("faults.control")),
            set("FAULTS_JOURNAL", journal),
        ];
        if self.records {
            words.push(set("FAULTS_LOG", &self.record()));
        }
        words
    }

    /// Where it is written down.
    pub fn record(&self) -> PathBuf {
        self.dir.join("faults.record")
    }

    /// How much longer a sync takes from now on.
    pub fn syncs_take(&self, time: Duration) {
        self.set(0, i64::try_from(time.as_millis()).unwrap());
    }

    /// From now on writes to the journal's files fail, or no longer.
    pub fn writes_fail(&self, with: Option<Errno>) {
        self.set(1, with.map_or(0, |errno| errno as i64));
    }

    /// From now on syncs of the journal's files fail, or no longer.
    pub fn syncs_fail(&self, with: Option<Errno>) {
        self.set(2, with.map_or(0, |errno| errno as i64));
    }

    /// How far the wall clock is from the right time, in seconds.
    pub fn clock_is_off_by(&self, seconds: i64) {
        self.set(3, seconds * 1_000_000_000);
    }

    fn set(&self, field: u64, value: i64) {
        let at = field * 8;
        self.control.write_all_at(&value.to_ne_bytes(), at).unwrap();
    }
}
