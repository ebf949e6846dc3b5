//! What a download is about: its task id, and the generation of its content.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use url::Url;

use crate::{Algorithm, ByteRange, Digest, InvalidId};

/// Names the content of a task, not the road to it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId([u8; 32]);

/// Which version of a task's content: a hash of the origin's validators. Pieces of two generations never meet.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation([u8; 16]);

/// What a user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskSpec {
    /// Where the origin is.
    pub url: Url,
    /// Keeps downloads of one URL apart that must not share.
    pub tag: String,
    /// Who asks, for statistics and priorities.
    pub application: String,
    /// What the content must hash to.
    pub digest: Option<Digest>,
    /// Query parameters that do not change the content.
    pub filtered_query_params: Vec<String>,
    /// An OCI blob: `digest` alone is the identity. Meaningless without a digest.
    pub content_addressed: bool,
    /// The part of the origin's content that is wanted, when it is not the whole.
    pub range: Option<ByteRange>,
}

/// What an origin says of a content so that a change can be noticed (RFC 9110 section 8.8).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Validators {
    /// `ETag`, as sent.
    pub etag: Option<String>,
    /// `Last-Modified`, as sent.
    pub last_modified: Option<String>,
    /// Length of the whole content.
    pub length: Option<u64>,
}

/// Query parameters of signed URLs and of containerd's mirrors, which never change the content.
/// Names that end in `*` are prefixes; case does not matter.
pub const DEFAULT_FILTERED_PARAMS: &[&str] = &[
    "X-Amz-*",
    "X-Goog-*",
    "OSSAccessKeyId",
    "Expires",
    "Signature",
    "SecurityToken",
    "AccessKeyId",
    "GoogleAccessId",
    "x-obs-*",
    "q-sign-*",
    "q-ak",
    "q-key-time",
    "q-header-list",
    "q-url-param-list",
    "q-signature",
    "ns",
];

// === impl TaskSpec ===

impl TaskSpec {
    /// A download of a whole URL with nothing else said.
    #[must_use]
    pub const fn of_url(url: Url) -> Self {
        Self {
            url,
            tag: String::new(),
            application: String::new(),
            digest: None,
            filtered_query_params: Vec::new(),
            content_addressed: false,
            range: None,
        }
    }

    /// An OCI blob at this URL.
    #[must_use]
    pub fn of_blob(url: Url, digest: Digest) -> Self {
        let mut spec = Self::of_url(url);
        spec.digest = Some(digest);
        spec.content_addressed = true;
        spec
    }

    /// The task this is: for an OCI blob the digest itself, for a URL BLAKE3 over length-prefixed filtered URL,
    /// tag, application, expected digest and range.
    #[must_use]
    pub fn id(&self) -> TaskId {
        match &self.digest {
            Some(digest) if self.content_addressed => TaskId::of_digest(digest),
            _ => {
                let digest = self.digest.as_ref().map(ToString::to_string).unwrap_or_default();
                let range = self.range.map(|r| r.to_string()).unwrap_or_default();
                TaskId::derive(
                    "skimmer 2026 task id of a url",
                    &[
                        content_url(&self.url, &self.filtered_query_params).as_str(),
                        &self.tag,
                        &self.application,
                        &digest,
                        &range,
                    ],
                )
            }
        }
    }
}

/// The URL without what does not change the content: fragment, credentials and filtered query parameters.
/// The remaining parameters keep their order and spelling.
#[must_use]
pub fn content_url(url: &Url, filtered: &[String]) -> Url {
    let mut url = url.clone();
    url.set_fragment(None);
    // Both fail only for URLs that cannot have credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    if let Some(query) = url.query() {
        let kept: Vec<&str> = query
            .split('&')
            .filter(|pair| {
                let name = pair.split('=').next().unwrap_or_default();
                !DEFAULT_FILTERED_PARAMS
                    .iter()
                    .copied()
                    .chain(filtered.iter().map(String::as_str))
                    .any(|f| matches(f, name))
            })
            .collect();
        let kept = kept.join("&");
        url.set_query((!kept.is_empty()).then_some(kept.as_str()));
    }
    url
}

fn matches(filter: &str, name: &str) -> bool {
    match filter.strip_suffix('*') {
        Some(prefix) => name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)),
        None => name.eq_ignore_ascii_case(filter),
    }
}

// === impl TaskId ===

impl TaskId {
    /// The task of a content-addressed blob: a sha256 digest as it is, another one hashed with its name.
    #[must_use]
    pub fn of_digest(digest: &Digest) -> Self {
        match (digest.algorithm(), <[u8; 32]>::try_from(digest.bytes())) {
            (Algorithm::Sha256, Ok(bytes)) => Self(bytes),
            _ => Self::derive("skimmer 2026 task id of a digest", &[&digest.to_string()]),
        }
    }

