//! The configuration that every node has in common, and a running engine made from it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use proto::api::{NearestAnswer, SupernodeEntry};
use proto::wire;
use serde::{Deserialize, Serialize};
use service::config::{ByteSize, Problems, Rate, Validate, duration};
use swarm::{AnnounceConfig, PickerConfig, UploadConfig};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::engine::{Engine, EngineConfig, Limits, Parts};
use crate::limit::Limit;
use crate::locator::Locator;
use crate::source::{Guard, Source, SourceConfig, SourceError};
use crate::store::{Store, StoreConfig, StoreError};
use crate::transport::{BindError, Kind, Transport, TransportConfig};

/// `[host]`: who this host is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostConfig {
    /// Its name for people; empty = the kernel's.
    pub hostname: String,
    /// Data centre; hosts of the same one are preferred as neighbours.
    pub idc: String,
    /// `a|b|c`, from the widest to the narrowest place.
    pub location: String,
}

/// `[peer]`: trading pieces with other hosts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PeerConfig {
    /// Addresses to listen on for other hosts, TCP and UDP.
    pub listen: Vec<SocketAddr>,
    /// Addresses to tell other hosts instead; port 0 = the port that is listened on.
    pub advertise_address: Vec<SocketAddr>,
    /// `tcp`, `quic`, or both, the preferred one first.
    pub transports: Vec<Kind>,
    /// TCP congestion control by its name in the kernel; empty = the system's.
    pub congestion: String,
    /// Pieces sent at the same time at most.
    pub upload_slots: u32,
    /// Data connections to one neighbour at most.
    pub data_connections: usize,
    /// Pieces of one task asked for at the same time at most.
    pub pieces_in_flight: u32,
    /// Memory for pieces that have arrived in part.
    pub receive_buffer: ByteSize,
    /// Connections from other hosts at most.
    pub max_connections: usize,
}

/// `[store]`: pieces on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreSection {
    /// The folder.
    pub dir: PathBuf,
    /// How much it may hold.
    pub capacity: ByteSize,
    /// Above this share of the capacity, least recently used tasks go …
    pub high_watermark: f64,
    /// … until this share is reached.
    pub low_watermark: f64,
}

/// `[rates]`: byte rates of the host, changeable while running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RatesConfig {
    /// Everything received, from peers and origins.
    pub download: Rate,
    /// Everything sent to peers.
    pub upload: Rate,
    /// Sent to one peer.
    pub upload_per_peer: Rate,
}

/// `[tasks]`: opening tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TasksConfig {
    /// Opening a task, the origin's answer included, must take no longer.
    #[serde(with = "duration")]
    pub open_timeout: Duration,
    /// How long an origin's yes to a caller's credentials holds.
    #[serde(with = "duration")]
    pub authorization_ttl: Duration,
    /// A complete content is synced to disk so long after its readers have it.
    #[serde(with = "duration")]
    pub durable_after: Duration,
    /// Nothing verified has come for so long: another way is looked for.
    #[serde(with = "duration")]
    pub starving_after: Duration,
}

/// All of it, and what the binary decides.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// `[host]`
    pub host: HostConfig,
    /// `[peer]`
    pub peer: PeerConfig,
    /// `[store]`
    pub store: StoreSection,
    /// `[rates]`
    pub rates: RatesConfig,
    /// `[tasks]`
    pub tasks: TasksConfig,
    /// `[source]`
    pub source: SourceConfig,
    /// Which addresses an origin may have.
    pub guard: Guard,
    /// This node is a supernode's seed.
    pub seed: bool,
    /// The cluster's supernodes as they become known; `None` for a host without a cluster.
    pub supernodes: Option<watch::Receiver<Vec<SupernodeEntry>>>,
}

/// A node could not be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The listeners.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The way to origins.
    #[error(transparent)]
    Source(#[from] SourceError),
}

/// The cluster's supernodes as the locator learns of them, until `shutdown` is cancelled.
#[must_use]
pub fn follow(locator: Locator, shutdown: CancellationToken) -> watch::Receiver<Vec<SupernodeEntry>> {
    let mut answers = locator.watch();
    let entries =
        |answer: &Option<NearestAnswer>| answer.as_ref().map(|answer| answer.supernodes.clone()).unwrap_or_default();
    let (sender, receiver) = watch::channel(entries(&answers.borrow_and_update()));
    tokio::spawn(async move {
        let following = async {
            while answers.changed().await.is_ok() {
                let news = entries(&answers.borrow_and_update());
                sender.send_if_modified(|held| {
                    let changed = *held != news;
                    *held = news;
                    changed
                });
            }
        };
        // The sender of answers lives in the locator, so the first never ends by itself.
        tokio::select! {
            () = following => {}
            () = locator.keep_fresh(shutdown) => {}
        }
    });
    receiver
}

// === defaults ===

impl Default for PeerConfig {
    fn default() -> Self {
        Self {
            listen: vec![SocketAddr::from(([0, 0, 0, 0], 65002))],
            advertise_address: Vec::new(),
            transports: vec![Kind::Tcp, Kind::Quic],
            congestion: String::new(),
            upload_slots: UploadConfig::default().slots,
            data_connections: 2,
            pieces_in_flight: PickerConfig::default().outstanding_max,
            receive_buffer: ByteSize::mib(48),
            max_connections: 4096,
        }
    }
}

