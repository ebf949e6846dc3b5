//! Uploads of blobs: begin, send, ask, end, cancel.

use std::time::{Duration, Instant};

use ::http::header::{CONTENT_RANGE, LOCATION, RANGE};
use ::http::{HeaderValue, Response, StatusCode};
use blobs::{Checkpoint, FinishError, Receiver, RunningHash, StoreError, StoredBlob};
use bytes::Bytes;
use db::{BlobCommit, CheckpointError, Follows, Linked, NewBlob, UploadStatus};
use futures_util::StreamExt as _;
use http_body_util::BodyStream;
use hyper::body::Incoming;
use oci::upload::{Chunk, ContentRange, Receiving, Upload, UploadId, UploadLimits};
use oci::{Algorithm, Digest, ErrorCode, RepositoryName};

use super::body::Body;
use super::failure::Failure;
use super::{Answer, CONTENT_DIGEST, Call, UPLOAD_UUID, empty, locations, value};
use crate::app::App;
use crate::client::Client;
use crate::open::too_many_of_client;
use crate::sessions::Held;

/// How a session's name ends when the client said that its blob has a SHA-512 digest.
const SHA512_SUFFIX: &str = "-sha512";

/// A session that is ours.
struct Session {
    /// No other request of this process works on it.
    held: Option<Held>,
    id: UploadId,
    algorithm: Algorithm,
    /// What is known of it; nothing, as long as nothing of it is durable.
    durable: Option<Durable>,
}

struct Durable {
    version: i64,
    checkpoint: Checkpoint,
}

/// What came of receiving a body.
enum Received {
    /// All of it.
    Whole(Upload<Receiving>),
    /// The client went away in the middle, or sends nothing.
    Broken(Failure),
}

// === POST ===

/// `POST`: mounts a blob, takes a whole one, or begins an upload.
pub(super) async fn begin(app: &App, call: &Call, name: &RepositoryName, incoming: &mut Incoming) -> Answer {
    let query = call.query()?;
    if let Some(digest) = query.get("mount") {
        let digest = oci::parse_digest(digest)?;
        let from = query.get("from").filter(|from| !from.is_empty()).map(str::parse::<RepositoryName>);
        // A source that cannot be is not there; then the client uploads.
        if let Ok(from) = from.transpose()
            && mount(app, call, name, &digest, from.as_ref()).await?
        {
            return Ok(created(app, call, name, &digest));
        }
    }
    let algorithm = match query.get("digest-algorithm") {
        Some(algorithm) => oci::parse_algorithm(algorithm)?,
        None => Algorithm::Sha256,
    };
    let id = app.new_upload_id();
    if let Some(digest) = query.get("digest") {
        let digest = oci::parse_digest(digest)?;
        // Nobody else knows it.
        let session = Session { held: None, id, algorithm: digest.algorithm(), durable: None };
        return complete(app, call, name, None, session, &digest, incoming).await;
    }
    app.open.has_room(call.client, &app.config.uploads)?;
    app.cache.upload_begun(id);
    let signed = app.upload_key.read().sign(name, id);
    let session = if algorithm == Algorithm::Sha512 { format!("{signed}{SHA512_SUFFIX}") } else { signed };
    let mut response = accepted(app, call, name, &session, id, 0);
    // Clients that send in chunks learn that any size will do.
    response.headers_mut().insert("oci-chunk-min-length", HeaderValue::from_static("1"));
    Ok(response)
}

/// Makes a blob that is in another repository readable in this one. Without a source, any will do in which the caller may read.
async fn mount(
    app: &App,
    call: &Call,
    name: &RepositoryName,
    digest: &Digest,
    from: Option<&RepositoryName>,
) -> Result<bool, Failure> {
    if app.access.may(&call.caller, crate::access::Action::Pull, from).is_err() {
        return Ok(false);
    }
    let now = app.now_ms();
    let mounted = app.db.mount(digest, from, name, now, now + app.lease_ms()).await?;
    if let Some(linked) = &mounted {
        app.cache.changed(linked.repository);
    }
    Ok(mounted.is_some())
}

