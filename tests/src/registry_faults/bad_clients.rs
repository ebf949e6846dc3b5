//! Clients that stall, go away, or send more or less than they said.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{Proc, Run, S3Kind};

use super::{
    content::{Blob, IMAGE, Manifest},
    http::{Client, Connection},
    site::{Database, Servers, Site, Storage},
};
use crate::{
    faults_data::probe::wait_until,
    runner::{Case, CaseResult, Outcome, anywhere},
};

pub(super) const MIB: usize = 1 << 20;
/// What stalls is cut off after a second.
pub(super) const STRICT: &str = "[gc]\nlease = \"1h\"\ninterval = \"100ms\"\n[uploads]\nstall_timeout = \"1s\"\n\
                      [manifests]\nbody_timeout = \"1s\"\n[http]\nheader_timeout = \"1s\"\nstall_timeout = \"1s\"\n";
/// A second of patience, on a busy machine.
pub(super) const CUT_OFF: Duration = Duration::from_secs(15);

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere("registry clients: one that stalls is cut off, and what came stays", stalls),
        anywhere("registry clients: one that goes away leaves nothing behind, and may come back", goes_away),
        anywhere("registry clients: many push at once to object storage: memory is bounded", memory),
        anywhere("registry clients: many send long manifests and do not end: memory is bounded", manifests_memory),
        anywhere("registry clients: more or less bytes than announced: refused, the upload goes on", wrong_lengths),
    ]
}

fn stalls(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, STRICT)?;
    let mut client = site.client();
    let blob = Blob::random(MIB, 600);
    for (what, sent, chunked) in [("a part of a chunk", 300_000, true), ("nothing of a chunk", 0, false)] {
        let upload = client.begin("a/b")?;
        client.patch(&upload, 0, &blob.bytes[..1000])?.is(202, "a chunk")?;
        let mut connection = Connection::open(site.registries[0].addr())?;
        let begun = Instant::now();
        let rest = &blob.bytes[1000..];
        if chunked {
            connection.head("PATCH", &upload, &[("transfer-encoding", "chunked")])?;
            if sent > 0 {
                connection.chunk(&rest[..sent])?;
            }
        } else {
            connection.head("PATCH", &upload, &[("content-length", &rest.len().to_string())])?;
            connection.write(&rest[..sent])?;
        }
        let response = connection.response_within(CUT_OFF, false).with_context(|| what.to_owned())?;
        response.refuses(408, "BLOB_UPLOAD_INVALID", what)?;
        // At once, and not after a wait for what will not come.
        let waited = begun.elapsed();
        ensure!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&waited), "cut off after {waited:?}");
        ensure!(connection.is_closed_within(CUT_OFF)?, "{what}: the connection stays open");
        let at = usize::try_from(client.offset(&upload)?)?;
        ensure!(at == 1000 + sent, "{what}: {at} bytes are kept instead of {}", 1000 + sent);
        client.finish(&upload, &blob.digest, &blob.bytes[at..])?.is(201, "the upload goes on")?;
    }
    client.pulls_blob("a/b", &blob)?;

    // In a PUT, with nothing before it.
    let blob = Blob::random(MIB, 601);
    let upload = client.begin("a/b")?;
    let mut connection = Connection::open(site.registries[0].addr())?;
    let path = format!("{upload}?digest={}", blob.digest);
    connection.head("PUT", &path, &[("content-length", &MIB.to_string())])?;
    connection.write(&blob.bytes[..400_000])?;
    connection.response_within(CUT_OFF, false)?.refuses(408, "BLOB_UPLOAD_INVALID", "a PUT")?;
    let at = usize::try_from(client.offset(&upload)?)?;
    ensure!(at == 400_000, "{at} bytes of a PUT are kept");
    client.finish(&upload, &blob.digest, &blob.bytes[at..])?.is(201, "the upload goes on")?;
    client.pulls_blob("a/b", &blob)?;

    let image = Manifest::image("stalls", &[]);
    client.push("a/b", &image.blobs[0])?;
    let mut connection = Connection::open(site.registries[0].addr())?;
    let length = image.bytes.len().to_string();
    connection.head("PUT", "/v2/a/b/manifests/x", &[("content-type", IMAGE), ("content-length", &length)])?;
    connection.write(&image.bytes[..10])?;
    connection.response_within(CUT_OFF, false)?.refuses(408, "MANIFEST_INVALID", "a manifest")?;
    client.manifest("a/b", "x")?.refuses(404, "MANIFEST_UNKNOWN", "a manifest that did not come")?;

    // One that takes nothing of what it asked for is cut off, too.
    let large = Blob::random(64 * MIB, 602);
    client.push("a/b", &large)?;
    let mut connection = Connection::open(site.registries[0].addr())?;
    connection.head("GET", &large.path("a/b"), &[])?;
    thread::sleep(Duration::from_secs(4));
    let whole = connection.response_within(CUT_OFF, false);
    ensure!(whole.is_err(), "a client that took nothing for seconds gets all in the end");
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

