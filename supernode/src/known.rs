//! How many hosts there were before a restart: the only thing a supernode's scheduler keeps on disk.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::manager::Manager;

/// The file in the store's folder.
const FILE: &str = "known-hosts";
/// A restart that follows sooner than this after a change expects the number before the change.
const KEEP_EVERY: Duration = Duration::from_secs(2);

/// The number of hosts, on disk.
#[derive(Debug)]
pub(crate) struct KnownHosts {
    path: PathBuf,
    expected: u32,
}

impl KnownHosts {
    /// Reads the number; a supernode that never ran expects nobody.
    pub(crate) fn open(dir: &Path) -> Self {
        let path = dir.join(FILE);
        let expected = std::fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        Self { path, expected }
    }

    pub(crate) const fn expected(&self) -> u32 {
        self.expected
    }

    /// Keeps the number up to date until the token is cancelled.
    pub(crate) async fn keep(self, manager: Manager, cancel: CancellationToken) {
        let mut written = self.expected;
        // While hosts are still coming back, the number from before stays.
        let mut settled = false;
        loop {
            tokio::select! {
                () = tokio::time::sleep(KEEP_EVERY) => {}
                () = cancel.cancelled() => return,
            }
            let hosts = manager.host_count();
            settled |= hosts >= self.expected || manager.uptime() > Duration::from_secs(60);
            if settled && hosts != written {
                let temporary = self.path.with_extension("new");
                let result = tokio::fs::write(&temporary, hosts.to_string()).await;
                match result {
                    Ok(()) => match tokio::fs::rename(&temporary, &self.path).await {
                        Ok(()) => written = hosts,
                        Err(error) => debug!(%error, "the number of hosts could not be kept"),
                    },
                    Err(error) => debug!(%error, "the number of hosts could not be kept"),
                }
            }
        }
    }
}
