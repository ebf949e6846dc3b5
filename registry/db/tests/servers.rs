//! What is special about servers: they go away and come back, are set up badly, and several processes start at once.

use std::time::{Duration, Instant};

use db::{Db, DbConfig, DbError};
use harness::{Host, MariaDb, Postgres, Run};
use oci::Reference;
use proto::Kind as Failure;
use service::Redacted;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use crate::support::*;

/// Executes something that the crate would not.
pub(crate) async fn raw_sql(config: &DbConfig, text: &str) {
    let url = config.url.expose();
    let text = AssertSqlSafe(text.to_owned());
    if url.starts_with("sqlite") {
        let mut connection = sqlx::SqliteConnection::connect(url).await.unwrap();
        connection.execute(text).await.unwrap();
    } else if url.starts_with("mysql") {
        let mut connection = sqlx::MySqlConnection::connect(url).await.unwrap();
        connection.execute(text).await.unwrap();
    } else {
        let mut connection = sqlx::PgConnection::connect(url).await.unwrap();
        connection.execute(text).await.unwrap();
    }
}

/// Tables of every version before are brought up to date, also when an attempt to do so came half way, and keep what they hold.
pub(crate) async fn older_tables_are_taken(config: &DbConfig) {
    let db = Db::connect(config).await.unwrap();
    push_image(&db, "a", "one", &["t"], 1, 0).await;
    db.save_checkpoint(key(9), &repository("a"), "state", 1, FIRST, 5).await.unwrap();
    db.close().await;
    drop(db);
    let mysql = config.url.expose().starts_with("mysql");
    let index = if mysql { "drop index uploads_by_client on uploads" } else { "drop index uploads_by_client" };
    let new = if mysql { "drop index manifests_by_referrer on manifests" } else { "drop index manifests_by_referrer" };
    let old = "create index manifests_by_subject on manifests (repository_id, subject, id)";
    let third = "delete from registry_migrations where version = 'm0003_referrers_by_digest'";
    let forget = "delete from registry_migrations where version = 'm0002_upload_clients'";
    let column = "alter table uploads drop column client";
    for undone in [
        &[third, new, old, index, column, forget][..],
        &[third, index, forget],
        &[third, forget],
        &[third, new, old],
        &[third, old],
        &[third],
        &["delete from registry_migrations"],
    ] {
        for text in undone {
            raw_sql(config, text).await;
        }
        // Whoever only looks changes nothing.
        let error = Db::connect_to_read(config).await.unwrap_err();
        assert!(matches!(error, DbError::TooOld), "{error:?}");
        let db = Db::connect(config).await.unwrap();
        assert!(tag_digest(&db, "a", "t").await.is_some());
        assert_eq!(db.upload(key(9)).await.unwrap().unwrap().state, "state");
        assert_eq!(db.open_uploads(1).await.unwrap().count, 1);
        db.close().await;
    }
}

fn config(url: String) -> DbConfig {
    DbConfig {
        url: Redacted::new(url),
        acquire_timeout: Duration::from_secs(2),
        statement_timeout: Duration::from_secs(2),
        ..DbConfig::default()
    }
}

/// A server that can be killed and started again.
trait Killable {
    fn kill(&mut self);
    fn restart(&mut self);
    fn stop(&mut self, stopped: bool);
}

impl Killable for MariaDb {
    fn kill(&mut self) {
        Self::kill(self).unwrap();
    }

    fn restart(&mut self) {
        Self::restart(self).unwrap();
    }

    fn stop(&mut self, stopped: bool) {
        self.process().signal(if stopped { harness::Signal::STOP } else { harness::Signal::CONT }).unwrap();
    }
}

impl Killable for Postgres {
    fn kill(&mut self) {
        Self::kill(self).unwrap();
    }

    fn restart(&mut self) {
        Self::restart(self).unwrap();
    }

    fn stop(&mut self, _: bool) {}
}

