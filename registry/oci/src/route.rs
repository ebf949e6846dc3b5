//! What a path asks for.
//!
//! Names have slashes in them, and may have parts that are words of the protocol: `a/manifests/blobs` is a repository.
//! So a path is read from its end: the last part, then the word before it, and what is left is the name.

use std::borrow::Cow;
use std::fmt;

use proto::Digest;

use crate::query::decode;
use crate::{ErrorCode, InvalidDigest, InvalidName, InvalidReference, Reference, RepositoryName, parse_digest};

/// Characters the last part of an upload's URL may have; ours have 65.
const SESSION_LEN_MAX: usize = 128;

/// What a path asks for. Written out it is that path again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`: is this a registry?
    Base,
    /// `/v2/_catalog`: the repositories.
    Catalog,
    /// `/v2/NAME/tags/list`
    Tags {
        /// The repository.
        name: RepositoryName,
    },
    /// `/v2/NAME/manifests/REFERENCE`
    Manifest {
        /// The repository.
        name: RepositoryName,
        /// Which of its manifests.
        reference: Reference,
    },
    /// `/v2/NAME/blobs/DIGEST`
    Blob {
        /// The repository.
        name: RepositoryName,
        /// Which blob.
        digest: Digest,
    },
    /// `/v2/NAME/blobs/uploads/`: where uploads begin.
    Uploads {
        /// The repository.
        name: RepositoryName,
    },
    /// `/v2/NAME/blobs/uploads/SESSION`
    Upload {
        /// The repository.
        name: RepositoryName,
        /// Which upload; [`crate::upload::UploadKey::verify`] tells whether it is one of ours.
        session: String,
    },
    /// `/v2/NAME/referrers/DIGEST`
    Referrers {
        /// The repository.
        name: RepositoryName,
        /// The subject.
        digest: Digest,
    },
}

/// Why a path asks for nothing that could be given.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// No path of the protocol.
    #[error("there is no such path in the registry's API")]
    Unknown,
    /// The name is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Neither tag nor digest.
    #[error(transparent)]
    Reference(#[from] InvalidReference),
    /// No digest.
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    /// No upload was ever called that.
    #[error("there is no such upload")]
    Session,
}

// === impl Route ===

impl Route {
    /// The repository it is about.
    #[must_use]
    pub const fn name(&self) -> Option<&RepositoryName> {
        match self {
            Self::Base | Self::Catalog => None,
            Self::Tags { name }
            | Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Uploads { name }
            | Self::Upload { name, .. }
            | Self::Referrers { name, .. } => Some(name),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("/v2/"),
            Self::Catalog => f.write_str("/v2/_catalog"),
            Self::Tags { name } => write!(f, "/v2/{name}/tags/list"),
            Self::Manifest { name, reference } => write!(f, "/v2/{name}/manifests/{reference}"),
            Self::Blob { name, digest } => write!(f, "/v2/{name}/blobs/{digest}"),
            Self::Uploads { name } => write!(f, "/v2/{name}/blobs/uploads/"),
            Self::Upload { name, session } => write!(f, "/v2/{name}/blobs/uploads/{session}"),
            Self::Referrers { name, digest } => write!(f, "/v2/{name}/referrers/{digest}"),
        }
    }
}

/// Reads the path of a URL, still percent-encoded, without its query.
///
/// # Errors
/// When it is no path of the protocol, or one of its parts is malformed. What is percent-encoded is decoded first; a
/// `/` that comes out of it is not a separator, and so never right.
pub fn parse(path: &str) -> Result<Route, RouteError> {
    let rest = match path.strip_prefix("/v2") {
        Some("" | "/") => return Ok(Route::Base),
        Some(rest) => rest.strip_prefix('/').ok_or(RouteError::Unknown)?,
        None => return Err(RouteError::Unknown),
    };
    if rest == "_catalog" {
        return Ok(Route::Catalog);
    }
    let (before, last) = rest.rsplit_once('/').ok_or(RouteError::Unknown)?;
    if last.is_empty() {
        let name = before.strip_suffix("blobs/uploads").ok_or(RouteError::Unknown)?;
        return Ok(Route::Uploads { name: name_before(name)? });
    }
    let (before, word) = match before.rsplit_once('/') {
        Some((before, word)) => (before, word),
        None => ("", before),
    };
    match word {
        "tags" if last == "list" => Ok(Route::Tags { name: parse_name(before)? }),
        "manifests" => {
            let name = parse_name(before)?;
            Ok(Route::Manifest { name, reference: part(last).parse()? })
        }
        "blobs" if last == "uploads" => Ok(Route::Uploads { name: parse_name(before)? }),
        "blobs" => {
            let name = parse_name(before)?;
            Ok(Route::Blob { name, digest: parse_digest(&part(last))? })
        }
        "referrers" => {
            let name = parse_name(before)?;
            Ok(Route::Referrers { name, digest: parse_digest(&part(last))? })
        }
        "uploads" => {
            let name = name_before(before.strip_suffix("blobs").ok_or(RouteError::Unknown)?)?;
            Ok(Route::Upload { name, session: parse_session(&part(last))? })
        }
        _ => Err(RouteError::Unknown),
    }
}

