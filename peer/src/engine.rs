//! The engine: joins store, transport, source and limits with the decisions of crate `swarm`.
//!
//! [`Engine::open`] gives a [`Task`]; its bytes can be read in order while they arrive. One actor per task
//! (`engine/actor.rs`) receives everything that happens to it; links to other hosts are shared by all tasks
//! (`engine/mesh.rs`, `engine/link.rs`).
//!
//! Invariants: a piece is offered to anyone only after it was checked against a hash that the task's authority vouched
//! for; a reader never gets the last piece of a content that fails its digest; the origin is read only with leave of
//! the supernode, or when there is none.
//!
//! A crash loses nothing that was acknowledged: see `docs/design/piece-store.md`.

mod actor;
mod authorize;
mod buffers;
mod cluster;
mod error;
pub mod headers;
mod keeping;
mod link;
mod mesh;
mod metrics;
mod opening;
mod origin;
mod orphan;
mod reader;
mod seed;
mod shared;
mod task;
mod tasks;
mod upload;
mod verifications;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use proto::api::SupernodeEntry;
use proto::{Generation, HostId, PieceHash, TaskId, TaskSpec, wire};
use swarm::{AnnounceConfig, PickerConfig, Time, UploadConfig};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;

use self::actor::{Actor, Event, MAILBOX, Start};
use self::authorize::Authorizations;
use self::buffers::Buffers;
use self::cluster::Cluster;
use self::mesh::Mesh;
use self::shared::Shared;
use self::tasks::Tasks;
use self::upload::Uploads;
use self::verifications::Verifications;
use crate::limit::Limit;
use crate::source::{Guard, Source};
use crate::store::{Content, Store};
use crate::transport::Transport;

pub use self::error::{OpenError, OriginAnswer, TaskError};
pub use self::metrics::EngineMetrics;
pub use self::reader::TaskReader;
pub use self::seed::{Known, News, SeedRequest};
pub use self::task::{Progress, Task, TaskInfo};

/// Limits and tunables of an engine.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// This node is a supernode's seed: it hands each piece out once before it repeats any.
    pub seed: bool,
    /// How pieces are picked; `piece_len_bytes` and `seed` are set per task.
    pub picker: PickerConfig,
    /// How pieces are announced; `seed_bits` is set per task.
    pub announce: AnnounceConfig,
    /// How requests are served.
    pub upload: UploadConfig,
    /// Data connections to one neighbour at most.
    pub data_connections_per_peer: usize,
    /// Memory for pieces that have arrived in part, in bytes.
    pub receive_buffer_bytes: usize,
    /// Upload rate to one neighbour, in bytes per second; `None` = only the host's limit.
    pub upload_rate_per_peer: Option<u64>,
    /// Without any supernode, the origin is read after a random time between these.
    pub orphan_delay: (Duration, Duration),
    /// Without any supernode, the origin is read at this rate over all tasks, in bytes per second.
    pub orphan_rate: Option<u64>,
    /// How long an origin's yes to a caller's credentials holds.
    pub authorization_ttl: Duration,
    /// A complete content is made durable so long after its readers were told. A short-lived process would otherwise
    /// have to wait for the disk at its end.
    pub durable_after: Duration,
    /// Opening a task (the origin's answer included) must take no longer.
    pub open_timeout: Duration,
    /// Which addresses the origin may have.
    pub guard: Guard,
}

/// The host's rates, changeable while running.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Everything received, from peers and origins.
    pub download: Limit,
    /// Everything sent to peers.
    pub upload: Limit,
}

/// What an engine is made of.
#[derive(Debug)]
pub struct Parts {
    /// Pieces on disk.
    pub store: Store,
    /// The way to other hosts.
    pub transport: Transport,
    /// The way to origins.
    pub source: Source,
    /// The host's rates.
    pub limits: Limits,
    /// The cluster's supernodes as they become known; `None` for a host that knows no cluster.
    pub supernodes: Option<watch::Receiver<Vec<SupernodeEntry>>>,
}

