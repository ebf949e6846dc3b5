//! Frames on a byte stream between peers: a little-endian `u32` length, then one [`Frame`].
//!
//! The codec is pure and incremental: [`decode`] is called with whatever bytes are there.

use bytes::{Buf, BufMut, BytesMut};
use prost::Message;

pub use crate::wire::Frame;

/// The longest frame in bytes. A have-map of a 4 TiB content or a page of 16,000 piece hashes fits.
pub const FRAME_LEN_MAX: usize = 1024 * 1024;
/// The longest first frame in bytes: strangers get little.
pub const HELLO_LEN_MAX: usize = 16 * 1024;
/// Piece hashes sent in one message at most, so that it stays well below [`FRAME_LEN_MAX`].
pub const HASHES_PER_MESSAGE_MAX: usize = 16 * 1024;

/// Bytes are no frame; the connection is of no use any more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// It says it is longer than is allowed.
    #[error("frame of {length} bytes is over the limit of {limit}")]
    TooLong {
        /// Length it announced, in bytes.
        length: usize,
        /// Length allowed, in bytes.
        limit: usize,
    },
    /// Its bytes are no protobuf message of ours.
    #[error("frame cannot be read")]
    Malformed(#[from] prost::DecodeError),
}

/// Appends a frame to a buffer.
///
/// # Panics
/// When the frame is longer than [`FRAME_LEN_MAX`]: whoever built it broke a limit of ours.
pub fn encode(frame: &Frame, out: &mut BytesMut) {
    let length = frame.encoded_len();
    assert!(length <= FRAME_LEN_MAX, "built a frame of {length} bytes");
    out.reserve(4 + length);
    out.put_u32_le(u32::try_from(length).expect("checked above"));
    frame.encode(out).expect("space was reserved");
}

/// Takes one frame off the front of a buffer; `None` when it is not all there yet.
///
/// # Errors
/// When it is over `limit` or malformed.
pub fn decode(buffer: &mut BytesMut, limit: usize) -> Result<Option<Frame>, FrameError> {
    let Some(header) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*header) as usize;
    if length > limit {
        return Err(FrameError::TooLong { length, limit });
    }
    if buffer.len() < 4 + length {
        return Ok(None);
    }
    buffer.advance(4);
    Ok(Some(Frame::decode(buffer.split_to(length))?))
}
