//! Answers of our own.

use base64::Engine as _;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use proto::Kind;

use crate::body::{self, Body};
use crate::config::ProxyAuth;
use crate::downloads::{DownloadError, OriginAnswer};
use crate::headers;
use crate::serve::TASK_ID;

/// Says whose error an answer is: `origin`, or the kind of failure here (`forbidden`, `unavailable`, …).
pub const ERROR_TYPE: HeaderName = HeaderName::from_static("x-skimmer-error-type");

/// How errors are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// A line of text.
    Text,
    /// As the OCI distribution specification has it, so that clients print the message.
    Oci,
}

/// An error of ours.
pub(super) fn problem(status: u16, kind: Kind, message: &str, style: Style) -> Response<Body> {
    let (content_type, text) = match style {
        Style::Text => ("text/plain; charset=utf-8", format!("skimmer: {message}\n")),
        Style::Oci => {
            let error = serde_json::json!({ "code": oci_code(kind), "message": format!("skimmer: {message}") });
            ("application/json", serde_json::json!({ "errors": [error] }).to_string())
        }
    };
    let mut response = Response::new(body::full(text));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    fields.insert(ERROR_TYPE, HeaderValue::from_static(kind.label()));
    if kind == Kind::Throttled {
        fields.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// Why a task could not be served: in the origin's own words, if it was the origin.
pub(super) fn download_failed(error: &DownloadError, task: &str, style: Style) -> Response<Body> {
    let mut response = match error.origin() {
        // An answer that says success cannot stand for a failure.
        Some(answer) if !answer.status.is_success() && !answer.status.is_informational() => origin_said(answer),
        _ => problem(error.kind().http_status(), error.kind(), &error.to_string(), style),
    };
    if let Ok(task) = HeaderValue::try_from(task) {
        response.headers_mut().insert(TASK_ID, task);
    }
    response
}

fn origin_said(answer: &OriginAnswer) -> Response<Body> {
    let mut fields: HeaderMap = answer.headers.clone();
    headers::strip_hop_by_hop(&mut fields);
    for name in [header::CONTENT_LENGTH, header::TRAILER, header::DATE] {
        fields.remove(name);
    }
    fields.insert(ERROR_TYPE, HeaderValue::from_static("origin"));
    let mut response = Response::new(body::full(answer.body.clone()));
    *response.status_mut() = answer.status;
    *response.headers_mut() = fields;
    response
}

/// Codes of the specification where there is a fitting one.
const fn oci_code(kind: Kind) -> &'static str {
    match kind {
        Kind::NotFound => "BLOB_UNKNOWN",
        Kind::Unauthorized => "UNAUTHORIZED",
        Kind::Forbidden => "DENIED",
        Kind::Throttled => "TOOMANYREQUESTS",
        Kind::Corrupt => "DIGEST_INVALID",
        Kind::Invalid => "UNSUPPORTED",
        _ => "UNKNOWN",
    }
}

/// The value of `Proxy-Authorization` that lets a user in (RFC 7617).
pub(super) fn basic(auth: &ProxyAuth) -> String {
    let pair = format!("{}:{}", auth.user, auth.password);
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// Compares without telling by the time it takes how much is right.
pub(super) fn is_same_secret(given: &[u8], expected: &[u8]) -> bool {
    given.len() == expected.len() && given.iter().zip(expected).fold(0, |diff, (a, b)| diff | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets() {
        let auth = ProxyAuth { user: "Aladdin".into(), password: "open sesame".into() };
        // RFC 7617 section 2.
        assert_eq!(basic(&auth), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(is_same_secret(b"abc", b"abc") && !is_same_secret(b"abd", b"abc") && !is_same_secret(b"ab", b"abc"));
    }

    #[test]
    fn a_success_of_the_origin_is_no_error_answer() {
        let answer = OriginAnswer { status: StatusCode::OK, headers: HeaderMap::new(), body: "x".into() };
        let error = DownloadError::new(Kind::Corrupt, "wrong digest").with_origin(answer);
        let response = download_failed(&error, "t", Style::Text);
        assert_eq!(response.status(), 502);
        assert_eq!(response.headers()[ERROR_TYPE], "corrupt");
    }
}
