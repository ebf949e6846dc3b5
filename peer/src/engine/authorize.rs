//! Whose bytes: content fetched with credentials is served to a caller only after the origin said yes to that
//! caller's own.

use std::collections::HashMap;
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use proto::{TaskId, TaskSpec};
use tokio::time::Instant;

use super::error::TaskError;
use super::{Inner, origin};

/// Answers remembered at most.
const REMEMBERED_MAX: usize = 16 * 1024;

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
fn fingerprint(spec: &TaskSpec, headers: &HeaderMap) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("skimmer 2026 caller");
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    // The whole URL: a signature in its query is a credential too.
    part(spec.url.as_str().as_bytes());
    for (name, value) in headers {
        part(name.as_str().as_bytes());
        part(value.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

/// Asks the origin whether this caller may have the task, unless it said yes a moment ago.
pub(crate) async fn authorize(inner: &Inner, spec: &TaskSpec, headers: &HeaderMap) -> Result<(), TaskError> {
    let key = (spec.id(), fingerprint(spec, headers));
    if inner.authorizations.is_allowed(&key) {
        return Ok(());
    }
    origin::may_have(inner, spec, headers.clone()).await?;
    inner.authorizations.allow(key);
    Ok(())
}
