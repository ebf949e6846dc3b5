//! Writing an upload to object storage, in parts of equal length.

use std::mem;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use oci::upload::UploadId;
use proto::Digest;
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::JoinSet;

use super::Shared;
use super::state::{Multipart, ObjectState, Segment};
use super::tail::Tail;
use crate::error::{FinishError, StoreError};
use crate::hash::RunningHash;
use crate::name::StoredBlob;
use crate::store::{BlobWriter, Finished, WriterState};

/// Of one upload at a time: one is sent while the other is prepared.
const IN_FLIGHT_MAX: usize = 2;
/// S3 knows no more in one upload.
const PARTS_MAX: usize = 10_000;

pub(super) struct ObjectWriter {
    shared: Arc<Shared>,
    id: UploadId,
    part_size: u64,
    multipart: Option<Multipart>,
    /// The tags of the parts in order; `None` while a part is on its way.
    parts: Vec<Option<String>>,
    in_flight: JoinSet<Result<(usize, String), StoreError>>,
    tail: Tail,
    /// Segments that are superfluous once the next checkpoint is known to be the upload's.
    covered: Vec<Segment>,
    /// Segments that are superfluous.
    obsolete: Vec<Segment>,
    /// There may be something in `uploads/ID` that other requests, or a database, know of.
    checkpointed: bool,
}

impl ObjectWriter {
    pub(super) fn begin(shared: Arc<Shared>, id: UploadId) -> Self {
        let part_size = shared.part_size;
        Self {
            shared,
            id,
            part_size,
            multipart: None,
            parts: Vec::new(),
            in_flight: JoinSet::new(),
            tail: Tail::new(0, Vec::new()),
            covered: Vec::new(),
            obsolete: Vec::new(),
            checkpointed: false,
        }
    }

    pub(super) fn resume(shared: Arc<Shared>, id: UploadId, state: ObjectState) -> Result<Self, StoreError> {
        if !state.is_sound() {
            return Err(StoreError::Checkpoint("its parts do not fit each other"));
        }
        let mut writer = Self::begin(shared, id);
        writer.tail = Tail::new(state.tail_start(), state.segments);
        writer.part_size = state.part_size;
        writer.multipart = state.multipart;
        writer.parts = state.parts.into_iter().map(Some).collect();
        // Whoever resumes has this state from the database, so nobody can need what it covers.
        writer.obsolete = state.covered;
        writer.checkpointed = true;
        Ok(writer)
    }

    /// A full tail is kept until more comes: if nothing does, it is the last part, or the whole blob.
    async fn append(&mut self, mut bytes: Bytes, mut room: Option<OwnedSemaphorePermit>) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            if self.tail.length() == self.part_size {
                self.send_part().await?;
            }
            let left = self.part_size - self.tail.length();
            let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
            self.tail.push(bytes.split_to(taken), room.as_mut().and_then(|room| room.split(taken)));
        }
        Ok(())
    }

    /// The tail becomes a part, which is sent beside what follows.
    async fn send_part(&mut self) -> Result<(), StoreError> {
        let index = self.parts.len();
        if index >= PARTS_MAX {
            return Err(StoreError::TooLarge { max: self.part_size * PARTS_MAX as u64 });
        }
        let multipart = match &self.multipart {
            Some(multipart) => multipart.clone(),
            None => {
                let multipart = self.shared.create_multipart(self.id).await?;
                self.multipart.insert(multipart).clone()
            }
        };
        while self.in_flight.len() >= IN_FLIGHT_MAX {
            self.part_arrived().await?;
        }
        let permit = self.shared.permit().await?;
        self.tail.read(&self.shared, self.id, &permit).await?;
        let (shared, id, payload) = (Arc::clone(&self.shared), self.id, self.tail.payload());
        self.parts.push(None);
        let mut superfluous = self.tail.advance();
        self.covered.append(&mut superfluous.known);
        self.in_flight.spawn(async move {
            let tag = shared.put_part(id, &multipart, index, payload).await;
            drop(permit);
            // If the part did not arrive the upload breaks, and goes on from a checkpoint, which knows nothing of these.
            if !superfluous.unknown.is_empty() {
                shared.remove_segments(id, superfluous.unknown).await;
            }
            Ok((index, tag?))
        });
        Ok(())
    }

    async fn part_arrived(&mut self) -> Result<(), StoreError> {
        if let Some(arrived) = self.in_flight.join_next().await {
            let (index, tag) = arrived.map_err(|_| StoreError::Interrupted)??;
            self.parts[index] = Some(tag);
        }
        Ok(())
    }

    /// The tags of all parts, when all have arrived.
    async fn tags(&mut self) -> Result<Vec<String>, StoreError> {
        while !self.in_flight.is_empty() {
            self.part_arrived().await?;
        }
        self.parts.iter().cloned().collect::<Option<_>>().ok_or(StoreError::Interrupted)
    }

    /// Makes the object.
    async fn complete(&mut self, blob: &StoredBlob, last: Bytes) -> Result<(), StoreError> {
        let Some(multipart) = self.multipart.clone() else {
            let permit = if self.tail.is_unread() { Some(self.shared.permit().await?) } else { None };
            if let Some(permit) = &permit {
                self.tail.read(&self.shared, self.id, permit).await?;
            }
            self.tail.push(last, None);
            return self.shared.put_content(blob, self.tail.payload()).await;
        };
        self.append(last, None).await?;
        let completed = async {
            if self.tail.length() > 0 {
                self.send_part().await?;
            }
            let tags = self.tags().await?;
            self.shared.complete_multipart(blob, &multipart, tags).await
        };
        match completed.await {
            // Another process, or a request whose answer was lost, has ended this upload before.
            Err(StoreError::NotFound { .. }) => self.shared.expect_content(blob).await,
            completed => completed,
        }
    }

    /// What the hash over everything is, and how much was read back for it.
    async fn verify(&mut self, blob: &StoredBlob, hash: RunningHash) -> Result<(Digest, u64), StoreError> {
        if hash.algorithm() == blob.digest.algorithm() {
            return Ok((hash.finish(), 0));
        }
        Ok((self.shared.hash_content(blob).await?, blob.size))
    }
}

