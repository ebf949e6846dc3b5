//! An origin that misbehaves on order, and remembers every request.

use std::{
    future::Future,
    net::SocketAddr,
    ops::Range,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context as TaskContext, Poll},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::{
    body::{Body, Frame, Incoming, SizeHint},
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use proto::RangeHeader;
use tokio::sync::oneshot;

use crate::Host;

/// Bytes per frame of a body: small enough that dropping and changing in mid-download happen where they should.
const CHUNK_BYTES: u64 = 64 * 1024;
/// Time for the kernel to take what was sent before a connection is broken.
const BEFORE_BREAKING: Duration = Duration::from_millis(100);

/// What the origin does wrong. Everything is off by default.
#[derive(Debug, Clone, Default)]
pub struct Behaviour {
    /// Flips the lowest bit of the byte at this offset, in as many answers as `flips_left` says.
    pub flip_at: Option<u64>,
    /// How many more answers are spoilt by `flip_at`.
    pub flips_left: u32,
    /// Answers 200 with everything, whatever range was asked for, and does not offer ranges.
    pub ignore_range: bool,
    /// Answers 200 with only the range's bytes.
    pub ok_to_range: bool,
    /// Says this many bytes more (or fewer) in Content-Length than there are.
    pub length_lie: i64,
    /// Sends no Content-Length.
    pub hide_length: bool,
    /// Breaks the connection after this many bytes of a body, in as many answers as `drops_left` says.
    pub drop_after: Option<u64>,
    /// How many more answers are cut off by `drop_after`.
    pub drops_left: u32,
    /// Replaces the content by this one (with the new validators) once this many bytes were sent altogether.
    pub change_after: Option<(u64, Bytes)>,
    /// Keeps sending the old validators after a change.
    pub keep_validators: bool,
    /// Sends neither ETag nor Last-Modified.
    pub no_validators: bool,
    /// Answers this status instead, in as many answers as `errors_left` says.
    pub status: Option<u16>,
    /// How many more answers get `status`.
    pub errors_left: u32,
    /// The Retry-After of answers with `status`, seconds.
    pub retry_after_s: Option<u32>,
    /// Without this value in Authorization the answer is 401; tokens expire by changing it.
    pub authorization: Option<String>,
    /// What callers with these values in Authorization get instead of the content, each with validators of its own. Of
    /// other lengths than the content.
    pub personal: Vec<(String, Bytes)>,
    /// Answers 302 to this URL.
    pub redirect: Option<String>,
    /// How long it takes to answer at all.
    pub answer_after: Option<Duration>,
    /// Bytes per second of one answer.
    pub rate_bytes_per_s: Option<u64>,
    /// Sent as Content-Encoding; the content itself stays as it is.
    pub content_encoding: Option<String>,
}

/// One request, and what became of it.
#[derive(Debug, Clone)]
pub struct RogueRequest {
    /// GET, HEAD and so on.
    pub method: String,
    /// Path and query.
    pub uri: String,
    /// All headers.
    pub headers: HeaderMap,
    /// The status answered.
    pub status: u16,
    /// Bytes of the body handed to the connection so far.
    pub sent_bytes: u64,
}

/// An origin of one content under every path, in this process, on a host.
#[derive(Debug)]
pub struct RogueOrigin {
    state: Arc<State>,
    served: Served,
}

#[derive(Debug)]
struct State {
    content: Mutex<Versioned>,
    behaviour: Mutex<Behaviour>,
    requests: Mutex<Vec<Entry>>,
    sent: AtomicU64,
}

#[derive(Debug, Clone)]
struct Versioned {
    bytes: Bytes,
    version: u32,
    /// Of the validators sent; stays behind with `keep_validators`.
    claimed: u32,
}

#[derive(Debug)]
struct Entry {
    request: RogueRequest,
    sent: Arc<AtomicU64>,
}

// === impl RogueOrigin ===

impl RogueOrigin {
    /// Starts it, well-behaved.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start(host: &Host, content: impl Into<Bytes>) -> Result<Self> {
        let state = Arc::new(State {
            content: Mutex::new(Versioned { bytes: content.into(), version: 1, claimed: 1 }),
            behaviour: Mutex::default(),
            requests: Mutex::default(),
            sent: AtomicU64::new(0),
        });
        let answering = Arc::clone(&state);
        let served = Served::start(host, move |request, _| {
            let answer = answer(&answering, &request);
            let after = answering.behaviour.lock().answer_after.unwrap_or_default();
            async move {
                tokio::time::sleep(after).await;
                answer.map(Either::Right)
            }
        })?;
        Ok(Self { state, served })
    }

    /// The URL of a path; all paths have the same content.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{}", self.served.addr(), path.trim_start_matches('/'))
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.served.addr()
    }

    /// Changes how it behaves from the next answer on.
    pub fn behave(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.state.behaviour.lock());
    }

    /// Replaces the content, with new validators.
    pub fn replace(&self, content: impl Into<Bytes>) {
        self.state.replace(content.into(), false);
    }

    /// All requests so far, oldest first.
    #[must_use]
    pub fn requests(&self) -> Vec<RogueRequest> {
        let requests = self.state.requests.lock();
        let current =
            |entry: &Entry| RogueRequest { sent_bytes: entry.sent.load(Ordering::Relaxed), ..entry.request.clone() };
        requests.iter().map(current).collect()
    }

    /// Bytes of bodies sent so far.
    #[must_use]
    pub fn sent_bytes(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }
}

