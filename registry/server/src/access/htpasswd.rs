//! A file of names and bcrypt hashes, as `htpasswd -B` writes it.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file larger than that is no list of people.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Salt and hash of a password that nobody knows.
const NOBODY: &str = "CwTycUXWue0Thq9StjUM0uJ8Vt1Y8yB0m1O8eXo6ZC0pF6cF0p1mG";

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
    /// The costs of all hashes.
    costs: Vec<String>,
    /// Which cost an unknown name has; nobody can tell from outside.
    unknown: RandomState,
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
        let costs = people.values().map(|hash| hash[COST].to_owned()).collect();
        let edition = EDITIONS.fetch_add(1, Ordering::Relaxed);
        Ok(Self { path: path.to_owned(), edition, people, costs, unknown: RandomState::new() })
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
        match self.people.get(name) {
            Some(hash) => bcrypt::verify(password, hash).unwrap_or(false),
            None => {
                let _ = bcrypt::verify(password, &self.nobody(name));
                false
            }
        }
    }

    /// What an unknown name is compared with, so that it takes as long as one of the known does, and always as long.
    fn nobody(&self, name: &str) -> String {
        let at = usize::try_from(self.unknown.hash_one(name)).unwrap_or(0).checked_rem(self.costs.len());
        let cost = at.map_or("10", |at| &self.costs[at]);
        format!("$2b${cost}${NOBODY}")
    }
}

/// Where the cost stands, as two digits.
const COST: Range<usize> = 4..6;

fn is_bcrypt(hash: &str) -> bool {
    hash.len() == 60
        && hash.is_ascii()
        && ["$2a$", "$2b$", "$2x$", "$2y$"].iter().any(|prefix| hash.starts_with(prefix))
        && hash[COST].bytes().all(|b| b.is_ascii_digit())
        && hash.as_bytes()[COST.end] == b'$'
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn an_unknown_name_costs_what_known_ones_do() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let hash = |cost| bcrypt::hash("secret", cost).unwrap();
        std::fs::write(file.path(), format!("ann:{}\nbob:{}\n", hash(4), hash(5))).unwrap();
        let people = Htpasswd::read(file.path()).unwrap();
        assert!(people.check("ann", "secret") && people.check("bob", "secret"));
        let costs: HashSet<String> = (0..100)
            .map(|number| {
                let hash = people.nobody(&format!("name{number}"));
                assert!(!bcrypt::verify("secret", &hash).unwrap());
                assert_eq!(hash, people.nobody(&format!("name{number}")));
                hash[COST].to_owned()
            })
            .collect();
        assert_eq!(costs, HashSet::from(["04".to_owned(), "05".to_owned()]));
        std::fs::write(file.path(), "").unwrap();
        assert!(!Htpasswd::read(file.path()).unwrap().check("ann", "secret"));
    }
}
