//! A supernode's lease at the config-services.

use std::collections::BTreeMap;
use std::time::Duration;

use proto::api::SupernodeEntry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::client::Client;
use super::jittered;

/// A supernode that registers, keeps its lease, and knows its siblings.
#[derive(Debug)]
pub struct Registration {
    client: Option<Client>,
    cluster: String,
    entry: SupernodeEntry,
    fixed: Vec<SupernodeEntry>,
    siblings: watch::Sender<Vec<SupernodeEntry>>,
}

/// Renewals within one lease: two may be lost.
const RENEWALS_PER_LEASE: u32 = 3;
/// While no config-service accepts us, the waits double from the first to the last.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(10);

impl Registration {
    pub(super) fn new(
        client: Option<Client>,
        cluster: String,
        entry: SupernodeEntry,
        fixed: &[SupernodeEntry],
    ) -> Self {
        let fixed = fixed.to_vec();
        let (siblings, _) = watch::channel(merge(std::slice::from_ref(&entry), fixed.iter()));
        Self { client, cluster, entry, fixed, siblings }
    }

    /// Follows the supernodes of the cluster, by id, this one among them.
    #[must_use]
    pub fn siblings(&self) -> watch::Receiver<Vec<SupernodeEntry>> {
        self.siblings.subscribe()
    }

    /// Registers, renews the lease, registers anew when it was lost, until `shutdown` is cancelled; then leaves.
    pub async fn run(self, shutdown: CancellationToken) {
        let Some(client) = &self.client else { return shutdown.cancelled().await };
        let mut retry = RETRY_MIN;
        let mut registered = false;
        loop {
            let round = tokio::select! {
                round = client.register(&self.cluster, &self.entry) => round,
                () = shutdown.cancelled() => break,
            };
            let mut lease = None;
            let mut all = Vec::new();
            let mut failed = 0;
            for answer in round {
                match answer {
                    Ok(answer) => {
                        lease = lease.into_iter().chain([answer.ttl_s]).min();
                        all.extend(answer.siblings);
                    }
                    Err(error) => {
                        failed += 1;
                        warn!(error = &error as &dyn std::error::Error, cluster = self.cluster, "cannot register");
                    }
                }
            }
            // Without any answer the siblings last heard of are still the best guess.
            if lease.is_some() {
                self.hear(&all);
                if !registered {
                    info!(cluster = self.cluster, id = self.entry.id, siblings = all.len(), "registered");
                }
            }
            registered = lease.is_some();
            let renew = lease.map(|ttl_s| Duration::from_secs(ttl_s.max(1)) / RENEWALS_PER_LEASE);
            let wait = if failed > 0 {
                let wait = renew.map_or(retry, |renew| renew.min(retry));
                retry = (retry * 2).min(RETRY_MAX);
                wait
            } else {
                retry = RETRY_MIN;
                renew.unwrap_or(RETRY_MAX)
            };
            tokio::select! {
                () = tokio::time::sleep(jittered(wait)) => {}
                () = shutdown.cancelled() => break,
            }
        }
        for left in client.leave(&self.cluster, &self.entry.id).await {
            match left {
                Ok(()) => debug!(cluster = self.cluster, "left the cluster"),
                // The lease ends by itself.
                Err(error) => warn!(error = &error as &dyn std::error::Error, "could not leave the cluster"),
            }
        }
    }

    fn hear(&self, heard: &[SupernodeEntry]) {
        let fresh = merge(std::slice::from_ref(&self.entry), self.fixed.iter().chain(heard));
        self.siblings.send_if_modified(|known| {
            let changed = *known != fresh;
            if changed {
                *known = fresh;
            }
            changed
        });
    }
}

/// All of them once, by id; what is said first of an id holds.
fn merge<'e>(first: &'e [SupernodeEntry], then: impl Iterator<Item = &'e SupernodeEntry>) -> Vec<SupernodeEntry> {
    let mut by_id = BTreeMap::new();
    for entry in first.iter().chain(then) {
        by_id.entry(&entry.id).or_insert(entry);
    }
    by_id.into_values().cloned().collect()
}
