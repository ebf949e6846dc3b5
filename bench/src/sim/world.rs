//! The loop of the simulation: time, messages, alarms, faults.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::{Generation, PieceIndex, PieceSet, TaskId};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use swarm::{AnnounceConfig, AnnounceEvent, PickerConfig, SchedulerConfig, Time, UploadConfig, invariants};

use super::host::{Host, Shared, Tally, fold, id_of};
use super::message::Body;
use super::net::{Done, Net};
use super::supernode::Supernode;
use super::{Policy, SEED, SimConfig, SimResult};

/// All hosts start within this time.
const START_WITHIN_US: u64 = 100_000;
/// After a restart of the supernode daemons come back within this time.
const RETURN_WITHIN_US: u64 = 1_000_000;
/// A seed whose link idles is told so this often.
const IDLE_EVERY_TICKS: u64 = 2;
/// Lines of the timeline are so far apart.
const TIMELINE_EVERY_US: u64 = 250_000;
/// A run that takes this many times the limit, and a minute, has failed.
const GIVE_UP_FACTOR: f64 = 12.0;
const GIVE_UP_AFTER_US: u64 = 60_000_000;

/// What is done to the swarm, and when.
#[derive(Clone, Copy, Debug)]
enum Script {
    Start(usize),
    Leave(usize),
    Stall(usize),
    Resume(usize),
    SupernodeDies,
    SupernodeReturns,
    Hello(usize),
}

#[derive(Debug)]
pub(super) struct World {
    config: SimConfig,
    shared: Shared,
    net: Net,
    hosts: Vec<Host>,
    supernode: Supernode,
    script: BTreeMap<(u64, u64), Script>,
    scripted: u64,
    rng: SmallRng,
    tally: Tally,
    done: Vec<Done>,
    timeline_sent: f64,
}

impl World {
    pub(super) fn new(config: SimConfig) -> Self {
        let layout = config.layout();
        let pieces = layout.count().unwrap_or(0);
        let piece_len = layout.piece_len();
        let last = pieces.checked_sub(1).and_then(|last| layout.range(PieceIndex(last)));
        let last_len = last.and_then(|r| u32::try_from(r.end() - r.start()).ok()).unwrap_or(piece_len);
        let shared = Shared {
            task: TaskId::of_digest(&proto::Digest::of(proto::Algorithm::Sha256, b"simulated")),
            generation: Generation::unique(1),
            pieces,
            piece_len,
            last_len,
            reader: config.reader,
        };
        let rate = config.rate_bytes_per_s;
        let mut rates = vec![(config.seed_rate_bytes_per_s, config.seed_rate_bytes_per_s)];
        rates.resize(config.hosts + 1, (rate, rate));
        let net = Net::new(&rates, config.tick_us, config.latency_us);
        let direct = config.policy == Policy::Direct;
        let hosts = (0..=config.hosts).map(|at| make_host(at, &config, &shared, direct)).collect();
        let scheduler = SchedulerConfig {
            neighbours: if direct { 0 } else { config.neighbours },
            neighbours_max: if direct { 1 } else { (config.neighbours * 2).max(2) },
            seed_neighbours_max: if direct {
                u32::MAX
            } else {
                SchedulerConfig::default().seed_neighbours_max.max(config.neighbours)
            },
            seed: config.seed,
            ..SchedulerConfig::default()
        };
        let supernode = Supernode::new(scheduler, config.origin_rate_bytes_per_s);
        let rng = SmallRng::seed_from_u64(config.seed);
        Self {
            shared,
            net,
            hosts,
            supernode,
            script: BTreeMap::new(),
            scripted: 0,
            rng,
            tally: Tally::default(),
            done: Vec::new(),
            timeline_sent: 0.0,
            config,
        }
    }

    fn at(&mut self, at_us: u64, what: Script) {
        self.scripted += 1;
        self.script.insert((at_us, self.scripted), what);
    }

