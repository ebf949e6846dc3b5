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
mod link;
mod mesh;
mod metrics;
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
use proto::{Generation, HostId, Kind, PieceHash, TaskId, TaskSpec, wire};
use swarm::{AnnounceConfig, PickerConfig, Time, UploadConfig};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info};

use self::actor::{Actor, Authority, Event, MAILBOX, Start};
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
use crate::store::{Content, NewTask, Store, StoreError};
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

/// How often a content that did not fit is tried again while others are let go, and the wait between.
const ROOM_TRIES: u32 = 80;
const ROOM_WAIT: Duration = Duration::from_millis(25);

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
        if rate.is_some() {
            shared.limit.set(rate);
        }
        Ok(Task::new(shared))
    }
}

// === impl Inner: opening ===

impl Inner {
    async fn open(self: &Arc<Self>, request: OpenRequest) -> Result<Arc<Shared>, TaskError> {
        let spec = &request.spec;
        if request.route == Route::OriginOnly {
            return self.open_at_origin(request, None).await;
        }
        // What is named by its digest needs nobody's confirmation: here or on its way is enough.
        if spec.content_addressed
            && let Some(digest) = &spec.digest
            && let Some(shared) = self.here((spec.id(), Generation::of_digest(digest))).await?
        {
            if shared.content.guarded() {
                authorize::authorize(self, spec, &request.headers).await?;
                authorize::prove(self, spec, &request.headers, &shared).await?;
            }
            return Ok(shared);
        }
        match &self.cluster {
            Some(cluster) if cluster.is_configured() => {
                if cluster.is_up() {
                    self.open_in_cluster(cluster, request).await
                } else {
                    self.open_as_orphan(cluster, request).await
                }
            }
            _ if request.never_origin => Err(TaskError::new(
                Kind::Unavailable,
                "no supernode is configured, and going back to the origin is disabled",
            )),
            _ => self.open_at_origin(request, None).await,
        }
    }

    /// A task that is whole in the store or being downloaded at this moment.
    async fn here(self: &Arc<Self>, key: (TaskId, Generation)) -> Result<Option<Arc<Shared>>, TaskError> {
        if let Some(shared) = self.tasks.get(key)
            && (matches!(shared.ended(), Some(Ok(()))) || (shared.ended().is_none() && shared.is_wanted()))
            && self.is_intact(&shared)
        {
            return Ok(Some(shared));
        }
        let Some(content) = self.stored(key.0, Some(key.1)).await? else { return Ok(None) };
        if !content.is_complete() {
            return Ok(None);
        }
        let start = Start::serving(content.spec().clone());
        Ok(Some(self.start(content, start, &[]).await?))
    }

    async fn open_in_cluster(
        self: &Arc<Self>,
        cluster: &Arc<Cluster>,
        request: OpenRequest,
    ) -> Result<Arc<Shared>, TaskError> {
        let spec = &request.spec;
        let held = self.stored(spec.id(), None).await?;
        let open = self.open_message(&request, held.as_deref());
        let (meta, opening) = cluster.open(open.clone(), self.config.open_timeout).await?;
        let guarded = meta.guarded;
        if guarded {
            authorize::authorize(self, spec, &request.headers).await?;
        }
        let content = self.create_from_meta(spec, &meta).await?;
        let start = Start {
            authority: Authority::Cluster { open: Box::new(open), lost_since: None },
            body: None,
            spec: spec.clone(),
            headers: request.headers.clone(),
            peers: Vec::new(),
            orphan: false,
            seed_only: request.route == Route::SeedOnly,
        };
        let shared = self.start(content, start, &[]).await?;
        let opened = actor::ClusterEvent::Opened { meta: Box::new(meta) };
        for event in std::iter::once(opened).chain(opening.attach(&shared.events)) {
            let _ = shared.events.send(Event::Cluster(event)).await;
        }
        if guarded && spec.content_addressed {
            authorize::prove(self, spec, &request.headers, &shared).await?;
        }
        Ok(shared)
    }

