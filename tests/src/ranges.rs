//! Range requests, HEAD, conditions, odd lengths and encodings: every answer is held against the origin's own.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, bail, ensure};
use harness::{
    Cluster, Curl, Daemon, FileServer, FileServerOptions, Net, Registry, RegistryAuth, Reply, RogueOrigin, Run,
};
use proto::Digest;

use crate::{
    faults_data::probe::{self, mirroring, proxied, same},
    runner::{Case, CaseResult, Outcome, rooted},
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        rooted("ranges through the proxy: as nginx answers them, cold and from the cache", through_proxy),
        rooted("ranges through the mirror: as the registry answers them, cold and from the cache", through_mirror),
        rooted("HEAD, If-Range, If-None-Match and friends through the proxy: as nginx answers them", conditions),
        rooted("HEAD and missing blobs through the mirror: as the registry answers them", mirror_heads),
        rooted("contents of 0 and 1 bytes and of exactly whole pieces, by proxy, mirror and dfget", odd_lengths),
        rooted("contents without a Content-Length, of odd lengths, by proxy and dfget, whole and in parts", chunked),
        rooted("Content-Encoding is kept: nothing is decompressed, the header comes along", encoded),
        rooted("dfget --range: one range is one file, and its end may lie behind the content's", dfget_ranges),
    ]
}

/// Pieces of a content of this length have 64 KiB.
const LENGTH: usize = 1 << 20;
const PIECE: u64 = 64 * 1024;

/// What follows `Range: `. In braces: the content's length, and relative to it.
fn headers(length: u64) -> Vec<String> {
    let last = length.saturating_sub(1);
    vec![
        "bytes=0-0".into(),
        "bytes=0-".into(),
        format!("bytes={last}-{last}"),
        format!("bytes={last}-"),
        format!("bytes=0-{last}"),
        format!("bytes={}-{}", PIECE - 1, PIECE),
        format!("bytes={PIECE}-{}", 2 * PIECE - 1),
        format!("bytes={}-{}", PIECE + 17, 5 * PIECE + 3),
        format!("bytes={}-99999999999", last / 2),
        "bytes=-1".into(),
        format!("bytes=-{PIECE}"),
        "bytes=-99999999999".into(),
        // Beyond the end.
        format!("bytes={length}-"),
        format!("bytes={length}-{}", length + 5),
        "bytes=99999999999-".into(),
        // Not ranges at all: to be ignored.
        "bytes=5-4".into(),
        "bytes=abc".into(),
        "items=0-5".into(),
        "bytes=".into(),
        "bytes=1-2-3".into(),
        "bytes=18446744073709551615-18446744073709551616".into(),
    ]
}

/// Several ranges in one header.
const SEVERAL: [&str; 4] = ["bytes=0-4,10-14", "bytes=0-0,-1", "bytes=70000-80000,5-9", "bytes=0-9, 5-14"];

/// Status, body, and where the body lies, as the origin says; a header that makes no sense may be ignored or refused.
fn agrees(ours: &Reply, theirs: &Reply, header: &str, content: &[u8]) -> anyhow::Result<()> {
    let senseless =
        ["bytes=5-4", "bytes=abc", "items=0-5", "bytes=", "bytes=1-2-3"].contains(&header) || header.len() > 40;
    let ignored = ours.status == 200 && ours.body == content;
    if senseless {
        ensure!(ignored || ours.status == 416, "{header}: {}", probe::told(ours));
        return Ok(());
    }
    ensure!(ours.status == theirs.status, "{header}: {} and not {}", ours.status, theirs.status);
    ensure!(ours.exit == 0, "{header}: {}", probe::told(ours));
    if ours.status == 416 {
        let place = format!("bytes */{}", content.len());
        let said = ours.header("content-range");
        ensure!(said.is_none_or(|said| said == place), "{header}: 416 with Content-Range {said:?}");
        return Ok(());
    }
    same(&ours.body, &theirs.body).with_context(|| format!("{header}: wrong bytes"))?;
    for name in ["content-range", "content-length"] {
        ensure!(
            ours.header(name) == theirs.header(name),
            "{header}: {name} is {:?} and not {:?}",
            ours.header(name),
            theirs.header(name)
        );
    }
    Ok(())
}

