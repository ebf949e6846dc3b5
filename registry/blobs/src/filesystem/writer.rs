//! Writing an upload's file, and making it a blob.

use std::fs;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::OptionFuture;
use oci::upload::UploadId;
use proto::Digest;
use rustix::fs::{Advice, fadvise};
use tokio::task::JoinHandle;

use super::layout::{self, Layout};
use super::upload::{UploadFile, unless_busy};
use super::{blocking, layout::parent};
use crate::error::{FinishError, StoreError};
use crate::hash::RunningHash;
use crate::name::StoredBlob;
use crate::store::{BlobWriter, Finished, WriterState};

pub(super) struct FileWriter {
    layout: Arc<Layout>,
    id: UploadId,
    /// Not there before the first bytes are.
    file: Option<Arc<UploadFile>>,
    /// It is being made while bytes come.
    making: Option<JoinHandle<Result<UploadFile, StoreError>>>,
    /// Bytes in the file.
    written: u64,
    /// Bytes that a checkpoint covers.
    durable: u64,
    /// The file's name is durable.
    named: bool,
    /// Bytes that a sync was started for.
    synced: u64,
    sync: Option<JoinHandle<Result<(), StoreError>>>,
}

/// After so many bytes the kernel is told to begin writing them to the disk, so that the sync at the end finds little to do.
const FLUSH_BYTES: u64 = 8 << 20;
/// After so many a sync runs beside the writing, and the one before must have ended: what is not yet on the disk when the
/// last byte comes is bounded, however fast the client is.
const SYNC_BYTES: u64 = 64 << 20;
/// From this length on, bytes are hashed while they are written.
const HASH_BESIDE_BYTES: usize = 128 * 1024;
/// Read at a time when a blob is hashed again.
const REHASH_BYTES: usize = 1 << 20;

impl FileWriter {
    pub(super) fn begin(layout: Arc<Layout>, id: UploadId) -> Self {
        Self { layout, id, file: None, making: None, written: 0, durable: 0, named: false, synced: 0, sync: None }
    }

    pub(super) async fn resume(layout: Arc<Layout>, id: UploadId, offset: u64) -> Result<Self, StoreError> {
        let mut writer = Self::begin(Arc::clone(&layout), id);
        // Nothing was written for an empty upload.
        if offset > 0 {
            writer.file = Some(Arc::new(unless_busy(move || UploadFile::resume(&layout, id, offset)).await?));
            (writer.written, writer.durable, writer.synced, writer.named) = (offset, offset, offset, true);
        }
        Ok(writer)
    }

    async fn file(&mut self) -> Result<Arc<UploadFile>, StoreError> {
        if let Some(file) = &self.file {
            return Ok(Arc::clone(file));
        }
        if let Some(file) = self.made().await {
            return Ok(file);
        }
        let (layout, id) = (Arc::clone(&self.layout), self.id);
        let file = Arc::new(unless_busy(move || UploadFile::create(&layout, id)).await?);
        self.file = Some(Arc::clone(&file));
        Ok(file)
    }

    /// The file, if it was prepared. Whatever went wrong with that is found again.
    async fn made(&mut self) -> Option<Arc<UploadFile>> {
        if let Some(Ok(Ok(file))) = OptionFuture::from(self.making.as_mut()).await {
            self.file = Some(Arc::new(file));
        }
        self.making = None;
        self.file.clone()
    }

    /// Starts a sync beside the writing, once the one before has ended.
    async fn sync_beside(&mut self, file: Arc<UploadFile>) -> Result<(), StoreError> {
        if self.written - self.synced >= SYNC_BYTES {
            self.await_sync().await?;
            self.synced = self.written;
            self.sync = Some(tokio::task::spawn_blocking(move || sync(&file)));
        }
        Ok(())
    }

    async fn await_sync(&mut self) -> Result<(), StoreError> {
        match self.sync.take() {
            Some(sync) => sync.await.map_err(|_| StoreError::Interrupted)?,
            None => Ok(()),
        }
    }
}

