//! Where connections come from.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};

use crate::config::Problems;

/// Connections the kernel keeps for us while all our slots are taken.
const BACKLOG: u32 = 1024;
/// A socket file is for its owner and group alone.
const SOCKET_MODE: u32 = 0o660;

/// An address to listen on: `127.0.0.1:8080`, `[::1]:8080`, or `unix:/run/skimmer/x.sock`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ListenAddr {
    /// A TCP address; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A socket file.
    Unix(PathBuf),
}

impl ListenAddr {
    /// Notes addresses that are named twice in these lists, each with its name: only one could listen there.
    pub fn check_distinct(lists: &[(&str, &[Self])], problems: &mut Problems) {
        let mut seen = HashSet::new();
        for (name, addresses) in lists {
            problems.each(name, addresses, |address, problems| {
                let is_chosen = matches!(address, Self::Tcp(address) if address.port() == 0);
                problems.check(is_chosen || seen.insert(address), "", format!("{address} is named twice"));
            });
        }
    }
}

/// A text is no address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no address to listen on, expected for example \"127.0.0.1:8080\", \"[::1]:8080\" or \"unix:/run/skimmer/x.sock\""
)]
pub struct InvalidListenAddr(String);

/// A bound listener.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A socket file, removed when the listener is dropped.
    Unix(UnixSocket),
}

/// A socket file we listen on.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
}

/// Who is at the other end of a connection; in the extensions of every request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Peer {
    /// Over TCP.
    Tcp {
        /// Its address.
        address: SocketAddr,
    },
    /// Through a socket file on this host.
    Unix {
        /// The user it runs as, as the kernel says.
        uid: Option<u32>,
        /// Its process.
        pid: Option<i32>,
    },
}

impl Peer {
    /// The IP address, if it came over TCP; IPv4 stays IPv4 on a dual-stack listener.
    #[must_use]
    pub const fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp { address } => Some(address.ip().to_canonical()),
            Self::Unix { .. } => None,
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address } => address.fmt(f),
            Self::Unix { pid: Some(pid), .. } => write!(f, "process {pid}"),
            Self::Unix { pid: None, .. } => f.write_str("a local process"),
        }
    }
}

/// A byte stream of either sort.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    /// The TCP socket, if it is one.
    fn tcp(&self) -> Option<&TcpStream> {
        None
    }
}

impl Stream for UnixStream {}

impl Stream for TcpStream {
    fn tcp(&self) -> Option<&TcpStream> {
        Some(self)
    }
}

// === impl Listener ===

impl Listener {
    /// Binds. A socket file that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// When the address is taken, not ours, or not allowed.
    pub fn bind(address: &ListenAddr) -> io::Result<Self> {
        match address {
            ListenAddr::Tcp(address) => {
                let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
                // A restart must not wait for the old connections' TIME_WAIT.
                socket.set_reuseaddr(true)?;
                socket.bind(*address)?;
                socket.listen(BACKLOG).map(Self::Tcp)
            }
            ListenAddr::Unix(path) => UnixSocket::bind(path).map(Self::Unix),
        }
    }

    /// Where it listens, with the real port.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn local_addr(&self) -> io::Result<ListenAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().map(ListenAddr::Tcp),
            Self::Unix(socket) => Ok(ListenAddr::Unix(socket.path.clone())),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Box<dyn Stream>, Peer)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Answers are written whole; waiting for more would only delay them.
                stream.set_nodelay(true)?;
                Ok((Box::new(stream), Peer::Tcp { address }))
            }
            Self::Unix(socket) => {
                let (stream, _) = socket.listener.accept().await?;
                let peer = stream.peer_cred().ok();
                let peer = Peer::Unix { uid: peer.map(|peer| peer.uid()), pid: peer.and_then(|peer| peer.pid()) };
                Ok((Box::new(stream), peer))
            }
        }
    }
}

impl UnixSocket {
    fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::symlink_metadata(path) {
            Ok(meta) if !meta.file_type().is_socket() => {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket is in the way"));
            }
            Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
                Ok(_) => {
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens on this socket"));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                Err(error) => return Err(error),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(path)?;
        let socket = Self { listener, path: path.to_owned() };
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE))?;
        Ok(socket)
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(%error, path = %self.path.display(), "the socket file could not be removed");
        }
    }
}

// === impl ListenAddr ===

impl FromStr for ListenAddr {
    type Err = InvalidListenAddr;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Ok(Self::Unix(PathBuf::from(path))),
            Some(_) => Err(InvalidListenAddr(text.to_owned())),
            None => text.parse().map(Self::Tcp).map_err(|_| InvalidListenAddr(text.to_owned())),
        }
    }
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Serialize for ListenAddr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ListenAddr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
