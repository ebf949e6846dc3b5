//! The Unix socket that dfget talks to: downloads on behalf of the users of this host.
//!
//! The daemon writes an output itself only for itself and for root; anyone else gets the bytes over the socket and
//! writes them with their own rights.

use std::path::Path;
use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use peer::admission::admit;
use peer::engine::Engine;
use peer::rpc::daemon_server::{Daemon, DaemonServer};
use proto::{TaskSpec, wire};
use tokio::net::UnixListener;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Response, Status};

use tracing::info;

use crate::carry_out::{CALLER_KEY, Shares, carry_out};

/// The longest request, in bytes: headers and a URL.
const REQUEST_MAX: usize = 1024 * 1024;

/// Bytes of a caller's name that are logged at most.
const CALLER_LEN_MAX: usize = 200;
/// Connections at a time at most; each dfget has one.
const CONNECTIONS_MAX: usize = 4096;
/// Downloads on one connection at most: as many as dfget runs at a time.
const STREAMS_PER_CONNECTION: u32 = 64;
/// A silent dfget is asked for a sign of life so often, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// The socket's service.
#[derive(Clone, Debug)]
struct Service {
    engine: Engine,
    shares: Shares,
    cancel: CancellationToken,
}

type Events = Pin<Box<dyn Stream<Item = Result<wire::DownloadEvent, Status>> + Send>>;

#[tonic::async_trait]
impl Daemon for Service {
    type DownloadStream = Events;

    async fn download(&self, request: Request<wire::DownloadRequest>) -> Result<Response<Events>, Status> {
        let trusted = may_write(&request);
        let caller = caller(&request);
        let request = request.into_inner();
        if let Some(caller) = caller {
            // An invalid request has no task, and is answered with what is wrong.
            let task = request.spec.clone().and_then(|spec| TaskSpec::try_from(spec).ok()).map(|spec| spec.id());
            info!(caller, ?task, output = request.output, "a download is asked for");
        }
        let events = carry_out(self.engine.clone(), &self.shares, request, trusted);
        let stopping = self.cancel.clone();
        let events = ReceiverStream::new(events).map(move |event| {
            // What fails because this daemon stops is not the download's failure: dfget asks the next daemon again.
            let failed = matches!(event.body, Some(wire::download_event::Body::Failed(_)));
            if failed && stopping.is_cancelled() {
                Err(Status::unavailable("this daemon is stopping"))
            } else {
                Ok(event)
            }
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn info(&self, _request: Request<wire::InfoRequest>) -> Result<Response<wire::InfoReply>, Status> {
        Ok(Response::new(wire::InfoReply {
            host: Some(self.engine.host().clone()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            supernodes: Vec::new(),
        }))
    }
}

/// Who says to ask, as far as it can stand in a log.
fn caller(request: &Request<wire::DownloadRequest>) -> Option<String> {
    let value = request.metadata().get_bin(CALLER_KEY)?.to_bytes().ok()?;
    Some(printable(&value)).filter(|text| !text.is_empty())
}

/// The beginning of a text, without what would not show, or would show elsewhere than it stands.
fn printable(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(&value[..value.len().min(CALLER_LEN_MAX)]);
    // Escaping leaves exactly the printable ones as they are.
    text.chars().map(|c| if c.escape_debug().count() > 1 && !"'\"\\".contains(c) { ' ' } else { c }).collect()
}

fn may_write(request: &Request<wire::DownloadRequest>) -> bool {
    let Some(caller) = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred) else {
        return false;
    };
    caller.uid() == 0 || caller.uid() == rustix::process::geteuid().as_raw()
}

/// Binds the socket.
///
/// # Errors
/// When the path cannot be bound; a socket that a dead daemon left is replaced.
pub(crate) fn bind(path: &Path) -> std::io::Result<UnixListener> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if std::os::unix::net::UnixStream::connect(path).is_ok() {
        return Err(std::io::Error::new(std::io::ErrorKind::AddrInUse, "another daemon answers at this socket"));
    }
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Everybody on this host may download; what they may write is checked per request.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Serves dfget until the token is cancelled.
///
/// # Errors
/// When the socket breaks.
pub(crate) async fn serve(
    listener: UnixListener,
    engine: Engine,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = DaemonServer::new(Service { engine, shares: Shares::default(), cancel: cancel.clone() })
        .max_decoding_message_size(REQUEST_MAX);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .add_service(service)
        .serve_with_incoming_shutdown(admit(listener, CONNECTIONS_MAX), cancel.cancelled_owned())
        .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_logged_as_printable_text() {
        let named = |value: &[u8]| {
            let mut request = Request::new(wire::DownloadRequest::default());
            request.metadata_mut().insert_bin(CALLER_KEY, tonic::metadata::MetadataValue::from_bytes(value));
            caller(&request)
        };
        assert_eq!(caller(&Request::new(wire::DownloadRequest::default())), None);
        assert_eq!(named(b""), None);
        assert_eq!(named("Björn's \"job\" \\ 1".as_bytes()).as_deref(), Some("Björn's \"job\" \\ 1"));
        assert_eq!(named("a\nb\x1b[2J\u{202e}c\u{2028}d".as_bytes()).as_deref(), Some("a b [2J c d"));
        assert_eq!(named(&[b'x'; 10_000]).map(|text| text.len()), Some(CALLER_LEN_MAX));
        assert!(named(b"a\xffb").is_some());
    }
}
