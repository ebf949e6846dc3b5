//! The life of an upload, as types: what does not exist cannot be done in the wrong order.
//!
//! ```text
//! Open ─► Receiving ─► Verified ─► Committed
//!          ▲     │
//!          └Chunk◄┘
//! Open, Receiving ─► Cancelled
//! ```
//!
//! Nothing here holds bytes. The caller hashes and writes them, and reports what it took; this says whether it may go
//! on.

use proto::Digest;

use super::{ContentRange, UploadId, range_header};
use crate::{ErrorCode, RepositoryName};

/// How much is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UploadLimits {
    /// Bytes of a blob.
    pub size_bytes_max: u64,
    /// Bytes of one request's body.
    pub chunk_bytes_max: u64,
}

/// An upload in the state `S`.
#[derive(Debug)]
pub struct Upload<S> {
    repository: RepositoryName,
    id: UploadId,
    limits: UploadLimits,
    state: S,
}

/// A client has its URL; nothing of it is written anywhere.
#[derive(Debug)]
pub struct Open(());

/// Between two requests: some bytes are durable, perhaps none.
#[derive(Debug)]
pub struct Receiving {
    offset: u64,
}

/// In a request's body.
#[derive(Debug)]
pub struct Chunk {
    offset: u64,
    /// Bytes of the body so far.
    received: u64,
    /// Bytes it should have, when that was said.
    announced: Option<u64>,
}

/// Complete, and its content is what the client says.
#[derive(Debug)]
pub struct Verified {
    digest: Digest,
    size_bytes: u64,
}

/// A blob that everybody can see who may.
#[derive(Debug)]
pub struct Committed {
    digest: Digest,
    size_bytes: u64,
}

/// Given up by the client.
#[derive(Debug)]
pub struct Cancelled(());

/// Why a chunk is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// It does not start where the upload ends: 416.
    #[error("the chunk starts at byte {start}, the upload goes on at byte {offset}")]
    OutOfOrder {
        /// Where the next chunk has to start.
        offset: u64,
        /// Where this one starts.
        start: u64,
    },
    /// `Content-Range` and `Content-Length` speak of different lengths.
    #[error("the range of the chunk has {range} bytes, its body {length}")]
    LengthDiffers {
        /// Bytes in the range.
        range: u64,
        /// Bytes in the body.
        length: u64,
    },
    /// The blob would be larger than allowed: 413.
    #[error("a blob has at most {limit} bytes")]
    TooLarge {
        /// Bytes it may have.
        limit: u64,
    },
    /// One request has more bytes than allowed: 413.
    #[error("one request has at most {limit} bytes, a blob may come in several")]
    ChunkTooLarge {
        /// Bytes it may have.
        limit: u64,
    },
    /// The body goes on after the bytes that were announced.
    #[error("the body has more than the {announced} bytes it should have")]
    TooLong {
        /// Bytes it should have.
        announced: u64,
    },
    /// The body ends before the bytes that were announced.
    #[error("the body has {received} bytes, {announced} were announced")]
    TooShort {
        /// Bytes it should have.
        announced: u64,
        /// Bytes it has.
        received: u64,
    },
}

/// The content is not what the client says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the digest of the content is {found}, not {expected}")]
pub struct DigestMismatch {
    /// What the client says.
    pub expected: Digest,
    /// What the bytes give.
    pub found: Digest,
}

// === impl UploadLimits ===

impl UploadLimits {
    /// Whether a body of `received` bytes may follow `offset` bytes, which are within the limit.
    fn allow(&self, offset: u64, received: u64) -> Result<(), Refused> {
        if received > self.size_bytes_max - offset {
            return Err(Refused::TooLarge { limit: self.size_bytes_max });
        }
        if received > self.chunk_bytes_max {
            return Err(Refused::ChunkTooLarge { limit: self.chunk_bytes_max });
        }
        Ok(())
    }
}

// === impl Upload ===

impl<S> Upload<S> {
    /// The repository it belongs to.
    #[must_use]
    pub const fn repository(&self) -> &RepositoryName {
        &self.repository
    }

