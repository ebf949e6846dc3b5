//! Sixteen hosts whose supernodes are all gone.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{Cluster, DaemonSpec, FileServer, LinkSpec, Net, Proc, Run};
use proto::Digest;

use super::{FINISH, MBIT, digest_of, ends_well, files, output, proxied, random_file, ratio, wait_received};
use crate::runner::{Case, CaseResult, Outcome, rooted};

const HOSTS: usize = 16;
const RUNNING_BYTES: u64 = 40_000_000;
const HELD_BYTES: u64 = 8_000_000;
const NEW_BYTES: u64 = 6_000_000;
/// Hosts that hold a file before the supernodes go.
const HOLDERS: usize = 4;
const DELAY_MIN: Duration = Duration::from_secs(2);
const DELAY_MAX: Duration = Duration::from_secs(5);
const RATE_BYTES_PER_S: u64 = 2_000_000;
/// "At once", on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(5);
/// dfget's exit code when nobody has it and the origin must not be asked.
const NO_PEER: i32 = 10;

pub(super) fn cases() -> Vec<Case> {
    vec![
        rooted("faults: all supernodes gone, 16 hosts: running downloads finish from the peers they have", running),
        rooted(
            "faults: all supernodes gone, 16 hosts: new downloads ask neighbours, then the origin late and slowly",
            new_ones,
        ),
    ]
}

struct Bed {
    names: Vec<String>,
    net: Net,
}

impl Bed {
    fn new() -> Result<Self> {
        let names: Vec<String> = (0..HOSTS).map(|number| format!("h{number}")).collect();
        let mut hosts = vec![
            ("origin", LinkSpec::both(400 * MBIT)),
            ("s0", LinkSpec::both(200 * MBIT)),
            ("s1", LinkSpec::both(200 * MBIT)),
        ];
        hosts.extend(names.iter().map(|name| (name.as_str(), LinkSpec::both(50 * MBIT))));
        let net = Net::new(&hosts)?;
        net.host("origin").sysctl("net/ipv4/tcp_wmem", "4096 16384 262144")?;
        Ok(Self { names, net })
    }

    fn cluster(&self, run: &Run) -> Result<Cluster> {
        let mut builder = Cluster::builder(&self.net, run).supernode("s0").supernode("s1");
        let extra = format!(
            "\n[source]\norphan_rate = \"{RATE_BYTES_PER_S}B/s\"\norphan_delay_min = \"{}s\"\norphan_delay_max = \"{}s\"\n",
            DELAY_MIN.as_secs(),
            DELAY_MAX.as_secs()
        );
        for name in &self.names {
            builder =
                builder.daemon_with(DaemonSpec { host: name.clone(), extra: extra.clone(), ..DaemonSpec::default() });
        }
        let cluster = builder.start()?;
        cluster.wait_sessions()?;
        Ok(cluster)
    }
}

fn kill_supernodes(cluster: &mut Cluster) -> Result<()> {
    for supernode in &mut cluster.supernodes {
        supernode.process().kill()?;
    }
    Ok(())
}

/// Every one of these hosts starts to download the URL.
fn all_download(run: &Run, cluster: &Cluster, hosts: &[String], url: &str) -> Result<Vec<(Proc, PathBuf)>> {
    let start = |name: &String| {
        let output = output(run)?;
        Ok((proxied(run, cluster.daemon_on(name), url, &output)?, output))
    };
    hosts.iter().map(start).collect()
}

fn all_end(downloads: &mut [(Proc, PathBuf)], digest: &Digest) -> Result<()> {
    for (proc, output) in downloads {
        let host = proc.host().name().to_owned();
        ends_well(proc, &format!("curl on {host}"))?;
        ensure!(digest_of(output)? == *digest, "the file on {host} is not the origin's");
    }
    Ok(())
}

fn running(run: &Run) -> CaseResult {
    let bed = Bed::new()?;
    let files = files(&bed.net, run)?;
    let digest = random_file(&files.root().join("p2p/running"), RUNNING_BYTES, 300)?;
    let mut cluster = bed.cluster(run)?;
    let last = bed.net.host("h15");
    let before = last.counters()?;
    let mut downloads = all_download(run, &cluster, &bed.names, &files.url("p2p/running"))?;
    let share = wait_received(&last, before, 0.6, RUNNING_BYTES)?;
    kill_supernodes(&mut cluster)?;
    let killed = Instant::now();
    all_end(&mut downloads, &digest)?;
    let copies = ratio(files.bytes_sent("p2p/running")?, RUNNING_BYTES);
    run.note(format!(
        "killed when h15 had {:.0} %, all 16 finished {:.1} s later, origin copies {copies:.3}",
        share * 100.0,
        killed.elapsed().as_secs_f64()
    ));
    // The seed was ahead of everybody, and its neighbours have between them all that it gave away.
    ensure!(copies <= 1.10, "the origin was read {copies:.3} times");
    Ok(Outcome::Passed)
}

