//! Which transport carries a channel.

use tokio::time::Instant;

use super::*;

const BOTH: [Kind; 2] = [Kind::Tcp, Kind::Quic];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_preferred_kind_that_both_speak_is_taken() {
    let b = bind(2, config(&BOTH)).await;
    assert_eq!(b.local().transports, ["tcp", "quic"]);
    for (kinds, told, expected) in [
        (vec![Kind::Tcp, Kind::Quic], vec!["tcp", "quic"], Kind::Tcp),
        (vec![Kind::Quic, Kind::Tcp], vec!["tcp", "quic"], Kind::Quic),
        (vec![Kind::Quic, Kind::Tcp], vec!["tcp"], Kind::Tcp),
        (vec![Kind::Quic, Kind::Tcp], vec![], Kind::Tcp),
        (vec![Kind::Tcp, Kind::Quic], vec!["quic", "carrier-pigeon"], Kind::Quic),
    ] {
        let a = bind(1, config(&kinds)).await;
        let mut remote = b.local().clone();
        remote.transports = told.into_iter().map(Into::into).collect();
        let (dialled, _accepted) = in_time(async { tokio::join!(a.dial(&remote, Purpose::Data), b.accept()) }).await;
        assert_eq!(dialled.expect("dialled").kind(), expected);
    }
}

#[tokio::test]
async fn a_link_may_have_a_choice_of_its_own() {
    let (a, b) = (bind(1, config(&BOTH)).await, bind(2, config(&BOTH)).await);
    let (dialled, _accepted) =
        in_time(async { tokio::join!(a.dial_by(b.local(), Purpose::Data, &[Kind::Quic]), b.accept()) }).await;
    assert_eq!(dialled.expect("dialled").kind(), Kind::Quic);
}

#[tokio::test]
async fn tcp_takes_over_where_udp_does_not_pass() {
    let b = bind(2, config(&[Kind::Tcp])).await;
    let a = bind(1, config(&[Kind::Quic, Kind::Tcp])).await;
    let mut remote = b.local().clone();
    remote.transports = vec!["tcp".into(), "quic".into()];
    // Holds the UDP port and says nothing, as a firewall would.
    let _silent = std::net::UdpSocket::bind(address_of(&b)).expect("free");
    let start = Instant::now();
    let (dialled, _accepted) = in_time(async { tokio::join!(a.dial(&remote, Purpose::Data), b.accept()) }).await;
    assert_eq!(dialled.expect("dialled").kind(), Kind::Tcp);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test]
async fn nothing_in_common_is_said_so() {
    let (a, b) = (bind(1, config(&[Kind::Quic])).await, bind(2, config(&[Kind::Tcp])).await);
    assert!(matches!(a.dial(b.local(), Purpose::Data).await, Err(DialError::NoCommonTransport { .. })));
    let nowhere = wire::HostInfo { addresses: vec!["0.0.0.0:1".into()], transports: vec!["quic".into()], ..host(3) };
    assert!(matches!(a.dial(&nowhere, Purpose::Data).await, Err(DialError::NoAddress { .. })));
    let nobody = wire::HostInfo::default();
    assert!(matches!(a.dial(&nobody, Purpose::Data).await, Err(DialError::Invalid(_))));
}

#[tokio::test]
async fn a_host_that_does_not_answer_ends_in_time() {
    let short = TransportConfig { dial_timeout: Duration::from_millis(300), ..config(&BOTH) };
    let a = bind(1, short).await;
    // Takes connections and never speaks.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = silent.local_addr().expect("bound").to_string();
    let remote = wire::HostInfo { addresses: vec![address], transports: vec!["tcp".into()], ..host(2) };
    let start = Instant::now();
    assert!(matches!(a.dial(&remote, Purpose::Data).await, Err(DialError::Timeout { .. })));
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn channels_to_one_host_share_a_quic_connection() {
    let (a, b) = (bind(1, config(&[Kind::Quic])).await, bind(2, config(&[Kind::Quic])).await);
    let remote = b.local().clone();
    // At the same time, so that they also share the making of it.
    let dials = (0..10).map(|_| a.dial(&remote, Purpose::Data));
    let accepts = async {
        let mut accepted = Vec::new();
        for _ in 0..10 {
            accepted.push(b.accept().await);
        }
        accepted
    };
    let (dialled, accepted) = in_time(async { tokio::join!(futures_util::future::join_all(dials), accepts) }).await;
    assert!(dialled.iter().all(Result::is_ok));
    assert_eq!((accepted.len(), b.connections()), (10, 1));
}

#[tokio::test]
async fn congestion_control_is_set_or_refused_by_name() {
    let available = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_allowed_congestion_control").expect("linux");
    let name = available.split_whitespace().next().expect("one at least").to_owned();
    let with = |name: &str| TransportConfig { congestion: Some(name.to_owned()), ..config(&[Kind::Tcp]) };
    pair_with(with(&name), with(&name)).await;
    let error = Transport::bind(with("nonesuch"), host(1)).await.expect_err("no such thing");
    assert!(matches!(&error, BindError::Congestion { name, .. } if name == "nonesuch"), "{error:?}");
}

#[tokio::test]
async fn bad_configurations_are_refused() {
    let none = Transport::bind(config(&[]), host(1)).await.expect_err("no kind");
    assert!(matches!(none, BindError::NoKind));
    let zero = TransportConfig { versions: 0..=1, ..config(&[Kind::Tcp]) };
    assert!(matches!(Transport::bind(zero, host(1)).await, Err(BindError::OutOfRange { .. })));
    let a = bind(1, config(&BOTH)).await;
    let taken = TransportConfig { listen: vec![address_of(&a)], ..config(&BOTH) };
    assert!(matches!(Transport::bind(taken, host(2)).await, Err(BindError::Listen { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unspecified_address_takes_both_families() {
    let listen = vec!["[::]:0".parse().expect("an address")];
    let b = bind(2, TransportConfig { listen, ..config(&BOTH) }).await;
    assert!(!b.local().addresses.is_empty());
    assert!(b.local().addresses.iter().all(|a| !a.parse::<SocketAddr>().expect("an address").ip().is_unspecified()));
    let port = address_of(&b).port();
    for address in [format!("127.0.0.1:{port}"), format!("[::1]:{port}")] {
        for kind in BOTH {
            let a = bind(1, config(&BOTH)).await;
            let told = wire::HostInfo { addresses: vec![address.clone()], ..b.local().clone() };
            let dial = a.dial_by(&told, Purpose::Data, std::slice::from_ref(&kind));
            let (dialled, accepted) = in_time(async { tokio::join!(dial, b.accept()) }).await;
            assert_eq!(dialled.expect("dialled").kind(), kind);
            assert!(accepted.channel.peer_addr().ip().to_canonical().is_loopback());
        }
    }
    let apart = |text: &str| SocketAddr::new(text.parse().expect("an address"), 0);
    let both = TransportConfig { listen: vec![apart("0.0.0.0"), apart("::")], ..config(&BOTH) };
    bind(3, both).await;
}