impl State {
    fn replace(&self, bytes: Bytes, keep_validators: bool) {
        let mut content = self.content.lock();
        content.bytes = bytes;
        content.version += 1;
        if !keep_validators {
            content.claimed = content.version;
        }
    }
}

/// Takes one from a counter; false when there is none left.
fn take_one(left: &mut u32) -> bool {
    let some = *left > 0;
    *left = left.saturating_sub(1);
    some
}

fn answer(state: &Arc<State>, request: &Request<Incoming>) -> Response<RogueBody> {
    let mut behaviour = state.behaviour.lock();
    let caller = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let personal = (1000..).zip(&behaviour.personal).find(|(_, (name, _))| Some(name.as_str()) == caller);
    let content = match personal {
        Some((version, (_, bytes))) => Versioned { bytes: bytes.clone(), version, claimed: version },
        None => state.content.lock().clone(),
    };
    let sent = Arc::new(AtomicU64::new(0));
    let mut response = Response::new(RogueBody::empty());
    let (status, range) = status_of(&mut behaviour, &content, request, response.headers_mut());
    *response.status_mut() = status;
    if let Some(range) = range {
        let headers = response.headers_mut();
        describe(&behaviour, &content, &range, status, headers);
        let is_head = request.method() == http::Method::HEAD;
        let flips = behaviour.flip_at.is_some_and(|at| range.contains(&at)) && !is_head;
        let flip = behaviour.flip_at.filter(|_| flips && take_one(&mut behaviour.flips_left));
        let drop_at = behaviour.drop_after.filter(|_| !is_head && take_one(&mut behaviour.drops_left));
        let length = (range.end - range.start).saturating_add_signed(behaviour.length_lie);
        let claimed = (!behaviour.hide_length).then_some(length);
        if let Some(length) = claimed {
            headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        if !is_head {
            let state = Arc::clone(state);
            let rate_bytes_per_s = behaviour.rate_bytes_per_s;
            *response.body_mut() = RogueBody {
                content: content.bytes,
                start: range.start,
                at: range.start,
                end: range.end,
                claimed,
                flip,
                drop_at: drop_at.map(|after| range.start + after),
                rate_bytes_per_s,
                pause: None,
                state: Some((state, Arc::clone(&sent))),
            };
        }
    }
    let request = RogueRequest {
        method: request.method().to_string(),
        uri: request.uri().to_string(),
        headers: request.headers().clone(),
        status: status.as_u16(),
        sent_bytes: 0,
    };
    state.requests.lock().push(Entry { request, sent });
    response
}

/// The status, and which bytes the body has; error answers get their headers here.
fn status_of(
    behaviour: &mut Behaviour,
    content: &Versioned,
    request: &Request<Incoming>,
    headers: &mut HeaderMap,
) -> (StatusCode, Option<Range<u64>>) {
    let whole = Some(0..content.bytes.len() as u64);
    if let Some(url) = behaviour.redirect.as_ref().and_then(|url| HeaderValue::from_str(url).ok()) {
        headers.insert(header::LOCATION, url);
        return (StatusCode::FOUND, None);
    }
    let wanted = behaviour.status.and_then(|status| StatusCode::from_u16(status).ok());
    if let Some(status) = wanted.filter(|_| take_one(&mut behaviour.errors_left)) {
        if let Some(seconds) = behaviour.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        return (status, None);
    }
    let given = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    if behaviour.authorization.is_some() && given(header::AUTHORIZATION) != behaviour.authorization.as_deref() {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"rogue\""));
        return (StatusCode::UNAUTHORIZED, None);
    }
    let tag = etag(content);
    if !behaviour.no_validators && given(header::IF_NONE_MATCH) == Some(&tag) {
        headers.insert(header::ETAG, HeaderValue::from_str(&tag).unwrap_or(HeaderValue::from_static("\"\"")));
        return (StatusCode::NOT_MODIFIED, None);
    }
    let fresh = given(header::IF_RANGE).is_none_or(|if_range| if_range == tag || if_range == modified(content));
    let Some(range) = given(header::RANGE).filter(|_| fresh && !behaviour.ignore_range) else {
        return (StatusCode::OK, whole);
    };
    let resolved = RangeHeader::parse(range).ok().map(|range| range.resolve(content.bytes.len() as u64));
    match resolved {
        // Not understood, or several ranges: everything, as RFC 9110 allows.
        None => (StatusCode::OK, whole),
        Some(Ok(ranges)) => match ranges.as_slice() {
            [range] if behaviour.ok_to_range => (StatusCode::OK, Some(range.start()..range.end())),
            [range] => (StatusCode::PARTIAL_CONTENT, Some(range.start()..range.end())),
            _ => (StatusCode::OK, whole),
        },
        Some(Err(_)) => {
            let text = format!("bytes */{}", content.bytes.len());
            headers.insert(
                header::CONTENT_RANGE,
                HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("bytes */0")),
            );
            (StatusCode::RANGE_NOT_SATISFIABLE, None)
        }
    }
}

