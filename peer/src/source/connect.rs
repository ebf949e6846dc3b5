//! Opens connections: resolve, ask the guard, dial what it allowed, shake hands.

use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::config::{HostRule, HostRules, ProxyUrl};
use super::guard::Guard;
use super::tls::TlsConfigs;
use super::tunnel;
use super::{AddressClass, SourceError, Waiting};

/// Turns a host's name into addresses.
pub trait Resolve: Send + Sync + 'static {
    /// The addresses of `host`, best first. Whatever it answers is shown to the guard before it is dialled.
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The operating system's resolver.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemResolver;

/// Everything connections are made from, whatever their guard.
pub(super) struct Dialer {
    pub(super) resolver: Arc<dyn Resolve>,
    pub(super) tls: TlsConfigs,
    pub(super) rules: HostRules,
    pub(super) proxy: Option<ProxyUrl>,
    pub(super) connect_timeout: Duration,
}

/// The dialer as one guard lets it be used; what the HTTP client calls.
#[derive(Clone)]
pub(super) struct Connector {
    pub(super) dialer: Arc<Dialer>,
    pub(super) guard: Arc<Guard>,
}

/// A connection to an origin, or through a proxy.
pub(super) enum Stream {
    Plain { io: TokioIo<TcpStream>, proxied: bool },
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

/// Why there is no connection. The HTTP client hands errors on by reference, so this can be copied.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ConnectFailure {
    #[error("{host} is refused")]
    Refused { host: Box<str>, address: IpAddr, class: AddressClass },
    #[error("cannot resolve {host}")]
    Resolve { host: Box<str>, source: Arc<io::Error> },
    #[error("cannot connect to {host}")]
    Connect { host: Box<str>, address: SocketAddr, source: Arc<io::Error> },
    #[error("no tunnel to {host}: {what}")]
    Proxy { host: Box<str>, what: Box<str> },
    #[error("no secure connection to {host}")]
    Tls { host: Box<str>, source: Arc<io::Error> },
    #[error("connecting to {host} took too long")]
    Timeout { host: Box<str>, after: Duration },
}

/// Where a URL's connection goes.
pub(super) struct Destination {
    /// Lower case, no brackets, no trailing dot.
    pub(super) host: Box<str>,
    pub(super) port: u16,
    pub(super) secure: bool,
}

/// A second address is tried when the first has not answered for this long (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);
/// Of a name with more addresses than this, the rest is not tried.
const ADDRESSES_MAX: usize = 16;

// === impl Destination ===

impl Destination {
    pub(super) fn of(scheme: &str, host: &str, port: Option<u16>) -> Self {
        let secure = scheme == "https";
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let bare = bare.strip_suffix('.').unwrap_or(bare).to_ascii_lowercase();
        Self { host: bare.into(), port: port.unwrap_or(if secure { 443 } else { 80 }), secure }
    }

    pub(super) fn of_url(url: &url::Url) -> Self {
        Self::of(url.scheme(), url.host_str().unwrap_or_default(), url.port())
    }
}

// === impl Dialer ===

impl Dialer {
    pub(super) fn rule(&self, to: &Destination) -> Option<(usize, &HostRule)> {
        self.rules.find(&to.host, to.port)
    }

    /// The proxy that requests to this destination go through.
    pub(super) fn proxy_for(&self, to: &Destination) -> Option<&ProxyUrl> {
        self.proxy.as_ref().filter(|_| !self.rule(to).is_some_and(|(_, rule)| rule.options.direct))
    }

    async fn connect(&self, guard: &Guard, to: &Destination) -> Result<Stream, ConnectFailure> {
        let tcp = match self.proxy_for(to) {
            None => {
                let addresses = self.addresses(guard, to).await?;
                dial(&to.host, &addresses).await?
            }
            Some(proxy) => {
                check_name(guard, to)?;
                let via = Destination::of_url(&proxy.0);
                // Named by the operator, not by whoever asks: the guard has no say.
                let addresses = self.addresses(&Guard::permissive(), &via).await?;
                let mut tcp = dial(&via.host, &addresses).await?;
                if !to.secure {
                    return Ok(Stream::Plain { io: TokioIo::new(tcp), proxied: true });
                }
                let opened = tunnel::open(&mut tcp, to, &proxy.0).await;
                opened.map_err(|what| ConnectFailure::Proxy { host: to.host.clone(), what })?;
                tcp
            }
        };
        if to.secure { self.secure(tcp, to).await } else { Ok(Stream::Plain { io: TokioIo::new(tcp), proxied: false }) }
    }

