//! nginx as an origin: content, parts, conditions, credentials, codings, TLS.

use http::header::{CONTENT_ENCODING, WWW_AUTHENTICATE};
use proto::Kind;

use super::servers::nginx;
use super::*;

#[tokio::test]
async fn the_whole_a_part_and_what_is_beyond() {
    let server = nginx();
    let content = pattern(3_000_000);
    server.put("file", &content);
    server.put("empty", "");
    let source = source(SourceConfig::default());

    let response = source.get(at(server.url("/file"))).await.unwrap();
    assert_eq!((response.status.as_u16(), response.length, response.range), (200, Some(3_000_000), None));
    assert!(response.accepts_ranges && !response.not_modified && !response.used_credentials);
    let validators = response.validators.clone();
    assert!(validators.etag.is_some() && validators.last_modified.is_some());
    assert_eq!(validators.length, Some(3_000_000));
    assert_eq!(response.url.as_str(), server.url("/file"));
    assert_eq!(read(response).await.unwrap(), content);

    let response = source.get(part(server.url("/file"), 1_000_000, 2_000_000)).await.unwrap();
    assert_eq!(response.range, ByteRange::new(1_000_000, 2_000_000));
    assert_eq!((response.length, &response.validators), (Some(1_000_000), &validators));
    assert!(response.accepts_ranges);
    assert_eq!(read(response).await.unwrap(), content[1_000_000..2_000_000]);

    // The end of the content clamps the part.
    let response = source.get(part(server.url("/file"), 2_999_990, 9_000_000)).await.unwrap();
    assert_eq!(response.range, ByteRange::new(2_999_990, 3_000_000));
    assert_eq!(read(response).await.unwrap(), content[2_999_990..]);

    let error = source.get(part(server.url("/file"), 3_000_000, 3_000_001)).await.unwrap_err();
    assert!(matches!(error, SourceError::RangeNotSatisfiable { total: Some(3_000_000), .. }), "{error:?}");
    let error = source.get(part(server.url("/empty"), 0, 1)).await;
    assert!(matches!(&error, Err(SourceError::RangeNotSatisfiable { .. })) || error.is_ok_and(|r| r.range.is_none()));

    let head = source.head(at(server.url("/file"))).await.unwrap();
    assert_eq!((&head.validators, head.length, head.accepts_ranges), (&validators, Some(3_000_000), true));
    assert!(read(head).await.unwrap().is_empty());
    assert!(get_all(&source, at(server.url("/empty"))).await.unwrap().is_empty());
}

#[tokio::test]
async fn statuses_are_told_apart_and_passed_on() {
    let server = nginx();
    let source = source(SourceConfig::default());
    for (path, kind, status) in [
        ("/none", Kind::NotFound, 404),
        ("/gone", Kind::NotFound, 410),
        ("/forbidden", Kind::Forbidden, 403),
        ("/teapot", Kind::Invalid, 418),
    ] {
        let error = source.get(at(server.url(path))).await.unwrap_err();
        let answer = error.answer().expect("an answer");
        assert_eq!((error.kind(), answer.status.as_u16()), (kind, status), "{path}");
        assert!(!answer.body.is_empty() && !answer.headers.contains_key("content-length"));
    }
    let error = source.get(at(server.url("/forbidden"))).await.unwrap_err();
    assert_eq!(error.answer().unwrap().body, "not you");
    assert!(source.head(at(server.url("/none"))).await.is_err_and(|e| e.kind() == Kind::NotFound));
}

#[tokio::test]
async fn conditions() {
    let server = nginx();
    server.put("file", "first content");
    server.put("file2", "first content");
    let source = source(SourceConfig::default());
    let known = source.head(at(server.url("/file"))).await.unwrap().validators;

    let ask = |if_none_match: &Validators| OriginRequest {
        if_none_match: Some(if_none_match.clone()),
        ..at(server.url("/file"))
    };
    let response = source.get(ask(&known)).await.unwrap();
    assert!(response.not_modified && response.validators == known);
    assert!(read(response).await.unwrap().is_empty());
    let dated = Validators { etag: None, ..known.clone() };
    assert!(source.get(ask(&dated)).await.unwrap().not_modified);
    assert!(source.head(ask(&known)).await.unwrap().not_modified);

    let rest =
        |if_range: &Validators| OriginRequest { if_range: Some(if_range.clone()), ..part(server.url("/file"), 6, 13) };
    for validators in [&known, &dated] {
        assert_eq!(get_all(&source, rest(validators)).await.unwrap(), b"content");
    }

    // Another content, one second later at the least: the resolution of Last-Modified.
    server.put("file", "the second content, longer");
    let later = std::time::SystemTime::now() + Duration::from_secs(5);
    std::fs::File::options().write(true).open(server.www().join("file")).unwrap().set_modified(later).unwrap();
    let response = source.get(ask(&known)).await.unwrap();
    assert!(!response.not_modified && response.validators != known);
    assert_eq!(read(response).await.unwrap(), b"the second content, longer");
    for validators in [&known, &dated] {
        let response = source.get(rest(validators)).await.unwrap();
        assert_eq!((response.status.as_u16(), response.range), (200, None));
        assert!(response.accepts_ranges, "it is the content that changed, not the ability");
        assert_eq!(read(response).await.unwrap(), b"the second content, longer");
    }
}