fn describe(
    behaviour: &Behaviour,
    content: &Versioned,
    range: &Range<u64>,
    status: StatusCode,
    headers: &mut HeaderMap,
) {
    let mut set = |name: header::HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    };
    set(header::CONTENT_TYPE, "application/octet-stream");
    if !behaviour.ignore_range {
        set(header::ACCEPT_RANGES, "bytes");
    }
    if let Some(encoding) = &behaviour.content_encoding {
        set(header::CONTENT_ENCODING, encoding);
    }
    if !behaviour.no_validators {
        set(header::ETAG, &etag(content));
        set(header::LAST_MODIFIED, &modified(content));
    }
    if status == StatusCode::PARTIAL_CONTENT {
        set(
            header::CONTENT_RANGE,
            &format!("bytes {}-{}/{}", range.start, range.end.saturating_sub(1), content.bytes.len()),
        );
    }
}

fn etag(content: &Versioned) -> String {
    format!("\"version-{}\"", content.claimed)
}

/// A minute later with each version.
fn modified(content: &Versioned) -> String {
    format!("Thu, 01 Jan 2026 00:{:02}:00 GMT", content.claimed % 60)
}

// === the body ===

/// Sends a part of the content in chunks, and spoils it on the way.
pub(super) struct RogueBody {
    content: Bytes,
    start: u64,
    at: u64,
    end: u64,
    claimed: Option<u64>,
    flip: Option<u64>,
    drop_at: Option<u64>,
    rate_bytes_per_s: Option<u64>,
    pause: Option<Pin<Box<tokio::time::Sleep>>>,
    state: Option<(Arc<State>, Arc<AtomicU64>)>,
}

/// The origin breaks the connection on purpose.
#[derive(Debug)]
pub(super) struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("dropped on purpose")
    }
}

impl std::error::Error for Dropped {}

impl RogueBody {
    fn empty() -> Self {
        Self {
            content: Bytes::new(),
            start: 0,
            at: 0,
            end: 0,
            claimed: Some(0),
            flip: None,
            drop_at: None,
            rate_bytes_per_s: None,
            pause: None,
            state: None,
        }
    }

