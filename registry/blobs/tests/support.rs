//! Stores to test, and what is pushed into them.

pub(crate) mod proxy;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use blobs::{
    BlobBody, Checkpoint, FoundBlob, Receiver, RunningHash, S3Config, Shard, Store, StoreConfig, StoreKind, StoredBlob,
};
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use harness::{Host, Run, S3Kind, S3Server};
use oci::upload::UploadId;
use proto::{Algorithm, ByteRange, Digest};
use service::config::{ByteSize, Redacted};

pub(crate) const MIB: usize = 1 << 20;
/// The smallest part that S3 allows: more parts with fewer bytes.
pub(crate) const PART: usize = 5 * MIB;

/// Which backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Filesystem,
    S3(S3Kind),
}

/// A place for a store, empty at first. Each store opened there is as another process would have it.
pub(crate) struct Place {
    pub(crate) config: StoreConfig,
    pub(crate) kind: Kind,
    server: Option<Arc<Server>>,
    /// Declared after the server: the folder goes last.
    pub(crate) run: Arc<Run>,
}

pub(crate) struct Server {
    pub(crate) s3: S3Server,
    run: Arc<Run>,
}

/// Runs a case over a fresh place.
pub(crate) fn run<F>(kind: Kind, case: F)
where
    F: AsyncFn(&Place) -> Result<()>,
{
    service::tls::install_provider();
    let place = Place::new(kind).expect("a place for the store");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    if let Err(error) = runtime.block_on(case(&place)) {
        panic!("{kind:?}: {error:?}");
    }
}

// === impl Place ===

impl Place {
    pub(crate) fn new(kind: Kind) -> Result<Self> {
        match kind {
            Kind::Filesystem => {
                let run = Arc::new(Run::new()?);
                let config = StoreConfig { path: run.data_dir("store")?, ..StoreConfig::default() };
                Ok(Self { config, kind, server: None, run })
            }
            Kind::S3(s3) => {
                let server = Server::shared(s3)?;
                let config = StoreConfig { kind: StoreKind::S3, s3: Some(server.bucket()?), ..StoreConfig::default() };
                let run = Arc::clone(&server.run);
                Ok(Self { config, kind, server: Some(server), run })
            }
        }
    }

    /// Opens the store as one more process.
    pub(crate) async fn open(&self) -> Result<Store> {
        Ok(blobs::open(&self.config).await?)
    }

    pub(crate) fn is_s3(&self) -> bool {
        self.server.is_some()
    }

    pub(crate) fn s3(&self) -> &S3Config {
        self.config.s3.as_ref().expect("an S3 place")
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().expect("an S3 place")
    }

    /// A request of its own to the bucket, past the store.
    pub(crate) fn request(&self, method: &str, path: &str) -> Result<harness::Reply> {
        let (server, bucket) = (&self.server().s3, &self.s3().bucket);
        let curl = server.curl();
        let curl = if method == "HEAD" { curl.args(["-I"]) } else { curl.args(["-X", method]) };
        curl.get(&format!("{}/{bucket}{path}", server.endpoint()))
    }

    /// The multipart uploads that have begun and not ended.
    pub(crate) fn open_multiparts(&self) -> Result<usize> {
        let reply = self.request("GET", "?uploads=")?;
        ensure!(reply.status == 200, "cannot list multipart uploads: {}", reply.status);
        Ok(String::from_utf8_lossy(&reply.body).matches("<UploadId>").count())
    }
}

impl Server {
    /// The server all tests of this process share while any of them runs.
    fn shared(kind: S3Kind) -> Result<Arc<Self>> {
        static RUNNING: [Mutex<Weak<Server>>; 2] = [const { Mutex::new(Weak::new()) }; 2];
        let slot = &RUNNING[usize::from(kind == S3Kind::Minio)];
        let mut running = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = running.upgrade() {
            return Ok(server);
        }
        let run = Arc::new(Run::new()?);
        let server = Arc::new(Self { s3: S3Server::start(kind, &Host::local(), &run)?, run });
        *running = Arc::downgrade(&server);
        Ok(server)
    }

    /// A fresh bucket.
    pub(crate) fn bucket(&self) -> Result<S3Config> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let bucket = self.s3.bucket(&format!("bucket-{}", NEXT.fetch_add(1, Ordering::Relaxed)))?;
        Ok(S3Config {
            endpoint: Some(self.s3.endpoint().parse()?),
            region: self.s3.region().to_owned(),
            bucket,
            prefix: "some/where".to_owned(),
            access_key: self.s3.access_key().to_owned(),
            secret_key: Redacted::new(self.s3.secret_key().to_owned()),
            allow_http: true,
            part_size: ByteSize::bytes(PART as u64),
            retry_deadline: Duration::from_secs(20),
            ..S3Config::default()
        })
    }
}

