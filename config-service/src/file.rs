//! Registrations on disk, so that a restart does not forget them.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tracing::warn;

/// A registered supernode. The end of its lease is not kept: after a restart it gets a whole one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Registration {
    pub(crate) cluster: String,
    pub(crate) id: String,
    pub(crate) endpoint: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileV1 {
    version: u32,
    registrations: Vec<Registration>,
}

const VERSION: u32 = 1;
const NAME: &str = "registrations.json";
/// More is no file of ours.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// The data folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum FolderError {
    #[error("cannot use the data folder: {what} {}", path.display())]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("another process uses the data folder {}", path.display())]
    Locked { path: PathBuf },
}

/// The data folder, locked for this process.
#[derive(Debug)]
pub(crate) struct Folder {
    dir: PathBuf,
    /// The kernel gives the lock back when the process ends, however it ends.
    _lock: File,
}

impl Folder {
    pub(crate) fn open(dir: &Path) -> Result<Self, FolderError> {
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| FolderError::Io { what, path, source }
        };
        std::fs::create_dir_all(dir).map_err(fail("cannot create", dir))?;
        let path = dir.join("lock");
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(fail("cannot open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_owned(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(FolderError::Locked { path: dir.to_owned() }),
            Err(TryLockError::Error(source)) => Err(fail("cannot lock", &path)(source)),
        }
    }

    /// What was registered. A file that makes no sense is set aside: the supernodes register again by themselves.
    pub(crate) fn load(&self) -> Result<Vec<Registration>, FolderError> {
        let path = self.dir.join(NAME);
        let fail = |what| {
            let path = path.clone();
            move |source| FolderError::Io { what, path, source }
        };
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => file.take(FILE_BYTES_MAX).read_to_end(&mut bytes).map_err(fail("cannot read"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail("cannot open")(error)),
        };
        match serde_json::from_slice::<FileV1>(&bytes) {
            Ok(file) if file.version == VERSION => return Ok(file.registrations),
            Ok(file) => {
                warn!(version = file.version, path = %path.display(), "registrations of another version, setting the file aside")
            }
            Err(error) => warn!(%error, path = %path.display(), "registrations cannot be read, setting the file aside"),
        }
        std::fs::rename(&path, self.dir.join(format!("{NAME}.unreadable"))).map_err(fail("cannot set aside"))?;
        Ok(Vec::new())
    }

    /// Writes all registrations: after a crash the file is either the old or the new one.
    pub(crate) fn save(&self, registrations: Vec<Registration>) -> io::Result<()> {
        let bytes = serde_json::to_vec(&FileV1 { version: VERSION, registrations })?;
        let new = self.dir.join(format!("{NAME}.new"));
        let mut file = File::create(&new)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, self.dir.join(NAME))?;
        // The rename is durable only with its folder.
        File::open(&self.dir)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn saved_and_loaded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let folder = Folder::open(&path).unwrap();
        assert!(matches!(Folder::open(&path), Err(FolderError::Locked { .. })));
        assert_eq!(folder.load().unwrap(), []);
        let all = vec![Registration { cluster: "c".to_owned(), id: "i".to_owned(), endpoint: "http://x:1".to_owned() }];
        folder.save(all.clone()).unwrap();
        assert_eq!(folder.load().unwrap(), all);
        drop(folder);
        let folder = Folder::open(&path).unwrap();
        assert_eq!(folder.load().unwrap(), all);
    }

    #[test]
    fn nonsense_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for text in ["", "{", "{\"version\":2,\"registrations\":[]}", "[1]", "\0\0\0"] {
            std::fs::write(dir.path().join(NAME), text).unwrap();
            assert_eq!(folder.load().unwrap(), [], "{text:?}");
            assert!(dir.path().join("registrations.json.unreadable").try_exists().unwrap());
        }
    }
}
