//! Blobs and links.

use db::{BlobCommit, BlobId, Link, Renewal, Unlink};
use serde_json::json;

use crate::support::*;

fn stored(commit: BlobCommit) -> Link {
    let BlobCommit::Stored(linked) = commit else { panic!("{commit:?}") };
    linked.link
}

pub(crate) async fn a_committed_blob_is_readable_in_its_repository_only(ground: &Ground) {
    let db = &ground.db;
    assert!(db.repository_id(&repository("a")).await.unwrap().is_none());
    let link = stored(push_blob(db, "a", "one", 1, 5).await);
    assert_eq!((link.key, link.size, link.leased_until), (key(1), 3, Some(5 + LEASE_MS)));
    stored(push_blob(db, "b", "two", 2, 5).await);
    let (a, b) = (id(db, "a").await, id(db, "b").await);
    assert_eq!(db.link(a, &digest("one")).await.unwrap(), Some(link));
    assert_eq!(db.link(b, &digest("one")).await.unwrap(), None);
    assert_eq!(db.link(a, &digest("two")).await.unwrap(), None);
    // No manifest: not in the catalog.
    assert_eq!(db.catalog(None, 10).await.unwrap(), Vec::<String>::new());
    assert!(!db.is_empty().await.unwrap());
}

pub(crate) async fn a_digest_that_is_there_keeps_its_first_bytes(ground: &Ground) {
    let db = &ground.db;
    let first = stored(push_blob(db, "a", "one", 1, 5).await);
    let commit = push_blob(db, "b", "one", 2, 6).await;
    let BlobCommit::Existed(linked) = commit else { panic!("{commit:?}") };
    assert_eq!(linked.link, Link { leased_until: Some(6 + LEASE_MS), ..first });
    assert_eq!(linked.repository, id(db, "b").await);
    assert!(db.link(linked.repository, &digest("one")).await.unwrap().is_some());
    assert_eq!(take_removals(db).await, [blob_entry(key(2), &digest("one"), 3)]);
}

pub(crate) async fn committing_again_is_harmless(ground: &Ground) {
    let db = &ground.db;
    db.save_checkpoint(key(1), &repository("a"), "state", 3, FIRST, 4).await.unwrap();
    let first = stored(push_blob(db, "a", "one", 1, 5).await);
    let over = db.upload(key(1)).await.unwrap().map(|row| row.status);
    assert_eq!(over, Some(db::UploadStatus::Finished), "the upload is over, for every process");
    let again = stored(push_blob(db, "a", "one", 1, 7).await);
    assert_eq!(again, Link { leased_until: Some(7 + LEASE_MS), ..first });
    assert_eq!(take_removals(db).await, Vec::<String>::new());
    // The same bytes cannot be two blobs.
    let other = push_blob(db, "a", "two", 1, 8).await;
    assert_eq!(other, BlobCommit::Over);
    assert_eq!(db.link(id(db, "a").await, &digest("two")).await.unwrap(), None);
}

pub(crate) async fn bytes_that_were_given_up_are_never_committed(ground: &Ground) {
    let db = &ground.db;
    // The loser of two uploads, retried after the winner is gone.
    push_blob(db, "a", "one", 1, 0).await;
    push_blob(db, "a", "one", 2, 0).await;
    collect_all(db, 2 * LEASE_MS).await;
    let mut expected = [blob_entry(key(1), &digest("one"), 3), blob_entry(key(2), &digest("one"), 3)];
    expected.sort();
    assert_eq!(take_removals(db).await, expected);
    for number in [1, 2] {
        assert_eq!(push_blob(db, "a", "one", number, 3 * LEASE_MS).await, BlobCommit::Over, "{number}");
    }
    assert_eq!(db.link(id(db, "a").await, &digest("one")).await.unwrap(), None);
    // New bytes are welcome.
    stored(push_blob(db, "a", "one", 3, 3 * LEASE_MS).await);
    // So it is with what was cancelled.
    db.cancel_upload(key(4), &repository("a"), 9).await.unwrap();
    assert_eq!(push_blob(db, "a", "four", 4, 10).await, BlobCommit::Over);
}

