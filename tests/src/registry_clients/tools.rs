//! Command-line clients without a daemon: skopeo, crane, regctl, helm, python-dxf.

use std::fs;

use anyhow::{Context, ensure};
use harness::Run;
use proto::{Algorithm, Digest};

use super::scene::{CLIENT, Scene, blobs, digest_of, mounts, printed, refused, same_blobs, two_platforms, uploads};
use crate::runner::{Case, CaseResult, Outcome, anywhere};

/// No layer is a multiple of it.
const CHUNK_BYTES: u64 = 300_001;

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere(
            "registry: skopeo pushes and pulls two platforms, skips what is there, mounts from another repository",
            skopeo,
        ),
        anywhere("registry: crane pushes, pulls, mounts, retags and lists", crane),
        anywhere("registry: regctl pushes and pulls two platforms, in chunks, and mounts", regctl),
        anywhere("registry: regctl pushes and pulls images whose digests are sha512", sha512),
        anywhere("registry: helm pushes and pulls a chart", helm),
        anywhere("registry: python-dxf pushes, mounts, names and removes blobs, also where external_url is set", dxf),
    ]
}

fn skopeo(run: &Run) -> CaseResult {
    let scene = Scene::open(run)?;
    let image = two_platforms(run)?;
    let (first, second) = (scene.repository("team/app:v1"), scene.repository("other/copy:v1"));
    scene.tools.push(&image, &first)?;
    scene.tools.pulls_whole(run, &first, &image)?;
    let mark = scene.asked()?.len();
    scene.tools.push(&image, &scene.repository("team/app:v2"))?;
    let asked = scene.asked_since(mark)?;
    ensure!(uploads(&asked, "team/app") == 0, "what is there was sent again: {asked:?}");

    let mark = scene.asked()?.len();
    scene.tools.copy(&format!("docker://{first}"), &format!("docker://{second}"))?;
    let asked = scene.asked_since(mark)?;
    ensure!(mounts(&asked, "other/copy") >= image.platform().layers.len(), "layers were not mounted: {asked:?}");
    scene.tools.pulls_whole(run, &second, &image)?;

    let copied = scene.tools.skopeo().args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{second}")]);
    let digest = Digest::of(Algorithm::Sha256, &copied.run(CLIENT)?.stdout);
    ensure!(Some(&digest) == image.index.as_ref(), "the index became {digest}");
    let tags = scene.tools.skopeo().args(["list-tags", "--tls-verify=false"]);
    let tags = tags.arg(format!("docker://{}", scene.repository("team/app"))).run(CLIENT)?;
    let tags: serde_json::Value = serde_json::from_slice(&tags.stdout)?;
    let listed = &tags["Tags"];
    ensure!(*listed == serde_json::json!(["v1", "v2"]), "the tags are {listed}");
    scene.check()?;
    Ok(Outcome::Passed)
}

fn crane(run: &Run) -> CaseResult {
    let scene = Scene::open(run)?;
    let image = two_platforms(run)?;
    let crane = |args: &[&str]| anyhow::Ok(printed(&scene.tools.crane()?.args(args).run(CLIENT)?));
    let (first, second) = (scene.repository("team/app:v1"), scene.repository("other/copy:v1"));
    let folder = image.folder().display().to_string();
    crane(&["push", &folder, &first])?;
    let mark = scene.asked()?.len();
    crane(&["push", &folder, &first])?;
    let asked = scene.asked_since(mark)?;
    ensure!(uploads(&asked, "team/app") == 0, "what is there was sent again: {asked:?}");

    let mark = scene.asked()?.len();
    crane(&["copy", &first, &second])?;
    let asked = scene.asked_since(mark)?;
    ensure!(mounts(&asked, "other/copy") >= blobs(&image), "blobs were not mounted: {asked:?}");
    ensure!(uploads(&asked, "other/copy") == 0, "mounted blobs were sent as well: {asked:?}");
    scene.tools.pulls_whole(run, &second, &image)?;
    let index = image.index.as_ref().context("the image has an index")?.to_string();
    ensure!(crane(&["digest", &second])? == index, "the index is not the one that was pushed");
    let pulled = run.data_dir("pulled")?;
    crane(&["pull", "--format", "oci", &second, &pulled.display().to_string()])?;
    same_blobs(&pulled, &image)?;
    crane(&["tag", &second, "v2"])?;
    ensure!(crane(&["ls", &scene.repository("other/copy")])? == "v1\nv2", "tags are missing");
    ensure!(crane(&["catalog", &scene.registry.name()])? == "other/copy\nteam/app", "repositories are missing");
    scene.check()?;
    Ok(Outcome::Passed)
}

