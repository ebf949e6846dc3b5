//! Which header fields go on to the next hop. Pure.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Fields that concern one connection only (RFC 9110 section 7.6.1), and the proxy's own authentication.
const HOP_BY_HOP: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
];

/// Fields of a request that are answered here when a task is served, and do not belong to the task.
const OF_THE_READER: [HeaderName; 8] = [
    header::RANGE,
    header::IF_RANGE,
    header::IF_MATCH,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_UNMODIFIED_SINCE,
    header::HOST,
    header::EXPECT,
];

/// Fields of an origin's answer that do not hold for a task's answer to somebody else.
const OF_ONE_ANSWER: [HeaderName; 8] = [
    header::CONTENT_LENGTH,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::DATE,
    header::AGE,
    header::SET_COOKIE,
    header::TRAILER,
    header::ALT_SVC,
];

/// Removes what concerns one connection only, with everything `Connection` names.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        // Framing and authority are not the sender's to remove.
        .filter(|name| ![header::CONTENT_LENGTH, header::HOST].contains(name))
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
}

/// The caller's headers as the origin of a task should see them.
///
/// The bytes of a task are shared by callers, so they must not depend on what one of them can decode: the
/// representation asked for is always the plain one.
#[must_use]
pub(crate) fn for_task(request: &HeaderMap) -> HeaderMap {
    let mut headers = request.clone();
    strip_hop_by_hop(&mut headers);
    for name in OF_THE_READER.iter().chain([&header::CONTENT_LENGTH, &header::CONTENT_TYPE]) {
        headers.remove(name);
    }
    headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    headers
}

/// The origin's headers as the reader of a task should see them.
#[must_use]
pub(crate) fn for_reader(origin: &HeaderMap) -> HeaderMap {
    let mut headers = origin.clone();
    strip_hop_by_hop(&mut headers);
    for name in &OF_ONE_ANSWER {
        headers.remove(name);
    }
    headers
}

/// Whether this daemon has already passed the request on.
#[must_use]
pub(crate) fn went_through(headers: &HeaderMap, pseudonym: &str) -> bool {
    headers
        .get_all(header::VIA)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|hop| hop.split_whitespace().nth(1) == Some(pseudonym))
}

/// Adds this daemon to the hops.
pub(crate) fn add_via(headers: &mut HeaderMap, version: http::Version, pseudonym: &str) {
    let version = match version {
        http::Version::HTTP_10 => "1.0",
        http::Version::HTTP_2 => "2",
        _ => "1.1",
    };
    if let Ok(value) = HeaderValue::try_from(format!("{version} {pseudonym}")) {
        headers.append(header::VIA, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    fn names(headers: &HeaderMap) -> Vec<&str> {
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn what_a_connection_names_stays_behind() {
        let mut headers = map(&[
            ("connection", "close, X-Private"),
            ("connection", "content-length, host"),
            ("x-private", "1"),
            ("proxy-authorization", "Basic x"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("authorization", "Bearer y"),
            ("content-length", "3"),
            ("host", "h"),
        ]);
        strip_hop_by_hop(&mut headers);
        assert_eq!(names(&headers), ["authorization", "content-length", "host"]);
    }

    #[test]
    fn tasks_and_readers() {
        let request = map(&[
            ("range", "bytes=0-1"),
            ("authorization", "x"),
            ("accept-encoding", "gzip"),
            ("cookie", "c"),
            ("host", "h"),
        ]);
        let headers = for_task(&request);
        assert_eq!(names(&headers), ["accept-encoding", "authorization", "cookie"]);
        assert_eq!(headers[header::ACCEPT_ENCODING], "identity");
        let answer = map(&[
            ("set-cookie", "s"),
            ("etag", "\"e\""),
            ("content-length", "5"),
            ("date", "d"),
            ("content-encoding", "gzip"),
        ]);
        assert_eq!(names(&for_reader(&answer)), ["content-encoding", "etag"]);
    }

    #[test]
    fn loops_are_seen() {
        let mut headers = map(&[("via", "1.0 other, 1.1 third (a comment)")]);
        assert!(!went_through(&headers, "skimmer-1"));
        add_via(&mut headers, http::Version::HTTP_11, "skimmer-1");
        assert!(went_through(&headers, "skimmer-1") && went_through(&headers, "third"));
        assert!(!went_through(&headers, "skimmer"));
    }
}
