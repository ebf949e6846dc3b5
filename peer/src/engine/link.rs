//! One neighbour host: a control connection and a small pool of data connections, for all tasks together.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use proto::frame::Frame;
use proto::wire::frame::Body;
use proto::{HostId, PieceHasher, PieceIndex, wire};
use swarm::Outcome;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::Inner;
use super::actor::Event;
use super::shared::Shared;
use crate::transport::{Purpose, Receiver, RecvError, Sender};

/// Control frames waiting for one neighbour at most; a neighbour that is so far behind is dropped.
const CONTROL_QUEUE_MAX: usize = 1024;
/// Requests waiting for a data connection to open at most.
const WAITING_MAX: usize = 256;
/// Content is read and hashed in steps of this many bytes, while they are in the cache.
const STEP_BYTES: usize = 256 * 1024;

/// A neighbour.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) host: HostId,
    pub(crate) info: wire::HostInfo,
    control: mpsc::Sender<Frame>,
    pub(crate) gone: CancellationToken,
    pool: Arc<Mutex<Pool>>,
    /// Tasks of which the neighbour wants to be told.
    pub(crate) subscriptions: AtomicUsize,
}

/// The data connections to a neighbour.
#[derive(Debug, Default)]
struct Pool {
    connections: Vec<DataConnection>,
    waiting: VecDeque<(u64, Pending)>,
    opening: bool,
    next_connection: u64,
}

#[derive(Debug)]
struct DataConnection {
    number: u64,
    requests: mpsc::Sender<Frame>,
    pending: PendingMap,
}

type PendingMap = Arc<Mutex<HashMap<u64, Pending>>>;

/// A request that has not ended.
#[derive(Debug)]
struct Pending {
    shared: Arc<Shared>,
    piece: PieceIndex,
    expires: Duration,
}

impl Pending {
    fn end(&self, host: HostId, outcome: Outcome) {
        let event = Event::Ended { peer: host, piece: self.piece, outcome };
        if let Err(mpsc::error::TrySendError::Full(event)) = self.shared.events.try_send(event) {
            // An outcome must not be lost, and whoever ends a request must not wait: both hold only with a task.
            let events = self.shared.events.clone();
            tokio::spawn(async move { events.send(event).await });
        }
    }

    fn frame(&self, id: u64) -> Frame {
        Frame {
            body: Some(Body::Request(wire::Request {
                id,
                task_id: self.shared.task.to_bytes().to_vec().into(),
                generation: self.shared.generation.to_bytes().to_vec().into(),
                piece: self.piece.0,
                expires_ms: u32::try_from(self.expires.as_millis()).unwrap_or(u32::MAX),
            })),
        }
    }
}

impl Link {
    /// A link over a control connection; its reading side is the mesh's.
    pub(crate) fn start(inner: &Arc<Inner>, info: wire::HostInfo, host: HostId, sender: Sender) -> Arc<Self> {
        let (control, frames) = mpsc::channel(CONTROL_QUEUE_MAX);
        let gone = inner.cancel.child_token();
        let link = Arc::new(Self {
            host,
            info,
            control,
            gone: gone.clone(),
            pool: Arc::default(),
            subscriptions: AtomicUsize::new(0),
        });
        inner.tracker.spawn(async move {
            tokio::select! {
                () = write_frames(sender, frames) => gone.cancel(),
                () = gone.cancelled() => {}
            }
        });
        link
    }

    /// Queues a control frame. A neighbour whose queue is full is given up.
    pub(crate) fn tell(&self, body: Body) {
        if self.control.try_send(Frame { body: Some(body) }).is_err() {
            self.gone.cancel();
        }
    }

