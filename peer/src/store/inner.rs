//! What all handles to a store share: the map of tasks, and who has to go when room is needed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use proto::{HostId, PIECE_LEN_UNKNOWN};

use super::folder::{Folder, remove_file};
use super::rows::Rows;
use super::slot::{Gone, Key, Slot};
use super::space::{DISK_HEADROOM_BYTES, GROWTH_STEP_BYTES, Ledger, disk_free};
use super::{StoreConfig, StoreError};

/// A task's last use is written at most this often, in milliseconds: a crash then makes the order of eviction a
/// minute old, and reading costs no writes.
const USED_SAVED_EVERY_MS: u64 = 60_000;

/// A small store must not be filled by the first step of one task of unknown length.
const GROWTH_STEPS_PER_STORE: u64 = 64;

/// The tasks of a store.
pub(super) type Tasks = BTreeMap<Key, Arc<Slot>>;

/// Content files that are deleted but still open. Dropping them gives their blocks back to the disk, which takes
/// long for large files, so it is done when no lock is held.
#[must_use]
#[derive(Debug, Default)]
pub(super) struct Evicted(#[allow(dead_code, reason = "held to be dropped")] Vec<File>);

/// A store. Fields are dropped in this order: the rows are closed before the lock on the folder is given up.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) rows: Rows,
    pub(super) folder: Folder,
    pub(super) config: StoreConfig,
    pub(super) host_id: HostId,
    pub(super) ledger: Arc<Ledger>,
    pub(super) tasks: Mutex<Tasks>,
    /// The last use of any task, in milliseconds since 1970, or a little later to keep them apart.
    pub(super) clock_unix_ms: AtomicU64,
}

/// Which idle tasks go, and what that leaves.
struct Plan {
    victims: Vec<Arc<Slot>>,
    /// Bytes still lacking after evicting everything that may go; then nobody is evicted at all.
    short: Option<u64>,
}

/// One idle task, as far as eviction is concerned.
#[derive(Clone, Copy)]
struct Idle {
    reserved_bytes: u64,
    /// Blocks that deleting the file gives back; none if an output shares it.
    disk_bytes: u64,
}

/// What has to come free.
#[derive(Clone, Copy)]
struct Demand {
    bytes: u64,
    used_bytes: u64,
    capacity_bytes: u64,
    high_bytes: u64,
    low_bytes: u64,
    disk_free_bytes: u64,
}

impl Evicted {
    pub(super) fn add(&mut self, file: Option<File>) {
        self.0.extend(file);
    }
}

impl Inner {
    /// By how much a task of unknown length reserves more, in bytes.
    pub(super) fn growth_step_bytes(&self) -> u64 {
        let share = self.config.capacity_bytes / GROWTH_STEPS_PER_STORE;
        share.clamp(u64::from(PIECE_LEN_UNKNOWN), GROWTH_STEP_BYTES)
    }

    /// A time for a use: now, and later than every one before.
    pub(super) fn tick(&self) -> u64 {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        let next = |last: u64| Some(now.max(last.saturating_add(1)));
        self.clock_unix_ms.fetch_update(Ordering::AcqRel, Ordering::Acquire, next).map_or(now, |last| now.max(last + 1))
    }

    /// Notes that a task was used. That this could not be written is no reason to fail a read.
    pub(super) fn mark_used(&self, slot: &Slot) {
        let now = self.tick();
        slot.used_unix_ms.store(now, Ordering::Release);
        if now.saturating_sub(slot.used_saved_unix_ms.load(Ordering::Acquire)) < USED_SAVED_EVERY_MS {
            return;
        }
        let facts = slot.facts.lock();
        if facts.gone.is_some() {
            return;
        }
        match self.rows.put_used(slot.key, now) {
            Ok(()) => slot.used_saved_unix_ms.store(now, Ordering::Release),
            Err(error) => {
                tracing::warn!(task = %slot.key.task, error = &error as &dyn std::error::Error, "last use not noted")
            }
        }
    }