/// The whole, or multipart/byteranges with the right parts.
fn several(ours: &Reply, header: &str, content: &[u8]) -> anyhow::Result<()> {
    if ours.status == 200 {
        return same(&ours.body, content).with_context(|| header.to_owned());
    }
    ensure!(ours.status == 206, "{header}: {}", probe::told(ours));
    let kind = ours.header("content-type").unwrap_or_default();
    if !kind.starts_with("multipart/byteranges") {
        // Ranges that touch may be joined into one.
        let place = ours.header("content-range").context("206 without a place")?;
        return same(&ours.body, part(place, content)?).with_context(|| header.to_owned());
    }
    let boundary = kind.split("boundary=").nth(1).context("no boundary")?.trim_matches('"');
    let mut rest = ours.body.as_slice();
    let mark = format!("--{boundary}");
    let mut parts = 0;
    loop {
        let at = find(rest, mark.as_bytes()).with_context(|| format!("{header}: no further boundary"))?;
        rest = &rest[at + mark.len()..];
        if rest.starts_with(b"--") {
            break;
        }
        let end = find(rest, b"\r\n\r\n").context("a part without headers")?;
        let head = String::from_utf8_lossy(&rest[..end]).to_ascii_lowercase();
        let place = head.lines().find_map(|line| line.strip_prefix("content-range:")).context("a part has no place")?;
        let expected = part(place.trim(), content)?;
        rest = &rest[end + 4..];
        same(&rest[..expected.len().min(rest.len())], expected).with_context(|| format!("{header}, {place}"))?;
        rest = &rest[expected.len()..];
        parts += 1;
    }
    ensure!(parts >= 1, "{header}: no parts");
    Ok(())
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

/// `bytes 5-9/100` of the content.
fn part<'a>(place: &str, content: &'a [u8]) -> anyhow::Result<&'a [u8]> {
    let (range, total) = place.trim_start_matches("bytes ").split_once('/').context("no total")?;
    ensure!(total.parse::<usize>()? == content.len(), "the total is {total}");
    let (first, last) = range.split_once('-').context("no range")?;
    content.get(first.parse()?..=last.parse()?).context("a place outside of the content")
}

struct Bed {
    net: Net,
    files: FileServer,
    cluster: Cluster,
}

fn bed(run: &Run) -> anyhow::Result<Bed> {
    let net = probe::net(&["h1", "h2"])?;
    let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    fs::create_dir(files.root().join("p2p"))?;
    let cluster = probe::cluster(&net, run, &["h1", "h2"], "", "")?;
    Ok(Bed { net, files, cluster })
}

/// Runs a check for everything, and tells all that went wrong.
#[derive(Default)]
struct Problems(Vec<String>);

impl Problems {
    fn note(&mut self, what: &str, result: anyhow::Result<()>) {
        if let Err(error) = result {
            self.0.push(format!("{what}: {error:#}"));
        }
    }

    fn result(self) -> CaseResult {
        ensure!(self.0.is_empty(), "{} wrong answers:\n{}", self.0.len(), self.0.join("\n"));
        Ok(Outcome::Passed)
    }
}