pub(crate) async fn a_mount_needs_a_link_in_its_source(ground: &Ground) {
    let db = &ground.db;
    let first = stored(push_blob(db, "a", "one", 1, 0).await);
    push_blob(db, "b", "two", 2, 0).await;
    let mount = async |content: &str, from: Option<&str>, to: &str| {
        let from = from.map(repository);
        db.mount(&digest(content), from.as_ref(), &repository(to), 5, 5 + LEASE_MS).await.unwrap()
    };
    assert_eq!(mount("one", Some("b"), "c").await, None);
    assert_eq!(mount("one", Some("nobody"), "c").await, None);
    assert_eq!(mount("three", None, "c").await, None);
    let linked = mount("one", Some("a"), "c").await.unwrap();
    assert_eq!(linked.link, Link { leased_until: Some(5 + LEASE_MS), ..first });
    assert_eq!(linked.repository, id(db, "c").await);
    assert!(mount("one", None, "d").await.is_some());
    assert!(db.link(id(db, "d").await, &digest("one")).await.unwrap().is_some());
}

pub(crate) async fn leases_are_renewed_and_never_shortened(ground: &Ground) {
    let db = &ground.db;
    let blob = stored(push_blob(db, "a", "one", 1, 0).await).blob;
    let a = id(db, "a").await;
    let leased = async || db.link(a, &digest("one")).await.unwrap().unwrap().leased_until;
    assert_eq!(db.renew_lease(a, blob, 5000).await.unwrap(), Renewal::Renewed);
    assert_eq!(leased().await, Some(5000));
    assert_eq!(db.renew_lease(a, blob, 4000).await.unwrap(), Renewal::Renewed);
    assert_eq!(leased().await, Some(5000));
    put(db, "a", &image(&[digest("one")], json!({})), &[], 0).await;
    assert_eq!(collect_all(db, 6000).await.cleared, 1);
    assert_eq!(leased().await, None);
    assert_eq!(db.renew_lease(a, blob, 9000).await.unwrap(), Renewal::Referenced);
    assert_eq!(leased().await, None);
    // A push of what is referenced leases nothing.
    push_blob(db, "a", "one", 2, 7000).await;
    assert_eq!(leased().await, None);
    assert_eq!(db.renew_lease(a, BlobId(blob.0 + 100), 9000).await.unwrap(), Renewal::Gone);
}

pub(crate) async fn unlinking_takes_the_last_copy_away(ground: &Ground) {
    let db = &ground.db;
    push_blob(db, "a", "one", 1, 0).await;
    db.mount(&digest("one"), None, &repository("b"), 0, LEASE_MS).await.unwrap();
    let (a, b) = (id(db, "a").await, id(db, "b").await);
    let unlink = async |from| db.unlink(from, &digest("one"), 1, &blob_entry).await.unwrap();
    assert_eq!(unlink(a).await, Unlink::Unlinked);
    assert_eq!(unlink(a).await, Unlink::NotFound);
    assert_eq!(take_removals(db).await, Vec::<String>::new());
    assert!(db.link(b, &digest("one")).await.unwrap().is_some());
    assert_eq!(unlink(b).await, Unlink::Unlinked);
    assert_eq!(take_removals(db).await, [blob_entry(key(1), &digest("one"), 3)]);
    assert_eq!(push_blob(db, "a", "one", 1, 2).await, BlobCommit::Over);
}

pub(crate) async fn unlinking_leaves_what_a_manifest_needs(ground: &Ground) {
    let db = &ground.db;
    let manifest = push_image(db, "a", "one", &["t"], 1, 0).await;
    let a = id(db, "a").await;
    assert_eq!(db.unlink(a, &digest("one"), 1, &blob_entry).await.unwrap(), Unlink::Referenced);
    delete(db, a, &manifest, 2).await.unwrap();
    assert_eq!(db.unlink(a, &digest("one"), 3, &blob_entry).await.unwrap(), Unlink::Unlinked);
    assert!(take_removals(db).await.contains(&blob_entry(key(1), &digest("one"), 3)));
}
