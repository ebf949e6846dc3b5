//! The registry's protocol over HTTP: a request becomes a [`Call`], a handler answers it.

mod blobs;
mod body;
mod failure;
mod lists;
mod locations;
mod log;
mod manifests;
mod receiving;
mod referrers;
mod uploads;

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ::http::header::{ALLOW, CONTENT_LENGTH, EXPECT, HOST, IF_MATCH, IF_NONE_MATCH};
use ::http::request::Parts;
use ::http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};
use oci::route::{self, Route};
use oci::{Condition, ErrorCode, Query, RepositoryName};
use service::http::{Peer, SendFile, client_address};

use crate::access::{Action, Caller};
use crate::app::App;
use crate::client::Client;
pub(crate) use body::Body;
pub(crate) use failure::Failure;
use log::{Asked, Logged};
pub(crate) use receiving::Receiving;

/// Old docker clients look for it.
const API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const OCI_TAG: HeaderName = HeaderName::from_static("oci-tag");
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// Bytes of a body that are taken although nobody wants them, and for how long.
const DRAIN_BYTES: usize = 16 * 1024 * 1024;
/// When to come back while the database is not the store's.
const RESTORED_SOON: Duration = Duration::from_secs(5);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// One request, and whoever makes it.
pub(crate) struct Call {
    pub(crate) parts: Parts,
    pub(crate) peer: Option<Peer>,
    /// Who is counted for it.
    pub(crate) client: Option<Client>,
    pub(crate) caller: Caller,
}

type Answer = Result<Response<Body>, Failure>;

/// The service of the registry's listeners.
#[derive(Clone, Debug)]
pub(crate) struct Registry(pub(crate) Arc<App>);

impl hyper::service::Service<Request<Incoming>> for Registry {
    type Response = Response<Logged>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let app = Arc::clone(&self.0);
        Box::pin(async move { Ok(respond(&app, request).await) })
    }
}

