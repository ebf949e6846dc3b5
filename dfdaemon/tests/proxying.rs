//! The mirror's and the proxy's way to the origin.

use std::sync::Arc;

use dfdaemon::config::Config;
use dfdaemon::metrics::{BytesFrom, Outcome, Way};
use proto::{Algorithm, Digest};

use crate::support::{Daemon, Fetching, NoDownloads, Origin, Raw, Scripted, answer};

fn echo(seen: &crate::support::Seen) -> http::Response<dfdaemon::body::Body> {
    let text = format!("{} {} {}", seen.method, seen.uri, String::from_utf8_lossy(&seen.body));
    answer(200, &[("x-origin", "yes"), ("connection", "x-gone"), ("x-gone", "1"), ("set-cookie", "a=b")], text)
}

#[tokio::test]
async fn the_mirror_passes_everything_but_blobs() {
    let origin = Origin::start(echo).await;
    let config = format!(
        "mirror.default = '{}'\nmirror.upstreams = [{{ host = 'corp', url = '{}' }}]",
        origin.url(""),
        origin.url("/base")
    );
    let daemon = Daemon::start(&config, Arc::new(NoDownloads)).await;
    let digest = Digest::of(Algorithm::Sha256, b"x");
    for (request, expected) in [
        ("GET /v2/ HTTP/1.1\r\n".to_owned(), "GET /v2/ ".to_owned()),
        ("GET /v2/?ns=corp HTTP/1.1\r\n".into(), "GET /base/v2/ ".into()),
        ("GET /v2/a/b/manifests/latest?ns=corp HTTP/1.1\r\n".into(), "GET /base/v2/a/b/manifests/latest ".into()),
        ("GET /v2/a/tags/list?n=1&ns=corp HTTP/1.1\r\n".into(), "GET /base/v2/a/tags/list?n=1 ".into()),
        (format!("DELETE /v2/a/blobs/{digest} HTTP/1.1\r\n"), format!("DELETE /v2/a/blobs/{digest} ")),
        ("POST /v2/a/blobs/uploads/ HTTP/1.1\r\nContent-Length: 4\r\n".into(), "POST /v2/a/blobs/uploads/ body".into()),
        (
            "PATCH /v2/a/blobs/uploads/u HTTP/1.1\r\nTransfer-Encoding: chunked\r\n".into(),
            "PATCH /v2/a/blobs/uploads/u body".into(),
        ),
    ] {
        let body = match &request {
            r if r.contains("Content-Length") => "body",
            r if r.contains("chunked") => "4\r\nbody\r\n0\r\n\r\n",
            _ => "",
        };
        let sent =
            format!("{request}Host: x\r\nConnection: close\r\nAuthorization: Bearer tok\r\nX-Custom: 1\r\n\r\n{body}");
        let raw = daemon.raw(&sent).await;
        assert_eq!((raw.status, raw.text()), (200, expected), "{request}");
        assert_eq!(
            (raw.field("x-origin"), raw.field("x-gone"), raw.field("set-cookie")),
            (Some("yes"), None, Some("a=b"))
        );
    }
    for seen in origin.seen() {
        assert_eq!(seen.headers["authorization"], "Bearer tok");
        assert_eq!(seen.headers["x-custom"], "1");
        assert_eq!(seen.headers["host"], origin.address.to_string());
        assert!(!seen.headers.contains_key("connection") && !seen.uri.contains("ns="));
    }
    let head = daemon.raw(&format!("HEAD /v2/a/blobs/{digest} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert!(head.field("content-length").is_some_and(|length| length != "0"));
    assert_eq!(daemon.metrics.requests(Way::MirrorDirect, Outcome::Ok), 8);
    assert_eq!(daemon.metrics.bytes(BytesFrom::Client), 8);
}

#[tokio::test]
async fn a_blob_is_fetched_once_and_a_refusal_is_the_origins() {
    let blob = vec![7u8; 300_000];
    let digest = Digest::of(Algorithm::Sha512, &blob);
    let content = blob.clone();
    let origin = Origin::start(move |seen| match seen.headers.get("authorization") {
        Some(value) if value == "Bearer good" => {
            answer(200, &[("content-type", "application/octet-stream")], content.clone())
        }
        _ => answer(401, &[("www-authenticate", "Bearer realm=\"x\"")], "{\"errors\":[]}"),
    })
    .await;
    let config = format!("mirror.default = '{}'", origin.url(""));
    let daemon = Daemon::start(&config, Fetching::new(&config)).await;
    let path = format!("/v2/a/b/blobs/{digest}");
    let refused = daemon.get(&path, "").await;
    assert_eq!((refused.status, refused.field("www-authenticate")), (401, Some("Bearer realm=\"x\"")));
    assert_eq!(refused.text(), "{\"errors\":[]}");
    for _ in 0..2 {
        let served = daemon.get(&path, "Authorization: Bearer good\r\n").await;
        assert_eq!((served.status, served.body.len()), (200, blob.len()));
    }
    let part = daemon.get(&path, "Authorization: Bearer good\r\nRange: bytes=5-\r\n").await;
    assert_eq!((part.status, part.body.len()), (206, blob.len() - 5));
    assert_eq!(origin.seen().len(), 2);
    assert_eq!(daemon.metrics.bytes(BytesFrom::Cache), 2 * 300_000 - 5);
}

#[tokio::test]
async fn namespaces_are_checked() {
    let daemon = Daemon::start_as(Config::default(), Arc::new(NoDownloads)).await;
    let digest = Digest::of(Algorithm::Sha256, b"x");
    for (target, status) in [
        ("/v2/?ns=a/b".to_owned(), 400),
        ("/v2/?ns=127.0.0.1:1".into(), 403),
        ("/v2/?ns=localhost:1".into(), 403),
        ("/v2/?ns=169.254.169.254".into(), 403),
        ("/v2/?ns=[::1]:1".into(), 403),
        (format!("/v2/a/blobs/{digest}?ns=127.0.0.1:1"), 403),
        ("http://127.0.0.1:1/".into(), 403),
        ("http://0177.0.0.1:1/".into(), 403),
    ] {
        let refused = daemon.get(&target, "").await;
        assert_eq!(refused.status, status, "{target}: {}", refused.text());
        if target.starts_with("/v2") {
            assert!(refused.text().starts_with("{\"errors\":[{\"code\":"), "{}", refused.text());
        }
    }
}

#[tokio::test]
async fn rules_in_order() {
    let origin = Origin::start(echo).await;
    let config = format!(
        r#"proxy.rules = [
            {{ regex = '/secret', action = "refuse" }},
            {{ regex = '^http://old\.example/(.*)', action = "redirect", redirect = '{}/new/$1' }},
            {{ regex = '/big', action = "p2p" }},
        ]"#,
        origin.url("")
    );
    let downloads = Fetching::new(&config);
    let daemon = Daemon::start(&config, downloads.clone()).await;
    let refused = daemon.get(&origin.url("/a/../secret"), "").await;
    assert_eq!((refused.status, refused.field("x-skimmer-error-type")), (403, Some("forbidden")));
    assert!(refused.text().contains("\"/secret\""));
    assert_eq!(daemon.get("http://old.example/x?y=1", "").await.text(), "GET /new/x?y=1 ");
    assert_eq!(daemon.get("http://old.example/big", "").await.text(), "GET /new/big ");
    assert_eq!(daemon.get(&origin.url("/plain"), "").await.text(), "GET /plain ");
    assert_eq!(downloads.opened.lock().len(), 1);
    let posted = daemon
        .raw(&format!(
            "POST {} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
            origin.url("/big")
        ))
        .await;
    assert_eq!(posted.text(), "POST /big hi");
    assert_eq!(daemon.metrics.requests(Way::ProxyP2p, Outcome::Ok), 1);
    for bad in ["http://u:p@files.example/", "ftp://files.example/"] {
        assert_eq!(daemon.get(bad, "").await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn a_broken_origin_is_passed_on_as_broken() {
    // Promises 1000 bytes, sends 10.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut buffer = [0; 4096];
            let _ = stream.read(&mut buffer).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789").await;
        }
    });
    let daemon = Daemon::start("", Arc::new(NoDownloads)).await;
    let broken = daemon.get(&format!("http://{address}/"), "").await;
    assert_eq!((broken.status, broken.field("content-length")), (200, Some("1000")));
    assert!(broken.body.len() <= 10);
    // Nobody there at all.
    drop(tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap());
    let closed = { tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap() };
    let nobody = daemon.get(&format!("http://{closed}/"), "").await;
    assert_eq!((nobody.status, nobody.field("x-skimmer-error-type")), (502, Some("unavailable")));
    assert!(nobody.text().contains("refused"), "{}", nobody.text());
}

#[tokio::test]
async fn stalled_and_silent_origins_end() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).await.unwrap_or_default();
            if buffer[..count].starts_with(b"GET /body") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n0123456789").await;
            }
            kept.push(stream);
        }
    });
    let daemon =
        Daemon::start("limits.body_timeout = '300ms'\nlimits.origin_timeout = '300ms'", Arc::new(NoDownloads)).await;
    let stalled = daemon.get(&format!("http://{address}/body"), "").await;
    assert_eq!(stalled.status, 200);
    assert!(stalled.body.len() <= 10);
    assert_eq!(daemon.get(&format!("http://{address}/nothing"), "").await.status, 504);
}