fn new_ones(run: &Run) -> CaseResult {
    let bed = Bed::new()?;
    let files = files(&bed.net, run)?;
    let held = random_file(&files.root().join("p2p/held"), HELD_BYTES, 301)?;
    let new = random_file(&files.root().join("p2p/new"), NEW_BYTES, 302)?;
    let meeting = random_file(&files.root().join("p2p/meeting"), NEW_BYTES, 303)?;
    let mut cluster = bed.cluster(run)?;
    // All hosts get to know each other by one file, some hold another.
    all_end(&mut all_download(run, &cluster, &bed.names, &files.url("p2p/meeting"))?, &meeting)?;
    all_end(&mut all_download(run, &cluster, &bed.names[..HOLDERS], &files.url("p2p/held"))?, &held)?;
    let read_before = files.bytes_sent("p2p/held")?;
    kill_supernodes(&mut cluster)?;

    // What neighbours have comes from them.
    let started = Instant::now();
    all_end(&mut all_download(run, &cluster, &bed.names[HOLDERS..2 * HOLDERS], &files.url("p2p/held"))?, &held)?;
    let read_again = files.bytes_sent("p2p/held")? - read_before;
    run.note(format!(
        "held by neighbours: {:.1} s, {read_again} bytes from the origin",
        started.elapsed().as_secs_f64()
    ));
    ensure!(read_again == 0, "{read_again} bytes that neighbours have were read from the origin");

    never_origin(run, &cluster, &bed, &files)?;
    late_and_slowly(run, &cluster, &bed, &files, &new)?;
    Ok(Outcome::Passed)
}

/// With the origin forbidden a download that nobody has fails at once.
fn never_origin(run: &Run, cluster: &Cluster, bed: &Bed, files: &FileServer) -> Result<()> {
    let daemon = cluster.daemon_on(&bed.names[HOSTS - 1]);
    let dfget = daemon.dfget(&files.url("p2p/new"), &output(run)?)?.arg("--disable-back-to-source");
    let finished = dfget.output(FINISH).context("dfget --disable-back-to-source")?;
    let code = finished.status.code();
    run.note(format!("--disable-back-to-source: exit {code:?} after {:.2} s", finished.elapsed.as_secs_f64()));
    ensure!(code == Some(NO_PEER), "exit code {code:?}, not {NO_PEER}: {}", finished.stderr.trim());
    ensure!(finished.elapsed < AT_ONCE, "it took {:?}", finished.elapsed);
    ensure!(files.bytes_sent("p2p/new")? == 0, "the origin was read");
    Ok(())
}

/// What nobody has comes from the origin, after a delay, at the orphans' rate.
fn late_and_slowly(run: &Run, cluster: &Cluster, bed: &Bed, files: &FileServer, new: &Digest) -> Result<()> {
    let hosts = &bed.names[2 * HOLDERS..3 * HOLDERS];
    let started = Instant::now();
    let mut downloads = all_download(run, cluster, hosts, &files.url("p2p/new"))?;
    let origin = bed.net.host("origin");
    let before = origin.counters()?;
    // A share of the origin's own bytes tells when the first host began to read it.
    let end = started + FINISH;
    let began = loop {
        if origin.counters()?.since(before).sent_bytes > 100_000 {
            break started.elapsed();
        }
        ensure!(Instant::now() < end, "nobody read the origin");
        std::thread::sleep(Duration::from_millis(20));
    };
    all_end(&mut downloads, new)?;
    let took = started.elapsed();
    let copies = ratio(files.bytes_sent("p2p/new")?, NEW_BYTES);
    run.note(format!(
        "held by nobody: read from {:.2} s on, {} hosts done after {:.2} s, origin copies {copies:.2}",
        began.as_secs_f64(),
        hosts.len(),
        took.as_secs_f64()
    ));
    ensure!(began >= DELAY_MIN.mul_f64(0.95), "the origin was read after {began:?}, before {DELAY_MIN:?}");
    ensure!(
        began <= DELAY_MAX + Duration::from_secs(5),
        "the origin was read after {began:?}, long after {DELAY_MAX:?}"
    );
    // Several hosts may share the work, each at its own rate.
    let share = NEW_BYTES as f64 / hosts.len() as f64 / RATE_BYTES_PER_S as f64;
    let fastest = began.as_secs_f64() + share * 0.9;
    ensure!(
        took.as_secs_f64() >= fastest,
        "done after {took:?}, faster than the orphans' rate allows ({fastest:.1} s)"
    );
    Ok(())
}
