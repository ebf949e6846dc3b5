//! What the fuzz targets of the registry's protocol do. Each takes any bytes, must not panic, and checks what has to
//! hold for all input.

use std::collections::HashSet;

use bytes::Bytes;
use oci::range::Selection;
use oci::upload::{ContentRange, UploadId, UploadKey};
use oci::{InvalidManifest, Kind, Manifest, ManifestLimits, Query, Reference, RepositoryName, TagName};
use oci::{media_type, page, parse_digest, range, referrers, route};

/// Reads the bytes as a manifest: as they are, and as each type that there is.
pub fn manifest(bytes: &[u8]) {
    let raw = Bytes::copy_from_slice(bytes);
    let limits = ManifestLimits { size_bytes_max: 1 << 20, ..ManifestLimits::default() };
    for content_type in [None].into_iter().chain(media_type::MANIFESTS.map(Some)) {
        match Manifest::parse(raw.clone(), content_type, &limits) {
            Ok(manifest) => {
                assert_eq!(manifest.raw(), &raw);
                assert!(content_type.is_none_or(|stated| stated == manifest.media_type()));
                accepted(&manifest, &limits);
            }
            Err(error) => refused(&error),
        }
    }
    // Every limit at its smallest: an error or what fits.
    let smallest =
        ManifestLimits { size_bytes_max: 1 << 20, depth_max: 3, descriptors_max: 1, annotations_max: 0, urls_max: 0 };
    if let Ok(manifest) = Manifest::parse(raw, None, &smallest) {
        accepted(&manifest, &smallest);
    }
}

fn accepted(manifest: &Manifest, limits: &ManifestLimits) {
    let (blobs, children) = (manifest.blobs(), manifest.children());
    let distinct: HashSet<_> = blobs.iter().map(|blob| blob.digest).collect();
    assert_eq!(distinct.len(), blobs.len());
    let required = manifest.required_blobs();
    assert!(required.iter().all(|blob| blobs.contains(blob)));
    let descriptors: Vec<_> = match manifest.kind() {
        Kind::Image { config, layers } => {
            assert!(!media_type::is_index(manifest.media_type()) && children.is_empty());
            assert!(required.iter().any(|blob| blob.digest == &config.digest));
            std::iter::once(config).chain(layers).collect()
        }
        Kind::Index { manifests } => {
            assert!(media_type::is_index(manifest.media_type()));
            manifests.iter().collect()
        }
    };
    let all = || descriptors.iter().copied().chain(manifest.subject());
    assert!(all().count() <= limits.descriptors_max);
    assert!(all().map(|one| one.urls.len()).sum::<usize>() <= limits.urls_max);
    let annotations = all().map(|one| one.annotations.len()).sum::<usize>() + manifest.annotations().len();
    assert!(annotations <= limits.annotations_max);
    let named: HashSet<_> = descriptors.iter().map(|one| &one.digest).collect();
    let found: HashSet<_> =
        blobs.iter().map(|blob| blob.digest).chain(children.iter().map(|one| &one.digest)).collect();
    assert_eq!(named, found);
    // An independent reader sees the same descriptors: what two would read differently is refused.
    let value: serde_json::Value = serde_json::from_slice(manifest.raw()).expect("JSON");
    let listed = match manifest.kind() {
        Kind::Image { .. } => std::iter::once(&value["config"]).chain(value["layers"].as_array().into_iter().flatten()),
        Kind::Index { .. } => {
            std::iter::once(&value["none"]).chain(value["manifests"].as_array().into_iter().flatten())
        }
    };
    let listed: Vec<_> = listed.filter_map(|one| one["digest"].as_str()).collect();
    assert_eq!(listed, descriptors.iter().map(|one| one.digest.to_string()).collect::<Vec<_>>());
    // As a referrer it can be listed.
    let referrer = manifest.to_referrer(manifest.digest(oci::Algorithm::Sha256));
    let index = Bytes::from(referrers::index([&referrer], None));
    let index = Manifest::parse(index, None, &ManifestLimits::default()).expect("our own");
    assert_eq!(index.kind(), &Kind::Index { manifests: vec![referrer] });
}

