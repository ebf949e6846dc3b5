//! Who may talk to whom, and who may read the origin: one scheduler per supernode.

mod blame;
mod faults;
mod graph;
mod lease;
mod task;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proto::{Generation, HostId, PieceIndex, TaskId};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::Time;
use blame::Blame;
use graph::Rules;
use task::{Opener, Task};

/// Limits and tunables of a [`Scheduler`].
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Neighbours a host is given for a task.
    pub neighbours: u32,
    /// Neighbours a host may have for a task at most, given and taken.
    pub neighbours_max: u32,
    /// Hosts that talk to the seed directly, for one task.
    pub seed_neighbours_max: u32,
    /// After a start no lease is granted for so long, unless most hosts that were known have said hello.
    pub lease_grace: Duration,
    /// A lease must be used within this time or is granted anew.
    pub lease_ttl: Duration,
    /// Leases granted per second at most, over all tasks.
    pub leases_per_s: u32,
    /// A host reported by this many different hosts for bad pieces is given to nobody any more.
    pub bad_reports_max: u32,
    /// A task nobody opened or holds is forgotten after so long.
    pub task_idle: Duration,
    /// For the random choices.
    pub seed: u64,
}

/// What the scheduler needs to know of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// It is a seed (ours, or a sibling supernode's).
    pub seed: bool,
    /// Data centre.
    pub idc: String,
    /// `a|b|c`.
    pub location: String,
    /// Upload limit in bytes per second, 0 = unlimited.
    pub upload_bytes_per_s: u64,
}

/// One line of a host's inventory: possession, nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InventoryItem {
    /// The task.
    pub task: TaskId,
    /// The generation it holds.
    pub generation: Generation,
    /// It holds all pieces.
    pub complete: bool,
    /// It is fetching the rest at this moment.
    pub downloading: bool,
    /// Pieces it holds.
    pub pieces: u32,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum SchedulerEvent {
    /// A host's session began; `inventory_total` items follow.
    HostJoined {
        /// Who.
        host: HostId,
        /// What it is.
        facts: HostFacts,
        /// Inventory items it will tell.
        inventory_total: u32,
    },
    /// A page of a host's inventory.
    Inventory {
        /// Whose.
        host: HostId,
        /// What it holds.
        items: Vec<InventoryItem>,
        /// No more pages follow.
        last: bool,
    },
    /// A host's session ended.
    HostLeft {
        /// Who.
        host: HostId,
    },
    /// A host wants a task.
    Open {
        /// Who.
        host: HostId,
        /// What.
        task: TaskId,
        /// The generation it holds, to be confirmed.
        have: Option<Generation>,
        /// Pieces of it that it holds.
        have_pieces: u32,
        /// Content named by its digest: a known generation needs no confirmation by the origin.
        content_addressed: bool,
        /// The origin must not be read for this host.
        never_origin: bool,
        /// Our own seed does not hold the generation any more: it has evicted it.
        seed_lacks: bool,
        /// 0 to 6; 6 is usual.
        priority: u32,
    },
    /// A host no longer wants a task.
    Close {
        /// Who.
        host: HostId,
        /// What.
        task: TaskId,
        /// It keeps the task whole and serves it.
        complete: bool,
    },
    /// A host tells how far it is.
    Progress {
        /// Who.
        host: HostId,
        /// What.
        task: TaskId,
        /// Of which generation.
        generation: Generation,
        /// Pieces it holds.
        pieces: u32,
        /// Neighbours it is connected to.
        neighbours: u32,
    },
    /// A host wants more neighbours.
    NeedPeers {
        /// Who.
        host: HostId,
        /// For what.
        task: TaskId,
        /// Of which generation.
        generation: Generation,
        /// How many.
        wanted: u32,
        /// Given before, but not to be reached.
        unreachable: Vec<HostId>,
    },
    /// A host was served a bad piece.
    BadPiece {
        /// Who reports it.
        reporter: HostId,
        /// The task.
        task: TaskId,
        /// The generation.
        generation: Generation,
        /// The piece.
        piece: PieceIndex,
        /// Who served it.
        from: HostId,
    },
    /// Our seed knows the task's current generation: the origin (or a sibling) has confirmed it.
    SeedOpened {
        /// The task.
        task: TaskId,
        /// Its current generation.
        generation: Generation,
        /// The seed holds all pieces.
        complete: bool,
        /// Pieces in the content, once known.
        pieces: Option<u32>,
    },
    /// Our seed holds everything.
    SeedComplete {
        /// The task.
        task: TaskId,
        /// The generation.
        generation: Generation,
        /// Pieces in the content.
        pieces: u32,
    },
    /// Our seed could not go on: with this waiting host's credentials, or at all.
    SeedFailed {
        /// The task.
        task: TaskId,
        /// The host whose credentials were used.
        on_behalf_of: HostId,
        /// The origin refused the credentials (401, 403): another waiting host's may do.
        credentials_refused: bool,
    },
    /// The content proved wrong (digest mismatch, two roots for a generation).
    Quarantine {
        /// The task.
        task: TaskId,
        /// The generation.
        generation: Generation,
    },
    /// The moment of a [`SchedulerAction::WakeAt`] has come.
    Tick,
}

