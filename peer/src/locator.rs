//! Which supernodes are nearest: asks config-service, remembers the answer, and ranks supernodes for a task.
//!
//! A [`Locator`] asks the config-services in order, takes the first answer, and keeps it on disk, so that a host starts
//! without any config-service as it last ran. Supernodes named in the configuration make all of that unnecessary.
//! [`Registration`] is the other side: a supernode that keeps its lease alive.
//!
//! **What a crash may lose:** an answer that was not yet on disk; it is asked for again.

mod cache;
mod client;
mod rank;
mod registration;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proto::Kind;
use proto::api::{NearestAnswer, NearestRequest, SupernodeEntry};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use url::Url;

pub use client::AskError;
pub use rank::rank;
pub use registration::Registration;

use cache::Cache;
use client::Client;

/// How to find supernodes.
#[derive(Clone, Debug)]
pub struct LocatorConfig {
    /// Config-services, `http://host:port` or `https://…`; asked in this order.
    pub endpoints: Vec<Url>,
    /// Where the last answer is kept; `None` keeps it in memory only.
    pub cache_file: Option<PathBuf>,
    /// When not empty, these are the answer and no config-service is asked.
    pub supernodes: Vec<SupernodeEntry>,
    /// An answer is asked for again after this time, or after the time to live it came with if that is shorter.
    pub refresh: Duration,
    /// For one question to one config-service, connecting included.
    pub timeout: Duration,
    /// PEM file with certificate authorities to trust beside the system's, for `https`.
    pub ca_file: Option<PathBuf>,
    /// Where this host is.
    pub host: NearestRequest,
}

impl Default for LocatorConfig {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            cache_file: None,
            supernodes: Vec::new(),
            refresh: Duration::from_secs(60),
            timeout: Duration::from_secs(3),
            ca_file: None,
            host: NearestRequest::default(),
        }
    }
}

/// No supernode can be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LocatorError {
    /// An endpoint is no `http` or `https` URL.
    #[error("{endpoint} is no address of a config-service, expected for example http://10.0.0.1:65010")]
    Endpoint {
        /// As configured.
        endpoint: Url,
    },
    /// Certificate authorities cannot be read, or TLS cannot be set up.
    #[error("cannot set up tls for config-service")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Neither supernodes nor config-services are configured.
    #[error("neither supernodes nor config-services are configured")]
    NotConfigured,
    /// No config-service answered, now or ever before.
    #[error("no config-service gives an answer, and none is remembered")]
    NoAnswer(#[source] Arc<AskError>),
}

impl LocatorError {
    /// What sort of failure.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Endpoint { .. } | Self::NotConfigured | Self::Tls(_) => Kind::Invalid,
            Self::NoAnswer(error) => error.kind(),
        }
    }
}

/// Finds supernodes. A cheap handle; all clones share one answer.
#[derive(Clone, Debug)]
pub struct Locator {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: LocatorConfig,
    client: Option<Client>,
    cache: Option<Cache>,
    answer: watch::Sender<Option<NearestAnswer>>,
    /// One question at a time.
    asking: tokio::sync::Mutex<Asking>,
}

#[derive(Debug, Default)]
struct Asking {
    /// When the last answer, or the last failure, is to be followed by another question.
    next: Option<Instant>,
    /// The last failure, and when it was known.
    failed: Option<(Instant, Arc<AskError>)>,
}

/// After a failure, config-services are left alone for about this time while an old answer will do.
const RETRY: Duration = Duration::from_secs(5);
/// However short the time to live of an answer, it holds for this time.
const REFRESH_MIN: Duration = Duration::from_secs(1);
/// Hosts started together must not ask together: waits are stretched or shortened by up to this share.
const JITTER: f64 = 0.2;
/// What `matched_by` and `cluster` say of configured supernodes.
const STATIC: &str = "static";

impl Locator {
    /// Reads what was remembered; asks nobody yet.
    ///
    /// # Errors
    /// When the configuration cannot work: no endpoints and no supernodes, endpoints that are no HTTP, certificates that
    /// cannot be read.
    pub fn new(config: LocatorConfig) -> Result<Self, LocatorError> {
        let fixed = !config.supernodes.is_empty();
        if !fixed && config.endpoints.is_empty() {
            return Err(LocatorError::NotConfigured);
        }
        // A supernode with fixed siblings still registers where it is told to.
        let client = if config.endpoints.is_empty() { None } else { Some(Client::new(&config)?) };
        let cache = if fixed { None } else { config.cache_file.clone().map(Cache::new) };
        let known = if fixed {
            let (cluster, matched_by) = (STATIC.to_owned(), STATIC.to_owned());
            Some(NearestAnswer { cluster, matched_by, supernodes: config.supernodes.clone(), ttl_s: u64::MAX })
        } else {
            cache.as_ref().and_then(Cache::load)
        };
        let (answer, _) = watch::channel(known);
        Ok(Self { inner: Arc::new(Inner { config, client, cache, answer, asking: tokio::sync::Mutex::default() }) })
    }

