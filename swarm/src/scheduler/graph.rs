//! Who is whose neighbour for one task: a random graph of bounded degree that prefers hosts nearby.

use std::collections::{BTreeMap, BTreeSet};

use proto::{Generation, HostId};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;

use super::HostFacts;

/// Of a host's neighbours so many in four are looked for in its own data centre; the rest keep the graph in one piece.
const NEAR_IN_FOUR: u32 = 3;
/// Neighbours that members have on average before newcomers are given fewer, in quarters of what is wanted.
const ENOUGH_IN_FOUR: usize = 4;
/// Candidates drawn for each neighbour; the one with fewest neighbours is taken. Not more: a strong preference would tie
/// each newcomer to the newcomers just before it, and news would have to walk along a chain of them.
const DRAWS: usize = 3;
/// Draws that may meet hosts which cannot be neighbours before all are looked through.
const DRAWS_MAX: usize = 24;
/// Up to so many members all are looked at rather than drawn.
const LOOK_AT_ALL_MAX: usize = 96;
/// Unreachable or refused hosts remembered for one member.
const AVOID_MAX: usize = 256;

/// A host that holds or fetches the task.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) generation: Generation,
    pub(super) downloading: bool,
    pub(super) complete: bool,
    pub(super) pieces: u32,
    pub(super) neighbours: BTreeSet<HostId>,
    avoid: BTreeSet<HostId>,
    idc: String,
    location: String,
    place: usize,
    near_place: usize,
}

/// The members of one task and the edges between them.
#[derive(Debug, Default)]
pub(super) struct Graph {
    members: BTreeMap<HostId, Member>,
    /// The members in no order, to draw from.
    all: Vec<HostId>,
    near: BTreeMap<String, Vec<HostId>>,
    /// Neighbours of each seed.
    seeds: BTreeMap<HostId, BTreeSet<HostId>>,
    /// Ends of edges between members, over all members.
    ends: usize,
}

/// The rules of who may be connected.
pub(super) struct Rules<'a> {
    pub(super) wanted: u32,
    pub(super) degree_max: u32,
    pub(super) seed_degree_max: u32,
    /// Given to nobody.
    pub(super) excluded: &'a BTreeSet<HostId>,
}

impl Graph {
    pub(super) fn get(&self, host: HostId) -> Option<&Member> {
        self.members.get(&host)
    }

