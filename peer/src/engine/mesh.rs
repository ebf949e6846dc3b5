//! The neighbours of this host: who is linked, who is being dialled, and whose frames go where.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use proto::wire::frame::Body;
use proto::{Generation, HostId, TaskId, wire};
use tokio::sync::{OnceCell, oneshot};
use tracing::debug;

use super::Inner;
use super::actor::Event;
use super::link::Link;
use crate::transport::{Accepted, Purpose, Receiver};

/// A control connection is asked for a sign of life so often; the transport's progress deadline does the rest.
const PING_EVERY: Duration = Duration::from_secs(5);
/// A dead address is not dialled again within this time.
const REDIAL_AFTER: Duration = Duration::from_secs(2);
/// Neighbours linked at most, over all tasks; beyond it no link is opened or accepted.
const LINKS_MAX: usize = 1024;
/// Tasks of which one neighbour may want to be told: far more than anybody downloads at once.
const SUBSCRIPTIONS_MAX: usize = 16 * 1024;
/// Hosts remembered for having served bad pieces at most.
const DISTRUSTED_MAX: usize = 4096;
/// Metadata asked of a neighbour must come within this time.
const META_TIMEOUT: Duration = Duration::from_secs(2);

/// A dial that several tasks wait for.
type Dial = Arc<OnceCell<Option<Arc<Link>>>>;
/// Who waits for a neighbour's word on a task, and from which hash on.
type MetaWaiters = Vec<(u32, oneshot::Sender<wire::Meta>)>;

/// All links of this host.
#[derive(Debug)]
pub(crate) struct Mesh {
    /// Both ends may dial at once; then a pair has two control connections and either serves.
    links: Mutex<HashMap<HostId, Vec<Arc<Link>>>>,
    dialing: Mutex<HashMap<HostId, Dial>>,
    failed: Mutex<HashMap<HostId, tokio::time::Instant>>,
    /// Who wants to be told of which task.
    subscribers: Mutex<HashMap<(TaskId, Generation), Vec<HostId>>>,
    metas: Mutex<HashMap<(HostId, TaskId), MetaWaiters>>,
    /// Hosts that served a bad piece, and until when nothing is asked of them.
    distrusted: Mutex<HashMap<HostId, tokio::time::Instant>>,
    /// Hosts met lately, for when no supernode answers.
    known: Mutex<HashMap<HostId, wire::HostInfo>>,
    /// Numbers of requests, over all links: a host pair may have several, one after the other and at once.
    requests: AtomicU64,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            links: Mutex::default(),
            dialing: Mutex::default(),
            failed: Mutex::default(),
            subscribers: Mutex::default(),
            metas: Mutex::default(),
            distrusted: Mutex::default(),
            known: Mutex::default(),
            // Not where an earlier process of this host began: what that one asked for may still be under way.
            requests: AtomicU64::new(u64::from(rand::random::<u32>()) << 24),
        }
    }
}

impl Mesh {
    /// A number that no other request of this process has.
    pub(crate) fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Ordering::Relaxed)
    }

    /// The live link to a host.
    pub(crate) fn get(&self, host: HostId) -> Option<Arc<Link>> {
        self.links.lock().get(&host)?.iter().find(|link| !link.gone.is_cancelled()).cloned()
    }

    pub(crate) fn len(&self) -> usize {
        self.links.lock().len()
    }

    /// Hosts this one has been told of or linked to.
    pub(crate) fn known(&self) -> Vec<wire::HostInfo> {
        self.known.lock().values().cloned().collect()
    }

    pub(crate) fn subscribers(&self, key: (TaskId, Generation)) -> Vec<HostId> {
        self.subscribers.lock().get(&key).cloned().unwrap_or_default()
    }

    /// Notes who wants to be told of a task; false when it wants to be told of too many.
    fn subscribe(&self, key: (TaskId, Generation), link: &Link) -> bool {
        let mut subscribers = self.subscribers.lock();
        let hosts = subscribers.entry(key).or_default();
        if !hosts.contains(&link.host) {
            hosts.push(link.host);
            return link.subscriptions.fetch_add(1, Ordering::Relaxed) < SUBSCRIPTIONS_MAX;
        }
        true
    }

    fn unsubscribe(&self, key: (TaskId, Generation), link: &Link) {
        let mut subscribers = self.subscribers.lock();
        let Some(hosts) = subscribers.get_mut(&key) else { return };
        if let Some(at) = hosts.iter().position(|host| *host == link.host) {
            hosts.swap_remove(at);
            // The one counted may have come by another link; a count that is too low for one host harms nobody.
            let fewer = |count: usize| count.checked_sub(1);
            let _ = link.subscriptions.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        }
        if hosts.is_empty() {
            subscribers.remove(&key);
        }
    }

    /// Asks nothing of a host for a while, for no task.
    pub(crate) fn distrust(&self, host: HostId, time: Duration) {
        let now = tokio::time::Instant::now();
        let mut distrusted = self.distrusted.lock();
        distrusted.retain(|_, until| *until > now);
        if distrusted.len() < DISTRUSTED_MAX {
            distrusted.insert(host, now + time);
        }
    }

    pub(crate) fn is_distrusted(&self, host: HostId) -> bool {
        self.distrusted.lock().get(&host).is_some_and(|until| *until > tokio::time::Instant::now())
    }

    fn remember(&self, info: &wire::HostInfo) {
        let Ok(host) = info.id() else { return };
        let mut known = self.known.lock();
        if known.len() < LINKS_MAX || known.contains_key(&host) {
            known.insert(host, info.clone());
        }
    }
}

