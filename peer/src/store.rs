//! Pieces on disk: RocksDB rows beside one content file per task.
//!
//! A [`Store`] is a folder. For each generation of each task it has a content file, preallocated when the length is
//! known, and rows that say which pieces are in it and what they hash to. `docs/design/piece-store.md` argues the design.
//!
//! - **Trust.** A finished content is believed after a crash: its bytes were synced before its row was written. An
//!   unfinished one is hashed again before its first use by another process. A content that another program wrote to (an
//!   output may be a hard link to it) is noticed and hashed again. So a bad piece is never served, and at most what was not
//!   yet on disk is lost.
//! - **Immutability.** A piece is never overwritten, and a whole content is read-only.
//! - **Space.** A task reserves its bytes before the first is fetched. The least recently used tasks that nobody holds make
//!   room; what is held as an `Arc<`[`Content`]`>` stays.
//!
//! Every call may wait for the disk: async callers use `spawn_blocking`.
//!
//! **Not here:** checking pieces that come from elsewhere (callers do, before they write), and deciding what to fetch.

mod content;
mod encoding;
mod error;
mod export;
mod folder;
mod inner;
mod load;
mod rows;
mod slot;
mod space;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use proto::{Digest, Generation, HostId, PieceLayout, PieceSet, TaskId, TaskSpec};

pub use content::Content;
pub use error::StoreError;
pub use export::{Export, Exported, Way};
pub use folder::LOCK_FILE;

use encoding::{Meta, TaskRowV1};
use folder::Folder;
use inner::{Evicted, Inner};
use load::Loaded;
use rows::Rows;
use slot::{Facts, Gone, Key, Slot};
use space::{Ledger, Reservation};

/// Bytes of headers that are kept with a task: what an HTTP server sends fits many times over.
pub const HEADERS_BYTES_MAX: usize = 64 * 1024;

/// Where a store is and how much it may hold.
#[derive(Clone, Debug, PartialEq)]
pub struct StoreConfig {
    /// Its folder; made when it is not there.
    pub dir: PathBuf,
    /// Bytes of content it may hold.
    pub capacity_bytes: u64,
    /// Part of the capacity above which it evicts.
    pub high_watermark: f64,
    /// Part of the capacity down to which it then evicts.
    pub low_watermark: f64,
}

/// A content that is about to be fetched.
#[derive(Clone, Debug)]
pub struct NewTask {
    /// Which task.
    pub task: TaskId,
    /// Which generation of it.
    pub generation: Generation,
    /// How it is cut; its length may be unknown.
    pub layout: PieceLayout,
    /// What the whole must hash to.
    pub digest: Option<Digest>,
    /// Whether it is fetched with credentials.
    pub guarded: bool,
    /// The origin's headers to keep, at most [`HEADERS_BYTES_MAX`] in all. No credentials.
    pub headers: Vec<(String, Vec<u8>)>,
    /// What was asked for. Credentials and filtered query parameters of its URL are not written to disk.
    pub spec: TaskSpec,
    /// Whether somebody who knows (a supernode, or the origin) said that this generation is the task's.
    pub confirmed: bool,
}

/// What the store holds of one task, told without loading it.
#[derive(Clone, Debug)]
pub struct InventoryEntry {
    /// Which task.
    pub task: TaskId,
    /// Which generation.
    pub generation: Generation,
    /// Whether it is finished.
    pub complete: bool,
    /// How it is cut.
    pub layout: PieceLayout,
    /// The pieces that are here. Those of an unfinished task from an earlier process may turn out to be fewer.
    pub have: PieceSet,
    /// Number of those pieces.
    pub pieces: u32,
    /// Bytes in those pieces.
    pub bytes: u64,
    /// Whether somebody holds it right now.
    pub in_use: bool,
}

/// How full the store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Bytes reserved, fetched or not.
    pub used_bytes: u64,
    /// Bytes that may be reserved.
    pub capacity_bytes: u64,
    /// Number of contents.
    pub tasks: usize,
    /// Part of the used bytes that eviction does not give back to the disk, because an output shares the file.
    pub unreclaimable_bytes: u64,
}

/// A handle to a store; clones are handles to the same one. The folder is unlocked when the last handle and the last
/// [`Content`] are gone.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

// === impl StoreConfig ===

