//! A store and a database that do not belong together, and what a rebuild must not bring back.

use std::{
    collections::BTreeMap,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{Run, S3Kind};

use super::{
    content::{Blob, Manifest},
    http::Connection,
    site::{Database, Servers, Site, Storage},
};
use crate::{
    faults_data::probe::{SETTLE, wait_until},
    runner::{Case, CaseResult, Outcome, anywhere},
};

/// Strays go at once, were they taken for such.
const EAGER: &str = "[gc]\nlease = \"1h\"\nscrub_interval = \"10s\"\n";
const REBUILD: Duration = Duration::from_secs(60);
/// The store is told within this time how far the database has come.
const NOTED: Duration = Duration::from_secs(9);
const REFUSED: Duration = Duration::from_secs(20);

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere(
            "registry ties: a database that is new, older or another one is not served, and removes nothing",
            files,
        ),
        anywhere("registry ties: a store that is not mounted is not served, nor repaired", unmounted),
        anywhere("registry ties: a process that runs while its database is rebuilt mixes up nothing, MariaDB", mariadb),
        anywhere(
            "registry ties: a process that runs while its database is rebuilt mixes up nothing, PostgreSQL",
            postgres,
        ),
        anywhere("registry ties: a database that is set back while it is served is not, until it was merged", set_back),
        anywhere("registry rebuild: tags that many moved and deleted at the same time stay deleted", deleted),
        anywhere("registry rebuild: after kill -9 in mid-move a tag is where it was acknowledged, or later", killed),
        anywhere(
            "registry rebuild: a tag whose record could not be written is where it was, then where it is",
            unwritten,
        ),
        anywhere("registry fsck: what a late retry makes a blob is not removed as an orphan", late_retry),
    ]
}

/// It ends by itself, with an error that says this.
fn refuses(site: &Site, command: &str, args: &[&str], text: &str) -> Result<()> {
    let finished = site.registries[0].command(command).args(args).output(REFUSED)?;
    ensure!(!finished.status.success(), "{command} begins nevertheless");
    ensure!(finished.stderr.contains(text), "{command} says {}", finished.stderr);
    Ok(())
}

/// Makes everything in the store so old that it could be taken for what a crash left behind.
fn age(site: &Site) -> Result<()> {
    let old = std::time::SystemTime::now() - Duration::from_secs(3 * 3600);
    for name in site.servers.stored("")? {
        fs::File::options().append(true).open(site.servers.store().join(name))?.set_modified(old)?;
    }
    Ok(())
}

fn files(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, EAGER)?;
    let mut client = site.client();
    let image = |seed: u64| Manifest::image(&seed.to_string(), &[Blob::random(5000, 800 + seed)]);
    let images: Vec<Manifest> = (0..6).map(image).collect();
    for (number, image) in images[..3].iter().enumerate() {
        client.push_image("a/b", &format!("v{number}"), image)?;
    }
    client.push_image("a/b", "latest", &images[0])?;
    site.stop()?;
    let copy = site.servers.folder.join("yesterday");
    fs::copy(site.servers.sqlite(), &copy)?;
    site.registries[0].restart()?;
    for (number, image) in images.iter().enumerate().skip(3) {
        client.push_image("a/b", &format!("v{number}"), image)?;
    }
    client.push_image("a/b", "latest", &images[5])?;
    client.delete_manifest("a/b", "v4")?.is(202, "delete of a tag")?;
    thread::sleep(NOTED);
    site.stop()?;
    age(&site)?;
    let stored = site.servers.stored("")?.len();
    let now = site.servers.folder.join("now");
    fs::rename(site.servers.sqlite(), &now)?;
    // A new one.
    site.servers.empty_database()?;
    for (command, args) in [("serve", &[][..]), ("fsck", &["--repair"])] {
        refuses(&site, command, args, "registry rebuild")?;
    }
    // Yesterday's.
    site.servers.empty_database()?;
    fs::copy(&copy, site.servers.sqlite())?;
    for (command, args) in [("serve", &[][..]), ("fsck", &["--repair"])] {
        refuses(&site, command, args, "older than the store")?;
    }
    ensure!(site.servers.stored("")?.len() == stored, "something was removed");
    site.registries[0].command("rebuild").arg("--merge").run(REBUILD)?;
    site.registries[0].restart()?;
    let everything = |site: &Site| -> Result<()> {
        let mut client = site.client();
        for (number, image) in images.iter().enumerate().filter(|(number, _)| *number != 4) {
            client.pulls("a/b", &format!("v{number}"), image)?;
        }
        client.pulls("a/b", "latest", &images[5])?;
        client.manifest("a/b", "v4")?.refuses(404, "MANIFEST_UNKNOWN", "a tag that was deleted since yesterday")
    };
    everything(&site).context("yesterday's database, merged")?;
    site.stop()?;
    site.servers.empty_database()?;
    site.registries[0].command("rebuild").run(REBUILD)?;
    site.registries[0].restart()?;
    everything(&site).context("rebuilt")?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn unmounted(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, EAGER)?;
    let image = Manifest::image("image", &[Blob::random(5000, 810)]);
    site.client().push_image("a/b", "t", &image)?;
    site.stop()?;
    let (store, elsewhere) = (site.servers.store(), site.servers.folder.join("elsewhere"));
    fs::rename(&store, &elsewhere)?;
    for (command, args) in [("serve", &[][..]), ("fsck", &["--repair"]), ("rebuild", &["--merge"])] {
        refuses(&site, command, args, "not mounted")?;
    }
    // Another registry's.
    let other = Site::simple(run, "")?;
    other.client().push_image("c/d", "t", &image)?;
    let mut other = other;
    other.stop()?;
    fs::remove_dir_all(&store)?;
    fs::rename(other.servers.store(), &store)?;
    for (command, args) in [("serve", &[][..]), ("fsck", &["--repair"]), ("rebuild", &["--merge"])] {
        refuses(&site, command, args, "is that of store")?;
    }
    fs::remove_dir_all(&store)?;
    fs::rename(&elsewhere, &store)?;
    site.registries[0].restart()?;
    site.client().pulls("a/b", "t", &image)?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn mariadb(run: &Run) -> CaseResult {
    mixes_up_nothing(run, Database::MariaDb, Storage::S3(S3Kind::Versitygw))
}