    fn write_script(&mut self) {
        let limit_us = (self.config.limit_s() * 1e6) as u64;
        for host in 1..=self.config.hosts {
            let mut start = self.rng.random_range(0..START_WITHIN_US);
            if self.config.faults {
                match self.rng.random_range(0..100) {
                    // One in ten comes late, one in twenty leaves, one in ten stalls, one in fifty lies.
                    0..10 => start = self.rng.random_range(0..limit_us),
                    10..15 => {
                        let at = self.rng.random_range(START_WITHIN_US..limit_us);
                        self.at(at, Script::Leave(host));
                    }
                    15..25 => {
                        let at = self.rng.random_range(START_WITHIN_US..limit_us);
                        let length = self.rng.random_range(200_000..3_000_000);
                        self.at(at, Script::Stall(host));
                        self.at(at + length, Script::Resume(host));
                    }
                    25..27 => self.hosts[host].lies = true,
                    _ => {}
                }
            }
            self.at(start, Script::Start(host));
        }
        if self.config.faults {
            self.at(limit_us / 3, Script::SupernodeDies);
            self.at(limit_us / 3 + 500_000, Script::SupernodeReturns);
        }
    }

    pub(super) fn run(mut self) -> SimResult {
        if self.config.warm {
            self.warm_up();
        }
        self.hosts[SEED].alive = true;
        self.supernode.seed_joins(&self.shared, &mut self.net, &mut self.hosts[SEED]);
        self.write_script();
        let give_up_us = GIVE_UP_AFTER_US
            + (self.config.limit_s() * GIVE_UP_FACTOR * 1e6) as u64
            + if self.config.policy == Policy::Direct { (self.config.direct_s() * 2e6) as u64 } else { 0 };
        let tick = Duration::from_micros(self.config.tick_us);
        let mut arrived = Vec::new();
        let mut ticks = 0;
        while !self.all_finished() && self.net.now().as_micros() < give_up_us {
            self.play_script();
            self.net.arrive(&mut arrived);
            for envelope in arrived.drain(..) {
                deliver(
                    &self.shared,
                    &mut self.net,
                    &mut self.hosts,
                    &mut self.supernode,
                    &mut self.tally,
                    envelope.from,
                    envelope.to,
                    envelope.body,
                );
            }
            while let Some(host) = self.net.next_wake() {
                if host == SEED && self.supernode.up {
                    self.supernode.woken(&self.shared, &mut self.net, &mut self.hosts[SEED]);
                }
                self.hosts[host].woken(&self.shared, &mut self.net);
            }
            if self.supernode.up {
                self.supernode.read_origin(&self.shared, &mut self.net, &mut self.hosts[SEED], tick);
                ticks += 1;
                if ticks % IDLE_EVERY_TICKS == 0 && self.hosts[SEED].uploader.is_idle() {
                    self.hosts[SEED].announce(&mut self.net, AnnounceEvent::Idle);
                }
            }
            if self.config.timeline && self.net.now().as_micros() % TIMELINE_EVERY_US < self.config.tick_us {
                self.print_timeline();
            }
            let mut done = std::mem::take(&mut self.done);
            self.net.flow(&mut done);
            for ended in done.drain(..) {
                self.hosts[ended.from].sent(&self.shared, &mut self.net, &ended);
            }
            self.done = done;
            if self.config.check_every_ticks > 0 && ticks % self.config.check_every_ticks == 0 {
                self.check();
            }
        }
        self.result()
    }

