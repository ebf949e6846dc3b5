//! The shell around [`swarm::Scheduler`]: sessions in, messages and seeds out.
//!
//! All state is soft: after a restart it is rebuilt from the hosts' hellos, and metadata from the seed's own store or
//! from a sibling. Credentials of waiting callers live here in memory and nowhere else.

mod perform;
mod seeding;
mod tasks;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use peer::engine::{Engine, headers};
use proto::wire::from_daemon::Body as Said;
use proto::wire::from_supernode::Body as Say;
use proto::{Generation, HostId, PieceIndex, TaskId, TaskSpec, api, wire};
use swarm::{HostFacts, InventoryItem, Scheduler, SchedulerConfig, SchedulerEvent, Time};
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

pub use self::tasks::Sibling;
use self::tasks::TaskEntry;

/// Inventory items taken of one host at most.
const INVENTORY_MAX: usize = 100_000;
/// New hashes are sent to hosts at most so often.
const HASHES_EVERY: Duration = Duration::from_millis(20);
/// Hosts at most.
const HOSTS_MAX: usize = 50_000;

/// One cluster's manager. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Manager {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Mutex<State>,
    engine: Engine,
    started: tokio::time::Instant,
    wake: Notify,
    cancel: CancellationToken,
    tracker: TaskTracker,
    siblings: Sibling,
}

#[derive(Debug)]
struct State {
    scheduler: Scheduler,
    hosts: HashMap<HostId, Host>,
    tasks: HashMap<TaskId, TaskEntry>,
    wake_at: Option<Time>,
    next_session: u64,
    dirty: Vec<TaskId>,
}

#[derive(Debug)]
struct Host {
    info: wire::HostInfo,
    say: mpsc::Sender<wire::FromSupernode>,
    session: u64,
    inventory_items: usize,
    bad_pieces: u32,
}

/// A host's session, until it is dropped.
#[derive(Debug)]
pub struct Session {
    manager: Manager,
    host: HostId,
    number: u64,
}

/// Why a session is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionRefused {
    /// The hello makes no sense.
    #[error("the hello is not valid: {0}")]
    Invalid(&'static str),
    /// No version is spoken by both.
    #[error("protocol versions {0} to {1} are not spoken here; this supernode speaks {min} to {max}", min = proto::PROTOCOL_VERSION_MIN, max = proto::PROTOCOL_VERSION)]
    Version(u32, u32),
    /// Too many hosts.
    #[error("this supernode has its maximum of {HOSTS_MAX} hosts")]
    Full,
}

impl Manager {
    /// Starts managing with this engine as the seed.
    #[must_use]
    pub fn start(
        config: SchedulerConfig,
        expected_hosts: u32,
        engine: Engine,
        siblings: Sibling,
        cancel: CancellationToken,
    ) -> Self {
        let seed = engine.host().clone();
        let mut scheduler = Scheduler::new(config, Time::default(), Some(expected_hosts));
        let mut actions = Vec::new();
        if let Ok(host) = seed.id() {
            let event = SchedulerEvent::HostJoined { host, facts: facts(&seed), inventory_total: 0 };
            scheduler.handle(Time::default(), event, &mut actions);
        }
        let manager = Self {
            inner: Arc::new(Inner {
                state: Mutex::new(State {
                    scheduler,
                    hosts: HashMap::new(),
                    tasks: HashMap::new(),
                    wake_at: None,
                    next_session: 0,
                    dirty: Vec::new(),
                }),
                engine,
                started: tokio::time::Instant::now(),
                wake: Notify::new(),
                cancel,
                tracker: TaskTracker::new(),
                siblings,
            }),
        };
        manager.inner.tracker.spawn(manager.clone().ticker());
        manager.inner.tracker.spawn(manager.clone().hash_pusher());
        manager
    }

    /// Waits for everything the manager runs, after its token was cancelled.
    pub async fn stopped(&self) {
        self.inner.tracker.close();
        self.inner.tracker.wait().await;
    }

