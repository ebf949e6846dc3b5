//! QUIC by quinn: one connection per host pair and direction, one bidirectional stream per channel.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use proto::ByteRange;
use quinn::{
    Connection, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, RecvStream, SendStream, VarInt, WriteError,
};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::AsyncReadExt;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::channel::{Content, RecvLink, SendLink};
use super::error::{BindError, SendError};
use super::{Kind, TransportConfig, tls};

/// Streams, that is channels, the other side may open on one connection: control, a pool of data channels, and some
/// that are just being replaced.
const STREAMS_MAX: u32 = 64;
/// The largest datagram in bytes. quinn batches ten of them into one segmented send, which must stay below 64 KiB:
/// above 6,500 its sends would vanish in the kernel. Where the path takes no more than 1,500, discovery finds that.
const DATAGRAM_MAX_BYTES: u16 = 6_500;
/// Bytes the kernel may keep per UDP socket and direction, as far as it allows: 3 ms at 10 Gb/s.
const SOCKET_BUFFER_BYTES: usize = 4 * 1024 * 1024;
/// A connection that is silent for this long is dead.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// How often a quiet connection shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(4);
/// Handshake bytes kept for connections that are not accepted yet, each and in all.
const INCOMING_BYTES_MAX: (u64, u64) = (16 * 1024, 4 * 1024 * 1024);
/// Bytes of a file read at once.
const READ_BYTES: u64 = 256 * 1024;
/// Tells the receiver that a stream breaks off; the number has no meaning.
const BROKEN_OFF: VarInt = VarInt::from_u32(1);

#[derive(Debug)]
pub(super) struct Outlet {
    stream: SendStream,
    /// Kept until what was sent is acknowledged: with the last handle of a connection, the rest would be lost.
    connection: Connection,
    tasks: TaskTracker,
    /// Holds up the endpoint's shutdown.
    _token: TaskTrackerToken,
    /// Nothing is to be waited for: it has arrived, or is void.
    done: bool,
}

#[derive(Debug)]
pub(super) struct Inlet(RecvStream);

/// The next part of a file, read while the last one is being sent.
#[derive(Debug)]
pub(super) struct ReadAhead {
    file: Arc<File>,
    /// Read and not yet sent.
    chunk: Bytes,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    /// Where the next read starts.
    at: u64,
}

/// The two ends of a stream.
pub(super) fn links(
    (stream, recv): (SendStream, RecvStream),
    connection: &Connection,
    tasks: &TaskTracker,
) -> (Outlet, Inlet) {
    let (connection, tasks) = (connection.clone(), tasks.clone());
    let outlet = Outlet { stream, connection, _token: tasks.token(), tasks, done: false };
    (outlet, Inlet(recv))
}

/// An endpoint that listens.
pub(super) fn listen(address: SocketAddr, only_v6: bool, config: &TransportConfig) -> Result<Endpoint, BindError> {
    let mut server = tls::server()?;
    let incoming_max = config.handshakes_max;
    server
        .transport_config(Arc::new(stream_config(config)?))
        .max_incoming(incoming_max)
        .incoming_buffer_size(INCOMING_BYTES_MAX.0)
        .incoming_buffer_size_total(INCOMING_BYTES_MAX.1);
    endpoint(address, only_v6, Some(server)).map_err(|source| BindError::Listen { address, kind: Kind::Quic, source })
}

/// An endpoint that only dials, for one address family.
pub(super) fn dialer(unspecified: SocketAddr) -> io::Result<Endpoint> {
    endpoint(unspecified, true, None)
}

/// What a dialer offers.
pub(super) fn client_config(config: &TransportConfig) -> Result<quinn::ClientConfig, BindError> {
    let mut client = tls::client()?;
    client.transport_config(Arc::new(stream_config(config)?));
    Ok(client)
}

fn endpoint(address: SocketAddr, only_v6: bool, server: Option<quinn::ServerConfig>) -> io::Result<Endpoint> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // The kernel takes what it allows of it; less only costs speed on long fat links.
    socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)?;
    socket.bind(&address.into())?;
    let mut config = EndpointConfig::default();
    config.max_udp_payload_size(DATAGRAM_MAX_BYTES).map_err(io::Error::other)?;
    Endpoint::new(config, server, socket.into(), Arc::new(quinn::TokioRuntime))
}

fn stream_config(config: &TransportConfig) -> Result<quinn::TransportConfig, BindError> {
    let window =
        VarInt::from_u64(config.quic_window_bytes).map_err(|_| BindError::OutOfRange { field: "quic_window_bytes" })?;
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(DATAGRAM_MAX_BYTES);
    let mut streams = quinn::TransportConfig::default();
    streams
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(window)
        // What one connection may make us keep, over all its streams.
        .receive_window(window.saturating_double())
        .send_window(config.quic_window_bytes)
        .datagram_receive_buffer_size(None)
        .mtu_discovery_config(Some(discovery))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("15 s are in range")));
    Ok(streams)
}

