//! The body of an answer.

use std::fs::File;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http_body::{Frame, SizeHint};
use service::http::{Chunk, SendFile};
use tokio::task::JoinHandle;

/// Bytes read from a file at a time where `sendfile` cannot be used.
const READ_BYTES: u64 = 256 * 1024;

/// Why an answer breaks off.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of an answer. Its length is always known.
pub(crate) enum Body {
    /// Bytes in memory.
    Bytes(Bytes),
    /// A part of a file that the kernel sends.
    SendFile { by: SendFile, file: Arc<File>, offset: u64, len: u64 },
    /// A part of a file that is read here, one step ahead of the client.
    Read(FileReader),
    /// From elsewhere.
    Stream { stream: BoxStream<'static, Result<Bytes, blobs::StoreError>>, left: u64 },
}

/// Reads a part of a file on blocking threads.
pub(crate) struct FileReader {
    file: Arc<File>,
    offset: u64,
    left: u64,
    step: Option<JoinHandle<std::io::Result<Bytes>>>,
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
            None => Self::Read(FileReader { file, offset, left: len, step: None }),
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
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<std::io::Result<Bytes>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        let step = self.step.get_or_insert_with(|| read_step(&self.file, self.offset, self.left));
        let result = ready!(Pin::new(step).poll(cx));
        self.step = None;
        let bytes = match result {
            Ok(Ok(bytes)) => bytes,
            Ok(Err(error)) => return Poll::Ready(Some(Err(error))),
            Err(error) => return Poll::Ready(Some(Err(std::io::Error::other(error)))),
        };
        self.offset += bytes.len() as u64;
        self.left -= bytes.len() as u64;
        if self.left > 0 {
            self.step = Some(read_step(&self.file, self.offset, self.left));
        }
        Poll::Ready(Some(Ok(bytes)))
    }
}

fn read_step(file: &Arc<File>, offset: u64, left: u64) -> JoinHandle<std::io::Result<Bytes>> {
    use std::os::unix::fs::FileExt as _;
    let file = Arc::clone(file);
    let len = usize::try_from(left.min(READ_BYTES)).unwrap_or(0);
    tokio::task::spawn_blocking(move || {
        let mut buffer = vec![0; len];
        file.read_exact_at(&mut buffer, offset)?;
        Ok(buffer.into())
    })
}
