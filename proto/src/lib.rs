//! The language every part of Skimmer shares.
//!
//! Identifiers, digests, byte ranges, piece arithmetic, piece hashes and wire messages. Pure: no IO, no clock,
//! no runtime, here or in anything this crate depends on (`./dev check` refuses them).
//!
//! Read first: [`TaskId`] and [`Generation`] (what is transferred), [`PieceLayout`] (how it is cut),
//! [`PieceHash`] (how a piece is trusted), [`frame`] (how peers speak).
//!
//! **Not here:** decisions (crate `swarm`), bytes on disk or on the network (crate `peer`), gRPC stubs
//! (`peer::rpc`; tonic brings a runtime with it).

#![forbid(unsafe_code)]

pub mod api;
mod convert;
mod digest;
pub mod frame;
mod host;
mod kind;
mod piece;
mod piece_set;
mod range;
mod task;
mod tree;
pub mod wire;

pub use convert::InvalidMessage;
pub use digest::{Algorithm, Digest, DigestHasher, InvalidDigest};
pub use host::{HostId, InvalidId};
pub use kind::Kind;
pub use piece::{PIECE_LEN_MAX, PIECE_LEN_MIN, PIECE_LEN_UNKNOWN, PieceIndex, PieceLayout, piece_len_for};
pub use piece_set::{InvalidRuns, PieceSet};
pub use range::{ByteRange, ContentRange, InvalidRange, RangeHeader, Unsatisfiable};
pub use task::{DEFAULT_FILTERED_PARAMS, Generation, TaskId, TaskSpec, Validators, content_url};
pub use tree::{PieceHash, PieceHasher, Root, root_of};

/// The peer and control protocol versions this build speaks.
pub const PROTOCOL_VERSION: u32 = 2;
/// The oldest protocol version this build still speaks.
pub const PROTOCOL_VERSION_MIN: u32 = 1;