/// Saturating arithmetic on QUIC's 62-bit integers.
trait SaturatingDouble {
    fn saturating_double(self) -> Self;
}

impl SaturatingDouble for VarInt {
    fn saturating_double(self) -> Self {
        Self::from_u64(self.into_inner().saturating_mul(2)).unwrap_or(Self::MAX)
    }
}

/// Whether a connection can take another stream, as far as is known.
pub(super) fn is_alive(connection: &Connection) -> bool {
    connection.close_reason().is_none()
}

// === impl Outlet ===

impl Outlet {
    pub(super) fn peer_addr(&self) -> SocketAddr {
        self.connection.remote_address()
    }

    async fn write_chunk(&mut self, chunk: Bytes) -> Result<usize, SendError> {
        // `write_chunks` tells progress, where `write_chunk` only tells the end.
        let written = self.stream.write_chunks(&mut [chunk]).await.map_err(of_write)?;
        Ok(written.bytes)
    }
}

impl SendLink for Outlet {
    async fn write(&mut self, bytes: &[u8], _more: bool) -> Result<usize, SendError> {
        self.stream.write(bytes).await.map_err(of_write)
    }

    async fn write_content(&mut self, content: &mut Content<'_>, part: ByteRange) -> Result<u64, SendError> {
        let ahead = match &mut content.ahead {
            Some(ahead) => ahead,
            none => none.insert(ReadAhead::new(content.file, part.start()).map_err(SendError::Content)?),
        };
        if ahead.chunk.is_empty() {
            ahead.fill(content.end).await?;
        }
        let count = usize::try_from(part.len()).unwrap_or(usize::MAX).min(ahead.chunk.len());
        let sent = self.write_chunk(ahead.chunk.slice(..count)).await?;
        ahead.chunk.advance(sent);
        Ok(sent as u64)
    }

    async fn finish(&mut self) -> Result<(), SendError> {
        self.stream.finish().map_err(|_| SendError::Closed)?;
        self.done = true;
        match self.stream.stopped().await {
            Ok(None) => Ok(()),
            Ok(Some(_)) | Err(_) => Err(SendError::Closed),
        }
    }

    fn abort(&mut self) {
        // Fails only when the stream has ended already.
        let _ = self.stream.reset(BROKEN_OFF);
        self.done = true;
    }
}

impl Drop for Outlet {
    fn drop(&mut self) {
        // Fails only when the stream has ended already, or the connection is gone.
        let finished = !self.done && self.stream.finish().is_ok();
        // Outside a runtime there is nobody left who could send the rest.
        if finished && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (arrived, connection) = (self.stream.stopped(), self.connection.clone());
            // Ends with the connection at the latest, which dies of silence.
            let linger = async move {
                let _ = arrived.await;
                drop(connection);
            };
            runtime.spawn(self.tasks.track_future(linger));
        }
    }
}

fn of_write(error: WriteError) -> SendError {
    match error {
        WriteError::Stopped(_) | WriteError::ConnectionLost(_) | WriteError::ClosedStream => SendError::Closed,
        error @ WriteError::ZeroRttRejected => SendError::Io(io::Error::other(error)),
    }
}

// === impl ReadAhead ===

impl ReadAhead {
    fn new(file: &File, at: u64) -> io::Result<Self> {
        // Reads run on other threads and may outlive the caller's borrow: they need a handle of their own.
        Ok(Self { file: Arc::new(file.try_clone()?), chunk: Bytes::new(), reading: None, at })
    }

    /// Takes the next chunk and starts reading the one after it.
    async fn fill(&mut self, end: u64) -> Result<(), SendError> {
        let Some(mut reading) = self.reading.take().or_else(|| self.read(end)) else {
            return Err(SendError::ContentEnded { at: self.at });
        };
        let chunk = (&mut reading)
            .await
            .map_err(|error| SendError::Content(io::Error::other(error)))?
            .map_err(SendError::Content)?;
        if chunk.is_empty() {
            return Err(SendError::ContentEnded { at: self.at });
        }
        self.at += chunk.len() as u64;
        self.chunk = chunk;
        self.reading = self.read(end);
        Ok(())
    }

    /// Starts a read at `self.at`; `None` at the end. One read at a time per content bounds memory and threads.
    fn read(&self, end: u64) -> Option<JoinHandle<io::Result<Bytes>>> {
        let range = ByteRange::new(self.at, end)?;
        let length = usize::try_from(range.len().min(READ_BYTES)).expect("256 KiB fit");
        let (file, at) = (Arc::clone(&self.file), self.at);
        Some(tokio::task::spawn_blocking(move || {
            let mut buffer = vec![0; length];
            loop {
                match file.read_at(&mut buffer, at) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    read => {
                        buffer.truncate(read?);
                        return Ok(buffer.into());
                    }
                }
            }
        }))
    }
}

// === impl Inlet ===

impl RecvLink for Inlet {
    async fn read(&mut self, out: &mut (impl BufMut + Send)) -> io::Result<usize> {
        self.0.read_buf(out).await
    }
}
