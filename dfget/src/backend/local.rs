//! The engine in this process, for hosts without a dfdaemon.
//!
//! It keeps its pieces in a store of the user's own, so that an interrupted download continues where it was. When
//! another dfget of the same user has that store open, the download has one of its own beside it, by whose name it finds
//! it again; it goes with the end of the download. When that one is open too, because the same is downloaded by several
//! at a time, it has one for this process alone.

use std::fs::{DirEntry, OpenOptions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dfdaemon::{Shares, carry_out};
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use peer::engine::Engine;
use peer::node::{HostConfig, NodeConfig, NodeError, PeerConfig, RatesConfig, StoreSection, TasksConfig};
use peer::source::{Globs, Guard, HostOptions, ListRequest as SourceListRequest, Source, SourceConfig};
use peer::store::{LOCK_FILE, StoreError};
use proto::Kind;
use proto::api::SupernodeEntry;
use service::config::{ByteSize, Rate};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_stream::wrappers::ReceiverStream;

use super::daemon::{event, message};
use super::{Backend, BackendError, BoxFuture, Events, Request};
use crate::exit::{Cause, Failure};
use crate::lister::{ListRequest, Listed, ListedFile, Lister};
use crate::options::LocalSettings;
use crate::run::Parts;

/// What a user's own store may hold.
const CAPACITY: ByteSize = ByteSize::gib(20);
/// Supernodes named on the command line get this long to answer before the first download begins.
const SUPERNODE_WAIT: Duration = Duration::from_secs(2);
/// How long the engine may take to end what it does; it writes for milliseconds at a time.
const STOP_DEADLINE: Duration = Duration::from_secs(1);
/// Name of the store of one download: this and the task.
const OWN_PREFIX: &str = "dfget-";
/// A store of one download that nobody has open is given up after so long.
const ABANDONED_AFTER: Duration = Duration::from_secs(7 * 24 * 3600);
/// Whether peers still come is looked at so often.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The real parts: an engine and a lister on crate `peer`.
#[derive(Debug, Default)]
pub struct LocalParts;

/// An engine in this process, on threads of its own: hashing and writing must not wait for the reports.
struct LocalBackend {
    engine: Engine,
    shares: Shares,
    alive: Option<Duration>,
    runtime: Mutex<Option<Runtime>>,
    /// A store for this process alone, removed with it.
    temporary: Option<PathBuf>,
}

impl Parts for LocalParts {
    fn engine<'a>(&'a self, settings: &'a LocalSettings) -> BoxFuture<'a, Result<Arc<dyn Backend>, Failure>> {
        Box::pin(async move {
            let backend = LocalBackend::start(settings).await?;
            Ok::<Arc<dyn Backend>, Failure>(Arc::new(backend))
        })
    }

    fn lister(&self, settings: &LocalSettings) -> Result<Arc<dyn Lister>, Failure> {
        service::tls::install_provider();
        let source = Source::new(source(settings)?)
            .map_err(|error| Failure::new(Cause::Kind(error.kind()), error.to_string()))?;
        Ok(Arc::new(SourceLister(source)))
    }
}

impl LocalBackend {
    async fn start(settings: &LocalSettings) -> Result<Self, Failure> {
        service::tls::install_provider();
        let internal =
            |what: &str| Failure::new(Cause::Kind(Kind::Internal), format!("cannot start the engine: {what}"));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(std::thread::available_parallelism().map_or(2, std::num::NonZero::get).clamp(2, 8))
            .enable_all()
            .build()
            .map_err(|error| internal(&error.to_string()))?;
        let dir = store_dir(settings)?;
        let stores = stores(&dir, &settings.name, std::process::id());
        forget_abandoned(&dir, &settings.name);
        let mut started = None;
        for store in &stores {
            match start(&runtime, settings, store).await? {
                Err(NodeError::Store(error @ StoreError::Locked { .. })) if Some(store) != stores.last() => {
                    tracing::debug!(store = %store.display(), %error, "another process has the store open");
                }
                Err(error) => return Err(failed(&error)),
                Ok(engine) => {
                    started = Some((engine, store));
                    break;
                }
            }
        }
        let (engine, used) = started.ok_or_else(|| internal("no store"))?;
        let temporary = (*used != dir).then(|| used.clone());
        if let Some(unused) = settings.expire {
            let store = engine.store().clone();
            // Deletes files, which must not hold up the reports.
            let forgotten = runtime.spawn_blocking(move || store.forget_unused(unused)).await;
            let forgotten = forgotten
                .map_err(|error| internal(&error.to_string()))?
                .map_err(|error| Failure::new(Cause::Kind(error.kind()), error.to_string()))?;
            tracing::debug!(forgotten, "contents that nobody used for long are forgotten");
        }
        if !settings.supernodes.is_empty() {
            // Without an answer the engine's own rules for hosts without a supernode apply.
            let _ = tokio::time::timeout(SUPERNODE_WAIT, engine.wait_for_supernode()).await;
        }
        Ok(Self {
            engine,
            shares: Shares::default(),
            alive: settings.alive,
            runtime: Mutex::new(Some(runtime)),
            temporary,
        })
    }
}

/// The stores to try one after the other, for the download of this name by this process.
fn stores(dir: &Path, name: &str, process: u32) -> [PathBuf; 3] {
    let own = dir.join(format!("{OWN_PREFIX}{name}"));
    let spare = dir.join(format!("{OWN_PREFIX}{name}-{process}"));
    // What an interrupted download left in a store of its own goes on from there.
    if own.is_dir() { [own, dir.to_owned(), spare] } else { [dir.to_owned(), own, spare] }
}

/// Removes stores of single downloads that nobody has open, once nobody is going to come back to them. A leftover is only
/// lost space in the user's own folder.
fn forget_abandoned(dir: &Path, name: &str) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let Some(of) = file_name.to_str().and_then(|file_name| file_name.strip_prefix(OWN_PREFIX)) else { continue };
        // No other process looks for a store that was one process's alone.
        let is_spare = of.contains('-');
        if of == name || !(is_spare || last_opened(&entry).is_some_and(|before| before > ABANDONED_AFTER)) {
            continue;
        }
        // Held until it is gone, so that nobody opens it meanwhile.
        let lock = OpenOptions::new().write(true).open(entry.path().join(LOCK_FILE));
        let is_free = match &lock {
            Ok(lock) => lock.try_lock().is_ok(),
            // Killed before it had one, or not yet that far.
            Err(error) => error.kind() == io::ErrorKind::NotFound && !is_spare,
        };
        if is_free {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// How long ago a store was opened: its lock is written then.
fn last_opened(entry: &DirEntry) -> Option<Duration> {
    let about = std::fs::metadata(entry.path().join(LOCK_FILE)).or_else(|_| entry.metadata()).ok()?;
    about.modified().ok()?.elapsed().ok()
}

/// Starts the engine on its own runtime.
async fn start(runtime: &Runtime, settings: &LocalSettings, dir: &Path) -> Result<Result<Engine, NodeError>, Failure> {
    let config = node(settings, dir)?;
    runtime
        .spawn(config.start())
        .await
        .map_err(|error| Failure::new(Cause::Kind(Kind::Internal), format!("the engine broke while starting: {error}")))
}

fn failed(error: &NodeError) -> Failure {
    let kind = match error {
        NodeError::Store(error) => error.kind(),
        NodeError::Source(error) => error.kind(),
        _ => Kind::Unavailable,
    };
    Failure::new(Cause::Kind(kind), error.to_string())
}

fn node(settings: &LocalSettings, dir: &Path) -> Result<NodeConfig, Failure> {
    // Bytes from an origin that nobody vouches for are shared with nobody.
    let alone = settings.supernodes.is_empty() || settings.insecure;
    let address = SocketAddr::new(settings.ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED)), settings.port.unwrap_or(0));
    let defaults = PeerConfig::default();
    let supernodes = (!alone).then(|| {
        let entries = settings
            .supernodes
            .iter()
            .map(|supernode| SupernodeEntry { id: supernode.endpoint.clone(), endpoint: supernode.endpoint.clone() })
            .collect();
        watch::channel(entries).1
    });
    Ok(NodeConfig {
        host: HostConfig::default(),
        peer: PeerConfig {
            listen: if alone { Vec::new() } else { vec![address] },
            pieces_in_flight: settings.pieces_in_flight.unwrap_or(defaults.pieces_in_flight),
            ..defaults
        },
        store: StoreSection { dir: dir.to_owned(), capacity: CAPACITY, ..StoreSection::default() },
        rates: RatesConfig {
            download: settings.total_rate_bytes_per_s.map_or(Rate::UNLIMITED, Rate::bytes_per_s),
            ..RatesConfig::default()
        },
        // The process ends with the download, and must not have to wait for the disk then.
        tasks: TasksConfig { durable_after: Duration::from_secs(2), ..TasksConfig::default() },
        source: source(settings)?,
        // The user could reach every address without dfget, too.
        guard: Guard::permissive(),
        seed: false,
        supernodes,
    })
}

