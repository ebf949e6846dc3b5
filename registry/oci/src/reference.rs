//! What a manifest is asked for by: a tag or a digest.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use proto::Digest;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{ErrorCode, InvalidDigest, parse_digest};

/// Characters a tag may have.
pub const TAG_LEN_MAX: usize = 128;

/// The name of a tag. Always of the specification's grammar. A clone costs a reference count.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TagName(Arc<str>);

/// A text is no tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tag is 1 to 128 letters, digits, _, . and -, and does not start with . or -")]
pub struct InvalidTag;

/// A tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// What the tag points to now.
    Tag(TagName),
    /// This very manifest.
    Digest(Digest),
}

/// A text is neither tag nor digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidReference {
    /// Without a `:` it would be a tag.
    #[error(transparent)]
    Tag(#[from] InvalidTag),
    /// With a `:` it would be a digest.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
}

// === impl TagName ===

impl TagName {
    /// The tag as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TagName {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
        match text.as_bytes() {
            [first, rest @ ..]
                if rest.len() < TAG_LEN_MAX
                    && word(*first)
                    && rest.iter().all(|&b| word(b) || b == b'.' || b == b'-') =>
            {
                Ok(Self(text.into()))
            }
            _ => Err(InvalidTag),
        }
    }
}

impl AsRef<str> for TagName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for TagName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TagName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TagName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for TagName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for TagName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

// === impl Reference ===

impl FromStr for Reference {
    type Err = InvalidReference;

    /// No tag has a `:`, and every digest has one.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') { Ok(Self::Digest(parse_digest(text)?)) } else { Ok(Self::Tag(text.parse()?)) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl From<TagName> for Reference {
    fn from(tag: TagName) -> Self {
        Self::Tag(tag)
    }
}

impl From<Digest> for Reference {
    fn from(digest: Digest) -> Self {
        Self::Digest(digest)
    }
}

// === impl InvalidTag, InvalidReference ===

impl InvalidTag {
    /// What the answer says. The specification has no code of its own for a tag that is none.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::ManifestInvalid
    }
}

impl InvalidReference {
    /// What the answer says.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Tag(invalid) => invalid.code(),
            Self::Digest(invalid) => invalid.code(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags() {
        for good in ["latest", "1.0", "_", "A", "v1.2.3-rc.1_x", &"a".repeat(128)] {
            assert_eq!(good.parse::<TagName>().map(|tag| tag.to_string()), Ok(good.to_owned()));
        }
        for bad in ["", ".a", "-a", "a b", "a/b", "a+b", "a%2f", "ä", "a\n", "..", &"a".repeat(129)] {
            assert_eq!(bad.parse::<TagName>(), Err(InvalidTag), "{bad:?}");
        }
        assert!(serde_json::from_str::<TagName>("\"a b\"").is_err());
    }

    #[test]
    fn a_colon_makes_a_digest() {
        let digest = Digest::of(proto::Algorithm::Sha512, b"x");
        assert_eq!(digest.to_string().parse(), Ok(Reference::Digest(digest)));
        assert_eq!("latest".parse(), Ok(Reference::Tag("latest".parse().expect("a tag"))));
        let digest = "sha256:baddigeststring".parse::<Reference>().expect_err("no digest");
        assert_eq!(digest.code(), ErrorCode::DigestInvalid);
        let tag = "../x".parse::<Reference>().expect_err("no tag");
        assert_eq!(tag.code(), ErrorCode::ManifestInvalid);
    }
}
