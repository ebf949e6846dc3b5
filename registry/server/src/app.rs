//! A running registry: what all requests share, its listeners, and its work in the background.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use blobs::{Store, StoreEntry, StoreError};
use db::{Db, RepositoryId};
use oci::upload::{UploadId, UploadKey};
use oci::{ManifestLimits, RepositoryName};
use parking_lot::RwLock;
use service::http::{HttpMetrics, Listener, Readiness, Server, standard};
use service::metrics::Metrics;
use service::tls::ServerCertificate;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::access::Access;
use crate::active::ActiveUploads;
use crate::cache::Cache;
use crate::config::{Config, GcConfig};
use crate::http::{Failure, Receiving, Registry};
use crate::metrics::RegistryMetrics;
use crate::open::OpenUploads;
use crate::sessions::Sessions;
use crate::tie::{self, Rebuild, Tie};
use crate::unsettled::Unsettled;
use crate::upkeep;

/// Clients follow a redirect at once; a layer that takes longer to begin has other problems.
const PRESIGN_TTL: Duration = Duration::from_secs(20 * 60);
/// The name of the setting that holds the key of upload ids.
const UPLOAD_KEY: &str = "upload_key";
/// Certificates are looked at this often, for those who replace files and send no signal.
const CERTIFICATE_INTERVAL: Duration = Duration::from_secs(60);

/// What all requests share.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) db: Db,
    pub(crate) store: Store,
    pub(crate) cache: Cache,
    pub(crate) access: Access,
    pub(crate) upload_key: RwLock<UploadKey>,
    pub(crate) active: ActiveUploads,
    pub(crate) open: OpenUploads,
    /// Memory for manifests that are being sent.
    pub(crate) receiving: Receiving,
    /// Uploads that are worked on in this process.
    pub(crate) sessions: Sessions,
    /// Store and database belong to each other.
    pub(crate) tie: Tie,
    /// Tags whose records are to be written again, and records that higher ones have replaced.
    pub(crate) unsettled: Unsettled,
    pub(crate) metrics: RegistryMetrics,
    /// Requests that change something, which end in their own time.
    pub(crate) changing: TaskTracker,
    gc: RwLock<GcConfig>,
    /// There is something to remove.
    removals: Notify,
}

impl App {
    /// Opens store and database.
    ///
    /// # Errors
    /// When they cannot be opened, or do not belong to each other.
    pub(crate) async fn open(config: Config, metrics: &Metrics) -> anyhow::Result<Arc<Self>> {
        let db = Db::connect(&config.database).await.context("cannot open the database")?;
        let store = blobs::open(&config.store).await.context("cannot open the store")?;
        store.claim(db.is_exclusive()).await.context("cannot open the store")?;
        tie::expect(&db, &store).await?;
        let tie = Tie::of(&db, &store).await?;
        Self::with(config, db, store, tie, metrics).await
    }

    /// Opens them to fill the database from the store; one in which there is something, only to `merge`.
    pub(crate) async fn open_to_rebuild(
        config: Config,
        merge: bool,
        metrics: &Metrics,
    ) -> anyhow::Result<(Arc<Self>, Rebuild)> {
        let db = Db::connect(&config.database).await.context("cannot open the database")?;
        let store = blobs::open(&config.store).await.context("cannot open the store")?;
        store.claim(db.is_exclusive()).await.context("cannot open the store")?;
        let rebuild = tie::begin_rebuild(&db, &store, merge).await?;
        let tie = Tie::untied(&db, &store).await?;
        Ok((Self::with(config, db, store, tie, metrics).await?, rebuild))
    }

    /// Opens them to look, also at the database of a process that serves.
    pub(crate) async fn open_to_read(config: Config, metrics: &Metrics) -> anyhow::Result<Arc<Self>> {
        let db = Db::connect_to_read(&config.database).await.context("cannot open the database")?;
        let store = blobs::open(&config.store).await.context("cannot open the store")?;
        tie::expect_to_read(&db, &store).await?;
        let tie = Tie::untied(&db, &store).await?;
        Self::with(config, db, store, tie, metrics).await
    }