impl StoreConfig {
    /// A store with the usual watermarks, 0.95 and 0.85.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>, capacity_bytes: u64) -> Self {
        Self { dir: dir.into(), capacity_bytes, high_watermark: 0.95, low_watermark: 0.85 }
    }

    /// Checks the values, without touching the disk.
    ///
    /// # Errors
    /// When they make no sense.
    pub fn check(&self) -> Result<(), StoreError> {
        let what = if self.capacity_bytes == 0 {
            "the capacity must be at least 1 byte"
        } else if !(self.low_watermark > 0.0 && self.low_watermark <= self.high_watermark && self.high_watermark <= 1.0)
        {
            "watermarks must be 0 < low <= high <= 1"
        } else {
            return Ok(());
        };
        Err(StoreError::Config { what })
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a part between 0 and 1 of a byte count; a few bytes more or less do not matter"
    )]
    fn watermark_bytes(&self, part: f64) -> u64 {
        ((self.capacity_bytes as f64 * part) as u64).min(self.capacity_bytes)
    }
}

// === impl Store ===

impl Store {
    /// Opens a store, or makes a new one in a folder that is empty or not there. Leftovers of a crash are removed,
    /// and more is evicted than usual if the capacity was lowered.
    ///
    /// # Errors
    /// When the folder belongs to something else, another version or another process, or cannot be read and written.
    pub fn open(config: StoreConfig) -> Result<Self, StoreError> {
        config.check()?;
        let folder = Folder::open(&config.dir)?;
        let rows = Rows::open(&folder.rows())?;
        let host_id = rows.host_id()?;
        let ledger = Arc::default();
        let tasks = read_tasks(&folder, &rows, &ledger)?;
        folder.sweep(&tasks.keys().copied().collect::<HashSet<_>>())?;
        let last_use = tasks.values().map(|slot| slot.used_unix_ms.load(Ordering::Relaxed)).max();
        let clock_unix_ms = AtomicU64::new(last_use.unwrap_or_default());
        let inner = Inner { rows, folder, config, host_id, ledger, tasks: Mutex::new(tasks), clock_unix_ms };
        let evicted = inner.make_room(&mut inner.tasks.lock(), 0)?;
        drop(evicted);
        Ok(Self { inner: Arc::new(inner) })
    }

    /// This host's identity, drawn when the store was made.
    #[must_use]
    pub fn host_id(&self) -> HostId {
        self.inner.host_id
    }

