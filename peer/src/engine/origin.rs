//! Reading a task from its origin: what the origin says of it, and its bytes as pieces.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use http::HeaderMap;
use proto::{ByteRange, Generation, Kind, PieceHash, PieceHasher, PieceIndex, PieceLayout, TaskSpec, Validators};

use tokio::task::JoinSet;

use super::Inner;
use super::actor::{Event, run_range};
use super::error::TaskError;
use super::headers;
use super::shared::Shared;
use crate::limit::Limit;
use crate::source::{OriginBody, OriginRequest, OriginResponse, SourceError};
use crate::store::Content;

/// The end of a range that has none: servers read it as a signed number of 64 bits and refuse what does not fit.
const RANGE_END_MAX: u64 = i64::MAX as u64;

/// A body from the origin, positioned in the task's content.
#[derive(Debug)]
pub(crate) struct OriginBytes {
    /// Offset in the task's content of the body's first byte that was not yet taken.
    at: u64,
    /// Bytes of the body that stand before the task's content (a whole body where a range was asked for).
    skip: u64,
    body: OriginBody,
}

/// Pieces being written while the next one is read, at most.
const WRITES_MAX: usize = 4;

/// On whose behalf the origin is read.
pub(crate) struct Caller {
    /// The caller's own URL; it may be signed.
    pub(crate) spec: TaskSpec,
    /// The caller's own headers.
    pub(crate) headers: HeaderMap,
    /// A limit besides the task's.
    pub(crate) limit: Option<Limit>,
    /// Counts the bytes read.
    pub(crate) read: Arc<AtomicU64>,
}

/// What happens while the origin is read.
#[derive(Debug)]
pub(crate) enum OriginEvent {
    /// A piece was read, hashed and stored.
    Piece { piece: PieceIndex, hash: PieceHash },
    /// The body ended and so gave the length, which the content may not know yet.
    Length(u64),
    /// Reading ended.
    Ended(Result<(), TaskError>),
}

/// What the origin says of a task.
pub(crate) struct Resolved {
    pub(crate) generation: Generation,
    pub(crate) layout: PieceLayout,
    pub(crate) headers: Vec<(String, Vec<u8>)>,
    pub(crate) guarded: bool,
    /// The content's beginning is on its way. `None` when the origin confirmed what is held already.
    pub(crate) body: Option<OriginBytes>,
}

fn request(inner: &Inner, spec: &TaskSpec, headers: HeaderMap, range: Option<ByteRange>) -> OriginRequest {
    OriginRequest {
        url: spec.url.clone(),
        headers,
        range,
        if_range: None,
        if_none_match: None,
        guard: inner.config.guard.clone(),
    }
}

/// Validators kept beside a content.
fn validators_of(content: &Content) -> Validators {
    let kept = headers::from_kept(content.headers());
    let text = |name| kept.get(name).and_then(|value| value.to_str().ok()).map(ToOwned::to_owned);
    Validators {
        etag: text(http::header::ETAG),
        last_modified: text(http::header::LAST_MODIFIED),
        length: content.layout().length(),
    }
}

/// Asks the origin about a content without reading it: what it says to `HEAD`, or to a request for one byte where it
/// answers `HEAD` otherwise than `GET`, as it does for a URL signed for `GET` alone.
async fn probe(inner: &Inner, spec: &TaskSpec, headers: HeaderMap) -> Result<OriginResponse, SourceError> {
    match inner.source.head(request(inner, spec, headers.clone(), None)).await {
        Err(error) if error.answer().is_some_and(|answer| matches!(answer.status.as_u16(), 403 | 405 | 501)) => {
            inner.source.get(request(inner, spec, headers, ByteRange::new(0, 1))).await
        }
        asked => asked,
    }
}

