//! Serving pieces to neighbours: the shell around [`swarm::Uploader`].

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proto::frame::Frame;
use proto::wire::frame::Body;
use proto::{ByteRange, Generation, HostId, PieceIndex, TaskId, wire};
use swarm::{RefuseUpload, Time, UploadAction, UploadConfig, UploadEvent, Uploader};
use tokio::sync::mpsc;
use tracing::debug;

use super::Inner;
use super::actor::Event;
use super::shared::Shared;
use crate::limit::Limit;
use crate::transport::{Receiver, Sender};

/// Answers waiting on one data connection at most: the uploader's own queue limits are far below it.
const ANSWERS_MAX: usize = 1024;
/// Expired requests are looked for at least this often.
const TICK: Duration = Duration::from_millis(250);
/// The upload rate told to neighbours is measured over about this long.
const RATE_WINDOW: Duration = Duration::from_secs(2);

/// Everything this host sends.
#[derive(Debug)]
pub(crate) struct Uploads {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    uploader: Uploader,
    requests: HashMap<(HostId, u64), Accepted>,
    /// One rate for each neighbour that has data connections, however many, and how many.
    limits: HashMap<HostId, (Limit, usize)>,
    rate: Rate,
}

/// A request the uploader has not ended yet.
#[derive(Debug)]
struct Accepted {
    answers: mpsc::Sender<Answer>,
    shared: Arc<Shared>,
    range: ByteRange,
}

/// What a data connection sends next.
#[derive(Debug)]
enum Answer {
    Refusal(wire::Piece),
    Content { id: u64, piece: PieceIndex, shared: Arc<Shared>, range: ByteRange },
}

/// Bytes sent, in two half windows.
#[derive(Debug)]
struct Rate {
    since: tokio::time::Instant,
    now: u64,
    before: u64,
}

impl Uploads {
    pub(crate) fn new(config: UploadConfig) -> Self {
        Self {
            state: Mutex::new(State {
                uploader: Uploader::new(config),
                requests: HashMap::new(),
                limits: HashMap::new(),
                rate: Rate { since: tokio::time::Instant::now(), now: 0, before: 0 },
            }),
        }
    }

    /// Bytes waiting to be sent, and bytes per second sent of late: what neighbours are told.
    pub(crate) fn load(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.uploader.queued_bytes(), state.rate.per_second())
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.state.lock().requests.is_empty()
    }

    pub(crate) fn cancel(&self, inner: &Arc<Inner>, from: HostId, id: u64) {
        self.handle(inner, UploadEvent::Cancel { from, id });
    }

    /// A neighbour is gone: what waits for it is dropped. What is being sent keeps its slot until the data connection
    /// has noticed, and gives it back then.
    pub(crate) fn left(&self, inner: &Arc<Inner>, peer: HostId) {
        let ids: Vec<u64> = {
            let state = self.state.lock();
            state.requests.keys().filter(|(host, _)| *host == peer).map(|(_, id)| *id).collect()
        };
        for id in ids {
            self.cancel(inner, peer, id);
        }
    }

    fn handle(&self, inner: &Arc<Inner>, event: UploadEvent) {
        let mut state = self.state.lock();
        let mut next = vec![event];
        while let Some(event) = next.pop() {
            state.handle(inner.now(), event, &mut next);
        }
    }

    fn sent(&self, inner: &Arc<Inner>, to: HostId, id: u64, bytes: u64) {
        {
            let mut state = self.state.lock();
            state.requests.remove(&(to, id));
            state.rate.add(bytes);
        }
        self.handle(inner, UploadEvent::Sent { to, id });
    }

    /// The rate of everything sent to a neighbour, for one more data connection to it.
    fn limit_of(&self, inner: &Inner, host: HostId) -> Limit {
        let mut state = self.state.lock();
        let fresh = || (inner.limits.upload.child(inner.config.upload_rate_per_peer), 0);
        let (limit, connections) = state.limits.entry(host).or_insert_with(fresh);
        *connections += 1;
        limit.clone()
    }

    fn connection_closed(&self, host: HostId) {
        let mut state = self.state.lock();
        if let Some((_, connections)) = state.limits.get_mut(&host) {
            *connections -= 1;
            if *connections == 0 {
                state.limits.remove(&host);
            }
        }
    }
}

impl State {
    /// Takes an event; what follows from it is appended to `next`.
    fn handle(&mut self, now: Time, event: UploadEvent, next: &mut Vec<UploadEvent>) {
        let mut actions = Vec::new();
        self.uploader.handle(now, event, &mut actions);
        let queued_bytes = self.uploader.queued_bytes();
        for action in actions {
            match action {
                UploadAction::Send { to, id, piece, .. } => {
                    let queued = self.requests.get(&(to, id)).is_some_and(|accepted| {
                        let answer =
                            Answer::Content { id, piece, shared: Arc::clone(&accepted.shared), range: accepted.range };
                        accepted.answers.try_send(answer).is_ok()
                    });
                    if !queued {
                        // Its connection is gone: a slot that nobody gives back would be lost for ever.
                        self.requests.remove(&(to, id));
                        next.push(UploadEvent::Sent { to, id });
                    }
                }
                UploadAction::Refuse { to, id, why } => {
                    if let Some(accepted) = self.requests.remove(&(to, id)) {
                        let status = match why {
                            RefuseUpload::Busy => wire::piece::Status::Busy,
                            RefuseUpload::Expired => wire::piece::Status::Expired,
                            RefuseUpload::Cancelled => wire::piece::Status::Cancelled,
                        };
                        let _ = accepted.answers.try_send(refusal(id, status, queued_bytes));
                    }
                }
                // The ticker below is finer than any expiry.
                UploadAction::WakeAt(_) => {}
            }
        }
    }
}