    /// No supernode answers: neighbours, then, after a random delay, the origin.
    async fn open_as_orphan(
        self: &Arc<Self>,
        cluster: &Arc<Cluster>,
        request: OpenRequest,
    ) -> Result<Arc<Shared>, TaskError> {
        let spec = request.spec.clone();
        let since = tokio::time::Instant::now();
        let found = orphan::ask_neighbours(self, &spec).await;
        if let Some((known, hosts)) = orphan::unless_outdated(self, &request, found).await {
            if known.meta.guarded {
                authorize::authorize(self, &spec, &request.headers).await?;
            }
            let content = self.create_from_meta(&spec, &known.meta).await?;
            let open = self.open_message(&request, Some(&content));
            let headers = request.headers;
            let start = Start {
                authority: Authority::Cluster { open: Box::new(open), lost_since: Some(since) },
                body: None,
                spec: spec.clone(),
                headers: headers.clone(),
                peers: hosts,
                orphan: false,
                seed_only: false,
            };
            let shared = self.start(content, start, &known.hashes).await?;
            attach_orphan(cluster, &shared).await;
            if known.meta.guarded && spec.content_addressed {
                authorize::prove(self, &spec, &headers, &shared).await?;
            }
            return Ok(shared);
        }
        if request.never_origin {
            return Err(TaskError::new(
                Kind::Unavailable,
                "no supernode answers, no neighbour has the content, and going back to the origin is disabled",
            ));
        }
        let delay = self.orphan_delay(spec.id());
        info!(task = ?spec.id(), delay_ms = delay.as_millis() as u64, "no supernode answers: waiting before reading the origin");
        tokio::select! {
            () = tokio::time::sleep(delay) => self.open_at_origin(request, Some(since)).await,
            () = cluster.wait_up() => self.open_in_cluster(cluster, request).await,
        }
    }

    /// Reads the origin itself. `orphaned` says since when no supernode answers.
    async fn open_at_origin(
        self: &Arc<Self>,
        request: OpenRequest,
        orphaned: Option<tokio::time::Instant>,
    ) -> Result<Arc<Shared>, TaskError> {
        let spec = request.spec.clone();
        let held = self.stored(spec.id(), None).await?;
        let resolved = origin::resolve(self, &spec, request.headers.clone(), held.as_deref()).await?;
        let content = self
            .create(NewTask {
                task: spec.id(),
                generation: resolved.generation,
                layout: resolved.layout,
                digest: spec.digest.clone(),
                guarded: resolved.guarded,
                headers: resolved.headers,
                spec: seed::without_secrets(&spec),
                confirmed: true,
            })
            .await?;
        let open = self.open_message(&request, Some(&content));
        let authority = match orphaned {
            Some(_) => Authority::Cluster { open: Box::new(open), lost_since: orphaned },
            None => Authority::alone(),
        };
        let start = Start {
            authority,
            body: resolved.body,
            spec: spec.clone(),
            headers: request.headers,
            peers: Vec::new(),
            orphan: orphaned.is_some(),
            seed_only: false,
        };
        let shared = self.start(content, start, &[]).await?;
        if let (Some(cluster), true) = (&self.cluster, orphaned.is_some()) {
            attach_orphan(cluster, &shared).await;
        }
        Ok(shared)
    }

    fn open_message(&self, request: &OpenRequest, held: Option<&Content>) -> wire::OpenTask {
        wire::OpenTask {
            task_id: request.spec.id().to_bytes().to_vec().into(),
            spec: Some((&request.spec).into()),
            headers: headers::to_wire(&request.headers),
            have_generation: held.map(|content| content.generation().to_bytes().to_vec()).unwrap_or_default().into(),
            have_pieces: held.map_or(0, |content| content.have().len()),
            priority: request.priority,
            never_origin: request.never_origin,
        }
    }

    // === starting actors ===