/// Asks the origin for a task's content, or to confirm the one that is held.
pub(crate) async fn resolve(
    inner: &Inner,
    spec: &TaskSpec,
    headers: HeaderMap,
    held: Option<&Content>,
) -> Result<Resolved, TaskError> {
    if let Some(held) = held.filter(|content| !content.is_complete()) {
        // Of a partial content only the rest will be read, in ranges, once it is known to be the same one still.
        let response = probe(inner, spec, headers.clone()).await?;
        // What is named by its digest is the same one for sure; that the caller may have it is all that was asked.
        // The same strong tag with another length: one of the two answers was wrong, so nothing is built upon them.
        let same_length = response.validators.length.is_none() || response.validators.length == held.layout().length();
        let same = Generation::of_validators(&response.validators) == Some(held.generation());
        if same_length && (spec.content_addressed || same) {
            return Ok(confirmed(held, response.used_credentials));
        }
    }
    let mut request = request(inner, spec, headers, spec.range);
    // Only a content that is whole can be confirmed instead of fetched: of a partial one the bytes are needed anyway.
    request.if_none_match = held.filter(|content| content.is_complete() && spec.range.is_none()).map(validators_of);
    let policy = inner.source.config().retry.clone();
    let response = inner.source.get_with_retry(request, &policy, rand::random()).await?;
    if let Some(held) = held.filter(|_| response.not_modified) {
        return Ok(confirmed(held, response.used_credentials));
    }
    let length = content_length(spec, &response)?;
    let generation = match &spec.digest {
        Some(digest) if spec.content_addressed => Generation::of_digest(digest),
        _ => Generation::of_validators(&response.validators).unwrap_or_else(|| Generation::unique(rand::random())),
    };
    Ok(Resolved {
        generation,
        layout: PieceLayout::of_length(length),
        headers: headers::describing(&response.headers),
        guarded: response.used_credentials,
        body: Some(positioned(spec, response, 0)),
    })
}

fn confirmed(held: &Content, used_credentials: bool) -> Resolved {
    Resolved {
        generation: held.generation(),
        layout: held.layout(),
        headers: held.headers().to_vec(),
        guarded: held.guarded() || used_credentials,
        body: None,
    }
}

/// Length of the task's content, from the answer to a request for all of it.
fn content_length(spec: &TaskSpec, response: &OriginResponse) -> Result<Option<u64>, TaskError> {
    let Some(wanted) = spec.range else { return Ok(response.length) };
    let total = response.validators.length;
    match total {
        Some(total) if wanted.start() >= total => {
            Err(TaskError::new(Kind::Invalid, format!("the range {wanted} begins after the content's {total} bytes")))
        }
        Some(total) => Ok(Some(wanted.end().min(total) - wanted.start())),
        None => Ok(response.range.map(ByteRange::len)),
    }
}

/// A response's body, as the content's bytes from `at` on.
fn positioned(spec: &TaskSpec, response: OriginResponse, at: u64) -> OriginBytes {
    let wanted_start = spec.range.map_or(0, ByteRange::start) + at;
    let body_start = response.range.map_or(0, ByteRange::start);
    OriginBytes { at, skip: wanted_start.saturating_sub(body_start), body: response.body }
}

/// The generation that the origin has now, when it can be told.
pub(crate) async fn current_generation(inner: &Inner, spec: &TaskSpec, headers: HeaderMap) -> Option<Generation> {
    let response = probe(inner, spec, headers).await.ok()?;
    Generation::of_validators(&response.validators)
}

/// Asks the origin whether a caller with these headers may have the task, and which generation it gives this caller, when
/// that can be told.
pub(crate) async fn may_have(
    inner: &Inner,
    spec: &TaskSpec,
    headers: HeaderMap,
) -> Result<Option<Generation>, TaskError> {
    let told = match probe(inner, spec, headers.clone()).await {
        Ok(response) => Generation::of_validators(&response.validators),
        // Of an empty content there is no first byte.
        Err(SourceError::RangeNotSatisfiable { .. }) => None,
        Err(error) => return Err(error.into()),
    };
    if told.is_some() || spec.content_addressed {
        return Ok(told);
    }
    // Some origins name no validators to `HEAD`.
    let first = inner.source.get(request(inner, spec, headers, ByteRange::new(0, 1))).await;
    Ok(first.ok().and_then(|response| Generation::of_validators(&response.validators)))
}

/// A few bytes of the content as the origin has it for this caller.
pub(crate) async fn excerpt(
    inner: &Inner,
    spec: &TaskSpec,
    headers: HeaderMap,
    range: ByteRange,
) -> Result<Vec<u8>, TaskError> {
    let response = inner.source.get(request(inner, spec, headers, Some(range))).await?;
    let mut bytes = positioned(spec, response, range.start());
    let len = usize::try_from(range.len()).expect("a few bytes");
    let mut excerpt = Vec::with_capacity(len);
    while excerpt.len() < len {
        let Some(chunk) = bytes.next().await? else { break };
        excerpt.extend_from_slice(&chunk[..chunk.len().min(len - excerpt.len())]);
    }
    Ok(excerpt)
}

/// Reads pieces `from` to `to` (not included; `None` = to the end) and stores them, telling the task's actor.
pub(crate) async fn read(
    inner: Arc<Inner>,
    shared: Arc<Shared>,
    caller: Caller,
    body: Option<OriginBytes>,
    from: PieceIndex,
    to: Option<PieceIndex>,
) {
    let result = read_run(&inner, &shared, &caller, body, from, to).await;
    let _ = shared.events.send(Event::Origin(OriginEvent::Ended(result))).await;
}

