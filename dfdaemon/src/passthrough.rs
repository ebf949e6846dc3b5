//! Requests that go to their origin as they are: bodies and credentials untouched, both ways streaming.

use std::collections::{HashMap, HashSet};
use std::error::Error as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::header::{HOST, HeaderValue};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use proto::Kind;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;
use url::Url;

use crate::body::Body;
use crate::config::{Config, Upstream};
use crate::dial::{DialError, Dialer};

mod insecure;

/// The HTTP client towards origins.
#[derive(Clone, Debug)]
pub struct Passthrough {
    usual: HttpClient,
    /// Hosts with TLS settings of their own, by lower-case host and port.
    special: Arc<HashMap<(String, u16), HttpClient>>,
    dialer: Dialer,
    timeout: Duration,
}

type HttpClient = Client<HttpsConnector<Dialer>, Body>;

/// The client cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PassthroughError {
    /// A file with certificates cannot be read.
    #[error("cannot read certificates from {path}")]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::pki_types::pem::Error,
    },
    /// It holds no certificate, or one that is none.
    #[error("{path} holds no usable certificate")]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// rustls refused its settings.
    #[error("tls cannot be set up")]
    Tls(#[from] rustls::Error),
}

/// An origin gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// No connection.
    #[error(transparent)]
    Dial(DialError),
    /// The connection broke, TLS failed, or it does not speak HTTP.
    #[error("the origin gave no valid answer")]
    Http(#[source] hyper_util::client::legacy::Error),
    /// It took too long.
    #[error("the origin sent no headers within {0:?}")]
    Timeout(Duration),
}

/// Connections kept open per origin while unused.
const IDLE_PER_HOST_MAX: usize = 32;
/// How long they are kept; below the 60 to 75 s after which usual servers close theirs.
const IDLE_TIMEOUT: Duration = Duration::from_secs(50);

// === impl Passthrough ===

impl Passthrough {
    /// A client with the system's roots and the settings of the configured upstreams. Reads files; called at start.
    ///
    /// # Errors
    /// When a CA file cannot be used.
    pub fn new(config: &Config) -> Result<Self, PassthroughError> {
        let limits = &config.limits;
        let mut trusted: HashSet<(String, u16)> =
            config.mirror.upstreams.iter().map(upstream_url).filter_map(|url| authority_of(&url)).collect();
        trusted.extend(authority_of(&config.mirror.default));
        let dialer = Dialer::new(config.origins.allow_addresses.clone(), trusted, limits.connect_timeout);

        let native = rustls_native_certs::load_native_certs();
        for error in &native.errors {
            warn!(%error, "a system certificate cannot be read");
        }
        let mut roots = RootCertStore::empty();
        let (_, ignored) = roots.add_parsable_certificates(native.certs);
        if roots.is_empty() {
            warn!(ignored, "the system has no root certificates: https origins without a ca of their own will fail");
        }
        let mut special = HashMap::new();
        for upstream in &config.mirror.upstreams {
            let tls = match &upstream.ca {
                Some(ca) => verifying(with_ca(&roots, ca)?)?,
                None if upstream.insecure => {
                    warn!(host = upstream.host, "the certificate of this registry is not checked");
                    insecure::config()?
                }
                None => continue,
            };
            if let Some(authority) = authority_of(&upstream_url(upstream)) {
                special.insert(authority, client(tls, &dialer));
            }
        }
        Ok(Self {
            usual: client(verifying(roots)?, &dialer),
            special: Arc::new(special),
            dialer,
            timeout: limits.origin_timeout,
        })
    }

    /// What connects to origins, for tunnels.
    #[must_use]
    pub const fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Sends a request to this absolute URI, with its `Host`, and gives the answer with a streaming body.
    ///
    /// # Errors
    /// When no answer came.
    pub async fn send(&self, mut request: Request<Body>, uri: Uri) -> Result<Response<Incoming>, SendError> {
        let host = uri.host().ok_or(SendError::Dial(DialError::NoHost))?;
        let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = uri.port_u16().unwrap_or(default);
        // A literal address never reaches the resolver.
        self.dialer.check_literal(host, port).map_err(SendError::Dial)?;
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        let client = self.special.get(&(bare, port)).unwrap_or(&self.usual).clone();

        let authority = if port == default { host.to_owned() } else { format!("{host}:{port}") };
        if let Ok(value) = HeaderValue::try_from(authority) {
            request.headers_mut().insert(HOST, value);
        }
        *request.uri_mut() = uri;
        // The client's own version is chosen per connection.
        *request.version_mut() = http::Version::HTTP_11;
        match tokio::time::timeout(self.timeout, client.request(request)).await {
            Ok(result) => result.map_err(SendError::from_client),
            Err(_) => Err(SendError::Timeout(self.timeout)),
        }
    }
}

