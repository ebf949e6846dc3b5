//! Removes from the store what the database says nothing needs.

use std::sync::Arc;
use std::time::Duration;

use blobs::StoreEntry;
use db::{DbError, Removal, RemovalId};

use crate::app::App;

/// Entries taken at a time.
const BATCH: u32 = 256;
/// Nobody else takes them for this long; then this process is taken for dead.
const CLAIM: Duration = Duration::from_secs(60);
/// How often is looked without being called: for what other processes, or dead ones, left.
const INTERVAL: Duration = Duration::from_secs(10);

pub(super) async fn run(app: Arc<App>) {
    loop {
        tokio::select! {
            () = app.wait_for_removals() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
        if app.gc().enabled {
            replaced(&app).await;
        }
        while app.gc().enabled {
            match round(&app).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "removals cannot be read");
                    break;
                }
            }
        }
    }
}

/// Removes records that higher ones have replaced. What fails is found by the scrub.
async fn replaced(app: &App) {
    for (entry, result) in app.store.remove(&app.unsettled.take_replaced()).await {
        if let Err(error) = result {
            tracing::warn!(%entry, %error, "a record that was replaced cannot be removed");
        }
    }
}

/// Removes up to [`BATCH`] entries; how many are gone.
pub(crate) async fn round(app: &App) -> Result<usize, DbError> {
    let now = app.now_ms();
    let claim = i64::try_from(CLAIM.as_millis()).unwrap_or(i64::MAX);
    let taken = app.db.removals(now, now + claim, BATCH).await?;
    let mut gone: Vec<RemovalId> = Vec::with_capacity(taken.len());
    let mut entries: Vec<StoreEntry> = Vec::with_capacity(taken.len());
    let mut ids: Vec<RemovalId> = Vec::with_capacity(taken.len());
    for Removal { id, entry, .. } in taken {
        match entry.parse() {
            Ok(parsed) => {
                entries.push(parsed);
                ids.push(id);
            }
            Err(error) => {
                // Kept, it would come again for ever.
                tracing::error!(entry, %error, "a removal cannot be read, dropping it");
                gone.push(id);
            }
        }
    }
    for (id, (entry, result)) in ids.into_iter().zip(app.store.remove(&entries).await) {
        match result {
            Ok(bytes) => {
                app.metrics.freed(bytes);
                gone.push(id);
            }
            Err(error) => {
                app.metrics.removal_failed();
                tracing::warn!(%entry, %error, "an entry of the store cannot be removed, trying again later");
            }
        }
    }
    if !gone.is_empty() {
        app.db.removed(&gone).await?;
    }
    Ok(gone.len())
}
