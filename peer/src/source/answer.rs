//! What an answer means: content, a part, "not modified", or an error.

use std::time::SystemTime;

use http::header::{ACCEPT_RANGES, CONTENT_RANGE, CONTENT_TYPE};
use http::response::Parts;
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::{Body as _, Incoming};
use proto::{ByteRange, ContentRange, Validators};
use url::Url;

use super::body::OriginBody;
use super::slots::Slot;
use super::{ANSWER_BODY_MAX, OriginAnswer, OriginResponse, Source, SourceError, headers};

/// What was asked.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) range: Option<ByteRange>,
    pub(super) if_range: Option<&'a Validators>,
    /// Conditions were sent, made from these.
    pub(super) known: Option<&'a Validators>,
    pub(super) used_credentials: bool,
}

/// What came of it.
pub(super) enum Judged {
    Answer(Box<OriginResponse>),
    /// 304, but for another content than the one asked about.
    UnlikelyNotModified,
}

pub(super) async fn judge(
    source: &Source,
    asked: Asked<'_>,
    url: Url,
    host: Box<str>,
    response: Response<Incoming>,
    slot: Slot,
) -> Result<Judged, SourceError> {
    let (parts, incoming) = response.into_parts();
    let announced = if *asked.method == Method::HEAD {
        headers::content_length(&parts.headers)
    } else {
        incoming.size_hint().exact()
    };
    let judged = match parts.status {
        StatusCode::OK => whole(&asked, &parts.headers, announced),
        StatusCode::PARTIAL_CONTENT => part(&asked, &parts.headers, announced, &host)?,
        StatusCode::NOT_MODIFIED if asked.known.is_some() => match not_modified(&asked, &parts.headers) {
            Some(content) => content,
            None => return Ok(Judged::UnlikelyNotModified),
        },
        _ => {
            let length = announced.filter(|_| *asked.method == Method::GET);
            let body = OriginBody::new(host, incoming, length, slot, source.clone());
            return Err(error_of(source, &asked, parts, body).await);
        }
    };
    let bodiless = *asked.method == Method::HEAD || judged.not_modified;
    let body = if bodiless {
        OriginBody::empty()
    } else {
        OriginBody::new(host, incoming, judged.length, slot, source.clone())
    };
    Ok(Judged::Answer(Box::new(OriginResponse {
        url,
        status: parts.status,
        headers: headers::end_to_end(&parts.headers),
        validators: judged.validators,
        range: judged.range,
        length: judged.length,
        accepts_ranges: judged.accepts_ranges,
        not_modified: judged.not_modified,
        used_credentials: asked.used_credentials,
        body,
    })))
}

struct Content {
    validators: Validators,
    range: Option<ByteRange>,
    length: Option<u64>,
    accepts_ranges: bool,
    not_modified: bool,
}

fn whole(asked: &Asked<'_>, headers: &HeaderMap, announced: Option<u64>) -> Content {
    // Whoever was asked for a part without a condition and sends the whole does not do parts, whatever it says.
    let ignored = asked.range.is_some() && asked.if_range.is_none();
    Content {
        validators: headers::validators(headers, announced),
        range: None,
        length: announced,
        accepts_ranges: !ignored && says_accepts_ranges(headers),
        not_modified: false,
    }
}

fn part(asked: &Asked<'_>, headers: &HeaderMap, announced: Option<u64>, host: &str) -> Result<Content, SourceError> {
    let wrong = |what: &str| SourceError::protocol(host, what);
    let Some(wanted) = asked.range else { return Err(wrong("206 to a request without a range")) };
    if text(headers, CONTENT_TYPE).is_some_and(|kind| kind.to_ascii_lowercase().starts_with("multipart/byteranges")) {
        return Err(wrong("several parts to a request for one"));
    }
    let sent = text(headers, CONTENT_RANGE).ok_or_else(|| wrong("206 without a legible Content-Range"))?;
    let sent = ContentRange::parse(sent).map_err(|_| wrong("206 without a legible Content-Range"))?;
    let range = sent.range.ok_or_else(|| wrong("206 without a range in its Content-Range"))?;
    // It may end earlier (RFC 9110 section 15.3.7), but not begin elsewhere.
    if range.start() != wanted.start() || range.end() > wanted.end() {
        return Err(SourceError::protocol(host, format!("asked for bytes {wanted} it sends {range}")));
    }
    if announced.is_some_and(|length| length != range.len()) {
        return Err(wrong("Content-Length and Content-Range of a part disagree"));
    }
    let validators = headers::validators(headers, sent.total);
    if asked.if_range.is_some_and(|known| headers::contradict(known, &validators)) {
        return Err(SourceError::Changed { host: host.into() });
    }
    Ok(Content { validators, range: Some(range), length: Some(range.len()), accepts_ranges: true, not_modified: false })
}

fn not_modified(asked: &Asked<'_>, headers: &HeaderMap) -> Option<Content> {
    let known = asked.known?;
    let told = headers::validators(headers, None);
    if headers::contradict(known, &told) {
        return None;
    }
    let validators = Validators {
        etag: told.etag.or_else(|| known.etag.clone()),
        last_modified: told.last_modified.or_else(|| known.last_modified.clone()),
        length: known.length,
    };
    Some(Content {
        validators,
        range: None,
        length: Some(0),
        accepts_ranges: says_accepts_ranges(headers),
        not_modified: true,
    })
}

async fn error_of(source: &Source, asked: &Asked<'_>, parts: Parts, body: OriginBody) -> SourceError {
    let body = body.start(ANSWER_BODY_MAX, source.config().body_timeout).await;
    let retry_after = headers::retry_after(&parts.headers, SystemTime::now());
    let answer = Box::new(OriginAnswer { status: parts.status, headers: headers::visible(&parts.headers), body });
    if parts.status == StatusCode::RANGE_NOT_SATISFIABLE && asked.range.is_some() {
        let total = text(&parts.headers, CONTENT_RANGE).and_then(|value| ContentRange::parse(value).ok()?.total);
        return SourceError::RangeNotSatisfiable { total, answer };
    }
    SourceError::of_status(answer, retry_after)
}

fn says_accepts_ranges(headers: &HeaderMap) -> bool {
    text(headers, ACCEPT_RANGES)
        .is_some_and(|value| value.split(',').any(|unit| unit.trim().eq_ignore_ascii_case("bytes")))
}

fn text(headers: &HeaderMap, name: http::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}
