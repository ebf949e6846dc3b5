//! Which headers go to an origin, which of them go on after a redirect, and which come back.

use std::time::{Duration, SystemTime};

use base64::Engine as _;
use http::header::{
    ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CACHE_CONTROL, CONNECTION,
    CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, DATE, ETAG, EXPECT, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    IF_RANGE, IF_UNMODIFIED_SINCE, LAST_MODIFIED, PRAGMA, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, RETRY_AFTER,
    SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use proto::{ByteRange, Validators};
use url::Url;

/// A caller's headers, sorted by how far they may travel.
pub(super) struct CallerHeaders {
    /// Go to every host a redirect leads to.
    pub(super) everywhere: HeaderMap,
    /// Go to the first origin only.
    pub(super) first_origin: HeaderMap,
    /// Whether anything in `first_origin` may be what the origin grants access for.
    pub(super) credentials: bool,
}

/// Headers that say nothing of who asks. Any other one stays with the first origin: a name such as `X-Team-Token`
/// cannot be told from a harmless one by looking at it.
const HARMLESS: [HeaderName; 7] =
    [ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, CACHE_CONTROL, PRAGMA, USER_AGENT];

/// Headers that stay with the first origin but grant nothing there.
const NEUTRAL: [&str; 18] = [
    "host",
    "referer",
    "origin",
    "from",
    "date",
    "via",
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "x-request-id",
    "x-correlation-id",
    "traceparent",
    "tracestate",
    "dnt",
    "priority",
    "upgrade-insecure-requests",
];

/// Of one connection only (RFC 9110 section 7.6.1), besides what `Connection` names.
const HOP_BY_HOP: [HeaderName; 7] =
    [CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE];
const HOP_BY_HOP_TOO: [&str; 3] = ["keep-alive", "proxy-connection", "proxy-authentication-info"];

/// What this module asks for by itself, from the fields of the request, and what belongs to a body there is not.
const OURS: [HeaderName; 10] = [
    RANGE,
    IF_RANGE,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_MATCH,
    IF_UNMODIFIED_SINCE,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    CONTENT_ENCODING,
    EXPECT,
];

/// What a number of seconds too large to be read is taken for; no policy waits as long.
const RETRY_AFTER_MAX_S: u64 = 1 << 32;

// === outward ===

impl CallerHeaders {
    /// Sorts a caller's headers; the URL's user information becomes `Authorization` unless the caller gave one.
    pub(super) fn sort(headers: &HeaderMap, url: &Url, user_agent: &HeaderValue) -> Self {
        let mut sorted = Self { everywhere: HeaderMap::new(), first_origin: HeaderMap::new(), credentials: false };
        let named = named_by_connection(headers);
        for (name, value) in headers {
            if is_hop_by_hop(name) || named.contains(name) || OURS.contains(name) {
                continue;
            }
            if HARMLESS.contains(name) && !value.is_sensitive() {
                sorted.everywhere.append(name, value.clone());
                continue;
            }
            let neutral =
                !value.is_sensitive() && (NEUTRAL.contains(&name.as_str()) || name.as_str().starts_with("sec-"));
            sorted.credentials |= !neutral;
            let mut value = value.clone();
            // Keeps it out of HTTP/2's header table and of any debug output further down.
            value.set_sensitive(!neutral);
            sorted.first_origin.append(name, value);
        }
        if let Some(basic) = basic_of(url)
            && !sorted.first_origin.contains_key(AUTHORIZATION)
        {
            sorted.first_origin.insert(AUTHORIZATION, basic);
            sorted.credentials = true;
        }
        sorted.everywhere.entry(USER_AGENT).or_insert_with(|| user_agent.clone());
        // The content as it is stored: its ranges, length and digest are what the task is about.
        sorted.everywhere.entry(ACCEPT_ENCODING).or_insert(HeaderValue::from_static("identity"));
        sorted
    }
}

/// What a URL's user information means as `Authorization` (RFC 7617).
pub(super) fn basic_of(url: &Url) -> Option<HeaderValue> {
    if url.username().is_empty() && url.password().is_none() {
        return None;
    }
    let mut pair = percent_encoding::percent_decode_str(url.username()).collect::<Vec<u8>>();
    pair.push(b':');
    pair.extend(percent_encoding::percent_decode_str(url.password().unwrap_or_default()));
    let text = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair));
    let mut value = HeaderValue::from_str(&text).expect("base64 is made of characters a header may hold");
    value.set_sensitive(true);
    Some(value)
}