    fn now(&self) -> Time {
        Time::from_micros(u64::try_from(self.inner.started.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn handle(&self, state: &mut State, event: SchedulerEvent) {
        let mut actions = Vec::new();
        state.scheduler.handle(self.now(), event, &mut actions);
        for action in actions {
            self.perform(state, action);
        }
    }

    async fn ticker(self) {
        loop {
            let wake_at = self.inner.state.lock().wake_at;
            let sleep = async {
                match wake_at {
                    Some(at) => tokio::time::sleep(at.since(self.now())).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {
                    let mut state = self.inner.state.lock();
                    state.wake_at = None;
                    self.handle(&mut state, SchedulerEvent::Tick);
                }
                () = self.inner.wake.notified() => {}
                () = self.inner.cancel.cancelled() => return,
            }
        }
    }

    async fn hash_pusher(self) {
        let mut every = tokio::time::interval(HASHES_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = every.tick() => self.push_hashes(),
                () = self.inner.cancel.cancelled() => return,
            }
        }
    }

    // --- sessions ---

    /// Begins a host's session; an earlier one of the same host is forgotten.
    ///
    /// # Errors
    /// When the hello is invalid, speaks no common version, or there is no room.
    pub fn join(
        &self,
        hello: wire::SessionHello,
        say: mpsc::Sender<wire::FromSupernode>,
    ) -> Result<Session, SessionRefused> {
        let info = hello.host.ok_or(SessionRefused::Invalid("host is missing"))?;
        let host = info.id().map_err(|_| SessionRefused::Invalid("host_id"))?;
        if hello.version_min > proto::PROTOCOL_VERSION || hello.version_max < proto::PROTOCOL_VERSION_MIN {
            return Err(SessionRefused::Version(hello.version_min, hello.version_max));
        }
        let mut state = self.inner.state.lock();
        if state.hosts.len() >= HOSTS_MAX {
            return Err(SessionRefused::Full);
        }
        if state.hosts.remove(&host).is_some() {
            // It opens anew what it still wants; its earlier session cleans up nothing any more.
            for entry in state.tasks.values_mut() {
                entry.closed(host);
            }
            self.handle(&mut state, SchedulerEvent::HostLeft { host });
        }
        state.next_session += 1;
        let number = state.next_session;
        let version = hello.version_max.min(proto::PROTOCOL_VERSION);
        let supernode_id = self.inner.engine.host().host_id.clone();
        let welcome = wire::Welcome { version, supernode_id, refused: String::new() };
        let _ = say.try_send(wire::FromSupernode { body: Some(Say::Welcome(welcome)) });
        let facts = facts(&info);
        info!(host = %host, hostname = info.hostname, holds = hello.inventory_total, "host joined");
        state.hosts.insert(host, Host { info, say, session: number, inventory_items: 0, bad_pieces: 0 });
        self.handle(&mut state, SchedulerEvent::HostJoined { host, facts, inventory_total: hello.inventory_total });
        Ok(Session { manager: self.clone(), host, number })
    }

    // --- views ---

    /// Hosts with a session.
    #[must_use]
    pub fn host_count(&self) -> u32 {
        u32::try_from(self.inner.state.lock().hosts.len()).unwrap_or(u32::MAX)
    }

    /// Since when this manager runs.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.inner.started.elapsed()
    }

    /// Tasks, for the HTTP API.
    #[must_use]
    pub fn tasks(&self) -> Vec<api::TaskView> {
        let state = self.inner.state.lock();
        state.tasks.iter().map(|(id, entry)| entry.view(*id)).collect()
    }

    /// Hosts, for the HTTP API.
    #[must_use]
    pub fn hosts(&self) -> Vec<api::HostView> {
        let state = self.inner.state.lock();
        state
            .hosts
            .iter()
            .map(|(id, host)| api::HostView {
                host_id: *id,
                hostname: host.info.hostname.clone(),
                addresses: host.info.addresses.clone(),
                idc: host.info.idc.clone(),
                location: host.info.location.clone(),
                tasks: u32::try_from(state.tasks.values().filter(|task| task.opened.contains_key(id)).count())
                    .unwrap_or(u32::MAX),
                seed: host.info.seed,
                bad_pieces: host.bad_pieces,
            })
            .collect()
    }
}

impl Session {
    /// Takes a message of the host; false when it breaks the protocol.
    #[must_use]
    pub fn said(&self, message: wire::FromDaemon) -> bool {
        let Some(body) = message.body else { return true };
        let manager = &self.manager;
        let mut state = manager.inner.state.lock();
        if state.hosts.get(&self.host).is_none_or(|host| host.session != self.number) {
            return false;
        }
        self.handle(&mut state, body).is_some()
    }

    fn handle(&self, state: &mut State, body: Said) -> Option<()> {
        let (manager, host) = (&self.manager, self.host);
        let event = match body {
            Said::Hello(_) => return None,
            Said::Leave(_) => return None,
            Said::Inventory(inventory) => {
                let entry = state.hosts.get_mut(&host)?;
                entry.inventory_items += inventory.items.len();
                if entry.inventory_items > INVENTORY_MAX {
                    warn!(host = %host, "the host tells of too many tasks");
                    return None;
                }
                if inventory.last {
                    // It may tell all of it again, when another supernode is gone.
                    entry.inventory_items = 0;
                }
                let items = inventory.items.iter().map(item).collect::<Option<Vec<_>>>()?;
                SchedulerEvent::Inventory { host, items, last: inventory.last }
            }
            Said::Open(open) => return manager.open(state, host, open),
            Said::Close(close) => {
                let task = TaskId::from_bytes(&close.task_id).ok()?;
                if let Some(entry) = state.tasks.get_mut(&task) {
                    entry.closed(host);
                }
                SchedulerEvent::Close { host, task, complete: close.complete }
            }
            Said::Progress(progress) => SchedulerEvent::Progress {
                host,
                task: TaskId::from_bytes(&progress.task_id).ok()?,
                generation: Generation::from_bytes(&progress.generation).ok()?,
                pieces: progress.pieces,
                neighbours: progress.neighbours,
            },
            Said::NeedPeers(need) => SchedulerEvent::NeedPeers {
                host,
                task: TaskId::from_bytes(&need.task_id).ok()?,
                generation: Generation::from_bytes(&need.generation).ok()?,
                wanted: need.wanted,
                unreachable: need.unreachable.iter().take(1024).filter_map(|id| HostId::from_bytes(id).ok()).collect(),
            },
            Said::BadPiece(bad) => {
                let from = HostId::from_bytes(&bad.host_id).ok()?;
                warn!(host = %from, reporter = %host, piece = bad.piece, "a host is reported for a bad piece");
                if let Some(entry) = state.hosts.get_mut(&from) {
                    entry.bad_pieces += 1;
                }
                SchedulerEvent::BadPiece {
                    reporter: host,
                    task: TaskId::from_bytes(&bad.task_id).ok()?,
                    generation: Generation::from_bytes(&bad.generation).ok()?,
                    piece: PieceIndex(bad.piece),
                    from,
                }
            }
        };
        manager.handle(state, event);
        Some(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut state = self.manager.inner.state.lock();
        if state.hosts.get(&self.host).is_some_and(|host| host.session == self.number) {
            state.hosts.remove(&self.host);
            for entry in state.tasks.values_mut() {
                entry.closed(self.host);
            }
            info!(host = %self.host, "host left");
            self.manager.handle(&mut state, SchedulerEvent::HostLeft { host: self.host });
        }
    }
}

impl Manager {
    fn open(&self, state: &mut State, host: HostId, open: wire::OpenTask) -> Option<()> {
        let spec = TaskSpec::try_from(open.spec?).ok()?;
        let task = spec.id();
        if open.task_id != task.to_bytes()[..] {
            warn!(host = %host, "a task is not what its id says");
            return None;
        }
        let have = Generation::from_bytes(&open.have_generation).ok();
        let content_addressed = spec.content_addressed;
        let credentials: HeaderMap = headers::from_wire(&open.headers);
        let entry = state.tasks.entry(task).or_insert_with(|| TaskEntry::new(spec.clone()));
        entry.asked(host, spec, credentials);
        let seed_lacks =
            entry.generation().is_some_and(|generation| !self.inner.engine.store().holds(task, generation));
        self.handle(
            state,
            SchedulerEvent::Open {
                host,
                task,
                have,
                have_pieces: open.have_pieces,
                content_addressed,
                never_origin: open.never_origin,
                seed_lacks,
                priority: open.priority,
            },
        );
        Some(())
    }
}

fn item(item: &wire::inventory::Item) -> Option<InventoryItem> {
    Some(InventoryItem {
        task: TaskId::from_bytes(&item.task_id).ok()?,
        generation: Generation::from_bytes(&item.generation).ok()?,
        complete: item.complete,
        downloading: item.downloading,
        pieces: item.pieces,
    })
}

fn facts(info: &wire::HostInfo) -> HostFacts {
    HostFacts {
        seed: info.seed,
        idc: info.idc.clone(),
        location: info.location.clone(),
        upload_bytes_per_s: info.upload_rate_bytes_per_s,
    }
}
