//! The simulated supernode: the production scheduler, the hashes it pushes, and the origin that feeds its seed.

use std::collections::BTreeSet;
use std::time::Duration;

use proto::{HostId, PieceIndex, PieceSet};
use swarm::{
    AnnounceEvent, HostFacts, InventoryItem, Scheduler, SchedulerAction, SchedulerConfig, SchedulerEvent, Time,
};

use super::host::{Host, Shared, id_of};
use super::message::Body;
use super::net::Net;
use super::{SEED, index_of};

/// Hashes that became known within this time go to the hosts in one message.
const HASHES_EVERY: Duration = Duration::from_millis(50);
/// Time from the lease to the first byte of the origin.
const ORIGIN_DELAY: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(super) struct Supernode {
    pub(super) scheduler: Scheduler,
    config: SchedulerConfig,
    wake: Option<Time>,
    openers: BTreeSet<usize>,
    hashed: PieceSet,
    unpushed: PieceSet,
    push_at: Option<Time>,
    origin: Option<Origin>,
    origin_bytes_per_s: f64,
    pub(super) origin_read_bytes: f64,
    pub(super) up: bool,
}

/// A read of the origin under way.
#[derive(Debug)]
struct Origin {
    next: u32,
    have: f64,
    begins: Time,
}

impl Supernode {
    pub(super) fn new(config: SchedulerConfig, origin_bytes_per_s: f64) -> Self {
        Self {
            scheduler: Scheduler::new(config.clone(), Time::default(), Some(0)),
            config,
            wake: None,
            openers: BTreeSet::new(),
            hashed: PieceSet::new(),
            unpushed: PieceSet::new(),
            push_at: None,
            origin: None,
            origin_bytes_per_s,
            origin_read_bytes: 0.0,
            up: true,
        }
    }

    /// The seed is part of the supernode: it joins first, and tells what it holds.
    pub(super) fn seed_joins(&mut self, shared: &Shared, net: &mut Net, seed: &mut Host) {
        let host = id_of(SEED);
        let facts = HostFacts { seed: true, ..HostFacts::default() };
        self.schedule(shared, net, seed, SchedulerEvent::HostJoined { host, facts, inventory_total: 1 });
        let pieces = seed.store.len();
        let item = InventoryItem {
            task: shared.task,
            generation: shared.generation,
            complete: pieces == shared.pieces,
            downloading: false,
            pieces,
        };
        let items = if pieces == 0 { Vec::new() } else { vec![item] };
        self.hashed = seed.store.clone();
        self.schedule(shared, net, seed, SchedulerEvent::Inventory { host, items, last: true });
    }

    /// Killed and started again: what is in memory is lost, the seed's store is not.
    pub(super) fn restart(&mut self, shared: &Shared, net: &mut Net, seed: &mut Host) {
        let mut config = self.config.clone();
        config.seed ^= 0x5a5a;
        self.scheduler = Scheduler::new(config, net.now(), None);
        self.wake = None;
        self.openers.clear();
        self.unpushed = PieceSet::new();
        self.push_at = None;
        self.origin = None;
        self.up = true;
        self.seed_joins(shared, net, seed);
    }

    pub(super) fn schedule(&mut self, shared: &Shared, net: &mut Net, seed: &mut Host, event: SchedulerEvent) {
        let mut actions = Vec::new();
        self.scheduler.handle(net.now(), event, &mut actions);
        for action in actions {
            match action {
                SchedulerAction::Opened { host, .. } => {
                    let to = index_of(host);
                    self.openers.insert(to);
                    net.send(SEED, to, Body::Opened { hashes: self.hashed.clone() });
                }
                SchedulerAction::Peers { host, peers, .. } => {
                    let (seeds, peers): (Vec<HostId>, Vec<HostId>) = peers.into_iter().partition(|p| *p == id_of(SEED));
                    net.send(SEED, index_of(host), Body::Peers { peers, seeds });
                }
                SchedulerAction::StartSeed { .. } => self.start_seed(shared, net, seed),
                SchedulerAction::Refuse { host, .. } | SchedulerAction::Discard { host, .. } => {
                    self.openers.remove(&index_of(host));
                }
                // What honest hosts keep is right, and liars do not care.
                SchedulerAction::Verify { .. } => {}
                SchedulerAction::SeedPeers { .. } | SchedulerAction::Forget { .. } => {}
                SchedulerAction::WakeAt(at) => {
                    self.wake = Some(at);
                    net.wake_at(SEED, at);
                }
            }
        }
    }

