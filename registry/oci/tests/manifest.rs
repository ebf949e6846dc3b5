//! Manifests: those that clients and the conformance suite push, and those that nobody should.
//!
//! The files in `samples/` without `docker`, `build` or `schema1` in their name are what the suite pushes, byte for
//! byte.

use bytes::Bytes;
use oci::{
    Algorithm, Descriptor, ErrorCode, InvalidManifest, Kind, Manifest, ManifestLimits, media_type, parse_digest,
    referrers,
};
use serde_json::{Value, json};

macro_rules! sample {
    ($name:literal) => {
        include_bytes!(concat!("samples/", $name, ".json")).as_slice()
    };
}

fn parse(raw: &[u8]) -> Result<Manifest, InvalidManifest> {
    Manifest::parse(Bytes::copy_from_slice(raw), None, &ManifestLimits::default())
}

fn parse_json(json: &Value) -> Result<Manifest, InvalidManifest> {
    parse(json.to_string().as_bytes())
}

fn parse_as(raw: &[u8], content_type: &str) -> Result<Manifest, InvalidManifest> {
    Manifest::parse(Bytes::copy_from_slice(raw), Some(content_type), &ManifestLimits::default())
}

const HEX: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

fn descriptor() -> Value {
    json!({"mediaType": "application/x", "digest": format!("sha256:{HEX}"), "size": 7})
}

fn image() -> Value {
    json!({"schemaVersion": 2, "config": descriptor(), "layers": [descriptor(), descriptor()]})
}

/// The place an error names.
fn place(json: &Value) -> String {
    match parse_json(json) {
        Err(InvalidManifest::Field { field, .. }) => field,
        other => panic!("{json} gives {other:?}"),
    }
}

/// What a sample has: media type, blobs, of them required, children.
fn counts(raw: &[u8]) -> (&'static str, usize, usize, usize) {
    let manifest = parse(raw).expect("a manifest");
    assert_eq!(manifest.raw(), raw);
    // What it says of itself is what clients send as Content-Type.
    let again = parse_as(raw, manifest.media_type()).expect("a manifest");
    assert_eq!(again.kind(), manifest.kind());
    (manifest.media_type(), manifest.blobs().len(), manifest.required_blobs().len(), manifest.children().len())
}

#[test]
fn what_the_conformance_suite_pushes() {
    let (image, index) = (media_type::OCI_MANIFEST, media_type::OCI_INDEX);
    for (raw, wanted) in [
        (sample!("image"), (image, 3, 3, 0)),
        (sample!("no-layers"), (image, 1, 1, 0)),
        (sample!("artifact"), (image, 2, 2, 0)),
        // Configuration and layer are the same two bytes.
        (sample!("artifact-without-layers"), (image, 1, 1, 0)),
        (sample!("artifact-with-subject"), (image, 2, 2, 0)),
        (sample!("image-with-subject"), (image, 3, 3, 0)),
        (sample!("data-field"), (image, 3, 3, 0)),
        (sample!("custom-fields"), (image, 3, 3, 0)),
        (sample!("sha512-image"), (image, 3, 3, 0)),
        (sample!("non-distributable-layers"), (image, 4, 2, 0)),
        (sample!("index"), (index, 0, 0, 2)),
        (sample!("nested-index"), (index, 0, 0, 2)),
        (sample!("empty-index"), (index, 0, 0, 0)),
        (sample!("artifact-index"), (index, 0, 0, 2)),
        (sample!("index-with-subject"), (index, 0, 0, 2)),
        (sample!("sha512-index"), (index, 0, 0, 2)),
    ] {
        assert_eq!(counts(raw), wanted, "{}", String::from_utf8_lossy(raw));
    }
}

#[test]
fn what_docker_and_build_caches_push() {
    // One layer lies elsewhere, one is there twice.
    assert_eq!(counts(sample!("docker-image")), (media_type::DOCKER_MANIFEST, 3, 2, 0));
    assert_eq!(counts(sample!("docker-list")), (media_type::DOCKER_MANIFEST_LIST, 0, 0, 2));
    // An index of blobs.
    assert_eq!(counts(sample!("build-cache")), (media_type::OCI_INDEX, 2, 2, 0));
}

