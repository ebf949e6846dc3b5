//! What carries a download out: the host's dfdaemon, or the engine in this process.

pub mod daemon;
mod local;

use std::path::PathBuf;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use proto::{Generation, TaskId, TaskSpec};

use crate::exit::Failure;

pub use local::LocalParts;

/// A future of a trait's method.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What happens during a download, in order. Ends after [`Event::Done`] or an error.
pub type Events = Pin<Box<dyn Stream<Item = Result<Event, BackendError>> + Send>>;

/// Carries downloads out. Dropping the events of a download cancels it.
pub trait Backend: Send + Sync {
    /// `dfdaemon` or `dfget`: who did it, for the result.
    fn name(&self) -> &'static str;

    /// Starts a download. Ready as soon as the request is taken; all else is told by the events.
    fn download(&self, request: Request) -> BoxFuture<'_, Result<Events, BackendError>>;

    /// Called once after everything is downloaded and reported: goes on serving peers for as long as was asked
    /// (`--alivetime`). Dropping the future ends it.
    fn linger(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// One file to download.
#[derive(Clone)]
pub struct Request {
    /// What.
    pub spec: TaskSpec,
    /// For the origin; they may hold credentials.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The file to write; without one the bytes come as [`Event::Data`], from the first one on.
    pub output: Option<Output>,
    /// Limit of this download.
    pub rate_bytes_per_s: Option<u64>,
    /// Limit of all downloads that name one, together.
    pub total_rate_bytes_per_s: Option<u64>,
    /// Its share at least.
    pub rate_min_bytes_per_s: Option<u64>,
    /// How long it may take from now. The caller watches it too, and a little more strictly.
    pub timeout: Option<Duration>,
    /// 0 to 6.
    pub priority: u32,
    /// Where the bytes may come from.
    pub route: Route,
    /// The origin must not be asked.
    pub never_origin: bool,
    /// `--callsystem`, for logs.
    pub caller: String,
}

/// The file a backend writes: under a temporary name first, renamed when it is verified; a failed download
/// leaves an existing file as it was.
#[derive(Clone, Debug)]
pub struct Output {
    /// Absolute.
    pub path: PathBuf,
    /// An existing file may be replaced.
    pub overwrite: bool,
    /// Nothing but a hard link will do.
    pub force_hard_link: bool,
    /// Write the verified bytes into the existing file, at the offset where the task's range starts.
    pub at_offset: bool,
    /// Who is to own the file.
    pub uid: u32,
    /// Who is to own the file.
    pub gid: u32,
}

/// Where a download may come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// From peers and the seed.
    #[default]
    P2p,
    /// From the supernode's seed only.
    SeedOnly,
    /// Straight from the origin.
    OriginOnly,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// The content is known. May come again when the engine had to start anew; bytes then come from the first one on.
    Started(Started),
    /// So far.
    Progress(Counts),
    /// The next bytes of a request without output, verified.
    Data(Bytes),
    /// Complete and verified; the output is in its place.
    Done(Done),
}

/// What is known of the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Started {
    /// Which content.
    pub key: Option<(TaskId, Generation)>,
    /// Bytes, when it is known.
    pub length: Option<u64>,
    /// The host has all of it.
    pub from_cache: bool,
}

/// Verified bytes, and whence they came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// All so far.
    pub bytes: u64,
    /// From other hosts.
    pub from_peers: u64,
    /// From the origin.
    pub from_origin: u64,
    /// The host had them.
    pub from_cache: u64,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// `bytes` is the length of the content.
    pub counts: Counts,
    /// `reflink`, `hardlink`, `copy` or `stream`.
    pub output_by: String,
}

/// Why there are no more events.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// Nobody answers there.
    #[error("no dfdaemon answers at {}", path.display())]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It answered, and then no more: the same request may be sent again.
    #[error("the connection to the dfdaemon broke")]
    Lost(#[source] Option<Box<dyn std::error::Error + Send + Sync>>),
    /// The download failed; asking again gives the same answer.
    #[error(transparent)]
    Failed(#[from] Failure),
}

/// Without headers and URL: they may hold credentials.
impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request")
            .field("task", &self.spec.id())
            .field("output", &self.output)
            .field("route", &self.route)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for dyn Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
