//! What is not a blob goes to its origin as it is; what may not go anywhere is refused; rules decide.

use std::{collections::BTreeSet, fs, time::Duration};

use anyhow::{Context, ensure};
use harness::{
    AccessEntry, Authority, Cluster, Compression, Content, Curl, Daemon, DaemonSpec, FileServer, FileServerOptions,
    Image, LinkSpec, Net, Registry, RegistryAuth, Reply, Run, Skopeo, TokenServer,
};
use proto::{Algorithm, Digest};

use crate::{
    clients_common::{Auth, Client, PULL, Plot, REPOSITORY, Scene, USER, Way, image},
    runner::{Case, CaseResult, Outcome, rooted},
};

/// What a client accepts of manifests.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json";
/// The header of everything that came from peers.
const TASK_ID: &str = "x-skimmer-task-id";

pub(crate) fn cases() -> Vec<Case> {
    vec![
        rooted("pass: manifests, tags and errors come as the registry gives them, by mirror and proxy", manifests),
        rooted("pass: a moved tag is seen at once, by mirror and proxy", moved_tag),
        rooted("pass: a registry's and a token server's refusals reach the client", refusals),
        rooted("pass: skopeo uploads an image through the proxy", |run| upload(run, Way::Proxy)),
        rooted("pass: skopeo uploads an image through interception, registry with a password", |run| {
            upload(run, Way::Intercept)
        }),
        rooted("pass: a blob by HTTP: whole, HEAD, ranges, and one of 0 bytes, by mirror and proxy", blobs),
        rooted("pass: skopeo copies an index for two platforms and a layer of 0 bytes through the mirror", odd_images),
        rooted("pass: CONNECT reaches allowed hosts and ports unread, and nothing else", connect),
        rooted("pass: loopback, metadata addresses and circles are refused", forbidden_places),
        rooted("pass: rules decide: p2p, direct, redirect, refuse", rules),
    ]
}

/// A request to the registry, by each way there is: straight, by proxy, by the mirror that is told the registry, and by
/// the mirror address of its own.
fn ways(scene: &Scene, ask: impl Fn(Curl) -> Curl, path: &str) -> anyhow::Result<Vec<(&'static str, Reply)>> {
    let daemon = scene.daemon("one")?;
    let curl = || ask(Curl::new(daemon.host()));
    let name = scene.registry.name();
    let mark = if path.contains('?') { '&' } else { '?' };
    Ok(vec![
        ("straight", curl().get(&scene.registry.url(path))?),
        ("proxy", curl().proxy(&proxy_url(daemon)).get(&scene.registry.url(path))?),
        ("mirror", curl().get(&format!("http://{}{path}{mark}ns={name}", daemon.addr()))?),
        ("own mirror", curl().get(&format!("http://{}{path}", daemon.mirror_of(name)))?),
    ])
}

fn proxy_url(daemon: &Daemon) -> String {
    format!("http://{}", daemon.addr())
}

fn one_host(run: &Run, way: Way) -> anyhow::Result<Scene> {
    let mut plot = Plot::new(way);
    plot.hosts = vec!["one"];
    plot.stage(run)
}