// === GET, DELETE ===

/// `GET`: how far it is.
pub(super) async fn status(app: &App, call: &Call, name: &RepositoryName, text: &str) -> Answer {
    let session = look(app, name, text, None).await?;
    let offset = session.durable.as_ref().map_or(0, |durable| durable.checkpoint.offset);
    let mut response = accepted(app, call, name, text, session.id, offset);
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

/// `DELETE`: gives it up.
pub(super) async fn cancel(app: &App, name: &RepositoryName, text: &str) -> Answer {
    let session = look(app, name, text, None).await?;
    app.cache.take_fresh_upload(session.id);
    give_up(app, name, session.id).await?;
    Ok(empty(StatusCode::NO_CONTENT))
}

/// The upload ends, and its space is free. From then on nobody can go on with it, in any process.
async fn give_up(app: &App, name: &RepositoryName, id: UploadId) -> Result<(), Failure> {
    let row = app.db.cancel_upload(id, name, app.now_ms()).await?;
    let checkpoint = row.and_then(|row| serde_json::from_str::<Checkpoint>(&row.state).ok());
    Ok(app.store.discard(id, checkpoint.as_ref().map(|checkpoint| &checkpoint.writer)).await?)
}

// === PATCH ===

/// `PATCH`: more bytes.
pub(super) async fn patch(
    app: &App,
    call: &Call,
    name: &RepositoryName,
    text: &str,
    incoming: &mut Incoming,
) -> Answer {
    let mut session = session(app, name, text).await?;
    let id = session.id;
    let chunk = next_chunk(app, call, name, Some(text), &session)?;
    if call.content_length() == Some(0) {
        return Ok(accepted(app, call, name, text, id, chunk.offset()));
    }
    let _active = app.active.enter(call.client, &app.config.uploads)?;
    let mut row = Row::of(call, name, &session);
    if row.version.is_none() {
        app.open.has_room(call.client, &app.config.uploads)?;
    }
    let _held = session.held.take();
    let received = append(app, session, chunk, incoming, &mut row).await;
    row.unclaim(app).await;
    match received? {
        Received::Whole(upload) => Ok(accepted(app, call, name, text, id, upload.offset())),
        Received::Broken(failure) => Err(failure),
    }
}

/// Receives a chunk, and keeps it.
async fn append(
    app: &App,
    session: Session,
    chunk: Upload<Chunk>,
    incoming: &mut Incoming,
    row: &mut Row<'_>,
) -> Result<Received, Failure> {
    let mut receiver = open(app, session, None).await?;
    row.claim(app, &mut receiver).await?;
    let received = receive(app, chunk, incoming, Some(&mut receiver), Some(row)).await?;
    if receiver.offset() > 0 {
        row.save(app, &mut receiver).await?;
    }
    Ok(received)
}

/// The row of an upload, as this request last saw it.
struct Row<'c> {
    name: &'c RepositoryName,
    id: UploadId,
    client: Option<Client>,
    /// None, as long as there is none.
    version: Option<i64>,
    /// This request made it, and it tells of no bytes.
    claimed: bool,
}

impl<'c> Row<'c> {
    fn of(call: &Call, name: &'c RepositoryName, session: &Session) -> Self {
        let version = session.durable.as_ref().map(|durable| durable.version);
        Self { name, id: session.id, client: call.client, version, claimed: false }
    }

    /// Makes sure that no other process goes on from the same checkpoint, before anything is written: whoever did already has changed
    /// the row, and whoever tries later cannot save.
    async fn claim(&mut self, app: &App, receiver: &mut Receiver) -> Result<(), Failure> {
        if app.db.is_exclusive() {
            return Ok(());
        }
        receiver.hold().await?;
        self.save(app, receiver).await
    }

    /// Takes the claim back when nothing came of it: an upload of which nothing is kept has no row.
    async fn unclaim(&mut self, app: &App) {
        if !self.claimed {
            return;
        }
        if let Err(error) = app.db.unsave_checkpoint(self.id).await {
            tracing::warn!(%error, id = %self.id, "the row of an upload without bytes stays until it is forgotten");
        }
    }