    async fn with(config: Config, db: Db, store: Store, tie: Tie, metrics: &Metrics) -> anyhow::Result<Arc<Self>> {
        let access = Access::new(&config.auth).context("cannot tell who may come in")?;
        let key = db
            .setting_or_insert(UPLOAD_KEY, &hex::encode(rand::random::<[u8; 32]>()))
            .await
            .context("cannot read the key of uploads")?;
        Ok(Arc::new(Self {
            cache: Cache::new(&config.cache, db.is_exclusive()),
            gc: RwLock::new(config.gc.clone()),
            upload_key: RwLock::new(upload_key(&key)?),
            active: ActiveUploads::default(),
            open: OpenUploads::default(),
            receiving: Receiving::new(config.manifests.max_receiving),
            sessions: Sessions::default(),
            tie,
            unsettled: Unsettled::default(),
            changing: TaskTracker::new(),
            metrics: RegistryMetrics::new(metrics),
            removals: Notify::new(),
            access,
            store,
            db,
            config,
        }))
    }

    /// Forgets what is remembered of the database: it may be another one by now.
    pub(crate) fn forget(&self) {
        self.cache.clear();
        self.db.forget_ids();
    }

    /// Sees to it that this process signs uploads as the others do, also in a database that was made anew.
    pub(crate) async fn learn_upload_key(&self) -> anyhow::Result<()> {
        if let Some(key) = self.db.setting(UPLOAD_KEY).await? {
            *self.upload_key.write() = upload_key(&key)?;
        }
        Ok(())
    }

    /// Milliseconds since 1970.
    #[allow(clippy::unused_self, reason = "the one place that asks for the time")]
    pub(crate) fn now_ms(&self) -> i64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    }

    /// The id of a repository, if anything was ever pushed to it.
    pub(crate) async fn repository(&self, name: &RepositoryName) -> Result<Option<RepositoryId>, Failure> {
        if let Some(id) = self.cache.repository(name) {
            return Ok(Some(id));
        }
        let Some(id) = self.db.repository_id(name).await? else { return Ok(None) };
        self.cache.put_repository(name, id);
        Ok(Some(id))
    }

    /// How to remove what nothing needs: not at all, while the database may be another store's.
    pub(crate) fn gc(&self) -> GcConfig {
        let mut gc = self.gc.read().clone();
        gc.enabled &= self.tie.holds();
        gc
    }

    /// How long a blob that nothing needs stays.
    pub(crate) fn lease_ms(&self) -> i64 {
        i64::try_from(self.gc.read().lease.as_millis()).unwrap_or(i64::MAX / 4)
    }

    pub(crate) fn new_upload_id(&self) -> UploadId {
        UploadId::new(self.now_ms().unsigned_abs(), rand::random())
    }

    /// Whether an upload that nothing is known of was begun too long ago.
    pub(crate) fn is_expired(&self, id: UploadId) -> bool {
        let expiry = u64::try_from(self.config.uploads.expiry.as_millis()).unwrap_or(u64::MAX);
        id.created_ms().saturating_add(expiry) < self.now_ms().unsigned_abs()
    }

    pub(crate) fn manifest_limits(&self) -> ManifestLimits {
        ManifestLimits {
            size_bytes_max: self.config.manifests.max_size.as_usize(),
            descriptors_max: self.config.manifests.max_descriptors,
            ..ManifestLimits::default()
        }
    }

    /// Of a manifest that was accepted once, perhaps under wider limits.
    pub(crate) fn stored_manifest_limits(&self) -> ManifestLimits {
        ManifestLimits {
            size_bytes_max: usize::MAX,
            descriptors_max: usize::MAX,
            annotations_max: usize::MAX,
            urls_max: usize::MAX,
            ..self.manifest_limits()
        }
    }

    pub(crate) const fn presign_ttl(&self) -> Duration {
        PRESIGN_TTL
    }

    /// Something became superfluous: the next round need not wait.
    pub(crate) fn removals_wanted(&self) {
        self.removals.notify_one();
    }

    pub(crate) async fn wait_for_removals(&self) {
        self.removals.notified().await;
    }

    /// Removes entries before an answer is given. Their rows stay for the next round: should this fail, that will not. Returns the last
    /// failure.
    pub(crate) async fn remove_now(&self, entries: &[String]) -> Result<(), StoreError> {
        let entries: Vec<StoreEntry> = entries.iter().filter_map(|entry| entry.parse().ok()).collect();
        let mut done = Ok(());
        if entries.is_empty() {
            return done;
        }
        for (entry, result) in self.store.remove(&entries).await {
            if let Err(error) = result {
                tracing::warn!(%entry, %error, "an entry of the store could not be removed at once");
                done = Err(error);
            }
        }
        self.removals_wanted();
        done
    }

    fn reload(&self, config: &Config) {
        *self.gc.write() = config.gc.clone();
        if let Err(error) = self.access.reload() {
            tracing::error!(%error, "the passwords are not usable, keeping the old ones");
        }
        self.removals_wanted();
    }
}