fn source(settings: &LocalSettings) -> Result<SourceConfig, Failure> {
    // Whoever runs dfget by hand waits for it: no long random delay without a supernode.
    let mut config = SourceConfig {
        orphan_delay_min: Duration::ZERO,
        orphan_delay_max: Duration::from_secs(2),
        ..SourceConfig::default()
    };
    if settings.insecure || !settings.ca_files.is_empty() {
        let ca = match settings.ca_files.as_slice() {
            [] => None,
            [one] => Some(one.clone()),
            _ => {
                let message = "one file of certificates can be given; put them together into one PEM file";
                return Err(Failure::new(Cause::Kind(Kind::Invalid), message));
            }
        };
        let any = HostOptions { ca, insecure: settings.insecure, ..HostOptions::default() };
        config.hosts.insert("*".to_owned(), any);
    }
    Ok(config)
}

/// Where the user's own store is.
fn store_dir(settings: &LocalSettings) -> Result<PathBuf, Failure> {
    if let Some(dir) = &settings.data_dir {
        return Ok(dir.clone());
    }
    if let Some(home) = &settings.home {
        return Ok(home.join("data"));
    }
    let named = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    named("XDG_DATA_HOME")
        .or_else(|| named("HOME").map(|home| home.join(".local/share")))
        .map(|data| data.join("skimmer/dfget"))
        .ok_or_else(|| {
            Failure::new(Cause::Kind(Kind::Invalid), "neither HOME nor XDG_DATA_HOME is set; name a folder with --home")
        })
}

