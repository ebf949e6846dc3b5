//! The database or the object storage goes away, hangs, is overloaded, and comes back.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use harness::{Run, S3Kind, Signal};

use super::{
    content::{Blob, Manifest, location},
    http::{Client, Response},
    proxy::{FOR_EVER, Proxy},
    site::{Database, Servers, Site, Storage},
};
use crate::{
    faults_data::probe::{SETTLE, wait_until},
    runner::{Case, CaseResult, Outcome, anywhere},
};

const MIB: usize = 1 << 20;
/// Quiet, so that what fails is what the case asks.
const QUIET: &str = "[gc]\nlease = \"1h\"\ninterval = \"1h\"\nscrub_interval = \"0s\"\n";
const IMPATIENT_DATABASE: &str = "acquire_timeout = \"500ms\"\nstatement_timeout = \"1s\"\n";
const IMPATIENT_STORAGE: &str =
    "connect_timeout = \"1s\"\nrequest_timeout = \"2s\"\nretry_deadline = \"2s\"\npart_size = \"5MiB\"\n";
/// What a client may have to wait for its 503: the longest of the times above, a few times over.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request that can be made again.
type Ask<'a> = Box<dyn FnMut(&mut Client) -> Result<Response> + 'a>;

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere("registry outages: MariaDB is killed, hangs, comes back: 503 and when to come back", mariadb),
        anywhere("registry outages: PostgreSQL is killed and comes back: 503 and when to come back", postgres),
        anywhere("registry outages: MariaDB's answer to a commit is lost: the next push mends it", mariadb_commit),
        anywhere("registry outages: PostgreSQL's answer to a commit is lost: the next push mends it", postgres_commit),
        anywhere("registry outages: MinIO is killed, hangs, comes back: 503 and when to come back", storage),
        anywhere("registry outages: S3's SlowDown: some are waited for, after too many 503", slow_down),
    ]
}

fn mariadb(run: &Run) -> CaseResult {
    database(run, Database::MariaDb)
}

fn postgres(run: &Run) -> CaseResult {
    database(run, Database::Postgres)
}

