//! A layer of 2 GB.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::ensure;
use harness::{Host, Run};
use proto::{Algorithm, Digest};
use serde_json::json;

use super::scene::{CLIENT, Scene, digest_of};
use crate::runner::{Case, CaseResult, Outcome, anywhere};

/// Of the one file in the layer. More than 31 bits count.
const FILE_BYTES: u64 = 2_200_000_000;
/// Every so often a block of the file is random, so that all of it has to come in its order; the rest are holes.
const RANDOM_EVERY_BYTES: u64 = 50_000_000;
const RANDOM_BYTES: u64 = 1_000_000;
/// tar's blocks: the file's header before it, and two empty ones at the end.
const BLOCK_BYTES: u64 = 512;
/// What the issue allows for ten pushes at once.
const RESIDENT_BYTES_MAX: u64 = 150_000_000;

pub(super) fn cases() -> Vec<Case> {
    vec![anywhere(
        "registry: a layer of 2 GB is pushed by skopeo and pulled by crane in less than 150 MB of memory",
        large,
    )]
}

fn large(run: &Run) -> CaseResult {
    let mut scene = Scene::open(run)?;
    let folder = run.data_dir("layout")?;
    let layer = layout(&scene.host, &folder)?;
    let reference = scene.repository("team/large:v1");
    let pushed = scene.tools.copy(&format!("oci:{}:image", folder.display()), &format!("docker://{reference}"))?;
    let pulled = run.data_dir("pulled")?;
    let pull = scene.tools.crane()?.args(["pull", "--format", "oci", &reference]).arg(&pulled).run(CLIENT)?;
    let memory = scene.registry.process().memory()?;
    let found = digest_of(&pulled.join("blobs/sha256").join(layer.hex()))?;
    ensure!(found == layer, "the layer came back as {found}");
    run.note(format!(
        "push {:.1} s, pull {:.1} s, at most {} MB resident",
        pushed.elapsed.as_secs_f64(),
        pull.elapsed.as_secs_f64(),
        memory.peak_bytes / 1_000_000
    ));
    ensure!(memory.peak_bytes < RESIDENT_BYTES_MAX, "the registry had {} bytes of memory", memory.peak_bytes);
    scene.check()?;
    Ok(Outcome::Passed)
}

/// Makes an image of one bare layer, and returns the layer's digest.
fn layout(host: &Host, folder: &Path) -> anyhow::Result<Digest> {
    let blobs = folder.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let tar = tar(host, folder)?;
    let layer = digest_of(&tar)?;
    let size = fs::metadata(&tar)?.len();
    fs::rename(&tar, blobs.join(layer.hex()))?;
    let blob = |content: &serde_json::Value| -> anyhow::Result<serde_json::Value> {
        let text = content.to_string();
        let digest = Digest::of(Algorithm::Sha256, text.as_bytes());
        fs::write(blobs.join(digest.hex()), &text)?;
        Ok(json!({"digest": digest.to_string(), "size": text.len()}))
    };
    let mut config = blob(&json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.to_string()]},
    }))?;
    config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    let manifest_type = "application/vnd.oci.image.manifest.v1+json";
    let mut manifest = blob(&json!({
        "schemaVersion": 2, "mediaType": manifest_type, "config": config,
        "layers": [{"mediaType": layer_type, "digest": layer.to_string(), "size": size}],
    }))?;
    manifest["mediaType"] = manifest_type.into();
    manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "image"});
    fs::write(folder.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(layer)
}

/// An archive of one file, most of it holes, so that it costs the disk little.
fn tar(host: &Host, folder: &Path) -> anyhow::Result<PathBuf> {
    let (content, tar) = (folder.join("content"), folder.join("layer.tar"));
    File::create(&content)?.set_len(FILE_BYTES)?;
    // tar knows what a header looks like, and writes two gigabytes only if one lets it.
    let script = format!("tar -C \"$0\" -cf - content 2>/dev/null | head -c {BLOCK_BYTES} >\"$1\"");
    host.program("sh").args(["-c", &script]).arg(folder).arg(&tar).run(CLIENT)?;
    fs::remove_file(&content)?;
    let mut file = OpenOptions::new().write(true).open(&tar)?;
    let random = File::open("/dev/urandom")?;
    for start in (BLOCK_BYTES..FILE_BYTES - RANDOM_BYTES).step_by(RANDOM_EVERY_BYTES as usize) {
        file.seek(SeekFrom::Start(start))?;
        std::io::copy(&mut (&random).take(RANDOM_BYTES), &mut file)?;
    }
    file.set_len(BLOCK_BYTES + FILE_BYTES.next_multiple_of(BLOCK_BYTES) + 2 * BLOCK_BYTES)?;
    Ok(tar)
}