    /// The content changes under the feet of running answers, too.
    fn change_content(&mut self) {
        let Some((state, _)) = &self.state else { return };
        let mut behaviour = state.behaviour.lock();
        if behaviour.change_after.as_ref().is_some_and(|(after, _)| state.sent.load(Ordering::Relaxed) >= *after) {
            let keep = behaviour.keep_validators;
            if let Some((_, bytes)) = behaviour.change_after.take() {
                drop(behaviour);
                state.replace(bytes, keep);
            }
        }
        let current = state.content.lock().bytes.clone();
        if current.len() == self.content.len() {
            self.content = current;
        }
    }

    fn next_chunk(&mut self) -> Option<Result<Bytes, Dropped>> {
        if self.drop_at.is_some_and(|drop_at| self.at >= drop_at) {
            return Some(Err(Dropped));
        }
        if self.at >= self.end {
            // An error and not an end, so that the connection breaks when the header promised more.
            return self.short().then_some(Err(Dropped));
        }
        self.change_content();
        let stop = self.end.min(self.at + CHUNK_BYTES).min(self.drop_at.unwrap_or(u64::MAX));
        let mut chunk = self.content.slice(self.at as usize..stop as usize);
        if let Some(flip) = self.flip.filter(|flip| (self.at..stop).contains(flip)) {
            let mut spoilt = chunk.to_vec();
            spoilt[(flip - self.at) as usize] ^= 1;
            chunk = spoilt.into();
        }
        if let Some((state, sent)) = &self.state {
            state.sent.fetch_add(stop - self.at, Ordering::Relaxed);
            sent.fetch_add(stop - self.at, Ordering::Relaxed);
        }
        if let Some(rate) = self.rate_bytes_per_s {
            let pause = Duration::from_secs_f64((stop - self.at) as f64 / rate.max(1) as f64);
            self.pause = Some(Box::pin(tokio::time::sleep(pause)));
        }
        self.at = stop;
        if self.drop_at == Some(stop) || (stop == self.end && self.short()) {
            // hyper throws away what it has not written when a body fails: let it write first.
            self.pause = Some(Box::pin(tokio::time::sleep(BEFORE_BREAKING)));
        }
        Some(Ok(chunk))
    }

    /// Whether the header promised more than there is.
    fn short(&self) -> bool {
        self.claimed.is_some_and(|claimed| claimed > self.end - self.start)
    }
}

impl Body for RogueBody {
    type Data = Bytes;
    type Error = Dropped;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame<Bytes>, Dropped>>> {
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(self.next_chunk().map(|chunk| chunk.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.at >= self.end && self.drop_at.is_none() && !self.short()
    }

    fn size_hint(&self) -> SizeHint {
        // What the header claims, which is not what is sent when the origin lies.
        self.claimed.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

// === serving ===

/// A body of one of our in-process servers.
pub(super) type AnyBody = Either<Full<Bytes>, RogueBody>;

/// An HTTP/1 server on a thread of its own, inside a host's network; ends when dropped.
#[derive(Debug)]
pub(super) struct Served {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Served {
    /// Starts it.
    pub(super) fn start<A, F>(host: &Host, answer: A) -> Result<Self>
    where
        A: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + 'static,
        F: Future<Output = Response<AnyBody>> + Send + 'static,
    {
        let (stop, stopped) = oneshot::channel();
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let inside = host.clone();
        let work = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            inside.enter()?;
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind((inside.ip(), 0)).await?;
                let _ = started.send(listener.local_addr()?);
                tokio::select! {
                    () = accept(listener, answer) => {}
                    _ = stopped => {}
                }
                anyhow::Ok(())
            })
        };
        let thread = std::thread::Builder::new().name("origin".into()).spawn(move || {
            if let Err(error) = work() {
                eprintln!("in-process origin: {error:#}");
            }
        })?;
        let addr = start.recv().context("in-process origin did not start")?;
        Ok(Self { addr, stop: Some(stop), thread: Some(thread) })
    }

    pub(super) const fn addr(&self) -> SocketAddr {
        self.addr
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept<A, F>(listener: tokio::net::TcpListener, answer: A)
where
    A: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = Response<AnyBody>> + Send + 'static,
{
    // Ends all connections when it is dropped.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, from)) = listener.accept().await else { continue };
        let answer = answer.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let answer = answer(request, from);
                async move { Ok::<_, std::convert::Infallible>(answer.await) }
            });
            // A client that goes away is none of the origin's business.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
        while connections.try_join_next().is_some() {}
    }
}
