//! What happens to clients while the registry gets a new certificate, or is stopped.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use harness::{Authority, Curl, Proc, Run, Signal};

use super::scene::{CLIENT, OPEN, Scene, digest_of, one_platform};
use crate::runner::{Case, CaseResult, Outcome, anywhere};

const BLOB_BYTES: u64 = 40_000_000;
/// So that a transfer of the blob takes about four seconds, whatever the kernel buffers.
const RATE: &str = "10M";
/// The last request has ended, and the process after it.
const STOP: Duration = Duration::from_secs(20);

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere(
            "registry: a replaced certificate is seen by new connections after SIGHUP, and disturbs no other",
            certificate,
        ),
        anywhere("registry: after SIGTERM a slow pull and a slow push end well, and nobody else gets in", drain),
    ]
}

/// Pushes random bytes, and returns the file and the blob's URL.
fn push_blob(scene: &Scene, base: &str, ca: Option<&Path>) -> anyhow::Result<(PathBuf, String)> {
    let file = scene.tools.random_file("blob", BLOB_BYTES)?;
    let digest = digest_of(&file)?;
    let curl = ca.into_iter().fold(scene.curl(), Curl::ca);
    let post = curl.args(["-X", "POST", "--data-binary"]).args([format!("@{}", file.display())]);
    let reply = post.get(&format!("{base}/v2/team/files/blobs/uploads/?digest={digest}"))?;
    ensure!(reply.status == 201, "the blob was not taken: {}", reply.status);
    Ok((file, format!("{base}/v2/team/files/blobs/{digest}")))
}

/// A curl that the caller waits for.
fn slow(scene: &Scene, run: &Run, name: &str, args: &[&str], ca: Option<&Path>) -> anyhow::Result<Proc> {
    let curl = scene.host.program("curl").args(["-sS", "--fail", "--noproxy", "*", "--limit-rate", RATE]);
    let curl = ca.into_iter().fold(curl, |curl, ca| curl.arg("--cacert").arg(ca));
    curl.args(args).start(run, name)
}

fn certificate(run: &Run) -> CaseResult {
    let (old, new) = (Authority::new(&run.data_dir("old")?)?, Authority::new(&run.data_dir("new")?)?);
    let folder = run.data_dir("tls")?;
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let install = |authority: &Authority, ip| -> anyhow::Result<()> {
        let issued = authority.issue("registry", &["registry.test"], &[ip])?;
        fs::copy(&issued.cert, &cert)?;
        fs::copy(&issued.key, &key)?;
        Ok(())
    };
    let mut scene = Scene::start(run, |host| {
        install(&old, host.ip())?;
        Ok(format!("{OPEN}[tls]\ncert = \"{}\"\nkey = \"{}\"\n", cert.display(), key.display()))
    })?;
    let base = format!("https://{}", scene.registry.name());
    let ping = |scene: &Scene, authority: &Authority| {
        let reply = scene.curl().ca(authority.path()).get(&format!("{base}/v2/"));
        reply.is_ok_and(|reply| reply.status == 200)
    };
    ensure!(ping(&scene, &old) && !ping(&scene, &new), "the certificate is not the first one");
    let (file, url) = push_blob(&scene, &base, Some(old.path()))?;
    let copy = scene.tools.home().join("copy");
    let output = copy.display().to_string();
    let mut download = slow(&scene, run, "download", &["-o", &output, &url], Some(old.path()))?;
    download.wait_until("bytes", CLIENT, |_| fs::metadata(&copy).is_ok_and(|file| file.len() > 0))?;

    install(&new, scene.host.ip())?;
    ensure!(ping(&scene, &old), "the certificate was replaced before anybody said so");
    scene.registry.process().signal(Signal::HUP)?;
    let end = Instant::now() + STOP;
    while !ping(&scene, &new) {
        ensure!(Instant::now() < end, "new connections do not get the new certificate");
        thread::sleep(Duration::from_millis(20));
    }
    ensure!(!ping(&scene, &old), "a new connection got the old certificate");
    ensure!(download.is_running()?, "the download was over before the certificate was replaced");
    let status = download.wait(CLIENT)?;
    ensure!(status.success(), "the download of before ended with {status}");
    ensure!(digest_of(&copy)? == digest_of(&file)?, "the download came out different");

    // HTTP/2, as skopeo speaks it over TLS.
    let image = one_platform(run)?;
    let (tools, reference) = (scene.tools.trusting(new.path()), scene.repository("team/app:v1"));
    tools.push(&image, &reference)?;
    tools.pulls_whole(run, &reference, &image)?;
    scene.check()?;
    Ok(Outcome::Passed)
}

fn drain(run: &Run) -> CaseResult {
    let mut scene = Scene::open(run)?;
    let base = scene.registry.url("");
    let (file, url) = push_blob(&scene, &base, None)?;
    let copy = scene.tools.home().join("copy");
    let output = copy.display().to_string();
    let mut download = slow(&scene, run, "download", &["-o", &output, &url], None)?;
    let second = scene.tools.random_file("second", BLOB_BYTES)?;
    let digest = digest_of(&second)?;
    let target = format!("{base}/v2/team/files/blobs/uploads/?digest={digest}");
    let (data, answer) = (format!("@{}", second.display()), scene.tools.home().join("answer"));
    let sent = answer.display().to_string();
    let args = ["-X", "POST", "-H", "Expect:", "-o", "/dev/null", "-D", &sent, "--data-binary", &data, &target];
    let mut upload = slow(&scene, run, "upload", &args, None)?;
    download.wait_until("bytes", CLIENT, |_| fs::metadata(&copy).is_ok_and(|file| file.len() > 0))?;
    // The upload says nothing before its end; half a second of its four.
    thread::sleep(Duration::from_millis(500));
    ensure!(download.is_running()? && upload.is_running()?, "they are over before the registry is stopped");

    scene.registry.process().signal(Signal::TERM)?;
    let end = Instant::now() + STOP;
    while scene.curl().get(&format!("{base}/v2/")).is_ok() {
        ensure!(Instant::now() < end, "new clients still get in");
        thread::sleep(Duration::from_millis(20));
    }
    ensure!(download.is_running()? && upload.is_running()?, "they were over before the registry let nobody in");
    let (down, up) = (download.wait(CLIENT)?, upload.wait(CLIENT)?);
    ensure!(down.success() && digest_of(&copy)? == digest_of(&file)?, "the slow pull ended with {down}");
    ensure!(up.success(), "the slow push ended with {up}");
    let head = fs::read_to_string(&answer)?;
    ensure!(head.starts_with("HTTP/1.1 201"), "the slow push was answered {head}");
    let status = scene.registry.process().wait(STOP).context("it does not stop")?;
    ensure!(status.success(), "it stopped with {status}");

    // What was pushed last is there.
    scene.registry.restart()?;
    let blob = scene.curl().args(["--head"]).get(&format!("{base}/v2/team/files/blobs/{digest}"))?;
    ensure!(blob.status == 200, "the pushed blob is gone: {}", blob.status);
    scene.check()?;
    Ok(Outcome::Passed)
}
