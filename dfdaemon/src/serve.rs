//! A task as an HTTP answer: conditions, ranges, and a body that is whole or breaks.
//!
//! What RFC 9110 leaves open is decided so: several ranges are answered as `multipart/byteranges` in the order asked
//! for, unless together they are no shorter than the whole, which is then sent; without a known length `Range` is
//! ignored.

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use proto::{ByteRange, ContentRange, RangeHeader};

use crate::body::{self, Body};
use crate::downloads::{DownloadError, OpenedTask, TaskInfo};
use crate::headers;
use crate::metrics::{BytesFrom, Metrics, Way};

mod conditions;
mod stream;

use conditions::Verdict;
pub(crate) use stream::TaskStream;

/// Says which task an answer came from.
pub const TASK_ID: HeaderName = HeaderName::from_static("x-skimmer-task-id");

/// What to send of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// 200 with everything.
    Whole,
    /// 206 with one range.
    Part(ByteRange, u64),
    /// 206 with several.
    Parts(Vec<ByteRange>, u64),
    /// 416.
    Unsatisfiable(u64),
    /// 304.
    NotModified,
    /// 412.
    PreconditionFailed,
}

/// Decides what to send (RFC 9110 sections 13.2.2 and 14).
#[must_use]
pub fn plan(method: &Method, request: &HeaderMap, info: &TaskInfo) -> Plan {
    match conditions::evaluate(request, &info.headers) {
        Verdict::Failed => return Plan::PreconditionFailed,
        Verdict::NotModified => return Plan::NotModified,
        Verdict::Go => {}
    }
    let range =
        request.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(|v| RangeHeader::parse(v).ok());
    let (Some(range), Some(length)) = (range, info.length) else { return Plan::Whole };
    // Range is defined for GET alone.
    if method != Method::GET || !conditions::if_range_holds(request, &info.headers) {
        return Plan::Whole;
    }
    match range.resolve(length) {
        Err(_) => Plan::Unsatisfiable(length),
        Ok(ranges) => match ranges.as_slice() {
            [one] => Plan::Part(*one, length),
            // Many small overlapping ranges must not make us send more than there is.
            many if many.iter().map(|r| r.len()).sum::<u64>() >= length => Plan::Whole,
            _ => Plan::Parts(ranges, length),
        },
    }
}

/// The part of a content that a request will surely read, when that is known before its length is.
#[must_use]
pub fn wanted(request: &HeaderMap) -> Option<ByteRange> {
    // Conditional ranges may turn into the whole.
    if request.contains_key(header::IF_RANGE) {
        return None;
    }
    let range = RangeHeader::parse(request.get(header::RANGE)?.to_str().ok()?).ok()?;
    match range.resolve(u64::MAX).ok()?.as_slice() {
        // An end at the clamp is an open end, or counts from the end.
        [one] if one.end() < u64::MAX => Some(*one),
        _ => None,
    }
}

