//! The listening side: accept loops that never wait for one stranger.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, Incoming};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{debug, warn};

use super::channel::{Channel, Inlet, Outlet, Receiver, Sender};
use super::error::{BindError, HandshakeError};
use super::handshake::Asked;
use super::slots::{Full, Slot};
use super::{Accepted, Shared, TransportConfig, addresses, quic, tcp};

/// Pause after the system could not accept, mostly for want of file descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
/// How often it is looked whether a QUIC connection still carries a channel.
const QUIC_IDLE_LOOK: Duration = Duration::from_secs(30);
/// Tries to find a port that is free for both TCP and UDP, when any port will do.
const PORT_TRIES_MAX: u32 = 16;

/// The sockets of one address.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) bound: addresses::Bound,
    pub(super) tcp: Option<TcpListener>,
    pub(super) quic: Option<Endpoint>,
}

impl Listener {
    /// Listens on an address with every kind that is configured, all on one port number.
    pub(super) fn bind(address: SocketAddr, config: &TransportConfig) -> Result<Self, BindError> {
        // `[::]` takes IPv4 as well, unless `0.0.0.0` is listened on by itself.
        let v4_apart = config.listen.iter().any(|l| l.is_ipv4() && l.port() == address.port());
        let dual_stack = address.is_ipv6() && address.ip().is_unspecified() && !v4_apart;
        let mut tries = 0;
        loop {
            tries += 1;
            match Self::try_bind(address, dual_stack, config) {
                Err(BindError::Listen { source, .. })
                    if address.port() == 0
                        && source.kind() == std::io::ErrorKind::AddrInUse
                        && tries < PORT_TRIES_MAX => {}
                result => return result,
            }
        }
    }

    fn try_bind(wanted: SocketAddr, dual_stack: bool, config: &TransportConfig) -> Result<Self, BindError> {
        let failed = |kind| move |source| BindError::Listen { address: wanted, kind, source };
        let mut address = wanted;
        let mut listener = Self { bound: addresses::Bound { address, dual_stack }, tcp: None, quic: None };
        if config.kinds.contains(&super::Kind::Tcp) {
            let tcp = tcp::listen(address, !dual_stack, config)?;
            address = tcp.local_addr().map_err(failed(super::Kind::Tcp))?;
            listener.tcp = Some(tcp);
        }
        if config.kinds.contains(&super::Kind::Quic) {
            let quic = quic::listen(address, !dual_stack, config)?;
            address = quic.local_addr().map_err(failed(super::Kind::Quic))?;
            listener.quic = Some(quic);
        }
        listener.bound.address = address;
        Ok(listener)
    }
}

/// Handshakes under way, of which the oldest gives way when there are too many: an honest one takes a round trip,
/// so it is the silent ones that are old.
struct Handshakes {
    running: JoinSet<()>,
    by_age: VecDeque<AbortHandle>,
    max: usize,
}

impl Handshakes {
    fn new(max: usize) -> Self {
        Self { running: JoinSet::new(), by_age: VecDeque::new(), max }
    }

    fn start(&mut self, handshake: impl Future<Output = ()> + Send + 'static) {
        while self.running.try_join_next().is_some() {}
        self.by_age.retain(|handshake| !handshake.is_finished());
        while self.by_age.len() >= self.max.max(1) {
            if let Some(oldest) = self.by_age.pop_front() {
                oldest.abort();
            }
        }
        self.by_age.push_back(self.running.spawn(handshake));
    }
}

// === TCP ===

