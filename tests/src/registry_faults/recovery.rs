//! When the database is gone, or store and database disagree.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Run, S3Kind};
use proto::{Algorithm, Digest};

use super::{
    content::{Blob, Manifest},
    site::{Database, Fsck, Servers, Site, Storage},
};
use crate::runner::{Case, CaseResult, Outcome, anywhere};

/// Reads the whole store.
const REBUILD: Duration = Duration::from_secs(60);
/// Nothing is removed behind the case's back.
const QUIET: &str = "[gc]\nlease = \"1h\"\ninterval = \"1h\"\nscrub_interval = \"0s\"\n";
const REPOSITORY: &str = "team/app";
const OTHER: &str = "team/other";
const REFERRED: usize = 1;

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere("registry rebuild: SQLite's file is deleted, the folder restores everything", sqlite),
        anywhere("registry rebuild: MariaDB's database is dropped, the bucket restores everything", mariadb),
        anywhere("registry rebuild: PostgreSQL's database is dropped, the folder restores everything", postgres),
        anywhere("registry fsck: finds and mends files that are missing, cut, changed, unknown; records", files),
        anywhere("registry fsck: finds and mends objects that are missing, cut, changed, unknown; records", objects),
        anywhere("registry fsck: finds and mends rows that hang in the air, MariaDB and a bucket", rows_mariadb),
        anywhere("registry fsck: finds and mends rows that hang in the air, PostgreSQL", rows_postgres),
    ]
}

/// What a registry holds, and what it held once.
#[derive(Debug)]
struct Content {
    /// Tags and what they point to.
    tagged: Vec<(&'static str, Manifest)>,
    /// Manifests without tags.
    untagged: Vec<Manifest>,
    /// Those that refer to the tagged one of this number.
    referrers: Vec<Manifest>,
    gone_tags: Vec<&'static str>,
    gone: Vec<Digest>,
    /// In the other repository, of blobs that were mounted.
    mounted: Manifest,
}

// === impl Content ===

impl Content {
    fn push(site: &Site) -> Result<Self> {
        let mut client = site.client();
        let blob = |seed: u64| Blob::random(10_000 + seed as usize, 300 + seed);
        let shared = blob(0);
        let image = |name: &str, seed| Manifest::image(name, &[shared.clone(), blob(seed)]);
        let [old, middle, new, dropped] =
            [("old", 1), ("middle", 2), ("new", 3), ("dropped", 4)].map(|(name, seed)| image(name, seed));
        client.push_image(REPOSITORY, "v1", &old)?;
        // Moved twice, once back and forth.
        for image in [&old, &middle, &old, &new] {
            client.push_image(REPOSITORY, "latest", image)?;
        }
        // A tag that goes away, one that goes and comes back, a manifest that goes with its tag, one that comes back.
        client.push_image(REPOSITORY, "brief", &old)?;
        client.delete_manifest(REPOSITORY, "brief")?.is(202, "delete of a tag")?;
        client.push_image(REPOSITORY, "again", &old)?;
        client.delete_manifest(REPOSITORY, "again")?.is(202, "delete of a tag")?;
        client.push_image(REPOSITORY, "again", &middle)?;
        client.push_image(REPOSITORY, "dropped", &dropped)?;
        client.delete_manifest(REPOSITORY, &dropped.digest.to_string())?.is(202, "delete of a manifest")?;
        let back = image("back", 9);
        client.push_image(REPOSITORY, "back", &back)?;
        client.delete_manifest(REPOSITORY, &back.digest.to_string())?.is(202, "delete of a manifest")?;
        client.push_image(REPOSITORY, "back", &back)?;
        let index = Manifest::index("index", &[&old, &new]);
        client.push_image(REPOSITORY, "index", &index)?;
        let signature = Manifest::artifact("signature", &[blob(20)], Some(&old));
        let early = Manifest::artifact("early", &[blob(21)], Some(&old));
        let withdrawn = Manifest::artifact("withdrawn", &[blob(22)], Some(&old));
        for artifact in [&signature, &early, &withdrawn] {
            client.push_image(REPOSITORY, "", artifact)?;
        }
        client.delete_manifest(REPOSITORY, &withdrawn.digest.to_string())?.is(202, "delete of an artifact")?;
        // The other digest.
        let mut long = image("long", 11);
        long.digest = Digest::of(Algorithm::Sha512, &long.bytes);
        client.push_image(REPOSITORY, "", &long)?;
        let mounted = Manifest::image("mounted", std::slice::from_ref(&shared));
        client.mount(OTHER, &shared, Some(REPOSITORY))?.is(201, "mount")?;
        client.push(OTHER, &mounted.blobs[0])?;
        client.put_manifest(OTHER, "latest", &mounted)?.is(201, "push of a manifest")?;
        // Layers that are to be had elsewhere: one that is pushed nevertheless, and one that is not.
        let kept = Manifest::foreign("kept", blob(30));
        let mut elsewhere = Manifest::foreign("elsewhere", blob(31));
        elsewhere.blobs.pop();
        client.push_image(REPOSITORY, "kept", &kept)?;
        client.push_image(REPOSITORY, "elsewhere", &elsewhere)?;
        // Begun and not ended.
        let upload = client.begin(REPOSITORY)?;
        client.patch(&upload, 0, &[7; 1000])?.is(202, "a chunk")?;
        Ok(Self {
            tagged: vec![
                ("again", middle),
                ("v1", old),
                ("back", back),
                ("index", index),
                ("latest", new),
                ("kept", kept),
                ("elsewhere", elsewhere),
            ],
            untagged: vec![long],
            referrers: vec![signature, early],
            gone_tags: vec!["brief", "dropped"],
            gone: vec![dropped.digest, withdrawn.digest],
            mounted,
        })
    }