#[test]
fn digests_are_of_the_bytes() {
    let digest = parse(sample!("nested-index")).expect("an index").digest(Algorithm::Sha256);
    assert_eq!(digest.to_string(), "sha256:51305cc857d8e3ddba2b47ed3eb13fd33c41ece47f1036478343acb438e0f1e6");
    let digest = parse(sample!("sha512-index")).expect("an index").digest(Algorithm::Sha512);
    assert!(digest.to_string().starts_with("sha512:1a83c942a3623374ea50f2cc5a06b51d"), "{digest}");
    // The suite appends blanks and expects another digest.
    let longer = [sample!("image"), b"  "].concat();
    let (one, other) = (parse(sample!("image")).expect("an image"), parse(&longer).expect("an image"));
    assert_ne!(one.digest(Algorithm::Sha256), other.digest(Algorithm::Sha256));
    assert_eq!(other.raw().len(), one.raw().len() + 2);
}

#[test]
fn referrers_say_what_the_specification_wants() {
    let referrer = |raw| {
        let manifest = parse(raw).expect("a manifest");
        assert_eq!(
            manifest.to_referrer(manifest.digest(Algorithm::Sha256)).artifact_type.as_deref(),
            manifest.artifact_type()
        );
        let digest = manifest.digest(Algorithm::Sha256);
        (manifest.subject().is_some(), manifest.to_referrer(digest))
    };
    // Its own type.
    let (has_subject, artifact) = referrer(sample!("artifact-with-subject"));
    assert!(has_subject);
    let keys: Vec<_> = artifact.annotations.keys().map(String::as_str).collect();
    assert_eq!(keys, ["org.example.ULTMVQIFUNUS3SZJOYRTMNX7W3", "org.opencontainers.conformance"]);
    assert!(artifact.artifact_type.as_deref().is_some_and(|found| found.starts_with("application/vnd.example.oci.")));
    assert_eq!(artifact.size, sample!("artifact-with-subject").len() as u64);
    // None: that of its configuration.
    assert_eq!(referrer(sample!("image-with-subject")).1.artifact_type.as_deref(), Some(media_type::OCI_CONFIG));
    // An index without one has none, and an empty one is none.
    assert_eq!(referrer(sample!("index")).1.artifact_type, None);
    let mut image = image();
    image["artifactType"] = json!("");
    assert_eq!(parse_json(&image).expect("an image").artifact_type(), Some("application/x"));

    let listed = referrers::index([&artifact], None);
    assert_eq!(parse(&listed).expect("an index").kind(), &Kind::Index { manifests: vec![artifact] });
}

