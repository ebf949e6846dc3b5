//! Whose bytes are whose: the ledger of reserved bytes, and what the disk has left.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes left free on the disk beyond what a task needs: room for the rows' log, which grows with every piece.
pub(super) const DISK_HEADROOM_BYTES: u64 = 4 * 1024 * 1024;

/// By how much a task of unknown length reserves more, in bytes: large enough that a lock of the whole store is
/// taken rarely, small enough that short answers of unknown length do not evict much.
pub(super) const GROWTH_STEP_BYTES: u64 = 16 * 1024 * 1024;

/// The sum of all reservations, in bytes.
#[derive(Debug, Default)]
pub(super) struct Ledger(AtomicU64);

/// What one task has reserved. Given back when dropped, which is when nobody holds the task any more: the space of
/// a file that was deleted while open is free only then.
#[derive(Debug)]
pub(super) struct Reservation {
    ledger: Arc<Ledger>,
    bytes: AtomicU64,
}

impl Ledger {
    pub(super) fn used_bytes(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl Reservation {
    pub(super) fn new(ledger: &Arc<Ledger>, bytes: u64) -> Self {
        ledger.0.fetch_add(bytes, Ordering::AcqRel);
        Self { ledger: Arc::clone(ledger), bytes: AtomicU64::new(bytes) }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Acquire)
    }

    /// Changes the reservation. Only one thread at a time does so for a task: the caller holds a lock.
    pub(super) fn set(&self, bytes: u64) {
        let before = self.bytes.swap(bytes, Ordering::AcqRel);
        if bytes >= before {
            self.ledger.0.fetch_add(bytes - before, Ordering::AcqRel);
        } else {
            self.ledger.0.fetch_sub(before - bytes, Ordering::AcqRel);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// Bytes an unprivileged writer may still write to the filesystem that holds `path`.
pub(super) fn disk_free(path: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// As [`disk_free`] for a file that may not be there (any more): its folder's filesystem. For messages only, so
/// that failing to find out is 0.
pub(super) fn disk_free_near(path: &Path) -> u64 {
    path.ancestors()
        .find_map(|p| disk_free(if p.as_os_str().is_empty() { Path::new(".") } else { p }).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservations_add_up_and_are_given_back() {
        let ledger = Arc::new(Ledger::default());
        let a = Reservation::new(&ledger, 10);
        let b = Reservation::new(&ledger, 5);
        a.set(3);
        b.set(7);
        assert_eq!((ledger.used_bytes(), a.bytes(), b.bytes()), (10, 3, 7));
        drop(a);
        assert_eq!(ledger.used_bytes(), 7);
        drop(b);
        assert_eq!(ledger.used_bytes(), 0);
    }

    #[test]
    fn free_bytes_are_found_for_files_that_are_not_there() {
        assert!(disk_free_near(Path::new("/no/such/file")) > 0);
        assert!(disk_free_near(Path::new("no-such-file")) > 0);
    }
}