async fn read_run(
    inner: &Arc<Inner>,
    shared: &Arc<Shared>,
    caller: &Caller,
    body: Option<OriginBytes>,
    from: PieceIndex,
    to: Option<PieceIndex>,
) -> Result<(), TaskError> {
    let mut bytes = match body {
        Some(body) => body,
        None => match reopen(inner, shared, caller, from, to).await? {
            Some(body) => body,
            // There is nothing behind what is here.
            None => return body_ended(shared, shared.layout(), from, &[]).await,
        },
    };
    let mut piece = shared.layout().piece_at(bytes.at);
    let end = to.map_or(u32::MAX, |to| to.0);
    let mut rest = Bytes::new();
    let mut writes = JoinSet::new();
    while piece.0 < end {
        let layout = shared.layout();
        let Some(range) = layout.range(piece) else { break };
        let len = usize::try_from(range.len()).expect("a piece is at most 4 MiB");
        let mut buffer = inner.buffers.take(len).await;
        let mut hasher = PieceHasher::new(layout, piece);
        let mut filled = 0;
        while filled < len {
            if rest.is_empty() {
                match bytes.next().await? {
                    Some(chunk) => rest = chunk,
                    None => break,
                }
            }
            let chunk = rest.split_to(rest.len().min(len - filled));
            shared.limit.take(chunk.len() as u64).await;
            if let Some(limit) = &caller.limit {
                limit.take(chunk.len() as u64).await;
            }
            hasher.update(&chunk);
            buffer[filled..filled + chunk.len()].copy_from_slice(&chunk);
            filled += chunk.len();
        }
        inner.metrics.bytes_from_origin.inc_by(filled as u64);
        caller.read.fetch_add(filled as u64, Ordering::Relaxed);
        if filled < len {
            finish_writes(&mut writes).await?;
            still_current(inner, shared, caller).await?;
            return body_ended(shared, layout, piece, &buffer[..filled]).await;
        }
        let is_last = piece.0 + 1 >= end || layout.count().is_some_and(|count| piece.0 + 1 >= count);
        if is_last {
            still_current(inner, shared, caller).await?;
        }
        // The next piece is received while this one is written; writing must not fall far behind, though.
        while writes.len() >= WRITES_MAX {
            joined(writes.join_next().await)?;
        }
        writes.spawn_blocking({
            let (inner, shared) = (Arc::clone(inner), Arc::clone(shared));
            let hash = hasher.finish();
            move || store(&inner, &shared, piece, buffer, filled, hash)
        });
        piece = PieceIndex(piece.0 + 1);
    }
    finish_writes(&mut writes).await
}

/// Makes sure that what was read is of one generation: a file that is written to in place while it is sent changes
/// under a running answer. Without a digest only the origin can tell, after the last byte and before the last piece is
/// given to anyone. Where it does not tell (no validators, a token that has expired), its one answer has to do.
async fn still_current(inner: &Inner, shared: &Shared, caller: &Caller) -> Result<(), TaskError> {
    let generation = shared.generation;
    let is_told = Generation::of_validators(&validators_of(&shared.content)) == Some(generation);
    if shared.content.digest().is_some() || !is_told {
        return Ok(());
    }
    let differs = |told: Result<OriginResponse, SourceError>| {
        told.is_ok_and(|response| Generation::of_validators(&response.validators).is_some_and(|now| now != generation))
    };
    let ask = |range| request(inner, &caller.spec, caller.headers.clone(), range);
    // Some origins answer `HEAD` otherwise than `GET`.
    if differs(inner.source.head(ask(None)).await) && differs(inner.source.get(ask(ByteRange::new(0, 1))).await) {
        return Err(TaskError::new(Kind::Conflict, "the content changed at its origin during the download"));
    }
    Ok(())
}

/// Waits until everything that was read is stored.
async fn finish_writes(writes: &mut JoinSet<Result<(), TaskError>>) -> Result<(), TaskError> {
    while let Some(written) = writes.join_next().await {
        joined(Some(written))?;
    }
    Ok(())
}

fn joined(written: Option<Result<Result<(), TaskError>, tokio::task::JoinError>>) -> Result<(), TaskError> {
    written.map_or(Ok(()), |written| written.unwrap_or_else(|_| Err(TaskError::stopping())))
}

