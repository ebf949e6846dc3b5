//! Content digests: `sha256:…`, `sha512:…`, `md5:…`, `blake3:…`.

use std::fmt;
use std::str::FromStr;

use md5::Digest as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A digest algorithm a user or an OCI reference may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    /// SHA-256, OCI's default.
    Sha256,
    /// SHA-512, OCI's other one.
    Sha512,
    /// MD5, for the old dfget's `--md5`. Not collision resistant.
    Md5,
    /// BLAKE3 with 32 bytes.
    Blake3,
}

/// An algorithm and the bytes it gave. Always of the algorithm's length.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: Box<[u8]>,
}

/// Why a text is no digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidDigest {
    /// There is no `:` between algorithm and value.
    #[error("a digest is written algorithm:hex, for example sha256:9f86…")]
    Shape,
    /// The algorithm is not one we compute.
    #[error("digest algorithm {0:?} is not known; known are sha256, sha512, md5 and blake3")]
    Algorithm(String),
    /// The value has the wrong number of characters for its algorithm.
    #[error("a {algorithm} digest has {expected} hexadecimal characters, not {found}")]
    Length {
        /// The algorithm's name.
        algorithm: &'static str,
        /// Hexadecimal characters it should have.
        expected: usize,
        /// Characters it has.
        found: usize,
    },
    /// The value is not lower-case hexadecimal.
    #[error("the value of a digest is lower-case hexadecimal")]
    Hex,
}

/// Computes a digest as bytes pass by.
#[derive(Clone)]
pub struct DigestHasher(Inner);

#[derive(Clone)]
enum Inner {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
    Md5(md5::Md5),
    Blake3(Box<blake3::Hasher>),
}

// === impl Algorithm ===

impl Algorithm {
    /// All algorithms.
    pub const ALL: [Self; 4] = [Self::Sha256, Self::Sha512, Self::Md5, Self::Blake3];

    /// The name before the colon.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
            Self::Md5 => "md5",
            Self::Blake3 => "blake3",
        }
    }

    /// Length of the digest in bytes.
    #[must_use]
    pub const fn len_bytes(self) -> usize {
        match self {
            Self::Sha256 | Self::Blake3 => 32,
            Self::Sha512 => 64,
            Self::Md5 => 16,
        }
    }

    /// A hasher for this algorithm.
    #[must_use]
    pub fn hasher(self) -> DigestHasher {
        DigestHasher(match self {
            Self::Sha256 => Inner::Sha256(sha2::Sha256::new()),
            Self::Sha512 => Inner::Sha512(Box::default()),
            Self::Md5 => Inner::Md5(md5::Md5::new()),
            Self::Blake3 => Inner::Blake3(Box::default()),
        })
    }
}

impl FromStr for Algorithm {
    type Err = InvalidDigest;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|algorithm| algorithm.name() == name)
            .ok_or_else(|| InvalidDigest::Algorithm(name.chars().take(32).collect()))
    }
}

// === impl Digest ===

impl Digest {
    /// A digest from raw bytes; `None` when the length is not the algorithm's.
    #[must_use]
    pub fn new(algorithm: Algorithm, bytes: &[u8]) -> Option<Self> {
        (bytes.len() == algorithm.len_bytes()).then(|| Self { algorithm, bytes: bytes.into() })
    }

    /// The digest of these bytes.
    #[must_use]
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut hasher = algorithm.hasher();
        hasher.update(content);
        hasher.finish()
    }

    /// The algorithm.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The value after the colon.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(&self.bytes)
    }
}

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, value) = text.split_once(':').ok_or(InvalidDigest::Shape)?;
        let algorithm: Algorithm = name.parse()?;
        let expected = algorithm.len_bytes() * 2;
        if value.len() != expected {
            return Err(InvalidDigest::Length { algorithm: algorithm.name(), expected, found: value.len() });
        }
        if value.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(InvalidDigest::Hex);
        }
        let bytes = hex::decode(value).map_err(|_| InvalidDigest::Hex)?;
        Ok(Self { algorithm, bytes: bytes.into() })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

// === impl DigestHasher ===

impl DigestHasher {
    /// Takes the next bytes of the content.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            Inner::Sha256(h) => h.update(bytes),
            Inner::Sha512(h) => h.update(bytes),
            Inner::Md5(h) => h.update(bytes),
            Inner::Blake3(h) => {
                h.update(bytes);
            }
        }
    }

    /// The digest of everything taken.
    #[must_use]
    pub fn finish(self) -> Digest {
        match self.0 {
            Inner::Sha256(h) => Digest { algorithm: Algorithm::Sha256, bytes: h.finalize().to_vec().into() },
            Inner::Sha512(h) => Digest { algorithm: Algorithm::Sha512, bytes: h.finalize().to_vec().into() },
            Inner::Md5(h) => Digest { algorithm: Algorithm::Md5, bytes: h.finalize().to_vec().into() },
            Inner::Blake3(h) => Digest { algorithm: Algorithm::Blake3, bytes: h.finalize().as_bytes().to_vec().into() },
        }
    }
}

impl fmt::Debug for DigestHasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DigestHasher")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        // FIPS 180-4, RFC 1321 and the BLAKE3 paper's test vectors for "abc".
        let cases = [
            (Algorithm::Sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (Algorithm::Md5, "900150983cd24fb0d6963f7d28e17f72"),
            (Algorithm::Blake3, "6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"),
        ];
        for (algorithm, value) in cases {
            assert_eq!(Digest::of(algorithm, b"abc").hex(), value);
        }
        assert!(Digest::of(Algorithm::Sha512, b"abc").hex().starts_with("ddaf35a193617aba"));
    }

    #[test]
    fn text_round_trips_and_bad_text_is_named() {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, b"x");
            assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        }
        assert_eq!("abc".parse::<Digest>(), Err(InvalidDigest::Shape));
        assert_eq!("crc32:00".parse::<Digest>(), Err(InvalidDigest::Algorithm("crc32".into())));
        assert!(matches!("md5:00".parse::<Digest>(), Err(InvalidDigest::Length { found: 2, .. })));
        let upper = Digest::of(Algorithm::Md5, b"x").to_string().to_uppercase().replace("MD5", "md5");
        assert_eq!(upper.parse::<Digest>(), Err(InvalidDigest::Hex));
    }
}