    /// Makes what arrived durable, and says so to the other processes.
    async fn save(&mut self, app: &App, receiver: &mut Receiver) -> Result<(), Failure> {
        let checkpoint = receiver.checkpoint().await?;
        let state = serde_json::to_string(&checkpoint).map_err(|error| {
            tracing::error!(%error, "a checkpoint cannot be written down");
            Failure::new(ErrorCode::Unknown, "the upload cannot be kept")
        })?;
        let client = self.client.map(|client| client.to_string());
        let follows = match self.version {
            Some(version) => Follows::Version(version),
            None => Follows::Nothing { client: client.as_deref(), most: app.config.uploads.max_open_per_client },
        };
        match app.db.save_checkpoint(self.id, self.name, &state, checkpoint.offset, follows, app.now_ms()).await {
            Ok(version) => {
                self.claimed = checkpoint.offset == 0 && (self.claimed || self.version.is_none());
                self.version = Some(version);
                Ok(())
            }
            Err(CheckpointError::Conflict) => {
                Err(Failure::with_status(409, ErrorCode::BlobUploadInvalid, "another request has changed this upload"))
            }
            Err(CheckpointError::TooMany) => {
                receiver.forget().await?;
                Err(too_many_of_client())
            }
            Err(CheckpointError::Db(error)) => Err(error.into()),
            Err(error) => {
                tracing::error!(%error, "a checkpoint cannot be kept");
                Err(Failure::new(ErrorCode::Unknown, "the upload cannot be kept"))
            }
        }
    }
}

// === PUT ===

/// `PUT`: the last bytes, if any, and the digest.
pub(super) async fn put(app: &App, call: &Call, name: &RepositoryName, text: &str, incoming: &mut Incoming) -> Answer {
    let query = call.query()?;
    let missing = || Failure::new(ErrorCode::DigestInvalid, "the parameter digest is missing");
    let digest = oci::parse_digest(query.get("digest").ok_or_else(missing)?)?;
    let session = match session(app, name, text).await {
        Ok(session) => session,
        Err(failure) => {
            // The answer to the same request may have been lost on the way.
            let id = verified(app, name, text).map(|(id, _)| id);
            if let (Some(id), Some((_, link))) = (id, super::blobs::find(app, name, &digest).await?)
                && (link.key == id || is_finished(app, id).await?)
            {
                return Ok(created(app, call, name, &digest));
            }
            return Err(failure);
        }
    };
    complete(app, call, name, Some(text), session, &digest, incoming).await
}

/// Whether its bytes were committed, or given up because the blob was there already.
async fn is_finished(app: &App, id: UploadId) -> Result<bool, Failure> {
    Ok(app.db.upload(id).await?.is_some_and(|row| row.status == UploadStatus::Finished))
}

