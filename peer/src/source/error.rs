//! What can go wrong on the way to an origin, told apart by what a caller can do about it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use proto::Kind;

use super::config::ConfigProblem;
use super::guard::AddressClass;
use super::redact::RedactedUrl;

/// Why an origin could not be read.
///
/// No variant, and no source of one, shows a credential: URLs appear redacted and header values not at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The settings cannot be used; all of their problems.
    #[error("{}", join(.problems))]
    Config {
        /// Each with its place.
        problems: Vec<ConfigProblem>,
    },
    /// The request cannot be made at all.
    #[error("cannot fetch {url}: {what}")]
    BadRequest {
        /// What was asked for.
        url: RedactedUrl,
        /// What is wrong with it.
        what: &'static str,
    },
    /// 401 or 407: credentials are missing, wrong or expired.
    #[error("the origin asks for other credentials ({})", .answer.status)]
    Unauthorized {
        /// What the origin said.
        answer: Box<OriginAnswer>,
    },
    /// 403: the credentials do not suffice.
    #[error("the origin forbids it (403)")]
    Forbidden {
        /// What the origin said.
        answer: Box<OriginAnswer>,
    },
    /// 404 or 410.
    #[error("the origin has no such content ({})", .answer.status)]
    NotFound {
        /// What the origin said.
        answer: Box<OriginAnswer>,
    },
    /// 416 to a request with a range.
    #[error("no byte of the origin's content lies in the range (416)")]
    RangeNotSatisfiable {
        /// Length of the whole content, when the origin told it.
        total: Option<u64>,
        /// What the origin said.
        answer: Box<OriginAnswer>,
    },
    /// 429, or 503 with `Retry-After`.
    #[error("the origin has too much to do ({})", .answer.status)]
    Throttled {
        /// How long it asks to wait.
        retry_after: Option<Duration>,
        /// What the origin said.
        answer: Box<OriginAnswer>,
    },
    /// Another 5xx.
    #[error("the origin failed ({status})")]
    Server {
        /// The status.
        status: StatusCode,
        /// What the origin said.
        answer: Box<OriginAnswer>,
    },
    /// Any other status that is no answer to the question.
    #[error("the origin answered {status}")]
    OtherStatus {
        /// The status.
        status: StatusCode,
        /// What the origin said.
        answer: Box<OriginAnswer>,
    },
    /// Redirects that are not followed.
    #[error("redirect from {url} not followed: {problem}")]
    Redirects {
        /// Where the redirect came from.
        url: RedactedUrl,
        /// Why.
        problem: RedirectProblem,
    },
    /// The guard allows none of the host's addresses.
    #[error("connecting to {host} is refused: {address} is {class}")]
    Refused {
        /// The host's name.
        host: Box<str>,
        /// The first of its addresses.
        address: IpAddr,
        /// What that address is.
        class: AddressClass,
    },
    /// The host's name has no address.
    #[error("cannot resolve {host}")]
    Resolve {
        /// The name.
        host: Box<str>,
        /// Why.
        source: Arc<io::Error>,
    },
    /// No address of the host could be connected to.
    #[error("cannot connect to {host} at {address}")]
    Connect {
        /// The host's name.
        host: Box<str>,
        /// The last address tried.
        address: SocketAddr,
        /// Why that one failed.
        source: Arc<io::Error>,
    },
    /// The proxy did not open a tunnel.
    #[error("the proxy opens no tunnel to {host}: {what}")]
    Proxy {
        /// Where to.
        host: Box<str>,
        /// What it did instead.
        what: Box<str>,
    },
    /// No secure connection: most often a certificate that is not trusted.
    #[error("no secure connection to {host}")]
    Tls {
        /// The host's name.
        host: Box<str>,
        /// Why; holds a [`rustls::Error`] unless the connection just broke.
        source: Arc<io::Error>,
    },
    /// Nothing happened for too long.
    #[error("{host}: {waiting} took longer than {after:?}")]
    Timeout {
        /// The host's name.
        host: Box<str>,
        /// What was waited for.
        waiting: Waiting,
        /// For how long.
        after: Duration,
    },
    /// The connection broke before the headers of an answer.
    #[error("the connection to {host} broke before an answer came")]
    Lost {
        /// The host's name.
        host: Box<str>,
        /// How.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A body that ended before its announced length, or before its last chunk.
    #[error("the body from {host} broke off after {got} of {} bytes", .expected.map_or_else(|| "unknown".to_owned(), |n| n.to_string()))]
    BodyCutShort {
        /// The host's name.
        host: Box<str>,
        /// The length announced, when there was one.
        expected: Option<u64>,
        /// The bytes that came.
        got: u64,
    },
    /// The content is not the one that was asked about (`if_range`), although the origin sent a part of it.
    #[error("the content at {host} has changed")]
    Changed {
        /// The host's name.
        host: Box<str>,
    },
    /// The origin breaks the rules of HTTP.
    #[error("{host} breaks the rules of HTTP: {what}")]
    Protocol {
        /// The host's name.
        host: Box<str>,
        /// Which.
        what: Box<str>,
    },
}

