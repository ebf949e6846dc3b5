//! Files that go from the page cache to the socket, seen from outside.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use service::http::{Chunk, HttpLimits, ListenAddr, Listener, SendFile, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// One part of a file, or a text when the connection cannot send files.
struct Body(Option<Chunk>, u64);

impl http_body::Body for Body {
    type Data = Chunk;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Chunk>, Infallible>>> {
        Poll::Ready(self.0.take().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.1)
    }
}

/// Serves `/OFFSET/LENGTH` of a file.
fn start(file: File) -> (SocketAddr, CancellationToken) {
    let file = Arc::new(file);
    let listener = Listener::bind(&"127.0.0.1:0".parse().unwrap()).unwrap();
    let server = Server::new(listener, HttpLimits::default());
    let ListenAddr::Tcp(address) = server.local_addr().unwrap() else { panic!("tcp was asked for") };
    let stop = CancellationToken::new();
    let service = service_fn(move |request: Request<Incoming>| {
        let file = Arc::clone(&file);
        async move {
            let mut numbers = request.uri().path()[1..].split('/').map(|number| number.parse::<u64>().unwrap());
            let (offset, len) = (numbers.next().unwrap(), numbers.next().unwrap());
            let chunk = match request.extensions().get::<SendFile>() {
                Some(sendfile) => sendfile.chunk(file, offset, len),
                None => Chunk::Bytes(Bytes::from_static(b"no sendfile")),
            };
            let len = bytes::Buf::remaining(&chunk) as u64;
            Ok::<_, Infallible>(Response::new(Body(Some(chunk), len)))
        }
    });
    tokio::spawn(server.serve(service, stop.clone()));
    (address, stop)
}

fn content(len: usize) -> (File, Vec<u8>) {
    let bytes: Vec<u8> = (0..len).map(|i| u8::try_from((i * 7 + i / 251) % 256).unwrap()).collect();
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&bytes).unwrap();
    (file, bytes)
}

async fn answer(stream: &mut TcpStream) -> (String, usize) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_lowercase();
    let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    (head, len)
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_every_size_arrive_whole_on_one_connection() {
    let (file, bytes) = content(9 << 20);
    let (address, _stop) = start(file);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let parts = [(0, 1), (5, 0), (3, 4097), (0, 1 << 20), (1 << 20, (1 << 20) + 1), (0, 9 << 20), (8 << 20, 1 << 20)];
    // Pipelined: the answers must not be mixed up.
    for (offset, len) in parts {
        stream.write_all(format!("GET /{offset}/{len} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
    }
    for (offset, len) in parts {
        let (head, found) = answer(&mut stream).await;
        assert!(head.starts_with("http/1.1 200"), "{head}");
        assert_eq!(found, len);
        let mut body = vec![0; len];
        stream.read_exact(&mut body).await.unwrap();
        assert!(body == bytes[offset..offset + len], "{len} bytes from {offset} on");
    }
    // HEAD takes nothing from the queue that a later answer needs.
    for method in ["HEAD", "GET"] {
        stream.write_all(format!("{method} /10/20 HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        assert_eq!(answer(&mut stream).await.1, 20);
    }
    let mut body = vec![0; 20];
    stream.read_exact(&mut body).await.unwrap();
    assert_eq!(body, bytes[10..30]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_ends_early_breaks_the_connection() {
    let (file, bytes) = content(1000);
    let (address, _stop) = start(file);
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /0/2000 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    assert_eq!(answer(&mut stream).await.1, 2000);
    let mut body = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut body)).await.unwrap();
    assert!(read.is_err() || body == bytes, "{} bytes", body.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_gets_no_sendfile() {
    let (file, _) = content(1000);
    let (address, _stop) = start(file);
    let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(format!("http://{address}/0/1000")).body(Empty::<Bytes>::new()).unwrap();
    let body = send.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "no sendfile");
}
