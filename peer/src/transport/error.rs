//! What can go wrong between two hosts, one enum per operation.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use proto::frame::FrameError;
use proto::{HostId, InvalidMessage};

use super::Kind;

/// The endpoint cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// `kinds` is empty.
    #[error("no transport kind is enabled")]
    NoKind,
    /// An address cannot be listened on.
    #[error("cannot listen on {address} ({kind})")]
    Listen {
        /// Which address.
        address: SocketAddr,
        /// For which transport.
        kind: Kind,
        /// What the system says.
        source: io::Error,
    },
    /// The system does not have this congestion control, or does not let us use it.
    #[error("congestion control {name:?} cannot be used")]
    Congestion {
        /// Its name, as configured.
        name: String,
        /// What the system says.
        source: io::Error,
    },
    /// The addresses of this host cannot be listed.
    #[error("cannot list the network interfaces")]
    Interfaces(#[source] io::Error),
    /// The certificate or the TLS configuration for QUIC cannot be made.
    #[error("cannot set up tls for quic")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A number in the configuration is out of range.
    #[error("{field} is out of range")]
    OutOfRange {
        /// Which one.
        field: &'static str,
    },
}

/// The other host cannot be reached, or does not want to talk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// What is known of the host makes no sense.
    #[error("host information is not valid")]
    Invalid(#[from] InvalidMessage),
    /// It told no address that can be used from here.
    #[error("host {host} has no usable address")]
    NoAddress {
        /// Which host.
        host: HostId,
    },
    /// We and the host have no transport in common.
    #[error("host {host} speaks none of our transports")]
    NoCommonTransport {
        /// Which host.
        host: HostId,
    },
    /// No connection in time.
    #[error("no connection within {after:?}")]
    Timeout {
        /// How long it was tried.
        after: Duration,
    },
    /// An address did not answer, or answered wrongly. Of several addresses, the last one's error.
    #[error("cannot connect to {address} ({kind})")]
    Connect {
        /// Where.
        address: SocketAddr,
        /// How.
        kind: Kind,
        /// What the system or the library says.
        source: io::Error,
    },
    /// The first frames could not be exchanged.
    #[error("handshake with {address} ({kind}) failed")]
    Handshake {
        /// With whom.
        address: SocketAddr,
        /// How.
        kind: Kind,
        /// What failed.
        source: HandshakeError,
    },
    /// Somebody else answers at the address.
    #[error("{address} is host {found}, not {expected}")]
    WrongHost {
        /// Where.
        address: SocketAddr,
        /// Whom we looked for.
        expected: HostId,
        /// Who is there.
        found: HostId,
    },
    /// The host answered and does not want us: no common version, too many connections.
    #[error("refused by {address}: {reason}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// The reason it gave.
        reason: String,
    },
    /// This endpoint was shut down.
    #[error("the endpoint is shut down")]
    ShutDown,
}