/// What an origin answered when it was not the content: status, headers a client may see, and the start of the body.
#[derive(Clone)]
pub struct OriginAnswer {
    /// The status.
    pub status: StatusCode,
    /// End-to-end headers, without cookies and without the body's length; `WWW-Authenticate` and `Retry-After` are among them.
    pub headers: HeaderMap,
    /// The first [`ANSWER_BODY_MAX`] bytes of the body.
    pub body: Bytes,
}

/// How much of an error's body is kept: enough for any message, no room for a flood.
pub const ANSWER_BODY_MAX: usize = 64 * 1024;

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Waiting {
    /// One of the requests under way had to finish first.
    Slot,
    /// Connecting.
    Connect,
    /// The headers of the answer.
    Headers,
    /// The next byte of the body.
    Body,
}

/// Why a redirect was not followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RedirectProblem {
    /// There were too many.
    TooMany {
        /// How many are followed.
        limit: u32,
    },
    /// It leads to where the request has been already.
    Loop,
    /// It says not where to, or not legibly.
    Location,
    /// It leads to something other than http and https.
    Scheme,
    /// It leads from https to http.
    Downgrade,
}

fn join(problems: &[ConfigProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

// === impl SourceError ===

impl SourceError {
    /// The sort of failure.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Unauthorized { .. } => Kind::Unauthorized,
            Self::Forbidden { .. } | Self::Refused { .. } => Kind::Forbidden,
            Self::Redirects { problem: RedirectProblem::Downgrade, .. } => Kind::Forbidden,
            Self::NotFound { .. } => Kind::NotFound,
            Self::Throttled { .. } => Kind::Throttled,
            Self::Config { .. }
            | Self::BadRequest { .. }
            | Self::RangeNotSatisfiable { .. }
            | Self::Redirects { .. } => Kind::Invalid,
            Self::OtherStatus { status, .. } if status.is_client_error() => Kind::Invalid,
            Self::Changed { .. } => Kind::Conflict,
            Self::Server { .. }
            | Self::OtherStatus { .. }
            | Self::Resolve { .. }
            | Self::Connect { .. }
            | Self::Proxy { .. }
            | Self::Tls { .. }
            | Self::Timeout { .. }
            | Self::Lost { .. }
            | Self::BodyCutShort { .. }
            | Self::Protocol { .. } => Kind::Unavailable,
        }
    }

    /// What the origin answered, when it answered.
    #[must_use]
    pub fn answer(&self) -> Option<&OriginAnswer> {
        match self {
            Self::Unauthorized { answer }
            | Self::Forbidden { answer }
            | Self::NotFound { answer }
            | Self::RangeNotSatisfiable { answer, .. }
            | Self::Throttled { answer, .. }
            | Self::Server { answer, .. }
            | Self::OtherStatus { answer, .. } => Some(answer),
            _ => None,
        }
    }

    /// How long the origin asks to wait, when it does.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Throttled { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// The error that a status other than success means; 416 is left to whoever knows what was asked.
    pub(super) fn of_status(answer: Box<OriginAnswer>, retry_after: Option<Duration>) -> Self {
        let status = answer.status;
        match status.as_u16() {
            401 | 407 => Self::Unauthorized { answer },
            403 => Self::Forbidden { answer },
            404 | 410 => Self::NotFound { answer },
            429 => Self::Throttled { retry_after, answer },
            503 if retry_after.is_some() => Self::Throttled { retry_after, answer },
            500..=599 => Self::Server { status, answer },
            _ => Self::OtherStatus { status, answer },
        }
    }

    pub(super) fn protocol(host: &str, what: impl Into<Box<str>>) -> Self {
        Self::Protocol { host: host.into(), what: what.into() }
    }
}

// === impl OriginAnswer ===

impl OriginAnswer {
    /// A status and nothing else.
    #[cfg(test)]
    pub(super) fn bare(status: StatusCode) -> Box<Self> {
        Box::new(Self { status, headers: HeaderMap::new(), body: Bytes::new() })
    }
}

impl std::fmt::Debug for OriginAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Header values and bodies may hold what somebody calls secret.
        let names: Vec<_> = self.headers.keys().map(http::HeaderName::as_str).collect();
        f.debug_struct("OriginAnswer")
            .field("status", &self.status)
            .field("headers", &names)
            .field("body_bytes", &self.body.len())
            .finish()
    }
}

// === texts ===

impl std::fmt::Display for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Slot => "waiting for other requests to finish",
            Self::Connect => "connecting",
            Self::Headers => "waiting for the answer",
            Self::Body => "waiting for the next byte of the body",
        })
    }
}

impl std::fmt::Display for RedirectProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooMany { limit } => write!(f, "more than {limit} redirects"),
            Self::Loop => f.write_str("it leads back to where it came from"),
            Self::Location => f.write_str("no legible location"),
            Self::Scheme => f.write_str("it leads to something other than http and https"),
            Self::Downgrade => f.write_str("it leads from https to http"),
        }
    }
}