/// Downloads, keeps and serves tasks. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// What is wanted.
#[derive(Clone)]
pub struct OpenRequest {
    /// What.
    pub spec: TaskSpec,
    /// The caller's own headers, for the origin.
    pub headers: HeaderMap,
    /// By which way.
    pub route: Route,
    /// 0 to 6; 6 is usual.
    pub priority: u32,
    /// Fail rather than read the origin.
    pub never_origin: bool,
    /// This download's own rate in bytes per second.
    pub rate_bytes_per_s: Option<u64>,
}

/// By which way a task comes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// From other hosts, the seed among them.
    #[default]
    P2p,
    /// From the supernode's seed, and nobody else.
    SeedOnly,
    /// From the origin, by this host.
    OriginOnly,
}

#[derive(Debug)]
pub(crate) struct Inner {
    config: EngineConfig,
    host_id: HostId,
    store: Store,
    transport: Transport,
    source: Source,
    limits: Limits,
    orphan_limit: Limit,
    buffers: Buffers,
    mesh: Mesh,
    uploads: Uploads,
    tasks: Tasks,
    cluster: Option<Arc<Cluster>>,
    authorizations: Authorizations,
    verifications: Arc<Verifications>,
    metrics: EngineMetrics,
    started: tokio::time::Instant,
    cancel: CancellationToken,
    tracker: TaskTracker,
}

// === impl Engine ===

impl Engine {
    /// Starts an engine; it runs until [`Engine::stop`].
    #[must_use]
    pub fn start(config: EngineConfig, parts: Parts) -> Self {
        let cluster = parts.supernodes.as_ref().map(|_| Cluster::new());
        let inner = Arc::new(Inner {
            host_id: parts.store.host_id(),
            orphan_limit: Limit::new(config.orphan_rate),
            buffers: Buffers::new(config.receive_buffer_bytes),
            mesh: Mesh::default(),
            uploads: Uploads::new(config.upload.clone()),
            tasks: Tasks::default(),
            authorizations: Authorizations::new(config.authorization_ttl),
            verifications: Arc::default(),
            metrics: EngineMetrics::default(),
            started: tokio::time::Instant::now(),
            cancel: CancellationToken::new(),
            tracker: TaskTracker::new(),
            store: parts.store,
            transport: parts.transport,
            source: parts.source,
            limits: parts.limits,
            cluster: cluster.clone(),
            config,
        });
        inner.tracker.spawn(mesh::accept_loop(Arc::clone(&inner)));
        inner.tracker.spawn(upload::ticker(Arc::clone(&inner)));
        if let (Some(cluster), Some(supernodes)) = (cluster, parts.supernodes) {
            inner.tracker.spawn(cluster.run(Arc::clone(&inner), supernodes));
        }
        Self { inner }
    }

    /// Stops everything that runs and waits for it, at most for `deadline`.
    pub async fn stop(&self, deadline: Duration) {
        self.inner.cancel.cancel();
        self.inner.tracker.close();
        if tokio::time::timeout(deadline, self.inner.tracker.wait()).await.is_err() {
            debug!("some work of the engine did not end in time");
        }
    }

    /// This host as others see it.
    #[must_use]
    pub fn host(&self) -> &wire::HostInfo {
        self.inner.transport.local()
    }

