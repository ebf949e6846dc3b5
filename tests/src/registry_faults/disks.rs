//! Disks that are full.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{Run, SkimmerRegistry, SmallDisk};

use super::{
    content::{Blob, Manifest},
    http::{Client, Response},
    site::{Database, Servers, Site, Storage},
    trace::Strace,
};
use crate::{
    faults_data::probe::{SETTLE, disk_usage, wait_until},
    runner::{Case, CaseResult, Outcome, anywhere, rooted},
};

const MIB: usize = 1 << 20;
const DISK_BYTES: u64 = 48 << 20;
/// What a file system and a database keep for themselves when nothing is stored.
const SLACK_BYTES: u64 = 2 << 20;
const CONFIG: &str = "[gc]\nlease = \"1h\"\ninterval = \"100ms\"\n";

pub(super) fn cases() -> Vec<Case> {
    vec![
        rooted("registry disks: the store's disk is full: 507, the space comes back, nothing is lost", store),
        rooted("registry disks: a tag is deleted on a full disk, and a rebuild does not bring it back", deletion),
        rooted("registry disks: the database's disk is full: 507, nothing is lost, works again", database),
        anywhere("registry disks: the database's disk fails again and again: what got a 201 stays", flickers),
    ]
}

fn site(run: &Run, store: &Path, database: &Path) -> Result<Site> {
    let servers = Servers::start(run, Database::Sqlite, Storage::Files)?;
    let url = format!("sqlite://{}", database.join("registry.db").display());
    let config = format!(
        "[store]\nkind = \"filesystem\"\npath = \"{}\"\n{}{CONFIG}",
        store.join("store").display(),
        SkimmerRegistry::database(&url)
    );
    Site::start(run, servers, 1, &config)
}

fn is_full(response: &Response, what: &str) -> Result<()> {
    response.refuses(507, "UNAVAILABLE", what)
}

