//! A file of names and bcrypt hashes, as `htpasswd -B` writes it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file larger than that is no list of people.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// What an unknown name is compared with, so that it takes as long as a known one. Nobody knows its password.
const NOBODY: &str = "$2b$10$CwTycUXWue0Thq9StjUM0uJ8Vt1Y8yB0m1O8eXo6ZC0pF6cF0p1mG";

/// Why a file of passwords cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum HtpasswdError {
    /// It cannot be read.
    #[error("cannot read the passwords in {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// It is larger than anybody's.
    #[error("{} is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge { path: PathBuf },
    /// A line is not `name:bcrypt`.
    #[error("{}:{line}: expected name:hash with a bcrypt hash, as `htpasswd -B` writes it", path.display())]
    Line { path: PathBuf, line: usize },
}

/// The people of a file.
#[derive(Debug)]
pub(crate) struct Htpasswd {
    path: PathBuf,
    /// Differs from reading to reading.
    edition: u64,
    people: HashMap<String, String>,
}

impl Htpasswd {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> Result<Self, HtpasswdError> {
        static EDITIONS: AtomicU64 = AtomicU64::new(0);
        let failed = |source| HtpasswdError::Read { path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(failed)?.len() > FILE_BYTES_MAX {
            return Err(HtpasswdError::TooLarge { path: path.to_owned() });
        }
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let mut people = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match line.split_once(':') {
                Some((name, hash)) if !name.is_empty() && is_bcrypt(hash) => {
                    people.insert(name.to_owned(), hash.to_owned());
                }
                _ => return Err(HtpasswdError::Line { path: path.to_owned(), line: number + 1 }),
            }
        }
        Ok(Self { path: path.to_owned(), edition: EDITIONS.fetch_add(1, Ordering::Relaxed), people })
    }

    /// Reads the same file again.
    pub(crate) fn reread(&self) -> Result<Self, HtpasswdError> {
        Self::read(&self.path)
    }

    pub(crate) const fn edition(&self) -> u64 {
        self.edition
    }

    /// Whether this is the password of that name. Takes a tenth of a second of a processor.
    pub(crate) fn check(&self, name: &str, password: &str) -> bool {
        let hash = self.people.get(name);
        let right = bcrypt::verify(password, hash.map_or(NOBODY, String::as_str)).unwrap_or(false);
        right && hash.is_some()
    }
}

fn is_bcrypt(hash: &str) -> bool {
    hash.len() == 60 && ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix))
}
