//! Uploads and settings.

use std::collections::HashSet;

use db::{BlobCommit, CheckpointError, Follows, OpenUploads, UploadRow, UploadStatus};

use crate::support::*;

pub(crate) async fn checkpoints_have_versions(ground: &Ground) {
    let (db, a) = (&ground.db, repository("a"));
    assert_eq!(db.upload(key(1)).await.unwrap(), None);
    assert_eq!(db.save_checkpoint(key(1), &a, "one", 10, FIRST, 5).await.unwrap(), 1);
    let conflict = |result| matches!(result, Err(CheckpointError::Conflict));
    assert!(conflict(db.save_checkpoint(key(1), &a, "x", 11, FIRST, 6).await), "there is one already");
    assert!(conflict(db.save_checkpoint(key(1), &a, "x", 11, Follows::Version(2), 6).await), "another version");
    // As long as ten thousand parts of an object storage.
    let long = "ü".repeat(700_000);
    assert_eq!(db.save_checkpoint(key(1), &a, &long, 20, Follows::Version(1), 7).await.unwrap(), 2);
    let row = db.upload(key(1)).await.unwrap().unwrap();
    let expected = UploadRow {
        id: key(1),
        repository: Some(a.clone()),
        state: long,
        offset: 20,
        version: 2,
        status: UploadStatus::Open,
        updated_ms: 7,
    };
    assert_eq!(row, expected);
    assert!(conflict(db.save_checkpoint(key(2), &a, "x", 1, Follows::Version(1), 8).await), "there is none");
    assert_eq!(db.open_uploads(9).await.unwrap().count, 1);
}

pub(crate) async fn each_client_has_so_many(ground: &Ground) {
    let (db, a) = (&ground.db, repository("a"));
    let save = |number, client| db.save_checkpoint(key(number), &a, "x", 1, Follows::Nothing { client, most: 2 }, 5);
    for (number, client) in
        [(1, Some("192.0.2.1")), (2, Some("192.0.2.1")), (3, Some("192.0.2.2")), (4, None), (5, None), (6, None)]
    {
        assert_eq!(save(number, client).await.unwrap(), 1);
    }
    assert!(matches!(save(7, Some("192.0.2.1")).await, Err(CheckpointError::TooMany)));
    assert_eq!(db.upload(key(7)).await.unwrap(), None);
    let open = OpenUploads { count: 6, full: ["192.0.2.1".to_owned()].into() };
    assert_eq!(db.open_uploads(2).await.unwrap(), open);
    // One that is there already is another request's, not one too many; so is one that is a blob.
    assert!(matches!(save(1, Some("192.0.2.1")).await, Err(CheckpointError::Conflict)));
    push_blob(db, "a", "blob", 20, 5).await;
    assert!(matches!(save(20, Some("192.0.2.2")).await, Err(CheckpointError::Conflict)));
    assert_eq!(db.upload(key(20)).await.unwrap().unwrap().status, UploadStatus::Finished);
    // Of what is only claimed nothing is kept.
    let empty = Follows::Nothing { client: Some("192.0.2.3"), most: 2 };
    for number in 10..15 {
        assert_eq!(db.save_checkpoint(key(number), &a, "", 0, empty, 5).await.unwrap(), 1);
    }
    assert_eq!(db.save_checkpoint(key(10), &a, "x", 1, Follows::Version(1), 5).await.unwrap(), 2);
    for number in [1, 10, 11, 77] {
        db.unsave_checkpoint(key(number)).await.unwrap();
    }
    assert_eq!(db.upload(key(11)).await.unwrap(), None);
    assert!(db.upload(key(10)).await.unwrap().is_some() && db.upload(key(1)).await.unwrap().is_some());
    db.cancel_upload(key(10), &a, 5).await.unwrap();
    // What it has may go on, and what has ended does not count.
    assert_eq!(db.save_checkpoint(key(1), &a, "y", 2, Follows::Version(1), 6).await.unwrap(), 2);
    db.cancel_upload(key(1), &a, 7).await.unwrap();
    push_blob(db, "a", "two", 2, 7).await;
    for number in [7, 8] {
        assert_eq!(save(number, Some("192.0.2.1")).await.unwrap(), 1);
    }
    assert!(matches!(save(9, Some("192.0.2.1")).await, Err(CheckpointError::TooMany)));
}

