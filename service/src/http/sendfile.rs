//! Parts of files that go from the page cache to the socket without passing through this process.
//!
//! hyper writes what a body's [`Buf`]s show it. [`Chunk::File`] shows it a block of zeros in static memory, as long as the part of the
//! file is; the connection's writer, which is ours, knows that block by its address and calls `sendfile` in its place. The
//! connection holds the queue of parts that were promised, in the order in which they are written.
//!
//! This holds only where bytes reach the socket unchanged: HTTP/1 without TLS. Only requests of such connections carry a
//! [`SendFile`] in their extensions, and there is no other way to make a [`Chunk::File`].

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use parking_lot::Mutex;
use rustix::net::SendFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes handed to one `sendfile` call at most: the runtime's thread is the kernel's for that long.
const STEP_BYTES: usize = 1024 * 1024;
/// What stands for the bytes of a file. Never written to, so that it costs no memory.
static VOID: [u8; STEP_BYTES] = [0; STEP_BYTES];

/// In the extensions of requests whose answer may be sent by `sendfile`.
#[derive(Clone, Debug, Default)]
pub struct SendFile(Arc<Mutex<VecDeque<Part>>>);

/// A part of a file that is promised to the client.
#[derive(Debug)]
struct Part {
    file: Arc<File>,
    offset: u64,
    len: u64,
}

/// A piece of a body: bytes in memory, or a part of a file.
#[derive(Debug)]
pub enum Chunk {
    /// Bytes.
    Bytes(Bytes),
    /// A part of a file, made by [`SendFile::chunk`].
    File(FileChunk),
}

/// What is left of a part of a file.
#[derive(Debug)]
pub struct FileChunk {
    left: usize,
    meter: Option<Arc<dyn Meter>>,
}

/// Is told how much of a part of a file was sent, and let go when nothing of it will be sent any more.
pub trait Meter: fmt::Debug + Send + Sync {
    /// So many bytes more.
    fn sent(&self, bytes: u64);
}

// === impl SendFile ===

impl SendFile {
    /// Promises `len` bytes of a file from `offset` on. The chunk must be the next thing of the answer that is written, and
    /// the file must hold these bytes; a file that ends early breaks the connection.
    #[must_use]
    pub fn chunk(&self, file: Arc<File>, offset: u64, len: u64) -> Chunk {
        let left = usize::try_from(len).unwrap_or(usize::MAX);
        if left > 0 {
            self.0.lock().push_back(Part { file, offset, len: left as u64 });
        }
        Chunk::File(FileChunk { left, meter: None })
    }

    /// Writes what hyper wants to have written; slices of [`VOID`] by `sendfile`.
    pub(super) fn poll_write(
        &self,
        tcp: &TcpStream,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Option<Poll<io::Result<usize>>> {
        let at = bufs.iter().position(|buf| is_void(buf))?;
        // Empty slices before it would make a write of nothing.
        match bufs[..at].iter().find(|buf| !buf.is_empty()) {
            Some(head) => Some(poll_send_more(tcp, cx, head)),
            None => Some(self.poll_sendfile(tcp, cx, bufs[at].len())),
        }
    }

    fn poll_sendfile(&self, tcp: &TcpStream, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        let mut queue = self.0.lock();
        let Some(part) = queue.front_mut() else {
            return Poll::Ready(Err(io::Error::other("a part of a file is written that nobody promised")));
        };
        let count = wanted.min(STEP_BYTES).min(usize::try_from(part.len).unwrap_or(usize::MAX));
        let sent = ready!(poll_io(tcp, cx, || {
            let mut offset = part.offset;
            rustix::fs::sendfile(tcp, &*part.file, Some(&mut offset), count)
        }))?;
        if sent == 0 {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file ends before its length")));
        }
        part.offset += sent as u64;
        part.len -= sent as u64;
        if part.len == 0 {
            queue.pop_front();
        }
        Poll::Ready(Ok(sent))
    }
}

/// The head of an answer, held back by the kernel until the first bytes of the file follow.
fn poll_send_more(tcp: &TcpStream, cx: &mut Context<'_>, head: &[u8]) -> Poll<io::Result<usize>> {
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT | SendFlags::MORE;
    poll_io(tcp, cx, || rustix::net::send(tcp, head, flags))
}

fn poll_io<T>(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    mut call: impl FnMut() -> rustix::io::Result<T>,
) -> Poll<io::Result<T>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match tcp.try_io(Interest::WRITABLE, || Ok(call()?)) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            result => return Poll::Ready(result),
        }
    }
}

fn is_void(buf: &[u8]) -> bool {
    !buf.is_empty() && VOID.as_ptr_range().contains(&buf.as_ptr())
}

// === impl FileChunk ===

impl FileChunk {
    /// From now on this meter is told.
    #[must_use]
    pub fn metered(self, meter: Arc<dyn Meter>) -> Self {
        Self { meter: Some(meter), ..self }
    }
}

// === impl Chunk ===

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        Self::Bytes(bytes)
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::File(file) => file.left,
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::File(file) => &VOID[..file.left.min(STEP_BYTES)],
        }
    }

    fn advance(&mut self, cnt: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(cnt),
            Self::File(file) => {
                file.left = file.left.checked_sub(cnt).expect("hyper advances by what was written");
                if let Some(meter) = &file.meter {
                    meter.sent(cnt as u64);
                }
            }
        }
    }
}
