//! The accept loop.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, warn};

use super::connection::{self, Ends, Hold, Terms};
use super::listener::Stream;
use super::{ListenAddr, Listener};
use crate::config::{ByteSize, Problems, Validate};
use crate::metrics::Metrics;

/// `[…http]`: what one listener lets its clients do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpLimits {
    /// Connections at a time; more wait in the kernel, and idle ones are closed for them.
    pub max_connections: usize,
    /// From the first byte of a request (for a new connection: from its start) to the end of its header, TLS included.
    #[serde(with = "crate::config::duration")]
    pub header_timeout: Duration,
    /// A connection without a request is closed after this time.
    #[serde(with = "crate::config::duration")]
    pub idle_timeout: Duration,
    /// A client that takes nothing of its answer for this time is cut off.
    #[serde(with = "crate::config::duration")]
    pub stall_timeout: Duration,
    /// Most bytes of a request's header, and the buffer of a connection.
    pub max_header: ByteSize,
    /// Requests at a time on one HTTP/2 connection.
    pub max_streams: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            stall_timeout: Duration::from_secs(300),
            max_header: ByteSize::kib(64),
            max_streams: 128,
        }
    }
}

/// hyper's smallest buffer.
const HEADER_MIN: ByteSize = ByteSize::kib(8);
const HEADER_MAX: ByteSize = ByteSize::mib(16);
const CONNECTIONS_MAX: usize = 1_000_000;

impl Validate for HttpLimits {
    fn validate(&self, problems: &mut Problems) {
        problems.check(
            (1..=CONNECTIONS_MAX).contains(&self.max_connections),
            "max_connections",
            format!("1 to {CONNECTIONS_MAX} are allowed"),
        );
        for (name, value) in [
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("stall_timeout", self.stall_timeout),
        ] {
            problems.check(!value.is_zero(), name, "must be longer than zero");
        }
        problems.check(
            (HEADER_MIN..=HEADER_MAX).contains(&self.max_header),
            "max_header",
            format!("{HEADER_MIN} to {HEADER_MAX} are allowed"),
        );
        problems.check(self.max_streams > 0, "max_streams", "must be above zero");
    }
}

type Labels = Vec<(&'static str, String)>;

/// Counters of all listeners of a process; each listener has its own label.
#[derive(Clone, Debug)]
pub struct HttpMetrics {
    connections: Family<Labels, Gauge>,
    accepted: Family<Labels, Counter>,
    ended: Family<Labels, Counter>,
    requests: Family<Labels, Counter>,
}

impl HttpMetrics {
    /// Registers them; once per process.
    #[must_use]
    pub fn new(metrics: &Metrics) -> Self {
        let new = Self {
            connections: Family::default(),
            accepted: Family::default(),
            ended: Family::default(),
            requests: Family::default(),
        };
        metrics.register("http", |registry| {
            registry.register("connections", "Open connections", new.connections.clone());
            registry.register("accepted", "Connections accepted", new.accepted.clone());
            registry.register("refused", "Connections and HTTP/2 streams cut off, by reason", new.ended.clone());
            registry.register("requests", "Answers begun, by status", new.requests.clone());
        });
        new
    }
}

/// The counters of one listener.
#[derive(Clone, Debug)]
pub(super) struct ListenerMetrics {
    all: HttpMetrics,
    listener: &'static str,
}

impl ListenerMetrics {
    fn labels(&self) -> Labels {
        vec![("listener", self.listener.to_owned())]
    }

    pub(super) fn answered(&self, status: u16) {
        let mut labels = self.labels();
        labels.push(("status", status.to_string()));
        self.all.requests.get_or_create(&labels).inc();
    }

    pub(super) fn cut_off(&self, reason: &str) {
        let mut labels = self.labels();
        labels.push(("reason", reason.to_owned()));
        self.all.ended.get_or_create(&labels).inc();
    }

    fn accepted(&self) -> Gauge {
        self.all.accepted.get_or_create(&self.labels()).inc();
        self.all.connections.get_or_create(&self.labels()).clone()
    }
}

/// One listener and its rules.
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    limits: Arc<HttpLimits>,
    tls: Option<Arc<rustls::ServerConfig>>,
    metrics: Option<ListenerMetrics>,
    drain_timeout: Duration,
    half_close: bool,
}

/// Out of file descriptors: accepting again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

impl Server {
    /// A plain HTTP/1.1 and HTTP/2 server.
    #[must_use]
    pub fn new(listener: Listener, limits: HttpLimits) -> Self {
        Self {
            listener,
            limits: Arc::new(limits),
            tls: None,
            metrics: None,
            drain_timeout: Duration::from_secs(20),
            half_close: false,
        }
    }