/// The memory of a registry whose uploads all have to hold something.
fn memory(run: &Run) -> CaseResult {
    const CLIENTS: u64 = 60;
    // What is in use stays under 300; the rest is what the C library keeps of what was freed.
    const MOST_MB: u64 = 500;
    let servers = Servers::start(run, Database::Sqlite, Storage::S3(S3Kind::Minio))?;
    let config = servers.config("", "", "");
    let mut site = Site::start(run, servers, 1, &config)?;
    let addr = site.registries[0].addr();
    let process: &Proc = site.registries[0].process();
    let done = AtomicBool::new(false);
    let most = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !done.load(Ordering::Relaxed) {
                most = most.max(process.memory()?.private_bytes);
                thread::sleep(Duration::from_millis(5));
            }
            anyhow::Ok(most / 1_000_000)
        });
        let push = |seed| {
            let mut client = Client::new(addr);
            move || client.push("a/b", &Blob::random(24 * MIB, 630 + seed))
        };
        let pushes: Vec<_> = (0..CLIENTS).map(|seed| scope.spawn(push(seed))).collect();
        let pushed = pushes.into_iter().try_for_each(|push| push.join().expect("a push does not panic"));
        done.store(true, Ordering::Relaxed);
        let most = watch.join().expect("the watch does not panic");
        pushed.and(most)
    })?;
    println!("    {most} MB at most");
    ensure!(most < MOST_MB, "{most} MB for {CLIENTS} uploads at a time");
    site.wait_no_uploads()?;
    site.fsck(&[])?.is_clean()?;
    Ok(Outcome::Passed)
}