impl Rate {
    fn add(&mut self, bytes: u64) {
        if self.since.elapsed() > RATE_WINDOW / 2 {
            self.before = if self.since.elapsed() > RATE_WINDOW { 0 } else { self.now };
            self.now = 0;
            self.since = tokio::time::Instant::now();
        }
        self.now += bytes;
    }

    fn per_second(&self) -> u64 {
        let elapsed = self.since.elapsed();
        if elapsed > RATE_WINDOW {
            return 0;
        }
        let seconds =
            (elapsed + if self.before > 0 { RATE_WINDOW / 2 } else { Duration::ZERO }).as_secs_f64().max(0.05);
        ((self.now + self.before) as f64 / seconds) as u64
    }
}

fn refusal(id: u64, status: wire::piece::Status, queued_bytes: u64) -> Answer {
    Answer::Refusal(wire::Piece {
        id,
        status: status.into(),
        length: 0,
        queued_bytes_kib: u32::try_from(queued_bytes / 1024).unwrap_or(u32::MAX),
    })
}

/// Drops requests that waited too long, until the engine stops.
pub(crate) async fn ticker(inner: Arc<Inner>) {
    let mut every = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = every.tick() => inner.uploads.handle(&inner, UploadEvent::Tick),
            () = inner.cancel.cancelled() => return,
        }
    }
}

/// Serves one data connection that a neighbour opened.
pub(crate) fn serve(inner: &Arc<Inner>, host: HostId, sender: Sender, receiver: Receiver) {
    let inner_ = Arc::clone(inner);
    inner.tracker.spawn(async move {
        let inner = inner_;
        let (answers, queue) = mpsc::channel(ANSWERS_MAX);
        let limit = inner.uploads.limit_of(&inner, host);
        tokio::select! {
            () = read_requests(&inner, host, receiver, answers) => {}
            () = write_answers(&inner, host, sender, queue, limit) => {}
            () = inner.cancel.cancelled() => {}
        }
        // What this connection had asked for is of no use to anyone; its slots go back.
        let ids: Vec<u64> = {
            let state = inner.uploads.state.lock();
            let closed = state.requests.iter().filter(|((h, _), accepted)| *h == host && accepted.answers.is_closed());
            closed.map(|((_, id), _)| *id).collect()
        };
        for id in ids {
            inner.uploads.cancel(&inner, host, id);
            inner.uploads.sent(&inner, host, id, 0);
        }
        inner.uploads.connection_closed(host);
    });
}

async fn read_requests(inner: &Arc<Inner>, host: HostId, mut receiver: Receiver, answers: mpsc::Sender<Answer>) {
    loop {
        let request = match receiver.recv().await {
            Ok(Frame { body: Some(Body::Request(request)) }) => request,
            Ok(_) => return debug!(peer = ?host, "no request on a data connection"),
            Err(error) => return debug!(peer = ?host, %error, "data connection closed"),
        };
        let refused = |status| answers.try_send(refusal(request.id, status, 0)).is_ok();
        let (Ok(task), Ok(generation)) =
            (TaskId::from_bytes(&request.task_id), Generation::from_bytes(&request.generation))
        else {
            return debug!(peer = ?host, "request with malformed ids");
        };
        let piece = PieceIndex(request.piece);
        let served = inner.serving((task, generation)).await;
        let Some(shared) = served.filter(|shared| shared.content.has(piece) && inner.is_intact(shared)) else {
            if !refused(wire::piece::Status::Missing) {
                return;
            }
            continue;
        };
        let Some(range) = shared.layout().range(piece) else {
            return debug!(peer = ?host, "request beyond the end");
        };
        let bytes = u32::try_from(range.len()).expect("a piece is at most 4 MiB");
        let accepted = Accepted { answers: answers.clone(), shared, range };
        match inner.uploads.state.lock().requests.entry((host, request.id)) {
            Entry::Vacant(free) => free.insert(accepted),
            // Two requests under one number could not be told apart any more.
            Entry::Occupied(_) => return debug!(peer = ?host, id = request.id, "request number used twice"),
        };
        inner.uploads.handle(
            inner,
            UploadEvent::Request {
                from: host,
                id: request.id,
                task,
                generation,
                piece,
                bytes,
                expires: Duration::from_millis(request.expires_ms.into()),
            },
        );
    }
}

async fn write_answers(
    inner: &Arc<Inner>,
    host: HostId,
    mut sender: Sender,
    mut queue: mpsc::Receiver<Answer>,
    limit: Limit,
) {
    while let Some(answer) = queue.recv().await {
        let result = match answer {
            Answer::Refusal(piece) => sender.send(&Frame { body: Some(Body::Piece(piece)) }).await,
            Answer::Content { id, piece, shared, range } => {
                let (queued_bytes, _) = inner.uploads.load();
                let header = Frame {
                    body: Some(Body::Piece(wire::Piece {
                        id,
                        status: wire::piece::Status::Ok.into(),
                        length: u32::try_from(range.len()).expect("a piece is at most 4 MiB"),
                        queued_bytes_kib: u32::try_from(queued_bytes / 1024).unwrap_or(u32::MAX),
                    })),
                };
                let result = sender.send_content(&header, shared.content.file(), range, &limit).await;
                let bytes = if result.is_ok() { range.len() } else { 0 };
                inner.metrics.bytes_uploaded.inc_by(bytes);
                inner.uploads.sent(inner, host, id, bytes);
                if result.is_ok() {
                    let _ = shared.events.try_send(Event::Uploaded { peer: host, piece });
                }
                result
            }
        };
        if let Err(error) = result {
            return debug!(peer = ?host, %error, "could not send to a neighbour");
        }
    }
}