fn postgres(run: &Run) -> CaseResult {
    mixes_up_nothing(run, Database::Postgres, Storage::Files)
}

/// Repositories have other numbers after a rebuild; who remembers the old ones would serve one as the other.
fn mixes_up_nothing(run: &Run, database: Database, storage: Storage) -> CaseResult {
    let servers = Servers::start(run, database, storage)?;
    let config = servers.config("", "", EAGER);
    let site = Site::start(run, servers, 1, &config)?;
    let mut client = site.client();
    let images: BTreeMap<String, Manifest> = (0..8)
        .map(|number| {
            (format!("team{number}/app"), Manifest::image(&number.to_string(), &[Blob::random(3000, 820 + number)]))
        })
        .collect();
    for (name, image) in images.iter().rev() {
        client.push_image(name, "v1", image)?;
    }
    // A push that is under way all the time.
    let late = Blob::random(3000, 841);
    let (half, rest) = late.bytes.split_at(1500);
    let mut slow = Connection::open(site.registries[0].addr())?;
    let upload = client.begin("team5/app")?;
    let digest = format!("{upload}{}digest={}", if upload.contains('?') { '&' } else { '?' }, late.digest);
    slow.head("PUT", &digest, &[("content-length", "3000")])?;
    slow.write(half)?;
    site.servers.empty_database()?;
    site.registries[0].command("rebuild").run(REBUILD)?;
    let begun = Instant::now();
    slow.write(rest)?;
    let answer = slow.response(false)?;
    for name in images.keys() {
        let expected = if answer.status == 201 && name == "team5/app" { 200 } else { 404 };
        wait_until("it answers", SETTLE, || Ok(client.head_blob(name, &late)? != 503))?;
        let found = client.head_blob(name, &late)?;
        ensure!(found == expected, "a late push got {}, and its blob is {found} in {name}", answer.status);
    }
    let end = begun + SETTLE;
    for (name, image) in &images {
        loop {
            let response = client.manifest(name, "v1")?;
            if response.status == 503 {
                ensure!(Instant::now() < end, "the registry does not come back");
                thread::sleep(Duration::from_millis(100));
                continue;
            }
            client.pulls(name, "v1", image)?;
            break;
        }
        let new = Manifest::image(&format!("new of {name}"), &[Blob::random(3000, 840)]);
        client.push_image(name, "new", &new)?;
        client.pulls(name, "new", &new)?;
        let tags = client.tags(name)?;
        ensure!(tags == ["new", "v1"], "{name} has the tags {tags:?}");
    }
    Ok(Outcome::Passed)
}

