//! An origin that lies, stalls, breaks off or sends elsewhere.

use proto::Kind;

use super::servers::{Origin, Seen, Step, say, say_and_close};
use super::*;

fn ok(extra: &str, body: &str) -> Vec<Step> {
    say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{extra}\r\n{body}", body.len()))
}

async fn fails(
    answer: impl Fn(&Seen, usize) -> Vec<Step> + Send + Sync + 'static,
    request: impl Fn(&Origin) -> OriginRequest,
) -> SourceError {
    fails_with(quick(), answer, request).await
}

async fn fails_with(
    config: SourceConfig,
    answer: impl Fn(&Seen, usize) -> Vec<Step> + Send + Sync + 'static,
    request: impl Fn(&Origin) -> OriginRequest,
) -> SourceError {
    let origin = Origin::start(answer).await;
    tokio::time::timeout(PATIENCE, get_all(&source(config), request(&origin)))
        .await
        .expect("in time")
        .expect_err("an error")
}

#[tokio::test]
async fn bodies_that_break_off_are_never_whole() {
    let whole = |origin: &Origin| at(origin.url("/"));
    let error = fails(|_, _| say_and_close("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"), whole).await;
    assert!(matches!(error, SourceError::BodyCutShort { expected: Some(10), got: 5, .. }), "{error:?}");
    let error = fails(|_, _| say_and_close("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"), whole).await;
    assert!(matches!(error, SourceError::BodyCutShort { expected: Some(10), got: 0, .. }), "{error:?}");
    let error =
        fails(|_, _| say_and_close("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"), whole).await;
    assert!(matches!(error, SourceError::BodyCutShort { expected: None, got: 3, .. }), "{error:?}");
    let error =
        fails(|_, _| say_and_close("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc"), whole).await;
    assert!(matches!(error, SourceError::BodyCutShort { expected: None, got: 3, .. }), "{error:?}");
    let error =
        fails(|_, _| say_and_close("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc"), whole).await;
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    let partial = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-9/100\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let error = fails(move |_, _| say(partial), |o| part(o.url("/"), 0, 10)).await;
    assert!(matches!(error, SourceError::BodyCutShort { expected: Some(10), got: 3, .. }), "{error:?}");
    let partial = "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-1/100\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
    let error = fails(move |_, _| say(partial), |o| part(o.url("/"), 0, 2)).await;
    assert!(matches!(error, SourceError::Protocol { .. }), "{error:?}");
}

#[tokio::test]
async fn lengths_known_and_unknown() {
    let origin = Origin::start(|seen, _| match seen.path() {
        "/more" => say("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef"),
        "/chunked" => {
            say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n3\r\ndef\r\n0\r\nTrailer: x\r\n\r\n")
        }
        "/close" => say_and_close("HTTP/1.0 200 OK\r\n\r\nuntil the end"),
        _ => say("HTTP/1.1 200 OK\r\nContent-Length: 12345\r\nAccept-Ranges: bytes\r\n\r\n"),
    })
    .await;
    let source = source(quick());
    let response = source.get(at(origin.url("/more"))).await.unwrap();
    assert_eq!((response.length, read(response).await.unwrap()), (Some(3), b"abc".to_vec()));
    for (path, body) in [("/chunked", &b"abcdef"[..]), ("/close", b"until the end")] {
        let response = source.get(at(origin.url(path))).await.unwrap();
        assert_eq!((response.length, response.validators.length), (None, None));
        assert_eq!(read(response).await.unwrap(), body);
    }
    let head = source.head(at(origin.url("/head"))).await.unwrap();
    assert_eq!((head.length, head.validators.length, head.accepts_ranges), (Some(12345), Some(12345), true));
    assert!(origin.seen().last().unwrap().line.starts_with("HEAD /head "));
}