    fn derive(context: &str, parts: &[&str]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(context);
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// The bytes on the wire.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 32] {
        self.0
    }

    /// Reads the bytes on the wire.
    ///
    /// # Errors
    /// When there are not exactly 32.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidId> {
        bytes.try_into().map(Self).map_err(|_| InvalidId { expected: 32 })
    }
}

// === impl Generation ===

impl Generation {
    /// The generation that an origin's validators name: a strong `ETag`, else `Last-Modified` and length.
    /// `None` when the origin gives neither: nothing then tells a later content from this one.
    #[must_use]
    pub fn of_validators(validators: &Validators) -> Option<Self> {
        // RFC 9110 section 8.8.3: a weak tag does not promise the same bytes.
        let strong = validators.etag.as_ref().filter(|etag| !etag.starts_with("W/"));
        match (strong, &validators.last_modified, validators.length) {
            (Some(etag), _, _) => Some(Self::derive("etag", etag, None)),
            (None, Some(modified), Some(length)) => Some(Self::derive("modified", modified, Some(length))),
            _ => None,
        }
    }

    /// The one generation of content that is named by its digest.
    #[must_use]
    pub fn of_digest(digest: &Digest) -> Self {
        Self::derive("digest", &digest.to_string(), None)
    }

    /// A generation of its own, for content that nothing tells apart; the caller draws the bits at random.
    #[must_use]
    pub const fn unique(bits: u128) -> Self {
        Self(bits.to_be_bytes())
    }

    fn derive(what: &str, value: &str, length: Option<u64>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("skimmer 2026 generation");
        for part in [what, value] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        hasher.update(&length.unwrap_or(u64::MAX).to_le_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(bytes)
    }

    /// The bytes on the wire.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    /// Reads the bytes on the wire.
    ///
    /// # Errors
    /// When there are not exactly 16.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidId> {
        bytes.try_into().map(Self).map_err(|_| InvalidId { expected: 16 })
    }
}

// === text forms ===

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..6]))
    }
}

impl FromStr for TaskId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_bytes(&hex::decode(text).map_err(|_| InvalidId { expected: 32 })?)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

impl FromStr for Generation {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_bytes(&hex::decode(text).map_err(|_| InvalidId { expected: 16 })?)
    }
}

macro_rules! as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
as_text!(TaskId);
as_text!(Generation);

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().expect("a url")
    }

    #[test]
    fn a_blob_is_its_digest_wherever_it_comes_from() {
        let digest = Digest::of(Algorithm::Sha256, b"layer");
        let a = TaskSpec::of_blob(url("https://one/v2/a/blobs/x"), digest.clone());
        let b = TaskSpec::of_blob(url("https://two/v2/b/blobs/x?ns=one"), digest.clone());
        assert_eq!(a.id(), b.id());
        assert_eq!(a.id().to_bytes(), digest.bytes());
    }

    #[test]
    fn what_changes_a_url_task_and_what_does_not() {
        let base = TaskSpec::of_url(url("http://h/f?version=1&X-Amz-Signature=abc"));
        let resigned = TaskSpec::of_url(url("http://user:pw@h/f?version=1&x-amz-signature=other#part"));
        assert_eq!(base.id(), resigned.id());
        let mut filtered = TaskSpec::of_url(url("http://h/f?version=1&token=z"));
        assert_ne!(base.id(), filtered.id());
        filtered.filtered_query_params = vec!["token".into()];
        assert_eq!(base.id(), filtered.id());
        for change in [
            |s: &mut TaskSpec| s.tag = "t".into(),
            |s: &mut TaskSpec| s.application = "t".into(),
            |s: &mut TaskSpec| s.range = ByteRange::new(0, 10),
            |s: &mut TaskSpec| s.digest = Some(Digest::of(Algorithm::Md5, b"")),
            |s: &mut TaskSpec| s.url = "http://h/f?version=2".parse().unwrap(),
        ] {
            let mut other = base.clone();
            change(&mut other);
            assert_ne!(base.id(), other.id());
        }
    }

    #[test]
    fn generations_follow_the_validators() {
        let of = |etag: Option<&str>, modified: Option<&str>, length| {
            Generation::of_validators(&Validators {
                etag: etag.map(Into::into),
                last_modified: modified.map(Into::into),
                length,
            })
        };
        assert_eq!(of(Some("\"a\""), Some("x"), Some(1)), of(Some("\"a\""), Some("y"), Some(2)));
        assert_ne!(of(Some("\"a\""), None, None), of(Some("\"b\""), None, None));
        assert_eq!(of(Some("W/\"a\""), Some("x"), Some(1)), of(None, Some("x"), Some(1)));
        assert_ne!(of(None, Some("x"), Some(1)), of(None, Some("x"), Some(2)));
        assert_eq!(of(None, Some("x"), None), None);
        assert_eq!(of(Some("W/\"a\""), None, Some(5)), None);
    }
}
