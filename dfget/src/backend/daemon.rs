//! The host's dfdaemon, over its Unix socket.

use std::io;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt as _;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use peer::rpc::daemon_client::DaemonClient;
use proto::{Kind, wire};
use tokio::net::UnixStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use super::{Backend, BackendError, BoxFuture, Counts, Done, Event, Events, Output, Request, Route, Started};
use crate::exit::Failure;

/// Accepting a local connection takes no time; longer means that nobody accepts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A daemon that was stopped keeps its sockets open: pings tell it from one that waits for the origin.
const PING_EVERY: Duration = Duration::from_secs(5);
/// How long a ping may stay unanswered.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// One event; data come in chunks of at most 1 MiB.
const MESSAGE_LEN_MAX: usize = 8 << 20;
/// Bytes on their way in one download with `--transfer-from-dfdaemon`, and in all of them: what the socket moves
/// while this process writes, and no more.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;
/// How much later than dfget the daemon gives up: dfget's own message is the one for the user.
const TIMEOUT_GRACE: Duration = Duration::from_secs(5);
pub use dfdaemon::CALLER_KEY;

/// The dfdaemon behind a socket.
#[derive(Debug)]
pub struct DaemonBackend {
    path: PathBuf,
    client: Mutex<Option<DaemonClient<Channel>>>,
}

/// Hands out one connection that is there already.
///
/// tonic would connect by itself, but wraps the error so that a missing socket cannot be told from a broken one,
/// and connects again behind our back when the daemon dies.
struct Once(Option<UnixStream>);

impl tower_service::Service<Uri> for Once {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        std::future::ready(self.0.take().map(TokioIo::new).ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

// === impl DaemonBackend ===

impl DaemonBackend {
    /// The daemon at this socket; nothing is connected yet.
    #[must_use]
    pub const fn new(path: PathBuf) -> Self {
        Self { path, client: Mutex::new(None) }
    }

    /// The socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    async fn client(&self) -> Result<DaemonClient<Channel>, BackendError> {
        if let Some(client) = self.client.lock().clone() {
            return Ok(client);
        }
        let client = self.connect().await?;
        Ok(self.client.lock().insert(client).clone())
    }

    async fn connect(&self) -> Result<DaemonClient<Channel>, BackendError> {
        let unreachable = |source| BackendError::Unreachable { path: self.path.clone(), source };
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(&self.path));
        let stream = connecting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(unreachable)?;
        // The URI only fills in the request's :authority.
        let channel = Endpoint::from_static("http://dfdaemon.local")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .connect_with_connector(Once(Some(stream)))
            .await
            .map_err(|error| BackendError::Lost(Some(Box::new(error))))?;
        Ok(DaemonClient::new(channel).max_decoding_message_size(MESSAGE_LEN_MAX))
    }

    /// To be called before a lost download is asked for again: a connection that broke is not used again.
    pub fn forget_connection(&self) {
        *self.client.lock() = None;
    }
}

impl Backend for DaemonBackend {
    fn name(&self) -> &'static str {
        "dfdaemon"
    }

    fn download(&self, request: Request) -> BoxFuture<'_, Result<Events, BackendError>> {
        Box::pin(async move {
            let mut client = self.client().await?;
            let streaming = client.download(message(request)).await.map_err(judge)?.into_inner();
            let events = streaming.scan(false, |over, answer| {
                let event = if *over { None } else { Some(answer.map_err(judge).and_then(event)) };
                *over = matches!(event, Some(Err(_) | Ok(Some(Event::Done(_)))));
                std::future::ready(event)
            });
            // Kinds of events that a newer daemon adds are left out.
            let events = events.filter_map(|event| std::future::ready(event.transpose()));
            Ok::<Events, _>(Box::pin(events))
        })
    }
}

