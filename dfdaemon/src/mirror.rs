//! The registry mirror: which registry a request is for. Pure.

use http::uri::{PathAndQuery, Uri};
use percent_encoding::percent_decode_str;
use url::Url;

use crate::config::MirrorConfig;
use crate::passthrough::{docker_hub, is_docker_hub, upstream_url};
use crate::pattern::{HostPattern, InvalidPattern, split_authority};

/// Where mirrored requests go.
#[derive(Clone, Debug)]
pub struct Upstreams {
    default: Url,
    configured: Vec<(String, Url)>,
    allowed: Vec<HostPattern>,
}

/// A request names no registry it may.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadNamespace {
    /// `ns` is there more than once, or is no host.
    #[error("ns must be one host, with :port if wanted")]
    Malformed,
    /// The operator does not allow it.
    #[error("registry {0} is not in mirror.allow")]
    NotAllowed(String),
    /// The path makes no URL.
    #[error("the path makes no url")]
    Path,
}

impl Upstreams {
    /// Reads the configuration.
    ///
    /// # Errors
    /// When a pattern is none.
    pub fn new(config: &MirrorConfig) -> Result<Self, InvalidPattern> {
        Ok(Self {
            default: config.default.clone(),
            configured: config.upstreams.iter().map(|u| (u.host.to_ascii_lowercase(), upstream_url(u))).collect(),
            allowed: HostPattern::parse_all(&config.allow)?,
        })
    }

    /// The origin's URI for a request to the mirror. `fixed` = the registry of a listener of its own, which is the
    /// default there. `ns` is taken out; the rest of path and query stays as it is.
    ///
    /// # Errors
    /// See [`BadNamespace`].
    pub fn resolve(&self, request: &Uri, fixed: Option<&str>) -> Result<Uri, BadNamespace> {
        let (namespace, query) = take_ns(request.query())?;
        let base = match namespace.as_deref().or(fixed) {
            None => self.default.clone(),
            Some(host) => self.of_host(host)?,
        };
        let path = format!("{}{}", base.path().trim_end_matches('/'), request.path());
        let path_and_query = match query {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let authority = match base.port() {
            Some(port) => format!("{}:{port}", base.host_str().unwrap_or_default()),
            None => base.host_str().unwrap_or_default().to_owned(),
        };
        Uri::builder()
            .scheme(base.scheme())
            .authority(authority)
            .path_and_query(PathAndQuery::try_from(path_and_query).map_err(|_| BadNamespace::Path)?)
            .build()
            .map_err(|_| BadNamespace::Path)
    }

    fn of_host(&self, host: &str) -> Result<Url, BadNamespace> {
        let host = host.to_ascii_lowercase();
        if let Some((_, url)) = self.configured.iter().find(|(name, _)| *name == host) {
            return Ok(url.clone());
        }
        let (name, port) = split_authority(&host).ok_or(BadNamespace::Malformed)?;
        if !self.allowed.iter().any(|pattern| pattern.matches(name, port.unwrap_or(443))) {
            return Err(BadNamespace::NotAllowed(host));
        }
        if is_docker_hub(&host) {
            return Ok(docker_hub());
        }
        Url::parse(&format!("https://{host}")).map_err(|_| BadNamespace::Malformed)
    }
}

/// The value of `ns`, and the query without it.
fn take_ns(query: Option<&str>) -> Result<(Option<String>, Option<String>), BadNamespace> {
    let Some(query) = query else { return Ok((None, None)) };
    let is_ns = |pair: &&str| *pair == "ns" || pair.starts_with("ns=");
    let (named, rest): (Vec<&str>, Vec<&str>) = query.split('&').partition(is_ns);
    let namespace = match named.as_slice() {
        [] => return Ok((None, Some(query.to_owned()))),
        [one] => one.strip_prefix("ns=").unwrap_or_default(),
        _ => return Err(BadNamespace::Malformed),
    };
    let namespace = percent_decode_str(namespace).decode_utf8().map_err(|_| BadNamespace::Malformed)?;
    if split_authority(&namespace).is_none() {
        return Err(BadNamespace::Malformed);
    }
    Ok((Some(namespace.into_owned()), (!rest.is_empty()).then(|| rest.join("&"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstreams() -> Upstreams {
        let config: MirrorConfig = toml::from_str(
            r#"
            allow = ["*.io", "docker.io", "registry.local:5000"]
            upstreams = [
                { host = "corp", url = "https://harbor.corp/base/" },
                { host = "127.0.0.1:5000", plain_http = true },
            ]
            "#,
        )
        .unwrap();
        Upstreams::new(&config).unwrap()
    }

    fn at(uri: &str, fixed: Option<&str>) -> Result<String, BadNamespace> {
        upstreams().resolve(&uri.parse().unwrap(), fixed).map(|uri| uri.to_string())
    }

    #[test]
    fn where_requests_go() {
        for (from, to) in [
            ("/v2/", "https://registry-1.docker.io/v2/"),
            ("/v2/?ns=docker.io", "https://registry-1.docker.io/v2/"),
            ("/v2/a/manifests/b?ns=quay.io", "https://quay.io/v2/a/manifests/b"),
            ("/v2/a/tags/list?n=5&ns=quay.io&last=%2f", "https://quay.io/v2/a/tags/list?n=5&last=%2f"),
            ("/v2/a/tags/list?n=5", "https://registry-1.docker.io/v2/a/tags/list?n=5"),
            ("/v2/?ns=corp", "https://harbor.corp/base/v2/"),
            ("/v2/?ns=127.0.0.1%3A5000", "http://127.0.0.1:5000/v2/"),
            ("/v2/?ns=registry.local:5000", "https://registry.local:5000/v2/"),
            ("/v2/?nsx=1", "https://registry-1.docker.io/v2/?nsx=1"),
        ] {
            assert_eq!(at(from, None).as_deref(), Ok(to), "{from}");
        }
        assert_eq!(at("/v2/", Some("corp")).as_deref(), Ok("https://harbor.corp/base/v2/"));
        assert_eq!(at("/v2/?ns=quay.io", Some("corp")).as_deref(), Ok("https://quay.io/v2/"));
    }

    #[test]
    fn bad_namespaces() {
        for bad in
            ["?ns=", "?ns", "?ns=a&ns=b", "?ns=a/b", "?ns=u@h", "?ns=http://h", "?ns=h%3Fx", "?ns=%ff", "?ns=h:0x1"]
        {
            assert_eq!(at(&format!("/v2/{bad}"), None), Err(BadNamespace::Malformed), "{bad}");
        }
        assert_eq!(at("/v2/?ns=evil.com", None), Err(BadNamespace::NotAllowed("evil.com".into())));
        assert_eq!(
            at("/v2/?ns=registry.local:5001", None),
            Err(BadNamespace::NotAllowed("registry.local:5001".into()))
        );
    }
}