/// `Range` and `If-Range`.
pub(super) fn ask_range(headers: &mut HeaderMap, range: ByteRange, if_range: Option<&Validators>) {
    insert_text(headers, RANGE, &range.to_header());
    // A weak tag is of no use here (RFC 9110 section 13.1.5); a date is the second best.
    match if_range {
        Some(Validators { etag: Some(etag), .. }) if is_strong(etag) => insert_text(headers, IF_RANGE, etag),
        Some(Validators { last_modified: Some(date), .. }) => insert_text(headers, IF_RANGE, date),
        _ => {}
    }
}

/// `If-None-Match` and `If-Modified-Since`; false when the validators hold nothing to ask with.
pub(super) fn ask_if_changed(headers: &mut HeaderMap, known: &Validators) -> bool {
    // A server that knows tags ignores the date then (RFC 9110 section 13.1.3).
    if let Some(etag) = &known.etag {
        insert_text(headers, IF_NONE_MATCH, etag);
    }
    if let Some(date) = &known.last_modified {
        insert_text(headers, IF_MODIFIED_SINCE, date);
    }
    known.etag.is_some() || known.last_modified.is_some()
}

fn insert_text(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    // What an origin sent can be sent back; anything else is not worth a condition.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

// === inward ===

/// The headers of an answer that are not of one connection only.
pub(super) fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named = named_by_connection(headers);
    let kept = headers.iter().filter(|(name, _)| !is_hop_by_hop(name) && !named.contains(*name));
    kept.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The headers of an answer that was no content, as any client may see them.
pub(super) fn visible(headers: &HeaderMap) -> HeaderMap {
    let mut headers = end_to_end(headers);
    // An answer may be shared by callers who wait for the same thing; a cookie is for one. The body may be cut.
    for name in [SET_COOKIE, CONTENT_LENGTH] {
        headers.remove(name);
    }
    headers
}

fn is_hop_by_hop(name: &HeaderName) -> bool {
    HOP_BY_HOP.contains(name) || HOP_BY_HOP_TOO.contains(&name.as_str())
}

fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}

/// What the headers say of the content, its length aside.
pub(super) fn validators(headers: &HeaderMap, length: Option<u64>) -> Validators {
    let text = |name: HeaderName| {
        headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim).filter(|v| !v.is_empty()).map(ToOwned::to_owned)
    };
    Validators { etag: text(ETAG), last_modified: text(LAST_MODIFIED), length }
}

/// Whether two descriptions cannot be of the same content.
pub(super) fn contradict(a: &Validators, b: &Validators) -> bool {
    fn differ<T: PartialEq>(a: Option<&T>, b: Option<&T>) -> bool {
        matches!((a, b), (Some(a), Some(b)) if a != b)
    }
    let strong = |v: &Validators| v.etag.clone().filter(|etag| is_strong(etag));
    let (tag_a, tag_b) = (strong(a), strong(b));
    if differ(tag_a.as_ref(), tag_b.as_ref()) || differ(a.length.as_ref(), b.length.as_ref()) {
        return true;
    }
    let same_tag = tag_a.is_some() && tag_a == tag_b;
    !same_tag && differ(a.last_modified.as_ref(), b.last_modified.as_ref())
}

fn is_strong(etag: &str) -> bool {
    !etag.starts_with("W/")
}

/// `Content-Length`, when there is exactly one value.
pub(super) fn content_length(headers: &HeaderMap) -> Option<u64> {
    let mut values = headers.get_all(CONTENT_LENGTH).iter();
    let first = values.next()?.to_str().ok()?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if values.next().is_some() || !digits(first) { None } else { first.parse().ok() }
}

