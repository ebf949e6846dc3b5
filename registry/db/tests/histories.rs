//! Random histories, and all interleavings of a few clients, against what must always be true.
//!
//! The steps are those in which a registry does its work, files of the store included: bytes are written before their commit, an entry is
//! claimed, then removed, then forgotten. A crash is a step that never comes. Times stand still within a step.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use db::{BlobCommit, BlobId, Db, DbConfig, PutManifestError, RemovalId, Renewal, Unlink};
use oci::Reference;
use oci::upload::UploadId;
use proptest::prelude::*;
use serde_json::json;
use service::Redacted;

use crate::support::*;

const REPOSITORIES: [&str; 3] = ["a", "b", "c"];
const TAGS: [&str; 2] = ["t", "u"];
/// Blobs; image `n` needs blobs `n` and `n + 1`.
const BLOBS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// Bytes are in the store, their commit comes later or never.
    Write {
        blob: usize,
    },
    /// One of the uploads that were written is committed: for the first time, or again.
    Commit {
        upload: usize,
        repository: usize,
    },
    Cancel {
        upload: usize,
    },
    /// The client sees a blob and will not upload it.
    Head {
        repository: usize,
        blob: usize,
    },
    Mount {
        blob: usize,
        from: Option<usize>,
        to: usize,
    },
    Put {
        repository: usize,
        image: usize,
        tag: Option<usize>,
    },
    DeleteTag {
        repository: usize,
        tag: usize,
    },
    DeleteManifest {
        repository: usize,
        image: usize,
    },
    Unlink {
        repository: usize,
        blob: usize,
    },
    Collect {
        batch: u32,
    },
    Claim {
        limit: u32,
    },
    /// The entries that were claimed first go from the store.
    RemoveFiles,
    /// The database is told.
    Forget,
    Wait {
        ms: i64,
    },
}

/// What is known besides the database.
struct World {
    db: Db,
    /// Prefix of everything's name, so that worlds can share a database.
    name: String,
    now_ms: i64,
    files: BTreeSet<UploadId>,
    /// What was written: key, blob.
    uploads: Vec<(UploadId, usize)>,
    manifests: BTreeSet<(usize, usize)>,
    tags: BTreeMap<(usize, usize), usize>,
    /// Until when a client may rely on a blob in a repository.
    promises: BTreeMap<(usize, usize), i64>,
    claimed: Vec<(RemovalId, String)>,
    removed: Vec<RemovalId>,
}

impl World {
    fn new(db: Db, name: &str) -> Self {
        Self {
            db,
            name: name.to_owned(),
            now_ms: 0,
            files: BTreeSet::new(),
            uploads: Vec::new(),
            manifests: BTreeSet::new(),
            tags: BTreeMap::new(),
            promises: BTreeMap::new(),
            claimed: Vec::new(),
            removed: Vec::new(),
        }
    }

    fn repository(&self, number: usize) -> String {
        format!("{}{}", self.name, REPOSITORIES[number])
    }

    fn content(&self, blob: usize) -> String {
        format!("{}{blob}", self.name)
    }

    fn image(&self, number: usize) -> oci::Manifest {
        let blobs = needed(number).map(|blob| digest(&self.content(blob)));
        image(&blobs, json!({"annotations": {"number": number.to_string()}}))
    }

    async fn link(&self, repository: usize, blob: usize) -> Option<db::Link> {
        let id = self.db.repository_id(&self.repository(repository).parse().unwrap()).await.unwrap()?;
        self.db.link(id, &digest(&self.content(blob))).await.unwrap()
    }

    fn promise(&mut self, repository: usize, blob: usize) {
        self.promises.insert((repository, blob), self.now_ms + LEASE_MS);
    }

