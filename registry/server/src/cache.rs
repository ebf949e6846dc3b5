//! What this process remembers of the database, as long as no other process can change it.
//!
//! Whoever reads takes the [`Stamp`] of the repository first, then reads, then puts what it read in with that stamp. Whoever
//! writes calls [`Cache::changed`] after its commit and before it answers. An entry is good while its stamp is the current
//! one, so that what was read before a change is never found after the change was acknowledged.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use db::{Link, RepositoryId, StoredManifest};
use moka::sync;
use oci::upload::UploadId;
use oci::{Digest, Reference, RepositoryName};

use crate::config::CacheConfig;

/// Repositories share this many counters; two that meet in one only lose entries they could have kept.
const EPOCHS: usize = 4096;

/// When something was read, in changes of its repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp(u64);

/// A page of a list, as it is answered.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// The body.
    pub(crate) body: Bytes,
    /// The last entry, when there is more.
    pub(crate) next: Option<String>,
}

/// Which page.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PageKey {
    /// The tags of one repository, or the catalog.
    pub(crate) repository: Option<RepositoryId>,
    pub(crate) limit: u64,
    pub(crate) after: Option<String>,
}

type Stamped<T> = (Stamp, T);

/// Uploads that were begun and of which nothing came yet.
const FRESH: u64 = 10_000;

/// The memory of this process.
pub(crate) struct Cache {
    /// Nobody else changes the database.
    exclusive: bool,
    /// Ids are never given twice, so these are good for ever.
    repositories: sync::Cache<RepositoryName, RepositoryId>,
    links: sync::Cache<(RepositoryId, Digest), Stamped<Link>>,
    manifests: sync::Cache<(RepositoryId, Reference), Stamped<Arc<StoredManifest>>>,
    pages: sync::Cache<PageKey, Stamped<Arc<Page>>>,
    fresh: sync::Cache<UploadId, ()>,
    /// When a manifest was kept last, in ms since 1970. Good whoever else changes the database.
    kept: sync::Cache<(RepositoryId, Digest), i64>,
    epochs: Box<[AtomicU64]>,
    /// Of the catalog.
    catalog: AtomicU64,
}

impl Cache {
    pub(crate) fn new(config: &CacheConfig, exclusive: bool) -> Self {
        let weight = |bytes: usize| u32::try_from(bytes + 256).unwrap_or(u32::MAX);
        Self {
            exclusive,
            repositories: sync::Cache::new(config.entries),
            links: sync::Cache::new(config.entries),
            manifests: sync::Cache::builder()
                .max_capacity(config.size.as_u64() / 2)
                .weigher(move |_, (_, manifest): &Stamped<Arc<StoredManifest>>| weight(manifest.content.len()))
                .build(),
            pages: sync::Cache::builder()
                .max_capacity(config.size.as_u64() / 2)
                .weigher(move |_, (_, page): &Stamped<Arc<Page>>| weight(page.body.len()))
                .build(),
            fresh: sync::Cache::new(FRESH),
            kept: sync::Cache::new(config.entries),
            epochs: (0..EPOCHS).map(|_| AtomicU64::new(0)).collect(),
            catalog: AtomicU64::new(0),
        }
    }

    fn epoch(&self, repository: Option<RepositoryId>) -> &AtomicU64 {
        let index = |id: RepositoryId| usize::try_from(id.0.rem_euclid(EPOCHS as i64)).unwrap_or(0);
        repository.map_or(&self.catalog, |id| &self.epochs[index(id)])
    }

    /// To be taken before reading what shall be put in.
    pub(crate) fn stamp(&self, repository: Option<RepositoryId>) -> Stamp {
        Stamp(self.epoch(repository).load(Ordering::Acquire))
    }

    /// Something in this repository changed; to be called after the commit and before the answer.
    pub(crate) fn changed(&self, repository: RepositoryId) {
        self.epoch(Some(repository)).fetch_add(1, Ordering::AcqRel);
        self.catalog.fetch_add(1, Ordering::AcqRel);
    }