#[async_trait]
impl BlobWriter for FileWriter {
    async fn hold(&mut self) -> Result<bool, StoreError> {
        self.file().await.map(|_| true)
    }

    fn prepare(&mut self) {
        if self.file.is_none() && self.making.is_none() {
            let (layout, id) = (Arc::clone(&self.layout), self.id);
            self.making = Some(tokio::task::spawn_blocking(move || UploadFile::create(&layout, id)));
        }
    }

    async fn write(&mut self, bytes: Bytes, mut hash: RunningHash) -> Result<RunningHash, StoreError> {
        let file = self.file().await?;
        let (target, offset, length) = (Arc::clone(&file), self.written, bytes.len() as u64);
        let hash = blocking(move || {
            hash_beside(&mut hash, &bytes, || append(&target, &bytes, offset))?;
            Ok(hash)
        })
        .await?;
        self.written += length;
        self.sync_beside(file).await?;
        Ok(hash)
    }

    async fn checkpoint(
        &mut self,
        bytes: Bytes,
        mut hash: RunningHash,
    ) -> Result<(RunningHash, WriterState), StoreError> {
        let end = self.written + bytes.len() as u64;
        if end > self.durable {
            let file = self.file().await?;
            self.await_sync().await?;
            let (layout, offset, named) = (Arc::clone(&self.layout), self.written, self.named);
            hash = blocking(move || {
                hash_beside(&mut hash, &bytes, || append(&file, &bytes, offset).and_then(|()| sync(&file)))?;
                if !named {
                    layout::sync_folder(&layout.uploads())?;
                }
                Ok(hash)
            })
            .await?;
            (self.written, self.durable, self.synced, self.named) = (end, end, end, true);
        }
        Ok((hash, WriterState::File { offset: end }))
    }

    fn forget(&mut self) {
        self.durable = 0;
    }

    async fn commit(
        mut self: Box<Self>,
        last: Bytes,
        hash: RunningHash,
        digest: &Digest,
    ) -> Result<Finished, FinishError> {
        self.await_sync().await?;
        let size = self.written + last.len() as u64;
        let blob = StoredBlob { key: self.id, digest: digest.clone(), size };
        let layout = Arc::clone(&self.layout);
        let (offset, durable) = (self.written, self.durable);
        // From here on the job owns the file, and cleans up after itself whatever becomes of the request.
        self.made().await;
        let file = self.file.take();
        let commit = Commit { layout, blob, file, last, offset, durable, hash };
        unless_busy(move || commit.clone().run()).await
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if let (Some(making), Ok(runtime)) = (self.making.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move {
                if let Ok(Ok(file)) = making.await {
                    let _ = tokio::task::spawn_blocking(move || file.abandon(0)).await;
                }
            });
        }
        let (Some(file), durable) = (self.file.take(), self.durable) else { return };
        let clean_up = move || file.abandon(durable);
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(clean_up)),
            Err(_) => clean_up(),
        }
    }
}

/// The end of an upload, all in one go on one thread.
#[derive(Clone)]
struct Commit {
    layout: Arc<Layout>,
    blob: StoredBlob,
    file: Option<Arc<UploadFile>>,
    last: Bytes,
    offset: u64,
    durable: u64,
    hash: RunningHash,
}

