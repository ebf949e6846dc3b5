//! A dfdaemon killed in the middle of downloads, and started again.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use harness::{Cluster, Compression, Content, Docker, DockerOptions, Image, Net, Registry, RegistryAuth, Run};

use super::{FINISH, digest_of, ends_well, files, net, output, random_file, wait_received};
use crate::runner::{Case, CaseResult, Outcome, rooted};

const ORIGIN_MBIT: u64 = 160;
const FILE_BYTES: u64 = 120_000_000;
const LAYERS: [u64; 3] = [60_000_000, 40_000_000, 20_000_000];
/// Shares of the bytes after which the daemon is killed.
const POINTS: [f64; 4] = [0.15, 0.4, 0.65, 0.85];
/// How long it stays away: less than the 5 s that dfget must bridge.
const AWAY: [Duration; 4] =
    [Duration::from_millis(200), Duration::from_secs(1), Duration::from_secs(3), Duration::from_millis(4500)];

pub(super) fn cases() -> Vec<Case> {
    vec![
        rooted("faults: dfdaemon killed and restarted within 5 s: dfget continues by itself", dfget),
        rooted("faults: dfdaemon killed and restarted within 5 s: a repeated docker pull finishes", docker),
    ]
}

/// What may be fetched again: 2 % of the task or 16 MiB, and what the kernel adds to bytes on a link.
fn again_max(bytes: u64) -> u64 {
    (bytes / 50).max(16 << 20) + bytes / 50
}

fn dfget(run: &Run) -> CaseResult {
    let net = net(ORIGIN_MBIT, &[("s0", 400), ("a", 200)])?;
    let files = files(&net, run)?;
    let mut problems = Vec::new();
    for (number, (point, away)) in POINTS.into_iter().zip(AWAY).enumerate() {
        let round = || -> Result<String> {
            let name = format!("p2p/{number}");
            let digest = random_file(&files.root().join(&name), FILE_BYTES, number as u64 + 100)?;
            let mut cluster = Cluster::builder(&net, run).supernode("s0").daemon("a").start()?;
            cluster.wait_sessions()?;
            let (host, output) = (net.host("a"), output(run)?);
            let before = host.counters()?;
            let mut dfget = cluster.daemon("a").dfget(&files.url(&name), &output)?.start(run, "dfget")?;
            let share = wait_received(&host, before, point, FILE_BYTES)?;
            kill_and_restart(&mut cluster, away)?;
            ends_well(&mut dfget, "dfget")?;
            ensure!(digest_of(&output)? == digest, "the file is not the origin's");
            told(share, away, host.counters()?.since(before).received_bytes, FILE_BYTES)
        };
        report(run, &mut problems, &format!("dfget at {:.0} %", point * 100.0), round());
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(Outcome::Passed)
}

fn docker(run: &Run) -> CaseResult {
    let net = net(ORIGIN_MBIT, &[("s0", 400), ("a", 200)])?;
    let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Open, None)?;
    let mut problems = Vec::new();
    for (number, (point, away)) in POINTS.into_iter().zip(AWAY).enumerate() {
        let round = docker_round(run, &net, &registry, number as u64, point, away);
        report(run, &mut problems, &format!("docker at {:.0} %", point * 100.0), round);
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(Outcome::Passed)
}

fn docker_round(run: &Run, net: &Net, registry: &Registry, number: u64, point: f64, away: Duration) -> Result<String> {
    let mut builder = Image::builder().seed(number + 200);
    for bytes in LAYERS {
        builder = builder.layer(bytes, Compression::None, Content::Random);
    }
    let image = builder.build(run)?;
    let bytes = image.pulled_bytes()?;
    let reference = image.push(registry, "team/app", &format!("v{number}"))?;
    let mut cluster = Cluster::builder(net, run).supernode("s0").daemon("a").upstream(registry).start()?;
    cluster.wait_sessions()?;
    let host = net.host("a");
    let options = DockerOptions {
        insecure: vec![registry.name().to_owned()],
        proxy: Some(format!("http://{}", cluster.daemon("a").addr())),
        ..DockerOptions::default()
    };
    let docker = Docker::start(&host, run, &options)?;
    let before = host.counters()?;
    let mut pull = docker.pulling(&reference).start(run, "docker-pull")?;
    let share = wait_received(&host, before, point, bytes)?;
    kill_and_restart(&mut cluster, away)?;
    // The first pull may fail or not; the second one must not.
    let first = pull.wait(FINISH).context("the interrupted pull")?;
    docker.pull(&reference, FINISH).context("the repeated pull")?.verify(&image)?;
    let text = told(share, away, host.counters()?.since(before).received_bytes, bytes)?;
    Ok(format!("{text}; the interrupted pull ended with {first}"))
}

fn kill_and_restart(cluster: &mut Cluster, away: Duration) -> Result<()> {
    let daemon = cluster.daemon("a");
    daemon.process().kill()?;
    std::thread::sleep(away);
    daemon.restart()
}

fn told(share: f64, away: Duration, received: u64, bytes: u64) -> Result<String> {
    let again = received.saturating_sub(bytes);
    let text =
        format!("killed at {:.1} % for {away:?}, {again} bytes more than the {bytes} were received", share * 100.0);
    ensure!((0.1..0.9).contains(&share), "{text}: not between 10 and 90 %");
    ensure!(again <= again_max(bytes), "{text}: more than {}", again_max(bytes));
    Ok(text)
}

pub(super) fn report(run: &Run, problems: &mut Vec<String>, what: &str, result: Result<String>) {
    match result {
        Ok(text) => run.note(format!("{what}: {text}")),
        Err(error) => {
            run.note(format!("{what}: FAILED: {error:#}"));
            problems.push(format!("{what}: {error:#}"));
        }
    }
}
