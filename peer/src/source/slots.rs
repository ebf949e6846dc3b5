//! How many requests are under way at once, in all and to one origin.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connect::Destination;
use super::{SourceError, Waiting};

/// Name and port.
type HostKey = (Box<str>, u16);

/// The limits, and who is counted.
pub(super) struct Slots {
    all: Arc<Semaphore>,
    per_host_max: usize,
    timeout: Duration,
    hosts: Mutex<HashMap<HostKey, Arc<Semaphore>>>,
}

/// The right to one request, until it is dropped.
pub(super) struct Slot {
    _host: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// When more origins than this are remembered, those with nothing under way are forgotten.
const HOSTS_KEPT: usize = 256;

// === impl Slots ===

impl Slots {
    pub(super) fn new(all_max: usize, per_host_max: usize, timeout: Duration) -> Self {
        Self { all: Arc::new(Semaphore::new(all_max)), per_host_max, timeout, hosts: Mutex::default() }
    }

    /// Waits for a slot; the origin's own first, so that a crowd before a slow origin does not fill up the common ones.
    pub(super) async fn take(&self, to: &Destination) -> Result<Slot, SourceError> {
        let host = self.of_host(to);
        let both = async { (host.acquire_owned().await, self.all.clone().acquire_owned().await) };
        match tokio::time::timeout(self.timeout, both).await {
            Ok((Ok(host), Ok(all))) => Ok(Slot { _host: host, _all: all }),
            // Nobody closes the semaphores, so that anything else means it took too long.
            _ => Err(SourceError::Timeout { host: to.host.clone(), waiting: Waiting::Slot, after: self.timeout }),
        }
    }

    fn of_host(&self, to: &Destination) -> Arc<Semaphore> {
        let mut hosts = self.hosts.lock();
        if hosts.len() > HOSTS_KEPT {
            hosts.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
        }
        hosts.entry((to.host.clone(), to.port)).or_insert_with(|| Arc::new(Semaphore::new(self.per_host_max))).clone()
    }
}
