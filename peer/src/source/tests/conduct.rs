//! How a source behaves over many requests: guards, retries, reuse, limits, the end.

use super::servers::{Origin, Step, say};
use super::*;

fn fine() -> Vec<Step> {
    say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")
}

fn strict(request: OriginRequest) -> OriginRequest {
    OriginRequest { guard: Guard::strict(), ..request }
}

#[tokio::test]
async fn the_guard_sees_what_is_dialled() {
    let origin = Origin::start(|_, _| fine()).await;
    let names = Names::new(&[
        ("inside.test", &[&["127.0.0.1"]]),
        ("mapped.test", &[&["::ffff:127.0.0.1"]]),
        ("mixed.test", &[&["169.254.169.254", "127.0.0.1"]]),
        // Harmless when asked first, loopback when asked again.
        ("rebind.test", &[&["192.0.2.200"], &["127.0.0.1"]]),
    ]);
    let config = SourceConfig { connect_timeout: Duration::from_millis(300), ..quick() };
    let source = Source::with_resolver(config, names).unwrap();
    for host in
        ["127.0.0.1", "inside.test", "mapped.test", "mixed.test", "[::ffff:7f00:1]", "2130706433", "0x7f.1", "0.0.0.0"]
    {
        let error = source.get(strict(at(origin.named(host, "/")))).await.unwrap_err();
        assert!(matches!(error, SourceError::Refused { .. }), "{host}: {error:?}");
        assert_eq!(error.kind(), proto::Kind::Forbidden);
    }
    let error = source.get(strict(at(origin.named("mixed.test", "/")))).await.unwrap_err();
    assert_eq!(error.to_string(), "connecting to mixed.test is refused: 169.254.169.254 is a cloud metadata address");

    let first = source.get(strict(at(origin.named("rebind.test", "/")))).await.unwrap_err();
    assert!(
        !matches!(first, SourceError::Refused { .. }),
        "192.0.2.200 may be dialled, though nobody answers: {first:?}"
    );
    let second = source.get(strict(at(origin.named("rebind.test", "/")))).await.unwrap_err();
    assert!(matches!(second, SourceError::Refused { .. }), "{second:?}");
    assert!(origin.seen().is_empty());

    // A connection that a permissive request left behind is not there for a strict one.
    assert_eq!(get_all(&source, at(origin.named("inside.test", "/"))).await.unwrap(), b"fine");
    assert!(matches!(source.get(strict(at(origin.named("inside.test", "/")))).await, Err(SourceError::Refused { .. })));
    let allowed = Guard { allow_cidrs: vec!["127.0.0.0/8".parse().unwrap()], ..Guard::strict() };
    let request = OriginRequest { guard: allowed, ..at(origin.named("mixed.test", "/")) };
    assert_eq!(get_all(&source, request).await.unwrap(), b"fine");
    assert_eq!(origin.seen().len(), 2);
}

