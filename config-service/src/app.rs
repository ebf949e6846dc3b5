//! The running service: state, listeners, and what happens by the clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use proto::api::SupernodeEntry;
use service::Reloads;
use service::http::{HttpMetrics, ListenAddr, Listener, Readiness, Server};
use service::metrics::Metrics;
use service::tls::ServerCertificate;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::api;
use crate::config::Config;
use crate::directory::Directory;
use crate::file::Folder;

/// The service with its listeners bound, not yet serving.
#[derive(Debug)]
pub struct App {
    state: Arc<State>,
    servers: Vec<Server>,
    certificate: Option<Arc<ServerCertificate>>,
    metrics: Metrics,
    body: service::http::BodyLimits,
    drain_timeout: Duration,
}

/// What handlers share.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) directory: Mutex<Directory>,
    pub(crate) config: Mutex<Arc<Config>>,
    pub(crate) counters: Counters,
    folder: Arc<Folder>,
    /// The directory holds something that the file does not.
    unsaved: AtomicBool,
    /// One writer at a time.
    writing: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) answers: Family<Vec<(&'static str, String)>, Counter>,
    pub(crate) registrations: Counter,
    pub(crate) expired: Counter,
    pub(crate) save_failures: Counter,
    supernodes: Family<Vec<(&'static str, String)>, Gauge>,
}

impl App {
    /// Opens the data folder and binds all listeners. Must be called inside a runtime.
    ///
    /// # Errors
    /// When one of them cannot be had.
    pub fn start(config: Config) -> anyhow::Result<Self> {
        let folder = Folder::open(&config.data_dir)?;
        let mut directory = Directory::new(config.clusters.clone(), config.lease, config.max_supernodes);
        let now = Instant::now();
        for known in folder.load()? {
            let entry = SupernodeEntry { id: known.id, endpoint: known.endpoint };
            if let Err(reason) = directory.register(now, &known.cluster, entry) {
                warn!(cluster = known.cluster, %reason, "dropping a remembered supernode");
            }
        }
        let metrics = Metrics::new("config-service", env!("CARGO_PKG_VERSION"));
        let counters = Counters::register(&metrics);
        let http = HttpMetrics::new(&metrics);
        let certificate = config.tls.clone().map(ServerCertificate::load).transpose()?;
        let mut servers = Vec::new();
        for address in &config.listen {
            let listener = Listener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
            let mut server = Server::new(listener, config.http.clone())
                .with_metrics(&http, "api")
                .with_drain_timeout(config.runtime.drain_timeout);
            if let Some(certificate) = &certificate {
                server = server.with_tls(certificate.server_config()?);
            }
            info!(address = %server.local_addr()?, tls = certificate.is_some(), "listening");
            servers.push(server);
        }
        let state = Arc::new(State {
            directory: Mutex::new(directory),
            counters,
            folder: Arc::new(folder),
            unsaved: AtomicBool::new(false),
            writing: tokio::sync::Mutex::new(()),
            config: Mutex::new(Arc::new(config.clone())),
        });
        state.count();
        Ok(Self {
            state,
            servers,
            certificate,
            metrics,
            body: config.body,
            drain_timeout: config.runtime.drain_timeout,
        })
    }

    /// Where it listens, with real ports.
    ///
    /// # Errors
    /// When the system does not say.
    pub fn addresses(&self) -> std::io::Result<Vec<ListenAddr>> {
        self.servers.iter().map(Server::local_addr).collect()
    }

    /// Serves until the shutdown, and drains.
    pub async fn run(self, shutdown: CancellationToken, mut reloads: Reloads<Config>) {
        let Self { state, servers, certificate, metrics, body, drain_timeout } = self;
        let readiness = Readiness::default();
        let app = service::http::service([
            service::http::standard(&readiness, &metrics),
            api::routes(&state, body).into_filter("api"),
        ]);
        let tracker = TaskTracker::new();
        let stop = shutdown.child_token();
        // Whoever drops this future stops the listeners with it.
        let _stop = stop.clone().drop_guard();
        for server in servers {
            tracker.spawn(server.serve(app.clone(), stop.clone()));
        }
        // Expired leases are never shown; sweeping only frees them, and retries a failed write.
        let mut clock = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = clock.tick() => state.tick().await,
                config = reloads.next() => match config {
                    Ok(config) => {
                        state.reload(config);
                        if let Some(Err(error)) = certificate.as_ref().map(|certificate| certificate.reload()) {
                            error!(%error, "the certificate could not be reloaded, keeping the old one");
                        }
                    }
                    Err(error) => error.log(),
                },
                () = shutdown.cancelled() => break,
            }
        }
        readiness.lacks("shutdown");
        service::shutdown::drain(&tracker, drain_timeout + Duration::from_secs(1)).await;
        state.save().await;
    }
}

