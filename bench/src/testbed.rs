//! `bench testbed`: real binaries in a shaped network, all hosts download one file at the same time.

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use harness::{Cluster, Daemon, FileServer, FileServerOptions, Host, LinkSpec, Net, Proc, Run};
use serde::Serialize;

use crate::{
    fleet::{Job, Laps, at_once},
    live::{Live, say},
    measure::{counter, data_folder, digest_of, explain, hold, median, random_file, round},
    sim::{SimConfig, sim_last_over_limit},
};

/// A host's link, each way.
const HOST_BITS_PER_S: u64 = 200_000_000;
/// The seed's link and the origin's, each way.
const SEED_BITS_PER_S: u64 = 400_000_000;
/// How far apart the hosts may start.
const SPREAD_MAX: Duration = Duration::from_millis(100);
/// What a download may take, as a multiple of the limit, before it counts as hung.
const PATIENCE: f64 = 20.0;

/// Arguments of `bench testbed`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Hosts that download at the same time.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    hosts: u16,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    /// Length of the file, in megabytes of 10^6 bytes.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    megabytes: u64,
    /// Where data lies; in memory when there is room, otherwise in the folder for temporary files.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    hosts: u16,
    limit_s: f64,
    p50_over_limit: f64,
    last_over_limit: f64,
    origin_copies: f64,
    seed_copies: f64,
    duplicate_ratio: f64,
    cpu_s_per_copy: f64,
    rss_peak_mb: f64,
    sim_last_over_limit: f64,
}

/// Runs the bench and prints what came out.
///
/// # Errors
/// When something does not start, a download fails, or a file is not what the origin has.
pub fn run(args: &Args) -> Result<ExitCode> {
    ensure!(harness::is_root(), "the testbed is made of network namespaces with shaped links, which need root");
    let bytes = args.megabytes * 1_000_000;
    // Every host has a store and an output, which may be a copy; and there are the seed and the origin.
    let place = data_folder(args.folder.as_deref(), bytes * (2 * u64::from(args.hosts) + 2))?;
    say(&format!("{} hosts, {} MB, data in {place}", args.hosts, args.megabytes));
    let run = Run::new()?;
    let report = explain(&run, measure(args, bytes, &run))?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
    }
    // With more hosts the machine's processor decides, with a short file how long programs take to start.
    let as_promised = args.hosts <= 8 && args.megabytes >= 200;
    let bars = [
        ("last_over_limit", report.last_over_limit, 1.4),
        ("last_over_limit / sim_last_over_limit", round(report.last_over_limit / report.sim_last_over_limit), 1.25),
        ("origin_copies", report.origin_copies, 1.02),
        ("duplicate_ratio", report.duplicate_ratio, 0.03),
    ];
    Ok(hold(if as_promised { &bars } else { &bars[2..] }))
}

