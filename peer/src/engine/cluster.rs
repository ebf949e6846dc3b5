//! Sessions with the cluster's supernodes.
//!
//! A task belongs to the healthy supernode that a rendezvous hash ranks first, so all hosts agree on its owner and
//! move together when that one dies. Sessions are kept to all supernodes of the cluster; each knows what this host
//! holds.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proto::api::SupernodeEntry;
use proto::wire::from_daemon::Body as Say;
use proto::wire::from_supernode::Body as Said;
use proto::{Generation, Kind, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, TaskId, wire};
use rand::Rng;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tracing::{debug, info, warn};

use super::Inner;
use super::actor::{ClusterEvent, Event};
use super::error::TaskError;
use crate::locator;
use crate::rpc::cluster_client::ClusterClient;

/// Messages waiting for one supernode at most; beyond it the session is broken and begun anew.
const QUEUE_MAX: usize = 8192;
/// A supernode must accept a connection within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A silent supernode is asked for a sign of life so often, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Waits between attempts to reach a supernode: from the first to the last.
const RECONNECT: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Inventory items told in one message.
const INVENTORY_PAGE: usize = 1000;
/// Pages after the first wait up to this long, so that a restarted supernode is not flooded.
const INVENTORY_JITTER: Duration = Duration::from_millis(200);
/// Messages kept for a task that was opened but has no actor yet; beyond it the task is opened once more instead.
const SAID_MAX: usize = 4096;

/// The cluster as this host sees it.
#[derive(Debug)]
pub(crate) struct Cluster {
    state: Mutex<State>,
    /// Grows whenever a session begins or ends.
    changes: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<SupernodeEntry>,
    up: HashMap<String, Up>,
    running: HashMap<String, CancellationToken>,
    routes: HashMap<TaskId, Route>,
    waiting: HashMap<TaskId, VecDeque<Waiter>>,
}

/// A session that has begun.
#[derive(Debug)]
struct Up {
    say: mpsc::Sender<wire::FromDaemon>,
    /// Ends the session.
    broken: CancellationToken,
}

#[derive(Debug)]
struct Route {
    to: To,
    owner: Option<String>,
}

/// Where what is said of a task goes.
#[derive(Debug)]
enum To {
    /// To its actor.
    Actor(mpsc::Sender<Event>),
    /// It was opened, and its actor is about to begin: kept for it. So many callers are on their way there; if none of
    /// them arrives, because the origin lets none of them in, the actor that was there `before` goes on alone.
    Opening { said: Vec<ClusterEvent>, callers: usize, before: Option<mpsc::Sender<Event>> },
}

#[derive(Debug)]
struct Waiter {
    open: wire::OpenTask,
    reply: oneshot::Sender<Result<(wire::TaskMeta, Opening), TaskError>>,
}

/// A task that its supernode has opened. When it is dropped before an actor was attached, and nobody else is on the
/// way to one, the supernode is told that the task is not wanted after all.
#[derive(Debug)]
pub(crate) struct Opening {
    cluster: Arc<Cluster>,
    task: TaskId,
    attached: bool,
}

