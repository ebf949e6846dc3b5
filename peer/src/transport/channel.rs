//! Frames and content over one byte stream, whatever carries it.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, BytesMut};
use prost::Message;
use proto::frame::{self, FRAME_LEN_MAX, Frame};
use proto::{ByteRange, wire};
use tokio::time::{Instant, timeout, timeout_at};

use super::error::{RecvError, SendError};
use super::slots::Slot;
use super::{Kind, quic, tcp};
use crate::limit::Limit;

/// Bytes read ahead for frames at a time. Small, so that content is mostly read straight to where it belongs.
const READ_AHEAD_BYTES: usize = 16 * 1024;
/// A receive buffer that a large frame has grown beyond this many bytes is given back once it is empty.
const BUFFER_KEEP_BYTES: usize = 64 * 1024;

/// A connection to another host that has shaken hands.
#[derive(Debug)]
pub struct Channel {
    remote: wire::HostInfo,
    version: u32,
    sender: Sender,
    receiver: Receiver,
}

/// The half that sends. Dropping it tells the other side that nothing more comes; dropping it in the middle of a send
/// breaks the channel off, and over QUIC what the other side has not read by then is lost with it.
#[derive(Debug)]
pub struct Sender {
    outlet: Outlet,
    progress_timeout: Duration,
    /// A send began and has not ended: what follows would be taken for its rest.
    unfinished: bool,
    buffer: BytesMut,
    _slot: Option<Arc<Slot>>,
}

/// The half that receives.
#[derive(Debug)]
pub struct Receiver {
    inlet: Inlet,
    progress_timeout: Duration,
    frame_timeout: Duration,
    /// When the frame whose first bytes are in the buffer has to be whole.
    frame_deadline: Option<Instant>,
    buffer: BytesMut,
    _slot: Option<Arc<Slot>>,
}

/// What carries the bytes out.
#[derive(Debug)]
pub(super) enum Outlet {
    Tcp(tcp::Outlet),
    Quic(quic::Outlet),
}

/// What carries the bytes in.
#[derive(Debug)]
pub(super) enum Inlet {
    Tcp(tcp::Inlet),
    Quic(quic::Inlet),
}

/// The sending end of a link. Errors leave it unusable.
pub(super) trait SendLink {
    /// Sends some of the bytes and says how many, at least 1. `more` = content follows at once, so that a small frame
    /// and the start of the content can leave in one packet. Nothing is lost when the future is dropped.
    async fn write(&mut self, bytes: &[u8], more: bool) -> Result<usize, SendError>;

    /// Sends the next bytes of a content, some at least, up to `part`'s end, and says how many.
    async fn write_content(&mut self, content: &mut Content<'_>, part: ByteRange) -> Result<u64, SendError>;

    /// Says that nothing more comes, and waits until the other side has it all where the link can tell.
    async fn finish(&mut self) -> Result<(), SendError>;

    /// Breaks the link so that the other side does not take what it got for the whole. It may lose what it has not
    /// read yet.
    fn abort(&mut self);
}

/// The receiving end of a link.
pub(super) trait RecvLink {
    /// Reads some bytes into the free space; 0 = the other side has ended, or there is no space. Nothing is lost when
    /// the future is dropped.
    async fn read(&mut self, out: &mut (impl BufMut + Send)) -> io::Result<usize>;
}

/// A file being sent, with what a link wants to keep between two steps.
#[derive(Debug)]
pub(super) struct Content<'a> {
    pub(super) file: &'a File,
    /// Where the whole range ends.
    pub(super) end: u64,
    /// For links that read the file themselves.
    pub(super) ahead: Option<quic::ReadAhead>,
}

/// The three times a channel lives by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) progress: Duration,
    pub(super) frame: Duration,
}

// === impl Channel ===

impl Channel {
    pub(super) const fn new(remote: wire::HostInfo, version: u32, sender: Sender, receiver: Receiver) -> Self {
        Self { remote, version, sender, receiver }
    }

    /// Who is at the other end, in its own words.
    #[must_use]
    pub const fn remote(&self) -> &wire::HostInfo {
        &self.remote
    }

    /// Where the other end's packets come from.
    #[must_use]
    pub fn peer_addr(&self) -> SocketAddr {
        match &self.sender.outlet {
            Outlet::Tcp(outlet) => outlet.peer_addr(),
            Outlet::Quic(outlet) => outlet.peer_addr(),
        }
    }

    /// The protocol version both speak here.
    #[must_use]
    pub const fn version(&self) -> u32 {
        self.version
    }

    /// What carries it.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self.sender.outlet {
            Outlet::Tcp(_) => Kind::Tcp,
            Outlet::Quic(_) => Kind::Quic,
        }
    }

    /// The two halves, for one task each.
    #[must_use]
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
}