    /// Something changed in nobody knows which repositories.
    pub(crate) fn changed_everywhere(&self) {
        for epoch in self.epochs.iter().chain([&self.catalog]) {
            epoch.fetch_add(1, Ordering::AcqRel);
        }
    }

    pub(crate) fn repository(&self, name: &RepositoryName) -> Option<RepositoryId> {
        self.repositories.get(name)
    }

    pub(crate) fn put_repository(&self, name: &RepositoryName, id: RepositoryId) {
        self.repositories.insert(name.clone(), id);
    }

    /// A link that is good at `now_ms`: one whose lease is over may be gone by now.
    pub(crate) fn link(&self, repository: RepositoryId, digest: &Digest, now_ms: i64) -> Option<Link> {
        let link = self.get(&self.links, &(repository, digest.clone()), Some(repository))?;
        link.leased_until.is_none_or(|until| until > now_ms).then_some(link)
    }

    pub(crate) fn put_link(&self, repository: RepositoryId, digest: &Digest, stamp: Stamp, link: &Link) {
        self.put(&self.links, (repository, digest.clone()), stamp, link.clone());
    }

    /// What was found to be wrong.
    pub(crate) fn forget_link(&self, repository: RepositoryId, digest: &Digest) {
        self.links.invalidate(&(repository, digest.clone()));
    }

    pub(crate) fn manifest(&self, repository: RepositoryId, reference: &Reference) -> Option<Arc<StoredManifest>> {
        self.get(&self.manifests, &(repository, reference.clone()), Some(repository))
    }

    pub(crate) fn put_manifest(
        &self,
        repository: RepositoryId,
        reference: &Reference,
        stamp: Stamp,
        manifest: &Arc<StoredManifest>,
    ) {
        self.put(&self.manifests, (repository, reference.clone()), stamp, Arc::clone(manifest));
    }

    /// Whether a manifest was kept since then.
    pub(crate) fn is_kept(&self, repository: RepositoryId, digest: &Digest, since_ms: i64) -> bool {
        self.kept.get(&(repository, digest.clone())).is_some_and(|kept| kept >= since_ms)
    }

    pub(crate) fn kept(&self, repository: RepositoryId, digest: &Digest, now_ms: i64) {
        self.kept.insert((repository, digest.clone()), now_ms);
    }

    pub(crate) fn page(&self, key: &PageKey) -> Option<Arc<Page>> {
        self.get(&self.pages, key, key.repository)
    }

    pub(crate) fn put_page(&self, key: PageKey, stamp: Stamp, page: &Arc<Page>) {
        self.put(&self.pages, key, stamp, Arc::clone(page));
    }

    /// Forgets everything: the database may be another one by now.
    pub(crate) fn clear(&self) {
        self.repositories.invalidate_all();
        self.links.invalidate_all();
        self.manifests.invalidate_all();
        self.pages.invalidate_all();
        self.fresh.invalidate_all();
        self.kept.invalidate_all();
    }

    /// An upload was begun, of which the database knows nothing.
    pub(crate) fn upload_begun(&self, id: UploadId) {
        if self.exclusive {
            self.fresh.insert(id, ());
        }
    }

    /// Whether the database knows nothing of this upload for certain. True once at most: whoever asks is about to change that.
    pub(crate) fn take_fresh_upload(&self, id: UploadId) -> bool {
        self.fresh.remove(&id).is_some()
    }

    fn get<K, V>(&self, cache: &sync::Cache<K, Stamped<V>>, key: &K, repository: Option<RepositoryId>) -> Option<V>
    where
        K: Hash + Eq + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        if !self.exclusive {
            return None;
        }
        let (stamp, value) = cache.get(key)?;
        (stamp == self.stamp(repository)).then_some(value)
    }

    fn put<K, V>(&self, cache: &sync::Cache<K, Stamped<V>>, key: K, stamp: Stamp, value: V)
    where
        K: Hash + Eq + Send + Sync + 'static,
        V: Clone + Send + Sync + 'static,
    {
        if self.exclusive {
            cache.insert(key, (stamp, value));
        }
    }
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("exclusive", &self.exclusive).finish_non_exhaustive()
    }
}
