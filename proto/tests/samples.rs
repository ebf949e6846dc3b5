//! A message of every type, each field with a value that can be told from its neighbours'.

use prost::Message;
use proto::wire::*;

/// A message as a test wants it: its name, its bytes, and what its type makes of other bytes.
pub(crate) struct Sample {
    /// The message, and after a slash which of its bodies.
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    /// Whether bytes decode to this very message, and what that message encodes to.
    pub(crate) read: Box<Read>,
}

type Read = dyn Fn(&[u8]) -> (bool, Vec<u8>);

fn sample<M: Message + Default + PartialEq + 'static>(name: &'static str, message: M) -> Sample {
    Sample {
        name,
        bytes: message.encode_to_vec(),
        read: Box::new(move |bytes| {
            let read = M::decode(bytes).expect("a message");
            (read == message, read.encode_to_vec())
        }),
    }
}

fn bytes(first: u8, count: u8) -> bytes::Bytes {
    (0..count).map(|at| first.wrapping_add(at)).collect()
}

fn task_id() -> bytes::Bytes {
    bytes(0x10, 32)
}

fn generation() -> bytes::Bytes {
    bytes(0x80, 16)
}

pub(crate) fn host() -> HostInfo {
    HostInfo {
        host_id: bytes(0xa0, 16),
        hostname: "node-1".into(),
        addresses: vec!["10.0.0.1:65001".into(), "[2001:db8::1]:65001".into()],
        idc: "sh-2".into(),
        location: "asia|cn|sh".into(),
        seed: true,
        transports: vec!["tcp".into(), "quic".into()],
        upload_rate_bytes_per_s: 25_000_000,
    }
}

fn header() -> Header {
    Header { name: "etag".into(), value: bytes(b'"', 3) }
}

pub(crate) fn spec() -> TaskSpec {
    TaskSpec {
        url: "https://example.com/f?v=1".into(),
        tag: "nightly".into(),
        application: "ci".into(),
        digest: format!("sha256:{}", "ab".repeat(32)),
        filtered_query_params: vec!["token".into(), "sig*".into()],
        content_addressed: true,
        range_start: Some(0),
        range_end: Some(1 << 40),
    }
}

fn hashes() -> PieceHashes {
    PieceHashes { first: 300, hashes: bytes(0, 64) }
}

fn meta() -> TaskMeta {
    TaskMeta {
        task_id: task_id(),
        generation: generation(),
        length: Some(5_000_000_000),
        piece_len: 4 << 20,
        digest: format!("md5:{}", "0f".repeat(16)),
        root: bytes(0xc0, 32),
        guarded: true,
        headers: vec![header(), Header { name: "content-type".into(), value: "text/plain".into() }],
        spec: Some(spec()),
    }
}

fn new_hashes() -> NewHashes {
    NewHashes {
        task_id: task_id(),
        generation: generation(),
        hashes: Some(hashes()),
        length: Some(0),
        root: bytes(0xc0, 32),
    }
}

fn verify() -> Verify {
    Verify { task_id: task_id(), generation: generation() }
}

fn discard() -> Discard {
    Discard { task_id: task_id(), generation: generation(), reason: "digest".into() }
}

/// All of them.
pub(crate) fn all() -> Vec<Sample> {
    [common(), peer(), frames(), daemon_to_supernode(), supernode_to_daemon(), news(), download()]
        .into_iter()
        .flatten()
        .collect()
}

fn common() -> Vec<Sample> {
    vec![
        sample("TaskSpec", spec()),
        sample("Header", header()),
        sample("TaskMeta", meta()),
        sample("PieceHashes", hashes()),
        sample("PieceRuns", PieceRuns { runs: vec![0, 5, 1, 300, 70_000, 1] }),
        sample("HostInfo", host()),
    ]
}

fn hello() -> Hello {
    Hello { version_min: 1, version_max: 2, host: Some(host()), purpose: hello::Purpose::Data.into() }
}

fn hello_ack() -> HelloAck {
    HelloAck { version: 2, host: Some(host()), refused: "full".into() }
}

fn subscribe() -> Subscribe {
    Subscribe { task_id: task_id(), generation: generation() }
}

fn unsubscribe() -> Unsubscribe {
    Unsubscribe { task_id: task_id(), generation: generation() }
}

fn have() -> Have {
    Have {
        task_id: task_id(),
        generation: generation(),
        added: Some(PieceRuns { runs: vec![3, 4] }),
        replaces: true,
        queued_bytes_kib: 4096,
        upload_kib_per_s: 24_000,
        gone: true,
    }
}

