//! Who sees a blob, and for how long.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{Proc, Run};
use serde_json::json;

use super::{
    content::{Blob, Manifest},
    http::Client,
    site::Site,
};
use crate::{
    faults_data::probe::{SETTLE, wait_until},
    runner::{Case, CaseResult, Outcome, anywhere},
};

const LENGTH: usize = 100_000;
/// Of the cases in which leases run out. Long enough for two requests on a busy machine, short enough to wait for.
const LEASE: Duration = Duration::from_secs(4);
const SHORT: &str = "[gc]\nlease = \"4s\"\ninterval = \"100ms\"\n";

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere("registry visibility: a blob is 404 without a link, a mount makes one", links),
        anywhere("registry visibility: a repository is there from its first accepted push on", repositories),
        anywhere(
            "registry visibility: all referrers are listed, and nothing that only a fallback tag names",
            referrers,
        ),
        anywhere("registry visibility: referrers with long annotations come in pages that fit into memory", long),
        anywhere("registry collector: what nothing needs goes, what was looked at or mounted stays", leases),
        anywhere(
            "registry collector: manifests without a tag go only if nothing holds them, and only if asked",
            untagged,
        ),
    ]
}

fn links(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, "[gc]\nlease = \"1h\"\ninterval = \"100ms\"\n")?;
    let mut client = site.client();
    let image = Manifest::image("secret", &[Blob::random(LENGTH, 700)]);
    let blob = &image.blobs[1];
    client.push_image("a/secret", "t", &image)?;
    client.push_image("b/public", "t", &Manifest::image("other", &[]))?;
    // Whoever knows the digest knows nothing else.
    for repository in ["b/public", "c/none"] {
        client.get(&blob.path(repository))?.refuses(404, "BLOB_UNKNOWN", "a blob of another repository")?;
        ensure!(client.head_blob(repository, blob)? == 404, "HEAD sees a blob of another repository");
        let range = client.ask("GET", &blob.path(repository), &[("range", "bytes=0-1")], &[])?;
        range.refuses(404, "BLOB_UNKNOWN", "a part of a blob of another repository")?;
        let delete = client.ask("DELETE", &blob.path(repository), &[], &[])?;
        delete.refuses(404, "BLOB_UNKNOWN", "delete of a blob of another repository")?;
        client.put_manifest(repository, "t2", &image)?.refuses(400, "MANIFEST_BLOB_UNKNOWN", "a manifest of it")?;
        let digest = image.digest.to_string();
        client.manifest(repository, &digest)?.refuses(404, "MANIFEST_UNKNOWN", "a manifest of another repository")?;
    }
    // From where it is not, nothing can be mounted; from where it is, it can; and without a source, too.
    client.mount("b/public", blob, Some("c/none"))?.is(202, "a mount from where it is not")?;
    client.mount("b/public", blob, Some("b/public"))?.is(202, "a mount from where it is not")?;
    client.get(&blob.path("b/public"))?.refuses(404, "BLOB_UNKNOWN", "after a mount that failed")?;
    client.mount("b/public", &Blob::random(10, 701), Some("a/secret"))?.is(202, "a mount of what is nowhere")?;
    client.mount("b/public", &Blob::random(10, 701), None)?.is(202, "a mount of what is nowhere")?;
    let mounted = client.mount("b/public", blob, Some("a/secret"))?.is(201, "a mount")?;
    ensure!(mounted.header("location").is_some_and(|at| at.ends_with(&blob.path("b/public"))), "{mounted:?}");
    client.pulls_blob("b/public", blob)?;
    client.mount("c/new", blob, None)?.is(201, "a mount without a source")?;
    client.pulls_blob("c/new", blob)?;
    // One file for all of them.
    let hex = blob.digest.hex();
    let stored = site.servers.stored("blobs/")?.iter().filter(|name| name.contains(&hex)).count();
    ensure!(stored == 1, "the blob is stored {stored} times");
    // Each link ends by itself; one that a manifest needs does not.
    let needed = client.ask("DELETE", &blob.path("a/secret"), &[], &[])?;
    needed.refuses(405, "UNSUPPORTED", "delete of a blob that a manifest needs")?;
    client.ask("DELETE", &blob.path("b/public"), &[], &[])?.is(202, "delete of a blob")?;
    client.get(&blob.path("b/public"))?.refuses(404, "BLOB_UNKNOWN", "a deleted blob")?;
    client.pulls_blob("c/new", blob)?;
    client.pulls("a/secret", "t", &image)?;
    client.push("b/public", blob)?;
    client.pulls_blob("b/public", blob)?;
    wait_until("the second copy is removed", SETTLE, || {
        Ok(site.servers.stored("blobs/")?.iter().filter(|name| name.contains(&hex)).count() == 1)
    })?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn is_gone(client: &mut Client, site: &Site, repository: &str, blob: &Blob) -> Result<()> {
    let hex = blob.digest.hex();
    wait_until("the blob is gone, its file too", SETTLE, || {
        // GET, for HEAD would keep it.
        let seen = client.get(&blob.path(repository))?.status;
        Ok(seen == 404 && !site.servers.stored("blobs/")?.iter().any(|name| name.contains(&hex)))
    })
}

