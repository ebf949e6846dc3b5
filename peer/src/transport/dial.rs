//! The dialling side: which address, which transport, and one QUIC connection for all channels to a host.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use proto::{HostId, wire};
use quinn::{Connection, Endpoint};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::channel::{Channel, Inlet, Outlet, Receiver, Sender};
use super::error::{BindError, DialError, HandshakeError};
use super::handshake::Answer;
use super::{Kind, Purpose, Shared, TransportConfig, addresses, quic, tcp, tls};

/// An address that has not answered for so long gets company from the next one (RFC 8305 recommends 250 ms).
const ADDRESS_STAGGER: Duration = Duration::from_millis(200);
/// The preferred transport has this head start before the next is tried beside it: three lost first packets of
/// QUIC, say, should not decide.
const KIND_STAGGER: Duration = Duration::from_secs(1);
/// QUIC connections kept for further channels. Beyond, those nobody dials just now are let go.
const CACHED_MAX: usize = 1024;

/// What QUIC needs for dialling.
#[derive(Debug)]
pub(super) struct QuicDialer {
    client: quinn::ClientConfig,
    /// One per address family, made when first needed. Their own sockets, because one that is bound to an address
    /// cannot reach every network.
    endpoints: Mutex<[Option<Endpoint>; 2]>,
    hosts: Mutex<HashMap<HostId, Arc<Cached>>>,
}

/// The connection to a host; who holds the lock is making one. Everyone else waits for it, within his own deadline.
type Cached = tokio::sync::Mutex<Option<(Connection, SocketAddr)>>;

/// Runs attempts one after another, each beside the former when these take longer than `stagger`, and gives the
/// first success, or the last error. An error that is `last` ends it at once.
async fn race<C, T, E, F>(
    candidates: impl IntoIterator<Item = C>,
    stagger: Duration,
    attempt: impl Fn(C) -> F,
    last: impl Fn(&E) -> bool,
) -> Option<Result<T, E>>
where
    F: Future<Output = Result<T, E>>,
{
    let mut candidates = candidates.into_iter().peekable();
    let mut running = FuturesUnordered::new();
    let mut failed = None;
    loop {
        if let Some(candidate) = candidates.next() {
            running.push(attempt(candidate));
        }
        let more = candidates.peek().is_some();
        let next = tokio::select! {
            next = running.next() => next,
            () = tokio::time::sleep(stagger), if more => continue,
        };
        match next {
            Some(Ok(won)) => return Some(Ok(won)),
            Some(Err(error)) if last(&error) => return Some(Err(error)),
            Some(Err(error)) => failed = Some(Err(error)),
            None if !more => return failed,
            None => {}
        }
    }
}

impl Shared {
    /// See [`super::Transport::dial_by`].
    pub(super) async fn dial(
        &self,
        remote: &wire::HostInfo,
        purpose: Purpose,
        kinds: &[Kind],
    ) -> Result<Channel, DialError> {
        let host = remote.id()?;
        if self.cancel.is_cancelled() {
            return Err(DialError::ShutDown);
        }
        // A host that tells no transport is of the first version, which had TCP alone.
        let speaks = |kind: Kind| match remote.transports.as_slice() {
            [] => kind == Kind::Tcp,
            told => told.iter().any(|t| t == kind.label()),
        };
        let kinds: Vec<Kind> = kinds.iter().copied().filter(|k| self.config.kinds.contains(k) && speaks(*k)).collect();
        if kinds.is_empty() {
            return Err(DialError::NoCommonTransport { host });
        }
        let addresses = addresses::dial_order(&remote.addresses, &self.interfaces.current());
        if addresses.is_empty() {
            return Err(DialError::NoAddress { host });
        }
        let target = Target { shared: self, host, addresses, purpose };
        let attempt = race(kinds, KIND_STAGGER, |kind| target.dial(kind), DialError::is_final);
        let after = self.config.dial_timeout;
        let attempt = async { timeout(after, attempt).await.map_err(|_| DialError::Timeout { after }) };
        match self.cancel.run_until_cancelled(attempt).await {
            None => Err(DialError::ShutDown),
            Some(result) => result?.unwrap_or(Err(DialError::NoAddress { host })),
        }
    }
}

/// One dial.
struct Target<'a> {
    shared: &'a Shared,
    host: HostId,
    addresses: Vec<SocketAddr>,
    purpose: Purpose,
}