#[tokio::test]
async fn basic_credentials() {
    let server = nginx();
    server.put("private/file", "secret");
    let source = source(SourceConfig::default());
    let error = source.get(at(server.url("/private/file"))).await.unwrap_err();
    assert!(matches!(error, SourceError::Unauthorized { .. }));
    assert_eq!(error.answer().unwrap().headers[WWW_AUTHENTICATE], "Basic realm=\"files\"");

    let url = format!("http://us%20er:p%20%40w@127.0.0.1:{}/private/file", server.port);
    let response = source.get(at(&url)).await.unwrap();
    assert!(response.used_credentials);
    assert_eq!(response.url.as_str(), server.url("/private/file"));
    assert_eq!(read(response).await.unwrap(), b"secret");
    let wrong = url.replace("p%20%40w", "hunter2");
    let error = source.get(at(&wrong)).await.unwrap_err();
    let shown = format!("{error} {error:?} {:?} {source:?}", at(&wrong));
    assert!(matches!(error, SourceError::Unauthorized { .. }) && !shown.contains("hunter2"), "{shown}");
}

#[tokio::test]
async fn codings_stay_as_they_are() {
    let server = nginx();
    let content = "a".repeat(50_000);
    server.put("gz/file", &content);
    let source = source(SourceConfig::default());
    let response = source.get(at(server.url("/gz/file"))).await.unwrap();
    assert!(!response.headers.contains_key(CONTENT_ENCODING));
    assert_eq!(read(response).await.unwrap(), content.as_bytes());

    let response = source.get(with(at(server.url("/gz/file")), &[("accept-encoding", "gzip")])).await.unwrap();
    assert_eq!(response.headers[CONTENT_ENCODING], "gzip");
    assert_eq!((response.length, response.validators.length), (None, None), "coded on the way, of unknown length");
    let coded = read(response).await.unwrap();
    assert!(coded.starts_with(&[0x1f, 0x8b]) && coded.len() < 1_000);
}

#[tokio::test]
async fn redirects_within_a_server() {
    let server = nginx();
    server.put("file", "here");
    let source = source(SourceConfig::default());
    let response = source.get(at(server.url("/moved"))).await.unwrap();
    assert_eq!(response.url.as_str(), server.url("/file?x=1"));
    assert_eq!(read(response).await.unwrap(), b"here");
    server.put("folder/x", "");
    let error = source.get(at(server.url("/folder"))).await.unwrap_err();
    assert!(
        matches!(error, SourceError::Forbidden { .. }),
        "redirected to /folder/, which may not be listed: {error:?}"
    );
}

#[tokio::test]
async fn ipv6() {
    let server = nginx();
    server.put("file", "six");
    let source = source(SourceConfig::default());
    let url = format!("http://[::1]:{}/file", server.port);
    assert_eq!(get_all(&source, at(&url)).await.unwrap(), b"six");
    let strict = OriginRequest { guard: Guard::strict(), ..at(&url) };
    let error = source.get(strict).await.unwrap_err();
    assert!(
        matches!(&error, SourceError::Refused { host, address, .. } if &**host == "::1" && address.is_ipv6()),
        "{error:?}"
    );
}

#[tokio::test]
async fn tls_trusts_what_the_host_says() {
    let server = nginx();
    let content = pattern(5_000_000);
    server.put("file", &content);
    let url = server.tls("/file");
    let rule = |key: &str, options: HostOptions| {
        let hosts = [(key.to_owned(), options)].into_iter().collect();
        source(SourceConfig { hosts, ..SourceConfig::default() })
    };
    let proto = |response: &OriginResponse| response.headers["x-proto"].to_str().unwrap().to_owned();

    let error = source(SourceConfig::default()).get(at(&url)).await.unwrap_err();
    assert!(matches!(&error, SourceError::Tls { host, .. } if &**host == "localhost"), "{error:?}");
    assert!(!is_worth_retrying(&error));

    let ca = HostOptions { ca: Some(server.ca()), ..HostOptions::default() };
    let trusting = rule("localhost", ca.clone());
    let response = trusting.get(at(&url)).await.unwrap();
    assert_eq!((proto(&response).as_str(), response.length), ("HTTP/2.0", Some(5_000_000)));
    assert_eq!(read(response).await.unwrap(), content);
    let response = trusting.get(part(&url, 10, 20)).await.unwrap();
    assert_eq!((response.range, read(response).await.unwrap()), (ByteRange::new(10, 20), content[10..20].to_vec()));
    assert!(trusting.get(at(server.tls("/none"))).await.is_err_and(|e| e.kind() == Kind::NotFound));
    let literal = url.replace("localhost", "127.0.0.1");
    assert!(trusting.get(at(&literal)).await.is_err(), "the rule is for another name");

    let insecure = rule(&format!("*:{}", server.tls_port), HostOptions { insecure: true, ..HostOptions::default() });
    assert_eq!(get_all(&insecure, at(&literal)).await.unwrap(), content);

    let mut first = SourceConfig { http2: false, ..SourceConfig::default() };
    first.hosts.insert("localhost".to_owned(), ca.clone());
    let response = source(first).get(at(&url)).await.unwrap();
    assert_eq!(proto(&response), "HTTP/1.1");

    // From https to http only by permission.
    let error = trusting.get(at(server.tls("/down"))).await.unwrap_err();
    assert!(matches!(error, SourceError::Redirects { problem: RedirectProblem::Downgrade, .. }), "{error:?}");
    let mut lenient = SourceConfig { allow_downgrade: true, ..SourceConfig::default() };
    lenient.hosts.insert("localhost".to_owned(), ca);
    assert_eq!(get_all(&source(lenient), at(server.tls("/down"))).await.unwrap(), content);

    // A registry without TLS: https is asked for, http is spoken.
    let plain = rule("127.0.0.1", HostOptions { plain_http: true, ..HostOptions::default() });
    let url = server.url("/file").replace("http:", "https:");
    assert_eq!(get_all(&plain, at(url)).await.unwrap(), content);
}