fn repositories(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, "")?;
    let mut client = site.client();
    let image = Manifest::image("refused", &[Blob::random(10, 710)]);
    let unknown =
        |client: &mut Client| client.get("/v2/a/b/tags/list")?.refuses(404, "NAME_UNKNOWN", "tags of nothing");
    client.put_manifest("a/b", "t", &image)?.refuses(400, "MANIFEST_BLOB_UNKNOWN", "a manifest of nothing")?;
    unknown(&mut client)?;
    client.mount("a/b", &image.blobs[1], None)?.is(202, "a mount of nothing")?;
    let upload = client.begin("a/b")?;
    client.finish(&upload, &image.digest, b"else")?.refuses(400, "DIGEST_INVALID", "a blob of another digest")?;
    unknown(&mut client)?;
    client.push_image("a/b", "t", &image)?;
    ensure!(client.tags("a/b")? == ["t"], "{:?}", client.tags("a/b")?);
    client.put_manifest("a/b", "u", &Manifest::index("x", &[&Manifest::image("none", &[])]))?.is(400, "no child")?;
    ensure!(client.tags("a/b")? == ["t"], "{:?}", client.tags("a/b")?);
    site.fsck(&[])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn referrers(run: &Run) -> CaseResult {
    const COUNT: usize = 300;
    let mut site = Site::simple(run, "[lists]\npage_max = 100\n")?;
    let mut client = site.client();
    let subject = Manifest::image("subject", &[]);
    client.push_image("a/b", "t", &subject)?;
    let mut expected = Vec::new();
    for number in 0..COUNT {
        let artifact = Manifest::artifact(&number.to_string(), &[], Some(&subject));
        client.push_image("a/b", "", &artifact)?;
        expected.push(artifact.digest.to_string());
    }
    expected.sort();
    // One that is about something else, and a descriptor that lies: neither is a referrer, whatever lists it.
    let other = Manifest::artifact("other", &[], Some(&Manifest::image("elsewhere", &[])));
    client.push_image("a/b", "", &other)?;
    let tag = subject.digest.to_string().replace(':', "-");
    client.put_manifest("a/b", &tag, &Manifest::index("fallback", &[&subject, &other]))?.is(201, "a fallback tag")?;
    let pages = referrer_pages(&mut client, &subject)?;
    ensure!(pages.iter().map(Vec::len).collect::<Vec<_>>() == [100, 100, 100], "{} pages", pages.len());
    ensure!(pages.concat() == expected, "not those that were pushed: {pages:?}");
    let filtered = |kind: &str| format!("/v2/a/b/referrers/{}?artifactType={kind}", subject.digest);
    let some = client.get(&filtered("application/vnd.example.signature"))?.is(200, "a filter")?;
    ensure!(some.header("link").is_some_and(|link| link.contains("artifactType=")), "{}", some.told());
    let none = client.get(&filtered("application/vnd.example.none"))?.is(200, "a filter")?;
    ensure!(none.json()?["manifests"] == json!([]) && none.header("link").is_none(), "{}", none.told());
    site.fsck(&[])?.is_clean()?;
    Ok(Outcome::Passed)
}

