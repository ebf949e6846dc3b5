//! Who may talk to whom, and who may read the origin: one scheduler per supernode.

use std::time::Duration;

use proto::{Generation, HostId, PieceIndex, TaskId};

use crate::Time;

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
    /// The task is of no interest to anyone any more: forget what is kept of it.
    Forget {
        /// The task.
        task: TaskId,
    },
    /// Send a [`SchedulerEvent::Tick`] at this moment; replaces the moment asked for before.
    WakeAt(Time),
}

/// Decides for one cluster.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
}