/// Receives what is left, compares, commits. `text` is what the client knows the session by, if it does.
async fn complete(
    app: &App,
    call: &Call,
    name: &RepositoryName,
    text: Option<&str>,
    mut session: Session,
    digest: &Digest,
    incoming: &mut Incoming,
) -> Answer {
    let id = session.id;
    let chunk = next_chunk(app, call, name, text, &session)?;
    let _active = app.active.enter(call.client, &app.config.uploads)?;
    let mut row = Row::of(call, name, &session);
    let held = session.held.take();
    // Of an upload in one request the client knows no session to go on with.
    let can_go_on = held.is_some();
    let offset = chunk.offset();
    let mut receiver = match open(app, session, Some(digest.algorithm())).await {
        Ok(receiver) => receiver,
        // The bytes may have been made a blob before the database could be told. Then the last of them come once more.
        Err(Opening::Gone) => {
            return match receive(app, chunk, incoming, None, None).await? {
                Received::Whole(upload) if app.store.is_committed(id, digest, upload.offset()).await? => {
                    commit(app, call, name, id, digest, upload.offset()).await
                }
                Received::Whole(_) => Err(unknown()),
                Received::Broken(failure) => Err(failure),
            };
        }
        Err(error) => return Err(error.into()),
    };
    // Where nothing is held, what this request sends is its own until the end, and has the digest or is nothing.
    if row.version.is_some() && receiver.hold().await? {
        row.claim(app, &mut receiver).await?;
    }
    let received = receive(app, chunk, incoming, Some(&mut receiver), can_go_on.then_some(&mut row)).await?;
    let upload = match received {
        Received::Whole(upload) => upload,
        Received::Broken(failure) => {
            // The client may go on from here.
            if can_go_on && receiver.offset() > offset {
                row.save(app, &mut receiver).await?;
            }
            return Err(failure);
        }
    };
    let size = upload.offset();
    match receiver.finish(digest).await {
        Ok(finished) => app.metrics.rehashed(finished.bytes_rehashed),
        Err(FinishError::Mismatch { computed }) => {
            // Bytes that are not what they should be are of no use to anybody.
            give_up(app, name, id).await?;
            let failure = Failure::new(
                ErrorCode::DigestInvalid,
                format!("the digest of the {size} bytes is {computed}, not {digest}"),
            );
            return Err(failure.detail(serde_json::json!({ "digest": computed.to_string() })));
        }
        // Another process has ended it meanwhile.
        Err(FinishError::Store(StoreError::NotFound { .. })) => {
            if app.store.is_committed(id, digest, size).await? {
                return commit(app, call, name, id, digest, size).await;
            }
            return Err(unknown());
        }
        Err(FinishError::Store(error)) => return Err(error.into()),
        Err(error) => {
            tracing::error!(%error, "an upload cannot be ended");
            return Err(Failure::new(ErrorCode::Unknown, "the upload cannot be ended"));
        }
    }
    // The bytes are durable: that is what `committed` may be said after, when the row is there too.
    let verified =
        upload.finish(digest, digest.clone()).map_err(|error| Failure::new(error.code(), error.to_string()))?;
    let answer = commit(app, call, name, id, digest, verified.size_bytes()).await?;
    let _committed = verified.committed();
    Ok(answer)
}

/// The blob becomes visible.
async fn commit(app: &App, call: &Call, name: &RepositoryName, id: UploadId, digest: &Digest, size: u64) -> Answer {
    let now = app.now_ms();
    let entry = crate::records::blob_entry(id, digest, size);
    let blob = NewBlob {
        repository: name,
        digest,
        size,
        key: id,
        entry: &entry,
        now_ms: now,
        leased_until_ms: now + app.lease_ms(),
    };
    match app.db.commit_blob(&blob).await? {
        BlobCommit::Stored(linked) => app.cache.changed(linked.repository),
        BlobCommit::Existed(linked) => {
            app.cache.changed(linked.repository);
            // Our bytes are one copy too many; the removal is written down already.
            app.removals_wanted();
            expect_other(app, digest, &linked).await?;
        }
        BlobCommit::Over => {
            app.removals_wanted();
            return Err(Failure::new(ErrorCode::BlobUploadUnknown, "this upload has ended already"));
        }
    }
    app.metrics.stored(size);
    Ok(created(app, call, name, digest))
}

/// The bytes that were there before are what is served from now on. If the store, which has just taken ours, has lost them, they are
/// forgotten, and the next push brings them back.
async fn expect_other(app: &App, digest: &Digest, linked: &Linked) -> Result<(), Failure> {
    let link = &linked.link;
    let blob = StoredBlob { key: link.key, digest: digest.clone(), size: link.size };
    if app.store.stat(&blob).await? == Some(link.size)
        || !app.db.digests_of_keys(&[link.key]).await?.contains_key(&link.key)
    {
        return Ok(());
    }
    tracing::error!(%digest, key = %link.key, "a blob is not in the store, and is forgotten so that a push brings it back");
    app.db.forget_blob(link.blob, app.now_ms()).await?;
    // What may be left of it; if this fails, the scrub finds it.
    let _ = app.remove_now(&[crate::records::blob_entry(blob.key, &blob.digest, blob.size)]).await;
    // It is gone from every repository that had it.
    app.cache.changed_everywhere();
    let message = "the bytes that this registry had of it are lost; push them once more";
    Err(Failure::later(503, ErrorCode::Unavailable, message, Duration::from_secs(1)))
}

