//! Why a task could not be opened or finished.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use proto::{Kind, wire};

use crate::source::SourceError;
use crate::store::StoreError;

/// A task could not be opened, or could not be finished. Cheap to clone: every reader gets it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct TaskError {
    kind: Kind,
    message: Arc<str>,
    origin: Option<Arc<OriginAnswer>>,
    retry_after: Option<Duration>,
}

/// The same error, where a task is opened.
pub type OpenError = TaskError;

/// What the origin itself answered, for a proxy to pass on.
#[derive(Clone, Debug)]
pub struct OriginAnswer {
    /// Its status.
    pub status: u16,
    /// Headers a client may see, `WWW-Authenticate` and `Retry-After` among them.
    pub headers: HeaderMap,
    /// The start of its body.
    pub body: Bytes,
}

impl TaskError {
    /// An error of this kind.
    pub fn new(kind: Kind, message: impl Into<Arc<str>>) -> Self {
        Self { kind, message: message.into(), origin: None, retry_after: None }
    }

    /// A content that proved wrong was thrown away.
    pub(crate) fn discarded(why: &str) -> Self {
        Self::new(Kind::Corrupt, format!("the content was discarded: {why}"))
    }

    /// The same with the origin's answer.
    #[must_use]
    pub fn with_origin(mut self, answer: OriginAnswer) -> Self {
        self.origin = Some(Arc::new(answer));
        self
    }

    /// The same with a time before which asking again is of no use.
    #[must_use]
    pub const fn with_retry_after(mut self, after: Option<Duration>) -> Self {
        self.retry_after = after;
        self
    }

    /// What sort of failure this is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The origin's own answer, when it was the origin that refused.
    #[must_use]
    pub fn origin(&self) -> Option<&OriginAnswer> {
        self.origin.as_deref()
    }

    /// Before this time has passed, asking again is of no use.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// The part went away because the node is stopping.
    pub(crate) fn stopping() -> Self {
        Self::new(Kind::Unavailable, "this node is shutting down")
    }

    /// Reads a supernode's refusal.
    pub(crate) fn from_refusal(refuse: wire::Refuse) -> Self {
        let kind = refuse.kind().into();
        let mut error = Self::new(kind, refuse.message)
            .with_retry_after((refuse.retry_after_ms > 0).then(|| Duration::from_millis(refuse.retry_after_ms.into())));
        if let Ok(status @ 100..=599) = u16::try_from(refuse.origin_status) {
            error = error.with_origin(OriginAnswer {
                status,
                headers: super::headers::from_wire(&refuse.headers),
                body: Bytes::new(),
            });
        }
        error
    }

    /// The refusal a supernode sends for this error.
    #[must_use]
    pub fn to_refusal(&self, task: proto::TaskId) -> wire::Refuse {
        wire::Refuse {
            task_id: task.to_bytes().to_vec().into(),
            kind: wire::Kind::from(self.kind).into(),
            message: self.message.to_string(),
            origin_status: self.origin().map_or(0, |origin| u32::from(origin.status)),
            headers: self.origin().map(|origin| super::headers::to_wire(&origin.headers)).unwrap_or_default(),
            retry_after_ms: self.retry_after.map_or(0, |after| u32::try_from(after.as_millis()).unwrap_or(u32::MAX)),
        }
    }
}

impl From<StoreError> for TaskError {
    fn from(error: StoreError) -> Self {
        let kind = match error {
            // The store has none of it just now; whether there is such a content, only its origin can say.
            StoreError::Discarded | StoreError::Absent { .. } | StoreError::Incomplete { .. } => Kind::Unavailable,
            _ => error.kind(),
        };
        Self::new(kind, error.to_string())
    }
}

impl From<SourceError> for TaskError {
    fn from(error: SourceError) -> Self {
        let mut task = Self::new(error.kind(), error.to_string()).with_retry_after(error.retry_after());
        if let Some(answer) = error.answer() {
            task = task.with_origin(OriginAnswer {
                status: answer.status.as_u16(),
                headers: answer.headers.clone(),
                body: answer.body.clone(),
            });
        }
        task
    }
}