impl Default for StoreSection {
    fn default() -> Self {
        Self {
            dir: PathBuf::from("/var/lib/skimmer/store"),
            capacity: ByteSize::gib(50),
            high_watermark: 0.95,
            low_watermark: 0.85,
        }
    }
}

impl Default for TasksConfig {
    fn default() -> Self {
        Self {
            open_timeout: Duration::from_secs(120),
            authorization_ttl: Duration::from_secs(60),
            durable_after: Duration::ZERO,
            starving_after: PickerConfig::default().starving_after,
        }
    }
}

// === checks ===

impl Validate for PeerConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.check(!self.transports.is_empty(), "transports", "name tcp, quic or both");
        problems.check((1..=1024).contains(&self.upload_slots), "upload_slots", "1 to 1024 are allowed");
        problems.check((1..=1024).contains(&self.pieces_in_flight), "pieces_in_flight", "1 to 1024 are allowed");
        problems.check((1..=16).contains(&self.data_connections), "data_connections", "1 to 16 are allowed");
        problems.check(
            self.receive_buffer >= ByteSize::mib(8),
            "receive_buffer",
            "at least 8MiB are needed: two of the longest pieces",
        );
        problems.check(self.max_connections > 0, "max_connections", "must be above zero");
    }
}

impl Validate for StoreSection {
    fn validate(&self, problems: &mut Problems) {
        problems.check(!self.dir.as_os_str().is_empty(), "dir", "a folder is needed");
        problems.check(self.capacity >= ByteSize::mib(16), "capacity", "at least 16MiB are needed");
        let in_order =
            0.0 < self.low_watermark && self.low_watermark <= self.high_watermark && self.high_watermark <= 1.0;
        problems.check(in_order, "high_watermark", "0 < low_watermark <= high_watermark <= 1 must hold");
    }
}

impl Validate for TasksConfig {
    fn validate(&self, problems: &mut Problems) {
        problems.check(!self.open_timeout.is_zero(), "open_timeout", "must be longer than zero");
        problems.check(!self.starving_after.is_zero(), "starving_after", "must be longer than zero");
    }
}

// === changing ===

impl RatesConfig {
    /// Sets the rates of a running engine to these. `upload_per_peer` stays what it was
    /// when the engine was started.
    pub fn apply(&self, limits: &Limits) {
        limits.download.set(self.download.limit_bytes_per_s());
        limits.upload.set(self.upload.limit_bytes_per_s());
    }
}

// === starting ===

impl NodeConfig {
    /// Opens the store, binds the listeners and starts the engine.
    ///
    /// # Errors
    /// When the store cannot be opened, an address not be listened on, or a certificate not be read.
    pub async fn start(self) -> Result<Engine, NodeError> {
        let store = {
            let config = StoreConfig {
                dir: self.store.dir.clone(),
                capacity_bytes: self.store.capacity.as_u64(),
                high_watermark: self.store.high_watermark,
                low_watermark: self.store.low_watermark,
            };
            Store::open(config)?
        };
        let hostname = if self.host.hostname.is_empty() { kernel_hostname() } else { self.host.hostname.clone() };
        let local = wire::HostInfo {
            host_id: store.host_id().to_bytes().to_vec().into(),
            hostname,
            addresses: Vec::new(),
            idc: self.host.idc.clone(),
            location: self.host.location.clone(),
            seed: self.seed,
            transports: Vec::new(),
            upload_rate_bytes_per_s: self.rates.upload.limit_bytes_per_s().unwrap_or(0),
        };
        let transport = TransportConfig {
            listen: self.peer.listen.clone(),
            advertise: self.peer.advertise_address.clone(),
            kinds: self.peer.transports.clone(),
            congestion: (!self.peer.congestion.is_empty()).then(|| self.peer.congestion.clone()),
            connections_max: self.peer.max_connections,
            ..TransportConfig::default()
        };
        let transport = Transport::bind(transport, local).await?;
        let limits = Limits {
            download: Limit::new(self.rates.download.limit_bytes_per_s()),
            upload: Limit::new(self.rates.upload.limit_bytes_per_s()),
        };
        let source = Source::new(self.source.clone())?;
        let parts = Parts { store, transport, source, limits, supernodes: self.supernodes.clone() };
        Ok(Engine::start(self.engine(), parts))
    }

    fn engine(&self) -> EngineConfig {
        EngineConfig {
            seed: self.seed,
            picker: PickerConfig {
                starving_after: self.tasks.starving_after,
                outstanding_max: self.peer.pieces_in_flight,
                ..PickerConfig::default()
            },
            announce: AnnounceConfig { seed: self.seed, ..AnnounceConfig::default() },
            upload: if self.seed {
                UploadConfig {
                    slots: self.peer.upload_slots.max(UploadConfig::for_seed().slots),
                    ..UploadConfig::for_seed()
                }
            } else {
                UploadConfig { slots: self.peer.upload_slots, ..UploadConfig::default() }
            },
            data_connections_per_peer: self.peer.data_connections,
            receive_buffer_bytes: self.peer.receive_buffer.as_usize(),
            upload_rate_per_peer: self.rates.upload_per_peer.limit_bytes_per_s(),
            orphan_delay: (self.source.orphan_delay_min, self.source.orphan_delay_max),
            orphan_rate: self.source.orphan_rate.limit_bytes_per_s(),
            authorization_ttl: self.tasks.authorization_ttl,
            open_timeout: self.tasks.open_timeout,
            durable_after: self.tasks.durable_after,
            guard: self.guard.clone(),
        }
    }
}

fn kernel_hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}