// === the session ===

/// Whether the text names a session of ours in this repository.
fn verified(app: &App, name: &RepositoryName, text: &str) -> Option<(UploadId, Algorithm)> {
    let (signed, algorithm) = match text.strip_suffix(SHA512_SUFFIX) {
        Some(signed) => (signed, Algorithm::Sha512),
        None => (text, Algorithm::Sha256),
    };
    Some((app.upload_key.read().verify(name, signed)?, algorithm))
}

/// The session, for a request that goes on with it: what is known of it stays true in this process.
async fn session(app: &App, name: &RepositoryName, text: &str) -> Result<Session, Failure> {
    let (id, algorithm) = verified(app, name, text).ok_or_else(unknown)?;
    let held = Some(app.sessions.hold(id).await?);
    if app.cache.take_fresh_upload(id) && !app.is_expired(id) {
        return Ok(Session { held, id, algorithm, durable: None });
    }
    look(app, name, text, held).await
}

fn unknown() -> Failure {
    Failure::new(ErrorCode::BlobUploadUnknown, "there is no such upload")
}

/// What the database knows of a session.
async fn look(app: &App, name: &RepositoryName, text: &str, held: Option<Held>) -> Result<Session, Failure> {
    let (id, algorithm) = verified(app, name, text).ok_or_else(unknown)?;
    match app.db.upload(id).await? {
        Some(row) if row.status != UploadStatus::Open => Err(unknown()),
        Some(row) => {
            let checkpoint = serde_json::from_str(&row.state).map_err(|error| {
                tracing::error!(%error, %id, "the checkpoint of an upload cannot be read");
                unknown()
            })?;
            Ok(Session { held, id, algorithm, durable: Some(Durable { version: row.version, checkpoint }) })
        }
        None if app.is_expired(id) => Err(unknown()),
        None => Ok(Session { held, id, algorithm, durable: None }),
    }
}

fn receiving(app: &App, name: &RepositoryName, session: &Session) -> Result<Upload<Receiving>, Failure> {
    let config = &app.config.uploads;
    let limits = UploadLimits { size_bytes_max: config.max_size.as_u64(), chunk_bytes_max: config.max_chunk.as_u64() };
    Ok(match &session.durable {
        Some(durable) => Upload::resume(name.clone(), session.id, limits, durable.checkpoint.offset)?,
        None => Upload::new(name.clone(), session.id, limits).receive(),
    })
}

/// What this request brings. A client that would send something else is told where the upload is, and goes on from there.
fn next_chunk(
    app: &App,
    call: &Call,
    name: &RepositoryName,
    text: Option<&str>,
    session: &Session,
) -> Result<Upload<Chunk>, Failure> {
    let next = || Ok(receiving(app, name, session)?.begin(content_range(call)?, call.content_length())?);
    next().map_err(|failure: Failure| {
        let Some(text) = text else { return failure };
        let offset = session.durable.as_ref().map_or(0, |durable| durable.checkpoint.offset);
        failure
            .header(RANGE, value(oci::upload::range_header(offset)))
            .header(LOCATION, locations::upload(app, call, name, text))
    })
}

/// Why the bytes of an upload cannot be written to.
enum Opening {
    /// They are not there any more.
    Gone,
    Failed(Failure),
}

impl From<Opening> for Failure {
    fn from(opening: Opening) -> Self {
        match opening {
            Opening::Gone => unknown(),
            Opening::Failed(failure) => failure,
        }
    }
}

