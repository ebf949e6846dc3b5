//! Finding what does not fit, and making everything anew.

use std::collections::{HashMap, HashSet};

use db::{
    BlobId, ChangeId, Dangling, Db, ManifestId, ManifestRow, Mark, NeededBy, Restored, RestoredBlob, RestoredManifest,
    RestoredTag, State, TagRow,
};
use oci::Reference;
use serde_json::json;

use crate::servers::raw_sql;
use crate::support::*;

async fn all_manifests(db: &Db) -> Vec<ManifestRow> {
    let mut all: Vec<ManifestRow> = Vec::new();
    loop {
        let after = all.last().map_or(ManifestId(0), |row| row.id);
        let page = db.manifests_page(after, 2).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

async fn all_tags(db: &Db) -> Vec<TagRow> {
    let mut all: Vec<TagRow> = Vec::new();
    loop {
        let page = db.tags_page(all.last().map(|row| (row.repository, &row.tag)), 2).await.unwrap();
        if page.is_empty() {
            return all;
        }
        all.extend(page);
    }
}

pub(crate) async fn pages_show_everything(ground: &Ground) {
    let db = &ground.db;
    let mut digests = HashSet::new();
    for (number, name) in ["b", "a", "c"].into_iter().enumerate() {
        digests.insert(push_image(db, name, name, &["x", "y"], number as u64, 3).await);
    }
    let blobs = db.blobs_page(BlobId(0), 2).await.unwrap();
    assert_eq!(blobs.len(), 2);
    let rest = db.blobs_page(blobs[1].id, 2).await.unwrap();
    let keys: HashSet<_> = blobs.iter().chain(&rest).map(|row| row.key).collect();
    assert_eq!(keys, HashSet::from([key(0), key(1), key(2)]));
    let of_keys = db.digests_of_keys(&[key(1), key(9)]).await.unwrap();
    assert_eq!(of_keys, HashMap::from([(key(1), digest("a"))]));
    assert_eq!(db.digests_of_keys(&[]).await.unwrap(), HashMap::new());
    let manifests = all_manifests(db).await;
    assert_eq!(manifests.iter().map(|row| row.digest.clone()).collect::<HashSet<_>>(), digests);
    assert_eq!(manifests[0].created_ms, 3);
    let records = [manifests[1].record.clone(), "other".to_owned()];
    assert_eq!(db.manifest_records_known(&records).await.unwrap(), HashSet::from([manifests[1].record.clone()]));
    let tags = all_tags(db).await;
    assert_eq!(tags.len(), 6);
    assert!(tags.iter().all(|row| digests.contains(&row.digest) && row.at_ms == 3));
    assert_eq!(db.tags_of_changes(&[tags[4].change, ChangeId(1_000_000)]).await.unwrap(), tags[4..5]);
}

pub(crate) async fn dangling_rows_are_found_and_repaired(ground: &Ground) {
    let db = &ground.db;
    push_image(db, "a", "one", &["t"], 1, 0).await;
    collect_all(db, 5000).await;
    let a = id(db, "a").await;
    let sql = async |text: String| raw_sql(&ground.config, &text).await;
    sql(format!("insert into links (repository_id, blob_id, leased_until) values ({a}, 4711, 1)")).await;
    let lonely = digest("lonely");
    sql(format!("insert into blobs (digest, size, store_key, created_at) values ('{lonely}', 9, '{}', 1)", key(7)))
        .await;
    sql(format!("insert into manifest_children (manifest_id, repository_id, digest) values (4711, {a}, 'x')")).await;
    sql(format!(
        "insert into tags (repository_id, name, manifest_id, change_id, updated_at) values ({a}, 'lost', 4711, 1, 1)"
    ))
    .await;
    // A link that nothing refers to, and a reference that has no link.
    push_blob(db, "b", "idle", 2, 0).await;
    let b = id(db, "b").await;
    sql(format!("update links set leased_until = null where repository_id = {b}")).await;
    push_image(db, "c", "two", &[], 3, 0).await;
    db.mount(&digest("two"), None, &repository("d"), 0, LEASE_MS).await.unwrap();
    let c = id(db, "c").await;
    sql(format!("delete from links where repository_id = {c}")).await;
    // The same, and it is the blob's only link: what a manifest needs is no blob to be removed.
    push_image(db, "e", "three", &[], 4, 0).await;
    let e = id(db, "e").await;
    sql(format!("delete from links where repository_id = {e}")).await;

    let found = db.dangling_rows(10).await.unwrap();
    let idle = db.link(b, &digest("idle")).await.unwrap().unwrap().blob;
    let expected = |found: &[Dangling]| {
        let has = |check: &dyn Fn(&Dangling) -> bool| found.iter().filter(|row| check(row)).count();
        assert_eq!(has(&|row| *row == Dangling::LinkWithoutBlob { repository: a, blob: BlobId(4711) }), 1);
        assert_eq!(has(&|row| matches!(row, Dangling::BlobWithoutLink { digest, .. } if *digest == lonely)), 1);
        assert_eq!(has(&|row| *row == Dangling::ReferenceWithoutManifest { manifest: ManifestId(4711) }), 1);
        assert_eq!(has(&|row| *row == Dangling::TagWithoutManifest { repository: a, tag: tag("lost") }), 1);
        assert_eq!(has(&|row| *row == Dangling::LinkWithoutReference { repository: b, blob: idle }), 1);
        for (at, what) in [(c, "two"), (e, "three")] {
            let lost = |row: &Dangling| {
                matches!(row, Dangling::ReferenceWithoutLink { repository, digest, .. }
                if *repository == at && *digest == crate::support::digest(what))
            };
            assert_eq!(has(&lost), 1);
        }
        assert_eq!(found.len(), 7, "{found:?}");
    };
    expected(&found);
    assert_eq!(db.repair(&found, 100, 100, &blob_entry).await.unwrap(), 7);
    assert_eq!(db.repair(&found, 100, 100, &blob_entry).await.unwrap(), 0, "it looks again");
    assert_eq!(db.dangling_rows(10).await.unwrap(), []);
    assert!(take_removals(db).await.contains(&blob_entry(key(7), &lonely, 9)));
    assert!(db.link(c, &digest("two")).await.unwrap().is_some());
    assert!(db.link(e, &digest("three")).await.unwrap().is_some());
    assert!(tag_digest(db, "a", "t").await.is_some());
    // The collector decides about what is idle.
    assert_eq!(collect_all(db, 100).await.blobs, 1);
}

pub(crate) async fn a_forgotten_blob_heals_with_the_next_push(ground: &Ground) {
    let db = &ground.db;
    let manifest = push_image(db, "a", "one", &["t"], 1, 0).await;
    push_image(db, "b", "one", &["t"], 2, 0).await;
    push_blob(db, "c", "one", 3, 0).await;
    let a = id(db, "a").await;
    let blob = db.link(a, &digest("one")).await.unwrap().unwrap().blob;
    let needed = db.forget_blob(blob, 5).await.unwrap();
    let expected = ["a", "b"].map(|name| NeededBy { repository: repository(name), manifest: manifest.clone() });
    assert_eq!(needed, expected);
    assert_eq!(db.link(a, &digest("one")).await.unwrap(), None);
    assert_eq!(db.forget_blob(blob, 5).await.unwrap(), []);
    let dangling = db.dangling_rows(10).await.unwrap();
    assert_eq!(dangling.len(), 2, "{dangling:?}");
    // The lost bytes cannot come back, new ones can.
    assert_eq!(push_blob(db, "a", "one", 1, 6).await, db::BlobCommit::Over);
    push_blob(db, "a", "one", 4, 6).await;
    assert!(db.link(a, &digest("one")).await.unwrap().is_some());
    assert_eq!(db.repair(&dangling, 7, 7, &blob_entry).await.unwrap(), 1, "the other repository had it, too");
    let collected = collect_all(db, 10_000).await;
    assert_eq!((collected.cleared, collected.unlinked), (2, 0));
}

pub(crate) async fn everything_is_restored_from_what_the_store_knows(ground: &Ground) {
    let db = &ground.db;
    assert!(db.is_empty().await.unwrap());
    let image_of = |content: &str| image(&[digest(content)], json!({}));
    let blobs = ["one", "two", "unused"].map(|content| RestoredBlob {
        digest: digest(content),
        size: content.len() as u64,
        key: key(content.len() as u64 * 100 + u64::from(content.as_bytes()[1])),
    });
    let twice = RestoredBlob { key: key(77), ..blobs[0].clone() };
    let answers = db.restore_blobs(&[&blobs[..], &[twice, blobs[1].clone()]].concat(), &|_| true, 5).await.unwrap();
    let (new, known, superseded) = (Restored::New, Restored::Known, Restored::Superseded);
    assert_eq!(answers, [new, new, new, superseded, known]);
    let restored = |repository: &str, manifest: oci::Manifest, record: &str| RestoredManifest {
        repository: crate::support::repository(repository),
        digest: digest_of(&manifest),
        manifest,
        record: record.to_owned(),
        created_ms: 3,
        foreign: Vec::new(),
    };
    let foreign = || {
        image(
            &[digest("one")],
            json!({"layers": [{"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": digest("two").to_string(), "size": 7}]}),
        )
    };
    let manifests = [
        restored("a", image_of("one"), "r1"),
        restored("a", image_of("two"), "r2"),
        restored("b", image_of("one"), "r3"),
        restored("a", image_of("one"), "r4"),
        restored("a", image_of("two"), "r2"),
        // Nobody knows whether this was pushed to the repository; of the next one the record says so.
        restored("d", foreign(), "r5"),
        RestoredManifest { foreign: vec![digest("two"), digest("gone")], ..restored("e", foreign(), "r6") },
    ];
    let answers = db.restore_manifests(&manifests, &|_| true).await.unwrap();
    assert_eq!(answers, [new, new, new, superseded, known, new, new]);
    assert_eq!(db.link(id(db, "d").await, &digest("two")).await.unwrap(), None);
    let two = &[digest("two"), digest("gone")];
    assert_eq!(db.readable(id(db, "d").await, two).await.unwrap(), HashSet::new());
    assert_eq!(db.readable(id(db, "e").await, two).await.unwrap(), HashSet::from([digest("two")]));
    let restored = |repository: &str, name: &str, content: &str, change| RestoredTag {
        repository: crate::support::repository(repository),
        tag: tag(name),
        digest: digest_of(&image_of(content)),
        gone: false,
        change: ChangeId(change),
        at_ms: 4,
    };
    let gone =
        |repository: &str, name: &str, change| RestoredTag { gone: true, ..restored(repository, name, "one", change) };
    let tags = [
        restored("a", "t", "one", 20),
        restored("a", "t", "two", 500),
        restored("a", "t", "one", 30),
        restored("b", "t", "one", 40),
        restored("b", "u", "two", 41),
        restored("b", "t", "one", 40),
        // Deletions, in any order with what they deleted.
        restored("a", "v", "one", 50),
        gone("a", "v", 60),
        gone("a", "w", 70),
        restored("a", "w", "one", 65),
        gone("a", "w", 66),
        gone("a", "w", 70),
        gone("a", "x", 600),
        restored("a", "x", "one", 601),
    ];
    let answers = db.restore_tags(&tags).await.unwrap();
    assert_eq!(answers[..6], [new, new, superseded, new, Restored::Incomplete, known]);
    assert_eq!(answers[6..], [new, new, new, superseded, superseded, known, new, new]);
    assert_eq!(db.tags(id(db, "a").await, None, 10).await.unwrap(), ["t", "x"]);

    assert_eq!(tag_digest(db, "a", "t").await, Some(digest_of(&image_of("two"))));
    let (a, b) = (id(db, "a").await, id(db, "b").await);
    assert_eq!(db.catalog(None, 10).await.unwrap(), ["a", "b", "d", "e"]);
    let found = db.manifest(b, &Reference::Tag(tag("t"))).await.unwrap().unwrap();
    assert_eq!(found.content, *image_of("one").raw());
    assert!(db.link(a, &digest("one")).await.unwrap().is_some());
    assert!(db.link(b, &digest("two")).await.unwrap().is_none());
    // The next change of the tag is above all that were.
    let moved = put(db, "a", &image_of("one"), &["t"], 6).await.tags.remove(0);
    assert!(moved.change > ChangeId(601), "{moved:?}");
    assert_eq!(moved.replaced, Some(ChangeId(500)));
    // A blob that nothing refers to is a removal then.
    let dangling = db.dangling_rows(10).await.unwrap();
    assert!(matches!(&dangling[..], [Dangling::BlobWithoutLink { digest, .. }] if *digest == blobs[2].digest));
    db.repair(&dangling, 7, 7, &blob_entry).await.unwrap();
    assert!(take_removals(db).await.contains(&blob_entry(blobs[2].key, &blobs[2].digest, 6)));
    assert_eq!(db.restore_blobs(&blobs[2..], &|_| true, 8).await.unwrap(), [superseded], "its bytes are about to go");
    assert_eq!(collect_all(db, 10_000).await.unlinked, 0);
}

/// Rows of a backup, whose bytes and record are gone, and those that were pushed since.
pub(crate) async fn what_is_lost_gets_what_is_there(ground: &Ground) {
    let db = &ground.db;
    let digest = push_image(db, "a", "one", &["t"], 1, 1).await;
    let blob = RestoredBlob { digest: crate::support::digest("one"), size: 3, key: key(50) };
    let manifest = RestoredManifest {
        repository: repository("a"),
        digest,
        manifest: image(std::slice::from_ref(&blob.digest), json!({})),
        record: "later".to_owned(),
        created_ms: 3,
        foreign: Vec::new(),
    };
    let (blobs, manifests) = ([blob.clone()], [manifest]);
    assert_eq!(db.restore_blobs(&blobs, &|_| true, 5).await.unwrap(), [Restored::Superseded]);
    assert_eq!(db.restore_blobs(&blobs, &|had| *had != key(1), 5).await.unwrap(), [Restored::New]);
    assert_eq!(db.restore_blobs(&blobs, &|_| false, 5).await.unwrap(), [Restored::Known]);
    assert_eq!(db.link(id(db, "a").await, &blob.digest).await.unwrap().unwrap().key, key(50));
    assert_eq!(db.restore_manifests(&manifests, &|_| true).await.unwrap(), [Restored::Superseded]);
    assert_eq!(db.restore_manifests(&manifests, &|had| had == "later").await.unwrap(), [Restored::New]);
    assert_eq!(db.restore_manifests(&manifests, &|_| false).await.unwrap(), [Restored::Known]);
    assert_eq!(db.manifests_page(ManifestId(0), 10).await.unwrap()[0].record, "later");
    // A second name of the same bytes, as a process leaves it that dies, is nobody's.
    push_blob(db, "a", "two", 60, 6).await;
    let second = |content: &str, number| RestoredBlob {
        digest: crate::support::digest(content),
        size: content.len() as u64,
        key: key(number),
    };
    for (content, number) in [("other", 50), ("one", 60)] {
        let answers = db.restore_blobs(&[second(content, number)], &|_| false, 7).await.unwrap();
        assert_eq!(answers, [Restored::Superseded], "{content}");
    }
    assert_eq!(db.link(id(db, "a").await, &blob.digest).await.unwrap().unwrap().key, key(50));
}

pub(crate) async fn a_database_that_was_set_back_is_not_written_to(ground: &Ground) {
    let db = &ground.db;
    let state = async |mark: &Mark| db.state("store", mark).await.unwrap();
    let empty = State { value: None, reached: true, latest: Mark::default() };
    assert_eq!(state(&Mark::default()).await, empty);
    push_image(db, "a", "one", &["t"], 1, 1).await;
    let mark = state(&Mark::default()).await.latest;
    assert_eq!(mark.change, db.latest_change().await.unwrap());
    let unknown = Mark { made: String::new(), ..mark.clone() };
    let other = Mark { made: "5 sha256:another".to_owned(), ..mark.clone() };
    let later = Mark { change: ChangeId(mark.change.0 + 1), ..mark.clone() };
    let later_unknown = Mark { made: String::new(), ..later.clone() };
    for (before, reached) in
        [(&mark, true), (&unknown, true), (&other, false), (&later, false), (&later_unknown, false)]
    {
        assert_eq!(state(before).await, State { value: None, reached, latest: mark.clone() }, "{before:?}");
    }
    db.setting_or_insert("store", "ours").await.unwrap();
    assert_eq!(state(&mark).await.value.as_deref(), Some("ours"));
    let write = || async { db.remove_setting("unrelated").await };
    // The one process of a file has nobody who could set it back.
    let refused = |result: Result<(), db::DbError>, what: &str| {
        let refused = matches!(result, Err(db::DbError::NotOurs));
        assert_eq!(refused, !db.is_exclusive(), "{what}: {result:?}");
    };
    for mark in [&mark, &unknown, &Mark::default()] {
        db.belong("store", "ours", mark);
        write().await.unwrap();
    }
    db.belong("store", "theirs", &mark);
    refused(write().await, "another name");
    for mark in [&other, &later, &later_unknown] {
        db.belong("store", "ours", mark);
        refused(write().await, "another change");
    }
}
