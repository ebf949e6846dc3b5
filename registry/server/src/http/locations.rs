//! The `Location` of an answer: a path, or a whole URL where the configuration or a trusted proxy names one.

use ::http::{HeaderMap, HeaderName, HeaderValue};
use oci::{Digest, RepositoryName};

use super::{Call, value};
use crate::app::App;

const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// Longer ones are no host.
const HOST_BYTES_MAX: usize = 261;

pub(super) fn blob(app: &App, call: &Call, name: &RepositoryName, digest: &Digest) -> HeaderValue {
    value(format!("{}/v2/{name}/blobs/{digest}", base(app, call)))
}

pub(super) fn manifest(app: &App, call: &Call, name: &RepositoryName, digest: &Digest) -> HeaderValue {
    value(format!("{}/v2/{name}/manifests/{digest}", base(app, call)))
}

pub(super) fn upload(app: &App, call: &Call, name: &RepositoryName, session: &str) -> HeaderValue {
    value(format!("{}/v2/{name}/blobs/uploads/{session}", base(app, call)))
}

/// What stands before the path.
pub(super) fn base(app: &App, call: &Call) -> String {
    if let Some(url) = &app.config.external_url {
        return url.as_str().trim_end_matches('/').to_owned();
    }
    let trusted = call.peer.and_then(|peer| peer.ip());
    let trusted = trusted.is_some_and(|ip| app.config.trusted_proxies.iter().any(|network| network.contains(&ip)));
    if !trusted {
        return String::new();
    }
    let headers = &call.parts.headers;
    match (last(headers, FORWARDED_PROTO), last(headers, FORWARDED_HOST)) {
        (Some(scheme @ ("http" | "https")), Some(host)) if is_host(host) => format!("{scheme}://{host}"),
        _ => String::new(),
    }
}

/// The last entry of the last line: that is what the proxy has written, whether it adds an entry or a line. What stands before it, a client
/// may have sent.
fn last(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get_all(name).iter().next_back()?.to_str().ok()?.rsplit(',').next().map(str::trim)
}

/// A host with perhaps a port, and nothing that could end a URL's authority.
fn is_host(text: &str) -> bool {
    let right = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']');
    !text.is_empty() && text.len() <= HOST_BYTES_MAX && text.bytes().all(right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_choose_what_a_proxy_adds() {
        for (lines, expected) in [
            (&[][..], None),
            (&["proxy.example"], Some("proxy.example")),
            (&["evil.example, proxy.example"], Some("proxy.example")),
            (&["evil.example", "proxy.example"], Some("proxy.example")),
            (&["a.example, evil.example", "b.example,proxy.example "], Some("proxy.example")),
            (&["evil.example", "\u{fc}"], None),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(FORWARDED_HOST, HeaderValue::from_bytes(line.as_bytes()).unwrap());
            }
            assert_eq!(last(&headers, FORWARDED_HOST), expected, "{lines:?}");
        }
    }
}