fn manifests(run: &Run) -> CaseResult {
    let mut scene = one_host(run, Way::Mirror)?;
    let image = image(run, Client::Docker)?;
    scene.push(&image, "v1")?;
    scene.push(&image, "v2")?;
    let index = image.index.as_ref().context("an index was asked for")?;
    let paths = [
        "/v2/".to_owned(),
        "/v2/_catalog".to_owned(),
        format!("/v2/{REPOSITORY}/manifests/v1"),
        format!("/v2/{REPOSITORY}/manifests/{index}"),
        format!("/v2/{REPOSITORY}/manifests/{}", image.platform().manifest),
        format!("/v2/{REPOSITORY}/tags/list"),
        format!("/v2/{REPOSITORY}/tags/list?n=1"),
        format!("/v2/{REPOSITORY}/manifests/no-such-tag"),
        "/v2/no/such/tags/list".to_owned(),
        format!("/v2/{REPOSITORY}/blobs/not-a-digest"),
        "/v2/a path that is none/".replace(' ', "%20"),
    ];
    for head in [false, true] {
        for path in &paths {
            let ask = |curl: Curl| {
                if head { curl.header("Accept", ACCEPT).args(["-I"]) } else { curl.header("Accept", ACCEPT) }
            };
            let replies = ways(&scene, ask, path)?;
            let straight = &replies[0].1;
            for (way, reply) in &replies[1..] {
                ensure!(
                    reply.status == straight.status,
                    "{way} {path}: {} instead of {}",
                    reply.status,
                    straight.status
                );
                // curl gives the header for the body of a HEAD.
                ensure!(head || reply.body == straight.body, "{way} {path}: another body");
                for name in [
                    "content-type",
                    "content-length",
                    "docker-content-digest",
                    "etag",
                    "docker-distribution-api-version",
                    "x-content-type-options",
                ] {
                    ensure!(
                        reply.header(name) == straight.header(name),
                        "{way} {path}: {name} is {:?} instead of {:?}",
                        reply.header(name),
                        straight.header(name)
                    );
                }
                ensure!(reply.header(TASK_ID).is_none(), "{way} {path}: it came from peers");
                // A page's link holds the registry's path, wherever the client asked.
                ensure!(reply.header("link").is_some() == straight.header("link").is_some(), "{way} {path}: no link");
            }
        }
    }
    Ok(Outcome::Passed)
}

fn moved_tag(run: &Run) -> CaseResult {
    let mut scene = one_host(run, Way::Mirror)?;
    let layer = |seed| Image::builder().layer(50_000, Compression::Gzip, Content::Random).seed(seed).build(run);
    for seed in [1, 2] {
        let image = layer(seed)?;
        scene.push(&image, "latest")?;
        for (way, reply) in
            ways(&scene, |curl| curl.header("Accept", ACCEPT), &format!("/v2/{REPOSITORY}/manifests/latest"))?
        {
            let found = Digest::of(Algorithm::Sha256, &reply.body);
            ensure!(found == image.platform().manifest, "{way}: the tag still names {found}");
        }
    }
    Ok(Outcome::Passed)
}

fn refusals(run: &Run) -> CaseResult {
    let mut plot = Plot::new(Way::Mirror).auth(Auth::Token(60));
    plot.hosts = vec!["one"];
    let mut scene = plot.stage(run)?;
    let image = image(run, Client::Docker)?;
    scene.push(&image, "v1")?;
    let blob = format!("/v2/{REPOSITORY}/blobs/{}", image.platform().layers[0]);
    let manifest = format!("/v2/{REPOSITORY}/manifests/v1");
    let tokens = scene.tokens.as_ref().context("token server")?;
    let realm = tokens.realm();
    for path in [&blob, &manifest] {
        for (way, reply) in ways(&scene, |curl| curl, path)? {
            ensure!(reply.status == 401, "{way} {path} without a token: {}", reply.status);
            let challenge = reply.header("www-authenticate").unwrap_or_default();
            ensure!(challenge.contains(&realm), "{way} {path}: the challenge is {challenge:?}");
        }
    }
    // The token server is asked through the proxy, too: with a wrong password, and with the right one.
    let daemon = scene.daemon("one")?;
    let url = format!("{realm}?service={}&scope=repository:{REPOSITORY}:pull", TokenServer::SERVICE);
    let ask = |password: &str| {
        let curl = Curl::new(daemon.host()).proxy(&proxy_url(daemon));
        curl.header("Authorization", &harness::basic_auth(USER.0, password)).get(&url)
    };
    ensure!(ask("wrong")?.status == 401, "a wrong password gets a token");
    let token = ask(USER.1)?.json()?["token"].as_str().unwrap_or_default().to_owned();
    for (way, reply) in ways(&scene, |curl| curl.header("Authorization", &format!("Bearer {token}")), &blob)? {
        ensure!(reply.status == 200, "{way} with a token: {}", reply.status);
        ensure!(Digest::of(Algorithm::Sha256, &reply.body) == image.platform().layers[0], "{way}: other bytes");
    }
    // The host has the layer now; who has no right does not get it all the same.
    for (way, reply) in ways(&scene, |curl| curl, &blob)? {
        ensure!(reply.status == 401, "{way}: without a token a cached layer is served: {}", reply.status);
    }
    let other = ask(USER.1)?.json()?["token"].as_str().unwrap_or_default().replace('a', "b");
    for (way, reply) in ways(&scene, |curl| curl.header("Authorization", &format!("Bearer {other}")), &blob)? {
        ensure!(reply.status == 401, "{way}: a forged token is taken: {}", reply.status);
    }
    Ok(Outcome::Passed)
}

