//! Who may read the origin, and when: our seed, one start per task at a time.

use std::time::Duration;

use proto::{Generation, HostId, TaskId};

use super::task::{Seed, Task};
use super::{RefuseReason, SEED_HOLDERS_MAX, Scheduler, SchedulerAction};
use crate::Time;

/// Tasks looked at per event while looking for one that may start; the others wait for the next event or tick.
const LOOKS_MAX: usize = 256;
/// Of the hosts known before a restart so many in ten must have told their inventories.
const MOST_IN_TEN: u64 = 9;
/// Priorities above this are taken for it.
const PRIORITY_MAX: u32 = 6;

enum Start {
    Now { on_behalf_of: HostId },
    NotYet,
    Never,
}

impl Scheduler {
    pub(super) fn set_seed(&mut self, id: TaskId, seed: Seed) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if let Seed::Starting { until } = std::mem::replace(&mut task.seed, seed) {
            self.starting.remove(&(until, id));
        }
        if let Seed::Starting { until } = seed {
            self.starting.insert((until, id));
        }
        if let Some(key) = task.queued.take() {
            self.queue.remove(&(key, id));
        }
    }

    /// Lines a task up for a start of our seed, unless that is under way.
    pub(super) fn enqueue(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if task.queued.is_some() || matches!(task.seed, Seed::Starting { .. } | Seed::Fetching) {
            return;
        }
        let priority = task.openers.values().map(|o| o.priority.min(PRIORITY_MAX)).max().unwrap_or(0);
        self.orders += 1;
        let key = (PRIORITY_MAX - priority, self.orders);
        task.queued = Some(key);
        self.queue.insert((key, id));
    }

    /// Whether hosts may be missing that hold what the origin would be asked for.
    fn in_grace(&self, now: Time) -> bool {
        let most_are_back = self
            .expected_hosts
            .is_some_and(|expected| u64::from(self.inventories_done) * 10 >= u64::from(expected) * MOST_IN_TEN);
        now < self.started + self.config.lease_grace && !most_are_back
    }

    pub(super) fn start_seeds(&mut self, now: Time, actions: &mut Vec<SchedulerAction>) {
        if self.queue.is_empty() {
            return;
        }
        let rate = f64::from(self.config.leases_per_s.max(1));
        let keys: Vec<TaskId> = self.queue.iter().take(LOOKS_MAX).map(|(_, id)| *id).collect();
        for id in keys {
            // A second's worth may be granted at once.
            if self.lease_paid_at > now + Duration::from_secs(1) {
                break;
            }
            match self.may_start(now, id) {
                Start::NotYet => {}
                Start::Never => self.refuse_waiting(id, RefuseReason::NeverOrigin, actions),
                Start::Now { on_behalf_of } => {
                    self.lease_paid_at = self.lease_paid_at.max(now) + Duration::from_secs_f64(1.0 / rate);
                    let until = now + self.config.lease_ttl;
                    self.set_seed(id, Seed::Starting { until });
                    let Some(task) = self.tasks.get_mut(&id) else { continue };
                    task.holders_told.clear();
                    let holders = task.new_holders(self.blame.excluded(), SEED_HOLDERS_MAX);
                    actions.push(SchedulerAction::StartSeed { task: id, on_behalf_of, holders });
                }
            }
        }
    }

    fn may_start(&self, now: Time, id: TaskId) -> Start {
        let Some(task) = self.tasks.get(&id) else { return Start::NotYet };
        // What our seed began it may go on with; what somebody holds whole need not be read again.
        let held = task.seed_holds || task.is_held();
        if !held && self.in_grace(now) {
            return Start::NotYet;
        }
        let any_waiting = || {
            task.openers.iter().filter(|(_, o)| !o.refused).min_by_key(|(_, o)| (!o.waiting, o.order)).map(|(h, _)| *h)
        };
        match task.next_lender().or_else(|| held.then(any_waiting).flatten()) {
            Some(on_behalf_of) => Start::Now { on_behalf_of },
            None => Start::Never,
        }
    }

    fn refuse_waiting(&mut self, id: TaskId, why: RefuseReason, actions: &mut Vec<SchedulerAction>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        task.openers.retain(|host, opener| {
            if opener.waiting {
                actions.push(SchedulerAction::Refuse { host: *host, task: id, why });
            }
            !opener.waiting
        });
        if let Some(key) = task.queued.take() {
            self.queue.remove(&(key, id));
        }
    }

    pub(super) fn seed_opened(
        &mut self,
        now: Time,
        id: TaskId,
        generation: Generation,
        complete: bool,
        pieces: Option<u32>,
        actions: &mut Vec<SchedulerAction>,
    ) {
        let task = self.tasks.entry(id).or_default();
        if task.generation != Some(generation) {
            task.pieces = None;
        }
        task.generation = Some(generation);
        task.pieces = pieces.or(task.pieces);
        task.seed_holds = true;
        if let Some(seed) = self.own_seed {
            task.graph.add_seed(seed);
            if let Some(known) = self.hosts.get_mut(&seed) {
                known.tasks.insert(id);
            }
        }
        let mut waiting: Vec<(u64, HostId)> =
            task.openers.iter().filter(|(_, o)| o.waiting).map(|(host, o)| (o.order, *host)).collect();
        waiting.sort_unstable();
        self.set_seed(id, if complete { Seed::Complete } else { Seed::Fetching });
        let hosts: Vec<HostId> = waiting.into_iter().map(|(_, host)| host).collect();
        self.admit(id, &hosts, actions);
        self.tell_seed_holders(id, actions);
        self.mark_idle(now, id);
    }

    /// Our seed has evicted what it had fetched. It fetches that anew when no other host is known to have it, or when
    /// one that was let in asks again: nothing came to it.
    pub(super) fn seed_lacks(&mut self, host: HostId, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let asks_again = task.openers.get(&host).is_some_and(|opener| !opener.waiting);
        let others_hold = task.graph.iter().any(|(other, member)| member.complete && other != host);
        if task.seed != Seed::Complete || (others_hold && !asks_again) {
            return;
        }
        task.seed_holds = false;
        if let Some(seed) = self.own_seed {
            task.graph.remove_seed(seed);
        }
        self.set_seed(id, Seed::Idle);
    }

    /// Names further holders to a seed that is at work.
    pub(super) fn tell_seed_holders(&mut self, id: TaskId, actions: &mut Vec<SchedulerAction>) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let (Seed::Fetching, Some(generation)) = (task.seed, task.generation) else { return };
        // What a host has of a running download it has from the seed; only what was there before is news to it.
        let peers = task.new_holders(self.blame.excluded(), SEED_HOLDERS_MAX);
        if !peers.is_empty() {
            actions.push(SchedulerAction::SeedPeers { task: id, generation, peers });
        }
    }

    pub(super) fn seed_failed(
        &mut self,
        now: Time,
        id: TaskId,
        on_behalf_of: HostId,
        credentials_refused: bool,
        actions: &mut Vec<SchedulerAction>,
    ) {
        self.set_seed(id, Seed::Idle);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if credentials_refused {
            match task.openers.get_mut(&on_behalf_of) {
                Some(opener) if opener.waiting => {
                    task.openers.remove(&on_behalf_of);
                    actions.push(SchedulerAction::Refuse {
                        host: on_behalf_of,
                        task: id,
                        why: RefuseReason::SeedFailed,
                    });
                }
                // Credentials that ran out in the middle: it may go on, with what another's credentials fetch.
                Some(opener) => opener.refused = true,
                None => {}
            }
        }
        let incomplete =
            task.openers.iter().any(|(host, o)| o.waiting || task.graph.get(*host).is_none_or(|m| m.downloading));
        if credentials_refused && task.next_lender().is_some() {
            if incomplete {
                self.enqueue(id);
            }
            return;
        }
        let refused: Vec<HostId> = task
            .openers
            .iter()
            .filter(|(host, o)| o.waiting || task.graph.get(**host).is_none_or(|m| m.downloading))
            .map(|(host, _)| *host)
            .collect();
        for host in refused {
            task.openers.remove(&host);
            if let Some(member) = task.graph.get_mut(host) {
                member.downloading = false;
            }
            actions.push(SchedulerAction::Refuse { host, task: id, why: RefuseReason::SeedFailed });
        }
        self.mark_idle(now, id);
    }

    /// Notes since when nobody opens or holds a task.
    pub(super) fn mark_idle(&mut self, now: Time, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let idle = task.openers.is_empty() && task.graph.is_empty();
        match (idle, task.idle_at) {
            (true, None) => {
                let at = now + self.config.task_idle;
                task.idle_at = Some(at);
                self.idle.insert((at, id));
            }
            (false, Some(at)) => {
                task.idle_at = None;
                self.idle.remove(&(at, id));
            }
            _ => {}
        }
    }

    pub(super) fn run_timers(&mut self, now: Time, actions: &mut Vec<SchedulerAction>) {
        while let Some(&(at, id)) = self.starting.first()
            && at <= now
        {
            // The lease was not used: the next in line gets it.
            self.set_seed(id, Seed::Idle);
            if let Some(task) = self.tasks.get_mut(&id) {
                self.orders += 1;
                let last = self.orders;
                if let Some(first) = task.next_lender().and_then(|host| task.openers.get_mut(&host)) {
                    first.order = last;
                }
            }
            if self.tasks.get(&id).is_some_and(Task::waits) {
                self.enqueue(id);
            }
        }
        while let Some(&(at, id)) = self.idle.first()
            && at <= now
        {
            self.idle.pop_first();
            self.set_seed(id, Seed::Idle);
            self.tasks.remove(&id);
            for seed in self.hosts.values_mut().filter(|h| h.facts.seed) {
                seed.tasks.remove(&id);
            }
            actions.push(SchedulerAction::Forget { task: id });
        }
    }

    pub(super) fn arm(&mut self, now: Time, actions: &mut Vec<SchedulerAction>) {
        let queue = (!self.queue.is_empty()).then(|| {
            let grace_ends = self.started + self.config.lease_grace;
            let paid = Time::from_micros(self.lease_paid_at.as_micros().saturating_sub(1_000_000));
            if paid > now { paid } else { grace_ends }
        });
        let queue = queue.filter(|at| *at > now);
        let timers =
            [self.starting.first().map(|(at, _)| *at), self.idle.first().map(|(at, _)| *at), self.late_news_at, queue];
        if let Some(next) = timers.into_iter().flatten().min()
            && self.armed.is_none_or(|armed| next < armed)
        {
            self.armed = Some(next);
            actions.push(SchedulerAction::WakeAt(next));
        }
    }
}