/// Opens the bytes for writing on. `last` is the algorithm of the digest, when this is the last request.
async fn open(app: &App, session: Session, last: Option<Algorithm>) -> Result<Receiver, Opening> {
    let opened = match &session.durable {
        Some(durable) => resume(app, session.id, &durable.checkpoint).await,
        None => begin_bytes(app, session.id, last.unwrap_or(session.algorithm)).await,
    };
    opened.map_err(|error| match error {
        StoreError::NotFound { .. } => Opening::Gone,
        error => Opening::Failed(error.into()),
    })
}

async fn resume(app: &App, id: UploadId, checkpoint: &Checkpoint) -> Result<Receiver, StoreError> {
    let writer = app.store.resume(id, &checkpoint.writer).await?;
    Receiver::resume(writer, checkpoint)
}

async fn begin_bytes(app: &App, id: UploadId, algorithm: Algorithm) -> Result<Receiver, StoreError> {
    let hash = RunningHash::new(algorithm)?;
    Ok(Receiver::new(app.store.begin(id).await?, hash, 0))
}

// === receiving ===

/// Takes the body of a request, as much of it as is allowed. Without a receiver it is only counted.
async fn receive(
    app: &App,
    mut chunk: Upload<Chunk>,
    incoming: &mut Incoming,
    mut receiver: Option<&mut Receiver>,
    mut row: Option<&mut Row<'_>>,
) -> Result<Received, Failure> {
    let limits = &app.config.uploads;
    let mut body = BodyStream::new(incoming);
    let (mut unsaved, mut saved) = (0, Instant::now());
    loop {
        let frame = match tokio::time::timeout(limits.stall_timeout, body.next()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => {
                let failure = Failure::new(ErrorCode::BlobUploadInvalid, format!("the body broke off: {error}"));
                return Ok(Received::Broken(failure));
            }
            Ok(None) => break,
            Err(_) => {
                let failure =
                    Failure::with_status(408, ErrorCode::BlobUploadInvalid, "nothing of the body came for too long");
                return Ok(Received::Broken(failure));
            }
        };
        // Trailers say nothing here.
        let Ok(bytes) = frame.into_data() else { continue };
        chunk.take(bytes.len() as u64)?;
        unsaved += bytes.len() as u64;
        let Some(receiver) = &mut receiver else { continue };
        push(receiver, bytes).await?;
        // Or it would be forgotten, however slowly it comes.
        let is_due = || unsaved >= limits.checkpoint_every.as_u64() || saved.elapsed() >= limits.expiry / 4;
        if let Some(row) = row.as_mut().filter(|_| is_due()) {
            row.save(app, receiver).await?;
            (unsaved, saved) = (0, Instant::now());
        }
    }
    Ok(Received::Whole(chunk.end()?))
}

async fn push(receiver: &mut Receiver, bytes: Bytes) -> Result<(), Failure> {
    receiver.push(bytes).await.map_err(|error| match error {
        // Another process has ended it meanwhile.
        StoreError::NotFound { .. } => unknown(),
        error => error.into(),
    })
}

fn content_range(call: &Call) -> Result<Option<ContentRange>, Failure> {
    let Some(text) = call.parts.headers.get(CONTENT_RANGE) else { return Ok(None) };
    let parsed = text.to_str().ok().map(ContentRange::parse);
    match parsed {
        Some(Ok(range)) => Ok(Some(range)),
        _ => Err(Failure::with_status(416, ErrorCode::BlobUploadInvalid, "Content-Range is written first-last")),
    }
}

// === answers ===

fn accepted(app: &App, call: &Call, name: &RepositoryName, session: &str, id: UploadId, offset: u64) -> Response<Body> {
    let mut response = empty(StatusCode::ACCEPTED);
    let headers = response.headers_mut();
    headers.insert(LOCATION, locations::upload(app, call, name, session));
    headers.insert(RANGE, value(oci::upload::range_header(offset)));
    headers.insert(UPLOAD_UUID, value(id.to_string()));
    response
}

fn created(app: &App, call: &Call, name: &RepositoryName, digest: &Digest) -> Response<Body> {
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(LOCATION, locations::blob(app, call, name, digest));
    headers.insert(CONTENT_DIGEST, value(digest.to_string()));
    response
}