/// Why a host does not get a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefuseReason {
    /// The seed failed; the supernode knows the origin's answer.
    SeedFailed,
    /// The origin must not be read for this host and nobody holds the task.
    NeverOrigin,
    /// The task is in quarantine.
    Quarantined,
}

/// What should be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SchedulerAction {
    /// Tell a host that its task is open: metadata and the hashes known so far. More hashes go to it as they come,
    /// until it closes the task or leaves.
    Opened {
        /// Whom.
        host: HostId,
        /// Which task.
        task: TaskId,
        /// Of which generation.
        generation: Generation,
    },
    /// Give a host neighbours, in addition to those given before.
    Peers {
        /// Whom.
        host: HostId,
        /// For which task.
        task: TaskId,
        /// Of which generation.
        generation: Generation,
        /// The neighbours.
        peers: Vec<HostId>,
    },
    /// Let our seed open the task, with this waiting host's credentials. For a URL the origin confirms the generation;
    /// what peers already hold is fetched from them, the rest from the origin.
    StartSeed {
        /// The task.
        task: TaskId,
        /// Whose credentials to use.
        on_behalf_of: HostId,
        /// Hosts that hold pieces of it, for the seed to fetch from.
        holders: Vec<HostId>,
    },
    /// Give our running seed further hosts to fetch from.
    SeedPeers {
        /// The task.
        task: TaskId,
        /// The generation.
        generation: Generation,
        /// The hosts.
        peers: Vec<HostId>,
    },
    /// Tell a host that it does not get the task.
    Refuse {
        /// Whom.
        host: HostId,
        /// Which task.
        task: TaskId,
        /// Why.
        why: RefuseReason,
    },
    /// Tell a host to throw away what it holds.
    Discard {
        /// Whom.
        host: HostId,
        /// Which task.
        task: TaskId,
        /// Of which generation.
        generation: Generation,
    },
    /// Let a host hash its own copy again: another one says that it served a bad piece of it.
    Verify {
        /// Whom.
        host: HostId,
        /// Which task.
        task: TaskId,
        /// Of which generation.
        generation: Generation,
    },
    /// The task is of no interest to anyone any more: forget what is kept of it.
    Forget {
        /// The task.
        task: TaskId,
    },
    /// Send a [`SchedulerEvent::Tick`] at this moment; replaces the moment asked for before.
    WakeAt(Time),
}

/// Decides for one cluster.
///
/// The first host that joins with [`HostFacts::seed`] is taken for our own seed; further ones are siblings'.
/// Neighbours are neighbours both ways: both ends are told, as far as they are downloading.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    rng: SmallRng,
    started: Time,
    expected_hosts: Option<u32>,
    hosts: BTreeMap<HostId, Host>,
    own_seed: Option<HostId>,
    inventories_done: u32,
    tasks: BTreeMap<TaskId, Task>,
    /// Tasks that wait for our seed to start, the first to be served first.
    queue: BTreeSet<((u32, u64), TaskId)>,
    /// When leases granted in the past are paid for, at the configured rate.
    lease_paid_at: Time,
    starting: BTreeSet<(Time, TaskId)>,
    idle: BTreeSet<(Time, TaskId)>,
    blame: Blame,
    orders: u64,
    /// New neighbours, told together when an event has been dealt with.
    news: BTreeMap<(HostId, TaskId), Vec<HostId>>,
    /// New neighbours of hosts that were taken by others, told later: those others turn to them anyway.
    late_news: BTreeMap<(HostId, TaskId), Vec<HostId>>,
    late_news_at: Option<Time>,
    armed: Option<Time>,
}

