//! The wire format of this version and of the one before, byte by byte.
//!
//! `golden/v2.txt` has a line for every message and for every body of those that have several. A change here is a
//! change of the protocol: fields may be added (a new line, with `SKIMMER_WRITE_GOLDEN=1`), never changed.
//! `golden/v1.txt` is what a peer of version 1 sends, and `golden/future.txt` what one with unknown fields may send.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use prost::Message;
use prost::bytes::BytesMut;
use proto::frame::{self, FRAME_LEN_MAX, Frame, HELLO_LEN_MAX};
use proto::wire::{self, frame::Body};

use crate::samples;

const SCHEMAS: [&str; 4] = [
    include_str!("../proto/skimmer/v1/common.proto"),
    include_str!("../proto/skimmer/v1/peer.proto"),
    include_str!("../proto/skimmer/v1/cluster.proto"),
    include_str!("../proto/skimmer/v1/daemon.proto"),
];

/// The lines of a golden file: a name, and bytes in hex.
fn golden(text: &str) -> BTreeMap<&str, Vec<u8>> {
    text.lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| line.split_once(' ').unwrap_or((line, "")))
        .map(|(name, bytes)| (name, hex::decode(bytes.trim()).expect("hex")))
        .collect()
}

#[test]
fn every_message_is_what_it_was() {
    let samples = samples::all();
    if std::env::var_os("SKIMMER_WRITE_GOLDEN").is_some() {
        let text: String = samples.iter().map(|s| format!("{} {}\n", s.name, hex::encode(&s.bytes))).collect();
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v2.txt");
        std::fs::write(path, text).expect("written");
        return;
    }
    let golden = golden(include_str!("golden/v2.txt"));
    assert_eq!(golden.len(), samples.len(), "a line for every sample");
    for sample in samples {
        let bytes = &golden[sample.name];
        assert_eq!(hex::encode(&sample.bytes), hex::encode(bytes), "{} is encoded otherwise", sample.name);
        let (same, again) = (sample.read)(bytes);
        assert!(same, "{} is decoded otherwise", sample.name);
        assert_eq!(&again, bytes, "{} does not survive", sample.name);
    }
}

#[test]
fn every_field_of_every_message_has_golden_bytes() {
    let mut covered: BTreeMap<&str, BTreeSet<u64>> = BTreeMap::new();
    for sample in samples::all() {
        let name = sample.name.split('/').next().expect("a name");
        covered.entry(name).or_default().extend(tags(&sample.bytes));
    }
    let mut declared: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    for schema in SCHEMAS {
        declared.extend(messages(schema));
    }
    assert!(declared.len() > 40, "the schemas were read");
    let covered: BTreeMap<String, BTreeSet<u64>> = covered.into_iter().map(|(k, v)| (k.to_owned(), v)).collect();
    assert_eq!(covered, declared);
}

/// The field numbers at the top level of a message.
fn tags(mut bytes: &[u8]) -> Vec<u64> {
    use prost::encoding::{DecodeContext, decode_key, skip_field};
    let mut tags = Vec::new();
    while !bytes.is_empty() {
        let (tag, wire_type) = decode_key(&mut bytes).expect("a key");
        skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).expect("a field");
        tags.push(tag.into());
    }
    tags
}

/// The messages of a schema with their field numbers, as far as our own style of writing goes.
fn messages(schema: &str) -> BTreeMap<String, BTreeSet<u64>> {
    let mut messages: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
    let mut open: Vec<(&str, &str)> = Vec::new();
    let code: String =
        schema.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join(" ");
    for statement in code.split_inclusive(['{', '}', ';']) {
        let (text, end) = statement.split_at(statement.len() - 1);
        let words: Vec<&str> = text.split_whitespace().collect();
        let path = |open: &[(&str, &str)]| {
            open.iter().filter(|(what, _)| *what == "message").map(|(_, name)| *name).collect::<Vec<_>>().join(".")
        };
        match (end, words.as_slice()) {
            ("{", [what, name, ..]) => {
                open.push((what, name));
                if *what == "message" {
                    messages.entry(path(&open)).or_default();
                }
            }
            ("}", _) => {
                open.pop();
            }
            (";", [.., "=", number]) if open.last().is_some_and(|(what, _)| ["message", "oneof"].contains(what)) => {
                messages.entry(path(&open)).or_default().insert(number.parse().expect("a number"));
            }
            _ => {}
        }
    }
    messages
}

fn frame_of(bytes: &[u8], limit: usize) -> Frame {
    let mut buffer = BytesMut::from(bytes);
    let frame = frame::decode(&mut buffer, limit).expect("a frame").expect("a whole one");
    assert!(buffer.is_empty());
    frame
}

fn bytes_of(frame: &Frame) -> Vec<u8> {
    let mut out = BytesMut::new();
    frame::encode(frame, &mut out);
    out.to_vec()
}

#[test]
fn a_peer_of_version_one_is_understood() {
    let golden = golden(include_str!("golden/v1.txt"));
    let hello = frame_of(&golden["Hello"], HELLO_LEN_MAX);
    assert_eq!(bytes_of(&hello), golden["Hello"]);
    let Some(Body::Hello(hello)) = hello.body else { panic!("no hello") };
    assert_eq!((hello.version_min, hello.version_max), (1, 1));
    assert!(hello.version_max >= proto::PROTOCOL_VERSION_MIN, "version 1 is still spoken");
    assert_eq!(hello.purpose(), wire::hello::Purpose::Data);
    let host = hello.host.expect("a host");
    assert_eq!(host.id().expect("an id").to_string(), "000102030405060708090a0b0c0d0e0f");
    assert_eq!(host.addresses, ["10.0.0.7:65001"]);
    // What came with version 2 reads as not said.
    assert_eq!((host.transports, host.upload_rate_bytes_per_s), (Vec::<String>::new(), 0));

    let ack = frame_of(&golden["HelloAck"], HELLO_LEN_MAX);
    assert_eq!(bytes_of(&ack), golden["HelloAck"]);
    let Some(Body::HelloAck(ack)) = ack.body else { panic!("no answer") };
    assert_eq!((ack.version, ack.refused.as_str()), (1, ""));

    let refused = frame_of(&golden["HelloAck/refused"], HELLO_LEN_MAX);
    assert_eq!(bytes_of(&refused), golden["HelloAck/refused"]);
    let Some(Body::HelloAck(refused)) = refused.body else { panic!("no answer") };
    assert_eq!((refused.version, refused.refused.as_str()), (0, "full"));
}

#[test]
fn what_a_later_version_adds_is_passed_over() {
    let golden = golden(include_str!("golden/future.txt"));
    let Some(Body::Hello(hello)) = frame_of(&golden["Hello"], HELLO_LEN_MAX).body else { panic!("no hello") };
    assert_eq!((hello.version_min, hello.version_max), (2, 3));
    assert_eq!(hello.host.expect("a host").hostname, "node-9");
    // A body of a kind that did not exist: a frame without one, which its receiver may ignore.
    assert_eq!(frame_of(&golden["Frame/unknown"], FRAME_LEN_MAX).body, None);
    // A status and a purpose that did not exist read as themselves, not as another.
    let piece = wire::Piece::decode(golden["Piece/unknown_status"].as_slice()).expect("a piece");
    assert!(wire::piece::Status::try_from(piece.status).is_err());
}
