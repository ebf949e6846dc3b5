//! The listener: registry mirror, HTTP proxy, `CONNECT` and interception on one port.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use crate::ca::{Authority, CaError};
use crate::config::{Config, Problem};
use crate::downloads::Downloads;
use crate::io::{Break, Breakable, IdleIo};
use crate::metrics::{Metrics, OpenConnection};
use crate::mirror::Upstreams;
use crate::passthrough::Passthrough;
use crate::pattern::HostPattern;
use crate::rules::Rules;

mod answers;
mod connect;
mod handle;

pub use answers::ERROR_TYPE;

/// The HTTP side of the daemon. Cheap to clone.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

pub(crate) struct Shared {
    config: Config,
    rules: Rules,
    upstreams: Upstreams,
    connect_hosts: Vec<HostPattern>,
    intercept_hosts: Vec<HostPattern>,
    authority: Option<Authority>,
    /// What `Proxy-Authorization` must be.
    credentials: Option<String>,
    downloads: Arc<dyn Downloads>,
    passthrough: Passthrough,
    metrics: Metrics,
    slots: Arc<Semaphore>,
    /// How this process signs `Via`.
    pseudonym: String,
}

/// The server cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// The configuration is wrong.
    #[error("the configuration has {} problems, first {}", .0.len(), .0.first().map(ToString::to_string).unwrap_or_default())]
    Config(Vec<Problem>),
    /// The CA of interception cannot be used.
    #[error("interception cannot be set up")]
    Ca(#[from] CaError),
}

/// What a request came in by.
#[derive(Clone)]
pub(crate) struct Via {
    scope: Scope,
    peer: SocketAddr,
    /// Held by whatever lives on after the connection's first protocol.
    slot: Arc<Slot>,
    tracker: TaskTracker,
    /// Shutdown has begun.
    cancel: CancellationToken,
    /// The time to drain is over.
    cut: CancellationToken,
}

#[derive(Clone)]
pub(crate) enum Scope {
    /// The main listener: proxy and mirror.
    Main,
    /// A mirror listener of one registry.
    Registry(Arc<str>),
    /// Inside of an intercepted connection to this host and port. `name` is what the client's TLS asked for.
    Intercepted { host: Arc<str>, name: Arc<str>, port: u16 },
}

/// One of the connections there may be.
pub(crate) struct Slot {
    _permit: OwnedSemaphorePermit,
    _open: OpenConnection,
}

/// What is said to a connection over the limit: clients take it as a sign to go elsewhere.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
/// After a failed accept (usually: no file descriptors left), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often a quiet HTTP/2 connection is asked for a sign of life.
const H2_PING_EVERY: Duration = Duration::from_secs(60);

// === impl Server ===

impl Server {
    /// Makes the server; with intercepted hosts, reads the CA or makes one. Blocks on files; called at start.
    ///
    /// # Errors
    /// When the configuration or the CA cannot be used.
    pub fn new(
        config: Config,
        downloads: Arc<dyn Downloads>,
        passthrough: Passthrough,
        metrics: Metrics,
    ) -> Result<Self, ServerError> {
        let problems = config.validate();
        if !problems.is_empty() {
            return Err(ServerError::Config(problems));
        }
        let wrong = |path: &str, error: &dyn std::fmt::Display| {
            ServerError::Config(vec![Problem { path: path.into(), message: error.to_string() }])
        };
        let proxy = &config.proxy;
        let authority = if proxy.intercept.hosts.is_empty() {
            None
        } else {
            Some(Authority::load_or_generate(&proxy.intercept.ca_cert, &proxy.intercept.ca_key)?)
        };
        Ok(Self(Arc::new(Shared {
            rules: Rules::new(proxy).map_err(|e| wrong("proxy.rules", &e))?,
            upstreams: Upstreams::new(&config.mirror).map_err(|e| wrong("mirror.allow", &e))?,
            connect_hosts: HostPattern::parse_all(&proxy.connect.hosts)
                .map_err(|e| wrong("proxy.connect.hosts", &e))?,
            intercept_hosts: HostPattern::parse_all(&proxy.intercept.hosts)
                .map_err(|e| wrong("proxy.intercept.hosts", &e))?,
            authority,
            credentials: proxy.auth.as_ref().map(answers::basic),
            downloads,
            passthrough,
            metrics,
            slots: Arc::new(Semaphore::new(config.limits.connections_max)),
            pseudonym: format!("skimmer-{:016x}", rand::random::<u64>()),
            config,
        })))
    }

    /// Binds all addresses of the configuration: the main one first, then those of single registries.
    ///
    /// # Errors
    /// When an address cannot be bound; it is in the error.
    pub async fn bind(&self) -> io::Result<Vec<(TcpListener, Option<String>)>> {
        let config = &self.0.config;
        let own = config.mirror.upstreams.iter().filter_map(|u| Some((u.listen?, Some(u.host.clone()))));
        let mut listeners = Vec::new();
        for (address, registry) in std::iter::once((config.proxy.listen, None)).chain(own) {
            let listener = TcpListener::bind(address)
                .await
                .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?;
            listeners.push((listener, registry));
        }
        Ok(listeners)
    }

