//! The bytes of an answer, as they come.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::slots::Slot;
use super::{Source, SourceError, Waiting};

/// The body of an answer. It ends with `None` only when every byte that was announced has come.
///
/// Dropping it before its end closes the connection (HTTP/1) or the stream (HTTP/2).
pub struct OriginBody {
    host: Box<str>,
    open: Option<Open>,
    expected: Option<u64>,
    got: u64,
    timeout: Duration,
}

/// What is held until the body's end.
struct Open {
    incoming: Incoming,
    _slot: Slot,
    /// Connections are closed when the last handle of their source goes.
    _source: Source,
}

/// A body was larger than its reader allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TooLarge;

// === impl OriginBody ===

impl OriginBody {
    /// A body of no bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self { host: "".into(), open: None, expected: Some(0), got: 0, timeout: Duration::ZERO }
    }

    pub(super) fn new(host: Box<str>, incoming: Incoming, expected: Option<u64>, slot: Slot, source: Source) -> Self {
        let timeout = source.config().body_timeout;
        Self { host, open: Some(Open { incoming, _slot: slot, _source: source }), expected, got: 0, timeout }
    }

    /// Bytes handed out so far.
    #[must_use]
    pub const fn received(&self) -> u64 {
        self.got
    }

    /// The next bytes, never none; `None` at the end. After an error there is nothing more.
    /// Safe to cancel: no byte is lost.
    ///
    /// # Errors
    /// [`SourceError::BodyCutShort`] when the body ends before its announced length or its last chunk,
    /// [`SourceError::Timeout`] when no byte came for `body_timeout`, [`SourceError::Protocol`] when more came than announced.
    pub async fn next(&mut self) -> Option<Result<Bytes, SourceError>> {
        let step = self.step().await;
        if !matches!(step, Ok(Some(_))) {
            self.open = None;
        }
        step.transpose()
    }

    async fn step(&mut self) -> Result<Option<Bytes>, SourceError> {
        let Some(open) = &mut self.open else { return Ok(None) };
        loop {
            let Ok(frame) = tokio::time::timeout(self.timeout, open.incoming.frame()).await else {
                return Err(SourceError::Timeout {
                    host: self.host.clone(),
                    waiting: Waiting::Body,
                    after: self.timeout,
                });
            };
            match frame {
                None if self.expected.is_some_and(|expected| self.got < expected) => return Err(self.cut_short()),
                None => return Ok(None),
                Some(Err(error)) => {
                    tracing::debug!(host = %self.host, %error, got = self.got, expected = self.expected, "body broke off");
                    return Err(match error.is_parse() {
                        true => SourceError::protocol(&self.host, "the body's chunks make no sense"),
                        false => self.cut_short(),
                    });
                }
                Some(Ok(frame)) => {
                    // Trailers say nothing that is used here.
                    let Ok(data) = frame.into_data() else { continue };
                    if data.is_empty() {
                        continue;
                    }
                    self.got += data.len() as u64;
                    if self.expected.is_some_and(|expected| self.got > expected) {
                        return Err(SourceError::protocol(&self.host, "the body is longer than announced"));
                    }
                    return Ok(Some(data));
                }
            }
        }
    }

    fn cut_short(&self) -> SourceError {
        SourceError::BodyCutShort { host: self.host.clone(), expected: self.expected, got: self.got }
    }

    /// All bytes, at most `max` of them.
    pub(super) async fn collect(mut self, max: usize) -> Result<Result<Bytes, TooLarge>, SourceError> {
        let mut all = BytesMut::new();
        while let Some(data) = self.next().await {
            let data = data?;
            if all.len() + data.len() > max {
                return Ok(Err(TooLarge));
            }
            all.extend_from_slice(&data);
        }
        Ok(Ok(all.freeze()))
    }

    /// The first `max` bytes, or as many as come before anything goes wrong or `patience` is over.
    pub(super) async fn start(mut self, max: usize, patience: Duration) -> Bytes {
        let mut start = BytesMut::new();
        let read = async {
            while start.len() < max {
                let Some(Ok(data)) = self.next().await else { break };
                start.extend_from_slice(&data[..data.len().min(max - start.len())]);
            }
        };
        // A status is worth reporting even when its explanation does not come.
        let _ = tokio::time::timeout(patience, read).await;
        start.freeze()
    }
}

impl fmt::Debug for OriginBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OriginBody")
            .field("expected", &self.expected)
            .field("got", &self.got)
            .field("open", &self.open.is_some())
            .finish()
    }
}
