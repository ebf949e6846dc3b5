//! The language of the OCI distribution protocol.
//!
//! Everything a registry has to understand before it touches a byte of storage: whose repository, which reference, what
//! a manifest needs, where an upload stands, which error the specification has for it.
//!
//! Read first: [`route::parse`] (what a path asks for), [`Manifest`] (what was pushed), [`upload::Upload`] (a blob on
//! its way in), [`ErrorCode`] (how the answer says no).
//!
//! **Not here:** HTTP, storage, SQL, who may do what. No IO, no clock, no randomness: times and random bytes are
//! arguments, and `./dev check purity` refuses a runtime among the dependencies.
//!
//! Invariants:
//! - A value of a type of this crate is valid. [`RepositoryName`], [`TagName`] and [`Digest`] are parsed once, at the
//!   edge.
//! - Raw bytes are the truth. A [`Manifest`] keeps them as they came; what was parsed stands beside them and is never
//!   written back.
//! - Nothing that comes from a stranger makes this crate panic, recurse without a bound or keep more than the limits
//!   say.
//! - Registry digests are SHA-256 and SHA-512; the other algorithms of crate `proto` are refused here.
//!
//! Nothing in here outlives the process, so a crash loses nothing.

#![forbid(unsafe_code)]

mod condition;
mod digest;
mod error;
mod manifest;
pub mod media_type;
mod name;
pub mod page;
mod query;
pub mod range;
mod reference;
pub mod referrers;
pub mod route;
pub mod upload;

pub use condition::{Condition, Unmet};
pub use digest::{InvalidDigest, parse_algorithm, parse_digest};
pub use error::{ErrorCode, Problem, body};
pub use manifest::{BlobRef, Descriptor, InvalidManifest, Kind, Manifest, ManifestLimits};
pub use name::{InvalidName, NAME_LEN_MAX, RepositoryName};
pub use proto::{Algorithm, ByteRange, Digest, DigestHasher, RangeHeader};
pub use query::{InvalidQuery, PARAMS_MAX, Query};
pub use reference::{InvalidReference, InvalidTag, Reference, TAG_LEN_MAX, TagName};
