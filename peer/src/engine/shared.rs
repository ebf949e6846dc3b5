//! What the parts of one task share: the actor decides, receivers and readers look.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use http::HeaderMap;
use parking_lot::{Mutex, RwLock};
use proto::{Generation, PieceHash, PieceIndex, PieceLayout, PieceSet, Root, TaskId};
use tokio::sync::{mpsc, watch};

use super::actor::Event;
use super::error::TaskError;
use super::headers;
use crate::limit::Limit;
use crate::store::Content;

/// One task, as everybody but its actor sees it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) task: TaskId,
    pub(crate) generation: Generation,
    pub(crate) content: Arc<Content>,
    /// Hashes that the task's authority vouched for, by piece.
    expected: RwLock<Vec<Option<PieceHash>>>,
    root: OnceLock<Root>,
    status: watch::Sender<Status>,
    pub(crate) counters: Counters,
    readers: Mutex<BTreeMap<u64, PieceIndex>>,
    next_reader: AtomicU64,
    /// Each user's own rate, by the number of its handle; none is no limit.
    handles: Mutex<BTreeMap<u64, Option<u64>>>,
    next_handle: AtomicU64,
    /// This task's share of the host's download rate.
    pub(crate) limit: Limit,
    pub(crate) events: mpsc::Sender<Event>,
}

/// Where a task stands.
#[derive(Clone, Debug, Default)]
pub(crate) struct Status {
    /// Grows with every change.
    pub(crate) version: u64,
    /// The content hashes to the digest that was asked for, or none was.
    pub(crate) digest_checked: bool,
    /// All pieces are here and right, or there is no hope.
    pub(crate) end: Option<Result<(), TaskError>>,
}

/// Bytes by the way they came.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) from_peers: AtomicU64,
    pub(crate) from_origin: AtomicU64,
    pub(crate) from_cache: AtomicU64,
    /// Bytes received from other hosts, of pieces that may not be whole yet.
    pub(crate) received: AtomicU64,
}

impl Shared {
    pub(crate) fn new(content: Arc<Content>, limit: Limit, events: mpsc::Sender<Event>) -> Arc<Self> {
        let complete = content.is_complete();
        let status = Status {
            version: 0,
            // What is complete in the store was checked before it became so.
            digest_checked: complete || content.digest().is_none(),
            end: complete.then_some(Ok(())),
        };
        let here: u64 =
            content.have().iter().filter_map(|p| content.layout().range(p)).map(proto::ByteRange::len).sum();
        Arc::new(Self {
            task: content.task(),
            generation: content.generation(),
            expected: RwLock::default(),
            root: OnceLock::new(),
            status: watch::Sender::new(status),
            counters: Counters { from_cache: AtomicU64::new(here), ..Counters::default() },
            readers: Mutex::default(),
            next_reader: AtomicU64::new(0),
            handles: Mutex::default(),
            next_handle: AtomicU64::new(0),
            limit,
            events,
            content,
        })
    }

    pub(crate) fn layout(&self) -> PieceLayout {
        self.content.layout()
    }

    /// The hash a piece must have, once the authority vouched for it.
    pub(crate) fn expected(&self, piece: PieceIndex) -> Option<PieceHash> {
        self.expected.read().get(piece.at()).copied().flatten()
    }

    /// Takes hashes from piece `first` on; the pieces whose hash is news are returned.
    pub(crate) fn expect(&self, first: u32, hashes: &[PieceHash]) -> Vec<PieceIndex> {
        let mut expected = self.expected.write();
        let end = first as usize + hashes.len();
        if expected.len() < end {
            expected.resize(end, None);
        }
        let mut news = Vec::new();
        for (piece, &hash) in (first..).map(PieceIndex).zip(hashes) {
            if expected[piece.at()].replace(hash) != Some(hash) {
                news.push(piece);
            }
        }
        news
    }

    /// Takes the hashes that are known, by piece.
    pub(crate) fn expect_known(&self, hashes: &[Option<PieceHash>]) {
        for (piece, hash) in (0..).zip(hashes) {
            if let Some(hash) = hash {
                self.expect(piece, &[*hash]);
            }
        }
    }

    /// Replaces what is known of a piece.
    pub(crate) fn expect_again(&self, piece: PieceIndex, hash: Option<PieceHash>) {
        if let Some(expected) = self.expected.write().get_mut(piece.at()) {
            *expected = hash;
        }
    }

