//! One suite for every transport, and what strangers may try.

mod choice;
mod conformance;
mod strangers;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::net::SocketAddr;
use std::time::Duration;

use proto::{ByteRange, HostId, wire};
use wire::frame::Body;

use super::*;

/// Longer than anything here should take, however busy the machine is.
const PATIENCE: Duration = Duration::from_secs(60);

fn host(id: u128) -> wire::HostInfo {
    wire::HostInfo {
        host_id: HostId::new(id).to_bytes().to_vec().into(),
        hostname: format!("host-{id}"),
        ..Default::default()
    }
}

fn config(kinds: &[Kind]) -> TransportConfig {
    TransportConfig {
        listen: vec!["127.0.0.1:0".parse().expect("an address")],
        kinds: kinds.to_vec(),
        hello_timeout: Duration::from_secs(10),
        dial_timeout: Duration::from_secs(15),
        ..TransportConfig::default()
    }
}

async fn bind(id: u128, config: TransportConfig) -> Transport {
    Transport::bind(config, host(id)).await.expect("bound")
}

/// A dialer's channel and the acceptor's, with the endpoints that keep them.
struct Pair {
    a: Transport,
    b: Transport,
    dialled: Channel,
    accepted: Channel,
}

async fn pair_with(a: TransportConfig, b: TransportConfig) -> Pair {
    let (a, b) = (bind(1, a).await, bind(2, b).await);
    let (dialled, accepted) = join(&a, &b, Purpose::Data).await;
    Pair { a, b, dialled, accepted }
}

async fn pair(kind: Kind) -> Pair {
    pair_with(config(&[kind]), config(&[kind])).await
}

async fn join(a: &Transport, b: &Transport, purpose: Purpose) -> (Channel, Channel) {
    let (dialled, accepted) = in_time(async { tokio::join!(a.dial(b.local(), purpose), b.accept()) }).await;
    assert_eq!(accepted.purpose, purpose);
    (dialled.expect("dialled"), accepted.channel)
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

fn ping(nonce: u64) -> Frame {
    Frame { body: Some(Body::Ping(wire::Ping { nonce })) }
}

fn piece(length: u32) -> Frame {
    Frame { body: Some(Body::Piece(wire::Piece { id: 7, length, ..Default::default() })) }
}

/// A frame of this many bytes, about.
fn large(bytes: usize) -> Frame {
    Frame { body: Some(Body::Goodbye(wire::Goodbye { reason: "x".repeat(bytes) })) }
}

/// Bytes that tell where they are from.
fn pattern(length: usize) -> Vec<u8> {
    (0..length as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8).collect()
}

fn file_of(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(bytes).expect("written");
    file.seek(SeekFrom::Start(0)).expect("at its start");
    file
}

fn range(start: u64, end: u64) -> ByteRange {
    ByteRange::new(start, end).expect("not empty")
}

fn address_of(transport: &Transport) -> SocketAddr {
    transport.local().addresses[0].parse().expect("an address")
}