/// What was acknowledged is there after a crash, and nobody has to restart anything but the server.
async fn goes_away_and_comes_back(mut server: impl Killable, url: String) {
    let db = Db::connect(&config(url)).await.unwrap();
    assert!(!db.is_exclusive());
    push_image(&db, "a", "one", &["t"], 1, 0).await;
    let writer = tokio::spawn({
        let db = db.clone();
        async move {
            // Pushes until the server is gone; what was acknowledged until then.
            for number in 2.. {
                let (repository, content) = (repository("a"), format!("blob {number}"));
                let (digest, size) = (digest(&content), content.len() as u64);
                let entry = blob_entry(key(number), &digest, size);
                let new = db::NewBlob {
                    repository: &repository,
                    digest: &digest,
                    size,
                    key: key(number),
                    entry: &entry,
                    now_ms: 0,
                    leased_until_ms: LEASE_MS,
                };
                if let Err(error) = db.commit_blob(&new).await {
                    assert_eq!(error.kind(), Failure::Unavailable, "{error:?}");
                    return number;
                }
            }
            unreachable!()
        }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    tokio::task::block_in_place(|| server.kill());
    let failed = writer.await.unwrap();
    assert!(failed > 3, "it hardly began");
    let a = id(&db, "a").await;
    let begin = Instant::now();
    let error = db.manifest(a, &Reference::Tag(tag("t"))).await.unwrap_err();
    assert_eq!(error.kind(), Failure::Unavailable, "{error:?}");
    assert_eq!(db.ping().await.unwrap_err().kind(), Failure::Unavailable);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    tokio::task::block_in_place(|| server.restart());
    // The first requests already succeed.
    assert!(db.manifest(a, &Reference::Tag(tag("t"))).await.unwrap().is_some());
    push_image(&db, "a", "after", &["t"], 1_000_000, 0).await;
    for number in 2..failed {
        assert!(db.link(a, &digest(&format!("blob {number}"))).await.unwrap().is_some(), "{number} was acknowledged");
    }
    // A server that takes requests and does not answer.
    tokio::task::block_in_place(|| server.stop(true));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begin = Instant::now();
    let asked = db.manifest(a, &Reference::Tag(tag("t"))).await;
    tokio::task::block_in_place(|| server.stop(false));
    if let Err(error) = asked {
        assert_eq!(error.kind(), Failure::Unavailable, "{error:?}");
        assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    }
    eventually("the server goes on", async || db.ping().await.is_ok()).await;
    db.close().await;
}

#[test]
fn mariadb_goes_away_and_comes_back() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let server = MariaDb::start(&host, &run).unwrap();
    let url = server.url();
    runtime().block_on(goes_away_and_comes_back(server, url));
}

#[test]
fn postgres_goes_away_and_comes_back() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let server = Postgres::start(&host, &run).unwrap();
    let url = server.url();
    runtime().block_on(goes_away_and_comes_back(server, url));
}

/// Several processes start at once with an empty database; a newer one's is refused.
async fn migrates_once(url: String) {
    let config = config(url);
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let config = config.clone();
            tokio::spawn(async move { Db::connect(&config).await.map(|db| db.name()) })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    older_tables_are_taken(&config).await;
    raw_sql(&config, "insert into registry_migrations (version, applied_at) values ('m9999_later', 1)").await;
    let error = Db::connect(&config).await.unwrap_err();
    assert!(matches!(&error, DbError::TooNew(version) if version == "m9999_later"), "{error:?}");
}

#[test]
fn mariadb_is_migrated_once() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let server = MariaDb::start(&host, &run).unwrap();
    runtime().block_on(migrates_once(server.url()));
}

#[test]
fn postgres_is_migrated_once() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let server = Postgres::start(&host, &run).unwrap();
    runtime().block_on(migrates_once(server.url()));
}

#[test]
fn a_server_that_loses_commits_is_refused() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let mariadb = MariaDb::start_with(&host, &run, &["--innodb-flush-log-at-trx-commit=2"]).unwrap();
    let postgres = Postgres::start_with(&host, &run, &["fsync=off"]).unwrap();
    runtime().block_on(async {
        for url in [mariadb.url(), postgres.url()] {
            let strict = config(url);
            let error = Db::connect(&strict).await.unwrap_err();
            assert!(matches!(error, DbError::Unsuitable(_)), "{error:?}");
            let lossy = DbConfig { allow_lossy: true, ..strict };
            Db::connect(&lossy).await.unwrap().close().await;
        }
    });
}

/// What an administrator set for all sessions does not make a commit less durable, or tags alike.
#[test]
fn settings_of_the_server_do_not_matter() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let options =
        ["--character-set-server=latin1", "--transaction-isolation=SERIALIZABLE", "--lower-case-table-names=1"];
    let mariadb = MariaDb::start_with(&host, &run, &options).unwrap();
    let settings = ["synchronous_commit=off", "default_transaction_isolation=serializable"];
    let postgres = Postgres::start_with(&host, &run, &settings).unwrap();
    runtime().block_on(async {
        for url in [mariadb.url(), postgres.url()] {
            let db = Db::connect(&config(url)).await.unwrap();
            push_image(&db, "a", "one", &["t"], 1, 0).await;
            let upper = push_image(&db, "a", "two", &["T"], 2, 0).await;
            assert_eq!(tag_digest(&db, "a", "T").await, Some(upper));
            assert_eq!(db.tags(id(&db, "a").await, None, 10).await.unwrap(), ["T", "t"]);
            db.close().await;
        }
    });
}

#[test]
fn a_wrong_password_is_not_shown() {
    let (run, host) = (Run::new().unwrap(), Host::local());
    let server = Postgres::start(&host, &run).unwrap();
    runtime().block_on(async {
        let url = server.url().replace("of-one-test-run", "s3cret");
        let config = config(url);
        let error = Db::connect(&config).await.unwrap_err();
        assert!(!format!("{error:?} {error} {config:?}").contains("s3cret"), "{error:?}");
    });
}