    /// Speaks TLS; see [`crate::tls::ServerCertificate::server_config`].
    #[must_use]
    pub fn with_tls(mut self, config: Arc<rustls::ServerConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    /// Counts under this listener name.
    #[must_use]
    pub fn with_metrics(mut self, metrics: &HttpMetrics, listener: &'static str) -> Self {
        self.metrics = Some(ListenerMetrics { all: metrics.clone(), listener });
        self
    }

    /// After the shutdown began, requests have this long to finish; 20 s unless set.
    #[must_use]
    pub const fn with_drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    /// Answers clients that have sent a whole request and say that they will send no more. One that has gone away looks the same, and is
    /// noticed only when its answer cannot be sent: not for requests that run long before they answer.
    #[must_use]
    pub const fn with_half_close(mut self) -> Self {
        self.half_close = true;
        self
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<ListenAddr> {
        self.listener.local_addr()
    }

    /// Accepts and serves until `shutdown` is cancelled, then lets running requests finish within the drain timeout.
    pub async fn serve<S, B>(self, service: S, shutdown: CancellationToken)
    where
        S: Service<hyper::Request<Incoming>, Response = hyper::Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<Box<dyn StdError + Send + Sync>>,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn StdError + Send + Sync>>,
    {
        let Self { listener, limits, tls, metrics, drain_timeout, half_close } = self;
        let slots = Arc::new(Semaphore::new(limits.max_connections));
        let ends = Ends { drain: shutdown.clone(), kill: CancellationToken::new(), pressure: Arc::new(Notify::new()) };
        let tracker = TaskTracker::new();
        // Whoever drops this future drops the connections with it.
        let _kill = ends.kill.clone().drop_guard();
        loop {
            let slot = if let Ok(slot) = Arc::clone(&slots).try_acquire_owned() {
                slot
            } else {
                debug!(max_connections = limits.max_connections, "all connections are in use");
                tokio::select! {
                    slot = Arc::clone(&slots).acquire_owned() => match slot {
                        Ok(slot) => slot,
                        // Nobody closes the semaphore.
                        Err(_) => break,
                    },
                    () = ends.press() => break,
                    () = shutdown.cancelled() => break,
                }
            };
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) if is_about_one_connection(&error) => continue,
                Err(error) => {
                    warn!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let hold = Hold::new(Some(slot), metrics.as_ref().map(ListenerMetrics::accepted));
            let (service, limits, tls, metrics, ends) =
                (service.clone(), Arc::clone(&limits), tls.clone(), metrics.clone(), ends.clone());
            tracker.spawn(async move {
                let terms = Terms { limits: &limits, half_close, ends: &ends, metrics: metrics.clone() };
                let result = match tls {
                    None => connection::run(stream, tcp_of, peer, service, terms, hold).await,
                    Some(tls) => match handshake(stream, tls, limits.header_timeout, &ends).await {
                        Ok(stream) => connection::run(stream, connection::no_tcp, peer, service, terms, hold).await,
                        Err(reason) => Err(reason),
                    },
                };
                if let Err(reason) = result {
                    debug!(%peer, reason, "connection cut off");
                    if let Some(metrics) = metrics {
                        metrics.cut_off(reason);
                    }
                }
            });
        }
        // From here on the kernel refuses new connections.
        drop(listener);
        tracker.close();
        if tokio::time::timeout(drain_timeout, tracker.wait()).await.is_err() {
            warn!(
                connections = tracker.len(),
                drain_timeout_s = drain_timeout.as_secs_f64(),
                "cutting connections off"
            );
            ends.kill.cancel();
            tracker.wait().await;
        }
    }
}

#[allow(clippy::borrowed_box, reason = "the stream of a connection is a box")]
fn tcp_of(stream: &Box<dyn Stream>) -> Option<&TcpStream> {
    stream.tcp()
}

async fn handshake<T: AsyncRead + AsyncWrite + Unpin>(
    stream: T,
    config: Arc<rustls::ServerConfig>,
    limit: Duration,
    ends: &Ends,
) -> Result<tokio_rustls::server::TlsStream<T>, &'static str> {
    tokio::select! {
        result = tokio::time::timeout(limit, tokio_rustls::TlsAcceptor::from(config).accept(stream)) => match result {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(_)) => Err("tls"),
            Err(_) => Err("tls_timeout"),
        },
        () = ends.drain.cancelled() => Err("shutdown"),
    }
}

/// The connection went away before we took it; the listener is well.
fn is_about_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::InvalidInput
    )
}