fn upload(run: &Run, way: Way) -> CaseResult {
    let auth = if way == Way::Intercept { Auth::Password } else { Auth::Open };
    let mut plot = Plot::new(way).auth(auth);
    plot.hosts = vec!["one"];
    let mut scene = plot.stage(run)?;
    scene.mark()?;
    let image = image(run, Client::Skopeo)?;
    let daemon = scene.daemon("one")?;
    let mut skopeo = Skopeo::new(daemon.host(), run, false)?.args(["--all", "--preserve-digests"]);
    for (name, value) in scene.proxy_env(daemon) {
        skopeo = skopeo.env(&name, &value);
    }
    if scene.registry.is_plain() {
        skopeo = skopeo.args(["--dest-tls-verify=false"]);
    }
    if let Some((user, password)) = scene.user() {
        skopeo = skopeo.args(["--dest-creds", &format!("{user}:{password}")]);
    }
    let to = format!("docker://{}/{REPOSITORY}:uploaded", scene.registry.name());
    skopeo.copying(&format!("oci:{}:image", image.folder().display()), &to).run(PULL)?;
    // From the registry itself, not by any daemon.
    for platform in &image.platforms {
        for digest in platform.layers.iter().chain([&platform.config]) {
            let reply = scene.registry.curl().get(&scene.registry.url(&format!("/v2/{REPOSITORY}/blobs/{digest}")))?;
            ensure!(reply.status == 200, "the registry has no {digest}: {}", reply.status);
            ensure!(Digest::of(Algorithm::Sha256, &reply.body) == *digest, "{digest} was changed on its way");
        }
    }
    let reply = scene.registry.curl().header("Accept", ACCEPT);
    let reply = reply.get(&scene.registry.url(&format!("/v2/{REPOSITORY}/manifests/uploaded")))?;
    ensure!(Some(Digest::of(Algorithm::Sha256, &reply.body)) == image.index, "the tag names something else");
    let host = daemon.host().ip().to_string();
    let by_us = |entry: &AccessEntry| entry.method != "GET" && entry.method != "HEAD" && !entry.from.starts_with(&host);
    let stranger = scene.registry.access_log()?.into_iter().find(by_us);
    ensure!(stranger.is_none(), "an upload came from elsewhere: {stranger:?}");
    let passed = daemon.metric("skimmer_proxy_http_served_bytes_total")?;
    ensure!(passed >= image.platform().layer_bytes as f64, "only {passed} bytes passed through the daemon");
    Ok(Outcome::Passed)
}

