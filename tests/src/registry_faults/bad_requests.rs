//! Requests that lie, or ask for what cannot be.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use harness::Run;
use proto::{Algorithm, Digest};

use super::{
    bad_clients::{CUT_OFF, MIB, STRICT},
    content::{Blob, IMAGE, INDEX, Manifest, location},
    http::{Client, Connection, Response},
    site::{Database, Servers, Site, Storage},
};
use crate::{
    faults_data::probe::{self, SETTLE, disk_usage, wait_until},
    runner::{Case, CaseResult, Outcome, anywhere},
};

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere("registry clients: a wrong digest: 400, nothing is visible, the space comes back", wrong_digests),
        anywhere("registry clients: names with .., %2f and 300 characters are no names", names),
        anywhere("registry clients: manifests nested 100 deep, of 4 MiB, of 4 MiB and a byte", manifests),
        anywhere("registry clients: a push by tag is found by its SHA-256, also if its SHA-512 is there", long_digests),
        anywhere("registry clients: If-Match and If-None-Match: 412 where they do not hold", conditions),
        anywhere("registry clients: many tags in one push, told in few lines", many_tags),
        anywhere("registry clients: an upload that goes on elsewhere: 416 says where it is", elsewhere),
        anywhere("registry clients: headers that come too slowly, are too long, or none", headers),
        anywhere("registry clients: too many uploads at a time: 429, and room when they have ended", too_many),
        anywhere(
            "registry clients: too many unfinished uploads of one client: 429, and others may begin",
            too_many_of_one,
        ),
        anywhere("registry clients: a request above its limit: 413, and the upload goes on in smaller ones", too_much),
    ]
}

