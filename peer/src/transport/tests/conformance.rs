//! What every transport has to do.

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::*;
use crate::limit::Limit;

macro_rules! conformance {
    ($($test:ident),* $(,)?) => {
        mod tcp {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::in_time(super::$test(super::Kind::Tcp)).await;
            })*
        }
        mod quic {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::in_time(super::$test(super::Kind::Quic)).await;
            })*
        }
    };
}

conformance!(
    tells_who_is_there,
    frames_go_both_ways,
    contents_of_all_sizes,
    content_in_parts_between_frames,
    many_channels,
    content_broken_off,
    content_file_too_short,
    frame_too_long_to_send,
    sender_ends_between_frames,
    receiver_goes,
    receiver_does_not_read,
    sender_falls_silent,
    receive_may_be_dropped,
    limit_paces_content,
    version_is_the_highest_common,
    version_refused,
    ipv6,
    several_addresses,
    other_host_at_the_first_address,
    connections_are_limited,
    last_words_survive_shutdown,
    nothing_after_shutdown,
    peer_restarts_at_the_same_address,
);

async fn tells_who_is_there(kind: Kind) {
    let Pair { a, b, dialled, accepted } = pair(kind).await;
    assert_eq!(dialled.remote(), b.local());
    assert_eq!(accepted.remote(), a.local());
    assert_eq!((dialled.kind(), accepted.kind()), (kind, kind));
    assert_eq!((dialled.version(), accepted.version()), (proto::PROTOCOL_VERSION, proto::PROTOCOL_VERSION));
    assert_eq!(dialled.peer_addr(), address_of(&b));
    let (dialled, accepted) = join(&a, &b, Purpose::Control).await;
    assert_eq!(dialled.remote().hostname, "host-2");
    assert_eq!(accepted.remote().hostname, "host-1");
}

async fn frames_go_both_ways(kind: Kind) {
    let Pair { a: _a, b: _b, dialled, accepted } = pair(kind).await;
    let (mut to_b, mut from_b) = dialled.split();
    let (mut to_a, mut from_a) = accepted.split();
    let frames: Vec<Frame> =
        (0..200).map(ping).chain([0, 1, 16_383, 100_000, 1_000_000].map(large)).chain([ping(1)]).collect();
    let send = |mut to: Sender, frames: Vec<Frame>| async move {
        for frame in &frames {
            to.send(frame).await.expect("sent");
        }
        to
    };
    let one = tokio::spawn(send(to_b, frames.clone()));
    let other = tokio::spawn(send(to_a, frames.clone()));
    for frame in &frames {
        assert!(from_a.recv().await.expect("received") == *frame);
        assert!(from_b.recv().await.expect("received") == *frame);
    }
    (to_b, to_a) = (one.await.expect("no panic"), other.await.expect("no panic"));
    to_b.send(&ping(9)).await.expect("sent");
    to_a.send(&ping(8)).await.expect("sent");
    assert_eq!(from_a.recv().await.expect("received"), ping(9));
    assert_eq!(from_b.recv().await.expect("received"), ping(8));
}

async fn contents_of_all_sizes(kind: Kind) {
    let Pair { a: _a, b: _b, dialled, accepted } = pair(kind).await;
    let bytes = pattern(9 * 1024 * 1024 + 13);
    let ranges: Vec<ByteRange> = [
        (0, 1),
        (1, 8),
        (16_380, 16_384),
        (3, 16_387),
        (4_095, 69_634),
        (262_143, 524_289),
        (1, 4 * 1024 * 1024 + 1),
        (4 * 1024 * 1024, 8 * 1024 * 1024),
        (0, bytes.len() as u64),
    ]
    .map(|(start, end)| range(start, end))
    .into();
    let file = file_of(&bytes);
    let (mut sender, _keep) = dialled.split();
    let expected = ranges.clone();
    let sending = tokio::spawn(async move {
        for range in ranges {
            let header = piece(u32::try_from(range.len()).expect("fits"));
            sender.send_content(&header, &file, range, &Limit::unlimited()).await.expect("sent");
        }
        sender.send(&ping(3)).await.expect("sent");
        sender.finish().await.expect("finished");
    });
    let (_keep, mut receiver) = accepted.split();
    for range in expected {
        assert_eq!(receiver.recv().await.expect("received"), piece(u32::try_from(range.len()).expect("fits")));
        let mut out = vec![0; usize::try_from(range.len()).expect("fits")];
        receiver.recv_exact(&mut out).await.expect("received");
        let (start, end) = (usize::try_from(range.start()).unwrap(), usize::try_from(range.end()).unwrap());
        assert!(out == bytes[start..end], "{range}");
    }
    assert_eq!(receiver.recv().await.expect("received"), ping(3));
    assert!(matches!(receiver.recv().await, Err(RecvError::Closed)));
    sending.await.expect("no panic");
}

