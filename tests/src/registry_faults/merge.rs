//! `registry rebuild --merge`: databases that lag behind their store, and stores that two databases want.

use std::{fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{Run, SkimmerRegistry};

use super::{
    content::{Blob, Manifest},
    site::Site,
};
use crate::runner::{Case, CaseResult, Outcome, anywhere};

const AT_ONCE: &str = "[gc]\nlease = \"1s\"\ninterval = \"100ms\"\n";
const PATIENCE: Duration = Duration::from_secs(60);
/// When a merge is killed, in ms after it began.
const KILLS: [u64; 7] = [30, 60, 100, 150, 220, 320, 450];
const TAGS: usize = 400;

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere("registry merge: one that is broken off is not served, and loses nothing of the store", broken_off),
        anywhere("registry merge: what was removed and pushed again since the backup is what is there now", again),
        anywhere("registry merge: what waits to be removed does not come back", waiting),
        anywhere("registry ties: two databases never use one folder at the same time", two_databases),
        anywhere("registry fsck: records that have taken each other's place are found, and written again", swapped),
    ]
}

/// A registry that has this image in `a/b`, under this tag, and goes on; and a copy of its database.
fn backed_up(run: &Run, config: &str, tag: &str, image: &Manifest) -> Result<(Site, PathBuf)> {
    let mut site = Site::simple(run, config)?;
    site.client().push_image("a/b", tag, image)?;
    site.stop()?;
    let copy = site.servers.folder.join("backup");
    fs::copy(site.servers.sqlite(), &copy)?;
    site.registries[0].restart()?;
    Ok((site, copy))
}

fn restore(site: &Site, copy: &PathBuf) -> Result<()> {
    site.servers.empty_database()?;
    fs::copy(copy, site.servers.sqlite()).map(drop).context("the backup cannot be restored")
}

fn merge(site: &Site) -> Result<()> {
    site.registries[0].command("rebuild").arg("--merge").run(PATIENCE).map(drop)
}

