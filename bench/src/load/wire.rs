//! HTTP/1.1 as bytes: requests to send, and the heads and frames of answers.

use anyhow::{Context, Result, bail, ensure};

/// Headers of one answer; the servers measured send a tenth of it.
pub(super) const HEAD_MAX: usize = 16 * 1024;
/// The line with a chunk's length: hexadecimal digits, and extensions that nobody sends.
const CHUNK_LINE_MAX: usize = 64;

/// What the head of an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Head {
    /// The status.
    pub(super) status: u16,
    /// How the end of the body is known.
    pub(super) framing: Framing,
    /// Where to go next, as it was sent.
    pub(super) location: Option<String>,
    /// The server will close the connection.
    pub(super) closes: bool,
}

/// How the end of a body is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// So many bytes follow.
    Length(u64),
    /// Chunks follow, the last of them empty.
    Chunked,
}

/// Reads the head of an answer, once all of it is there; with it comes its length. Answers of 1xx are skipped.
///
/// # Errors
/// When it is not HTTP/1.1, too long, or leaves the end of the body open.
pub(super) fn parse_head(bytes: &[u8], to_head_request: bool) -> Result<Option<(Head, usize)>> {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        ensure!(bytes.len() < HEAD_MAX, "the head of an answer is longer than {HEAD_MAX} bytes");
        return Ok(None);
    };
    let text = std::str::from_utf8(&bytes[..end]).context("the head of an answer is not text")?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
    let status: u16 = status.with_context(|| format!("{first:?} is no answer of HTTP/1.1"))?;
    if (100..200).contains(&status) {
        let rest = parse_head(&bytes[end + 4..], to_head_request)?;
        return Ok(rest.map(|(head, length)| (head, end + 4 + length)));
    }
    let (mut length, mut chunked, mut location, mut closes) = (None, false, None, false);
    for line in lines {
        let (name, value) = line.split_once(':').with_context(|| format!("{line:?} is no header"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            length = Some(value.parse().with_context(|| format!("{value:?} is no length"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            ensure!(value.eq_ignore_ascii_case("chunked"), "transfer encoding {value:?} is not known");
            chunked = true;
        } else if name.eq_ignore_ascii_case("location") {
            location = Some(value.to_owned());
        } else if name.eq_ignore_ascii_case("connection") {
            closes = value.split(',').any(|token| token.trim().eq_ignore_ascii_case("close"));
        }
    }
    let framing = match length {
        _ if to_head_request || status == 204 || status == 304 => Framing::Length(0),
        _ if chunked => Framing::Chunked,
        Some(length) => Framing::Length(length),
        None => bail!("answer {status} has no length"),
    };
    Ok(Some((Head { status, framing, location, closes }, end + 4)))
}

/// Where a `Location` leads, as the target of the next request; its query stays.
///
/// # Errors
/// When it leads to another server, or is not absolute.
pub(super) fn follow(location: &str, authority: &str) -> Result<String> {
    if location.starts_with('/') && !location.starts_with("//") {
        return Ok(location.to_owned());
    }
    let rest = location.strip_prefix("http://").with_context(|| format!("{location:?} is no place on this server"))?;
    let path = rest.find('/').map_or("/", |at| &rest[at..]);
    let host = &rest[..rest.find('/').unwrap_or(rest.len())];
    ensure!(host == authority, "{location:?} is on another server than {authority}");
    Ok(path.to_owned())
}

/// The target with one parameter more.
pub(super) fn with_parameter(target: &str, name: &str, value: impl std::fmt::Display) -> String {
    let mark = if target.contains('?') { '&' } else { '?' };
    format!("{target}{mark}{name}={value}")
}

/// A request's head; `length` is the body's, `None` when there can be no body.
pub(super) fn request(method: &str, target: &str, authority: &str, length: Option<u64>, headers: &str) -> Vec<u8> {
    let length = length.map_or_else(String::new, |length| format!("Content-Length: {length}\r\n"));
    format!("{method} {target} HTTP/1.1\r\nHost: {authority}\r\n{headers}{length}\r\n").into_bytes()
}

/// Where a chunked body is.
#[derive(Debug, Default)]
pub(super) struct Chunks {
    state: ChunkState,
    line: Vec<u8>,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum ChunkState {
    /// In the line with the length.
    #[default]
    Length,
    /// In a chunk, so many bytes before its end.
    Content(u64),
    /// At the end of the line that follows a chunk.
    AfterContent,
    /// In the lines that follow the last chunk.
    Trailer,
    /// Behind the body.
    End,
}

impl Chunks {
    /// Takes bytes of the connection, gives content to `sink`, and returns how many bytes belonged to the body.
    ///
    /// # Errors
    /// When they are not chunks.
    pub(super) fn take(&mut self, bytes: &[u8], mut sink: impl FnMut(&[u8])) -> Result<usize> {
        let mut at = 0;
        while at < bytes.len() && self.state != ChunkState::End {
            if let ChunkState::Content(left) = self.state {
                let now = left.min((bytes.len() - at) as u64);
                sink(&bytes[at..at + now as usize]);
                at += now as usize;
                self.state = if left == now { ChunkState::AfterContent } else { ChunkState::Content(left - now) };
                continue;
            }
            let byte = bytes[at];
            at += 1;
            if byte != b'\n' {
                ensure!(self.line.len() < CHUNK_LINE_MAX, "a chunk's length is too long");
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            self.state = match self.state {
                ChunkState::Length => match chunk_length(line)? {
                    0 => ChunkState::Trailer,
                    length => ChunkState::Content(length),
                },
                ChunkState::AfterContent if line.is_empty() => ChunkState::Length,
                ChunkState::AfterContent => bail!("a chunk is longer than it says"),
                ChunkState::Trailer if line.is_empty() => ChunkState::End,
                ChunkState::Trailer => ChunkState::Trailer,
                ChunkState::Content(_) | ChunkState::End => unreachable!("lines are read in the other states"),
            };
        }
        Ok(at)
    }

    /// Whether the whole body was taken.
    pub(super) fn is_done(&self) -> bool {
        self.state == ChunkState::End
    }
}

fn chunk_length(line: &[u8]) -> Result<u64> {
    let digits = std::str::from_utf8(line).ok().and_then(|line| line.split(';').next()).map(str::trim);
    let length = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
    length.with_context(|| format!("{:?} is no length of a chunk", String::from_utf8_lossy(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREATED: &[u8] = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nlocation: /v2/a/b?_state=x%3D\r\n\r\nnext";

    #[test]
    fn a_head_is_read_once_it_is_whole() {
        let end = CREATED.len() - 4;
        for cut in 0..end {
            assert_eq!(parse_head(&CREATED[..cut], false).unwrap(), None);
        }
        let (head, length) = parse_head(CREATED, false).unwrap().unwrap();
        let location = Some("/v2/a/b?_state=x%3D".to_owned());
        assert_eq!((head, length), (Head { status: 202, framing: Framing::Length(0), location, closes: false }, end));
    }

    #[test]
    fn framing_follows_the_head() {
        let framing = |text: &str, to_head| parse_head(text.as_bytes(), to_head).map(|head| head.unwrap().0.framing);
        assert_eq!(framing("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false).unwrap(), Framing::Length(5));
        assert_eq!(framing("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true).unwrap(), Framing::Length(0));
        assert_eq!(framing("HTTP/1.1 200 OK\r\nTRANSFER-ENCODING: Chunked\r\n\r\n", false).unwrap(), Framing::Chunked);
        assert_eq!(framing("HTTP/1.1 204 No Content\r\n\r\n", false).unwrap(), Framing::Length(0));
        assert!(framing("HTTP/1.1 200 OK\r\n\r\n", false).is_err());
        assert!(framing("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", false).is_err());
        assert!(framing("HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", false).is_err());
    }

    #[test]
    fn informational_answers_are_skipped_and_closing_is_seen() {
        let text = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}";
        let (head, length) = parse_head(text, false).unwrap().unwrap();
        assert_eq!((head.status, head.closes, length), (400, true, text.len() - 2));
        assert_eq!(parse_head(&text[..30], false).unwrap(), None);
    }

    #[test]
    fn endless_heads_are_refused() {
        assert!(parse_head(&vec![b'x'; HEAD_MAX], false).is_err());
        assert!(parse_head(&vec![b'x'; HEAD_MAX - 1], false).unwrap().is_none());
    }

    #[test]
    fn locations_are_followed_on_the_same_server_only() {
        assert_eq!(follow("/v2/a?_state=b&c=d", "h:1").unwrap(), "/v2/a?_state=b&c=d");
        assert_eq!(follow("http://h:1/v2/a?_state=b", "h:1").unwrap(), "/v2/a?_state=b");
        assert!(follow("http://h:2/v2/a", "h:1").is_err());
        assert!(follow("//h:2/v2/a", "h:1").is_err());
        assert!(follow("https://h:1/v2/a", "h:1").is_err());
        assert!(follow("a", "h:1").is_err());
    }

    #[test]
    fn parameters_join_a_query_that_is_there() {
        assert_eq!(with_parameter("/a", "digest", "sha256:0"), "/a?digest=sha256:0");
        assert_eq!(with_parameter("/a?_state=b", "digest", "sha256:0"), "/a?_state=b&digest=sha256:0");
    }

    #[test]
    fn chunks_are_joined_however_they_are_cut() {
        let text = b"3\r\nabc\r\n1a;x=y\r\nabcdefghijklmnopqrstuvwxyz\r\n0\r\nTrailer: 1\r\n\r\nHTTP/1.1";
        for cut in 1..text.len() {
            let (mut chunks, mut content, mut taken) = (Chunks::default(), Vec::new(), 0);
            for part in text.chunks(cut) {
                taken += chunks.take(part, |bytes| content.extend_from_slice(bytes)).unwrap();
                if chunks.is_done() {
                    break;
                }
            }
            assert!(chunks.is_done());
            assert_eq!((content.as_slice(), taken), (b"abcabcdefghijklmnopqrstuvwxyz".as_slice(), text.len() - 8));
        }
        assert!(Chunks::default().take(b"3\r\nabcd\r\n", |_| ()).is_err());
        assert!(Chunks::default().take(b"-1\r\n", |_| ()).is_err());
    }

    #[test]
    fn requests_have_a_host_and_a_length_where_a_body_may_be() {
        let text = String::from_utf8(request("PUT", "/v2/a?b", "h:1", Some(7), "A: b\r\n")).unwrap();
        assert_eq!(text, "PUT /v2/a?b HTTP/1.1\r\nHost: h:1\r\nA: b\r\nContent-Length: 7\r\n\r\n");
        assert!(!String::from_utf8(request("GET", "/", "h:1", None, "")).unwrap().contains("Content-Length"));
    }
}