async fn respond(app: &Arc<App>, request: Request<Incoming>) -> Response<Logged> {
    let started = Instant::now();
    let (parts, incoming) = request.into_parts();
    let peer = parts.extensions.get::<Peer>().copied();
    let address = peer.and_then(|peer| Some(client_address(peer.ip()?, &parts.headers, &app.config.trusted_proxies)));
    let asked = app.config.access_log.then(|| Asked::new(&parts, peer, address, started));
    let route = if has_host(&parts) { route::parse(parts.uri.path()).map_err(Failure::from) } else { Err(no_host()) };
    let operation = route.as_ref().map_or("none", |route| operation(&parts.method, route));
    let client = address.map(Client::at);
    let admitted = match route {
        Ok(route) => {
            app.access.caller(&parts.headers, client).await.map(|caller| (route, caller)).map_err(Failure::from)
        }
        Err(failure) => Err(failure),
    };
    let mut caller = None;
    let answer = match admitted {
        Ok((route, named)) => {
            caller = Some(named.clone());
            let call = Call { parts, peer, client, caller: named };
            answer(app, call, route, incoming).await
        }
        Err(failure) => {
            let_go(&parts, incoming);
            Err(failure)
        }
    };
    let (mut response, code) = match answer {
        Ok(response) => (response, ""),
        Err(failure) => {
            let code = failure.code();
            (failure.into_response(), code)
        }
    };
    let length = response.body().len();
    let headers = response.headers_mut();
    headers.insert(API_VERSION, HeaderValue::from_static("registry/2.0"));
    // An answer to HEAD says the length of the body it has not.
    if !headers.contains_key(CONTENT_LENGTH) {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    app.metrics.answered(operation, response.status(), started.elapsed());
    let caller = match &caller {
        Some(Caller::Named(name)) => Some(&**name),
        _ => None,
    };
    Logged::answer(response, asked, caller, code)
}

/// Whether it says once for which host it is, as HTTP/1.1 demands (RFC 9112 section 3.2).
fn has_host(parts: &Parts) -> bool {
    parts.version != Version::HTTP_11 || parts.headers.get_all(HOST).iter().count() == 1
}

fn no_host() -> Failure {
    Failure::with_status(400, ErrorCode::Unsupported, "a request of HTTP/1.1 has one Host header")
}

/// Reads are answered where they came in. What changes something runs in a task of its own: a client that goes away must not
/// end it between two steps that belong together.
async fn answer(app: &Arc<App>, call: Call, route: Route, mut incoming: Incoming) -> Answer {
    if call.is_read() {
        let_go(&call.parts, incoming);
        return read(app, &call, &route).await;
    }
    let task = Arc::clone(app);
    let task = app.changing.spawn(async move {
        let answer = Box::pin(change(&task, &call, &route, &mut incoming)).await;
        if answer.as_ref().is_err_and(|failure| !failure.is_silence()) {
            drain(incoming).await;
        }
        answer
    });
    task.await.unwrap_or_else(|error| {
        tracing::error!(%error, "a request broke off");
        Err(Failure::new(ErrorCode::Unknown, "the request broke off inside"))
    })
}

/// Takes a body of which nothing is wanted, while the answer is on its way: one that is refused for its header need not wait for its body.
fn let_go(parts: &Parts, incoming: Incoming) {
    // HTTP/2 says by itself that nothing more is wanted, and so does an answer in place of "100 Continue", which the first look at the body
    // would send.
    let comes = !incoming.is_end_stream() && parts.version < Version::HTTP_2 && !parts.headers.contains_key(EXPECT);
    if comes {
        tokio::spawn(drain(incoming));
    }
}

/// Takes what is left of a body that will not be used, within limits: a client that is still sending may not look at the answer before,
/// and a connection that is closed on it would take the answer away.
async fn drain(mut incoming: Incoming) {
    let take = async {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = incoming.frame().await {
            let len = frame.data_ref().map_or(0, bytes::Bytes::len);
            let Some(rest) = left.checked_sub(len) else { return };
            left = rest;
        }
    };
    // Whoever sends more, or slower, finds the connection closed.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, take).await;
}

/// What a metric calls it.
fn operation(method: &Method, route: &Route) -> &'static str {
    match (route, method.as_str()) {
        (Route::Base, _) => "ping",
        (Route::Catalog, _) => "catalog",
        (Route::Tags { .. }, _) => "tags",
        (Route::Referrers { .. }, _) => "referrers",
        (Route::Manifest { .. }, "GET") => "manifest_get",
        (Route::Manifest { .. }, "HEAD") => "manifest_head",
        (Route::Manifest { .. }, "PUT") => "manifest_put",
        (Route::Manifest { .. }, _) => "manifest_delete",
        (Route::Blob { .. }, "GET") => "blob_get",
        (Route::Blob { .. }, "HEAD") => "blob_head",
        (Route::Blob { .. }, _) => "blob_delete",
        (Route::Uploads { .. }, _) => "upload_post",
        (Route::Upload { .. }, "PATCH") => "upload_patch",
        (Route::Upload { .. }, "PUT") => "upload_put",
        (Route::Upload { .. }, "DELETE") => "upload_delete",
        (Route::Upload { .. }, _) => "upload_get",
    }
}

async fn read(app: &App, call: &Call, route: &Route) -> Answer {
    match route {
        Route::Base => {
            may(app, call, Action::Ping, None)?;
            Ok(json(StatusCode::OK, "{}".into()))
        }
        Route::Catalog => {
            may(app, call, Action::Catalog, None)?;
            lists::catalog(app, call).await
        }
        Route::Tags { name } => {
            may(app, call, Action::Pull, Some(name))?;
            lists::tags(app, call, name).await
        }
        Route::Referrers { name, digest } => {
            may(app, call, Action::Pull, Some(name))?;
            referrers::list(app, call, name, digest).await
        }
        Route::Blob { name, digest } => {
            may(app, call, Action::Pull, Some(name))?;
            blobs::get(app, call, name, digest).await
        }
        Route::Manifest { name, reference } => {
            may(app, call, Action::Pull, Some(name))?;
            manifests::get(app, call, name, reference).await
        }
        Route::Upload { name, session } => {
            may(app, call, Action::Push, Some(name))?;
            uploads::status(app, call, name, session).await
        }
        Route::Uploads { .. } => Err(not_allowed(route)),
    }
}

