//! What an upload has received since its last full part.

use std::sync::Arc;

use bytes::Bytes;
use object_store::PutPayload;
use oci::upload::UploadId;

use super::Shared;
use super::state::{Segment, random_name};
use crate::error::StoreError;

/// More segments than this are made one: clients choose the length of their chunks, and a part may not be made of
/// thousands of objects.
const SEGMENTS_MAX: usize = 32;

/// The bytes lie in memory, but for a beginning that another process received, and that is read when it is needed.
pub(super) struct Tail {
    /// Of its first byte in the upload.
    start: u64,
    /// Objects that hold its beginning, in order.
    segments: Vec<Segment>,
    /// How many of these are not in memory.
    unread: usize,
    memory: Vec<Bytes>,
    length: u64,
}

impl Tail {
    pub(super) fn new(start: u64, segments: Vec<Segment>) -> Self {
        let length = segments.iter().map(|segment| segment.length).sum();
        Self { start, unread: segments.len(), segments, memory: Vec::new(), length }
    }

    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    /// Where it ends in the upload.
    pub(super) const fn end(&self) -> u64 {
        self.start + self.length
    }

    pub(super) fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.length += bytes.len() as u64;
            self.memory.push(bytes);
        }
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The whole tail in memory.
    pub(super) async fn read(&mut self, shared: &Shared, id: UploadId) -> Result<(), StoreError> {
        let mut read = Vec::with_capacity(self.unread + self.memory.len());
        for segment in &self.segments[..self.unread] {
            read.push(shared.segment(id, segment).await?);
        }
        read.append(&mut self.memory);
        (self.memory, self.unread) = (read, 0);
        Ok(())
    }

    /// The bytes; those that are in memory, so [`Tail::read`] comes first.
    pub(super) fn payload(&self) -> PutPayload {
        debug_assert_eq!(self.unread, 0, "the tail was read");
        self.memory.iter().cloned().collect()
    }

    /// Becomes the tail after a part that was made of it, and gives away the segments the part makes superfluous.
    pub(super) fn advance(&mut self) -> Vec<Segment> {
        let next = Self::new(self.end(), Vec::new());
        std::mem::replace(self, next).segments
    }

    /// Makes durable what is not yet, as one more segment. Gives away segments that became superfluous.
    pub(super) async fn save(&mut self, shared: &Arc<Shared>, id: UploadId) -> Result<Vec<Segment>, StoreError> {
        let saved: u64 = self.segments.iter().map(|segment| segment.length).sum();
        if saved == self.length {
            return Ok(Vec::new());
        }
        let join = self.segments.len() >= SEGMENTS_MAX;
        let from = if join { 0 } else { saved };
        if join {
            self.read(shared, id).await?;
        }
        // What is in memory begins where the unread segments end.
        let unread: u64 = self.segments[..self.unread].iter().map(|segment| segment.length).sum();
        let content = skip(&self.memory, from - unread);
        let segment = Segment { offset: self.start + from, length: self.length - from, random: random_name() };
        shared.put_segment(id, &segment, content).await?;
        let superfluous = if join { std::mem::take(&mut self.segments) } else { Vec::new() };
        self.segments.push(segment);
        Ok(superfluous)
    }
}

/// Without the first `skipped` bytes, as one.
fn skip(pieces: &[Bytes], mut skipped: u64) -> Bytes {
    let mut content = Vec::new();
    for piece in pieces {
        let from = usize::try_from(skipped).map_or(piece.len(), |skipped| skipped.min(piece.len()));
        skipped -= from as u64;
        content.extend_from_slice(&piece[from..]);
    }
    content.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_once() {
        let segment = |offset, length| Segment { offset, length, random: random_name() };
        let mut tail = Tail::new(100, vec![segment(100, 5), segment(105, 2)]);
        assert_eq!((tail.length(), tail.end()), (7, 107));
        tail.push(Bytes::from_static(b"abc"));
        tail.push(Bytes::new());
        tail.push(Bytes::from_static(b"de"));
        assert_eq!((tail.length(), tail.end(), tail.memory.len()), (12, 112, 2));
        assert_eq!(skip(&tail.memory, 0), &b"abcde"[..]);
        assert_eq!(skip(&tail.memory, 3), &b"de"[..]);
        assert_eq!(skip(&tail.memory, 4), &b"e"[..]);
        assert_eq!(tail.advance().len(), 2);
        assert_eq!((tail.length(), tail.end(), tail.segments().len()), (0, 112, 0));
    }
}