#[tokio::test]
async fn the_guard_is_asked_again_after_a_redirect() {
    let inner = Origin::start(|_, _| fine()).await;
    let to = inner.named("127.0.0.1", "/latest/meta-data");
    let outer =
        Origin::start(move |_, _| say(format!("HTTP/1.1 302 F\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"))).await;
    let guard = Guard { allow_cidrs: vec!["127.0.0.2/32".parse().unwrap()], ..Guard::strict() };
    // The listener is on 127.0.0.1 only, so that the outer one is reached by another name for it.
    let outer_guard = Guard { allow_cidrs: vec!["::ffff:127.0.0.1/128".parse().unwrap()], ..guard };
    let names = Names::new(&[("outer.test", &[&["127.0.0.1"]])]);
    let source = Source::with_resolver(quick(), names).unwrap();
    let refused = OriginRequest { guard: outer_guard, ..at(outer.named("outer.test", "/")) };
    assert!(
        matches!(source.get(refused).await, Err(SourceError::Refused { .. })),
        "a mapped network allows no IPv4 address"
    );

    let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let location = inner.url("/latest/meta-data");
    let task = tokio::spawn(async move {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        stream
            .write_all(format!("HTTP/1.1 302 F\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let _ = stream.read(&mut [0; 1]).await;
    });
    let guard = Guard { allow_cidrs: vec!["127.0.0.2/32".parse().unwrap()], ..Guard::strict() };
    let request = OriginRequest { guard, ..at(format!("http://127.0.0.2:{port}/")) };
    let error = source.get(request).await.unwrap_err();
    assert!(matches!(&error, SourceError::Refused { host, .. } if &**host == "127.0.0.1"), "{error:?}");
    assert!(inner.seen().is_empty());
    task.abort();
}

#[tokio::test]
async fn retries_follow_the_policy() {
    let origin = Origin::start(|_, n| match n {
        0 => say("HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n"),
        1 => vec![Step::Close],
        _ => fine(),
    })
    .await;
    let policy = RetryPolicy { delay_min: Duration::from_millis(5), ..RetryPolicy::default() };
    let source = source(quick());
    let response = source.get_with_retry(at(origin.url("/")), &policy, 7).await.unwrap();
    assert_eq!((read(response).await.unwrap(), origin.seen().len()), (b"fine".to_vec(), 3));

    let origin = Origin::start(|_, _| say("HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n")).await;
    assert!(source.get_with_retry(at(origin.url("/")), &policy, 7).await.is_err());
    assert_eq!(origin.seen().len(), 1);

    let origin = Origin::start(|_, _| say("HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n")).await;
    assert!(source.get_with_retry(at(origin.url("/")), &policy, 7).await.is_err());
    assert_eq!(origin.seen().len(), 4);
}

#[tokio::test]
async fn connections_are_used_again() {
    let origin = Origin::start(|_, _| fine()).await;
    let source = source(quick());
    for _ in 0..5 {
        assert_eq!(get_all(&source, at(origin.url("/"))).await.unwrap(), b"fine");
    }
    assert!(origin.seen().iter().all(|seen| seen.connection == 0));
    let defaults = &origin.seen()[0];
    assert_eq!(defaults.header("accept-encoding"), Some("identity"));
    assert!(defaults.header("user-agent").unwrap().starts_with("skimmer/"));
}

#[tokio::test]
async fn requests_under_way_are_limited() {
    let origin = Origin::start(|_, _| fine()).await;
    let other = Origin::start(|_, _| fine()).await;
    let config =
        SourceConfig { requests_max: 3, requests_per_host_max: 2, slot_timeout: Duration::from_millis(200), ..quick() };
    let source = source(config);
    let first = source.get(at(origin.url("/"))).await.unwrap();
    let _second = source.get(at(origin.url("/"))).await.unwrap();
    let error = source.get(at(origin.url("/"))).await.unwrap_err();
    assert!(matches!(error, SourceError::Timeout { waiting: Waiting::Slot, .. }), "{error:?}");
    let _third = source.get(at(other.url("/"))).await.unwrap();
    assert!(source.get(at(other.url("/"))).await.is_err(), "three in all");
    // The end of a body frees its slot, and so does dropping one.
    assert_eq!(read(first).await.unwrap(), b"fine");
    drop(source.get(at(origin.url("/"))).await.unwrap());
    drop(source.get(at(origin.url("/"))).await.unwrap());
}

#[tokio::test]
async fn closing_leaves_nothing_behind() {
    let origin = Origin::start(|_, _| say("HTTP/1.1 200 OK\r\nContent-Length: 40\r\n\r\nonly a start")).await;
    let source = source(quick());
    let mut response = source.get(at(origin.url("/"))).await.unwrap();
    assert!(response.body.next().await.unwrap().is_ok());
    tokio::time::timeout(PATIENCE, source.close()).await.expect("closes in time");
    assert!(matches!(
        response.body.next().await,
        Some(Err(SourceError::BodyCutShort { expected: Some(40), got: 12, .. }))
    ));
    assert!(response.body.next().await.is_none());
}

#[tokio::test]
async fn what_may_need_credentials_is_told() {
    let origin = Origin::start(|_, _| fine()).await;
    let source = source(quick());
    for (request, expected) in [
        (at(origin.url("/")), false),
        (with(at(origin.url("/")), &[("accept", "*/*"), ("x-request-id", "1"), ("host", "virtual.test")]), false),
        (with(at(origin.url("/")), &[("cookie", "a=b")]), true),
        (with(at(origin.url("/")), &[("x-api-key", "k")]), true),
        (at(origin.url("/?X-Amz-Signature=abc")), true),
    ] {
        assert_eq!(source.get(request).await.unwrap().used_credentials, expected);
    }
    assert_eq!(origin.seen()[1].header("host"), Some("virtual.test"));
}
