//! A small HTTP client for config-service.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::header::CONTENT_TYPE;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use proto::Kind;
use proto::api::{ApiError, NearestAnswer, NearestRequest, Registered, SupernodeEntry};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use url::Url;

use super::{LocatorConfig, LocatorError};

/// An answer may not be longer, in bytes.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Shorter than config-service's own idle timeout, so that we are the ones to close.
const IDLE: Duration = Duration::from_secs(60);

/// A config-service did not help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// It cannot be reached, or the connection broke.
    #[error("cannot ask {endpoint}")]
    Unreachable {
        /// Which.
        endpoint: Url,
        /// Why.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// It took longer than the timeout.
    #[error("{endpoint} did not answer within {timeout:?}")]
    Timeout {
        /// Which.
        endpoint: Url,
        /// How long it had.
        timeout: Duration,
    },
    /// It refused.
    #[error("{endpoint} answered {status}: {message}")]
    Refused {
        /// Which.
        endpoint: Url,
        /// Its status.
        status: StatusCode,
        /// What it said.
        message: String,
    },
    /// Its answer makes no sense.
    #[error("{endpoint} gave an answer that makes no sense")]
    Nonsense {
        /// Which.
        endpoint: Url,
        /// Why.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// There is no config-service to ask.
    #[error("no config-service is configured")]
    Nobody,
}

impl AskError {
    /// What sort of failure.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Refused { status, .. } => match status.as_u16() {
                404 => Kind::NotFound,
                409 => Kind::Conflict,
                401 => Kind::Unauthorized,
                403 => Kind::Forbidden,
                429 => Kind::Throttled,
                400..=499 => Kind::Invalid,
                _ => Kind::Unavailable,
            },
            Self::Nobody => Kind::Invalid,
            _ => Kind::Unavailable,
        }
    }
}

/// Asks the config-services.
#[derive(Clone)]
pub(super) struct Client {
    http: HyperClient<HttpsConnector<HttpConnector>, Full<Bytes>>,
    endpoints: Arc<[Url]>,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(config: &LocatorConfig) -> Result<Self, LocatorError> {
        for endpoint in &config.endpoints {
            if !matches!(endpoint.scheme(), "http" | "https") || endpoint.host().is_none() || endpoint.query().is_some()
            {
                return Err(LocatorError::Endpoint { endpoint: endpoint.clone() });
            }
        }
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(config.timeout));
        let https = HttpsConnectorBuilder::new()
            .with_tls_config(tls(config)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let http = HyperClient::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .build(https);
        Ok(Self { http, endpoints: config.endpoints.clone().into(), timeout: config.timeout })
    }

    /// The first answer of the config-services in order; of their failures the last.
    pub(super) async fn nearest(&self, host: &NearestRequest) -> Result<NearestAnswer, AskError> {
        let mut failure = AskError::Nobody;
        for endpoint in self.endpoints.iter() {
            let asked: Result<NearestAnswer, _> = self.ask(endpoint, Method::POST, &["nearest"], Some(host)).await;
            match asked {
                Ok(answer) if answer.supernodes.is_empty() => {
                    failure =
                        AskError::Nonsense { endpoint: endpoint.clone(), source: "it names no supernodes".into() };
                }
                Ok(answer) => return Ok(answer),
                Err(error) => failure = error,
            }
            tracing::debug!(error = &failure as &dyn StdError, "asking the next config-service");
        }
        Err(failure)
    }

    /// Registers with all of them.
    pub(super) async fn register(&self, cluster: &str, entry: &SupernodeEntry) -> Vec<Result<Registered, AskError>> {
        let path = ["clusters", cluster, "supernodes"];
        join_all(self.endpoints.iter().map(|endpoint| self.ask(endpoint, Method::PUT, &path, Some(entry)))).await
    }

    /// Leaves all of them.
    pub(super) async fn leave(&self, cluster: &str, id: &str) -> Vec<Result<(), AskError>> {
        let path = ["clusters", cluster, "supernodes", id];
        join_all(self.endpoints.iter().map(async |endpoint| {
            match self.send(endpoint, Method::DELETE, &path, None).await {
                Ok(_) => Ok(()),
                // It has forgotten us already.
                Err(error) if error.kind() == Kind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        }))
        .await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        endpoint: &Url,
        method: Method,
        path: &[&str],
        body: Option<&impl Serialize>,
    ) -> Result<T, AskError> {
        let nonsense =
            |source: serde_json::Error| AskError::Nonsense { endpoint: endpoint.clone(), source: source.into() };
        let body = body.map(serde_json::to_vec).transpose().map_err(nonsense)?;
        let answer = self.send(endpoint, method, path, body).await?;
        serde_json::from_slice(&answer).map_err(nonsense)
    }

    async fn send(
        &self,
        endpoint: &Url,
        method: Method,
        path: &[&str],
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, AskError> {
        let exchange = self.exchange(endpoint, method, path, body);
        tokio::time::timeout(self.timeout, Box::pin(exchange))
            .await
            .unwrap_or_else(|_| Err(AskError::Timeout { endpoint: endpoint.clone(), timeout: self.timeout }))
    }

    async fn exchange(
        &self,
        endpoint: &Url,
        method: Method,
        path: &[&str],
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, AskError> {
        let unreachable =
            |source: Box<dyn StdError + Send + Sync>| AskError::Unreachable { endpoint: endpoint.clone(), source };
        let mut url = endpoint.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            // Names from outside are encoded here, so they cannot change the path.
            segments.pop_if_empty().extend(["api", "skimmer", "v1"]).extend(path);
        }
        let request = Request::builder()
            .method(method)
            .uri(url.as_str())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| unreachable(error.into()))?;
        let response = self.http.request(request).await.map_err(|error| unreachable(error.into()))?;
        let status = response.status();
        let body =
            Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await.map_err(unreachable)?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let message = serde_json::from_slice::<ApiError>(&body)
            .map_or_else(|_| "no reason given".to_owned(), |error| error.message);
        Err(AskError::Refused { endpoint: endpoint.clone(), status, message })
    }
}

/// The system's certificate authorities take milliseconds to read, so only for `https`.
fn tls(config: &LocatorConfig) -> Result<rustls::ClientConfig, LocatorError> {
    let mut roots = rustls::RootCertStore::empty();
    if config.endpoints.iter().any(|endpoint| endpoint.scheme() == "https") {
        let native = rustls_native_certs::load_native_certs();
        for error in native.errors {
            tracing::warn!(%error, "a certificate authority of the system cannot be read");
        }
        roots.add_parsable_certificates(native.certs);
        if let Some(path) = &config.ca_file {
            let own = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            for certificate in own.map_err(|error| LocatorError::Tls(error.into()))? {
                roots.add(certificate).map_err(|error| LocatorError::Tls(error.into()))?;
            }
        }
    }
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| LocatorError::Tls(error.into()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("endpoints", &self.endpoints)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}
