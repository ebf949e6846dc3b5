//! What is answered when something cannot be done.

use std::time::Duration;

use blobs::StoreError;
use bytes::Bytes;
use db::DbError;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use oci::{ErrorCode, Problem};
use proto::Kind;

use super::body::Body;
use crate::access::Refusal;

/// A client that is told to come back later is told when.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// An answer that says no: status, problems, and headers that belong to it.
#[derive(Debug)]
pub(crate) struct Failure {
    status: StatusCode,
    problems: Vec<Problem>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Failure {
    /// With the status the code has.
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::with_status(code.status(), code, message)
    }

    /// With a status of its own.
    pub(crate) fn with_status(status: u16, code: ErrorCode, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, problems: vec![Problem::new(code, message)], headers: Vec::new() }
    }

    /// Several problems of one kind.
    pub(crate) fn of(status: u16, problems: Vec<Problem>) -> Self {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { status, problems, headers: Vec::new() }
    }

    /// Come back after this time.
    pub(crate) fn later(status: u16, code: ErrorCode, message: impl Into<String>, after: Duration) -> Self {
        let seconds = after.as_secs_f64().ceil().max(1.0);
        let value = HeaderValue::try_from(format!("{seconds:.0}")).unwrap_or(HeaderValue::from_static("1"));
        Self::with_status(status, code, message).header(RETRY_AFTER, value)
    }

    #[must_use]
    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }

    #[must_use]
    pub(crate) fn detail(mut self, detail: serde_json::Value) -> Self {
        if let Some(problem) = self.problems.last_mut() {
            problem.detail = Some(detail);
        }
        self
    }

    /// Nothing more is to be expected of the client.
    pub(crate) fn is_silence(&self) -> bool {
        self.status == StatusCode::REQUEST_TIMEOUT
    }

    pub(crate) fn code(&self) -> &'static str {
        self.problems.first().map_or("", |problem| problem.code.as_str())
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        let body = Bytes::from(oci::body(&self.problems));
        let mut response = Response::new(Body::Bytes(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        for (name, value) in self.headers {
            headers.insert(name, value);
        }
        response
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Challenge(challenge) => {
                let failure = Self::new(ErrorCode::Unauthorized, "authentication is required");
                match HeaderValue::try_from(challenge) {
                    Ok(value) => failure.header(WWW_AUTHENTICATE, value),
                    Err(_) => failure,
                }
            }
            Refusal::Busy => Self::later(
                429,
                ErrorCode::TooManyRequests,
                "too many passwords are being checked",
                RETRY_AFTER_DEFAULT,
            ),
        }
    }
}

/// What failed inside. The client learns the sort of failure; the reason is in the log.
fn inside(kind: Kind, error: &dyn std::error::Error, what: &str) -> Failure {
    let chain = std::iter::successors(Some(error), |error| error.source());
    let reason = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    tracing::warn!(kind = kind.label(), reason, "{what} failed");
    match kind {
        Kind::Throttled => {
            Failure::later(503, ErrorCode::TooManyRequests, format!("{what} asks to slow down"), RETRY_AFTER_DEFAULT)
        }
        Kind::Unavailable => Failure::later(
            503,
            ErrorCode::Unavailable,
            format!("{what} cannot be reached at the moment"),
            RETRY_AFTER_DEFAULT,
        ),
        Kind::NoSpace => Failure::with_status(507, ErrorCode::Unavailable, format!("{what} is full")),
        _ => Failure::new(ErrorCode::Unknown, format!("{what} failed")),
    }
}

impl From<DbError> for Failure {
    fn from(error: DbError) -> Self {
        inside(error.kind(), &error, "the database")
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Busy => Self::later(
                409,
                ErrorCode::BlobUploadInvalid,
                "another request writes to this upload",
                RETRY_AFTER_DEFAULT,
            ),
            StoreError::Taken => {
                Self::with_status(409, ErrorCode::BlobUploadInvalid, "this upload was ended with another content")
            }
            StoreError::TooLarge { max } => {
                Self::with_status(413, ErrorCode::SizeInvalid, format!("a blob has at most {max} bytes here"))
            }
            StoreError::Throttled { retry_after, .. } => Self::later(
                503,
                ErrorCode::TooManyRequests,
                "the object storage asks to slow down",
                retry_after.max(RETRY_AFTER_DEFAULT),
            ),
            error => inside(error.kind(), &error, "the store"),
        }
    }
}

impl From<oci::Unmet> for Failure {
    fn from(unmet: oci::Unmet) -> Self {
        let header = match unmet {
            oci::Unmet::Match => "If-Match",
            oci::Unmet::NoneMatch => "If-None-Match",
        };
        // The specification has no code of its own for this.
        Self::with_status(412, ErrorCode::Unsupported, format!("what is there is not what {header} expects"))
    }
}

impl From<oci::route::RouteError> for Failure {
    fn from(error: oci::route::RouteError) -> Self {
        Self::with_status(error.status(), error.code(), error.to_string())
    }
}

impl From<oci::InvalidQuery> for Failure {
    fn from(error: oci::InvalidQuery) -> Self {
        Self::with_status(error.status(), error.code(), error.to_string())
    }
}

impl From<oci::InvalidDigest> for Failure {
    fn from(error: oci::InvalidDigest) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

impl From<oci::page::InvalidPage> for Failure {
    fn from(error: oci::page::InvalidPage) -> Self {
        Self::with_status(error.status(), error.code(), error.to_string())
    }
}

impl From<oci::upload::Refused> for Failure {
    fn from(error: oci::upload::Refused) -> Self {
        Self::with_status(error.status(), error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_whoever_has_it() {
        let error = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let failure = inside(Kind::NoSpace, &error, "the database");
        assert_eq!((failure.status.as_u16(), failure.code()), (507, "UNAVAILABLE"));
        assert_eq!(failure.problems[0].message, "the database is full");
    }
}
