//! The body of a task's answer. It gives exactly the bytes that were promised, or an error.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http::HeaderValue;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use prometheus_client::metrics::counter::Counter;
use proto::{ByteRange, ContentRange, Kind};
use tracing::warn;

use crate::body::{Body, BoxError};
use crate::downloads::{DownloadError, OpenedTask};
use crate::metrics::{Metrics, Outcome, Way};

/// Bytes of a task, with multipart framing if there are several ranges.
pub(crate) struct TaskStream {
    bytes: BoxStream<'static, Result<Bytes, BoxError>>,
    /// Bytes still owed; `None` when the length is not known.
    left: Option<u64>,
    count: Counter,
    ended: Ended,
    /// Keeps the download going while it is read.
    task: OpenedTask,
}

/// Counts how a body ended, once.
pub(crate) struct Ended {
    metrics: Metrics,
    way: Way,
    counted: bool,
}

/// A body is not what was promised.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the content ended {0} bytes early")]
    Short(u64),
    #[error("the content is longer than was said")]
    Long,
}

// === impl TaskStream ===

impl TaskStream {
    pub(super) fn whole(task: &OpenedTask, count: Counter, ended: Ended) -> Self {
        let bytes = task.body.reader(None).map(|item| item.map_err(BoxError::from)).boxed();
        Self { bytes, left: task.info.length, count, ended, task: task.clone() }
    }

    pub(super) fn part(task: &OpenedTask, range: ByteRange, count: Counter, ended: Ended) -> Self {
        Self { bytes: exactly(task, range), left: Some(range.len()), count, ended, task: task.clone() }
    }

    /// RFC 9110 section 14.6. Also gives the boundary.
    pub(super) fn parts(
        task: &OpenedTask,
        ranges: &[ByteRange],
        total: u64,
        content_type: Option<&HeaderValue>,
        count: Counter,
        ended: Ended,
    ) -> (Self, String) {
        // Random, so that nobody can put it into a content.
        let boundary = format!("{:032x}", rand::random::<u128>());
        let content_type = content_type.and_then(|value| value.to_str().ok());
        let type_line = content_type.map(|value| format!("Content-Type: {value}\r\n")).unwrap_or_default();
        let parts: Vec<(Bytes, ByteRange)> = ranges
            .iter()
            .map(|range| {
                let content_range = ContentRange { range: Some(*range), total: Some(total) };
                let head = format!("\r\n--{boundary}\r\n{type_line}Content-Range: {content_range}\r\n\r\n");
                (Bytes::from(head), *range)
            })
            .collect();
        let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        let left = parts.iter().map(|(head, range)| head.len() as u64 + range.len()).sum::<u64>() + end.len() as u64;
        let source = task.clone();
        let bytes = stream::iter(parts)
            .flat_map(move |(head, range)| stream::iter([Ok(head)]).chain(exactly(&source, range)))
            .chain(stream::iter([Ok(end)]))
            .boxed();
        (Self { bytes, left: Some(left), count, ended, task: task.clone() }, boundary)
    }

    /// Waits a little for the first bytes, so that an early failure still gets a status of its own.
    ///
    /// # Errors
    /// When the body failed before its first byte.
    pub(super) async fn prime(&mut self, wait: Duration) -> Result<(), DownloadError> {
        let error = match tokio::time::timeout(wait, self.bytes.next()).await {
            Err(_) => return Ok(()),
            Ok(Some(Ok(first))) => {
                let rest = std::mem::replace(&mut self.bytes, stream::empty().boxed());
                self.bytes = stream::iter([Ok(first)]).chain(rest).boxed();
                return Ok(());
            }
            Ok(Some(Err(error))) => error,
            Ok(None) => match self.left {
                Some(left) if left > 0 => Broken::Short(left).into(),
                _ => {
                    self.bytes = stream::empty().boxed();
                    return Ok(());
                }
            },
        };
        // The caller counts what it makes of the failure.
        self.ended.counted = true;
        Err(match error.downcast::<DownloadError>() {
            Ok(error) => *error,
            Err(other) => DownloadError::new(Kind::Internal, "the content cannot be read").with_source(other),
        })
    }

    /// Bytes in all, when that is known.
    pub(super) const fn length(&self) -> Option<u64> {
        self.left
    }

    /// No byte of it is wanted (HEAD).
    pub(super) fn unread(mut self) {
        self.ended.count(Outcome::Ok);
    }

    pub(super) fn boxed(self) -> Body {
        self.boxed_unsync()
    }

    fn fail(&mut self, error: BoxError) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        warn!(task = %self.task.info.task, error = %error, "the body of an answer breaks off");
        self.ended.count(Outcome::Broken);
        Poll::Ready(Some(Err(error)))
    }
}

/// One range, none of it missing: in a multipart body a short part would shift all that follows.
fn exactly(task: &OpenedTask, range: ByteRange) -> BoxStream<'static, Result<Bytes, BoxError>> {
    let reader = task.body.reader(Some(range));
    stream::unfold((Some(reader), range.len()), |(reader, left)| async move {
        let mut reader = reader?;
        match reader.next().await {
            Some(Ok(bytes)) => match left.checked_sub(bytes.len() as u64) {
                Some(left) => Some((Ok(bytes), (Some(reader), left))),
                None => Some((Err(Broken::Long.into()), (None, 0))),
            },
            Some(Err(error)) => Some((Err(error.into()), (None, 0))),
            None if left > 0 => Some((Err(Broken::Short(left).into()), (None, 0))),
            None => None,
        }
    })
    .boxed()
}

impl http_body::Body for TaskStream {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        match ready!(this.bytes.as_mut().poll_next(cx)) {
            Some(Ok(bytes)) => {
                if let Some(left) = &mut this.left {
                    match left.checked_sub(bytes.len() as u64) {
                        Some(rest) => *left = rest,
                        None => return this.fail(Broken::Long.into()),
                    }
                    if *left == 0 {
                        this.ended.count(Outcome::Ok);
                    }
                }
                this.count.inc_by(bytes.len() as u64);
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Some(Err(error)) => this.fail(error),
            None => match this.left {
                Some(left) if left > 0 => this.fail(Broken::Short(left).into()),
                _ => {
                    this.ended.count(Outcome::Ok);
                    Poll::Ready(None)
                }
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == Some(0)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

// === impl Ended ===

impl Ended {
    pub(super) const fn new(metrics: Metrics, way: Way) -> Self {
        Self { metrics, way, counted: false }
    }

    /// The answer has no body of the task.
    pub(super) fn done(mut self) {
        self.count(Outcome::Ok);
    }

    fn count(&mut self, outcome: Outcome) {
        if !std::mem::replace(&mut self.counted, true) {
            self.metrics.count(self.way, outcome);
        }
    }
}

/// A client that went away.
impl Drop for Ended {
    fn drop(&mut self) {
        self.count(Outcome::Abandoned);
    }
}
