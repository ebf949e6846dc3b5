//! An upload on its way from the socket into the store.

use std::fmt;
use std::mem;

use bytes::Bytes;
use proto::Digest;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::error::{FinishError, StoreError};
use crate::hash::{HashState, RunningHash};
use crate::pool::Buffer;
use crate::store::{BlobWriter, Finished, WriterState};

/// Takes an upload's bytes as they come, and hashes and writes them.
///
/// Two fixed buffers: one is filled from the socket while a blocking thread hashes and writes the other. An upload that
/// fits one buffer costs a single trip to a blocking thread. Dropped, it stops; what no checkpoint covers is removed.
///
/// After an error it must be dropped; further calls fail with `Interrupted`.
pub struct Receiver {
    stage: Stage,
    filling: Option<Buffer>,
    /// Bytes received, the checkpoint's included.
    offset: u64,
}

/// With so many bytes there it pays to prepare for them.
const MANY_BYTES: usize = 128 * 1024;

enum Stage {
    Idle(Idle),
    /// A full buffer is being hashed and written.
    Writing(JoinHandle<Result<Idle, StoreError>>),
    /// An error was reported.
    Broken,
}

struct Idle {
    writer: Box<dyn BlobWriter>,
    hash: RunningHash,
}

/// Where an upload stands, durable: any process may go on from here. In JSON it grows with the number of parts in object
/// storage, up to half a MiB for the longest blobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Checkpoint {
    /// Bytes received.
    pub offset: u64,
    /// The hash over them.
    pub hash: HashState,
    /// What the store needs.
    pub writer: WriterState,
}

// === impl Receiver ===

impl Receiver {
    /// Receives into a writer which has `offset` bytes already, over which `hash` ran.
    #[must_use]
    pub fn new(writer: Box<dyn BlobWriter>, hash: RunningHash, offset: u64) -> Self {
        debug_assert_eq!(hash.bytes(), offset, "the hash has run over what the writer has");
        Self { stage: Stage::Idle(Idle { writer, hash }), filling: None, offset }
    }

    /// Goes on from a checkpoint with the writer that was resumed from its state.
    ///
    /// # Errors
    /// When the checkpoint contradicts itself.
    pub fn resume(writer: Box<dyn BlobWriter>, checkpoint: &Checkpoint) -> Result<Self, StoreError> {
        let hash = RunningHash::restore(&checkpoint.hash)?;
        if hash.bytes() != checkpoint.offset || checkpoint.writer.offset() != checkpoint.offset {
            return Err(StoreError::Checkpoint("hash and bytes are of different lengths"));
        }
        Ok(Self::new(writer, hash, checkpoint.offset))
    }

    /// Bytes received so far, the checkpoint's included.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the next bytes. Returns at once while there is room, else when the store is through with the other buffer.
    ///
    /// # Errors
    /// When the store failed, now or with bytes that came before.
    pub async fn push(&mut self, mut bytes: Bytes) -> Result<(), StoreError> {
        while !bytes.is_empty() {
            // A full buffer is kept until more comes: if nothing does, its bytes are the last, and go with the end.
            if let Some(full) = self.filling.take_if(|buffer| buffer.is_full()) {
                let Idle { mut writer, hash } = self.idle().await?;
                let write = async move {
                    let hash = writer.write(full.freeze(), hash).await?;
                    Ok(Idle { writer, hash })
                };
                self.stage = Stage::Writing(tokio::spawn(write));
            }
            let offset = self.offset;
            let buffer = self.filling.get_or_insert_with(|| Buffer::take(offset));
            let taken = buffer.fill(&bytes);
            if buffer.as_ref().len() >= MANY_BYTES
                && let Stage::Idle(idle) = &mut self.stage
            {
                idle.writer.prepare();
            }
            self.offset += taken as u64;
            bytes = bytes.split_off(taken);
        }
        Ok(())
    }

    /// Holds the upload's bytes: see [`BlobWriter::hold`].
    ///
    /// # Errors
    /// When another request holds them, or the store failed.
    pub async fn hold(&mut self) -> Result<bool, StoreError> {
        let mut idle = self.idle().await?;
        let holds = idle.writer.hold().await?;
        self.stage = Stage::Idle(idle);
        Ok(holds)
    }

    /// Makes everything received durable.
    ///
    /// # Errors
    /// When the store failed.
    pub async fn checkpoint(&mut self) -> Result<Checkpoint, StoreError> {
        let Idle { mut writer, hash } = self.idle().await?;
        let (hash, state) = writer.checkpoint(self.rest(), hash).await?;
        let checkpoint = Checkpoint { offset: self.offset, hash: hash.save(), writer: state };
        debug_assert_eq!(hash.bytes(), self.offset, "the hash has run over what was received");
        self.stage = Stage::Idle(Idle { writer, hash });
        Ok(checkpoint)
    }

    /// The last checkpoint is nobody's: see [`BlobWriter::forget`].
    ///
    /// # Errors
    /// When the store failed.
    pub async fn forget(&mut self) -> Result<(), StoreError> {
        let mut idle = self.idle().await?;
        idle.writer.forget();
        self.stage = Stage::Idle(idle);
        Ok(())
    }

    /// Ends the upload: what was received becomes a blob, durable, if it has this digest.
    ///
    /// # Errors
    /// `Mismatch` when it has another. Then there is no blob, and an upload that had a checkpoint is for the caller to
    /// discard.
    pub async fn finish(mut self, digest: &Digest) -> Result<Finished, FinishError> {
        let Idle { writer, mut hash } = self.idle().await?;
        if hash.bytes() == 0 && hash.algorithm() != digest.algorithm() {
            hash = RunningHash::new(digest.algorithm())?;
        }
        writer.commit(self.rest(), hash, digest).await
    }

    fn rest(&mut self) -> Bytes {
        self.filling.take().map(Buffer::freeze).unwrap_or_default()
    }

    /// Waits until nothing is being written.
    async fn idle(&mut self) -> Result<Idle, StoreError> {
        match mem::replace(&mut self.stage, Stage::Broken) {
            Stage::Idle(idle) => Ok(idle),
            Stage::Writing(job) => job.await.map_err(|_| StoreError::Interrupted)?,
            Stage::Broken => Err(StoreError::Interrupted),
        }
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("offset", &self.offset).finish_non_exhaustive()
    }
}
