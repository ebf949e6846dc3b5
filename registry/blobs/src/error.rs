//! What can go wrong with the store.

use std::error::Error;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use proto::{Digest, Kind};

use crate::hash::InvalidHashState;

/// An operation on the store failed.
///
/// Errors can be cloned: one request for many entries may fail for all of them.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store has no such thing.
    #[error("{what} is not in the store")]
    NotFound {
        /// Its name in the store.
        what: String,
    },
    /// What the store has is not what it should be.
    #[error("{what} is damaged: {why}")]
    Corrupt {
        /// Its name in the store.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Another request writes to the same upload right now.
    #[error("another request writes to this upload")]
    Busy,
    /// Another content was committed under this upload's id: two requests ended one upload.
    #[error("the upload was ended with another content")]
    Taken,
    /// The disk, the quota or the bucket is full.
    #[error("the store is full")]
    Full(#[source] Cause),
    /// The object storage asks for less, even after waiting and trying again.
    #[error("the object storage is overloaded")]
    Throttled {
        /// How long it wants to be left alone.
        retry_after: Duration,
        /// The last answer.
        source: Cause,
    },
    /// The content is longer than this store can hold in one blob.
    #[error("the content is longer than {max} bytes")]
    TooLarge {
        /// The most there can be, in bytes.
        max: u64,
    },
    /// A checkpoint does not belong to this store, or is damaged.
    #[error("the checkpoint cannot be used: {0}")]
    Checkpoint(&'static str),
    /// The running hash of a checkpoint is damaged.
    #[error("the checkpoint cannot be used")]
    HashState(#[from] InvalidHashState),
    /// Blobs are not named by this algorithm.
    #[error("blobs are named by sha256 or sha512, not by {0}")]
    Algorithm(&'static str),
    /// An operation on a file failed.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// What was tried: `write`, `sync`, …
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A request to the object storage failed.
    #[error("cannot {doing} {key}")]
    Object {
        /// What was tried: `put`, `get`, …
        doing: &'static str,
        /// The object's key, or the prefix of several.
        key: String,
        /// What the storage or the network said.
        source: Cause,
    },
    /// The store cannot be used as it is configured.
    #[error("the store cannot be used: {why}")]
    Setup {
        /// Why.
        why: String,
        /// The error behind it, if there is one.
        source: Option<Cause>,
    },
    /// A part of the program gave up in the middle: a defect of ours, or a shutdown.
    #[error("the operation was interrupted")]
    Interrupted,
}

/// The error behind an error; shared, so that errors can be cloned.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub struct Cause(Arc<dyn Error + Send + Sync>);

/// An upload was not committed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FinishError {
    /// The content is another than the digest says.
    #[error("the content's digest is {computed}")]
    Mismatch {
        /// What the content really has.
        computed: Digest,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

// === impl Cause ===

impl Cause {
    pub(crate) fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Arc::new(error))
    }
}

// === impl StoreError ===

impl StoreError {
    /// The sort of failure, from which statuses and retries follow.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::NotFound { .. } => Kind::NotFound,
            Self::Corrupt { .. } => Kind::Corrupt,
            Self::Busy | Self::Taken => Kind::Conflict,
            Self::Full(_) => Kind::NoSpace,
            Self::Throttled { .. } => Kind::Throttled,
            Self::TooLarge { .. } | Self::Algorithm(_) => Kind::Invalid,
            Self::Io { .. } | Self::Object { .. } => Kind::Unavailable,
            Self::Checkpoint(_) | Self::HashState(_) | Self::Setup { .. } | Self::Interrupted => Kind::Internal,
        }
    }

    /// How long to wait before trying again, when the store said so.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// A failed operation on a file.
    pub(crate) fn io(doing: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full(Cause::new(source)),
            _ => Self::Io { doing, path: path.into(), source: Arc::new(source) },
        }
    }

    /// As [`StoreError::io`], for a file that need not be there. (A folder that is missing is an accident.)
    pub(crate) fn opening(path: &Path, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::NotFound {
            return Self::NotFound { what: path.display().to_string() };
        }
        Self::io("open", path, source)
    }
}

impl FinishError {
    /// The sort of failure; content that does not match its digest is the client's mistake.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Mismatch { .. } => Kind::Invalid,
            Self::Store(error) => error.kind(),
        }
    }
}