    /// A line for people: where the time goes.
    fn print_timeline(&mut self) {
        let (mut sent, mut idle, mut waiting, mut asked, mut pieces, mut full) = (0.0, 0, 0, 0, 0, 0);
        let hosts = &self.hosts[1..];
        for host in hosts {
            sent += self.net.carried(host.at).0;
            idle += u32::from(host.uploader.active() == 0);
            waiting += host.uploader.waiting();
            asked += host.picker.as_ref().map_or(0, swarm::Picker::outstanding);
            pieces += host.store.len();
            full += u32::from(host.finished_at.is_some());
        }
        let count = hosts.len() as f64;
        let seconds = TIMELINE_EVERY_US as f64 / 1e6;
        let used = (sent - self.timeline_sent) / (count * self.config.rate_bytes_per_s * seconds);
        self.timeline_sent = sent;
        let seed = &self.hosts[SEED];
        let mut copies: Vec<usize> =
            (0..self.shared.pieces).map(|p| hosts.iter().filter(|h| h.store.contains(PieceIndex(p))).count()).collect();
        copies.sort_unstable();
        let out = copies.iter().filter(|c| **c > 0).count();
        let copies = [0, copies.len() / 10, copies.len() / 2, copies.len().saturating_sub(1)]
            .map(|at| copies.get(at).copied().unwrap_or(0));
        eprintln!(
            "{:?} out {} uplinks {:.2} idle {:.2} waiting {:.1} asked {:.1} pieces {:.0} full {full}; seed has {} waiting {} active {}; copies {copies:?}",
            self.net.now(),
            out,
            used,
            f64::from(idle) / count,
            waiting as f64 / count,
            f64::from(asked) / count,
            f64::from(pieces) / count,
            seed.store.len(),
            seed.uploader.waiting(),
            seed.uploader.active(),
        );
    }

    fn warm_up(&mut self) {
        self.hosts[SEED].store = PieceSet::full(self.shared.pieces);
        self.hosts[SEED].announce(&mut self.net, AnnounceEvent::Count { pieces: self.shared.pieces });
        for piece in 0..self.shared.pieces {
            self.hosts[SEED].announce(&mut self.net, AnnounceEvent::Stored { piece: PieceIndex(piece) });
        }
    }

    fn all_finished(&self) -> bool {
        self.script.is_empty() && self.hosts.iter().skip(1).all(|h| h.finished_at.is_some() || !h.alive || h.lies)
    }

    fn play_script(&mut self) {
        let now = self.net.now().as_micros();
        while let Some(((at, _), what)) = self.script.first_key_value().map(|(k, v)| (*k, *v))
            && at <= now
        {
            self.script.pop_first();
            self.play(now, what);
        }
    }

    fn play(&mut self, now: u64, what: Script) {
        match what {
            Script::Start(host) => {
                self.hosts[host].alive = true;
                self.hello(host);
            }
            Script::Hello(host) => self.hello(host),
            Script::Leave(host) => self.leave(host),
            Script::Stall(host) => self.net.set_stalled(host, true),
            Script::Resume(host) => self.net.set_stalled(host, false),
            Script::SupernodeDies => {
                self.supernode.up = false;
                for host in self.hosts.iter_mut().skip(1) {
                    if std::mem::replace(&mut host.session, false) {
                        self.net.send(SEED, host.at, Body::SessionLost);
                    }
                }
            }
            Script::SupernodeReturns => {
                self.supernode.restart(&self.shared, &mut self.net, &mut self.hosts[SEED]);
                for at in 1..self.hosts.len() {
                    if self.hosts[at].alive {
                        let wait = self.rng.random_range(0..RETURN_WITHIN_US);
                        self.at(now + wait, Script::Hello(at));
                    }
                }
            }
        }
    }

    /// A session begins: hello, what is there, what is wanted.
    fn hello(&mut self, at: usize) {
        if !self.supernode.up {
            // Tried again when the supernode is back, like everybody.
            return;
        }
        let restarted = self.net.now().as_micros() > START_WITHIN_US && self.config.faults;
        let host = &mut self.hosts[at];
        if !host.alive || host.session {
            return;
        }
        host.session = true;
        let pieces = host.store.len();
        // A liar claims to hold everything as soon as nobody can know better.
        let claims = if host.lies && restarted { self.shared.pieces } else { pieces };
        self.net.send(at, SEED, Body::Hello { inventory_total: u32::from(claims > 0) });
        if claims > 0 {
            let complete = claims == self.shared.pieces;
            self.net.send(at, SEED, Body::Inventory { complete, downloading: !complete, pieces: claims });
        }
        if host.finished_at.is_none() {
            self.net.send(at, SEED, Body::Open { have_pieces: pieces });
        }
    }

