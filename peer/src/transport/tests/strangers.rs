//! What does not behave is cut off, and the others are served meanwhile.

use bytes::BytesMut;
use quinn::Endpoint;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::*;

fn strict(kinds: &[Kind]) -> TransportConfig {
    TransportConfig { hello_timeout: Duration::from_millis(700), handshakes_max: 8, ..config(kinds) }
}

fn encoded(frame: &Frame) -> BytesMut {
    let mut bytes = BytesMut::new();
    proto::frame::encode(frame, &mut bytes);
    bytes
}

fn hello(host: Option<wire::HostInfo>, version_min: u32, version_max: u32) -> Frame {
    Frame { body: Some(Body::Hello(wire::Hello { version_min, version_max, host, purpose: 1 })) }
}

/// Bad first bytes, and what they are.
fn garbage() -> Vec<(&'static str, Vec<u8>)> {
    let mut too_long_hello = host(5);
    too_long_hello.idc = "x".repeat(20_000);
    vec![
        ("http", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("tls", [&[0x16, 0x03, 0x01, 0x00, 0xff, 1][..], &[7; 300]].concat()),
        ("an endless frame", vec![0xff; 5_000]),
        ("a frame that is no message", [&4u32.to_le_bytes()[..], &[0xff, 0xff, 0xff, 0xff]].concat()),
        ("an empty frame", vec![0; 4]),
        ("a ping first", encoded(&ping(1)).to_vec()),
        ("a hello over its limit", encoded(&hello(Some(too_long_hello), 1, 2)).to_vec()),
        ("a hello of nobody", encoded(&hello(None, 1, 2)).to_vec()),
        ("nothing", Vec::new()),
        ("half a length", vec![9, 0]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tcp_garbage_is_cut_off_and_others_are_served() {
    let b = bind(2, strict(&[Kind::Tcp])).await;
    let a = bind(1, config(&[Kind::Tcp])).await;
    for (what, bytes) in garbage() {
        let mut stream = TcpStream::connect(address_of(&b)).await.expect("connected");
        let start = Instant::now();
        stream.write_all(&bytes).await.expect("written");
        let (dialled, accepted) = join(&a, &b, Purpose::Data).await;
        let mut answer = Vec::new();
        // A reset is as good an end as any.
        let _ = in_time(stream.read_to_end(&mut answer)).await;
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
        assert!(answer.len() < 1000, "{what}");
        drop((dialled, accepted));
    }
    while b.connections() > 0 {
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quic_garbage_is_cut_off_and_others_are_served() {
    let b = bind(2, strict(&[Kind::Quic])).await;
    let a = bind(1, config(&[Kind::Quic])).await;
    let raw = Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let client = tls::client().expect("a client");
    for (what, bytes) in garbage() {
        let connecting = raw.connect_with(client.clone(), address_of(&b), "any").expect("started");
        let connection = in_time(connecting).await.expect("connected");
        let (mut send, mut recv) = connection.open_bi().await.expect("opened");
        let start = Instant::now();
        send.write_all(&bytes).await.expect("written");
        let (dialled, accepted) = join(&a, &b, Purpose::Data).await;
        if !bytes.is_empty() {
            let _ = in_time(recv.read_to_end(1000)).await;
        } else {
            in_time(connection.closed()).await;
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
        connection.close(0u32.into(), b"");
        drop((dialled, accepted));
    }
    // Datagrams that are no QUIC, and QUIC that is not ours.
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("bound");
    for length in [0, 1, 20, 1200, 1472, 6000] {
        for fill in [0, 0x40, 0xc0, 0xff] {
            udp.send_to(&vec![fill; length], address_of(&b)).expect("sent");
        }
    }
    let mut other =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("tls 1.3")
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
    other.alpn_protocols = vec![b"h3".to_vec()];
    let other = quinn::crypto::rustls::QuicClientConfig::try_from(other).expect("quic");
    let other = quinn::ClientConfig::new(Arc::new(other));
    let connecting = raw.connect_with(other, address_of(&b), "any").expect("started");
    assert!(in_time(connecting).await.is_err());
    join(&a, &b, Purpose::Data).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_hellos_do_not_hold_up_others() {
    let slow = TransportConfig { hello_timeout: Duration::from_secs(30), ..strict(&[Kind::Tcp]) };
    let b = bind(2, slow).await;
    let a = bind(1, config(&[Kind::Tcp])).await;
    let bytes = encoded(&hello(Some(host(6)), 1, 2));
    // More than there are places for handshakes, each a byte at a time.
    let mut streams = Vec::new();
    for _ in 0..50 {
        let mut stream = TcpStream::connect(address_of(&b)).await.expect("connected");
        stream.write_all(&bytes[..1]).await.expect("written");
        streams.push(stream);
    }
    let start = Instant::now();
    join(&a, &b, Purpose::Data).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // The oldest had to go.
    let mut end = Vec::new();
    let _ = in_time(streams[0].read_to_end(&mut end)).await;
    assert!(b.connections() <= 10, "{}", b.connections());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_has_its_deadline_however_busy_the_sender_is() {
    let b = bind(2, strict(&[Kind::Tcp])).await;
    let bytes = encoded(&hello(Some(host(6)), 1, 2));
    let mut stream = TcpStream::connect(address_of(&b)).await.expect("connected");
    let start = Instant::now();
    for byte in bytes.iter().cycle() {
        if stream.write_all(&[*byte]).await.is_err() || start.elapsed() > Duration::from_secs(10) {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_frame_costs_what_came_of_it_not_what_it_announces() {
    let b = bind(2, config(&[Kind::Tcp])).await;
    let mut stream = TcpStream::connect(address_of(&b)).await.expect("connected");
    stream.write_all(&encoded(&hello(Some(host(6)), 1, 2))).await.expect("written");
    let accepted = in_time(b.accept()).await;
    let (_keep, mut receiver) = accepted.channel.split();
    stream.write_all(&u32::try_from(proto::frame::FRAME_LEN_MAX).unwrap().to_le_bytes()).await.expect("written");
    stream.write_all(&[0; 100]).await.expect("written");
    assert!(tokio::time::timeout(Duration::from_millis(300), receiver.recv()).await.is_err());
    assert!(receiver.buffered_capacity() <= 64 * 1024, "{}", receiver.buffered_capacity());
    // Over the limit: refused by its first four bytes.
    let mut stream = TcpStream::connect(address_of(&b)).await.expect("connected");
    stream.write_all(&encoded(&hello(Some(host(6)), 1, 2))).await.expect("written");
    let (_keep, mut receiver) = in_time(b.accept()).await.channel.split();
    stream.write_all(&u32::try_from(proto::frame::FRAME_LEN_MAX + 1).unwrap().to_le_bytes()).await.expect("written");
    assert!(matches!(in_time(receiver.recv()).await, Err(RecvError::Frame(_))));
}

#[tokio::test]
async fn a_peer_of_version_one_is_understood() {
    let b = bind(2, config(&[Kind::Tcp])).await;
    let mut stream = TcpStream::connect(address_of(&b)).await.expect("connected");
    stream.write_all(&encoded(&hello(Some(host(6)), 1, 1))).await.expect("written");
    let accepted = in_time(b.accept()).await;
    assert_eq!((accepted.channel.version(), accepted.purpose), (1, Purpose::Data));
    let mut buffer = BytesMut::new();
    let ack = loop {
        match proto::frame::decode(&mut buffer, 16 * 1024).expect("a frame") {
            Some(frame) => break frame,
            None => assert!(stream.read_buf(&mut buffer).await.expect("read") > 0),
        }
    };
    assert!(matches!(ack.body, Some(Body::HelloAck(ack)) if ack.version == 1 && ack.refused.is_empty()));
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_an_error() {
    let a = bind(1, strict(&[Kind::Tcp])).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
    let address = listener.local_addr().expect("bound").to_string();
    let remote = wire::HostInfo { addresses: vec![address], transports: vec!["tcp".into()], ..host(2) };
    let ack = |version, host| {
        encoded(&Frame { body: Some(Body::HelloAck(wire::HelloAck { version, host, refused: String::new() })) })
    };
    for answer in
        [ack(9, Some(host(2))), ack(2, None), encoded(&ping(1)), BytesMut::from(&b"SSH-2.0-x\r\n"[..]), BytesMut::new()]
    {
        let answering = async {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            stream.write_all(&answer).await.expect("written");
            // Until the dialer has had enough.
            let _ = stream.read_to_end(&mut Vec::new()).await;
        };
        let (dialled, ()) = in_time(async { tokio::join!(a.dial(&remote, Purpose::Data), answering) }).await;
        assert!(matches!(dialled, Err(DialError::Handshake { .. })), "{dialled:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_nobody_accepts_do_not_pile_up() {
    let b = bind(2, TransportConfig { hello_timeout: Duration::from_millis(300), ..config(&[Kind::Tcp]) }).await;
    let a = bind(1, TransportConfig { dial_timeout: Duration::from_millis(800), ..config(&[Kind::Tcp]) }).await;
    let mut held = Vec::new();
    let mut failed = 0;
    for _ in 0..ACCEPTED_MAX + 3 {
        match a.dial(b.local(), Purpose::Data).await {
            Ok(channel) => held.push(channel),
            Err(_) => failed += 1,
        }
    }
    assert_eq!((held.len(), failed), (ACCEPTED_MAX, 3));
    assert_eq!(in_time(b.accept()).await.remote.hostname, "host-1");
    join_one_more(&a, &b).await;
}

async fn join_one_more(a: &Transport, b: &Transport) {
    a.dial(b.local(), Purpose::Data).await.expect("there is room again");
}
