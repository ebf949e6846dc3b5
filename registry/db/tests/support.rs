//! Databases to test with, and short ways to push things into them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use db::{
    BlobCommit, ChangeId, Collected, Db, DbConfig, DeleteManifest, DeletedManifest, Expected, Follows, ManifestPut,
    NewBlob, NewManifest, NewRecord, PutManifestError, RepositoryId,
};
use harness::{Host, MariaDb, Postgres, Run};
use oci::upload::UploadId;
use oci::{Algorithm, Digest, Manifest, ManifestLimits, Reference, RepositoryName, TagName};
use serde_json::{Value, json};
use service::Redacted;

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    MariaDb,
    Postgres,
}

/// An empty database, and what it stands on.
pub(crate) struct Ground {
    pub(crate) db: Db,
    pub(crate) config: DbConfig,
    _folder: tempfile::TempDir,
    _server: Option<Arc<Server>>,
}

pub(crate) struct Server {
    program: Program,
    /// Its folder. After the server, for it goes with it.
    _run: Run,
}

enum Program {
    MariaDb(MariaDb),
    Postgres(Postgres),
}

/// Leases last so long in these tests.
pub(crate) const LEASE_MS: i64 = 1000;

/// The first checkpoint of an upload that is nobody's.
pub(crate) const FIRST: Follows<'static> = Follows::Nothing { client: None, most: 1 };

/// Runs a case on an empty database.
pub(crate) fn run(kind: Kind, case: impl AsyncFn(&Ground)) {
    let (url, folder, server) = empty(kind);
    runtime().block_on(async {
        let config = DbConfig { url: Redacted::new(url), ..DbConfig::default() };
        let db = Db::connect(&config).await.unwrap();
        let ground = Ground { db, config, _folder: folder, _server: server };
        case(&ground).await;
        let dangling = ground.db.dangling_rows(10).await.unwrap();
        assert_eq!(dangling, [], "rows were left behind");
        ground.db.close().await;
    });
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap()
}

fn empty(kind: Kind) -> (String, tempfile::TempDir, Option<Arc<Server>>) {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let folder = tempfile::tempdir().unwrap();
    let name = format!("case_{}", NEXT.fetch_add(1, Ordering::Relaxed));
    if kind == Kind::Sqlite {
        let path: PathBuf = folder.path().join("registry.db");
        return (format!("sqlite://{}", path.display()), folder, None);
    }
    let server = shared(kind);
    let url = match &server.program {
        Program::MariaDb(server) => server.database(&name).unwrap(),
        Program::Postgres(server) => server.database(&name).unwrap(),
    };
    (url, folder, Some(server))
}

/// One server for all tests that run at the same time. It ends with the last of them.
fn shared(kind: Kind) -> Arc<Server> {
    static MARIADB: OnceLock<Mutex<Weak<Server>>> = OnceLock::new();
    static POSTGRES: OnceLock<Mutex<Weak<Server>>> = OnceLock::new();
    let slot = if kind == Kind::MariaDb { &MARIADB } else { &POSTGRES };
    let mut slot = slot.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(server) = slot.upgrade() {
        return server;
    }
    let (run, host) = (Run::new().unwrap(), Host::local());
    let program = match kind {
        Kind::MariaDb => Program::MariaDb(MariaDb::start(&host, &run).unwrap()),
        _ => Program::Postgres(Postgres::start(&host, &run).unwrap()),
    };
    let server = Arc::new(Server { program, _run: run });
    *slot = Arc::downgrade(&server);
    server
}

// === names ===

pub(crate) fn repository(name: &str) -> RepositoryName {
    name.parse().unwrap()
}

pub(crate) fn tag(name: &str) -> TagName {
    name.parse().unwrap()
}

pub(crate) fn digest(content: &str) -> Digest {
    Digest::of(Algorithm::Sha256, content.as_bytes())
}

/// An upload's id, different for every number.
pub(crate) fn key(number: u64) -> UploadId {
    let mut random = [0; 10];
    random[..8].copy_from_slice(&number.to_be_bytes());
    UploadId::new(1_700_000_000_000 + number, random)
}

pub(crate) fn blob_entry(key: UploadId, digest: &Digest, size: u64) -> String {
    format!("blob {key} {digest} {size}")
}

pub(crate) fn tag_entry(tag: &TagName, change: ChangeId) -> String {
    format!("tag {tag} {change}")
}

pub(crate) fn record_entry(record: &str) -> String {
    format!("manifest {record}")
}

// === manifests ===

/// An image of these layers; its configuration is the first.
pub(crate) fn image(layers: &[Digest], more: Value) -> Manifest {
    let descriptor =
        |media_type: &str, digest: &Digest| json!({"mediaType": media_type, "digest": digest.to_string(), "size": 7});
    let mut document = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &layers[0]),
        "layers": layers[1..].iter()
            .map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar+gzip", layer)).collect::<Vec<_>>(),
    });
    document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    parse(&document)
}

/// An index of these manifests.
pub(crate) fn index(children: &[Digest]) -> Manifest {
    let descriptor = |digest: &Digest| json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest.to_string(), "size": 7});
    parse(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": children.iter().map(descriptor).collect::<Vec<_>>(),
    }))
}