    fn start_seed(&mut self, shared: &Shared, net: &mut Net, seed: &mut Host) {
        let complete = seed.store.len() == shared.pieces;
        if !complete && self.origin.is_none() {
            let next = seed.store.first_absent(PieceIndex(0)).0;
            self.origin = Some(Origin { next, have: 0.0, begins: net.now() + ORIGIN_DELAY });
        }
        seed.announce(net, AnnounceEvent::Count { pieces: shared.pieces });
        let (task, generation) = (shared.task, shared.generation);
        let opened = SchedulerEvent::SeedOpened { task, generation, complete, pieces: Some(shared.pieces) };
        self.schedule(shared, net, seed, opened);
    }

    /// What the origin sends in a tick.
    pub(super) fn read_origin(&mut self, shared: &Shared, net: &mut Net, seed: &mut Host, tick: Duration) {
        let now = net.now();
        let Some(origin) = &mut self.origin else { return };
        if now < origin.begins {
            return;
        }
        let mut bytes = self.origin_bytes_per_s * tick.as_secs_f64();
        let mut stored = Vec::new();
        while origin.next < shared.pieces {
            let missing = f64::from(shared.len_of(origin.next)) - origin.have;
            let part = bytes.min(missing);
            self.origin_read_bytes += part;
            origin.have += part;
            bytes -= part;
            if part < missing {
                break;
            }
            stored.push(PieceIndex(origin.next));
            origin.have = 0.0;
            origin.next += 1;
        }
        let ended = origin.next >= shared.pieces;
        for piece in stored {
            seed.store.insert(piece);
            self.hashed.insert(piece);
            self.unpushed.insert(piece);
            seed.announce(net, AnnounceEvent::Stored { piece });
        }
        if !self.unpushed.is_empty() && self.push_at.is_none() {
            self.push_at = Some(now + HASHES_EVERY);
        }
        if ended {
            self.origin = None;
            self.push_hashes(net);
            let (task, generation) = (shared.task, shared.generation);
            let complete = SchedulerEvent::SeedComplete { task, generation, pieces: shared.pieces };
            self.schedule(shared, net, seed, complete);
        } else if self.push_at.is_some_and(|at| at <= now) {
            self.push_hashes(net);
        }
    }

    fn push_hashes(&mut self, net: &mut Net) {
        self.push_at = None;
        let pieces = std::mem::take(&mut self.unpushed);
        if pieces.is_empty() {
            return;
        }
        for host in &self.openers {
            net.send(SEED, *host, Body::Hashes { pieces: pieces.clone() });
        }
    }

    pub(super) fn woken(&mut self, shared: &Shared, net: &mut Net, seed: &mut Host) {
        if self.wake.is_some_and(|at| at <= net.now()) {
            self.wake = None;
            self.schedule(shared, net, seed, SchedulerEvent::Tick);
        }
    }

    /// A message of a host's session.
    pub(super) fn message(&mut self, shared: &Shared, net: &mut Net, seed: &mut Host, from: usize, body: Body) {
        let host = id_of(from);
        let (task, generation) = (shared.task, shared.generation);
        let event = match body {
            Body::Hello { inventory_total } => {
                // Four data centres of unequal size.
                let idc = ["north", "north", "south", "east", "west"][from % 5].to_owned();
                let facts = HostFacts { idc, ..HostFacts::default() };
                SchedulerEvent::HostJoined { host, facts, inventory_total }
            }
            Body::Inventory { complete, downloading, pieces } => {
                let items = vec![InventoryItem { task, generation, complete, downloading, pieces }];
                SchedulerEvent::Inventory { host, items, last: true }
            }
            Body::Open { have_pieces } => SchedulerEvent::Open {
                host,
                task,
                have: (have_pieces > 0).then_some(generation),
                have_pieces,
                content_addressed: true,
                never_origin: false,
                seed_lacks: false,
                priority: 6,
            },
            Body::Close { complete } => {
                self.openers.remove(&from);
                SchedulerEvent::Close { host, task, complete }
            }
            Body::Progress { pieces, neighbours } => {
                SchedulerEvent::Progress { host, task, generation, pieces, neighbours }
            }
            Body::NeedPeers { wanted, unreachable } => {
                SchedulerEvent::NeedPeers { host, task, generation, wanted, unreachable }
            }
            Body::BadPiece { piece, from } => {
                SchedulerEvent::BadPiece { reporter: host, task, generation, piece: PieceIndex(piece), from }
            }
            _ => return,
        };
        self.schedule(shared, net, seed, event);
    }

    pub(super) fn host_left(&mut self, shared: &Shared, net: &mut Net, seed: &mut Host, gone: usize) {
        self.openers.remove(&gone);
        self.schedule(shared, net, seed, SchedulerEvent::HostLeft { host: id_of(gone) });
    }
}