#[tokio::test]
async fn parts_are_what_was_asked_for_or_an_error() {
    let ranged = |origin: &Origin| part(origin.url("/"), 10, 20);
    let answer = |head: &'static str| {
        move |_: &Seen, _| say(format!("HTTP/1.1 206 Partial Content\r\n{head}\r\n\r\n0123456789"))
    };
    for head in [
        "Content-Length: 10",
        "Content-Length: 10\r\nContent-Range: bytes 0-9/100",
        "Content-Length: 10\r\nContent-Range: bytes 11-20/100",
        "Content-Length: 10\r\nContent-Range: bytes 10-21/100",
        "Content-Length: 10\r\nContent-Range: bytes 10-18/100",
        "Content-Length: 10\r\nContent-Range: bytes */100",
        "Content-Length: 10\r\nContent-Range: bytes 10-19/15",
        "Content-Length: 10\r\nContent-Range: 10-19/100",
        "Content-Length: 10\r\nContent-Range: bytes 10-19/100\r\nContent-Type: multipart/byteranges; boundary=x",
    ] {
        let error = fails(answer(head), ranged).await;
        assert!(matches!(error, SourceError::Protocol { .. }), "{head}: {error:?}");
    }
    let error = fails(answer("Content-Length: 10\r\nContent-Range: bytes 0-9/10"), |o| at(o.url("/"))).await;
    assert!(matches!(error, SourceError::Protocol { .. }), "{error:?}");

    // Shorter than asked for, and from an origin that does not know the whole: both are allowed, both are seen.
    let origin =
        Origin::start(|_, _| say("HTTP/1.1 206 P\r\nContent-Length: 4\r\nContent-Range: bytes 10-13/*\r\n\r\n0123"))
            .await;
    let response = source(quick()).get(ranged(&origin)).await.unwrap();
    assert_eq!((response.range, response.length, response.validators.length), (ByteRange::new(10, 14), Some(4), None));
}

#[tokio::test]
async fn an_origin_that_ignores_range_is_seen_as_such() {
    let origin = Origin::start(|_, _| ok("Accept-Ranges: bytes\r\nETag: \"a\"\r\n", "the whole content")).await;
    let source = source(quick());
    let response = source.get(part(origin.url("/"), 4, 9)).await.unwrap();
    assert_eq!((response.range, response.accepts_ranges, response.validators.length), (None, false, Some(17)));
    assert_eq!(read(response).await.unwrap(), b"the whole content");
    assert_eq!(origin.seen()[0].header("range"), Some("bytes=4-8"));
}

#[tokio::test]
async fn a_content_that_changes_is_noticed() {
    // It answers with a part of another content although If-Range names the one that was known.
    let origin = Origin::start(|_, n| {
        say(format!("HTTP/1.1 206 P\r\nContent-Length: 2\r\nContent-Range: bytes 2-3/4\r\nETag: \"v{n}\"\r\n\r\nxx"))
    })
    .await;
    let source = source(quick());
    let ask = |etag: &str, date: Option<&str>| OriginRequest {
        if_range: Some(Validators { etag: Some(etag.into()), last_modified: date.map(Into::into), length: None }),
        ..part(origin.url("/"), 2, 4)
    };
    assert_eq!(get_all(&source, ask("\"v0\"", None)).await.unwrap(), b"xx");
    let error = source.get(ask("\"v0\"", None)).await.unwrap_err();
    assert!(matches!(error, SourceError::Changed { .. }) && error.kind() == Kind::Conflict, "{error:?}");
    // A weak tag is no condition for a part; the date is.
    source.get(ask("W/\"v0\"", Some("Fri, 31 Dec 1999 23:59:59 GMT"))).await.unwrap();
    source.get(ask("W/\"v0\"", None)).await.unwrap();
    let conditions: Vec<_> = origin.seen().iter().map(|seen| seen.header("if-range").map(ToOwned::to_owned)).collect();
    let quoted = Some("\"v0\"".to_owned());
    assert_eq!(conditions, [quoted.clone(), quoted, Some("Fri, 31 Dec 1999 23:59:59 GMT".to_owned()), None]);
}

