//! The store's folder: its version, its lock, and where things are in it.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use proto::{Generation, TaskId};

use super::StoreError;
use super::slot::Key;

/// Version of the folder's layout and of its rows.
pub(super) const FORMAT_VERSION: u32 = 1;

/// The file in a store's folder that is locked (`flock`) as long as the store is open.
pub const LOCK_FILE: &str = "lock";

/// Longest `VERSION` or `lock` file that is read, in bytes: they hold a number.
const NUMBER_LEN_MAX: u64 = 32;

/// What may be in a folder that a store moves into.
const HARMLESS: [&str; 3] = [LOCK_FILE, "VERSION.new", "lost+found"];

/// The locked folder of a store.
#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
    /// Held open for the lock on it, which the kernel drops with the process however that ends.
    lock: File,
}

impl Folder {
    /// Makes or opens the folder, and locks it.
    pub(super) fn open(dir: &Path) -> Result<Self, StoreError> {
        make_private(dir)?;
        // Looked at before anything is written: a folder of something else is left as it is.
        let is_new = check_version(dir)?;
        let lock = take_lock(dir)?;
        if is_new {
            write_version(dir)?;
        }
        let folder = Self { dir: dir.to_owned(), lock };
        make_private(&folder.rows())?;
        make_private(&folder.content())?;
        Ok(folder)
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the rows are.
    pub(super) fn rows(&self) -> PathBuf {
        self.dir.join("rows")
    }

    fn content(&self) -> PathBuf {
        self.dir.join("content")
    }

    /// Where a task's content is: 256 folders keep each short.
    pub(super) fn content_path(&self, key: Key) -> PathBuf {
        let name = format!("{}-{}", key.task, key.generation);
        self.content().join(&name[..2]).join(name)
    }

    /// Makes the folder of a content path.
    pub(super) fn make_content_folder(&self, path: &Path) -> Result<(), StoreError> {
        path.parent().map_or(Ok(()), make_private)
    }

    /// Deletes all content files but those of `known` tasks: their rows were never written, or are gone already.
    pub(super) fn sweep(&self, known: &HashSet<Key>) -> Result<(), StoreError> {
        for group in list(&self.content())? {
            for path in list(&group)? {
                let key = path.file_name().and_then(|name| name.to_str()).and_then(parse_name);
                if key.is_some_and(|key| known.contains(&key) && self.content_path(key) == path) {
                    continue;
                }
                tracing::info!(path = %path.display(), "removing content without a row");
                remove_file(&path)?;
            }
        }
        Ok(())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Closing would not do if the process is just starting another: until that one has executed its program it has
        // a copy of the descriptor, and the lock with it.
        if let Err(error) = self.lock.unlock() {
            tracing::warn!(dir = %self.dir.display(), error = &error as &dyn std::error::Error, "store folder stays locked");
        }
    }
}

/// Deletes a file; one that is gone already is as good.
pub(super) fn remove_file(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", path, 0, error)),
        _ => Ok(()),
    }
}

fn parse_name(name: &str) -> Option<Key> {
    let (task, generation) = name.split_once('-')?;
    Some(Key { task: task.parse::<TaskId>().ok()?, generation: generation.parse::<Generation>().ok()? })
}

/// The paths in a folder; a folder that is not there, or no folder, has none.
fn list(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |error| StoreError::io("list", dir, 0, error);
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|entry| entry.map(|e| e.path()).map_err(failed)).collect(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
    }
}

/// Makes a folder that only its owner may enter: content that was fetched with credentials lies below.
fn make_private(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| StoreError::io("create folder", dir, 0, e))
}

/// Whether the folder is new; an error when it is not ours.
fn check_version(dir: &Path) -> Result<bool, StoreError> {
    let path = dir.join("VERSION");
    let mut text = String::new();
    match File::open(&path).and_then(|file| file.take(NUMBER_LEN_MAX).read_to_string(&mut text)) {
        Ok(_) if text.trim() == FORMAT_VERSION.to_string() => Ok(false),
        Ok(_) => {
            let found = text.trim().escape_default().to_string();
            Err(StoreError::Version { path: dir.to_owned(), found, expected: FORMAT_VERSION })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let foreign = list(dir)?.into_iter().find_map(|path| {
                let name = path.file_name()?.to_string_lossy().into_owned();
                (!HARMLESS.contains(&name.as_str())).then_some(name)
            });
            foreign.map_or(Ok(true), |found| Err(StoreError::NotAStore { path: dir.to_owned(), found }))
        }
        Err(error) => Err(StoreError::io("read", &path, 0, error)),
    }
}

/// Written under another name first, so that it is there whole or not at all.
fn write_version(dir: &Path) -> Result<(), StoreError> {
    let (path, new) = (dir.join("VERSION"), dir.join("VERSION.new"));
    let write = || {
        let mut file = File::create(&new)?;
        writeln!(file, "{FORMAT_VERSION}")?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|error| StoreError::io("write", &path, NUMBER_LEN_MAX, error))
}

fn take_lock(dir: &Path) -> Result<File, StoreError> {
    let path = dir.join(LOCK_FILE);
    let failed = |error| StoreError::io("lock", &path, NUMBER_LEN_MAX, error);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Only to make the message better: the lock is held whatever the file says.
            let _ = file.take(NUMBER_LEN_MAX).read_to_string(&mut holder);
            let holder = holder.trim();
            let holder = if holder.is_empty() { "unknown".to_owned() } else { holder.escape_default().to_string() };
            return Err(StoreError::Locked { path: dir.to_owned(), holder });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    let mut note_holder = || {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    note_holder().map_err(failed)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_version_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("VERSION"), "7\n").unwrap();
        let error = Folder::open(dir.path()).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains(&dir.path().display().to_string())
                && text.contains("version 7")
                && text.contains("version 1"),
            "{text}"
        );
        assert!(!dir.path().join("lock").try_exists().unwrap(), "nothing was written");
    }

    #[test]
    fn a_folder_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "x").unwrap();
        assert!(matches!(Folder::open(dir.path()), Err(StoreError::NotAStore { found, .. }) if found == "thesis.tex"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_second_holder_is_told_who_the_first_is() {
        let dir = tempfile::tempdir().unwrap();
        let first = Folder::open(dir.path()).unwrap();
        let error = Folder::open(dir.path()).unwrap_err();
        assert!(
            matches!(&error, StoreError::Locked { holder, .. } if *holder == std::process::id().to_string()),
            "{error}"
        );
        drop(first);
        Folder::open(dir.path()).unwrap();
    }

    #[test]
    fn a_stop_before_the_version_was_written_is_no_obstacle() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("lock"), "1").unwrap();
        fs::write(dir.path().join("VERSION.new"), "").unwrap();
        Folder::open(dir.path()).unwrap();
    }

    #[test]
    fn content_names_are_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let key = Key { task: TaskId::from_bytes(&[0xab; 32]).unwrap(), generation: Generation::unique(3) };
        let path = folder.content_path(key);
        assert!(path.parent().unwrap().ends_with("content/ab"));
        assert_eq!(parse_name(path.file_name().unwrap().to_str().unwrap()), Some(key));
        for junk in ["", "x", "ab-cd", ".nfs0001"] {
            assert_eq!(parse_name(junk), None);
        }
    }
}