fn blobs(run: &Run) -> CaseResult {
    let mut scene = one_host(run, Way::Mirror)?;
    let empty = scene.registry.push_blob(REPOSITORY, b"")?;
    let content: Vec<u8> = (0..3_000_000_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let blob = scene.registry.push_blob(REPOSITORY, &content)?;
    scene.mark()?;
    let path = |digest: &Digest| format!("/v2/{REPOSITORY}/blobs/{digest}");
    for (way, reply) in ways(&scene, |curl| curl, &path(&empty))? {
        ensure!(reply.status == 200 && reply.body.is_empty(), "{way}: 0 bytes: {}", reply.status);
        ensure!(reply.header("content-length") == Some("0"), "{way}: {:?}", reply.header("content-length"));
    }
    for (way, reply) in ways(&scene, |curl| curl, &path(&blob))? {
        ensure!(reply.status == 200 && reply.body == content, "{way}: {}, {} bytes", reply.status, reply.body.len());
        let task = reply.header(TASK_ID);
        ensure!((way == "straight") == task.is_none(), "{way}: {TASK_ID} is {task:?}");
        let digest = blob.to_string();
        ensure!(reply.header("docker-content-digest") == Some(digest.as_str()), "{way}: not named by its digest");
    }
    for (way, reply) in ways(&scene, |curl| curl.args(["-I"]), &path(&blob))? {
        let length = content.len().to_string();
        ensure!(
            reply.status == 200 && reply.header("content-length") == Some(length.as_str()),
            "{way}: HEAD: {reply:?}"
        );
    }
    for (first, last) in [(0, 0), (1_000_000, 2_000_000), (2_999_999, 2_999_999), (2_999_000, 9_999_999)] {
        for (way, reply) in ways(&scene, |curl| curl.range(first, last), &path(&blob))? {
            let end = (last as usize + 1).min(content.len());
            ensure!(reply.status == 206, "{way}: {first}-{last}: {}", reply.status);
            ensure!(reply.body == content[first as usize..end], "{way}: {first}-{last}: other bytes");
            let range = format!("bytes {first}-{}/{}", end - 1, content.len());
            ensure!(
                reply.header("content-range") == Some(range.as_str()),
                "{way}: {:?}",
                reply.header("content-range")
            );
        }
    }
    for (way, reply) in ways(&scene, |curl| curl.range(3_000_000, 3_000_001), &path(&blob))? {
        ensure!(reply.status == 416, "{way}: beyond the end: {}", reply.status);
    }
    let missing = Digest::of(Algorithm::Sha256, b"nobody has this");
    for (way, reply) in ways(&scene, |curl| curl, &path(&missing))? {
        ensure!(reply.status == 404, "{way}: a blob nobody has: {}", reply.status);
    }
    Ok(Outcome::Passed)
}

fn odd_images(run: &Run) -> CaseResult {
    let mut scene = one_host(run, Way::Mirror)?;
    let image = image(run, Client::Skopeo)?;
    scene.push(&image, "v1")?;
    // Both platforms: every file is named by its digest.
    let daemon = scene.daemon("one")?;
    let mirrored = scene.registries(daemon);
    let skopeo = Skopeo::new(daemon.host(), run, false)?.registries(&mirrored)?.args(["--all"]);
    skopeo.pulling(&format!("{}/{REPOSITORY}:v1", scene.registry.name())).run(PULL)?;
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(skopeo.folder())? {
        let path = entry?.path();
        let name = path.file_name().context("a file has a name")?.to_string_lossy().into_owned();
        let name = name.trim_end_matches(".manifest.json");
        if name.len() == 64 {
            let digest = Digest::of(Algorithm::Sha256, &fs::read(&path)?);
            ensure!(digest.hex() == name, "skopeo wrote {digest} as {name}");
            found.insert(digest);
        }
    }
    for platform in &image.platforms {
        for digest in platform.layers.iter().chain([&platform.config, &platform.manifest]) {
            ensure!(found.contains(digest), "skopeo did not copy {digest}");
        }
    }
    let top = Digest::of(Algorithm::Sha256, &fs::read(skopeo.folder().join("manifest.json"))?);
    ensure!(Some(&top) == image.index.as_ref(), "the index is {top}");
    ensure!(daemon.metric("skimmer_peer_received_bytes_total")? > 0.0, "nothing came from peers");

    // An artifact with a layer of 0 bytes, as some tools make them.
    let registry = &scene.registry;
    let (empty, config) = (registry.push_blob("odd/empty", b"")?, registry.push_blob("odd/empty", b"{}")?);
    let layer = |digest: &Digest, size: u64| serde_json::json!({"mediaType": "application/octet-stream", "digest": digest.to_string(), "size": size});
    let some = registry.push_blob("odd/empty", &[7; 100_000])?;
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config.to_string(), "size": 2},
        "layers": [layer(&some, 100_000), layer(&empty, 0)],
    });
    let put = registry.curl().header("Content-Type", "application/vnd.oci.image.manifest.v1+json");
    let put = put.args(["-X", "PUT", "--data-binary", &manifest.to_string()]);
    let reply = put.get(&registry.url("/v2/odd/empty/manifests/v1"))?;
    ensure!(reply.status == 201, "the registry does not take the artifact: {reply:?}");
    let skopeo = Skopeo::new(daemon.host(), run, false)?.registries(&mirrored)?;
    let pulled = skopeo.pull(&format!("{}/odd/empty:v1", registry.name()), PULL)?;
    ensure!(pulled.layers == [some, empty] && pulled.config == config, "{pulled:?}");
    Ok(Outcome::Passed)
}