async fn change(app: &App, call: &Call, route: &Route, incoming: &mut Incoming) -> Answer {
    match (call.parts.method.as_str(), route) {
        ("DELETE", Route::Blob { name, digest }) => {
            may(app, call, Action::Delete, Some(name))?;
            blobs::delete(app, call, name, digest).await
        }
        ("DELETE", Route::Manifest { name, reference }) => {
            may(app, call, Action::Delete, Some(name))?;
            manifests::delete(app, call, name, reference).await
        }
        ("PUT", Route::Manifest { name, reference }) => {
            may(app, call, Action::Push, Some(name))?;
            manifests::put(app, call, name, reference, incoming).await
        }
        ("POST", Route::Uploads { name }) => {
            may(app, call, Action::Push, Some(name))?;
            uploads::begin(app, call, name, incoming).await
        }
        ("PATCH", Route::Upload { name, session }) => {
            may(app, call, Action::Push, Some(name))?;
            uploads::patch(app, call, name, session, incoming).await
        }
        ("PUT", Route::Upload { name, session }) => {
            may(app, call, Action::Push, Some(name))?;
            uploads::put(app, call, name, session, incoming).await
        }
        ("DELETE", Route::Upload { name, session }) => {
            may(app, call, Action::Push, Some(name))?;
            uploads::cancel(app, name, session).await
        }
        _ => Err(not_allowed(route)),
    }
}

fn may(app: &App, call: &Call, action: Action, name: Option<&RepositoryName>) -> Result<(), Failure> {
    app.access.may(&call.caller, action, name)?;
    if app.tie.holds() {
        return Ok(());
    }
    let message = "the database is being restored";
    Err(Failure::later(503, ErrorCode::Unavailable, message, RESTORED_SOON))
}

fn not_allowed(route: &Route) -> Failure {
    let allow = match route {
        Route::Base | Route::Catalog | Route::Tags { .. } | Route::Referrers { .. } => "GET, HEAD",
        Route::Blob { .. } => "GET, HEAD, DELETE",
        Route::Manifest { .. } => "GET, HEAD, PUT, DELETE",
        Route::Uploads { .. } => "POST",
        Route::Upload { .. } => "GET, HEAD, PATCH, PUT, DELETE",
    };
    Failure::new(ErrorCode::Unsupported, format!("allowed here: {allow}"))
        .header(ALLOW, HeaderValue::from_static(allow))
}

// === impl Call ===

impl Call {
    /// The parameters of the URL.
    pub(crate) fn query(&self) -> Result<Query<'_>, Failure> {
        Ok(Query::parse(self.parts.uri.query().unwrap_or_default())?)
    }

    /// The text of a header; what is no text counts as absent.
    pub(crate) fn header(&self, name: HeaderName) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    /// What it expects to find. A value that is no text names nothing that could be there.
    pub(crate) fn condition(&self) -> Condition {
        let texts = |name| self.parts.headers.get_all(name).iter().map(|value| value.to_str().unwrap_or_default());
        Condition::parse(texts(IF_MATCH), texts(IF_NONE_MATCH))
    }

    /// `Content-Length`.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH)?.parse().ok()
    }

    /// The connection's way of sending files, if it has one.
    pub(crate) fn sendfile(&self) -> Option<SendFile> {
        self.parts.extensions.get().cloned()
    }

    /// GET and HEAD change nothing, and have no body.
    fn is_read(&self) -> bool {
        matches!(self.parts.method, Method::GET | Method::HEAD)
    }

    pub(crate) fn is_head(&self) -> bool {
        self.parts.method == Method::HEAD
    }
}

/// A JSON answer.
fn json(status: StatusCode, body: bytes::Bytes) -> Response<Body> {
    let mut response = Response::new(Body::Bytes(body));
    *response.status_mut() = status;
    response.headers_mut().insert(::http::header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer without a body.
fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// Drops the body where the method was HEAD, and keeps its length.
fn for_head(mut response: Response<Body>) -> Response<Body> {
    let length = response.body().len();
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    *response.body_mut() = Body::empty();
    response
}

/// A value that is made of our own characters.
fn value(text: impl AsRef<str>) -> HeaderValue {
    HeaderValue::try_from(text.as_ref()).expect("digests, names, tags and paths are printable ASCII")
}