/// An older state of the database comes back under a process that has seen a later one.
fn set_back(run: &Run) -> CaseResult {
    let servers = Servers::start(run, Database::Postgres, Storage::Files)?;
    let config = servers.config("", "", EAGER);
    let mut site = Site::start(run, servers, 1, &config)?;
    let images: Vec<(String, Manifest)> = (0..6)
        .map(|number| {
            (format!("team{number}/app"), Manifest::image(&number.to_string(), &[Blob::random(3000, 850 + number)]))
        })
        .collect();
    let push = |site: &Site, images: &[(String, Manifest)]| {
        let mut client = site.client();
        images.iter().try_for_each(|(name, image)| client.push_image(name, "v1", image))
    };
    push(&site, &images[..2])?;
    site.stop()?;
    site.servers.copy_database(false)?;
    site.registries[0].restart()?;
    push(&site, &images[2..])?;
    thread::sleep(NOTED);
    let stored = site.servers.stored("")?.len();
    age(&site)?;
    site.servers.copy_database(true)?;
    let mut client = site.client();
    wait_until("it answers nothing any more", SETTLE, || Ok(client.manifest("team0/app", "v1")?.status == 503))?;
    thread::sleep(NOTED);
    let upload = client.ask("POST", "/v2/team0/app/blobs/uploads/", &[], &[])?;
    upload.asks_to_come_back("UNAVAILABLE", "an upload")?;
    // As a backup that is read in table by table: the name comes and goes.
    let name = site.servers.sql("select content from settings where name = 'store'")?.trim().to_owned();
    site.servers.sql("delete from settings where name = 'store'")?;
    thread::sleep(NOTED);
    site.servers.sql(&format!("insert into settings (name, content) values ('store', '{name}')"))?;
    thread::sleep(NOTED);
    client.manifest("team0/app", "v1")?.asks_to_come_back("UNAVAILABLE", "a database that is older after all")?;
    ensure!(site.servers.stored("")?.len() == stored, "something was removed");
    site.registries[0].command("rebuild").arg("--merge").run(REBUILD)?;
    wait_until("it answers again", SETTLE, || Ok(client.manifest("team0/app", "v1")?.status == 200))?;
    images.iter().try_for_each(|(name, image)| client.pulls(name, "v1", image))?;
    let new = Manifest::image("new", &[Blob::random(3000, 860)]);
    client.push_image("team1/app", "new", &new)?;
    client.pulls("team1/app", "new", &new)?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn lose_and_rebuild(site: &mut Site) -> Result<()> {
    site.registries[0].kill()?;
    site.servers.empty_database()?;
    site.registries[0].command("rebuild").run(REBUILD)?;
    site.registries[0].restart()
}

fn deleted(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, "[gc]\nlease = \"1h\"\nscrub_interval = \"0s\"\n")?;
    let addr = site.registries[0].addr();
    let images: Vec<Manifest> =
        (0..3).map(|seed| Manifest::image(&seed.to_string(), &[Blob::random(1000, 850 + seed)])).collect();
    let mut client = site.client();
    for (number, image) in images.iter().enumerate() {
        client.push_image("a/b", &format!("keep{number}"), image)?;
    }
    for round in 0..3 {
        let images = &images;
        thread::scope(|scope| {
            let workers: Vec<_> = (0..12)
                .map(|worker| {
                    scope.spawn(move || -> Result<()> {
                        let mut client = super::http::Client::new(addr);
                        for step in 0..25 {
                            let tag = format!("hot{}", (worker + step) % 3);
                            if (worker + step) % 4 == 0 {
                                let status = client.delete_manifest("a/b", &tag)?.status;
                                ensure!([202, 404].contains(&status), "delete of a tag: {status}");
                            } else {
                                client.put_manifest("a/b", &tag, &images[(worker * 7 + step) % 3])?.is(201, "move")?;
                            }
                        }
                        Ok(())
                    })
                })
                .collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("a worker does not panic"))
        })?;
        for tag in ["hot0", "hot1", "hot2"] {
            let status = client.delete_manifest("a/b", tag)?.status;
            ensure!([202, 404].contains(&status), "delete of a tag: {status}");
        }
        lose_and_rebuild(&mut site)?;
        client = site.client();
        let tags = client.tags("a/b")?;
        ensure!(tags == ["keep0", "keep1", "keep2"], "round {round}: after a rebuild there are {tags:?}");
    }
    Ok(Outcome::Passed)
}

