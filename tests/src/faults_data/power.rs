//! Power loss: what was not synced is zeros after the restart, what the rows say is still there.

use std::{fs, os::unix::fs::FileExt, path::Path};

use anyhow::{Context, ensure};
use harness::{Daemon, FileServer, FileServerOptions, Run};

use super::probe::{self, SETTLE, proxied, same};
use crate::runner::{CaseResult, Outcome};

/// In bytes: 256 pieces of 64 KiB.
const LENGTH: usize = 16 << 20;
/// Slow enough to be caught in the middle.
const RATE_BYTES_PER_S: u64 = 4 << 20;
/// Unsynced pages, in runs of this many bytes with as many good ones between: no multiple of a piece.
const RUN_BYTES: usize = 4096 * 5;

/// Which bytes are lost.
#[derive(Clone, Copy, Debug)]
enum Lost {
    All,
    Runs,
    SecondHalf,
}

fn lose(path: &Path, lost: Lost) -> anyhow::Result<u64> {
    let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len() as usize;
    let mut zeroed = 0;
    for (number, at) in (0..length).step_by(RUN_BYTES).enumerate() {
        let gone = match lost {
            Lost::All => true,
            Lost::Runs => number % 2 == 0,
            Lost::SecondHalf => at >= length / 4,
        };
        if gone {
            let count = RUN_BYTES.min(length - at);
            let mut before = vec![0; count];
            file.read_exact_at(&mut before, at as u64)?;
            zeroed += before.iter().filter(|byte| **byte != 0).count() as u64;
            file.write_all_at(&vec![0; count], at as u64)?;
        }
    }
    Ok(zeroed)
}

fn crash(node: &mut Daemon, lost: Lost) -> anyhow::Result<u64> {
    node.process().kill()?;
    let mut zeroed = 0;
    for path in probe::stored(node) {
        zeroed += lose(&path, lost)?;
    }
    node.restart()?;
    Ok(zeroed)
}

pub(super) fn daemon(run: &Run) -> CaseResult {
    for (number, lost) in [Lost::All, Lost::Runs, Lost::SecondHalf].into_iter().enumerate() {
        let net = probe::net(&["h1", "h2"])?;
        let options = FileServerOptions { rate_bytes_per_s: Some(RATE_BYTES_PER_S), ..FileServerOptions::default() };
        let files = FileServer::nginx(&net.host("origin"), run, &options)?;
        fs::create_dir(files.root().join("p2p"))?;
        let content = probe::content(LENGTH, 60 + number as u64);
        fs::write(files.root().join("p2p/file"), &content)?;
        let url = files.url("p2p/file");
        let mut cluster = probe::cluster(&net, run, &["h1", "h2"], "", "")?;
        let interrupted = begin(run, &cluster.daemons[0], &url)?;
        // Far enough that rows were written, too.
        let enough = LENGTH as u64 / 2;
        probe::wait_until("half of it was read", SETTLE, || Ok(received(&cluster.daemons[0])? > enough))?;
        let zeroed = crash(&mut cluster.daemons[0], lost)?;
        drop(interrupted);
        ensure!(zeroed > 1 << 20, "only {zeroed} bytes were there to be lost: nothing was tested");
        // A neighbour may ask it before its own user does.
        same(&proxied(&cluster.daemons[1]).get(&url)?.body, &content).with_context(|| format!("{lost:?}, h2"))?;
        same(&proxied(&cluster.daemons[0]).get(&url)?.body, &content).with_context(|| format!("{lost:?}, h1"))?;
        let bad = probe::metric(&cluster.daemons[1], "skimmer_peer_bad_pieces_total")?;
        ensure!(bad == 0, "{bad} bad pieces were served after the loss ({lost:?})");
    }
    Ok(Outcome::Passed)
}

pub(super) fn seed(run: &Run) -> CaseResult {
    for (number, lost) in [Lost::All, Lost::Runs].into_iter().enumerate() {
        let net = probe::net(&["h1", "h2"])?;
        let options = FileServerOptions { rate_bytes_per_s: Some(RATE_BYTES_PER_S), ..FileServerOptions::default() };
        let files = FileServer::nginx(&net.host("origin"), run, &options)?;
        fs::create_dir(files.root().join("p2p"))?;
        let content = probe::content(LENGTH, 70 + number as u64);
        fs::write(files.root().join("p2p/file"), &content)?;
        let url = files.url("p2p/file");
        let mut cluster = probe::cluster(&net, run, &["h1", "h2"], "", "")?;
        let interrupted = begin(run, &cluster.daemons[0], &url)?;
        probe::wait_until("half of it was read", SETTLE, || Ok(received(&cluster.daemons[0])? > LENGTH as u64 / 2))?;
        let zeroed = crash(&mut cluster.supernodes[0], lost)?;
        drop(interrupted);
        ensure!(zeroed > 1 << 20, "only {zeroed} bytes were there to be lost: nothing was tested");
        for daemon in &cluster.daemons {
            same(&proxied(daemon).get(&url)?.body, &content)
                .with_context(|| format!("{lost:?}, {}", daemon.host().name()))?;
            let bad = probe::metric(daemon, "skimmer_peer_bad_pieces_total")?;
            ensure!(bad == 0, "{bad} bad pieces came to {} after the loss ({lost:?})", daemon.host().name());
        }
    }
    Ok(Outcome::Passed)
}

/// What is whole and durable survives as it is: the origin is not read again.
pub(super) fn finished_stays(run: &Run) -> CaseResult {
    let net = probe::net(&["h1"])?;
    let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    fs::create_dir(files.root().join("p2p"))?;
    let content = probe::content(LENGTH, 80);
    fs::write(files.root().join("p2p/file"), &content)?;
    let url = files.url("p2p/file");
    let mut cluster = probe::cluster(&net, run, &["h1"], "", "")?;
    same(&proxied(&cluster.daemons[0]).get(&url)?.body, &content)?;
    // The row follows the reader's last byte by the time of a sync.
    std::thread::sleep(std::time::Duration::from_secs(2));
    let (sent, before) = (files.bytes_sent("p2p/file")?, received(&cluster.daemons[0])?);
    ensure!(before >= LENGTH as u64, "{before} bytes came from peers");
    cluster.daemons[0].process().kill()?;
    cluster.daemons[0].restart()?;
    same(&proxied(&cluster.daemons[0]).get(&url)?.body, &content)?;
    let again = (files.bytes_sent("p2p/file")? - sent, received(&cluster.daemons[0])?);
    ensure!(again == (0, 0), "after a kill, {again:?} bytes came again from origin and peers");
    Ok(Outcome::Passed)
}

fn begin(run: &Run, daemon: &Daemon, url: &str) -> anyhow::Result<harness::Proc> {
    let curl = daemon.host().program("curl").args(["-sS", "-o", "/dev/null", "--noproxy", "", "--proxy"]);
    curl.arg(format!("http://{}", daemon.addr())).arg(url).start(run, "interrupted")
}

fn received(daemon: &Daemon) -> anyhow::Result<u64> {
    probe::metric(daemon, "skimmer_peer_received_bytes_total")
}