fn measure(args: &Args, bytes: u64, run: &Run) -> Result<Report> {
    let names: Vec<String> = (1..=args.hosts).map(|number| format!("host{number}")).collect();
    let mut links = vec![("origin", LinkSpec::both(SEED_BITS_PER_S)), ("seed", LinkSpec::both(SEED_BITS_PER_S))];
    links.extend(names.iter().map(|name| (name.as_str(), LinkSpec::both(HOST_BITS_PER_S))));
    let net = Net::new(&links)?;
    let mut origin = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    let digest = random_file(&origin.root().join("file"), bytes, 1)?;
    let builder =
        names.iter().fold(Cluster::builder(&net, run).supernode("seed"), |builder, name| builder.daemon(name));
    let mut cluster = builder.start()?;
    cluster.wait_sessions()?;

    let sim = SimConfig {
        hosts: args.hosts.into(),
        size_bytes: bytes,
        rate_bytes_per_s: HOST_BITS_PER_S as f64 / 8.0,
        seed_rate_bytes_per_s: SEED_BITS_PER_S as f64 / 8.0,
        origin_rate_bytes_per_s: SEED_BITS_PER_S as f64 / 8.0,
        ..SimConfig::default()
    };
    let limit_s = sim.limit_s();
    let deadline = Duration::from_secs_f64(limit_s.mul_add(PATIENCE, 10.0));

    let outputs = run.data_dir("outputs")?;
    let output = |name: &str| outputs.join(name);
    let url = origin.url("file");
    let jobs = cluster.daemons.iter().zip(&names).map(|(daemon, name)| -> Result<Job> {
        Ok(Job { name: name.clone(), program: daemon.dfget(&url, &output(name))?.arg("--json") })
    });
    let jobs: Vec<Job> = jobs.collect::<Result<_>>()?;
    let seed = net.host("seed");
    let (cpu_before, seed_before) = (cpu_of_all(&mut cluster)?, seed.counters()?);
    let laps = watched(&net, &names, bytes, jobs, deadline)?;
    let cpu = cpu_of_all(&mut cluster)? - cpu_before + laps.cpu();
    let seed_sent = seed.counters()?.since(seed_before).sent_bytes;

    ensure!(laps.spread() <= SPREAD_MAX, "the hosts started {:?} apart, not {SPREAD_MAX:?}", laps.spread());
    for name in &names {
        let found = digest_of(&output(name))?;
        ensure!(found == digest, "{name} has {found}, the origin {digest}");
        fs::remove_file(output(name))?;
    }
    let origin_bytes = origin.bytes_sent("file")?;
    origin.process().kill()?;
    let took: Vec<f64> = laps.since_first_start().map(|(_, took)| took.as_secs_f64()).collect();
    let copies = |sent: u64| round(sent as f64 / bytes as f64);
    Ok(Report {
        hosts: args.hosts,
        limit_s: round(limit_s),
        p50_over_limit: round(median(&took) / limit_s),
        last_over_limit: round(laps.last().as_secs_f64() / limit_s),
        origin_copies: copies(origin_bytes),
        seed_copies: copies(seed_sent),
        duplicate_ratio: round(duplicates(&cluster.daemons)?),
        cpu_s_per_copy: round(cpu.as_secs_f64() / f64::from(args.hosts)),
        rss_peak_mb: round(peak_of(&mut cluster)? as f64 / 1e6),
        sim_last_over_limit: sim_last_over_limit(sim),
    })
}

/// Runs the downloads under a live view.
fn watched(net: &Net, names: &[String], bytes: u64, jobs: Vec<Job>, deadline: Duration) -> Result<Laps> {
    let shown: Vec<(String, Host)> = names
        .iter()
        .map(String::as_str)
        .chain(["seed", "origin"])
        .map(|name| (name.to_owned(), net.host(name)))
        .collect();
    let live = Live::start("all hosts download at the same time", &shown, Some(bytes));
    at_once(jobs, deadline, |place| live.note(place, "finished"))
}

/// Processor time so far of everything of ours that runs.
fn cpu_of_all(cluster: &mut Cluster) -> Result<Duration> {
    let nodes = cluster.supernodes.iter_mut().chain(&mut cluster.daemons).chain(&mut cluster.config_service);
    nodes.map(|node| Proc::cpu(node.process())).sum()
}

/// The largest peak of a dfdaemon's memory, in bytes.
fn peak_of(cluster: &mut Cluster) -> Result<u64> {
    let peaks: Vec<u64> =
        cluster.daemons.iter_mut().map(|daemon| Ok(daemon.process().memory()?.peak_bytes)).collect::<Result<_>>()?;
    Ok(peaks.into_iter().max().unwrap_or(0))
}

/// Bytes that hosts received and did not need, of all they received.
fn duplicates(daemons: &[Daemon]) -> Result<f64> {
    let (mut needed, mut twice) = (0, 0);
    for daemon in daemons {
        needed += counter(daemon, "skimmer_peer_received_bytes_total")?;
        twice += counter(daemon, "skimmer_peer_duplicate_bytes_total")?;
    }
    ensure!(needed > 0, "the daemons say that nothing came from other hosts");
    Ok(twice as f64 / (needed + twice) as f64)
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} hosts; limit {:.2} s; median {:.3}, last {:.3} times the limit (simulated {:.3}); origin {:.2}, seed {:.2} copies; duplicates {:.2} %; {:.2} CPU-s a copy, at most {:.0} MB",
            self.hosts,
            self.limit_s,
            self.p50_over_limit,
            self.last_over_limit,
            self.sim_last_over_limit,
            self.origin_copies,
            self.seed_copies,
            self.duplicate_ratio * 100.0,
            self.cpu_s_per_copy,
            self.rss_peak_mb,
        )
    }
}