    pub(super) fn get_mut(&mut self, host: HostId) -> Option<&mut Member> {
        self.members.get_mut(&host)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (HostId, &Member)> {
        self.members.iter().map(|(host, member)| (*host, member))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Adds a member, or moves one to another generation (its edges end then).
    pub(super) fn join(&mut self, host: HostId, generation: Generation, facts: &HostFacts) -> &mut Member {
        if self.members.get(&host).is_some_and(|m| m.generation != generation) {
            self.leave(host);
        }
        let (all, near) = (&mut self.all, &mut self.near);
        self.members.entry(host).or_insert_with(|| {
            let group = near.entry(facts.idc.clone()).or_default();
            all.push(host);
            group.push(host);
            Member {
                generation,
                downloading: false,
                complete: false,
                pieces: 0,
                neighbours: BTreeSet::new(),
                avoid: BTreeSet::new(),
                idc: facts.idc.clone(),
                location: facts.location.clone(),
                place: all.len() - 1,
                near_place: group.len() - 1,
            }
        })
    }

    pub(super) fn leave(&mut self, host: HostId) {
        self.isolate(host);
        let Some(gone) = self.members.remove(&host) else { return };
        self.all.swap_remove(gone.place);
        if let Some(moved) = self.all.get(gone.place).and_then(|m| self.members.get_mut(m)) {
            moved.place = gone.place;
        }
        if let Some(group) = self.near.get_mut(&gone.idc) {
            group.swap_remove(gone.near_place);
            if let Some(moved) = group.get(gone.near_place).and_then(|m| self.members.get_mut(m)) {
                moved.near_place = gone.near_place;
            }
            if group.is_empty() {
                self.near.remove(&gone.idc);
            }
        }
    }

    /// Ends all edges of a host.
    pub(super) fn isolate(&mut self, host: HostId) {
        let others = self.members.get_mut(&host).map(|m| std::mem::take(&mut m.neighbours)).unwrap_or_default();
        for other in others {
            if let Some(member) = self.members.get_mut(&other)
                && member.neighbours.remove(&host)
            {
                self.ends -= 2;
            }
            if let Some(hosts) = self.seeds.get_mut(&other) {
                hosts.remove(&host);
            }
        }
    }

    /// How many neighbours a newcomer is given: fewer while members have more than enough on average, since those who
    /// come later will bring it more. With everybody full, only the last who came would be left to connect to.
    pub(super) fn share(&self, wanted: u32) -> u32 {
        let enough = self.members.len() * wanted as usize * ENOUGH_IN_FOUR / 4;
        if self.ends > enough { wanted.div_ceil(2) } else { wanted }
    }

    pub(super) fn add_seed(&mut self, seed: HostId) {
        self.seeds.entry(seed).or_default();
    }

    pub(super) fn remove_seed(&mut self, seed: HostId) {
        for host in self.seeds.remove(&seed).unwrap_or_default() {
            if let Some(member) = self.members.get_mut(&host) {
                member.neighbours.remove(&seed);
            }
        }
    }

    /// Two hosts shall not be neighbours (any more): one could not reach the other, or was served badly by it.
    pub(super) fn part(&mut self, host: HostId, other: HostId) {
        if let Some(member) = self.members.get_mut(&host) {
            member.neighbours.remove(&other);
            if member.avoid.len() < AVOID_MAX {
                member.avoid.insert(other);
            }
        }
        if let Some(member) = self.members.get_mut(&other)
            && member.neighbours.remove(&host)
        {
            self.ends -= 2;
        }
        if let Some(hosts) = self.seeds.get_mut(&other) {
            hosts.remove(&host);
        }
    }

    pub(super) fn are_neighbours(&self, host: HostId, other: HostId) -> bool {
        self.members.get(&host).is_some_and(|m| m.neighbours.contains(&other))
    }

    /// Gives a member neighbours until it has as many as are wanted, or nobody is left; answers the new ones.
    pub(super) fn connect(&mut self, host: HostId, rules: &Rules<'_>, rng: &mut SmallRng) -> Vec<HostId> {
        let mut given = self.connect_seeds(host, rules);
        let mut budget = 0;
        if let Some(member) = self.members.get(&host) {
            let seeds = member.neighbours.iter().filter(|n| self.seeds.contains_key(n)).count();
            let degree = member.neighbours.len() - seeds;
            let room = (rules.degree_max as usize).saturating_sub(member.neighbours.len());
            budget = (rules.wanted as usize).saturating_sub(degree).min(room);
        }
        if self.all.len() <= LOOK_AT_ALL_MAX {
            for other in self.look_at_all(host, budget, rules, rng) {
                self.link(host, other);
                given.push(other);
            }
            return given;
        }
        while budget > 0
            && let Some(other) = self.draw(host, rules, rng)
        {
            self.link(host, other);
            given.push(other);
            budget -= 1;
        }
        given
    }

    fn connect_seeds(&mut self, host: HostId, rules: &Rules<'_>) -> Vec<HostId> {
        let mut given = Vec::new();
        let Some(member) = self.members.get_mut(&host) else { return given };
        for (seed, hosts) in &mut self.seeds {
            let full =
                hosts.len() >= rules.seed_degree_max as usize || member.neighbours.len() >= rules.degree_max as usize;
            if !full
                && *seed != host
                && !member.avoid.contains(seed)
                && !rules.excluded.contains(seed)
                && hosts.insert(host)
            {
                member.neighbours.insert(*seed);
                given.push(*seed);
            }
        }
        given
    }

    fn link(&mut self, a: HostId, b: HostId) {
        self.ends += 2;
        for (one, other) in [(a, b), (b, a)] {
            if let Some(member) = self.members.get_mut(&one) {
                member.neighbours.insert(other);
            }
        }
    }

    fn may_link(&self, host: HostId, member: &Member, other: HostId, rules: &Rules<'_>) -> Option<&Member> {
        let candidate = self.members.get(&other)?;
        let fits = other != host
            && candidate.generation == member.generation
            && (candidate.downloading || candidate.complete || candidate.pieces > 0)
            && (candidate.neighbours.len() as u32) < rules.degree_max
            && !member.neighbours.contains(&other)
            && !member.avoid.contains(&other)
            && !candidate.avoid.contains(&host)
            && !rules.excluded.contains(&other);
        fits.then_some(candidate)
    }

    fn look_at_all(&self, host: HostId, budget: usize, rules: &Rules<'_>, rng: &mut SmallRng) -> Vec<HostId> {
        let Some(member) = self.members.get(&host) else { return Vec::new() };
        let mut others: Vec<(bool, usize, u32, HostId)> = self
            .all
            .iter()
            .filter_map(|other| {
                let m = self.may_link(host, member, *other, rules)?;
                Some((m.idc != member.idc, m.neighbours.len() / 4, rng.random(), *other))
            })
            .collect();
        others.sort_unstable();
        let near = budget * NEAR_IN_FOUR as usize / 4;
        let mut rest = others.split_off(near.min(others.len()));
        rest.shuffle(rng);
        rest.sort_by_key(|(_, degree, ..)| *degree);
        others.into_iter().chain(rest).take(budget).map(|(.., other)| other).collect()
    }

    fn draw(&self, host: HostId, rules: &Rules<'_>, rng: &mut SmallRng) -> Option<HostId> {
        let member = self.members.get(&host)?;
        let near = self.near.get(&member.idc).filter(|_| rng.random_range(0..4) < NEAR_IN_FOUR);
        for list in [near, Some(&self.all)].into_iter().flatten() {
            let mut best: Option<(usize, usize, HostId)> = None;
            let mut met = 0;
            for _ in 0..DRAWS_MAX {
                if met == DRAWS {
                    break;
                }
                let other = list[rng.random_range(0..list.len())];
                let Some(candidate) = self.may_link(host, member, other, rules) else { continue };
                met += 1;
                let score = (candidate.neighbours.len(), distance(&member.location, &candidate.location), other);
                if best.is_none_or(|b| (score.0, score.1) < (b.0, b.1)) {
                    best = Some(score);
                }
            }
            if let Some((.., other)) = best {
                return Some(other);
            }
        }
        // Nearly everybody is taken: look once through all, from a random place on.
        let from = rng.random_range(0..self.all.len());
        let (late, early) = self.all.split_at(from);
        early.iter().chain(late).copied().find(|other| self.may_link(host, member, *other, rules).is_some())
    }

    pub(super) fn check(&self, degree_max: u32, seed_degree_max: u32) -> Result<(), &'static str> {
        for (host, member) in &self.members {
            if member.neighbours.len() > degree_max as usize {
                return Err("a host has too many neighbours");
            }
            for other in &member.neighbours {
                let back = match self.seeds.get(other) {
                    Some(hosts) => hosts.contains(host),
                    None => self
                        .members
                        .get(other)
                        .is_some_and(|m| m.neighbours.contains(host) && m.generation == member.generation),
                };
                if !back || other == host {
                    return Err("an edge has one end, or joins two generations");
                }
            }
            if self.all.get(member.place) != Some(host) {
                return Err("a member is not where it says it is");
            }
        }
        let ends: usize =
            self.members.values().map(|m| m.neighbours.iter().filter(|n| !self.seeds.contains_key(n)).count()).sum();
        if ends != self.ends {
            return Err("the number of edges is wrong");
        }
        if self.all.len() != self.members.len() || self.near.values().map(Vec::len).sum::<usize>() != self.all.len() {
            return Err("the members are not listed once each");
        }
        let bounded = self
            .seeds
            .values()
            .all(|hosts| hosts.len() <= seed_degree_max as usize && hosts.iter().all(|h| self.members.contains_key(h)));
        if bounded { Ok(()) } else { Err("a seed has too many neighbours, or one that is gone") }
    }
}

/// How many leading parts of two locations differ: 0 = the same place.
fn distance(a: &str, b: &str) -> usize {
    let same = a.split('|').zip(b.split('|')).take_while(|(x, y)| x == y).count();
    a.split('|').count().max(b.split('|').count()) - same
}