    /// Its name.
    #[must_use]
    pub const fn id(&self) -> UploadId {
        self.id
    }

    fn into_state<T>(self, state: T) -> Upload<T> {
        Upload { repository: self.repository, id: self.id, limits: self.limits, state }
    }
}

impl Upload<Open> {
    /// A new upload.
    #[must_use]
    pub const fn new(repository: RepositoryName, id: UploadId, limits: UploadLimits) -> Self {
        Self { repository, id, limits, state: Open(()) }
    }

    /// Its first request with a body, or its end without one.
    #[must_use]
    pub fn receive(self) -> Upload<Receiving> {
        self.into_state(Receiving { offset: 0 })
    }

    /// The client does not want it any more.
    pub fn cancel(self) -> Upload<Cancelled> {
        self.into_state(Cancelled(()))
    }
}

impl Upload<Receiving> {
    /// An upload of which `offset` bytes are durable.
    ///
    /// # Errors
    /// [`Refused::TooLarge`] when that is more than a blob may have: the limit was lowered in between.
    pub fn resume(
        repository: RepositoryName,
        id: UploadId,
        limits: UploadLimits,
        offset: u64,
    ) -> Result<Self, Refused> {
        if offset > limits.size_bytes_max {
            return Err(Refused::TooLarge { limit: limits.size_bytes_max });
        }
        Ok(Self { repository, id, limits, state: Receiving { offset } })
    }

    /// Durable bytes: where the next chunk starts.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.state.offset
    }

    /// The `Range` header that tells the client so.
    #[must_use]
    pub fn range_header(&self) -> String {
        range_header(self.state.offset)
    }

    /// A request with a body begins. `length` is its `Content-Length`. Without a range the body is appended.
    ///
    /// # Errors
    /// When the range starts elsewhere than at [`Self::offset`], range and length differ, or the body is or the blob would
    /// become too large.
    pub fn begin(self, range: Option<ContentRange>, length: Option<u64>) -> Result<Upload<Chunk>, Refused> {
        let offset = self.state.offset;
        if let Some(range) = range {
            if range.start() != offset {
                return Err(Refused::OutOfOrder { offset, start: range.start() });
            }
            if let Some(length) = length.filter(|&length| length != range.len()) {
                return Err(Refused::LengthDiffers { range: range.len(), length });
            }
        }
        let announced = length.or_else(|| range.map(ContentRange::len));
        if let Some(announced) = announced {
            self.limits.allow(offset, announced)?;
        }
        Ok(self.into_state(Chunk { offset, received: 0, announced }))
    }

    /// The client says that this is all, and that its digest is `expected`; the bytes gave `found`.
    ///
    /// # Errors
    /// When the two differ, in their algorithm or in their value.
    pub fn finish(self, expected: &Digest, found: Digest) -> Result<Upload<Verified>, DigestMismatch> {
        if *expected != found {
            return Err(DigestMismatch { expected: expected.clone(), found });
        }
        let size_bytes = self.state.offset;
        Ok(self.into_state(Verified { digest: found, size_bytes }))
    }

    /// The client does not want it any more.
    pub fn cancel(self) -> Upload<Cancelled> {
        self.into_state(Cancelled(()))
    }
}

impl Upload<Chunk> {
    /// The upload's bytes so far, those of this body included.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.state.offset + self.state.received
    }

    /// The next `count` bytes of the body have come. To be asked before they are written.
    ///
    /// # Errors
    /// When the body is longer than was announced or allowed, or the blob would become too large. They must not be written then.
    pub fn take(&mut self, count: u64) -> Result<(), Refused> {
        let received = self.state.received.saturating_add(count);
        if let Some(announced) = self.state.announced.filter(|&announced| received > announced) {
            return Err(Refused::TooLong { announced });
        }
        self.limits.allow(self.state.offset, received)?;
        self.state.received = received;
        Ok(())
    }

    /// The body has ended, and its bytes are durable.
    ///
    /// # Errors
    /// When it is shorter than was announced.
    pub fn end(self) -> Result<Upload<Receiving>, Refused> {
        let Chunk { received, announced, .. } = self.state;
        if let Some(announced) = announced.filter(|&announced| received < announced) {
            return Err(Refused::TooShort { announced, received });
        }
        let offset = self.offset();
        Ok(self.into_state(Receiving { offset }))
    }

    /// The body broke off: the upload goes on from where it was before.
    #[must_use]
    pub fn abandon(self) -> Upload<Receiving> {
        let offset = self.state.offset;
        self.into_state(Receiving { offset })
    }
}

