//! Answers that clients get although they send on, send no more, or come through a proxy.

use std::{
    fs,
    io::{self, Read, Write},
    net::TcpStream,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{Authority, Run};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use super::{
    bad_clients::{CUT_OFF, MIB, STRICT},
    content::{Blob, IMAGE, Manifest, location},
    http::Connection,
    site::{Database, Servers, Site, Storage},
};
use crate::runner::{Case, CaseResult, Outcome, anywhere};

const IO_TIMEOUT: Duration = Duration::from_secs(30);
const TIMES: usize = 20;

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere("registry answers: a body is refused for its header: the client reads why, over TLS too", early),
        anywhere("registry answers: one that sent all and says it will send no more is answered", half_closed),
        anywhere("registry answers: behind a proxy: what clients write in its headers is not believed", proxied),
    ]
}

/// Clients that look at the answer when they have sent everything.
fn early(run: &Run) -> CaseResult {
    let authority = Authority::new(&run.data_dir("authority")?)?;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.path())?)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let client = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let client = Arc::new(client.with_root_certificates(roots).with_no_client_auth());
    let nobody = run.data_dir("passwords")?.join("htpasswd");
    fs::write(&nobody, "")?;
    let auth = format!("[auth]\nhtpasswd = \"{}\"\n", nobody.display());
    let body = vec![b'x'; 8 * MIB];
    for with_tls in [false, true] {
        let servers = Servers::start(run, Database::Sqlite, Storage::Files)?;
        let pair = authority.issue("registry", &[], &[servers.host.ip()])?;
        let tls = format!("[tls]\ncert = \"{}\"\nkey = \"{}\"\n", pair.cert.display(), pair.key.display());
        let config = servers.config("", "", &format!("{auth}{}", if with_tls { tls.as_str() } else { "" }));
        let mut site = Site::start(run, servers, 1, &config)?;
        let addr = site.registries[0].addr();
        let head = |line: &str| format!("{line} HTTP/1.1\r\nhost: {addr}\r\ncontent-length: {}\r\n\r\n", body.len());
        for (head, status) in [
            (head("POST /v2/a/b/blobs/uploads/"), 401),
            (head("PUT /v2/a/b/manifests/x"), 401),
            (head("POST /v2/A/b/blobs/uploads/"), 400),
            (format!("POST /v2/a/b/blobs/uploads/ HTTP/1.1\r\ncontent-length: {}\r\n\r\n", body.len()), 400),
        ] {
            for time in 0..TIMES {
                let stream = TcpStream::connect(addr)?;
                stream.set_read_timeout(Some(IO_TIMEOUT))?;
                stream.set_write_timeout(Some(IO_TIMEOUT))?;
                let found = if with_tls {
                    let name = ServerName::from(addr.ip());
                    send_and_look(
                        StreamOwned::new(ClientConnection::new(Arc::clone(&client), name)?, stream),
                        &head,
                        &body,
                    )
                } else {
                    send_and_look(stream, &head, &body)
                };
                let found = found.with_context(|| format!("time {time}, TLS: {with_tls}: {head}"))?;
                ensure!(found == status, "{found} instead of {status} (TLS: {with_tls}): {head}");
            }
        }
        site.stop()?;
    }
    Ok(Outcome::Passed)
}

/// The status of the answer.
fn send_and_look(mut stream: impl Read + Write, head: &str, body: &[u8]) -> Result<u16> {
    stream.write_all(head.as_bytes())?;
    stream.write_all(body).context("while the body is sent")?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        match stream.read(&mut buffer).context("no answer")? {
            0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
    let status = answer.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    status.with_context(|| format!("no status: {}", String::from_utf8_lossy(&answer)))
}

fn half_closed(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, STRICT)?;
    let image = Manifest::image("half closed", &[Blob::random(3 * MIB, 700)]);
    let ask = |method: &str, path: &str, headers: &[(&str, &str)], body: &[u8], status: u16| -> Result<Vec<u8>> {
        let mut connection = Connection::open(site.registries[0].addr())?;
        let length = body.len().to_string();
        let mut all = headers.to_vec();
        if !body.is_empty() {
            all.push(("content-length", &length));
        }
        connection.head(method, path, &all)?;
        connection.write(body)?;
        connection.end_sending()?;
        let response = connection.response_within(CUT_OFF, false).with_context(|| format!("{method} {path}"))?;
        let response = response.is(status, path)?;
        ensure!(connection.is_closed_within(CUT_OFF)?, "{method} {path}: the connection stays open");
        Ok(response.body)
    };
    for blob in &image.blobs {
        ask("POST", &format!("/v2/a/b/blobs/uploads/?digest={}", blob.digest), &[], &blob.bytes, 201)?;
        ensure!(ask("GET", &blob.path("a/b"), &[], &[], 200)?[..] == blob.bytes[..], "other bytes of a blob");
    }
    ask("PUT", "/v2/a/b/manifests/x", &[("content-type", IMAGE)], &image.bytes, 201)?;
    ensure!(ask("GET", "/v2/a/b/manifests/x", &[], &[], 200)?[..] == image.bytes[..], "another manifest");
    ask("GET", "/v2/a/b/manifests/none", &[], &[], 404)?;

    // Those who ask for nothing are not kept.
    for sent in ["", "GET /v2/ HTTP/1.1\r\nhost:"] {
        let mut connection = Connection::open(site.registries[0].addr())?;
        connection.write(sent.as_bytes())?;
        connection.end_sending()?;
        ensure!(connection.is_closed_within(CUT_OFF)?, "{sent:?} and no more: the connection stays open");
    }
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn proxied(run: &Run) -> CaseResult {
    let servers = Servers::start(run, Database::Sqlite, Storage::Files)?;
    let keys = "trusted_proxies = [\"127.0.0.1\", \"127.0.0.0/8\"]\n";
    let config = format!("{keys}{}", servers.config("", "", ""));
    let mut site = Site::start(run, servers, 1, &config)?;
    let mut connection = Connection::open(site.registries[0].addr())?;
    // What the client has sent stands before what the proxy adds, in its line or in a line of its own.
    let headers = [
        ("x-forwarded-proto", "http"),
        ("x-forwarded-proto", "ftp, https"),
        ("x-forwarded-host", "evil.example"),
        ("x-forwarded-host", "evil.example, proxy.example"),
        ("x-forwarded-for", "203.0.113.1"),
        ("x-forwarded-for", "192.0.2.77"),
    ];
    connection.head("POST", "/v2/a/b/blobs/uploads/", &headers)?;
    let begun = connection.response(false)?.is(202, "an upload")?;
    let place = begun.header("location").unwrap_or_default().to_owned();
    ensure!(place.starts_with("https://proxy.example/v2/a/b/blobs/uploads/"), "the upload is at {place}");
    ensure!(location(&begun).is_ok(), "no location");
    connection.write(b"GET http://ann:secretpw@registry.example/v2/?a=b HTTP/1.1\r\nhost: registry.example\r\n\r\n")?;
    connection.response(false)?.is(200, "a whole URL")?;
    site.stop()?;
    let log = site.registries[0].log()?;
    let line = |text: &str| log.lines().find(|line| line.contains(text)).with_context(|| format!("no {text} in {log}"));
    ensure!(line("POST")?.contains("192.0.2.77"), "the client is not in the log: {log}");
    ensure!(line("/v2/?a=b")?.contains("GET") && !log.contains("secretpw"), "a password is in the log: {log}");
    Ok(Outcome::Passed)
}
