//! One content: its file, and what is known of its pieces.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex, MutexGuard};
use proto::{Digest, Generation, PieceHash, PieceIndex, PieceLayout, PieceSet, Root, TaskId, TaskSpec, root_of};

use super::StoreError;
use super::encoding::{Meta, TaskRowV1};
use super::inner::Inner;
use super::load;
use super::slot::{Facts, Finished, Gone, Slot, Stamp};

/// The content of one generation of one task. Whoever holds it uses it: it is not evicted meanwhile.
///
/// All calls may wait for the disk; an async caller uses `spawn_blocking`.
pub struct Content {
    pub(super) inner: Arc<Inner>,
    pub(super) slot: Arc<Slot>,
    pub(super) meta: Meta,
    pub(super) confirmed: AtomicBool,
    /// Only ever for reading, so that handing it out is harmless.
    pub(super) reader: File,
    pub(super) state: Mutex<State>,
    /// A claim was given up, or claims may be made again.
    pub(super) settled: Condvar,
}

/// What only a loaded content has.
#[derive(Debug, Default)]
pub(super) struct State {
    /// By piece; a hash counts only if the piece is in [`Facts::have`].
    pub(super) hashes: Vec<Option<PieceHash>>,
    /// Pieces being written.
    pub(super) claims: BTreeSet<PieceIndex>,
    /// The length is about to change: no new claims.
    pub(super) paused: bool,
    /// None once the content is whole.
    pub(super) writer: Option<Arc<File>>,
}

/// The right to write one piece.
struct Claim<'a> {
    content: &'a Content,
    piece: PieceIndex,
}

// === impl Content ===

impl Content {
    /// Which task.
    #[must_use]
    pub fn task(&self) -> TaskId {
        self.slot.key.task
    }

    /// Which generation of it.
    #[must_use]
    pub fn generation(&self) -> Generation {
        self.slot.key.generation
    }

    /// How the content is cut.
    #[must_use]
    pub fn layout(&self) -> PieceLayout {
        self.slot.facts.lock().layout
    }

    /// What was asked for. After a restart its URL lacks credentials and filtered query parameters.
    #[must_use]
    pub const fn spec(&self) -> &TaskSpec {
        &self.meta.spec
    }

    /// What the whole must hash to, when that is known.
    #[must_use]
    pub const fn digest(&self) -> Option<&Digest> {
        self.meta.digest.as_ref()
    }

    /// Whether it was fetched with credentials, so that another caller may not have it unasked.
    #[must_use]
    pub const fn guarded(&self) -> bool {
        self.meta.guarded
    }

    /// The origin's headers that came with it.
    #[must_use]
    pub fn headers(&self) -> &[(String, Vec<u8>)] {
        &self.meta.headers
    }

    /// Whether somebody who knows has said that this is the task's right content, see [`super::NewTask::confirmed`].
    #[must_use]
    pub fn is_confirmed(&self) -> bool {
        self.confirmed.load(Ordering::Acquire)
    }

    /// Notes that the content was confirmed.
    ///
    /// # Errors
    /// When the row cannot be written, or the task was discarded.
    pub fn confirm(&self) -> Result<(), StoreError> {
        let facts = self.facts()?;
        if !self.confirmed.swap(true, Ordering::AcqRel) {
            self.inner.rows.update(self.slot.key, &self.row(&facts), None)?;
        }
        Ok(())
    }

    /// The root, once finished.
    #[must_use]
    pub fn root(&self) -> Option<Root> {
        self.slot.facts.lock().finished.map(|f| f.root)
    }

    /// The pieces that are here; none after the task was discarded.
    #[must_use]
    pub fn have(&self) -> PieceSet {
        self.facts().map(|facts| facts.have.clone()).unwrap_or_default()
    }

    /// Whether a piece is here.
    #[must_use]
    pub fn has(&self, piece: PieceIndex) -> bool {
        self.facts().is_ok_and(|facts| facts.have.contains(piece))
    }