impl Upload<Verified> {
    /// The digest of the content.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.state.digest
    }

    /// Bytes of the content.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.state.size_bytes
    }

    /// Bytes and database say so, durably.
    pub fn committed(self) -> Upload<Committed> {
        let Self { repository, id, limits, state: Verified { digest, size_bytes } } = self;
        Upload { repository, id, limits, state: Committed { digest, size_bytes } }
    }
}

impl Upload<Committed> {
    /// The digest of the blob.
    #[must_use]
    pub const fn digest(&self) -> &Digest {
        &self.state.digest
    }

    /// Bytes of the blob.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.state.size_bytes
    }
}

// === impl Refused, DigestMismatch ===

impl Refused {
    /// What the answer says.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::OutOfOrder { .. } => ErrorCode::BlobUploadInvalid,
            _ => ErrorCode::SizeInvalid,
        }
    }

    /// The HTTP status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::OutOfOrder { .. } => 416,
            Self::TooLarge { .. } | Self::ChunkTooLarge { .. } => 413,
            _ => 400,
        }
    }
}

impl DigestMismatch {
    /// What the answer says.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::DigestInvalid
    }
}

#[cfg(test)]
mod tests {
    use proto::Algorithm;

    use super::*;

    fn repository() -> RepositoryName {
        "a/b".parse().expect("a name")
    }

    const fn up_to(limit: u64) -> UploadLimits {
        UploadLimits { size_bytes_max: limit, chunk_bytes_max: limit }
    }

    fn at(offset: u64, limit: u64) -> Upload<Receiving> {
        Upload::resume(repository(), UploadId::new(1, [0; 10]), up_to(limit), offset).expect("within the limit")
    }

    fn range(text: &str) -> Option<ContentRange> {
        Some(ContentRange::parse(text).expect("a range"))
    }

    #[test]
    fn from_open_to_committed() {
        let content = b"hello world";
        let digest = Digest::of(Algorithm::Sha256, content);
        let open = Upload::new(repository(), UploadId::new(1, [0; 10]), up_to(100));
        let receiving = open.receive();
        assert_eq!(receiving.range_header(), "0-0");
        let mut chunk = receiving.begin(range("0-5"), Some(6)).expect("in order");
        chunk.take(4).expect("room");
        assert_eq!(chunk.offset(), 4);
        chunk.take(2).expect("room");
        let receiving = chunk.end().expect("complete");
        assert_eq!((receiving.offset(), receiving.range_header()), (6, "0-5".to_owned()));
        let mut chunk = receiving.begin(None, None).expect("appended");
        chunk.take(5).expect("room");
        let receiving = chunk.end().expect("no length to keep");
        let verified = receiving.finish(&digest, digest.clone()).expect("the same");
        assert_eq!((verified.digest(), verified.size_bytes()), (&digest, 11));
        let committed = verified.committed();
        assert_eq!((committed.digest(), committed.size_bytes()), (&digest, 11));
        assert_eq!((committed.id(), committed.repository()), (UploadId::new(1, [0; 10]), &repository()));
    }

    #[test]
    fn chunks_start_where_the_last_one_ended() {
        for text in ["0-4", "9-19", "11-20", "0-0"] {
            let refused = at(10, 100).begin(range(text), None).expect_err(text);
            assert_eq!(refused.status(), 416, "{text}");
            assert!(matches!(refused, Refused::OutOfOrder { offset: 10, .. }));
        }
        assert!(at(10, 100).begin(range("10-19"), Some(10)).is_ok());
        assert!(at(10, 100).begin(range("10-9"), Some(0)).is_ok());
    }