pub(crate) async fn a_cancelled_upload_stays_cancelled(ground: &Ground) {
    let (db, a) = (&ground.db, repository("a"));
    db.save_checkpoint(key(1), &a, "one", 10, FIRST, 5).await.unwrap();
    let before = db.cancel_upload(key(1), &a, 6).await.unwrap().unwrap();
    assert_eq!((before.state.as_str(), before.status), ("one", UploadStatus::Open));
    let row = db.upload(key(1)).await.unwrap().unwrap();
    assert_eq!((row.state.as_str(), row.status, row.updated_ms), ("one", UploadStatus::Cancelled, 6));
    let late = db.save_checkpoint(key(1), &a, "two", 20, Follows::Version(1), 7).await;
    assert!(matches!(late, Err(CheckpointError::Conflict)));
    // A fresh id has no row before; it has one afterwards.
    assert_eq!(db.cancel_upload(key(2), &a, 6).await.unwrap(), None);
    assert!(matches!(db.save_checkpoint(key(2), &a, "x", 1, FIRST, 7).await, Err(CheckpointError::Conflict)));
    assert_eq!(db.cancel_upload(key(2), &a, 8).await.unwrap().unwrap().status, UploadStatus::Cancelled);
    assert_eq!(push_blob(db, "a", "two", 2, 9).await, BlobCommit::Over);
    assert_eq!(db.open_uploads(9).await.unwrap().count, 0);
    // What is a blob already is not cancelled by that.
    push_blob(db, "a", "three", 3, 9).await;
    db.cancel_upload(key(3), &a, 10).await.unwrap();
    assert!(db.link(id(db, "a").await, &digest("three")).await.unwrap().is_some());
}

pub(crate) async fn uploads_expire(ground: &Ground) {
    let (db, a) = (&ground.db, repository("a"));
    for number in 1..=4 {
        db.save_checkpoint(key(number), &a, "state", number, FIRST, 10 * number as i64).await.unwrap();
    }
    db.cancel_upload(key(2), &a, 25).await.unwrap();
    // Finished without ever having had a row: the loser of two.
    push_blob(db, "a", "one", 8, 5).await;
    push_blob(db, "a", "one", 9, 5).await;
    let ids = |rows: Vec<UploadRow>| rows.into_iter().map(|row| row.id).collect::<Vec<_>>();
    assert_eq!(ids(db.expired_uploads(31, 10).await.unwrap()), [key(1), key(2), key(3)]);
    assert_eq!(ids(db.expired_uploads(31, 2).await.unwrap()), [key(1), key(2)]);
    let known = db.known_uploads(&[key(1), key(2), key(3), key(9), key(77)]).await.unwrap();
    assert_eq!(known, HashSet::from([key(1), key(3)]));
    assert!(db.forget_upload(key(1), 31).await.unwrap());
    assert!(!db.forget_upload(key(1), 31).await.unwrap());
    assert!(!db.forget_upload(key(4), 31).await.unwrap(), "it went on meanwhile");
    assert_eq!(db.upload(key(9)).await.unwrap().unwrap().status, UploadStatus::Finished);
    assert_eq!(db.forget_finished_uploads(5, 10).await.unwrap(), 0);
    assert_eq!(db.forget_finished_uploads(6, 10).await.unwrap(), 1);
    assert_eq!(db.upload(key(9)).await.unwrap(), None);
}

pub(crate) async fn settings_are_the_same_for_all(ground: &Ground) {
    let db = &ground.db;
    assert_eq!(db.setting("key").await.unwrap(), None);
    let tasks: Vec<_> = (0..8)
        .map(|number| {
            let db = db.clone();
            tokio::spawn(async move { db.setting_or_insert("key", &format!("value {number}")).await.unwrap() })
        })
        .collect();
    let mut values = HashSet::new();
    for task in tasks {
        values.insert(task.await.unwrap());
    }
    assert_eq!(values.len(), 1, "{values:?}");
    assert_eq!(db.setting("key").await.unwrap(), values.into_iter().next());
    assert_eq!(db.setting("KEY").await.unwrap(), None);
    db.remove_setting("key").await.unwrap();
    assert_eq!(db.setting("key").await.unwrap(), None);
}
