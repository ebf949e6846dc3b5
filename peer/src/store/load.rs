//! Bringing a content into use: making it, and reading it back without believing more than the disk can vouch for.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};
use proto::{PieceHash, PieceHasher, PieceIndex, PieceLayout, PieceSet};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate};
use rustix::io::Errno;

use super::StoreError;
use super::content::{Content, State};
use super::encoding::Meta;
use super::folder::remove_file;
use super::inner::Inner;
use super::slot::{Finished, Slot, Stamp};

/// Bytes read and hashed at a time: enough for BLAKE3 to use its widest instructions.
const HASH_BUFFER_BYTES: usize = 256 * 1024;

/// Permissions of a content file, which the umask may narrow. Write permission is taken away when it is whole.
const CONTENT_MODE: u32 = 0o644;

/// What came of bringing a content into use.
pub(super) enum Loaded {
    /// Here it is.
    Content(Arc<Content>),
    /// What is on disk is of no use, for this reason.
    Unusable(&'static str),
}

/// Makes a new content with its file and row.
pub(super) fn create(
    inner: &Arc<Inner>,
    slot: &Arc<Slot>,
    meta: Meta,
    confirmed: bool,
) -> Result<Arc<Content>, StoreError> {
    let path = inner.folder.content_path(slot.key);
    inner.folder.make_content_folder(&path)?;
    // Never truncated: were a file left here, it might be an output's as well.
    remove_file(&path)?;
    let layout = slot.facts.lock().layout;
    let length = layout.length().unwrap_or_default();
    let make = || {
        let writer = OpenOptions::new().read(true).write(true).create_new(true).mode(CONTENT_MODE).open(&path)?;
        preallocate(&writer, 0, length)?;
        Ok((writer, File::open(&path)?))
    };
    let (writer, reader) = make().map_err(|e| StoreError::io("create", &path, length, e))?;
    note_inode(slot, &reader, &path)?;
    let state = State { writer: Some(Arc::new(writer)), ..State::default() };
    let content = assemble(inner, slot, meta, confirmed, reader, state);
    let mut state = content.state.lock();
    let mut facts = content.facts()?;
    inner.rows.create(slot.key, &content.row(&facts))?;
    if facts.is_full() {
        content.seal(&mut state, &mut facts)?;
        content.write_finished(&mut facts, &[])?;
    }
    drop(facts);
    drop(state);
    Ok(content)
}

/// Reads a content back that is in the rows.
pub(super) fn load(inner: &Arc<Inner>, slot: &Arc<Slot>) -> Result<Loaded, StoreError> {
    let path = inner.folder.content_path(slot.key);
    let Some(row) = inner.rows.task(slot.key)? else { return Ok(Loaded::Unusable("its row is gone")) };
    let reader = match File::open(&path) {
        Ok(reader) => reader,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::Unusable("its file is gone")),
        Err(error) => return Err(StoreError::io("open", &path, 0, error)),
    };
    note_inode(slot, &reader, &path)?;
    let confirmed = row.confirmed;
    let finished = row.finished()?;
    let content = assemble(inner, slot, row.into_meta()?, confirmed, reader, State::default());
    let unusable = match finished {
        Some(finished) => load_finished(&content, finished)?,
        None => load_unfinished(&content, &path)?,
    };
    Ok(unusable.map_or(Loaded::Content(content), Loaded::Unusable))
}

/// Looks at a whole content that somebody else has written to, or that looks like it: its pieces are hashed again. Returns
/// why it is of no use, if so.
pub(super) fn verify_again(content: &Content) -> Result<Option<&'static str>, StoreError> {
    let failed = |error| StoreError::io("read", &content.path(), 0, error);
    // Taken before reading: what is written meanwhile is then noticed the next time.
    let stamp = Stamp::of(&content.reader).map_err(failed)?;
    let layout = content.layout();
    if Some(stamp.size) != layout.length() {
        return Ok(Some("another program changed its length"));
    }
    for (at, expected) in content.hashes(0, usize::MAX).into_iter().enumerate() {
        let piece = PieceIndex(u32::try_from(at).map_err(|_| StoreError::BadRow { what: "number of hashes" })?);
        if expected.is_none() || is_bad(content, layout, piece, expected)? {
            return Ok(Some("another program changed its bytes"));
        }
    }
    let mut facts = content.facts()?;
    facts.sealed = Some(stamp);
    if let Some(finished) = facts.finished {
        facts.finished = Some(Finished { stamp, ..finished });
        content.inner.rows.update(content.slot.key, &content.row(&facts), None)?;
    }
    Ok(None)
}