fn through_proxy(run: &Run) -> CaseResult {
    let bed = bed(run)?;
    let content = probe::content(LENGTH + 777, 1);
    fs::write(bed.files.root().join("p2p/file"), &content)?;
    let direct = || Curl::new(&bed.net.host("h1"));
    let mut problems = Problems::default();
    // A query makes another task of the same file: one that is not in the cache.
    for (number, header) in headers(content.len() as u64).iter().enumerate() {
        let url = bed.files.url(&format!("p2p/file?{number}"));
        let theirs = direct().header("Range", header).get(&url)?;
        for (daemon, state) in [(0, "cold"), (0, "again"), (1, "at the other host")] {
            let ours = proxied(&bed.cluster.daemons[daemon]).header("Range", header).get(&url);
            problems.note(state, ours.and_then(|ours| agrees(&ours, &theirs, header, &content)));
        }
        problems.note("whole", proxied(&bed.cluster.daemons[0]).get(&url).and_then(|r| same(&r.body, &content)));
        let ours = proxied(&bed.cluster.daemons[0]).header("Range", header).get(&url);
        problems.note("warm", ours.and_then(|ours| agrees(&ours, &theirs, header, &content)));
    }
    for (number, header) in SEVERAL.iter().enumerate() {
        let url = bed.files.url(&format!("p2p/file?several{number}"));
        for state in ["cold", "warm"] {
            let ours = proxied(&bed.cluster.daemons[0]).header("Range", header).get(&url);
            problems.note(state, ours.and_then(|ours| several(&ours, header, &content)));
            proxied(&bed.cluster.daemons[0]).get(&url)?;
        }
    }
    problems.result()
}

fn through_mirror(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Open, None)?;
    let cluster = probe::described(&net, run, &["h1", "h2"], "", "").upstream(&registry).start()?;
    let mut problems = Problems::default();
    for (number, header) in headers(LENGTH as u64 + 777).iter().enumerate() {
        let content = probe::content(LENGTH + 777, 100 + number as u64);
        let digest = registry.push_blob("team/app", &content)?;
        let theirs =
            registry.curl().header("Range", header).get(&registry.url(&format!("/v2/team/app/blobs/{digest}")))?;
        let get = |daemon: usize| {
            let daemon = &cluster.daemons[daemon];
            let url = probe::mirror_url(daemon, registry.name(), "team/app", &digest);
            mirroring(daemon).header("Range", header).get(&url)
        };
        for (daemon, state) in [(0, "cold"), (0, "warm"), (1, "at the other host")] {
            problems.note(state, get(daemon).and_then(|ours| agrees(&ours, &theirs, header, &content)));
        }
    }
    for (number, header) in SEVERAL.iter().enumerate() {
        let content = probe::content(LENGTH, 200 + number as u64);
        let digest = registry.push_blob("team/app", &content)?;
        let url = probe::mirror_url(&cluster.daemons[0], registry.name(), "team/app", &digest);
        for state in ["cold", "warm"] {
            let ours = mirroring(&cluster.daemons[0]).header("Range", header).get(&url);
            problems.note(state, ours.and_then(|ours| several(&ours, header, &content)));
        }
    }
    problems.result()
}

fn conditions(run: &Run) -> CaseResult {
    let bed = bed(run)?;
    let content = probe::content(LENGTH, 3);
    fs::write(bed.files.root().join("p2p/file"), &content)?;
    let url = bed.files.url("p2p/file");
    let direct = || Curl::new(&bed.net.host("h1"));
    let plain = direct().get(&url)?;
    let etag = plain.header("etag").context("nginx gives no ETag")?.to_owned();
    let modified = plain.header("last-modified").context("nginx gives no Last-Modified")?.to_owned();
    let (old, new) = ("Thu, 01 Jan 1998 00:00:00 GMT", "Fri, 01 Jan 2100 00:00:00 GMT");
    let range = ("Range", "bytes=100-199");
    let asked: Vec<Vec<(&str, &str)>> = vec![
        vec![range, ("If-Range", &etag)],
        vec![range, ("If-Range", "\"another\"")],
        vec![range, ("If-Range", &modified)],
        vec![range, ("If-Range", old)],
        vec![("If-None-Match", &etag)],
        vec![("If-None-Match", "\"another\"")],
        vec![("If-None-Match", "*")],
        vec![("If-Modified-Since", &modified)],
        vec![("If-Modified-Since", old)],
        vec![("If-Match", &etag)],
        vec![("If-Match", "\"another\"")],
        vec![("If-Unmodified-Since", old)],
        vec![("If-Unmodified-Since", new)],
    ];
    let mut problems = Problems::default();
    for (number, headers) in asked.iter().enumerate() {
        let url = bed.files.url(&format!("p2p/file?{number}"));
        let with = |curl: Curl| headers.iter().fold(curl, |curl, (name, value)| curl.header(name, value));
        let theirs = with(direct()).get(&url)?;
        for state in ["cold", "warm"] {
            let ours = with(proxied(&bed.cluster.daemons[0])).get(&url);
            let check = ours.and_then(|ours| {
                ensure!(ours.status == theirs.status, "{} and not {}", ours.status, theirs.status);
                if ours.status < 400 {
                    same(&ours.body, &theirs.body)?;
                    ensure!(ours.header("etag") == Some(&etag), "the ETag is {:?}", ours.header("etag"));
                }
                Ok(())
            });
            problems.note(&format!("{state}, {headers:?}"), check);
            proxied(&bed.cluster.daemons[0]).get(&url)?;
        }
    }
    for (state, daemon) in [("warm", 0), ("cold", 1)] {
        let url = bed.files.url("p2p/file?head");
        let theirs = direct().args(["--head"]).get(&url)?;
        let ours = proxied(&bed.cluster.daemons[daemon]).args(["--head"]).get(&url);
        problems.note(&format!("HEAD, {state}"), ours.and_then(|ours| same_headers(&ours, &theirs)));
        proxied(&bed.cluster.daemons[0]).get(&url)?;
        let ours = proxied(&bed.cluster.daemons[daemon]).get(&url);
        problems.note(&format!("GET, {state}"), ours.and_then(|ours| same_headers(&ours, &theirs)));
    }
    for daemon in &bed.cluster.daemons {
        let reply = proxied(daemon).get(&bed.files.url("p2p/missing"))?;
        problems.note("a missing file", status_is(&reply, 404));
    }
    problems.result()
}

