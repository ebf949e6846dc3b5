//! A supernode's own peer: opens tasks at their origin and tells the supernode what it learns.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use http::HeaderMap;
use proto::{Generation, PieceHash, PieceLayout, Root, TaskSpec, wire};
use tokio::sync::mpsc;

use super::actor::{Authority, Event, Start};
use super::error::TaskError;
use super::task::Task;
use super::{Engine, Inner, origin};
use crate::store::{Content, NewTask};

/// News waiting for the supernode at most.
const NEWS_MAX: usize = 1024;

/// What a seed is to fetch.
#[derive(Clone)]
pub struct SeedRequest {
    /// The task.
    pub spec: TaskSpec,
    /// A waiting caller's headers for the origin.
    pub headers: HeaderMap,
    /// Hosts that hold pieces of it.
    pub holders: Vec<wire::HostInfo>,
    /// What a sibling supernode told of it.
    pub known: Option<Known>,
    /// Grows with every byte read from the origin.
    pub origin_bytes: Arc<AtomicU64>,
}

/// Metadata and hashes from a sibling supernode.
#[derive(Clone, Debug)]
pub struct Known {
    /// The metadata.
    pub meta: wire::TaskMeta,
    /// Hashes by piece, as far as they are known: pieces do not arrive in order.
    pub hashes: Vec<Option<PieceHash>>,
}

impl fmt::Debug for SeedRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Neither the headers nor the URL: either may hold credentials.
        f.debug_struct("SeedRequest").field("task", &self.spec.id()).finish_non_exhaustive()
    }
}

/// What a seed learns.
#[derive(Clone, Debug)]
pub enum News {
    /// The task's current content.
    Opened {
        /// Its metadata.
        meta: Box<wire::TaskMeta>,
    },
    /// Hashes of pieces that are here now.
    Hashes {
        /// The first of them.
        first: u32,
        /// One hash per piece.
        hashes: Vec<PieceHash>,
    },
    /// The length became known.
    Length {
        /// In bytes.
        length: u64,
    },
    /// Everything is here and right.
    Complete {
        /// In bytes.
        length: u64,
        /// Over all pieces.
        root: Root,
    },
    /// The origin could not be read (any further).
    Failed {
        /// Why.
        error: TaskError,
        /// These credentials were refused; another caller's may do.
        credentials_refused: bool,
        /// The seed keeps what it has and waits for other credentials; otherwise it has ended.
        waits: bool,
    },
    /// The content is not what its digest says; it was thrown away here.
    Corrupt {
        /// How it was noticed.
        error: TaskError,
    },
}

impl Engine {
    /// Opens a task as its cluster's seed. The answer comes as news.
    #[must_use]
    pub fn seed(&self, request: SeedRequest) -> mpsc::Receiver<News> {
        let (sender, news) = mpsc::channel(NEWS_MAX);
        let inner = Arc::clone(&self.inner);
        self.inner.tracker.spawn(async move {
            match open(&inner, request, sender.clone()).await {
                // The seed is held for as long as the supernode listens.
                Ok(task) => {
                    sender.closed().await;
                    drop(task);
                }
                Err(error) => {
                    let credentials_refused =
                        matches!(error.kind(), proto::Kind::Unauthorized | proto::Kind::Forbidden);
                    let _ = sender.send(News::Failed { error, credentials_refused, waits: false }).await;
                }
            }
        });
        news
    }

    /// Gives a seed that waits for credentials another caller's: its headers, and its URL, which may be signed.
    pub fn seed_credentials(&self, spec: &TaskSpec, headers: &HeaderMap) {
        self.inner.tasks.for_each_of(spec.id(), |shared| {
            let (events, cancel) = (shared.events.clone(), self.inner.cancel.clone());
            let credentials = Event::Credentials { spec: Box::new(spec.clone()), headers: headers.clone() };
            self.inner.tracker.spawn(async move {
                tokio::select! {
                    _ = events.send(credentials) => {}
                    () = cancel.cancelled() => {}
                }
            });
        });
    }

    /// Tells a seed of further hosts that hold pieces.
    pub fn seed_peers(&self, task: proto::TaskId, peers: &[wire::HostInfo]) {
        self.inner.tasks.for_each_of(task, |shared| {
            let _ = shared.events.try_send(Event::Peers { peers: peers.to_vec() });
        });
    }

    /// Hashes a content again: a host says that it was served a bad piece of it.
    pub fn verify(&self, task: proto::TaskId, generation: Generation) {
        self.inner.verify(task, generation);
    }

    /// Throws a generation away: it proved wrong.
    pub fn discard(&self, task: proto::TaskId, generation: Generation, reason: &str) {
        self.inner.discard(task, generation, reason);
    }
}

