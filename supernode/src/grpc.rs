//! The control protocol's listener.

use std::pin::Pin;
use std::time::Duration;

use futures_util::Stream;
use peer::admission::admit;
use peer::rpc::cluster_server::{Cluster, ClusterServer};
use proto::wire;
use proto::wire::from_daemon::Body as Said;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::debug;

use crate::manager::Manager;

/// Messages waiting for one host at most; a host that is so far behind is cut off and says hello anew.
const QUEUE_MAX: usize = 4096;
/// A host's first message must come within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A silent host is asked for a sign of life so often, and given up after as long again.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// The longest message taken from a host, in bytes: a page of an inventory.
const MESSAGE_MAX: usize = 1024 * 1024;
/// Sessions on one connection at most: one host needs one, and a few for replication.
const STREAMS_PER_CONNECTION: u32 = 16;

/// Connections at a time at most: one for each host that a supernode may have, and some for its siblings.
const CONNECTIONS_MAX: usize = 51_000;

#[derive(Debug)]
struct Service {
    manager: Manager,
    cancel: CancellationToken,
}

type FromSupernodeStream = Pin<Box<dyn Stream<Item = Result<wire::FromSupernode, Status>> + Send>>;

#[tonic::async_trait]
impl Cluster for Service {
    type SessionStream = FromSupernodeStream;

    async fn session(
        &self,
        request: Request<Streaming<wire::FromDaemon>>,
    ) -> Result<Response<FromSupernodeStream>, Status> {
        let mut said = request.into_inner();
        let first = tokio::time::timeout(HELLO_TIMEOUT, said.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let Some(wire::FromDaemon { body: Some(Said::Hello(hello)) }) = first else {
            return Err(Status::invalid_argument("the first message of a session is a hello"));
        };
        let (say, queue) = mpsc::channel(QUEUE_MAX);
        let session = self.manager.join(hello, say).map_err(|error| Status::failed_precondition(error.to_string()))?;
        let cancel = self.cancel.clone();
        // The stream to the host lives in the response; this task ends with the stream from it, and with either the
        // session is over.
        let (over, gone) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(async move {
            let listening = async {
                loop {
                    match said.message().await {
                        Ok(Some(message)) => {
                            if !session.said(message) {
                                return debug!("a host broke the protocol or its session was replaced");
                            }
                        }
                        Ok(None) => return debug!("a host ended its session"),
                        Err(error) => return debug!(%error, "a host's session broke"),
                    }
                }
            };
            tokio::select! {
                () = listening => {}
                _ = gone => {}
                () = cancel.cancelled() => {}
            }
            drop(session);
        });
        let stream = Guarded { stream: ReceiverStream::new(queue), _over: over };
        Ok(Response::new(Box::pin(stream)))
    }

    async fn replicate(
        &self,
        request: Request<Streaming<wire::TaskNews>>,
    ) -> Result<Response<wire::ReplicateDone>, Status> {
        let mut news = request.into_inner();
        loop {
            let item = tokio::select! {
                item = news.message() => item?,
                () = self.cancel.cancelled() => None,
            };
            match item {
                Some(item) => self.manager.sibling_learned(item),
                None => return Ok(Response::new(wire::ReplicateDone {})),
            }
        }
    }
}

/// The messages to a host; when the connection drops it, the session ends.
struct Guarded {
    stream: ReceiverStream<wire::FromSupernode>,
    _over: tokio::sync::oneshot::Sender<()>,
}

impl Stream for Guarded {
    type Item = Result<wire::FromSupernode, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        Pin::new(&mut self.stream).poll_next(context).map(|item| item.map(Ok))
    }
}

/// Serves sessions on a listener until the token is cancelled.
///
/// # Errors
/// When the listener breaks.
pub async fn serve(
    listener: TcpListener,
    manager: Manager,
    cancel: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service =
        ClusterServer::new(Service { manager, cancel: cancel.clone() }).max_decoding_message_size(MESSAGE_MAX);
    tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .add_service(service)
        .serve_with_incoming_shutdown(admit(listener, CONNECTIONS_MAX), cancel.cancelled_owned())
        .await
}