    /// Starts a task's actor, or gives a running one what a new one would have started with.
    async fn start(
        self: &Arc<Self>,
        content: Arc<Content>,
        start: Start,
        hashes: &[PieceHash],
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
            shared.expect(0, hashes);
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

    // === the store, off the runtime's threads ===

    async fn stored(&self, task: TaskId, generation: Option<Generation>) -> Result<Option<Arc<Content>>, TaskError> {
        let store = self.store.clone();
        blocking(move || store.get(task, generation).map_err(TaskError::from)).await
    }

    /// A new content, or the one that is there, if it is cut into the same pieces: pieces of one number have to be the
    /// same pieces everywhere.
    async fn create(self: &Arc<Self>, new: NewTask) -> Result<Arc<Content>, TaskError> {
        let inner = Arc::clone(self);
        blocking(move || {
            let store = &inner.store;
            let (task, generation, layout) = (new.task, new.generation, new.layout);
            let mut content = inner.with_room(|| store.create(new.clone()))?;
            if !content.layout().agrees(layout) {
                info!(?task, "what is here is cut in another way and fetched anew");
                content.discard()?;
                content = inner.with_room(|| store.create(new.clone()))?;
            }
            // An empty content is whole as soon as it is made: no piece comes whose arrival would have it checked.
            if content.layout().length() == Some(0)
                && let Some(expected) = content.digest()
                && expected.algorithm().hasher().finish() != *expected
            {
                let message = format!("the content is empty, and so does not have the digest {expected}");
                store.discard(task, generation)?;
                return Err(TaskError::new(Kind::Corrupt, message));
            }
            Ok(content)
        })
        .await
    }

    async fn create_from_meta(
        self: &Arc<Self>,
        spec: &TaskSpec,
        meta: &wire::TaskMeta,
    ) -> Result<Arc<Content>, TaskError> {
        let (generation, layout) = seed::checked_meta(meta)?;
        // Where it really came from, not where this caller would have it from.
        let origin = meta.spec.clone().and_then(|told| TaskSpec::try_from(told).ok());
        self.create(NewTask {
            task: spec.id(),
            generation,
            layout,
            digest: spec.digest.clone(),
            guarded: meta.guarded,
            headers: meta.headers.iter().map(|header| (header.name.clone(), header.value.to_vec())).collect(),
            spec: seed::without_secrets(origin.as_ref().unwrap_or(spec)),
            confirmed: false,
        })
        .await
    }

    /// Stores something. When there is no room, contents that only neighbours use are let go, so that the store may
    /// evict them. Blocks.
    fn with_room<T>(&self, mut attempt: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let mut tries = 0;
        loop {
            match attempt() {
                Err(StoreError::NoSpace { .. }) if tries < ROOM_TRIES && self.let_go() => {
                    tries += 1;
                    std::thread::sleep(ROOM_WAIT);
                }
                result => return result,
            }
        }
    }

    /// Asks the actors of all tasks that no user of this host wants to leave; false when there are none.
    fn let_go(&self) -> bool {
        let mut some = false;
        self.tasks.for_each(|shared| {
            if !shared.is_wanted() && shared.ended().is_some() {
                some = true;
                let _ = shared.events.try_send(Event::MakeRoom);
            }
        });
        some
    }

    async fn inventory(&self) -> Vec<wire::inventory::Item> {
        let store = self.store.clone();
        let entries = blocking(move || Ok(store.inventory())).await.unwrap_or_default();
        entries
            .into_iter()
            .map(|entry| wire::inventory::Item {
                task_id: entry.task.to_bytes().to_vec().into(),
                generation: entry.generation.to_bytes().to_vec().into(),
                complete: entry.complete,
                pieces: entry.pieces,
                downloading: self
                    .tasks
                    .get((entry.task, entry.generation))
                    .is_some_and(|shared| shared.ended().is_none()),
            })
            .collect()
    }

    fn discard(self: &Arc<Self>, task: TaskId, generation: Generation, reason: &str) {
        let (inner, reason) = (Arc::clone(self), reason.to_owned());
        self.tracker.spawn(async move {
            if let Some(shared) = inner.tasks.get((task, generation))
                && shared.events.send(Event::Discard { reason }).await.is_ok()
            {
                return;
            }
            inner.discard_stored(task, generation);
        });
    }

    /// Hashes a content again, of which a neighbour says that a bad piece came from it, and throws it away if so. One
    /// at a time, and the same one not again for a while: whoever accuses costs this host no more than that.
    fn verify(self: &Arc<Self>, task: TaskId, generation: Generation) {
        let Some(turn) = self.verifications.begin((task, generation)) else { return };
        let inner = Arc::clone(self);
        self.tracker.spawn_blocking(move || {
            let _turn = turn;
            match inner.store.verify(task, generation) {
                Ok(true) => debug!(?task, "a content that was complained of is right"),
                Ok(false) => {
                    tracing::error!(
                        ?task,
                        "this host's own copy is spoilt, and is thrown away: its disk or memory may be failing"
                    );
                    inner.metrics.spoilt_tasks.inc();
                    inner.discard(task, generation, "this host's copy was spoilt");
                }
                Err(error) => tracing::warn!(?task, %error, "a content that was complained of cannot be checked"),
            }
        });
    }

    /// Throws away what nobody uses.
    fn discard_stored(&self, task: TaskId, generation: Generation) {
        let store = self.store.clone();
        self.tracker.spawn_blocking(move || {
            if let Err(error) = store.discard(task, generation) {
                tracing::warn!(?task, %error, "wrong content could not be removed");
            }
        });
    }

    /// Whether a task's content is still what was checked. If another program wrote to it, or it was thrown away, the
    /// task is over: the next one begins with what the store makes of it.
    fn is_intact(&self, shared: &Arc<Shared>) -> bool {
        let Err(error) = shared.content.check_intact() else { return true };
        tracing::warn!(task = ?shared.task, %error, "a content in use cannot be used any more");
        self.tasks.remove(shared);
        if matches!(shared.ended(), Some(Ok(()))) {
            shared.end_badly(error.into());
        }
        false
    }

    /// Whether the origin still has the generation that a sibling told of.
    async fn confirms(&self, spec: &TaskSpec, headers: HeaderMap, known: &Known) -> bool {
        origin::current_generation(self, spec, headers).await == Generation::from_bytes(&known.meta.generation).ok()
    }

    // === small things ===

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

/// Lets a task that was begun without a supernode hear of one.
async fn attach_orphan(cluster: &Cluster, shared: &Shared) {
    if let Some(found) = cluster.attach_orphan(shared.task, &shared.events) {
        let _ = shared.events.send(Event::Cluster(found)).await;
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TaskError> + Send + 'static,
) -> Result<T, TaskError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| TaskError::stopping())?
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
