//! Bodies of requests and answers.

use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, Empty, Full};
use prometheus_client::metrics::counter::Counter;
use tokio::time::Sleep;

/// A body of any origin. An error in it ends the connection (HTTP/1.1) or the stream (HTTP/2), so that the other side
/// never takes a part for the whole.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;

/// What a body may fail with.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// No bytes.
#[must_use]
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// These bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body that is passed on, fails when it stalls, and counts its bytes.
#[derive(Debug)]
pub struct Watched<B> {
    inner: B,
    timeout: Duration,
    /// Running only while bytes are waited for.
    stall: Option<Pin<Box<Sleep>>>,
    count: Counter,
}

/// Nothing came for too long.
#[derive(Debug, thiserror::Error)]
#[error("no byte of a body for {0:?}")]
pub struct Stalled(Duration);

impl<B> Watched<B> {
    /// Fails when nothing comes for `timeout`.
    pub const fn new(inner: B, timeout: Duration, count: Counter) -> Self {
        Self { inner, timeout, stall: None, count }
    }
}

impl<B> http_body::Body for Watched<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.stall = None;
                if let Some(Ok(frame)) = &frame
                    && let Some(data) = frame.data_ref()
                {
                    this.count.inc_by(data.len() as u64);
                }
                Poll::Ready(frame.map(|result| result.map_err(Into::into)))
            }
            Poll::Pending => {
                let timeout = this.timeout;
                let stall = this.stall.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
                stall.as_mut().poll(cx).map(|()| Some(Err(Stalled(timeout).into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