impl Cluster {
    /// Keeps sessions to the supernodes that the locator names, until the engine stops.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), changes: watch::Sender::new(0) })
    }

    pub(crate) async fn run(self: Arc<Self>, inner: Arc<Inner>, mut supernodes: watch::Receiver<Vec<SupernodeEntry>>) {
        loop {
            let entries = supernodes.borrow_and_update().clone();
            self.adopt(&inner, entries);
            tokio::select! {
                changed = supernodes.changed() => if changed.is_err() { return },
                () = inner.cancel.cancelled() => return,
            }
        }
    }

    fn adopt(self: &Arc<Self>, inner: &Arc<Inner>, entries: Vec<SupernodeEntry>) {
        let mut state = self.state.lock();
        let wanted: HashSet<&str> = entries.iter().map(|entry| entry.endpoint.as_str()).collect();
        state.running.retain(|endpoint, cancel| {
            let keep = wanted.contains(endpoint.as_str());
            if !keep {
                cancel.cancel();
            }
            keep
        });
        for entry in &entries {
            if !state.running.contains_key(&entry.endpoint) {
                let cancel = inner.cancel.child_token();
                state.running.insert(entry.endpoint.clone(), cancel.clone());
                let session = Arc::clone(self).keep_session(Arc::clone(inner), entry.endpoint.clone(), cancel);
                inner.tracker.spawn(session);
            }
        }
        state.entries = entries;
    }

    /// Whether supernodes were named at all.
    pub(crate) fn is_configured(&self) -> bool {
        !self.state.lock().entries.is_empty()
    }

    /// Whether some supernode answers at this moment.
    pub(crate) fn is_up(&self) -> bool {
        !self.state.lock().up.is_empty()
    }

    /// Waits until a supernode answers.
    pub(crate) async fn wait_up(&self) {
        let mut changes = self.changes.subscribe();
        while !self.is_up() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Opens a task at its supernode. What it says of the task afterwards is kept until an actor is attached.
    pub(crate) async fn open(
        &self,
        open: wire::OpenTask,
        deadline: Duration,
    ) -> Result<(wire::TaskMeta, Opening), TaskError> {
        let task = TaskId::from_bytes(&open.task_id).expect("made from a task id");
        let (reply, answer) = oneshot::channel();
        {
            let mut state = self.state.lock();
            let waiting = state.waiting.entry(task).or_default();
            // The answer to the first one is still to come, even if its caller is gone.
            let mut first = true;
            waiting.retain(|waiter| std::mem::take(&mut first) || !waiter.reply.is_closed());
            let nobody_waits = waiting.iter().all(|waiter| waiter.reply.is_closed());
            waiting.push_back(Waiter { open: open.clone(), reply });
            if nobody_waits {
                state.say_owner(task, Say::Open(open));
            }
        }
        match tokio::time::timeout(deadline, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(TaskError::stopping()),
            Err(_) => {
                Err(TaskError::new(Kind::Unavailable, format!("no supernode opened the task within {deadline:?}")))
            }
        }
    }

    /// Says something about a task to its supernode; dropped when none answers.
    pub(crate) fn say(&self, task: TaskId, what: Say) {
        self.state.lock().say_owner(task, what);
    }

    /// Sends what is said of a task that no supernode has opened to this mailbox. When one answers by now, the actor
    /// has to be told so.
    pub(crate) fn attach_orphan(&self, task: TaskId, events: &mpsc::Sender<Event>) -> Option<ClusterEvent> {
        let mut state = self.state.lock();
        let owner = state.owner(task);
        let found = owner.is_some().then_some(ClusterEvent::Found);
        state.routes.insert(task, Route { to: To::Actor(events.clone()), owner });
        found
    }

    /// An actor ends: if what is said of the task went to it, its supernode hears that the task is closed. Otherwise
    /// the task is somebody else's by now, and stays open.
    pub(crate) fn close(&self, task: TaskId, events: &mpsc::Sender<Event>, complete: bool) {
        let mut state = self.state.lock();
        let is_its_own = |route: &Route| matches!(&route.to, To::Actor(to) if to.same_channel(events));
        if state.routes.get(&task).is_some_and(is_its_own) {
            state.forget(task, complete);
        }
    }

    // --- one session ---

    async fn keep_session(self: Arc<Self>, inner: Arc<Inner>, endpoint: String, cancel: CancellationToken) {
        let mut wait = RECONNECT.0;
        loop {
            let begun = tokio::time::Instant::now();
            let result = tokio::select! {
                result = self.session(&inner, &endpoint) => result,
                () = cancel.cancelled() => {
                    self.down(&inner, &endpoint).await;
                    return;
                }
            };
            let was_up = self.down(&inner, &endpoint).await;
            match result {
                Err(error) if was_up => warn!(supernode = endpoint, %error, "session with the supernode ended"),
                Err(error) => debug!(supernode = endpoint, %error, "supernode does not answer"),
                Ok(()) => info!(supernode = endpoint, "the supernode closed the session"),
            }
            if was_up || begun.elapsed() > RECONNECT.1 * 5 {
                wait = RECONNECT.0;
            }
            let jittered = wait.mul_f64(rand::rng().random_range(0.5..1.0));
            tokio::select! {
                () = tokio::time::sleep(jittered) => {}
                () = cancel.cancelled() => return,
            }
            wait = (wait * 2).min(RECONNECT.1);
        }
    }

    async fn session(self: &Arc<Self>, inner: &Arc<Inner>, endpoint: &str) -> SessionResult {
        let channel = Endpoint::from_shared(endpoint.to_owned())?
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true)
            .connect()
            .await?;
        let (say, queue) = mpsc::channel(QUEUE_MAX);
        let inventory = inner.inventory().await;
        let hello = wire::SessionHello {
            version_min: PROTOCOL_VERSION_MIN,
            version_max: PROTOCOL_VERSION,
            host: Some(inner.transport.local().clone()),
            inventory_total: u32::try_from(inventory.len()).unwrap_or(u32::MAX),
        };
        send(&say, Say::Hello(hello)).await?;
        let mut client = ClusterClient::new(channel);
        let mut said =
            tokio::time::timeout(CONNECT_TIMEOUT, client.session(ReceiverStream::new(queue))).await??.into_inner();
        let welcome = tokio::time::timeout(CONNECT_TIMEOUT, said.message()).await??;
        match welcome.and_then(|message| message.body) {
            Some(Said::Welcome(welcome)) if welcome.refused.is_empty() => {}
            Some(Said::Welcome(welcome)) => return Err(welcome.refused.into()),
            _ => return Err("the supernode did not say welcome".into()),
        }
        info!(supernode = endpoint, holds = inventory.len(), "session with the supernode begins");
        let telling = tell_inventory(&say, inventory);
        let broken = CancellationToken::new();
        self.up(endpoint, Up { say: say.clone(), broken: broken.clone() }).await;
        let listening = async {
            while let Some(message) = said.message().await? {
                if let Some(body) = message.body {
                    self.said(inner, body).await;
                }
            }
            Ok(())
        };
        let talking = async {
            tokio::pin!(listening);
            tokio::select! {
                result = &mut listening => result,
                result = telling => {
                    result?;
                    listening.await
                }
            }
        };
        tokio::select! {
            result = talking => result,
            () = broken.cancelled() => Err("the supernode does not keep up".into()),
        }
    }

    /// A session began: tasks that now belong to this supernode are opened there.
    async fn up(&self, endpoint: &str, up: Up) {
        let events = {
            let mut state = self.state.lock();
            state.up.insert(endpoint.to_owned(), up);
            state.owners_changed()
        };
        self.changes.send_modify(|changes| *changes += 1);
        tell_all(events).await;
    }

    /// A session ended; true when it had begun.
    async fn down(&self, inner: &Arc<Inner>, endpoint: &str) -> bool {
        let (was_up, events, others) = {
            let mut state = self.state.lock();
            let was_up = state.up.remove(endpoint).is_some();
            let others: Vec<_> = state.up.values().map(|up| up.say.clone()).collect();
            (was_up, if was_up { state.owners_changed() } else { Vec::new() }, others)
        };
        self.changes.send_modify(|changes| *changes += 1);
        if was_up && !others.is_empty() {
            // Of what came since they were said hello to, only the one that is gone was told. Whoever takes over must not
            // fetch from an origin what this host holds.
            let telling = Arc::clone(inner);
            inner.tracker.spawn(async move {
                let inventory = telling.inventory().await;
                for say in others {
                    // A session that ends meanwhile begins with all of it.
                    let _ = tell_inventory(&say, inventory.clone()).await;
                }
            });
        }
        tell_all(events).await;
        was_up
    }

    async fn said(self: &Arc<Self>, inner: &Arc<Inner>, what: Said) {
        let to_task = match what {
            Said::Welcome(_) | Said::Lease(_) => None,
            Said::Opened(opened) => {
                let Some(meta) = opened.meta else { return };
                let Ok((task, _)) = meta.key() else { return };
                self.opened(task, meta)
            }
            Said::Refuse(refuse) => {
                let Ok(task) = TaskId::from_bytes(&refuse.task_id) else { return };
                self.refused(task, TaskError::from_refusal(refuse))
            }
            Said::Peers(peers) => self.for_task(&peers.task_id, ClusterEvent::Peers(peers.peers)),
            Said::Hashes(hashes) => {
                let task = hashes.task_id.clone();
                self.for_task(&task, ClusterEvent::Hashes(hashes))
            }
            Said::Verify(verify) => {
                if let (Ok(task), Ok(generation)) =
                    (TaskId::from_bytes(&verify.task_id), Generation::from_bytes(&verify.generation))
                {
                    inner.verify(task, generation);
                }
                None
            }
            Said::Discard(discard) => {
                // Whether or not anybody uses the content just now.
                if let (Ok(task), Ok(generation)) =
                    (TaskId::from_bytes(&discard.task_id), Generation::from_bytes(&discard.generation))
                {
                    inner.discard(task, generation, &discard.reason);
                }
                None
            }
        };
        if let Some((events, event)) = to_task {
            let _ = events.send(Event::Cluster(event)).await;
        }
    }

    fn for_task(&self, task: &[u8], event: ClusterEvent) -> Option<(mpsc::Sender<Event>, ClusterEvent)> {
        let task = TaskId::from_bytes(task).ok()?;
        self.state.lock().routes.get_mut(&task)?.take(event)
    }

    fn opened(self: &Arc<Self>, task: TaskId, meta: wire::TaskMeta) -> Option<(mpsc::Sender<Event>, ClusterEvent)> {
        let mut state = self.state.lock();
        let opened = ClusterEvent::Opened { meta: Box::new(meta.clone()) };
        let waiting = state.waiting.remove(&task).unwrap_or_default();
        if waiting.is_empty() {
            return state.routes.get_mut(&task)?.take(opened);
        }
        let owner = state.owner(task);
        let (before, callers) = match state.routes.remove(&task).map(|route| route.to) {
            Some(To::Actor(events)) => (Some(events), 0),
            Some(To::Opening { before, callers, .. }) => (before, callers),
            None => (None, 0),
        };
        // An actor that was there before hears of it too: its generation may have been replaced.
        let to_old = before.clone().map(|events| (events, opened));
        let to = To::Opening { said: Vec::new(), callers: callers + waiting.len(), before };
        state.routes.insert(task, Route { to, owner });
        // Callers who are gone drop what they are sent, which takes the lock.
        drop(state);
        for waiter in waiting {
            let opening = Opening { cluster: Arc::clone(self), task, attached: false };
            let _ = waiter.reply.send(Ok((meta.clone(), opening)));
        }
        to_old
    }

    /// A refusal concerns the one whose headers were sent; the next in line is tried with its own.
    fn refused(&self, task: TaskId, error: TaskError) -> Option<(mpsc::Sender<Event>, ClusterEvent)> {
        let mut state = self.state.lock();
        let Some(waiter) = state.waiting.get_mut(&task).and_then(VecDeque::pop_front) else {
            return state.routes.get_mut(&task)?.take(ClusterEvent::Refused(error));
        };
        let _ = waiter.reply.send(Err(error));
        if let Some(open) = state.next_waiting(task) {
            state.say_owner(task, Say::Open(open));
        }
        None
    }
}