    /// The store's folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.inner.folder.dir()
    }

    /// Makes a content, reserving its bytes, or returns the one that is there for this task and generation; that may
    /// have another layout. A content of length 0 is finished at once.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`] when it does not fit beside what is in use; when the disk fails.
    pub fn create(&self, new: NewTask) -> Result<Arc<Content>, StoreError> {
        let found_bytes: usize = new.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if found_bytes > HEADERS_BYTES_MAX {
            return Err(StoreError::HeadersTooLong { found_bytes, limit_bytes: HEADERS_BYTES_MAX });
        }
        let key = Key { task: new.task, generation: new.generation };
        loop {
            if let Some(content) = self.get_one(key)? {
                return Ok(content);
            }
            // None: somebody else has just made it, so it is found now.
            if let Some(content) = self.create_one(key, &new)? {
                return Ok(content);
            }
        }
    }

    /// A content that is here, whole or not: of this generation, or of the one made last. Counts as a use.
    ///
    /// A content that turns out to be of no use is removed, and is then not found.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn get(&self, task: TaskId, generation: Option<Generation>) -> Result<Option<Arc<Content>>, StoreError> {
        for key in self.candidates(task, generation) {
            if let Some(content) = self.get_one(key)? {
                return Ok(Some(content));
            }
        }
        Ok(None)
    }

    /// Whether this very content is here, whole or not.
    #[must_use]
    pub fn holds(&self, task: TaskId, generation: Generation) -> bool {
        self.inner.tasks.lock().contains_key(&Key { task, generation })
    }

    /// What is here.
    #[must_use]
    pub fn inventory(&self) -> Vec<InventoryEntry> {
        let slots: Vec<Arc<Slot>> = self.inner.tasks.lock().values().cloned().collect();
        slots
            .iter()
            .map(|slot| {
                let facts = slot.facts.lock();
                InventoryEntry {
                    task: slot.key.task,
                    generation: slot.key.generation,
                    complete: facts.finished.is_some(),
                    layout: facts.layout,
                    have: facts.have.clone(),
                    pieces: facts.have.len(),
                    bytes: facts.present_bytes(),
                    // The map holds it, and so does `slots`.
                    in_use: Arc::strong_count(slot) > 2,
                }
            })
            .collect()
    }

    /// Removes a content because it is wrong, also while it is in use or being made: those who hold it then get
    /// [`StoreError::Condemned`]. Its bytes count as used until they let go. Not being there is no error.
    ///
    /// # Errors
    /// When the file cannot be deleted.
    pub fn condemn(&self, task: TaskId, generation: Generation, why: &str) -> Result<(), StoreError> {
        let Some(slot) = self.inner.tasks.lock().get(&Key { task, generation }).cloned() else { return Ok(()) };
        // Whoever makes or loads it at this moment ends first: half made, its file would stay behind.
        let live = slot.live.lock();
        let file = self.inner.remove(&mut self.inner.tasks.lock(), &slot, Gone::Condemned(why.into()))?;
        drop(live);
        drop(file);
        Ok(())
    }

    /// Hashes a content that is here again, piece by piece; false when some of it is not what it was. A content that is
    /// not here has nothing wrong.
    ///
    /// # Errors
    /// When the disk fails otherwise than by giving wrong bytes.
    pub fn verify(&self, task: TaskId, generation: Generation) -> Result<bool, StoreError> {
        match self.get(task, Some(generation))? {
            Some(content) => load::holds(&content),
            None => Ok(true),
        }
    }

    /// Removes contents that nobody uses and that were last used longer ago than this; gives their number.
    ///
    /// # Errors
    /// When a file cannot be deleted.
    pub fn forget_unused(&self, longer_than: Duration) -> Result<usize, StoreError> {
        let before = self.inner.tick().saturating_sub(u64::try_from(longer_than.as_millis()).unwrap_or(u64::MAX));
        let mut tasks = self.inner.tasks.lock();
        let old: Vec<Arc<Slot>> = tasks
            .values()
            .filter(|slot| Arc::strong_count(slot) == 1 && slot.used_unix_ms.load(Ordering::Acquire) < before)
            .cloned()
            .collect();
        let mut evicted = Evicted::default();
        for slot in &old {
            evicted.add(self.inner.remove(&mut tasks, slot, Gone::Discarded)?);
        }
        drop(tasks);
        drop(evicted);
        Ok(old.len())
    }

    /// How full the store is. Looks at every finished file, so it is for now and then.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let keys: Vec<Key> = self.inner.tasks.lock().keys().copied().collect();
        let unreclaimable_bytes = keys
            .iter()
            .filter_map(|key| fs::metadata(self.inner.folder.content_path(*key)).ok())
            .filter(|metadata| metadata.nlink() > 1)
            .map(|metadata| metadata.size())
            .sum();
        Usage {
            used_bytes: self.inner.ledger.used_bytes(),
            capacity_bytes: self.inner.config.capacity_bytes,
            tasks: keys.len(),
            unreclaimable_bytes,
        }
    }

    /// The generations of a task that may answer, the newest first.
    fn candidates(&self, task: TaskId, generation: Option<Generation>) -> Vec<Key> {
        if let Some(generation) = generation {
            return vec![Key { task, generation }];
        }
        let first = Key { task, generation: Generation::unique(0) };
        let last = Key { task, generation: Generation::unique(u128::MAX) };
        let tasks = self.inner.tasks.lock();
        let mut found: Vec<(u64, Key)> =
            tasks.range(first..=last).map(|(key, slot)| (slot.created_unix_ms, *key)).collect();
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.into_iter().map(|(_, key)| key).collect()
    }

    fn get_one(&self, key: Key) -> Result<Option<Arc<Content>>, StoreError> {
        let Some(slot) = self.inner.tasks.lock().get(&key).cloned() else { return Ok(None) };
        // One caller loads, the others wait for it here.
        let mut live = slot.live.lock();
        if slot.facts.lock().gone.is_some() {
            return Ok(None);
        }
        let loaded = match live.upgrade() {
            Some(content) if content.check_intact().is_ok() => Loaded::Content(content),
            Some(content) => match load::verify_again(&content)? {
                None => Loaded::Content(content),
                Some(why) => Loaded::Unusable(why),
            },
            None => match load::load(&self.inner, &slot) {
                Err(StoreError::BadRow { what }) => Loaded::Unusable(what),
                // Removed while it was being loaded.
                Err(StoreError::Discarded | StoreError::Condemned { .. }) => return Ok(None),
                loaded => loaded?,
            },
        };
        match loaded {
            Loaded::Content(content) => {
                *live = Arc::downgrade(&content);
                self.inner.mark_used(&slot);
                Ok(Some(content))
            }
            Loaded::Unusable(why) => {
                tracing::warn!(task = %key.task, generation = %key.generation, why, "removing a content");
                let file = self.inner.remove(&mut self.inner.tasks.lock(), &slot, Gone::Discarded)?;
                drop(file);
                Ok(None)
            }
        }
    }

    fn create_one(&self, key: Key, new: &NewTask) -> Result<Option<Arc<Content>>, StoreError> {
        let bytes = new.layout.length().unwrap_or_else(|| self.inner.growth_step_bytes());
        let now = self.inner.tick();
        let slot;
        let evicted: Evicted;
        let mut live;
        {
            let mut tasks = self.inner.tasks.lock();
            if tasks.contains_key(&key) {
                return Ok(None);
            }
            evicted = self.inner.make_room(&mut tasks, bytes)?;
            let reserved = Reservation::new(&self.inner.ledger, bytes);
            slot = Arc::new(new_slot(key, new.layout, reserved, now));
            // Before others can see it: they wait for the content.
            live = slot.live.lock();
            tasks.insert(key, Arc::clone(&slot));
        }
        drop(evicted);
        let meta = Meta {
            spec: new.spec.clone(),
            digest: new.digest.clone(),
            guarded: new.guarded,
            headers: new.headers.clone(),
            created_unix_ms: now,
        };
        match load::create(&self.inner, &slot, meta, new.confirmed) {
            Ok(content) => {
                *live = Arc::downgrade(&content);
                Ok(Some(content))
            }
            Err(error) => {
                let removed = self.inner.remove(&mut self.inner.tasks.lock(), &slot, Gone::Discarded);
                if let Err(error) = removed {
                    tracing::warn!(%key.task, error = &error as &dyn std::error::Error, "a task that could not be made stays until the next start");
                }
                Err(error)
            }
        }
    }
}

