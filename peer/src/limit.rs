//! Byte rates: host → task → peer, changeable while running.
//!
//! A [`Limit`] is one level of a tree. [`Limit::take`] pays its own level first and the host's last, so that what
//! leaves the host is exact however the levels below it behave; a level in the middle may be exceeded, for a moment
//! and only after a level above it held everything back, by one step per concurrent caller.
//!
//! The arithmetic is in `bucket` and knows no clock. Nothing is locked over an await, and a level without a rate
//! costs one atomic load.
//!
//! **Not here:** request rates (a request is no byte), and who may use how much (the engine sets the rates).

mod bucket;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use bucket::{Bucket, Position};

/// The largest step between two looks at the limit, in bytes, when a rate is set: a fiftieth of a second at 100 Mb/s.
const STEP_LIMITED_MAX_BYTES: u64 = 256 * 1024;
/// The smallest step in bytes: below, system calls would cost more than the bytes.
const STEP_MIN_BYTES: u64 = 4 * 1024;
/// The step in bytes when there is no rate: large enough that its overhead is not measurable, small enough that a
/// rate set meanwhile takes hold within 100 ms on any link of 100 Mb/s or more.
const STEP_FREE_BYTES: u64 = 1024 * 1024;
/// Steps per second when a rate is set, as far as the bounds above allow it.
const STEPS_PER_S: u64 = 20;

/// How many bytes may pass per second, here and in every level above. Clones are handles to the same level.
#[derive(Clone, Debug)]
pub struct Limit(Arc<Level>);

#[derive(Debug)]
struct Level {
    parent: Option<Limit>,
    /// A copy of the bucket's rate, [`UNLIMITED`] when there is none, so that the common case needs no lock.
    rate_bytes_per_s: AtomicU64,
    bucket: Mutex<Bucket>,
    /// Wakes those who wait, because the rate changed.
    changed: Notify,
    /// What the bucket counts time from.
    epoch: Instant,
}

/// The rate that is none; 18 EB/s are out of anyone's reach.
const UNLIMITED: u64 = u64::MAX;

// === impl Limit ===

impl Limit {
    /// A top level. `None` is no limit; a rate of 0 lets nothing pass until it is changed.
    ///
    /// # Panics
    /// Never; the clock is tokio's, but no runtime is needed before [`Self::take`].
    #[must_use]
    pub fn new(rate_bytes_per_s: Option<u64>) -> Self {
        Self::at(None, rate_bytes_per_s)
    }

    /// No limit at all.
    #[must_use]
    pub fn unlimited() -> Self {
        Self::new(None)
    }

    /// A level below this one: what passes it also has to pass here.
    #[must_use]
    pub fn child(&self, rate_bytes_per_s: Option<u64>) -> Self {
        Self::at(Some(self.clone()), rate_bytes_per_s)
    }

    fn at(parent: Option<Self>, rate_bytes_per_s: Option<u64>) -> Self {
        Self(Arc::new(Level {
            parent,
            rate_bytes_per_s: AtomicU64::new(rate_bytes_per_s.unwrap_or(UNLIMITED)),
            bucket: Mutex::new(Bucket::new(rate_bytes_per_s)),
            changed: Notify::new(),
            epoch: Instant::now(),
        }))
    }

    /// Changes this level's rate, for those who already wait too.
    pub fn set(&self, rate_bytes_per_s: Option<u64>) {
        let level = &*self.0;
        {
            let mut bucket = level.bucket.lock();
            bucket.set_rate(level.epoch.elapsed(), rate_bytes_per_s);
            level.rate_bytes_per_s.store(rate_bytes_per_s.unwrap_or(UNLIMITED), Ordering::Relaxed);
        }
        level.changed.notify_waiters();
    }

    /// This level's own rate in bytes per second.
    #[must_use]
    pub fn rate(&self) -> Option<u64> {
        match self.0.rate_bytes_per_s.load(Ordering::Relaxed) {
            UNLIMITED => None,
            rate => Some(rate),
        }
    }

    /// The lowest rate of this level and those above, in bytes per second: no more than this can pass.
    #[must_use]
    pub fn effective_rate(&self) -> Option<u64> {
        self.levels().filter_map(Self::rate).min()
    }

    /// Bytes to take and send at a time: small enough that a low rate is even and a changed one soon takes hold.
    #[must_use]
    pub fn step_bytes(&self) -> u64 {
        match self.effective_rate() {
            None => STEP_FREE_BYTES,
            Some(rate) => (rate / STEPS_PER_S).clamp(STEP_MIN_BYTES, STEP_LIMITED_MAX_BYTES),
        }
    }

    /// Waits until `bytes` may pass. Callers of one level are served in the order they came. A dropped future gives
    /// back what it had not yet got at the level where it waited.
    pub async fn take(&self, bytes: u64) {
        // No level can be limited by one of its bursts only to idle while the level above accumulates: parts that
        // fit every bucket keep all levels filling at once.
        let mut left = bytes;
        while left > 0 {
            let Some(burst) = self.levels().filter_map(Self::rate).map(bucket::burst_bytes).min() else { return };
            let part = left.min(burst);
            for level in self.levels() {
                level.0.take(part).await;
            }
            left -= part;
        }
    }

    /// This level, then the one above it, up to the top.
    fn levels(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |limit| limit.0.parent.as_ref())
    }
}

// === impl Level ===

impl Level {
    async fn take(&self, bytes: u64) {
        if self.rate_bytes_per_s.load(Ordering::Relaxed) == UNLIMITED {
            return;
        }
        let position = self.bucket.lock().reserve(self.epoch.elapsed(), bytes);
        let mut reserved = Reserved { level: self, bytes };
        loop {
            // Before the look at the bucket: a change in between must not be missed.
            let changed = self.changed.notified();
            let until = match self.look(position) {
                Look::Passes => {
                    reserved.bytes = 0;
                    return;
                }
                Look::At(instant) => Some(instant),
                Look::Never => None,
            };
            match until {
                Some(instant) => tokio::select! {
                    () = tokio::time::sleep_until(instant) => {}
                    () = changed => {}
                },
                None => changed.await,
            }
        }
    }

    fn look(&self, position: Position) -> Look {
        let now = self.epoch.elapsed();
        let mut bucket = self.bucket.lock();
        match bucket.wait(now, position) {
            Some(wait) if wait.is_zero() => Look::Passes,
            Some(wait) => (self.epoch + now).checked_add(wait).map_or(Look::Never, Look::At),
            None => Look::Never,
        }
    }
}

enum Look {
    Passes,
    At(Instant),
    /// Not at this rate.
    Never,
}

/// Bytes asked for and not yet granted; given back when the caller gives up.
struct Reserved<'a> {
    level: &'a Level,
    bytes: u64,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.level.bucket.lock().give_back(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests;