fn status_is(reply: &Reply, status: u16) -> anyhow::Result<()> {
    ensure!(reply.status == status, "{status} was expected: {}", probe::told(reply));
    Ok(())
}

/// What describes a content.
fn same_headers(ours: &Reply, theirs: &Reply) -> anyhow::Result<()> {
    ensure!(ours.status == theirs.status, "{} and not {}", ours.status, theirs.status);
    let names = ["content-length", "content-type", "etag", "last-modified", "accept-ranges", "docker-content-digest"];
    let of = |reply: &Reply| -> BTreeMap<&str, Option<String>> {
        names.iter().map(|name| (*name, reply.header(name).map(ToOwned::to_owned))).collect()
    };
    ensure!(of(ours) == of(theirs), "{:?} and not {:?}", of(ours), of(theirs));
    Ok(())
}

fn mirror_heads(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Open, None)?;
    let cluster = probe::described(&net, run, &["h1", "h2"], "", "").upstream(&registry).start()?;
    let content = probe::content(LENGTH, 4);
    let digest = registry.push_blob("team/app", &content)?;
    let missing = probe::sha256(b"nobody ever pushed this");
    let mut problems = Problems::default();
    let theirs = registry.curl().args(["--head"]).get(&registry.url(&format!("/v2/team/app/blobs/{digest}")))?;
    let url = |daemon: &Daemon, digest: &Digest| probe::mirror_url(daemon, registry.name(), "team/app", digest);
    for state in ["cold", "warm"] {
        for daemon in &cluster.daemons {
            let ours = mirroring(daemon).args(["--head"]).get(&url(daemon, &digest));
            let essential = ours.and_then(|ours| {
                for name in ["content-length", "docker-content-digest"] {
                    ensure!(ours.header(name) == theirs.header(name), "{name} is {:?}", ours.header(name));
                }
                status_is(&ours, 200)
            });
            problems.note(&format!("HEAD, {state}"), essential);
            let ours = mirroring(daemon).get(&url(daemon, &digest))?;
            problems.note(&format!("GET, {state}"), same(&ours.body, &content));
            let told = ours.header("docker-content-digest");
            problems.note("GET's digest", {
                ensure_ok(told == Some(digest.to_string().as_str()), || format!("Docker-Content-Digest is {told:?}"))
            });
            for args in [vec![], vec!["--head"]] {
                let reply = mirroring(daemon).args(args.clone()).get(&url(daemon, &missing))?;
                problems.note(&format!("a missing blob {args:?}"), status_is(&reply, 404));
            }
        }
    }
    problems.result()
}

