//! Telling the cluster's other supernodes what this one learns, so that either can take over.

use std::collections::HashMap;
use std::time::Duration;

use peer::rpc::cluster_client::ClusterClient;
use proto::api::SupernodeEntry;
use proto::wire;
use tokio::sync::{broadcast, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tracing::{debug, info};

use crate::manager::Manager;

/// News kept for a sibling that is slow; what it misses it would have to fetch again after a takeover.
pub const NEWS_MAX: usize = 16 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_EVERY: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Keeps a stream of news to every sibling until the token is cancelled.
pub async fn run(
    own: SupernodeEntry,
    manager: Manager,
    mut siblings: watch::Receiver<Vec<SupernodeEntry>>,
    news: broadcast::Sender<wire::TaskNews>,
    cancel: CancellationToken,
) {
    let mut running: HashMap<String, CancellationToken> = HashMap::new();
    loop {
        let entries = siblings.borrow_and_update().clone();
        running.retain(|endpoint, stop| {
            let keep = entries.iter().any(|entry| entry.endpoint == *endpoint);
            if !keep {
                stop.cancel();
            }
            keep
        });
        for entry in entries.into_iter().filter(|entry| entry.id != own.id && entry.endpoint != own.endpoint) {
            running.entry(entry.endpoint.clone()).or_insert_with(|| {
                let stop = cancel.child_token();
                tokio::spawn(keep_telling(entry.endpoint, manager.clone(), news.clone(), stop.clone()));
                stop
            });
        }
        tokio::select! {
            changed = siblings.changed() => if changed.is_err() { return cancel.cancelled().await },
            () = cancel.cancelled() => return,
        }
    }
}

async fn keep_telling(
    endpoint: String,
    manager: Manager,
    news: broadcast::Sender<wire::TaskNews>,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            result = tell(&endpoint, &manager, &news) => match result {
                Ok(()) => debug!(sibling = endpoint, "the sibling ended the stream of news"),
                Err(error) => debug!(sibling = endpoint, %error, "the sibling cannot be told news"),
            },
            () = stop.cancelled() => return,
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY_EVERY) => {}
            () = stop.cancelled() => return,
        }
    }
}

async fn tell(
    endpoint: &str,
    manager: &Manager,
    news: &broadcast::Sender<wire::TaskNews>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let channel = Endpoint::from_shared(endpoint.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect()
        .await?;
    info!(sibling = endpoint, "telling news to a sibling supernode");
    // First everything known so far, then what comes. Subscribed before the first part is made, so that nothing falls
    // between the two; told twice does no harm.
    let live = BroadcastStream::new(news.subscribe());
    let known = tokio_stream::iter(manager.known_tasks());
    // A sibling too slow for the news begins anew, with everything.
    let stream = known.chain(live.take_while(Result::is_ok).filter_map(Result::ok));
    ClusterClient::new(channel).replicate(stream).await?;
    Ok(())
}