/// The origin's body ended inside or right before `piece`.
async fn body_ended(
    shared: &Arc<Shared>,
    layout: PieceLayout,
    piece: PieceIndex,
    tail: &[u8],
) -> Result<(), TaskError> {
    let start = u64::from(piece.0) * u64::from(layout.piece_len());
    let length = start + tail.len() as u64;
    if layout.length().is_some_and(|known| known != length) {
        // A length was promised, so this is a short body, which the source reports; never take it for an end.
        return Err(TaskError::new(Kind::Unavailable, format!("the origin's body ended after {length} bytes")));
    }
    let told = |event| shared.events.send(Event::Origin(event));
    if tail.is_empty() {
        // The content gets its length from the actor, once it has heard of all pieces: what it hears of a lone piece
        // before, and after, are two hashes, of which it must not take one for the other.
        let _ = told(OriginEvent::Length(length)).await;
        return Ok(());
    }
    let (content, bytes) = (Arc::clone(&shared.content), tail.to_vec());
    let hash = blocking(move || {
        content.set_length(length)?;
        let hash = PieceHash::of(content.layout(), piece, &bytes);
        content.write_piece(piece, &bytes, hash)?;
        Ok(hash)
    })
    .await?;
    shared.counters.from_origin.fetch_add(tail.len() as u64, Ordering::Relaxed);
    // The length goes first: a host that hears of the last piece has to know that it is a shorter one.
    let _ = told(OriginEvent::Length(length)).await;
    let _ = told(OriginEvent::Piece { piece, hash }).await;
    Ok(())
}

/// Stores a piece; blocks.
fn store(
    inner: &Inner,
    shared: &Arc<Shared>,
    piece: PieceIndex,
    buffer: super::buffers::Buffer,
    len: usize,
    hash: PieceHash,
) -> Result<(), TaskError> {
    if inner.with_room(|| shared.content.write_piece(piece, &buffer[..len], hash))? {
        shared.counters.from_origin.fetch_add(len as u64, Ordering::Relaxed);
    }
    drop(buffer);
    let _ = shared.events.blocking_send(Event::Origin(OriginEvent::Piece { piece, hash }));
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| TaskError::stopping())?
}

/// Opens the origin again in the middle of a content, and makes sure that it is still the same one. None when a
/// content whose length was not known turns out to end right there.
async fn reopen(
    inner: &Arc<Inner>,
    shared: &Arc<Shared>,
    caller: &Caller,
    from: PieceIndex,
    to: Option<PieceIndex>,
) -> Result<Option<OriginBytes>, TaskError> {
    let spec = &caller.spec;
    let offset = spec.range.map_or(0, ByteRange::start);
    let start = u64::from(from.0) * u64::from(shared.layout().piece_len());
    let range = match run_range(shared, from, to) {
        Some(run) if start + offset == 0 && to.is_none() && spec.range.is_none() => {
            debug_assert_eq!(run.start(), 0);
            None
        }
        Some(run) => ByteRange::new(run.start() + offset, run.end() + offset),
        // Of a content of unknown length everything from here on.
        None if start + offset == 0 => None,
        None => ByteRange::new(start + offset, RANGE_END_MAX),
    };
    let mut request = request(inner, spec, caller.headers.clone(), range);
    if range.is_some() {
        let validators = validators_of(&shared.content);
        request.if_range = (validators.etag.is_some() || validators.last_modified.is_some()).then_some(validators);
    }
    let response = match inner.source.get(request).await {
        Err(SourceError::RangeNotSatisfiable { total: Some(total), .. })
            if shared.layout().length().is_none() && total == start + offset =>
        {
            return Ok(None);
        }
        asked => asked?,
    };
    if !spec.content_addressed {
        // Without validators no second answer can be joined to the first, unless it is the whole from the start.
        let same = Generation::of_validators(&response.validators) == Some(shared.generation);
        let fresh = shared.content.have().is_empty();
        if !same && !fresh {
            return Err(TaskError::new(Kind::Conflict, "the content changed at its origin during the download"));
        }
    }
    let mut bytes = positioned(spec, response, start);
    bytes.at = start;
    Ok(Some(bytes))
}

impl OriginBytes {
    async fn next(&mut self) -> Result<Option<Bytes>, TaskError> {
        loop {
            let Some(mut chunk) = self.body.next().await.transpose()? else { return Ok(None) };
            let skipped = self.skip.min(chunk.len() as u64);
            self.skip -= skipped;
            let _ = chunk.split_to(usize::try_from(skipped).expect("at most the chunk's length"));
            if !chunk.is_empty() {
                self.at += chunk.len() as u64;
                return Ok(Some(chunk));
            }
        }
    }
}