/// What curl says when a proxy refuses CONNECT.
fn connect_status(curl: Curl, url: &str) -> anyhow::Result<u16> {
    match curl.get(url) {
        Ok(reply) => Ok(reply.status),
        Err(error) => {
            let text = format!("{error:#}");
            let status = text.split("response ").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
            status.with_context(|| format!("curl said something else: {text}"))
        }
    }
}

fn connect(run: &Run) -> CaseResult {
    let hosts = ["origin", "seed", "one", "two"].map(|name| (name, LinkSpec::default()));
    let net = Net::new(&hosts)?;
    let origin = net.host("origin");
    let authority = Authority::new(&run.data_dir("ca")?)?;
    let certificate = authority.issue("registry", &["registry.test"], &[origin.ip()])?;
    let registry = Registry::start(&origin, run, &RegistryAuth::Open, Some((&certificate, &authority)))?;
    let other = Registry::start(&origin, run, &RegistryAuth::Open, Some((&certificate, &authority)))?;
    let port = registry.name().rsplit_once(':').context("port")?.1;
    let spec = |host: &str, hosts: &str| DaemonSpec {
        host: host.to_owned(),
        extra: format!("\n[proxy.connect]\nhosts = [{hosts}]\nports = [443, {port}]\n"),
        ..DaemonSpec::default()
    };
    let mut cluster = Cluster::builder(&net, run)
        .supernode("seed")
        .daemon_with(spec("one", "\"*\""))
        .daemon_with(spec("two", "\"*.allowed.test\", \"only.test:443\""))
        .start()?;
    let through = |daemon: &Daemon| Curl::new(daemon.host()).proxy(&proxy_url(daemon)).ca(authority.path());
    let one = cluster.daemon("one");
    let reply = through(one).get(&registry.url("/v2/"))?;
    // curl trusts the registry's authority alone: nobody has read this.
    ensure!(reply.status == 200, "an allowed host and port: {}", reply.status);
    for (what, url) in [
        ("a port that is not named", other.url("/v2/")),
        ("ssh", format!("https://{}:22/", origin.ip())),
        ("this host's loopback", "https://127.0.0.1/".to_owned()),
        ("a name of loopback", "https://localhost/".to_owned()),
        ("IPv6 loopback", "https://[::1]/".to_owned()),
        ("a cloud's metadata", "https://169.254.169.254/".to_owned()),
        ("every address", "https://0.0.0.0/".to_owned()),
    ] {
        let status = connect_status(through(one), &url)?;
        ensure!(status == 403, "{what}: {status}");
    }
    let two = cluster.daemon("two");
    let status = connect_status(through(two), &registry.url("/v2/"))?;
    ensure!(status == 403, "a host that is not named: {status}");
    let status = connect_status(through(two), "https://only.test/")?;
    // Allowed, and then nobody knows the name.
    ensure!(status == 502, "an allowed name that does not exist: {status}");
    Ok(Outcome::Passed)
}

