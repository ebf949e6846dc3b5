//! Telling the cluster's other supernodes what this one learns, so that either can take over.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use peer::rpc::cluster_client::ClusterClient;
use proto::api::SupernodeEntry;
use proto::wire;
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::BroadcastStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Endpoint;
use tracing::{debug, info};

use crate::manager::Manager;

/// News kept for a sibling that is slow; one that misses some is told everything anew.
pub const NEWS_MAX: usize = 16 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RETRY_EVERY: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Keeps a stream of news to every sibling until the token is cancelled.
pub async fn run(
    own: SupernodeEntry,
    mut siblings: watch::Receiver<Vec<SupernodeEntry>>,
    news: broadcast::Sender<wire::TaskNews>,
    manager: Manager,
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
                tokio::spawn(keep_telling(entry.endpoint, news.clone(), manager.clone(), stop.clone()));
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
    news: broadcast::Sender<wire::TaskNews>,
    manager: Manager,
    stop: CancellationToken,
) {
    loop {
        tokio::select! {
            result = tell(&endpoint, &news, &manager) => match result {
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
    news: &broadcast::Sender<wire::TaskNews>,
    manager: &Manager,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let channel = Endpoint::from_shared(endpoint.to_owned())?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_while_idle(true)
        .connect()
        .await?;
    info!(sibling = endpoint, "telling news to a sibling supernode");
    // What is known comes first, one task at a time, and what is learned meanwhile behind it. A sibling that was too
    // slow for the news is told everything anew: the stream ends, and is begun again.
    let later = BroadcastStream::new(news.subscribe())
        .take_while(|news| std::future::ready(news.is_ok()))
        .filter_map(|news| std::future::ready(news.ok()));
    let teller = manager.clone();
    let known = futures_util::stream::iter(manager.vouched_for())
        .flat_map(move |task| futures_util::stream::iter(teller.told_of(task)));
    let stream = known.chain(later);
    ClusterClient::new(channel).replicate(stream).await?;
    Ok(())
}
