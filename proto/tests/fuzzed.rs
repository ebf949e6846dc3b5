//! The bodies of the fuzz targets on generated input, and round trips.

use proptest::prelude::*;
use prost::Message;
use prost::bytes::BytesMut;
use proto::frame::{self, FRAME_LEN_MAX, Frame};
use proto::wire::{self, frame::Body};
use proto::{ByteRange, Digest, HostId, PieceHash, PieceIndex, PieceSet, TaskSpec};

use crate::samples;

#[allow(unreachable_pub, reason = "a crate of its own in fuzz/")]
#[path = "../../fuzz/src/lib.rs"]
mod targets;

/// Bytes that look like messages: a sample with some of its bytes changed, cut or repeated.
fn mangled() -> impl Strategy<Value = Vec<u8>> {
    let samples: Vec<Vec<u8>> = samples::all().into_iter().map(|sample| sample.bytes).collect();
    let changes = proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (prop::sample::select(samples), changes, any::<prop::sample::Index>(), any::<bool>()).prop_map(
        |(mut bytes, changes, cut, cuts)| {
            bytes.push(0);
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if cuts {
                bytes.truncate(cut.index(bytes.len()));
            }
            bytes
        },
    )
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![mangled(), proptest::collection::vec(any::<u8>(), 0..400)]
}

fn any_spec() -> impl Strategy<Value = TaskSpec> {
    let text = "[ -~äß]{0,12}";
    let digest = proptest::option::of(any::<[u8; 32]>());
    let range = proptest::option::of((0u64..1000, 1u64..u64::MAX / 2));
    let params = proptest::collection::vec("[a-zA-Z*-]{0,8}", 0..4);
    ("[a-z]{1,8}", text, text, digest, params, any::<bool>(), range).prop_map(
        |(path, tag, application, digest, filtered_query_params, addressed, range)| TaskSpec {
            url: format!("https://h/{path}").parse().expect("a url"),
            tag,
            application,
            content_addressed: addressed && digest.is_some(),
            digest: digest.map(|bytes| format!("sha256:{}", hex::encode(bytes)).parse::<Digest>().expect("a digest")),
            filtered_query_params,
            range: range.and_then(|(start, length)| ByteRange::new(start, start + length)),
        },
    )
}

fn any_frame() -> impl Strategy<Value = Frame> {
    let id = || proptest::collection::vec(any::<u8>(), 0..40).prop_map(bytes::Bytes::from);
    let body = prop_oneof![
        any::<u64>().prop_map(|nonce| Body::Ping(wire::Ping { nonce })),
        "[ -~]{0,3000}".prop_map(|reason| Body::Goodbye(wire::Goodbye { reason })),
        proptest::collection::vec(any::<u64>(), 0..300).prop_map(|ids| Body::Cancel(wire::Cancel { ids })),
        (any::<u64>(), id(), id(), any::<u32>(), any::<u32>()).prop_map(
            |(id, task_id, generation, piece, expires_ms)| {
                Body::Request(wire::Request { id, task_id, generation, piece, expires_ms })
            }
        ),
    ];
    proptest::option::of(body).prop_map(|body| Frame { body })
}

