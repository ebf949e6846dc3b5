//! The tasks at work on this host.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use proto::{Generation, TaskId};

use super::shared::Shared;

/// All tasks that have an actor.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    map: Mutex<HashMap<(TaskId, Generation), Arc<Shared>>>,
}

impl Tasks {
    pub(crate) fn get(&self, key: (TaskId, Generation)) -> Option<Arc<Shared>> {
        self.map.lock().get(&key).cloned()
    }

    /// The task that is there already, or this one.
    pub(crate) fn get_or_insert(&self, fresh: &Arc<Shared>) -> Arc<Shared> {
        Arc::clone(self.map.lock().entry((fresh.task, fresh.generation)).or_insert_with(|| Arc::clone(fresh)))
    }

    /// Takes this very task out; a later one of the same name stays.
    pub(crate) fn remove(&self, shared: &Arc<Shared>) {
        let mut map = self.map.lock();
        let key = (shared.task, shared.generation);
        if map.get(&key).is_some_and(|there| Arc::ptr_eq(there, shared)) {
            map.remove(&key);
        }
    }

    pub(crate) fn for_each(&self, mut work: impl FnMut(&Arc<Shared>)) {
        let all: Vec<_> = self.map.lock().values().cloned().collect();
        all.iter().for_each(&mut work);
    }

    pub(crate) fn for_each_of(&self, task: TaskId, mut work: impl FnMut(&Arc<Shared>)) {
        self.for_each(|shared| {
            if shared.task == task {
                work(shared);
            }
        });
    }
}
