//! 201 means durable: the order of the calls, and what happens when the disk says no.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use harness::Run;

use super::{
    content::{Blob, Manifest},
    http::Response,
    site::Site,
    trace::{Call, Strace, in_order},
};
use crate::runner::{Case, CaseResult, Outcome, rooted};

const MIB: usize = 1 << 20;
/// Nothing writes but what the case asks.
const QUIET: &str = "[gc]\ninterval = \"1h\"\nscrub_interval = \"0s\"\n";
const RENAMES: [&str; 4] = ["rename", "renameat", "renameat2", "linkat"];

pub(super) fn cases() -> Vec<Case> {
    vec![
        rooted("registry durability: content, its name, the database's log, and only then the answer", order),
        rooted("registry durability: a sync that fails is no 201, and the next push works", failing_sync),
    ]
}

fn order(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, QUIET)?;
    let mut client = site.client();
    // The repository and its first rows are there.
    client.push_image("a/b", "first", &Manifest::image("first", &[]))?;
    let pid = site.registries[0].process().pid();
    let strace = Strace::watch(run, &site.servers.host, pid, &mut client)?;

    for (number, length) in [1000, MIB, 5 * MIB].into_iter().enumerate() {
        let blob = Blob::random(length, 100 + number as u64);
        let mark = strace.mark()?;
        let upload = client.begin("a/b")?;
        let calls = strace.until_answer(mark, 202)?;
        let wrote = calls.iter().find(|call| call.writes("registry.db") || call.writes("/store/"));
        ensure!(wrote.is_none(), "a POST writes: {wrote:?}");
        let mark = strace.mark()?;
        client.finish(&upload, &blob.digest, &blob.bytes)?.is(201, "push of a blob")?;
        blob_is_durable(&strace.until_answer(mark, 201)?, length)
            .with_context(|| format!("{length} bytes in a PUT"))?;
    }

    let blob = Blob::random(MIB, 110);
    let upload = client.begin("a/b")?;
    let mark = strace.mark()?;
    client.patch(&upload, 0, &blob.bytes)?.is(202, "a chunk")?;
    let calls = strace.until_answer(mark, 202)?;
    in_order(
        &calls,
        &[
            ("write of the content", &|call| call.writes("/store/uploads/")),
            ("sync of the content", &|call| call.is(&["fsync", "fdatasync"], "/store/uploads/") && call.result == "0"),
            ("sync of its folder", &|call| call.syncs("/store/uploads")),
            ("write of the database's log", &|call| call.writes("registry.db-wal")),
            ("sync of the database's log", &|call| call.syncs("registry.db-wal")),
            ("answer", &|call| call.args.contains("HTTP/1.1 202")),
        ],
    )
    .context("a chunk")?;
    let mark = strace.mark()?;
    client.finish(&upload, &blob.digest, &[])?.is(201, "the end of an upload")?;
    let calls = strace.until_answer(mark, 201)?;
    let again = calls.iter().find(|call| call.writes("/store/"));
    ensure!(again.is_none(), "what was durable is written again: {again:?}");
    named(&calls, "/store/uploads/", "/store/blobs/").context("the end of an upload")?;

    let image = Manifest::image("second", &[blob]);
    let other = Manifest::image("third", &image.blobs[1..]);
    // Nothing is pushed twice, or the removal of the copy would be written meanwhile.
    for config in [&image.blobs[0], &other.blobs[0]] {
        client.push("a/b", config)?;
    }
    for (reference, image, has_tag) in [("v1".to_owned(), &image, true), (other.digest.to_string(), &other, false)] {
        let mark = strace.mark()?;
        client.put_manifest("a/b", &reference, image)?.is(201, "push of a manifest")?;
        let calls = strace.until_answer(mark, 201)?;
        named(&calls, "/store/uploads/", "/store/records/manifests/").context("the record of a manifest")?;
        let committed = committed_at(&calls)?;
        let folder = "/store/records/tags/";
        let tagged = calls.iter().find(|call| call.is(&RENAMES, folder));
        ensure!(tagged.is_some() == has_tag, "the record of a tag: {tagged:?}");
        if let Some(tagged) = tagged {
            // Its name has the number of the change.
            ensure!(tagged.begin > committed, "the record of a tag is written before the tag is");
            let synced = calls.iter().find(|call| call.begin > tagged.end && call.is(&["fsync"], folder));
            ensure!(synced.is_some_and(|call| call.result == "0"), "the folder of the tag's record is not synced");
        }
    }

    // What was deleted does not come back with the records it had.
    let mark = strace.mark()?;
    client.delete_manifest("a/b", &image.digest.to_string())?.is(202, "delete of a manifest")?;
    let calls = strace.until_answer(mark, 202)?;
    for record in ["/store/records/manifests/", "/store/records/tags/"] {
        in_order(
            &calls,
            &[
                ("write of the database's log", &|call| call.writes("registry.db-wal")),
                ("sync of the database's log", &|call| call.syncs("registry.db-wal")),
                ("removal of the record", &|call| call.is(&["unlink", "unlinkat"], record)),
                ("sync of its folder", &|call| call.is(&["fsync"], record) && call.result == "0"),
                ("answer", &|call| call.args.contains("HTTP/1.1 202")),
            ],
        )
        .with_context(|| format!("delete of {record}"))?;
    }
    strace.detach()?;
    site.fsck(&[])?.is_clean()?;
    Ok(Outcome::Passed)
}