    async fn step(&mut self, step: &Step) {
        match *step {
            Step::Write { blob } => {
                static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
                let key = key(NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
                self.files.insert(key);
                self.uploads.push((key, blob));
            }
            Step::Commit { upload, repository } => self.commit(upload, repository).await,
            Step::Cancel { upload } => {
                if let Some(&(key, _)) = self.uploads.get(upload % self.uploads.len().max(1)) {
                    self.db.cancel_upload(key, &self.repository(0).parse().unwrap(), self.now_ms).await.unwrap();
                }
            }
            Step::Head { repository, blob } => {
                let Some(link) = self.link(repository, blob).await else { return };
                let id = id(&self.db, &self.repository(repository)).await;
                let renewal = self.db.renew_lease(id, link.blob, self.now_ms + LEASE_MS).await.unwrap();
                let expected = if link.leased_until.is_some() { Renewal::Renewed } else { Renewal::Referenced };
                assert_eq!(renewal, expected);
                if renewal == Renewal::Renewed {
                    self.promise(repository, blob);
                }
            }
            Step::Mount { blob, from, to } => {
                let source = match from {
                    Some(from) => self.link(from, blob).await.is_some(),
                    None => self.row(blob).await,
                };
                let from = from.map(|from| self.repository(from).parse().unwrap());
                let to_name = self.repository(to).parse().unwrap();
                let digest = digest(&self.content(blob));
                let until = self.now_ms + LEASE_MS;
                let mounted = self.db.mount(&digest, from.as_ref(), &to_name, self.now_ms, until).await.unwrap();
                assert_eq!(mounted.is_some(), source);
                if mounted.is_some_and(|linked| linked.link.leased_until.is_some()) {
                    self.promise(to, blob);
                }
            }
            Step::Put { repository, image, tag } => self.put(repository, image, tag).await,
            Step::DeleteTag { repository, tag } => {
                let known = self.tags.remove(&(repository, tag));
                let Some(id) = self.id(repository).await else { return };
                let name = crate::support::tag(TAGS[tag]);
                let deleted = self.db.delete_tag(id, &name, self.now_ms, &tag_entry).await.unwrap();
                assert_eq!(deleted.map(|deleted| deleted.digest), known.map(|image| digest_of(&self.image(image))));
            }
            Step::DeleteManifest { repository, image } => {
                let known = self.manifests.remove(&(repository, image));
                self.tags.retain(|(of, _), points_to| (*of, *points_to) != (repository, image));
                let Some(id) = self.id(repository).await else { return };
                let deleted = delete(&self.db, id, &digest_of(&self.image(image)), self.now_ms).await;
                assert_eq!(deleted.is_some(), known);
            }
            Step::Unlink { repository, blob } => self.unlink(repository, blob).await,
            Step::Collect { batch } => {
                self.db.collect(self.now_ms, batch, false, &blob_entry).await.unwrap();
            }
            Step::Claim { limit } => {
                let removals = self.db.removals(self.now_ms, self.now_ms + 100, limit).await.unwrap();
                self.claimed.extend(removals.into_iter().map(|removal| (removal.id, removal.entry)));
            }
            Step::RemoveFiles => {
                for (id, entry) in self.claimed.drain(..) {
                    let mut words = entry.split(' ');
                    if words.next() == Some("blob") {
                        self.files.remove(&words.next().unwrap().parse().unwrap());
                    }
                    self.removed.push(id);
                }
            }
            Step::Forget => self.db.removed(&std::mem::take(&mut self.removed)).await.unwrap(),
            Step::Wait { ms } => self.now_ms += ms,
        }
    }

    async fn id(&self, repository: usize) -> Option<db::RepositoryId> {
        self.db.repository_id(&self.repository(repository).parse().unwrap()).await.unwrap()
    }

    /// Whether there is such a blob anywhere.
    async fn row(&self, blob: usize) -> bool {
        let digest = digest(&self.content(blob));
        self.blobs().await.iter().any(|row| row.digest == digest)
    }

    /// The blobs of this world.
    async fn blobs(&self) -> Vec<db::BlobRow> {
        let ours: HashSet<_> = (0..=BLOBS).map(|blob| digest(&self.content(blob))).collect();
        let mut rows = self.db.blobs_page(BlobId(0), 100_000).await.unwrap();
        rows.retain(|row| ours.contains(&row.digest));
        rows
    }

    async fn commit(&mut self, upload: usize, repository: usize) {
        let Some(&(key, blob)) = self.uploads.get(upload % self.uploads.len().max(1)) else { return };
        // As a server does before it commits: are the bytes there?
        if !self.files.contains(&key) {
            return;
        }
        let (name, content) = (self.repository(repository).parse().unwrap(), self.content(blob));
        let (digest, size) = (digest(&content), content.len() as u64);
        let entry = blob_entry(key, &digest, size);
        let new = db::NewBlob {
            repository: &name,
            digest: &digest,
            size,
            key,
            entry: &entry,
            now_ms: self.now_ms,
            leased_until_ms: self.now_ms + LEASE_MS,
        };
        let rows = self.blobs().await;
        // One that is a blob already may be committed again.
        let is_blob = rows.iter().any(|row| row.key == key);
        let row = self.db.upload(key).await.unwrap();
        let ended = row.is_some_and(|row| !(is_blob && row.status == db::UploadStatus::Finished));
        let before = rows.into_iter().find(|row| row.digest == digest);
        match self.db.commit_blob(&new).await.unwrap() {
            BlobCommit::Over => assert!(ended, "nobody had ended it"),
            BlobCommit::Stored(linked) => {
                assert!(!ended);
                assert_eq!(linked.link.key, key);
                assert!(before.is_none_or(|row| row.key == key));
                self.promise_if_leased(repository, blob, &linked.link);
            }
            BlobCommit::Existed(linked) => {
                assert!(!ended);
                assert_eq!(Some(linked.link.key), before.map(|row| row.key));
                self.promise_if_leased(repository, blob, &linked.link);
            }
        }
    }

    fn promise_if_leased(&mut self, repository: usize, blob: usize, link: &db::Link) {
        if link.leased_until.is_some() {
            self.promise(repository, blob);
        }
    }

    async fn put(&mut self, repository: usize, number: usize, tag: Option<usize>) {
        let mut missing = Vec::new();
        for blob in needed(number) {
            if self.link(repository, blob).await.is_none() {
                missing.push(digest(&self.content(blob)));
            }
        }
        let (name, manifest) = (self.repository(repository), self.image(number));
        let tags: Vec<_> = tag.iter().map(|tag| TAGS[*tag]).collect();
        match try_put(&self.db, &name, &manifest, &tags, self.now_ms).await {
            Ok(put) => {
                assert_eq!(missing, []);
                assert_eq!(put.created, self.manifests.insert((repository, number)));
                if let Some(tag) = tag {
                    let before = self.tags.insert((repository, tag), number);
                    assert_eq!(put.tags[0].moved, before != Some(number));
                }
            }
            Err(PutManifestError::MissingBlobs(mut found)) => {
                found.sort_by_key(ToString::to_string);
                missing.sort_by_key(ToString::to_string);
                assert_eq!(found, missing);
            }
            Err(error) => panic!("{error}"),
        }
    }

    async fn unlink(&mut self, repository: usize, blob: usize) {
        let needed = self.manifests.iter().any(|&(of, image)| of == repository && needed(image).contains(&blob));
        let linked = self.link(repository, blob).await.is_some();
        let Some(id) = self.id(repository).await else { return };
        let digest = digest(&self.content(blob));
        let unlink = self.db.unlink(id, &digest, self.now_ms, &blob_entry).await.unwrap();
        let expected = match (linked, needed) {
            (true, true) => Unlink::Referenced,
            (true, false) => Unlink::Unlinked,
            (false, _) => Unlink::NotFound,
        };
        assert_eq!(unlink, expected);
        if unlink == Unlink::Unlinked {
            self.promises.remove(&(repository, blob));
        }
    }

    /// What is true after every step.
    async fn check(&self) {
        for &(repository, image) in &self.manifests {
            for blob in needed(image) {
                let link = self.link(repository, blob).await.expect("a manifest's blob is not readable any more");
                assert!(self.files.contains(&link.key), "a manifest's blob has lost its bytes");
            }
        }
        for (&(repository, blob), &until) in &self.promises {
            if until > self.now_ms {
                assert!(self.link(repository, blob).await.is_some(), "a blob went that a client relies on");
            }
        }
        for row in self.blobs().await {
            assert!(self.files.contains(&row.key), "a blob has no bytes");
        }
    }

    /// When everybody is done and all leases are over, there is exactly what manifests need.
    async fn come_to_rest(mut self) {
        // A collector that was killed comes back, and so does the one that removes.
        self.claimed.clear();
        self.removed.clear();
        self.now_ms += 2 * LEASE_MS;
        collect_all(&self.db, self.now_ms).await;
        self.step(&Step::Claim { limit: 1_000_000 }).await;
        self.step(&Step::RemoveFiles).await;
        self.step(&Step::Forget).await;
        self.check().await;
        let mut readable = BTreeSet::new();
        let mut expected = BTreeSet::new();
        for repository in 0..REPOSITORIES.len() {
            for blob in 0..=BLOBS {
                if self.link(repository, blob).await.is_some() {
                    readable.insert((repository, blob));
                }
            }
        }
        for &(repository, image) in &self.manifests {
            expected.extend(needed(image).map(|blob| (repository, blob)));
        }
        assert_eq!(readable, expected);
        let rows: BTreeSet<_> = self.blobs().await.into_iter().map(|row| row.key).collect();
        let blobs: BTreeSet<_> = expected.iter().map(|(_, blob)| blob).collect();
        assert_eq!(rows.len(), blobs.len());
        // Files without a row are those of uploads that were never committed. The scrub takes them.
        for key in self.files.difference(&rows) {
            let committed =
                self.db.upload(*key).await.unwrap().is_some_and(|row| row.status == db::UploadStatus::Finished);
            assert!(!committed, "the bytes of {key} were given up, and stayed");
        }
        for (repository, name) in REPOSITORIES.iter().enumerate() {
            let Some(id) = self.id(repository).await else { continue };
            for (tag, text) in TAGS.iter().enumerate() {
                let reference = Reference::Tag(crate::support::tag(text));
                let found = self.db.manifest(id, &reference).await.unwrap().map(|manifest| manifest.digest);
                let expected = self.tags.get(&(repository, tag)).map(|image| digest_of(&self.image(*image)));
                assert_eq!(found, expected, "{name}:{text}");
            }
        }
        let backlog = self.db.backlog(self.now_ms).await.unwrap();
        assert_eq!((backlog.links_due, backlog.removals), (0, 0));
        // And without manifests there is nothing.
        for (repository, image) in self.manifests.clone() {
            self.step(&Step::DeleteManifest { repository, image }).await;
        }
        collect_all(&self.db, self.now_ms + LEASE_MS).await;
        take_removals(&self.db).await;
        assert_eq!(self.blobs().await, []);
    }
}

fn needed(image: usize) -> [usize; 2] {
    [image, image + 1]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (repository, blob) = (0..REPOSITORIES.len(), 0..=BLOBS);
    let step = prop_oneof![
        4 => blob.clone().prop_map(|blob| Step::Write { blob }),
        6 => (any::<usize>(), repository.clone()).prop_map(|(upload, repository)| Step::Commit { upload, repository }),
        1 => any::<usize>().prop_map(|upload| Step::Cancel { upload }),
        3 => (repository.clone(), blob.clone()).prop_map(|(repository, blob)| Step::Head { repository, blob }),
        3 => (blob.clone(), proptest::option::of(repository.clone()), repository.clone())
            .prop_map(|(blob, from, to)| Step::Mount { blob, from, to }),
        6 => (repository.clone(), 0..BLOBS, proptest::option::of(0..TAGS.len()))
            .prop_map(|(repository, image, tag)| Step::Put { repository, image, tag }),
        1 => (repository.clone(), 0..TAGS.len()).prop_map(|(repository, tag)| Step::DeleteTag { repository, tag }),
        3 => (repository.clone(), 0..BLOBS).prop_map(|(repository, image)| Step::DeleteManifest { repository, image }),
        1 => (repository, blob).prop_map(|(repository, blob)| Step::Unlink { repository, blob }),
        5 => (1_u32..6).prop_map(|batch| Step::Collect { batch }),
        2 => (1_u32..4).prop_map(|limit| Step::Claim { limit }),
        2 => Just(Step::RemoveFiles),
        1 => Just(Step::Forget),
        3 => (0..LEASE_MS).prop_map(|ms| Step::Wait { ms }),
    ];
    proptest::collection::vec(step, 1..80)
}

/// In memory, if the machine has such a folder: here nothing depends on what a crash of the machine leaves.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn open(folder: &std::path::Path) -> DbConfig {
    let url = format!("sqlite://{}", folder.join("registry.db").display());
    DbConfig { url: Redacted::new(url), ..DbConfig::default() }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_needed_is_ever_removed(steps in steps()) {
        let folder = folder();
        runtime().block_on(async {
            let db = Db::connect(&open(folder.path())).await.unwrap();
            let mut world = World::new(db.clone(), "");
            for step in &steps {
                world.step(step).await;
                world.check().await;
            }
            world.come_to_rest().await;
            assert_eq!(db.dangling_rows(10).await.unwrap(), []);
            db.close().await;
        });
    }
}