async fn content_in_parts_between_frames(kind: Kind) {
    let Pair { a: _a, b: _b, dialled, accepted } = pair(kind).await;
    let bytes = pattern(1_000_003);
    let file = file_of(&bytes);
    let sending = tokio::spawn(async move {
        let (mut sender, keep) = dialled.split();
        for _ in 0..3 {
            sender
                .send_content(&piece(1_000_003), &file, range(0, 1_000_003), &Limit::unlimited())
                .await
                .expect("sent");
            sender.send(&ping(1)).await.expect("sent");
        }
        (sender, keep)
    });
    let (_keep, mut receiver) = accepted.split();
    for _ in 0..3 {
        assert_eq!(receiver.recv().await.expect("received"), piece(1_000_003));
        let mut got = Vec::new();
        let mut part = vec![0; 300_000];
        while got.len() < bytes.len() {
            let want = part.len().min(bytes.len() - got.len());
            let count = receiver.recv_some(&mut part[..want]).await.expect("received");
            assert!(count > 0);
            got.extend_from_slice(&part[..count]);
        }
        assert!(got == bytes);
        assert_eq!(receiver.recv().await.expect("received"), ping(1));
    }
    assert_eq!(receiver.recv_some(&mut []).await.expect("nothing asked"), 0);
    sending.await.expect("no panic");
}

async fn many_channels(kind: Kind) {
    let Pair { a, b, .. } = pair(kind).await;
    let length = 700_001;
    let bytes = Arc::new(pattern(length as usize));
    let mut tasks = JoinSet::new();
    for _ in 0..40 {
        let (dialled, accepted) = join(&a, &b, Purpose::Data).await;
        let bytes = Arc::clone(&bytes);
        let file = file_of(&bytes);
        tasks.spawn(async move {
            let (mut sender, _keep) = dialled.split();
            sender
                .send_content(&piece(length), &file, range(0, length.into()), &Limit::unlimited())
                .await
                .expect("sent");
            sender.finish().await.expect("finished");
        });
        tasks.spawn(async move {
            let (_keep, mut receiver) = accepted.split();
            receiver.recv().await.expect("received");
            let mut out = vec![0; length as usize];
            receiver.recv_exact(&mut out).await.expect("received");
            assert!(out == *bytes);
            assert!(matches!(receiver.recv().await, Err(RecvError::Closed)));
        });
    }
    tasks.join_all().await;
}

async fn content_broken_off(kind: Kind) {
    let Pair { a: _a, b: _b, dialled, accepted } = pair(kind).await;
    let length = 64 * 1024 * 1024;
    let file = file_of(&pattern(1024));
    file.set_len(length).expect("sparse");
    let (mut sender, _keep) = dialled.split();
    let (_keep, mut receiver) = accepted.split();
    let (header, slow) = (piece(u32::try_from(length).expect("fits")), Limit::new(Some(2_000_000)));
    let sending = sender.send_content(&header, &file, range(0, length), &slow);
    // Received meanwhile: breaking off may take with it what the receiver has not yet read.
    let (sent, received) = tokio::join!(timeout(Duration::from_millis(300), sending), receiver.recv());
    assert!(sent.is_err());
    assert_eq!(received.expect("received"), header);
    assert!(matches!(sender.send(&ping(1)).await, Err(SendError::Unfinished)));
    let again = sender.send_content(&piece(1), &file, range(0, 1), &Limit::unlimited()).await;
    assert!(matches!(again, Err(SendError::Unfinished)));
    drop(sender);
    let mut out = vec![0; usize::try_from(length).expect("fits")];
    let error = receiver.recv_exact(&mut out).await.expect_err("broken off");
    assert!(matches!(error, RecvError::Truncated), "{error:?}");
}