/// Each as long as a manifest may be.
fn long(run: &Run) -> CaseResult {
    const COUNT: usize = 24;
    let mut site = Site::simple(run, "")?;
    let mut client = site.client();
    let subject = Manifest::image("subject", &[]);
    client.push_image("a/b", "t", &subject)?;
    let mut expected = Vec::new();
    for number in 0..COUNT {
        let name = format!("{number}{}", "x".repeat(3_900_000));
        let artifact = Manifest::artifact(&name, &[], Some(&subject));
        client.push_image("a/b", "", &artifact)?;
        expected.push(vec![artifact.digest.to_string()]);
    }
    expected.sort();
    let process: &Proc = site.registries[0].process();
    let before = process.memory()?.private_bytes;
    let done = AtomicBool::new(false);
    let (pages, most) = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = before;
            while !done.load(Ordering::Relaxed) {
                most = most.max(process.memory()?.private_bytes);
                thread::sleep(Duration::from_millis(1));
            }
            anyhow::Ok(most)
        });
        let pages = referrer_pages(&mut client, &subject);
        done.store(true, Ordering::Relaxed);
        let most = watch.join().map_err(|_| anyhow::anyhow!("the memory's watch panicked"))?;
        anyhow::Ok((pages?, most?))
    })?;
    ensure!(pages == expected, "{} pages, though two of {COUNT} referrers do not fit into one: {pages:?}", pages.len());
    let grown = most.saturating_sub(before) / 1_000_000;
    ensure!(grown < 60, "{grown} MB more for a list in pages of four");
    Ok(Outcome::Passed)
}

/// The digests of each page.
fn referrer_pages(client: &mut Client, subject: &Manifest) -> Result<Vec<Vec<String>>> {
    let mut pages = Vec::new();
    let mut next = Some(format!("/v2/a/b/referrers/{}", subject.digest));
    while let Some(path) = next {
        let response = client.get(&path)?.is(200, "a page of referrers")?;
        let list = response.json()?;
        let referrers = list["manifests"].as_array().context("no list of referrers")?.iter();
        pages.push(referrers.map(|one| one["digest"].as_str().unwrap_or_default().to_owned()).collect());
        let link = response.header("link").and_then(|link| link.strip_prefix('<')?.split_once('>'));
        next = link.map(|(path, _)| path.to_owned());
    }
    Ok(pages)
}