    /// Whether the content was finished: whole, synced, immutable.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.facts().is_ok_and(|facts| facts.finished.is_some())
    }

    /// Whether the length is known and all pieces are here, finished or not.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.facts().is_ok_and(|facts| facts.is_full())
    }

    /// The hash of a piece that is here.
    #[must_use]
    pub fn hash_of(&self, piece: PieceIndex) -> Option<PieceHash> {
        self.hashes(piece.0, 1).pop().flatten()
    }

    /// The hashes of up to `max` pieces from `first` on; none for those that are not here. Ends with the content, or
    /// with the last piece known while the length is not.
    #[must_use]
    pub fn hashes(&self, first: u32, max: usize) -> Vec<Option<PieceHash>> {
        let state = self.state.lock();
        let Ok(facts) = self.facts() else { return Vec::new() };
        let end = facts.layout.count().map_or(state.hashes.len(), |count| count as usize);
        (first as usize..end.min((first as usize).saturating_add(max)))
            .map(|at| {
                let is_here = u32::try_from(at).is_ok_and(|at| facts.have.contains(PieceIndex(at)));
                state.hashes.get(at).copied().flatten().filter(|_| is_here)
            })
            .collect()
    }

    /// The file, open for reading, for `sendfile`. Only pieces that are here may be sent from it; call
    /// [`Self::check_intact`] before, when nobody verifies the bytes behind you.
    #[must_use]
    pub const fn file(&self) -> &File {
        &self.reader
    }

    /// Makes sure that no other program has written to a whole content, which may share its file with an output.
    ///
    /// # Errors
    /// [`StoreError::Modified`] if so: [`super::Store::get`] then finds out what is left of it.
    pub fn check_intact(&self) -> Result<(), StoreError> {
        let sealed = self.facts()?.sealed;
        self.check_stamp(sealed)
    }

    /// The length became known: pieces are cut accordingly, and space is reserved for exactly that. A content of
    /// length 0 is thereby finished.
    ///
    /// # Errors
    /// When another length is known, or pieces reach beyond this one; when there is no space; when a row cannot be written.
    pub fn set_length(&self, length: u64) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        while state.paused {
            self.settled.wait(&mut state);
        }
        state.paused = true;
        while !state.claims.is_empty() {
            self.settled.wait(&mut state);
        }
        // From here on the lock is held, so nobody sees it paused.
        state.paused = false;
        self.settled.notify_all();
        let (layout, last) = {
            let facts = self.facts()?;
            (facts.layout, facts.have.iter().last())
        };
        match layout.length() {
            Some(known) if known == length => return Ok(()),
            Some(known) => return Err(StoreError::LengthConflict { known_bytes: known, told_bytes: length }),
            None => {}
        }
        let present = last.and_then(|piece| layout.range(piece)).map_or(0, |range| range.end());
        let known = PieceLayout::new(Some(length), layout.piece_len()).filter(|_| present <= length);
        let Some(known) = known else {
            return Err(StoreError::LengthConflict { known_bytes: present, told_bytes: length });
        };
        self.reserve(length)?;
        if let Some(writer) = &state.writer {
            load::preallocate(writer, 0, length)
                .map_err(|e| StoreError::io("reserve space for", &self.path(), length, e))?;
        }
        let first = self.rehash_lone_piece(known)?;
        self.apply_length(&mut state, known, first)
    }

    fn apply_length(
        &self,
        state: &mut MutexGuard<'_, State>,
        layout: PieceLayout,
        first: Option<PieceHash>,
    ) -> Result<(), StoreError> {
        let mut facts = self.facts()?;
        let before = std::mem::replace(&mut facts.layout, layout);
        let row = self.row(&facts);
        if let Err(error) = self.inner.rows.update(self.slot.key, &row, first.map(|hash| (PieceIndex(0), hash))) {
            facts.layout = before;
            return Err(error);
        }
        if let (Some(slot), Some(_)) = (state.hashes.first_mut(), first) {
            *slot = first;
        }
        self.slot.reserved.set(layout.length().unwrap_or_default());
        if facts.is_full() {
            self.seal(state, &mut facts)?;
        }
        if layout.count() == Some(0) {
            self.write_finished(&mut facts, &[])?;
        }
        Ok(())
    }

    /// While the length is unknown, piece 0 is hashed as one of several. When it turns out to be alone, its hash is another one.
    fn rehash_lone_piece(&self, layout: PieceLayout) -> Result<Option<PieceHash>, StoreError> {
        if layout.count() != Some(1) || !self.has(PieceIndex(0)) {
            return Ok(None);
        }
        load::hash_piece(&self.reader, layout, PieceIndex(0))
            .map(Some)
            .map_err(|e| StoreError::io("read", &self.path(), 0, e))
    }

    /// Stores a piece whose bytes the caller has verified against `hash`. False when it was here already: a piece is never
    /// overwritten. Of two callers with the same piece one writes and the other waits for it.
    ///
    /// # Errors
    /// When there is no such piece or it has another length; when there is no space; when the task was discarded.
    pub fn write_piece(&self, piece: PieceIndex, bytes: &[u8], hash: PieceHash) -> Result<bool, StoreError> {
        let Some((_claim, layout, writer)) = self.claim(piece, bytes)? else { return Ok(false) };
        let start = u64::from(piece.0) * u64::from(layout.piece_len());
        let end = start + bytes.len() as u64;
        if layout.length().is_none() {
            self.grow(end)?;
        }
        writer.write_all_at(bytes, start).map_err(|e| StoreError::io("write", &self.path(), bytes.len() as u64, e))?;
        // The caller may have hashed it before the length was known, see `rehash_lone_piece`.
        let hash = if layout.count() == Some(1) { PieceHash::of(layout, piece, bytes) } else { hash };
        let mut state = self.state.lock();
        let mut facts = self.facts()?;
        // Under this lock, so that a task that is being discarded gets no row any more.
        self.inner.rows.put_piece(self.slot.key, piece, hash)?;
        if state.hashes.len() <= piece.at() {
            state.hashes.resize(piece.at() + 1, None);
        }
        state.hashes[piece.at()] = Some(hash);
        facts.have.insert(piece);
        if facts.is_full() {
            drop(writer);
            self.seal(&mut state, &mut facts)?;
        }
        Ok(true)
    }

    /// Claims a piece for writing; none when it is here.
    fn claim(
        &self,
        piece: PieceIndex,
        bytes: &[u8],
    ) -> Result<Option<(Claim<'_>, PieceLayout, Arc<File>)>, StoreError> {
        let mut state = self.state.lock();
        loop {
            let facts = self.facts()?;
            let range = facts.layout.range(piece).ok_or(StoreError::NoSuchPiece { piece })?;
            if range.len() != bytes.len() as u64 {
                let (expected_bytes, found_bytes) = (range.len(), bytes.len() as u64);
                return Err(StoreError::WrongLength { piece, expected_bytes, found_bytes });
            }
            if facts.have.contains(piece) {
                return Ok(None);
            }
            if !state.paused && !state.claims.contains(&piece) {
                let layout = facts.layout;
                drop(facts);
                let writer = Arc::clone(state.writer.as_ref().ok_or(StoreError::Discarded)?);
                state.claims.insert(piece);
                return Ok(Some((Claim { content: self, piece }, layout, writer)));
            }
            drop(facts);
            self.settled.wait(&mut state);
        }
    }

    /// Reads from the pieces that are here: up to the end of `buf`, of the content, or of the run of present pieces.
    /// Returns the number of bytes, 0 only at the end of the content or for an empty `buf`.
    ///
    /// # Errors
    /// [`StoreError::Absent`] when the first byte is not here; [`StoreError::Modified`] when another program wrote to
    /// the file; when the disk cannot be read.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize, StoreError> {
        let (end, sealed) = {
            let facts = self.facts()?;
            let layout = facts.layout;
            if buf.is_empty() || layout.length().is_some_and(|length| offset >= length) {
                return Ok(0);
            }
            let first = layout.piece_at(offset);
            let absent = facts.have.first_absent(first);
            if absent == first {
                return Err(StoreError::Absent { piece: first });
            }
            let end = u64::from(absent.0) * u64::from(layout.piece_len());
            (layout.length().map_or(end, |length| end.min(length)), facts.sealed)
        };
        self.check_stamp(sealed)?;
        let len = usize::try_from(end - offset).map_or(buf.len(), |here| here.min(buf.len()));
        match self.reader.read_exact_at(&mut buf[..len], offset) {
            Ok(()) => Ok(len),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                Err(StoreError::Modified { path: self.path() })
            }
            Err(error) => Err(StoreError::io("read", &self.path(), 0, error)),
        }
    }

    /// All pieces are here and the whole is right: makes the content durable, and then says so in its row. Takes as long as
    /// the disk needs for the bytes. Finishing a finished content with the same root does nothing.
    ///
    /// # Errors
    /// When pieces lack, or have another root; when another program has written to the file; when the disk cannot take
    /// the bytes, and then the task is discarded.
    pub fn finish(&self, root: Root) -> Result<(), StoreError> {
        let (layout, sealed) = {
            let mut state = self.state.lock();
            let mut facts = self.facts()?;
            if let Some(finished) = facts.finished {
                return check_root(root, finished.root);
            }
            if !facts.is_full() {
                return Err(StoreError::Incomplete { present: facts.have.len(), expected: facts.layout.count() });
            }
            if facts.sealed.is_none() {
                self.seal(&mut state, &mut facts)?;
            }
            (facts.layout, facts.sealed)
        };
        let hashes: Vec<PieceHash> = self.hashes(0, usize::MAX).into_iter().flatten().collect();
        check_root(root, root_of(layout, &hashes).ok_or(StoreError::BadRow { what: "number of hashes" })?)?;
        self.check_stamp(sealed)?;
        if let Err(error) = self.reader.sync_data() {
            self.give_up();
            return Err(StoreError::io("sync", &self.path(), layout.length().unwrap_or_default(), error));
        }
        let mut facts = self.facts()?;
        if facts.finished.is_none() {
            self.write_finished(&mut facts, &hashes)?;
        }
        Ok(())
    }

    /// Discards the content after a failed sync. The kernel reports such a failure once and then counts the lost pages as
    /// clean: they can be read until they are needed elsewhere, and a second sync would succeed. So there is no second one.
    fn give_up(&self) {
        tracing::error!(path = %self.path().display(), "the disk did not take a content, which is discarded");
        if let Err(error) = self.discard() {
            tracing::warn!(path = %self.path().display(), error = &error as &dyn std::error::Error, "cannot discard it");
        }
    }

    /// Removes this very content, though it is in use. One that was made since in its place stays.
    ///
    /// # Errors
    /// When the file cannot be deleted.
    pub fn discard(&self) -> Result<(), StoreError> {
        self.remove(Gone::Discarded)
    }

    /// Removes this very content as [`Self::discard`] does, because it is wrong: those who hold it then get
    /// [`StoreError::Condemned`].
    ///
    /// # Errors
    /// When the file cannot be deleted.
    pub fn condemn(&self, why: &str) -> Result<(), StoreError> {
        self.remove(Gone::Condemned(why.into()))
    }

    fn remove(&self, why: Gone) -> Result<(), StoreError> {
        let file = self.inner.remove(&mut self.inner.tasks.lock(), &self.slot, why)?;
        // Freeing its blocks takes a while; no lock of the store is held for it.
        drop(file);
        Ok(())
    }

    /// Where the content file is.
    pub(super) fn path(&self) -> PathBuf {
        self.inner.folder.content_path(self.slot.key)
    }

    /// The facts of a task that is not discarded.
    pub(super) fn facts(&self) -> Result<MutexGuard<'_, Facts>, StoreError> {
        let facts = self.slot.facts.lock();
        facts.check_here().map(|()| facts)
    }

    pub(super) fn row(&self, facts: &Facts) -> TaskRowV1 {
        TaskRowV1::new(&self.meta, facts.layout, self.is_confirmed(), facts.finished.as_ref())
    }

    /// The content is whole: from here on nobody writes to its file, and that can be checked.
    pub(super) fn seal(&self, state: &mut State, facts: &mut Facts) -> Result<(), StoreError> {
        let length = facts.layout.length().unwrap_or_default();
        let seal = || {
            let metadata = self.reader.metadata()?;
            if metadata.len() != length
                && let Some(writer) = &state.writer
            {
                writer.set_len(length)?;
            }
            let mut permissions = metadata.permissions();
            permissions.set_mode(permissions.mode() & 0o444);
            self.reader.set_permissions(permissions)?;
            Stamp::of(&self.reader)
        };
        let stamp = seal().map_err(|e| StoreError::io("make read-only", &self.path(), 0, e))?;
        if stamp.size != length {
            return Err(StoreError::Modified { path: self.path() });
        }
        facts.sealed = Some(stamp);
        state.writer = None;
        Ok(())
    }

    /// Writes the finished row; the content is synced.
    pub(super) fn write_finished(&self, facts: &mut Facts, hashes: &[PieceHash]) -> Result<(), StoreError> {
        let root = root_of(facts.layout, hashes).ok_or(StoreError::BadRow { what: "number of hashes" })?;
        let stamp = facts.sealed.ok_or_else(|| StoreError::Modified { path: self.path() })?;
        facts.finished = Some(Finished { root, stamp });
        let row = self.row(facts);
        self.inner.rows.finish(self.slot.key, &row, hashes).inspect_err(|_| facts.finished = None)
    }

    pub(super) fn check_stamp(&self, sealed: Option<Stamp>) -> Result<(), StoreError> {
        let Some(sealed) = sealed else { return Ok(()) };
        let now = Stamp::of(&self.reader).map_err(|e| StoreError::io("look at", &self.path(), 0, e))?;
        if now == sealed { Ok(()) } else { Err(StoreError::Modified { path: self.path() }) }
    }

    /// Reserves more, a step at a time, until `end` is inside.
    fn grow(&self, end: u64) -> Result<(), StoreError> {
        if end <= self.slot.reserved.bytes() {
            return Ok(());
        }
        self.reserve(end.next_multiple_of(self.inner.growth_step_bytes()))
    }

    fn reserve(&self, bytes: u64) -> Result<(), StoreError> {
        let evicted = self.inner.grow(&self.slot, bytes)?;
        // Closing the evicted files frees their blocks, which takes a while; no lock of the store is held for it.
        drop(evicted);
        Ok(())
    }
}

fn check_root(expected: Root, found: Root) -> Result<(), StoreError> {
    if expected == found { Ok(()) } else { Err(StoreError::WrongRoot { expected, found }) }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content")
            .field("task", &self.slot.key.task)
            .field("generation", &self.slot.key.generation)
            .finish_non_exhaustive()
    }
}

impl Drop for Content {
    fn drop(&mut self) {
        // It was in use until now, however long ago it was asked for.
        self.slot.used_unix_ms.store(self.inner.tick(), Ordering::Release);
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.content.state.lock().claims.remove(&self.piece);
        self.content.settled.notify_all();
    }
}