fn database(run: &Run, kind: Database) -> CaseResult {
    let servers = Servers::start(run, kind, Storage::Files)?;
    let config = servers.config("", IMPATIENT_DATABASE, QUIET);
    let mut site = Site::start(run, servers, 1, &config)?;
    let mut client = site.client();
    let first = Manifest::image("first", &[Blob::random(MIB, 500)]);
    client.push_image("a/b", "first", &first)?;
    for hangs in [false, true] {
        if hangs && kind == Database::Postgres {
            // It has a process for each connection.
            continue;
        }
        let round = u64::from(hangs);
        let image = Manifest::image(&format!("round {round}"), &[Blob::random(MIB, 510 + round)]);
        let upload = client.begin("a/b")?;
        let half = MIB / 2;
        client.patch(&upload, 0, &image.blobs[1].bytes[..half])?.is(202, "a chunk")?;
        match (&mut site.servers.mariadb, &mut site.servers.postgres) {
            (Some(server), _) if hangs => server.process().signal(Signal::STOP)?,
            (Some(server), _) => server.kill()?,
            (_, Some(server)) => server.kill()?,
            _ => bail!("no server"),
        }
        for (what, response) in [
            ("a push", client.try_push("a/b", &Blob::random(1000, 520 + round))?),
            ("a chunk", client.patch(&upload, half, &image.blobs[1].bytes[half..])?),
            ("a pull by tag", client.manifest("a/b", "first")?),
            ("a pull of a blob", client.get(&first.blobs[1].path("a/b"))?),
            ("a list of tags", client.get("/v2/a/b/tags/list")?),
            ("a push of a manifest", client.put_manifest("a/b", "first", &first)?),
            ("a delete", client.delete_manifest("a/b", "first")?),
        ] {
            // A POST writes nothing, and so may be answered.
            response.asks_to_come_back("UNAVAILABLE", what)?;
        }
        let head = client.ask("HEAD", &first.blobs[1].path("a/b"), &[], &[])?;
        ensure!(head.status == 503, "HEAD: {}", head.told());
        wait_until("the process says that it is not ready", SETTLE, || {
            Ok(site.registries[0].api("/readyz")?.status == 503)
        })?;
        ensure!(site.registries[0].api("/healthz")?.status == 200, "it is not well");
        match (&mut site.servers.mariadb, &mut site.servers.postgres) {
            (Some(server), _) if hangs => server.process().signal(Signal::CONT)?,
            (Some(server), _) => server.restart()?,
            (_, Some(server)) => server.restart()?,
            _ => bail!("no server"),
        }
        wait_until("the process is ready again", SETTLE, || Ok(site.registries[0].api("/readyz")?.status == 200))?;
        client.pulls("a/b", "first", &first).context("the database is back")?;
        let at = client.offset(&upload)?;
        ensure!(at == half as u64 || at == MIB as u64, "the upload has {at} bytes");
        let rest = &image.blobs[1].bytes[usize::try_from(at)?..];
        client.finish(&upload, &image.blobs[1].digest, rest)?.is(201, "the upload goes on")?;
        client.push_image("a/b", "next", &image).context("the database is back")?;
        client.pulls("a/b", "next", &image)?;
    }
    site.fsck(&["--repair"])?.only(&["orphan"])?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

// === answers that are lost ===

fn mariadb_commit(run: &Run) -> CaseResult {
    lost_commit(run, Database::MariaDb)
}

fn postgres_commit(run: &Run) -> CaseResult {
    lost_commit(run, Database::Postgres)
}

/// The database does what it was told, and the registry does not learn it. The client is told to come back, does the same
/// again, and then all is as if nothing had happened; a rebuild sees it, too.
fn lost_commit(run: &Run, kind: Database) -> CaseResult {
    let servers = Servers::start(run, kind, Storage::Files)?;
    let addr = match (&servers.mariadb, &servers.postgres) {
        (Some(server), _) => server.addr(),
        (_, Some(server)) => server.addr(),
        _ => bail!("no server"),
    };
    let proxy = Proxy::start(addr)?;
    // Nobody else commits.
    let idle = format!("{QUIET}enabled = false\n");
    let config = servers.config("", IMPATIENT_DATABASE, &idle).replace(&addr.to_string(), &proxy.addr().to_string());
    let mut site = Site::start(run, servers, 1, &config)?;
    let mut client = site.client();
    let first = Manifest::image("first", &[Blob::random(MIB, 530)]);
    client.push_image("a/b", "first", &first)?;
    let mut tried = |what: &str, again: u16, mut request: Ask<'_>| {
        proxy.lose_next_commit();
        let response = request(&mut client)?;
        ensure!(proxy.lost() == 1, "{what}: no answer was lost, nothing was tested: {}", response.told());
        if response.status != again {
            response.asks_to_come_back("UNAVAILABLE", what)?;
        }
        let response = request(&mut client)?;
        ensure!([again, 404].contains(&response.status), "{what}, again: {}", response.told());
        ensure!(response.status == again || again == 202, "{what}, again: {}", response.told());
        Ok(())
    };
    let blob = Blob::random(MIB, 531);
    let image = Manifest::image("lost", std::slice::from_ref(&blob));
    // One upload, ended twice.
    let upload = site.client().begin("a/b")?;
    tried("the end of an upload", 201, Box::new(|client| client.finish(&upload, &blob.digest, &blob.bytes)))?;
    tried("a push", 201, Box::new(|client| client.try_push("a/b", &image.blobs[0])))?;
    let other = Blob::random(MIB, 532);
    tried("another push", 201, Box::new(|client| client.try_push("a/b", &other)))?;
    tried("a mount", 201, Box::new(|client| client.mount("c/d", &blob, Some("a/b"))))?;
    tried("a manifest", 201, Box::new(|client| client.put_manifest("a/b", "lost", &image)))?;
    tried("a tag that moves", 201, Box::new(|client| client.put_manifest("a/b", "first", &image)))?;
    tried("a tag that goes", 202, Box::new(|client| client.delete_manifest("a/b", "lost")))?;
    tried("a manifest that goes", 202, Box::new(|client| client.delete_manifest("a/b", &first.digest.to_string())))?;
    site.client().pulls("a/b", "first", &image)?;
    // A chunk that was taken is not taken twice.
    let upload = site.client().begin("a/b")?;
    proxy.lose_next_commit();
    let chunked = Blob::random(2 * MIB, 533);
    let mut client = site.client();
    let response = client.patch(&upload, 0, &chunked.bytes[..MIB])?;
    if proxy.lost() == 1 {
        response.asks_to_come_back("UNAVAILABLE", "a chunk")?;
    }
    let at = usize::try_from(client.offset(&upload)?)?;
    ensure!(at == 0 || at == MIB, "the upload has {at} bytes");
    client.patch(&upload, at, &chunked.bytes[at..])?.is(202, "the rest")?;
    client.finish(&upload, &chunked.digest, &[])?.is(201, "the end")?;
    client.pulls_blob("a/b", &chunked)?;

    // What was acknowledged in the end is in the store as it is in the database, or a rebuild would lose it.
    site.fsck(&["--repair"])?.only(&["orphan"])?;
    site.fsck(&["--deep"])?.is_clean()?;
    // What was deleted and not answered is removed from the store in its time.
    site.stop()?;
    let config = std::fs::read_to_string(site.registries[0].config())?;
    std::fs::write(site.registries[0].config(), config.replace("enabled = false", "enabled = true"))?;
    site.registries[0].restart()?;
    site.wait_removals()?;
    site.stop()?;
    site.servers.empty_database()?;
    site.registries[0].command("rebuild").run(Duration::from_secs(60))?;
    site.registries[0].restart()?;
    let mut client = site.client();
    client.pulls("a/b", "first", &image).context("rebuilt")?;
    ensure!(client.tags("a/b")? == ["first"], "rebuilt: {:?}", client.tags("a/b")?);
    let gone = client.manifest("a/b", &first.digest.to_string())?;
    gone.refuses(404, "MANIFEST_UNKNOWN", "a manifest that went, rebuilt")?;
    Ok(Outcome::Passed)
}