#[async_trait]
impl BlobWriter for ObjectWriter {
    async fn write(&mut self, bytes: Bytes, hash: RunningHash) -> Result<RunningHash, StoreError> {
        if bytes.is_empty() {
            return Ok(hash);
        }
        let room = self.shared.room(bytes.len());
        let kept = self.tail.in_memory() + bytes.len() as u64;
        let spills = room.is_none() && kept >= Tail::kept_at_least(self.part_size);
        let (hash, bytes) = if spills { hash_last(bytes, hash).await? } else { hash_and_copy(bytes, hash).await? };
        self.append(bytes, room).await?;
        if spills {
            self.tail.spill(&self.shared, self.id).await?;
        }
        Ok(hash)
    }

    async fn checkpoint(&mut self, bytes: Bytes, hash: RunningHash) -> Result<(RunningHash, WriterState), StoreError> {
        let hash = self.write(bytes, hash).await?;
        if self.tail.length() == self.part_size {
            self.send_part().await?;
        }
        let parts = self.tags().await?;
        let mut superfluous = self.tail.save(&self.shared, self.id).await?;
        self.covered.append(&mut superfluous.known);
        if !superfluous.unknown.is_empty() {
            self.shared.remove_segments(self.id, superfluous.unknown).await;
        }
        self.shared.remove_segments(self.id, mem::take(&mut self.obsolete)).await;
        self.checkpointed = true;
        let state = ObjectState {
            part_size: self.part_size,
            multipart: self.multipart.clone(),
            parts,
            segments: self.tail.segments().to_vec(),
            covered: self.covered.clone(),
        };
        Ok((hash, WriterState::S3(state)))
    }

    fn forget(&mut self) {
        self.checkpointed = false;
    }

    async fn commit(
        mut self: Box<Self>,
        last: Bytes,
        mut hash: RunningHash,
        digest: &Digest,
    ) -> Result<Finished, FinishError> {
        let size = self.tail.end() + last.len() as u64;
        let blob = StoredBlob { key: self.id, digest: digest.clone(), size };
        let last = if last.is_empty() {
            last
        } else {
            let (hashed, bytes) = hash_last(last, hash).await?;
            hash = hashed;
            bytes
        };
        let known_before = hash.algorithm() == digest.algorithm();
        if known_before {
            let computed = hash.clone().finish();
            if computed != *digest {
                return Err(FinishError::Mismatch { computed });
            }
        }
        self.complete(&blob, last).await?;
        let (computed, bytes_rehashed) = self.verify(&blob, hash).await?;
        if computed != *digest {
            // Nobody knows of it, and it has no name.
            self.shared.remove_content(self.id).await;
            return Err(FinishError::Mismatch { computed });
        }
        self.shared.put_name(&blob).await?;
        if self.checkpointed || self.multipart.is_some() || !self.tail.segments().is_empty() {
            // The blob is there; what is left over is found by the inventory, if this fails.
            if let Err(error) = self.shared.discard(self.id, None).await {
                tracing::warn!(%error, "cannot clean up after an upload");
            }
        }
        // Nothing is left to clean up.
        self.multipart = None;
        self.tail.advance();
        Ok(Finished { size, bytes_rehashed })
    }
}

impl Drop for ObjectWriter {
    fn drop(&mut self) {
        if self.checkpointed {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (shared, id, mut in_flight) = (Arc::clone(&self.shared), self.id, mem::take(&mut self.in_flight));
        // Those of a checkpoint that was forgotten.
        let mut segments = mem::take(&mut self.covered);
        segments.extend_from_slice(self.tail.segments());
        if !segments.is_empty() {
            let shared = Arc::clone(&shared);
            runtime.spawn(async move { shared.remove_segments(id, segments).await });
        }
        let Some(multipart) = self.multipart.take() else { return };
        runtime.spawn(async move {
            // A part that arrives after the end of its upload may stay, so all are waited for. If that does not help, the
            // note stays: the inventory finds it, and the upload is ended once more.
            let mut quiet = true;
            while let Some(arrived) = in_flight.join_next().await {
                quiet &= matches!(arrived, Ok(Ok(_)));
            }
            if let Err(error) = shared.abort_multipart(id, &multipart, quiet).await {
                tracing::warn!(%error, "cannot clean up after a broken upload");
            }
        });
    }
}

/// Hashes on a thread that keeps nobody waiting. The copy frees the fixed buffer for the socket: a part is many of them.
async fn hash_and_copy(bytes: Bytes, mut hash: RunningHash) -> Result<(RunningHash, Bytes), StoreError> {
    let job = move || {
        hash.update(&bytes);
        (hash, Bytes::copy_from_slice(&bytes))
    };
    tokio::task::spawn_blocking(job).await.map_err(|_| StoreError::Interrupted)
}

async fn hash_last(bytes: Bytes, mut hash: RunningHash) -> Result<(RunningHash, Bytes), StoreError> {
    let job = move || {
        hash.update(&bytes);
        (hash, bytes)
    };
    tokio::task::spawn_blocking(job).await.map_err(|_| StoreError::Interrupted)
}
