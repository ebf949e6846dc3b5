//! One request: what it is about, and who answers it.

use http::header::{self, HeaderValue};
use http::uri::Uri;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use proto::{Digest, Kind, TaskSpec};
use tracing::{debug, warn};
use url::Url;

use super::answers::{self, Style};
use super::{Scope, Server, Via};
use crate::blob_path::BlobPath;
use crate::body::{self, Body, Watched};
use crate::downloads::{DownloadError, OpenRequest, OpenedTask};
use crate::headers;
use crate::metrics::{BytesFrom, Outcome, Way};
use crate::mirror::BadNamespace;
use crate::rules::Decision;
use crate::serve;

/// A request that is to be served from a task.
struct P2p {
    spec: TaskSpec,
    /// Where to ask when that does not work.
    uri: Uri,
    way: Way,
    direct_way: Way,
    style: Style,
}

// === impl Server ===

impl Server {
    /// Answers one request, whatever it is.
    pub(super) async fn handle(&self, request: Request<Incoming>, via: Via) -> Response<Body> {
        debug!(peer = %via.peer, method = %request.method(), host = request.uri().host(), path = request.uri().path(), "request");
        if headers::went_through(request.headers(), &self.0.pseudonym) {
            return self.own(508, Kind::Invalid, "this request has been here before: it runs in a circle", Style::Text);
        }
        if let Scope::Intercepted { host, name, port } = via.scope.clone() {
            return Box::pin(self.intercepted(request, &host, &name, port)).await;
        }
        if request.method() == Method::CONNECT || request.uri().scheme().is_some() {
            if !matches!(via.scope, Scope::Main) {
                return self.own(400, Kind::Invalid, "this listener is a registry mirror, not a proxy", Style::Text);
            }
            if let Some(refusal) = self.check_credentials(&request) {
                return refusal;
            }
            if request.method() == Method::CONNECT {
                return Box::pin(self.connect(request, via)).await;
            }
            let uri = request.uri().clone();
            return Box::pin(self.proxied(request, uri)).await;
        }
        let fixed = match via.scope {
            Scope::Registry(host) => Some(host),
            _ => None,
        };
        let path = request.uri().path();
        if path == "/v2" || path.starts_with("/v2/") {
            return Box::pin(self.mirrored(request, fixed.as_deref())).await;
        }
        if path == "/healthz" && matches!(*request.method(), Method::GET | Method::HEAD) {
            self.0.metrics.count(Way::Own, Outcome::Ok);
            return Response::new(body::full("ok\n"));
        }
        self.own(404, Kind::NotFound, "this is a registry mirror (/v2/) and an http proxy", Style::Text)
    }

    /// Inside of an intercepted connection: the host is the one the client connected to, or the request is misdirected.
    async fn intercepted(&self, request: Request<Incoming>, host: &str, name: &str, port: u16) -> Response<Body> {
        let authority = request
            .uri()
            .authority()
            .map(|authority| authority.as_str().to_owned())
            .or_else(|| request.headers().get(header::HOST)?.to_str().ok().map(str::to_owned));
        let Some(authority) = authority else {
            return self.own(400, Kind::Invalid, "the request names no host", Style::Text);
        };
        let matching = crate::pattern::split_authority(&authority).is_some_and(|(asked, asked_port)| {
            (asked.eq_ignore_ascii_case(host) || asked.eq_ignore_ascii_case(name)) && asked_port.unwrap_or(443) == port
        });
        if !matching {
            return self.own(421, Kind::Invalid, "the request is for another host than the connection", Style::Text);
        }
        if request.method() == Method::CONNECT {
            return self.own(405, Kind::Invalid, "no tunnels inside of a tunnel", Style::Text);
        }
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        match Uri::builder().scheme("https").authority(authority).path_and_query(path).build() {
            Ok(uri) => self.proxied(request, uri).await,
            Err(_) => self.own(400, Kind::Invalid, "the request makes no url", Style::Text),
        }
    }

