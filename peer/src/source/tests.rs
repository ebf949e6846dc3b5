//! Against real servers, and against one that misbehaves.

mod conduct;
mod folders;
mod misbehaviour;
mod servers;
mod web;

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use super::*;

/// No test waits for anything longer than this.
const PATIENCE: Duration = Duration::from_secs(30);

fn source(config: SourceConfig) -> Source {
    Source::new(config).expect("a valid configuration")
}

/// Waits as long as a busy machine may need, and no longer.
fn quick() -> SourceConfig {
    let time = Duration::from_secs(10);
    SourceConfig { connect_timeout: time, header_timeout: time, body_timeout: time, ..SourceConfig::default() }
}

/// For tests about waiting itself.
fn impatient() -> SourceConfig {
    let time = Duration::from_millis(600);
    SourceConfig { connect_timeout: time, header_timeout: time, body_timeout: time, ..SourceConfig::default() }
}

fn at(url: impl AsRef<str>) -> OriginRequest {
    OriginRequest::new(url.as_ref().parse().expect("a url"), Guard::permissive())
}

fn with(mut request: OriginRequest, headers: &[(&'static str, &str)]) -> OriginRequest {
    for (name, value) in headers {
        request.headers.append(*name, value.parse().expect("a header value"));
    }
    request
}

fn part(url: impl AsRef<str>, start: u64, end: u64) -> OriginRequest {
    OriginRequest { range: ByteRange::new(start, end), ..at(url) }
}

async fn read(mut response: OriginResponse) -> Result<Vec<u8>, SourceError> {
    let mut all = Vec::new();
    let mut next = async || tokio::time::timeout(PATIENCE, response.body.next()).await.expect("the body moves");
    while let Some(data) = next().await {
        all.extend_from_slice(&data?);
    }
    assert!(next().await.is_none(), "a body stays at its end");
    Ok(all)
}

async fn get_all(source: &Source, request: OriginRequest) -> Result<Vec<u8>, SourceError> {
    read(source.get(request).await?).await
}

/// Names that exist in one test only; each answer is used up in turn, the last one stays.
struct Names(Mutex<HashMap<&'static str, Vec<Vec<IpAddr>>>>);

impl Names {
    fn new(names: &[(&'static str, &[&[&str]])]) -> Self {
        let parse =
            |answers: &[&[&str]]| answers.iter().map(|a| a.iter().map(|t| t.parse().unwrap()).collect()).collect();
        Self(Mutex::new(names.iter().map(|(name, answers)| (*name, parse(answers))).collect()))
    }
}

impl Resolve for Names {
    fn resolve(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let mut names = self.0.lock();
        let answer =
            names.get_mut(host).map(|answers| if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() });
        let answer = answer.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no such name"));
        Box::pin(std::future::ready(answer))
    }
}

fn pattern(len: usize) -> Bytes {
    (0..len).map(|i| u8::try_from((i * 7 + i / 251) % 256).unwrap()).collect::<Vec<_>>().into()
}