    /// Raises a task's reservation to `bytes` in all.
    pub(super) fn grow(&self, slot: &Slot, bytes: u64) -> Result<Evicted, StoreError> {
        let mut tasks = self.tasks.lock();
        let reserved = slot.reserved.bytes();
        if bytes <= reserved {
            return Ok(Evicted::default());
        }
        let evicted = self.make_room(&mut tasks, bytes - reserved)?;
        slot.reserved.set(bytes);
        Ok(evicted)
    }

    /// Evicts what is needed for `bytes` more: when that would pass the high watermark, down to the low one; when the
    /// disk is short, until it is not. Nothing is evicted if it would not suffice.
    pub(super) fn make_room(&self, tasks: &mut Tasks, bytes: u64) -> Result<Evicted, StoreError> {
        let dir = self.folder.dir();
        let demand = Demand {
            bytes,
            used_bytes: self.ledger.used_bytes(),
            capacity_bytes: self.config.capacity_bytes,
            high_bytes: self.config.watermark_bytes(self.config.high_watermark),
            low_bytes: self.config.watermark_bytes(self.config.low_watermark),
            disk_free_bytes: disk_free(dir).map_err(|e| StoreError::io("look at the disk of", dir, bytes, e))?,
        };
        if demand.is_met() {
            return Ok(Evicted::default());
        }
        let plan = self.plan(tasks, demand);
        if let Some(free_bytes) = plan.short {
            return Err(StoreError::NoSpace { path: dir.to_owned(), needed_bytes: bytes, free_bytes });
        }
        let mut evicted = Evicted::default();
        for slot in plan.victims {
            tracing::debug!(task = %slot.key.task, generation = %slot.key.generation, bytes = slot.reserved.bytes(), "evicted");
            evicted.add(self.remove(tasks, &slot, Gone::Discarded)?);
        }
        Ok(evicted)
    }

    fn plan(&self, tasks: &Tasks, demand: Demand) -> Plan {
        // A slot that only the map holds is idle; others can only come to hold it through the map, which is locked.
        let mut idle: Vec<&Arc<Slot>> = tasks.values().filter(|slot| Arc::strong_count(slot) == 1).collect();
        idle.sort_by_key(|slot| slot.used_unix_ms.load(Ordering::Acquire));
        let sizes: Vec<Idle> = idle
            .iter()
            .map(|slot| {
                let metadata = fs::metadata(self.folder.content_path(slot.key)).ok();
                let disk_bytes = metadata.filter(|m| m.nlink() == 1).map_or(0, |m| m.blocks().saturating_mul(512));
                Idle { reserved_bytes: slot.reserved.bytes(), disk_bytes }
            })
            .collect();
        match demand.choose(&sizes) {
            Ok(chosen) => Plan { victims: chosen.into_iter().map(|at| Arc::clone(idle[at])).collect(), short: None },
            Err(free_bytes) => Plan { victims: Vec::new(), short: Some(free_bytes) },
        }
    }

    /// Removes a task, used or not: file first, because that makes room for the row's removal if the disk is full, and a
    /// row without its file is dropped at the next start.
    pub(super) fn remove(&self, tasks: &mut Tasks, slot: &Arc<Slot>, why: Gone) -> Result<Option<File>, StoreError> {
        let mut facts = slot.facts.lock();
        if facts.gone.is_some() {
            return Ok(None);
        }
        let path = self.folder.content_path(slot.key);
        // Kept open only to put off the work of freeing it.
        let file = File::open(&path).ok();
        remove_file(&path)?;
        facts.gone = Some(why);
        tasks.remove(&slot.key);
        if let Err(error) = self.rows.remove(slot.key) {
            tracing::warn!(task = %slot.key.task, error = &error as &dyn std::error::Error, "rows of a removed task stay until the next start");
        }
        Ok(file)
    }
}

impl Demand {
    fn is_met(self) -> bool {
        self.used_bytes.saturating_add(self.bytes) <= self.high_bytes && self.disk_lacks() == 0
    }

