//! HTTP/1.1 by hand: a client that can stall, break off, and send what no other client would.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// For one read or write; a registry that waits for its database or its storage takes some seconds.
const IO_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// No answer of the registry has a longer header.
const HEAD_MAX: usize = 64 * 1024;

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    /// What was read and belongs to the next answer.
    ahead: Vec<u8>,
}

/// Sends whole requests to one address, over one connection as long as that lasts.
#[derive(Debug)]
pub(crate) struct Client {
    addr: SocketAddr,
    idle: Option<Connection>,
}

// === impl Response ===

impl Response {
    /// A header's value, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON: {}", self.told()))
    }

    /// The code of the first error in the body; empty when there is none.
    pub(crate) fn code(&self) -> String {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }

    /// Status and the beginning of the body, for people.
    pub(crate) fn told(&self) -> String {
        let text = String::from_utf8_lossy(&self.body[..self.body.len().min(400)]).into_owned();
        format!("{} {}", self.status, text.trim_end())
    }

    /// It has this status.
    pub(crate) fn is(self, status: u16, what: &str) -> Result<Self> {
        ensure!(self.status == status, "{what}: {} instead of {status}", self.told());
        Ok(self)
    }

    /// It says no as the specification wants it: status, code, and a body of JSON.
    pub(crate) fn refuses(&self, status: u16, code: &str, what: &str) -> Result<()> {
        let told = self.told();
        ensure!(self.status == status, "{what}: {told} instead of {status} {code}");
        let kind = self.header("content-type").unwrap_or_default();
        ensure!(kind.starts_with("application/json"), "{what}: an error of type {kind:?}: {told}");
        let body = self.json().with_context(|| what.to_owned())?;
        let errors = body["errors"].as_array().filter(|errors| !errors.is_empty());
        let errors = errors.with_context(|| format!("{what}: no list of errors: {told}"))?;
        ensure!(errors[0]["code"] == code, "{what}: {told} instead of {status} {code}");
        ensure!(errors.iter().all(|error| error["message"].is_string()), "{what}: an error without a message: {told}");
        Ok(())
    }

    /// As [`Self::refuses`] with a failure of ours that will pass: 503, and when to come back.
    pub(crate) fn asks_to_come_back(&self, code: &str, what: &str) -> Result<()> {
        self.refuses(503, code, what)?;
        let after = self.header("retry-after").and_then(|value| value.parse::<u64>().ok());
        ensure!(after.is_some_and(|seconds| (1..=120).contains(&seconds)), "{what}: Retry-After is {after:?} seconds");
        Ok(())
    }
}

// === impl Connection ===