proptest! {
    #[test]
    fn frames_of_any_bytes(bytes in any_bytes()) {
        targets::frames(&bytes);
        // As the payload of a frame, which is where the interesting part begins.
        let mut framed = u32::try_from(bytes.len()).expect("short").to_le_bytes().to_vec();
        framed.extend(&bytes);
        targets::frames(&framed);
    }

    #[test]
    fn messages_of_any_bytes(bytes in any_bytes()) {
        targets::messages(&bytes);
    }

    #[test]
    fn texts_of_any_bytes(bytes in any_bytes()) {
        targets::texts(&bytes);
    }

    #[test]
    fn texts_that_look_right(text in "(bytes|sha256|md5)?[=: ]{0,2}[0-9a-f*/,-]{0,70}") {
        targets::texts(text.as_bytes());
    }

    /// Frames survive, however the stream is cut.
    #[test]
    fn frames_round_trip_in_any_parts(frames in proptest::collection::vec(any_frame(), 0..12), parts in proptest::collection::vec(1usize..700, 1..40)) {
        let mut stream = BytesMut::new();
        for frame in &frames {
            frame::encode(frame, &mut stream);
        }
        let (mut buffer, mut read, mut parts) = (BytesMut::new(), Vec::new(), parts.into_iter().cycle());
        while !stream.is_empty() {
            let part = parts.next().expect("cycles").min(stream.len());
            buffer.extend_from_slice(&stream.split_to(part));
            while let Some(frame) = frame::decode(&mut buffer, FRAME_LEN_MAX).expect("frames") {
                read.push(frame);
            }
        }
        prop_assert_eq!(read, frames);
        prop_assert!(buffer.is_empty());
    }

    /// A frame over the limit is refused by its first four bytes.
    #[test]
    fn long_frames_are_refused_at_once(length in 1u32.., limit in 0usize..2_000_000) {
        let mut buffer = BytesMut::from(&length.to_le_bytes()[..]);
        let result = frame::decode(&mut buffer, limit);
        prop_assert_eq!(result.is_err(), length as usize > limit);
    }

    #[test]
    fn specs_round_trip(spec in any_spec()) {
        let bytes = wire::TaskSpec::from(&spec).encode_to_vec();
        let read = TaskSpec::try_from(wire::TaskSpec::decode(bytes.as_slice()).expect("a message")).expect("a spec");
        prop_assert_eq!(read.id(), spec.id());
        prop_assert_eq!(read, spec);
    }

    #[test]
    fn hashes_round_trip(first in any::<u32>(), hashes in proptest::collection::vec(any::<[u8; 32]>(), 0..40), extra in 1usize..32) {
        let hashes: Vec<PieceHash> = hashes.into_iter().map(PieceHash).collect();
        let message = wire::PieceHashes::from_hashes(first, &hashes);
        let read = wire::PieceHashes::decode(message.encode_to_vec().as_slice()).expect("a message");
        prop_assert_eq!(read.checked().expect("whole hashes"), hashes);
        let torn = wire::PieceHashes { first, hashes: [&message.hashes[..], &vec![0; extra]].concat().into() };
        prop_assert!(torn.checked().is_err());
    }

    #[test]
    fn have_maps_round_trip(pieces in proptest::collection::btree_set(0u32..100_000, 0..500)) {
        let set: PieceSet = pieces.into_iter().map(PieceIndex).collect();
        let have = wire::Have { added: Some(set.to_runs()), ..Default::default() };
        let read = wire::Have::decode(have.encode_to_vec().as_slice()).expect("a message");
        prop_assert_eq!(PieceSet::from_runs(&read.added.expect("runs"), 100_000), Ok(set));
    }

    #[test]
    fn host_ids_round_trip(bits in any::<u128>(), length in 0usize..40) {
        let id = HostId::new(bits);
        let info = wire::HostInfo { host_id: id.to_bytes().to_vec().into(), ..Default::default() };
        prop_assert_eq!(info.id().ok(), Some(id));
        let other = wire::HostInfo { host_id: vec![0; length].into(), ..Default::default() };
        prop_assert_eq!(other.id().is_ok(), length == 16);
    }
}

/// Runs that would be cheap to send and dear to keep.
#[test]
fn runs_cannot_ask_for_memory() {
    for runs in [vec![0, u32::MAX], vec![u32::MAX, 1], vec![u32::MAX - 1, 1, u32::MAX, 5], vec![1, 0, 1, 0, 1]] {
        let set = PieceSet::from_runs(&wire::PieceRuns { runs }, 1_000);
        assert!(set.is_err() || set.is_ok_and(|set| set.is_empty()));
    }
}
