//! When nodes go wrong: killed, cut off, fed garbage, misconfigured.
//!
//! What the cases have in common is here: machines, files, programs that download, and the bytes they cost.

mod configuration;
mod daemons;
mod garbage;
mod links;
mod orphans;
mod supernodes;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{Daemon, FileServer, FileServerOptions, Host, LinkSpec, Net, Proc, Run};
use proto::{Algorithm, Digest};

use crate::runner::Case;

const MBIT: u64 = 1_000_000;
/// A download of some seconds, with a fault in it, on a busy machine.
const FINISH: Duration = Duration::from_secs(150);

pub(crate) fn cases() -> Vec<Case> {
    let suites = [
        supernodes::cases(),
        daemons::cases(),
        orphans::cases(),
        garbage::cases(),
        configuration::cases(),
        links::cases(),
    ];
    suites.into_iter().flatten().collect()
}

/// An origin slower than anybody else, so that its link is the bottleneck and nothing is lost on the way, and hosts.
fn net(origin_mbit: u64, others: &[(&str, u64)]) -> Result<Net> {
    let mut hosts = vec![("origin", LinkSpec::both(origin_mbit * MBIT))];
    hosts.extend(others.iter().map(|(name, mbit)| (*name, LinkSpec::both(mbit * MBIT))));
    let net = Net::new(&hosts)?;
    // The origin's log counts what was given to its kernel. With a large send buffer it would count megabytes that a
    // killed reader never got.
    net.host("origin").sysctl("net/ipv4/tcp_wmem", "4096 16384 262144")?;
    Ok(net)
}

/// nginx with a folder `p2p`, which the daemons' rule sends through P2P.
fn files(net: &Net, run: &Run) -> Result<FileServer> {
    let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    fs::create_dir(files.root().join("p2p"))?;
    Ok(files)
}

/// Random bytes in a file; the same for the same seed.
fn random_file(path: &Path, bytes: u64, seed: u64) -> Result<Digest> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut content = Vec::with_capacity(usize::try_from(bytes)?);
    while (content.len() as u64) < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend(state.to_le_bytes());
    }
    content.truncate(usize::try_from(bytes)?);
    fs::write(path, &content)?;
    Ok(Digest::of(Algorithm::Sha256, &content))
}

fn digest_of(path: &Path) -> Result<Digest> {
    let content = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(Digest::of(Algorithm::Sha256, &content))
}

/// curl on the daemon's host, through its proxy, as a program that runs beside others. It fails when the body is short.
fn proxied(run: &Run, daemon: &Daemon, url: &str, output: &Path) -> Result<Proc> {
    let curl = daemon.host().program("curl").args(["-sSf", "--noproxy", "", "--proxy"]);
    curl.arg(format!("http://{}", daemon.addr())).arg("-o").arg(output).arg(url).start(run, "curl")
}

/// Waits until the host received this much since `before`; gives the share of `total` that it was when seen.
fn wait_received(host: &Host, before: harness::Counters, wanted: f64, total: u64) -> Result<f64> {
    let end = Instant::now() + FINISH;
    loop {
        let share = host.counters()?.since(before).received_bytes as f64 / total as f64;
        if share >= wanted {
            return Ok(share);
        }
        if Instant::now() > end {
            bail!("{} received {:.0} % of the bytes and stopped", host.name(), share * 100.0);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The program ends well within [`FINISH`].
fn ends_well(proc: &mut Proc, what: &str) -> Result<()> {
    let status = proc.wait(FINISH).with_context(|| what.to_owned())?;
    ensure!(status.success(), "{what}: {status}: {}", proc.log()?.trim_end());
    Ok(())
}

fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole as f64
}

/// A fresh path in the run's folder.
fn output(run: &Run) -> Result<PathBuf> {
    Ok(run.data_dir("output")?.join("file"))
}
