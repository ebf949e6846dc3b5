//! What the fuzz targets do. Each takes any bytes, must not panic, and checks what has to hold for all input.

use prost::Message;
use prost::bytes::{Buf, BytesMut};
use proto::frame::{self, FRAME_LEN_MAX, Frame};
use proto::wire::{self, frame::Body};
use proto::{ByteRange, ContentRange, Digest, Generation, HostId, PieceSet, RangeHeader, TaskId, TaskSpec};

/// Pieces a content may have in these checks: more than any real one.
const PIECES_MAX: u32 = 1 << 22;

/// Reads a stream of frames, once as a whole and once in parts: the same frames, or an error in both.
pub fn frames(bytes: &[u8]) {
    let whole = read(bytes, bytes.len().max(1));
    let part = bytes.first().map_or(1, |&first| usize::from(first) + 1);
    assert_eq!(whole, read(bytes, part));
    for frame in &whole.0 {
        let mut again = BytesMut::new();
        frame::encode(frame, &mut again);
        // Encoding is not unique, but what we write we read back.
        assert_eq!(frame::decode(&mut again, FRAME_LEN_MAX).expect("our own").as_ref(), Some(frame));
        assert!(again.is_empty());
        convert(frame);
    }
}

/// The frames up to the first error, and whether there was one.
fn read(mut bytes: &[u8], part: usize) -> (Vec<Frame>, bool) {
    let (mut buffer, mut frames) = (BytesMut::new(), Vec::new());
    while bytes.has_remaining() {
        let count = part.min(bytes.len());
        buffer.extend_from_slice(&bytes[..count]);
        bytes.advance(count);
        loop {
            match frame::decode(&mut buffer, FRAME_LEN_MAX) {
                Ok(Some(frame)) => frames.push(frame),
                Ok(None) => break,
                Err(_) => return (frames, true),
            }
        }
    }
    (frames, false)
}

fn convert(frame: &Frame) {
    match &frame.body {
        Some(Body::Hello(hello)) => hello.host.iter().for_each(host),
        Some(Body::HelloAck(ack)) => ack.host.iter().for_each(host),
        Some(Body::Subscribe(m)) => key(&m.task_id, &m.generation),
        Some(Body::Unsubscribe(m)) => key(&m.task_id, &m.generation),
        Some(Body::Request(m)) => key(&m.task_id, &m.generation),
        Some(Body::AskMeta(m)) => key(&m.task_id, &m.generation),
        Some(Body::Have(have)) => {
            key(&have.task_id, &have.generation);
            have.added.iter().for_each(runs);
        }
        Some(Body::Meta(m)) => {
            m.meta.iter().for_each(meta);
            m.hashes.iter().for_each(hashes);
        }
        _ => {}
    }
}

/// Reads the bytes as every message that comes from strangers.
pub fn messages(bytes: &[u8]) {
    if let Ok(frame) = Frame::decode(bytes) {
        convert(&frame);
    }
    each(bytes, host);
    each(bytes, meta);
    each(bytes, hashes);
    each(bytes, runs);
    each(bytes, |spec: &wire::TaskSpec| {
        if let Ok(spec) = TaskSpec::try_from(spec.clone()) {
            let again = TaskSpec::try_from(wire::TaskSpec::from(&spec)).expect("our own");
            assert_eq!(again.id(), spec.id());
            assert_eq!(again, spec);
        }
    });
    each(bytes, |news: &wire::NewHashes| {
        let _ = news.checked_root();
        news.hashes.iter().for_each(hashes);
    });
    each(bytes, |_: &wire::FromDaemon| {});
    each(bytes, |_: &wire::FromSupernode| {});
    each(bytes, |_: &wire::TaskNews| {});
    each(bytes, |_: &wire::DownloadRequest| {});
    each(bytes, |_: &wire::DownloadEvent| {});
}

fn each<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8], check: impl FnOnce(&M)) {
    if let Ok(message) = M::decode(bytes) {
        let again = M::decode(message.encode_to_vec().as_slice()).expect("our own");
        assert_eq!(again, message);
        check(&message);
    }
}

fn host(host: &wire::HostInfo) {
    if let Ok(id) = host.id() {
        assert_eq!(id.to_bytes(), *host.host_id);
        assert_eq!(id.to_string().parse::<HostId>(), Ok(id));
    }
}

fn key(task: &[u8], generation: &[u8]) {
    if let Ok(task) = TaskId::from_bytes(task) {
        assert_eq!(task.to_string().parse::<TaskId>(), Ok(task));
    }
    if let Ok(generation) = Generation::from_bytes(generation) {
        assert_eq!(generation.to_string().parse::<Generation>(), Ok(generation));
    }
}

fn meta(meta: &wire::TaskMeta) {
    let _ = (meta.key(), meta.checked_root());
    if let Ok(Some(digest)) = meta.checked_digest() {
        assert_eq!(digest.to_string().parse::<Digest>().expect("our own"), digest);
    }
    if let Ok(layout) = meta.layout()
        && let Some(count) = layout.count()
    {
        // The last piece ends where the content does, and nothing comes after it.
        let end = count.checked_sub(1).and_then(|last| layout.range(proto::PieceIndex(last))).map_or(0, ByteRange::end);
        assert_eq!(Some(end), meta.length);
        assert_eq!(layout.range(proto::PieceIndex(count)), None);
    }
}

fn hashes(hashes: &wire::PieceHashes) {
    if let Ok(checked) = hashes.checked() {
        assert_eq!(wire::PieceHashes::from_hashes(hashes.first, &checked), *hashes);
    }
}

fn runs(runs: &wire::PieceRuns) {
    if let Ok(set) = PieceSet::from_runs(runs, PIECES_MAX) {
        assert!(set.iter().all(|piece| piece.0 < PIECES_MAX));
        assert_eq!(PieceSet::from_runs(&set.to_runs(), PIECES_MAX), Ok(set));
    }
}

/// Reads the bytes as every text that comes from strangers.
pub fn texts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string().parse::<Digest>().expect("our own"), digest);
    }
    let _ = (text.parse::<HostId>(), text.parse::<TaskId>(), text.parse::<Generation>());
    if let Ok(range) = ByteRange::parse_inclusive(text) {
        assert!(range.len() > 0);
        assert_eq!(ByteRange::parse_inclusive(&range.to_string()), Ok(range));
    }
    if let Ok(header) = RangeHeader::parse(text) {
        for length in [0, 1, 1000, u64::MAX] {
            for range in header.resolve(length).into_iter().flatten() {
                assert!(range.start() < range.end() && range.end() <= length);
            }
        }
    }
    if let Ok(range) = ContentRange::parse(text) {
        assert_eq!(ContentRange::parse(&range.to_string()), Ok(range));
    }
}