    /// Asks for a piece; the outcome comes to the task as an event. Returns the request's number, for a cancel.
    pub(crate) fn request(
        self: &Arc<Self>,
        inner: &Arc<Inner>,
        shared: &Arc<Shared>,
        piece: PieceIndex,
        expires: Duration,
    ) -> u64 {
        let id = inner.mesh.next_request();
        let pending = Pending { shared: Arc::clone(shared), piece, expires };
        let mut pool = self.pool.lock();
        pool.connections.retain(|connection| !connection.requests.is_closed());
        let least = pool.connections.iter().min_by_key(|connection| connection.pending.lock().len());
        let load = least.map(|connection| connection.pending.lock().len());
        // A second connection lets one core receive while another still hashes, when a neighbour is fast.
        let wants_more =
            load.is_none_or(|load| load >= 2) && pool.connections.len() < inner.config.data_connections_per_peer;
        if wants_more && !pool.opening {
            pool.opening = true;
            self.open_data_connection(inner);
        }
        let least = pool.connections.iter().min_by_key(|connection| connection.pending.lock().len());
        match least {
            Some(connection) => connection.ask(self.host, id, pending),
            None if pool.waiting.len() < WAITING_MAX => pool.waiting.push_back((id, pending)),
            None => pending.end(self.host, Outcome::Failed),
        }
        id
    }

    /// Takes a request back. The outcome still comes.
    pub(crate) fn cancel(&self, id: u64) {
        self.tell(Body::Cancel(wire::Cancel { ids: vec![id] }));
    }

    fn open_data_connection(self: &Arc<Self>, inner: &Arc<Inner>) {
        let link = Arc::clone(self);
        let inner_ = Arc::clone(inner);
        inner.tracker.spawn(async move {
            let inner = inner_;
            let dialed = tokio::select! {
                dialed = inner.transport.dial(&link.info, Purpose::Data) => dialed,
                () = link.gone.cancelled() => return link.fail_waiting(),
            };
            match dialed {
                Err(error) => {
                    debug!(peer = ?link.host, %error, "no data connection");
                    link.fail_waiting();
                }
                Ok(channel) => {
                    let (sender, receiver) = channel.split();
                    let (requests, frames) = mpsc::channel(CONTROL_QUEUE_MAX);
                    let pending = PendingMap::default();
                    let number = {
                        let mut pool = link.pool.lock();
                        pool.opening = false;
                        pool.next_connection += 1;
                        let number = pool.next_connection;
                        let connection = DataConnection { number, requests, pending: Arc::clone(&pending) };
                        for (id, waiting) in pool.waiting.drain(..) {
                            connection.ask(link.host, id, waiting);
                        }
                        pool.connections.push(connection);
                        number
                    };
                    let result = tokio::select! {
                        () = write_frames(sender, frames) => Ok(()),
                        result = receive_pieces(&inner, link.host, receiver, &pending) => result,
                        () = link.gone.cancelled() => Ok(()),
                    };
                    if let Err(error) = result {
                        debug!(peer = ?link.host, %error, "data connection ended");
                    }
                    link.pool.lock().connections.retain(|connection| connection.number != number);
                    for (_, pending) in pending.lock().drain() {
                        pending.end(link.host, Outcome::Failed);
                    }
                }
            }
        });
    }

    fn fail_waiting(&self) {
        let waiting = {
            let mut pool = self.pool.lock();
            pool.opening = false;
            std::mem::take(&mut pool.waiting)
        };
        for (_, pending) in waiting {
            pending.end(self.host, Outcome::Failed);
        }
    }
}

impl DataConnection {
    fn ask(&self, host: HostId, id: u64, pending: Pending) {
        let frame = pending.frame(id);
        self.pending.lock().insert(id, pending);
        if self.requests.try_send(frame).is_err()
            && let Some(pending) = self.pending.lock().remove(&id)
        {
            pending.end(host, Outcome::Failed);
        }
    }
}

/// Writes frames until the queue closes or the connection breaks.
pub(crate) async fn write_frames(mut sender: Sender, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if let Err(error) = sender.send(&frame).await {
            debug!(%error, "could not send a frame");
            return;
        }
    }
}