fn refused(error: &InvalidManifest) {
    assert_eq!(error.status() == 413, matches!(error, InvalidManifest::TooLarge { .. }));
    assert!(error.to_string().len() < 2_000, "{error}");
}

/// Reads the bytes as a path, and as every name a path is made of.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for path in
        [text.to_owned(), format!("/v2/{text}"), format!("/v2/a/manifests/{text}"), format!("/v2/{text}/tags/list")]
    {
        match route::parse(&path) {
            Ok(found) => {
                assert_eq!(route::parse(&found.to_string()).as_ref(), Ok(&found));
                let name = found.name().map(RepositoryName::as_str);
                assert!(name.is_none_or(|name| name.len() <= 255 && !name.contains("..") && !name.contains("//")));
            }
            Err(error) => assert!([400, 404].contains(&error.status())),
        }
    }
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string(), text);
        assert_eq!(matches!(reference, Reference::Digest(_)), text.contains(':'));
    }
    if let Ok(name) = text.parse::<RepositoryName>() {
        assert_eq!(name.as_str(), text);
        assert!(
            matches!(route::parse(&format!("/v2/{name}/tags/list")), Ok(route::Route::Tags { name: found }) if found == name)
        );
    }
    if let Ok(tag) = text.parse::<TagName>() {
        assert_eq!(tag.as_str(), text);
    }
    if let Ok(digest) = parse_digest(text) {
        assert_eq!(digest.to_string(), text);
    }
}

/// Reads the bytes as a `Range` and as the `Content-Range` of a chunk.
pub fn ranges(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for header in [text.to_owned(), format!("bytes={text}")] {
        for length in [0, 1, 2, 1000, u64::MAX] {
            if let Selection::Part(part) = range::select(Some(&header), length) {
                assert!(part.start() < part.end() && part.end() <= length);
            }
        }
        assert!(!matches!(range::select(Some(&header), 0), Selection::Part(_)));
    }
    for header in [text.to_owned(), format!("bytes {text}")] {
        if let Ok(range) = ContentRange::parse(&header) {
            assert_eq!(range.start() + range.len(), range.end());
            assert_eq!(range.is_empty(), range.start() == range.end());
            if !range.is_empty() {
                let again = format!("{}-{}", range.start(), range.end() - 1);
                assert_eq!(ContentRange::parse(&again), Ok(range));
            }
        }
    }
}

/// Reads the bytes as everything else that is in a request's line and headers.
pub fn headers(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let name: RepositoryName = "a/b".parse().expect("a name");
    // Nobody guesses a key.
    assert_eq!(UploadKey::new([1; 32]).verify(&name, text), None);
    if let Ok(id) = text.parse::<UploadId>() {
        assert_eq!(id.to_string(), text);
    }
    let Ok(query) = Query::parse(text) else { return };
    for (name, _) in query.iter() {
        assert_eq!(query.get(name), query.all(name).next());
        assert!(query.get(name).is_some());
    }
    let Ok(asked) = page::Page::parse(&query, 100) else { return };
    assert!(asked.n <= 100);
    // The link to the next page leads to where this one was asked to go on.
    let last = query.iter().last().map_or("x", |(_, value)| value);
    let link = asked.next("/v2/_catalog", last, &[("more", last)]);
    assert!(link.is_ascii() && !link.bytes().any(|b| b.is_ascii_control()));
    let followed = link.strip_prefix("</v2/_catalog?").and_then(|link| link.strip_suffix(">; rel=\"next\""));
    let query = Query::parse(followed.expect("its shape")).expect("our own");
    assert_eq!((query.get("last"), query.get("more")), (Some(last), Some(last)));
}
