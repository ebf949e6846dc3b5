//! Tasks as HTTP answers, over raw sockets: statuses, framing, and bodies that break.

use bytes::Bytes;
use dfdaemon::downloads::{DownloadError, OriginAnswer};
use dfdaemon::metrics::{BytesFrom, Outcome, Way};
use http::{HeaderMap, StatusCode};
use proto::{Algorithm, Digest, Kind};

use crate::support::{Content, Daemon, NoDownloads, Origin, Scripted, answer};

const RULE: &str = "proxy.rules = [{ regex = '.', action = 'p2p' }]";

fn content() -> Bytes {
    (0..200_000u32).flat_map(u32::to_le_bytes).collect()
}

async fn serving(content: Content) -> Daemon {
    Daemon::start(RULE, Scripted::new(move |request| Ok(content.open(request.spec.id())))).await
}

#[tokio::test]
async fn whole_and_ranges() {
    let bytes = content();
    let task = Content::new(bytes.clone())
        .header("content-type", "application/x-tar")
        .header("etag", "\"v1\"")
        .header("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")
        .header("set-cookie", "not=yours")
        .header("content-length", "5");
    let daemon = serving(task).await;
    let whole = daemon.get("http://files.example/a", "").await;
    assert_eq!((whole.status, whole.body.len()), (200, bytes.len()));
    assert_eq!(whole.body, bytes);
    assert_eq!(whole.field("content-length"), Some(&*bytes.len().to_string()));
    assert_eq!(whole.field("content-type"), Some("application/x-tar"));
    assert_eq!(whole.field("etag"), Some("\"v1\""));
    assert_eq!(whole.field("accept-ranges"), Some("bytes"));
    assert_eq!(whole.field("set-cookie"), None);
    assert_eq!(whole.field("x-skimmer-task-id").unwrap().len(), 64);

    let part = daemon.get("http://files.example/a", "Range: bytes=100-70000\r\n").await;
    assert_eq!((part.status, &part.body[..]), (206, &bytes[100..=70_000]));
    assert_eq!(part.field("content-range"), Some("bytes 100-70000/800000"));
    assert_eq!(part.field("content-length"), Some("69901"));
    let suffix = daemon.get("http://files.example/a", "Range: bytes=-5\r\nIf-Range: \"v1\"\r\n").await;
    assert_eq!((suffix.status, &suffix.body[..]), (206, &bytes[bytes.len() - 5..]));
    let stale = daemon.get("http://files.example/a", "Range: bytes=-5\r\nIf-Range: \"v0\"\r\n").await;
    assert_eq!((stale.status, stale.body.len()), (200, bytes.len()));

    let beyond = daemon.get("http://files.example/a", "Range: bytes=800000-\r\n").await;
    assert_eq!((beyond.status, beyond.body.len()), (416, 0));
    assert_eq!(beyond.field("content-range"), Some("bytes */800000"));
    let same = daemon.get("http://files.example/a", "If-None-Match: \"v1\"\r\n").await;
    assert_eq!((same.status, same.body.len()), (304, 0));
    assert_eq!(same.field("etag"), Some("\"v1\""));
    assert_eq!(daemon.metrics.requests(Way::ProxyP2p, Outcome::Ok), 6);
    assert_eq!(daemon.metrics.bytes(BytesFrom::Swarm), 2 * 800_000 + 69_901 + 5);
}

#[tokio::test]
async fn several_ranges_in_one_answer() {
    let bytes = content();
    let daemon = serving(Content::new(bytes.clone()).header("content-type", "a/b")).await;
    let parts = daemon.get("http://files.example/a", "Range: bytes=0-9,100000-199999,-3\r\n").await;
    assert_eq!(parts.status, 206);
    assert_eq!(parts.field("content-length"), Some(&*parts.body.len().to_string()));
    let boundary = parts.field("content-type").unwrap().strip_prefix("multipart/byteranges; boundary=").unwrap();
    let mut expected = Vec::new();
    for (first, last) in [(0, 9), (100_000, 199_999), (799_997, 799_999)] {
        expected.extend(
            format!("\r\n--{boundary}\r\nContent-Type: a/b\r\nContent-Range: bytes {first}-{last}/800000\r\n\r\n")
                .bytes(),
        );
        expected.extend(&bytes[first..=last]);
    }
    expected.extend(format!("\r\n--{boundary}--\r\n").bytes());
    assert_eq!(parts.body, expected);
}

