//! What happens without anybody asking: removal, forgetting of old uploads, the scrub, and a look at the database's health.
//!
//! Each task has its own rhythm, takes a bounded step at a time, and goes on after an error. Several processes may do all of it
//! at once: the database hands out what is to be done.

mod collector;
mod records;
mod removals;
pub(crate) mod scrub;
mod tie;
mod untagged;
mod uploads;

use std::sync::Arc;
use std::time::Duration;

use service::http::Readiness;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::app::App;

/// The part of the readiness that is the database.
pub(crate) const DATABASE: &str = "database";
/// How often the database is looked at, and the backlog counted.
const HEALTH_INTERVAL: Duration = Duration::from_secs(5);

/// Starts all tasks; they end with the shutdown.
pub(crate) fn start(app: &Arc<App>, tasks: &TaskTracker, shutdown: &CancellationToken, readiness: Readiness) {
    let until = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let shutdown = shutdown.clone();
        tasks.spawn(async move {
            tokio::select! {
                () = task => {}
                () = shutdown.cancelled() => {}
            }
        });
    };
    until(Box::pin(health(Arc::clone(app), readiness)));
    until(Box::pin(tie::run(Arc::clone(app))));
    until(Box::pin(records::run(Arc::clone(app))));
    until(Box::pin(collector::run(Arc::clone(app))));
    until(Box::pin(removals::run(Arc::clone(app))));
    until(Box::pin(uploads::run(Arc::clone(app))));
    until(Box::pin(scrub::run(Arc::clone(app))));
    until(Box::pin(untagged::run(Arc::clone(app))));
}

async fn health(app: Arc<App>, readiness: Readiness) {
    loop {
        match app.db.backlog(app.now_ms()).await {
            Ok(backlog) => {
                if app.tie.holds() {
                    readiness.have(DATABASE);
                } else {
                    readiness.lacks(DATABASE);
                }
                let set = |gauge: &prometheus_client::metrics::gauge::Gauge, count: u64| {
                    gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
                };
                set(&app.metrics.links_due, backlog.links_due);
                set(&app.metrics.links_leased, backlog.links_leased);
                set(&app.metrics.removals, backlog.removals);
                set(&app.metrics.removal_bytes, backlog.removal_bytes);
                match app.db.open_uploads(app.config.uploads.max_open_per_client).await {
                    Ok(open) => {
                        set(&app.metrics.uploads_open, open.count);
                        app.open.counted(open);
                    }
                    Err(error) => tracing::warn!(%error, "unfinished uploads cannot be counted"),
                }
            }
            Err(error) => {
                readiness.lacks(DATABASE);
                tracing::warn!(%error, "the database does not answer");
            }
        }
        tokio::time::sleep(HEALTH_INTERVAL).await;
    }
}
