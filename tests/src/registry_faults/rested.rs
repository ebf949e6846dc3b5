//! Uploads that rest, come slowly, or are ended once more.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use harness::{Run, S3Kind};

use super::{
    bad_clients::MIB,
    content::Blob,
    http::Connection,
    site::{Database, Servers, Site, Storage},
    trace::Strace,
};
use crate::{
    faults_data::probe::{SETTLE, wait_until},
    runner::{Case, CaseResult, Outcome, anywhere},
};

/// An upload that nobody goes on with is forgotten after so long.
const EXPIRY: Duration = Duration::from_secs(2);

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere(
            "registry uploads: one that comes slowly is not forgotten, one that rests is, in a folder",
            slow_files,
        ),
        anywhere(
            "registry uploads: one that comes slowly is not forgotten, one that rests is, in a bucket",
            slow_objects,
        ),
        anywhere(
            "registry uploads: the last bytes are sent again after the database failed to take the blob",
            once_more,
        ),
    ]
}

fn slow_files(run: &Run) -> CaseResult {
    slow(run, Database::Sqlite, Storage::Files)?;
    slow(run, Database::Postgres, Storage::Files)
}

fn slow_objects(run: &Run) -> CaseResult {
    slow(run, Database::MariaDb, Storage::S3(S3Kind::Minio))
}

fn slow(run: &Run, database: Database, storage: Storage) -> CaseResult {
    let servers = Servers::start(run, database, storage)?;
    let config = servers.config("", "", &format!("[uploads]\nexpiry = \"{}s\"\n", EXPIRY.as_secs()));
    let mut site = Site::start(run, servers, 1, &config)?;
    let mut client = site.client();
    let blob = Blob::random(7 * MIB, 680);
    let slow = client.begin("a/b")?;
    client.patch(&slow, 0, &blob.bytes[..6 * MIB])?.is(202, "a chunk")?;
    // So many that one look does not find them all.
    let rested: Vec<String> = (0..120)
        .map(|_| {
            let upload = client.begin("a/b")?;
            client.patch(&upload, 0, b"xx")?.is(202, "a chunk")?;
            Ok(upload)
        })
        .collect::<anyhow::Result<_>>()?;
    let mut connection = Connection::open(site.registries[0].addr())?;
    connection.head("PATCH", &slow, &[("transfer-encoding", "chunked")])?;
    let begun = Instant::now();
    for piece in blob.bytes[6 * MIB..].chunks(MIB / 40) {
        connection.chunk(piece)?;
        thread::sleep(EXPIRY / 10);
    }
    connection.chunk(&[])?;
    ensure!(begun.elapsed() > 3 * EXPIRY, "it did not take long");
    connection.response(false)?.is(202, "a chunk that took longer than an upload may rest")?;
    client.finish(&slow, &blob.digest, &[])?.is(201, "the end")?;
    client.pulls_blob("a/b", &blob)?;
    wait_until("what rests is forgotten", SETTLE, || {
        for upload in &rested {
            let state = client.get(upload)?;
            if state.status == 204 {
                return Ok(false);
            }
            state.refuses(404, "BLOB_UPLOAD_UNKNOWN", "an upload that rested")?;
        }
        Ok(true)
    })?;
    site.wait_no_uploads()?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

/// The bytes become a blob, the database does not take it, and the client sends its last request again.
fn once_more(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, "[gc]\nenabled = false\n")?;
    let mut client = site.client();
    client.push("a/b", &Blob::random(1000, 690)).context("the repository is there")?;
    let log = site.servers.folder.join("registry.db-wal");
    ensure!(log.try_exists()?, "{} is not there", log.display());
    for (seed, last) in [(691, MIB), (692, 10), (693, 0)] {
        let blob = Blob::random(2 * MIB, seed);
        let (first, last) = blob.bytes.split_at(blob.bytes.len() - last);
        let upload = client.begin("a/b")?;
        client.patch(&upload, 0, first)?.is(202, "a chunk")?;
        let pid = site.registries[0].process().pid();
        let paths = [log.clone()];
        let strace = Strace::inject(run, &site.servers.host, pid, "inject=fsync,fdatasync:error=EIO", &paths)?;
        let refused = client.finish(&upload, &blob.digest, last)?;
        ensure!(refused.status >= 500, "the database cannot be synced: {}", refused.told());
        ensure!(strace.injected()? > 0, "nothing failed, nothing was tested");
        strace.detach()?;
        client.get(&blob.path("a/b"))?.refuses(404, "BLOB_UNKNOWN", "what was not acknowledged")?;
        client.finish(&upload, &blob.digest, last)?.is(201, &format!("the last {} bytes again", last.len()))?;
        client.pulls_blob("a/b", &blob)?;
    }
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}