impl State {
    /// Notes that the directory changed, and writes it before the caller goes on.
    pub(crate) async fn changed(&self) {
        self.unsaved.store(true, Ordering::Release);
        self.count();
        self.save().await;
    }

    /// Writes what is not written. A full disk must not stop answers, so a failure is logged, counted and tried again.
    async fn save(&self) {
        let _one = self.writing.lock().await;
        // Whoever waited here may find that the one before wrote this change as well.
        if !self.unsaved.swap(false, Ordering::AcqRel) {
            return;
        }
        let registrations = self.directory.lock().registrations();
        let folder = Arc::clone(&self.folder);
        let saved = tokio::task::spawn_blocking(move || folder.save(registrations))
            .await
            .unwrap_or_else(|error| Err(error.into()));
        if let Err(error) = saved {
            self.unsaved.store(true, Ordering::Release);
            self.counters.save_failures.inc();
            error!(%error, "registrations could not be saved, trying again");
        }
    }

    async fn tick(&self) {
        let ended = self.directory.lock().sweep(Instant::now());
        for supernode in &ended {
            warn!(
                cluster = supernode.cluster,
                id = supernode.id,
                endpoint = supernode.endpoint,
                "the lease of a supernode ended"
            );
            self.counters.expired.inc();
        }
        if ended.is_empty() { self.save().await } else { self.changed().await }
    }

    fn reload(&self, config: Config) {
        let old = Arc::clone(&self.config.lock());
        if (&config.listen, &config.data_dir, &config.http, &config.body, &config.tls, &config.runtime, &config.log)
            != (&old.listen, &old.data_dir, &old.http, &old.body, &old.tls, &old.runtime, &old.log)
        {
            warn!(
                "only clusters, lease, answer_ttl, max_supernodes, trusted_proxies and the certificate's files change without a restart"
            );
        }
        let mut directory = self.directory.lock();
        let mut fresh = Directory::new(config.clusters.clone(), config.lease, config.max_supernodes);
        fresh.inherit(&mut directory);
        *directory = fresh;
        drop(directory);
        info!(clusters = config.clusters.len(), "configuration reloaded");
        *self.config.lock() = Arc::new(config);
        self.unsaved.store(true, Ordering::Release);
        self.count();
    }

    fn count(&self) {
        let view = self.directory.lock().view(Instant::now());
        self.counters.supernodes.clear();
        for cluster in view {
            let live = i64::try_from(cluster.supernodes.len()).unwrap_or(i64::MAX);
            self.counters.supernodes.get_or_create(&vec![("cluster", cluster.name)]).set(live);
        }
    }
}

impl Counters {
    fn register(metrics: &Metrics) -> Self {
        let new = Self::default();
        metrics.register("config_service", |registry| {
            registry.register(
                "answers",
                "Answers to the question for the nearest cluster, by rule",
                new.answers.clone(),
            );
            registry.register("registrations", "Registrations and renewals of supernodes", new.registrations.clone());
            registry.register("expired", "Leases that ended", new.expired.clone());
            registry.register("save_failures", "Registrations not written to disk", new.save_failures.clone());
            registry.register("supernodes", "Live supernodes, by cluster", new.supernodes.clone());
        });
        new
    }
}