    /// Serves everything on this listener until cancelled; then stops accepting, lets running requests end within
    /// `limits.drain_timeout`, and closes the rest.
    pub async fn serve(&self, listener: TcpListener, cancel: CancellationToken) {
        self.accept_loop(listener, Scope::Main, cancel).await;
    }

    /// Serves only the mirror of one registry on this listener, until cancelled.
    pub async fn serve_registry(&self, listener: TcpListener, registry: &str, cancel: CancellationToken) {
        self.accept_loop(listener, Scope::Registry(registry.into()), cancel).await;
    }

    /// Binds and serves all addresses until cancelled.
    ///
    /// # Errors
    /// When an address cannot be bound.
    pub async fn run(&self, cancel: CancellationToken) -> io::Result<()> {
        let loops = self.bind().await?.into_iter().map(|(listener, registry)| {
            let cancel = cancel.clone();
            async move {
                match registry {
                    None => self.serve(listener, cancel).await,
                    Some(registry) => self.serve_registry(listener, &registry, cancel).await,
                }
            }
        });
        futures_util::future::join_all(loops).await;
        Ok(())
    }

    async fn accept_loop(&self, listener: TcpListener, scope: Scope, cancel: CancellationToken) {
        if let Ok(address) = listener.local_addr() {
            self.0.passthrough.dialer().add_own(address);
            info!(%address, "http side listens");
        }
        let tracker = TaskTracker::new();
        // Connections are told of a shutdown at once, and cut off when the time to drain is over.
        let cut = CancellationToken::new();
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&self.0.slots).try_acquire_owned() else {
                self.0.metrics.refused_connection();
                // One packet, if it fits; waiting for this client would help it to block others.
                let _ = stream.try_write(FULL);
                continue;
            };
            let slot = Arc::new(Slot { _permit: permit, _open: self.0.metrics.connection() });
            let via = Via {
                scope: scope.clone(),
                peer,
                slot,
                tracker: tracker.clone(),
                cancel: cancel.clone(),
                cut: cut.clone(),
            };
            let (server, cut) = (self.clone(), cut.clone());
            tracker.spawn(async move {
                tokio::select! {
                    () = cut.cancelled() => {}
                    () = server.plain_connection(stream, via) => {}
                }
            });
        }
        drop(listener);
        tracker.close();
        if tokio::time::timeout(self.0.config.limits.drain_timeout, tracker.wait()).await.is_err() {
            warn!(connections = tracker.len(), "connections are cut off at shutdown");
            cut.cancel();
            tracker.wait().await;
        }
    }

    async fn plain_connection(&self, stream: TcpStream, via: Via) {
        // Failing is harmless: it only delays small packets.
        let _ = stream.set_nodelay(true);
        let (stream, broken) = Breakable::new(stream);
        self.http1(stream, via, &broken).await;
    }

    /// Serves a connection; when the body of an answer breaks off, `broken` is marked before the connection is dropped.
    async fn http1(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, via: Via, broken: &Break) {
        let limits = &self.0.config.limits;
        let io = TokioIo::new(IdleIo::new(io, limits.idle_timeout));
        let cancel = via.cancel.clone();
        let peer = via.peer;
        let shared = Arc::clone(&self.0);
        let service = service_fn(move |request: Request<Incoming>| {
            let (server, via) = (Self(Arc::clone(&shared)), via.clone());
            async move { Ok::<_, Infallible>(server.handle(request, via).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_headers(limits.header_fields_max)
            .max_header_size(limits.header_bytes_max)
            .serve_connection(io, service)
            .with_upgrades();
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = cancel.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            debug!(%peer, %error, "a connection broke");
            if error.is_user() {
                broken.mark();
            }
        }
    }

    async fn http2(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, via: Via) {
        let limits = &self.0.config.limits;
        let io = TokioIo::new(IdleIo::new(io, limits.idle_timeout));
        let cancel = via.cancel.clone();
        let peer = via.peer;
        let executor = Tracked(via.tracker.clone(), via.cut.clone());
        let shared = Arc::clone(&self.0);
        let service = service_fn(move |request: Request<Incoming>| {
            let (server, via) = (Self(Arc::clone(&shared)), via.clone());
            async move { Ok::<_, Infallible>(server.handle(request, via).await) }
        });
        let connection = http2::Builder::new(executor)
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams_max)
            .max_header_list_size(u32::try_from(limits.header_bytes_max).unwrap_or(u32::MAX))
            .keep_alive_interval(H2_PING_EVERY)
            .serve_connection(io, service);
        tokio::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = cancel.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            debug!(%peer, %error, "a connection broke");
        }
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("config", &self.0.config).finish_non_exhaustive()
    }
}

/// Lets hyper's tasks end with ours.
#[derive(Clone)]
struct Tracked(TaskTracker, CancellationToken);

impl<F> hyper::rt::Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let cut = self.1.clone();
        self.0.spawn(async move {
            tokio::select! {
                () = cut.cancelled_owned() => {}
                _ = future => {}
            }
        });
    }
}