    /// The nearest supernodes: the last answer while it is fresh, else what config-service says now, else the last answer.
    ///
    /// # Errors
    /// When no config-service answers and there is no last answer.
    pub async fn nearest(&self) -> Result<NearestAnswer, LocatorError> {
        let inner = &*self.inner;
        let Some(client) = inner.client.as_ref().filter(|_| inner.config.supernodes.is_empty()) else {
            return self.current().ok_or(LocatorError::NotConfigured);
        };
        let called = Instant::now();
        let mut asking = inner.asking.lock().await;
        let known = self.current();
        if let (Some(known), Some(at)) = (&known, asking.next)
            && Instant::now() < at
        {
            return Ok(known.clone());
        }
        // A question that failed while we waited was ours too; one timeout after the other would help nobody.
        if let (None, Some((at, error))) = (&known, &asking.failed)
            && *at > called
        {
            return Err(LocatorError::NoAnswer(Arc::clone(error)));
        }
        match client.nearest(&inner.config.host).await {
            Ok(answer) => {
                let wait = Duration::from_secs(answer.ttl_s).min(inner.config.refresh).max(REFRESH_MIN);
                asking.next = Some(Instant::now() + jittered(wait));
                self.learn(&answer).await;
                Ok(answer)
            }
            Err(error) => {
                let now = Instant::now();
                let error = Arc::new(error);
                asking.next = Some(now + jittered(RETRY.min(inner.config.refresh)));
                asking.failed = Some((now, Arc::clone(&error)));
                let Some(known) = known else { return Err(LocatorError::NoAnswer(error)) };
                warn!(
                    error = &*error as &dyn std::error::Error,
                    cluster = known.cluster,
                    "config-service does not answer, using its last answer"
                );
                Ok(known)
            }
        }
    }

    /// The last answer, without asking anybody.
    #[must_use]
    pub fn current(&self) -> Option<NearestAnswer> {
        self.inner.answer.borrow().clone()
    }

    /// Follows changes of the answer.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<NearestAnswer>> {
        self.inner.answer.subscribe()
    }

    /// Asks again and again, until `shutdown` is cancelled. To be spawned once per process.
    pub async fn keep_fresh(&self, shutdown: CancellationToken) {
        if self.inner.client.is_none() || !self.inner.config.supernodes.is_empty() {
            return shutdown.cancelled().await;
        }
        let work = async {
            loop {
                if let Err(error) = self.nearest().await {
                    warn!(error = &error as &dyn std::error::Error, "no supernodes are known yet");
                }
                let at = self.inner.asking.lock().await.next.unwrap_or_else(|| Instant::now() + RETRY);
                tokio::time::sleep_until(at).await;
            }
        };
        tokio::select! {
            () = work => {}
            () = shutdown.cancelled() => {}
        }
    }

    /// The other side: registers a supernode with **all** config-services and keeps its lease; see [`Registration::run`].
    #[must_use]
    pub fn register(&self, cluster: impl Into<String>, entry: SupernodeEntry) -> Registration {
        Registration::new(self.inner.client.clone(), cluster.into(), entry, &self.inner.config.supernodes)
    }

    async fn learn(&self, answer: &NearestAnswer) {
        let changed = self.inner.answer.send_if_modified(|known| {
            let changed = known.as_ref() != Some(answer);
            *known = Some(answer.clone());
            changed
        });
        if !changed {
            return debug!(cluster = answer.cluster, "nearest supernodes confirmed");
        }
        info!(
            cluster = answer.cluster,
            matched_by = answer.matched_by,
            supernodes = answer.supernodes.len(),
            "nearest supernodes"
        );
        if let Some(cache) = &self.inner.cache {
            cache.save(answer.clone()).await;
        }
    }
}

fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::random_range(1.0 - JITTER..=1.0 + JITTER))
}

#[cfg(test)]
mod tests;
