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
        anywhere("registry uploads: a hundred that somebody holds do not keep what rests, in a folder", held),
        anywhere(
            "registry uploads: the last bytes are sent again after the database failed to take the blob, in a folder",
            once_more_files,
        ),
        anywhere(
            "registry uploads: the last bytes are sent again after the database failed to take the blob, in a bucket",
            once_more_objects,
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

/// Requests that send nothing for longer than an upload may rest hold their files, more of them than one look finds.
fn held(run: &Run) -> CaseResult {
    let servers = Servers::start(run, Database::Sqlite, Storage::Files)?;
    let config = servers.config("", "", &format!("[uploads]\nexpiry = \"{}s\"\n", EXPIRY.as_secs()));
    let site = Site::start(run, servers, 1, &config)?;
    let mut client = site.client();
    let mut begin = || {
        let upload = client.begin("a/b")?;
        client.patch(&upload, 0, b"xx")?.is(202, "a chunk")?;
        anyhow::Ok(upload)
    };
    let mut stalled = Vec::new();
    for _ in 0..110 {
        let upload = begin()?;
        let mut connection = Connection::open(site.registries[0].addr())?;
        connection.head("PATCH", &upload, &[("transfer-encoding", "chunked")])?;
        connection.chunk(b"xx")?;
        stalled.push((upload, connection));
    }
    let rested = begin()?;
    wait_until("what rests is forgotten", SETTLE, || Ok(client.get(&rested)?.status == 404))?;
    let files = || anyhow::Ok(site.servers.stored("uploads/")?.len());
    wait_until("only what is held has a file", SETTLE, || Ok(files()? <= stalled.len()))?;
    ensure!(files()? == stalled.len(), "{} files of {} uploads that are held", files()?, stalled.len());
    // They were forgotten under their hands, and are told so.
    for (upload, mut connection) in stalled {
        connection.chunk(&[])?;
        let response = connection.response(false)?;
        ensure!((400..500).contains(&response.status), "went on with what was forgotten: {}", response.told());
        client.get(&upload)?.refuses(404, "BLOB_UPLOAD_UNKNOWN", "an upload that was forgotten")?;
    }
    site.wait_no_uploads()?;
    Ok(Outcome::Passed)
}

fn once_more_files(run: &Run) -> CaseResult {
    once_more(run, Storage::Files)
}

fn once_more_objects(run: &Run) -> CaseResult {
    once_more(run, Storage::S3(S3Kind::Versitygw))
}

/// The bytes become a blob, the database does not take it, and the client sends its last request again.
fn once_more(run: &Run, storage: Storage) -> CaseResult {
    let servers = Servers::start(run, Database::Sqlite, storage)?;
    let config = servers.config("", "", "[gc]\nenabled = false\n");
    let mut site = Site::start(run, servers, 1, &config)?;
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
        if !last.is_empty() {
            let other = Blob::of([first, &vec![0; last.len()]].concat());
            let refused = client.finish(&upload, &other.digest, &vec![0; last.len()])?;
            ensure!([404, 409].contains(&refused.status), "another end than before: {}", refused.told());
        }
        client.finish(&upload, &blob.digest, last)?.is(201, &format!("the last {} bytes again", last.len()))?;
        client.pulls_blob("a/b", &blob)?;
    }
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}
