//! `bench single`: dfget on one host against curl, over loopback.
//!
//! Everything runs in one network namespace, so that all sockets have the same congestion control and the loopback
//! device's counters count nothing else.

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{
    Cluster, Daemon, DaemonSpec, FileServer, FileServerOptions, Finished, Host, LinkSpec, Net, Proc, ProcBuilder, Run,
};
use proto::Digest;
use serde::Serialize;

use crate::{
    live::say,
    measure::{counter, data_folder, digest_of, explain, hold, median, random_file, round},
};

/// One transfer; on an idle machine it takes about a second.
const DEADLINE: Duration = Duration::from_secs(300);
/// Small files the local store is asked for.
const SMALL: [(&str, u64); 3] = [("1b", 1), ("64k", 64 * 1024), ("1m", 1024 * 1024)];
/// Times each of them is asked for.
const SMALL_ROUNDS: usize = 21;

/// Arguments of `bench single`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    /// Length of the file, in MiB.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    mebibytes: u64,
    /// Rounds; in each curl and both ways of dfget run one after another.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Where data lies; in memory when there is room, otherwise in the folder for temporary files.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    curl_s: f64,
    peer_s: f64,
    peer_ratio: f64,
    lone_s: f64,
    lone_ratio: f64,
    peer_cpu_s: f64,
    lone_cpu_s: f64,
    local_1b_ms: f64,
    local_64k_ms: f64,
    local_1m_ms: f64,
}

/// What everything runs on.
struct Bed<'a> {
    run: &'a Run,
    host: Host,
    origin: FileServer,
    cluster: Cluster,
    bytes: u64,
    digest: Digest,
    output: PathBuf,
}

/// Figures of one transfer, in seconds.
#[derive(Debug, Clone, Copy)]
struct Took {
    wall: f64,
    cpu: f64,
}

/// Runs the bench and prints what came out.
///
/// # Errors
/// When something does not start, a transfer fails, or its bytes did not take the way they should.
pub fn run(args: &Args) -> Result<ExitCode> {
    let bytes = args.mebibytes * 1024 * 1024;
    // The origin's, the seed's, the warm peer's, the receiver's, and an output that may be a copy.
    let place = data_folder(args.folder.as_deref(), bytes * 5)?;
    say(&format!("{} rounds of {} MiB over loopback, data in {place}", args.rounds, args.mebibytes));
    let run = Run::new()?;
    let report = explain(&run, measure(args, bytes, &run))?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    Ok(hold(&[
        ("peer_ratio", report.peer_ratio, 1.25),
        ("lone_ratio", report.lone_ratio, 1.25),
        ("local_1b_ms", report.local_1b_ms, 10.0),
        ("local_64k_ms", report.local_64k_ms, 10.0),
        ("local_1m_ms", report.local_1m_ms, 10.0),
    ]))
}

fn measure(args: &Args, bytes: u64, run: &Run) -> Result<Report> {
    let net = Net::new_or_loopback(&[("host", LinkSpec::default())])?;
    let mut bed = Bed::new(&net, run, bytes)?;
    bed.warm()?;
    let (mut curl, mut peer, mut lone) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=args.rounds {
        curl.push(bed.curl()?);
        peer.push(bed.peer()?);
        lone.push(bed.lone()?);
        let [c, p, l] = [&curl, &peer, &lone].map(|all| all.last().map_or(0.0, |took: &Took| took.wall));
        say(&format!("round {round}: curl {c:.3} s, from a peer {p:.3} s, alone {l:.3} s"));
    }
    let mut local = Vec::new();
    for (name, length) in SMALL {
        local.push(bed.local(name, length)?);
    }
    let wall = |all: &[Took]| median(&all.iter().map(|took| took.wall).collect::<Vec<_>>());
    let cpu = |all: &[Took]| median(&all.iter().map(|took| took.cpu).collect::<Vec<_>>());
    let (curl_s, peer_s, lone_s) = (wall(&curl), wall(&peer), wall(&lone));
    Ok(Report {
        curl_s: round(curl_s),
        peer_s: round(peer_s),
        peer_ratio: round(peer_s / curl_s),
        lone_s: round(lone_s),
        lone_ratio: round(lone_s / curl_s),
        peer_cpu_s: round(cpu(&peer)),
        lone_cpu_s: round(cpu(&lone)),
        local_1b_ms: round(local[0]),
        local_64k_ms: round(local[1]),
        local_1m_ms: round(local[2]),
    })
}

// === impl Bed ===

impl<'a> Bed<'a> {
    /// Place of the peer that has the file.
    const WARM: usize = 0;
    /// Place of the daemon that fetches it.
    const RECEIVER: usize = 1;

    fn new(net: &Net, run: &'a Run, bytes: u64) -> Result<Self> {
        let host = net.host("host");
        let origin = FileServer::nginx(&host, run, &FileServerOptions::default())?;
        let digest = random_file(&origin.root().join("file"), bytes, 1)?;
        // The seed talks to the first host that comes, which becomes the warm peer, and to no other.
        let extra = "[scheduler]\nseed_neighbours_max = 1\n".to_owned();
        let supernode = DaemonSpec { host: "host".into(), extra, ..DaemonSpec::default() };
        let cluster = Cluster::builder(net, run).supernode_with(supernode).daemon("host").daemon("host").start()?;
        cluster.wait_sessions()?;
        let output = run.data_dir("output")?.join("file");
        Ok(Self { run, host, origin, cluster, bytes, digest, output })
    }