    fn disk_lacks(self) -> u64 {
        // Asking for nothing must always succeed: a full disk is no reason not to open a store.
        if self.bytes == 0 {
            0
        } else {
            (self.bytes.saturating_add(DISK_HEADROOM_BYTES)).saturating_sub(self.disk_free_bytes)
        }
    }

    /// Which of the idle tasks, given least recently used first, have to go. An error is the number of bytes that could
    /// be had at most.
    fn choose(self, idle: &[Idle]) -> Result<Vec<usize>, u64> {
        let idle_bytes: u64 = idle.iter().map(|i| i.reserved_bytes).sum();
        let in_use = self.used_bytes.saturating_sub(idle_bytes);
        if self.bytes > 0 && in_use.saturating_add(self.bytes) > self.capacity_bytes {
            return Err(self.capacity_bytes.saturating_sub(in_use));
        }
        let freeable: u64 = idle.iter().map(|i| i.disk_bytes).sum();
        let mut disk_lacks = self.disk_lacks();
        if disk_lacks > freeable {
            return Err((self.disk_free_bytes + freeable).saturating_sub(DISK_HEADROOM_BYTES));
        }
        let is_over = self.used_bytes.saturating_add(self.bytes) > self.high_bytes;
        let target = self.low_bytes.saturating_sub(self.bytes);
        let mut used = self.used_bytes;
        let mut chosen = Vec::new();
        for (at, task) in idle.iter().enumerate() {
            let for_capacity = is_over && used > target;
            let for_disk = disk_lacks > 0 && task.disk_bytes > 0;
            if for_capacity || for_disk {
                chosen.push(at);
                used = used.saturating_sub(task.reserved_bytes);
                disk_lacks = disk_lacks.saturating_sub(task.disk_bytes);
            }
        }
        Ok(chosen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    fn demand(mib: u64, used_mib: u64) -> Demand {
        Demand {
            bytes: mib * MIB,
            used_bytes: used_mib * MIB,
            capacity_bytes: 100 * MIB,
            high_bytes: 95 * MIB,
            low_bytes: 85 * MIB,
            disk_free_bytes: 1000 * MIB,
        }
    }

    fn idle(mib: &[u64]) -> Vec<Idle> {
        mib.iter().map(|m| Idle { reserved_bytes: m * MIB, disk_bytes: m * MIB }).collect()
    }

    #[test]
    fn below_the_high_watermark_nobody_goes() {
        assert!(demand(5, 90).is_met());
        assert!(!demand(6, 90).is_met());
    }

    #[test]
    fn above_it_the_oldest_go_down_to_the_low_one() {
        assert_eq!(demand(10, 90).choose(&idle(&[10, 10, 10])).unwrap(), [0, 1]);
        assert_eq!(demand(10, 90).choose(&idle(&[1, 20, 10])).unwrap(), [0, 1]);
        // What is in use may leave less than that to evict; up to the capacity it still fits.
        assert_eq!(demand(10, 95).choose(&idle(&[5])).unwrap(), [0]);
    }

    #[test]
    fn nobody_goes_in_vain() {
        assert_eq!(demand(50, 90).choose(&idle(&[10, 10])), Err(30 * MIB));
        assert_eq!(demand(101, 0).choose(&[]), Err(100 * MIB));
    }

    #[test]
    fn a_short_disk_takes_those_that_free_it() {
        let mut short = demand(10, 40);
        short.disk_free_bytes = 2 * MIB + DISK_HEADROOM_BYTES;
        let mut tasks = idle(&[5, 5, 5]);
        tasks[0].disk_bytes = 0; // hard-linked out
        assert_eq!(short.choose(&tasks).unwrap(), [1, 2]);
        tasks[1].disk_bytes = 0;
        assert_eq!(short.choose(&tasks), Err(7 * MIB));
    }

    #[test]
    fn a_lowered_capacity_is_kept_as_far_as_possible() {
        assert_eq!(demand(0, 300).choose(&idle(&[100, 120, 50])).unwrap(), [0, 1]);
        assert_eq!(demand(0, 300).choose(&idle(&[100])).unwrap(), [0]);
    }
}