    #[test]
    fn lengths_agree() {
        let refused = at(0, 100).begin(range("0-9"), Some(9)).expect_err("two lengths");
        assert_eq!(refused, Refused::LengthDiffers { range: 10, length: 9 });
        assert_eq!((refused.code(), refused.status()), (ErrorCode::SizeInvalid, 400));
        // Only one of them is known: the body has to keep it.
        for (range, length) in [(range("0-9"), None), (None, Some(10))] {
            let mut chunk = at(0, 100).begin(range, length).expect("in order");
            chunk.take(9).expect("room");
            assert_eq!(chunk.take(2), Err(Refused::TooLong { announced: 10 }));
            // What was refused was not taken.
            assert_eq!(chunk.offset(), 9);
            assert_eq!(chunk.end().expect_err("a byte less"), Refused::TooShort { announced: 10, received: 9 });
        }
    }

    #[test]
    fn an_empty_chunk_changes_nothing() {
        let receiving = at(10, 10).begin(None, Some(0)).expect("in order").end().expect("complete");
        assert_eq!(receiving.offset(), 10);
    }

    #[test]
    fn never_above_the_limit() {
        let refused = at(90, 100).begin(None, Some(11)).expect_err("said beforehand");
        assert_eq!((refused, refused.status()), (Refused::TooLarge { limit: 100 }, 413));
        let mut chunk = at(90, 100).begin(None, None).expect("not known");
        chunk.take(10).expect("just so");
        assert_eq!(chunk.take(1), Err(Refused::TooLarge { limit: 100 }));
        assert_eq!(chunk.take(u64::MAX), Err(Refused::TooLarge { limit: 100 }));
        assert_eq!(chunk.end().expect("complete").offset(), 100);
        let resumed = Upload::resume(repository(), UploadId::new(1, [0; 10]), up_to(100), 101);
        assert_eq!(resumed.expect_err("lowered"), Refused::TooLarge { limit: 100 });
        assert!(at(u64::MAX, u64::MAX).begin(None, Some(1)).is_err());
    }

    #[test]
    fn no_request_above_its_limit() {
        let limits = UploadLimits { size_bytes_max: 100, chunk_bytes_max: 10 };
        let upload = || Upload::new(repository(), UploadId::new(1, [0; 10]), limits).receive();
        let refused = upload().begin(None, Some(11)).expect_err("said beforehand");
        assert_eq!((refused, refused.status()), (Refused::ChunkTooLarge { limit: 10 }, 413));
        assert_eq!(refused.code(), ErrorCode::SizeInvalid);
        let mut chunk = upload().begin(None, None).expect("not known");
        chunk.take(10).expect("just so");
        assert_eq!(chunk.take(1), Err(Refused::ChunkTooLarge { limit: 10 }));
        // The next request has as much again.
        let mut chunk = chunk.end().expect("complete").begin(None, Some(10)).expect("the next");
        chunk.take(10).expect("room");
        assert_eq!(chunk.offset(), 20);
    }

    #[test]
    fn a_broken_body_is_as_if_it_never_came() {
        let mut chunk = at(10, 100).begin(range("10-29"), None).expect("in order");
        chunk.take(7).expect("room");
        assert_eq!(chunk.abandon().offset(), 10);
    }

    #[test]
    fn another_digest_is_no_blob() {
        let (right, other) = (Digest::of(Algorithm::Sha256, b"a"), Digest::of(Algorithm::Sha256, b"b"));
        let mismatch = at(1, 100).finish(&other, right.clone()).expect_err("not the same");
        assert_eq!(mismatch, DigestMismatch { expected: other, found: right.clone() });
        assert_eq!(mismatch.code(), ErrorCode::DigestInvalid);
        assert!(at(1, 100).finish(&Digest::of(Algorithm::Sha512, b"a"), right).is_err());
    }

    #[test]
    fn cancelled_before_and_after_the_first_byte() {
        let id = UploadId::new(1, [0; 10]);
        assert_eq!(Upload::new(repository(), id, up_to(100)).cancel().id(), id);
        assert_eq!(at(10, 100).cancel().id(), id);
    }
}
