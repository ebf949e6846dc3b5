//! `bench sim`.

use std::process::ExitCode;
use std::str::FromStr;

use super::{Policy, SimConfig, report};
use crate::measure::hold;

/// Arguments of `bench sim`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Hosts that download at the same time.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    hosts: u32,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    /// Neighbours the scheduler gives a host.
    #[arg(long, default_value_t = SimConfig::default().neighbours, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    neighbours: u32,
    /// Who hosts fetch from.
    #[arg(long, value_enum, default_value_t)]
    policy: Policy,
    /// Length of the file, e.g. 200MB or 1GiB.
    #[arg(long, default_value = "200MB")]
    size: Bytes,
    /// Rate of each host's link, each way, e.g. 200Mb/s.
    #[arg(long, default_value = "200Mb/s")]
    rate: Rate,
    /// Rate of the seed's link, each way.
    #[arg(long, default_value = "400Mb/s")]
    seed_rate: Rate,
    /// Rate at which the seed reads the origin; the seed's own rate when not given.
    #[arg(long)]
    origin_rate: Option<Rate>,
    /// Number that all random choices follow from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The seed holds the file when the hosts start.
    #[arg(long)]
    warm: bool,
    /// Hosts read in order rather than write to disk in any order.
    #[arg(long)]
    reader: bool,
    /// Hosts come late, leave, stall and lie, and the supernode restarts.
    #[arg(long)]
    faults: bool,
    /// Print on standard error how links and queues are used.
    #[arg(long)]
    timeline: bool,
    /// Length of a tick in microseconds; 1000 when not given, 10000 with `--policy direct`, where a run is long.
    #[arg(long, value_parser = clap::value_parser!(u64).range(100..=100_000))]
    tick_us: Option<u64>,
    /// One-way latency of every message in microseconds; at least 1000.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1_000..=10_000_000))]
    latency_us: u64,
}

/// Length of a tick when one link decides everything and the run is a thousand times as long.
const DIRECT_TICK_US: u64 = 10_000;

/// A number of bytes.
#[derive(Clone, Copy, Debug)]
struct Bytes(u64);

/// Bytes per second.
#[derive(Clone, Copy, Debug)]
struct Rate(f64);

/// Runs the simulation and prints what came out.
///
/// # Errors
/// When the outcome cannot be written as JSON.
pub fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = SimConfig {
        hosts: args.hosts as usize,
        size_bytes: args.size.0,
        rate_bytes_per_s: args.rate.0,
        seed_rate_bytes_per_s: args.seed_rate.0,
        origin_rate_bytes_per_s: args.origin_rate.unwrap_or(args.seed_rate).0,
        neighbours: args.neighbours,
        policy: args.policy,
        warm: args.warm,
        reader: args.reader,
        faults: args.faults,
        seed: args.seed,
        tick_us: args.tick_us.unwrap_or(if args.policy == Policy::Direct { DIRECT_TICK_US } else { 1_000 }),
        latency_us: args.latency_us,
        timeline: args.timeline,
        check_every_ticks: 0,
    };
    let report = report(config);
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!(
            "{} of {} hosts finished; limit {:.2} s; median {:.3}, p99 {:.3}, last {:.3} times the limit; origin {:.2}, seed {:.2} copies; duplicates {:.2} %; took {:.1} s, {} MB",
            report.finished,
            report.hosts,
            report.limit_s,
            report.p50_over_limit,
            report.p99_over_limit,
            report.last_over_limit,
            report.origin_copies,
            report.seed_copies,
            report.duplicate_ratio * 100.0,
            report.wall_s,
            report.rss_mb,
        );
    }
    let lost = ("hosts that did not finish", (report.hosts - report.finished) as f64, 0.0);
    // Of what is asked for otherwise, to see what it costs, nothing is promised.
    let as_promised = args.policy == Policy::default() && args.neighbours >= 32 && !args.faults && args.hosts >= 1000;
    let bars = [lost, ("origin_copies", report.origin_copies, 1.02), ("last_over_limit", report.last_over_limit, 1.3)];
    Ok(hold(if as_promised { &bars } else { &[] }))
}

// === impl Bytes, Rate ===

/// A number, and the unit behind it.
fn split(text: &str) -> Result<(f64, &str), String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    Ok((number, unit.trim()))
}

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split(text)?;
        let factor = match unit {
            "" | "B" => 1.0,
            "kB" | "KB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            "KiB" => 1_024.0,
            "MiB" => 1_048_576.0,
            "GiB" => 1_073_741_824.0,
            _ => return Err(format!("unknown unit {unit:?}; use B, kB, MB, GB, KiB, MiB or GiB")),
        };
        let bytes = number * factor;
        if (1.0..=1e13).contains(&bytes) { Ok(Self(bytes as u64)) } else { Err("must be 1 B to 10 TB".to_owned()) }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split(text)?;
        let factor = match unit {
            "kb/s" | "Kb/s" => 1e3 / 8.0,
            "Mb/s" => 1e6 / 8.0,
            "Gb/s" => 1e9 / 8.0,
            "B/s" => 1.0,
            "kB/s" | "KB/s" => 1e3,
            "MB/s" => 1e6,
            "MiB/s" => 1_048_576.0,
            _ => return Err(format!("unknown unit {unit:?}; use kb/s, Mb/s, Gb/s, B/s, kB/s, MB/s or MiB/s")),
        };
        let rate = number * factor;
        if (1e3..=1e11).contains(&rate) { Ok(Self(rate)) } else { Err("must be 1 kB/s to 100 GB/s".to_owned()) }
    }
}