impl Opening {
    /// Sends what is said of the task to this mailbox from now on; gives what was said until now.
    pub(crate) fn attach(mut self, events: &mpsc::Sender<Event>) -> Vec<ClusterEvent> {
        self.attached = true;
        let mut state = self.cluster.state.lock();
        let owner = state.owner(self.task);
        let route = state.routes.entry(self.task).or_insert_with(|| Route { to: To::Actor(events.clone()), owner });
        match std::mem::replace(&mut route.to, To::Actor(events.clone())) {
            To::Opening { said, .. } => said,
            To::Actor(_) => Vec::new(),
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        if self.attached {
            return;
        }
        let mut state = self.cluster.state.lock();
        let Some(route) = state.routes.get_mut(&self.task) else { return };
        let To::Opening { callers, before, .. } = &mut route.to else { return };
        *callers = callers.saturating_sub(1);
        if *callers > 0 {
            return;
        }
        match before.take().filter(|events| !events.is_closed()) {
            Some(events) => route.to = To::Actor(events),
            None => state.forget(self.task, false),
        }
    }
}

impl Route {
    /// Whom to tell an event; none when it is kept for an actor that is about to begin.
    fn take(&mut self, event: ClusterEvent) -> Option<(mpsc::Sender<Event>, ClusterEvent)> {
        match &mut self.to {
            To::Actor(events) => Some((events.clone(), event)),
            To::Opening { said, before, .. } => {
                let to_old = before.clone().map(|events| (events, event.clone()));
                if said.len() >= SAID_MAX {
                    // It will be opened again, and everything said anew.
                    said.clear();
                    said.push(ClusterEvent::Found);
                } else {
                    said.push(event);
                }
                to_old
            }
        }
    }
}

impl State {
    /// The healthy supernode that a task belongs to.
    fn owner(&self, task: TaskId) -> Option<String> {
        locator::rank(task, &self.entries)
            .into_iter()
            .map(|entry| entry.endpoint)
            .find(|endpoint| self.up.contains_key(endpoint))
    }