/// Over TLS the end of a connection is not taken for the end of a body unless the other side says so.
#[tokio::test]
async fn a_cut_connection_is_no_end_of_a_body() {
    use rustls::pki_types::pem::PemObject;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = nginx();
    let read_pem = |name: &str| std::fs::read(server.dir.path().join(name)).unwrap();
    let certificate = rustls::pki_types::CertificateDer::from_pem_slice(&read_pem("cert.pem")).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_slice(&read_pem("key.pem")).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        for polite in [true, false] {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut stream = acceptor.accept(tcp).await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nall of it?").await.unwrap();
            stream.flush().await.unwrap();
            if polite {
                stream.shutdown().await.unwrap();
            }
        }
    });
    let mut config = quick();
    config.hosts.insert("localhost".to_owned(), HostOptions { ca: Some(server.ca()), ..HostOptions::default() });
    let source = source(config);
    let url = format!("https://localhost:{port}/");
    assert_eq!(get_all(&source, at(&url)).await.unwrap(), b"all of it?");
    let error = get_all(&source, at(&url)).await.unwrap_err();
    assert!(matches!(error, SourceError::BodyCutShort { expected: None, got: 10, .. }), "{error:?}");
    task.await.unwrap();
}

#[tokio::test]
async fn a_proxy_is_used_when_configured() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
    let server = nginx();
    server.put("file", "through");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy: Url = format!("http://pu:pp@{}", listener.local_addr().unwrap()).parse().unwrap();
    let heads = Arc::new(Mutex::new(Vec::new()));
    let (log, port) = (heads.clone(), server.port);
    let task = tokio::spawn(async move {
        let mut tunnels = tokio::task::JoinSet::new();
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let log = log.clone();
            tunnels.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.unwrap());
                }
                let text = String::from_utf8(head).unwrap();
                log.lock().push(text.clone());
                let Some(rest) = text.strip_prefix("CONNECT ") else {
                    assert!(text.starts_with(&format!("GET http://name.test:{port}/file HTTP/1.1\r\n")), "{text}");
                    client
                        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nplain")
                        .await
                        .unwrap();
                    return;
                };
                let to = rest.split(' ').next().unwrap().replace("localhost", "127.0.0.1");
                if to.ends_with(":1") {
                    client.write_all(b"HTTP/1.1 403 no\r\n\r\n").await.unwrap();
                    return;
                }
                client.write_all(b"HTTP/1.1 200 ok\r\nX: y\r\n\r\n").await.unwrap();
                let mut server = tokio::net::TcpStream::connect(to).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    let mut config = SourceConfig { proxy: Some(ProxyUrl(proxy)), ..SourceConfig::default() };
    config.hosts.insert("localhost".to_owned(), HostOptions { ca: Some(server.ca()), ..HostOptions::default() });
    config.hosts.insert("127.0.0.1".to_owned(), HostOptions { direct: true, ..HostOptions::default() });
    let source = source(config);
    // The name is the proxy's to resolve.
    assert_eq!(get_all(&source, at(format!("http://name.test:{port}/file"))).await.unwrap(), b"plain");
    assert_eq!(get_all(&source, at(server.tls("/file"))).await.unwrap(), b"through");
    assert_eq!(get_all(&source, at(server.url("/file"))).await.unwrap(), b"through");
    let error = source.get(at("https://other.test:1/")).await.unwrap_err();
    assert!(matches!(&error, SourceError::Proxy { what, .. } if what.contains("403")), "{error:?}");
    let strict = OriginRequest { guard: Guard::strict(), ..at("http://localhost:9/") };
    assert!(matches!(source.get(strict).await, Err(SourceError::Refused { .. })));
    let heads = heads.lock();
    assert_eq!(heads.len(), 3, "127.0.0.1 was reached directly");
    assert!(heads.iter().all(|head| head.contains("Basic cHU6cHA=")));
    assert!(!format!("{source:?}").contains("pp@"));
    task.abort();
}
