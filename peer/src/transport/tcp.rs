//! TCP: plain sockets, content by `sendfile`.
//!
//! The place where TLS will be required is [`super::Security`]: a channel over TLS will be another [`SendLink`] with
//! the same handshake of frames inside.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BufMut;
use proto::ByteRange;
use rustix::net::SendFlags;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use super::channel::{Content, RecvLink, SendLink};
use super::error::{BindError, SendError};
use super::{Kind, TransportConfig};

/// Bytes handed to one `sendfile` call at most: the runtime's thread is the kernel's for that long.
const SENDFILE_MAX_BYTES: u64 = 1024 * 1024;
/// Connections the kernel keeps while the accept loop is busy.
const LISTEN_BACKLOG: u32 = 1024;
/// A quiet connection is probed after this long, so that a host that lost its power is noticed.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
/// Time between two such probes.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(super) struct Outlet {
    half: OwnedWriteHalf,
    peer: SocketAddr,
}

#[derive(Debug)]
pub(super) struct Inlet(OwnedReadHalf);

/// The two ends of a connected socket.
pub(super) fn links(stream: TcpStream, peer: SocketAddr) -> (Outlet, Inlet) {
    let (read, write) = stream.into_split();
    (Outlet { half: write, peer }, Inlet(read))
}

/// Listens on an address.
pub(super) fn listen(address: SocketAddr, only_v6: bool, config: &TransportConfig) -> Result<TcpListener, BindError> {
    let open = || -> io::Result<TcpSocket> {
        let socket = socket_for(address)?;
        if address.is_ipv6() {
            SockRef::from(&socket).set_only_v6(only_v6)?;
        }
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    };
    let failed = |source| BindError::Listen { address, kind: Kind::Tcp, source };
    let socket = open().map_err(failed)?;
    set_congestion(&SockRef::from(&socket), config)
        .map_err(|source| BindError::Congestion { name: config.congestion.clone().unwrap_or_default(), source })?;
    socket.listen(LISTEN_BACKLOG).map_err(failed)
}

/// Connects to an address.
pub(super) async fn connect(address: SocketAddr, config: &TransportConfig) -> io::Result<TcpStream> {
    let socket = socket_for(address)?;
    set_congestion(&SockRef::from(&socket), config)?;
    let stream = socket.connect(address).await?;
    prepare(&stream, config)?;
    Ok(stream)
}

/// Sets what every connected socket has.
pub(super) fn prepare(stream: &TcpStream, config: &TransportConfig) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    // An accepted socket inherits it on Linux; setting it again costs nothing and needs no such knowledge.
    set_congestion(&socket, config)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_INTERVAL);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(config.progress_timeout))
}

fn socket_for(address: SocketAddr) -> io::Result<TcpSocket> {
    if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
}

fn set_congestion(socket: &SockRef<'_>, config: &TransportConfig) -> io::Result<()> {
    config.congestion.as_ref().map_or(Ok(()), |name| socket.set_tcp_congestion(name.as_bytes()))
}

// === impl Outlet ===

impl Outlet {
    pub(super) const fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Runs a call that must not block, once the socket can take bytes.
    async fn when_writable<T>(&self, mut call: impl FnMut(&TcpStream) -> rustix::io::Result<T>) -> io::Result<T> {
        let stream: &TcpStream = self.half.as_ref();
        loop {
            // A socket that is always ready would otherwise keep the thread from everyone else.
            tokio::task::consume_budget().await;
            match stream.try_io(Interest::WRITABLE, || Ok(call(stream)?)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    }
}

impl SendLink for Outlet {
    async fn write(&mut self, bytes: &[u8], more: bool) -> Result<usize, SendError> {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT | if more { SendFlags::MORE } else { SendFlags::empty() };
        self.when_writable(|stream| rustix::net::send(stream, bytes, flags)).await.map_err(SendError::of_io)
    }

    async fn write_content(&mut self, content: &mut Content<'_>, part: ByteRange) -> Result<u64, SendError> {
        let count = usize::try_from(part.len().min(SENDFILE_MAX_BYTES)).expect("1 MiB fits");
        let file = content.file;
        let sent = self.when_writable(|stream| {
            let mut offset = part.start();
            rustix::fs::sendfile(stream, file, Some(&mut offset), count)
        });
        match sent.await {
            Ok(0) => Err(SendError::ContentEnded { at: part.start() }),
            Ok(sent) => Ok(sent as u64),
            // The file's errors and the socket's come by the same road; these can only be the file's.
            Err(error) if is_of_file(&error) => Err(SendError::Content(error)),
            Err(error) => Err(SendError::of_io(error)),
        }
    }

    async fn finish(&mut self) -> Result<(), SendError> {
        self.half.shutdown().await.map_err(SendError::of_io)
    }

    fn abort(&mut self) {
        // The end of the stream comes before the length that the frame announced: the receiver can tell.
    }
}

fn is_of_file(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::IO, Errno::INVAL, Errno::BADF, Errno::OVERFLOW, Errno::SPIPE, Errno::NOMEM]
        .iter()
        .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

// === impl Inlet ===

impl RecvLink for Inlet {
    async fn read(&mut self, out: &mut (impl BufMut + Send)) -> io::Result<usize> {
        self.0.read_buf(out).await
    }
}