fn request() -> Request {
    Request { id: 1 << 33, task_id: task_id(), generation: generation(), piece: 511, expires_ms: 30_000 }
}

fn piece() -> Piece {
    Piece { id: 1 << 33, status: piece::Status::Failed.into(), length: 4 << 20, queued_bytes_kib: 12 }
}

fn cancel() -> Cancel {
    Cancel { ids: vec![1, 128, 1 << 33] }
}

fn ask_meta() -> AskMeta {
    AskMeta { task_id: task_id(), generation: generation(), first: 16_384 }
}

fn told_meta() -> Meta {
    Meta { meta: Some(meta()), hashes: Some(hashes()), task_id: task_id() }
}

fn goodbye() -> Goodbye {
    Goodbye { reason: "shutting down".into() }
}

fn peer() -> Vec<Sample> {
    vec![
        sample("Hello", hello()),
        sample("HelloAck", hello_ack()),
        sample("Subscribe", subscribe()),
        sample("Unsubscribe", unsubscribe()),
        sample("Have", have()),
        sample("Request", request()),
        sample("Piece", piece()),
        sample("Cancel", cancel()),
        sample("AskMeta", ask_meta()),
        sample("Meta", told_meta()),
        sample("Ping", Ping { nonce: u64::MAX }),
        sample("Pong", Pong { nonce: 7 }),
        sample("Goodbye", goodbye()),
    ]
}

fn frames() -> Vec<Sample> {
    use frame::Body;
    [
        ("Frame/hello", Body::Hello(hello())),
        ("Frame/hello_ack", Body::HelloAck(hello_ack())),
        ("Frame/subscribe", Body::Subscribe(subscribe())),
        ("Frame/unsubscribe", Body::Unsubscribe(unsubscribe())),
        ("Frame/have", Body::Have(have())),
        ("Frame/cancel", Body::Cancel(cancel())),
        ("Frame/request", Body::Request(request())),
        ("Frame/piece", Body::Piece(piece())),
        ("Frame/ask_meta", Body::AskMeta(ask_meta())),
        ("Frame/meta", Body::Meta(told_meta())),
        ("Frame/ping", Body::Ping(Ping { nonce: 1 })),
        ("Frame/pong", Body::Pong(Pong { nonce: 1 })),
        ("Frame/goodbye", Body::Goodbye(goodbye())),
    ]
    .map(|(name, body)| sample(name, Frame { body: Some(body) }))
    .into()
}

fn daemon_to_supernode() -> Vec<Sample> {
    use from_daemon::Body;
    let hello = SessionHello { version_min: 1, version_max: 2, host: Some(host()), inventory_total: 1000 };
    let item = inventory::Item {
        task_id: task_id(),
        generation: generation(),
        complete: true,
        pieces: 512,
        downloading: true,
    };
    let inventory = Inventory { items: vec![item.clone(), inventory::Item::default()], last: true };
    let open = OpenTask {
        task_id: task_id(),
        spec: Some(spec()),
        headers: vec![header()],
        have_generation: generation(),
        have_pieces: 9,
        priority: 6,
        never_origin: true,
    };
    let close = CloseTask { task_id: task_id(), complete: true };
    let progress = Progress { task_id: task_id(), generation: generation(), pieces: 100, neighbours: 32 };
    let need = NeedPeers {
        task_id: task_id(),
        generation: generation(),
        wanted: 8,
        unreachable: vec![bytes(1, 16), bytes(2, 16)],
    };
    let bad = BadPiece { task_id: task_id(), generation: generation(), piece: 17, host_id: bytes(0xa0, 16) };
    let leave = Leave { reason: "drained".into() };
    let of = |name, body| sample(name, FromDaemon { body: Some(body) });
    vec![
        of("FromDaemon/hello", Body::Hello(hello.clone())),
        of("FromDaemon/inventory", Body::Inventory(inventory.clone())),
        of("FromDaemon/open", Body::Open(open.clone())),
        of("FromDaemon/close", Body::Close(close.clone())),
        of("FromDaemon/progress", Body::Progress(progress.clone())),
        of("FromDaemon/need_peers", Body::NeedPeers(need.clone())),
        of("FromDaemon/bad_piece", Body::BadPiece(bad.clone())),
        of("FromDaemon/leave", Body::Leave(leave.clone())),
        sample("SessionHello", hello),
        sample("Inventory", inventory),
        sample("Inventory.Item", item),
        sample("OpenTask", open),
        sample("CloseTask", close),
        sample("Progress", progress),
        sample("NeedPeers", need),
        sample("BadPiece", bad),
        sample("Leave", leave),
    ]
}