#[tokio::test]
async fn unknown_length_and_nothing_at_all() {
    let bytes = content();
    let daemon = serving(Content { length_known: false, ..Content::new(bytes.clone()) }).await;
    let whole = daemon.get("http://files.example/a", "Range: bytes=0-1\r\n").await;
    assert_eq!((whole.status, whole.field("transfer-encoding")), (200, Some("chunked")));
    assert!(whole.body.ends_with(b"0\r\n\r\n") && whole.body.len() > bytes.len());

    let empty = serving(Content::new("")).await;
    let whole = empty.get("http://files.example/a", "").await;
    assert_eq!((whole.status, whole.field("content-length"), whole.body.len()), (200, Some("0"), 0));
    let ranged = empty.get("http://files.example/a", "Range: bytes=0-\r\n").await;
    assert_eq!((ranged.status, ranged.field("content-range")), (416, Some("bytes */0")));
}

#[tokio::test]
async fn a_body_that_cannot_be_completed_never_looks_complete() {
    let bytes = content();
    let base = Content { chunk: 10_000, ..Content::new(bytes.clone()) };
    for (task, range) in [
        (Content { fail_at: Some(500_000), ..base.clone() }, ""),
        (Content { end_at: Some(500_000), ..base.clone() }, ""),
        (Content { fail_at: Some(500_000), ..base.clone() }, "Range: bytes=400000-599999\r\n"),
        (Content { end_at: Some(500_000), ..base.clone() }, "Range: bytes=400000-599999\r\n"),
        (Content { end_at: Some(500_000), ..base.clone() }, "Range: bytes=0-9,400000-599999,600000-600009\r\n"),
    ] {
        let daemon = serving(task).await;
        let broken = daemon.get("http://files.example/a", range).await;
        let promised: usize = broken.field("content-length").unwrap().parse().unwrap();
        assert!(broken.body.len() < promised, "{} of {promised}", broken.body.len());
        assert_eq!(daemon.metrics.requests(Way::ProxyP2p, Outcome::Broken), 1);
    }
    // Chunked: the last chunk never comes.
    let daemon = serving(Content { fail_at: Some(500_000), length_known: false, ..base.clone() }).await;
    let broken = daemon.get("http://files.example/a", "").await;
    assert_eq!(broken.field("transfer-encoding"), Some("chunked"));
    assert!(!broken.body.ends_with(b"0\r\n\r\n"));
    // And curl says so.
    let daemon = serving(Content { fail_at: Some(790_000), ..base }).await;
    let output = tokio::process::Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "--proxy", &format!("http://{}", daemon.address), "http://files.example/a"])
        .output()
        .await
        .unwrap();
    // 18: ended early; 56: the connection was reset, which is what a client of HTTP/1.0 needs to notice it.
    assert!(matches!(output.status.code(), Some(18 | 56)), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_failure_before_the_first_byte_has_a_status() {
    let daemon = serving(Content { fail_at: Some(0), ..Content::new("x".repeat(100)) }).await;
    let failed = daemon.get("http://files.example/a", "").await;
    assert_eq!((failed.status, failed.field("x-skimmer-error-type")), (502, Some("corrupt")));
    assert_eq!(failed.field("x-skimmer-task-id").unwrap().len(), 64);
    assert!(failed.text().contains("a piece is wrong"));
    assert_eq!(daemon.metrics.requests(Way::ProxyP2p, Outcome::Failed), 1);
}

#[tokio::test]
async fn the_origins_own_words() {
    for (status, field, value) in [
        (401, "www-authenticate", "Bearer realm=\"https://auth/token\",scope=\"repository:a:pull\""),
        (429, "retry-after", "17"),
        (404, "content-type", "application/json"),
        (503, "retry-after", "3"),
    ] {
        let downloads = Scripted::new(move |_| {
            let mut headers = HeaderMap::new();
            headers.insert(field, value.parse().unwrap());
            headers.insert("connection", "close, x-private".parse().unwrap());
            headers.insert("x-private", "1".parse().unwrap());
            headers.insert("content-length", "9999".parse().unwrap());
            let answer =
                OriginAnswer { status: StatusCode::from_u16(status).unwrap(), headers, body: "{\"why\":1}".into() };
            let kind = if status == 503 { Kind::Unavailable } else { Kind::NotFound };
            Err(DownloadError::new(kind, "no").with_origin(answer))
        });
        let daemon = Daemon::start(RULE, downloads).await;
        let failed = daemon.get("http://files.example/a", "").await;
        assert_eq!((failed.status, failed.field(field), failed.text().as_str()), (status, Some(value), "{\"why\":1}"));
        assert_eq!(failed.field("x-skimmer-error-type"), Some("origin"));
        assert_eq!(failed.field("x-private"), None);
    }
}

#[tokio::test]
async fn our_own_kinds_have_their_statuses() {
    for kind in Kind::ALL {
        let config = format!("{RULE}\nproxy.fallback_direct = false");
        let daemon = Daemon::start(&config, Scripted::new(move |_| Err(DownloadError::new(kind, "so it is")))).await;
        let failed = daemon.get("http://files.example/a", "").await;
        assert_eq!((failed.status, failed.field("x-skimmer-error-type")), (kind.http_status(), Some(kind.label())));
    }
}

#[tokio::test]
async fn without_a_p2p_side_the_origin_is_asked() {
    let origin = Origin::start(|_| answer(200, &[("etag", "\"o\"")], "from the origin")).await;
    let daemon = Daemon::start(RULE, std::sync::Arc::new(NoDownloads)).await;
    let served = daemon.get(&origin.url("/f"), "Range: bytes=0-1\r\nAuthorization: Basic eA==\r\n").await;
    assert_eq!((served.status, served.text().as_str()), (200, "from the origin"));
    assert_eq!(served.field("x-skimmer-error-type"), None);
    assert_eq!(origin.seen()[0].headers["authorization"], "Basic eA==");
    assert_eq!(origin.seen()[0].headers["range"], "bytes=0-1");
    assert_eq!(daemon.metrics.fallbacks(), 1);

    let strict =
        Daemon::start(&format!("{RULE}\nproxy.fallback_direct = false"), std::sync::Arc::new(NoDownloads)).await;
    assert_eq!(strict.get(&origin.url("/f"), "").await.status, 503);
    assert_eq!(origin.seen().len(), 1);
}

#[tokio::test]
async fn what_the_engine_is_asked() {
    let downloads = Scripted::new(|request| Ok(Content::new("0123456789").open(request.spec.id())));
    let daemon = Daemon::start(RULE, downloads.clone()).await;
    let fields = "Authorization: Bearer t\r\nCookie: c=1\r\nRange: bytes=2-5\r\nAccept-Encoding: gzip\r\n\
                  Proxy-Authorization: Basic p\r\nX-Hop: 1\r\nConnection: x-hop\r\n";
    let part = daemon.get("http://Files.Example:80/a?X-Amz-Signature=s#f", fields).await;
    assert_eq!((part.status, part.text().as_str()), (206, "2345"));
    let opened = downloads.opened.lock();
    assert_eq!(opened[0].spec.url.as_str(), "http://files.example/a?X-Amz-Signature=s");
    assert_eq!(opened[0].wanted.map(|r| (r.start(), r.end())), Some((2, 6)));
    let headers = &opened[0].headers;
    assert_eq!(
        (&headers["authorization"], &headers["cookie"]),
        (&"Bearer t".parse().unwrap(), &"c=1".parse().unwrap())
    );
    assert_eq!(headers["accept-encoding"], "identity");
    for gone in ["range", "host", "proxy-authorization", "x-hop", "connection"] {
        assert!(!headers.contains_key(gone), "{gone}");
    }
    assert!(headers["via"].to_str().unwrap().starts_with("1.1 skimmer-"));
    assert!(!format!("{:?}", opened[0]).contains("Bearer"));
}

#[tokio::test]
async fn blobs_are_named_by_their_digest_on_every_way() {
    let digest = Digest::of(Algorithm::Sha256, b"layer");
    let downloads = Scripted::new(|request| Ok(Content::new("layer").open(request.spec.id())));
    let daemon = Daemon::start("mirror.default = 'https://registry.example'", downloads.clone()).await;
    let path = format!("/v2/team/app/blobs/{digest}");
    for target in [path.clone(), format!("{path}?ns=quay.io"), format!("http://r.example{path}")] {
        let blob = daemon.get(&target, "").await;
        assert_eq!((blob.status, blob.text().as_str()), (200, "layer"));
        assert_eq!(blob.field("docker-content-digest"), Some(&*digest.to_string()));
        assert_eq!(blob.field("etag"), Some(&*format!("\"{digest}\"")));
        assert_eq!(blob.field("content-type"), Some("application/octet-stream"));
    }
    let opened = downloads.opened.lock();
    let urls: Vec<&str> = opened.iter().map(|request| request.spec.url.as_str()).collect();
    assert_eq!(
        urls,
        [
            format!("https://registry.example{path}"),
            format!("https://quay.io{path}"),
            format!("http://r.example{path}")
        ]
    );
    assert!(opened.iter().all(|request| request.spec.id() == opened[0].spec.id() && request.spec.content_addressed));
}
