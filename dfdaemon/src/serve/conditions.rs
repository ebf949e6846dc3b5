//! Conditional requests (RFC 9110 section 13). Pure.

use std::time::SystemTime;

use http::header::{self, HeaderMap, HeaderName};

/// What the conditions of a request come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Go,
    NotModified,
    Failed,
}

/// Evaluates `If-Match`, `If-Unmodified-Since`, `If-None-Match` and `If-Modified-Since` in the order of section 13.2.2,
/// for GET and HEAD.
pub(super) fn evaluate(request: &HeaderMap, content: &HeaderMap) -> Verdict {
    let etag = text(content, &header::ETAG);
    let modified = date(content, &header::LAST_MODIFIED);
    if request.contains_key(header::IF_MATCH) {
        if !any_tag(request, &header::IF_MATCH, |tag| tag == "*" || (is_strong(tag) && etag == Some(tag))) {
            return Verdict::Failed;
        }
    } else if let (Some(since), Some(modified)) = (date(request, &header::IF_UNMODIFIED_SINCE), modified)
        && modified > since
    {
        return Verdict::Failed;
    }
    if request.contains_key(header::IF_NONE_MATCH) {
        let opaque = |tag: &str| tag.strip_prefix("W/").unwrap_or(tag).to_owned();
        let ours = etag.map(opaque);
        if any_tag(request, &header::IF_NONE_MATCH, |tag| tag == "*" || ours.as_deref() == Some(&*opaque(tag))) {
            return Verdict::NotModified;
        }
    } else if let (Some(since), Some(modified)) = (date(request, &header::IF_MODIFIED_SINCE), modified)
        && modified <= since
    {
        return Verdict::NotModified;
    }
    Verdict::Go
}

/// Whether a range may be sent: no `If-Range`, or one that names exactly this content.
pub(super) fn if_range_holds(request: &HeaderMap, content: &HeaderMap) -> bool {
    let Some(value) = request.get(header::IF_RANGE) else { return true };
    let Ok(value) = value.to_str().map(str::trim) else { return false };
    if value.starts_with('"') {
        return is_strong(value) && text(content, &header::ETAG) == Some(value);
    }
    match (httpdate::parse_http_date(value), date(content, &header::LAST_MODIFIED)) {
        (Ok(asked), Some(modified)) => asked == modified,
        _ => false,
    }
}

fn is_strong(tag: &str) -> bool {
    tag.starts_with('"')
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(text(headers, name)?).ok()
}

/// Whether one of the entity tags in a list passes. Commas may stand inside of a tag's quotes.
fn any_tag(headers: &HeaderMap, name: &HeaderName, mut passes: impl FnMut(&str) -> bool) -> bool {
    headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).any(|list| {
        let mut quoted = false;
        list.split(|c: char| {
            quoted ^= c == '"';
            c == ',' && !quoted
        })
        .any(|tag| passes(tag.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_inside_of_tags() {
        let mut headers = HeaderMap::new();
        headers.insert(header::IF_NONE_MATCH, "\"a,b\" , \"c\"".parse().unwrap());
        let mut seen = Vec::new();
        any_tag(&headers, &header::IF_NONE_MATCH, |tag| {
            seen.push(tag.to_owned());
            false
        });
        assert_eq!(seen, ["\"a,b\"", "\"c\""]);
    }
}