    /// Everything is there, and nothing else.
    fn is_there(&self, site: &Site) -> Result<()> {
        let mut client = site.client();
        for (tag, manifest) in &self.tagged {
            client.pulls(REPOSITORY, tag, manifest)?;
        }
        for manifest in self.untagged.iter().chain(&self.referrers) {
            client.pulls(REPOSITORY, &manifest.digest.to_string(), manifest)?;
        }
        client.pulls(OTHER, "latest", &self.mounted)?;
        let subject = &self.tagged[REFERRED].1.digest;
        let mut found = client.referrers(REPOSITORY, subject)?;
        let mut expected: Vec<String> = self.referrers.iter().map(|manifest| manifest.digest.to_string()).collect();
        found.sort();
        expected.sort();
        ensure!(found == expected, "referrers: {found:?} instead of {expected:?}");
        let found = client.tags(REPOSITORY)?;
        let mut expected: Vec<&str> = self.tagged.iter().map(|(tag, _)| *tag).collect();
        expected.sort_unstable();
        ensure!(found == expected, "tags: {found:?} instead of {expected:?}");
        for tag in &self.gone_tags {
            client.manifest(REPOSITORY, tag)?.refuses(404, "MANIFEST_UNKNOWN", tag)?;
        }
        for digest in &self.gone {
            client.manifest(REPOSITORY, &digest.to_string())?.refuses(404, "MANIFEST_UNKNOWN", "a deleted manifest")?;
        }
        let catalog = client.get("/v2/_catalog")?.is(200, "catalog")?.json()?;
        ensure!(catalog["repositories"] == serde_json::json!([REPOSITORY, OTHER]), "{catalog}");
        // The right to read is restored where it was, and nowhere else.
        let secret = &self.tagged[0].1.blobs[2];
        let status = client.head_blob(OTHER, secret)?;
        ensure!(status == 404, "a blob is readable in another repository: {status}");
        Ok(())
    }
}

// === rebuild ===

fn sqlite(run: &Run) -> CaseResult {
    rebuild(run, Database::Sqlite, Storage::Files)
}

fn mariadb(run: &Run) -> CaseResult {
    rebuild(run, Database::MariaDb, Storage::S3(S3Kind::Versitygw))
}

fn postgres(run: &Run) -> CaseResult {
    rebuild(run, Database::Postgres, Storage::Files)
}

fn rebuild(run: &Run, database: Database, storage: Storage) -> CaseResult {
    let servers = Servers::start(run, database, storage)?;
    let config = servers.config("", "", QUIET);
    let mut site = Site::start(run, servers, 1, &config)?;
    let mut content = Content::push(&site)?;
    content.is_there(&site).context("before anything was lost")?;
    // Twice: changes go on counting where they ended, or the second time an older tag would win.
    for round in 0..2 {
        lose_and_restore(&mut site).with_context(|| format!("round {round}"))?;
        content.is_there(&site).with_context(|| format!("restored, round {round}"))?;
        // What nothing needed is not known to be so any more; it is told, and stays until somebody says that it shall go.
        let fsck = site.fsck(&["--deep", "--repair"])?;
        ensure!(fsck.success, "restored, round {round}: {}", fsck.report);
        fsck.only(&["orphan_row"]).with_context(|| format!("restored, round {round}"))?;
        site.wait_removals()?;
        site.fsck(&["--deep"])?.is_clean().with_context(|| format!("restored, round {round}"))?;
        content.is_there(&site).with_context(|| format!("repaired, round {round}"))?;
        let mut client = site.client();
        let image = Manifest::image(&format!("round {round}"), &[Blob::random(5000, 330 + round)]);
        client.push_image(REPOSITORY, "latest", &image)?;
        let latest = content.tagged.iter_mut().find(|(tag, _)| *tag == "latest").context("it has one")?;
        let before = std::mem::replace(&mut latest.1, image);
        content.untagged.push(before);
        client.delete_manifest(REPOSITORY, "again")?.is(202, "delete of a tag")?;
        client.push_image(REPOSITORY, "again", &content.tagged[0].1)?;
        // Gone while its database was a restored one.
        let short = Manifest::image(&format!("short {round}"), &[Blob::random(3000, 340 + round)]);
        client.push_image(REPOSITORY, "short", &short)?;
        client.delete_manifest(REPOSITORY, &short.digest.to_string())?.is(202, "delete of a manifest")?;
        content.gone.push(short.digest);
    }
    // Where there is something already, only --merge may add to it.
    site.stop()?;
    let refused = site.registries[0].command("rebuild").output(REBUILD)?;
    ensure!(!refused.status.success() && refused.stderr.contains("--merge"), "rebuild says {}", refused.stderr);
    site.registries[0].command("rebuild").arg("--merge").run(REBUILD)?;
    site.registries[0].restart()?;
    content.is_there(&site).context("merged")?;
    site.fsck(&[])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn lose_and_restore(site: &mut Site) -> Result<()> {
    // As it happens: the registry runs while its database goes.
    site.registries[0].kill()?;
    site.servers.empty_database()?;
    let finished = site.registries[0].command("rebuild").arg("--json").run(REBUILD)?;
    let report: serde_json::Value = serde_json::from_slice(&finished.stdout)?;
    ensure!(report["skipped"] == serde_json::json!([]), "rebuild left something out: {report}");
    site.registries[0].restart()
}

// === fsck: the store ===

fn files(run: &Run) -> CaseResult {
    spoilt(run, Database::Sqlite, Storage::Files)
}

fn objects(run: &Run) -> CaseResult {
    spoilt(run, Database::Postgres, Storage::S3(S3Kind::Versitygw))
}

fn spoilt(run: &Run, database: Database, storage: Storage) -> CaseResult {
    let servers = Servers::start(run, database, storage)?;
    let config = servers.config("", "", QUIET);
    let mut site = Site::start(run, servers, 1, &config)?;
    let content = Content::push(&site)?;
    site.fsck(&["--deep"])?.is_clean()?;
    spoilt_blobs(&mut site, &content)?;
    pushed_again(&mut site, &content)?;
    unknown_entries(&mut site, &content)?;
    missing_records(&mut site)?;
    content.is_there(&site)?;
    Ok(Outcome::Passed)
}

/// The name of a blob's bytes in the store.
fn bytes_of(site: &Site, blob: &Blob) -> Result<String> {
    let names = site.servers.stored("")?;
    let hex = blob.digest.hex();
    let name = names.iter().find(|name| name.contains(&hex)).with_context(|| format!("{hex} is not stored"))?;
    // With object storage the digest is in a name of its own.
    Ok(match name.strip_prefix("names/") {
        Some(rest) => format!("blobs/{}", rest.split('.').next().unwrap_or_default()),
        None => name.clone(),
    })
}

fn spoilt_blobs(site: &mut Site, content: &Content) -> Result<()> {
    let image = &content.tagged[4].1;
    let blob = &image.blobs[2];
    let mut flipped = blob.bytes.to_vec();
    flipped[77] ^= 1;
    let longer = [&blob.bytes[..], b"x"].concat();
    let spoilt: [(&str, Option<&[u8]>); 4] = [
        ("missing_file", None),
        ("wrong_size", Some(&blob.bytes[..blob.bytes.len() / 2])),
        ("wrong_size", Some(&longer)),
        ("wrong_content", Some(&flipped)),
    ];
    for (problem, bytes) in spoilt {
        let name = bytes_of(site, blob)?;
        site.servers.spoil(&name, bytes)?;
        let args: &[&str] = if problem == "wrong_content" { &["--deep"] } else { &[] };
        let fsck = site.fsck(args)?;
        fsck.finds(problem, &blob.digest.to_string())?;
        ensure!(!fsck.success, "fsck finds {problem} and is content");
        if problem != "wrong_content" {
            // Nobody is given less than he asks for, nor told that all is well.
            let lost = site.client().get(&blob.path(REPOSITORY))?;
            lost.refuses(500, "UNKNOWN", problem)?;
        }
        let fsck = site.fsck(&[args, &["--repair"]].concat())?;
        fsck.finds(problem, &image.digest.to_string()).context("who needs it")?;
        // It is not there any more, so that clients push it again.
        let mut client = site.client();
        let status = client.head_blob(REPOSITORY, blob)?;
        ensure!(status == 404, "{problem}, mended: HEAD says {status}");
        client.push_image(REPOSITORY, "latest", image)?;
        client.pulls(REPOSITORY, "latest", image).with_context(|| format!("{problem}, pushed again"))?;
        site.fsck(&["--deep"])?.is_clean().with_context(|| format!("{problem}, pushed again"))?;
    }
    Ok(())
}

/// Whoever pushes what was lost heals it, though a HEAD says that it is there.
fn pushed_again(site: &mut Site, content: &Content) -> Result<()> {
    let image = &content.tagged[4].1;
    let blob = &image.blobs[2];
    site.servers.spoil(&bytes_of(site, blob)?, None)?;
    let mut client = site.client();
    client.mount("elsewhere/too", blob, Some(REPOSITORY))?.is(201, "a mount")?;
    client.try_push(REPOSITORY, blob)?.asks_to_come_back("UNAVAILABLE", "a push of what was lost")?;
    client.push(REPOSITORY, blob)?;
    client.pulls(REPOSITORY, "latest", image).context("pushed again")?;
    // Whoever had it elsewhere is told to push it, too.
    let elsewhere = client.head_blob("elsewhere/too", blob)?;
    ensure!(elsewhere == 404, "in another repository the blob that was lost is {elsewhere}");
    site.wait_removals()?;
    site.fsck(&["--deep"])?.is_clean().context("pushed again")
}

fn unknown_entries(site: &mut Site, content: &Content) -> Result<()> {
    let blob = &content.tagged[0].1.blobs[1];
    let name = bytes_of(site, blob)?;
    // A copy under another key, as a killed process leaves it. Keys are hexadecimal, and folders their last two characters.
    let key = name.rsplit('/').next().and_then(|name| name.split('.').next()).context("a key")?.to_owned();
    let first = if key.starts_with('0') { "1" } else { "0" };
    let other = format!("{first}{}", &key[1..]);
    for stored in site.servers.stored("")?.iter().filter(|name| name.contains(&key)) {
        let content: &[u8] = if stored.starts_with("names/") { b"" } else { &blob.bytes };
        site.servers.spoil(&stored.replace(&key, &other), Some(content))?;
    }
    let fsck = site.fsck(&[])?;
    fsck.finds("orphan", &other)?;
    ensure!(!fsck.success, "fsck finds an orphan and is content");
    if site.servers.s3.is_none() {
        // Another digest under the same key, as a process leaves it that was killed before the database knew. The blob is not touched.
        let beside = name.replace(&blob.digest.hex(), &"5".repeat(64));
        site.servers.spoil(&beside, Some(b"something else"))?;
        site.stop()?;
        site.registries[0].command("rebuild").arg("--merge").run(Duration::from_secs(60))?;
        site.registries[0].restart()?;
        site.fsck(&[])?.finds("orphan", &"5".repeat(64))?;
        let fsck = site.fsck(&["--repair"])?;
        ensure!(fsck.success, "another digest under the same key is not mended: {}", fsck.report);
        content.is_there(site).context("another digest lay under the same key")?;
        for stored in site.servers.stored("")?.iter().filter(|name| name.contains(&key)) {
            site.servers.spoil(&stored.replace(&key, &other), Some(&blob.bytes))?;
        }
    }
    // What is young may belong to a push of this moment. Whoever only looks does so beside the process that serves.
    let command = site.registries[0].command("fsck").args(["--json", "--grace", "1h"]);
    let young = command.output(Duration::from_secs(60))?;
    ensure!(young.status.success(), "an entry of this minute is called an orphan: {}", young.stderr);
    let backlog = site.registries[0].command("gc").args(["--json"]).output(Duration::from_secs(60))?;
    ensure!(backlog.status.success(), "the backlog cannot be seen: {}", backlog.stderr);
    site.stop()?;
    let fsck = site.fsck_stopped(&["--repair"])?;
    ensure!(fsck.success, "an orphan is not mended: {}", fsck.report);
    site.fsck_stopped(&[])?.is_clean()?;
    if site.servers.s3.is_some() {
        // Bytes and name are two objects, and a process may die between them; a removal may, too.
        let stored = site.servers.stored("")?;
        let of_it = stored.iter().filter(|name| name.contains(&key));
        for object in of_it {
            let content: &[u8] = if object.starts_with("names/") { b"" } else { &blob.bytes };
            site.servers.spoil(&object.replace(&key, &other), Some(content))?;
            let fsck = site.fsck_stopped(&[])?;
            fsck.finds("orphan", &other).with_context(|| format!("alone: {object}"))?;
            let fsck = site.fsck_stopped(&["--repair"])?;
            ensure!(fsck.success, "{object} alone is not mended: {}", fsck.report);
            site.fsck_stopped(&[])?.is_clean()?;
            ensure!(site.servers.stored("")? == stored, "{object} alone is not removed");
        }
    }
    // What is not ours is named, and left alone.
    let folder = name.rsplit_once('/').context("a folder")?.0;
    let stranger = format!("{folder}/thesis.tex");
    site.servers.spoil(&stranger, Some(b"years of work"))?;
    for args in [&[][..], &["--repair"]] {
        site.fsck_stopped(args)?.finds("stranger", "thesis.tex")?;
    }
    ensure!(site.servers.stored(folder)?.contains(&stranger), "what is not ours was removed");
    site.servers.spoil(&stranger, None)?;
    site.fsck(&[])?.is_clean()
}

/// Without records that say that a tag is gone, and those that such a one or a later one has replaced.
fn present(site: &Site, names: &[String]) -> Result<Vec<String>> {
    let change =
        |name: &str| name.rsplit_once('.').and_then(|(of, number)| Some((of.to_owned(), number.parse().ok()?)));
    let mut present = Vec::new();
    for name in names {
        let gone = String::from_utf8_lossy(&site.servers.content(name)?).contains("\"gone\":true");
        let replaced = change(name).is_some_and(|(of, number): (String, u64)| {
            names.iter().filter_map(|name| change(name)).any(|(other, later)| other == of && later > number)
        });
        if !gone && !replaced {
            present.push(name.clone());
        }
    }
    Ok(present)
}

fn missing_records(site: &mut Site) -> Result<()> {
    if site.servers.s3.is_some() {
        let names = site.servers.stored("names/")?;
        site.servers.spoil(&names[0], None)?;
        site.fsck(&[])?.finds("missing_record", "blob sha256:")?;
        let fsck = site.fsck(&["--repair"])?;
        ensure!(fsck.success, "a blob's name is not mended: {}", fsck.report);
        site.fsck(&[])?.is_clean()?;
        ensure!(site.servers.stored("names/")? == names, "a blob's name is not what it was");
    }
    for kind in ["records/manifests/", "records/tags/"] {
        let all = site.servers.stored(kind)?;
        let names = present(site, &all)?;
        let all = all.len();
        // One is gone, one is cut. A process that starts would look after the last ones.
        site.stop()?;
        site.servers.spoil(&names[0], None)?;
        site.servers.spoil(&names[1], Some(b"{"))?;
        let fsck = site.fsck_stopped(&[])?;
        let found = fsck.problems().iter().filter(|problem| *problem == "missing_record").count();
        ensure!(found == 2 && !fsck.success, "fsck finds {found} of 2 missing records: {}", fsck.report);
        let fsck = site.fsck_stopped(&["--repair"])?;
        ensure!(fsck.success, "records are not mended: {}", fsck.report);
        site.fsck_stopped(&[])?.is_clean().context(kind)?;
        site.registries[0].restart()?;
        let found = site.servers.stored(kind)?.len();
        ensure!(found == all, "{found} records in {kind} instead of {all}");
    }
    Ok(())
}

// === fsck: the database ===

fn rows_mariadb(run: &Run) -> CaseResult {
    rows(run, Database::MariaDb, Storage::S3(S3Kind::Versitygw))
}

fn rows_postgres(run: &Run) -> CaseResult {
    rows(run, Database::Postgres, Storage::Files)
}

fn rows(run: &Run, database: Database, storage: Storage) -> CaseResult {
    let servers = Servers::start(run, database, storage)?;
    let config = servers.config("", "", QUIET);
    let mut site = Site::start(run, servers, 1, &config)?;
    let content = Content::push(&site)?;
    let needed = content.tagged[4].1.blobs[2].digest.to_string();
    let blob_of = |digest: &str| format!("(select id from blobs where digest = '{digest}')");
    let zeros = "0".repeat(64);
    // A blob that no file belongs to: found as both.
    let blobless = format!(
        "insert into blobs (digest, size, store_key, created_at) values ('sha256:{zeros}', 5, '{}', 1)",
        "0".repeat(32)
    );
    let spoilt: [(&str, String, &[&str]); 7] = [
        ("a blob without links, and without a file", blobless, &["orphan_row", "missing_file"]),
        (
            "a link to no blob",
            "insert into links (repository_id, blob_id, leased_until) values (1, 999999, null)".into(),
            &["orphan_row"],
        ),
        (
            "a reference without a link",
            format!("delete from links where blob_id = {} and repository_id = 1", blob_of(&needed)),
            &["orphan_row"],
        ),
        (
            "a reference of no manifest",
            format!(
                "insert into manifest_blobs (manifest_id, repository_id, digest, required) values (999999, 1, 'sha256:{zeros}', 1)"
            ),
            &["orphan_row"],
        ),
        (
            "a link that is called referenced and is not",
            format!(
                "insert into links (repository_id, blob_id, leased_until) \
                 select id, {}, null from repositories where name = '{OTHER}'",
                blob_of(&needed)
            ),
            &["orphan_row"],
        ),
        (
            "a tag of no manifest",
            "insert into tags (repository_id, name, manifest_id, change_id, updated_at) values (1, 'astray', 999999, 1, 1)"
                .into(),
            &["orphan_row"],
        ),
        ("a child of no index", 
            format!("insert into manifest_children (manifest_id, repository_id, digest) values (999998, 1, 'sha256:{zeros}')"),
            &["orphan_row"]),
    ];
    for (what, statement, problems) in spoilt {
        site.stop()?;
        site.servers.sql(&statement)?;
        let fsck = site.fsck_stopped(&[])?;
        for problem in problems {
            fsck.finds(problem, "").with_context(|| what.to_owned())?;
        }
        ensure!(!fsck.success, "fsck finds {what} and is content");
        let mended: Fsck = site.fsck_stopped(&["--repair"])?;
        ensure!(mended.success, "{what} is not mended: {}", mended.report);
        site.fsck(&[])?.only(&[]).with_context(|| format!("{what}, mended"))?;
        content.is_there(&site).with_context(|| format!("{what}, mended"))?;
    }
    Ok(Outcome::Passed)
}
