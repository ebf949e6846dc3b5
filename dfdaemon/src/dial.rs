//! Connections to origins, and which addresses they may go to.

use std::collections::HashSet;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use ipnet::IpNet;
use parking_lot::Mutex;
use proto::Kind;
use tokio::net::TcpStream;

/// Connects to origins: resolves names, refuses addresses, tries them in turn.
#[derive(Clone, Debug)]
pub struct Dialer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    allowed: Vec<IpNet>,
    /// Hosts and ports the operator configured: they may be anywhere.
    trusted: HashSet<(String, u16)>,
    connect_timeout: Duration,
    /// Our own listeners.
    own: Mutex<Vec<SocketAddr>>,
}

/// Why no connection to an origin was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The name has no address.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The name.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// All its addresses are ones that requests may not be sent to.
    #[error(
        "{host} is at {address}, which is loopback, link-local or a metadata service and not in origins.allow_addresses"
    )]
    Refused {
        /// The name.
        host: String,
        /// One of its addresses.
        address: IpAddr,
    },
    /// It is this daemon itself.
    #[error("{host} is this daemon itself")]
    Loop {
        /// The name.
        host: String,
    },
    /// Nobody listens, or no route.
    #[error("cannot connect to {host}")]
    Connect {
        /// The name.
        host: String,
        /// What the last address said.
        source: io::Error,
    },
    /// It took too long.
    #[error("no connection to {host} within {timeout:?}")]
    Timeout {
        /// The name.
        host: String,
        /// The limit.
        timeout: Duration,
    },
    /// The URL names no host.
    #[error("the url names no host")]
    NoHost,
}

/// Addresses of one name that are tried at most: enough for both families of a large service.
const ADDRESSES_MAX: usize = 8;

/// Metadata services that do not live on link-local addresses (AWS over IPv6, Alibaba Cloud).
const METADATA: [IpAddr; 2] =
    [IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)), IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200))];

// === impl Dialer ===

impl Dialer {
    /// A dialer that allows public and private addresses, these networks, and these hosts wherever they are.
    #[must_use]
    pub fn new(allowed: Vec<IpNet>, trusted: HashSet<(String, u16)>, connect_timeout: Duration) -> Self {
        Self(Arc::new(Inner { allowed, trusted, connect_timeout, own: Mutex::new(Vec::new()) }))
    }

    /// Tells the address of a listener of this daemon: connections to it are loops.
    pub fn add_own(&self, address: SocketAddr) {
        self.0.own.lock().push(address);
    }

    /// Whether a literal address in a URL may be asked for; names are looked at when they are resolved.
    ///
    /// # Errors
    /// [`DialError::Refused`] or [`DialError::Loop`].
    pub fn check_literal(&self, host: &str, port: u16) -> Result<(), DialError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let Ok(ip) = bare.parse::<IpAddr>() else { return Ok(()) };
        self.check(host, SocketAddr::new(ip.to_canonical(), port))
    }

    /// Connects.
    ///
    /// # Errors
    /// See [`DialError`].
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, DialError> {
        let timeout = self.0.connect_timeout;
        match tokio::time::timeout(timeout, self.connect_any(host, port)).await {
            Ok(result) => result,
            Err(_) => Err(DialError::Timeout { host: host.to_owned(), timeout }),
        }
    }

    async fn connect_any(&self, host: &str, port: u16) -> Result<TcpStream, DialError> {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<SocketAddr> = tokio::net::lookup_host((bare, port))
            .await
            .map_err(|source| DialError::Resolve { host: host.to_owned(), source })?
            .take(ADDRESSES_MAX)
            .collect();
        let mut last = DialError::Resolve { host: host.to_owned(), source: io::ErrorKind::NotFound.into() };
        for (i, address) in addresses.iter().enumerate() {
            if let Err(error) = self.check(host, SocketAddr::new(address.ip().to_canonical(), port)) {
                last = error;
                continue;
            }
            // An address that swallows packets must not use up the time of those after it.
            let left = u32::try_from(addresses.len() - i).unwrap_or(1);
            let slice = if left > 1 { self.0.connect_timeout / 4 } else { self.0.connect_timeout };
            match tokio::time::timeout(slice, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    if self.is_own_connection(&stream, port) {
                        return Err(DialError::Loop { host: host.to_owned() });
                    }
                    // Failing is harmless: it only delays small packets.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(source)) => last = DialError::Connect { host: host.to_owned(), source },
                Err(_) => {
                    last = DialError::Connect { host: host.to_owned(), source: io::ErrorKind::TimedOut.into() };
                }
            }
        }
        Err(last)
    }

    fn check(&self, host: &str, address: SocketAddr) -> Result<(), DialError> {
        let is_own = self.0.own.lock().iter().any(|own| {
            own.port() == address.port()
                && (own.ip().to_canonical() == address.ip()
                    || (own.ip().is_unspecified() && address.ip().is_loopback()))
        });
        if is_own || (address.ip().is_unspecified() && self.0.own.lock().iter().any(|o| o.port() == address.port())) {
            return Err(DialError::Loop { host: host.to_owned() });
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let exempt = self.0.trusted.contains(&(bare, address.port()))
            || self.0.allowed.iter().any(|net| net.contains(&address.ip()));
        if exempt || !is_local(address.ip()) {
            Ok(())
        } else {
            Err(DialError::Refused { host: host.to_owned(), address: address.ip() })
        }
    }

    /// With a listener on all addresses, any address of this host is ours: then both ends of the connection are the same.
    fn is_own_connection(&self, stream: &TcpStream, port: u16) -> bool {
        self.0.own.lock().iter().any(|own| own.port() == port && own.ip().is_unspecified())
            && matches!((stream.local_addr(), stream.peer_addr()), (Ok(a), Ok(b)) if a.ip() == b.ip())
    }
}

