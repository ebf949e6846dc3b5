//! What all uploads and downloads of one store share: the client, and each request by its meaning.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::Method;
use object_store::aws::AmazonS3;
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::signer::Signer as _;
use object_store::{Error, GetOptions, GetRange, ObjectStore as _, ObjectStoreExt as _, PutMode, PutPayload};
use oci::upload::UploadId;
use proto::{ByteRange, Digest};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Url;

use super::cache::SegmentCache;
use super::client::{self, failed};
use super::keys::Keys;
use super::state::{Multipart, Segment, random_name};
use crate::config::S3Config;
use crate::error::StoreError;
use crate::hash::RunningHash;
use crate::name::StoredBlob;
use crate::store::BlobBody;

pub(super) struct Shared {
    s3: AmazonS3,
    /// Signs URLs for clients, when they are sent to the storage.
    signer: Option<AmazonS3>,
    pub(super) keys: Keys,
    pub(super) part_size: u64,
    /// One for each part on its way: parts are held in memory until they have arrived.
    permits: Arc<Semaphore>,
    /// One for each byte that uploads may hold of what does not fill a part yet.
    memory: Arc<Semaphore>,
    cache: SegmentCache,
    place: String,
}

/// One whole part may be in memory.
#[derive(Debug)]
pub(super) struct PartPermit(#[expect(dead_code, reason = "given back when it is dropped")] OwnedSemaphorePermit);

/// A note holds the id of a multipart upload. Longer ones are not read.
const NOTE_BYTES_MAX: u64 = 8 * 1024;

impl Shared {
    pub(super) fn new(config: &S3Config) -> Result<Self, StoreError> {
        Ok(Self {
            s3: client::build(config)?,
            signer: config.redirect.then(|| client::build_signer(config)).transpose()?,
            keys: Keys::new(&config.prefix),
            part_size: config.part_size.as_u64(),
            permits: Arc::new(Semaphore::new(config.parts_in_flight)),
            memory: Arc::new(Semaphore::new(config.memory_for_tails().as_usize().min(Semaphore::MAX_PERMITS))),
            cache: SegmentCache::new(config.tail_cache.as_usize()),
            place: format!("{}/{}", config.bucket, config.prefix),
        })
    }

    /// Whether bucket and key can be used.
    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        self.has_any(&self.keys.uploads()).await.map(drop)
    }

    /// Whether there is anything under a prefix.
    pub(super) async fn has_any(&self, folder: &Path) -> Result<bool, StoreError> {
        let first = self.s3.list(Some(folder)).next().await;
        let first = first.transpose().map_err(|error| failed("list", folder.as_ref(), error))?;
        Ok(first.is_some())
    }

    // === objects ===

    pub(super) async fn put(&self, key: &Path, payload: PutPayload) -> Result<(), StoreError> {
        self.s3.put(key, payload).await.map(drop).map_err(|error| failed("put", key.as_ref(), error))
    }

    /// The length of an object, if there is one.
    pub(super) async fn size(&self, key: &Path) -> Result<Option<u64>, StoreError> {
        match self.s3.head(key).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("look at", key.as_ref(), error)),
        }
    }

    /// A small object, whole.
    pub(super) async fn get(&self, key: &Path) -> Result<Bytes, StoreError> {
        let content = async { self.s3.get(key).await?.bytes().await };
        content.await.map_err(|error| failed("get", key.as_ref(), error))
    }

    /// Everything under a prefix.
    pub(super) async fn list(&self, prefix: &Path) -> Result<Vec<object_store::ObjectMeta>, StoreError> {
        let found = self.s3.list(Some(prefix)).try_collect().await;
        found.map_err(|error| failed("list", prefix.as_ref(), error))
    }

    /// Removes objects, at most as many as one request may, and answers for each in the same order.
    pub(super) async fn remove(&self, keys: Vec<Path>) -> Vec<Result<(), StoreError>> {
        let count = keys.len();
        let outcomes = self.s3.delete_stream(stream::iter(keys.clone()).map(Ok).boxed()).zip(stream::iter(keys));
        let mut outcomes: Vec<Result<(), StoreError>> = outcomes
            .map(|(outcome, key)| match outcome {
                Ok(_) | Err(Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(failed("remove", key.as_ref(), error)),
            })
            .collect()
            .await;
        // When the request itself fails there is one answer, for all.
        let rest = outcomes.last().cloned().unwrap_or(Ok(()));
        if outcomes.len() < count && rest.is_ok() {
            outcomes.resize(count, Err(StoreError::Interrupted));
        }
        outcomes.resize(count, rest);
        outcomes
    }

    // === blobs ===

    pub(super) async fn get_content(
        &self,
        blob: &StoredBlob,
        range: Option<ByteRange>,
    ) -> Result<BlobBody, StoreError> {
        let key = self.keys.content(blob.key);
        let wanted = range.map(|range| GetRange::Bounded(range.start()..range.end()));
        let result = self.s3.get_opts(&key, GetOptions { range: wanted, ..GetOptions::default() }).await;
        let result = result.map_err(|error| failed("get", key.as_ref(), error))?;
        if result.meta.size != blob.size {
            let why = format!("there are {} bytes instead of {}", result.meta.size, blob.size);
            return Err(StoreError::Corrupt { what: key.to_string(), why });
        }
        let len = range.map_or(blob.size, ByteRange::len);
        let stream = exactly(len, result.into_stream(), key);
        Ok(BlobBody::Stream { len, stream })
    }

    /// Reads a blob back and hashes it.
    pub(super) async fn hash_content(&self, blob: &StoredBlob) -> Result<Digest, StoreError> {
        let mut hash = RunningHash::new(blob.digest.algorithm())?;
        let body = self.get_content(blob, None).await?;
        let BlobBody::Stream { mut stream, .. } = body else { return Err(StoreError::Interrupted) };
        while let Some(bytes) = stream.try_next().await? {
            let job = move || {
                hash.update(&bytes);
                hash
            };
            hash = tokio::task::spawn_blocking(job).await.map_err(|_| StoreError::Interrupted)?;
        }
        Ok(hash.finish())
    }

    /// Makes a blob's object of one piece.
    pub(super) async fn put_content(&self, blob: &StoredBlob, payload: PutPayload) -> Result<(), StoreError> {
        let key = self.keys.content(blob.key);
        match self.s3.put_opts(&key, payload, PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => self.expect_content(blob).await,
            Err(error) => Err(failed("put", key.as_ref(), error)),
        }
    }

    /// There is an object of this name already: it is this blob, or somebody else's.
    pub(super) async fn expect_content(&self, blob: &StoredBlob) -> Result<(), StoreError> {
        let is_ours = match self.hash_content(blob).await {
            Ok(found) => found == blob.digest,
            Err(StoreError::Corrupt { .. }) => false,
            Err(error) => return Err(error),
        };
        if is_ours { Ok(()) } else { Err(StoreError::Taken) }
    }

    pub(super) async fn remove_content(&self, key: UploadId) {
        self.remove_quietly(vec![self.keys.content(key)]).await;
    }

    pub(super) async fn put_name(&self, blob: &StoredBlob) -> Result<(), StoreError> {
        self.put(&self.keys.name(blob), PutPayload::new()).await
    }

    pub(super) async fn presign(
        &self,
        blob: &StoredBlob,
        method: &Method,
        expires: Duration,
    ) -> Result<Option<Url>, StoreError> {
        let Some(signer) = &self.signer else { return Ok(None) };
        let key = self.keys.content(blob.key);
        let url = signer.signed_url(method.clone(), &key, expires).await;
        url.map(Some).map_err(|error| failed("sign a URL of", key.as_ref(), error))
    }

    // === multipart uploads ===

    /// Begins a multipart upload, and leaves a note of it.
    pub(super) async fn create_multipart(&self, id: UploadId) -> Result<Multipart, StoreError> {
        let key = self.keys.content(id);
        let created = self.s3.create_multipart(&key).await.map_err(|error| failed("begin", key.as_ref(), error))?;
        let multipart = Multipart { id: created, random: random_name() };
        let note = self.put(&self.keys.note(id, &multipart), Bytes::from(multipart.id.clone()).into()).await;
        if note.is_err() {
            let _ = self.s3.abort_multipart(&key, &multipart.id).await;
        }
        note.map(|()| multipart)
    }

    /// Waits until one more part may be in memory. Whoever has this waits for the storage alone, never for a client.
    pub(super) async fn permit(&self) -> Result<PartPermit, StoreError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        permit.map(PartPermit).map_err(|_| StoreError::Interrupted)
    }

    /// Room for so many bytes that do not fill a part yet. Nobody waits for it: a client that stalls may have it for long.
    pub(super) fn room(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.memory).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }

    /// Sends a part and returns its tag.
    pub(super) async fn put_part(
        &self,
        id: UploadId,
        multipart: &Multipart,
        index: usize,
        payload: PutPayload,
    ) -> Result<String, StoreError> {
        let key = self.keys.content(id);
        let part = self.s3.put_part(&key, &multipart.id, index, payload).await;
        let part = part.map_err(|error| failed("put a part of", key.as_ref(), error))?;
        Ok(part.content_id.trim_matches('"').to_owned())
    }

    /// Makes a blob's object of its parts.
    pub(super) async fn complete_multipart(
        &self,
        blob: &StoredBlob,
        multipart: &Multipart,
        tags: Vec<String>,
    ) -> Result<(), StoreError> {
        let key = self.keys.content(blob.key);
        let parts = tags.into_iter().map(|tag| PartId { content_id: format!("\"{tag}\"") }).collect();
        match self.s3.complete_multipart(&key, &multipart.id, parts).await {
            Ok(_) => Ok(()),
            // Another request, or this one when an answer was lost, has ended the upload before.
            Err(Error::NotFound { .. } | Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                self.expect_content(blob).await
            }
            Err(error) => Err(failed("complete", key.as_ref(), error)),
        }
    }

    /// Ends a multipart upload without an object. The note stays when it shall be ended once more later.
    pub(super) async fn abort_multipart(
        &self,
        id: UploadId,
        multipart: &Multipart,
        forget: bool,
    ) -> Result<(), StoreError> {
        let key = self.keys.content(id);
        match self.s3.abort_multipart(&key, &multipart.id).await {
            Ok(()) | Err(Error::NotFound { .. }) => {}
            Err(error) => return Err(failed("end", key.as_ref(), error)),
        }
        if forget {
            self.remove_quietly(vec![self.keys.note(id, multipart)]).await;
        }
        Ok(())
    }

    /// Removes everything of an upload but the blob it may have become.
    pub(super) async fn discard(&self, id: UploadId, known: Option<&Multipart>) -> Result<(), StoreError> {
        if let Some(multipart) = known {
            self.abort_multipart(id, multipart, false).await?;
        }
        let folder = self.keys.upload(id);
        let mut keys = Vec::new();
        for object in self.list(&folder).await? {
            let random = object.location.filename().and_then(|name| name.strip_prefix("multipart."));
            if let Some(random) = random.filter(|_| object.size <= NOTE_BYTES_MAX) {
                let id_of = String::from_utf8_lossy(&self.get(&object.location).await?).into_owned();
                let multipart = Multipart { id: id_of, random: random.to_owned() };
                self.abort_multipart(id, &multipart, false).await?;
            }
            self.cache.remove(&object.location);
            keys.push(object.location);
        }
        for batch in keys.chunks(super::REMOVE_MAX) {
            self.remove(batch.to_vec()).await.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }

    // === segments ===

    pub(super) async fn put_segment(
        &self,
        id: UploadId,
        segment: &Segment,
        content: PutPayload,
        keep: bool,
    ) -> Result<(), StoreError> {
        let key = self.keys.segment(id, segment);
        self.put(&key, content.clone()).await?;
        if keep {
            // A copy: the pieces may be small parts of larger ones, which would be kept with them.
            let mut copy = Vec::with_capacity(content.content_length());
            content.iter().for_each(|piece| copy.extend_from_slice(piece));
            self.cache.put(key, copy.into());
        }
        Ok(())
    }

    pub(super) async fn segment(&self, id: UploadId, segment: &Segment) -> Result<Bytes, StoreError> {
        let key = self.keys.segment(id, segment);
        let content = match self.cache.get(&key) {
            Some(content) => content,
            None => self.get(&key).await?,
        };
        if content.len() as u64 != segment.length {
            let why = format!("there are {} bytes instead of {}", content.len(), segment.length);
            return Err(StoreError::Corrupt { what: key.to_string(), why });
        }
        Ok(content)
    }

    /// Removes segments nobody needs; what stays is removed with the upload.
    pub(super) async fn remove_segments(&self, id: UploadId, segments: Vec<Segment>) {
        let keys: Vec<Path> = segments.iter().map(|segment| self.keys.segment(id, segment)).collect();
        keys.iter().for_each(|key| self.cache.remove(key));
        self.remove_quietly(keys).await;
    }

    async fn remove_quietly(&self, keys: Vec<Path>) {
        for batch in keys.chunks(super::REMOVE_MAX) {
            if let Some(error) = self.remove(batch.to_vec()).await.into_iter().find_map(Result::err) {
                tracing::warn!(%error, "cannot clean up in the object storage");
            }
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("place", &self.place).field("part_size", &self.part_size).finish_non_exhaustive()
    }
}

/// A stream that is an error when it has more or fewer bytes than it should.
fn exactly(
    len: u64,
    stream: stream::BoxStream<'static, object_store::Result<Bytes>>,
    key: Path,
) -> stream::BoxStream<'static, Result<Bytes, StoreError>> {
    let damaged = |key: &Path| StoreError::Corrupt { what: key.to_string(), why: "its length has changed".to_owned() };
    let state = (stream, len, Arc::new(key));
    stream::try_unfold(state, move |(mut stream, left, key)| async move {
        match stream.try_next().await.map_err(|error| failed("get", key.as_ref().as_ref(), error))? {
            Some(bytes) => {
                let left = left.checked_sub(bytes.len() as u64).ok_or_else(|| damaged(&key))?;
                Ok(Some((bytes, (stream, left, key))))
            }
            None if left > 0 => Err(damaged(&key)),
            None => Ok(None),
        }
    })
    .boxed()
}
