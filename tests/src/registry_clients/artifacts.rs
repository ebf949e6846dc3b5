//! Artifacts: files that are no images, and what is attached to an image.

use std::fs;

use anyhow::{Context, ensure};
use harness::Run;
use serde_json::Value;

use super::scene::{CLIENT, Scene, printed, two_platforms};
use crate::runner::{Case, CaseResult, Outcome, anywhere};

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere("registry: regctl attaches artifacts to an image, finds them by type, copies them along", regctl),
        anywhere("registry: oras pushes files whole and in chunks, attaches one to an image, and pulls", oras),
    ]
}

fn regctl(run: &Run) -> CaseResult {
    let scene = Scene::open(run)?;
    let image = two_platforms(run)?;
    let name = scene.registry.name();
    let regctl = |args: &[&str]| anyhow::Ok(printed(&scene.tools.regctl(&name)?.args(args).run(CLIENT)?));
    let (subject, copy) = (scene.repository("team/app:v1"), scene.repository("other/copy:v1"));
    scene.tools.push(&image, &subject)?;
    for (kind, text) in [("application/spdx+json", "a list of parts"), ("application/vnd.test.scan", "a scan")] {
        fs::write(scene.tools.home().join("artifact"), text)?;
        let put = ["artifact", "put", "--artifact-type", kind, "--subject", &subject, "--annotation", "of=test"];
        regctl(&[&put[..], &["-f", "artifact"]].concat())?;
    }
    let listed = |reference: &str, more: &[&str]| -> anyhow::Result<Vec<String>> {
        let args = [&["artifact", "list", reference, "--format", "{{json .Descriptors}}"], more].concat();
        let found: Vec<Value> = serde_json::from_str(&regctl(&args)?)?;
        ensure!(found.iter().all(|found| found["annotations"]["of"] == "test"), "annotations are missing: {found:?}");
        let mut kinds: Vec<_> = found.iter().map(|found| found["artifactType"].as_str().map(str::to_owned)).collect();
        kinds.sort_unstable();
        kinds.into_iter().collect::<Option<_>>().context("an artifact has no type")
    };
    let both = ["application/spdx+json", "application/vnd.test.scan"];
    ensure!(listed(&subject, &[])? == both, "artifacts are missing");
    let filter = ["--filter-artifact-type", both[1]];
    ensure!(listed(&subject, &filter)? == [both[1]], "the filter lets others through");
    // A registry without the referrers API gets tags instead.
    let tags = regctl(&["tag", "ls", &scene.repository("team/app")])?;
    ensure!(tags == "v1", "tags stand in for referrers: {tags}");
    let got = regctl(&[&["artifact", "get", "--subject", &subject][..], &filter].concat())?;
    ensure!(got == "a scan", "the artifact came back as {got:?}");

    regctl(&["image", "copy", "--referrers", &subject, &copy])?;
    ensure!(listed(&copy, &[])? == both, "artifacts were not copied along");
    scene.tools.pulls_whole(run, &copy, &image)?;
    scene.check()?;
    Ok(Outcome::Passed)
}

/// Two files, one of them in chunks of 1 MiB; a third one attached to what these became; all pulled into `pulled`.
const ORAS: &str = r#"
import sys
import oras.client, oras.oci
name = sys.argv[1]
client = oras.client.OrasClient(hostname=name, insecure=True)
pushed = client.push(target=f"{name}/team/files:v1", files=["small:text/plain"], manifest_annotations={"of": "test"})
client.push(target=f"{name}/team/files:v2", files=["large"], do_chunked=True, chunk_size=1 << 20)
subject = oras.oci.Subject("application/vnd.oci.image.manifest.v1+json",
                           pushed.headers["Docker-Content-Digest"], int(pushed.request.headers["Content-Length"]))
client.push(target=f"{name}/team/files:attached", files=["signature:text/plain"], subject=subject)
for tag in ["v1", "v2", "attached"]:
    client.pull(target=f"{name}/team/files:{tag}", outdir="pulled")
print(subject.digest, *client.get_tags(f"{name}/team/files"))
"#;

fn oras(run: &Run) -> CaseResult {
    let scene = Scene::open(run)?;
    let name = scene.registry.name();
    let files = [("small", 11), ("large", 5_500_000), ("signature", 64)];
    for (file, bytes) in files {
        scene.tools.random_file(file, bytes)?;
    }
    let said = printed(&scene.tools.python()?.args(["-c", ORAS, &name]).run(CLIENT)?);
    for (file, _) in files {
        let (sent, came) = (scene.tools.home().join(file), scene.tools.home().join("pulled").join(file));
        ensure!(fs::read(sent)? == fs::read(came)?, "{file} came back different");
    }
    let said = said.lines().last().unwrap_or_default();
    let (subject, tags) = said.split_once(' ').context("oras printed no digest")?;
    ensure!(tags == "attached v1 v2", "the tags are {tags}");
    let asked = scene.asked()?;
    let chunks = asked.iter().filter(|asked| asked.method == "PATCH" && asked.status == 202).count();
    ensure!(chunks == 6, "the large file was sent in {chunks} chunks");
    // oras finds no referrers by itself; regctl does.
    let list = ["artifact", "list", "--format", "{{len .Descriptors}}"];
    let list = scene.tools.regctl(&name)?.args(list).arg(format!("{name}/team/files@{subject}"));
    let found = printed(&list.run(CLIENT)?);
    ensure!(found == "1", "{found} artifacts are attached");
    scene.check()?;
    Ok(Outcome::Passed)
}