/// Whether every piece that is here still has its hash. What the kernel has in memory is read again from the disk, as far
/// as it lets go of it.
pub(super) fn holds(content: &Content) -> Result<bool, StoreError> {
    let layout = content.layout();
    let _ = fadvise(&content.reader, 0, None, Advice::DontNeed);
    for (at, expected) in (0..).zip(content.hashes(0, usize::MAX)) {
        if expected.is_some() && is_bad(content, layout, PieceIndex(at), expected)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reserves blocks for a part of a file, so that a full disk shows now and not in the middle. The size of the file stays
/// as it is. Where the filesystem cannot, the file is sparse.
pub(super) fn preallocate(file: &File, start: u64, length: u64) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    loop {
        match fallocate(file, FallocateFlags::KEEP_SIZE, start, length) {
            Err(Errno::INTR) => {}
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The hash of a piece as it is in the file.
pub(super) fn hash_piece(file: &File, layout: PieceLayout, piece: PieceIndex) -> io::Result<PieceHash> {
    let range = layout.range(piece).ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut hasher = PieceHasher::new(layout, piece);
    let mut buf = vec![0; HASH_BUFFER_BYTES.min(usize::try_from(range.len()).unwrap_or(HASH_BUFFER_BYTES))];
    let mut at = range.start();
    while at < range.end() {
        let len = usize::try_from(range.end() - at).map_or(buf.len(), |left| left.min(buf.len()));
        file.read_exact_at(&mut buf[..len], at)?;
        hasher.update(&buf[..len]);
        at += len as u64;
    }
    Ok(hasher.finish())
}

fn assemble(
    inner: &Arc<Inner>,
    slot: &Arc<Slot>,
    meta: Meta,
    confirmed: bool,
    reader: File,
    state: State,
) -> Arc<Content> {
    Arc::new(Content {
        inner: Arc::clone(inner),
        slot: Arc::clone(slot),
        meta,
        confirmed: AtomicBool::new(confirmed),
        reader,
        state: Mutex::new(state),
        settled: Condvar::new(),
    })
}

fn note_inode(slot: &Slot, file: &File, path: &Path) -> Result<(), StoreError> {
    let metadata = file.metadata().map_err(|e| StoreError::io("look at", path, 0, e))?;
    slot.inode.store(metadata.ino(), Ordering::Release);
    Ok(())
}

/// A finished row was written after its content was synced, so the bytes are believed as long as nobody else wrote to the file.
fn load_finished(content: &Content, finished: Finished) -> Result<Option<&'static str>, StoreError> {
    let hashes = content.inner.rows.hashes(content.slot.key)?;
    let layout = content.layout();
    if proto::root_of(layout, &hashes) != Some(finished.root) {
        return Ok(Some("its hashes do not make its root"));
    }
    content.state.lock().hashes = hashes.into_iter().map(Some).collect();
    {
        let mut facts = content.facts()?;
        facts.have = PieceSet::full(layout.count().unwrap_or_default());
        facts.sealed = Some(finished.stamp);
        facts.finished = Some(finished);
        facts.trusted = true;
    }
    if content.check_intact().is_ok() { Ok(None) } else { verify_again(content) }
}

/// Piece rows are written without waiting for their bytes to reach the disk. So what an earlier process wrote is hashed
/// again; what this one wrote is believed, because the kernel still has it.
fn load_unfinished(content: &Content, path: &Path) -> Result<Option<&'static str>, StoreError> {
    let failed = |error| StoreError::io("open", path, 0, error);
    let (layout, trusted) = {
        let facts = content.facts()?;
        (facts.layout, facts.trusted && content.check_stamp(facts.sealed).is_ok())
    };
    let (mut have, mut hashes, mut bad) = (PieceSet::new(), Vec::new(), Vec::new());
    for (piece, hash) in content.inner.rows.pieces(content.slot.key)? {
        if layout.range(piece).is_none() || (!trusted && is_bad(content, layout, piece, Some(hash))?) {
            bad.push(piece);
            continue;
        }
        have.insert(piece);
        if hashes.len() <= piece.at() {
            hashes.resize(piece.at() + 1, None);
        }
        hashes[piece.at()] = Some(hash);
    }
    let metadata = content.reader.metadata().map_err(failed)?;
    let is_full = layout.count() == Some(have.len());
    if !is_full && metadata.nlink() > 1 {
        // Writing the lacking pieces would write into somebody's output.
        return Ok(Some("an output shares its file, and pieces lack"));
    }
    if !bad.is_empty() {
        let (task, pieces) = (content.slot.key.task, bad.len());
        tracing::warn!(%task, pieces, kept = have.len(), "pieces that did not reach the disk are dropped");
        content.inner.rows.remove_pieces(content.slot.key, &bad)?;
    }
    let mut state = content.state.lock();
    state.hashes = hashes;
    if metadata.nlink() == 1 {
        // It may have been whole, and read-only, before some pieces turned out to be bad.
        content.reader.set_permissions(Permissions::from_mode(metadata.mode() & 0o777 | 0o200)).map_err(failed)?;
        state.writer = Some(Arc::new(OpenOptions::new().read(true).write(true).open(path).map_err(failed)?));
    }
    let mut facts = content.facts()?;
    facts.have = have;
    facts.trusted = true;
    facts.sealed = None;
    if facts.is_full() {
        content.seal(&mut state, &mut facts)?;
    }
    Ok(None)
}

/// Whether a piece in the file has not this hash. What cannot be read is bad: a disk loses sectors, and the piece can be had again.
fn is_bad(
    content: &Content,
    layout: PieceLayout,
    piece: PieceIndex,
    hash: Option<PieceHash>,
) -> Result<bool, StoreError> {
    match hash_piece(&content.reader, layout, piece) {
        Ok(found) => Ok(Some(found) != hash),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(true),
        Err(error) => {
            tracing::warn!(path = %content.path().display(), %piece, error = &error as &dyn std::error::Error, "piece cannot be read");
            Ok(true)
        }
    }
}