async fn content_file_too_short(kind: Kind) {
    let Pair { a: _a, b: _b, dialled, accepted } = pair(kind).await;
    let file = file_of(&pattern(100_000));
    let (mut sender, _keep) = dialled.split();
    let (_keep, mut receiver) = accepted.split();
    let (header, none) = (piece(200_000), Limit::unlimited());
    let sending = sender.send_content(&header, &file, range(50_000, 250_000), &none);
    let (result, received) = tokio::join!(sending, receiver.recv());
    assert!(matches!(result, Err(SendError::ContentEnded { at: 100_000 })), "{result:?}");
    received.expect("received");
    drop(sender);
    assert!(matches!(receiver.recv_exact(&mut vec![0; 200_000]).await, Err(RecvError::Truncated)));
}

async fn frame_too_long_to_send(kind: Kind) {
    let Pair { a: _a, b: _b, dialled, accepted } = pair(kind).await;
    let (mut sender, _keep) = dialled.split();
    let error = sender.send(&large(proto::frame::FRAME_LEN_MAX)).await.expect_err("too long");
    assert!(matches!(error, SendError::TooLong { .. }), "{error:?}");
    sender.send(&ping(1)).await.expect("still of use");
    let (_keep, mut receiver) = accepted.split();
    assert_eq!(receiver.recv().await.expect("received"), ping(1));
}

async fn sender_ends_between_frames(kind: Kind) {
    let Pair { a: _a, b: _b, dialled, accepted } = pair(kind).await;
    let (mut sender, mut back) = dialled.split();
    let (mut answer, mut receiver) = accepted.split();
    sender.send(&ping(1)).await.expect("sent");
    drop(sender);
    assert_eq!(receiver.recv().await.expect("received"), ping(1));
    assert!(matches!(receiver.recv().await, Err(RecvError::Closed)));
    // The other direction lives on.
    answer.send(&ping(2)).await.expect("sent");
    assert_eq!(back.recv().await.expect("received"), ping(2));
}

async fn receiver_goes(kind: Kind) {
    let Pair { a: _a, b: _b, dialled, accepted } = pair(kind).await;
    drop(accepted);
    let (mut sender, mut receiver) = dialled.split();
    let file = file_of(&[]);
    file.set_len(1 << 30).expect("sparse");
    let error = sender
        .send_content(&piece(1 << 30), &file, range(0, 1 << 30), &Limit::unlimited())
        .await
        .expect_err("nobody there");
    assert!(matches!(error, SendError::Closed), "{error:?}");
    assert!(matches!(receiver.recv().await, Err(RecvError::Closed)));
}

async fn receiver_does_not_read(kind: Kind) {
    let config = TransportConfig {
        progress_timeout: Duration::from_millis(500),
        quic_window_bytes: 1024 * 1024,
        ..config(&[kind])
    };
    let Pair { a: _a, b: _b, dialled, accepted } = pair_with(config.clone(), config).await;
    let (mut sender, _keep) = dialled.split();
    let file = file_of(&[]);
    file.set_len(1 << 30).expect("sparse");
    let error = sender
        .send_content(&piece(1 << 30), &file, range(0, 1 << 30), &Limit::unlimited())
        .await
        .expect_err("nobody reads");
    // TCP's own user timeout may notice as well.
    assert!(matches!(error, SendError::Stalled { .. } | SendError::Io(_)), "{error:?}");
    drop(accepted);
}

async fn sender_falls_silent(kind: Kind) {
    let config = TransportConfig {
        progress_timeout: Duration::from_millis(300),
        frame_timeout: Duration::from_millis(300),
        ..config(&[kind])
    };
    let Pair { a, b, dialled, accepted } = pair_with(config.clone(), config).await;
    let (mut sender, _keep) = dialled.split();
    let (_keep_too, mut receiver) = accepted.split();
    let file = file_of(&pattern(1000));
    // A silence between frames is none.
    assert!(timeout(Duration::from_millis(900), receiver.recv()).await.is_err());
    sender.send_content(&piece(2000), &file, range(0, 1000), &Limit::unlimited()).await.expect("sent");
    receiver.recv().await.expect("received");
    let error = receiver.recv_exact(&mut [0; 2000]).await.expect_err("silence");
    assert!(matches!(error, RecvError::Stalled { .. }), "{error:?}");
    // In the middle of a frame: the limit stops the content, which here is half a frame.
    let (dialled, accepted) = join(&a, &b, Purpose::Data).await;
    let (mut sender, _keep) = dialled.split();
    let (_keep_too, mut receiver) = accepted.split();
    let mut half = bytes::BytesMut::new();
    proto::frame::encode(&large(5000), &mut half);
    sender.send_content(&ping(1), &file_of(&half), range(0, 2000), &Limit::unlimited()).await.expect("sent");
    assert_eq!(receiver.recv().await.expect("received"), ping(1));
    let error = receiver.recv().await.expect_err("silence");
    assert!(matches!(error, RecvError::Stalled { .. }), "{error:?}");
}

