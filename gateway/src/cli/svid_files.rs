//! SVID, key and bundle as files, such that nobody reads them from two generations.
//!
//! ```text
//! DIR/..gen-7/{svid,key,bundle}.pem    one generation, complete before it is pointed to
//! DIR/..current -> ..gen-7             swapped by one rename
//! DIR/svid.pem -> ..current/svid.pem   and so on
//! ```
//!
//! A reader that resolves `DIR/..current` once and opens the three files there gets one
//! generation: the one before the current one stays.

use anyhow::{Context as _, bail};
use portarium_identity::Snapshot;
use rustix::{
    fs::{FlockOperation, flock},
    process::geteuid,
};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, symlink},
    path::{Path, PathBuf},
};

const CURRENT: &str = "..current";
const PREFIX: &str = "..gen-";
const FILES: [&str; 3] = ["svid.pem", "key.pem", "bundle.pem"];

/// A folder that this process alone writes generations into.
#[derive(Debug)]
pub(super) struct SvidFolder {
    path: PathBuf,
    last: u64,
    _lock: File,
}

/// The texts of one generation.
pub(super) struct Texts<'a> {
    pub(super) svid: &'a str,
    pub(super) key: &'a str,
    pub(super) bundle: &'a str,
}

impl SvidFolder {
    /// Takes the folder over, and makes it where it is not there.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .with_context(|| format!("cannot make the folder {shown}"))?;
        let lock = File::open(path).with_context(|| format!("cannot open the folder {shown}"))?;
        check_owner(&lock, path)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another process writes SVIDs into {shown}; stop it or choose another folder");
        }
        for name in FILES {
            let found = fs::symlink_metadata(path.join(name));
            if found.is_ok_and(|found| !found.is_symlink()) {
                bail!("{shown}/{name} is in the way; move it or choose another folder");
            }
        }
        let last = generations(path)?.into_iter().max().unwrap_or(0);
        if last == u64::MAX {
            bail!("{shown}/{PREFIX}{last} is in the way; remove it or choose another folder");
        }
        Ok(Self {
            path: path.to_owned(),
            last,
            _lock: lock,
        })
    }

    /// Writes a generation and points to it. On an error what was there stays in force.
    pub(super) fn write(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let (svid, key, bundle) = (
            snapshot.chain_pem(),
            snapshot.key_pem(),
            snapshot.bundle_pem(),
        );
        self.write_texts(&Texts {
            svid: &svid,
            key: &key,
            bundle: &bundle,
        })
        .with_context(|| format!("cannot write the SVID into {}", self.path.display()))
    }

    /// Removes all generations, so that no reader goes on with what was withdrawn.
    pub(super) fn clear(&self) -> anyhow::Result<()> {
        let removed = match fs::remove_file(self.path.join(CURRENT)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.remove_all_but(&[]),
        };
        removed.with_context(|| format!("cannot remove the SVID from {}", self.path.display()))
    }

    fn write_texts(&mut self, texts: &Texts<'_>) -> io::Result<()> {
        let before = fs::read_link(self.path.join(CURRENT)).ok();
        self.last += 1;
        let name = format!("{PREFIX}{}", self.last);
        let folder = self.path.join(&name);
        DirBuilder::new().mode(0o755).create(&folder)?;
        for (file, text, mode) in [
            (FILES[0], texts.svid, 0o644),
            (FILES[1], texts.key, 0o600),
            (FILES[2], texts.bundle, 0o644),
        ] {
            write_file(&folder.join(file), text, mode)?;
        }
        sync_folder(&folder)?;
        self.point(CURRENT, Path::new(&name))?;
        for file in FILES {
            let target = Path::new(CURRENT).join(file);
            if fs::read_link(self.path.join(file)).ok().as_ref() != Some(&target) {
                self.point(file, &target)?;
            }
        }
        sync_folder(&self.path)?;
        self.remove_all_but(&[Some(PathBuf::from(&name)), before])
    }

    /// Makes or moves a link in one step.
    fn point(&self, name: &str, target: &Path) -> io::Result<()> {
        let new = self.path.join(format!("..new-{name}"));
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => symlink(target, &new)?,
        }
        fs::rename(new, self.path.join(name))
    }

    fn remove_all_but(&self, kept: &[Option<PathBuf>]) -> io::Result<()> {
        for generation in generations(&self.path)? {
            let name = PathBuf::from(format!("{PREFIX}{generation}"));
            if !kept.iter().flatten().any(|kept| *kept == name) {
                fs::remove_dir_all(self.path.join(name))?;
            }
        }
        Ok(())
    }
}

/// Whoever may write into the folder can put a key and a bundle of his own in the place of ours.
fn check_owner(folder: &File, path: &Path) -> anyhow::Result<()> {
    let shown = path.display();
    let found = folder
        .metadata()
        .with_context(|| format!("cannot look at the folder {shown}"))?;
    let (owner, we) = (found.uid(), geteuid().as_raw());
    if owner != we && owner != 0 {
        bail!(
            "{shown} belongs to user {owner}, and this is user {we}; choose a folder of our own or of root's"
        );
    }
    if found.mode() & 0o022 != 0 {
        bail!(
            "others may write into {shown}; take that from them (chmod go-w), or choose a folder that is not there yet, which is then made"
        );
    }
    Ok(())
}