/// Accepts until cancelled.
pub(super) async fn tcp_task(listener: TcpListener, shared: Arc<Shared>, accepted: mpsc::Sender<Accepted>) {
    let mut handshakes = Handshakes::new(shared.config.handshakes_max);
    let cancel = shared.cancel.clone();
    while let Some(result) = cancel.run_until_cancelled(listener.accept()).await {
        match result {
            Ok((stream, peer)) => match shared.slots.take(peer.ip()) {
                Ok(slot) => {
                    handshakes.start(tcp_handshake_task(stream, peer, slot, Arc::clone(&shared), accepted.clone()));
                }
                Err(full) => turn_away(&stream, peer, full, &shared),
            },
            Err(error) => {
                warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// Tells a stranger why, if that is possible without waiting.
fn turn_away(stream: &TcpStream, peer: SocketAddr, full: Full, shared: &Shared) {
    debug!(%peer, reason = %full, "connection refused");
    let mut frame = bytes::BytesMut::new();
    proto::frame::encode(&shared.local.ack(0, full.to_string()), &mut frame);
    let _ = stream.try_write(&frame);
}

async fn tcp_handshake_task(
    stream: TcpStream,
    peer: SocketAddr,
    slot: Arc<Slot>,
    shared: Arc<Shared>,
    accepted: mpsc::Sender<Accepted>,
) {
    let result = async {
        tcp::prepare(&stream, &shared.config).map_err(|error| HandshakeError::Send(super::SendError::Io(error)))?;
        let (outlet, inlet) = tcp::links(stream, peer);
        welcome(Outlet::Tcp(outlet), Inlet::Tcp(inlet), slot, &shared, &accepted).await
    };
    if let Err(error) = result.await {
        debug!(%peer, error = &error as &dyn std::error::Error, "handshake failed");
    }
}

/// Shakes hands and hands the channel over.
async fn welcome(
    outlet: Outlet,
    inlet: Inlet,
    slot: Arc<Slot>,
    shared: &Shared,
    accepted: &mpsc::Sender<Accepted>,
) -> Result<(), HandshakeError> {
    let timeouts = shared.config.timeouts();
    let mut sender = Sender::new(outlet, timeouts, Some(Arc::clone(&slot)));
    let mut receiver = Receiver::new(inlet, timeouts, Some(slot));
    let place = async { accepted.reserve().await.ok() };
    let (Asked { remote, purpose, version }, place) = shared.local.hear(&mut sender, &mut receiver, place).await?;
    place.send(Accepted { channel: Channel::new(remote.clone(), version, sender, receiver), remote, purpose });
    Ok(())
}

// === QUIC ===

/// Accepts until cancelled.
pub(super) async fn quic_task(endpoint: Endpoint, shared: Arc<Shared>, accepted: mpsc::Sender<Accepted>) {
    let mut connections = JoinSet::new();
    let cancel = shared.cancel.clone();
    while let Some(Some(incoming)) = cancel.run_until_cancelled(endpoint.accept()).await {
        while connections.try_join_next().is_some() {}
        // Before the address is proven, a flood of forged ones could take all places.
        let crowded = shared.slots.taken() > shared.config.connections_max / 2;
        if crowded && !incoming.remote_address_validated() && incoming.may_retry() {
            if let Err(error) = incoming.retry() {
                debug!(%error, "cannot ask a quic client to prove its address");
            }
            continue;
        }
        match shared.slots.take(incoming.remote_address().ip()) {
            Ok(slot) => {
                connections.spawn(quic_connection_task(incoming, slot, Arc::clone(&shared), accepted.clone()));
            }
            Err(full) => {
                debug!(peer = %incoming.remote_address(), reason = %full, "connection refused");
                incoming.refuse();
            }
        }
    }
    endpoint.set_server_config(None);
}

async fn quic_connection_task(
    incoming: Incoming,
    slot: Arc<Slot>,
    shared: Arc<Shared>,
    accepted: mpsc::Sender<Accepted>,
) {
    let peer = incoming.remote_address();
    let handshake = async { incoming.accept()?.await };
    match tokio::time::timeout(shared.config.hello_timeout, handshake).await {
        Ok(Ok(connection)) => serve_quic(connection, slot, &shared, &accepted).await,
        Ok(Err(error)) => debug!(%peer, %error, "quic handshake failed"),
        Err(_) => debug!(%peer, "quic handshake took too long"),
    }
}

/// Takes a connection's streams as channels, until it is closed, or carries none for a while.
async fn serve_quic(connection: Connection, slot: Arc<Slot>, shared: &Arc<Shared>, accepted: &mpsc::Sender<Accepted>) {
    let peer = connection.remote_address();
    let mut handshakes = Handshakes::new(shared.config.handshakes_max);
    // Each channel and each handshake has the slot as well, so its count says whether the connection is in use.
    let unused = || Arc::strong_count(&slot) == 1;
    // The first stream has to come as soon as a TCP peer's hello would have to.
    let mut patience = shared.config.hello_timeout;
    let mut was_unused = true;
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok(stream) => {
                    let (outlet, inlet) = quic::links(stream, &connection, &shared.tasks);
                    let (slot, shared, accepted) = (Arc::clone(&slot), Arc::clone(shared), accepted.clone());
                    handshakes.start(async move {
                        let result = welcome(Outlet::Quic(outlet), Inlet::Quic(inlet), slot, &shared, &accepted).await;
                        if let Err(error) = result {
                            debug!(%peer, error = &error as &dyn std::error::Error, "handshake failed");
                        }
                    });
                    (patience, was_unused) = (QUIC_IDLE_LOOK, false);
                }
                Err(error) => {
                    debug!(%peer, %error, "quic connection ended");
                    return;
                }
            },
            () = tokio::time::sleep(patience) => {
                if unused() && was_unused {
                    connection.close(quinn::VarInt::from_u32(0), b"unused");
                    return;
                }
                was_unused = unused();
                patience = QUIC_IDLE_LOOK;
            }
            // The channels have their own handles.
            () = shared.cancel.cancelled() => return,
        }
    }
}