fn ensure_ok(holds: bool, otherwise: impl FnOnce() -> String) -> anyhow::Result<()> {
    if holds { Ok(()) } else { bail!(otherwise()) }
}

fn odd_lengths(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    fs::create_dir(files.root().join("p2p"))?;
    let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Open, None)?;
    let cluster = probe::described(&net, run, &["h1", "h2"], "", "").upstream(&registry).start()?;
    let piece = PIECE as usize;
    let mut problems = Problems::default();
    for length in [0, 1, 2, 1023, piece - 1, piece, piece + 1, 2 * piece, 512 * piece, 513 * piece, 1 << 20] {
        let content = probe::content(length, 300 + length as u64);
        fs::write(files.root().join(format!("p2p/{length}")), &content)?;
        let digest = registry.push_blob("team/app", &content)?;
        let url = files.url(&format!("p2p/{length}"));
        // Cold at the first host, from peers at the second, from the cache at both.
        for daemon in cluster.daemons.iter().chain(&cluster.daemons) {
            let what = |way: &str| format!("{length} bytes by {way} at {}", daemon.host().name());
            let whole = |reply: anyhow::Result<Reply>| -> anyhow::Result<()> {
                let reply = reply?;
                ensure!((reply.status, reply.exit) == (200, 0), "{}", probe::told(&reply));
                let told = reply.header("content-length");
                ensure!(told == Some(length.to_string().as_str()), "Content-Length is {told:?}");
                same(&reply.body, &content)
            };
            problems.note(&what("proxy"), whole(proxied(daemon).get(&url)));
            let blob = probe::mirror_url(daemon, registry.name(), "team/app", &digest);
            problems.note(&what("mirror"), whole(mirroring(daemon).get(&blob)));
            let output = run.data_dir("output")?.join("file");
            let digest = probe::sha256(&content).to_string();
            for args in [vec![], vec!["--digest", digest.as_str()]] {
                let finished = probe::dfget(daemon, &url, &output, &args)?;
                problems.note(&what("dfget"), {
                    let ended = ensure_ok(finished.status.success(), || probe::said(&finished));
                    ended.and_then(|()| same(&fs::read(&output)?, &content))
                });
            }
        }
    }
    problems.result()
}

fn chunked(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let mut problems = Problems::default();
    // Pieces have 1 MiB while the length is unknown.
    let piece = 1 << 20;
    for length in [0, 1, piece - 1, piece, piece + 1, 3 * piece, 3 * piece + 5] {
        let content = probe::content(length, 400 + length as u64);
        let origin = RogueOrigin::start(&net.host("origin"), content.clone())?;
        origin.behave(|b| b.hide_length = true);
        let cluster = probe::cluster(&net, run, &["h1", "h2"], "", "")?;
        for (number, daemon) in cluster.daemons.iter().chain(&cluster.daemons).enumerate() {
            let what = |way: &str| format!("{length} bytes without a length, {way}, try {number}");
            let reply = proxied(daemon).get(&origin.url("p2p/whole"));
            problems.note(
                &what("whole"),
                reply.and_then(|reply| {
                    ensure!((reply.status, reply.exit) == (200, 0), "{}", probe::told(&reply));
                    same(&reply.body, &content)
                }),
            );
            let output = run.data_dir("output")?.join("file");
            let finished = probe::dfget(daemon, &origin.url("dfget"), &output, &[])?;
            let ended = ensure_ok(finished.status.success(), || probe::said(&finished));
            problems.note(&what("dfget"), ended.and_then(|()| same(&fs::read(&output)?, &content)));
            if length > 5 {
                let last = length as u64 - 2;
                let reply = proxied(daemon).range(3, last).get(&origin.url("p2p/part"));
                problems.note(
                    &what("part"),
                    reply.and_then(|reply| match (reply.status, reply.exit) {
                        (206, 0) => same(&reply.body, &content[3..=last as usize]),
                        (200, 0) => same(&reply.body, &content),
                        _ => bail!("{}", probe::told(&reply)),
                    }),
                );
            }
        }
    }
    problems.result()
}

