//! Frames and piece bytes between hosts.
//!
//! A [`Transport`] listens and dials, over TCP and QUIC on the same port number. What it gives are [`Channel`]s that
//! have shaken hands: both sides know who the other says it is, which protocol version they speak, and what the
//! channel is for. The engine keeps one control channel and a few data channels per host pair, so that have-maps and
//! cancels never wait behind piece bytes.
//!
//! Strangers get little: the first frame has a deadline and a length of its own, a frame's memory grows only as its
//! bytes arrive, connections are counted in all and by address, and no handshake holds up another.
//!
//! **Invariants.** A frame is sent whole or the channel is unusable afterwards; a content that breaks off is seen as
//! an error by the receiver. Nothing waits for ever but [`Receiver::recv`] between two frames.
//!
//! **Not here:** what the frames mean and when to send them (the engine), who may be trusted (nobody: pieces are
//! verified by hash; [`Security`] and `transport/tls.rs` are where identities will be required).

mod addresses;
mod channel;
mod dial;
mod error;
mod handshake;
mod listen;
mod quic;
mod slots;
mod tcp;
mod tls;

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use proto::wire;
use quinn::Endpoint;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

pub use channel::{Channel, Receiver, Sender};
pub use error::{BindError, DialError, HandshakeError, RecvError, SendError};
pub use proto::frame::Frame;

/// Channels that shook hands and wait for [`Transport::accept`].
const ACCEPTED_MAX: usize = 64;

/// What carries a channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Plain TCP: a tenth of QUIC's work, the choice within a data centre.
    Tcp,
    /// QUIC: for lossy and long links.
    Quic,
}

/// What a channel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Small frames that must not wait: have-maps, cancels, metadata.
    Control,
    /// Requests and the pieces they ask for.
    Data,
}

/// How TCP channels are secured. The place where TLS will be required.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Security {
    /// Not at all: bytes travel in the clear, and hosts are who they say they are.
    #[default]
    Plain,
}

/// How an endpoint listens and dials.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    /// Addresses to listen on; several for several networks. Port 0 takes a free one. Empty = only dial.
    pub listen: Vec<SocketAddr>,
    /// Addresses to tell others instead of those listened on; port 0 = the port that is listened on.
    pub advertise: Vec<SocketAddr>,
    /// Transports to listen for and to dial by, the preferred one first; the others are tried when it fails.
    pub kinds: Vec<Kind>,
    /// How TCP channels are secured.
    pub security: Security,
    /// TCP congestion control by its name in the kernel, as `cubic`; `None` = the system's default.
    pub congestion: Option<String>,
    /// For a dial in all: every address, every transport, handshake.
    pub dial_timeout: Duration,
    /// For the exchange of the first frames, on both sides.
    pub hello_timeout: Duration,
    /// From a frame's first byte to its last.
    pub frame_timeout: Duration,
    /// How long a send, or a receive of content, may go without a byte.
    pub progress_timeout: Duration,
    /// Connections from others, in all. One QUIC connection counts as one, whatever it carries.
    pub connections_max: usize,
    /// Connections from one IPv4 address or one IPv6 /64.
    pub connections_per_ip_max: usize,
    /// Handshakes under way per listening socket; beyond, the oldest is broken off.
    pub handshakes_max: usize,
    /// QUIC's receive window per stream in bytes (twice that per connection): speed times round trip that a stream
    /// can fill, and memory that a connection can take. 16 MiB carry 1.3 Gb/s at 100 ms, 10 Gb/s at 13 ms.
    pub quic_window_bytes: u64,
    /// Protocol versions to offer.
    pub versions: RangeInclusive<u32>,
}

/// This host's end of all channels. A cheap handle; when the last one is dropped, listening ends.
#[derive(Clone, Debug)]
pub struct Transport(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    accepted: tokio::sync::Mutex<mpsc::Receiver<Accepted>>,
    quic_listeners: Vec<Endpoint>,
    _stop: DropGuard,
}

/// What the accept loops need as well.
#[derive(Debug)]
struct Shared {
    config: TransportConfig,
    local: handshake::Local,
    slots: Arc<slots::Slots>,
    interfaces: addresses::Interfaces,
    quic: Option<dial::QuicDialer>,
    /// Accept loops, and QUIC channels up to the acknowledgement of their last bytes.
    tasks: TaskTracker,
    cancel: CancellationToken,
}

/// A channel somebody else opened.
#[derive(Debug)]
pub struct Accepted {
    /// The channel.
    pub channel: Channel,
    /// Who opened it, in its own words.
    pub remote: wire::HostInfo,
    /// What for.
    pub purpose: Purpose,
}

// === impl Kind ===

impl Kind {
    /// Its name on the wire and in metrics labels.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Quic => "quic",
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.label())
    }
}

// === impl TransportConfig ===

impl Default for TransportConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))],
            advertise: Vec::new(),
            kinds: vec![Kind::Tcp, Kind::Quic],
            security: Security::Plain,
            congestion: None,
            dial_timeout: Duration::from_secs(5),
            hello_timeout: Duration::from_secs(3),
            frame_timeout: Duration::from_secs(30),
            progress_timeout: Duration::from_secs(20),
            connections_max: 4096,
            connections_per_ip_max: 256,
            handshakes_max: 128,
            quic_window_bytes: 16 * 1024 * 1024,
            versions: proto::PROTOCOL_VERSION_MIN..=proto::PROTOCOL_VERSION,
        }
    }
}

