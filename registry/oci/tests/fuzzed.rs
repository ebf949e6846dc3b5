//! The bodies of the fuzz targets on generated input.

use proptest::prelude::*;

#[allow(unreachable_pub, reason = "belongs to the crate of the fuzz targets")]
#[path = "../../../fuzz/src/registry.rs"]
mod targets;

const SAMPLES: [&[u8]; 7] = [
    include_bytes!("samples/image.json"),
    include_bytes!("samples/index-with-subject.json"),
    include_bytes!("samples/artifact-with-subject.json"),
    include_bytes!("samples/non-distributable-layers.json"),
    include_bytes!("samples/docker-image.json"),
    include_bytes!("samples/build-cache.json"),
    include_bytes!("samples/schema1.json"),
];

/// A manifest with some of its bytes changed, some of its words exchanged, and perhaps cut.
fn mangled() -> impl Strategy<Value = Vec<u8>> {
    const WORDS: &[&str] = &[
        "layers",
        "manifests",
        "config",
        "size",
        "digest",
        "urls",
        "annotations",
        "subject",
        "mediaType",
        "null",
        "[",
        "{",
    ];
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let swaps = proptest::collection::vec((prop::sample::select(WORDS), prop::sample::select(WORDS)), 0..3);
    (prop::sample::select(&SAMPLES[..]), changes, swaps, proptest::option::of(any::<prop::sample::Index>())).prop_map(
        |(sample, changes, swaps, cut)| {
            let mut text = String::from_utf8(sample.to_vec()).expect("text");
            for (old, new) in swaps {
                text = text.replacen(old, new, 1);
            }
            let mut bytes = text.into_bytes();
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}

proptest! {
    #[test]
    fn manifests_of_mangled_bytes(bytes in mangled()) {
        targets::manifest(&bytes);
    }

    #[test]
    fn manifests_of_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        targets::manifest(&bytes);
    }

    #[test]
    fn references_of_any_text(text in "\\PC{0,80}") {
        targets::reference(text.as_bytes());
    }

    #[test]
    fn references_that_look_right(text in "(/v2)?(/(a|b|[.]{1,2}|_|__|-|%2f|%2e|%zz|manifests|blobs|uploads|tags|list|referrers|_catalog|latest|sha256:[0-9a-f]{64}|)){0,7}") {
        targets::reference(text.as_bytes());
        targets::reference(text.trim_start_matches('/').as_bytes());
    }

    #[test]
    fn ranges_that_look_right(text in "(bytes[= ])?[0-9 -]{0,6}-?([0-9]{0,3}|18446744073709551615|9223372036854775807)(/[0-9*]{0,3})?(,-?[0-9]?-?)?") {
        targets::ranges(text.as_bytes());
    }

    #[test]
    fn headers_of_any_text(text in "\\PC{0,60}") {
        targets::headers(text.as_bytes());
        targets::ranges(text.as_bytes());
    }

    #[test]
    fn headers_that_look_right(text in "((n|last|tag|digest|[0-9a-f]{32})=?(%[0-9a-f]{2}|[0-9]{1,3}|[a-z+é ]{1,3})[&-]?){0,5}") {
        targets::headers(text.as_bytes());
    }
}

/// The samples as they are: the checks of the targets must be reached.
#[test]
fn whole_samples() {
    SAMPLES.iter().for_each(|sample| targets::manifest(sample));
}