/// A link to this host: the one there is, or a new one. `None` when it cannot be reached now.
pub(crate) async fn connect(inner: &Arc<Inner>, info: &wire::HostInfo) -> Option<Arc<Link>> {
    let host = info.id().ok()?;
    if host == inner.host_id || inner.mesh.is_distrusted(host) {
        return None;
    }
    inner.mesh.remember(info);
    if let Some(link) = inner.mesh.get(host) {
        return Some(link);
    }
    let recently = inner.mesh.failed.lock().get(&host).is_some_and(|at| at.elapsed() < REDIAL_AFTER);
    if recently || inner.mesh.len() >= LINKS_MAX {
        return None;
    }
    let cell = Arc::clone(inner.mesh.dialing.lock().entry(host).or_default());
    let link = cell.get_or_init(|| dial(inner, host, info)).await.clone();
    inner.mesh.dialing.lock().remove(&host);
    link
}

async fn dial(inner: &Arc<Inner>, host: HostId, info: &wire::HostInfo) -> Option<Arc<Link>> {
    match inner.transport.dial(info, Purpose::Control).await {
        Ok(channel) if channel.remote().id().ok() == Some(host) => {
            inner.mesh.failed.lock().remove(&host);
            let (sender, receiver) = channel.split();
            Some(add(inner, info.clone(), host, sender, receiver))
        }
        Ok(channel) => {
            debug!(expected = ?host, found = ?channel.remote().id().ok(), "another host answers at this address");
            None
        }
        Err(error) => {
            debug!(peer = ?host, %error, "neighbour cannot be reached");
            let mut failed = inner.mesh.failed.lock();
            failed.retain(|_, at| at.elapsed() < REDIAL_AFTER);
            failed.insert(host, tokio::time::Instant::now());
            None
        }
    }
}

/// Takes in what others dial, until the engine stops.
pub(crate) async fn accept_loop(inner: Arc<Inner>) {
    loop {
        let accepted = tokio::select! {
            accepted = inner.transport.accept() => accepted,
            () = inner.cancel.cancelled() => return,
        };
        let Accepted { channel, remote, purpose, .. } = accepted;
        let Ok(host) = remote.id() else { continue };
        if host == inner.host_id {
            continue;
        }
        let (sender, receiver) = channel.split();
        match purpose {
            Purpose::Control if inner.mesh.len() < LINKS_MAX => {
                inner.mesh.remember(&remote);
                add(&inner, remote, host, sender, receiver);
            }
            Purpose::Control => debug!(peer = ?host, "too many neighbours"),
            Purpose::Data => super::upload::serve(&inner, host, sender, receiver),
        }
    }
}

fn add(
    inner: &Arc<Inner>,
    info: wire::HostInfo,
    host: HostId,
    sender: crate::transport::Sender,
    receiver: Receiver,
) -> Arc<Link> {
    let link = Link::start(inner, info, host, sender);
    inner.mesh.links.lock().entry(host).or_default().push(Arc::clone(&link));
    let (inner_, link_) = (Arc::clone(inner), Arc::clone(&link));
    inner.tracker.spawn(async move {
        let (inner, link) = (inner_, link_);
        tokio::select! {
            () = read_frames(&inner, &link, receiver) => {}
            () = ping(&link) => {}
            () = link.gone.cancelled() => {}
        }
        link.gone.cancel();
        remove(&inner, &link);
    });
    link
}

fn remove(inner: &Arc<Inner>, link: &Arc<Link>) {
    let last = {
        let mut links = inner.mesh.links.lock();
        let Some(of_host) = links.get_mut(&link.host) else { return };
        of_host.retain(|other| !Arc::ptr_eq(other, link));
        let last = of_host.is_empty();
        if last {
            links.remove(&link.host);
        }
        last
    };
    if last {
        inner.mesh.subscribers.lock().retain(|_, hosts| {
            hosts.retain(|host| *host != link.host);
            !hosts.is_empty()
        });
        inner.uploads.left(inner, link.host);
    }
    // Also when another link to this host serves on: tasks that used this one have to change over. Where a mailbox is
    // full, the task notices by itself a little later.
    inner.tasks.for_each(|shared| {
        let _ = shared.events.try_send(Event::LinkDown { peer: link.host });
    });
}