fn store(run: &Run) -> CaseResult {
    let disk = SmallDisk::new(run, "disk", DISK_BYTES)?;
    let mut site = site(run, disk.path(), &run.data_dir("database")?)?;
    let mut client = site.client();
    let first = Manifest::image("first", &[Blob::random(5 * MIB, 400)]);
    client.push_image("a/b", "first", &first)?;
    let before = disk_usage(disk.path());
    let is_reclaimed = |what: &str| {
        wait_until(&format!("the space of {what} comes back"), SETTLE, || {
            Ok(disk_usage(disk.path()) < before + SLACK_BYTES)
        })
    };

    // More than the disk has: in one request, in chunks, of unknown length.
    let large = Blob::random(64 * MIB, 401);
    for _ in 0..2 {
        is_full(&client.try_push("a/b", &large)?, "a blob larger than the disk")?;
        is_reclaimed("a broken push")?;
        client.pulls("a/b", "first", &first)?;
    }
    let upload = client.begin("a/b")?;
    let chunk = 16 * MIB;
    for number in 0..2 {
        client.patch(&upload, number * chunk, &large.bytes[number * chunk..][..chunk])?.is(202, "a chunk")?;
    }
    is_full(&client.patch(&upload, 2 * chunk, &large.bytes[2 * chunk..][..chunk])?, "one chunk too many")?;
    let found = client.offset(&upload)?;
    ensure!(found == 2 * chunk as u64, "of two chunks that were taken there are {found} bytes");
    client.ask("DELETE", &upload, &[], &[])?.is(204, "cancel of an upload")?;
    is_reclaimed("a cancelled upload")?;

    // Not a byte is left.
    let image = Manifest::image("small", &[Blob::random(1000, 402)]);
    image.blobs.iter().try_for_each(|blob| client.push("a/b", blob))?;
    disk.fill()?;
    for _ in 0..3 {
        is_full(&client.try_push("a/b", &Blob::random(5000, 403))?, "a blob")?;
        is_full(&client.put_manifest("a/b", "small", &image)?, "a manifest")?;
        client.manifest("a/b", "small")?.refuses(404, "MANIFEST_UNKNOWN", "a manifest that was not stored")?;
    }
    client.pulls("a/b", "first", &first).context("while the disk is full")?;
    site.registries[0].restart().context("while the disk is full")?;
    client = site.client();
    client.pulls("a/b", "first", &first).context("restarted while the disk is full")?;
    disk.make_room()?;
    client.put_manifest("a/b", "small", &image)?.is(201, "with room again")?;
    client.pulls("a/b", "small", &image)?;

    // Whoever deletes makes room.
    disk.fill()?;
    client.delete_manifest("a/b", &first.digest.to_string())?.is(202, "a delete on a full disk")?;
    client.ask("DELETE", &first.blobs[1].path("a/b"), &[], &[])?.is(202, "a delete on a full disk")?;
    wait_until("a deleted blob's space is free", SETTLE, || {
        let hex = first.blobs[1].digest.hex();
        let names = crate::faults_data::probe::files(&disk.path().join("store/blobs"));
        Ok(!names.iter().any(|name| name.display().to_string().contains(&hex)))
    })?;
    client.push_image("a/b", "after", &Manifest::image("after", &[Blob::random(3 * MIB, 404)]))?;
    disk.make_room()?;
    no_uploads(disk.path())?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

/// A deletion whose record finds no room takes all records of the tag away, also one that waits to be removed.
fn deletion(run: &Run) -> CaseResult {
    let disk = SmallDisk::new(run, "disk", DISK_BYTES)?;
    let database = run.data_dir("database")?;
    let mut site = site(run, disk.path(), &database)?;
    let mut client = site.client();
    let images = [1, 2].map(|seed| Manifest::image(&seed.to_string(), &[Blob::random(3000, 430 + seed)]));
    let records = || crate::faults_data::probe::files(&disk.path().join("store/records/tags"));
    client.push_image("a/b", "t", &images[0])?;
    let first = records().pop().context("a tag's record")?;
    let content = fs::read(&first)?;
    client.push_image("a/b", "t", &images[1])?;
    site.wait_removals()?;
    // As if nobody had come to remove it.
    fs::write(&first, content)?;
    disk.fill()?;
    client.delete_manifest("a/b", "t")?.is(202, "a delete on a full disk")?;
    let left = records();
    ensure!(left.is_empty(), "{left:?} would bring the tag back");
    disk.make_room()?;
    site.stop()?;
    fs::remove_dir_all(&database)?;
    site.registries[0].command("rebuild").run(Duration::from_secs(60))?;
    site.registries[0].restart()?;
    site.client().manifest("a/b", "t")?.refuses(404, "MANIFEST_UNKNOWN", "a tag that was deleted")?;
    Ok(Outcome::Passed)
}

fn no_uploads(disk: &Path) -> Result<()> {
    wait_until("nothing is left of broken uploads", SETTLE, || {
        Ok(crate::faults_data::probe::files(&disk.join("store/uploads")).is_empty())
    })
}

fn database(run: &Run) -> CaseResult {
    let disk = SmallDisk::new(run, "disk", DISK_BYTES)?;
    let data = run.data_dir("store")?;
    let mut site = site(run, &data, disk.path())?;
    let mut client = site.client();
    let mut kept = vec![Manifest::image("first", &[Blob::random(MIB, 410)])];
    client.push_image("a/b", "t0", &kept[0])?;
    for round in 1..4 {
        disk.fill()?;
        // Some room is left in what the database has already; then it is full.
        let refused = fill_up(&mut client, round, &mut kept)?;
        is_full(&refused, "the database is full")?;
        for (number, image) in kept.iter().enumerate() {
            client.pulls("a/b", &format!("t{number}"), image).context("while the database's disk is full")?;
        }
        if round == 2 {
            site.registries[0].kill()?;
            disk.make_room()?;
            site.registries[0].restart()?;
            client = site.client();
        } else {
            disk.make_room()?;
        }
        let image = Manifest::image(&format!("room {round}"), &[Blob::random(MIB, 420 + round)]);
        client.push_image("a/b", &format!("t{}", kept.len()), &image).context("with room again")?;
        kept.push(image);
        for (number, image) in kept.iter().enumerate() {
            client.pulls("a/b", &format!("t{number}"), image).context("with room again")?;
        }
    }
    site.fsck(&["--repair"])?.only(&["orphan"])?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

/// Pushes images until one is refused, and keeps those that are not.
fn fill_up(client: &mut Client, round: u64, kept: &mut Vec<Manifest>) -> Result<Response> {
    for number in 0..400 {
        // The database keeps a manifest's bytes.
        let image = Manifest::image(&format!("{round} {number} {}", "x".repeat(200_000)), &[]);
        let pushed = client.try_push("a/b", &image.blobs[0])?;
        if pushed.status != 201 {
            return Ok(pushed);
        }
        let put = client.put_manifest("a/b", &format!("t{}", kept.len()), &image)?;
        if put.status != 201 {
            return Ok(put);
        }
        kept.push(image);
    }
    anyhow::bail!("a full disk takes everything");
}

/// How often the disk fails, and for how long.
const FLICKERS: u64 = 4;
const FLICKER: Duration = Duration::from_millis(1200);
/// Enough that commits are shared.
const PUSHERS: u64 = 16;

/// Files of the database can be neither opened, nor written, nor synced for a moment, while many push.
fn flickers(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, CONFIG)?;
    let database = site.servers.sqlite();
    let paths = [database.clone(), PathBuf::from(format!("{}-wal", database.display()))];
    let inject = "inject=openat,pwrite64,fsync,fdatasync:error=EIO";
    let pid = site.registries[0].process().pid();
    let stop = AtomicBool::new(false);
    let (acknowledged, injected) = thread::scope(|scope| -> Result<(Vec<Blob>, usize)> {
        let push = |number: u64| {
            let (stop, mut client) = (&stop, site.client());
            move || {
                let mut acknowledged = Vec::new();
                for seed in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let blob = Blob::random(300, 1_000_000 * (number + 1) + seed);
                    if client.try_push("a/b", &blob)?.status == 201 {
                        acknowledged.push(blob);
                    }
                }
                Ok(acknowledged)
            }
        };
        let pushers: Vec<_> = (0..PUSHERS).map(|number| scope.spawn(push(number))).collect();
        let fail = || -> Result<usize> {
            let mut injected = 0;
            for _ in 0..FLICKERS {
                let strace = Strace::inject(run, &site.servers.host, pid, inject, &paths)?;
                thread::sleep(FLICKER);
                injected += strace.injected()?;
                strace.detach()?;
                thread::sleep(FLICKER);
            }
            Ok(injected)
        };
        let injected = fail();
        stop.store(true, Ordering::Relaxed);
        let pushed: Vec<Result<Vec<Blob>>> =
            pushers.into_iter().map(|pusher| pusher.join().expect("a push does not panic")).collect();
        Ok((pushed.into_iter().collect::<Result<Vec<_>>>()?.concat(), injected?))
    })?;
    ensure!(injected > 0, "nothing failed, nothing was tested");
    ensure!(acknowledged.len() > 100, "only {} pushes were acknowledged", acknowledged.len());
    println!("    {} pushes acknowledged, {injected} calls failed", acknowledged.len());
    let mut client = site.client();
    let mut lost = 0;
    for blob in &acknowledged {
        lost += usize::from(client.head_blob("a/b", blob)? != 200);
    }
    ensure!(lost == 0, "{lost} of {} blobs that got a 201 are not there", acknowledged.len());
    site.fsck(&["--repair"])?.only(&["orphan"])?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}
