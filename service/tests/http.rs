//! The accept loop, seen from outside.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use proto::Kind;
use proto::api::ApiError;
use service::config::ByteSize;
use service::http::{
    ApiFailure, BodyLimits, HttpLimits, HttpMetrics, ListenAddr, Listener, Peer, Readiness, Routes, Server, json,
    service, standard,
};
use service::metrics::Metrics;
use service::tls::{ServerCertificate, TlsConfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
    metrics: Metrics,
}

fn limits() -> HttpLimits {
    HttpLimits {
        header_timeout: Duration::from_millis(300),
        idle_timeout: Duration::from_millis(900),
        stall_timeout: Duration::from_millis(500),
        ..HttpLimits::default()
    }
}

fn routes() -> Routes {
    Routes::new(BodyLimits { max_body: ByteSize::kib(4), body_timeout: Duration::from_millis(300) })
        .on(&Method::GET, "/api/who/{name}", |call| async move {
            let peer = call.peer.map(|peer| peer.to_string());
            json(StatusCode::OK, &(call.param("name")?.to_owned(), call.query.clone(), peer))
        })
        .on(&Method::POST, "/api/echo", |mut call| async move {
            let value: serde_json::Value = call.json().await?;
            json(StatusCode::OK, &value)
        })
        .on(&Method::GET, "/api/slow", |_| async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            json(StatusCode::OK, &"slow")
        })
        .on(&Method::GET, "/api/endless", |_| async {
            std::future::pending::<()>().await;
            json(StatusCode::OK, &"never")
        })
        .on(&Method::GET, "/api/big", |_| async { json(StatusCode::OK, &"x".repeat(64 << 20)) })
        .on(&Method::GET, "/api/full", |_| async {
            Err::<service::http::Response, _>(ApiFailure::new(Kind::NoSpace, "no room"))
        })
}

fn start(limits: HttpLimits, drain: Duration, tls: Option<Arc<rustls::ServerConfig>>) -> Running {
    start_with(limits, drain, tls, |server| server)
}

fn start_with(
    limits: HttpLimits,
    drain: Duration,
    tls: Option<Arc<rustls::ServerConfig>>,
    more: impl FnOnce(Server) -> Server,
) -> Running {
    let metrics = Metrics::new("test", "0");
    let counters = HttpMetrics::new(&metrics);
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let mut server = more(Server::new(listener, limits).with_drain_timeout(drain).with_metrics(&counters, "test"));
    if let Some(tls) = tls {
        server = server.with_tls(tls);
    }
    let ListenAddr::Tcp(address) = server.local_addr().unwrap() else { panic!("tcp was asked for") };
    let stop = CancellationToken::new();
    let app = service([standard(&Readiness::default(), &metrics), routes().into_filter("api")]);
    let task = tokio::spawn(server.serve(app, stop.clone()));
    Running { address, stop, task, metrics }
}

fn plain() -> Running {
    start(limits(), Duration::from_secs(5), None)
}

/// Sends raw bytes, and reads until the server closes.
async fn raw(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

async fn ask(address: SocketAddr, method: &str, path: &str, header: &str, body: &str) -> (u16, String, String) {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n{header}\r\n{body}",
        body.len()
    );
    let answer = raw(address, &request).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, head.to_owned(), body.to_owned())
}