#[derive(Debug)]
struct Host {
    facts: HostFacts,
    tasks: BTreeSet<TaskId>,
    /// Never true of a seed: hosts are counted by it.
    inventory_done: bool,
}

/// Tasks a host may hold and open; what it tells beyond is ignored.
const TASKS_PER_HOST_MAX: usize = 100_000;
/// Hosts named to our seed for one task; more add nothing to its speed.
const SEED_HOLDERS_MAX: usize = 32;
/// A host that others were given as a neighbour hears from them directly; their names follow after this time, in one
/// message rather than in dozens, for those that could not reach it.
const TAKEN_TOLD_AFTER: Duration = Duration::from_millis(500);
/// Unreachable hosts believed in one message.
const UNREACHABLE_MAX: usize = 256;

// === impl SchedulerConfig ===

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            // 4 cost 40 % over the physical limit, 32 cost 7 % (measured for 1,000 hosts).
            neighbours: 32,
            // Those that came first are taken by those that come later: twice as many must fit.
            neighbours_max: 64,
            // Enough hands for first copies; everybody else gets them from those.
            seed_neighbours_max: 48,
            // Longer than daemons take to come back to a restarted supernode.
            lease_grace: Duration::from_secs(5),
            lease_ttl: Duration::from_secs(30),
            leases_per_s: 50,
            bad_reports_max: 3,
            task_idle: Duration::from_secs(600),
            seed: 0,
        }
    }
}

// === impl Scheduler ===

impl Scheduler {
    /// A scheduler that knows nobody. `expected_hosts` = how many hosts were known before the restart, when that is
    /// known: once most of them have told their inventories, leases are granted without waiting any longer
    /// (`Some(0)` = nobody can hold anything, as at a first start).
    #[must_use]
    pub fn new(config: SchedulerConfig, now: Time, expected_hosts: Option<u32>) -> Self {
        let rng = SmallRng::seed_from_u64(config.seed);
        Self {
            config,
            rng,
            started: now,
            expected_hosts,
            hosts: BTreeMap::new(),
            own_seed: None,
            inventories_done: 0,
            tasks: BTreeMap::new(),
            queue: BTreeSet::new(),
            lease_paid_at: now,
            starting: BTreeSet::new(),
            idle: BTreeSet::new(),
            blame: Blame::default(),
            orders: 0,
            news: BTreeMap::new(),
            late_news: BTreeMap::new(),
            late_news_at: None,
            armed: None,
        }
    }

    /// Hosts with a session.
    #[must_use]
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Tasks known of.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// A host is given to nobody because several others reported it.
    #[must_use]
    pub fn is_excluded(&self, host: HostId) -> bool {
        self.blame.excluded().contains(&host)
    }

    /// Takes what happened and appends what should be done.
    pub fn handle(&mut self, now: Time, event: SchedulerEvent, actions: &mut Vec<SchedulerAction>) {
        match event {
            SchedulerEvent::HostJoined { host, facts, inventory_total } => self.joined(host, facts, inventory_total),
            SchedulerEvent::Inventory { host, items, last } => self.inventory(now, host, &items, last, actions),
            SchedulerEvent::HostLeft { host } => self.left(now, host),
            SchedulerEvent::Open {
                host,
                task,
                have,
                have_pieces,
                content_addressed,
                never_origin,
                seed_lacks,
                priority,
            } => {
                self.orders += 1;
                let opener = Opener {
                    order: self.orders,
                    waiting: true,
                    never_origin,
                    content_addressed,
                    priority,
                    refused: false,
                    have,
                    have_pieces,
                };
                if seed_lacks {
                    self.seed_lacks(host, task);
                }
                self.open(now, host, task, opener, actions);
            }
            SchedulerEvent::Close { host, task, complete } => self.close(now, host, task, complete),
            SchedulerEvent::Progress { host, task, generation, pieces, neighbours: _ } => {
                let known = self.tasks.get(&task).and_then(|t| t.graph.get(host));
                let complete = known.is_some_and(|m| m.complete && m.generation == generation);
                let item = InventoryItem { task, generation, complete, downloading: true, pieces };
                self.note(now, host, &item);
            }
            SchedulerEvent::NeedPeers { host, task, generation, wanted, unreachable } => {
                self.need_peers(host, task, generation, wanted, &unreachable);
            }
            SchedulerEvent::BadPiece { reporter, task, generation, piece: _, from } => {
                self.bad_piece(reporter, task, generation, from, actions);
            }
            SchedulerEvent::SeedOpened { task, generation, complete, pieces } => {
                self.seed_opened(now, task, generation, complete, pieces, actions);
            }
            SchedulerEvent::SeedComplete { task, generation, pieces } => {
                self.seed_opened(now, task, generation, true, Some(pieces), actions);
            }
            SchedulerEvent::SeedFailed { task, on_behalf_of, credentials_refused } => {
                self.seed_failed(now, task, on_behalf_of, credentials_refused, actions);
            }
            SchedulerEvent::Quarantine { task, generation } => self.quarantine(now, task, generation, actions),
            SchedulerEvent::Tick => self.armed = None,
        }
        self.run_timers(now, actions);
        self.start_seeds(now, actions);
        self.tell_news(now, actions);
        self.arm(now, actions);
    }