    /// A request that names its origin in full.
    async fn proxied(&self, request: Request<Incoming>, uri: Uri) -> Response<Body> {
        let style = if uri.path().starts_with("/v2/") { Style::Oci } else { Style::Text };
        let Ok(url) = Url::parse(&uri.to_string()) else {
            return self.own(400, Kind::Invalid, "the request makes no url", style);
        };
        if !matches!(url.scheme(), "http" | "https") {
            return self.own(400, Kind::Invalid, "only http and https are spoken here", style);
        }
        // RFC 9110 section 4.2.4.
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return self.own(400, Kind::Invalid, "credentials in a url are not accepted: send a header", style);
        }
        let has_body = !request.body().is_end_stream();
        match self.0.rules.decide(request.method(), &url, has_body) {
            Decision::Refuse { rule } => self.own(403, Kind::Forbidden, &format!("refused by rule {rule:?}"), style),
            Decision::BadRedirect { rule } => {
                self.own(500, Kind::Internal, &format!("rule {rule:?} makes no http url of this one"), style)
            }
            Decision::Direct(other) => match other.map_or(Ok(uri), |url| url.as_str().parse()) {
                Ok(uri) => self.direct(request, uri, Way::ProxyDirect, style).await,
                Err(_) => self.own(400, Kind::Invalid, "the request makes no url", style),
            },
            Decision::P2p(spec) => match spec.url.as_str().parse() {
                Ok(uri) => {
                    let p2p = P2p { spec: *spec, uri, way: Way::ProxyP2p, direct_way: Way::ProxyDirect, style };
                    self.p2p(request, p2p).await
                }
                Err(_) => self.own(400, Kind::Invalid, "the request makes no url", style),
            },
        }
    }

    /// A request to the mirror.
    async fn mirrored(&self, request: Request<Incoming>, fixed: Option<&str>) -> Response<Body> {
        let uri = match self.0.upstreams.resolve(request.uri(), fixed) {
            Ok(uri) => uri,
            Err(error) => {
                let (status, kind) = match error {
                    BadNamespace::NotAllowed(_) => (403, Kind::Forbidden),
                    _ => (400, Kind::Invalid),
                };
                return self.own(status, kind, &error.to_string(), Style::Oci);
            }
        };
        let is_plain_get = request.method() == Method::GET && request.body().is_end_stream();
        let digest = BlobPath::parse(request.uri().path()).map(|blob| blob.digest).filter(|_| is_plain_get);
        let (Some(digest), Ok(url)) = (digest, Url::parse(&uri.to_string())) else {
            return self.direct(request, uri, Way::MirrorDirect, Style::Oci).await;
        };
        let spec = TaskSpec::of_blob(url, digest);
        let p2p = P2p { spec, uri, way: Way::MirrorBlob, direct_way: Way::MirrorDirect, style: Style::Oci };
        self.p2p(request, p2p).await
    }

    /// Serves a task, or goes directly when the P2P side cannot serve at all.
    async fn p2p(&self, request: Request<Incoming>, p2p: P2p) -> Response<Body> {
        let port = p2p.spec.url.port_or_known_default().unwrap_or_default();
        if let Err(error) = self.0.passthrough.dialer().check_literal(p2p.spec.url.host_str().unwrap_or_default(), port)
        {
            self.0.metrics.count(p2p.way, Outcome::Refused);
            return answers::problem(error.http_status(), error.kind(), &error.to_string(), p2p.style);
        }
        let task = p2p.spec.id();
        match self.serve_task(&request, &p2p).await {
            Ok(response) => response,
            Err(error) if self.may_fall_back(&error) => {
                warn!(%task, %error, "the p2p side cannot serve: asking the origin directly");
                self.0.metrics.fell_back();
                self.direct(request, p2p.uri, p2p.direct_way, p2p.style).await
            }
            Err(error) => {
                debug!(%task, %error, kind = %error.kind(), "a task cannot be served");
                let response = answers::download_failed(&error, &task.to_string(), p2p.style);
                self.0.metrics.count(p2p.way, Outcome::of(response.status()));
                response
            }
        }
    }

    async fn serve_task(&self, request: &Request<Incoming>, p2p: &P2p) -> Result<Response<Body>, DownloadError> {
        let mut to_origin = headers::for_task(request.headers());
        headers::add_via(&mut to_origin, request.version(), &self.0.pseudonym);
        let mut open = OpenRequest::new(p2p.spec.clone(), to_origin);
        open.wanted = serve::wanted(request.headers());
        let mut task = self.0.downloads.open(open).await?;
        if let Some(digest) = p2p.spec.digest.as_ref().filter(|_| p2p.spec.content_addressed) {
            name_blob(&mut task, digest);
        }
        let wait = self.0.config.limits.first_byte_wait;
        serve::respond(request.method(), request.headers(), &task, wait, (p2p.way, &self.0.metrics)).await
    }

    /// Only when nobody said no: an answer of the origin stands.
    fn may_fall_back(&self, error: &DownloadError) -> bool {
        self.0.config.proxy.fallback_direct && error.kind() == Kind::Unavailable && error.origin().is_none()
    }

    /// Passes a request on to its origin, and the answer back.
    async fn direct(&self, request: Request<Incoming>, uri: Uri, way: Way, style: Style) -> Response<Body> {
        let timeout = self.0.config.limits.body_timeout;
        let metrics = &self.0.metrics;
        let (mut parts, body) = request.into_parts();
        let version = parts.version;
        headers::strip_hop_by_hop(&mut parts.headers);
        // Answered by our own server as soon as the body is read.
        parts.headers.remove(header::EXPECT);
        headers::add_via(&mut parts.headers, version, &self.0.pseudonym);
        let body = if body.is_end_stream() {
            body::empty()
        } else {
            Watched::new(body, timeout, metrics.bytes_counter(BytesFrom::Client)).boxed_unsync()
        };
        match self.0.passthrough.send(Request::from_parts(parts, body), uri).await {
            Ok(response) => {
                let (mut parts, body) = response.into_parts();
                headers::strip_hop_by_hop(&mut parts.headers);
                headers::add_via(&mut parts.headers, parts.version, &self.0.pseudonym);
                metrics.count(way, Outcome::of(parts.status));
                parts.version = http::Version::default();
                parts.extensions.clear();
                let counter = metrics.bytes_counter(BytesFrom::Origin);
                Response::from_parts(parts, Watched::new(body, timeout, counter).boxed_unsync())
            }
            Err(error) => {
                let explained = error.explain();
                debug!(error = explained, "an origin gave no answer");
                let response = answers::problem(error.http_status(), error.kind(), &explained, style);
                metrics.count(way, Outcome::of(response.status()));
                response
            }
        }
    }

    /// 407 unless the user may use the proxy.
    fn check_credentials(&self, request: &Request<Incoming>) -> Option<Response<Body>> {
        let expected = self.0.credentials.as_ref()?.as_bytes();
        let given = request.headers().get(header::PROXY_AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
        // The scheme's case does not matter, that of the rest does.
        let (scheme, secret) = given.split_at_checked(6).unwrap_or_default();
        if scheme.eq_ignore_ascii_case(b"basic ") && answers::is_same_secret(secret, &expected[6..]) {
            return None;
        }
        let mut response = self.own(407, Kind::Unauthorized, "the proxy asks for a name and a password", Style::Text);
        let challenge = HeaderValue::from_static("Basic realm=\"skimmer\", charset=\"UTF-8\"");
        response.headers_mut().insert(header::PROXY_AUTHENTICATE, challenge);
        Some(response)
    }

    /// An answer without any origin.
    pub(super) fn own(&self, status: u16, kind: Kind, message: &str, style: Style) -> Response<Body> {
        let response = answers::problem(status, kind, message, style);
        self.0.metrics.count(Way::Own, Outcome::of(response.status()));
        response
    }
}

/// What a registry says of every blob, also when the bytes came from elsewhere.
fn name_blob(task: &mut OpenedTask, digest: &Digest) {
    let fields = &mut task.info.headers;
    if let Ok(value) = HeaderValue::try_from(digest.to_string()) {
        fields.insert("docker-content-digest", value);
    }
    if !fields.contains_key(header::ETAG)
        && let Ok(value) = HeaderValue::try_from(format!("\"{digest}\""))
    {
        fields.insert(header::ETAG, value);
    }
    fields.entry(header::CONTENT_TYPE).or_insert(HeaderValue::from_static("application/octet-stream"));
}

/// 200 to a `CONNECT`.
pub(super) fn connected() -> Response<Body> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::OK;
    response
}
