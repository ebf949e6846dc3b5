//! What an upload has received since its last full part.

use bytes::Bytes;
use object_store::PutPayload;
use oci::upload::UploadId;
use tokio::sync::OwnedSemaphorePermit;

use super::Shared;
use super::shared::PartPermit;
use super::state::{Segment, random_name};
use crate::error::StoreError;

/// More segments than this are made one: clients choose the length of their chunks, and a part may not be made of
/// thousands of objects.
const SEGMENTS_MAX: usize = 32;

/// The bytes lie in memory, but for a beginning that another process received, or for which there was no room, and that is read
/// when it is needed.
pub(super) struct Tail {
    /// Of its first byte in the upload.
    start: u64,
    /// Objects that hold its beginning, in order.
    segments: Vec<Segment>,
    /// How many of these are in no checkpoint's state.
    unknown: usize,
    /// How many of these are not in memory.
    unread: usize,
    memory: Vec<Bytes>,
    /// For what is in memory, as far as there was some.
    room: Option<OwnedSemaphorePermit>,
    length: u64,
}

/// Segments that are superfluous.
#[derive(Debug, Default)]
pub(super) struct Superfluous {
    /// A checkpoint's state may hold them.
    pub(super) known: Vec<Segment>,
    /// Nobody else knows of them.
    pub(super) unknown: Vec<Segment>,
}

impl Tail {
    pub(super) fn new(start: u64, segments: Vec<Segment>) -> Self {
        let length = segments.iter().map(|segment| segment.length).sum();
        Self { start, unread: segments.len(), segments, unknown: 0, memory: Vec::new(), room: None, length }
    }

    pub(super) const fn length(&self) -> u64 {
        self.length
    }

    /// Where it ends in the upload.
    pub(super) const fn end(&self) -> u64 {
        self.start + self.length
    }

    /// What of it is in memory.
    pub(super) fn in_memory(&self) -> u64 {
        self.memory.iter().map(|piece| piece.len() as u64).sum()
    }

    /// Whether [`Tail::read`] has something to read.
    pub(super) const fn is_unread(&self) -> bool {
        self.unread > 0
    }

    pub(super) fn push(&mut self, bytes: Bytes, room: Option<OwnedSemaphorePermit>) {
        if !bytes.is_empty() {
            self.length += bytes.len() as u64;
            self.memory.push(bytes);
        }
        match (&mut self.room, room) {
            (Some(all), Some(room)) => all.merge(room),
            (all, room @ Some(_)) => *all = room,
            (_, None) => {}
        }
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The whole tail in memory, which is as much as a part.
    pub(super) async fn read(&mut self, shared: &Shared, id: UploadId, _: &PartPermit) -> Result<(), StoreError> {
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
    pub(super) fn advance(&mut self) -> Superfluous {
        let next = Self::new(self.end(), Vec::new());
        std::mem::replace(self, next).into_segments()
    }

    fn into_segments(mut self) -> Superfluous {
        let unknown = self.segments.split_off(self.segments.len() - self.unknown);
        Superfluous { known: self.segments, unknown }
    }

    /// As much of a part of this length is kept in memory although there is no room: it would take too many segments.
    pub(super) const fn kept_at_least(part_size: u64) -> u64 {
        part_size.div_ceil(SEGMENTS_MAX as u64)
    }

    /// Makes durable what is not yet, for a checkpoint's state. Gives away segments that became superfluous.
    pub(super) async fn save(&mut self, shared: &Shared, id: UploadId) -> Result<Superfluous, StoreError> {
        let mut superfluous = Superfluous::default();
        let saved: u64 = self.segments.iter().map(|segment| segment.length).sum();
        if saved < self.length {
            if self.segments.len() >= SEGMENTS_MAX {
                superfluous = self.join(shared, id).await?;
            } else {
                self.put_rest(shared, id, true).await?;
            }
        }
        self.unknown = 0;
        Ok(superfluous)
    }

    /// Puts what is in memory into the storage, where there is room for it.
    pub(super) async fn spill(&mut self, shared: &Shared, id: UploadId) -> Result<(), StoreError> {
        let saved: u64 = self.segments.iter().map(|segment| segment.length).sum();
        if saved < self.length {
            self.put_rest(shared, id, false).await?;
        }
        self.forget_memory();
        Ok(())
    }

    /// What no segment holds becomes one more.
    async fn put_rest(&mut self, shared: &Shared, id: UploadId, keep: bool) -> Result<(), StoreError> {
        let saved: u64 = self.segments.iter().map(|segment| segment.length).sum();
        // What is in memory begins where the unread segments end.
        let unread: u64 = self.segments[..self.unread].iter().map(|segment| segment.length).sum();
        let segment = Segment { offset: self.start + saved, length: self.length - saved, random: random_name() };
        shared.put_segment(id, &segment, skip(&self.memory, saved - unread), keep).await?;
        self.segments.push(segment);
        self.unknown += 1;
        Ok(())
    }

    /// All segments, and what none of them holds, become one.
    async fn join(&mut self, shared: &Shared, id: UploadId) -> Result<Superfluous, StoreError> {
        let permit = shared.permit().await?;
        self.read(shared, id, &permit).await?;
        let segment = Segment { offset: self.start, length: self.length, random: random_name() };
        shared.put_segment(id, &segment, self.payload(), true).await?;
        let joined = Self::new(self.start, vec![segment]);
        Ok(std::mem::replace(self, joined).into_segments())
    }

    fn forget_memory(&mut self) {
        self.memory.clear();
        self.room = None;
        self.unread = self.segments.len();
    }
}

/// Without the first `skipped` bytes.
fn skip(pieces: &[Bytes], mut skipped: u64) -> PutPayload {
    let rest = pieces.iter().map(|piece| {
        let from = usize::try_from(skipped).map_or(piece.len(), |skipped| skipped.min(piece.len()));
        skipped -= from as u64;
        piece.slice(from..)
    });
    rest.filter(|piece| !piece.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_once() {
        let segment = |offset, length| Segment { offset, length, random: random_name() };
        let mut tail = Tail::new(100, vec![segment(100, 5), segment(105, 2)]);
        assert_eq!((tail.length(), tail.end()), (7, 107));
        tail.push(Bytes::from_static(b"abc"), None);
        tail.push(Bytes::new(), None);
        tail.push(Bytes::from_static(b"de"), None);
        assert_eq!((tail.length(), tail.end(), tail.memory.len(), tail.in_memory()), (12, 112, 2, 5));
        let after = |skipped| Bytes::from(skip(&tail.memory, skipped));
        assert_eq!(after(0), &b"abcde"[..]);
        assert_eq!(after(3), &b"de"[..]);
        assert_eq!(after(4), &b"e"[..]);
        tail.segments.push(segment(107, 5));
        tail.unknown = 1;
        let superfluous = tail.advance();
        assert_eq!((superfluous.known.len(), superfluous.unknown.len()), (2, 1));
        assert_eq!((tail.length(), tail.end(), tail.segments().len()), (0, 112, 0));
    }
}