/// `Retry-After` as a wait from now. A date is measured against the answer's own `Date`, so that a wrong clock, here
/// or there, does not matter.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(RETRY_AFTER_MAX_S)));
    }
    let until = httpdate::parse_http_date(text).ok()?;
    let sent = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    Some(until.duration_since(sent.unwrap_or(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (n.parse::<HeaderName>().unwrap(), HeaderValue::from_str(v).unwrap())).collect()
    }

    fn sort(pairs: &[(&str, &str)], url: &str) -> CallerHeaders {
        CallerHeaders::sort(&map(pairs), &url.parse().unwrap(), &HeaderValue::from_static("us"))
    }

    #[test]
    fn headers_travel_as_far_as_they_may() {
        let sorted = sort(
            &[
                ("accept", "a/b"),
                ("authorization", "Bearer x"),
                ("x-team-token", "t"),
                ("connection", "close, x-hop"),
                ("x-hop", "1"),
                ("te", "trailers"),
                ("proxy-authorization", "p"),
                ("range", "bytes=0-1"),
                ("if-none-match", "x"),
                ("host", "virtual"),
            ],
            "http://h/",
        );
        let names =
            |map: &HeaderMap| map.keys().map(|n| n.as_str().to_owned()).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(names(&sorted.everywhere), ["accept", "accept-encoding", "user-agent"].map(String::from).into());
        assert_eq!(names(&sorted.first_origin), ["authorization", "host", "x-team-token"].map(String::from).into());
        assert!(sorted.credentials && sorted.first_origin["authorization"].is_sensitive());
        assert!(!sort(&[("accept", "*/*"), ("x-request-id", "1"), ("host", "v")], "http://h/").credentials);
        let mut marked = HeaderValue::from_static("x");
        marked.set_sensitive(true);
        let sorted = CallerHeaders::sort(
            &[(ACCEPT, marked)].into_iter().collect(),
            &"http://h/".parse().unwrap(),
            &HeaderValue::from_static("u"),
        );
        assert!(sorted.credentials && !sorted.everywhere.contains_key(ACCEPT));
    }

    #[test]
    fn user_information_is_basic_authorization() {
        let sorted = sort(&[], "http://Aladdin:open%20sesame@h/");
        assert_eq!(sorted.first_origin[AUTHORIZATION], "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert!(sorted.credentials);
        let sorted = sort(&[("authorization", "Bearer x")], "http://a:b@h/");
        assert_eq!(sorted.first_origin[AUTHORIZATION], "Bearer x");
    }

    #[test]
    fn retry_after_in_both_forms() {
        let now = SystemTime::UNIX_EPOCH;
        assert_eq!(retry_after(&map(&[("retry-after", "7")]), now), Some(Duration::from_secs(7)));
        let dated = map(&[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT"), ("date", "Fri, 31 Dec 1999 23:59:29 GMT")]);
        assert_eq!(retry_after(&dated, now), Some(Duration::from_secs(30)));
        let past = map(&[("retry-after", "Fri, 31 Dec 1999 23:59:00 GMT"), ("date", "Fri, 31 Dec 1999 23:59:29 GMT")]);
        assert_eq!(retry_after(&past, now), Some(Duration::ZERO));
        for bad in ["", "-1", "soon", "1.5"] {
            assert_eq!(retry_after(&map(&[("retry-after", bad)]), now), None, "{bad}");
        }
    }

    #[test]
    fn contradictions() {
        let v = |etag: Option<&str>, date: Option<&str>, length| Validators {
            etag: etag.map(Into::into),
            last_modified: date.map(Into::into),
            length,
        };
        assert!(contradict(&v(Some("\"a\""), None, None), &v(Some("\"b\""), None, None)));
        assert!(!contradict(&v(Some("\"a\""), Some("x"), None), &v(Some("\"a\""), Some("y"), None)));
        assert!(contradict(&v(Some("\"a\""), None, Some(1)), &v(Some("\"a\""), None, Some(2))));
        assert!(contradict(&v(None, Some("x"), None), &v(Some("W/\"a\""), Some("y"), None)));
        assert!(!contradict(&v(Some("W/\"a\""), None, None), &v(Some("W/\"b\""), None, None)));
        assert!(!contradict(&v(None, None, None), &v(Some("\"b\""), Some("x"), Some(1))));
    }

    #[test]
    fn one_content_length_or_none() {
        assert_eq!(content_length(&map(&[("content-length", "12")])), Some(12));
        assert_eq!(content_length(&map(&[("content-length", "+12")])), None);
        assert_eq!(content_length(&map(&[("content-length", "1"), ("content-length", "1")])), None);
    }
}