    /// The root over all pieces, once it is known.
    pub(crate) fn root(&self) -> Option<Root> {
        self.root.get().copied().or_else(|| self.content.root())
    }

    pub(crate) fn set_root(&self, root: Root) -> bool {
        *self.root.get_or_init(|| root) == root
    }

    /// All hashes, when none is missing.
    pub(crate) fn all_expected(&self) -> Option<Vec<PieceHash>> {
        let count = self.layout().count()? as usize;
        let expected = self.expected.read();
        (expected.len() >= count).then(|| expected[..count].iter().copied().collect::<Option<Vec<_>>>()).flatten()
    }

    /// Pieces whose hash is known.
    pub(crate) fn known_hashes(&self) -> PieceSet {
        (0..)
            .map(PieceIndex)
            .zip(self.expected.read().iter())
            .filter(|(_, hash)| hash.is_some())
            .map(|(piece, _)| piece)
            .collect()
    }

    // --- status ---

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    pub(crate) fn changed(&self) {
        self.status.send_modify(|status| status.version += 1);
    }

    pub(crate) fn set_digest_checked(&self) {
        self.status.send_modify(|status| {
            status.version += 1;
            status.digest_checked = true;
        });
    }

    /// Ends the task once; what was said first stays.
    pub(crate) fn end(&self, how: Result<(), TaskError>) {
        self.status.send_modify(|status| {
            status.version += 1;
            status.end.get_or_insert(how);
        });
    }

    /// Ends the task even if it had ended well: its content proved wrong.
    pub(crate) fn end_badly(&self, error: TaskError) {
        self.status.send_modify(|status| {
            status.version += 1;
            status.end = Some(Err(error));
        });
    }

    pub(crate) fn ended(&self) -> Option<Result<(), TaskError>> {
        self.status.borrow().end.clone()
    }

    // --- readers and handles ---

    pub(crate) fn reader_joined(&self, at: PieceIndex) -> u64 {
        let id = self.next_reader.fetch_add(1, Ordering::Relaxed);
        self.readers.lock().insert(id, at);
        // A full mailbox only delays the window's move until the next event.
        let _ = self.events.try_send(Event::ReadersMoved);
        id
    }

    pub(crate) fn reader_moved(&self, id: u64, to: PieceIndex) {
        self.readers.lock().insert(id, to);
        let _ = self.events.try_send(Event::ReadersMoved);
    }

    pub(crate) fn reader_left(&self, id: u64) {
        self.readers.lock().remove(&id);
        let _ = self.events.try_send(Event::ReadersMoved);
    }

    /// The first piece that a reader waits for and that is not here.
    pub(crate) fn foremost_lacking(&self) -> Option<PieceIndex> {
        let have = self.content.have();
        self.readers.lock().values().map(|&at| have.first_absent(at)).min()
    }

    /// A user of the task; gives the number of its handle.
    pub(crate) fn handle_added(&self, rate: Option<u64>) -> u64 {
        let id = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.set_rate_of(id, rate);
        id
    }

    /// Gives one user's handle a rate, in bytes per second. What is shared comes as fast as the fastest of them wants it: a
    /// slow one must not hold the others back.
    pub(crate) fn set_rate_of(&self, id: u64, rate: Option<u64>) {
        let mut handles = self.handles.lock();
        handles.insert(id, rate);
        self.limit.set(fastest(&handles));
    }

    pub(crate) fn handle_dropped(&self, id: u64) {
        let mut handles = self.handles.lock();
        handles.remove(&id);
        self.limit.set(fastest(&handles));
        if handles.is_empty() {
            let _ = self.events.try_send(Event::Unwanted);
        }
    }

    pub(crate) fn is_wanted(&self) -> bool {
        !self.handles.lock().is_empty()
    }

    pub(crate) fn client_headers(&self) -> HeaderMap {
        headers::from_kept(self.content.headers())
    }
}

/// The rate of a task that all of these use; none is no limit.
fn fastest(handles: &BTreeMap<u64, Option<u64>>) -> Option<u64> {
    handles.values().copied().collect::<Option<Vec<u64>>>()?.into_iter().max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_user_decides() {
        let of = |rates: &[Option<u64>]| fastest(&(0..).zip(rates.iter().copied()).collect());
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[Some(5)]), Some(5));
        assert_eq!(of(&[Some(5), Some(7)]), Some(7));
        assert_eq!(of(&[Some(5), None]), None);
    }
}