fn regctl(run: &Run) -> CaseResult {
    let scene = Scene::open(run)?;
    let image = two_platforms(run)?;
    let name = scene.registry.name();
    let sizes = [("--blob-max", CHUNK_BYTES), ("--blob-chunk", CHUNK_BYTES)];
    let set = scene.tools.regctl(&name)?.args(["registry", "set", &name, "--tls", "disabled"]);
    let set = sizes.iter().fold(set, |set, (option, bytes)| set.args([*option, &bytes.to_string()]));
    set.run(CLIENT)?;
    let regctl = |args: &[&str]| anyhow::Ok(printed(&scene.tools.regctl(&name)?.args(args).run(CLIENT)?));
    let (first, second) = (scene.repository("team/app:v1"), scene.repository("other/copy:v1"));
    regctl(&["image", "copy", &format!("ocidir://{}:image", image.folder().display()), &first])?;
    let asked = scene.asked()?;
    let chunks = asked.iter().filter(|asked| asked.method == "PATCH" && asked.status == 202).count();
    let mut wanted = 0;
    for layer in image.platforms.iter().flat_map(|platform| &platform.layers) {
        let bytes = fs::metadata(image.blob_path(layer))?.len();
        wanted += if bytes > CHUNK_BYTES { bytes.div_ceil(CHUNK_BYTES) } else { 0 };
    }
    ensure!(wanted > 10 && chunks as u64 == wanted, "{chunks} chunks were sent, not {wanted}");
    scene.tools.pulls_whole(run, &first, &image)?;

    let mark = scene.asked()?.len();
    regctl(&["image", "copy", &first, &second])?;
    let asked = scene.asked_since(mark)?;
    ensure!(mounts(&asked, "other/copy") >= blobs(&image), "blobs were not mounted: {asked:?}");
    ensure!(uploads(&asked, "other/copy") == 0, "mounted blobs were sent as well: {asked:?}");

    let pulled = run.data_dir("pulled")?;
    regctl(&["image", "copy", &second, &format!("ocidir://{}:v1", pulled.display())])?;
    same_blobs(&pulled, &image)?;
    scene.check()?;
    Ok(Outcome::Passed)
}

fn sha512(run: &Run) -> CaseResult {
    let scene = Scene::open(run)?;
    let image = two_platforms(run)?;
    let name = scene.registry.name();
    let regctl = |args: &[&str]| anyhow::Ok(printed(&scene.tools.regctl(&name)?.args(args).run(CLIENT)?));
    let layout = format!("ocidir://{}", image.folder().display());
    let from = format!("{layout}:image");
    regctl(&["image", "mod", &from, "--create", "sha512", "--digest-algo", "sha512"])?;
    let local = regctl(&["image", "digest", &format!("{layout}:sha512")])?;
    ensure!(local.starts_with("sha512:"), "regctl did not change the digest: {local}");
    let (first, second) = (scene.repository("team/long:v1"), scene.repository("other/long:v1"));
    regctl(&["image", "copy", &format!("{layout}:sha512"), &first])?;
    // By its tag, and by what the registry calls it.
    ensure!(regctl(&["image", "digest", &first])? == local, "the registry calls the index something else");
    let mark = scene.asked()?.len();
    regctl(&["image", "copy", &first, &second])?;
    let asked = scene.asked_since(mark)?;
    ensure!(mounts(&asked, "other/long") >= blobs(&image), "blobs were not mounted: {asked:?}");

    let pulled = run.data_dir("pulled")?;
    regctl(&["image", "copy", &second, &format!("ocidir://{}:v1", pulled.display())])?;
    let mut found = 0;
    for entry in fs::read_dir(pulled.join("blobs/sha512"))? {
        let entry = entry?;
        let digest = Digest::of(Algorithm::Sha512, &fs::read(entry.path())?);
        ensure!(*entry.file_name() == *digest.hex(), "regctl pulled {digest} as {}", entry.path().display());
        found += 1;
    }
    // The index, and of each platform manifest, configuration and layers.
    let wanted: usize = 1 + image.platforms.iter().map(|platform| 2 + platform.layers.len()).sum::<usize>();
    ensure!(found == wanted, "{found} blobs were pulled, not {wanted}");
    scene.check()?;
    Ok(Outcome::Passed)
}

