//! Origins, a server under test, and stand-ins for the engine.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use dfdaemon::body::{self, Body};
use dfdaemon::config::Config;
use dfdaemon::downloads::{
    BodyStream, DownloadError, Downloads, OpenRequest, OpenedTask, OriginAnswer, TaskBody, TaskInfo,
};
use dfdaemon::metrics::Metrics;
use dfdaemon::passthrough::Passthrough;
use dfdaemon::proxy::Server;
use futures_util::StreamExt as _;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use proto::{ByteRange, Digest, Generation, Kind, TaskId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// A request as an origin saw it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: http::Method,
    pub(crate) uri: String,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// An HTTP server that answers by a function and remembers what it was asked.
pub(crate) struct Origin {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Origin {
    pub(crate) async fn start(answer: impl Fn(&Seen) -> Response<Body> + Send + Sync + 'static) -> Self {
        Self::start_with(None, answer).await
    }

    pub(crate) async fn start_with(
        tls: Option<Arc<rustls::ServerConfig>>,
        answer: impl Fn(&Seen) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&seen), Arc::new(answer));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (log, answer, tls) = (Arc::clone(&log), Arc::clone(&answer), tls.clone());
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let (log, answer) = (Arc::clone(&log), Arc::clone(&answer));
                    async move {
                        let (parts, body) = request.into_parts();
                        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
                        let seen =
                            Seen { method: parts.method, uri: parts.uri.to_string(), headers: parts.headers, body };
                        log.lock().push(seen.clone());
                        Ok::<_, Infallible>(answer(&seen))
                    }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                tokio::spawn(async move {
                    match tls {
                        None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                        Some(tls) => {
                            if let Ok(stream) = tokio_rustls::TlsAcceptor::from(tls).accept(stream).await {
                                drop(builder.serve_connection(TokioIo::new(stream), service).await);
                            }
                        }
                    }
                });
            }
        });
        Self { address, seen }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

pub(crate) fn answer(status: u16, fields: &[(&str, &str)], content: impl Into<Bytes>) -> Response<Body> {
    let mut builder = Response::builder().status(status);
    for (name, value) in fields {
        builder = builder.header(*name, *value);
    }
    builder.body(body::full(content)).unwrap()
}

/// A server under test; stops when dropped.
pub(crate) struct Daemon {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Metrics,
    pub(crate) cancel: CancellationToken,
    pub(crate) running: Option<tokio::task::JoinHandle<()>>,
}

impl Daemon {
    /// With this configuration; loopback origins are allowed.
    pub(crate) async fn start(toml: &str, downloads: Arc<dyn Downloads>) -> Self {
        let mut config: Config = toml::from_str(toml).unwrap();
        config.origins.allow_addresses = vec!["127.0.0.0/8".parse().unwrap()];
        Self::start_as(config, downloads).await
    }

    pub(crate) async fn start_as(config: Config, downloads: Arc<dyn Downloads>) -> Self {
        let metrics = Metrics::default();
        let passthrough = Passthrough::new(&config).unwrap();
        let server = Server::new(config, downloads, passthrough, metrics.clone()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        let running = tokio::spawn(async move { server.serve(listener, stop).await });
        Self { address, metrics, cancel, running: Some(running) }
    }

    /// Sends these bytes and reads until the other side closes.
    pub(crate) async fn raw(&self, request: &str) -> Raw {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        Raw::read(stream).await
    }

    /// A GET on a connection of its own.
    pub(crate) async fn get(&self, target: &str, fields: &str) -> Raw {
        self.raw(&format!("GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n")).await
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

/// An answer as it came over the wire.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) status: u16,
    head: String,
    /// As framed: chunked bodies with their chunk headers.
    pub(crate) body: Vec<u8>,
}

impl Raw {
    pub(crate) async fn read(mut stream: TcpStream) -> Self {
        let mut all = Vec::new();
        // A reset ends it as well as a close.
        let _ = stream.read_to_end(&mut all).await;
        let end = all.windows(4).position(|w| w == b"\r\n\r\n").unwrap_or_else(|| {
            panic!("no answer but {:?}", String::from_utf8_lossy(&all));
        });
        let head = String::from_utf8(all[..end].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head, body: all[end + 4..].to_vec() }
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (field, value) = line.split_once(':')?;
            field.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// No P2P side at all.
pub(crate) struct NoDownloads;

impl Downloads for NoDownloads {
    fn open(&self, _: OpenRequest) -> Opening<'_> {
        Box::pin(async { Err(DownloadError::new(Kind::Unavailable, "no engine")) })
    }
}

pub(crate) type Opening<'a> = Pin<Box<dyn Future<Output = Result<OpenedTask, DownloadError>> + Send + 'a>>;

/// Answers by a function, and remembers what it was asked.
pub(crate) struct Scripted<F> {
    script: F,
    pub(crate) opened: Mutex<Vec<OpenRequest>>,
}

impl<F: Fn(&OpenRequest) -> Result<OpenedTask, DownloadError> + Send + Sync + 'static> Scripted<F> {
    pub(crate) fn new(script: F) -> Arc<Self> {
        Arc::new(Self { script, opened: Mutex::default() })
    }
}

impl<F: Fn(&OpenRequest) -> Result<OpenedTask, DownloadError> + Send + Sync + 'static> Downloads for Scripted<F> {
    fn open(&self, request: OpenRequest) -> Opening<'_> {
        let result = (self.script)(&request);
        self.opened.lock().push(request);
        Box::pin(async { result })
    }
}