fn wrong_digests(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, STRICT)?;
    let mut client = site.client();
    let (blob, other) = (Blob::random(5 * MIB, 630), Blob::random(10, 631));
    let used = disk_usage(&site.servers.store());
    let invalid = |response: &Response, what: &str| response.refuses(400, "DIGEST_INVALID", what);
    let upload = client.begin("a/b")?;
    invalid(&client.finish(&upload, &other.digest, &blob.bytes)?, "a PUT")?;
    let path = format!("/v2/a/b/blobs/uploads/?digest={}", other.digest);
    invalid(&client.ask("POST", &path, &[], &blob.bytes)?, "a POST")?;
    let upload = client.begin("a/b")?;
    client.patch(&upload, 0, &blob.bytes[..MIB])?.is(202, "a chunk")?;
    invalid(&client.finish(&upload, &other.digest, &blob.bytes[MIB..])?, "the end of an upload")?;
    // Its bytes are of no use, and so it is over.
    client.get(&upload)?.refuses(404, "BLOB_UPLOAD_UNKNOWN", "the upload afterwards")?;
    for blob in [&blob, &other] {
        client.get(&blob.path("a/b"))?.refuses(404, "BLOB_UNKNOWN", "a blob that was not pushed")?;
    }
    wait_until("the space comes back", SETTLE, || {
        Ok(probe::files(&site.servers.store().join("uploads")).is_empty() && disk_usage(&site.servers.store()) <= used)
    })?;
    // What is no digest at all.
    let hex = blob.digest.hex();
    let none = [
        "sha256:12".to_owned(),
        format!("sha256:{}", hex.to_uppercase()),
        format!("sha256:{hex}0"),
        format!("md5:{}", &hex[..32]),
        format!("sha512:{hex}"),
        "sha256:../../../../etc/passwd".to_owned(),
        "nonsense".to_owned(),
        String::new(),
    ];
    for digest in &none {
        let upload = client.begin("a/b")?;
        let response = client.ask("PUT", &format!("{upload}?digest={digest}"), &[], &blob.bytes[..10])?;
        invalid(&response, &format!("the digest {digest:?}"))?;
        if !digest.is_empty() && !digest.contains('/') {
            let response = client.get(&format!("/v2/a/b/blobs/{digest}"))?;
            let right = [(400, "DIGEST_INVALID"), (404, "BLOB_UNKNOWN")];
            ensure!(right.contains(&(response.status, &*response.code())), "GET of {digest:?}: {}", response.told());
        }
    }
    let upload = client.begin("a/b")?;
    invalid(&client.ask("PUT", &upload, &[], &blob.bytes[..10])?, "no digest")?;

    // A manifest under another's digest.
    let image = Manifest::image("right", &[]);
    client.push("a/b", &image.blobs[0])?;
    invalid(&client.put_manifest("a/b", &other.digest.to_string(), &image)?, "a manifest")?;
    client.manifest("a/b", &other.digest.to_string())?.refuses(
        404,
        "MANIFEST_UNKNOWN",
        "a manifest that was not pushed",
    )?;
    client.manifest("a/b", &image.digest.to_string())?.refuses(
        404,
        "MANIFEST_UNKNOWN",
        "a manifest that was not pushed",
    )?;
    ensure!(site.servers.stored("records/")?.is_empty(), "something is recorded");
    client.push("a/b", &blob)?;
    client.pulls_blob("a/b", &blob)?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn names(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, STRICT)?;
    let mut client = site.client();
    let image = Manifest::image("names", &[]);
    client.push_image("a/b", "right", &image)?;
    let before = probe::files(&site.servers.folder);
    let long = "x".repeat(300);
    let parts = "x/".repeat(150) + "x";
    let none = [
        "..",
        "../a",
        "a/../b",
        "a/..",
        "%2e%2e",
        "a/%2e%2e/b",
        "a%2fb",
        "a%2Fb",
        "a%5cb",
        "a/./b",
        "a//b",
        "/a",
        "A",
        "a/B",
        "a%00b",
        "a_",
        "-a",
        "a..b",
        "a%20b",
        "a%",
        "a%zz",
        "a%c3%a9",
        &long,
        &parts,
    ];
    for name in none {
        for (method, rest) in [
            ("POST", "blobs/uploads/".to_owned()),
            ("GET", "tags/list".to_owned()),
            ("GET", "manifests/right".to_owned()),
            ("GET", image.blobs[0].path("a/b").split_off("/v2/a/b/".len())),
            ("DELETE", "manifests/right".to_owned()),
        ] {
            let path = format!("/v2/{name}/{rest}");
            let response = client.ask(method, &path, &[], &[])?;
            let shown = &path[..path.len().min(60)];
            response.refuses(400, "NAME_INVALID", &format!("{method} {shown}"))?;
        }
        let put = client.put_manifest(name, "t", &image)?;
        put.refuses(400, "NAME_INVALID", &format!("PUT into {}", &name[..name.len().min(40)]))?;
    }
    // A source that cannot be is not there: the client uploads.
    for from in ["../a", "A", &long] {
        client.mount("a/b", &image.blobs[0], Some(from))?.is(202, "a mount from nowhere")?;
    }
    for tag in ["..", ".a", "-a", "a%2fb", "a%00", &"x".repeat(129), "a%20b"] {
        let response = client.put_manifest("a/b", tag, &image)?;
        ensure!((400..500).contains(&response.status) && !response.code().is_empty(), "tag {tag}: {}", response.told());
    }
    for session in ["..", "%2e%2e%2fx", "0", &"a".repeat(200), "00000000000000000000000000000000"] {
        let response = client.get(&format!("/v2/a/b/blobs/uploads/{session}"))?;
        ensure!(response.status == 404, "upload {session}: {}", response.told());
    }
    // An upload belongs to its repository.
    let upload = client.begin("a/b")?;
    let elsewhere = upload.replace("/v2/a/b/", "/v2/c/d/");
    client.ask("PATCH", &elsewhere, &[], b"x")?.refuses(404, "BLOB_UPLOAD_UNKNOWN", "another repository's upload")?;
    let after = probe::files(&site.servers.folder);
    ensure!(before.len() == after.len(), "files were made: {after:?}");
    let longest = format!("{}/{}", "x".repeat(127), "y".repeat(127));
    client.push_image(&longest, "t", &image)?;
    client.pulls(&longest, "t", &image)?;
    site.fsck(&[])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn manifests(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, STRICT)?;
    let mut client = site.client();
    let image = Manifest::image("deep", &[Blob::random(10, 640)]);
    image.blobs.iter().try_for_each(|blob| client.push("a/b", blob))?;
    let text = String::from_utf8(image.bytes.to_vec())?;
    let with = |field: &str| Manifest::of(IMAGE, text.replacen('{', &format!("{{{field},"), 1));
    for depth in [100, 1000, 100_000] {
        for (open, close) in [("[", "]"), ("{\"x\":", "}")] {
            let inner = if open == "[" { "" } else { "1" };
            let field = format!("\"extra\":{}{inner}{}", open.repeat(depth), close.repeat(depth));
            let put = client.put_manifest("a/b", "deep", &with(&field))?;
            put.refuses(400, "MANIFEST_INVALID", &format!("{depth} deep"))?;
            // Nor if it does not end.
            let torn = Manifest::of(IMAGE, open.repeat(depth));
            client.put_manifest("a/b", "deep", &torn)?.refuses(400, "MANIFEST_INVALID", "it does not end")?;
        }
    }
    // To the byte.
    let pad = |length: usize| {
        let field = |fill: usize| with(&format!("\"fill\":\"{}\"", "x".repeat(fill)));
        let have = field(0).bytes.len();
        Manifest { blobs: image.blobs.clone(), ..field(length - have) }
    };
    let most = pad(4 * MIB);
    ensure!(most.bytes.len() == 4 * MIB, "{} bytes", most.bytes.len());
    client.put_manifest("a/b", "most", &most)?.is(201, "4 MiB")?;
    client.pulls("a/b", "most", &most)?;
    let more = pad(4 * MIB + 1);
    for chunked in [false, true] {
        let mut connection = Connection::open(site.registries[0].addr())?;
        let length = more.bytes.len().to_string();
        let kind = if chunked { ("transfer-encoding", "chunked") } else { ("content-length", length.as_str()) };
        connection.head("PUT", "/v2/a/b/manifests/more", &[("content-type", IMAGE), kind])?;
        // It may be refused before all of it has gone.
        let sent = if chunked {
            connection.chunk(&more.bytes).and_then(|()| connection.chunk(&[]))
        } else {
            connection.write(&more.bytes)
        };
        let response = connection.response(false).with_context(|| format!("4 MiB and a byte, sent: {sent:?}"))?;
        response.refuses(413, "SIZE_INVALID", "4 MiB and a byte")?;
        client.manifest("a/b", "more")?.refuses(404, "MANIFEST_UNKNOWN", "what was refused")?;
    }
    // What is no manifest.
    let missing = Blob::random(10, 641);
    let needs = Manifest::image("needs", &[missing]);
    client.push("a/b", &needs.blobs[0])?;
    client.put_manifest("a/b", "x", &needs)?.refuses(400, "MANIFEST_BLOB_UNKNOWN", "a blob is missing")?;
    let index = Manifest::index("needs", &[&needs]);
    client.put_manifest("a/b", "x", &index)?.refuses(400, "MANIFEST_BLOB_UNKNOWN", "a child is missing")?;
    for (kind, text) in [
        (IMAGE, String::new()),
        (IMAGE, "{}".into()),
        (IMAGE, "null".into()),
        (IMAGE, "[]".into()),
        (IMAGE, "{\"schemaVersion\":2".into()),
        (IMAGE, text.replace("sha256:", "sha256:0")),
        (IMAGE, format!("{text}{text}")),
        (INDEX, text.clone()),
    ] {
        let put = client.put_manifest("a/b", "x", &Manifest::of(kind, text.clone()))?;
        put.refuses(400, "MANIFEST_INVALID", &text[..text.len().min(60)])?;
    }
    ensure!(client.tags("a/b")? == ["most"], "tags: {:?}", client.tags("a/b")?);
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn long_digests(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, STRICT)?;
    let mut client = site.client();
    let image = Manifest::image("both", &[]);
    client.push("a/b", &image.blobs[0])?;
    let long = Digest::of(Algorithm::Sha512, &image.bytes).to_string();
    client.put_manifest("a/b", &format!("{long}?tag=long"), &image)?.is(201, "a push by SHA-512")?;
    let named = |response: &Response| response.header("docker-content-digest").map(str::to_owned);
    for _ in 0..2 {
        let put = client.put_manifest("a/b", "short", &image)?.is(201, "a push by tag")?;
        ensure!(named(&put) == Some(image.digest.to_string()), "{put:?}");
    }
    // What docker and skopeo print, and pull by.
    client.pulls("a/b", &image.digest.to_string(), &image)?;
    client.pulls("a/b", "short", &image)?;
    for reference in [&*long, "long"] {
        let response = client.manifest("a/b", reference)?.is(200, reference)?;
        ensure!(named(&response).as_deref() == Some(&*long), "{reference}: {response:?}");
    }
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn conditions(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, STRICT)?;
    let mut client = site.client();
    let [one, two] = ["one", "two"].map(|name| Manifest::image(name, &[Blob::random(10, 660)]));
    for blob in one.blobs.iter().chain(&two.blobs) {
        client.push("a/b", blob)?;
    }
    let (etag, other) = (format!("\"{}\"", one.digest), format!("\"{}\"", two.digest));
    let mut ask = |method: &str, path: &str, condition: (&str, &str), manifest: Option<&Manifest>| {
        let path = format!("/v2/a/b/{path}");
        let body = manifest.map_or(&[][..], |manifest| &manifest.bytes);
        client.ask(method, &path, &[("content-type", IMAGE), condition], body)
    };
    let failed = |response: &Response, what: &str| response.refuses(412, "UNSUPPORTED", what);
    failed(&ask("PUT", "manifests/t", ("if-match", "*"), Some(&one))?, "PUT of what is not there")?;
    ask("PUT", "manifests/t", ("if-none-match", "*"), Some(&one))?.is(201, "the first PUT")?;
    failed(&ask("PUT", "manifests/t", ("if-none-match", "*"), Some(&two))?, "the second PUT")?;
    failed(&ask("PUT", "manifests/t", ("if-match", &other), Some(&two))?, "PUT over something else")?;
    let digest = two.digest.to_string();
    ask("GET", &format!("manifests/{digest}"), ("if-match", "*"), None)?.refuses(404, "MANIFEST_UNKNOWN", "refused")?;
    for path in ["manifests/t", &format!("manifests/{}", one.digest), &format!("blobs/{}", one.blobs[1].digest)] {
        let etag = if path.starts_with("blobs") { format!("\"{}\"", one.blobs[1].digest) } else { etag.clone() };
        for method in ["GET", "HEAD"] {
            ask(method, path, ("if-none-match", &etag), None)?.is(304, path)?;
            ask(method, path, ("if-match", &etag), None)?.is(200, path)?;
            ask(method, path, ("if-match", &other), None)?.is(412, path)?;
        }
        failed(&ask("DELETE", path, ("if-match", &other), None)?, path)?;
        failed(&ask("DELETE", path, ("if-none-match", &etag), None)?, path)?;
    }
    ask("PUT", "manifests/t", ("if-match", &etag), Some(&two))?.is(201, "PUT over what is expected")?;
    failed(&ask("DELETE", "manifests/t", ("if-match", &etag), None)?, "DELETE of what it was")?;
    ask("DELETE", "manifests/t", ("if-match", &other), None)?.is(202, "DELETE of what it is")?;
    ask("DELETE", "manifests/t", ("if-match", "*"), None)?.refuses(404, "MANIFEST_UNKNOWN", "DELETE of nothing")?;
    ask("DELETE", &format!("manifests/{digest}"), ("if-match", &other), None)?.is(202, "DELETE by digest")?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn many_tags(run: &Run) -> CaseResult {
    const MOST: usize = 250;
    let mut site = Site::simple(run, &format!("[manifests]\nmax_tags = {MOST}\n"))?;
    let mut client = site.client();
    let image = Manifest::image("tags", &[]);
    client.push("a/b", &image.blobs[0])?;
    let tags: Vec<String> = (0..MOST).map(|number| format!("t{number:03}")).collect();
    let query = tags.iter().map(|tag| format!("tag={tag}")).collect::<Vec<_>>().join("&");
    let put = client.put_manifest("a/b", &format!("{}?{query}&ns=x", image.digest), &image)?.is(201, "many tags")?;
    let line = put.header("oci-tag").unwrap_or_default();
    ensure!(line.split(", ").eq(tags.iter()), "the tags are told as {line:?}");
    ensure!(client.tags("a/b")? == tags, "not all are there");
    let more = client.put_manifest("a/b", &format!("{}?{query}&tag=more", image.digest), &image)?;
    more.refuses(414, "SIZE_INVALID", "one tag more")?;
    site.fsck(&[])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn elsewhere(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, STRICT)?;
    let mut client = site.client();
    let blob = Blob::random(1000, 661);
    let upload = client.begin("a/b")?;
    client.patch(&upload, 0, &blob.bytes[..100])?.is(202, "a chunk")?;
    for range in ["200-999", "0-899", "nonsense"] {
        let path = format!("{upload}?digest={}", blob.digest);
        for (method, path) in [("PATCH", &upload), ("PUT", &path)] {
            let response = client.ask(method, path, &[("content-range", range)], &blob.bytes[200..])?;
            response.refuses(416, "BLOB_UPLOAD_INVALID", &format!("{method} of {range}"))?;
            ensure!(response.header("range") == Some("0-99"), "{method} of {range}: {response:?}");
            ensure!(location(&response)? == upload, "{method} of {range}: {response:?}");
        }
    }
    client.finish(&upload, &blob.digest, &blob.bytes[100..])?.is(201, "it goes on")?;
    client.pulls_blob("a/b", &blob)?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn headers(run: &Run) -> CaseResult {
    let site = Site::simple(run, STRICT)?;
    let addr = site.registries[0].addr();
    // A byte at a time, for ever.
    let mut slow = Connection::open(addr)?;
    let begun = Instant::now();
    let mut sent = 0;
    while begun.elapsed() < CUT_OFF {
        if slow.write(b"G").is_err() {
            break;
        }
        sent += 1;
        thread::sleep(Duration::from_millis(100));
    }
    ensure!(begun.elapsed() < CUT_OFF, "a header of {sent} bytes is still read after {CUT_OFF:?}");
    // Nothing at all.
    let mut silent = Connection::open(addr)?;
    ensure!(silent.is_closed_within(CUT_OFF)?, "a connection without a request stays open");
    // Too long.
    let mut long = Connection::open(addr)?;
    let name = "x".repeat(100_000);
    let sent = long.head("GET", "/v2/", &[("x-long", &name)]);
    if let (Ok(()), Ok(response)) = (sent, long.response_within(CUT_OFF, false)) {
        ensure!([400, 414, 431].contains(&response.status), "a long header: {}", response.told());
    }
    for garbage in
        [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"GET\r\n\r\n", b"nonsense\r\n\r\n", b"\0\0\0\0\r\n\r\n"]
    {
        let mut connection = Connection::open(addr)?;
        connection.write(garbage)?;
        if let Ok(response) = connection.response_within(CUT_OFF, false) {
            ensure!(response.status == 400, "{garbage:?}: {}", response.told());
        }
    }
    for hosts in ["", "host: a\r\nhost: b\r\n"] {
        let mut connection = Connection::open(addr)?;
        connection.write(format!("GET /v2/ HTTP/1.1\r\n{hosts}\r\n").as_bytes())?;
        connection.response_within(CUT_OFF, false)?.refuses(400, "UNSUPPORTED", &format!("hosts: {hosts:?}"))?;
    }
    // Others were served all the while.
    let mut client = site.client();
    client.get("/v2/")?.is(200, "the next one")?;
    client.ask("BREW", "/v2/", &[], &[])?.refuses(405, "UNSUPPORTED", "a method that is none")?;
    client.get("/v2/a/nonsense")?.refuses(404, "UNSUPPORTED", "a path that is none")?;
    Ok(Outcome::Passed)
}

/// Uploads one client may send at a time.
const ACTIVE: usize = 4;
/// Unfinished uploads of all clients.
const OPEN: usize = 6;

fn too_many(run: &Run) -> CaseResult {
    let limits = format!("[uploads]\nmax_active_per_client = {ACTIVE}\nmax_open = {OPEN}\n");
    let mut site = Site::simple(run, &limits)?;
    let mut client = site.client();
    let blob = Blob::random(MIB, 650);
    let length = MIB.to_string();
    let mut active = Vec::new();
    for _ in 0..ACTIVE {
        let upload = client.begin("a/b")?;
        let mut connection = Connection::open(site.registries[0].addr())?;
        connection.head("PATCH", &upload, &[("content-length", &length)])?;
        connection.write(&blob.bytes[..1000])?;
        active.push((upload, connection));
    }
    // They have arrived when one more is refused.
    let one_more = client.begin("a/b")?;
    let mut response = None;
    wait_until("one more is refused", SETTLE, || {
        let at = usize::try_from(client.offset(&one_more)?)?;
        let refused = client.patch(&one_more, at, b"xx")?;
        let is_refused = refused.status != 202;
        response = Some(refused);
        Ok(is_refused)
    })?;
    let refused = response.context("it was asked")?;
    refused.refuses(429, "TOOMANYREQUESTS", "one more chunk")?;
    ensure!(refused.header("retry-after").is_some(), "no Retry-After");
    client.try_push("a/b", &blob)?.refuses(429, "TOOMANYREQUESTS", "one more push")?;
    // What is no upload is not counted.
    client.get("/v2/_catalog")?.is(200, "a list")?;
    for (upload, mut connection) in active {
        connection.write(&blob.bytes[1000..])?;
        connection.response(false)?.is(202, "a chunk that was on its way")?;
        client.finish(&upload, &blob.digest, &[])?.is(201, "the end")?;
    }
    client.push("a/b", &blob).context("there is room again")?;
    client.ask("DELETE", &one_more, &[], &[])?.is(204, "cancel")?;

    let mut open = Vec::new();
    for _ in 0..OPEN {
        let upload = client.begin("a/b")?;
        client.patch(&upload, 0, b"xx")?.is(202, "a chunk")?;
        open.push(upload);
    }
    wait_until("no more uploads are begun", SETTLE, || {
        let response = client.ask("POST", "/v2/a/b/blobs/uploads/", &[], &[])?;
        if response.status == 202 {
            return Ok(false);
        }
        response.refuses(429, "TOOMANYREQUESTS", "one more upload")?;
        Ok(true)
    })?;
    for upload in open {
        client.ask("DELETE", &upload, &[], &[])?.is(204, "cancel")?;
    }
    wait_until("uploads are begun again", SETTLE, || {
        Ok(client.ask("POST", "/v2/a/b/blobs/uploads/", &[], &[])?.status == 202)
    })?;
    site.wait_no_uploads()?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

/// Unfinished uploads one client may have.
const OPEN_OF_ONE: usize = 3;

fn too_many_of_one(run: &Run) -> CaseResult {
    let keys = "trusted_proxies = [\"127.0.0.0/8\"]\n";
    let limits = format!("[uploads]\nmax_open_per_client = {OPEN_OF_ONE}\n");
    for database in [Database::Sqlite, Database::MariaDb, Database::Postgres] {
        let servers = Servers::start(run, database, Storage::Files)?;
        let config = servers.config("", "", &limits);
        let mut site = Site::start(run, servers, 1, &format!("{keys}{config}"))?;
        let mut client = site.client();
        let from = |address: &'static str| [("x-forwarded-for", address)];
        let send = |client: &mut Client, address, bytes: &[u8]| {
            let upload = client.begin("a/b")?;
            Ok::<_, anyhow::Error>((client.ask("PATCH", &upload, &from(address), bytes)?, upload))
        };
        // Without a byte nothing is kept, and nobody counts.
        for _ in 0..=OPEN_OF_ONE {
            let upload = client.begin("a/b")?;
            for whole in [true, false] {
                let mut connection = Connection::open(site.registries[0].addr())?;
                let headers = [("transfer-encoding", "chunked"), ("x-forwarded-for", "192.0.2.1")];
                connection.head("PATCH", &upload, &headers)?;
                if whole {
                    connection.chunk(&[])?;
                    connection.response(false)?.is(202, "an empty chunk")?;
                }
            }
            send(&mut client, "192.0.2.1", b"")?.0.is(202, "no bytes")?;
        }
        let mut open = Vec::new();
        for _ in 0..OPEN_OF_ONE {
            let (response, upload) = send(&mut client, "192.0.2.1", b"xx")?;
            response.is(202, "a chunk")?;
            open.push(upload);
        }
        let (refused, upload) = send(&mut client, "192.0.2.1", b"xx")?;
        refused.refuses(429, "TOOMANYREQUESTS", "one more")?;
        ensure!(refused.header("retry-after").is_some(), "no Retry-After");
        ensure!(client.offset(&upload)? == 0, "something is kept of what was refused");
        let (response, others) = send(&mut client, "192.0.2.2", b"xx")?;
        response.is(202, "another client's")?;
        // After a moment it is told before it sends anything.
        wait_until("no more uploads are begun", SETTLE, || {
            let response = client.ask("POST", "/v2/a/b/blobs/uploads/", &from("192.0.2.1"), &[])?;
            if response.status == 202 {
                return Ok(false);
            }
            response.refuses(429, "TOOMANYREQUESTS", "one more upload")?;
            Ok(true)
        })?;
        client.begin("a/b").context("another client")?;
        // What it has goes on, and a push in one request keeps nothing.
        let blob = Blob::random(100, 660);
        let first = open.remove(0);
        client.ask("PATCH", &first, &from("192.0.2.1"), b"yy")?.is(202, "it goes on")?;
        let path = format!("/v2/a/b/blobs/uploads/?digest={}", blob.digest);
        client.ask("POST", &path, &from("192.0.2.1"), &blob.bytes)?.is(201, "a push in one request")?;
        client.ask("DELETE", &first, &[], &[])?.is(204, "cancel")?;
        wait_until("there is room again", SETTLE, || {
            let response = client.ask("POST", "/v2/a/b/blobs/uploads/", &from("192.0.2.1"), &[])?;
            if response.status != 202 {
                return Ok(false);
            }
            let upload = location(&response)?;
            client.ask("PATCH", &upload, &from("192.0.2.1"), b"xx")?.is(202, "in its place")?;
            open.push(upload);
            Ok(true)
        })?;
        for upload in open.iter().chain([&others]) {
            client.ask("DELETE", upload, &[], &[])?.is(204, "cancel")?;
        }
        site.wait_no_uploads()?;
        site.fsck(&["--deep"])?.is_clean()?;
    }
    Ok(Outcome::Passed)
}

fn too_much(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, "[uploads]\nmax_size = \"3MiB\"\nmax_chunk = \"1MiB\"\n")?;
    let mut client = site.client();
    let blob = Blob::random(3 * MIB, 670);
    let upload = client.begin("a/b")?;
    client.patch(&upload, 0, &blob.bytes[..MIB])?.is(202, "just so much")?;
    client.patch(&upload, MIB, &blob.bytes[MIB..2 * MIB + 1])?.refuses(413, "SIZE_INVALID", "a byte more")?;
    // Not said beforehand.
    let mut connection = Connection::open(site.registries[0].addr())?;
    connection.head("PATCH", &upload, &[("transfer-encoding", "chunked")])?;
    connection.chunk(&blob.bytes[MIB..2 * MIB])?;
    connection.chunk(b"x")?;
    connection.response_within(CUT_OFF, false)?.refuses(413, "SIZE_INVALID", "a byte more")?;
    let path = format!("/v2/a/b/blobs/uploads/?digest={}", blob.digest);
    client.ask("POST", &path, &[], &blob.bytes)?.refuses(413, "SIZE_INVALID", "a push in one request")?;
    ensure!(client.offset(&upload)? == MIB as u64, "what was refused is kept");
    client.finish(&upload, &blob.digest, &blob.bytes[MIB..])?.refuses(413, "SIZE_INVALID", "a large end")?;
    client.patch(&upload, MIB, &blob.bytes[MIB..2 * MIB])?.is(202, "the next one")?;
    client.finish(&upload, &blob.digest, &blob.bytes[2 * MIB..])?.is(201, "the end")?;
    client.pulls_blob("a/b", &blob)?;
    // The whole blob has a limit of its own.
    let upload = client.begin("a/b")?;
    for at in 0..3 {
        client.patch(&upload, at * MIB, &blob.bytes[at * MIB..(at + 1) * MIB])?.is(202, "a chunk")?;
    }
    client.patch(&upload, 3 * MIB, b"x")?.refuses(413, "SIZE_INVALID", "a byte more")?;
    client.ask("DELETE", &upload, &[], &[])?.is(204, "cancel")?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}