#[tokio::test]
async fn loops_are_cut() {
    let downloads = Scripted::new(|_| panic!("nothing here is a task"));
    let daemon = Daemon::start("proxy.connect.ports = [1]", downloads).await;
    let own = format!("http://{}/v2/", daemon.address);
    assert_eq!(daemon.get(&own, "").await.status, 508);
    assert_eq!(daemon.get(&format!("http://localhost:{}/", daemon.address.port()), "").await.status, 508);

    // Round by another proxy, which is recognised by Via.
    let other = Daemon::start("", Arc::new(NoDownloads)).await;
    let config =
        format!("proxy.rules = [{{ regex = '.', action = 'redirect', redirect = 'http://{}/v2/' }}]", other.address);
    let front = Daemon::start(&config, Arc::new(NoDownloads)).await;
    drop(other);
    assert!(front.get("http://files.example/", "").await.status >= 400);
    let origin = Origin::start(|seen| answer(200, &[], seen.headers["via"].to_str().unwrap().to_owned())).await;
    let via = Daemon::start("", Arc::new(NoDownloads)).await;
    let hop = via.get(&origin.url("/"), "").await.text();
    let circle = via.get(&origin.url("/"), &format!("Via: 1.1 other, {hop}\r\n")).await;
    assert_eq!(circle.status, 508);
}

#[tokio::test]
async fn proxy_users_need_a_password_and_the_mirror_none() {
    let origin = Origin::start(echo).await;
    let config = format!("proxy.auth = {{ user = 'u', password = 'p' }}\nmirror.default = '{}'", origin.url(""));
    let daemon = Daemon::start(&config, Arc::new(NoDownloads)).await;
    for fields in
        ["", "Proxy-Authorization: Basic dTpx\r\n", "Proxy-Authorization: Bearer dTpw\r\n", "Proxy-Authorization: \r\n"]
    {
        let refused = daemon.get(&origin.url("/"), fields).await;
        assert_eq!(refused.status, 407, "{fields}");
        assert!(refused.field("proxy-authenticate").unwrap().starts_with("Basic realm="));
    }
    let connect: Raw = daemon.raw("CONNECT files.example:443 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert_eq!(connect.status, 407);
    assert_eq!(daemon.get(&origin.url("/"), "Proxy-Authorization: basic dTpw\r\n").await.status, 200);
    assert_eq!(daemon.get("/v2/", "").await.status, 200);
    assert!(origin.seen().iter().all(|seen| !seen.headers.contains_key("proxy-authorization")));
}