// === impl Sender ===

impl Sender {
    pub(super) fn new(outlet: Outlet, timeouts: Timeouts, slot: Option<Arc<Slot>>) -> Self {
        Self { outlet, progress_timeout: timeouts.progress, unfinished: false, buffer: BytesMut::new(), _slot: slot }
    }

    /// Sends a frame. When it returns, the frame is on its way, not yet there.
    ///
    /// Dropping the future in the middle makes the channel unusable for sending.
    ///
    /// # Errors
    /// When the frame is too long, the other side is gone, or takes not a byte within the progress timeout.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), SendError> {
        self.begin(frame)?;
        self.write_buffer(false).await?;
        self.unfinished = false;
        Ok(())
    }

    /// Sends a frame and, right behind it, a range of a file, at the pace of a limit. The frame announces the content
    /// to the receiver; that it tells the right length is the caller's business.
    ///
    /// The progress timeout does not run while the limit holds the content back.
    /// Dropping the future in the middle makes the channel unusable for sending.
    ///
    /// # Errors
    /// As [`Self::send`]; and when the file cannot be read or ends too early, after which the other side sees a
    /// broken connection, not wrong bytes.
    pub async fn send_content(
        &mut self,
        header: &Frame,
        content: &File,
        range: ByteRange,
        limit: &Limit,
    ) -> Result<(), SendError> {
        let mut content = Content { file: content, end: range.end(), ahead: None };
        let mut at = range.start();
        // The first step's leave is waited for before the header goes: a header that promises bytes and then
        // nothing would start the receiver's progress timeout for naught.
        let mut step = next_step(at, range.end(), limit);
        limit.take(step.map_or(0, ByteRange::len)).await;
        self.begin(header)?;
        self.write_buffer(true).await?;
        while let Some(part) = step {
            while let Some(rest) = ByteRange::new(at, part.end()) {
                let sent = timeout(self.progress_timeout, self.outlet.write_content(&mut content, rest));
                at += sent.await.map_err(|_| self.stalled())??;
            }
            step = next_step(at, range.end(), limit);
            limit.take(step.map_or(0, ByteRange::len)).await;
        }
        self.unfinished = false;
        Ok(())
    }

    /// Says that nothing more comes, and waits until the other side has received it all where the transport can tell
    /// (QUIC). Dropping the sender says the same without waiting.
    ///
    /// # Errors
    /// When the other side is gone or does not take the rest within the progress timeout.
    pub async fn finish(mut self) -> Result<(), SendError> {
        if self.unfinished {
            return Err(SendError::Unfinished);
        }
        timeout(self.progress_timeout, self.outlet.finish()).await.map_err(|_| self.stalled())?
    }

    /// Puts the frame into the buffer.
    fn begin(&mut self, frame: &Frame) -> Result<(), SendError> {
        let length = frame.encoded_len();
        if length > FRAME_LEN_MAX {
            return Err(SendError::TooLong { length });
        }
        if self.unfinished {
            return Err(SendError::Unfinished);
        }
        self.buffer.clear();
        frame::encode(frame, &mut self.buffer);
        self.unfinished = true;
        Ok(())
    }

    async fn write_buffer(&mut self, more: bool) -> Result<(), SendError> {
        while !self.buffer.is_empty() {
            let written = timeout(self.progress_timeout, self.outlet.write(&self.buffer, more)).await;
            self.buffer.advance(written.map_err(|_| self.stalled())??);
        }
        if self.buffer.capacity() > BUFFER_KEEP_BYTES {
            self.buffer = BytesMut::new();
        }
        Ok(())
    }

    const fn stalled(&self) -> SendError {
        SendError::Stalled { after: self.progress_timeout }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if self.unfinished {
            self.outlet.abort();
        }
    }
}

fn next_step(at: u64, end: u64, limit: &Limit) -> Option<ByteRange> {
    ByteRange::new(at, at.saturating_add(limit.step_bytes()).min(end))
}

// === impl Receiver ===

impl Receiver {
    pub(super) fn new(inlet: Inlet, timeouts: Timeouts, slot: Option<Arc<Slot>>) -> Self {
        Self {
            inlet,
            progress_timeout: timeouts.progress,
            frame_timeout: timeouts.frame,
            frame_deadline: None,
            buffer: BytesMut::new(),
            _slot: slot,
        }
    }

    /// The next frame. Waits without an end for its first byte (a quiet channel is no broken one), and the frame
    /// timeout for the rest. May be dropped and called again: nothing is lost.
    ///
    /// # Errors
    /// When the other side ends, is too slow, or sends what is no frame.
    pub async fn recv(&mut self) -> Result<Frame, RecvError> {
        self.recv_within(FRAME_LEN_MAX).await
    }