    /// The addresses that may be dialled; an error when there is none.
    async fn addresses(&self, guard: &Guard, to: &Destination) -> Result<Vec<SocketAddr>, ConnectFailure> {
        let found = match to.host.parse::<IpAddr>() {
            Ok(literal) => Ok(vec![literal]),
            Err(_) => self.resolver.resolve(&to.host).await,
        };
        let not_found = |source: io::Error| ConnectFailure::Resolve { host: to.host.clone(), source: Arc::new(source) };
        let found = found.map_err(not_found)?;
        let mut refused = None;
        let mut allowed = Vec::with_capacity(found.len());
        for address in found {
            match guard.check(address) {
                Ok(()) => allowed.push(SocketAddr::new(address, to.port)),
                Err(class) => {
                    tracing::debug!(host = %to.host, %address, %class, "address refused");
                    refused = refused.or(Some((address, class)));
                }
            }
        }
        match refused {
            _ if !allowed.is_empty() => Ok(interleave(allowed)),
            Some((address, class)) => Err(ConnectFailure::Refused { host: to.host.clone(), address, class }),
            None => Err(not_found(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))),
        }
    }

    async fn secure(&self, tcp: TcpStream, to: &Destination) -> Result<Stream, ConnectFailure> {
        let failed = |source: io::Error| ConnectFailure::Tls { host: to.host.clone(), source: Arc::new(source) };
        let name = ServerName::try_from(to.host.to_string())
            .map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
        let config = self.tls.for_rule(self.rule(to)).await.map_err(failed)?;
        let stream = tokio_rustls::TlsConnector::from(config).connect(name, tcp).await.map_err(failed)?;
        Ok(Stream::Tls(Box::new(TokioIo::new(stream))))
    }
}

/// What can be said of a destination that only the proxy will resolve.
fn check_name(guard: &Guard, to: &Destination) -> Result<(), ConnectFailure> {
    let local = &*to.host == "localhost" || to.host.ends_with(".localhost");
    let address = if local { Some(IpAddr::from([127, 0, 0, 1])) } else { to.host.parse().ok() };
    match address.map(|address| (address, guard.check(address))) {
        Some((address, Err(class))) => Err(ConnectFailure::Refused { host: to.host.clone(), address, class }),
        _ => Ok(()),
    }
}

/// The two families in turns, each in its own order: one that is broken costs one attempt, not all of them.
fn interleave(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let first_is_v6 = addresses.first().is_some_and(SocketAddr::is_ipv6);
    let (first, second): (Vec<_>, Vec<_>) = addresses.into_iter().partition(|address| address.is_ipv6() == first_is_v6);
    let longest = first.len().max(second.len());
    let mut mixed = Vec::with_capacity(ADDRESSES_MAX);
    for index in 0..longest {
        mixed.extend(first.get(index).into_iter().chain(second.get(index)));
    }
    mixed.truncate(ADDRESSES_MAX);
    mixed
}

/// Connects to the first address that answers.
async fn dial(host: &str, addresses: &[SocketAddr]) -> Result<TcpStream, ConnectFailure> {
    let mut waiting = addresses.iter().copied();
    let mut attempts = FuturesUnordered::new();
    let mut failure = None;
    loop {
        match waiting.next() {
            Some(address) => attempts.push(async move { (address, TcpStream::connect(address).await) }),
            None if attempts.is_empty() => break,
            None => {}
        }
        tokio::select! {
            Some((address, result)) = attempts.next() => match result {
                Ok(stream) => {
                    // Requests are small and are waited for.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    return Ok(stream);
                }
                Err(error) => failure = Some((address, error)),
            },
            () = tokio::time::sleep(STAGGER), if waiting.len() > 0 => {}
        }
    }
    let (address, source) = failure.unwrap_or_else(|| {
        (SocketAddr::from(([0, 0, 0, 0], 0)), io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
    });
    Err(ConnectFailure::Connect { host: host.into(), address, source: Arc::new(source) })
}

// === impl SystemResolver ===

impl Resolve for SystemResolver {
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let host = host.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect()) })
    }
}

// === impl Connector ===

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = ConnectFailure;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, ConnectFailure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self { dialer, guard } = self.clone();
        let to = Destination::of(uri.scheme_str().unwrap_or_default(), uri.host().unwrap_or_default(), uri.port_u16());
        Box::pin(async move {
            let after = dialer.connect_timeout;
            let connected = tokio::time::timeout(after, dialer.connect(&guard, &to)).await;
            connected.unwrap_or_else(|_| Err(ConnectFailure::Timeout { host: to.host, after }))
        })
    }
}

// === impl Stream ===

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Self::Plain { proxied, .. } => Connected::new().proxy(*proxied),
            Self::Tls(stream) if stream.inner().get_ref().1.alpn_protocol() == Some(b"h2") => {
                Connected::new().negotiated_h2()
            }
            Self::Tls(_) => Connected::new(),
        }
    }
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { io, .. } => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain { io, .. } => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { io, .. } => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain { io, .. } => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

impl From<ConnectFailure> for SourceError {
    fn from(failure: ConnectFailure) -> Self {
        match failure {
            ConnectFailure::Refused { host, address, class } => Self::Refused { host, address, class },
            ConnectFailure::Resolve { host, source } => Self::Resolve { host, source },
            ConnectFailure::Connect { host, address, source } => Self::Connect { host, address, source },
            ConnectFailure::Proxy { host, what } => Self::Proxy { host, what },
            ConnectFailure::Tls { host, source } => Self::Tls { host, source },
            ConnectFailure::Timeout { host, after } => Self::Timeout { host, waiting: Waiting::Connect, after },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let parse = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let mixed = interleave(parse(&["[::2]:1", "[::3]:1", "[::4]:1", "1.1.1.1:1", "2.2.2.2:1"]));
        assert_eq!(mixed, parse(&["[::2]:1", "1.1.1.1:1", "[::3]:1", "2.2.2.2:1", "[::4]:1"]));
        assert_eq!(interleave(parse(&["1.1.1.1:1"])), parse(&["1.1.1.1:1"]));
        assert_eq!(interleave(vec!["1.1.1.1:1".parse().unwrap(); 40]).len(), ADDRESSES_MAX);
    }
}