async fn ping(link: &Link) {
    let mut every = tokio::time::interval(PING_EVERY);
    every.tick().await;
    loop {
        every.tick().await;
        link.tell(Body::Ping(wire::Ping { nonce: 0 }));
    }
}

async fn read_frames(inner: &Arc<Inner>, link: &Arc<Link>, mut receiver: Receiver) {
    loop {
        match receiver.recv().await {
            Err(error) => {
                debug!(peer = ?link.host, %error, "control connection ended");
                return;
            }
            Ok(frame) => {
                let Some(body) = frame.body else { continue };
                if dispatch(inner, link, body).await.is_none() {
                    debug!(peer = ?link.host, "neighbour breaks the protocol");
                    return;
                }
            }
        }
    }
}

/// Hands a frame to whom it concerns; `None` when it breaks the protocol.
async fn dispatch(inner: &Arc<Inner>, link: &Arc<Link>, body: Body) -> Option<()> {
    match body {
        Body::Ping(ping) => link.tell(Body::Pong(wire::Pong { nonce: ping.nonce })),
        Body::Subscribe(subscribe) => {
            let key = key(&subscribe.task_id, &subscribe.generation)?;
            if !inner.mesh.subscribe(key, link) {
                debug!(peer = ?link.host, "too many subscriptions");
                return None;
            }
            match inner.serving(key).await {
                Some(shared) => {
                    let _ = shared.events.send(Event::Subscribed { link: Arc::clone(link) }).await;
                }
                None => link.tell(Body::Have(wire::Have {
                    task_id: subscribe.task_id,
                    generation: subscribe.generation,
                    gone: true,
                    ..wire::Have::default()
                })),
            }
        }
        Body::Unsubscribe(unsubscribe) => {
            let key = key(&unsubscribe.task_id, &unsubscribe.generation)?;
            inner.mesh.unsubscribe(key, link);
            if let Some(shared) = inner.tasks.get(key) {
                let _ = shared.events.send(Event::Unsubscribed { peer: link.host }).await;
            }
        }
        Body::Have(have) => {
            let key = key(&have.task_id, &have.generation)?;
            if let Some(shared) = inner.tasks.get(key) {
                let _ = shared.events.send(Event::Have { peer: link.host, have }).await;
            }
        }
        Body::Cancel(cancel) => {
            for id in cancel.ids.into_iter().take(1024) {
                inner.uploads.cancel(inner, link.host, id);
            }
        }
        Body::AskMeta(ask) => {
            let task = TaskId::from_bytes(&ask.task_id).ok()?;
            link.tell(Body::Meta(super::orphan::answer(inner, task, &ask).await));
        }
        Body::Meta(meta) => {
            let task = TaskId::from_bytes(&meta.task_id).ok()?;
            // Without hashes it is an answer to all questions, with them to those for this page.
            let page = meta.hashes.as_ref().map(|hashes| hashes.first);
            let mut metas = inner.mesh.metas.lock();
            let waiting = metas.remove(&(link.host, task)).unwrap_or_default();
            let mut others = Vec::new();
            for (first, waiter) in waiting {
                if page.is_none_or(|page| page == first) {
                    let _ = waiter.send(meta.clone());
                } else {
                    others.push((first, waiter));
                }
            }
            if !others.is_empty() {
                metas.insert((link.host, task), others);
            }
        }
        Body::Goodbye(_) => return None,
        Body::Pong(_) => {}
        // Handshakes are the transport's, pieces and requests belong on data connections.
        Body::Hello(_) | Body::HelloAck(_) | Body::Request(_) | Body::Piece(_) => return None,
    }
    Some(())
}

fn key(task: &[u8], generation: &[u8]) -> Option<(TaskId, Generation)> {
    Some((TaskId::from_bytes(task).ok()?, Generation::from_bytes(generation).ok()?))
}

/// Asks a neighbour for a task's metadata and hashes from `first` on.
pub(crate) async fn ask_meta(
    inner: &Arc<Inner>,
    link: &Arc<Link>,
    task: TaskId,
    generation: &[u8],
    first: u32,
) -> Option<wire::Meta> {
    let (waiter, answer) = oneshot::channel();
    inner.mesh.metas.lock().entry((link.host, task)).or_default().push((first, waiter));
    link.tell(Body::AskMeta(wire::AskMeta {
        task_id: task.to_bytes().to_vec().into(),
        generation: generation.to_vec().into(),
        first,
    }));
    let answer = tokio::time::timeout(META_TIMEOUT, answer).await.ok().and_then(Result::ok);
    if answer.is_none() {
        let mut metas = inner.mesh.metas.lock();
        if let Some(waiting) = metas.get_mut(&(link.host, task)) {
            waiting.retain(|(_, waiter)| !waiter.is_closed());
            if waiting.is_empty() {
                metas.remove(&(link.host, task));
            }
        }
    }
    answer
}