fn broken_off(run: &Run) -> CaseResult {
    let image = Manifest::image("image", &[Blob::random(3000, 900)]);
    let (mut site, copy) = backed_up(run, "", "first", &image)?;
    let mut client = site.client();
    for number in 0..TAGS {
        client.put_manifest("a/b", &format!("t{number}"), &image)?.is(201, "a tag")?;
    }
    site.stop()?;
    let mut killed = 0;
    for delay in KILLS {
        restore(&site, &copy)?;
        let mut merging = site.registries[0].command("rebuild").arg("--merge").start(run, "merge")?;
        thread::sleep(Duration::from_millis(delay));
        if !merging.kill()?.success() {
            killed += 1;
            let serve = site.registries[0].command("serve").output(PATIENCE)?;
            ensure!(!serve.status.success(), "a merge that was broken off after {delay} ms is served");
            ensure!(serve.stderr.contains("registry rebuild"), "{}", serve.stderr);
        }
    }
    ensure!(killed > 0, "every merge had ended before it was killed, nothing was tested");
    restore(&site, &copy)?;
    merge(&site)?;
    site.registries[0].restart()?;
    let tags = site.client().tags("a/b")?.len();
    ensure!(tags == TAGS + 1, "{tags} tags are there");
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

/// Rows of the backup name bytes and a record that are gone; the store has others of the same content.
fn again(run: &Run) -> CaseResult {
    let image = Manifest::image("image", &[Blob::random(3000, 910)]);
    let (mut site, copy) = backed_up(run, AT_ONCE, "t", &image)?;
    let mut client = site.client();
    client.delete_manifest("a/b", &image.digest.to_string())?.is(202, "delete")?;
    site.wait_upkeep()?;
    ensure!(site.servers.stored("blobs/")?.is_empty(), "the bytes are still there, nothing is tested");
    client.push_image("a/b", "t", &image)?;
    site.stop()?;
    restore(&site, &copy)?;
    merge(&site)?;
    site.registries[0].restart()?;
    site.client().pulls("a/b", "t", &image).context("merged")?;
    site.fsck(&["--deep", "--repair"])?.is_clean().context("merged")?;
    site.client().pulls("a/b", "t", &image).context("checked")?;
    site.stop()?;
    site.servers.empty_database()?;
    site.registries[0].command("rebuild").run(PATIENCE)?;
    site.registries[0].restart()?;
    site.client().pulls("a/b", "t", &image).context("rebuilt")?;
    Ok(Outcome::Passed)
}

/// Bytes that nobody removes yet are not given to those who push the same once more.
fn waiting(run: &Run) -> CaseResult {
    let config = "[uploads]\nexpiry = \"1s\"\n[gc]\nlease = \"1s\"\ninterval = \"100ms\"\nenabled = false\n";
    let mut site = Site::simple(run, config)?;
    let blob = Blob::random(3000, 920);
    let mut client = site.client();
    client.push("a/b", &blob)?;
    client.ask("DELETE", &blob.path("a/b"), &[], &[])?.is(202, "delete of a blob")?;
    // Until the row of the upload is forgotten.
    thread::sleep(Duration::from_secs(8));
    site.stop()?;
    merge(&site)?;
    let path = site.registries[0].config().to_owned();
    let enabled = fs::read_to_string(&path)?.replace("enabled = false", "enabled = true");
    site.registries[0].restart()?;
    let image = Manifest::image("image", std::slice::from_ref(&blob));
    site.client().push_image("a/b", "t", &image)?;
    fs::write(path, enabled)?;
    site.registries[0].restart()?;
    site.wait_upkeep()?;
    site.client().pulls("a/b", "t", &image)?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn two_databases(run: &Run) -> CaseResult {
    let image = Manifest::image("image", &[Blob::random(3000, 930)]);
    let (mut site, copy) = backed_up(run, "", "t", &image)?;
    let registry = &site.registries[0];
    let (ours, theirs) =
        (site.servers.database_url(), SkimmerRegistry::database(&format!("sqlite://{}", copy.display())));
    let text = fs::read_to_string(registry.config())?.replace(&SkimmerRegistry::database(&ours), &theirs);
    ensure!(text.contains("backup"), "the configuration names the other database: {text}");
    let other = site.servers.folder.join("other.toml");
    fs::write(&other, text)?;
    for command in [&["serve"][..], &["fsck", "--repair"], &["rebuild", "--merge"]] {
        let finished = site
            .servers
            .host
            .program(harness::bin_dir()?.join("registry"))
            .args(command)
            .arg("--config")
            .arg(&other)
            .output(PATIENCE)?;
        ensure!(!finished.status.success(), "{command:?} begins beside a registry that has the folder");
        ensure!(finished.stderr.contains("another registry uses"), "{command:?} says {}", finished.stderr);
    }
    site.client().pulls("a/b", "t", &image)?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn swapped(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, "")?;
    let images = [1, 2].map(|seed| Manifest::image(&seed.to_string(), &[Blob::random(3000, 940 + seed)]));
    for (name, image) in ["a/b", "c/d"].iter().zip(&images) {
        site.client().push_image(name, "t", image)?;
    }
    let names = site.servers.stored("records/manifests/")?;
    ensure!(names.len() == 2, "the store has the records {names:?}");
    let contents = [site.servers.content(&names[1])?, site.servers.content(&names[0])?];
    for (name, content) in names.iter().zip(&contents) {
        site.servers.spoil(name, Some(content))?;
    }
    let fsck = site.fsck(&[])?;
    for image in &images {
        fsck.finds("missing_record", &image.digest.to_string())?;
    }
    ensure!(site.fsck(&["--repair"])?.success, "records cannot be written again");
    site.fsck(&["--deep"])?.is_clean()?;
    site.stop()?;
    site.servers.empty_database()?;
    site.registries[0].command("rebuild").run(PATIENCE)?;
    site.registries[0].restart()?;
    for (name, image) in ["a/b", "c/d"].iter().zip(&images) {
        site.client().pulls(name, "t", image)?;
    }
    Ok(Outcome::Passed)
}
