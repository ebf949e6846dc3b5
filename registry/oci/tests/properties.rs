//! What holds for all names, paths, queries, pages and manifests.

use std::sync::LazyLock;

use bytes::Bytes;
use oci::page::Page;
use oci::range::{self, Selection};
use oci::route::{self, Route};
use oci::upload::{UploadId, UploadKey};
use oci::{
    Algorithm, Condition, Descriptor, Digest, Kind, Manifest, ManifestLimits, Query, Reference, RepositoryName,
    TagName, media_type, parse_digest,
};
use proptest::prelude::*;
use regex::Regex;

/// As the specification writes them.
const NAME: &str = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(\/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*";
const TAG: &str = "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}";

static NAME_WHOLE: LazyLock<Regex> = LazyLock::new(|| Regex::new(&format!(r"\A(?:{NAME})\z")).expect("a pattern"));
static TAG_WHOLE: LazyLock<Regex> = LazyLock::new(|| Regex::new(&format!(r"\A(?:{TAG})\z")).expect("a pattern"));

fn name() -> impl Strategy<Value = RepositoryName> {
    // The specification's pattern, with fewer repetitions.
    let part = r"[a-z0-9]{1,4}((\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}";
    let words = "(manifests|blobs|uploads|tags|list|referrers|v2)";
    format!("({part}|{words})(/({part}|{words})){{0,4}}")
        .prop_regex()
        .prop_map(|text| text.parse().expect("of the grammar"))
}

trait PropRegex {
    fn prop_regex(&self) -> BoxedStrategy<String>;
}

impl PropRegex for String {
    fn prop_regex(&self) -> BoxedStrategy<String> {
        proptest::string::string_regex(self).expect("a pattern").boxed()
    }
}

fn digest() -> impl Strategy<Value = Digest> {
    (any::<bool>(), any::<u64>()).prop_map(|(long, seed)| {
        Digest::of(if long { Algorithm::Sha512 } else { Algorithm::Sha256 }, &seed.to_le_bytes())
    })
}

fn tag() -> impl Strategy<Value = TagName> {
    "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,20}".prop_map(|text| text.parse().expect("of the grammar"))
}

fn reference() -> impl Strategy<Value = Reference> {
    prop_oneof![tag().prop_map(Reference::Tag), digest().prop_map(Reference::Digest)]
}

fn any_route() -> impl Strategy<Value = Route> {
    prop_oneof![
        Just(Route::Base),
        Just(Route::Catalog),
        name().prop_map(|name| Route::Tags { name }),
        (name(), reference()).prop_map(|(name, reference)| Route::Manifest { name, reference }),
        (name(), digest()).prop_map(|(name, digest)| Route::Blob { name, digest }),
        name().prop_map(|name| Route::Uploads { name }),
        (name(), "[0-9a-f]{32}-[0-9a-f]{32}").prop_map(|(name, session)| Route::Upload { name, session }),
        (name(), digest()).prop_map(|(name, digest)| Route::Referrers { name, digest }),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    const TYPES: &[&str] = &[
        media_type::OCI_LAYER_GZIP,
        media_type::OCI_LAYER_NONDISTRIBUTABLE,
        media_type::OCI_MANIFEST,
        "application/x",
    ];
    let annotations = proptest::collection::btree_map("\\PC{0,6}", "\\PC{0,6}", 0..3);
    let urls = proptest::collection::vec("https://[a-z]{1,5}/", 0..2);
    let artifact_type = proptest::option::of("application/[a-z]{1,5}");
    (prop::sample::select(TYPES), digest(), 0..=i64::MAX as u64, urls, artifact_type, annotations).prop_map(
        |(media_type, digest, size, urls, artifact_type, annotations)| Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls,
            artifact_type,
            annotations,
        },
    )
}

proptest! {
    /// Ours is the specification's grammar: on texts that are nearly right.
    #[test]
    fn names_are_the_specifications(text in "[ab0._/-]{0,12}|[aA0._%/-]{0,8}") {
        prop_assert_eq!(text.parse::<RepositoryName>().is_ok(), NAME_WHOLE.is_match(&text));
    }

    #[test]
    fn tags_are_the_specifications(text in "[a-cA-C0-2._-]{0,8}|[ -~é]{0,4}|[a-z]{126,130}") {
        prop_assert_eq!(text.parse::<TagName>().is_ok(), TAG_WHOLE.is_match(&text));
    }

    #[test]
    fn names_keep_their_order(one in name(), other in name()) {
        prop_assert_eq!(one.cmp(&other), one.as_str().cmp(other.as_str()));
    }

    #[test]
    fn routes_round_trip(found in any_route()) {
        prop_assert_eq!(route::parse(&found.to_string()), Ok(found));
    }

    /// Whoever encodes more than is needed asks for the same, as long as it is no slash.
    #[test]
    fn routes_may_be_percent_encoded(found in any_route(), which in proptest::collection::vec(any::<bool>(), 1..9)) {
        let path = found.to_string();
        // Words of the protocol stay as they are: everybody writes them so.
        let words = ["v2", "_catalog", "tags", "list", "manifests", "blobs", "uploads", "referrers"];
        let encoded = path.split('/').map(|part| {
            let mut turns = which.iter().cycle();
            if words.contains(&part) {
                return part.to_owned();
            }
            let encode = |b: u8| match turns.next().expect("cycles") {
                true => format!("%{b:02X}"),
                false => char::from(b).to_string(),
            };
            part.bytes().map(encode).collect()
        });
        prop_assert_eq!(route::parse(&encoded.collect::<Vec<_>>().join("/")), Ok(found));
    }

    #[test]
    fn conditions_name_each_of_their_tags(
        tags in proptest::collection::vec(("[!#-~]{1,6}", any::<bool>()), 1..5), other in "[!#-~]{1,6}", one_line in any::<bool>(),
    ) {
        let written: Vec<_> = tags.iter().map(|(tag, weak)| format!("{}\"{tag}\"", if *weak { "W/" } else { "" })).collect();
        let written = if one_line { vec![written.join(" , ")] } else { written };
        let lines = || written.iter().map(String::as_str);
        for current in tags.iter().map(|(tag, _)| tag).chain([&other]) {
            let listed = tags.iter().any(|(tag, _)| tag == current);
            let strong = tags.iter().any(|(tag, weak)| tag == current && !weak);
            prop_assert_eq!(Condition::parse(lines(), []).check(Some(current)).is_ok(), strong);
            prop_assert_eq!(Condition::parse([], lines()).check(Some(current)).is_err(), listed);
        }
    }

    #[test]
    fn conditions_take_any_text(text in "\\PC{0,20}", current in "\\PC{0,5}") {
        let condition = Condition::parse([&*text], [&*text]);
        prop_assert!(condition.check(None).is_err());
        prop_assert!(condition.check(Some(&current)).is_ok() || !condition.is_empty());
    }

    #[test]
    fn queries_round_trip(params in proptest::collection::vec(("[a-z]{1,4}", "\\PC{0,8}"), 0..6)) {
        let encode = |text: &str| text.bytes().map(|b| format!("%{b:02x}")).collect::<String>();
        let raw: Vec<_> = params.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect();
        let raw = raw.join("&");
        let query = Query::parse(&raw).expect("encoded");
        let read: Vec<_> = query.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        prop_assert_eq!(read, params);
    }

    /// Following the links visits every entry once, in order, whatever the size of a page.
    #[test]
    fn pages_are_the_whole_list(
        tags in proptest::collection::btree_set(tag(), 0..30),
        n in 1usize..8,
        cap in 1usize..8,
    ) {
        let all: Vec<_> = tags.iter().map(TagName::as_str).collect();
        let (mut seen, mut query) = (Vec::new(), format!("n={n}"));
        loop {
            let page = Page::parse(&Query::parse(&query).expect("a query"), cap).expect("a page");
            prop_assert!(page.n <= n.min(cap));
            let rest: Vec<_> = all.iter().filter(|tag| page.last.as_deref().is_none_or(|last| **tag > last)).collect();
            seen.extend(rest.iter().take(page.n).map(|tag| **tag));
            if rest.len() <= page.n {
                break;
            }
            let link = page.next("/v2/a/tags/list", rest[page.n - 1], &[]);
            let target = link.strip_prefix("</v2/a/tags/list?").and_then(|link| link.strip_suffix(">; rel=\"next\""));
            query = target.expect("its shape").to_owned();
        }
        prop_assert_eq!(seen, all);
    }

    #[test]
    fn ranges_are_bytes_of_the_content(first in 0u64..40, last in 0u64..40, length in 0u64..40) {
        let wanted = if first > last {
            Selection::Unsatisfiable
        } else if length == 0 {
            Selection::Whole
        } else {
            oci::ByteRange::new(first, (last + 1).min(length)).map_or(Selection::Unsatisfiable, Selection::Part)
        };
        prop_assert_eq!(range::select(Some(&format!("bytes={first}-{last}")), length), wanted);
    }

    #[test]
    fn upload_ids_round_trip(
        now_ms in 0u64..1 << 48,
        later in 1u64..1000,
        random in any::<[u8; 10]>(),
        key in any::<[u8; 32]>(),
        name in name(),
        other in name(),
    ) {
        let (id, key) = (UploadId::new(now_ms, random), UploadKey::new(key));
        prop_assert_eq!(id.created_ms(), now_ms);
        prop_assert_eq!(id.to_string().parse(), Ok(id));
        prop_assert!(now_ms + later >= 1 << 48 || id < UploadId::new(now_ms + later, [0; 10]));
        let session = key.sign(&name, id);
        prop_assert_eq!(key.verify(&name, &session), Some(id));
        prop_assert_eq!(key.verify(&other, &session), (other == name).then_some(id));
        let path = format!("/v2/{name}/blobs/uploads/{session}");
        prop_assert_eq!(route::parse(&path), Ok(Route::Upload { name, session }));
    }

    #[test]
    fn manifests_round_trip(
        config in descriptor(),
        layers in proptest::collection::vec(descriptor(), 0..5),
        subject in proptest::option::of(descriptor()),
        annotations in proptest::collection::btree_map("\\PC{0,6}", "\\PC{0,6}", 0..3),
        pretty in any::<bool>(),
    ) {
        let common = serde_json::json!({"schemaVersion": 2, "subject": subject, "annotations": annotations});
        let (mut image, mut index) = (common.clone(), common);
        image["config"] = serde_json::json!(config);
        image["layers"] = serde_json::json!(layers);
        index["manifests"] = serde_json::json!(layers);
        let write = |value| if pretty { serde_json::to_vec_pretty(&value) } else { serde_json::to_vec(&value) };
        let parse = |raw: Vec<u8>| Manifest::parse(raw.into(), None, &ManifestLimits::default());
        let raw = write(image).expect("JSON");
        let image = parse(raw.clone()).expect("an image");
        prop_assert_eq!(image.raw(), &Bytes::from(raw));
        prop_assert_eq!(image.kind(), &Kind::Image { config, layers: layers.clone() });
        let index = parse(write(index).expect("JSON")).expect("an index");
        prop_assert_eq!(index.kind(), &Kind::Index { manifests: layers });
        for manifest in [image, index] {
            prop_assert_eq!(manifest.subject(), subject.as_ref());
            prop_assert_eq!(manifest.annotations(), &annotations);
        }
    }

    #[test]
    fn only_two_algorithms(text in "(sha256|sha512|md5|blake3|sha384|SHA256):[0-9a-f]{32}([0-9a-f]{32}([0-9a-f]{64})?)?") {
        let right = matches!((text.split_once(':').expect("a colon").0, text.len()), ("sha256", 71) | ("sha512", 135));
        prop_assert_eq!(parse_digest(&text).is_ok(), right);
    }
}