fn leases(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, SHORT)?;
    let mut client = site.client();
    let blob = |seed: u64| Blob::random(LENGTH, 710 + seed);

    // Pushed and never needed; looked at all the time; needed; taken out of its manifest.
    let (forgotten, watched) = (blob(0), blob(1));
    let begun = Instant::now();
    for blob in [&forgotten, &watched] {
        client.push("a/b", blob)?;
    }
    let kept = Manifest::image("kept", &[blob(2)]);
    let dropped = Manifest::image("dropped", &[blob(3), kept.blobs[1].clone()]);
    client.push_image("a/b", "kept", &kept)?;
    client.push_image("a/b", "dropped", &dropped)?;
    client.mount("c/d", &kept.blobs[1], Some("a/b"))?.is(201, "a mount")?;
    let pushed = Instant::now();
    ensure!(client.get(&forgotten.path("a/b"))?.status == 200, "gone before its time");
    let is_early = begun.elapsed() < LEASE;
    ensure!(is_early, "this machine is too slow for a lease of {LEASE:?}");
    while pushed.elapsed() < 2 * LEASE {
        thread::sleep(LEASE / 4);
        ensure!(client.head_blob("a/b", &watched)? == 200, "a blob that is looked at goes");
    }
    is_gone(&mut client, &site, "a/b", &forgotten).context("a blob that nothing needs")?;
    ensure!(client.get(&kept.blobs[1].path("c/d"))?.status == 404, "what was mounted and is not needed stays");
    for (tag, image) in [("kept", &kept), ("dropped", &dropped)] {
        client.pulls("a/b", tag, image).context("leases are over, manifests need it")?;
    }
    // The last look counts, and then a manifest does.
    let late = Manifest::image("late", std::slice::from_ref(&watched));
    client.push("a/b", &late.blobs[0])?;
    client.put_manifest("a/b", "late", &late)?.is(201, "the manifest comes after twice the lease")?;

    // A tag alone holds nothing and lets nothing go; a manifest does.
    client.delete_manifest("a/b", "dropped")?.is(202, "delete of a tag")?;
    thread::sleep(LEASE + Duration::from_secs(1));
    client.pulls("a/b", &dropped.digest.to_string(), &dropped).context("without a tag")?;
    client.delete_manifest("a/b", &dropped.digest.to_string())?.is(202, "delete of a manifest")?;
    let deleted = Instant::now();
    client.pulls_blob("a/b", &dropped.blobs[1]).context("just after its manifest was deleted")?;
    // docker asks, skips the upload, and puts the manifest later: later than the lease that began with the delete.
    let skipped = Manifest::image("skipped", &[kept.blobs[1].clone(), dropped.blobs[1].clone()]);
    client.push("a/b", &skipped.blobs[0])?;
    thread::sleep((LEASE * 3 / 4).saturating_sub(deleted.elapsed()));
    for blob in &skipped.blobs {
        ensure!(client.head_blob("a/b", blob)? == 200, "gone before its time");
    }
    thread::sleep((LEASE * 3 / 2).saturating_sub(deleted.elapsed()));
    client.put_manifest("a/b", "skipped", &skipped)?.is(201, "the manifest comes after the upload was skipped")?;
    client.pulls("a/b", "skipped", &skipped)?;
    // Of the deleted one only its configuration was nobody's.
    is_gone(&mut client, &site, "a/b", &dropped.blobs[0]).context("the configuration of a deleted image")?;
    client.pulls("a/b", "kept", &kept)?;
    client.pulls("a/b", "late", &late)?;

    // Needed in one repository, forgotten in the other.
    client.mount("c/d", &skipped.blobs[2], Some("a/b"))?.is(201, "a mount")?;
    client.delete_manifest("a/b", &skipped.digest.to_string())?.is(202, "delete of a manifest")?;
    let there = Manifest::image("there", &skipped.blobs[2..]);
    client.push("c/d", &there.blobs[0])?;
    client.put_manifest("c/d", "there", &there)?.is(201, "a manifest of what was mounted")?;
    wait_until("the link ends", SETTLE, || Ok(client.get(&skipped.blobs[2].path("a/b"))?.status == 404))?;
    client.pulls("c/d", "there", &there)?;
    site.wait_upkeep()?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn untagged(run: &Run) -> CaseResult {
    // Not asked for: nothing goes.
    let mut site = Site::simple(run, "[gc]\nlease = \"1s\"\ninterval = \"100ms\"\n")?;
    let lone = Manifest::image("lone", &[]);
    site.client().push_image("a/b", "", &lone)?;
    thread::sleep(Duration::from_secs(3));
    site.client().pulls("a/b", &lone.digest.to_string(), &lone).context("nobody asked for its removal")?;
    site.stop()?;
    let config = std::fs::read_to_string(site.registries[0].config())?;
    std::fs::write(site.registries[0].config(), config + "untagged_after = \"1s\"\n")?;
    site.registries[0].restart()?;

    let mut client = site.client();
    // Asking for it keeps it for another second.
    let is_there = |client: &mut Client, manifest: &Manifest| -> Result<bool> {
        thread::sleep(Duration::from_secs(2));
        Ok(client.manifest("a/b", &manifest.digest.to_string())?.status == 200)
    };
    wait_until("the lone manifest goes", SETTLE, || Ok(!is_there(&mut client, &lone)?))?;
    // As a client does that will not push again what it sees, and pushes the index a while later.
    let seen = Manifest::image("seen", &[]);
    client.push_image("a/b", "", &seen)?;
    for method in ["HEAD", "GET"].repeat(4) {
        thread::sleep(Duration::from_millis(600));
        let path = format!("/v2/a/b/manifests/{}", seen.digest);
        client.ask(method, &path, &[], &[])?.is(200, "a manifest that is asked for")?;
    }
    client.put_manifest("a/b", "seen", &Manifest::index("seen", &[&seen]))?.is(201, "an index of what was seen")?;
    let [tagged, old, child, other_child] =
        ["tagged", "old", "child", "other"].map(|name| Manifest::image(name, &[Blob::random(1000, name.len() as u64)]));
    client.push_image("a/b", "v1", &old)?;
    client.push_image("a/b", "v1", &tagged)?;
    client.push_image("a/b", "child", &child)?;
    client.push_image("a/b", "other", &other_child)?;
    let index = Manifest::index("index", &[&child, &other_child]);
    client.push_image("a/b", "index", &index)?;
    for tag in ["child", "other"] {
        client.delete_manifest("a/b", tag)?.is(202, "delete of a tag")?;
    }
    let signature = Manifest::artifact("signature", &[], Some(&tagged));
    let of_signature = Manifest::artifact("of signature", &[], Some(&signature));
    let of_child = Manifest::artifact("of child", &[], Some(&child));
    // Its subject was never here.
    let of_nothing = Manifest::artifact("of nothing", &[], Some(&Manifest::image("never", &[])));
    for artifact in [&signature, &of_signature, &of_child, &of_nothing] {
        client.push_image("a/b", "", artifact)?;
    }
    wait_until("what lost its tag goes", SETTLE, || Ok(!is_there(&mut client, &old)?))?;
    wait_until("what refers to nothing goes", SETTLE, || Ok(!is_there(&mut client, &of_nothing)?))?;
    thread::sleep(Duration::from_secs(3));
    for (what, manifest) in [
        ("a tagged one", &tagged),
        ("an index", &index),
        ("a child of it", &child),
        ("another child", &other_child),
        ("a signature", &signature),
        ("the signature of a signature", &of_signature),
        ("the signature of a child", &of_child),
    ] {
        client.pulls("a/b", &manifest.digest.to_string(), manifest).with_context(|| format!("{what} is held"))?;
    }
    // What held them goes, and then they do.
    client.delete_manifest("a/b", "index")?.is(202, "delete of a tag")?;
    client.delete_manifest("a/b", "seen")?.is(202, "delete of a tag")?;
    wait_until("what was seen", SETTLE, || Ok(!is_there(&mut client, &seen)?))?;
    for manifest in [&index, &child, &other_child, &of_child] {
        wait_until("an index and what only it held", SETTLE, || Ok(!is_there(&mut client, manifest)?))?;
    }
    client.pulls("a/b", "v1", &tagged)?;
    client.pulls("a/b", &of_signature.digest.to_string(), &of_signature)?;
    client.delete_manifest("a/b", &tagged.digest.to_string())?.is(202, "delete of a manifest")?;
    for manifest in [&signature, &of_signature] {
        wait_until("what referred to it", SETTLE, || Ok(!is_there(&mut client, manifest)?))?;
    }
    site.wait_upkeep()?;
    let fsck = site.fsck(&["--deep"])?;
    fsck.is_clean()?;
    ensure!(fsck.report["blobs"] == 0, "blobs are left: {}", fsck.report);
    Ok(Outcome::Passed)
}