#[test]
fn header_and_field_agree() {
    let raw = sample!("image");
    assert!(parse_as(raw, "application/vnd.oci.image.manifest.v1+json; charset=utf-8").is_ok());
    assert!(parse_as(raw, "APPLICATION/vnd.OCI.image.manifest.v1+json").is_ok());
    assert!(parse_as(raw, "").is_ok());
    for other in [media_type::OCI_INDEX, media_type::DOCKER_MANIFEST, "application/json", "text/html"] {
        let error = parse_as(raw, other).expect_err(other);
        assert!(matches!(error, InvalidManifest::MediaTypesDiffer { .. }), "{error}");
        assert_eq!((error.code(), error.status()), (ErrorCode::ManifestInvalid, 400));
    }
    // Without the field the header decides, and without both what it is made of.
    let bare = image().to_string().into_bytes();
    assert_eq!(parse_as(&bare, media_type::DOCKER_MANIFEST).map(|m| m.media_type()), Ok(media_type::DOCKER_MANIFEST));
    assert_eq!(parse(&bare).map(|m| m.media_type()), Ok(media_type::OCI_MANIFEST));
    assert_eq!(parse(br#"{"schemaVersion":2,"manifests":[]}"#).map(|m| m.media_type()), Ok(media_type::OCI_INDEX));
    assert_eq!(parse_as(&bare, "application/json"), Err(InvalidManifest::MediaType("application/json".into())));
}

#[test]
fn types_that_are_no_manifests() {
    assert_eq!(parse(sample!("schema1")), Err(InvalidManifest::Schema1));
    for schema1 in [media_type::DOCKER_SCHEMA1, media_type::DOCKER_SCHEMA1_SIGNED] {
        assert_eq!(parse_as(&image().to_string().into_bytes(), schema1), Err(InvalidManifest::Schema1));
    }
    let mut image = image();
    image["mediaType"] = json!("application/vnd.oci.artifact.manifest.v1+json");
    assert!(matches!(parse_json(&image), Err(InvalidManifest::MediaType(_))));
}

/// A reader that takes it for an image and one that takes it for an index would see different things.
#[test]
fn an_image_is_no_index() {
    let mut both = image();
    both["manifests"] = json!([]);
    let raw = both.to_string().into_bytes();
    assert_eq!(parse(&raw), Err(InvalidManifest::Ambiguous("manifests", "an image")));
    assert_eq!(parse_as(&raw, media_type::OCI_INDEX), Err(InvalidManifest::Ambiguous("config", "an index")));
    let layers = br#"{"schemaVersion":2,"manifests":[],"layers":[]}"#;
    assert_eq!(
        parse_as(layers, media_type::DOCKER_MANIFEST_LIST),
        Err(InvalidManifest::Ambiguous("layers", "an index"))
    );
    // Go writes null for a list it does not have.
    both["manifests"] = Value::Null;
    assert!(parse_json(&both).is_ok());
}

#[test]
fn null_is_as_good_as_nothing() {
    let mut image = image();
    for field in ["subject", "annotations", "artifactType", "mediaType"] {
        image[field] = Value::Null;
    }
    for field in ["urls", "annotations", "artifactType", "data", "platform"] {
        image["config"][field] = Value::Null;
    }
    assert_eq!(parse_json(&image).expect("an image").blobs().len(), 1);
}

/// So does `crane index filter` when nothing is left.
#[test]
fn go_writes_an_empty_list_as_null() {
    let index = parse(br#"{"schemaVersion":2,"manifests":null}"#).expect("an index");
    assert_eq!((index.media_type(), index.kind()), (media_type::OCI_INDEX, &Kind::Index { manifests: Vec::new() }));
    for kind in [media_type::OCI_INDEX, media_type::DOCKER_MANIFEST_LIST] {
        let index = parse_as(br#"{"schemaVersion":2,"manifests":null,"layers":null}"#, kind).expect("an index");
        assert_eq!((index.kind(), index.children().len()), (&Kind::Index { manifests: Vec::new() }, 0));
    }
    let mut image = image();
    image["layers"] = Value::Null;
    let image = parse_json(&image).expect("an image");
    assert!(matches!(image.kind(), Kind::Image { layers, .. } if layers.is_empty()));
    // What is not there at all is still missing.
    for (kind, field) in [(media_type::OCI_INDEX, "manifests"), (media_type::OCI_MANIFEST, "config")] {
        let Err(InvalidManifest::Field { field: found, .. }) = parse_as(br#"{"schemaVersion":2}"#, kind) else {
            panic!("{kind} without {field} was taken")
        };
        assert_eq!(found, field);
    }
}

#[test]
fn errors_name_the_field() {
    // (a place as JSON pointer, a value that is wrong there, the place as the error has it)
    for (pointer, value, wanted) in [
        ("/schemaVersion", json!(3), "schemaVersion"),
        ("/schemaVersion", json!("2"), "schemaVersion"),
        ("/schemaVersion", Value::Null, "schemaVersion"),
        ("/config", Value::Null, "config"),
        ("/config", json!([]), "config"),
        ("/config/size", json!(-1), "config.size"),
        ("/config/size", json!(1.5), "config.size"),
        ("/config/size", json!("7"), "config.size"),
        ("/config/size", json!(u64::MAX), "config.size"),
        ("/config/size", Value::Null, "config.size"),
        ("/config/mediaType", json!(""), "config.mediaType"),
        ("/config/mediaType", json!("a\nb"), "config.mediaType"),
        ("/config/mediaType", json!("a".repeat(256)), "config.mediaType"),
        ("/layers", json!({}), "layers"),
        ("/layers/1", Value::Null, "layers[1]"),
        ("/layers/1", json!("x"), "layers[1]"),
        ("/layers/1/digest", json!("sha256:00"), "layers[1].digest"),
        ("/layers/1/digest", json!(format!("md5:{}", &HEX[..32])), "layers[1].digest"),
        ("/layers/1/digest", Value::Null, "layers[1].digest"),
        ("/layers/1/urls", json!("x"), "layers[1].urls"),
        ("/layers/1/urls", json!(["x", 1]), "layers[1].urls[1]"),
        ("/layers/1/annotations", json!([]), "layers[1].annotations"),
        ("/layers/1/annotations", json!({"a": 1}), "layers[1].annotations"),
        ("/layers/1/annotations", json!({"a": null}), "layers[1].annotations"),
        ("/subject", json!({}), "subject.mediaType"),
        ("/subject/digest", json!("x"), "subject.digest"),
        ("/artifactType", json!(1), "artifactType"),
        ("/annotations", json!({"a": {}}), "annotations"),
    ] {
        let mut image = image();
        image["subject"] = descriptor();
        for field in ["artifactType", "annotations"] {
            image[field] = Value::Null;
        }
        for layer in image["layers"].as_array_mut().expect("a list") {
            (layer["urls"], layer["annotations"]) = (Value::Null, Value::Null);
        }
        assert!(parse_json(&image).is_ok());
        *image.pointer_mut(pointer).expect("a place") = value.clone();
        assert_eq!(place(&image), wanted, "{pointer} {value}");
    }
    for field in ["mediaType", "digest", "size"] {
        let mut image = image();
        image["layers"][1].as_object_mut().expect("an object").remove(field);
        assert_eq!(place(&image), format!("layers[1].{field}"));
    }
    for field in ["schemaVersion", "config", "layers"] {
        let mut image = image();
        image.as_object_mut().expect("an object").remove(field);
        assert_eq!(place(&image), field);
    }
    assert_eq!(place(&json!({"schemaVersion": 2})), "manifests");
    assert_eq!(place(&json!([])), "the manifest");
    assert_eq!(place(&Value::Null), "the manifest");
}

#[test]
fn what_two_readers_would_read_differently_is_refused() {
    let raw = image().to_string();
    for (old, new, wanted) in [
        (r#""schemaVersion":2"#, r#""schemaVersion":2,"schemaVersion":2"#, "schemaVersion"),
        (r#""layers":["#, r#""layers":[],"layers":["#, "layers"),
        (r#""layers":["#, r#""layers":null,"layers":["#, "layers"),
        (r#""size":7"#, r#""size":7,"size":7"#, "config.size"),
        (r#""size":7"#, r#""size":7,"annotations":{"a":"1","\u0061":"2"}"#, "config.annotations"),
        // Go's parser takes these for the field.
        (r#""layers":["#, r#""Layers":[],"layers":["#, "layers"),
        (r#""layers":["#, r#""layer\u017f":[],"layers":["#, "layers"),
        (r#""size":7"#, r#""size":7,"DIGEST":"x""#, "config.digest"),
    ] {
        let raw = raw.replacen(old, new, 1);
        match parse(raw.as_bytes()) {
            Err(InvalidManifest::Field { field, .. }) => assert_eq!(field, wanted, "{raw}"),
            other => panic!("{raw} gives {other:?}"),
        }
    }
    // What nobody reads may be there as often as it likes.
    let twice = raw.replacen('{', r#"{"x":1,"x":{"layers":[],"layers":0},"Layer":[],"#, 1);
    assert!(parse(twice.as_bytes()).is_ok());
}

#[test]
fn what_is_no_json() {
    let valid = image().to_string();
    for bad in [
        "",
        "{",
        "nul",
        "{}{}",
        "\u{feff}{}",
        &valid[..valid.len() - 1],
        &format!("{valid}]"),
        &valid.replace(":7", ":07"),
    ] {
        let error = parse(bad.as_bytes()).expect_err(bad);
        assert!(matches!(error, InvalidManifest::Json(_)), "{bad:?} gives {error:?}");
    }
    assert!(matches!(parse(b"{\"x\":\"\xff\"}"), Err(InvalidManifest::Json(_))));
}

#[test]
fn four_mebibytes_and_not_one_more() {
    let limit = ManifestLimits::default().size_bytes_max;
    assert_eq!(limit, 4 * 1024 * 1024);
    let mut image = image();
    image["annotations"] = json!({"a": ""});
    let rest = limit - image.to_string().len();
    image["annotations"]["a"] = json!("x".repeat(rest));
    let exact = image.to_string();
    assert_eq!(parse(exact.as_bytes()).map(|manifest| manifest.raw().len()), Ok(limit));
    let error = parse(format!("{exact} ").as_bytes()).expect_err("a byte more");
    assert_eq!(error, InvalidManifest::TooLarge { size: limit + 1, limit });
    assert_eq!((error.code(), error.status()), (ErrorCode::SizeInvalid, 413));
}

/// The whole size the suite uses: 390 annotations of 10,000 bytes.
#[test]
fn large_annotations() {
    let mut image = image();
    image["annotations"] = (0..390).map(|i| (format!("large-annotation-{i}"), json!("A".repeat(10_000)))).collect();
    assert_eq!(parse_json(&image).expect("an image").annotations().len(), 390);
}

#[test]
fn depth_is_limited_before_anything_is_read() {
    let nested = |open: &str, close: &str, depth: usize| {
        let value = format!("{}0{}", open.repeat(depth), close.repeat(depth));
        image().to_string().replacen('{', &format!(r#"{{"x":{value},"#), 1)
    };
    assert!(parse(nested("[", "]", 31).as_bytes()).is_ok());
    let too_deep = Err(InvalidManifest::TooDeep { limit: 32 });
    assert_eq!(parse(nested("[", "]", 32).as_bytes()), too_deep);
    assert_eq!(parse(nested(r#"{"a":"#, "}", 100).as_bytes()), too_deep);
    // As deep as four mebibytes go, closed and not.
    assert_eq!(parse("[".repeat(4 << 20).as_bytes()), too_deep);
    assert_eq!(parse(r#"{"a":"#.repeat(800_000).as_bytes()), too_deep);
    assert_eq!(parse(nested("[", "]", 2_000_000).as_bytes()), too_deep);
    // Brackets in texts are none, whatever stands before them.
    for before in ["", "\"", "\\", "\\\""] {
        let text = format!("{before}{}", "[".repeat(40));
        let mut image = image();
        image["annotations"] = json!({ &text: &text });
        assert!(parse_json(&image).is_ok(), "{text}");
    }
}

#[test]
fn counts_are_limited() {
    let limits = ManifestLimits { descriptors_max: 3, annotations_max: 2, urls_max: 1, ..ManifestLimits::default() };
    let parse = |json: &Value| Manifest::parse(Bytes::from(json.to_string()), None, &limits);
    // Configuration and two layers are three.
    assert!(parse(&image()).is_ok());
    let mut more = image();
    more["subject"] = descriptor();
    assert_eq!(parse(&more), Err(InvalidManifest::TooMany { what: "descriptors", limit: 3 }));
    let mut annotated = image();
    annotated["annotations"] = json!({"a": ""});
    annotated["layers"][0]["annotations"] = json!({"a": ""});
    assert!(parse(&annotated).is_ok());
    annotated["layers"][1]["annotations"] = json!({"a": ""});
    assert_eq!(parse(&annotated), Err(InvalidManifest::TooMany { what: "annotations", limit: 2 }));
    let mut elsewhere = image();
    elsewhere["layers"][0]["urls"] = json!(["a"]);
    assert!(parse(&elsewhere).is_ok());
    elsewhere["layers"][1]["urls"] = json!(["a"]);
    assert_eq!(parse(&elsewhere), Err(InvalidManifest::TooMany { what: "urls", limit: 1 }));

    let layers =
        |count: usize| json!({"schemaVersion": 2, "config": descriptor(), "layers": vec![descriptor(); count]});
    assert!(parse_json(&layers(9_999)).is_ok());
    assert_eq!(parse_json(&layers(10_000)), Err(InvalidManifest::TooMany { what: "descriptors", limit: 10_000 }));
}

/// What stands in a stranger's text does not come back at length.
#[test]
fn errors_are_short() {
    let long = "x".repeat(1 << 20);
    let mut texts = Vec::new();
    for (pointer, value) in [
        ("/schemaVersion", json!(long)),
        ("/config/size", json!(long)),
        ("/config/digest", json!(long)),
        ("/config/digest", json!(format!("{long}:00"))),
        ("/config/mediaType", json!(long)),
        ("/layers", json!(long)),
    ] {
        let mut image = image();
        *image.pointer_mut(pointer).expect("a place") = value;
        texts.push(parse_json(&image).expect_err("wrong").to_string());
    }
    let mut image = image();
    image["annotations"] = json!({});
    let doubled = image.to_string().replace("{}", &format!(r#"{{"{long}":"","{long}":""}}"#));
    texts.push(parse(doubled.as_bytes()).expect_err("twice").to_string());
    texts.push(parse_as(image.to_string().as_bytes(), &long).expect_err("no type").to_string());
    for text in texts {
        assert!(text.len() < 400, "{} bytes: {}", text.len(), &text[..400]);
    }
}

#[test]
fn layers_that_lie_elsewhere() {
    let (one, two) = ("1".repeat(64), "2".repeat(64));
    let layer = |hex: &str, media_type: &str, urls: &[&str]| {
        let digest = format!("sha256:{hex}");
        json!({"mediaType": media_type, "digest": digest, "size": 9, "urls": urls})
    };
    let mut image = image();
    image["layers"] = json!([
        layer(&one, media_type::OCI_LAYER_NONDISTRIBUTABLE_ZSTD, &[]),
        layer(&two, media_type::OCI_LAYER_GZIP, &["https://elsewhere.example/"]),
    ]);
    let manifest = parse_json(&image).expect("an image");
    let hexes = |blobs: Vec<oci::BlobRef<'_>>| blobs.iter().map(|blob| blob.digest.hex()).collect::<Vec<_>>();
    assert_eq!(hexes(manifest.required_blobs()), [HEX]);
    assert_eq!(hexes(manifest.blobs()), [HEX, &one, &two]);
    // Named a second time as an ordinary layer, it is one.
    image["layers"].as_array_mut().expect("a list").push(layer(&two, media_type::OCI_LAYER_GZIP, &[]));
    let manifest = parse_json(&image).expect("an image");
    assert_eq!(hexes(manifest.required_blobs()), [HEX, &two]);
    assert_eq!(manifest.blobs().len(), 3);
    assert_eq!(manifest.blobs()[2].size_bytes, 9);
}

#[test]
fn descriptors_keep_what_matters() {
    let mut index = json!({"schemaVersion": 2, "manifests": [descriptor()]});
    let entry = &mut index["manifests"][0];
    entry["mediaType"] = json!(media_type::OCI_MANIFEST);
    entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
    entry["data"] = json!("aGVsbG8=");
    entry["annotations"] = json!({"a": "b"});
    entry["artifactType"] = json!("application/y");
    entry["urls"] = json!(["https://elsewhere.example/"]);
    let manifest = parse_json(&index).expect("an index");
    let wanted = Descriptor {
        media_type: media_type::OCI_MANIFEST.to_owned(),
        digest: parse_digest(&format!("sha256:{HEX}")).expect("a digest"),
        size: 7,
        urls: vec!["https://elsewhere.example/".to_owned()],
        artifact_type: Some("application/y".to_owned()),
        annotations: [("a".to_owned(), "b".to_owned())].into(),
    };
    assert_eq!(manifest.children(), [&wanted]);
    let written = serde_json::to_value(&wanted).expect("JSON");
    let entry = index["manifests"][0].as_object_mut().expect("an object");
    entry.remove("platform");
    entry.remove("data");
    assert_eq!(written, index["manifests"][0]);
}
