//! Back to the origin: how a node reads from HTTP and HTTPS servers.
//!
//! A [`Source`] makes one request at a time what it should be and nothing else: it follows redirects, keeps credentials
//! at home, asks the [`Guard`] about every address it dials, and tells the answers apart. It decides neither what is
//! fetched nor when; [`RetryPolicy`] is there for whoever does. [`list`] reads the folder pages of nginx and Apache.
//!
//! What a caller can rely on:
//! - A body ends without an error only when every byte that was announced has come.
//! - [`OriginResponse::range`] is what the body *is*, whatever was asked for: an origin that ignores `Range` is seen as such.
//! - The bytes are the origin's: nothing is decompressed, and `Accept-Encoding` is `identity` unless the caller sends one.
//! - `Authorization`, cookies and every other header that may hold a secret go to the first origin only.
//! - No log line, error or debug output holds a header's value, user information, or a secret of a query.
//!
//! Not here: other schemes, caching, the choice of pieces.

mod answer;
mod body;
mod config;
mod connect;
mod error;
mod exchange;
mod guard;
mod headers;
mod listing;
mod redact;
mod retry;
mod slots;
mod tls;
mod tunnel;

#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Method, StatusCode};
use parking_lot::Mutex;
use proto::{ByteRange, Validators};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use url::Url;

pub use body::OriginBody;
pub use config::{ConfigProblem, HostOptions, ProxyUrl, SourceConfig};
pub use connect::{Resolve, SystemResolver};
pub use error::{ANSWER_BODY_MAX, OriginAnswer, RedirectProblem, SourceError, Waiting};
pub use guard::{AddressClass, Guard};
pub use listing::{Globs, ListRequest, ListedFile, Listing, ListingError, list};
pub use redact::{RedactedUrl, is_signed_url, redact_url};
pub use retry::{Decision, RetryPolicy, is_worth_retrying};

use connect::Dialer;
use exchange::HttpClient;
use slots::Slots;

/// The way to all HTTP and HTTPS origins: a client with its connections and limits. Cheap to clone; when the last
/// clone and the last body are gone, so are the connections.
#[derive(Clone)]
pub struct Source(Arc<Inner>);

struct Inner {
    config: SourceConfig,
    user_agent: HeaderValue,
    dialer: Arc<Dialer>,
    /// One client, and so one pool of connections, per guard.
    clients: Mutex<Vec<(Arc<Guard>, HttpClient)>>,
    slots: Slots,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What is wanted from an origin.
#[derive(Clone)]
pub struct OriginRequest {
    /// Where; user information becomes `Authorization: Basic` for this host.
    pub url: Url,
    /// The caller's own headers, credentials among them. Headers of one connection, conditions and `Range` are left
    /// out; those have the fields below. `Host` replaces the URL's, so that whoever passes on another request's
    /// headers takes it out first.
    pub headers: HeaderMap,
    /// The part that is wanted; not for [`Source::head`].
    pub range: Option<ByteRange>,
    /// Send the part only if the content is still this one, else the whole (`If-Range`).
    pub if_range: Option<Validators>,
    /// Send nothing if the content is still this one (`If-None-Match`, `If-Modified-Since`).
    pub if_none_match: Option<Validators>,
    /// Which addresses may be reached.
    pub guard: Guard,
}

/// An origin's answer: the content, a part of it, or that it has not changed.
pub struct OriginResponse {
    /// Where it came from in the end, without user information. A redirect's signature may stand in it: [`redact_url`] before it is shown.
    pub url: Url,
    /// 200, 206 or 304.
    pub status: StatusCode,
    /// Its end-to-end headers.
    pub headers: HeaderMap,
    /// What tells this content from a later one; `length` is that of the whole.
    pub validators: Validators,
    /// What part the body is; `None` for the whole, whatever was asked for.
    pub range: Option<ByteRange>,
    /// Length of this body in bytes, when it was announced; after `head` what a body would have.
    pub length: Option<u64>,
    /// Whether the origin sends parts.
    pub accepts_ranges: bool,
    /// The content is still the one of `if_none_match`; there is no body.
    pub not_modified: bool,
    /// Whether something was sent that the origin may have granted access for: `Authorization`, a cookie, any header
    /// not known to be harmless, or a signature in the caller's URL.
    pub used_credentials: bool,
    /// The bytes.
    pub body: OriginBody,
}

/// Guards differ by configuration, not by request; a caller that makes them up would defeat the pooling of connections.
const CLIENTS_MAX: usize = 16;

// === impl Source ===

impl Source {
    /// A source with these settings. Reads the certificate files they name.
    ///
    /// # Errors
    /// [`SourceError::Config`] with everything that is wrong.
    pub fn new(config: SourceConfig) -> Result<Self, SourceError> {
        Self::with_resolver(config, SystemResolver)
    }