/// `subject` for [`image`].
pub(crate) fn about(subject: &Digest) -> Value {
    json!({"subject": {
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": subject.to_string(), "size": 7,
    }})
}

fn parse(document: &Value) -> Manifest {
    let limits = ManifestLimits { size_bytes_max: 16 << 20, ..ManifestLimits::default() };
    Manifest::parse(Bytes::from(serde_json::to_vec(document).unwrap()), None, &limits).unwrap()
}

pub(crate) fn digest_of(manifest: &Manifest) -> Digest {
    manifest.digest(Algorithm::Sha256)
}

// === pushing ===

/// Commits a blob whose content is its name.
pub(crate) async fn push_blob(db: &Db, into: &str, content: &str, number: u64, now_ms: i64) -> BlobCommit {
    let (repository, digest, size) = (repository(into), digest(content), content.len() as u64);
    let entry = blob_entry(key(number), &digest, size);
    db.commit_blob(&NewBlob {
        repository: &repository,
        digest: &digest,
        size,
        key: key(number),
        entry: &entry,
        now_ms,
        leased_until_ms: now_ms + LEASE_MS,
    })
    .await
    .unwrap()
}

pub(crate) async fn try_put(
    db: &Db,
    into: &str,
    manifest: &Manifest,
    tags: &[&str],
    now_ms: i64,
) -> Result<ManifestPut, PutManifestError> {
    put_expecting(db, into, manifest, tags, None, now_ms).await
}

/// As [`try_put`], for a client that expects something.
pub(crate) async fn put_if(
    db: &Db,
    into: &str,
    manifest: &Manifest,
    tags: &[&str],
    expected: Expected<'_>,
) -> Result<ManifestPut, PutManifestError> {
    put_expecting(db, into, manifest, tags, Some(expected), 0).await
}

async fn put_expecting(
    db: &Db,
    into: &str,
    manifest: &Manifest,
    tags: &[&str],
    expected: Option<Expected<'_>>,
    now_ms: i64,
) -> Result<ManifestPut, PutManifestError> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let record = format!("{:032x}", NEXT.fetch_add(1, Ordering::Relaxed));
    let tags: Vec<TagName> = tags.iter().map(|name| tag(name)).collect();
    let (repository, digest, entry) = (repository(into), digest_of(manifest), record_entry(&record));
    db.put_manifest(&NewManifest {
        repository: &repository,
        manifest,
        digest: &digest,
        record: Some(NewRecord { name: &record, entry: &entry }),
        tags: &tags,
        now_ms,
        expected,
        require_references: true,
    })
    .await
}

pub(crate) async fn put(db: &Db, into: &str, manifest: &Manifest, tags: &[&str], now_ms: i64) -> ManifestPut {
    try_put(db, into, manifest, tags, now_ms).await.unwrap()
}

/// Pushes an image of one blob, which is made of the names.
pub(crate) async fn push_image(db: &Db, into: &str, content: &str, tags: &[&str], number: u64, now_ms: i64) -> Digest {
    push_blob(db, into, content, number, now_ms).await;
    let manifest = image(&[digest(content)], json!({}));
    put(db, into, &manifest, tags, now_ms).await;
    digest_of(&manifest)
}

pub(crate) async fn delete(db: &Db, from: RepositoryId, digest: &Digest, now_ms: i64) -> Option<DeletedManifest> {
    db.delete_manifest(&deletion(from, digest, now_ms)).await.unwrap()
}

pub(crate) fn deletion(from: RepositoryId, digest: &Digest, now_ms: i64) -> DeleteManifest<'_> {
    DeleteManifest {
        repository: from,
        digest,
        now_ms,
        leased_until_ms: now_ms + LEASE_MS,
        tag_entry: &tag_entry,
        record_entry: &record_entry,
    }
}

pub(crate) async fn id(db: &Db, name: &str) -> RepositoryId {
    db.repository_id(&repository(name)).await.unwrap().unwrap()
}

/// Collects until there is nothing left to look at; the sum.
pub(crate) async fn collect_all(db: &Db, now_ms: i64) -> Collected {
    let mut sum = Collected::default();
    loop {
        let step = db.collect(now_ms, 100, false, &blob_entry).await.unwrap();
        if step.looked_at == 0 {
            return sum;
        }
        sum.looked_at += step.looked_at;
        sum.cleared += step.cleared;
        sum.unlinked += step.unlinked;
        sum.blobs += step.blobs;
        sum.bytes += step.bytes;
    }
}

/// The texts of all removals, sorted; they are gone afterwards.
pub(crate) async fn take_removals(db: &Db) -> Vec<String> {
    let mut entries = Vec::new();
    loop {
        let some = db.removals(i64::MAX / 2, i64::MAX / 2, 1000).await.unwrap();
        if some.is_empty() {
            entries.sort();
            return entries;
        }
        db.removed(&some.iter().map(|removal| removal.id).collect::<Vec<_>>()).await.unwrap();
        entries.extend(some.into_iter().map(|removal| removal.entry));
    }
}

pub(crate) async fn tag_digest(db: &Db, from: &str, name: &str) -> Option<Digest> {
    let reference = Reference::Tag(tag(name));
    let head = db.manifest_head(id(db, from).await, &reference).await.unwrap();
    head.map(|head| head.digest)
}

/// Waits for something that others do, for a few seconds at most.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..300 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what}: waited in vain");
}