fn supernode_to_daemon() -> Vec<Sample> {
    use from_supernode::Body;
    let welcome = Welcome { version: 2, supernode_id: bytes(0xb0, 16), refused: "too old".into() };
    let opened = Opened { meta: Some(meta()) };
    let peers = Peers { task_id: task_id(), generation: generation(), peers: vec![host(), HostInfo::default()] };
    let lease = Lease { task_id: task_id(), generation: generation(), start: 1, end: 1 << 35, ttl_ms: 60_000 };
    let refuse = Refuse {
        task_id: task_id(),
        kind: Kind::NoSpace.into(),
        message: "no room".into(),
        origin_status: 429,
        headers: vec![header()],
        retry_after_ms: 5_000,
    };
    let of = |name, body| sample(name, FromSupernode { body: Some(body) });
    vec![
        of("FromSupernode/welcome", Body::Welcome(welcome.clone())),
        of("FromSupernode/opened", Body::Opened(opened.clone())),
        of("FromSupernode/peers", Body::Peers(peers.clone())),
        of("FromSupernode/hashes", Body::Hashes(new_hashes())),
        of("FromSupernode/lease", Body::Lease(lease.clone())),
        of("FromSupernode/refuse", Body::Refuse(refuse.clone())),
        of("FromSupernode/discard", Body::Discard(discard())),
        of("FromSupernode/verify", Body::Verify(verify())),
        sample("Welcome", welcome),
        sample("Opened", opened),
        sample("Peers", peers),
        sample("NewHashes", new_hashes()),
        sample("Lease", lease),
        sample("Refuse", refuse),
        sample("Discard", discard()),
        sample("Verify", verify()),
    ]
}

fn news() -> Vec<Sample> {
    use task_news::Body;
    let of = |name, body| sample(name, TaskNews { supernode_id: bytes(0xb0, 16), body: Some(body) });
    vec![
        of("TaskNews/meta", Body::Meta(meta())),
        of("TaskNews/hashes", Body::Hashes(new_hashes())),
        of("TaskNews/discard", Body::Discard(discard())),
        sample("ReplicateDone", ReplicateDone {}),
    ]
}

fn download() -> Vec<Sample> {
    use download_event::Body;
    let request = DownloadRequest {
        spec: Some(spec()),
        headers: vec![header()],
        output: "/var/tmp/f".into(),
        overwrite: true,
        force_hard_link: true,
        original_offset: true,
        rate_bytes_per_s: 1_000_000,
        rate_min_bytes_per_s: 20_000,
        timeout_ms: 90_000,
        priority: 3,
        route: download_request::Route::OriginOnly.into(),
        disable_back_to_source: true,
        uid: 1000,
        gid: 100,
        total_rate_bytes_per_s: 5_000_000,
    };
    let started = DownloadStarted { meta: Some(meta()), from_cache: true };
    let progress = DownloadProgress { bytes: 1 << 32, from_peers: 3, from_origin: 2, from_cache: 1 };
    let done =
        DownloadDone { length: 1 << 33, from_peers: 6, from_origin: 5, from_cache: 4, output_by: "reflink".into() };
    let failed =
        DownloadFailed { kind: Kind::Corrupt.into(), message: "digest".into(), origin_status: 404, reason: 10 };
    let of = |name, body| sample(name, DownloadEvent { body: Some(body) });
    vec![
        sample("DownloadRequest", request),
        of("DownloadEvent/started", Body::Started(started.clone())),
        of("DownloadEvent/progress", Body::Progress(progress)),
        of("DownloadEvent/done", Body::Done(done.clone())),
        of("DownloadEvent/failed", Body::Failed(failed.clone())),
        of("DownloadEvent/data", Body::Data(bytes(0xd0, 10))),
        sample("DownloadStarted", started),
        sample("DownloadProgress", progress),
        sample("DownloadDone", done),
        sample("DownloadFailed", failed),
        sample("InfoRequest", InfoRequest {}),
        sample(
            "InfoReply",
            InfoReply { host: Some(host()), version: "0.1.0".into(), supernodes: vec!["http://sn:1".into()] },
        ),
    ]
}