impl Connection {
    pub(crate) fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT)?;
        stream.set_read_timeout(Some(IO_TIMEOUT))?;
        stream.set_write_timeout(Some(IO_TIMEOUT))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, ahead: Vec::new() })
    }

    /// Sends bytes as they are.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends the header of a request; a body is announced by one of `headers`, or there is none.
    pub(crate) fn head(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<()> {
        let host = self.stream.peer_addr()?;
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        self.write(text.as_bytes())
    }

    /// Sends one chunk of a body with `transfer-encoding: chunked`; an empty one ends it.
    pub(crate) fn chunk(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(format!("{:x}\r\n", bytes.len()).as_bytes())?;
        self.write(bytes)?;
        self.write(b"\r\n")
    }

    /// No more will be sent; answers are still read.
    pub(crate) fn end_sending(&self) -> io::Result<()> {
        self.stream.shutdown(Shutdown::Write)
    }

    /// Reads an answer, at most for this long between two bytes.
    pub(crate) fn response_within(&mut self, time: Duration, of_head: bool) -> io::Result<Response> {
        self.stream.set_read_timeout(Some(time))?;
        let response = self.response(of_head);
        self.stream.set_read_timeout(Some(IO_TIMEOUT))?;
        response
    }

    /// Reads an answer; that to a HEAD has no body. Interim answers are passed over.
    pub(crate) fn response(&mut self, of_head: bool) -> io::Result<Response> {
        loop {
            let (status, headers) = self.response_head()?;
            if (100..200).contains(&status) {
                continue;
            }
            let mut response = Response { status, headers, body: Vec::new() };
            let bare = of_head || status == 204 || status == 304;
            if !bare {
                response.body = self.body(&response)?;
            }
            return Ok(response);
        }
    }

    fn response_head(&mut self) -> io::Result<(u16, Vec<(String, String)>)> {
        let end = loop {
            if let Some(at) = self.ahead.windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
            if self.ahead.len() > HEAD_MAX {
                return Err(invalid("the header of an answer does not end"));
            }
            if self.more()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let head: Vec<u8> = self.ahead.drain(..end).collect();
        let head = String::from_utf8(head).map_err(|_| invalid("a header that is no text"))?;
        let mut lines = head.lines();
        let first = lines.next().unwrap_or_default();
        let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        Ok((status.ok_or_else(|| invalid(first))?, headers))
    }

    fn body(&mut self, response: &Response) -> io::Result<Vec<u8>> {
        if response.header("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
            return Err(invalid("the registry knows the length of all it sends"));
        }
        let length = response.header("content-length").and_then(|value| value.parse::<usize>().ok());
        let length = length.ok_or_else(|| invalid("an answer without a length"))?;
        while self.ahead.len() < length {
            if self.more()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.ahead.drain(..length).collect())
    }

    fn more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 64 * 1024];
        let count = self.stream.read(&mut buffer)?;
        self.ahead.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    /// Nothing more comes: the other side has closed it. `false` = it had not when the time was over.
    pub(crate) fn is_closed_within(&mut self, time: Duration) -> io::Result<bool> {
        self.stream.set_read_timeout(Some(time))?;
        let mut buffer = [0; 4096];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(true),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether it can be used for one more request.
    fn is_usable(&self) -> bool {
        let mut byte = [0];
        let waiting = self.stream.set_nonblocking(true).and_then(|()| self.stream.peek(&mut byte));
        let quiet = matches!(&waiting, Err(error) if error.kind() == io::ErrorKind::WouldBlock);
        quiet && self.stream.set_nonblocking(false).is_ok()
    }
}

// === impl Client ===

impl Client {
    pub(crate) const fn new(addr: SocketAddr) -> Self {
        Self { addr, idle: None }
    }

    /// Sends a request and reads its answer.
    ///
    /// An error means that there is none; whether anything was done is not known.
    pub(crate) fn send(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> io::Result<Response> {
        let idle = self.idle.take().filter(Connection::is_usable);
        let may_repeat = idle.is_some() && matches!(method, "GET" | "HEAD");
        let mut connection = match idle {
            Some(connection) => connection,
            None => Connection::open(self.addr)?,
        };
        let length = body.len().to_string();
        let mut all = headers.to_vec();
        if !matches!(method, "GET" | "HEAD") {
            all.push(("content-length", &length));
        }
        // An answer may come before the whole body has gone.
        let sent = connection.head(method, path, &all).and_then(|()| connection.write(body));
        let response = match (connection.response(method == "HEAD"), sent) {
            (Ok(response), _) => response,
            // It was closed in the same moment. All clients do this again.
            (Err(_), _) if may_repeat => return self.send(method, path, headers, body),
            (Err(_), Err(error)) | (Err(error), Ok(())) => return Err(error),
        };
        if response.header("connection") != Some("close") {
            self.idle = Some(connection);
        }
        Ok(response)
    }

    /// As [`Self::send`], for those who take no answer for a failure.
    pub(crate) fn ask(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response> {
        self.send(method, path, headers, body).with_context(|| format!("{method} {path} of {} bytes", body.len()))
    }

    pub(crate) fn get(&mut self, path: &str) -> Result<Response> {
        self.ask("GET", path, &[], &[])
    }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}