    fn joined(&mut self, host: HostId, facts: HostFacts, inventory_total: u32) {
        if facts.seed && self.own_seed.is_none() {
            self.own_seed = Some(host);
        }
        // A second session of a host replaces what it told in the first.
        let inventory_done = inventory_total == 0 && !facts.seed;
        self.inventories_done += u32::from(inventory_done);
        let old = self.hosts.insert(host, Host { facts, tasks: BTreeSet::new(), inventory_done });
        if let Some(old) = old {
            self.inventories_done -= u32::from(old.inventory_done);
            if let Some(new) = self.hosts.get_mut(&host) {
                new.tasks = old.tasks;
            }
        }
    }

    fn inventory(
        &mut self,
        now: Time,
        host: HostId,
        items: &[InventoryItem],
        last: bool,
        actions: &mut Vec<SchedulerAction>,
    ) {
        for item in items {
            self.note(now, host, item);
            self.tell_seed_holders(item.task, actions);
        }
        if last
            && let Some(known) = self.hosts.get_mut(&host)
            && !known.facts.seed
            && !std::mem::replace(&mut known.inventory_done, true)
        {
            self.inventories_done += 1;
        }
    }

    /// A host holds, or fetches, a task.
    fn note(&mut self, now: Time, host: HostId, item: &InventoryItem) {
        let Some(known) = self.hosts.get_mut(&host) else { return };
        if known.tasks.len() >= TASKS_PER_HOST_MAX && !known.tasks.contains(&item.task) {
            return;
        }
        known.tasks.insert(item.task);
        let task = self.tasks.entry(item.task).or_default();
        if Some(host) == self.own_seed {
            task.seed_holds = item.pieces > 0;
        } else if known.facts.seed {
            if task.generation.is_none_or(|g| g == item.generation) && item.pieces > 0 {
                task.graph.add_seed(host);
            }
        } else {
            let member = task.graph.join(host, item.generation, &known.facts);
            member.pieces = item.pieces;
            member.complete = item.complete;
            member.downloading = item.downloading && !item.complete;
        }
        self.mark_idle(now, item.task);
    }

    fn left(&mut self, now: Time, host: HostId) {
        let Some(gone) = self.hosts.remove(&host) else { return };
        self.inventories_done -= u32::from(gone.inventory_done);
        self.blame.forget(host);
        if self.own_seed == Some(host) {
            self.own_seed = None;
        }
        for id in gone.tasks {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            task.openers.remove(&host);
            task.holders_told.remove(&host);
            task.graph.leave(host);
            task.graph.remove_seed(host);
            self.mark_idle(now, id);
        }
    }