    /// Lets the peer fetch the file.
    fn warm(&mut self) -> Result<()> {
        let url = self.origin.url("file");
        self.cluster.daemons[Self::WARM].dfget(&url, &self.output)?.run(DEADLINE)?;
        self.check_output("the warm peer")
    }

    fn check_output(&self, who: &str) -> Result<()> {
        let found = digest_of(&self.output)?;
        ensure!(found == self.digest, "{who} wrote {found}, the origin has {}", self.digest);
        Ok(fs::remove_file(&self.output)?)
    }

    /// curl of the file from the origin.
    fn curl(&self) -> Result<Took> {
        let curl = self.host.program("curl").args(["-sSf", "--noproxy", "*", "-o"]).arg(&self.output);
        let finished = self.counted(curl.arg(self.origin.url("file")))?;
        self.check_output("curl")?;
        Ok(Took::of(&finished))
    }

    /// dfget from the warm peer, into a store that is empty.
    fn peer(&mut self) -> Result<Took> {
        let daemon = &mut self.cluster.daemons[Self::RECEIVER];
        daemon.process().kill()?;
        fs::remove_dir_all(daemon.store()).context("cannot empty the receiver's store")?;
        daemon.restart()?;
        self.cluster.wait_sessions()?;

        let (origin, sent) = (self.origin.bytes_sent("file")?, self.uploaded()?);
        let cpu = self.cpu()?;
        let dfget = self.cluster.daemons[Self::RECEIVER].dfget(&self.origin.url("file"), &self.output)?;
        let finished = self.counted(dfget)?;
        let cpu = self.cpu()? - cpu + finished.cpu;
        ensure!(self.origin.bytes_sent("file")? == origin, "the origin was read, not the warm peer");
        let sent = self.uploaded()? - sent;
        ensure!(sent >= self.bytes, "the warm peer sent {sent} bytes of {}", self.bytes);
        self.check_output("the receiver")?;
        Ok(Took { cpu: cpu.as_secs_f64(), ..Took::of(&finished) })
    }

    /// dfget with nobody else, from the origin.
    fn lone(&self) -> Result<Took> {
        let home = self.run.data_dir("home")?;
        let dfget = self.host.program(harness::bin_dir()?.join("dfget")).arg("--no-daemon").arg("--home").arg(&home);
        let finished = self.counted(dfget.arg(self.origin.url("file")).arg("-O").arg(&self.output))?;
        self.check_output("the lone dfget")?;
        fs::remove_dir_all(home)?;
        Ok(Took::of(&finished))
    }

    /// Runs a transfer; its bytes have to be seen on the interface.
    fn counted(&self, program: ProcBuilder) -> Result<Finished> {
        let before = loopback_bytes(&self.host)?;
        let finished = program.run(DEADLINE)?;
        let seen = loopback_bytes(&self.host)? - before;
        ensure!(seen >= self.bytes, "only {seen} bytes of {} were seen on the interface", self.bytes);
        Ok(finished)
    }

    /// Median time, in milliseconds, in which dfget has a small file that the local daemon holds.
    fn local(&self, name: &str, length: u64) -> Result<f64> {
        let digest = random_file(&self.origin.root().join(name), length, length)?;
        let daemon = &self.cluster.daemons[Self::RECEIVER];
        let mut times = Vec::new();
        // The first one fetches it.
        for round in 0..=SMALL_ROUNDS {
            let finished = daemon.dfget(&self.origin.url(name), &self.output)?.run(DEADLINE)?;
            let found = digest_of(&self.output)?;
            ensure!(found == digest, "dfget wrote {found}, the origin has {digest}");
            fs::remove_file(&self.output)?;
            if round > 0 {
                times.push(finished.elapsed.as_secs_f64() * 1e3);
            }
        }
        ensure!(self.origin.bytes_sent(name)? == length, "{name} was not served from the warm store");
        Ok(median(&times))
    }

    fn uploaded(&self) -> Result<u64> {
        counter(&self.cluster.daemons[Self::WARM], "skimmer_peer_uploaded_bytes_total")
    }

    /// Processor time so far of all our programs that keep running.
    fn cpu(&mut self) -> Result<Duration> {
        let nodes = self.cluster.supernodes.iter_mut().chain(&mut self.cluster.daemons);
        nodes.map(|node: &mut Daemon| Proc::cpu(node.process())).sum()
    }
}

impl Took {
    fn of(finished: &Finished) -> Self {
        Self { wall: finished.elapsed.as_secs_f64(), cpu: finished.cpu.as_secs_f64() }
    }
}

/// What the host's loopback device has received since it was made.
fn loopback_bytes(host: &Host) -> Result<u64> {
    // The thread's, because the process is in another network.
    let text = host.inside(|| Ok(fs::read_to_string(Path::new("/proc/thread-self/net/dev"))?))?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    let received = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    received.context("the host has no loopback device")
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "curl {:.3} s; dfget from a peer {:.3} s ({:.2} times curl, {:.2} CPU-s), alone {:.3} s ({:.2} times curl, {:.2} CPU-s); from the local store 1 B {:.1} ms, 64 KiB {:.1} ms, 1 MiB {:.1} ms",
            self.curl_s,
            self.peer_s,
            self.peer_ratio,
            self.peer_cpu_s,
            self.lone_s,
            self.lone_ratio,
            self.lone_cpu_s,
            self.local_1b_ms,
            self.local_64k_ms,
            self.local_1m_ms,
        )
    }
}