/// The push of a whole blob.
fn blob_is_durable(calls: &[Call], length: usize) -> Result<()> {
    let sync = named(calls, "/store/uploads/", "/store/blobs/")?;
    let writes: Vec<&Call> = calls.iter().filter(|call| call.writes("/store/uploads/")).collect();
    let written: usize = writes.iter().filter_map(|call| call.result.parse::<usize>().ok()).sum();
    ensure!(written == length, "{written} bytes are written");
    ensure!(writes.iter().all(|call| call.end < sync), "something is written after the sync");
    Ok(())
}

/// A file was written and synced, then got its name, then the folder was synced; where it is a blob or a manifest, the
/// database's log came after all that, and the answer after that. Gives the line on which the file was synced.
fn named(calls: &[Call], from: &str, to: &str) -> Result<usize> {
    let renamed = calls.iter().find(|call| call.is(&RENAMES, to)).context("nothing gets its name")?;
    ensure!(renamed.args.contains(from) && renamed.result == "0", "{renamed:?}");
    let quoted: Vec<&str> = renamed.args.split('"').collect();
    let [_, old, _, new, ..] = quoted.as_slice() else { anyhow::bail!("no two paths: {renamed:?}") };
    let folder = new.rsplit_once('/').context("no folder")?.0;
    // The end of a chunked upload has nothing left to sync: its last chunk was.
    let is_written = calls.iter().any(|call| call.writes(old));
    let synced = calls.iter().rfind(|call| call.syncs(old) && call.end < renamed.begin);
    ensure!(synced.is_some() || !is_written, "{old} is not synced before it is renamed");
    let found = in_order(
        calls,
        &[
            ("name", &|call| call.begin == renamed.begin),
            ("sync of the folder", &|call| call.syncs(folder)),
            ("write of the database's log", &|call| call.writes("registry.db-wal")),
            ("sync of the database's log", &|call| call.syncs("registry.db-wal")),
            ("answer", &|call| call.args.contains("HTTP/1.1 201")),
        ],
    )?;
    let early = calls.iter().find(|call| call.writes("registry.db-wal") && call.begin < found[1].end);
    ensure!(early.is_none(), "the database knows of it before it is durable: {early:?}");
    Ok(synced.map_or(0, |call| call.begin))
}

/// The line on which the database's log was synced first.
fn committed_at(calls: &[Call]) -> Result<usize> {
    Ok(calls.iter().find(|call| call.syncs("registry.db-wal")).context("nothing is committed")?.end)
}

fn failing_sync(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, QUIET)?;
    let first = Manifest::image("first", &[Blob::random(MIB, 120)]);
    site.client().push_image("a/b", "first", &first)?;
    let folders = |below: &str| -> Result<Vec<PathBuf>> {
        Ok(fs::read_dir(site.servers.store().join(below))?.flatten().map(|entry| entry.path()).collect())
    };
    let wal = PathBuf::from(format!("{}-wal", site.servers.sqlite().display()));
    let places = [
        ("every sync", Vec::new()),
        ("the database's log", vec![wal]),
        ("the folders of blobs", folders("blobs")?),
        ("the folders of records", [folders("records/manifests")?, folders("records/tags")?].concat()),
    ];
    for (number, (what, paths)) in places.iter().enumerate() {
        let image = Manifest::image(what, &[Blob::random(MIB, 130 + number as u64)]);
        let mut client = site.client();
        let pid = site.registries[0].process().pid();
        let inject = "inject=fsync,fdatasync:error=EIO";
        let strace = Strace::inject(run, &site.servers.host, pid, inject, paths)?;
        let blobs = image.blobs.iter().map(|blob| client.try_push("a/b", blob)).collect::<Result<Vec<_>>>()?;
        let manifest = client.put_manifest("a/b", "next", &image)?;
        let injected = strace.injected()?;
        strace.detach()?;
        ensure!(injected > 0, "{what}: no sync failed, nothing was tested");
        let refused = |response: &Response| {
            let right = response.status >= 500 && !response.code().is_empty();
            ensure!(right, "{what} fails: {}", response.told());
            Ok(())
        };
        if what.contains("records") {
            blobs.into_iter().try_for_each(|blob| blob.is(201, "push of a blob").map(drop))?;
            refused(&manifest)?;
        } else {
            blobs.iter().try_for_each(refused)?;
            ensure!(manifest.status != 201, "{what} fails, a manifest without its blobs is taken");
            let seen = client.head_blob("a/b", &image.blobs[1])?;
            ensure!(seen == 404, "{what} fails, the blob is seen: {seen}");
        }
        client.push_image("a/b", "next", &image).with_context(|| format!("after {what} failed"))?;
        client.pulls("a/b", "next", &image)?;
        client.pulls("a/b", "first", &first)?;
        // The next one is as durable as any.
        site.registries[0].kill()?;
        site.registries[0].restart()?;
        site.client().pulls("a/b", "next", &image).with_context(|| format!("{what} failed, then kill -9"))?;
        // What could not be told to the database is an orphan, and nothing else is wrong.
        site.fsck(&["--repair"])?.only(&["orphan"]).with_context(|| format!("after {what} failed"))?;
    }
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}
