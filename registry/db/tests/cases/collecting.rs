//! The collector, one step after the other.

use std::collections::HashSet;

use db::{Backlog, Collected};
use serde_json::json;

use crate::support::*;

pub(crate) async fn what_nothing_needs_goes_when_its_lease_is_over(ground: &Ground) {
    let db = &ground.db;
    push_blob(db, "a", "needed", 1, 0).await;
    push_blob(db, "a", "not needed", 2, 0).await;
    push_blob(db, "a", "later", 3, 500).await;
    put(db, "a", &image(&[digest("needed")], json!({})), &[], 0).await;
    db.mount(&digest("needed"), None, &repository("b"), 0, LEASE_MS).await.unwrap();
    assert_eq!(db.collect(LEASE_MS - 1, 100, false, &blob_entry).await.unwrap(), Collected::default());
    let backlog = db.backlog(LEASE_MS).await.unwrap();
    assert_eq!(backlog, Backlog { links_due: 3, links_leased: 1, removals: 0, removal_bytes: 0 });
    let collected = db.collect(LEASE_MS, 100, false, &blob_entry).await.unwrap();
    assert_eq!(collected, Collected { looked_at: 3, cleared: 1, unlinked: 2, blobs: 1, bytes: 10 });
    let backlog = db.backlog(LEASE_MS).await.unwrap();
    assert_eq!(backlog, Backlog { links_due: 0, links_leased: 1, removals: 1, removal_bytes: 10 });
    assert_eq!(take_removals(db).await, [blob_entry(key(2), &digest("not needed"), 10)]);
    let (a, b) = (id(db, "a").await, id(db, "b").await);
    assert!(db.link(a, &digest("needed")).await.unwrap().is_some());
    assert!(db.link(a, &digest("not needed")).await.unwrap().is_none());
    assert!(db.link(b, &digest("needed")).await.unwrap().is_none());
    // A renewed lease is respected.
    let later = db.link(a, &digest("later")).await.unwrap().unwrap();
    db.renew_lease(a, later.blob, 9000).await.unwrap();
    assert_eq!(db.collect(8999, 100, false, &blob_entry).await.unwrap().looked_at, 0);
    assert_eq!(db.collect(9000, 100, false, &blob_entry).await.unwrap().blobs, 1);
}

pub(crate) async fn a_dry_run_foresees_and_changes_nothing(ground: &Ground) {
    let db = &ground.db;
    for number in 0..10 {
        push_blob(db, "a", &format!("blob {number}"), number, 0).await;
    }
    put(db, "a", &image(&[digest("blob 0"), digest("blob 1")], json!({})), &[], 0).await;
    db.mount(&digest("blob 2"), None, &repository("b"), 900, 5000).await.unwrap();
    db.mount(&digest("blob 3"), None, &repository("b"), 0, LEASE_MS).await.unwrap();
    let foreseen = db.collect(LEASE_MS, 1, true, &blob_entry).await.unwrap();
    assert_eq!(foreseen, Collected { looked_at: 11, cleared: 2, unlinked: 9, blobs: 7, bytes: 42 });
    assert_eq!(db.collect(LEASE_MS, 1, true, &blob_entry).await.unwrap(), foreseen);
    assert_eq!(collect_all(db, LEASE_MS).await, foreseen);
    assert_eq!(db.collect(LEASE_MS, 1, true, &blob_entry).await.unwrap(), Collected::default());
}

pub(crate) async fn removals_are_claimed(ground: &Ground) {
    let db = &ground.db;
    for number in 0..10 {
        push_blob(db, "a", &format!("blob {number}"), number, 0).await;
    }
    collect_all(db, LEASE_MS).await;
    let first = db.removals(100, 200, 6).await.unwrap();
    let second = db.removals(100, 200, 6).await.unwrap();
    assert_eq!((first.len(), second.len()), (6, 4));
    let entries: HashSet<_> = first.iter().chain(&second).map(|removal| &removal.entry).collect();
    assert_eq!(entries.len(), 10);
    assert_eq!(db.removals(199, 300, 6).await.unwrap(), []);
    db.removed(&first.iter().map(|removal| removal.id).collect::<Vec<_>>()).await.unwrap();
    // Whoever claimed the others died.
    assert_eq!(db.removals(200, 300, 6).await.unwrap(), second);
    assert_eq!(db.backlog(0).await.unwrap().removals, 4);
    db.removed(&[]).await.unwrap();
}

pub(crate) async fn large_backlogs_are_worked_off_in_batches(ground: &Ground) {
    let db = &ground.db;
    const BLOBS: u64 = 700;
    for number in 0..BLOBS {
        push_blob(db, "a", &format!("blob {number:04}"), number, 0).await;
    }
    // One blob in many repositories.
    for number in 0..300 {
        let to = repository(&format!("r{number}"));
        db.mount(&digest("blob 0000"), None, &to, 0, LEASE_MS).await.unwrap();
    }
    let step = db.collect(LEASE_MS, 100, false, &blob_entry).await.unwrap();
    assert!((1..=100).contains(&step.looked_at), "{step:?}");
    let step = db.collect(LEASE_MS, 100_000, false, &blob_entry).await.unwrap();
    assert!((100..=512).contains(&step.looked_at), "{step:?}");
    collect_all(db, LEASE_MS).await;
    assert_eq!(db.backlog(LEASE_MS).await.unwrap().removals, BLOBS);
    assert_eq!(take_removals(db).await.len() as u64, BLOBS);
    assert_eq!(db.blobs_page(db::BlobId(0), 10).await.unwrap(), []);
}