/// A task in memory whose readers may fail after so many bytes of the content.
#[derive(Clone)]
pub(crate) struct Content {
    pub(crate) bytes: Bytes,
    pub(crate) fail_at: Option<usize>,
    /// Ends there without an error, as no engine should.
    pub(crate) end_at: Option<usize>,
    pub(crate) length_known: bool,
    pub(crate) chunk: usize,
    pub(crate) headers: HeaderMap,
}

impl Content {
    pub(crate) fn new(bytes: impl Into<Bytes>) -> Self {
        Self {
            bytes: bytes.into(),
            fail_at: None,
            end_at: None,
            length_known: true,
            chunk: 64 * 1024,
            headers: HeaderMap::new(),
        }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.parse().unwrap());
        self
    }

    pub(crate) fn open(&self, task: TaskId) -> OpenedTask {
        OpenedTask {
            info: TaskInfo {
                task,
                generation: Generation::unique(1),
                length: self.length_known.then_some(self.bytes.len() as u64),
                headers: self.headers.clone(),
                guarded: false,
                from_cache: false,
            },
            body: Arc::new(self.clone()),
        }
    }
}

impl TaskBody for Content {
    fn reader(&self, range: Option<ByteRange>) -> BodyStream {
        let range = range.map_or(0..self.bytes.len(), |r| r.start() as usize..r.end() as usize);
        let mut items = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = (at + self.chunk).min(range.end);
            if self.fail_at.is_some_and(|fail| fail < end) {
                items.push(Err(DownloadError::new(Kind::Corrupt, "a piece is wrong")));
                break;
            }
            if self.end_at.is_some_and(|stop| stop < end) {
                break;
            }
            items.push(Ok(self.bytes.slice(at..end)));
            at = end;
        }
        // One at a time, as from a network.
        Box::pin(futures_util::stream::iter(items).then(|item| async {
            tokio::task::yield_now().await;
            item
        }))
    }
}

/// Fetches whole contents over HTTP, checks digests, and keeps them in memory.
pub(crate) struct Fetching {
    client: Passthrough,
    kept: Mutex<HashMap<TaskId, Content>>,
    pub(crate) opened: Mutex<Vec<OpenRequest>>,
}

impl Fetching {
    pub(crate) fn new(toml: &str) -> Arc<Self> {
        let mut config: Config = toml::from_str(toml).unwrap();
        config.origins.allow_addresses = vec!["127.0.0.0/8".parse().unwrap()];
        Arc::new(Self { client: Passthrough::new(&config).unwrap(), kept: Mutex::default(), opened: Mutex::default() })
    }

    async fn fetch(&self, request: &OpenRequest) -> Result<Content, DownloadError> {
        let mut get = Request::new(body::empty());
        *get.headers_mut() = request.headers.clone();
        let unavailable = |e: &dyn std::fmt::Display| DownloadError::new(Kind::Unavailable, e.to_string());
        let response =
            self.client.send(get, request.spec.url.as_str().parse().unwrap()).await.map_err(|e| unavailable(&e))?;
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.map_err(|e| unavailable(&e))?.to_bytes();
        if !parts.status.is_success() {
            let kind = match parts.status.as_u16() {
                401 => Kind::Unauthorized,
                403 => Kind::Forbidden,
                404 => Kind::NotFound,
                429 => Kind::Throttled,
                _ => Kind::Unavailable,
            };
            let answer = OriginAnswer { status: parts.status, headers: parts.headers, body: bytes };
            return Err(DownloadError::new(kind, "the origin refused").with_origin(answer));
        }
        if let Some(digest) = &request.spec.digest
            && Digest::of(digest.algorithm(), &bytes) != *digest
        {
            return Err(DownloadError::new(Kind::Corrupt, "wrong digest"));
        }
        Ok(Content { headers: parts.headers, ..Content::new(bytes) })
    }
}

impl Downloads for Fetching {
    fn open(&self, request: OpenRequest) -> Opening<'_> {
        Box::pin(async move {
            self.opened.lock().push(request.clone());
            let id = request.spec.id();
            let kept = self.kept.lock().get(&id).cloned();
            if let Some(content) = kept {
                let mut task = content.open(id);
                task.info.from_cache = true;
                return Ok(task);
            }
            let content = self.fetch(&request).await?;
            self.kept.lock().insert(id, content.clone());
            Ok(content.open(id))
        })
    }
}
