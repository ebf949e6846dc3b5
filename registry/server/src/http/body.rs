//! The body of an answer.

use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http_body::{Frame, SizeHint};
use service::http::{Chunk, SendFile};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

/// Bytes read from a file at a time where `sendfile` cannot be used.
const READ_BYTES: usize = 256 * 1024;
/// The first piece, and every piece when there is no room for longer ones: what a client that takes nothing makes us hold.
const READ_BYTES_MIN: usize = 32 * 1024;
/// Room for all longer pieces of this process, in bytes.
static ROOM: Semaphore = Semaphore::const_new(64 * 1024 * 1024);

/// Why an answer breaks off.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer. Its length is always known.
pub(crate) enum Body {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A part of a file that the kernel sends.
    SendFile { by: SendFile, file: Arc<File>, offset: u64, len: u64 },
    /// A part of a file that is read here.
    Read(FileReader),
    /// From elsewhere.
    Stream { stream: BoxStream<'static, Result<Bytes, blobs::StoreError>>, left: u64 },
}

/// Reads a part of a file on blocking threads, in pieces that become longer as the client takes them.
pub(crate) struct FileReader {
    file: Arc<File>,
    offset: u64,
    left: u64,
    /// Of the next piece, if there is room.
    piece: usize,
    step: Option<JoinHandle<std::io::Result<Bytes>>>,
}

/// A piece in memory, and its room.
struct Piece {
    bytes: Vec<u8>,
    _room: Option<SemaphorePermit<'static>>,
}

// === impl Body ===

impl Body {
    pub(crate) const fn empty() -> Self {
        Self::Bytes(Bytes::new())
    }

    /// A part of a file, by the best way the connection has.
    pub(crate) fn file(file: Arc<File>, offset: u64, len: u64, sendfile: Option<SendFile>) -> Self {
        match sendfile {
            Some(by) => Self::SendFile { by, file, offset, len },
            None => Self::Read(FileReader::new(file, offset, len)),
        }
    }

    /// Bytes that are still to come.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::SendFile { len, .. } => *len,
            Self::Read(reader) => reader.left,
            Self::Stream { left, .. } => *left,
        }
    }
}

impl http_body::Body for Body {
    type Data = Chunk;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        let frame = |bytes: Bytes| Some(Ok(Frame::data(Chunk::Bytes(bytes))));
        Poll::Ready(match &mut *self {
            Self::Bytes(bytes) if bytes.is_empty() => None,
            Self::Bytes(bytes) => frame(std::mem::take(bytes)),
            Self::SendFile { len: 0, .. } => None,
            Self::SendFile { by, file, offset, len } => {
                let chunk = by.chunk(Arc::clone(file), *offset, std::mem::take(len));
                Some(Ok(Frame::data(chunk)))
            }
            Self::Read(reader) => match ready!(reader.poll_next(cx)) {
                Some(Ok(bytes)) => frame(bytes),
                Some(Err(error)) => Some(Err(error.into())),
                None => None,
            },
            Self::Stream { stream, left } => match ready!(stream.as_mut().poll_next(cx)) {
                Some(Ok(bytes)) => {
                    *left = left.saturating_sub(bytes.len() as u64);
                    frame(bytes)
                }
                Some(Err(error)) => Some(Err(error.into())),
                None => None,
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        self.len() == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.len())
    }
}

// === impl FileReader ===

impl FileReader {
    const fn new(file: Arc<File>, offset: u64, len: u64) -> Self {
        Self { file, offset, left: len, piece: READ_BYTES_MIN, step: None }
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<std::io::Result<Bytes>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let mut step = match self.step.take() {
            Some(step) => step,
            None => {
                let room = self.room();
                self.read(room)
            }
        };
        let Poll::Ready(result) = Pin::new(&mut step).poll(cx) else {
            self.step = Some(step);
            return Poll::Pending;
        };
        let bytes = match result {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Poll::Ready(Some(Err(error))),
            Err(error) => return Poll::Ready(Some(Err(std::io::Error::other(error)))),
        };
        self.offset += bytes.len() as u64;
        self.left -= bytes.len() as u64;
        // Nothing is read ahead of a client that may not even take the first piece.
        let is_first = self.piece == READ_BYTES_MIN;
        self.piece = (self.piece * 2).min(READ_BYTES);
        if !is_first
            && self.left > 0
            && let Some(room) = self.room()
        {
            self.step = Some(self.read(Some(room)));
        }
        Poll::Ready(Some(Ok(bytes)))
    }

    /// For the next piece, if it is a long one and there is room.
    fn room(&self) -> Option<SemaphorePermit<'static>> {
        if self.piece <= READ_BYTES_MIN {
            return None;
        }
        ROOM.try_acquire_many(u32::try_from(self.piece).ok()?).ok()
    }

    fn read(&self, room: Option<SemaphorePermit<'static>>) -> JoinHandle<std::io::Result<Bytes>> {
        use std::os::unix::fs::FileExt as _;
        let (file, offset) = (Arc::clone(&self.file), self.offset);
        let most = if room.is_some() { self.piece } else { READ_BYTES_MIN };
        let len = usize::try_from(self.left).map_or(most, |left| left.min(most));
        tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; len];
            file.read_exact_at(&mut bytes, offset)?;
            Ok(Bytes::from_owner(Piece { bytes, _room: room }))
        })
    }
}

// === impl Piece ===

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::io::Write as _;

    use super::*;

    /// A body of so many bytes, taken in pieces; their lengths.
    async fn pieces(len: usize) -> Vec<usize> {
        let content: Vec<u8> = (0..len).map(|at| u8::try_from(at % 251).unwrap()).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        let mut reader = FileReader::new(Arc::new(file), 0, len as u64);
        let (mut read, mut pieces) = (Vec::new(), Vec::new());
        while let Some(bytes) = poll_fn(|cx| reader.poll_next(cx)).await {
            let bytes = bytes.unwrap();
            assert!(!pieces.is_empty() || reader.step.is_none(), "read ahead of a client that has taken nothing");
            read.extend_from_slice(&bytes);
            pieces.push(bytes.len());
        }
        assert_eq!(read, content);
        pieces
    }

    #[tokio::test]
    async fn pieces_become_longer_where_there_is_room() {
        const KIB: usize = 1024;
        assert_eq!(pieces(700 * KIB).await, [32, 64, 128, 256, 220].map(|kib| kib * KIB));
        assert_eq!(pieces(10).await, [10]);
        let all = ROOM.acquire_many(u32::try_from(ROOM.available_permits()).unwrap()).await.unwrap();
        assert_eq!(pieces(100 * KIB).await, [32, 32, 32, 4].map(|kib| kib * KIB));
        drop(all);
        let before = ROOM.available_permits();
        assert_eq!(pieces(96 * KIB).await, [32, 64].map(|kib| kib * KIB));
        assert_eq!(ROOM.available_permits(), before, "the room of what was sent is given back");
    }
}