    /// The next frame, of at most `limit` bytes.
    pub(super) async fn recv_within(&mut self, limit: usize) -> Result<Frame, RecvError> {
        loop {
            if let Some(frame) = frame::decode(&mut self.buffer, limit)? {
                self.frame_deadline = None;
                self.shrink();
                return Ok(frame);
            }
            let deadline = if self.buffer.is_empty() {
                None
            } else {
                Some(*self.frame_deadline.get_or_insert_with(|| Instant::now() + self.frame_timeout))
            };
            // Room for what came, never for what was announced.
            self.buffer.reserve(READ_AHEAD_BYTES);
            let mut room = (&mut self.buffer).limit(READ_AHEAD_BYTES);
            let read = self.inlet.read(&mut room);
            let read = match deadline {
                None => read.await,
                Some(deadline) => {
                    timeout_at(deadline, read).await.map_err(|_| RecvError::Stalled { after: self.frame_timeout })?
                }
            };
            let between_frames = self.buffer.is_empty();
            match read.map_err(|error| of_read(error, between_frames))? {
                0 if self.buffer.is_empty() => return Err(RecvError::Closed),
                0 => return Err(RecvError::Truncated),
                _ => {}
            }
        }
    }

    /// Fills `out` with the content behind the last frame, straight from the connection. Not to be dropped in the
    /// middle, unless the channel is given up: use [`Self::recv_some`] for that.
    ///
    /// # Errors
    /// When the other side ends, or sends not a byte within the progress timeout.
    pub async fn recv_exact(&mut self, out: &mut [u8]) -> Result<(), RecvError> {
        let mut filled = 0;
        while filled < out.len() {
            filled += self.recv_some(&mut out[filled..]).await?;
        }
        Ok(())
    }

    /// Reads some bytes of the content behind the last frame, at least 1 unless `out` is empty, and says how many.
    /// The caller keeps count of how much content is left. May be dropped and called again: nothing is lost.
    ///
    /// # Errors
    /// When the other side ends, or sends not a byte within the progress timeout.
    pub async fn recv_some(&mut self, mut out: &mut [u8]) -> Result<usize, RecvError> {
        if out.is_empty() {
            return Ok(0);
        }
        if !self.buffer.is_empty() {
            let count = self.buffer.len().min(out.len());
            self.buffer.copy_to_slice(&mut out[..count]);
            self.shrink();
            return Ok(count);
        }
        let read = timeout(self.progress_timeout, self.inlet.read(&mut out)).await;
        match read
            .map_err(|_| RecvError::Stalled { after: self.progress_timeout })?
            .map_err(|error| of_read(error, false))?
        {
            0 => Err(RecvError::Truncated),
            count => Ok(count),
        }
    }

    /// Memory the receive buffer takes, in bytes.
    #[cfg(test)]
    pub(super) fn buffered_capacity(&self) -> usize {
        self.buffer.capacity()
    }

    fn shrink(&mut self) {
        if self.buffer.is_empty() && self.buffer.capacity() > BUFFER_KEEP_BYTES {
            self.buffer = BytesMut::new();
        }
    }
}

/// A reset is the other side's way to say that what it was sending is void.
fn of_read(error: io::Error, between_frames: bool) -> RecvError {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::NotConnected => {
            if between_frames {
                RecvError::Closed
            } else {
                RecvError::Truncated
            }
        }
        _ => RecvError::Io(error),
    }
}

// === impl Outlet, Inlet ===

impl SendLink for Outlet {
    async fn write(&mut self, bytes: &[u8], more: bool) -> Result<usize, SendError> {
        match self {
            Self::Tcp(link) => link.write(bytes, more).await,
            Self::Quic(link) => link.write(bytes, more).await,
        }
    }

    async fn write_content(&mut self, content: &mut Content<'_>, part: ByteRange) -> Result<u64, SendError> {
        match self {
            Self::Tcp(link) => link.write_content(content, part).await,
            Self::Quic(link) => link.write_content(content, part).await,
        }
    }

    async fn finish(&mut self) -> Result<(), SendError> {
        match self {
            Self::Tcp(link) => link.finish().await,
            Self::Quic(link) => link.finish().await,
        }
    }

    fn abort(&mut self) {
        match self {
            Self::Tcp(link) => link.abort(),
            Self::Quic(link) => link.abort(),
        }
    }
}

impl RecvLink for Inlet {
    async fn read(&mut self, out: &mut (impl BufMut + Send)) -> io::Result<usize> {
        match self {
            Self::Tcp(link) => link.read(out).await,
            Self::Quic(link) => link.read(out).await,
        }
    }
}