async fn receive_may_be_dropped(kind: Kind) {
    let Pair { a: _a, b: _b, dialled, accepted } = pair(kind).await;
    let (mut sender, _keep) = dialled.split();
    let (_keep_too, mut receiver) = accepted.split();
    let frames: Vec<Frame> = (0..30).map(|n| large(n * 30_000)).collect();
    let sent = frames.clone();
    let sending = tokio::spawn(async move {
        for frame in &sent {
            sender.send(frame).await.expect("sent");
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
        sender
    });
    let mut got = Vec::new();
    while got.len() < frames.len() {
        if let Ok(frame) = timeout(Duration::from_micros(200), receiver.recv()).await {
            got.push(frame.expect("received"));
        }
    }
    assert!(got == frames);
    sending.await.expect("no panic");
}

async fn limit_paces_content(kind: Kind) {
    let Pair { a: _a, b: _b, dialled, accepted } = pair(kind).await;
    let (mut sender, _keep) = dialled.split();
    let (_keep_too, mut receiver) = accepted.split();
    let file = file_of(&pattern(2_000_000));
    let limit = Limit::new(Some(2_000_000)).child(None);
    let start = Instant::now();
    let receiving = tokio::spawn(async move {
        receiver.recv().await.expect("received");
        let mut out = vec![0; 2_000_000];
        receiver.recv_exact(&mut out).await.expect("received");
        out
    });
    sender.send_content(&piece(2_000_000), &file, range(0, 2_000_000), &limit).await.expect("sent");
    let out = receiving.await.expect("no panic");
    let took = start.elapsed();
    assert!(out == pattern(2_000_000));
    assert!(took > Duration::from_millis(900), "{took:?}");
}

async fn version_is_the_highest_common(kind: Kind) {
    let old = TransportConfig { versions: 1..=1, ..config(&[kind]) };
    let Pair { a, b, dialled, accepted } = pair_with(config(&[kind]), old).await;
    assert_eq!((dialled.version(), accepted.version()), (1, 1));
    let (dialled, accepted) = join(&b, &a, Purpose::Control).await;
    assert_eq!((dialled.version(), accepted.version()), (1, 1));
}

async fn version_refused(kind: Kind) {
    let a = bind(1, config(&[kind])).await;
    let b = bind(2, TransportConfig { versions: 7..=9, ..config(&[kind]) }).await;
    let error = a.dial(b.local(), Purpose::Control).await.expect_err("no common version");
    assert!(matches!(&error, DialError::Refused { reason, .. } if reason.contains("7 to 9")), "{error:?}");
    // Others are served.
    let c = bind(3, TransportConfig { versions: 2..=8, ..config(&[kind]) }).await;
    let (channel, _accepted) = join(&c, &b, Purpose::Control).await;
    assert_eq!(channel.version(), 8);
}

async fn ipv6(kind: Kind) {
    let v6 = TransportConfig { listen: vec!["[::1]:0".parse().expect("an address")], ..config(&[kind]) };
    let Pair { a: _a, b, dialled, accepted } = pair_with(v6.clone(), v6).await;
    assert!(address_of(&b).is_ipv6());
    assert!(dialled.peer_addr().is_ipv6() && accepted.peer_addr().is_ipv6());
    let (mut sender, _keep) = dialled.split();
    sender.send(&ping(6)).await.expect("sent");
    let (_keep, mut receiver) = accepted.split();
    assert_eq!(receiver.recv().await.expect("received"), ping(6));
}

async fn several_addresses(kind: Kind) {
    let listen: Vec<SocketAddr> =
        ["127.0.0.1:0", "127.0.0.2:0", "[::1]:0"].map(|a| a.parse().expect("an address")).into();
    let b = bind(2, TransportConfig { listen, ..config(&[kind]) }).await;
    assert_eq!(b.local().addresses.len(), 3);
    let a = bind(1, TransportConfig { listen: Vec::new(), ..config(&[kind]) }).await;
    assert!(a.local().addresses.is_empty());
    for address in b.local().addresses.clone() {
        // A host of its own each time, lest QUIC's connection is used again.
        let a = bind(3, TransportConfig { listen: Vec::new(), ..config(&[kind]) }).await;
        let told = wire::HostInfo { addresses: vec![address.clone()], ..b.local().clone() };
        let (dialled, accepted) = tokio::join!(a.dial(&told, Purpose::Data), b.accept());
        assert_eq!(dialled.expect("dialled").peer_addr().to_string(), address);
        assert_eq!(accepted.remote.hostname, "host-3");
    }
    // Unusable ones before it do no harm.
    let mut told = b.local().clone();
    told.addresses.splice(0..0, ["127.0.0.9:1", "nonsense", "0.0.0.0:5"].map(Into::into));
    let (dialled, _accepted) = tokio::join!(a.dial(&told, Purpose::Data), b.accept());
    dialled.expect("dialled");
}

async fn other_host_at_the_first_address(kind: Kind) {
    let (a, b, other) =
        (bind(1, config(&[kind])).await, bind(2, config(&[kind])).await, bind(9, config(&[kind])).await);
    let mut told = b.local().clone();
    told.addresses = vec![other.local().addresses[0].clone(), a.local().addresses[0].clone()];
    let error = a.dial(&told, Purpose::Data).await.expect_err("somebody else");
    assert!(matches!(error, DialError::WrongHost { .. }), "{error:?}");
    told.addresses.push(b.local().addresses[0].clone());
    let (dialled, _accepted) = tokio::join!(a.dial(&told, Purpose::Data), b.accept());
    assert_eq!(dialled.expect("dialled").remote(), b.local());
}

async fn connections_are_limited(kind: Kind) {
    let b = bind(2, TransportConfig { connections_per_ip_max: 2, ..config(&[kind]) }).await;
    let dialers = [bind(11, config(&[kind])).await, bind(12, config(&[kind])).await, bind(13, config(&[kind])).await];
    let (one, accepted) = join(&dialers[0], &b, Purpose::Data).await;
    let _two = join(&dialers[1], &b, Purpose::Data).await;
    let error = dialers[2].dial(b.local(), Purpose::Data).await.expect_err("no place");
    match kind {
        Kind::Tcp => assert!(matches!(error, DialError::Refused { .. }), "{error:?}"),
        Kind::Quic => assert!(matches!(error, DialError::Connect { .. }), "{error:?}"),
    }
    assert_eq!(b.connections(), 2);
    drop((one, accepted));
    dialers[0].shutdown(Duration::from_secs(5)).await;
    while b.connections() > 1 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    join(&dialers[2], &b, Purpose::Data).await;
}

async fn last_words_survive_shutdown(kind: Kind) {
    let Pair { a, b: _b, dialled, accepted } = pair(kind).await;
    let (mut sender, receiver) = dialled.split();
    for n in 0..100 {
        sender.send(&large(n * 100)).await.expect("sent");
    }
    drop((sender, receiver));
    a.shutdown(Duration::from_secs(10)).await;
    let (_keep, mut from) = accepted.split();
    for n in 0..100 {
        assert!(from.recv().await.expect("received") == large(n * 100));
    }
    assert!(matches!(from.recv().await, Err(RecvError::Closed)));
}

async fn nothing_after_shutdown(kind: Kind) {
    let Pair { a, b, dialled, accepted } = pair(kind).await;
    // A channel that is open keeps shutdown waiting no longer than it was told.
    let start = Instant::now();
    b.shutdown(Duration::from_millis(200)).await;
    assert!(start.elapsed() < Duration::from_secs(5));
    drop((dialled, accepted));
    let new = bind(5, config(&[kind])).await;
    let short = TransportConfig { dial_timeout: Duration::from_millis(500), ..config(&[kind]) };
    let late = bind(4, short).await;
    assert!(late.dial(b.local(), Purpose::Data).await.is_err());
    assert!(matches!(b.dial(new.local(), Purpose::Data).await, Err(DialError::ShutDown)));
    assert!(timeout(Duration::from_millis(50), b.accept()).await.is_err());
    drop(a);
}

async fn peer_restarts_at_the_same_address(kind: Kind) {
    let quick = TransportConfig { hello_timeout: Duration::from_secs(2), ..config(&[kind]) };
    let Pair { a, b, dialled, accepted } = pair_with(quick.clone(), quick.clone()).await;
    let address = address_of(&b);
    drop((dialled, accepted));
    b.shutdown(Duration::ZERO).await;
    drop(b);
    let again = TransportConfig { listen: vec![address], ..quick };
    let b = loop {
        match Transport::bind(again.clone(), host(2)).await {
            Ok(b) => break b,
            Err(BindError::Listen { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(address_of(&b), address);
    join(&a, &b, Purpose::Data).await;
}
