//! Which URL paths name a blob of a registry. Pure.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use proto::{Algorithm, Digest};

/// `/v2/<name>/blobs/<digest>` of the OCI distribution specification.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobPath<'a> {
    /// The repository; it may hold slashes, and even a component called `blobs`.
    pub name: &'a str,
    /// What is asked for. Only algorithms the specification registers: sha256 and sha512.
    pub digest: Digest,
}

/// Longest repository name that is taken for one; the specification leaves it to the registry, Docker's limit is 255.
const NAME_LEN_MAX: usize = 255;

impl<'a> BlobPath<'a> {
    /// Reads a URL path, as sent, without its query. `None` when it names anything but a blob: a manifest, an upload,
    /// or something malformed, all of which are the origin's to answer.
    ///
    /// The path is cut from the right, because only the digest at its end has a fixed shape.
    #[must_use]
    pub fn parse(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v2/")?;
        let (rest, digest) = rest.rsplit_once('/')?;
        let name = rest.strip_suffix("/blobs")?;
        if !is_name(name) {
            return None;
        }
        // Some clients write the colon as %3A.
        let digest: Cow<'_, str> = percent_decode_str(digest).decode_utf8().ok()?;
        let digest: Digest = digest.parse().ok()?;
        matches!(digest.algorithm(), Algorithm::Sha256 | Algorithm::Sha512).then_some(Self { name, digest })
    }
}

/// The grammar `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*`.
fn is_name(name: &str) -> bool {
    name.len() <= NAME_LEN_MAX && name.split('/').all(is_component)
}

fn is_component(component: &str) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_well = bytes.first().is_some_and(alphanumeric) && bytes.last().is_some_and(alphanumeric);
    ends_well
        && component
            .split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
            .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

    #[test]
    fn blobs_and_others() {
        for (path, name) in [
            (format!("/v2/library/busybox/blobs/sha256:{HEX}"), "library/busybox"),
            (format!("/v2/a/blobs/sha256:{HEX}"), "a"),
            (format!("/v2/a/blobs/blobs/sha256:{HEX}"), "a/blobs"),
            (format!("/v2/blobs/blobs/sha256%3A{HEX}"), "blobs"),
            (format!("/v2/x__y/z-----1.2/blobs/sha512:{HEX}{HEX}"), "x__y/z-----1.2"),
        ] {
            assert_eq!(BlobPath::parse(&path).map(|b| b.name), Some(name), "{path}");
        }
        for path in [
            "/v2/".to_owned(),
            "/v2/a/manifests/latest".into(),
            "/v2/a/blobs/uploads/".into(),
            "/v2/a/blobs/uploads/uuid".into(),
            format!("/v2/a/blobs/sha256:{HEX}/"),
            format!("/v2/a/manifests/sha256:{HEX}"),
            format!("/v2/blobs/sha256:{HEX}"),
            format!("/v2//blobs/sha256:{HEX}"),
            format!("/v2/../a/blobs/sha256:{HEX}"),
            format!("/v2/a/./blobs/sha256:{HEX}"),
            format!("/v2/a%2fb/blobs/sha256:{HEX}"),
            format!("/v2/A/blobs/sha256:{HEX}"),
            format!("/v2/-a/blobs/sha256:{HEX}"),
            format!("/v2/a___b/blobs/sha256:{HEX}"),
            format!("/v1/a/blobs/sha256:{HEX}"),
            format!("/v2/a/blobs/md5:{}", &HEX[..32]),
            format!("/v2/a/blobs/sha256:{}", &HEX[1..]),
            format!("/v2/a/blobs/sha256:{}", HEX.to_uppercase()),
        ] {
            assert_eq!(BlobPath::parse(&path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn every_valid_name_and_digest_is_found_again(
            name in "[a-z0-9]{1,6}((\\.|_|__|-{1,3})[a-z0-9]{1,6}){0,2}(/(blobs|v2|[a-z0-9]{1,6})){0,4}",
            content in any::<Vec<u8>>(),
            long: bool,
            escaped: bool,
        ) {
            let digest = Digest::of(if long { Algorithm::Sha512 } else { Algorithm::Sha256 }, &content);
            let mut text = digest.to_string();
            if escaped {
                text = text.replace(':', "%3a");
            }
            let path = format!("/v2/{name}/blobs/{text}");
            prop_assert_eq!(BlobPath::parse(&path), Some(BlobPath { name: &name, digest }));
        }

        #[test]
        fn nothing_makes_it_panic_and_what_it_takes_is_a_plain_path(path in "(/|v2|blobs|sha256:|[ -~]){0,12}") {
            if let Some(blob) = BlobPath::parse(&path) {
                let start = format!("/v2/{}/blobs/", blob.name);
                prop_assert!(path.starts_with(&start));
                prop_assert!(!blob.name.contains(".."));
            }
        }
    }
}