impl Commit {
    fn run(mut self) -> Result<Finished, FinishError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => Arc::new(UploadFile::create(&self.layout, self.blob.key)?),
        };
        let done = self.verify(&file).and_then(|bytes_rehashed| {
            self.place(&file)?;
            Ok(Finished { size: self.blob.size, bytes_rehashed })
        });
        if done.is_err() {
            file.abandon(self.durable);
        }
        done
    }

    /// Everything is written and on the disk, and has the digest it should have. Tells how much was read back.
    fn verify(&mut self, file: &UploadFile) -> Result<u64, FinishError> {
        let write = || append(file, &self.last, self.offset).and_then(|()| sync(file));
        let ours = self.hash.algorithm() == self.blob.digest.algorithm();
        let (computed, bytes_rehashed) = if ours {
            let mut hash = self.hash.clone();
            hash_beside(&mut hash, &self.last, write)?;
            (hash.finish(), 0)
        } else {
            write()?;
            (rehash(file, &self.blob)?, self.blob.size)
        };
        if computed == self.blob.digest { Ok(bytes_rehashed) } else { Err(FinishError::Mismatch { computed }) }
    }

    /// The name of an upload becomes the name of a blob.
    fn place(&self, file: &UploadFile) -> Result<(), StoreError> {
        let path = self.layout.blob(&self.blob);
        // An upload may have rested for long before its end. The file counts as new until the database knows it.
        file.file.set_modified(SystemTime::now()).map_err(|error| StoreError::io("date", &file.path, error))?;
        file.rename(&path)?;
        layout::sync_folder(parent(&path)).inspect_err(|_| {
            // Nobody is told that there is a blob, so there shall be none; if this fails too, the scrub finds it.
            let _ = fs::remove_file(&path);
        })
    }
}

/// Writes at the end, and lets the kernel begin to bring to the disk what has gathered.
fn append(file: &UploadFile, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
    file.write_at(bytes, offset)?;
    let end = offset + bytes.len() as u64;
    let (from, to) = (offset - offset % FLUSH_BYTES, end - end % FLUSH_BYTES);
    if let Some(length) = NonZeroU64::new(to - from) {
        // Linux starts writing what is dirty in the range, without waiting, and drops from memory only what is clean. It is
        // advice: without it the sync takes longer, that is all.
        let _ = fadvise(&file.file, from, Some(length), Advice::DontNeed);
    }
    Ok(())
}

/// After a failed sync nobody knows what is on the disk, and a second one may succeed nevertheless: the file is not trusted
/// any more.
fn sync(file: &UploadFile) -> Result<(), StoreError> {
    file.file.sync_data().map_err(|error| {
        let _ = file.remove();
        StoreError::io("sync", &file.path, error)
    })
}

/// Hashes on a thread of its own while `work` waits for the disk on this one.
fn hash_beside(
    hash: &mut RunningHash,
    bytes: &Bytes,
    work: impl FnOnce() -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    if bytes.len() < HASH_BESIDE_BYTES {
        hash.update(bytes);
        return work();
    }
    // A thread of the runtime's pool: one that is there already costs nothing. Whoever is first to begin hashes; it may be this one, or
    // threads of a pool that is all in use would wait for each other.
    let begun = Arc::new(AtomicBool::new(false));
    let (tell, told) = mpsc::sync_channel(1);
    let (mut running, taken, other) = (hash.clone(), bytes.clone(), Arc::clone(&begun));
    tokio::task::spawn_blocking(move || {
        if !other.swap(true, Ordering::Relaxed) {
            running.update(&taken);
            let _ = tell.send(running);
        }
    });
    let done = work();
    if begun.swap(true, Ordering::Relaxed) {
        *hash = told.recv().map_err(|_| StoreError::Interrupted)?;
    } else {
        hash.update(bytes);
    }
    done
}

fn rehash(file: &UploadFile, blob: &StoredBlob) -> Result<Digest, StoreError> {
    let mut hash = RunningHash::new(blob.digest.algorithm())?;
    let mut buffer = vec![0; REHASH_BYTES];
    while hash.bytes() < blob.size {
        let wanted = usize::try_from(blob.size - hash.bytes()).map_or(REHASH_BYTES, |left| left.min(REHASH_BYTES));
        let read = file.file.read_at(&mut buffer[..wanted], hash.bytes());
        match read {
            Ok(0) => return Err(StoreError::io("read back", &file.path, io::ErrorKind::UnexpectedEof.into())),
            Ok(length) => hash.update(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(StoreError::io("read back", &file.path, error)),
        }
    }
    Ok(hash.finish())
}