fn helm(run: &Run) -> CaseResult {
    let scene = Scene::open(run)?;
    let helm = |args: &[&str]| anyhow::Ok(printed(&scene.tools.helm()?.args(args).run(CLIENT)?));
    helm(&["create", "demo"])?;
    fs::create_dir(scene.tools.home().join("pulled"))?;
    for version in ["0.1.0", "0.2.0+build.7"] {
        helm(&["package", "demo", "--version", version])?;
        let (chart, charts) = (format!("demo-{version}.tgz"), format!("oci://{}", scene.repository("team/charts")));
        helm(&["push", &chart, &charts, "--plain-http"])?;
        helm(&["pull", &format!("{charts}/demo"), "--version", version, "--plain-http", "-d", "pulled"])?;
        let file = |folder: &str| fs::read(scene.tools.home().join(folder).join(&chart));
        ensure!(file("pulled")? == file(".")?, "chart {version} came back different");
        let shown = helm(&["show", "chart", &format!("{charts}/demo"), "--version", version, "--plain-http"])?;
        ensure!(shown.contains(&format!("version: {version}")), "helm shows {shown}");
    }
    scene.check()?;
    Ok(Outcome::Passed)
}

fn dxf(run: &Run) -> CaseResult {
    let mut scene = Scene::open(run)?;
    let name = scene.registry.name();
    let dxf = |args: &[&str]| anyhow::Ok(printed(&scene.tools.dxf(&name)?.args(args).run(CLIENT)?));
    let file = scene.tools.random_file("blob", 3_000_000)?;
    let digest = digest_of(&file)?.to_string();
    ensure!(dxf(&["push-blob", "team/files", "blob", "@first"])? == digest, "dxf pushed something else");
    let mark = scene.asked()?.len();
    ensure!(dxf(&["push-blob", "team/files", "blob"])? == digest, "dxf pushed something else");
    let asked = scene.asked_since(mark)?;
    ensure!(uploads(&asked, "team/files") == 0, "what is there was sent again: {asked:?}");
    ensure!(dxf(&["get-alias", "team/files", "first"])? == digest, "the alias names something else");
    ensure!(dxf(&["blob-size", "team/files", "@first"])? == "3000000", "the blob has another size");
    let pulled = scene.tools.dxf(&name)?.args(["pull-blob", "team/files", "@first"]).run(CLIENT)?.stdout;
    ensure!(pulled == fs::read(&file)?, "the blob came back different");

    let mark = scene.asked()?.len();
    ensure!(dxf(&["mount-blob", "other/files", "team/files", &digest, "@second"])? == digest, "nothing was mounted");
    ensure!(mounts(&scene.asked_since(mark)?, "other/files") == 1, "the blob was not mounted");
    ensure!(dxf(&["list-aliases", "other/files"])? == "second", "an alias is missing");
    ensure!(dxf(&["list-repos"])? == "other/files\nteam/files", "a repository is missing");

    dxf(&["del-alias", "team/files", "first"])?;
    let gone = scene.tools.dxf(&name)?.args(["get-alias", "team/files", "first"]);
    refused(gone, "404")?;
    ensure!(dxf(&["get-alias", "other/files", "second"])? == digest, "the other repository lost its alias");

    let config = scene.registry.config().to_owned();
    let told = format!("external_url = \"{}\"\n{}", scene.registry.url("/"), fs::read_to_string(&config)?);
    fs::write(&config, told)?;
    scene.registry.restart()?;
    let begin = scene.curl().args(["-X", "POST"]).get(&scene.registry.url("/v2/team/files/blobs/uploads/"))?;
    let location = begin.header("location").context("an upload without a location")?;
    let wanted = scene.registry.url("/v2/team/files/blobs/uploads/");
    ensure!(location.starts_with(&wanted), "external_url makes it {location}");
    let digest = digest_of(&scene.tools.random_file("late", 1_000_000)?)?.to_string();
    let push = scene.tools.dxf(&name)?.args(["push-blob", "team/files", "late"]).run(CLIENT)?;
    ensure!(printed(&push) == digest, "dxf pushed something else");
    scene.check()?;
    Ok(Outcome::Passed)
}