impl TransportConfig {
    const fn timeouts(&self) -> channel::Timeouts {
        channel::Timeouts { progress: self.progress_timeout, frame: self.frame_timeout }
    }
}

// === impl Transport ===

impl Transport {
    /// Listens, and prepares to dial. `local` is what to tell others of this host; its addresses and transports are
    /// filled in from the configuration. Has to be called within a tokio runtime.
    ///
    /// # Errors
    /// When an address cannot be listened on, or the configuration asks for what the system does not have.
    #[allow(clippy::unused_async, reason = "sockets register with the runtime: the signature says that there is one")]
    pub async fn bind(config: TransportConfig, mut local: wire::HostInfo) -> Result<Self, BindError> {
        if config.kinds.is_empty() {
            return Err(BindError::NoKind);
        }
        if config.versions.is_empty() || *config.versions.start() == 0 {
            return Err(BindError::OutOfRange { field: "versions" });
        }
        let interfaces = addresses::Interfaces::new().map_err(BindError::Interfaces)?;
        let listeners = config
            .listen
            .iter()
            .map(|address| listen::Listener::bind(*address, &config))
            .collect::<Result<Vec<_>, _>>()?;
        let bound: Vec<_> = listeners.iter().map(|listener| listener.bound).collect();
        let told = addresses::advertised(&config.advertise, &bound, &interfaces.current());
        local.addresses = told.iter().map(ToString::to_string).collect();
        local.transports = config.kinds.iter().map(|kind| kind.label().to_owned()).collect();
        let quic = config.kinds.contains(&Kind::Quic).then(|| dial::QuicDialer::new(&config)).transpose()?;
        let shared = Arc::new(Shared {
            local: handshake::Local { host: local, versions: config.versions.clone(), timeout: config.hello_timeout },
            slots: slots::Slots::new(config.connections_max, config.connections_per_ip_max),
            interfaces,
            quic,
            cancel: CancellationToken::new(),
            tasks: TaskTracker::new(),
            config,
        });
        Ok(Self::start(shared, listeners))
    }

    fn start(shared: Arc<Shared>, listeners: Vec<listen::Listener>) -> Self {
        let (sender, accepted) = mpsc::channel(ACCEPTED_MAX);
        let tasks = shared.tasks.clone();
        let mut quic_listeners = Vec::new();
        for listener in listeners {
            if let Some(tcp) = listener.tcp {
                tasks.spawn(listen::tcp_task(tcp, Arc::clone(&shared), sender.clone()));
            }
            if let Some(quic) = listener.quic {
                quic_listeners.push(quic.clone());
                tasks.spawn(listen::quic_task(quic, Arc::clone(&shared), sender.clone()));
            }
        }
        tasks.close();
        let stop = shared.cancel.clone().drop_guard();
        Self(Arc::new(Inner { shared, accepted: tokio::sync::Mutex::new(accepted), quic_listeners, _stop: stop }))
    }

    /// What this host tells others of itself, addresses included.
    #[must_use]
    pub fn local(&self) -> &wire::HostInfo {
        &self.0.shared.local.host
    }

    /// Connections from others just now, handshakes included.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.0.shared.slots.taken()
    }

    /// The next channel that another host opened and that has shaken hands. Waits for ever once the endpoint is shut
    /// down or when it does not listen. May be dropped and called again: nothing is lost.
    pub async fn accept(&self) -> Accepted {
        match self.0.accepted.lock().await.recv().await {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }

    /// Opens a channel to another host, by the first of the configured transports that it speaks and that works.
    ///
    /// # Errors
    /// When no address of the host can be reached in time, or it does not want us.
    pub async fn dial(&self, remote: &wire::HostInfo, purpose: Purpose) -> Result<Channel, DialError> {
        self.dial_by(remote, purpose, &self.0.shared.config.kinds).await
    }

    /// As [`Self::dial`], by these transports of the configured ones, the preferred first: the choice for one link.
    ///
    /// # Errors
    /// As [`Self::dial`].
    pub async fn dial_by(
        &self,
        remote: &wire::HostInfo,
        purpose: Purpose,
        kinds: &[Kind],
    ) -> Result<Channel, DialError> {
        Box::pin(self.0.shared.dial(remote, purpose, kinds)).await
    }

    /// Ends listening at once. Channels live on for at most `grace`, so that what was sent last still arrives; TCP
    /// channels even beyond, until they are dropped. Saying goodbye is the caller's business, before or within.
    pub async fn shutdown(&self, grace: Duration) {
        let shared = &self.0.shared;
        shared.cancel.cancel();
        let dialers = shared.quic.as_ref().map(|quic| {
            quic.forget_all();
            quic.endpoints()
        });
        let endpoints: Vec<&Endpoint> = self.0.quic_listeners.iter().chain(dialers.iter().flatten()).collect();
        let gone = async {
            shared.tasks.wait().await;
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
        };
        let _ = tokio::time::timeout(grace, gone).await;
        for endpoint in endpoints {
            endpoint.close(quinn::VarInt::from_u32(0), b"shut down");
        }
    }
}

#[cfg(test)]
mod tests;