/// Manifests that are sent but for their last bytes.
fn manifests_memory(run: &Run) -> CaseResult {
    const CLIENTS: usize = 150;
    const MANIFEST: usize = 4 * MIB;
    // 16 MB for manifests, a buffer for each connection, and the process.
    const MOST_MB: u64 = 200;
    let limits = "[manifests]\nmax_receiving = \"16MiB\"\nbody_timeout = \"1m\"\n";
    let mut site = Site::simple(run, limits)?;
    let addr = site.registries[0].addr();
    let body = vec![b' '; MANIFEST - 10];
    let length = MANIFEST.to_string();
    let mut connections = Vec::new();
    for _ in 0..CLIENTS {
        let mut connection = Connection::open(addr)?;
        connection.head("PUT", "/v2/a/b/manifests/x", &[("content-type", IMAGE), ("content-length", &length)])?;
        // One that was refused may be closed on what it sends.
        let _ = connection.write(&body);
        connections.push(connection);
    }
    let most = site.registries[0].process().memory()?.private_bytes / 1_000_000;
    println!("    {most} MB");
    ensure!(most < MOST_MB, "{most} MB for {CLIENTS} manifests at a time");
    // Small ones are taken meanwhile.
    let mut client = site.client();
    client.push_image("a/b", "small", &Manifest::image("small", &[Blob::random(1000, 640)]))?;
    // Those that are refused are told when they send no more.
    thread::sleep(Duration::from_secs(6));
    let mut refused = 0;
    for connection in &mut connections {
        if let Ok(response) = connection.response_within(Duration::from_millis(300), false) {
            response.asks_to_come_back("UNAVAILABLE", "a manifest for which there is no memory")?;
            refused += 1;
        }
    }
    ensure!((CLIENTS - 4..CLIENTS).contains(&refused), "{refused} of {CLIENTS} were refused");
    drop(connections);
    let large = Manifest::of(
        IMAGE,
        format!("{}{}", String::from_utf8_lossy(&Manifest::image("large", &[]).bytes), " ".repeat(2 * MIB)),
    );
    let config = Manifest::image("large", &[]);
    client.push("a/b", &config.blobs[0])?;
    wait_until("there is room for a large one again", CUT_OFF, || {
        Ok(client.put_manifest("a/b", "large", &large)?.status == 201)
    })?;
    client.pulls("a/b", "large", &large)?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn goes_away(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, STRICT)?;
    let mut client = site.client();
    let blob = Blob::random(4 * MIB, 610);
    for (number, (method, chunked, half)) in [
        ("PATCH", false, false),
        ("PATCH", true, false),
        ("PATCH", false, true),
        ("PUT", false, false),
        ("PUT", true, true),
    ]
    .into_iter()
    .enumerate()
    {
        let what = format!("{method}, chunked: {chunked}, half open: {half}");
        let upload = client.begin("a/b")?;
        client.patch(&upload, 0, &blob.bytes[..MIB])?.is(202, "a chunk")?;
        let mut connection = Connection::open(site.registries[0].addr())?;
        let path = if method == "PUT" { format!("{upload}?digest={}", blob.digest) } else { upload.clone() };
        let rest = &blob.bytes[MIB..];
        let length = rest.len().to_string();
        let kind = if chunked { ("transfer-encoding", "chunked") } else { ("content-length", length.as_str()) };
        connection.head(method, &path, &[kind])?;
        let sent = &rest[..MIB + number * 1000];
        if chunked {
            connection.chunk(sent)?
        } else {
            connection.write(sent)?
        }
        if half {
            connection.end_sending()?;
            if let Ok(response) = connection.response_within(CUT_OFF, false) {
                ensure!((400..500).contains(&response.status), "{what}: {}", response.told());
            }
        } else {
            drop(connection);
        }
        // What was acknowledged is there, perhaps more of it, and the client may go on.
        let mut at = 0;
        let gone_on = wait_until("the upload is free", CUT_OFF, || {
            at = usize::try_from(client.offset(&upload)?)?;
            ensure!(at >= MIB && at <= MIB + sent.len(), "{what}: {at} bytes are kept");
            Ok(client.patch(&upload, at, &blob.bytes[at..])?.status == 202)
        });
        gone_on.with_context(|| what.clone())?;
        client.finish(&upload, &blob.digest, &[])?.is(201, &what)?;
        client.pulls_blob("a/b", &blob)?;
        client.ask("DELETE", &blob.path("a/b"), &[], &[])?.is(202, "delete of a blob")?;
    }
    // Nothing of an upload that was never acknowledged is kept for ever: here it is gone at once.
    let lone = client.begin("a/b")?;
    let mut connection = Connection::open(site.registries[0].addr())?;
    let path = format!("{lone}?digest={}", blob.digest);
    connection.head("PUT", &path, &[("content-length", &blob.bytes.len().to_string())])?;
    connection.write(&blob.bytes[..3 * MIB])?;
    drop(connection);
    wait_until("the upload is free", CUT_OFF, || Ok(client.finish(&lone, &blob.digest, &[])?.status != 409))?;
    // One that goes away while it is sent something hurts nobody.
    client.push("a/b", &blob)?;
    for _ in 0..20 {
        let mut connection = Connection::open(site.registries[0].addr())?;
        connection.head("GET", &blob.path("a/b"), &[])?;
    }
    client.pulls_blob("a/b", &blob)?;
    let before = site.registries[0].log()?;
    ensure!(!before.contains("panicked"), "something panicked");
    site.wait_removals()?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn wrong_lengths(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, STRICT)?;
    let mut client = site.client();
    let blob = Blob::random(3000, 620);
    let upload = client.begin("a/b")?;
    client.patch(&upload, 0, &blob.bytes[..1000])?.is(202, "a chunk")?;
    let unchanged = |client: &mut Client, what: &str| -> Result<()> {
        let at = client.offset(&upload)?;
        ensure!(at == 1000, "{what}: the upload has {at} bytes");
        Ok(())
    };
    // Range and length differ.
    for (range, length) in [("1000-1999", 2000), ("1000-2999", 1000), ("1000-1000", 2000)] {
        let response = client.ask("PATCH", &upload, &[("content-range", range)], &blob.bytes[1000..][..length])?;
        response.refuses(400, "SIZE_INVALID", range)?;
        unchanged(&mut client, range)?;
    }
    for range in ["bytes", "1000", "-5", "1999-1000", "a-b", "1000-99999999999999999999"] {
        let response = client.ask("PATCH", &upload, &[("content-range", range)], &blob.bytes[1000..2000])?;
        response.refuses(416, "BLOB_UPLOAD_INVALID", range)?;
        unchanged(&mut client, range)?;
    }
    // A body without a length that has more, or less, than its range.
    for (what, sent) in [("too much", 2000), ("too little", 500)] {
        let mut connection = Connection::open(site.registries[0].addr())?;
        let headers = [("transfer-encoding", "chunked"), ("content-range", "1000-1999")];
        connection.head("PATCH", &upload, &headers)?;
        connection.chunk(&blob.bytes[1000..][..sent])?;
        connection.chunk(&[])?;
        connection.response(false).context(what)?.refuses(400, "SIZE_INVALID", what)?;
        wait_until("the upload is free", CUT_OFF, || Ok(client.get(&upload)?.status == 204))?;
        unchanged(&mut client, what)?;
    }
    // More than its length: what is too much is no request.
    let mut connection = Connection::open(site.registries[0].addr())?;
    connection.head("PATCH", &upload, &[("content-length", "1000")])?;
    connection.write(&blob.bytes[1000..3000])?;
    connection.response(false)?.is(202, "a chunk of 1000 bytes, and bytes after it")?;
    if let Ok(second) = connection.response_within(CUT_OFF, false) {
        ensure!(second.status == 400, "bytes after a request: {}", second.told());
    }
    ensure!(connection.is_closed_within(CUT_OFF)?, "the connection is used on after bytes that are no request");
    let at = client.offset(&upload)?;
    ensure!(at == 2000, "the upload has {at} bytes");
    client.finish(&upload, &blob.digest, &blob.bytes[2000..])?.is(201, "the end")?;
    client.pulls_blob("a/b", &blob)?;

    // A length that is none, or two of them.
    for lengths in [&["x"][..], &["-1"], &["5", "6"], &["99999999999999999999999"]] {
        let upload = client.begin("a/b")?;
        let mut connection = Connection::open(site.registries[0].addr())?;
        let headers: Vec<(&str, &str)> = lengths.iter().map(|length| ("content-length", *length)).collect();
        connection.head("PATCH", &upload, &headers)?;
        let response = connection.response_within(CUT_OFF, false).with_context(|| format!("{lengths:?}"))?;
        ensure!(response.status == 400, "content-length {lengths:?}: {}", response.told());
    }
    // Larger than a blob may be.
    let upload = client.begin("a/b")?;
    let mut connection = Connection::open(site.registries[0].addr())?;
    connection.head("PATCH", &upload, &[("content-length", "2000000000000000")])?;
    connection.response(false)?.refuses(413, "SIZE_INVALID", "a blob of 2 PB")?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}