fn killed(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, "[gc]\nlease = \"1h\"\nscrub_interval = \"0s\"\n")?;
    let mut client = site.client();
    let images: Vec<Manifest> = (0..40).map(|seed| Manifest::image(&seed.to_string(), &[])).collect();
    for image in &images {
        client.push_image("a/b", "", image)?;
    }
    let mut acknowledged = 0;
    for round in 0..6 {
        let addr = site.registries[0].addr();
        let images = &images;
        let last = thread::scope(|scope| {
            let mover = scope.spawn(move || {
                let mut client = super::http::Client::new(addr);
                let mut last = acknowledged;
                while let Ok(response) = client.put_manifest("a/b", "t", &images[(last + 1) % images.len()]) {
                    if response.status != 201 {
                        break;
                    }
                    last += 1;
                }
                last
            });
            thread::sleep(Duration::from_millis(150 + 37 * round));
            site.registries[0].kill()?;
            anyhow::Ok(mover.join().expect("the mover does not panic"))
        })?;
        site.servers.empty_database()?;
        site.registries[0].command("rebuild").run(REBUILD)?;
        site.registries[0].restart()?;
        let found = site.client().manifest("a/b", "t")?.is(200, "the tag after a rebuild")?;
        let digest = found.header("docker-content-digest").unwrap_or_default().to_owned();
        let may_be = [last, last + 1].map(|number| images[number % images.len()].digest.to_string());
        let at = may_be.iter().position(|may_be| *may_be == digest);
        acknowledged = last + at.with_context(|| format!("round {round}: the tag is at {digest}, not {may_be:?}"))?;
    }
    Ok(Outcome::Passed)
}

fn unwritten(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, "[gc]\nlease = \"1h\"\nscrub_interval = \"0s\"\n")?;
    let mut client = site.client();
    let [old, new] = [1, 2].map(|seed| Manifest::image(&seed.to_string(), &[Blob::random(1000, 870 + seed)]));
    client.push_image("a/b", "t", &old)?;
    client.push_image("a/b", "other", &new)?;
    let (records, away) = (site.servers.store().join("records/tags"), site.servers.folder.join("away"));
    fs::rename(&records, &away)?;
    let refused = client.put_manifest("a/b", "t", &new)?;
    ensure!(refused.status >= 500, "a tag whose record cannot be written: {}", refused.told());
    fs::rename(&away, &records)?;
    let names = || site.servers.stored("records/tags/").map(|names| names.len());
    ensure!(names()? == 2, "a record was removed before there was another");
    wait_until("the record is written later", SETTLE, || Ok(names()? == 3))?;
    lose_and_rebuild(&mut site)?;
    site.client().pulls("a/b", "t", &new)?;
    Ok(Outcome::Passed)
}

fn late_retry(run: &Run) -> CaseResult {
    let servers = Servers::start(run, Database::Postgres, Storage::Files)?;
    let config = servers.config("", "", "[gc]\nlease = \"1h\"\nscrub_interval = \"0s\"\n");
    let site = Site::start(run, servers, 1, &config)?;
    let mut client = site.client();
    let blob = Blob::random(3_000_000, 880);
    client.push("a/b", &Blob::random(10, 881))?;
    let upload = client.begin("a/b")?;
    client.patch(&upload, 0, &blob.bytes[..1_000_000])?.is(202, "a chunk")?;
    // The bytes become a blob, the database does not hear of it.
    site.servers.sql(
        "create function refuse() returns trigger language plpgsql as $$ begin raise exception 'refused'; end $$; \
         create trigger refuse before insert on blobs for each row execute function refuse()",
    )?;
    let refused = client.finish(&upload, &blob.digest, &blob.bytes[1_000_000..])?;
    ensure!(refused.status >= 500, "the database cannot take it: {}", refused.told());
    site.servers.sql("drop trigger refuse on blobs")?;
    age(&site)?;
    let fsck = site.fsck_stopped(&["--repair"])?;
    ensure!(fsck.success && fsck.problems() == ["orphan"], "fsck: {}", fsck.report);
    // What is gone is not acknowledged.
    let late = client.finish(&upload, &blob.digest, &blob.bytes[1_000_000..])?;
    ensure!(late.status == 404, "a retry after the bytes were removed: {}", late.told());
    client.push("a/b", &blob)?;
    client.pulls_blob("a/b", &blob)?;
    Ok(Outcome::Passed)
}
