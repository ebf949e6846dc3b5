//! The collector: looks at links whose lease is over, a few at a time.

use std::sync::Arc;
use std::time::Duration;

use crate::app::App;
use crate::records;

/// Links in one transaction at most: it holds locks that pushes may want.
const BATCH_MAX: u32 = 100;
/// Transactions in a second at most; the rate decides how many links each has.
const BATCHES_PER_S: u32 = 20;
/// After the database failed.
const PAUSE: Duration = Duration::from_secs(5);

pub(super) async fn run(app: Arc<App>) {
    loop {
        let gc = app.gc();
        if !gc.enabled {
            tokio::time::sleep(gc.interval.min(Duration::from_secs(1))).await;
            continue;
        }
        let batch = (gc.rate / BATCHES_PER_S).clamp(1, BATCH_MAX);
        match app.db.collect(app.now_ms(), batch, false, &records::blob_entry).await {
            Ok(collected) if collected.looked_at == 0 => tokio::time::sleep(gc.interval).await,
            Ok(collected) => {
                app.metrics.collected(collected.looked_at, collected.blobs);
                if collected.blobs > 0 {
                    app.removals_wanted();
                }
                // The pause that keeps the rate.
                let looked_at = u32::try_from(collected.looked_at).unwrap_or(u32::MAX);
                tokio::time::sleep(Duration::from_secs(1) * looked_at / gc.rate).await;
            }
            Err(error) => {
                tracing::warn!(%error, "the collector could not do a step");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