fn new_slot(key: Key, layout: PieceLayout, reserved: Reservation, now_unix_ms: u64) -> Slot {
    Slot {
        key,
        created_unix_ms: now_unix_ms,
        reserved,
        live: Mutex::new(Weak::new()),
        facts: Mutex::new(Facts {
            layout,
            have: PieceSet::new(),
            sealed: None,
            finished: None,
            trusted: true,
            gone: None,
        }),
        used_unix_ms: AtomicU64::new(now_unix_ms),
        used_saved_unix_ms: AtomicU64::new(now_unix_ms),
        inode: AtomicU64::new(0),
    }
}

/// The tasks that the rows tell of, as far as their files bear it out. Rows of the others are removed.
fn read_tasks(folder: &Folder, rows: &Rows, ledger: &Arc<Ledger>) -> Result<inner::Tasks, StoreError> {
    let mut tasks = BTreeMap::new();
    let mut lost = Vec::new();
    let mut failed = None;
    rows.each_task(|key, row| match row.and_then(|row| read_task(folder, rows, ledger, key, &row)) {
        Ok(Ok(slot)) => {
            tasks.insert(key, Arc::new(slot));
        }
        Ok(Err(why)) => lost.push((key, why)),
        Err(StoreError::BadRow { what }) => lost.push((key, what)),
        Err(error) => failed = Some(error),
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    for (key, why) in lost {
        tracing::warn!(task = %key.task, generation = %key.generation, why, "dropping a task found at start");
        rows.remove(key)?;
    }
    Ok(tasks)
}

/// The slot of one row, or why there is none.
fn read_task(
    folder: &Folder,
    rows: &Rows,
    ledger: &Arc<Ledger>,
    key: Key,
    row: &TaskRowV1,
) -> Result<Result<Slot, &'static str>, StoreError> {
    let path = folder.content_path(key);
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Err("its file is gone")),
        Err(error) => return Err(StoreError::io("look at", &path, 0, error)),
    };
    let (layout, finished) = (row.layout()?, row.finished()?);
    if finished.is_some_and(|f| f.stamp.size != metadata.size()) {
        return Ok(Err("its file has another size"));
    }
    let bytes = layout.length().unwrap_or_else(|| metadata.size());
    let mut slot = new_slot(key, layout, Reservation::new(ledger, bytes), row.created_unix_ms);
    let facts = slot.facts.get_mut();
    facts.sealed = finished.map(|f| f.stamp);
    facts.finished = finished;
    facts.trusted = finished.is_some();
    facts.have = match finished {
        Some(_) => PieceSet::full(layout.count().unwrap_or_default()),
        None => rows.pieces(key)?.into_iter().map(|(piece, _)| piece).filter(|p| layout.range(*p).is_some()).collect(),
    };
    let used = rows.used(key)?.unwrap_or_default().max(row.created_unix_ms);
    *slot.used_unix_ms.get_mut() = used;
    *slot.used_saved_unix_ms.get_mut() = used;
    *slot.inode.get_mut() = metadata.ino();
    Ok(Ok(slot))
}
