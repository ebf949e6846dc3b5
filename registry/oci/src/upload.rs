//! A blob on its way in.
//!
//! An upload's URL ends in its id and a keyed hash over it ([`UploadKey`]), so every process knows a real one without
//! having seen it. What may happen to an upload, and in which order, is [`Upload`].

mod content_range;
mod id;
mod key;
mod session;

pub use content_range::{ContentRange, InvalidContentRange, range_header};
pub use id::{InvalidUploadId, UploadId};
pub use key::UploadKey;
pub use session::{
    Cancelled, Chunk, Committed, DigestMismatch, Open, Receiving, Refused, Upload, UploadLimits, Verified,
};