impl Target<'_> {
    async fn dial(&self, kind: Kind) -> Result<Channel, DialError> {
        match kind {
            Kind::Tcp => self.dial_tcp().await,
            Kind::Quic => self.dial_quic().await,
        }
    }

    async fn dial_tcp(&self) -> Result<Channel, DialError> {
        let mut addresses = self.addresses.clone();
        loop {
            let (stream, address) = self.connect_tcp(&addresses).await?;
            let (outlet, inlet) = tcp::links(stream, address);
            match self.hello(Outlet::Tcp(outlet), Inlet::Tcp(inlet), address).await {
                // Somebody else, or a broken one: the host may still be at another address.
                Err(error) if !error.is_final() && addresses.len() > 1 => addresses.retain(|a| *a != address),
                result => return result,
            }
        }
    }

    async fn connect_tcp(&self, addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), DialError> {
        let connect = |address: SocketAddr| async move {
            let stream = tcp::connect(address, &self.shared.config).await;
            stream.map(|stream| (stream, address)).map_err(|source| DialError::Connect {
                address,
                kind: Kind::Tcp,
                source,
            })
        };
        race(addresses.iter().copied(), ADDRESS_STAGGER, connect, |_| false)
            .await
            .unwrap_or(Err(DialError::NoAddress { host: self.host }))
    }

    async fn dial_quic(&self) -> Result<Channel, DialError> {
        let Some(dialer) = &self.shared.quic else {
            return Err(DialError::NoCommonTransport { host: self.host });
        };
        let mut addresses = self.addresses.clone();
        let cached = dialer.cached(self.host);
        loop {
            let (connection, address, is_new) = self.connection(dialer, &cached, &addresses).await?;
            match self.open(&connection, address).await {
                Ok(channel) => return Ok(channel),
                Err(error) if error.is_final() => return Err(error),
                Err(error) => {
                    // An old connection may have died without a word, as when the host was restarted. A new one
                    // leads to somebody else, or to a broken host.
                    forget(&cached, &connection).await;
                    if is_new {
                        addresses.retain(|a| *a != address);
                        if addresses.is_empty() {
                            return Err(error);
                        }
                    }
                }
            }
        }
    }

    /// The connection to the host, and whether it was made just now.
    async fn connection(
        &self,
        dialer: &QuicDialer,
        cached: &Cached,
        addresses: &[SocketAddr],
    ) -> Result<(Connection, SocketAddr, bool), DialError> {
        let mut cached = cached.lock().await;
        if let Some((connection, address)) = cached.as_ref().filter(|(connection, _)| quic::is_alive(connection)) {
            return Ok((connection.clone(), *address, false));
        }
        let connect = |address: SocketAddr| async move {
            let connected = async { dialer.connect(address)?.await.map_err(std::io::Error::other) };
            connected.await.map(|connection| (connection, address)).map_err(|source| DialError::Connect {
                address,
                kind: Kind::Quic,
                source,
            })
        };
        let (connection, address) = race(addresses.iter().copied(), ADDRESS_STAGGER, connect, |_| false)
            .await
            .unwrap_or(Err(DialError::NoAddress { host: self.host }))?;
        *cached = Some((connection.clone(), address));
        Ok((connection, address, true))
    }

    async fn open(&self, connection: &Connection, address: SocketAddr) -> Result<Channel, DialError> {
        let after = self.shared.config.hello_timeout;
        let failed = |source| DialError::Handshake { address, kind: Kind::Quic, source };
        let stream = timeout(after, connection.open_bi())
            .await
            .map_err(|_| failed(HandshakeError::Timeout { after }))?
            .map_err(|error| DialError::Connect { address, kind: Kind::Quic, source: std::io::Error::other(error) })?;
        let (outlet, inlet) = quic::links(stream, connection, &self.shared.tasks);
        self.hello(Outlet::Quic(outlet), Inlet::Quic(inlet), address).await
    }

    async fn hello(&self, outlet: Outlet, inlet: Inlet, address: SocketAddr) -> Result<Channel, DialError> {
        let kind = match outlet {
            Outlet::Tcp(_) => Kind::Tcp,
            Outlet::Quic(_) => Kind::Quic,
        };
        let timeouts = self.shared.config.timeouts();
        let mut sender = Sender::new(outlet, timeouts, None);
        let mut receiver = Receiver::new(inlet, timeouts, None);
        let answer = self.shared.local.hello(&mut sender, &mut receiver, self.purpose).await;
        let answer = answer.map_err(|source| DialError::Handshake { address, kind, source })?;
        let (Answer::Welcome { remote, .. } | Answer::Refused { remote, .. }) = &answer;
        let found = remote.id()?;
        if found != self.host {
            return Err(DialError::WrongHost { address, expected: self.host, found });
        }
        match answer {
            Answer::Welcome { remote, version } => Ok(Channel::new(remote, version, sender, receiver)),
            Answer::Refused { reason, .. } => Err(DialError::Refused { address, reason }),
        }
    }
}

