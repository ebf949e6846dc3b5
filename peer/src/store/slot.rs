//! What the store remembers of every task in memory, loaded or not.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use proto::{Generation, PieceLayout, PieceSet, Root, TaskId};

use super::StoreError;
use super::content::Content;
use super::space::Reservation;

/// Which content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) task: TaskId,
    pub(super) generation: Generation,
}

/// How a content file looks that nobody has written to since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    pub(super) mtime_unix_ns: i64,
}

/// What is known of a finished content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Finished {
    pub(super) root: Root,
    pub(super) stamp: Stamp,
}

/// One task in the store. Whoever uses the task holds the `Arc` of its slot, so a slot that only the store's map holds
/// is idle. Locks are taken in this order: `live`, the content's own, the store's map, `facts`.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) key: Key,
    pub(super) created_unix_ms: u64,
    pub(super) reserved: Reservation,
    /// The loaded content while somebody uses it. Held locked while it is being loaded or made.
    pub(super) live: Mutex<Weak<Content>>,
    pub(super) facts: Mutex<Facts>,
    /// When it was last used; strictly increasing over the store's tasks, so that there is an order.
    pub(super) used_unix_ms: AtomicU64,
    /// The last use that is on disk.
    pub(super) used_saved_unix_ms: AtomicU64,
    /// Inode of the content file, to notice when an output is the same file.
    pub(super) inode: AtomicU64,
}

/// The part of a task that changes.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) layout: PieceLayout,
    pub(super) have: PieceSet,
    /// All pieces are in the file, and this is how it looked then. Nobody of us writes to it any more.
    pub(super) sealed: Option<Stamp>,
    pub(super) finished: Option<Finished>,
    /// `have` was made or checked by this process. What an earlier one wrote may not have reached the disk.
    pub(super) trusted: bool,
    /// Why it is not in the store any more: no row may be written for it then.
    pub(super) gone: Option<Gone>,
}

/// Why a task left the store.
#[derive(Clone, Debug)]
pub(super) enum Gone {
    /// Its room was needed, or what was here was of no use; nothing is said against the content.
    Discarded,
    /// The content is wrong, and this is how it was noticed.
    Condemned(Arc<str>),
}

// === impl Facts ===

impl Facts {
    /// # Errors
    /// When the task left the store.
    pub(super) fn check_here(&self) -> Result<(), StoreError> {
        match &self.gone {
            None => Ok(()),
            Some(Gone::Discarded) => Err(StoreError::Discarded),
            Some(Gone::Condemned(why)) => Err(StoreError::Condemned { why: why.to_string() }),
        }
    }
}

// === impl Key ===

impl Key {
    /// Length of the key's bytes.
    pub(super) const LEN: usize = 48;

    pub(super) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..32].copy_from_slice(&self.task.to_bytes());
        bytes[32..].copy_from_slice(&self.generation.to_bytes());
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (task, generation) = bytes.split_at_checked(32)?;
        Some(Self { task: TaskId::from_bytes(task).ok()?, generation: Generation::from_bytes(generation).ok()? })
    }
}

// === impl Stamp ===

impl Stamp {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::from(&metadata))
    }
}

impl From<&Metadata> for Stamp {
    fn from(metadata: &Metadata) -> Self {
        // Wraps in the year 2262, and then still differs when the file was written to.
        let mtime_unix_ns = metadata.mtime().wrapping_mul(1_000_000_000).wrapping_add(metadata.mtime_nsec());
        Self { size: metadata.size(), mtime_unix_ns }
    }
}

// === impl Facts ===

impl Facts {
    /// Whether the length is known and every piece is here.
    pub(super) fn is_full(&self) -> bool {
        self.layout.count() == Some(self.have.len())
    }

    /// Bytes in the pieces that are here.
    pub(super) fn present_bytes(&self) -> u64 {
        let full = u64::from(self.have.len()) * u64::from(self.layout.piece_len());
        let Some((length, count)) = self.layout.length().zip(self.layout.count()) else { return full };
        let last = proto::PieceIndex(count.wrapping_sub(1));
        if count > 0 && self.have.contains(last) {
            full - (u64::from(count) * u64::from(self.layout.piece_len()) - length)
        } else {
            full
        }
    }
}