    /// The host's rates.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// What the engine counts.
    #[must_use]
    pub fn metrics(&self) -> &EngineMetrics {
        &self.inner.metrics
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// Whether a supernode answers at this moment.
    #[must_use]
    pub fn has_supernode(&self) -> bool {
        self.inner.cluster.as_ref().is_some_and(|cluster| cluster.is_up())
    }

    /// Waits until a supernode answers; at once when none is configured.
    pub async fn wait_for_supernode(&self) {
        if let Some(cluster) = &self.inner.cluster {
            cluster.wait_up().await;
        }
    }

    /// Opens a task: returns as soon as its metadata is known and its caller may have it.
    ///
    /// # Errors
    /// When the origin or the supernode refuses, nobody answers, or there is no space.
    pub async fn open(&self, request: OpenRequest) -> Result<Task, OpenError> {
        let rate = request.rate_bytes_per_s;
        let shared = self.inner.open(request).await?;
        Ok(Task::new(shared, rate))
    }
}

// === impl Inner ===

impl Inner {
    /// Starts a task's actor, or gives a running one what a new one would have started with.
    async fn start(
        self: &Arc<Self>,
        content: Arc<Content>,
        start: Start,
        hashes: &[Option<PieceHash>],
    ) -> Result<Arc<Shared>, TaskError> {
        let (events, mailbox) = mpsc::channel(MAILBOX);
        let limit = self.limits.download.child(None);
        let fresh = Shared::new(content, limit, events);
        let mut start = Box::new(start);
        loop {
            let shared = self.tasks.get_or_insert(&fresh);
            if !Arc::ptr_eq(&shared.content, &fresh.content) {
                // The store has one content for a name; the running task's was thrown away or spoilt since.
                if let Err(error) = fresh.content.check_intact() {
                    return Err(error.into());
                }
                self.is_intact(&shared);
                self.tasks.remove(&shared);
                continue;
            }
            shared.expect_known(hashes);
            if Arc::ptr_eq(&shared, &fresh) {
                Actor::start(self, Arc::clone(&shared), mailbox, *start);
                return Ok(shared);
            }
            let (taken, acknowledged) = oneshot::channel();
            match shared.events.send(Event::Adopt { start, taken }).await {
                Err(mpsc::error::SendError(Event::Adopt { start: back, .. })) => start = back,
                Err(_) => return Err(TaskError::stopping()),
                Ok(()) => match acknowledged.await {
                    Ok(None) => return Ok(shared),
                    // It has ended in the meantime.
                    Ok(Some(back)) => start = back,
                    Err(_) => return Err(TaskError::stopping()),
                },
            }
            self.tasks.remove(&shared);
        }
    }

    /// The task that serves a generation: a running one, or one begun from the store.
    async fn serving(self: &Arc<Self>, key: (TaskId, Generation)) -> Option<Arc<Shared>> {
        if let Some(shared) = self.tasks.get(key) {
            return Some(shared);
        }
        let content = self.stored(key.0, Some(key.1)).await.ok().flatten()?;
        let start = Start::serving(content.spec().clone());
        self.start(content, start, &[]).await.ok()
    }

    /// Whether the origin still has the generation that a sibling told of.
    async fn confirms(&self, spec: &TaskSpec, headers: HeaderMap, known: &Known) -> bool {
        origin::current_generation(self, spec, headers).await == Generation::from_bytes(&known.meta.generation).ok()
    }

    const fn is_seed(&self) -> bool {
        self.config.seed
    }

    fn now(&self) -> Time {
        Time::from_micros(u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn instant(&self, time: Time) -> tokio::time::Instant {
        self.started + Duration::from_micros(time.as_micros())
    }

    /// How long this host waits for a supernode before it reads this task's origin: between the limits, different on
    /// each host and for each task, and the same when asked again.
    fn orphan_delay(&self, task: TaskId) -> Duration {
        let (min, max) = self.config.orphan_delay;
        let mut hasher = blake3::Hasher::new_derive_key("skimmer 2026 orphan delay");
        hasher.update(&self.host_id.to_bytes());
        hasher.update(&task.to_bytes());
        let mut bits = [0; 8];
        bits.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        let share = u64::from_le_bytes(bits) as f64 / u64::MAX as f64;
        min + max.saturating_sub(min).mul_f64(share)
    }
}

impl fmt::Debug for OpenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the headers nor the URL: either may hold credentials.
        f.debug_struct("OpenRequest").field("task", &self.spec.id()).field("route", &self.route).finish_non_exhaustive()
    }
}

impl OpenRequest {
    /// A request for all of a URL, by the usual way.
    #[must_use]
    pub fn new(spec: TaskSpec) -> Self {
        Self {
            spec,
            headers: HeaderMap::new(),
            route: Route::P2p,
            priority: 6,
            never_origin: false,
            rate_bytes_per_s: None,
        }
    }
}
