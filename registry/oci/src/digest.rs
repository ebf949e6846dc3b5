//! The digests a registry takes: those of `proto`, but SHA-256 and SHA-512 only.

use proto::{Algorithm, Digest};

use crate::ErrorCode;

/// Why a text is no digest that this registry takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidDigest {
    /// There is no `:` between algorithm and value.
    #[error("a digest is written algorithm:hex, for example sha256:9f86…")]
    Shape,
    /// The algorithm is another one than SHA-256 and SHA-512. At most 32 characters of it are kept.
    #[error("digest algorithm {0:?} is not supported; supported are sha256 and sha512")]
    Algorithm(String),
    /// The value is not of its algorithm's length in lower-case hexadecimal.
    #[error("the value of a {algorithm} digest is {expected} lower-case hexadecimal characters")]
    Value {
        /// The algorithm's name.
        algorithm: &'static str,
        /// Characters it should have.
        expected: usize,
    },
}

impl InvalidDigest {
    /// What the answer says.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::DigestInvalid
    }
}

/// Reads the name of an algorithm, as in the parameter `digest-algorithm`.
///
/// # Errors
/// For everything but `sha256` and `sha512`.
pub fn parse_algorithm(name: &str) -> Result<Algorithm, InvalidDigest> {
    match name {
        "sha256" => Ok(Algorithm::Sha256),
        "sha512" => Ok(Algorithm::Sha512),
        _ => Err(InvalidDigest::Algorithm(name.chars().take(32).collect())),
    }
}

/// Reads a digest. [`Digest`] itself would also take `md5:…` and `blake3:…`, which no client of a registry may use.
///
/// # Errors
/// When the text is no digest, or one of another algorithm.
pub fn parse_digest(text: &str) -> Result<Digest, InvalidDigest> {
    let (name, _) = text.split_once(':').ok_or(InvalidDigest::Shape)?;
    let algorithm = parse_algorithm(name)?;
    text.parse().map_err(|_| InvalidDigest::Value { algorithm: algorithm.name(), expected: algorithm.len_bytes() * 2 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_two_algorithms_of_registries() {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, b"x");
            assert_eq!(parse_digest(&digest.to_string()), Ok(digest));
            assert_eq!(parse_algorithm(algorithm.name()), Ok(algorithm));
        }
        for algorithm in [Algorithm::Md5, Algorithm::Blake3] {
            let text = Digest::of(algorithm, b"x").to_string();
            assert_eq!(parse_digest(&text), Err(InvalidDigest::Algorithm(algorithm.name().into())));
        }
    }

    #[test]
    fn malformed_digests_are_named() {
        assert_eq!(parse_digest(""), Err(InvalidDigest::Shape));
        assert_eq!(parse_digest("latest"), Err(InvalidDigest::Shape));
        assert_eq!(parse_digest(":"), Err(InvalidDigest::Algorithm(String::new())));
        let wrong = Err(InvalidDigest::Value { algorithm: "sha256", expected: 64 });
        // What the conformance suite sends.
        assert_eq!(parse_digest("sha256:baddigeststring"), wrong);
        assert_eq!(parse_digest(&format!("sha256:{}", "A".repeat(64))), wrong);
        assert_eq!(parse_digest(&format!("sha256:{}", "g".repeat(64))), wrong);
        assert_eq!(parse_digest(&format!("sha256:{}", "0".repeat(63))), wrong);
        assert_eq!(parse_digest(&format!("sha256:{}:", "0".repeat(64))), wrong);
        assert_eq!(parse_digest(&format!("sha256: {}", "0".repeat(64))), wrong);
        // What it says of a stranger's text is short.
        let Err(InvalidDigest::Algorithm(kept)) = parse_digest(&format!("{}:00", "é".repeat(9000))) else {
            panic!("an algorithm that is none")
        };
        assert_eq!(kept.chars().count(), 32);
    }
}