/// The answer for a task.
///
/// # Errors
/// When the content failed before its first byte: the answer is then somebody else's to make.
pub(crate) async fn respond(
    method: &Method,
    request: &HeaderMap,
    task: &OpenedTask,
    first_byte_wait: Duration,
    counted: (Way, &Metrics),
) -> Result<Response<Body>, DownloadError> {
    let (way, metrics) = counted;
    let plan = plan(method, request, &task.info);

    let mut response = Response::new(body::empty());
    let mut fields = headers::for_reader(&task.info.headers);
    if let Ok(id) = HeaderValue::try_from(task.info.task.to_string()) {
        fields.insert(TASK_ID, id);
    }
    let from = if task.info.from_cache { BytesFrom::Cache } else { BytesFrom::Swarm };
    let count = metrics.bytes_counter(from);
    let ended = stream::Ended::new(metrics.clone(), way);
    let body = async |mut stream: TaskStream| {
        if method == Method::HEAD {
            stream.unread();
            return Ok(body::empty());
        }
        stream.prime(first_byte_wait).await?;
        Ok(stream.boxed())
    };
    if task.info.length.is_some() {
        fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    }
    match plan {
        Plan::Whole => {
            if let Some(length) = task.info.length {
                fields.insert(header::CONTENT_LENGTH, length.into());
            }
            *response.body_mut() = body(TaskStream::whole(task, count, ended)).await?;
        }
        Plan::Part(range, total) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            fields.insert(header::CONTENT_LENGTH, range.len().into());
            fields.insert(header::CONTENT_RANGE, content_range(Some(range), total));
            *response.body_mut() = body(TaskStream::part(task, range, count, ended)).await?;
        }
        Plan::Parts(ranges, total) => {
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            let content_type = fields.remove(header::CONTENT_TYPE);
            let (stream, boundary) = TaskStream::parts(task, &ranges, total, content_type.as_ref(), count, ended);
            fields.insert(header::CONTENT_LENGTH, stream.length().unwrap_or_default().into());
            if let Ok(value) = HeaderValue::try_from(format!("multipart/byteranges; boundary={boundary}")) {
                fields.insert(header::CONTENT_TYPE, value);
            }
            *response.body_mut() = body(stream).await?;
        }
        Plan::Unsatisfiable(total) => {
            *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
            for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
                fields.remove(name);
            }
            fields.insert(header::CONTENT_LENGTH, 0.into());
            fields.insert(header::CONTENT_RANGE, content_range(None, total));
            ended.done();
        }
        Plan::NotModified => {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
            for name in [header::CONTENT_TYPE, header::CONTENT_ENCODING] {
                fields.remove(name);
            }
            ended.done();
        }
        Plan::PreconditionFailed => {
            *response.status_mut() = StatusCode::PRECONDITION_FAILED;
            fields.clear();
            fields.insert(header::CONTENT_LENGTH, 0.into());
            ended.done();
        }
    }
    *response.headers_mut() = fields;
    Ok(response)
}