    fn say_owner(&mut self, task: TaskId, what: Say) {
        let Some(owner) = self.owner(task) else { return };
        let message = wire::FromDaemon { body: Some(what) };
        if let Some(up) = self.up.get(&owner)
            && up.say.try_send(message).is_err()
            && !up.broken.is_cancelled()
        {
            warn!(supernode = owner, "the supernode does not keep up; beginning the session anew");
            // What was to be said is lost, but with a new session every task is opened again.
            up.broken.cancel();
        }
    }

    /// Ends a task's route and tells its supernode. Whoever waits for the task has asked before, and asks again: the
    /// supernode takes what it hears last.
    fn forget(&mut self, task: TaskId, complete: bool) {
        self.routes.remove(&task);
        self.say_owner(task, Say::Close(wire::CloseTask { task_id: task.to_bytes().to_vec().into(), complete }));
        if let Some(open) = self.next_waiting(task) {
            self.say_owner(task, Say::Open(open));
        }
    }

    /// The request of the first caller who still waits for a task; those who are gone are forgotten.
    fn next_waiting(&mut self, task: TaskId) -> Option<wire::OpenTask> {
        let waiting = self.waiting.get_mut(&task)?;
        waiting.retain(|waiter| !waiter.reply.is_closed());
        let next = waiting.front().map(|waiter| waiter.open.clone());
        if next.is_none() {
            self.waiting.remove(&task);
        }
        next
    }