    fn leave(&mut self, at: usize) {
        if !self.hosts[at].alive {
            return;
        }
        self.hosts[at].alive = false;
        let mut done = Vec::new();
        self.net.remove(at, &mut done);
        for ended in &done {
            self.hosts[ended.from].sent(&self.shared, &mut self.net, ended);
        }
        // Its kernel tells the others: a reset is a packet without a body, and what it says is not a decision.
        for other in self.hosts[at].neighbours().clone() {
            if self.hosts[other].alive {
                self.hosts[other].lose(&self.shared, &mut self.net, at);
            }
        }
        if self.supernode.up {
            self.supernode.host_left(&self.shared, &mut self.net, &mut self.hosts[SEED], at);
        }
    }

    /// The components' own invariants.
    fn check(&self) {
        for host in &self.hosts {
            let checks = [
                host.picker.as_ref().map_or(Ok(()), invariants::picker),
                invariants::announcer(&host.announcer),
                invariants::uploader(&host.uploader),
            ];
            for check in checks {
                if let Err(violation) = check {
                    panic!("{violation} at host {} at {:?}", host.at, self.net.now());
                }
            }
        }
        if let Err(violation) = invariants::scheduler(&self.supernode.scheduler) {
            panic!("{violation} at {:?}", self.net.now());
        }
    }

    fn result(mut self) -> SimResult {
        let honest: Vec<&Host> = self.hosts.iter().skip(1).filter(|h| h.alive && !h.lies).collect();
        let mut finished: Vec<f64> =
            honest.iter().filter_map(|h| h.finished_at).map(|at| at.since(Time::default()).as_secs_f64()).collect();
        finished.sort_by(f64::total_cmp);
        let size = self.config.size_bytes as f64;
        let (seed_sent, _) = self.net.carried(SEED);
        fold(&mut self.tally.trace, [self.net.events, finished.len() as u64, seed_sent as u64, 0]);
        SimResult {
            honest: honest.len(),
            finished_s: finished,
            origin_copies: self.supernode.origin_read_bytes / size,
            seed_copies: seed_sent / size,
            duplicate_ratio: self.tally.duplicate_bytes as f64 / (self.tally.received_bytes as f64).max(1.0),
            bad_accepted: self.tally.bad_accepted,
            bad_seen: self.tally.bad_seen,
            overruns: self.net.overruns,
            trace: self.tally.trace,
            simulated_s: self.net.now().since(Time::default()).as_secs_f64(),
        }
    }
}

#[expect(clippy::too_many_arguments, reason = "the parts of the world, borrowed apart from each other")]
fn deliver(
    shared: &Shared,
    net: &mut Net,
    hosts: &mut [Host],
    supernode: &mut Supernode,
    tally: &mut Tally,
    from: usize,
    to: usize,
    body: Body,
) {
    if !hosts[to].alive {
        return;
    }
    if to != SEED || body.is_between_hosts() {
        hosts[to].message(shared, net, from, body, tally);
    } else if supernode.up {
        supernode.message(shared, net, &mut hosts[SEED], from, body);
    }
}

fn make_host(at: usize, config: &SimConfig, shared: &Shared, direct: bool) -> Host {
    // The low bits of the ids are alike from host to host; what the seeds need is that they differ.
    let seed = (id_of(at).bits() >> 32) as u64 ^ config.seed.wrapping_mul(0x9e37_79b9);
    // Who is given few neighbours must not ask for more: the point is to see what few do.
    let neighbours_wanted = PickerConfig::default().neighbours_wanted.min(config.neighbours.div_ceil(2));
    let picker = (at != SEED).then(|| PickerConfig {
        piece_len_bytes: shared.piece_len,
        neighbours_wanted,
        seed,
        ..PickerConfig::default()
    });
    let announce = AnnounceConfig { seed: at == SEED && !direct, seed_bits: seed, ..AnnounceConfig::default() };
    let upload = if at == SEED { UploadConfig::for_seed() } else { UploadConfig::default() };
    Host::new(at, shared, picker, announce, upload)
}