// === uploads ===

pub(crate) fn fresh_id() -> UploadId {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    UploadId::new(u64::try_from(now.as_millis()).unwrap_or(0), rand::random())
}

/// Bytes that no two seeds share, and that do not repeat.
pub(crate) fn content(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::of(Algorithm::Sha256, bytes)
}

/// Pushes as a socket would: in frames of changing length.
pub(crate) async fn feed(receiver: &mut Receiver, bytes: &Bytes) -> Result<()> {
    let mut rest = bytes.clone();
    for frame in [1, 8 * 1024, 64 * 1024, 300_000].into_iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let frame = rest.split_to(rest.len().min(frame));
        receiver.push(frame).await?;
    }
    Ok(())
}

pub(crate) async fn begin(store: &Store, id: UploadId) -> Result<Receiver> {
    Ok(Receiver::new(store.begin(id).await?, RunningHash::sha256(), 0))
}

/// Goes on from what a database would hold.
pub(crate) async fn resume(store: &Store, id: UploadId, row: &str) -> Result<Receiver> {
    let checkpoint: Checkpoint = serde_json::from_str(row)?;
    Ok(Receiver::resume(store.resume(id, &checkpoint.writer).await?, &checkpoint)?)
}

/// What a database would hold.
pub(crate) async fn checkpoint(receiver: &mut Receiver) -> Result<String> {
    Ok(serde_json::to_string(&receiver.checkpoint().await?)?)
}

/// A blob by a single request.
pub(crate) async fn put(store: &Store, bytes: &Bytes) -> Result<StoredBlob> {
    let (key, digest) = (fresh_id(), sha256(bytes));
    let mut receiver = begin(store, key).await?;
    feed(&mut receiver, bytes).await?;
    let finished = receiver.finish(&digest).await?;
    ensure!(finished.size == bytes.len() as u64 && finished.bytes_rehashed == 0, "{finished:?}");
    Ok(StoredBlob { key, digest, size: finished.size })
}

// === what is there ===

pub(crate) async fn read(store: &Store, blob: &StoredBlob, range: Option<(u64, u64)>) -> Result<Bytes> {
    let range = range.map(|(start, end)| ByteRange::new(start, end).expect("a range"));
    let body = store.open(blob, range).await?;
    let length = body.len();
    let bytes: Bytes = match body {
        BlobBody::File { file, offset, len } => {
            use std::os::unix::fs::FileExt as _;
            let mut bytes = vec![0; usize::try_from(len)?];
            file.read_exact_at(&mut bytes, offset)?;
            bytes.into()
        }
        BlobBody::Stream { stream, .. } => {
            let pieces: Vec<Bytes> = stream.try_collect().await?;
            pieces.concat().into()
        }
    };
    ensure!(bytes.len() as u64 == length, "{length} bytes were promised, {} came", bytes.len());
    Ok(bytes)
}

/// All blobs, and all strangers among them.
pub(crate) async fn all_blobs(store: &Store) -> Result<(Vec<FoundBlob>, Vec<String>)> {
    let (mut blobs, mut strangers) = (Vec::new(), Vec::new());
    let listings = stream::iter(Shard::all()).map(|shard| store.list_blobs(shard)).buffer_unordered(16);
    for listing in listings.try_collect::<Vec<_>>().await? {
        blobs.extend(listing.entries);
        strangers.extend(listing.strangers);
    }
    Ok((blobs, strangers))
}

/// No blob and no upload, now or soon: what a broken request leaves is removed beside the next one.
pub(crate) async fn expect_empty(store: &Store) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let uploads = store.list_uploads().await?;
        if uploads.entries.is_empty() && uploads.strangers.is_empty() {
            break;
        }
        if Instant::now() > deadline {
            bail!("something is left: {uploads:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let (blobs, strangers) = all_blobs(store).await?;
    ensure!(blobs.is_empty() && strangers.is_empty(), "something is left: {blobs:?} {strangers:?}");
    Ok(())
}

/// The store's error in an `anyhow` one.
pub(crate) fn store_error(error: &anyhow::Error) -> Result<&blobs::StoreError> {
    let direct = error.downcast_ref::<blobs::StoreError>();
    let finishing = || match error.downcast_ref::<blobs::FinishError>() {
        Some(blobs::FinishError::Store(error)) => Some(error),
        _ => None,
    };
    direct.or_else(finishing).with_context(|| format!("not an error of the store: {error:?}"))
}