    /// Finds tasks whose supernode changed; gives what to tell them, and opens what waits at its new owner.
    fn owners_changed(&mut self) -> Vec<(mpsc::Sender<Event>, ClusterEvent)> {
        let mut events = Vec::new();
        let tasks: Vec<TaskId> = self.routes.keys().copied().collect();
        for task in tasks {
            let owner = self.owner(task);
            if let Some(route) = self.routes.get_mut(&task)
                && route.owner != owner
            {
                let event = if owner.is_some() { ClusterEvent::Found } else { ClusterEvent::Lost };
                route.owner = owner;
                events.extend(route.take(event));
            }
        }
        let tasks: Vec<TaskId> = self.waiting.keys().copied().collect();
        for task in tasks {
            if let Some(open) = self.next_waiting(task) {
                self.say_owner(task, Say::Open(open));
            }
        }
        events
    }
}

async fn tell_all(events: Vec<(mpsc::Sender<Event>, ClusterEvent)>) {
    for (to, event) in events {
        let _ = to.send(Event::Cluster(event)).await;
    }
}

async fn send(say: &mpsc::Sender<wire::FromDaemon>, what: Say) -> SessionResult {
    say.send(wire::FromDaemon { body: Some(what) }).await.map_err(|_| "the session closed".into())
}

async fn tell_inventory(say: &mpsc::Sender<wire::FromDaemon>, items: Vec<wire::inventory::Item>) -> SessionResult {
    if items.is_empty() {
        return Ok(());
    }
    let pages = items.len().div_ceil(INVENTORY_PAGE);
    for (number, page) in items.chunks(INVENTORY_PAGE).enumerate() {
        if number > 0 {
            let jitter = INVENTORY_JITTER.mul_f64(rand::rng().random_range(0.0..1.0));
            tokio::time::sleep(jitter).await;
        }
        send(say, Say::Inventory(wire::Inventory { items: page.to_vec(), last: number + 1 == pages })).await?;
    }
    Ok(())
}

/// A session ends for many reasons, all of which are only logged.
type SessionResult = Result<(), Box<dyn std::error::Error + Send + Sync>>;
