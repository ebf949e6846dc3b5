//! Answers in HTTP/2 of which the client takes nothing.
//!
//! In HTTP/1 such a client blocks the socket. In HTTP/2 it need not: what its window has no room for waits in hyper and h2, which do not
//! poll the body meanwhile. So what a stream has handed over is counted until it is written, and beside each stream runs a
//! clock that drops it, which resets it; other streams of the connection go on.
//!
//! A stream holds one piece of its answer at a time. Its end is held back until all else was taken: once h2 has the end, nobody can
//! reset the stream any more, and what is left of it would wait for ever.

use std::io::IoSlice;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Buf;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::server::ListenerMetrics;

tokio::task_local! {
    /// Of the stream whose task this is.
    static STREAM: Arc<Taking>;
}

/// What was handed over of one stream's answer and not yet written.
#[derive(Debug)]
pub(super) struct Taking(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    bytes: usize,
    /// When something was last handed over or written.
    since: Instant,
    /// Of the body, which waits until all is written.
    body: Option<Waker>,
}

/// Makes a task of each stream, with a clock.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    stall_timeout: Duration,
    metrics: Option<ListenerMetrics>,
}

/// A body whose pieces are counted, if it is one of HTTP/2.
#[derive(Debug)]
pub(super) struct Counted<B> {
    body: Pin<Box<B>>,
    taking: Option<Arc<Taking>>,
}

/// A piece of it.
#[derive(Debug)]
pub(super) struct Piece<D: Buf> {
    data: D,
    taking: Option<Arc<Taking>>,
}

// === impl Taking ===

impl Taking {
    fn new() -> Self {
        Self(Mutex::new(Inner { bytes: 0, since: Instant::now(), body: None }))
    }

    /// That of the task that asks, if it is a stream's.
    pub(super) fn current() -> Option<Arc<Self>> {
        STREAM.try_with(Arc::clone).ok()
    }

    fn handed_over(&self, bytes: usize) {
        let mut inner = self.0.lock();
        inner.bytes += bytes;
        inner.since = Instant::now();
    }

    fn written(&self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let mut inner = self.0.lock();
        inner.bytes = inner.bytes.saturating_sub(bytes);
        inner.since = Instant::now();
        let body = if inner.bytes == 0 { inner.body.take() } else { None };
        drop(inner);
        if let Some(body) = body {
            body.wake();
        }
    }

    fn is_empty(&self) -> bool {
        self.0.lock().bytes == 0
    }

    fn poll_empty(&self, cx: &Context<'_>) -> Poll<()> {
        let mut inner = self.0.lock();
        if inner.bytes == 0 {
            return Poll::Ready(());
        }
        inner.body = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Ends when nothing was written for `limit` although something could have been.
    async fn stalled(&self, limit: Duration) {
        loop {
            let (waits, since) = {
                let inner = self.0.lock();
                (inner.bytes > 0, inner.since)
            };
            // What is handed over while we sleep is due after we wake.
            let due = if waits { since + limit } else { Instant::now() + limit };
            if waits && due <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }
}

// === impl Streams ===

impl Streams {
    pub(super) const fn new(stall_timeout: Duration, metrics: Option<ListenerMetrics>) -> Self {
        Self { stall_timeout, metrics }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let Self { stall_timeout, metrics } = self.clone();
        let taking = Arc::new(Taking::new());
        let task = STREAM.scope(Arc::clone(&taking), async move {
            let stream = Box::pin(stream);
            tokio::select! {
                biased;
                _ = stream => {}
                () = pin!(taking.stalled(stall_timeout)) => {
                    tracing::debug!("stream reset: nothing of its answer is taken");
                    if let Some(metrics) = metrics {
                        metrics.cut_off("stalled");
                    }
                }
            }
        });
        TokioExecutor::new().execute(task);
    }
}

// === impl Counted ===

impl<B> Counted<B> {
    pub(super) fn new(body: B, taking: Option<Arc<Taking>>) -> Self {
        Self { body: Box::pin(body), taking }
    }
}

impl<B: Body> Body for Counted<B> {
    type Data = Piece<B::Data>;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece<B::Data>>, B::Error>>> {
        if let Some(taking) = &self.taking {
            std::task::ready!(taking.poll_empty(cx));
        }
        let frame = std::task::ready!(self.body.as_mut().poll_frame(cx));
        Poll::Ready(frame.map(|frame| {
            frame.map(|frame| {
                frame.map_data(|data| {
                    if let Some(taking) = &self.taking {
                        taking.handed_over(data.remaining());
                    }
                    Piece { data, taking: self.taking.clone() }
                })
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.taking.as_ref().is_none_or(|taking| taking.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// === impl Piece ===

impl<D: Buf> Buf for Piece<D> {
    fn remaining(&self) -> usize {
        self.data.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.data.chunk()
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        self.data.chunks_vectored(slices)
    }

    fn advance(&mut self, cnt: usize) {
        self.data.advance(cnt);
        if let Some(taking) = &self.taking {
            taking.written(cnt);
        }
    }
}

impl<D: Buf> Drop for Piece<D> {
    fn drop(&mut self) {
        if let Some(taking) = &self.taking {
            taking.written(self.data.remaining());
        }
    }
}