fn encoded(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let plain = b"a text that is easily compressed ".repeat(40_000);
    let folder = run.data_dir("text")?;
    fs::write(folder.join("text"), &plain)?;
    let gzip = net.host("h1").program("gzip").args(["-9", "-k"]).arg(folder.join("text"));
    gzip.run(probe::SETTLE)?;
    let gzipped = fs::read(folder.join("text.gz"))?;
    let origin = RogueOrigin::start(&net.host("origin"), gzipped.clone())?;
    origin.behave(|b| b.content_encoding = Some("gzip".into()));
    let cluster = probe::cluster(&net, run, &["h1", "h2"], "", "")?;
    let mut problems = Problems::default();
    for (number, daemon) in cluster.daemons.iter().chain(&cluster.daemons).enumerate() {
        for accept in [None, Some("gzip"), Some("identity"), Some("gzip, br")] {
            let curl = accept.map_or_else(|| proxied(daemon), |value| proxied(daemon).header("Accept-Encoding", value));
            let check = curl.get(&origin.url("p2p/text")).and_then(|reply| {
                let encoding = reply.header("content-encoding");
                ensure!(encoding == Some("gzip"), "the Content-Encoding is {encoding:?}");
                same(&reply.body, &gzipped)
            });
            problems.note(&format!("proxy, try {number}, accepting {accept:?}"), check);
        }
        let decoded = proxied(daemon).args(["--compressed"]).get(&origin.url("p2p/text"))?;
        problems.note("curl --compressed", same(&decoded.body, &plain));
        let output = run.data_dir("output")?.join("file");
        let finished = probe::dfget(daemon, &origin.url("dfget"), &output, &[])?;
        let ended = ensure_ok(finished.status.success(), || probe::said(&finished));
        problems.note("dfget", ended.and_then(|()| same(&fs::read(&output)?, &gzipped)));
    }
    problems.result()
}

fn dfget_ranges(run: &Run) -> CaseResult {
    let bed = bed(run)?;
    let content = probe::content(LENGTH, 5);
    fs::write(bed.files.root().join("p2p/file"), &content)?;
    let url = bed.files.url("p2p/file");
    let end = LENGTH as u64;
    let mut problems = Problems::default();
    let ranges = [
        (0, 0),
        (0, end - 1),
        (PIECE - 1, PIECE),
        (5 * PIECE, 7 * PIECE + 9),
        (end - 1, end - 1),
        (end - 10, end + 500),
    ];
    for (first, last) in ranges {
        for daemon in &bed.cluster.daemons {
            let output = run.data_dir("output")?.join("file");
            let range = format!("{first}-{last}");
            let finished = probe::dfget(daemon, &url, &output, &["--range", &range])?;
            let ended = ensure_ok(finished.status.success(), || probe::said(&finished));
            let expected = &content[first as usize..=last.min(end - 1) as usize];
            problems.note(&range, ended.and_then(|()| same(&fs::read(&output)?, expected)));
        }
    }
    let output = run.data_dir("output")?.join("file");
    let finished = probe::dfget(&bed.cluster.daemons[0], &url, &output, &["--range", &format!("{end}-{}", end + 9)])?;
    problems.note("behind the end", ensure_ok(!finished.status.success(), || "succeeds".into()));
    problems.note("behind the end", ensure_ok(!output.try_exists()?, || "leaves an output".into()));
    // Several ranges make one file.
    let output = run.data_dir("output")?.join("whole");
    for (first, last) in [(end / 2, end - 1), (0, end / 2 - 1)] {
        let args = ["--range", &format!("{first}-{last}"), "--original-offset"];
        let finished = probe::dfget(&bed.cluster.daemons[1], &url, &output, &args)?;
        problems.note("--original-offset", ensure_ok(finished.status.success(), || probe::said(&finished)));
    }
    problems.note("--original-offset", same(&fs::read(&output).unwrap_or_default(), &content));
    problems.result()
}
