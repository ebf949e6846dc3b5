//! The testbed keeps its word: rates hold, cut links are cut, what was started ends. Without this the other suites
//! would measure nothing.

use std::time::{Duration, Instant};

use anyhow::ensure;
use harness::{Curl, FileServer, FileServerOptions, LinkSpec, Net, Run};

use crate::runner::{Case, CaseResult, Outcome, rooted};

const MBIT: u64 = 1_000_000;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        rooted("testbed: a link's rate holds within 10 % each way, and changes while traffic flows", rates_hold),
        rooted("testbed: a cut link is cut, a restored one goes on", cut_and_restored),
        rooted("testbed: what was started ends, with its children, and so do the namespaces", everything_ends).alone(),
    ]
}

fn rates_hold(run: &Run) -> CaseResult {
    let net = Net::new(&[("origin", LinkSpec::default()), ("host", LinkSpec::both(80 * MBIT))])?;
    let (origin, host) = (net.host("origin"), net.host("host"));
    let files = FileServer::nginx(&origin, run, &FileServerOptions::default())?;
    let bytes = 20_000_000;
    std::fs::write(files.root().join("file"), vec![7; bytes as usize])?;
    for (rate, link) in [
        (80 * MBIT, None),
        (40 * MBIT, Some(LinkSpec { up_bits_per_s: Some(80 * MBIT), down_bits_per_s: Some(40 * MBIT) })),
    ] {
        if let Some(link) = link {
            host.set_link(link)?;
        }
        let before = host.counters()?;
        let reply = Curl::new(&host).output("/dev/null").get(&files.url("file"))?;
        let counted = host.counters()?.since(before);
        let got = counted.received_bytes as f64 * 8.0 / reply.elapsed.as_secs_f64();
        let ratio = got / rate as f64;
        ensure!((0.9..=1.1).contains(&ratio), "{got:.0} bits per second came over a link of {rate}");
        ensure!((bytes..bytes * 11 / 10).contains(&counted.received_bytes), "counted {counted:?} for {bytes} bytes");
    }
    // The other way: the host is the one that sends.
    let files = FileServer::nginx(&host, run, &FileServerOptions::default())?;
    std::fs::write(files.root().join("file"), vec![7; bytes as usize])?;
    let reply = Curl::new(&origin).output("/dev/null").get(&files.url("file"))?;
    let got = bytes as f64 * 8.0 / reply.elapsed.as_secs_f64();
    ensure!(
        (0.85..=1.1).contains(&(got / (80 * MBIT) as f64)),
        "{got:.0} bits per second left by a link of {}",
        80 * MBIT
    );
    Ok(Outcome::Passed)
}

fn cut_and_restored(run: &Run) -> CaseResult {
    let net = Net::new(&[("origin", LinkSpec::default()), ("host", LinkSpec::default())])?;
    let (origin, host) = (net.host("origin"), net.host("host"));
    let files = FileServer::nginx(&origin, run, &FileServerOptions::default())?;
    std::fs::write(files.root().join("file"), "hello")?;
    let get = || Curl::new(&host).max_time(Duration::from_secs(2)).get(&files.url("file"));
    ensure!(get()?.body == b"hello", "wrong content");
    host.cut()?;
    ensure!(get().is_err(), "a cut link carried an answer");
    host.restore()?;
    let end = Instant::now() + Duration::from_secs(5);
    while get().is_err() {
        ensure!(Instant::now() < end, "the restored link does not carry anything");
    }
    let card = host.add_card(1)?;
    ensure!(card != host.ip(), "the second card has the first one's address");
    Ok(Outcome::Passed)
}

fn everything_ends(run: &Run) -> CaseResult {
    let net = Net::new(&[("host", LinkSpec::default())])?;
    let host = net.host("host");
    // Unlikely enough to be found again.
    let mut sleeper = host.program("sh").args(["-c", "sleep 86399.25 & wait"]).start(run, "sleeper")?;
    let count = || -> anyhow::Result<usize> {
        let found = Net::loopback(&["here"]).host("here").program("pgrep").args(["-fc", "^sleep 86399.25"]);
        let found = found.output(Duration::from_secs(5))?;
        Ok(String::from_utf8_lossy(&found.stdout).trim().parse()?)
    };
    sleeper.wait_until("child", Duration::from_secs(5), |_| count().is_ok_and(|count| count == 1))?;
    ensure!(sleeper.memory()?.peak_bytes > 0, "no memory was measured");
    let first = sleeper.pid();
    sleeper.restart()?;
    ensure!(sleeper.pid() != first, "it was not started anew");
    sleeper.wait_until("child", Duration::from_secs(5), |_| count().is_ok_and(|count| count == 1))?;
    ensure!(sleeper.wait(Duration::from_millis(50)).is_err(), "waiting has no deadline");
    drop(sleeper);
    ensure!(count()? == 0, "a child of a dropped program lives");
    drop((host, net));
    let mine = format!("skimmer-{}-", std::process::id());
    let left = std::fs::read_dir("/run/netns")?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(&mine));
    ensure!(left.count() == 0, "namespaces are left");
    Ok(Outcome::Passed)
}