/// From the text in the database.
fn upload_key(text: &str) -> anyhow::Result<UploadKey> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(text, &mut bytes).context("the key of uploads in the database is damaged")?;
    Ok(UploadKey::new(bytes))
}

/// Serves until the shutdown.
///
/// # Errors
/// When store or database cannot be opened, or an address cannot be listened on.
pub async fn run(config: Config, context: service::Context<Config>) -> anyhow::Result<()> {
    let metrics = Metrics::new("registry", env!("CARGO_PKG_VERSION"));
    let http_metrics = HttpMetrics::new(&metrics);
    let certificate = config.tls.clone().map(ServerCertificate::load).transpose()?;
    let app = App::open(config, &metrics).await?;
    let tasks = TaskTracker::new();
    let shutdown = context.shutdown.clone();
    let readiness = Readiness::waiting_for([upkeep::DATABASE]);
    for address in &app.config.metrics_listen {
        let listener = Listener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let server = Server::new(listener, app.config.http.clone()).with_metrics(&http_metrics, "metrics");
        let service = service::http::service([standard(&readiness, &metrics)]);
        tasks.spawn(server.serve(service, shutdown.clone()));
    }
    for address in &app.config.listen {
        let listener = Listener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let mut server = Server::new(listener, app.config.http.clone())
            .with_metrics(&http_metrics, "registry")
            .with_half_close()
            .with_drain_timeout(app.config.runtime.drain_timeout);
        if let Some(certificate) = &certificate {
            server = server.with_tls(certificate.server_config()?);
        }
        tracing::info!(address = %server.local_addr()?, tls = certificate.is_some(), "listening");
        tasks.spawn(server.serve(Registry(Arc::clone(&app)), shutdown.clone()));
    }
    upkeep::start(&app, &tasks, &shutdown, readiness);
    if let Some(certificate) = certificate.clone() {
        tasks.spawn(watch(certificate, shutdown.clone()));
    }
    context.ready();
    let reloads = context.reloads.apply(shutdown.clone(), |config| {
        app.reload(config);
        if let Some(certificate) = &certificate {
            reload_certificate(certificate);
        }
    });
    reloads.await;
    tasks.close();
    tasks.wait().await;
    service::shutdown::drain(&app.changing, app.config.runtime.drain_timeout).await;
    app.db.close().await;
    Ok(())
}

fn reload_certificate(certificate: &ServerCertificate) {
    match certificate.reload() {
        Ok(()) => tracing::info!("the certificate was read anew"),
        Err(error) => tracing::error!(%error, "the certificate is not usable, keeping the old one"),
    }
}

/// Reads a certificate anew when its files were replaced.
async fn watch(certificate: Arc<ServerCertificate>, shutdown: CancellationToken) {
    let mut known = certificate.modified();
    loop {
        tokio::select! {
            () = tokio::time::sleep(CERTIFICATE_INTERVAL) => {}
            () = shutdown.cancelled() => return,
        }
        let now = certificate.modified();
        if now != known {
            known = now;
            reload_certificate(&certificate);
        }
    }
}