/// Every order in which these can happen, each client's own steps in theirs: one pushes, one skips what it saw and mounts it, one
/// deletes, and the collector finds the leases over.
#[test]
fn all_interleavings_of_push_skip_delete_and_collect() {
    let put = |image| Step::Put { repository: 0, image, tag: Some(0) };
    let clients: [Vec<Step>; 4] = [
        // The bytes were there before, so this upload loses, or wins if the collector was quicker.
        vec![Step::Commit { upload: 2, repository: 0 }, put(0)],
        vec![Step::Head { repository: 0, blob: 1 }, Step::Mount { blob: 1, from: Some(0), to: 1 }],
        vec![Step::DeleteManifest { repository: 0, image: 0 }],
        vec![Step::Collect { batch: 10 }, Step::Claim { limit: 10 }, Step::RemoveFiles],
    ];
    let folder = folder();
    runtime().block_on(async {
        let db = Db::connect(&open(folder.path())).await.unwrap();
        let (mut count, mut pushed) = (0, 0);
        for order in interleavings(&clients.each_ref().map(Vec::len)) {
            let mut world = World::new(db.clone(), &format!("n{count}-"));
            count += 1;
            // Both blobs of image 0, whose leases are over; a second upload of one of them is written.
            for step in [
                Step::Write { blob: 0 },
                Step::Write { blob: 1 },
                Step::Write { blob: 0 },
                Step::Commit { upload: 0, repository: 0 },
                Step::Commit { upload: 1, repository: 0 },
                Step::Wait { ms: LEASE_MS },
            ] {
                world.step(&step).await;
            }
            let mut next = [0; 4];
            for client in order {
                world.step(&clients[client][next[client]]).await;
                next[client] += 1;
                world.check().await;
            }
            pushed += world.manifests.len();
            world.come_to_rest().await;
        }
        assert_eq!(count, 1680);
        assert!((100..count).contains(&pushed), "{pushed} of the pushes succeeded");
        assert_eq!(db.dangling_rows(10).await.unwrap(), []);
        db.close().await;
    });
}

/// All orders of so many steps of each client.
fn interleavings(left: &[usize]) -> Vec<Vec<usize>> {
    if left.iter().all(|left| *left == 0) {
        return vec![Vec::new()];
    }
    let mut all = Vec::new();
    for client in 0..left.len() {
        if left[client] > 0 {
            let mut rest = left.to_vec();
            rest[client] -= 1;
            all.extend(interleavings(&rest).into_iter().map(|mut order| {
                order.insert(0, client);
                order
            }));
        }
    }
    all
}