#[tokio::test]
async fn a_304_for_another_content_is_not_believed() {
    // By the date alone it is "not modified", while the tag says otherwise: a file replaced by an older one.
    let origin = Origin::start(|seen, _| match seen.header("if-modified-since") {
        Some(_) => say("HTTP/1.1 304 Not Modified\r\nLast-Modified: Wed, 01 Jan 1997 00:00:00 GMT\r\n\r\n"),
        None => ok("Last-Modified: Wed, 01 Jan 1997 00:00:00 GMT\r\n", "older"),
    })
    .await;
    let known = Validators { etag: None, last_modified: Some("Fri, 31 Dec 1999 23:59:59 GMT".into()), length: Some(5) };
    let source = source(quick());
    let response = source.get(OriginRequest { if_none_match: Some(known), ..at(origin.url("/")) }).await.unwrap();
    assert!(!response.not_modified);
    assert_eq!(read(response).await.unwrap(), b"older");
    // Nobody asked: then it is no answer.
    let origin = Origin::start(|_, _| say("HTTP/1.1 304 Not Modified\r\n\r\n")).await;
    assert!(matches!(source.get(at(origin.url("/"))).await, Err(SourceError::OtherStatus { .. })));
}

#[tokio::test]
async fn silence_ends_in_time() {
    let drip = || vec![Step::Send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc".to_vec()), Step::Pause(PATIENCE)];
    let error = fails_with(impatient(), move |_, _| drip(), |o| at(o.url("/"))).await;
    assert!(matches!(error, SourceError::Timeout { waiting: Waiting::Body, .. }), "{error:?}");
    let error = fails_with(impatient(), |_, _| vec![Step::Pause(PATIENCE)], |o| at(o.url("/"))).await;
    assert!(matches!(error, SourceError::Timeout { waiting: Waiting::Headers, .. }), "{error:?}");
    assert_eq!(error.kind(), Kind::Unavailable);

    // Slow is not silent: each byte is progress.
    let slow = |_: &Seen, _: usize| {
        let mut steps = say("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n");
        steps.extend((0..8).flat_map(|_| [Step::Pause(Duration::from_millis(120)), Step::Send(b"x".to_vec())]));
        steps
    };
    let origin = Origin::start(slow).await;
    assert_eq!(get_all(&source(impatient()), at(origin.url("/"))).await.unwrap(), b"xxxxxxxx");
}

#[tokio::test]
async fn connections_that_fail() {
    let origin = Origin::start(|_, _| vec![Step::Close]).await;
    let quick_source = source(quick());
    let error = quick_source.get(at(origin.url("/"))).await.unwrap_err();
    assert!(matches!(error, SourceError::Lost { .. }) && is_worth_retrying(&error), "{error:?}");
    // A port nobody listens on: bound, but never listening.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}/", socket.local_addr().unwrap());
    let error = quick_source.get(at(url)).await.unwrap_err();
    assert!(matches!(error, SourceError::Connect { .. }), "{error:?}");
    let named = Source::with_resolver(quick(), Names::new(&[("void.test", &[&[]])])).unwrap();
    for host in ["none.test", "void.test"] {
        let error = named.get(at(format!("http://{host}/"))).await.unwrap_err();
        assert!(matches!(&error, SourceError::Resolve { host: h, .. } if &**h == host), "{error:?}");
    }
    // TLS to somebody who does not speak it.
    let error = source(impatient()).get(at(origin.url("/").replace("http:", "https:"))).await.unwrap_err();
    assert!(matches!(error, SourceError::Tls { .. } | SourceError::Timeout { .. }), "{error:?}");
    let junk = fails(|_, _| say("SSH-2.0-OpenSSH_9.2\r\n\r\n"), |o| at(o.url("/"))).await;
    assert!(matches!(junk, SourceError::Protocol { .. }), "{junk:?}");
    let huge =
        fails(|_, _| say(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(1_200_000))), |o| at(o.url("/"))).await;
    assert!(matches!(huge, SourceError::Protocol { .. }), "{huge:?}");
    let many =
        fails(|_, _| say(format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(500))), |o| at(o.url("/"))).await;
    assert!(matches!(many, SourceError::Protocol { .. }), "{many:?}");
    for url in ["ftp://h/x", "data:,x", "file:///etc/passwd"] {
        assert!(matches!(quick_source.get(at(url)).await, Err(SourceError::BadRequest { .. })), "{url}");
    }
}

