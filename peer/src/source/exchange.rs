//! Requests and redirects, until an answer is there.

use std::collections::HashSet;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{LOCATION, PROXY_AUTHORIZATION};
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::capture_connection;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::TokioTimer;
use proto::Validators;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

use super::answer::{self, Asked, Judged};
use super::connect::{ConnectFailure, Connector, Destination, Dialer};
use super::guard::Guard;
use super::headers::{self, CallerHeaders};
use super::slots::Slot;
use super::{
    OriginRequest, OriginResponse, RedactedUrl, RedirectProblem, Source, SourceConfig, SourceError, Waiting,
    is_signed_url, redact_url,
};

pub(super) type HttpClient = Client<Connector, Empty<Bytes>>;

/// Headers of an answer over HTTP/1, give or take one read (the buffer grows by doubling), and the largest piece of a body.
const HEADERS_BYTES_MAX: usize = 256 * 1024;
/// Header lines of an answer over HTTP/1.
const HEADERS_MAX: usize = 200;
/// Headers of an answer over HTTP/2.
const H2_HEADERS_BYTES_MAX: u32 = 64 * 1024;
/// What may be under way to us per HTTP/2 stream and connection: 4 MiB fill 400 Mb/s at a round trip of 80 ms.
const H2_STREAM_WINDOW_BYTES: u32 = 4 << 20;
const H2_CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Locations beyond this length serve no purpose.
const LOCATION_LEN_MAX: usize = 16 * 1024;

/// Runs the connections' tasks until the source is dropped.
#[derive(Clone)]
struct Tracked {
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Tracked {
    fn execute(&self, task: F) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }
}

pub(super) fn http_client(
    config: &SourceConfig,
    dialer: Arc<Dialer>,
    guard: Arc<Guard>,
    tasks: TaskTracker,
    stop: CancellationToken,
) -> HttpClient {
    Client::builder(Tracked { tasks, stop })
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(config.idle_timeout)
        .pool_max_idle_per_host(config.idle_connections_per_host_max)
        .http1_max_buf_size(HEADERS_BYTES_MAX)
        .http1_max_headers(HEADERS_MAX)
        .http2_max_header_list_size(H2_HEADERS_BYTES_MAX)
        .http2_initial_stream_window_size(H2_STREAM_WINDOW_BYTES)
        .http2_initial_connection_window_size(H2_CONNECTION_WINDOW_BYTES)
        .build(Connector { dialer, guard })
}

/// A request on its way from one URL to the next.
struct Journey {
    /// What is asked now: http or https, no user information, no fragment.
    url: Url,
    caller: CallerHeaders,
    /// `Range` and conditions.
    conditions: HeaderMap,
    /// Whether `url` is still of the origin the caller named, and always was.
    at_home: bool,
    visited: HashSet<Url>,
}

impl Source {
    pub(super) async fn fetch(&self, method: &Method, request: OriginRequest) -> Result<OriginResponse, SourceError> {
        let known = request.if_none_match.as_ref();
        match self.fetch_once(method, &request, known).await? {
            Judged::Answer(response) => Ok(*response),
            // The date was not enough to tell: it answered for another content than the one that is known.
            Judged::UnlikelyNotModified => match self.fetch_once(method, &request, None).await? {
                Judged::Answer(response) => Ok(*response),
                Judged::UnlikelyNotModified => Err(SourceError::protocol(
                    request.url.host_str().unwrap_or_default(),
                    "304 to a request without a condition",
                )),
            },
        }
    }