/// The first frames are not as they should be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The first frame did not come, or is none.
    #[error("cannot receive the first frame")]
    Recv(#[from] RecvError),
    /// Ours could not be sent.
    #[error("cannot send the first frame")]
    Send(#[from] SendError),
    /// It took too long.
    #[error("no handshake within {after:?}")]
    Timeout {
        /// The time it had.
        after: Duration,
    },
    /// The first frame is another one.
    #[error("first frame is no hello")]
    NotHello,
    /// A field of it makes no sense.
    #[error("hello is not valid")]
    Invalid(#[from] InvalidMessage),
    /// The other side answered with a version nobody offered.
    #[error("version {version} was not offered")]
    Version {
        /// That version.
        version: u32,
    },
    /// We refused the other side, for this reason.
    #[error("refused: {reason}")]
    Refused {
        /// As it was told.
        reason: String,
    },
    /// More channels wait to be taken than there is room for.
    #[error("too many channels wait to be accepted")]
    Backlog,
}

/// Bytes cannot be sent. The channel is of no use any more, except after [`Self::TooLong`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The frame is over `proto::frame::FRAME_LEN_MAX`; nothing was sent.
    #[error("frame of {length} bytes is too long")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// The other side does not listen any more.
    #[error("closed by the other side")]
    Closed,
    /// An earlier send was given up in the middle: nothing may follow on this channel.
    #[error("an earlier send was not finished")]
    Unfinished,
    /// The other side took not a byte for this long.
    #[error("no progress in {after:?}")]
    Stalled {
        /// The time it had.
        after: Duration,
    },
    /// The network fails.
    #[error("cannot send")]
    Io(#[source] io::Error),
    /// The content cannot be read: our own disk, not the other side.
    #[error("cannot read the content to send")]
    Content(#[source] io::Error),
    /// The content file is shorter than the range: our own mistake, not the other side's.
    #[error("content ends at {at}, before the end of what was to be sent")]
    ContentEnded {
        /// Offset in the file.
        at: u64,
    },
}

/// Bytes cannot be received. The channel is of no use any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecvError {
    /// The other side ended between two frames.
    #[error("closed by the other side")]
    Closed,
    /// The other side ended in the middle of a frame or of content.
    #[error("closed by the other side in the middle")]
    Truncated,
    /// Not a byte came for this long, or a frame took longer than this.
    #[error("no progress in {after:?}")]
    Stalled {
        /// The time it had.
        after: Duration,
    },
    /// The bytes are no frame of ours.
    #[error("bytes are no frame")]
    Frame(#[from] FrameError),
    /// The network fails.
    #[error("cannot receive")]
    Io(#[source] io::Error),
}

impl BindError {
    /// What sort of failure this is.
    #[must_use]
    pub const fn kind(&self) -> proto::Kind {
        match self {
            Self::NoKind | Self::Congestion { .. } | Self::OutOfRange { .. } => proto::Kind::Invalid,
            Self::Listen { .. } => proto::Kind::Conflict,
            Self::Interfaces(_) | Self::Tls(_) => proto::Kind::Internal,
        }
    }
}

impl DialError {
    /// What sort of failure this is.
    #[must_use]
    pub const fn kind(&self) -> proto::Kind {
        match self {
            Self::Invalid(_) | Self::NoAddress { .. } | Self::NoCommonTransport { .. } => proto::Kind::Invalid,
            Self::Refused { .. } | Self::WrongHost { .. } => proto::Kind::Conflict,
            Self::Timeout { .. } | Self::Connect { .. } | Self::Handshake { .. } | Self::ShutDown => {
                proto::Kind::Unavailable
            }
        }
    }

    /// Whether the host itself said no, so that its other addresses need not be tried.
    pub(super) const fn is_final(&self) -> bool {
        matches!(self, Self::Refused { .. } | Self::ShutDown)
    }
}

impl HandshakeError {
    /// What sort of failure this is.
    #[must_use]
    pub const fn kind(&self) -> proto::Kind {
        match self {
            Self::Recv(error) => error.kind(),
            Self::Send(error) => error.kind(),
            Self::Timeout { .. } => proto::Kind::Unavailable,
            Self::NotHello | Self::Invalid(_) | Self::Version { .. } => proto::Kind::Invalid,
            Self::Refused { .. } => proto::Kind::Conflict,
            Self::Backlog => proto::Kind::Throttled,
        }
    }
}

impl SendError {
    /// What sort of failure this is.
    #[must_use]
    pub const fn kind(&self) -> proto::Kind {
        match self {
            Self::Closed | Self::Stalled { .. } | Self::Io(_) => proto::Kind::Unavailable,
            Self::TooLong { .. } | Self::Unfinished | Self::Content(_) | Self::ContentEnded { .. } => {
                proto::Kind::Internal
            }
        }
    }

    /// Sorts an error of the socket.
    pub(super) fn of_io(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl RecvError {
    /// What sort of failure this is.
    #[must_use]
    pub const fn kind(&self) -> proto::Kind {
        match self {
            Self::Closed | Self::Truncated | Self::Stalled { .. } | Self::Io(_) => proto::Kind::Unavailable,
            Self::Frame(_) => proto::Kind::Invalid,
        }
    }
}
