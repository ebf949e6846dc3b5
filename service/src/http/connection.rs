//! One connection: who holds it open, and when it has to end.

use std::error::Error as StdError;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Version;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use prometheus_client::metrics::gauge::Gauge;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{Notify, OwnedSemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::sendfile::SendFile;
use super::server::ListenerMetrics;
use super::stall::{Counted, Piece, Streams, Taking};
use super::{HttpLimits, Peer};

/// Pings find a dead HTTP/2 client while its requests run.
const H2_PING_INTERVAL: Duration = Duration::from_secs(30);
const H2_PING_TIMEOUT: Duration = Duration::from_secs(20);

/// What may end a connection from outside.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    /// Finish what runs, take nothing new.
    pub(super) drain: CancellationToken,
    /// End now.
    pub(super) kill: CancellationToken,
    /// Others wait for a slot: idle connections should go.
    pub(super) pressure: Arc<Notify>,
}

/// As long as slots are wanting, idle connections are asked this often to go.
const PRESSURE_INTERVAL: Duration = Duration::from_millis(100);

impl Ends {
    /// Asks idle connections to go, again and again: those that run now may be idle soon. Never ends.
    pub(super) async fn press(&self) {
        loop {
            self.pressure.notify_waiters();
            tokio::time::sleep(PRESSURE_INTERVAL).await;
        }
    }
}

/// A slot of the server and the gauge of open connections; given back when the byte stream is dropped, which for an
/// upgraded connection (CONNECT) is later than the end of its HTTP.
#[derive(Debug)]
pub(super) struct Hold {
    _slot: Option<OwnedSemaphorePermit>,
    open: Option<Gauge>,
}

impl Hold {
    pub(super) fn new(slot: Option<OwnedSemaphorePermit>, open: Option<Gauge>) -> Self {
        if let Some(open) = &open {
            open.inc();
        }
        Self { _slot: slot, open }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(open) = &self.open {
            open.dec();
        }
    }
}

/// Serves HTTP on any byte stream, for example inside an intercepted tunnel, until it ends or `shutdown` is cancelled and the
/// running requests are done. The caller sets the deadline of the drain by dropping the future.
///
/// # Errors
/// The reason for which the connection was cut off, as a label for metrics.
pub async fn serve_stream<T, S, B>(
    stream: T,
    peer: Peer,
    service: S,
    limits: &HttpLimits,
    shutdown: CancellationToken,
) -> Result<(), &'static str>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let ends = Ends { drain: shutdown, kill: CancellationToken::new(), pressure: Arc::new(Notify::new()) };
    let terms = Terms { limits, half_close: false, ends: &ends, metrics: None };
    run(stream, no_tcp, peer, service, terms, Hold::new(None, None)).await
}

/// How a connection is served, whatever its stream is.
pub(super) struct Terms<'t> {
    pub(super) limits: &'t HttpLimits,
    /// See [`super::Server::with_half_close`].
    pub(super) half_close: bool,
    pub(super) ends: &'t Ends,
    pub(super) metrics: Option<ListenerMetrics>,
}

/// The socket under a byte stream, where what is written reaches it unchanged.
pub(super) type TcpOf<T> = fn(&T) -> Option<&TcpStream>;

/// For streams that change what is written, or of which nothing is known.
pub(super) const fn no_tcp<T>(_stream: &T) -> Option<&TcpStream> {
    None
}