impl Backend for LocalBackend {
    fn name(&self) -> &'static str {
        "dfget"
    }

    fn download(&self, request: Request) -> BoxFuture<'_, Result<Events, BackendError>> {
        Box::pin(async move {
            let handle = self.runtime.lock().as_ref().map(|runtime| runtime.handle().clone());
            let Some(handle) = handle else { return Err(BackendError::Lost(None)) };
            let _inside = handle.enter();
            let events =
                ReceiverStream::new(carry_out(self.engine.clone(), &self.shares, message(request).into_inner(), true));
            let events = events.filter_map(|item| std::future::ready(event(item).transpose()));
            Ok::<Events, _>(Box::pin(events))
        })
    }

    fn linger(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(alive) = self.alive else { return };
            let sent = || self.engine.metrics().bytes_uploaded.get();
            let (mut last, mut since) = (sent(), tokio::time::Instant::now());
            while since.elapsed() < alive {
                tokio::time::sleep(LOOK_EVERY).await;
                if sent() != last {
                    (last, since) = (sent(), tokio::time::Instant::now());
                }
            }
        })
    }
}

impl Drop for LocalBackend {
    fn drop(&mut self) {
        // The rows' library must not be in use when the process ends: its threads would meet its destructors. On a
        // thread of its own, because this may run inside another runtime, which must not block.
        if let Some(runtime) = self.runtime.lock().take() {
            let engine = self.engine.clone();
            let stopping = std::thread::spawn(move || {
                runtime.block_on(engine.stop(STOP_DEADLINE));
                drop(engine);
                runtime.shutdown_timeout(STOP_DEADLINE);
            });
            // A panic in there is reported by the thread itself.
            let _ = stopping.join();
        }
        if let Some(dir) = &self.temporary {
            // A leftover is only lost space in the user's own folder.
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// Reads listings over HTTP.
struct SourceLister(Source);

impl Lister for SourceLister {
    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<Listed, Failure>> {
        Box::pin(async move {
            let invalid = |error: &dyn std::fmt::Display| Failure::new(Cause::Kind(Kind::Invalid), error.to_string());
            let mut wanted = SourceListRequest::new(request.url, Guard::permissive());
            for (name, value) in &request.headers {
                let name = http::HeaderName::try_from(name).map_err(|error| invalid(&error))?;
                let value = http::HeaderValue::from_bytes(value).map_err(|error| invalid(&error))?;
                wanted.headers.append(name, value);
            }
            wanted.include = Globs::new(&request.include).map_err(|error| invalid(&error))?;
            wanted.depth_max = request.depth_max;
            wanted.files_max = request.files_max;
            let seed = u64::from(std::process::id());
            let listing = peer::source::list(&self.0, wanted, seed)
                .await
                .map_err(|error| Failure::new(Cause::Kind(error.kind()), error.to_string()))?;
            let files = listing.files.into_iter().map(|file| ListedFile { path: file.path, url: file.url }).collect();
            Ok(Listed { files, beyond_depth: listing.beyond_depth.len() })
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::SystemTime;

    use super::*;

    #[test]
    fn a_download_finds_its_own_store_again() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_owned();
        let (own, spare) = (home.join("dfget-aa"), home.join("dfget-aa-7"));
        assert_eq!(stores(&home, "aa", 7), [home.clone(), own.clone(), spare.clone()]);
        std::fs::create_dir(&own).unwrap();
        assert_eq!(stores(&home, "aa", 7), [own, home, spare]);
    }

    #[test]
    fn abandoned_stores_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = |name: &str, is_old: bool| {
            let store = dir.path().join(name);
            std::fs::create_dir(&store).unwrap();
            let lock = File::create(store.join(LOCK_FILE)).unwrap();
            if is_old {
                lock.set_modified(SystemTime::now() - 2 * ABANDONED_AFTER).unwrap();
            }
            (store, lock)
        };
        let removed = [store("dfget-old", true).0, store("dfget-aa-7", false).0];
        let held = [store("dfget-held", true), store("dfget-aa-8", false)];
        for (_, lock) in &held {
            lock.lock().unwrap();
        }
        let kept = [store("dfget-aa", true).0, store("dfget-new", false).0, store("other", true).0];
        forget_abandoned(dir.path(), "aa");
        for path in removed {
            assert!(!path.is_dir(), "{}", path.display());
        }
        for path in held.iter().map(|(path, _)| path).chain(&kept) {
            assert!(path.is_dir(), "{}", path.display());
        }
    }

    #[tokio::test]
    async fn one_download_by_several_at_a_time_has_a_store_for_each() {
        let dir = tempfile::tempdir().unwrap();
        let settings = LocalSettings {
            data_dir: Some(dir.path().to_owned()),
            name: "aa".to_owned(),
            expire: Some(Duration::from_secs(60)),
            ..LocalSettings::default()
        };
        let first = LocalBackend::start(&settings).await.unwrap();
        let second = LocalBackend::start(&settings).await.unwrap();
        let third = LocalBackend::start(&settings).await.unwrap();
        let spare = dir.path().join(format!("dfget-aa-{}", std::process::id()));
        assert_eq!(first.temporary, None);
        assert_eq!(second.temporary, Some(dir.path().join("dfget-aa")));
        assert_eq!(third.temporary, Some(spare.clone()));
        drop((second, third));
        assert!(!dir.path().join("dfget-aa").is_dir() && !spare.is_dir());
        drop(first);
    }
}