async fn open(inner: &Arc<Inner>, request: SeedRequest, news: mpsc::Sender<News>) -> Result<Task, TaskError> {
    let task = request.spec.id();
    let held = inner.stored(task, None).await?;
    let addressed = request.spec.content_addressed;
    // What is named by its digest needs nobody's confirmation.
    let held_for_good = held.clone().filter(|_| addressed);
    let headers = request.headers;
    let mut guarded = false;
    let (content, hashes, body) = match (held_for_good, &request.known) {
        // Hashes that a sibling told let the rest come from the hosts that have it.
        (Some(content), known) => {
            let fits = known.as_ref().filter(|known| known.meta.piece_len == content.layout().piece_len());
            (content, fits.map(|known| known.hashes.clone()).unwrap_or_default(), None)
        }
        (None, Some(known)) if addressed || inner.confirms(&request.spec, headers.clone(), known).await => {
            let content = inner.create_from_meta(&request.spec, &known.meta).await?;
            (content, known.hashes.clone(), None)
        }
        _ => {
            let resolved = origin::resolve(inner, &request.spec, headers.clone(), held.as_deref()).await?;
            guarded = resolved.guarded;
            let content = inner
                .create(NewTask {
                    task,
                    generation: resolved.generation,
                    layout: resolved.layout,
                    digest: request.spec.digest.clone(),
                    guarded: resolved.guarded,
                    headers: resolved.headers,
                    spec: without_secrets(&request.spec),
                    confirmed: true,
                })
                .await?;
            (content, Vec::new(), resolved.body)
        }
    };
    let mut meta = meta_of(&content, &request.spec);
    // What was public when it was stored may have been confirmed with credentials now.
    meta.guarded |= guarded || request.known.as_ref().is_some_and(|known| known.meta.guarded);
    let _ = news.send(News::Opened { meta: Box::new(meta) }).await;
    send_stored(&content, &news).await;
    let start = Start {
        spec: request.spec.clone(),
        authority: Authority::Own { news: Some(news.clone()), origin_bytes: request.origin_bytes },
        body,
        headers: headers.clone(),
        peers: request.holders,
        orphan: false,
        seed_only: false,
    };
    let shared = inner.start(content, start, &hashes).await?;
    if let (true, Some(root)) = (matches!(shared.ended(), Some(Ok(()))), shared.root()) {
        let length = shared.layout().length().unwrap_or_default();
        let _ = news.send(News::Complete { length, root }).await;
    }
    Ok(Task::new(shared, None))
}

/// Hashes of the pieces that are in the store already.
async fn send_stored(content: &Content, news: &mpsc::Sender<News>) {
    let mut first = 0;
    let count = content.layout().count().unwrap_or_else(|| content.have().iter().last().map_or(0, |p| p.0 + 1));
    while first < count {
        let page = content.hashes(first, proto::frame::HASHES_PER_MESSAGE_MAX);
        if page.is_empty() {
            return;
        }
        let len = u32::try_from(page.len()).expect("a page is short");
        let mut at = first;
        for run in page.split(Option::is_none) {
            if !run.is_empty() {
                let hashes = run.iter().map(|hash| hash.expect("split at the absent ones")).collect();
                let _ = news.send(News::Hashes { first: at, hashes }).await;
            }
            at += u32::try_from(run.len()).expect("a page is short") + 1;
        }
        first += len;
    }
}

/// The metadata of a content.
pub(crate) fn meta_of(content: &Content, spec: &TaskSpec) -> wire::TaskMeta {
    wire::TaskMeta {
        task_id: content.task().to_bytes().to_vec().into(),
        generation: content.generation().to_bytes().to_vec().into(),
        length: content.layout().length(),
        piece_len: content.layout().piece_len(),
        digest: content.digest().map(ToString::to_string).unwrap_or_default(),
        root: content.root().map(|root| root.0.to_vec()).unwrap_or_default().into(),
        guarded: content.guarded(),
        headers: content
            .headers()
            .iter()
            .map(|(name, value)| wire::Header { name: name.clone(), value: value.clone().into() })
            .collect(),
        spec: Some((&without_secrets(spec)).into()),
    }
}

/// A spec as it may be stored and told: without credentials in its URL, and so without its query, any part of which
/// may be one. The task's id is not computed from it again.
pub(crate) fn without_secrets(spec: &TaskSpec) -> TaskSpec {
    let mut url = proto::content_url(&spec.url, &spec.filtered_query_params);
    url.set_query(None);
    TaskSpec { url, ..spec.clone() }
}

/// The layout and generation that metadata from the wire speak of, checked.
pub(crate) fn checked_meta(meta: &wire::TaskMeta) -> Result<(Generation, PieceLayout), TaskError> {
    let invalid = |_| TaskError::new(proto::Kind::Invalid, "metadata of a task makes no sense");
    let (_, generation) = meta.key().map_err(invalid)?;
    Ok((generation, meta.layout().map_err(invalid)?))
}
