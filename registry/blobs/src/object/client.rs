//! The client of the object storage: deadlines for every request, and answers that mean "later" or "full" recognised.

use std::error::Error;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{HeaderValue, IF_NONE_MATCH, RETRY_AFTER};
use http::{HeaderMap, Method, StatusCode};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use url::Url;

use crate::config::S3Config;
use crate::error::{Cause, StoreError};

/// Between two attempts there is at most this pause.
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// The deadline ends the attempts, not their number.
const RETRIES_MAX: usize = 1000;
/// What clients are told when the storage does not say how long it wants to be left alone.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(5);
/// So much of an answer is kept for people.
const SHOWN_BYTES: usize = 512;

/// A client for requests.
pub(super) fn build(config: &S3Config) -> Result<AmazonS3, StoreError> {
    let options = ClientOptions::new()
        .with_allow_http(config.allow_http)
        .with_connect_timeout(config.connect_timeout)
        .with_read_timeout(config.request_timeout)
        // Downloads take as long as the client takes; what may not happen is that nothing comes.
        .with_timeout_disabled();
    let retry = RetryConfig {
        backoff: BackoffConfig { max_backoff: BACKOFF_MAX, ..BackoffConfig::default() },
        max_retries: RETRIES_MAX,
        retry_timeout: config.retry_deadline,
    };
    let plain = config.endpoint.as_ref().is_some_and(|url| url.scheme() == "http");
    let builder = addressed(config, config.endpoint.as_ref())
        .with_client_options(options)
        .with_retry(retry)
        // TLS protects what is on its way; without it, the signature has to.
        .with_unsigned_payload(!plain)
        .with_disable_bulk_delete(!config.bulk_delete)
        .with_http_connector(Connector { timeout: config.request_timeout });
    builder.build().map_err(unusable)
}

/// A client that only signs URLs, for the address that clients know.
pub(super) fn build_signer(config: &S3Config) -> Result<AmazonS3, StoreError> {
    let address = config.redirect_endpoint.as_ref().or(config.endpoint.as_ref());
    let options = ClientOptions::new().with_allow_http(true);
    addressed(config, address).with_client_options(options).build().map_err(unusable)
}

fn addressed(config: &S3Config, endpoint: Option<&Url>) -> AmazonS3Builder {
    let builder = if config.access_key.is_empty() {
        AmazonS3Builder::from_env()
    } else {
        AmazonS3Builder::new()
            .with_access_key_id(&config.access_key)
            .with_secret_access_key(config.secret_key.expose().as_str())
    };
    let builder = builder
        .with_region(&config.region)
        .with_bucket_name(&config.bucket)
        .with_virtual_hosted_style_request(!config.path_style);
    match endpoint {
        None => builder,
        Some(url) => builder.with_endpoint(base(config, url)),
    }
}

/// The endpoint as the client wants it: without a slash at the end, and with the bucket when that stands in the host name.
fn base(config: &S3Config, url: &Url) -> String {
    let text = url.as_str().trim_end_matches('/');
    match text.split_once("://") {
        Some((scheme, rest)) if !config.path_style => format!("{scheme}://{}.{rest}", config.bucket),
        _ => text.to_owned(),
    }
}

fn unusable(error: object_store::Error) -> StoreError {
    StoreError::Setup { why: "the client of the object storage".to_owned(), source: Some(Cause::new(error)) }
}

/// What a failed request means.
pub(super) fn failed(doing: &'static str, key: &str, error: object_store::Error) -> StoreError {
    let mut source: Option<&(dyn Error + 'static)> = Some(&error);
    while let Some(cause) = source {
        if let Some(Overloaded { retry_after, .. }) = cause.downcast_ref() {
            let retry_after = *retry_after;
            return StoreError::Throttled { retry_after, source: Cause::new(error) };
        }
        if cause.is::<StorageFull>() {
            return StoreError::Full(Cause::new(error));
        }
        source = cause.source();
    }
    match error {
        object_store::Error::NotFound { .. } => StoreError::NotFound { what: key.to_owned() },
        error => StoreError::Object { doing, key: key.to_owned(), source: Cause::new(error) },
    }
}

/// The storage said to come back later: `SlowDown`, 503 or 429.
#[derive(Debug, thiserror::Error)]
#[error("the object storage answered {status}: {said}")]
struct Overloaded {
    status: StatusCode,
    said: String,
    retry_after: Duration,
}

/// The storage has no room.
#[derive(Debug, thiserror::Error)]
#[error("the object storage answered {status}: {said}")]
struct StorageFull {
    status: StatusCode,
    said: String,
}

/// The answer did not begin in time.
#[derive(Debug, thiserror::Error)]
#[error("no answer from the object storage within {0:?}")]
struct TimedOut(Duration);

#[derive(Debug)]
struct Connector {
    timeout: Duration,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let inner = ReqwestConnector::default().connect(options)?;
        Ok(HttpClient::new(Guarded { inner, timeout: self.timeout }))
    }
}

