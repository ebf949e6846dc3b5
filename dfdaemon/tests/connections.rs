//! Limits, slow and malformed clients, shutdown.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dfdaemon::metrics::{Outcome, Way};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Content, Daemon, NoDownloads, Origin, Raw, Scripted, answer};

#[tokio::test]
async fn health_and_unknown_paths() {
    let daemon = Daemon::start("", Arc::new(NoDownloads)).await;
    assert_eq!(daemon.get("/healthz", "").await.text(), "ok\n");
    assert_eq!(daemon.get("/", "").await.status, 404);
}

#[tokio::test]
async fn connections_over_the_limit_are_told_at_once() {
    let daemon = Daemon::start("limits.connections_max = 2", Arc::new(NoDownloads)).await;
    let kept = [TcpStream::connect(daemon.address).await.unwrap(), TcpStream::connect(daemon.address).await.unwrap()];
    tokio::time::sleep(Duration::from_millis(100)).await;
    let full = Raw::read(TcpStream::connect(daemon.address).await.unwrap()).await;
    assert_eq!((full.status, full.field("retry-after")), (503, Some("1")));
    assert_eq!(daemon.metrics.connections(), 2);
    drop(kept);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(daemon.get("/healthz", "").await.status, 200);
}

#[tokio::test]
async fn slow_headers_resting_connections_and_silent_tunnels_end() {
    let origin = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = origin.local_addr().unwrap().port();
    let config =
        format!("limits.header_timeout = '300ms'\nlimits.idle_timeout = '600ms'\nproxy.connect.ports = [{port}]");
    let daemon = Daemon::start(&config, Arc::new(NoDownloads)).await;
    let started = Instant::now();
    for sent in ["", "GET /healthz HTTP/1.1\r\nHo", "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"] {
        let mut stream = TcpStream::connect(daemon.address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all).await;
    }
    let mut stream = TcpStream::connect(daemon.address).await.unwrap();
    stream.write_all(format!("CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
    let (_kept, _) = origin.accept().await.unwrap();
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all).await;
    assert!(all.starts_with(b"HTTP/1.1 200"));
    assert!(started.elapsed() < Duration::from_secs(10));
    assert_eq!(daemon.metrics.connections(), 0);
}

#[tokio::test]
async fn a_client_that_stops_reading_is_let_go() {
    let content = Content::new(vec![1; 64 << 20]);
    let downloads = Scripted::new(move |request| Ok(content.open(request.spec.id())));
    let config = "limits.idle_timeout = '500ms'\nproxy.rules = [{ regex = '.', action = 'p2p' }]";
    let daemon = Daemon::start(config, downloads).await;
    let mut stream = TcpStream::connect(daemon.address).await.unwrap();
    stream.write_all(b"GET http://files.example/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(daemon.metrics.connections(), 1);
    tokio::time::timeout(Duration::from_secs(10), async {
        while daemon.metrics.connections() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("the connection is closed");
    assert_eq!(daemon.metrics.requests(Way::ProxyP2p, Outcome::Abandoned), 1);
}

#[tokio::test]
async fn ambiguous_and_oversized_requests_are_refused() {
    let origin = Origin::start(|_| answer(200, &[], "reached")).await;
    let config = format!("mirror.default = '{}'", origin.url(""));
    let daemon = Daemon::start(&config, Arc::new(NoDownloads)).await;
    let many: String = (0..200).map(|i| format!("X-{i}: 1\r\n")).collect();
    for request in [
        "GET /v2/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd".to_owned(),
        "POST /v2/ HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n".into(),
        "GET /v2/ HTTP/1.1\r\nHost : x\r\n\r\n".into(),
        "GET /v2/ HTTP/1.1\r\nHost: x\r\n folded: y\r\n\r\n".into(),
        format!("GET /v2/ HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(100_000)),
        format!("GET /v2/ HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
        "\u{0}\u{1}\u{2} garbage\r\n\r\n".into(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
    ] {
        let mut stream = TcpStream::connect(daemon.address).await.unwrap();
        let _ = stream.write_all(request.as_bytes()).await;
        let mut all = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut all)).await;
        assert!(read.is_ok(), "{request:.80}: still open after {:.80}", String::from_utf8_lossy(&all));
        let text = String::from_utf8_lossy(&all);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{request:.80}: {text:.80}");
    }
    // Both framings: the length is dropped, so that the next hop cannot see another request in the body.
    let both = "POST /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 40\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let mut stream = TcpStream::connect(daemon.address).await.unwrap();
    stream.write_all(both.as_bytes()).await.unwrap();
    let mut all = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut all)).await.expect("closed");
    for seen in origin.seen() {
        assert!(!(seen.headers.contains_key("content-length") && seen.headers.contains_key("transfer-encoding")));
        assert!(seen.body.is_empty());
    }
}

#[tokio::test]
async fn shutdown_lets_running_answers_end_and_cuts_what_does_not() {
    let content = Content::new(vec![5; 8 << 20]);
    let downloads = Scripted::new(move |request| Ok(content.open(request.spec.id())));
    let config = "limits.drain_timeout = '2s'\nproxy.rules = [{ regex = '.', action = 'p2p' }]";
    let mut daemon = Daemon::start(config, downloads).await;
    let reading = TcpStream::connect(daemon.address).await.unwrap();
    let mut stuck = TcpStream::connect(daemon.address).await.unwrap();
    stuck.write_all(b"GET http://files.example/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let resting = TcpStream::connect(daemon.address).await.unwrap();
    let mut reading = reading;
    reading.write_all(b"GET http://files.example/ HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let started = Instant::now();
    daemon.cancel.cancel();
    let whole = Raw::read(reading).await;
    assert_eq!((whole.status, whole.body.len()), (200, 8 << 20));
    tokio::time::timeout(Duration::from_secs(10), daemon.running.take().unwrap()).await.unwrap().unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1), "the stuck client was waited for");
    assert!(TcpStream::connect(daemon.address).await.is_err());
    assert_eq!(daemon.metrics.connections(), 0);
    drop((stuck, resting));
}

#[tokio::test]
async fn a_large_body_streams_both_ways_through_a_small_memory() {
    let origin = Origin::start(|seen| answer(200, &[], seen.body.clone())).await;
    let daemon = Daemon::start("", Arc::new(NoDownloads)).await;
    let stream = TcpStream::connect(daemon.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let body = vec![3u8; 20 << 20];
    let request = http::Request::put(origin.url("/up"))
        .header("host", "x")
        .header("expect", "100-continue")
        .body(dfdaemon::body::full(body.clone()))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), body);
}
