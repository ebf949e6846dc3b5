//! What a scheduler keeps of one task.

use std::collections::{BTreeMap, BTreeSet};

use proto::{Generation, HostId};

use super::graph::Graph;
use crate::Time;

#[derive(Debug, Default)]
pub(super) struct Task {
    /// The current generation, as our seed confirmed it.
    pub(super) generation: Option<Generation>,
    pub(super) seed: Seed,
    /// Our seed holds at least part of it, by its own inventory.
    pub(super) seed_holds: bool,
    pub(super) pieces: Option<u32>,
    pub(super) openers: BTreeMap<HostId, Opener>,
    pub(super) graph: Graph,
    /// Hosts that were named to the running seed.
    pub(super) holders_told: BTreeSet<HostId>,
    /// Its place among the tasks that wait for a lease.
    pub(super) queued: Option<(u32, u64)>,
    pub(super) idle_at: Option<Time>,
}

/// Our seed's part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Seed {
    #[default]
    Idle,
    /// Told to start; by `until` it must have opened the task.
    Starting { until: Time },
    /// It fetches the content; the generation was confirmed when it began.
    Fetching,
    /// It holds everything.
    Complete,
}

/// A host that wants the task.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opener {
    pub(super) order: u64,
    pub(super) waiting: bool,
    pub(super) never_origin: bool,
    pub(super) content_addressed: bool,
    pub(super) priority: u32,
    /// The origin refused its credentials.
    pub(super) refused: bool,
    pub(super) have: Option<Generation>,
    pub(super) have_pieces: u32,
}

impl Task {
    /// Whether a host that asks now can be let in without asking the origin.
    pub(super) fn admits(&self, content_addressed: bool) -> bool {
        self.generation.is_some()
            && match self.seed {
                Seed::Fetching => true,
                Seed::Complete => content_addressed,
                Seed::Idle | Seed::Starting { .. } => false,
            }
    }

    pub(super) fn waits(&self) -> bool {
        self.openers.values().any(|o| o.waiting)
    }

    /// Whose turn it is to lend credentials: most important first, then who came first.
    pub(super) fn next_lender(&self) -> Option<HostId> {
        self.openers
            .iter()
            .filter(|(_, o)| !o.never_origin && !o.refused)
            .min_by_key(|(_, o)| (!o.waiting, std::cmp::Reverse(o.priority), o.order))
            .map(|(host, _)| *host)
    }

    /// Somebody holds all of it.
    pub(super) fn is_held(&self) -> bool {
        self.graph.iter().any(|(_, m)| m.complete)
    }

    /// Hosts to fetch from that the seed was not told of, the fullest first.
    pub(super) fn new_holders(&mut self, excluded: &BTreeSet<HostId>, max: usize) -> Vec<HostId> {
        let room = max.saturating_sub(self.holders_told.len());
        if room == 0 {
            return Vec::new();
        }
        let mut holders: Vec<(bool, u32, HostId)> = self
            .graph
            .iter()
            .filter(|(host, m)| {
                (m.complete || m.pieces > 0)
                    && self.generation.is_none_or(|g| g == m.generation)
                    && !excluded.contains(host)
                    && !self.holders_told.contains(host)
            })
            .map(|(host, m)| (!m.complete, u32::MAX - m.pieces, host))
            .collect();
        holders.sort_unstable();
        holders.truncate(room);
        self.holders_told.extend(holders.iter().map(|(.., host)| *host));
        holders.into_iter().map(|(.., host)| host).collect()
    }
}