/// Loopback, link-local, unspecified, multicast, broadcast, or a cloud's metadata service.
fn is_local(ip: IpAddr) -> bool {
    let special = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast() || ip.octets()[0] == 0,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    special || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || METADATA.contains(&ip)
}

impl tower_service::Service<Uri> for Dialer {
    type Response = TokioIo<TcpStream>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            let host = uri.host().ok_or(DialError::NoHost)?;
            let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
            dialer.connect(host, uri.port_u16().unwrap_or(default)).await.map(TokioIo::new)
        })
    }
}

// === impl DialError ===

impl DialError {
    /// What sort of failure it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Refused { .. } => Kind::Forbidden,
            Self::Loop { .. } | Self::NoHost => Kind::Invalid,
            Self::Resolve { .. } | Self::Connect { .. } | Self::Timeout { .. } => Kind::Unavailable,
        }
    }

    /// The status a proxy answers with (RFC 9110 section 15.6, and 508 of RFC 5842 for loops).
    #[must_use]
    pub const fn http_status(&self) -> u16 {
        match self {
            Self::Refused { .. } => 403,
            Self::Loop { .. } => 508,
            Self::NoHost => 400,
            Self::Timeout { .. } => 504,
            Self::Resolve { .. } | Self::Connect { .. } => 502,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialer(allowed: &[&str], trusted: &[(&str, u16)]) -> Dialer {
        Dialer::new(
            allowed.iter().map(|net| net.parse().unwrap()).collect(),
            trusted.iter().map(|(host, port)| ((*host).to_owned(), *port)).collect(),
            Duration::from_secs(2),
        )
    }

    #[test]
    fn local_addresses_need_leave() {
        let plain = dialer(&[], &[]);
        for bad in [
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "0.0.0.0",
            "[::1]",
            "[fe80::1]",
            "[::ffff:127.0.0.1]",
            "224.0.0.1",
            "100.100.100.200",
            "[fd00:ec2::254]",
            "255.255.255.255",
            "[::]",
            "0.1.2.3",
        ] {
            assert!(matches!(plain.check_literal(bad, 80), Err(DialError::Refused { .. })), "{bad}");
        }
        for good in ["10.0.0.1", "192.168.1.1", "8.8.8.8", "[2001:db8::1]", "[fd00::1]", "example.com"] {
            assert!(plain.check_literal(good, 80).is_ok(), "{good}");
        }
        assert!(dialer(&["127.0.0.0/8"], &[]).check_literal("127.0.0.1", 80).is_ok());
        let trusting = dialer(&[], &[("127.0.0.1", 5000)]);
        assert!(
            trusting.check_literal("127.0.0.1", 5000).is_ok() && trusting.check_literal("127.0.0.1", 5001).is_err()
        );
    }

    #[tokio::test]
    async fn names_are_checked_after_they_were_resolved_and_we_do_not_talk_to_ourselves() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(matches!(dialer(&[], &[]).connect("localhost", port).await, Err(DialError::Refused { .. })));
        assert!(dialer(&[], &[("localhost", port)]).connect("localhost", port).await.is_ok());
        let ours = dialer(&["127.0.0.0/8"], &[]);
        assert!(ours.connect("localhost", port).await.is_ok());
        ours.add_own(SocketAddr::from(([0, 0, 0, 0], port)));
        assert!(matches!(ours.connect("localhost", port).await, Err(DialError::Loop { .. })));
        assert!(matches!(ours.check_literal("0.0.0.0", port), Err(DialError::Loop { .. })));
    }
}