const JSON: &str = "content-type: application/json\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn routes_and_errors() {
    let server = plain();
    let (status, head, body) = ask(server.address, "GET", "/api/who/a%20b?x=1", "", "").await;
    assert_eq!(status, 200);
    assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
    let (name, query, peer): (String, String, String) = serde_json::from_str(&body).unwrap();
    assert_eq!((name.as_str(), query.as_str()), ("a b", "x=1"));
    assert!(peer.starts_with("127.0.0.1:"), "{peer}");

    let (status, head, body) = ask(server.address, "DELETE", "/api/echo", "", "").await;
    assert_eq!(status, 405);
    assert!(head.to_lowercase().contains("allow: post"), "{head}");
    assert_eq!(serde_json::from_str::<ApiError>(&body).unwrap().kind, "invalid");

    for (method, path, header, body, expected) in [
        ("GET", "/healthz", "", "", 200),
        ("GET", "/readyz", "", "", 200),
        ("POST", "/healthz", "", "", 405),
        ("HEAD", "/api/who/a", "", "", 200),
        ("POST", "/api/echo", JSON, "{\"a\":1}", 200),
        ("POST", "/api/echo", JSON, "{\"a\":", 400),
        ("POST", "/api/echo", "", "{}", 415),
        ("GET", "/api/nothing", "", "", 404),
        ("GET", "/nothing", "", "", 404),
        ("GET", "/api/who/%ff", "", "", 400),
        ("GET", "/api/full", "", "", 507),
    ] {
        let (status, _, answer) = ask(server.address, method, path, header, body).await;
        assert_eq!(status, expected, "{method} {path} {answer}");
        if status >= 400 {
            serde_json::from_str::<ApiError>(&answer).unwrap();
        }
    }
    let (_, _, text) = ask(server.address, "GET", "/metrics", "", "").await;
    assert!(text.contains("skimmer_http_requests_total{listener=\"test\",status=\"507\"} 1"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_limits() {
    let server = plain();
    let long = format!("\"{}\"", "x".repeat(5000));
    assert_eq!(ask(server.address, "POST", "/api/echo", JSON, &long).await.0, 413);
    let chunked = format!(
        "POST /api/echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{JSON}transfer-encoding: chunked\r\n\r\n{:x}\r\n{long}\r\n0\r\n\r\n",
        long.len()
    );
    assert!(raw(server.address, &chunked).await.starts_with("HTTP/1.1 413"));
    let slow = format!("POST /api/echo HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{JSON}content-length: 10\r\n\r\n{{");
    let begin = Instant::now();
    assert!(raw(server.address, &slow).await.starts_with("HTTP/1.1 408"));
    assert!(begin.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_and_garbage_headers() {
    let server = plain();
    for start in ["", "G", "GET / HTTP/1.1\r\nhost: x\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n"] {
        let begin = Instant::now();
        let answer = raw(server.address, start).await;
        assert!(answer.is_empty(), "{start:?} {answer}");
        assert!(begin.elapsed() < Duration::from_secs(2), "{start:?} {:?}", begin.elapsed());
    }
    // Byte by byte does not help: the time counts from the start.
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let begin = Instant::now();
    let closed = async {
        loop {
            if stream.write_all(b"G").await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(3), closed).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(250));
    assert!(raw(server.address, "\0\x01\x02\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let endless = format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(200 << 10));
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let _ = stream.write_all(endless.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431"));
    assert_eq!(ask(server.address, "GET", "/healthz", "", "").await.0, 200, "others are served");
    assert!(
        server.metrics.encode().contains("skimmer_http_refused_total{listener=\"test\",reason=\"header_timeout\"} 5")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_longer_than_a_header_may_take() {
    let server = plain();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let mut buffer = [0; 1024];
    let request = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    assert!(stream.read(&mut buffer).await.unwrap() > 0);
    tokio::time::sleep(Duration::from_millis(600)).await;
    stream.write_all(request).await.unwrap();
    assert!(stream.read(&mut buffer).await.unwrap() > 0, "kept alive beyond the header timeout");
    let begin = Instant::now();
    assert_eq!(stream.read(&mut buffer).await.unwrap(), 0, "closed when idle");
    assert!((Duration::from_millis(700)..Duration::from_secs(3)).contains(&begin.elapsed()), "{:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stalls_is_cut_off() {
    let server = plain();
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /api/big HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let cut_off = async {
        while !server.metrics.encode().contains("reason=\"stalled\"} 1") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), cut_off).await.unwrap();
    assert!(server.metrics.encode().contains("skimmer_http_connections{listener=\"test\"} 0"));
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_make_room() {
    let server = start(HttpLimits { max_connections: 2, ..limits() }, Duration::from_secs(5), None);
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
        idle.push(stream);
    }
    let begin = Instant::now();
    assert_eq!(ask(server.address, "GET", "/healthz", "", "").await.0, 200);
    assert!(begin.elapsed() < Duration::from_millis(700), "did not wait for the idle timeout: {:?}", begin.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_what_runs() {
    let server = plain();
    let slow = tokio::spawn(async move { ask(server.address, "GET", "/api/slow", "", "").await.0 });
    tokio::time::sleep(Duration::from_millis(100)).await;
    server.stop.cancel();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(TcpStream::connect(server.address).await.is_err(), "takes nothing new");
    assert_eq!(slow.await.unwrap(), 200);
    tokio::time::timeout(Duration::from_secs(2), server.task).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_has_a_deadline() {
    let server = start(limits(), Duration::from_millis(300), None);
    let endless = tokio::spawn(raw(server.address, "GET /api/endless HTTP/1.1\r\nhost: x\r\n\r\n"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    let begin = Instant::now();
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(2), server.task).await.unwrap().unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(290));
    assert_eq!(endless.await.unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_with_prior_knowledge() {
    let server = plain();
    let stream = TokioIo::new(TcpStream::connect(server.address).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..3 {
        let request = http::Request::post(format!("http://{}/api/echo", server.address))
            .header("content-type", "application/json");
        let response = sender.send_request(request.body(Full::new(Bytes::from_static(b"[1]"))).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.collect().await.unwrap().to_bytes(), "[1]");
    }
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(2), server.task).await.unwrap().unwrap();
}

/// A client whose streams have a window of so many bytes, which only grows as bodies are read.
async fn http2_client(server: &Running, window: u32) -> hyper::client::conn::http2::SendRequest<Empty<Bytes>> {
    let stream = TokioIo::new(TcpStream::connect(server.address).await.unwrap());
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(window).initial_connection_window_size(1 << 20);
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn get(server: &Running, path: &str) -> http::Request<Empty<Bytes>> {
    http::Request::get(format!("http://{}{path}", server.address)).body(Empty::new()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_http2_answer_of_which_nothing_is_taken_is_cut_off_alone() {
    let server = plain();
    let mut sender = http2_client(&server, 4).await;
    let mut slow = sender.send_request(get(&server, "/api/who/somebody")).await.unwrap().into_body();
    // One that is handed over whole, one of many pieces, and one that is taken slowly, but taken.
    let mut stalled = Vec::new();
    for path in ["/api/who/nobody", "/api/big"] {
        stalled.push(sender.send_request(get(&server, path)).await.unwrap().into_body());
    }
    let mut taken = Vec::new();
    while let Some(frame) = slow.frame().await {
        taken.extend_from_slice(&frame.unwrap().into_data().unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    assert!(taken.starts_with(b"[\"somebody\"") && taken.ends_with(b"]"), "{}", String::from_utf8_lossy(&taken));
    for mut body in stalled {
        let frame = async {
            while body.frame().await.transpose()?.is_some() {}
            Ok::<_, hyper::Error>(())
        };
        let cut_off = tokio::time::timeout(Duration::from_secs(2), frame).await.unwrap();
        assert!(cut_off.is_err(), "the answer went on");
    }
    let answer = sender.send_request(get(&server, "/api/who/a")).await.unwrap();
    assert!(answer.collect().await.unwrap().to_bytes().starts_with(b"[\"a\""), "the connection goes on");
    let text = server.metrics.encode();
    assert!(text.contains("reason=\"stalled\"} 2"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tls_and_a_new_certificate() {
    service::tls::install_provider();
    let dir = tempfile::tempdir().unwrap();
    let config = TlsConfig { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
    assert!(ServerCertificate::load(config.clone()).unwrap_err().to_string().contains("cert.pem"));
    let write = || {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&config.cert, made.cert.pem()).unwrap();
        std::fs::write(&config.key, made.signing_key.serialize_pem()).unwrap();
        made.cert.der().clone()
    };
    let mut trusted = write();
    let certificate = ServerCertificate::load(config.clone()).unwrap();
    let server = start(limits(), Duration::from_secs(5), Some(certificate.server_config().unwrap()));
    for round in 0..2 {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(trusted).unwrap();
        let mut client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        client.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(server.address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::get("https://localhost/healthz").body(Empty::<Bytes>::new()).unwrap();
        assert_eq!(sender.send_request(request).await.unwrap().status(), 200, "round {round}");
        trusted = write();
        certificate.reload().unwrap();
    }
    std::fs::write(&config.key, "nonsense").unwrap();
    assert!(certificate.reload().is_err());
    assert!(
        !raw(server.address, "GET /healthz HTTP/1.1\r\n\r\n").await.contains("HTTP"),
        "no plain text on a tls port"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unix_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.sock");
    let address: ListenAddr = format!("unix:{}", path.display()).parse().unwrap();
    // A socket file that a killed process left behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let server = Server::new(Listener::bind(&address).unwrap(), limits());
    assert_eq!(server.local_addr().unwrap(), address);
    assert!(Listener::bind(&address).is_err(), "somebody listens there");
    let stop = CancellationToken::new();
    let app = service([routes().into_filter("api")]);
    let task = tokio::spawn(server.serve(app, stop.clone()));
    let mut stream = UnixStream::connect(&path).await.unwrap();
    stream.write_all(b"GET /api/who/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains(&format!("process {}", std::process::id())), "{answer}");
    stop.cancel();
    task.await.unwrap();
    assert!(!path.try_exists().unwrap());
    std::fs::write(&path, "a file").unwrap();
    assert!(Listener::bind(&address).is_err(), "a file is not replaced");
}

#[tokio::test(flavor = "multi_thread")]
async fn upgrades_pass_through() {
    // CONNECT, as a proxy does it, with a service of its own.
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let server = Server::new(listener, limits());
    let ListenAddr::Tcp(address) = server.local_addr().unwrap() else { panic!("tcp was asked for") };
    let proxy = hyper::service::service_fn(|mut request: http::Request<hyper::body::Incoming>| async move {
        assert!(request.extensions().get::<Peer>().is_some());
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut tunnel = TokioIo::new(upgrade.await.unwrap());
            let mut buffer = [0; 4];
            tunnel.read_exact(&mut buffer).await.unwrap();
            // Longer than every timeout of the listener: a tunnel is no idle connection.
            tokio::time::sleep(Duration::from_millis(1200)).await;
            tunnel.write_all(&buffer).await.unwrap();
        });
        Ok::<_, std::convert::Infallible>(http::Response::new(Empty::<Bytes>::new()))
    });
    tokio::spawn(server.serve(proxy, CancellationToken::new()));
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"CONNECT x:443 HTTP/1.1\r\nhost: x:443\r\n\r\n").await.unwrap();
    let mut buffer = [0; 1024];
    let n = stream.read(&mut buffer).await.unwrap();
    assert!(buffer[..n].starts_with(b"HTTP/1.1 200"));
    stream.write_all(b"ping").await.unwrap();
    let n = stream.read(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..n], b"ping");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_closed_clients_are_answered_and_not_kept() {
    let server = start_with(limits(), Duration::from_secs(1), None, Server::with_half_close);
    for (request, expected) in [
        ("GET /api/slow HTTP/1.1\r\nhost: x\r\n\r\n", Some("slow")),
        (
            "POST /api/echo HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 3\r\n\r\n\"a\"",
            Some("\"a\""),
        ),
        // Half a header, and nothing at all.
        ("GET /api/slow HTTP/1.1\r\nhost:", None),
        ("", None),
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        let begun = Instant::now();
        tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8(answer).unwrap();
        match expected {
            Some(text) => assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(text), "{request}: {answer}"),
            None => assert!(!answer.contains("200"), "{request}: {answer}"),
        }
        // Nobody waits for a next request that cannot come.
        assert!(begun.elapsed() < Duration::from_millis(850), "{request}: closed after {:?}", begun.elapsed());
    }
}
