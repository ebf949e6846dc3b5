//! The swarm simulator: the production scheduler, pickers, announcers and uploaders on simulated links.
//!
//! Time goes in ticks of a millisecond or two. In each, the messages that have arrived are handled, alarms ring, new
//! messages leave, and pieces flow through what the messages left of the links, shared max-min. Nothing here decides
//! who asks whom for what: that is crate `swarm`, as it runs in production. No host sees another's state except by a
//! message, which takes at least the latency and costs its bytes on both links.
//!
//! Rates are those at which bytes of the content can pass; headers of the packets that carry pieces are not counted,
//! those of messages are.

pub mod cli;
mod host;
mod message;
mod net;
mod supernode;
mod world;

use std::time::Instant;

use proto::{HostId, PieceLayout};
use serde::Serialize;

use world::World;

/// Place of the supernode and its seed among the nodes.
const SEED: usize = 0;

/// Who hosts fetch from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Policy {
    /// Each other.
    #[default]
    P2p,
    /// The seed alone.
    Direct,
}

/// What to simulate.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Hosts that download; the seed is not counted.
    pub hosts: usize,
    /// Length of the content.
    pub size_bytes: u64,
    /// Rate of each host's link, each way.
    pub rate_bytes_per_s: f64,
    /// Rate of the seed's link, each way.
    pub seed_rate_bytes_per_s: f64,
    /// Rate at which the seed can read the origin.
    pub origin_rate_bytes_per_s: f64,
    /// Neighbours the scheduler gives a host.
    pub neighbours: u32,
    /// Who hosts fetch from.
    pub policy: Policy,
    /// The seed holds everything when the hosts start.
    pub warm: bool,
    /// Hosts read in order (a window ahead of the reader) rather than write to disk in any order.
    pub reader: bool,
    /// Hosts come late, leave, stall and lie, and the supernode restarts.
    pub faults: bool,
    /// For all random choices.
    pub seed: u64,
    /// Length of a tick, in microseconds.
    pub tick_us: u64,
    /// One-way latency of every message, in microseconds.
    pub latency_us: u64,
    /// Print on standard error how links and queues are used.
    pub timeline: bool,
    /// The components' invariants are checked every so many ticks; 0 = never.
    pub check_every_ticks: u64,
}

/// What came out, as measured.
#[derive(Clone, Debug)]
pub struct SimResult {
    /// Hosts that were honest and stayed.
    pub honest: usize,
    /// When each of those finished, in seconds since the first could start, sorted.
    pub finished_s: Vec<f64>,
    /// Times the content was read from the origin.
    pub origin_copies: f64,
    /// Times the content left the seed, messages included.
    pub seed_copies: f64,
    /// Bytes received twice, of all received.
    pub duplicate_ratio: f64,
    /// Pieces that were taken although they were bad, or could not be checked.
    pub bad_accepted: u64,
    /// Bad pieces that were found out.
    pub bad_seen: u64,
    /// Windows of 100 ms in which a link carried more than its rate.
    pub overruns: u64,
    /// A hash of everything that happened.
    pub trace: u64,
    /// Time that passed in the simulation.
    pub simulated_s: f64,
}

/// The line that `bench sim --json` prints.
#[derive(Clone, Debug, Serialize)]
pub struct SimReport {
    /// Hosts that download.
    pub hosts: usize,
    /// The physical limit, in seconds.
    pub limit_s: f64,
    /// Median finish, as a multiple of the limit.
    pub p50_over_limit: f64,
    /// Finish of all but one in a hundred.
    pub p99_over_limit: f64,
    /// Finish of the last host.
    pub last_over_limit: f64,
    /// Times the content was read from the origin.
    pub origin_copies: f64,
    /// Times the content left the seed.
    pub seed_copies: f64,
    /// Bytes received twice, of all received.
    pub duplicate_ratio: f64,
    /// Honest hosts that finished.
    pub finished: usize,
    /// What the simulation took.
    pub wall_s: f64,
    /// Peak memory of the simulation.
    pub rss_mb: u64,
}

/// Runs a simulation.
#[must_use]
pub fn run(config: SimConfig) -> SimResult {
    World::new(config).run()
}

/// Runs a simulation and sums it up.
#[must_use]
pub fn report(config: SimConfig) -> SimReport {
    let began = Instant::now();
    let (hosts, limit_s) = (config.hosts, config.limit_s());
    let result = run(config);
    let over = |share: f64| {
        // A host that has not finished is not hidden by those that have.
        let at = (result.honest as f64 * share).ceil() as usize;
        at.checked_sub(1).and_then(|at| result.finished_s.get(at)).map_or(f64::INFINITY, |s| round(s / limit_s))
    };
    SimReport {
        hosts,
        limit_s: round(limit_s),
        p50_over_limit: over(0.5),
        p99_over_limit: over(0.99),
        last_over_limit: over(1.0),
        origin_copies: round(result.origin_copies),
        seed_copies: round(result.seed_copies),
        duplicate_ratio: round(result.duplicate_ratio),
        finished: result.finished_s.len(),
        wall_s: round(began.elapsed().as_secs_f64()),
        rss_mb: peak_rss_mb(),
    }
}

/// The last host's finish over the limit, for a run without faults: what other benches compare themselves with.
#[must_use]
pub fn sim_last_over_limit(config: SimConfig) -> f64 {
    report(config).last_over_limit
}

fn round(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// The high-water mark of this process's memory; 0 where the system does not tell.
fn peak_rss_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok()).map_or(0, |kb| kb / 1024)
}

fn host_id(at: usize) -> HostId {
    host::id_of(at)
}

fn index_of(host: HostId) -> usize {
    // The low 32 bits are the place, by `id_of`.
    (host.bits() & 0xffff_ffff) as usize
}

// === impl SimConfig ===

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            hosts: 1_000,
            size_bytes: 200_000_000,
            rate_bytes_per_s: 25e6,
            seed_rate_bytes_per_s: 50e6,
            origin_rate_bytes_per_s: 50e6,
            neighbours: swarm::SchedulerConfig::default().neighbours,
            policy: Policy::P2p,
            warm: false,
            reader: false,
            faults: false,
            seed: 1,
            tick_us: 1_000,
            latency_us: 1_000,
            timeline: false,
            check_every_ticks: 0,
        }
    }
}

impl SimConfig {
    fn layout(&self) -> PieceLayout {
        PieceLayout::of_length(Some(self.size_bytes))
    }

    /// The shortest time in which all hosts can have the content: T* = max(F/s, F/d, N·F/(s + N·u)).
    #[must_use]
    pub fn limit_s(&self) -> f64 {
        let (size, hosts) = (self.size_bytes as f64, self.hosts as f64);
        let (seed, host) = (self.seed_rate_bytes_per_s, self.rate_bytes_per_s);
        (size / seed).max(size / host).max(hosts * size / hosts.mul_add(host, seed))
    }

    /// The time in which the seed alone can serve all: N·F/s.
    #[must_use]
    pub fn direct_s(&self) -> f64 {
        self.size_bytes as f64 * self.hosts as f64 / self.seed_rate_bytes_per_s
    }
}
