//! A tunnel through an HTTP proxy (`CONNECT`, RFC 9110 section 9.3.6).

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use url::Url;

use super::connect::Destination;
use super::headers::basic_of;

/// A proxy's answer to `CONNECT` is a status line and a few headers.
const ANSWER_MAX: usize = 8 * 1024;

/// Asks the proxy at the other end of `tcp` for a tunnel; what it did instead when there is none.
pub(super) async fn open(tcp: &mut TcpStream, to: &Destination, proxy: &Url) -> Result<(), Box<str>> {
    let host = if to.host.contains(':') { format!("[{}]", to.host) } else { to.host.to_string() };
    let authority = format!("{host}:{}", to.port);
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n").into_bytes();
    if let Some(basic) = basic_of(proxy) {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(basic.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    let broken = |error: std::io::Error| -> Box<str> { Box::from(format!("the connection broke: {error}")) };
    tcp.write_all(&request).await.map_err(broken)?;

    let mut answer = Vec::with_capacity(512);
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() >= ANSWER_MAX {
            return Err("its answer has no end".into());
        }
        // Byte by byte: whatever follows the headers belongs to the tunnel.
        answer.push(tcp.read_u8().await.map_err(broken)?);
    }
    let line = answer.split(|b| *b == b'\r').next().unwrap_or_default();
    let status = std::str::from_utf8(line)
        .ok()
        .filter(|line| line.starts_with("HTTP/1."))
        .and_then(|line| line.split(' ').nth(1));
    match status {
        Some(status) if status.len() == 3 && status.starts_with('2') => Ok(()),
        Some(status) if status.len() == 3 && status.bytes().all(|b| b.is_ascii_digit()) => {
            Err(format!("it answered {status}").into())
        }
        _ => Err("its answer is no HTTP".into()),
    }
}