/// A client in front of another. What it reports as an error of kind `Request` is tried again, as nothing was done.
#[derive(Debug)]
struct Guarded {
    inner: HttpClient,
    timeout: Duration,
}

#[async_trait]
impl HttpService for Guarded {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let post = *request.method() == Method::POST;
        if post && request.uri().query().is_some_and(|query| query.starts_with("uploadId=")) {
            // The end of a multipart upload: an object that is there already is another upload's end, and stays.
            request.headers_mut().insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
        }
        let creates = *request.method() == Method::PUT && request.headers().contains_key(IF_NONE_MATCH);
        let answer = tokio::time::timeout(self.timeout, self.inner.execute(request)).await;
        let answer = answer.map_err(|_| HttpError::new(HttpErrorKind::Timeout, TimedOut(self.timeout)))?;
        let response = answer.map_err(|error| match error.kind() {
            // Storages close connections that were idle. It may be tried again: what is there then is compared.
            HttpErrorKind::Interrupted if creates => HttpError::new(HttpErrorKind::Request, error),
            _ => error,
        })?;
        let status = response.status();
        match status {
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                let retry_after = retry_after(response.headers());
                let said = shown(&self.body(response).await?.1);
                Err(HttpError::new(HttpErrorKind::Request, Overloaded { status, said, retry_after }))
            }
            StatusCode::INSUFFICIENT_STORAGE => {
                let said = shown(&self.body(response).await?.1);
                Err(HttpError::new(HttpErrorKind::Unknown, StorageFull { status, said }))
            }
            // These say what is the matter in the body only.
            StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::CONFLICT => {
                let (parts, body) = self.body(response).await?;
                if holds(&body, "QuotaExceeded") {
                    return Err(HttpError::new(HttpErrorKind::Unknown, StorageFull { status, said: shown(&body) }));
                }
                Ok(HttpResponse::from_parts(parts, body.into()))
            }
            // The answer to a long operation begins before its outcome is known, with 200.
            StatusCode::OK if post => {
                let (parts, body) = self.body(response).await?;
                if holds(&body, "<Code>SlowDown</Code>") {
                    let (said, retry_after) = (shown(&body), RETRY_AFTER_DEFAULT);
                    return Err(HttpError::new(HttpErrorKind::Request, Overloaded { status, said, retry_after }));
                }
                Ok(HttpResponse::from_parts(parts, body.into()))
            }
            _ => Ok(response),
        }
    }
}

impl Guarded {
    async fn body(&self, response: HttpResponse) -> Result<(http::response::Parts, Bytes), HttpError> {
        let (parts, body) = response.into_parts();
        let body = tokio::time::timeout(self.timeout, body.bytes()).await;
        let body = body.map_err(|_| HttpError::new(HttpErrorKind::Timeout, TimedOut(self.timeout)))??;
        Ok((parts, body))
    }
}

fn retry_after(headers: &HeaderMap) -> Duration {
    let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    seconds.map_or(RETRY_AFTER_DEFAULT, Duration::from_secs)
}

fn holds(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

fn shown(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[..body.len().min(SHOWN_BYTES)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let config = |path_style| S3Config { bucket: "b".to_owned(), path_style, ..S3Config::default() };
        let url = "https://s3.example.com:9000/".parse().unwrap();
        assert_eq!(base(&config(true), &url), "https://s3.example.com:9000");
        assert_eq!(base(&config(false), &url), "https://b.s3.example.com:9000");
    }

    #[test]
    fn causes_are_found_through_the_layers() {
        let wrapped = |error: HttpError| object_store::Error::Generic { store: "S3", source: Box::new(error) };
        let slow = Overloaded { status: StatusCode::OK, said: String::new(), retry_after: Duration::from_secs(7) };
        let error = failed("put", "k", wrapped(HttpError::new(HttpErrorKind::Request, slow)));
        assert_eq!((error.kind(), error.retry_after()), (proto::Kind::Throttled, Some(Duration::from_secs(7))));
        let full = StorageFull { status: StatusCode::INSUFFICIENT_STORAGE, said: String::new() };
        assert_eq!(
            failed("put", "k", wrapped(HttpError::new(HttpErrorKind::Unknown, full))).kind(),
            proto::Kind::NoSpace
        );
        let other = HttpError::new(HttpErrorKind::Timeout, TimedOut(Duration::ZERO));
        assert_eq!(failed("put", "k", wrapped(other)).kind(), proto::Kind::Unavailable);
    }
}