/// Where an upstream is.
pub(crate) fn upstream_url(upstream: &Upstream) -> Url {
    upstream.url.clone().unwrap_or_else(|| {
        let scheme = if upstream.plain_http { "http" } else { "https" };
        if is_docker_hub(&upstream.host) && !upstream.plain_http {
            return docker_hub();
        }
        // `validate` saw that it is a host; otherwise nothing can be reached there, and that is told when it is tried.
        Url::parse(&format!("{scheme}://{}", upstream.host)).unwrap_or_else(|_| docker_hub())
    })
}

/// Docker Hub's name in references is not the name of its registry.
pub(crate) fn is_docker_hub(host: &str) -> bool {
    ["docker.io", "index.docker.io"].iter().any(|name| host.eq_ignore_ascii_case(name))
}

pub(crate) fn docker_hub() -> Url {
    Url::parse("https://registry-1.docker.io").expect("a constant that a test parses")
}

/// Lower-case host without brackets, and port.
fn authority_of(url: &Url) -> Option<(String, u16)> {
    let host = url.host_str()?.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    Some((host, url.port_or_known_default()?))
}

fn client(tls: ClientConfig, dialer: &Dialer) -> HttpClient {
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_all_versions()
        .wrap_connector(dialer.clone());
    Client::builder(TokioExecutor::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_PER_HOST_MAX)
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .set_host(false)
        .build(connector)
}

fn verifying(roots: RootCertStore) -> Result<ClientConfig, rustls::Error> {
    Ok(ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}

fn with_ca(system: &RootCertStore, path: &Path) -> Result<RootCertStore, PassthroughError> {
    let mut roots = system.clone();
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| PassthroughError::Ca { path: path.to_owned(), source })?;
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 { Err(PassthroughError::NoCertificate { path: path.to_owned() }) } else { Ok(roots) }
}

// === impl SendError ===

impl SendError {
    /// Finds the reason that our own connector gave.
    fn from_client(error: hyper_util::client::legacy::Error) -> Self {
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(dial) = inner.downcast_ref::<DialError>() {
                return match dial {
                    DialError::Refused { host, address } => {
                        Self::Dial(DialError::Refused { host: host.clone(), address: *address })
                    }
                    DialError::Loop { host } => Self::Dial(DialError::Loop { host: host.clone() }),
                    DialError::Timeout { host, timeout } => {
                        Self::Dial(DialError::Timeout { host: host.clone(), timeout: *timeout })
                    }
                    // The rest has a source that cannot be cloned; the chain below `Http` tells it.
                    _ => Self::Http(error),
                };
            }
            cause = inner.source();
        }
        Self::Http(error)
    }

    /// What sort of failure it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Dial(error) => error.kind(),
            Self::Http(_) | Self::Timeout(_) => Kind::Unavailable,
        }
    }

    /// The status a proxy answers with.
    #[must_use]
    pub const fn http_status(&self) -> u16 {
        match self {
            Self::Dial(error) => error.http_status(),
            Self::Http(_) => 502,
            Self::Timeout(_) => 504,
        }
    }

    /// With all causes, for people.
    #[must_use]
    pub fn explain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = self.source();
        while let Some(inner) = cause {
            let inner_text = inner.to_string();
            if !text.ends_with(&inner_text) {
                text = format!("{text}: {inner_text}");
            }
            cause = inner.source();
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_upstreams_are() {
        let at = |text: &str| upstream_url(&toml::from_str(text).unwrap()).to_string();
        assert_eq!(at("host = 'docker.io'"), "https://registry-1.docker.io/");
        assert_eq!(at("host = 'r:5000'\nplain_http = true"), "http://r:5000/");
        assert_eq!(at("host = 'r'\nurl = 'http://elsewhere/base'"), "http://elsewhere/base");
        assert_eq!(authority_of(&Url::parse("https://[::1]/").unwrap()), Some(("::1".into(), 443)));
    }
}
