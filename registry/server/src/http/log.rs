//! The access log: one line for each request, when its answer was sent or broke off.

use std::fmt;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use ::http::request::Parts;
use ::http::{Method, Response, StatusCode, Uri};
use http_body::{Frame, SizeHint};
use service::http::{Chunk, Meter, Peer};

use super::body::{Body, BodyError};

/// What is known of a request before there is an answer.
pub(super) struct Asked {
    method: Method,
    uri: Uri,
    from: Option<Peer>,
    client: Option<IpAddr>,
    started: Instant,
}

/// A line that is written when nobody holds it any more.
#[derive(Debug)]
struct Line {
    method: Method,
    uri: Uri,
    from: Option<String>,
    client: Option<IpAddr>,
    caller: Option<String>,
    status: StatusCode,
    /// The error's, or empty.
    code: &'static str,
    started: Instant,
    /// Bytes of the body.
    sent: AtomicU64,
}

/// An answer's body, and the line about it.
pub(crate) struct Logged {
    body: Body,
    line: Option<Arc<Line>>,
}

// === impl Asked ===

impl Asked {
    /// `client` is the address that a trusted proxy names, or the peer's.
    pub(super) fn new(parts: &Parts, from: Option<Peer>, client: Option<IpAddr>, started: Instant) -> Self {
        // One that is not behind a proxy is told already.
        let client = client.filter(|client| from.and_then(|peer| peer.ip()) != Some(*client));
        Self { method: parts.method.clone(), uri: parts.uri.clone(), from, client, started }
    }

    fn answered(self, caller: Option<&str>, status: StatusCode, code: &'static str) -> Line {
        Line {
            method: self.method,
            uri: self.uri,
            from: self.from.map(|peer| peer.to_string()),
            client: self.client,
            caller: caller.map(ToOwned::to_owned),
            status,
            code,
            started: self.started,
            sent: AtomicU64::new(0),
        }
    }
}

// === impl Line ===

impl Meter for Line {
    fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Self { method, uri, from, client, caller, status, code, started, sent } = self;
        let client = client.map(|client| client.to_string());
        let (method, uri, status, sent) = (method.as_str(), place(uri), status.as_u16(), *sent.get_mut());
        let duration_ms = started.elapsed().as_secs_f64() * 1e3;
        tracing::info!(target: "access", from, client, caller, method, uri, status, code, sent, duration_ms);
    }
}

/// Path and query. What may stand before them names us, and may have a password in it.
fn place(uri: &Uri) -> &str {
    uri.path_and_query().map_or("", |place| place.as_str())
}

// === impl Logged ===

impl Logged {
    /// `asked` is `None` when nothing is logged.
    pub(super) fn answer(
        response: Response<Body>,
        asked: Option<Asked>,
        caller: Option<&str>,
        code: &'static str,
    ) -> Response<Self> {
        let line = asked.map(|asked| Arc::new(asked.answered(caller, response.status(), code)));
        response.map(|body| Self { body, line })
    }
}

impl http_body::Body for Logged {
    type Data = Chunk;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let Some(line) = &self.line else { return polled };
        polled.map_ok(|frame| {
            frame.map_data(|chunk| match chunk {
                Chunk::File(file) => Chunk::File(file.metered(Arc::clone(line) as Arc<dyn Meter>)),
                Chunk::Bytes(bytes) => {
                    line.sent(bytes.len() as u64);
                    Chunk::Bytes(bytes)
                }
            })
        })
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Debug for Logged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logged").field("line", &self.line).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_logged() {
        for (uri, expected) in [
            ("/v2/?a=b", "/v2/?a=b"),
            ("http://ann:secretpw@registry.example/v2/a/b/tags/list?n=1", "/v2/a/b/tags/list?n=1"),
            ("https://ann:secretpw@registry.example", "/"),
            ("ann:secretpw@registry.example:443", ""),
            ("*", "*"),
        ] {
            assert_eq!(place(&uri.parse().unwrap()), expected);
        }
    }
}