fn forbidden_places(run: &Run) -> CaseResult {
    let scene = one_host(run, Way::Mirror)?;
    let daemon = scene.daemon("one")?;
    let by_proxy = |url: &str| Curl::new(daemon.host()).proxy(&proxy_url(daemon)).get(url).map(|reply| reply.status);
    let blob = format!("/v2/x/blobs/{}", Digest::of(Algorithm::Sha256, b"x"));
    for place in [
        "127.0.0.1:1",
        "localhost:1",
        "[::1]:1",
        "169.254.169.254",
        "0.0.0.0:1",
        "2130706433:1",
        "[::ffff:127.0.0.1]:1",
    ] {
        for path in ["/", &blob, "/p2p/file"] {
            let status = by_proxy(&format!("http://{place}{path}"))?;
            ensure!(status == 403, "{place}{path} by the proxy: {status}");
        }
        let status = Curl::new(daemon.host()).get(&format!("http://{}{blob}?ns={place}", daemon.addr()))?.status;
        // `ns` may also be malformed in the mirror's eyes.
        ensure!([400, 403].contains(&status), "{place} by the mirror: {status}");
    }
    // Its own listener, as an origin and through itself.
    for path in ["/v2/", &blob, "/p2p/file"] {
        let status = by_proxy(&format!("http://{}{path}", daemon.addr()))?;
        ensure!(status == 508, "a circle at {path}: {status}");
    }
    let status = Curl::new(daemon.host()).proxy(&format!("http://{}", daemon.mirror_of(scene.registry.name())));
    let status = status.get(&scene.registry.url("/v2/"))?.status;
    ensure!(status == 400, "a mirror is used as a proxy: {status}");
    let reply = Curl::new(daemon.host()).get(&format!("http://{}/v2/", daemon.addr()))?;
    ensure!(reply.status == 200, "after all this the mirror answers {}", reply.status);
    Ok(Outcome::Passed)
}

