//! Clients that remove what they pushed.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use harness::{Run, Signal};

use super::scene::{CLIENT, OPEN, Scene, one_platform, printed, refused};
use crate::runner::{Case, CaseResult, Outcome, anywhere};

/// A lease of twenty seconds has run out, the collector has looked, the files are gone.
const COLLECTED: Duration = Duration::from_secs(60);

pub(super) fn cases() -> Vec<Case> {
    vec![anywhere(
        "registry: crane, regctl and skopeo delete tags and images, and the bytes of the last one leave the store",
        deletion,
    )]
}

fn deletion(run: &Run) -> CaseResult {
    let mut scene = Scene::start(run, |_| Ok(format!("{OPEN}[gc]\ninterval = \"1s\"\nlease = \"20s\"\n")))?;
    let image = one_platform(run)?;
    let digest = image.platform().manifest.clone();
    let [crane, regctl, skopeo] = ["crane", "regctl", "skopeo"].map(|client| scene.repository(&format!("of/{client}")));
    for repository in [&crane, &regctl, &skopeo] {
        for tag in ["v1", "v2"] {
            scene.tools.push(&image, &format!("{repository}:{tag}"))?;
        }
    }
    // What is deleted from now on stays a second, unless it was pushed less than twenty ago.
    let config = scene.registry.config().to_owned();
    fs::write(&config, fs::read_to_string(&config)?.replace("lease = \"20s\"", "lease = \"1s\""))?;
    scene.registry.process().signal(Signal::HUP)?;

    let status = |client: &str, reference: &str| {
        let url = scene.registry.url(&format!("/v2/of/{client}/manifests/{reference}"));
        anyhow::Ok(scene.curl().args(["--head"]).get(&url)?.status)
    };
    let statuses =
        |client: &str| anyhow::Ok([status(client, "v1")?, status(client, "v2")?, status(client, &digest.to_string())?]);

    // A tag is a name: what it named stays, also when it was the last one.
    scene.tools.crane()?.args(["delete", &format!("{crane}:v1")]).run(CLIENT)?;
    ensure!(statuses("crane")? == [404, 200, 200], "crane deleted more or less than a tag");
    scene.tools.crane()?.args(["delete", &format!("{crane}:v2")]).run(CLIENT)?;
    ensure!(statuses("crane")? == [404, 404, 200], "crane deleted more or less than a tag");
    scene.tools.crane()?.args(["delete", &format!("{crane}@{digest}")]).run(CLIENT)?;
    ensure!(statuses("crane")? == [404, 404, 404], "the image is still there");
    refused(scene.tools.crane()?.args(["pull", &format!("{crane}@{digest}"), "gone.tar"]), "MANIFEST_UNKNOWN")?;

    let name = scene.registry.name();
    scene.tools.regctl(&name)?.args(["tag", "delete", &format!("{regctl}:v1")]).run(CLIENT)?;
    ensure!(statuses("regctl")? == [404, 200, 200], "regctl deleted more or less than a tag");
    scene.tools.regctl(&name)?.args(["manifest", "delete", &format!("{regctl}@{digest}")]).run(CLIENT)?;
    ensure!(statuses("regctl")? == [404, 404, 404], "the image is still there, or its tag");

    // The blobs leave these repositories, but not the third one.
    let layer = &image.platform().layers[0];
    eventually("the blob is still readable", || {
        let mut readable = false;
        for client in ["crane", "regctl"] {
            // A HEAD would keep it.
            let url = scene.registry.url(&format!("/v2/of/{client}/blobs/{layer}"));
            readable |= scene.curl().range(0, 9).get(&url)?.status != 404;
        }
        Ok(!readable)
    })?;
    scene.tools.pulls_whole(run, &format!("{skopeo}:v2"), &image)?;
    // skopeo deletes what the tag names, and so all its tags.
    let delete = scene.tools.skopeo().args(["delete", "--tls-verify=false", &format!("docker://{skopeo}:v1")]);
    delete.run(CLIENT)?;
    ensure!(statuses("skopeo")? == [404, 404, 404], "the image is still there, or its tag");
    let tags = scene.tools.crane()?.args(["ls", &skopeo]).run(CLIENT)?;
    ensure!(printed(&tags).is_empty(), "tags are left: {}", printed(&tags));

    let store = store_of(&config)?;
    // But for records that say that tags are gone, and the store's name.
    let folders = ["blobs", "uploads", "records/manifests"].map(|folder| Path::new(&store).join(folder));
    let left = || folders.iter().map(|folder| files(folder)).sum::<anyhow::Result<usize>>();
    eventually("files are left in the store", || Ok(left()? == 0))?;
    scene.check()?;
    Ok(Outcome::Passed)
}

/// Waits for the collector; `problem` says what is wrong until then.
fn eventually(problem: &str, mut done: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let end = Instant::now() + COLLECTED;
    while !done()? {
        ensure!(Instant::now() < end, "{problem}");
        thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// The folder of the registry's store.
fn store_of(config: &Path) -> anyhow::Result<String> {
    let config: toml::Table = toml::from_str(&fs::read_to_string(config)?)?;
    Ok(config["store"]["path"].as_str().context("the store has no path")?.to_owned())
}

/// Files in the folder and below it.
fn files(folder: &Path) -> anyhow::Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { files(&entry.path())? } else { 1 };
    }
    Ok(count)
}
