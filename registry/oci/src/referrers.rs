//! Lists of referrers: what points to a manifest by `subject`.

use proto::{Algorithm, Digest};
use serde::Serialize;

use crate::{Descriptor, TagName, media_type, parse_algorithm};

/// Characters of an algorithm's name that go into a fallback tag.
const ALGORITHM_LEN_MAX: usize = 32;
/// Characters of a digest's value that go into a fallback tag.
const ENCODED_LEN_MAX: usize = 64;

/// The subject of a fallback tag, as far as the tag tells: a SHA-512 digest is cut in half.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SubjectPrefix {
    algorithm: Algorithm,
    hex: String,
}

/// The tag under which clients keep the referrers of a manifest in registries that have no list of their own:
/// `sha256-9f86…`.
#[must_use]
pub fn fallback_tag(subject: &Digest) -> TagName {
    let (algorithm, hex) = (subject.algorithm().name(), subject.hex());
    let (algorithm, hex) =
        (&algorithm[..algorithm.len().min(ALGORITHM_LEN_MAX)], &hex[..hex.len().min(ENCODED_LEN_MAX)]);
    format!("{algorithm}-{hex}").parse().expect("letters, digits and one - make a tag of at most 97 characters")
}

/// Whose referrers a tag keeps; `None` for every other tag.
#[must_use]
pub fn subject_of_fallback_tag(tag: &TagName) -> Option<SubjectPrefix> {
    let (name, hex) = tag.as_str().split_once('-')?;
    let algorithm = parse_algorithm(name).ok()?;
    let whole = hex.len() == (algorithm.len_bytes() * 2).min(ENCODED_LEN_MAX);
    let right = whole && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    right.then(|| SubjectPrefix { algorithm, hex: hex.to_owned() })
}

/// The body of a list of referrers: an OCI index of these descriptors, in their order. With `artifact_type` only of
/// those that have it.
#[must_use]
pub fn index<'d>(descriptors: impl IntoIterator<Item = &'d Descriptor>, artifact_type: Option<&str>) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Index<'d> {
        schema_version: u32,
        media_type: &'static str,
        manifests: Vec<&'d Descriptor>,
    }
    let wanted = |descriptor: &&Descriptor| {
        artifact_type.is_none_or(|wanted| descriptor.artifact_type.as_deref() == Some(wanted))
    };
    let manifests = descriptors.into_iter().filter(wanted).collect();
    let index = Index { schema_version: 2, media_type: media_type::OCI_INDEX, manifests };
    serde_json::to_vec(&index).expect("maps with text keys always serialise")
}

// === impl SubjectPrefix ===

impl SubjectPrefix {
    /// The algorithm of the subject's digest.
    #[must_use]
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// What the tag has of the digest's value: all of it for SHA-256, the first half for SHA-512.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.hex
    }

    /// Whether this may be the subject.
    #[must_use]
    pub fn matches(&self, digest: &Digest) -> bool {
        digest.algorithm() == self.algorithm && digest.hex().starts_with(&self.hex)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Manifest, ManifestLimits, parse_digest};

    fn digest(algorithm: &str, len: usize) -> Digest {
        parse_digest(&format!("{algorithm}:{}", "a".repeat(len))).expect("a digest")
    }

    #[test]
    fn fallback_tags_of_the_specification() {
        let tag = format!("sha256-{}", "a".repeat(64));
        assert_eq!(fallback_tag(&digest("sha256", 64)).as_str(), tag);
        assert_eq!(fallback_tag(&digest("sha512", 128)).as_str(), tag.replace("256", "512"));
    }

    #[test]
    fn and_back() {
        for subject in [digest("sha256", 64), digest("sha512", 128), Digest::of(Algorithm::Sha512, b"x")] {
            let prefix = subject_of_fallback_tag(&fallback_tag(&subject)).expect("its own");
            assert!(prefix.matches(&subject));
            assert!(!prefix.matches(&Digest::of(Algorithm::Sha256, b"other")));
            assert!(!prefix.matches(&Digest::of(Algorithm::Sha512, b"other")));
        }
        // The same characters of another algorithm.
        let prefix = subject_of_fallback_tag(&fallback_tag(&digest("sha256", 64))).expect("its own");
        assert!(!prefix.matches(&digest("sha512", 128)));
        let right = "a".repeat(64);
        for other in [
            format!("sha256-{right}.sig"),
            format!("sha256-{}", "A".repeat(64)),
            format!("sha256-{}", "a".repeat(63)),
            format!("sha384-{right}"),
            format!("md5-{}", "a".repeat(32)),
            "latest".to_owned(),
            "sha256-".to_owned(),
        ] {
            assert_eq!(subject_of_fallback_tag(&other.parse().expect("a tag")), None, "{other}");
        }
    }

    #[test]
    fn a_list_is_an_index() {
        let sbom = Descriptor {
            media_type: media_type::OCI_MANIFEST.into(),
            digest: digest("sha256", 64),
            size: 1234,
            urls: Vec::new(),
            artifact_type: Some("application/vnd.example.sbom.v1".into()),
            annotations: [("org.example.sbom.format".to_owned(), "json".to_owned())].into(),
        };
        let untyped = Descriptor {
            media_type: media_type::OCI_INDEX.into(),
            artifact_type: None,
            annotations: [].into(),
            ..sbom.clone()
        };
        let read = |body: Vec<u8>| {
            let index = Manifest::parse(Bytes::from(body), Some(media_type::OCI_INDEX), &ManifestLimits::default());
            index.expect("an index").kind().clone()
        };
        let all = vec![sbom.clone(), untyped];
        assert_eq!(read(index(&all, None)), crate::Kind::Index { manifests: all.clone() });
        let filtered = index(&all, Some("application/vnd.example.sbom.v1"));
        assert_eq!(read(filtered), crate::Kind::Index { manifests: vec![sbom] });
        assert_eq!(
            String::from_utf8(index(&all, Some("other"))).expect("text"),
            r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#
        );
        // What does not exist is left out, as the specification wants for an index without a type.
        let text = String::from_utf8(index(&all[1..], None)).expect("text");
        assert!(!text.contains("artifactType") && !text.contains("annotations") && !text.contains("urls"));
    }
}
