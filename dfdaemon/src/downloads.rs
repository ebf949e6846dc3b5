//! What the HTTP side needs of the download engine.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use http::{HeaderMap, StatusCode};
use proto::{ByteRange, Generation, Kind, TaskId, TaskSpec};

/// Opens tasks. Implemented over the engine, and in tests over plain memory or HTTP.
pub trait Downloads: Send + Sync + 'static {
    /// Opens a task: returns once its metadata is known, while its bytes may still be on their way.
    ///
    /// Dropping the future, or the last handle of the task, gives the interest in it up.
    fn open(
        &self,
        request: OpenRequest,
    ) -> Pin<Box<dyn Future<Output = Result<OpenedTask, DownloadError>> + Send + '_>>;
}

/// A task that is being read.
pub trait TaskBody: Send + Sync {
    /// The bytes of a range (`None` = all), verified and in order. The stream ends early only with an error.
    fn reader(&self, range: Option<ByteRange>) -> BodyStream;
}

/// Verified bytes in order; an error when the body cannot be completed.
pub type BodyStream = Pin<Box<dyn Stream<Item = Result<Bytes, DownloadError>> + Send>>;

/// Where a download may come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// From peers, and from the seed.
    #[default]
    P2p,
    /// From the seed only.
    SeedOnly,
    /// From the origin only.
    OriginOnly,
}

/// What to open.
#[derive(Clone)]
pub struct OpenRequest {
    /// The content.
    pub spec: TaskSpec,
    /// The caller's own headers for the origin; they may hold credentials.
    pub headers: HeaderMap,
    /// Where it may come from.
    pub route: Route,
    /// 0 to 6; 6 is usual.
    pub priority: u32,
    /// The origin must not be read for this caller.
    pub never_origin: bool,
    /// Limit of this download in bytes per second.
    pub rate_bytes_per_s: Option<u64>,
    /// The part that will be read, when it is known beforehand.
    pub wanted: Option<ByteRange>,
}

/// A task whose metadata is known.
#[derive(Clone)]
pub struct OpenedTask {
    /// What is known of it.
    pub info: TaskInfo,
    /// Its bytes.
    pub body: Arc<dyn TaskBody>,
}

/// What is known of a task once it is open.
#[derive(Clone, Debug)]
pub struct TaskInfo {
    /// Its id.
    pub task: TaskId,
    /// The generation that is read.
    pub generation: Generation,
    /// Length of the content in bytes, when it is known by now.
    pub length: Option<u64>,
    /// The origin's headers that a client may see.
    pub headers: HeaderMap,
    /// It was fetched with credentials.
    pub guarded: bool,
    /// It was here before, whole.
    pub from_cache: bool,
}

/// Why a task cannot be opened, or its body not be completed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct DownloadError {
    kind: Kind,
    message: String,
    origin: Option<Box<OriginAnswer>>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// What the origin answered instead of the content.
#[derive(Clone, Debug)]
pub struct OriginAnswer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers (`WWW-Authenticate`, `Retry-After`, `Content-Type`).
    pub headers: HeaderMap,
    /// The beginning of its body, when it was kept.
    pub body: Bytes,
}

// === impl OpenRequest ===

impl OpenRequest {
    /// A usual download of this content with these headers.
    #[must_use]
    pub const fn new(spec: TaskSpec, headers: HeaderMap) -> Self {
        Self {
            spec,
            headers,
            route: Route::P2p,
            priority: 6,
            never_origin: false,
            rate_bytes_per_s: None,
            wanted: None,
        }
    }
}

/// Without the headers: they may hold credentials.
impl fmt::Debug for OpenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenRequest").field("task", &self.spec.id()).field("route", &self.route).finish_non_exhaustive()
    }
}

// === impl OpenedTask ===

impl fmt::Debug for OpenedTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedTask").field("info", &self.info).finish_non_exhaustive()
    }
}

// === impl DownloadError ===

impl DownloadError {
    /// An error of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), origin: None, source: None }
    }

    /// With what the origin answered.
    #[must_use]
    pub fn with_origin(mut self, answer: OriginAnswer) -> Self {
        self.origin = Some(Box::new(answer));
        self
    }

    /// With what caused it.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What sort of failure it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// What the origin answered, when it was the origin that failed.
    #[must_use]
    pub fn origin(&self) -> Option<&OriginAnswer> {
        self.origin.as_deref()
    }
}
