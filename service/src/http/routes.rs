//! The route table: (method, pattern) → handler, behind one warp filter.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{BoxStream, StreamExt as _};
use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use proto::Kind;
use proto::api::ApiError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use warp::Filter as _;
use warp::filters::BoxedFilter;

use super::Peer;
use crate::config::{ByteSize, Problems, Validate};

/// What handlers and filters answer with.
pub type Response = warp::reply::Response;

type BodyStream = BoxStream<'static, Result<Bytes, Box<dyn std::error::Error + Send + Sync>>>;
type HandlerFuture = Pin<Box<dyn Future<Output = Result<Response, ApiFailure>> + Send>>;
type Handler = Arc<dyn Fn(Call) -> HandlerFuture + Send + Sync>;

/// What a JSON body may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct BodyLimits {
    /// Bytes.
    pub max_body: ByteSize,
    /// Time for the whole body to arrive.
    #[serde(with = "crate::config::duration")]
    pub body_timeout: Duration,
}

/// One request, and what the pattern took out of its path.
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Its path, as sent.
    pub path: String,
    /// Its query, as sent; empty when there is none.
    pub query: String,
    /// Its header.
    pub headers: HeaderMap,
    /// Who sent it, when it came through [`super::Server`].
    pub peer: Option<Peer>,
    params: Vec<(String, String)>,
    body: BodyStream,
    limits: BodyLimits,
}

/// A request that fails: what sort, which status, and what to tell.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiFailure {
    kind: Kind,
    status: StatusCode,
    message: String,
    allow: Option<String>,
}

/// Handlers by method and pattern. Patterns are `matchit`'s: `/clusters/{cluster}`, `/files/{*path}`.
#[derive(Clone, Default)]
pub struct Routes {
    table: matchit::Router<BTreeMap<&'static str, Handler>>,
    patterns: Vec<(&'static str, BTreeMap<&'static str, Handler>)>,
    limits: BodyLimits,
}

impl Default for BodyLimits {
    fn default() -> Self {
        Self { max_body: ByteSize::mib(1), body_timeout: Duration::from_secs(10) }
    }
}

impl Validate for BodyLimits {
    fn validate(&self, problems: &mut Problems) {
        problems.check(self.max_body.as_u64() > 0, "max_body", "must be above zero");
        problems.check(!self.body_timeout.is_zero(), "body_timeout", "must be longer than zero");
    }
}

// === answers ===

/// A JSON answer.
///
/// # Errors
/// When the value has no JSON form, which is a defect.
pub fn json<T: Serialize>(status: StatusCode, value: &T) -> Result<Response, ApiFailure> {
    let body = serde_json::to_vec(value)
        .map_err(|error| ApiFailure::new(Kind::Internal, format!("the answer has no json form: {error}")))?;
    let mut response = Response::new(Bytes::from(body).into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// An answer without a body.
#[must_use]
pub fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Bytes::new().into());
    *response.status_mut() = status;
    response
}

// === impl ApiFailure ===

impl ApiFailure {
    /// A failure with the status its kind has.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(kind.http_status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self { kind, status, message: message.into(), allow: None }
    }

    /// With a status more exact than its kind's.
    #[must_use]
    pub const fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }

    /// What sort of failure.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// The status it is answered with.
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// The answer: [`ApiError`] as JSON.
    #[must_use]
    pub fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(kind = self.kind.label(), message = self.message, "request failed");
        }
        let error = ApiError { kind: self.kind.label().to_owned(), message: self.message };
        let mut response = json(self.status, &error).unwrap_or_else(|_| empty(StatusCode::INTERNAL_SERVER_ERROR));
        if let Some(allow) = self.allow.and_then(|allow| HeaderValue::try_from(allow).ok()) {
            response.headers_mut().insert(ALLOW, allow);
        }
        response
    }
}

// === impl Call ===

impl Call {
    /// A call made by hand, for tests of handlers.
    #[must_use]
    pub fn new(method: Method, path_and_query: &str, headers: HeaderMap, body: Bytes) -> Self {
        let (path, query) = path_and_query.split_once('?').unwrap_or((path_and_query, ""));
        let body = futures_util::stream::iter([Ok(body)]).boxed();
        let (path, query) = (path.to_owned(), query.to_owned());
        Self { method, path, query, headers, peer: None, params: Vec::new(), body, limits: BodyLimits::default() }
    }