/// Receives answers to our requests on one data connection until it breaks.
async fn receive_pieces(
    inner: &Arc<Inner>,
    host: HostId,
    mut receiver: Receiver,
    pending: &PendingMap,
) -> Result<(), RecvError> {
    loop {
        let frame = receiver.recv().await?;
        let Some(Body::Piece(answer)) = frame.body else { continue };
        let request = pending.lock().remove(&answer.id);
        let queued_bytes = u64::from(answer.queued_bytes_kib) * 1024;
        match answer.status() {
            wire::piece::Status::Ok => match request {
                Some(request) => receive_content(inner, host, &mut receiver, answer.length, request).await?,
                // We gave it up, but its bytes are on the way and stand before the next answer.
                None => skip(inner, &mut receiver, answer.length).await?,
            },
            status => {
                let outcome = match status {
                    wire::piece::Status::Busy => Outcome::Busy { queued_bytes },
                    wire::piece::Status::Missing => Outcome::Missing,
                    _ => Outcome::Failed,
                };
                if let Some(request) = request {
                    request.end(host, outcome);
                }
            }
        }
    }
}

/// Receives one piece, checks it and hands it to the store.
async fn receive_content(
    inner: &Arc<Inner>,
    host: HostId,
    receiver: &mut Receiver,
    length: u32,
    request: Pending,
) -> Result<(), RecvError> {
    let shared = &request.shared;
    let layout = shared.layout();
    let Some(range) = layout.range(request.piece).filter(|range| u64::from(length) <= range.len()) else {
        // Not the piece that was asked for: a bad piece like any other.
        request.end(host, Outcome::Bad);
        return skip(inner, receiver, length).await;
    };
    if u64::from(length) < range.len() {
        // Its sender knows that it is the last one, and we shall soon: the length is on its way.
        let outcome = if layout.length().is_none() { Outcome::Failed } else { Outcome::Bad };
        request.end(host, outcome);
        return skip(inner, receiver, length).await;
    }
    let length = length as usize;
    let mut buffer = inner.buffers.take(length).await;
    let mut hasher = PieceHasher::new(layout, request.piece);
    let mut at = 0;
    while at < length {
        let step = STEP_BYTES.min(length - at);
        shared.limit.take(step as u64).await;
        if let Err(error) = receiver.recv_exact(&mut buffer[at..at + step]).await {
            request.end(host, Outcome::Failed);
            return Err(error);
        }
        hasher.update(&buffer[at..at + step]);
        shared.counters.received.fetch_add(step as u64, Ordering::Relaxed);
        at += step;
    }
    let hash = hasher.finish();
    let expected = shared.expected(request.piece);
    if expected.is_none() || shared.layout() != layout {
        // The length became known meanwhile, and with it how a lone piece is hashed: this says nothing of its sender.
        request.end(host, Outcome::Failed);
        return Ok(());
    }
    if expected != Some(hash) {
        inner.metrics.bad_pieces.inc();
        tracing::warn!(peer = %host, task = ?shared.task, piece = request.piece.0, "peer served a bad piece");
        request.end(host, Outcome::Bad);
        return Ok(());
    }
    // The next piece is received while this one is written. The buffer budget bounds how many wait here.
    let inner = Arc::clone(inner);
    tokio::task::spawn_blocking(move || {
        let written = inner.with_room(|| request.shared.content.write_piece(request.piece, &buffer[..length], hash));
        drop(buffer);
        match written {
            Ok(news) => {
                if news {
                    request.shared.counters.from_peers.fetch_add(length as u64, Ordering::Relaxed);
                    inner.metrics.bytes_from_peers.inc_by(length as u64);
                } else {
                    inner.metrics.bytes_duplicate.inc_by(length as u64);
                }
                request.end(host, Outcome::Good { bytes: u32::try_from(length).expect("a piece is at most 4 MiB") });
            }
            Err(error) => {
                let _ = request.shared.events.blocking_send(Event::StoreFailed(error.into()));
                request.end(host, Outcome::Failed);
            }
        }
    });
    Ok(())
}

/// Reads bytes nobody wants any more.
async fn skip(inner: &Arc<Inner>, receiver: &mut Receiver, length: u32) -> Result<(), RecvError> {
    inner.metrics.bytes_duplicate.inc_by(u64::from(length));
    let mut scratch = vec![0; STEP_BYTES.min(length as usize)];
    let mut left = length as usize;
    while left > 0 {
        let step = scratch.len().min(left);
        inner.limits.download.take(step as u64).await;
        receiver.recv_exact(&mut scratch[..step]).await?;
        left -= step;
    }
    Ok(())
}
