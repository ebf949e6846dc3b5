//! Whose bytes: content fetched with credentials is served to a caller only after the origin said yes to that
//! caller's own.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use proto::{ByteRange, Generation, Kind, TaskId, TaskSpec};
use tokio::time::Instant;
use tracing::warn;
use url::Url;

use super::error::TaskError;
use super::shared::Shared;
use super::task::Task;
use super::{Inner, origin};

/// Answers remembered at most.
const REMEMBERED_MAX: usize = 16 * 1024;

/// Bytes that an origin has to show: no more than a packet, and nobody guesses them.
const PROOF_BYTES: u64 = 1024;

/// Yes-answers of origins, for a short time.
#[derive(Debug)]
pub(crate) struct Authorizations {
    ttl: Duration,
    allowed: Mutex<HashMap<(TaskId, [u8; 32]), Instant>>,
}

impl Authorizations {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self { ttl, allowed: Mutex::default() }
    }

    fn is_allowed(&self, key: &(TaskId, [u8; 32])) -> bool {
        self.allowed.lock().get(key).is_some_and(|at| at.elapsed() < self.ttl)
    }

    fn allow(&self, key: (TaskId, [u8; 32])) {
        let mut allowed = self.allowed.lock();
        if allowed.len() >= REMEMBERED_MAX {
            let ttl = self.ttl;
            allowed.retain(|_, at| at.elapsed() < ttl);
        }
        if allowed.len() < REMEMBERED_MAX {
            allowed.insert(key, Instant::now());
        }
    }
}

/// A hash of everything in a request that could prove who asks. The headers themselves are not kept.
fn fingerprint(question: &str, spec: &TaskSpec, headers: &HeaderMap) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("skimmer 2026 caller");
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(question.as_bytes());
    // The whole URL: a signature in its query is a credential too.
    part(spec.url.as_str().as_bytes());
    for (name, value) in headers {
        part(name.as_str().as_bytes());
        part(value.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// Asks the origin whether this caller may have the task, unless it said yes a moment ago. False when the caller may have
/// what the URL names, but that is another content for this caller: what `/export` or `/me` gives depends on who asks.
pub(crate) async fn authorize(
    inner: &Inner,
    spec: &TaskSpec,
    headers: &HeaderMap,
    generation: Generation,
) -> Result<bool, TaskError> {
    let question = format!("may have {generation}");
    let key = (spec.id(), fingerprint(&question, spec, headers));
    if inner.authorizations.is_allowed(&key) {
        return Ok(true);
    }
    let told = origin::may_have(inner, spec, headers.clone()).await?;
    if !spec.content_addressed && told != Some(generation) {
        return Ok(false);
    }
    inner.authorizations.allow(key);
    Ok(true)
}

/// Before a blob that was fetched from one origin with credentials is given to a caller who names another origin, that
/// one has to show that it has the blob: whoever knows a digest could otherwise name an origin of his own, which says
/// yes to everybody. It is asked for some bytes that it cannot foresee.
pub(crate) async fn prove(
    inner: &Arc<Inner>,
    spec: &TaskSpec,
    headers: &HeaderMap,
    shared: &Arc<Shared>,
) -> Result<(), TaskError> {
    if is_same_origin(&spec.url, &shared.content.spec().url) {
        return Ok(());
    }
    let key = (spec.id(), fingerprint("has", spec, headers));
    if inner.authorizations.is_allowed(&key) {
        return Ok(());
    }
    let deadline = inner.config.open_timeout;
    let shows = tokio::time::timeout(deadline, shows_possession(inner, spec, headers, shared)).await;
    let late = || TaskError::new(Kind::Unavailable, format!("the origin did not show the content within {deadline:?}"));
    if !shows.map_err(|_| late())?? {
        warn!(task = ?shared.task, host = spec.url.host_str(), "an origin claims a content that it does not have");
        return Err(TaskError::new(Kind::Forbidden, "this origin does not have the content that others gave"));
    }
    inner.authorizations.allow(key);
    Ok(())
}

fn is_same_origin(one: &Url, other: &Url) -> bool {
    one.host_str() == other.host_str() && one.port_or_known_default() == other.port_or_known_default()
}

async fn shows_possession(
    inner: &Arc<Inner>,
    spec: &TaskSpec,
    headers: &HeaderMap,
    shared: &Arc<Shared>,
) -> Result<bool, TaskError> {
    // While it is held, what is to be compared is fetched.
    let task = Task::new(Arc::clone(shared), None);
    let length = loop {
        if let Some(length) = task.length() {
            break length;
        }
        task.changed().await;
        if let Some(Err(error)) = shared.ended() {
            return Err(error);
        }
    };
    let len = PROOF_BYTES.min(length);
    let start = rand::random_range(0..=length - len);
    let Some(range) = ByteRange::new(start, start + len) else { return Ok(true) };
    let mut here = Vec::new();
    let mut reader = task.reader(Some(range));
    while let Some(bytes) = reader.next().await {
        here.extend_from_slice(&bytes?);
    }
    Ok(here == origin::excerpt(inner, spec, headers.clone(), range).await?)
}