pub(super) fn message(request: Request) -> tonic::Request<wire::DownloadRequest> {
    let output = request.output.unwrap_or_else(|| Output {
        path: PathBuf::new(),
        overwrite: false,
        force_hard_link: false,
        at_offset: false,
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
    });
    let timeout =
        request.timeout.map_or(0, |timeout| u32::try_from((timeout + TIMEOUT_GRACE).as_millis()).unwrap_or(u32::MAX));
    let mut message = tonic::Request::new(wire::DownloadRequest {
        spec: Some(wire::TaskSpec::from(&request.spec)),
        headers: request.headers.into_iter().map(|(name, value)| wire::Header { name, value: value.into() }).collect(),
        // Checked by `execute`: a path that is not UTF-8 takes the way of the bytes.
        output: output.path.to_string_lossy().into_owned(),
        overwrite: output.overwrite,
        force_hard_link: output.force_hard_link,
        original_offset: output.at_offset,
        rate_bytes_per_s: request.rate_bytes_per_s.unwrap_or(0),
        rate_min_bytes_per_s: request.rate_min_bytes_per_s.unwrap_or(0),
        timeout_ms: timeout,
        priority: request.priority,
        route: match request.route {
            Route::P2p => wire::download_request::Route::P2p,
            Route::SeedOnly => wire::download_request::Route::SeedOnly,
            Route::OriginOnly => wire::download_request::Route::OriginOnly,
        }
        .into(),
        disable_back_to_source: request.never_origin,
        uid: output.uid,
        gid: output.gid,
        total_rate_bytes_per_s: request.total_rate_bytes_per_s.unwrap_or(0),
    });
    if !request.caller.is_empty() {
        message.metadata_mut().insert_bin(CALLER_KEY, MetadataValue::from_bytes(request.caller.as_bytes()));
    }
    message
}

/// An event of the wire; `None` when it is of a kind this build does not know.
pub(super) fn event(event: wire::DownloadEvent) -> Result<Option<Event>, BackendError> {
    use wire::download_event::Body;
    Ok(Some(match event.body {
        None => return Ok(None),
        Some(Body::Started(started)) => {
            let meta = started.meta.unwrap_or_default();
            Event::Started(Started { key: meta.key().ok(), length: meta.length, from_cache: started.from_cache })
        }
        Some(Body::Progress(p)) => Event::Progress(Counts {
            bytes: p.bytes,
            from_peers: p.from_peers,
            from_origin: p.from_origin,
            from_cache: p.from_cache,
        }),
        Some(Body::Data(bytes)) => Event::Data(bytes),
        Some(Body::Done(done)) => Event::Done(Done {
            counts: Counts {
                bytes: done.length,
                from_peers: done.from_peers,
                from_origin: done.from_origin,
                from_cache: done.from_cache,
            },
            output_by: done.output_by,
        }),
        Some(Body::Failed(failed)) => {
            let status = u16::try_from(failed.origin_status).ok().filter(|status| *status != 0);
            return Err(Failure::of_engine(failed.kind().into(), failed.message, status, failed.reason).into());
        }
    }))
}

/// What a gRPC status means: an answer of the daemon, or the end of the connection.
fn judge(status: Status) -> BackendError {
    let kind = match status.code() {
        // Only what this side makes up has a source: the transport failed, whatever code it chose.
        _ if std::error::Error::source(&status).is_some() => return BackendError::Lost(Some(Box::new(status))),
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::Aborted => {
            return BackendError::Lost(Some(Box::new(status)));
        }
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => Kind::Invalid,
        Code::NotFound => Kind::NotFound,
        Code::AlreadyExists => Kind::Conflict,
        Code::PermissionDenied => Kind::Forbidden,
        Code::Unauthenticated => Kind::Unauthorized,
        Code::ResourceExhausted => Kind::Throttled,
        Code::DeadlineExceeded => Kind::Unavailable,
        Code::DataLoss => Kind::Corrupt,
        _ => Kind::Internal,
    };
    Failure::of_engine(kind, format!("the dfdaemon refuses: {}", status.message()), None, 0).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let lost = |status| matches!(judge(status), BackendError::Lost(_));
        assert!(lost(Status::unavailable("")));
        assert!(lost(Status::from_error(Box::new(io::Error::from(io::ErrorKind::BrokenPipe)))));
        assert!(!lost(Status::internal("x")));
        let BackendError::Failed(failure) = judge(Status::permission_denied("not your file")) else { panic!() };
        assert_eq!(
            (failure.exit(), failure.message.as_str()),
            (crate::exit::Exit::Denied, "the dfdaemon refuses: not your file")
        );
    }
}
