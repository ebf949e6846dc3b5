//! Headers between HTTP and the wire.

use http::{HeaderMap, HeaderName, HeaderValue, header};
use proto::wire;

/// Origin headers that describe the content and that every reader of it may see.
const DESCRIBING: [HeaderName; 9] = [
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::CONTENT_DISPOSITION,
    header::CONTENT_LANGUAGE,
    header::CACHE_CONTROL,
    header::EXPIRES,
    header::ETAG,
    header::LAST_MODIFIED,
    HeaderName::from_static("docker-content-digest"),
];

/// The headers of an origin's answer that describe its content.
pub(crate) fn describing(headers: &HeaderMap) -> Vec<(String, Vec<u8>)> {
    DESCRIBING
        .iter()
        .flat_map(|name| headers.get_all(name).iter().map(|value| (name.to_string(), value.as_bytes().to_vec())))
        .collect()
}

/// Headers for the wire.
#[must_use]
pub fn to_wire(headers: &HeaderMap) -> Vec<wire::Header> {
    headers
        .iter()
        .map(|(name, value)| wire::Header { name: name.to_string(), value: value.as_bytes().to_vec().into() })
        .collect()
}

/// Headers from the wire; what is no header is left out.
#[must_use]
pub fn from_wire(headers: &[wire::Header]) -> HeaderMap {
    headers
        .iter()
        .filter_map(|header| {
            let name = HeaderName::try_from(&header.name).ok()?;
            Some((name, HeaderValue::from_bytes(&header.value).ok()?))
        })
        .collect()
}

/// Headers kept beside a content, as a map.
pub(crate) fn from_kept(kept: &[(String, Vec<u8>)]) -> HeaderMap {
    kept.iter()
        .filter_map(|(name, value)| Some((HeaderName::try_from(name).ok()?, HeaderValue::from_bytes(value).ok()?)))
        .collect()
}
