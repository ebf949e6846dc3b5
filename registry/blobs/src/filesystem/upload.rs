//! The file of an unfinished upload, and the lock on it.
//!
//! Whoever holds the lock owns the *name* `uploads/ID`: only they rename it, remove it or cut the file. A name may be gone, or mean
//! another file, by the time its lock is got, so that is looked at afterwards: otherwise a request that waited would
//! empty the blob which the file has become.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use oci::upload::UploadId;
use rustix::fs::{FlockOperation, OFlags, fcntl_setfl, flock};
use rustix::io::Errno;

use super::layout::Layout;
use crate::error::StoreError;
use crate::pool::ALIGNMENT;

/// Open for writing, and locked until the last copy is dropped.
pub(super) struct UploadFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    /// The name is still this file's.
    named: AtomicBool,
    /// Nothing was written by this request, and nothing cut off: it may not be the one who may.
    untouched: AtomicBool,
}

/// A request that was just broken off may still be writing its last buffer; so often is the lock tried.
const LOCK_TRIES: u32 = 80;
const LOCK_PAUSE: Duration = Duration::from_millis(25);
/// Fewer bytes are written sooner by one sync than by themselves; and small blobs stay in the page cache.
const DIRECT_MIN: usize = 256 * 1024;
/// The name changes its meaning when an upload ends; another one of the same id can do so only after another request.
const OPEN_TRIES: u32 = 8;

impl UploadFile {
    /// The file of an upload that begins. What is in it goes with the first write.
    pub(super) fn create(layout: &Layout, id: UploadId) -> Result<Self, StoreError> {
        Self::lock(layout.upload(id), true)
    }

    /// The file with `offset` bytes or more. What is more goes with the first write.
    pub(super) fn resume(layout: &Layout, id: UploadId, offset: u64) -> Result<Self, StoreError> {
        let upload = Self::lock(layout.upload(id), false)?;
        let found = upload.len()?;
        if found < offset {
            let why = format!("there are {found} bytes, the checkpoint says {offset}");
            return Err(StoreError::Corrupt { what: upload.path.display().to_string(), why });
        }
        Ok(upload)
    }