/// The name in `NAME/`: what stands before a word of the protocol.
fn name_before(text: &str) -> Result<RepositoryName, RouteError> {
    match text.strip_suffix('/') {
        Some(name) => parse_name(name),
        None if text.is_empty() => Err(InvalidName::Empty.into()),
        // The word was the end of a longer one.
        None => Err(RouteError::Unknown),
    }
}

/// One part of a path, decoded. What cannot be decoded has a `%` left in it, which no grammar of ours allows.
fn part(text: &str) -> Cow<'_, str> {
    decode(text).unwrap_or(Cow::Borrowed(text))
}

fn parse_name(text: &str) -> Result<RepositoryName, RouteError> {
    let name = part(text);
    // A slash that was encoded separates nothing.
    if matches!(&name, Cow::Owned(name) if name.matches('/').count() != text.matches('/').count()) {
        return Err(InvalidName::Grammar.into());
    }
    Ok(name.parse()?)
}

fn parse_session(text: &str) -> Result<String, RouteError> {
    let right = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~' | b'=');
    if text.len() > SESSION_LEN_MAX || !text.bytes().all(right) {
        return Err(RouteError::Session);
    }
    Ok(text.to_owned())
}

// === impl RouteError ===

impl RouteError {
    /// What the answer says.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Unknown => ErrorCode::Unsupported,
            Self::Name(invalid) => invalid.code(),
            Self::Reference(invalid) => invalid.code(),
            Self::Digest(invalid) => invalid.code(),
            Self::Session => ErrorCode::BlobUploadUnknown,
        }
    }

    /// The HTTP status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Unknown => 404,
            _ => self.code().status(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    fn name(text: &str) -> RepositoryName {
        text.parse().expect("a name")
    }

    fn digest() -> Digest {
        format!("sha256:{HEX}").parse().expect("a digest")
    }

    #[test]
    fn every_endpoint() {
        let (tag, digest) = (|tag: &str| Reference::Tag(tag.parse().expect("a tag")), digest());
        for (path, route) in [
            ("/v2/".to_owned(), Route::Base),
            ("/v2/_catalog".to_owned(), Route::Catalog),
            ("/v2/a/tags/list".to_owned(), Route::Tags { name: name("a") }),
            ("/v2/a/b/manifests/latest".to_owned(), Route::Manifest { name: name("a/b"), reference: tag("latest") }),
            (
                format!("/v2/a/manifests/sha256:{HEX}"),
                Route::Manifest { name: name("a"), reference: Reference::Digest(digest.clone()) },
            ),
            (format!("/v2/a/b/c/blobs/sha256:{HEX}"), Route::Blob { name: name("a/b/c"), digest: digest.clone() }),
            ("/v2/a/blobs/uploads/".to_owned(), Route::Uploads { name: name("a") }),
            ("/v2/a/blobs/uploads/0f-e1".to_owned(), Route::Upload { name: name("a"), session: "0f-e1".to_owned() }),
            (format!("/v2/a/referrers/sha256:{HEX}"), Route::Referrers { name: name("a"), digest: digest.clone() }),
        ] {
            assert_eq!(parse(&path).as_ref(), Ok(&route), "{path}");
            assert_eq!(route.to_string(), path);
            assert_eq!(route.name().is_none(), ["/v2/", "/v2/_catalog"].contains(&path.as_str()));
        }
        assert_eq!(parse("/v2"), Ok(Route::Base));
        assert_eq!(parse("/v2/a/blobs/uploads"), Ok(Route::Uploads { name: name("a") }));
    }

    #[test]
    fn names_may_have_words_of_the_protocol() {
        for words in
            ["manifests", "blobs", "uploads", "tags", "tags/list", "blobs/uploads", "v2", "referrers/manifests"]
        {
            assert_eq!(parse(&format!("/v2/{words}/tags/list")), Ok(Route::Tags { name: name(words) }));
            assert_eq!(parse(&format!("/v2/{words}/blobs/uploads/")), Ok(Route::Uploads { name: name(words) }));
            let blob = Ok(Route::Blob { name: name(words), digest: digest() });
            assert_eq!(parse(&format!("/v2/{words}/blobs/sha256:{HEX}")), blob);
            let reference = Reference::Tag("list".parse().expect("a tag"));
            assert_eq!(
                parse(&format!("/v2/{words}/manifests/list")),
                Ok(Route::Manifest { name: name(words), reference })
            );
        }
    }

    #[test]
    fn what_is_percent_encoded_is_decoded() {
        let blob = Ok(Route::Blob { name: name("a/b"), digest: digest() });
        assert_eq!(parse(&format!("/v2/%61/b/blobs/sha256%3A{HEX}")), blob);
        assert_eq!(parse(&format!("/v2/a/b/blobs/sha256%3a{HEX}")), blob);
    }

    #[test]
    fn names_that_are_none() {
        let long = "a".repeat(300);
        for bad in [
            "..", "a/..", "../a", "a/../b", ".", "a%2fb", "a%2Fb", "a%252fb", "%2e%2e", "a//b", "A", "%00", "%ff",
            "%zz", "%", "a%", "_", "a ", "ä", &long,
        ] {
            let paths = [
                format!("/v2/{bad}/manifests/latest"),
                format!("/v2/{bad}/blobs/sha256:{HEX}"),
                format!("/v2/{bad}/blobs/uploads/"),
                format!("/v2/{bad}/blobs/uploads/x"),
                format!("/v2/{bad}/tags/list"),
                format!("/v2/{bad}/referrers/sha256:{HEX}"),
            ];
            for path in paths {
                let error = parse(&path).expect_err(&path);
                assert_eq!((error.code(), error.status()), (ErrorCode::NameInvalid, 400), "{path}");
            }
        }
        for path in
            ["/v2/manifests/latest", "/v2/blobs/uploads/", "/v2/blobs/uploads/x", "/v2/tags/list", "/v2//tags/list"]
        {
            let error = parse(path).expect_err(path);
            assert_eq!((error.code(), error.status()), (ErrorCode::NameInvalid, 400), "{path}");
        }
    }

    #[test]
    fn references_that_are_none() {
        for (path, code) in [
            ("/v2/a/manifests/sha256:baddigeststring", ErrorCode::DigestInvalid),
            ("/v2/a/manifests/md5:d41d8cd98f00b204e9800998ecf8427e", ErrorCode::DigestInvalid),
            ("/v2/a/blobs/sha256:baddigeststring", ErrorCode::DigestInvalid),
            ("/v2/a/blobs/x", ErrorCode::DigestInvalid),
            ("/v2/a/blobs/..", ErrorCode::DigestInvalid),
            ("/v2/a/referrers/sha256:00", ErrorCode::DigestInvalid),
            ("/v2/a/referrers/latest", ErrorCode::DigestInvalid),
            ("/v2/a/manifests/..", ErrorCode::ManifestInvalid),
            ("/v2/a/manifests/..%2f..", ErrorCode::ManifestInvalid),
            ("/v2/a/manifests/a%20b", ErrorCode::ManifestInvalid),
            ("/v2/a/manifests/%ff", ErrorCode::ManifestInvalid),
            ("/v2/a/manifests/%", ErrorCode::ManifestInvalid),
        ] {
            let error = parse(path).expect_err(path);
            assert_eq!((error.code(), error.status()), (code, 400), "{path}");
        }
    }

    #[test]
    fn uploads_that_are_none() {
        let long = format!("/v2/a/blobs/uploads/{}", "0".repeat(129));
        for path in ["/v2/a/blobs/uploads/..%2f", "/v2/a/blobs/uploads/%ff", "/v2/a/blobs/uploads/a b", &long] {
            let error = parse(path).expect_err(path);
            assert_eq!((error.code(), error.status()), (ErrorCode::BlobUploadUnknown, 404), "{path}");
        }
    }

    #[test]
    fn paths_of_something_else() {
        for path in [
            "",
            "/",
            "v2/",
            "/v1/",
            "/v2x",
            "/v22/",
            "/v2/a",
            "/v2/a/",
            "/v2/_catalog/",
            "/v2/a/tags",
            "/v2/a/tags/",
            "/v2/a/tags/x",
            "/v2/a/tags/list/",
            "/v2/a/manifests/",
            "/v2/a/manifests/latest/",
            "/v2/a/blobs/",
            "/v2/a/xblobs/uploads/",
            "/v2/a/uploads/x",
            "/v2/a/xblobs/uploads/x",
            "/v2/a/b/c",
            "/v2//",
            "/healthz",
        ] {
            let error = parse(path).expect_err(path);
            assert_eq!((&error, error.status()), (&RouteError::Unknown, 404), "{path}");
        }
    }
}