    /// A source that finds addresses in its own way.
    ///
    /// # Errors
    /// [`SourceError::Config`] with everything that is wrong.
    pub fn with_resolver(config: SourceConfig, resolver: impl Resolve) -> Result<Self, SourceError> {
        let rules = config.check().map_err(|problems| SourceError::Config { problems })?;
        let user_agent = HeaderValue::from_str(&config.user_agent).expect("checked with the rest of the settings");
        let dialer = Dialer {
            resolver: Arc::new(resolver),
            tls: tls::TlsConfigs::new(config.http2),
            rules,
            proxy: config.proxy.clone(),
            connect_timeout: config.connect_timeout,
        };
        let slots = Slots::new(config.requests_max, config.requests_per_host_max, config.slot_timeout);
        Ok(Self(Arc::new(Inner {
            config,
            user_agent,
            dialer: Arc::new(dialer),
            clients: Mutex::default(),
            slots,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })))
    }

    /// The settings it was made with.
    #[must_use]
    pub fn config(&self) -> &SourceConfig {
        &self.0.config
    }

    /// Asks for the content, or a part of it. Returns when the headers of the answer are there.
    ///
    /// # Errors
    /// Everything [`SourceError`] tells apart. A 304 is none when it was asked for, nor is a 200 to a request with a range.
    pub async fn get(&self, request: OriginRequest) -> Result<OriginResponse, SourceError> {
        self.fetch(&Method::GET, request).await
    }

    /// Asks what a `get` of the whole would answer. The body is empty.
    ///
    /// # Errors
    /// As [`Source::get`]. Some origins answer `HEAD` with 403, 405 or 501 where `GET` works.
    pub async fn head(&self, request: OriginRequest) -> Result<OriginResponse, SourceError> {
        self.fetch(&Method::HEAD, request).await
    }

    /// [`Source::get`], again after a failure as the policy says. `seed` draws the waits. A body that breaks off
    /// later is its reader's affair.
    ///
    /// # Errors
    /// The last failure.
    pub async fn get_with_retry(
        &self,
        request: OriginRequest,
        policy: &RetryPolicy,
        seed: u64,
    ) -> Result<OriginResponse, SourceError> {
        let mut attempt = 1;
        loop {
            let error = match self.get(request.clone()).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            match policy.decide(attempt, &error, seed) {
                Decision::GiveUp => return Err(error),
                Decision::Retry { after } => {
                    tracing::info!(url = %redact_url(&request.url), attempt, ?after, %error, "origin request failed, trying again");
                    tokio::time::sleep(after).await;
                    attempt += 1;
                }
            }
        }
    }

    /// Closes all connections, bodies under way included, and waits until they are gone.
    pub async fn close(&self) {
        self.0.stop.cancel();
        self.0.clients.lock().clear();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn client(&self, guard: &Guard) -> HttpClient {
        let inner = &self.0;
        let mut clients = inner.clients.lock();
        if let Some((_, client)) = clients.iter().find(|(known, _)| **known == *guard) {
            return client.clone();
        }
        if clients.len() >= CLIENTS_MAX {
            clients.remove(0);
        }
        let guard = Arc::new(guard.clone());
        let client = exchange::http_client(
            &inner.config,
            inner.dialer.clone(),
            guard.clone(),
            inner.tasks.clone(),
            inner.stop.clone(),
        );
        clients.push((guard, client.clone()));
        client
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("config", &self.0.config).finish_non_exhaustive()
    }
}

// === impl OriginRequest ===

impl OriginRequest {
    /// The whole content at a URL, with nothing else said.
    #[must_use]
    pub fn new(url: Url, guard: Guard) -> Self {
        Self { url, headers: HeaderMap::new(), range: None, if_range: None, if_none_match: None, guard }
    }
}

impl fmt::Debug for OriginRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.keys().map(http::HeaderName::as_str).collect();
        f.debug_struct("OriginRequest")
            .field("url", &redact_url(&self.url))
            .field("headers", &names)
            .field("range", &self.range)
            .field("if_range", &self.if_range)
            .field("if_none_match", &self.if_none_match)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for OriginResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.keys().map(http::HeaderName::as_str).collect();
        f.debug_struct("OriginResponse")
            .field("url", &redact_url(&self.url))
            .field("status", &self.status)
            .field("headers", &names)
            .field("validators", &self.validators)
            .field("range", &self.range)
            .field("length", &self.length)
            .field("accepts_ranges", &self.accepts_ranges)
            .field("not_modified", &self.not_modified)
            .field("used_credentials", &self.used_credentials)
            .field("body", &self.body)
            .finish()
    }
}
