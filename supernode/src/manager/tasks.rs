//! What a supernode keeps of a task.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderMap;
use peer::engine::{Known, TaskError};
use peer::source::redact_url;
use proto::{Generation, HostId, PieceHash, PieceLayout, Root, TaskId, TaskSpec, api, wire};
use tokio::sync::broadcast;

/// Where news for the cluster's other supernodes go; each of them has a receiver.
pub type Sibling = broadcast::Sender<wire::TaskNews>;

/// A task: its metadata as our seed vouches for it, and who waits for it with which credentials.
#[derive(Debug)]
pub(super) struct TaskEntry {
    pub(super) spec: TaskSpec,
    pub(super) meta: Option<wire::TaskMeta>,
    hashes: Vec<Option<PieceHash>>,
    pub(super) root: Option<Root>,
    /// Each open host and the piece from which on it lacks hashes; `finished` once it has been told length and root.
    pub(super) opened: HashMap<HostId, Told>,
    /// The callers' own headers and URLs. Never logged, never stored.
    callers: HashMap<HostId, Caller>,
    pub(super) failure: Option<TaskError>,
    /// What a sibling told, until our own seed knows better.
    pub(super) known: Option<Known>,
    pub(super) seeding: bool,
    /// Counts the seeds that were started, to tell the last one from those before.
    pub(super) seeds: u64,
    /// Whose credentials the seed uses.
    pub(super) lender: Option<HostId>,
    /// The seed has begun, and waits for credentials that the origin accepts.
    pub(super) waits: bool,
    /// When a sibling told of it last.
    pub(super) told_at: tokio::time::Instant,
    /// Bytes that our seed has read from the origin.
    pub(super) origin_bytes: Arc<AtomicU64>,
    pub(super) state: &'static str,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    pub(super) pieces: u32,
    pub(super) length: bool,
    pub(super) root: bool,
}

struct Caller {
    spec: TaskSpec,
    headers: HeaderMap,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").finish_non_exhaustive()
    }
}

impl TaskEntry {
    pub(super) fn new(spec: TaskSpec) -> Self {
        Self {
            spec,
            meta: None,
            hashes: Vec::new(),
            root: None,
            opened: HashMap::new(),
            callers: HashMap::new(),
            failure: None,
            known: None,
            seeding: false,
            seeds: 0,
            lender: None,
            waits: false,
            told_at: tokio::time::Instant::now(),
            origin_bytes: Arc::default(),
            state: "pending",
        }
    }

    /// A host waits for the task; its own way to the origin is remembered while it does.
    pub(super) fn asked(&mut self, host: HostId, spec: TaskSpec, headers: HeaderMap) {
        self.callers.insert(host, Caller { spec, headers });
    }

    pub(super) fn closed(&mut self, host: HostId) {
        self.opened.remove(&host);
        self.callers.remove(&host);
    }

    /// The URL and headers by which this host may read the origin, while it waits for the task.
    pub(super) fn caller(&self, host: HostId) -> Option<(TaskSpec, HeaderMap)> {
        self.callers.get(&host).map(|caller| (caller.spec.clone(), caller.headers.clone()))
    }

    pub(super) fn generation(&self) -> Option<Generation> {
        self.meta.as_ref().and_then(|meta| meta.key().ok()).map(|(_, generation)| generation)
    }

    /// Takes metadata; another generation's hashes are forgotten.
    pub(super) fn opened_as(&mut self, meta: wire::TaskMeta) {
        if self.meta.as_ref().is_none_or(|old| old.generation != meta.generation) {
            self.hashes.clear();
            self.root = None;
            self.opened.clear();
        }
        self.failure = None;
        self.state = "running";
        self.meta = Some(meta);
    }

    /// Takes the length. A piece that turns out to be alone is hashed in another way: what was told of it does not hold
    /// any more, and the right hash is about to come.
    pub(super) fn length_known(&mut self, length: u64) {
        let Some(meta) = &mut self.meta else { return };
        meta.length = Some(length);
        if meta.layout().ok().and_then(PieceLayout::count) == Some(1) {
            self.hashes.clear();
            self.opened.values_mut().for_each(|told| told.pieces = 0);
        }
    }

    /// Takes hashes. Where one replaces another (a lone piece is hashed anew when its length becomes known), hosts are
    /// told from there on again.
    pub(super) fn add_hashes(&mut self, first: u32, hashes: &[PieceHash]) {
        let end = first as usize + hashes.len();
        if self.hashes.len() < end {
            self.hashes.resize(end, None);
        }
        for ((at, slot), hash) in (first..).zip(&mut self.hashes[first as usize..]).zip(hashes) {
            if slot.replace(*hash).is_some_and(|old| old != *hash) {
                for told in self.opened.values_mut() {
                    told.pieces = told.pieces.min(at);
                }
            }
        }
    }

    /// Hashes from a piece on, up to the first that is not known.
    pub(super) fn hashes_from(&self, first: u32, max: usize) -> Vec<PieceHash> {
        self.hashes.iter().skip(first as usize).take(max).map_while(|hash| *hash).collect()
    }

    /// Nobody here ever asked for it: it is only known from a sibling.
    pub(super) fn is_only_told(&self) -> bool {
        self.meta.is_none() && self.callers.is_empty() && self.opened.is_empty() && !self.seeding
    }

    /// Forgets the content, not who waits.
    pub(super) fn forget(&mut self) {
        self.meta = None;
        self.hashes.clear();
        self.root = None;
        self.known = None;
    }

    pub(super) fn known_hashes(&self) -> u32 {
        u32::try_from(self.hashes.iter().flatten().count()).unwrap_or(u32::MAX)
    }

    pub(super) fn view(&self, id: TaskId) -> api::TaskView {
        api::TaskView {
            task_id: id,
            generation: self.generation(),
            url: shown(&self.spec),
            length: self.meta.as_ref().and_then(|meta| meta.length),
            piece_len: self.meta.as_ref().map_or(0, |meta| meta.piece_len),
            pieces_seeded: self.known_hashes(),
            state: self.state.to_owned(),
            origin_bytes: self.origin_bytes.load(Ordering::Relaxed),
            peers: u32::try_from(self.opened.len()).unwrap_or(u32::MAX),
        }
    }
}

/// The URL as anybody may see it: any part of its query may be a credential.
fn shown(spec: &TaskSpec) -> String {
    let mut url = proto::content_url(&spec.url, &spec.filtered_query_params);
    url.set_query(None);
    redact_url(&url)
}