    fn lock(path: PathBuf, create: bool) -> Result<Self, StoreError> {
        for _ in 0..OPEN_TRIES {
            // Never cut while opening: the file may be another request's.
            let file = OpenOptions::new().read(true).write(true).create(create).truncate(false).open(&path);
            let file = file.map_err(|error| match create {
                true => StoreError::io("make", &path, error),
                false => StoreError::opening(&path, error),
            })?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(StoreError::Busy),
                Err(error) => return Err(StoreError::io("lock", path, error.into())),
            }
            if is_at(&file, &path).map_err(|error| StoreError::io("look at", &path, error))? {
                return Ok(Self { file, path, named: AtomicBool::new(true), untouched: AtomicBool::new(true) });
            }
        }
        Err(StoreError::Busy)
    }

    /// Removes what no checkpoint covers: everything, when there is none. Failures are not told: the space is reclaimed later.
    pub(super) fn abandon(&self, durable: u64) {
        if !self.named.load(Ordering::Relaxed) {
            return;
        }
        let done = match self.untouched.load(Ordering::Relaxed) {
            // It was only looked at. An empty one tells nobody anything.
            true => match self.len() {
                Ok(0) => self.remove(),
                other => other.map(drop),
            },
            false if durable == 0 => self.remove(),
            false => self.cut(durable),
        };
        if let Err(error) = done {
            tracing::warn!(%error, "cannot clean up after a broken upload");
        }
    }

    pub(super) fn remove(&self) -> Result<(), StoreError> {
        self.named.store(false, Ordering::Relaxed);
        fs::remove_file(&self.path).map_err(|error| StoreError::io("remove", &self.path, error))
    }

    /// Gives the file another name in the same filesystem.
    pub(super) fn rename(&self, to: &Path) -> Result<(), StoreError> {
        if !self.named.swap(false, Ordering::Relaxed) {
            return Err(StoreError::NotFound { what: self.path.display().to_string() });
        }
        fs::rename(&self.path, to).map_err(|error| {
            self.named.store(true, Ordering::Relaxed);
            StoreError::io("rename", &self.path, error)
        })
    }

    /// Writes bytes at a place: those that lie on the disk as they lie in memory past the page cache, where the filesystem can. That
    /// saves a copy, and the cache is left to what is read. The first write cuts off what is there from its place on.
    pub(super) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), StoreError> {
        if self.untouched.swap(false, Ordering::Relaxed) {
            self.cut(offset)?;
        }
        let (head, direct) = direct_part(bytes, offset);
        let end = head + direct;
        let write = |from: usize, to: usize| self.file.write_all_at(&bytes[from..to], offset + from as u64);
        let write_direct = || {
            // Of a filesystem that cannot, the flag or the write is refused.
            fcntl_setfl(&self.file, OFlags::DIRECT)?;
            let written = write(head, end);
            fcntl_setfl(&self.file, OFlags::empty())?;
            written
        };
        let write_all = || {
            if direct == 0 {
                return write(0, bytes.len());
            }
            write(0, head)?;
            match write_direct() {
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => write(head, end)?,
                done => done?,
            }
            write(end, bytes.len())
        };
        write_all().map_err(|error| StoreError::io("write", &self.path, error))
    }

    fn cut(&self, length: u64) -> Result<(), StoreError> {
        if self.len()? > length {
            self.file.set_len(length).map_err(|error| StoreError::io("cut", &self.path, error))?;
        }
        Ok(())
    }

    fn len(&self) -> Result<u64, StoreError> {
        let metadata = self.file.metadata();
        Ok(metadata.map_err(|error| StoreError::io("look at", &self.path, error))?.len())
    }
}

/// Which of the bytes, from where and how many, may be written past the page cache: whole blocks whose address is aligned, and enough
/// of them that it pays.
fn direct_part(bytes: &[u8], offset: u64) -> (usize, usize) {
    let block = ALIGNMENT as u64;
    let head = usize::try_from(offset.next_multiple_of(block) - offset).unwrap_or(usize::MAX);
    let Some(rest) = bytes.get(head..) else { return (0, 0) };
    let direct = rest.len() - rest.len() % ALIGNMENT;
    if direct < DIRECT_MIN || rest.as_ptr().align_offset(ALIGNMENT) != 0 {
        return (0, 0);
    }
    (head, direct)
}

/// Whether the name still means this file.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes an upload's file, if there is one and nobody writes to it.
pub(super) async fn discard(layout: Arc<Layout>, id: UploadId) -> Result<(), StoreError> {
    let discarded = unless_busy(move || UploadFile::lock(layout.upload(id), false)?.remove()).await;
    match discarded {
        Err(StoreError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

/// Runs a job that needs the lock, and tries again for two seconds while another request has it.
pub(super) async fn unless_busy<T: Send + 'static, E>(
    job: impl Fn() -> Result<T, E> + Clone + Send + 'static,
) -> Result<T, E>
where
    E: From<StoreError> + IsBusy + Send + 'static,
{
    let mut tries = 1;
    loop {
        let done = tokio::task::spawn_blocking(job.clone()).await.map_err(|_| StoreError::Interrupted)?;
        match done {
            Err(error) if error.is_busy() && tries < LOCK_TRIES => {
                tries += 1;
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            done => return done,
        }
    }
}

/// Whether an error says that another request has the lock.
pub(super) trait IsBusy {
    fn is_busy(&self) -> bool;
}

impl IsBusy for StoreError {
    fn is_busy(&self) -> bool {
        matches!(self, Self::Busy)
    }
}

impl IsBusy for crate::FinishError {
    fn is_busy(&self) -> bool {
        matches!(self, Self::Store(StoreError::Busy))
    }
}
