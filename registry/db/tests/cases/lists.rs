//! Catalog and tags: order, pages, time.

use std::time::{Duration, Instant};

use db::{RestoredBlob, RestoredManifest, RestoredTag};
use oci::Reference;
use serde_json::json;

use crate::support::*;

pub(crate) async fn lists_are_in_the_order_of_bytes(ground: &Ground) {
    let db = &ground.db;
    let names = ["b", "a", "a0", "a/b", "a-b", "a.b", "a_b", "ab", "a/b/c", "z9"];
    for (number, name) in names.iter().enumerate() {
        push_image(db, name, "one", &["t"], number as u64, 0).await;
    }
    let mut sorted = names.map(str::to_owned).to_vec();
    sorted.sort();
    assert_eq!(db.catalog(None, 100).await.unwrap(), sorted);
    assert_eq!(db.catalog(None, 3).await.unwrap(), sorted[..3]);
    assert_eq!(db.catalog(Some(&sorted[2]), 3).await.unwrap(), sorted[3..6]);
    assert_eq!(db.catalog(Some("a-"), 1).await.unwrap(), ["a-b"], "what is not there is a bound, too");
    assert_eq!(db.catalog(None, 0).await.unwrap(), Vec::<String>::new());

    let tags = ["B", "a", "A", "_", "1", "a.1", "a-1", "a_1", "v1.10", "v1.9", "Z", "z"];
    put(db, "b", &image(&[digest("one")], json!({})), &tags, 0).await;
    let mut sorted: Vec<String> = tags.iter().map(|name| (*name).to_owned()).chain(["t".to_owned()]).collect();
    sorted.sort();
    let b = id(db, "b").await;
    assert_eq!(db.tags(b, None, 100).await.unwrap(), sorted);
    let mut paged = Vec::new();
    while let Some(last) = db.tags(b, paged.last().map(String::as_str), 4).await.unwrap().last() {
        let page = db.tags(b, paged.last().map(String::as_str), 4).await.unwrap();
        assert_eq!(page.last(), Some(last));
        paged.extend(page);
    }
    assert_eq!(paged, sorted);
    // A repository whose manifests are gone is not listed any more.
    let c = id(db, "z9").await;
    delete(db, c, &digest_of(&image(&[digest("one")], json!({}))), 1).await.unwrap();
    assert!(!db.catalog(None, 100).await.unwrap().contains(&"z9".to_owned()));
}

/// A tenth of what `./dev bench catalog` pages through: enough to tell a lookup from a scan.
pub(crate) async fn lists_of_many_are_quick(ground: &Ground) {
    const REPOSITORIES: usize = 1000;
    const TAGS: usize = 2000;
    const REFERRERS: usize = 3000;
    let db = &ground.db;
    let blob = RestoredBlob { digest: digest("config"), size: 6, key: key(1) };
    db.restore_blobs(&[blob], &|_| true, 0).await.unwrap();
    let manifest = image(&[digest("config")], json!({}));
    let restored = |name: String, record: usize| RestoredManifest {
        repository: repository(&name),
        manifest: manifest.clone(),
        digest: digest_of(&manifest),
        record: format!("{record:032x}"),
        created_ms: 0,
        foreign: Vec::new(),
    };
    let many: Vec<_> = (0..REPOSITORIES).map(|number| restored(format!("r{number:05}"), number)).collect();
    db.restore_manifests(&many, &|_| true).await.unwrap();
    let tags: Vec<_> = (0..TAGS)
        .map(|number| RestoredTag {
            repository: repository("r00500"),
            tag: tag(&format!("t{number:05}")),
            digest: digest_of(&manifest),
            gone: false,
            change: db::ChangeId(number as i64 + 1),
            at_ms: 0,
        })
        .collect();
    db.restore_tags(&tags).await.unwrap();
    let referrers: Vec<_> = (0..REFERRERS)
        .map(|number| {
            let mut more = about(&digest("subject"));
            more["artifactType"] = json!(if number % 100 == 0 { "application/rare" } else { "application/vnd.test" });
            more["annotations"] = json!({"number": number.to_string()});
            let manifest = image(&[digest("config")], more);
            let digest = digest_of(&manifest);
            RestoredManifest { manifest, digest, ..restored("r00500".into(), REPOSITORIES + number) }
        })
        .collect();
    db.restore_manifests(&referrers, &|_| true).await.unwrap();
    let a = id(db, "r00500").await;
    quick("a page of referrers", async || {
        let page = db.referrers(a, &digest("subject"), None, Some("sha256:8"), 100).await.unwrap();
        assert_eq!(page.len(), 100);
    })
    .await;
    quick("a page of some referrers", async || {
        let page = db.referrers(a, &digest("subject"), Some("application/rare"), None, 10).await.unwrap();
        assert_eq!(page.len(), 10);
    })
    .await;
    quick("referrers of what has none", async || {
        assert!(db.referrers(a, &digest("config"), None, None, 100).await.unwrap().is_empty());
    })
    .await;
    quick("a page of tags", async || {
        assert_eq!(db.tags(a, Some("t01500"), 100).await.unwrap()[0], "t01501");
    })
    .await;
    quick("a page of the catalog", async || {
        assert_eq!(db.catalog(Some("r00700"), 100).await.unwrap()[0], "r00701");
    })
    .await;
    quick("a manifest by tag", async || {
        assert!(db.manifest(a, &Reference::Tag(tag("t01234"))).await.unwrap().is_some());
    })
    .await;
    quick("a link", async || {
        assert!(db.link(a, &digest("config")).await.unwrap().is_some());
    })
    .await;
    quick("a step of the collector that finds nothing", async || {
        assert_eq!(db.collect(i64::MAX / 2, 100, false, &blob_entry).await.unwrap().looked_at, 0);
    })
    .await;
}

/// The fastest of several, for others use the machine, too.
async fn quick(what: &str, work: impl AsyncFn()) {
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let begin = Instant::now();
        work().await;
        fastest = fastest.min(begin.elapsed());
    }
    assert!(fastest < Duration::from_millis(10), "{what} takes {fastest:?}");
}