    /// What stands for `{name}` in the path, decoded.
    ///
    /// # Errors
    /// Only when the route's pattern has no such name, which is a defect.
    pub fn param(&self, name: &str) -> Result<&str, ApiFailure> {
        self.params
            .iter()
            .find_map(|(key, value)| (key == name).then_some(value.as_str()))
            .ok_or_else(|| ApiFailure::new(Kind::Internal, format!("the route has no parameter {name}")))
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is no JSON of that form, has another content type, is too large, or too slow.
    pub async fn json<T: DeserializeOwned>(&mut self) -> Result<T, ApiFailure> {
        let content_type = self.headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        // A form on a foreign web page can post text, but not this type.
        if !essence.eq_ignore_ascii_case("application/json") {
            return Err(ApiFailure::new(Kind::Invalid, "the content-type application/json is expected")
                .with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let body = self.bytes().await?;
        serde_json::from_slice(&body)
            .map_err(|error| ApiFailure::new(Kind::Invalid, format!("the body is not as expected: {error}")))
    }

    /// The whole body.
    ///
    /// # Errors
    /// When it is larger than allowed, takes longer than allowed, or breaks off.
    pub async fn bytes(&mut self) -> Result<Bytes, ApiFailure> {
        let limit = self.limits.max_body;
        let too_large = || {
            ApiFailure::new(Kind::Invalid, format!("the body is larger than {limit}"))
                .with_status(StatusCode::PAYLOAD_TOO_LARGE)
        };
        let announced = self.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        if announced.is_some_and(|length| length > limit.as_u64()) {
            return Err(too_large());
        }
        let body = &mut self.body;
        let collect = async move {
            let mut all = BytesMut::new();
            while let Some(chunk) = body.next().await {
                let chunk =
                    chunk.map_err(|error| ApiFailure::new(Kind::Invalid, format!("the body broke off: {error}")))?;
                if (all.len() + chunk.len()) as u64 > limit.as_u64() {
                    return Err(too_large());
                }
                all.extend_from_slice(&chunk);
            }
            Ok(all.freeze())
        };
        tokio::time::timeout(self.limits.body_timeout, collect).await.unwrap_or_else(|_| {
            Err(ApiFailure::new(Kind::Invalid, "the body took too long").with_status(StatusCode::REQUEST_TIMEOUT))
        })
    }

    /// The body as it arrives, for handlers with limits of their own.
    pub fn take_body(&mut self) -> BodyStream {
        std::mem::replace(&mut self.body, futures_util::stream::empty().boxed())
    }
}

// === impl Routes ===

impl Routes {
    /// An empty table.
    #[must_use]
    pub fn new(limits: BodyLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Adds a handler. A handler for GET answers HEAD as well.
    ///
    /// # Panics
    /// When the pattern is malformed or clashes with another: the table is written in code, so the first test sees it.
    #[must_use]
    pub fn on<F, Fut, E>(mut self, method: &Method, pattern: &'static str, handler: F) -> Self
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Response, E>> + Send + 'static,
        E: Into<ApiFailure>,
    {
        let handler: Handler = Arc::new(move |call| {
            let answer = handler(call);
            Box::pin(async move { answer.await.map_err(Into::into) })
        });
        let method = known(method);
        match self.patterns.iter_mut().find(|(known, _)| *known == pattern) {
            Some((_, methods)) => {
                methods.insert(method, handler);
            }
            None => self.patterns.push((pattern, BTreeMap::from([(method, handler)]))),
        }
        self.table = matchit::Router::new();
        for (pattern, methods) in &self.patterns {
            let inserted = self.table.insert(*pattern, methods.clone());
            assert!(inserted.is_ok(), "route {pattern}: {inserted:?}", inserted = inserted.err());
        }
        self
    }

    /// Every (method, pattern), for documents and checks.
    pub fn list(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        self.patterns.iter().flat_map(|(pattern, methods)| methods.keys().map(|method| (*method, *pattern)))
    }

    /// Finds the handler and runs it.
    pub async fn call(&self, mut call: Call) -> Response {
        call.limits = self.limits;
        let Ok(found) = self.table.at(&call.path) else {
            return ApiFailure::new(Kind::NotFound, format!("there is no {}", call.path)).into_response();
        };
        let mut params = Vec::with_capacity(found.params.len());
        for (name, value) in found.params.iter() {
            let Ok(value) = percent_encoding::percent_decode_str(value).decode_utf8() else {
                return ApiFailure::new(Kind::Invalid, format!("{name} is no utf-8")).into_response();
            };
            params.push((name.to_owned(), value.into_owned()));
        }
        let method = if call.method == Method::HEAD { "GET" } else { call.method.as_str() };
        let Some(handler) = found.value.get(method) else {
            let allow = found.value.keys().copied().collect::<Vec<_>>().join(", ");
            let mut failure = ApiFailure::new(Kind::Invalid, format!("allowed here: {allow}"))
                .with_status(StatusCode::METHOD_NOT_ALLOWED);
            failure.allow = Some(allow);
            return failure.into_response();
        };
        call.params = params;
        let handler = Arc::clone(handler);
        handler(call).await.unwrap_or_else(ApiFailure::into_response)
    }

    /// One filter for everything below `/<first>`, for example `api`.
    #[must_use]
    pub fn into_filter(self, first: &'static str) -> BoxedFilter<(Response,)> {
        let routes = Arc::new(self);
        warp::path(first)
            .and(warp::method())
            .and(warp::path::full())
            .and(warp::query::raw().or(warp::any().map(String::new)).unify())
            .and(warp::header::headers_cloned())
            .and(warp::ext::optional::<Peer>())
            .and(warp::body::stream())
            .then(move |method, path: warp::path::FullPath, query, headers, peer, body| {
                let routes = Arc::clone(&routes);
                let path = path.as_str().to_owned();
                let body = to_bytes(body);
                async move {
                    let limits = routes.limits;
                    routes.call(Call { method, path, query, headers, peer, params: Vec::new(), body, limits }).await
                }
            })
            .boxed()
    }
}

fn to_bytes<B: warp::Buf>(
    body: impl futures_util::Stream<Item = Result<B, warp::Error>> + Send + 'static,
) -> BodyStream {
    body.map(|chunk| match chunk {
        Ok(mut chunk) => Ok(chunk.copy_to_bytes(chunk.remaining())),
        Err(error) => Err(error.into()),
    })
    .boxed()
}

fn known(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "PUT" => "PUT",
        "POST" => "POST",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        other => panic!("no routes for method {other}"),
    }
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.list()).finish()
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Headers may hold credentials.
        f.debug_struct("Call")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
