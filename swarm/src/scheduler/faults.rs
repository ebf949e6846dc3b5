//! What is done about bad pieces and bad contents, and the scheduler's own invariants.

use proto::{Generation, HostId, TaskId};

use super::task::{Seed, Task};
use super::{RefuseReason, Scheduler, SchedulerAction, TASKS_PER_HOST_MAX};
use crate::Time;

impl Scheduler {
    pub(super) fn bad_piece(
        &mut self,
        reporter: HostId,
        id: TaskId,
        generation: Generation,
        from: HostId,
        actions: &mut Vec<SchedulerAction>,
    ) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        // Only who was given the accused as a neighbour can have been served by it.
        if !task.graph.are_neighbours(reporter, from) {
            return;
        }
        actions.push(SchedulerAction::Verify { host: from, task: id, generation });
        if Some(from) == self.own_seed {
            return;
        }
        task.graph.part(reporter, from);
        if self.blame.report(reporter, from, self.config.bad_reports_max)
            && let Some(known) = self.hosts.get(&from)
        {
            for id in &known.tasks {
                if let Some(task) = self.tasks.get_mut(id) {
                    task.graph.isolate(from);
                    task.graph.remove_seed(from);
                }
            }
        }
    }

    pub(super) fn quarantine(
        &mut self,
        now: Time,
        id: TaskId,
        generation: Generation,
        actions: &mut Vec<SchedulerAction>,
    ) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let holders: Vec<HostId> =
            task.graph.iter().filter(|(_, m)| m.generation == generation).map(|(host, _)| host).collect();
        for host in holders {
            task.graph.leave(host);
            actions.push(SchedulerAction::Discard { host, task: id, generation });
            if task.openers.get(&host).is_some_and(|o| !o.waiting) {
                task.openers.remove(&host);
                actions.push(SchedulerAction::Refuse { host, task: id, why: RefuseReason::Quarantined });
            }
        }
        if task.generation.is_none_or(|g| g == generation) {
            task.generation = None;
            task.pieces = None;
            task.seed_holds = false;
            task.holders_told.clear();
            self.set_seed(id, Seed::Idle);
            if let Some(seed) = self.own_seed
                && let Some(task) = self.tasks.get_mut(&id)
            {
                task.graph.remove_seed(seed);
            }
        }
        if self.tasks.get(&id).is_some_and(Task::waits) {
            self.enqueue(id);
        }
        self.mark_idle(now, id);
    }

    pub(crate) fn check(&self) -> Result<(), &'static str> {
        for (id, task) in &self.tasks {
            task.graph.check(self.config.neighbours_max, self.config.seed_neighbours_max)?;
            let known = |host: &HostId| self.hosts.get(host).is_some_and(|h| h.tasks.contains(id));
            if !task.openers.keys().all(known) || !task.graph.iter().all(|(host, _)| known(&host)) {
                return Err("a host is remembered that is gone");
            }
            if task.queued.is_some_and(|key| !self.queue.contains(&(key, *id))) {
                return Err("a waiting task is not in the queue");
            }
            for (host, member) in task.graph.iter() {
                if self.blame.excluded().contains(&host)
                    && member.neighbours.len() > self.config.neighbours_max as usize
                {
                    return Err("an excluded host was given away");
                }
            }
            if let Seed::Starting { until } = task.seed
                && !self.starting.contains(&(until, *id))
            {
                return Err("a starting seed has no deadline");
            }
        }
        let done = self.hosts.values().filter(|h| h.inventory_done).count();
        match (done == self.inventories_done as usize, self.hosts.values().all(|h| h.tasks.len() <= TASKS_PER_HOST_MAX))
        {
            (false, _) => Err("the number of inventories is wrong"),
            (_, false) => Err("a host told of too many tasks"),
            _ => Ok(()),
        }
    }
}
