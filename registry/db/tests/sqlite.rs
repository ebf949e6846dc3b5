//! What is special about SQLite: one process owns the file, and one connection writes.

use std::process::Command;
use std::time::{Duration, Instant};

use db::{Db, DbConfig, DbError};
use service::Redacted;

use crate::servers::{older_tables_are_taken, raw_sql};
use crate::support::*;

fn config(folder: &std::path::Path) -> DbConfig {
    let url = format!("sqlite://{}", folder.join("sub/registry.db").display());
    DbConfig { url: Redacted::new(url), ..DbConfig::default() }
}

#[test]
fn one_process_owns_the_file() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let config = config(folder.path());
        let db = Db::connect(&config).await.unwrap();
        assert!(db.is_exclusive());
        assert_eq!(db.name(), "sqlite");
        let error = Db::connect(&config).await.unwrap_err();
        assert!(matches!(&error, DbError::InUse(path) if path.ends_with("registry.db")), "{error:?}");
        push_image(&db, "a", "one", &["t"], 1, 0).await;
        db.close().await;
        assert!(db.ping().await.is_err());
        drop(db);
        let db = Db::connect(&config).await.unwrap();
        assert!(tag_digest(&db, "a", "t").await.is_some());
        db.close().await;
    });
}

/// By whatever name: a link to the file, or to a folder on the way, before the file is there and after.
#[test]
fn a_link_is_the_same_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    std::os::unix::fs::symlink("sub", folder.path().join("folder")).unwrap();
    std::os::unix::fs::symlink("folder/registry.db", folder.path().join("link.db")).unwrap();
    let named = |name: &str| {
        let url = format!("sqlite://{}", folder.path().join(name).display());
        DbConfig { url: Redacted::new(url), ..DbConfig::default() }
    };
    let names = ["link.db", "sub/registry.db", "folder/registry.db"];
    runtime().block_on(async {
        for name in names {
            let db = Db::connect(&named(name)).await.unwrap();
            for other in names {
                let error = Db::connect(&named(other)).await.unwrap_err();
                assert!(matches!(error, DbError::InUse(_)), "{name}, {other}: {error:?}");
            }
            db.close().await;
        }
    });
}

#[test]
fn others_may_look_while_it_is_owned() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let config = config(folder.path());
        let error = Db::connect_to_read(&config).await.unwrap_err();
        assert!(matches!(&error, DbError::File { path, .. } if path.ends_with("registry.db")), "{error:?}");
        let owner = Db::connect(&config).await.unwrap();
        push_image(&owner, "a", "one", &["t"], 1, 0).await;
        let other = Db::connect_to_read(&config).await.unwrap();
        assert!(!other.is_exclusive());
        assert!(tag_digest(&other, "a", "t").await.is_some());
        push_image(&owner, "a", "two", &["later"], 2, 0).await;
        assert!(tag_digest(&other, "a", "later").await.is_some());
        let error = other.setting_or_insert("a", "b").await.unwrap_err();
        assert!(matches!(error, DbError::ReadOnly), "{error:?}");
        other.close().await;
        push_image(&owner, "a", "three", &["last"], 3, 0).await;
        owner.close().await;
        raw_sql(&config, "delete from registry_migrations").await;
        let error = Db::connect_to_read(&config).await.unwrap_err();
        assert!(matches!(error, DbError::TooOld), "{error:?}");
    });
}

#[test]
fn an_older_file_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(older_tables_are_taken(&config(folder.path())));
}

#[test]
fn a_newer_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let config = config(folder.path());
        Db::connect(&config).await.unwrap().close().await;
        raw_sql(&config, "insert into registry_migrations (version, applied_at) values ('m9999_later', 1)").await;
        let error = Db::connect_to_read(&config).await.unwrap_err();
        assert!(matches!(&error, DbError::TooNew(version) if version == "m9999_later"), "{error:?}");
        let error = Db::connect(&config).await.unwrap_err();
        assert!(matches!(&error, DbError::TooNew(version) if version == "m9999_later"), "{error:?}");
    });
}

#[test]
fn something_that_is_no_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("sub")).unwrap();
    std::fs::write(folder.path().join("sub/registry.db"), vec![7; 10_000]).unwrap();
    let error = runtime().block_on(Db::connect(&config(folder.path()))).unwrap_err();
    assert!(matches!(error, DbError::Refused(_)), "{error:?}");
}

/// The folder is copied while the process is in the middle of it, as a crash would leave it; the copy has everything that was
/// acknowledged before.
#[test]
fn what_was_acknowledged_survives_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let copies = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let db = Db::connect(&config(folder.path())).await.unwrap();
        for round in 0..10 {
            for number in 0..20 {
                push_image(&db, "a", &format!("{round} {number}"), &["t"], round * 100 + number, 0).await;
            }
            let copy = copies.path().join(round.to_string());
            assert!(Command::new("cp").arg("-r").args([folder.path(), &copy]).status().unwrap().success());
            let crashed = Db::connect(&config(&copy)).await.unwrap();
            let a = id(&crashed, "a").await;
            for number in 0..20 {
                let digest = digest(&format!("{round} {number}"));
                assert!(crashed.link(a, &digest).await.unwrap().is_some(), "{round} {number}");
            }
            crashed.close().await;
        }
        db.close().await;
    });
}

/// Those that wait are committed together: many at once take less than as many times one.
#[test]
fn commits_are_shared() {
    let folder = tempfile::tempdir().unwrap();
    runtime().block_on(async {
        let db = Db::connect(&config(folder.path())).await.unwrap();
        push_blob(&db, "a", "first", 1_000_000, 0).await;
        let syncs = || async { std::fs::read_to_string("/proc/self/io").unwrap_or_default() };
        drop(syncs().await);
        const EACH: u64 = 25;
        let begin = Instant::now();
        for number in 0..8 * EACH {
            push_blob(&db, "a", &format!("alone {number}"), number, 0).await;
        }
        let alone = begin.elapsed();
        let begin = Instant::now();
        let tasks: Vec<_> = (0..8)
            .map(|task| {
                let db = db.clone();
                tokio::spawn(async move {
                    for number in 0..EACH {
                        let number = 10_000 + task * EACH + number;
                        push_blob(&db, "a", &format!("together {number}"), number, 0).await;
                    }
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let together = begin.elapsed();
        println!("{} commits: one after the other {alone:?}, eight at a time {together:?}", 8 * EACH);
        assert!(together < alone.max(Duration::from_millis(50)) * 3 / 2, "{together:?} against {alone:?}");
        db.close().await;
    });
}