pub(super) async fn run<T, S, B>(
    stream: T,
    tcp: TcpOf<T>,
    peer: Peer,
    service: S,
    terms: Terms<'_>,
    hold: Hold,
) -> Result<(), &'static str>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn StdError + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    let Terms { limits, half_close, ends, metrics } = terms;
    let activity = Arc::new(Activity::new());
    let sendfile = tcp(&stream).is_some().then(SendFile::default);
    let builder = builder(limits, half_close, metrics.clone());
    let tracked = Tracked { service, peer, activity: Arc::clone(&activity), metrics, sendfile: sendfile.clone() };
    let io = TokioIo::new(Watched { stream, tcp, sendfile, activity: Arc::clone(&activity), _hold: hold });
    let mut connection = pin!(builder.serve_connection_with_upgrades(io, tracked));
    let mut closing = false;
    loop {
        let deadline = match activity.next(limits, closing) {
            Next::Look(at) => at,
            Next::Cut(reason) => return Err(reason),
            Next::Close => {
                closing = true;
                connection.as_mut().graceful_shutdown();
                Instant::now() + limits.header_timeout
            }
        };
        tokio::select! {
            result = connection.as_mut() => return result.map_err(|error| label(&*error)),
            () = activity.changed.notified() => {}
            () = tokio::time::sleep_until(deadline) => if closing && activity.is_idle() { return Ok(()) },
            () = ends.pressure.notified() => if activity.is_idle() { return Err("pressure") },
            () = ends.kill.cancelled() => return Err("drain_timeout"),
            () = ends.drain.cancelled(), if !closing => {
                closing = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

fn builder(limits: &HttpLimits, half_close: bool, metrics: Option<ListenerMetrics>) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(Streams::new(limits.stall_timeout, metrics));
    builder
        .http1()
        .timer(TokioTimer::new())
        .half_close(half_close)
        // hyper's own clock also runs while a kept-alive connection is idle; `Activity` tells the two apart.
        .header_read_timeout(None)
        .max_buf_size(limits.max_header.as_usize());
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(H2_PING_INTERVAL)
        .keep_alive_timeout(H2_PING_TIMEOUT)
        .max_header_list_size(u32::try_from(limits.max_header.as_u64()).unwrap_or(u32::MAX))
        .max_concurrent_streams(limits.max_streams);
    builder
}

fn label(error: &(dyn StdError + Send + Sync + 'static)) -> &'static str {
    match error.downcast_ref::<hyper::Error>() {
        Some(error) if error.is_parse() => "garbage",
        Some(error) if error.is_incomplete_message() => "gone",
        Some(error) if error.is_body_write_aborted() || error.is_user() => "answer",
        _ => "io",
    }
}

/// What happens on a connection, in milliseconds since its start; 0 = not.
#[derive(Debug)]
struct Activity {
    start: Instant,
    /// Requests whose answer is not yet handed over whole.
    in_flight: AtomicUsize,
    served: AtomicU64,
    h2: AtomicBool,
    idle_since_ms: AtomicU64,
    /// When the first byte of the next request came.
    head_since_ms: AtomicU64,
    /// Since when the client takes nothing.
    blocked_since_ms: AtomicU64,
    changed: Notify,
}

enum Next {
    Look(Instant),
    Close,
    Cut(&'static str),
}

impl Activity {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            in_flight: AtomicUsize::new(0),
            served: AtomicU64::new(0),
            h2: AtomicBool::new(false),
            idle_since_ms: AtomicU64::new(0),
            head_since_ms: AtomicU64::new(0),
            blocked_since_ms: AtomicU64::new(0),
            changed: Notify::new(),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX).max(1)
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    /// No request runs or begins, and at least one was served.
    fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
            && self.head_since_ms.load(Ordering::Relaxed) == 0
            && self.served.load(Ordering::Relaxed) > 0
    }

    fn next(&self, limits: &HttpLimits, closing: bool) -> Next {
        let now = Instant::now();
        let due = |since: u64, limit: Duration, then: Next| {
            let at = self.at(since) + limit;
            if now >= at { then } else { Next::Look(at) }
        };
        match self.blocked_since_ms.load(Ordering::Relaxed) {
            0 => {}
            since => return due(since, limits.stall_timeout, Next::Cut("stalled")),
        }
        if self.in_flight.load(Ordering::Relaxed) > 0 {
            // A write that blocks meanwhile wakes us.
            return Next::Look(now + limits.stall_timeout);
        }
        if self.served.load(Ordering::Relaxed) == 0 {
            return due(0, limits.header_timeout, Next::Cut("header_timeout"));
        }
        match self.head_since_ms.load(Ordering::Relaxed) {
            0 if closing => Next::Look(now + limits.header_timeout),
            0 => due(self.idle_since_ms.load(Ordering::Relaxed), limits.idle_timeout, Next::Close),
            since => due(since, limits.header_timeout, Next::Cut("header_timeout")),
        }
    }

    fn begin(self: &Arc<Self>, version: Version) -> Running {
        self.h2.store(version == Version::HTTP_2, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.served.fetch_add(1, Ordering::Relaxed);
        self.head_since_ms.store(0, Ordering::Relaxed);
        Running(Arc::clone(self))
    }

    fn read_some(&self) {
        // Frames between HTTP/2 requests are pings and window updates, no beginning requests.
        if self.in_flight.load(Ordering::Relaxed) == 0
            && !self.h2.load(Ordering::Relaxed)
            && self.head_since_ms.load(Ordering::Relaxed) == 0
        {
            self.head_since_ms.store(self.now_ms(), Ordering::Relaxed);
            self.changed.notify_one();
        }
    }

    fn wrote(&self, blocked: bool) {
        match (blocked, self.blocked_since_ms.load(Ordering::Relaxed)) {
            (true, 0) => {
                self.blocked_since_ms.store(self.now_ms(), Ordering::Relaxed);
                self.changed.notify_one();
            }
            (false, 1..) => self.blocked_since_ms.store(0, Ordering::Relaxed),
            _ => {}
        }
    }
}

/// A request that runs; it ends when its answer's body is dropped.
struct Running(Arc<Activity>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.idle_since_ms.store(self.0.now_ms(), Ordering::Relaxed);
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.0.changed.notify_one();
    }
}

#[derive(Clone)]
struct Tracked<S> {
    service: S,
    peer: Peer,
    activity: Arc<Activity>,
    metrics: Option<ListenerMetrics>,
    sendfile: Option<SendFile>,
}

type Answer<B, E> = Pin<Box<dyn Future<Output = Result<Response<Held<B>>, E>> + Send>>;

/// A body; the request runs as long as it is there.
struct Held<B> {
    body: Counted<B>,
    _running: Running,
}

impl<B: Body> Body for Held<B> {
    type Data = Piece<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece<B::Data>>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl<S, B> Service<Request<Incoming>> for Tracked<S>
where
    S: Service<Request<Incoming>, Response = Response<B>>,
    S::Future: Send + 'static,
    B: Body + Send + 'static,
{
    type Response = Response<Held<B>>;
    type Error = S::Error;
    type Future = Answer<B, S::Error>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let version = request.version();
        let running = self.activity.begin(version);
        request.extensions_mut().insert(self.peer);
        // HTTP/2 cuts bodies into frames, which a file's bytes cannot be in without being read.
        if let Some(sendfile) = self.sendfile.as_ref().filter(|_| version < Version::HTTP_2) {
            request.extensions_mut().insert(sendfile.clone());
        }
        let answer = self.service.call(request);
        let metrics = self.metrics.clone();
        Box::pin(async move {
            let response = answer.await?;
            if let Some(metrics) = metrics {
                metrics.answered(response.status().as_u16());
            }
            let taking = if version == Version::HTTP_2 { Taking::current() } else { None };
            Ok(response.map(|body| Held { body: Counted::new(body, taking), _running: running }))
        })
    }
}

/// A byte stream that notes what happens on it.
struct Watched<T> {
    stream: T,
    tcp: TcpOf<T>,
    sendfile: Option<SendFile>,
    activity: Arc<Activity>,
    _hold: Hold,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.read_some();
        }
        result
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.activity.wrote(result.is_pending());
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let by_sendfile = match (&self.sendfile, (self.tcp)(&self.stream)) {
            (Some(sendfile), Some(tcp)) => sendfile.poll_write(tcp, cx, bufs),
            _ => None,
        };
        let result = match by_sendfile {
            Some(result) => result,
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, bufs),
        };
        self.activity.wrote(result.is_pending());
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