/// Takes a connection out of the cache, unless another has taken its place. Channels it still carries live on.
async fn forget(cached: &Cached, connection: &Connection) {
    let mut cached = cached.lock().await;
    if cached.as_ref().is_some_and(|(c, _)| c.stable_id() == connection.stable_id()) {
        *cached = None;
    }
}

// === impl QuicDialer ===

impl QuicDialer {
    pub(super) fn new(config: &TransportConfig) -> Result<Self, BindError> {
        Ok(Self { client: quic::client_config(config)?, endpoints: Mutex::default(), hosts: Mutex::default() })
    }

    fn cached(&self, host: HostId) -> Arc<Cached> {
        let mut hosts = self.hosts.lock();
        if hosts.len() >= CACHED_MAX && !hosts.contains_key(&host) {
            // In use = somebody dials it now, or it is alive; when all are alive, any will do: its channels live on.
            let in_use = |cached: &Arc<Cached>| {
                Arc::strong_count(cached) > 1
                    || cached.try_lock().is_ok_and(|c| c.as_ref().is_some_and(|(c, _)| quic::is_alive(c)))
            };
            hosts.retain(|_, cached| in_use(cached));
            if hosts.len() >= CACHED_MAX
                && let Some(any) = hosts.keys().next().copied()
            {
                hosts.remove(&any);
            }
        }
        Arc::clone(hosts.entry(host).or_default())
    }

    fn connect(&self, address: SocketAddr) -> std::io::Result<quinn::Connecting> {
        let endpoint = self.endpoint(address)?;
        endpoint.connect_with(self.client.clone(), address, tls::SERVER_NAME).map_err(std::io::Error::other)
    }

    fn endpoint(&self, address: SocketAddr) -> std::io::Result<Endpoint> {
        let (at, unspecified) = match address {
            SocketAddr::V4(_) => (0, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))),
            SocketAddr::V6(_) => (1, SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))),
        };
        let mut endpoints = self.endpoints.lock();
        if let Some(endpoint) = &endpoints[at] {
            return Ok(endpoint.clone());
        }
        let endpoint = quic::dialer(unspecified)?;
        endpoints[at] = Some(endpoint.clone());
        Ok(endpoint)
    }

    /// The endpoints in use, for closing them.
    pub(super) fn endpoints(&self) -> Vec<Endpoint> {
        self.endpoints.lock().iter().flatten().cloned().collect()
    }

    /// Lets go of the cached connections; channels they carry live on.
    pub(super) fn forget_all(&self) {
        self.hosts.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::{Instant, sleep};

    use super::*;

    const STAGGER: Duration = Duration::from_millis(200);

    /// Candidates: how long each takes, and whether it then succeeds.
    async fn run(candidates: &[(u64, bool)]) -> (Option<Result<usize, usize>>, Duration, usize) {
        let (start, tried) = (Instant::now(), AtomicUsize::new(0));
        let attempt = |at: usize| {
            tried.fetch_add(1, Ordering::Relaxed);
            let (millis, succeeds) = candidates[at];
            async move {
                sleep(Duration::from_millis(millis)).await;
                if succeeds { Ok(at) } else { Err(at) }
            }
        };
        let result = race(0..candidates.len(), STAGGER, attempt, |at| *at == 9).await;
        (result, start.elapsed(), tried.load(Ordering::Relaxed))
    }

    #[tokio::test(start_paused = true)]
    async fn transport_race_is_staggered_and_the_first_success_wins() {
        let millis = Duration::from_millis;
        assert_eq!(run(&[(50, true), (1, true)]).await, (Some(Ok(0)), millis(50), 1));
        assert_eq!(run(&[(9_999, true), (100, true)]).await, (Some(Ok(1)), millis(300), 2));
        // A failure does not wait for the next one's turn.
        assert_eq!(run(&[(10, false), (10, false), (10, true)]).await, (Some(Ok(2)), millis(30), 3));
        assert_eq!(run(&[(500, false), (50, false)]).await, (Some(Err(0)), millis(500), 2));
        assert_eq!(run(&[]).await, (None, Duration::ZERO, 0));
    }
}