#[tokio::test]
async fn second_address_when_the_first_is_dead() {
    let origin = Origin::start(|_, _| ok("", "alive")).await;
    // Nothing listens on ::1 at this port, nor on 127.0.0.2.
    let source =
        Source::with_resolver(quick(), Names::new(&[("two.test", &[&["::1", "127.0.0.2", "127.0.0.1"]])])).unwrap();
    assert_eq!(get_all(&source, at(origin.named("two.test", "/"))).await.unwrap(), b"alive");
}

#[tokio::test]
async fn redirects_that_lead_nowhere() {
    let origin = Origin::start(|seen, n| {
        let to = match seen.path() {
            "/self" => "/self".to_owned(),
            "/a" => "/b".to_owned(),
            "/b" => "/a".to_owned(),
            "/ftp" => "ftp://h/x".to_owned(),
            "/bad" => "http://[".to_owned(),
            "/script" => "javascript:alert(1)".to_owned(),
            "/none" => return say("HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n"),
            "/long" => "x".repeat(20_000),
            _ => format!("/more/{n}"),
        };
        say(format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n"))
    })
    .await;
    let source = source(quick());
    for (path, expected) in [
        ("/self", RedirectProblem::Loop),
        ("/a", RedirectProblem::Loop),
        ("/ftp", RedirectProblem::Scheme),
        ("/script", RedirectProblem::Scheme),
        ("/bad", RedirectProblem::Location),
        ("/none", RedirectProblem::Location),
        ("/long", RedirectProblem::Location),
        ("/more", RedirectProblem::TooMany { limit: 10 }),
    ] {
        let error = source.get(at(origin.url(path))).await.unwrap_err();
        assert!(matches!(&error, SourceError::Redirects { problem, .. } if *problem == expected), "{path}: {error:?}");
    }
    assert_eq!(origin.seen().iter().filter(|seen| seen.path().starts_with("/more")).count(), 11);
}

#[tokio::test]
async fn credentials_stay_with_the_first_origin() {
    for status in [301, 302, 303, 307, 308] {
        let elsewhere = Origin::start(|seen, _| {
            let back = seen.header("x-back-to").map(ToOwned::to_owned);
            back.map_or_else(
                || ok("", "there"),
                |to| say(format!("HTTP/1.1 302 F\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")),
            )
        })
        .await;
        let port = elsewhere.port;
        let home = Origin::start(move |seen, _| match seen.path() {
            "/start" => say(format!("HTTP/1.1 {status} R\r\nLocation: /second\r\nContent-Length: 0\r\n\r\n")),
            "/second" => say(format!("HTTP/1.1 {status} R\r\nLocation: http://b.test:{port}/x?X-Amz-Signature=s3cr3t\r\nContent-Length: 0\r\n\r\n")),
            _ => ok("", "home"),
        })
        .await;
        let names = Names::new(&[("a.test", &[&["127.0.0.1"]]), ("b.test", &[&["127.0.0.1"]])]);
        let source = Source::with_resolver(quick(), names).unwrap();
        let request = with(
            part(home.named("a.test", "/start"), 0, 5),
            &[
                ("authorization", "Bearer t0ken"),
                ("cookie", "c=1"),
                ("proxy-authorization", "p"),
                ("x-team-token", "t"),
                ("accept", "a/b"),
                ("user-agent", "me/1"),
            ],
        );
        let response = source.get(request).await.unwrap();
        assert!(response.used_credentials, "the first origin may have asked for them");
        assert_eq!(response.url.host_str(), Some("b.test"));
        assert!(!format!("{response:?}").contains("s3cr3t"));
        for seen in home.seen() {
            assert_eq!(seen.header("authorization"), Some("Bearer t0ken"), "same origin, {}", seen.line);
            assert_eq!((seen.header("cookie"), seen.header("x-team-token")), (Some("c=1"), Some("t")));
            assert_eq!(seen.header("proxy-authorization"), None);
        }
        let seen = &elsewhere.seen()[0];
        for name in ["authorization", "cookie", "proxy-authorization", "x-team-token"] {
            assert_eq!(seen.header(name), None, "{name}");
        }
        assert_eq!(
            (seen.header("accept"), seen.header("user-agent"), seen.header("range")),
            (Some("a/b"), Some("me/1"), Some("bytes=0-4"))
        );
        assert_eq!(seen.header("host"), Some(format!("b.test:{port}").as_str()));
    }
}

#[tokio::test]
async fn another_port_is_another_origin_and_the_way_back_is_bare() {
    let third = Arc::new(Mutex::new(String::new()));
    let back = third.clone();
    let elsewhere = Origin::start(move |_, _| {
        say(format!("HTTP/1.1 302 F\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", back.lock()))
    })
    .await;
    let to = elsewhere.url("/away");
    let home = Origin::start(move |seen, _| match seen.path() {
        "/start" => say(format!("HTTP/1.1 307 R\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")),
        _ => ok("", "home"),
    })
    .await;
    *third.lock() = home.url("/again");
    let source = source(quick());
    let start = home.url("/start").replace("http://", "http://u:p@");
    assert_eq!(get_all(&source, at(start)).await.unwrap(), b"home");
    assert_eq!(home.seen()[0].header("authorization"), Some("Basic dTpw"));
    assert_eq!(elsewhere.seen()[0].header("authorization"), None);
    assert_eq!(home.seen()[1].header("authorization"), None, "whoever redirects back chose that URL");
}

#[tokio::test]
async fn throttling_and_failures() {
    for (head, expected) in [
        ("429 Too Many Requests\r\nRetry-After: 7", Some(Some(7))),
        ("429 Too Many Requests", Some(None)),
        (
            "503 Unavailable\r\nRetry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\nDate: Fri, 31 Dec 1999 23:59:49 GMT",
            Some(Some(10)),
        ),
        ("503 Unavailable", None),
        ("500 Oops", None),
    ] {
        let error = fails(
            move |_, _| say(format!("HTTP/1.1 {head}\r\nSet-Cookie: a=b\r\nX-Why: y\r\nContent-Length: 2\r\n\r\nno")),
            |o| at(o.url("/")),
        )
        .await;
        match (&error, expected) {
            (SourceError::Throttled { retry_after, .. }, Some(seconds)) => {
                assert_eq!(*retry_after, seconds.map(Duration::from_secs))
            }
            (SourceError::Server { .. }, None) => {}
            _ => panic!("{head}: {error:?}"),
        }
        let answer = error.answer().unwrap();
        assert_eq!((&answer.body[..], answer.headers["x-why"].as_bytes()), (&b"no"[..], &b"y"[..]));
        assert!(!answer.headers.contains_key("set-cookie"));
        assert_eq!(answer.headers.contains_key("retry-after"), head.contains("Retry"));
    }
    let huge = |_: &Seen, _: usize| {
        say(format!("HTTP/1.1 500 Oops\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000)))
    };
    assert_eq!(fails(huge, |o| at(o.url("/"))).await.answer().unwrap().body.len(), ANSWER_BODY_MAX);
    let stalling = |_: &Seen, _: usize| {
        vec![Step::Send(b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n\r\nwhy".to_vec()), Step::Pause(PATIENCE)]
    };
    let error = fails_with(impatient(), stalling, |o| at(o.url("/"))).await;
    assert!(matches!(&error, SourceError::Forbidden { answer } if answer.body == "why"), "{error:?}");
}