    async fn fetch_once(
        &self,
        method: &Method,
        request: &OriginRequest,
        known: Option<&Validators>,
    ) -> Result<Judged, SourceError> {
        let client = self.client(&request.guard);
        let caller = CallerHeaders::sort(&request.headers, &request.url, &self.0.user_agent);
        let used_credentials = caller.credentials || is_signed_url(&request.url);
        let range = request.range.filter(|_| *method == Method::GET);
        let mut conditions = HeaderMap::new();
        if let Some(range) = range {
            headers::ask_range(&mut conditions, range, request.if_range.as_ref());
        }
        let conditional = known.is_some_and(|known| headers::ask_if_changed(&mut conditions, known));
        let mut journey =
            Journey { url: self.actual(&request.url)?, caller, conditions, at_home: true, visited: HashSet::new() };
        loop {
            let to = Destination::of_url(&journey.url);
            let slot = self.0.slots.take(&to).await?;
            let response = self.exchange(&client, method, &journey, &to).await?;
            tracing::debug!(url = %redact_url(&journey.url), %method, status = response.status().as_u16(), version = ?response.version(), "origin answered");
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                let asked = Asked {
                    method,
                    range,
                    if_range: request.if_range.as_ref(),
                    known: known.filter(|_| conditional),
                    used_credentials,
                };
                return answer::judge(self, asked, journey.url, to.host, response, slot).await;
            }
            self.follow(&mut journey, &response)?;
            drop::<(Response<Incoming>, Slot)>((response, slot));
        }
    }

    /// The URL that is really asked: `plain_http` applied, user information and fragment gone.
    fn actual(&self, url: &Url) -> Result<Url, SourceError> {
        let wrong = |what| SourceError::BadRequest { url: RedactedUrl::of(url), what };
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("its scheme is neither http nor https"));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(wrong("it names no host"));
        }
        let mut actual = url.clone();
        let plain = url.scheme() == "https"
            && self.0.dialer.rule(&Destination::of_url(url)).is_some_and(|(_, rule)| rule.options.plain_http);
        if plain {
            actual.set_scheme("http").map_err(|()| wrong("its scheme cannot be http"))?;
        }
        actual.set_username("").and_then(|()| actual.set_password(None)).map_err(|()| wrong("it names no host"))?;
        actual.set_fragment(None);
        Ok(actual)
    }

    async fn exchange(
        &self,
        client: &HttpClient,
        method: &Method,
        journey: &Journey,
        to: &Destination,
    ) -> Result<Response<Incoming>, SourceError> {
        let config = &self.0.config;
        let uri: Uri = journey.url.as_str().parse().map_err(|_| SourceError::BadRequest {
            url: RedactedUrl::of(&journey.url),
            what: "it holds characters that a request line cannot",
        })?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri;
        let sent = request.headers_mut();
        sent.extend(journey.caller.everywhere.clone());
        if journey.at_home {
            sent.extend(journey.caller.first_origin.clone());
        }
        sent.extend(journey.conditions.clone());
        if !to.secure
            && let Some(basic) = self.0.dialer.proxy_for(to).and_then(|proxy| headers::basic_of(&proxy.0))
        {
            sent.insert(PROXY_AUTHORIZATION, basic);
        }
        let mut connection = capture_connection(&mut request);
        let mut answer = pin!(client.request(request));
        let connected = async {
            connection.wait_for_connection_metadata().await;
        };
        // Connecting has its own deadline; this one only starts when the request is on its way.
        let result = tokio::select! {
            biased;
            result = &mut answer => result,
            () = connected => tokio::time::timeout(config.header_timeout, &mut answer).await.map_err(|_| SourceError::Timeout {
                host: to.host.clone(),
                waiting: Waiting::Headers,
                after: config.header_timeout,
            })?,
        };
        result.map_err(|error| failure(&to.host, error))
    }

    /// Turns the journey to where a redirect leads.
    fn follow(&self, journey: &mut Journey, response: &Response<Incoming>) -> Result<(), SourceError> {
        let refuse = |problem| SourceError::Redirects { url: RedactedUrl::of(&journey.url), problem };
        let limit = self.0.config.redirects_max;
        if journey.visited.len() >= limit as usize {
            return Err(refuse(RedirectProblem::TooMany { limit }));
        }
        let location = response.headers().get(LOCATION).filter(|value| value.len() <= LOCATION_LEN_MAX);
        // Some servers send other bytes than ASCII, and mean UTF-8.
        let location = location.and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
        let named =
            location.and_then(|text| journey.url.join(text).ok()).ok_or_else(|| refuse(RedirectProblem::Location))?;
        if !matches!(named.scheme(), "http" | "https") {
            return Err(refuse(RedirectProblem::Scheme));
        }
        let next = self.actual(&named)?;
        // A host that is marked `plain_http` was chosen by the operator, whichever scheme leads to it.
        let chosen =
            || self.0.dialer.rule(&Destination::of_url(&named)).is_some_and(|(_, rule)| rule.options.plain_http);
        if journey.url.scheme() == "https" && next.scheme() == "http" && !self.0.config.allow_downgrade && !chosen() {
            return Err(refuse(RedirectProblem::Downgrade));
        }
        if next == journey.url || journey.visited.contains(&next) {
            return Err(refuse(RedirectProblem::Loop));
        }
        // Once away from home, what was left there is not picked up again: whoever redirects back chose that URL.
        journey.at_home &= next.origin() == journey.url.origin();
        tracing::debug!(from = %redact_url(&journey.url), to = %redact_url(&next), at_home = journey.at_home, "following redirect");
        let previous = std::mem::replace(&mut journey.url, next);
        journey.visited.insert(previous);
        Ok(())
    }
}

/// What a failed exchange means.
fn failure(host: &str, error: ClientError) -> SourceError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        if let Some(failure) = current.downcast_ref::<ConnectFailure>() {
            return failure.clone().into();
        }
        if let Some(http) = current.downcast_ref::<hyper::Error>() {
            if http.is_parse_too_large() {
                return SourceError::protocol(host, "the headers of the answer are too large");
            }
            if http.is_parse() {
                return SourceError::protocol(host, format!("the answer makes no sense: {http}"));
            }
        }
        cause = current.source();
    }
    SourceError::Lost { host: host.into(), source: Box::new(error) }
}