fn content_range(range: Option<ByteRange>, total: u64) -> HeaderValue {
    let text = ContentRange { range, total: Some(total) }.to_string();
    HeaderValue::try_from(text).expect("digits and punctuation are valid in a header")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proto::{Generation, TaskId};

    use super::*;

    fn info(length: Option<u64>, fields: &[(&'static str, &'static str)]) -> TaskInfo {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.insert(*name, HeaderValue::from_static(value));
        }
        TaskInfo {
            task: TaskId::from_bytes(&[7; 32]).unwrap(),
            generation: Generation::unique(1),
            length,
            headers,
            guarded: false,
            from_cache: false,
        }
    }

    fn request(fields: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn get(fields: &[(&'static str, &str)], info: &TaskInfo) -> Plan {
        plan(&Method::GET, &request(fields), info)
    }

    fn r(start: u64, end: u64) -> ByteRange {
        ByteRange::new(start, end).unwrap()
    }

    #[test]
    fn ranges() {
        let ten = info(Some(10), &[]);
        assert_eq!(get(&[], &ten), Plan::Whole);
        assert_eq!(get(&[("range", "bytes=2-4")], &ten), Plan::Part(r(2, 5), 10));
        assert_eq!(get(&[("range", "bytes=-4")], &ten), Plan::Part(r(6, 10), 10));
        assert_eq!(get(&[("range", "bytes=0-")], &ten), Plan::Part(r(0, 10), 10));
        assert_eq!(get(&[("range", "bytes=10-")], &ten), Plan::Unsatisfiable(10));
        assert_eq!(get(&[("range", "bytes=0-0,5-6")], &ten), Plan::Parts(vec![r(0, 1), r(5, 7)], 10));
        assert_eq!(get(&[("range", "bytes=0-0,20-")], &ten), Plan::Part(r(0, 1), 10));
        assert_eq!(get(&[("range", "bytes=0-,0-")], &ten), Plan::Whole);
        assert_eq!(get(&[("range", "lines=1-2")], &ten), Plan::Whole);
        assert_eq!(get(&[("range", "bytes=5-2")], &ten), Plan::Whole);
        assert_eq!(get(&[("range", "bytes=0-")], &info(Some(0), &[])), Plan::Unsatisfiable(0));
        assert_eq!(get(&[("range", "bytes=0-1")], &info(None, &[])), Plan::Whole);
        assert_eq!(plan(&Method::HEAD, &request(&[("range", "bytes=0-1")]), &ten), Plan::Whole);
    }

    #[test]
    fn conditions_come_first() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        let task = info(Some(10), &[("etag", "\"a\""), ("last-modified", date)]);
        let range = ("range", "bytes=0-1");
        assert_eq!(get(&[range, ("if-range", "\"a\"")], &task), Plan::Part(r(0, 2), 10));
        assert_eq!(get(&[range, ("if-range", "\"b\"")], &task), Plan::Whole);
        assert_eq!(get(&[range, ("if-range", "W/\"a\"")], &task), Plan::Whole);
        assert_eq!(get(&[range, ("if-range", date)], &task), Plan::Part(r(0, 2), 10));
        assert_eq!(get(&[range, ("if-range", "Sun, 06 Nov 1994 08:49:38 GMT")], &task), Plan::Whole);
        assert_eq!(get(&[("range", "bytes=50-"), ("if-range", "\"b\"")], &task), Plan::Whole);
        assert_eq!(get(&[range, ("if-none-match", "\"b\", W/\"a\"")], &task), Plan::NotModified);
        assert_eq!(get(&[("if-none-match", "*")], &task), Plan::NotModified);
        assert_eq!(get(&[("if-none-match", "\"b\"")], &task), Plan::Whole);
        // If-None-Match switches If-Modified-Since off.
        assert_eq!(get(&[("if-none-match", "\"b\""), ("if-modified-since", date)], &task), Plan::Whole);
        assert_eq!(get(&[("if-modified-since", date)], &task), Plan::NotModified);
        assert_eq!(get(&[("if-modified-since", "Sun, 06 Nov 1994 08:49:36 GMT")], &task), Plan::Whole);
        assert_eq!(get(&[("if-match", "\"b\"")], &task), Plan::PreconditionFailed);
        assert_eq!(get(&[("if-match", "\"b\", \"a\"")], &task), Plan::Whole);
        assert_eq!(get(&[("if-unmodified-since", "Sun, 06 Nov 1994 08:49:36 GMT")], &task), Plan::PreconditionFailed);
        let weak = info(Some(10), &[("etag", "W/\"a\"")]);
        assert_eq!(get(&[range, ("if-range", "W/\"a\"")], &weak), Plan::Whole);
        assert_eq!(get(&[("if-none-match", "\"a\"")], &weak), Plan::NotModified);
        assert_eq!(get(&[("if-match", "W/\"a\"")], &weak), Plan::PreconditionFailed);
    }

    #[test]
    fn what_is_surely_wanted() {
        assert_eq!(wanted(&request(&[("range", "bytes=5-9")])), Some(r(5, 10)));
        for open in ["bytes=5-", "bytes=-5", "bytes=0-1,4-5", "x"] {
            assert_eq!(wanted(&request(&[("range", open)])), None, "{open}");
        }
        assert_eq!(wanted(&request(&[("range", "bytes=5-9"), ("if-range", "\"a\"")])), None);
    }

    proptest! {
        #[test]
        fn never_more_than_the_content(length in 0u64..1000, text in "bytes=([0-9]{0,3}-[0-9]{0,3},?){1,6}") {
            match get(&[("range", &text)], &info(Some(length), &[])) {
                Plan::Part(range, total) => prop_assert!(range.end() <= length && total == length),
                Plan::Parts(ranges, _) => {
                    prop_assert!(ranges.len() > 1 && ranges.iter().map(|r| r.len()).sum::<u64>() < length);
                }
                Plan::Whole | Plan::Unsatisfiable(_) => {}
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }
}
