//! Names of repositories.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ErrorCode;

/// Bytes a repository's name may have. Many clients allow no more for host and name together.
pub const NAME_LEN_MAX: usize = 255;

/// The name of a repository: `library/ubuntu`. Always of the specification's grammar. A clone costs a reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

/// Why a text is no repository's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidName {
    /// Nothing at all.
    #[error("the name of the repository is empty")]
    Empty,
    /// More than [`NAME_LEN_MAX`] bytes.
    #[error("the name of the repository has {len} bytes, more than {NAME_LEN_MAX}")]
    TooLong {
        /// Bytes it has.
        len: usize,
    },
    /// Not of the specification's grammar.
    #[error(
        "the name of a repository is parts joined by /, each of lower-case letters and digits, with single ., _ or __ \
         or any number of - between them"
    )]
    Grammar,
}

// === impl RepositoryName ===

impl RepositoryName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a text is one part of a name: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_part(part: &[u8]) -> bool {
    let run = |from: usize, wanted: fn(u8) -> bool| part[from..].iter().take_while(|&&b| wanted(b)).count();
    let mut at = 0;
    loop {
        match run(at, |b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            0 => return false,
            letters => at += letters,
        }
        at += match part.get(at) {
            None => return true,
            Some(b'.') => 1,
            Some(b'_') => run(at, |b| b == b'_').min(2),
            Some(b'-') => run(at, |b| b == b'-'),
            Some(_) => return false,
        };
    }
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(InvalidName::Empty);
        }
        if text.len() > NAME_LEN_MAX {
            return Err(InvalidName::TooLong { len: text.len() });
        }
        if !text.as_bytes().split(|&b| b == b'/').all(is_part) {
            return Err(InvalidName::Grammar);
        }
        Ok(Self(text.into()))
    }
}

impl AsRef<str> for RepositoryName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for RepositoryName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for RepositoryName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RepositoryName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

// === impl InvalidName ===

impl InvalidName {
    /// What the answer says.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::NameInvalid
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_of_the_specification() {
        for good in
            ["a", "0", "library/ubuntu", "a/b/c/d", "a.b", "a_b", "a__b", "a-b", "a---b", "a-b.c_d__e/f--0", "v2/blobs"]
        {
            assert_eq!(good.parse::<RepositoryName>().map(|name| name.to_string()), Ok(good.to_owned()));
        }
        for bad in [
            "/", "a/", "/a", "a//b", "A", "ä", ".", "..", "a/..", "../a", "a..b", ".a", "a.", "_a", "a_", "a___b",
            "-a", "a-", "a-.b", "a._b", "a b", "a:b", "a%2fb", "a\0", "a/_/b", "a@b",
        ] {
            assert_eq!(bad.parse::<RepositoryName>(), Err(InvalidName::Grammar), "{bad:?}");
        }
        assert_eq!("".parse::<RepositoryName>(), Err(InvalidName::Empty));
    }

    #[test]
    fn at_most_255_bytes() {
        assert!("a".repeat(255).parse::<RepositoryName>().is_ok());
        assert_eq!("a".repeat(256).parse::<RepositoryName>(), Err(InvalidName::TooLong { len: 256 }));
        assert_eq!("..".repeat(150).parse::<RepositoryName>(), Err(InvalidName::TooLong { len: 300 }));
    }

    #[test]
    fn serde_checks_too() {
        let name: RepositoryName = serde_json::from_str("\"a/b\"").expect("a name");
        assert_eq!(serde_json::to_string(&name).expect("a text"), "\"a/b\"");
        assert!(serde_json::from_str::<RepositoryName>("\"a//b\"").is_err());
    }
}
