//! Lists of referrers: what points to a manifest by `subject`.

use serde::Serialize;

use crate::{Descriptor, media_type};

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

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{Digest, Manifest, ManifestLimits, parse_digest};

    fn digest(algorithm: &str, len: usize) -> Digest {
        parse_digest(&format!("{algorithm}:{}", "a".repeat(len))).expect("a digest")
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