/// The numbers of the generations in a folder.
fn generations(folder: &Path) -> io::Result<Vec<u64>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        found.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    Ok(found)
}

fn write_file(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::{
        os::unix::fs::PermissionsExt as _,
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    fn write(folder: &mut SvidFolder, generation: &str) {
        let texts = Texts {
            svid: generation,
            key: generation,
            bundle: generation,
        };
        folder.write_texts(&texts).unwrap();
    }

    /// The three files as a reader sees them that resolves the folder once.
    fn read(folder: &Path) -> [String; 3] {
        let folder = fs::canonicalize(folder.join(CURRENT)).unwrap();
        FILES.map(|file| fs::read_to_string(folder.join(file)).unwrap())
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_files_are_there_under_plain_names_and_the_key_is_its_users_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er");
        write(&mut SvidFolder::open(&path).unwrap(), "one");
        for file in FILES {
            assert_eq!(fs::read_to_string(path.join(file)).unwrap(), "one");
        }
        let key = fs::metadata(path.join("key.pem")).unwrap();
        assert_eq!(key.permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_generation_before_stays_and_older_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let mut svids = SvidFolder::open(folder.path()).unwrap();
        for generation in ["one", "two", "three", "four"] {
            write(&mut svids, generation);
        }
        assert_eq!(read(folder.path()), ["four"; 3]);
        assert_eq!(
            names(folder.path()),
            [
                "..current",
                "..gen-3",
                "..gen-4",
                "bundle.pem",
                "key.pem",
                "svid.pem"
            ]
        );
    }

    #[test]
    fn a_new_process_goes_on_from_what_is_there_even_half_written() {
        let folder = tempfile::tempdir().unwrap();
        write(&mut SvidFolder::open(folder.path()).unwrap(), "one");
        fs::create_dir(folder.path().join("..gen-2")).unwrap();
        fs::write(folder.path().join("..new-..current"), "left by a crash").unwrap();
        let mut svids = SvidFolder::open(folder.path()).unwrap();
        assert_eq!(read(folder.path()), ["one"; 3]);
        write(&mut svids, "two");
        assert_eq!(read(folder.path()), ["two"; 3]);
        assert!(!folder.path().join("..gen-2").exists());
    }

    #[test]
    fn one_process_at_a_time_writes_into_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = SvidFolder::open(folder.path()).unwrap();
        let refused = SvidFolder::open(folder.path()).unwrap_err().to_string();
        assert!(
            refused.starts_with("another process writes SVIDs into "),
            "{refused}"
        );
        drop(first);
        assert!(SvidFolder::open(folder.path()).is_ok());
    }

    #[test]
    fn a_folder_that_others_may_write_into_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for mode in [0o777, 0o1777, 0o775, 0o757] {
            fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
            let refused = SvidFolder::open(folder.path()).unwrap_err().to_string();
            assert!(refused.starts_with("others may write into "), "{refused}");
        }
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        assert!(SvidFolder::open(folder.path()).is_ok());
    }

    #[test]
    fn a_generation_behind_which_none_can_come_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(format!("..gen-{}", u64::MAX))).unwrap();
        let refused = SvidFolder::open(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("is in the way"), "{refused}");
    }

    #[test]
    fn what_was_withdrawn_is_gone_until_there_is_a_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let mut svids = SvidFolder::open(folder.path()).unwrap();
        svids.clear().unwrap();
        write(&mut svids, "one");
        write(&mut svids, "two");
        svids.clear().unwrap();
        assert_eq!(names(folder.path()), ["bundle.pem", "key.pem", "svid.pem"]);
        assert!(fs::read(folder.path().join("key.pem")).is_err());
        write(&mut svids, "three");
        assert_eq!(read(folder.path()), ["three"; 3]);
    }

    #[test]
    fn files_of_someone_else_are_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("key.pem"), "precious").unwrap();
        let refused = SvidFolder::open(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("/key.pem is in the way"), "{refused}");
        assert_eq!(names(folder.path()), ["key.pem"]);
    }

    #[test]
    fn no_reader_ever_sees_two_generations() {
        let folder = tempfile::tempdir().unwrap();
        let mut svids = SvidFolder::open(folder.path()).unwrap();
        write(&mut svids, "0");
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut reads = 0;
                while !stop.load(Ordering::Relaxed) {
                    let current = fs::read_link(folder.path().join(CURRENT)).unwrap();
                    let resolved = folder.path().join(current);
                    let seen = FILES.map(|file| fs::read_to_string(resolved.join(file)));
                    // Two whole generations may pass between the reads; then the folder is gone,
                    // and the reader knows it.
                    if let [Ok(svid), Ok(key), Ok(bundle)] = seen {
                        assert!(svid == key && key == bundle, "{svid} {key} {bundle}");
                        reads += 1;
                    }
                }
                reads
            });
            for generation in 1..60 {
                write(&mut svids, &generation.to_string());
            }
            stop.store(true, Ordering::Relaxed);
            assert!(reader.join().unwrap() > 0);
        });
    }
}