// === the object storage ===

fn storage(run: &Run) -> CaseResult {
    let servers = Servers::start(run, Database::Sqlite, Storage::S3(S3Kind::Minio))?;
    let config = servers.config(IMPATIENT_STORAGE, "", QUIET);
    let mut site = Site::start(run, servers, 1, &config)?;
    let mut client = site.client();
    let first = Manifest::image("first", &[Blob::random(MIB, 540)]);
    client.push_image("a/b", "first", &first)?;
    for (round, hangs) in [(0, false), (1, true)] {
        let image = Manifest::image(&format!("round {round}"), &[Blob::random(12 * MIB, 541 + round)]);
        let blob = &image.blobs[1];
        let upload = client.begin("a/b")?;
        client.patch(&upload, 0, &blob.bytes[..7 * MIB])?.is(202, "a chunk")?;
        let s3 = site.servers.s3.as_mut().context("a bucket")?;
        if hangs {
            s3.process().signal(Signal::STOP)?
        } else {
            s3.kill()?
        }
        let begun = Instant::now();
        client.try_push("a/b", &Blob::random(1000, 550 + round))?.asks_to_come_back("UNAVAILABLE", "a small push")?;
        client.try_push("a/b", &Blob::random(11 * MIB, 552 + round))?.asks_to_come_back("UNAVAILABLE", "a push")?;
        client.patch(&upload, 7 * MIB, &blob.bytes[7 * MIB..])?.asks_to_come_back("UNAVAILABLE", "a chunk")?;
        client.get(&first.blobs[1].path("a/b"))?.asks_to_come_back("UNAVAILABLE", "a pull of a blob")?;
        let new = Manifest::image(&format!("new {round}"), &first.blobs[..0]);
        let put = client.put_manifest("a/b", "new", &new)?;
        ensure!(put.status >= 400, "a manifest: {}", put.told());
        ensure!(begun.elapsed() < 5 * PATIENCE, "clients wait {:?}", begun.elapsed());
        // The database has manifests and links.
        client.manifest("a/b", "first")?.is(200, "a pull of a manifest")?;
        ensure!(client.head_blob("a/b", &first.blobs[1])? == 200, "HEAD of a blob");
        let s3 = site.servers.s3.as_mut().context("a bucket")?;
        if hangs {
            s3.process().signal(Signal::CONT)?
        } else {
            s3.restart()?
        }
        client.pulls("a/b", "first", &first).context("the storage is back")?;
        let at = usize::try_from(client.offset(&upload)?)?;
        ensure!(at >= 7 * MIB, "of 7 MiB that were taken there are {at} bytes");
        client.finish(&upload, &blob.digest, &blob.bytes[at..])?.is(201, "the upload goes on")?;
        client.push_image("a/b", "next", &image).context("the storage is back")?;
        client.pulls("a/b", "next", &image)?;
    }
    site.fsck(&["--repair"])?.only(&["orphan"])?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn slow_down(run: &Run) -> CaseResult {
    let servers = Servers::start(run, Database::Sqlite, Storage::S3(S3Kind::Minio))?;
    let addr = servers.s3.as_ref().context("a bucket")?.endpoint().trim_start_matches("http://").parse()?;
    let proxy = Proxy::start(addr)?;
    let keys = IMPATIENT_STORAGE.replace("retry_deadline = \"2s\"", "retry_deadline = \"5s\"");
    let config = servers.config(&keys, "", QUIET).replace(&addr.to_string(), &proxy.addr().to_string());
    let mut site = Site::start(run, servers, 1, &config)?;
    let mut client = site.client();
    let first = Manifest::image("first", &[Blob::random(MIB, 560)]);
    client.push_image("a/b", "first", &first)?;

    // A few times: nobody notices. Small blobs are one request, large ones several.
    for (number, length) in [1000, MIB, 12 * MIB].into_iter().enumerate() {
        for times in [1, 3] {
            let what = format!("{times} SlowDowns at {length} bytes");
            let image = Manifest::image(&what, &[Blob::random(length, 570 + number as u64)]);
            let slow = |answer: Result<()>| {
                let slowed = proxy.slowed();
                ensure!(slowed == times, "{what}: {slowed} requests were refused, nothing was tested");
                answer.context(what.clone())
            };
            proxy.slow_down(times);
            slow(client.push("a/b", &image.blobs[1]))?;
            client.push("a/b", &image.blobs[0])?;
            proxy.slow_down(times);
            slow(client.put_manifest("a/b", "slow", &image).and_then(|put| put.is(201, "a manifest").map(drop)))?;
            proxy.slow_down(times);
            slow(client.pulls_blob("a/b", &image.blobs[1]))?;
        }
    }

    // For ever: the client is told, in time.
    let blob = Blob::random(12 * MIB, 580);
    let upload = client.begin("a/b")?;
    client.patch(&upload, 0, &blob.bytes[..6 * MIB])?.is(202, "a chunk")?;
    proxy.slow_down(FOR_EVER);
    let late = Manifest::image("late", &[]);
    let asked: [(&str, Ask<'_>); 4] = [
        ("a small push", Box::new(|client| client.try_push("a/b", &late.blobs[0]))),
        ("a large push", Box::new(|client| client.try_push("a/b", &Blob::random(12 * MIB, 581)))),
        ("a chunk", Box::new(|client| client.patch(&upload, 6 * MIB, &blob.bytes[6 * MIB..]))),
        ("a pull", Box::new(|client| client.get(&first.blobs[1].path("a/b")))),
    ];
    for (what, mut request) in asked {
        let begun = Instant::now();
        request(&mut client)?.asks_to_come_back("TOOMANYREQUESTS", what)?;
        ensure!(begun.elapsed() < PATIENCE, "{what}: the client waits {:?}", begun.elapsed());
    }
    ensure!(proxy.slowed() >= 8, "nothing was tried again");
    proxy.slow_down(0);
    let at = usize::try_from(client.offset(&upload)?)?;
    ensure!(at >= 6 * MIB, "of 6 MiB that were taken there are {at} bytes");
    client.finish(&upload, &blob.digest, &blob.bytes[at..])?.is(201, "the upload goes on")?;
    client.pulls_blob("a/b", &blob)?;
    let again = client.ask("POST", "/v2/a/b/blobs/uploads/", &[], &[])?;
    client.ask("DELETE", &location(&again)?, &[], &[])?.is(204, "cancel")?;
    client.push_image("a/b", "late", &late)?;
    client.pulls("a/b", "first", &first)?;
    site.fsck(&["--repair"])?.only(&["orphan"])?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}