    fn open(&mut self, now: Time, host: HostId, id: TaskId, opener: Opener, actions: &mut Vec<SchedulerAction>) {
        let Some(known) = self.hosts.get_mut(&host) else { return };
        if known.tasks.len() >= TASKS_PER_HOST_MAX && !known.tasks.contains(&id) {
            return;
        }
        known.tasks.insert(id);
        let task = self.tasks.entry(id).or_default();
        let asks_again = task.openers.get(&host).is_some_and(|opener| !opener.waiting);
        if let Some(member) = task.graph.get_mut(host) {
            let held = if opener.have == Some(member.generation) { opener.have_pieces } else { 0 };
            let has_evicted = held < member.pieces || (member.complete && held == 0);
            member.complete &= !has_evicted;
            member.pieces = held;
            if has_evicted || asks_again {
                // It begins anew, and knows of no neighbours.
                task.graph.isolate(host);
            }
        }
        let admits = task.admits(opener.content_addressed);
        task.openers.insert(host, opener);
        self.mark_idle(now, id);
        if admits {
            self.admit(id, &[host], actions);
        } else {
            self.enqueue(id);
        }
    }

    /// Lets waiting hosts in: all become members before the first is given neighbours, so that none is left out.
    fn admit(&mut self, id: TaskId, hosts: &[HostId], actions: &mut Vec<SchedulerAction>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(generation) = task.generation else { return };
        for host in hosts {
            let (Some(opener), Some(known)) = (task.openers.get_mut(host), self.hosts.get(host)) else { continue };
            opener.waiting = false;
            let held = if opener.have == Some(generation) { opener.have_pieces } else { 0 };
            let complete = task.pieces == Some(held);
            let member = task.graph.join(*host, generation, &known.facts);
            member.pieces = member.pieces.max(held);
            member.complete |= complete;
            member.downloading = !member.complete;
            actions.push(SchedulerAction::Opened { host: *host, task: id, generation });
        }
        for host in hosts {
            let wanted = self.tasks.get(&id).map_or(0, |task| task.graph.share(self.config.neighbours));
            if self.tasks.get(&id).and_then(|t| t.graph.get(*host)).is_some_and(|m| m.downloading) {
                self.connect(id, *host, wanted);
            }
        }
    }

    fn connect(&mut self, id: TaskId, host: HostId, wanted: u32) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let rules = Rules {
            wanted,
            degree_max: self.config.neighbours_max,
            seed_degree_max: self.config.seed_neighbours_max,
            excluded: self.blame.excluded(),
        };
        let given = task.graph.connect(host, &rules, &mut self.rng);
        let secret = self.blame.excluded().contains(&host);
        for other in &given {
            if !secret && task.graph.get(*other).is_some_and(|m| m.downloading) {
                self.late_news.entry((*other, id)).or_default().push(host);
            }
        }
        if !given.is_empty() {
            self.news.entry((host, id)).or_default().extend(given);
        }
    }

    fn tell_news(&mut self, now: Time, actions: &mut Vec<SchedulerAction>) {
        let mut news = std::mem::take(&mut self.news);
        match self.late_news_at {
            None if !self.late_news.is_empty() => self.late_news_at = Some(now + TAKEN_TOLD_AFTER),
            Some(at) if at <= now => {
                self.late_news_at = None;
                for (key, hosts) in std::mem::take(&mut self.late_news) {
                    news.entry(key).or_default().extend(hosts);
                }
            }
            _ => {}
        }
        for ((host, id), mut peers) in news {
            let Some(member) = self.tasks.get(&id).and_then(|t| t.graph.get(host)) else { continue };
            // Some may have left, or been excluded, in the meantime.
            peers.retain(|peer| member.neighbours.contains(peer));
            let generation = member.generation;
            if !peers.is_empty() && member.downloading {
                actions.push(SchedulerAction::Peers { host, task: id, generation, peers });
            }
        }
    }

    fn close(&mut self, now: Time, host: HostId, id: TaskId, complete: bool) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.openers.remove(&host);
        if complete {
            if let Some(member) = task.graph.get_mut(host) {
                member.complete = true;
                member.downloading = false;
            }
        } else {
            task.graph.leave(host);
            if let Some(known) = self.hosts.get_mut(&host) {
                known.tasks.remove(&id);
            }
        }
        self.mark_idle(now, id);
    }

    fn need_peers(&mut self, host: HostId, id: TaskId, generation: Generation, wanted: u32, unreachable: &[HostId]) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let Some(member) = task.graph.get(host) else { return };
        if member.generation != generation {
            return;
        }
        for other in unreachable.iter().take(UNREACHABLE_MAX) {
            task.graph.part(host, *other);
        }
        let has = task.graph.get(host).map_or(0, |m| m.neighbours.len() as u32);
        self.connect(id, host, has.saturating_add(wanted).min(self.config.neighbours_max));
    }
}