fn rules(run: &Run) -> CaseResult {
    let hosts = ["origin", "seed", "one", "two"].map(|name| (name, LinkSpec::default()));
    let net = Net::new(&hosts)?;
    let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    let elsewhere = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    let place = |server: &FileServer| server.url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    let (old, new) = (place(&files), place(&elsewhere));
    let extra = format!(
        r#"
[[proxy.rules]]
regex = '/direct/'
action = "direct"
[[proxy.rules]]
regex = '/ads/'
action = "refuse"
[[proxy.rules]]
regex = '^http://{old}/moved/(.*)$'
action = "redirect"
redirect = 'http://{new}/kept/$1'
[[proxy.rules]]
regex = '{old}/otherhost'
action = "redirect"
redirect = '{new}'
[[proxy.rules]]
regex = '/kept/.*\.bin$'
action = "p2p"
"#
    );
    let spec = |host: &str| DaemonSpec { host: host.to_owned(), extra: extra.clone(), ..DaemonSpec::default() };
    let cluster =
        Cluster::builder(&net, run).supernode("seed").daemon_with(spec("one")).daemon_with(spec("two")).start()?;
    let content = |number: u32| -> Vec<u8> {
        (0..700_000_u32).map(|at| (at.wrapping_mul(2_654_435_761 + number) >> 11) as u8).collect()
    };
    let put = |server: &FileServer, path: &str, number: u32| -> anyhow::Result<Vec<u8>> {
        let file = server.root().join(path);
        fs::create_dir_all(file.parent().context("folder")?)?;
        fs::write(&file, content(number))?;
        Ok(content(number))
    };
    let get = |daemon: &Daemon, url: &str| Curl::new(daemon.host()).proxy(&proxy_url(daemon)).get(url);

    // p2p: one copy for two hosts.
    let wanted = put(&files, "p2p/a", 1)?;
    for daemon in &cluster.daemons {
        let reply = get(daemon, &files.url("p2p/a"))?;
        ensure!(reply.status == 200 && reply.body == wanted, "p2p: {} and {} bytes", reply.status, reply.body.len());
        ensure!(reply.header(TASK_ID).is_some(), "p2p: not by a task");
    }
    let sent = files.bytes_sent("p2p/a")?;
    ensure!(sent as f64 <= 1.02 * wanted.len() as f64, "p2p: the origin sent {sent} bytes of {}", wanted.len());

    // direct, by rule and by default: a copy each, and no task.
    for path in ["direct/b.bin", "anything/else"] {
        let wanted = put(&files, path, 2)?;
        for daemon in &cluster.daemons {
            let reply = get(daemon, &files.url(path))?;
            ensure!(reply.status == 200 && reply.body == wanted, "{path}: {}", reply.status);
            ensure!(reply.header(TASK_ID).is_none(), "{path}: by a task");
        }
        let sent = files.bytes_sent(path)?;
        ensure!(sent == 2 * wanted.len() as u64, "{path}: the origin sent {sent} bytes");
    }

    // refuse: the origin is not asked.
    put(&files, "ads/banner", 3)?;
    let before = files.access_log()?.len();
    for daemon in &cluster.daemons {
        let reply = get(daemon, &files.url("ads/banner"))?;
        ensure!(reply.status == 403, "refuse: {}", reply.status);
        ensure!(reply.header("x-skimmer-error-type") == Some("forbidden"), "refuse: {:?}", reply.headers);
    }
    ensure!(files.access_log()?.len() == before, "a refused request reached the origin");

    // redirect: rewritten, and then the rules that follow decide.
    let wanted = put(&elsewhere, "kept/c.bin", 4)?;
    for daemon in &cluster.daemons {
        let reply = get(daemon, &files.url("moved/c.bin"))?;
        ensure!(reply.status == 200 && reply.body == wanted, "redirect: {}", reply.status);
        ensure!(reply.header(TASK_ID).is_some(), "redirect: the p2p rule after it did not decide");
    }
    let sent = elsewhere.bytes_sent("kept/c.bin")?;
    ensure!(sent as f64 <= 1.02 * wanted.len() as f64, "redirect: the origin sent {sent} bytes");
    // A bare host takes the URL's host's place.
    let wanted = put(&elsewhere, "otherhost/d", 5)?;
    let reply = get(&cluster.daemons[0], &files.url("otherhost/d"))?;
    ensure!(reply.status == 200 && reply.body == wanted, "redirect to a host: {}", reply.status);
    ensure!(reply.header(TASK_ID).is_none(), "redirect to a host: by a task");
    ensure!(files.access_log()?.len() == before, "a redirected request reached the old origin");

    // Other methods than GET go directly, and an origin's own refusal comes back.
    let curl =
        Curl::new(cluster.daemons[0].host()).proxy(&proxy_url(&cluster.daemons[0])).max_time(Duration::from_secs(20));
    let reply = curl.clone().args(["-I"]).get(&files.url("p2p/a"))?;
    ensure!(reply.status == 200 && reply.header("content-length") == Some("700000"), "HEAD: {reply:?}");
    let reply = curl.clone().args(["-X", "POST", "-d", "x"]).get(&files.url("p2p/a"))?;
    ensure!(reply.status == 405 && reply.header(TASK_ID).is_none(), "POST: {}", reply.status);
    let reply = curl.get(&files.url("p2p/no-such-file"))?;
    ensure!(reply.status == 404, "a file that is not there: {}", reply.status);
    Ok(Outcome::Passed)
}
