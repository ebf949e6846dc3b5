//! Content that one user's credentials brought into the caches, and other users.

use std::{fs, time::Duration};

use anyhow::{Context, ensure};
use harness::{
    Curl, Daemon, FileServer, FileServerOptions, Registry, RegistryAuth, Reply, RogueOrigin, Run, TokenServer,
    basic_auth,
};

use crate::{
    faults_data::probe::{self, mirroring, proxied, same},
    runner::{CaseResult, Outcome},
};

/// In bytes: 32 pieces.
const LENGTH: usize = 2 << 20;

/// Callers with nothing, with a wrong password, and with a token nobody gave.
fn strangers() -> [Option<String>; 3] {
    [None, Some(basic_auth("ann", "wrong")), Some("Bearer nobody".to_owned())]
}

fn with(curl: Curl, authorization: Option<&str>) -> Curl {
    match authorization {
        Some(value) => curl.header("Authorization", value),
        None => curl,
    }
}

fn refused(reply: &Reply, status: u16, content: &[u8]) -> anyhow::Result<()> {
    ensure!(reply.status == status, "{status} was expected: {}", probe::told(reply));
    ensure!(!reply.body.windows(64).any(|part| content.starts_with(part)), "the content came with the {status}");
    Ok(())
}

pub(super) fn layers(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let auth = RegistryAuth::Password { user: "ann", password: "secret" };
    let registry = Registry::start(&net.host("origin"), run, &auth, None)?;
    let content = probe::content(LENGTH, 1);
    let digest = registry.push_blob("team/app", &content)?;
    let cluster = probe::described(&net, run, &["h1", "h2"], "", "").upstream(&registry).start()?;
    let ann = basic_auth("ann", "secret");
    let url = |daemon: &Daemon, repository: &str| probe::mirror_url(daemon, registry.name(), repository, &digest);
    for daemon in &cluster.daemons {
        let refuse = |when: &str| -> anyhow::Result<()> {
            for stranger in strangers() {
                let asks = || with(mirroring(daemon), stranger.as_deref());
                let who = || format!("{when}, {} asks with {stranger:?}", daemon.host().name());
                let reply = asks().get(&url(daemon, "team/app"))?;
                refused(&reply, 401, &content).with_context(who)?;
                ensure!(reply.header("www-authenticate").is_some(), "{}: not told how to log in", who());
                let part = asks().range(0, 99).get(&url(daemon, "team/app"))?;
                refused(&part, 401, &content).with_context(who)?;
                let head = asks().args(["--head"]).get(&url(daemon, "team/app"))?;
                ensure!(head.status == 401, "{}: HEAD gives {}", who(), head.status);
            }
            Ok(())
        };
        refuse("before")?;
        let reply = mirroring(daemon).header("Authorization", &ann).get(&url(daemon, "team/app"))?;
        same(&reply.body, &content)?;
        refuse("after")?;
        // A user with rights in general, but to a repository that has not the blob.
        let elsewhere = mirroring(daemon).header("Authorization", &ann).get(&url(daemon, "team/other"))?;
        refused(&elsewhere, 404, &content).context("from a repository that lacks the blob")?;
        same(&mirroring(daemon).header("Authorization", &ann).get(&url(daemon, "team/app"))?.body, &content)?;
    }
    let read = harness::blob_bytes(&registry.access_log()?);
    ensure!(read == content.len() as u64, "the registry sent {read} bytes: the cache was of no use");
    Ok(Outcome::Passed)
}

pub(super) fn files(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let options =
        FileServerOptions { basic_auth: Some(("ann".into(), "secret".into())), ..FileServerOptions::default() };
    let files = FileServer::nginx(&net.host("origin"), run, &options)?;
    fs::create_dir(files.root().join("p2p"))?;
    let content = probe::content(LENGTH, 2);
    fs::write(files.root().join("p2p/file"), &content)?;
    let url = files.url("p2p/file");
    let cluster = probe::cluster(&net, run, &["h1", "h2"], "", "")?;
    let ann = basic_auth("ann", "secret");
    for daemon in &cluster.daemons {
        let refuse = || -> anyhow::Result<()> {
            for stranger in strangers() {
                refused(&with(proxied(daemon), stranger.as_deref()).get(&url)?, 401, &content)?;
                refused(&with(proxied(daemon), stranger.as_deref()).range(5, 10).get(&url)?, 401, &content)?;
                let output = run.data_dir("output")?.join("file");
                let header = stranger.map(|value| format!("Authorization: {value}"));
                let args: Vec<&str> = header.iter().flat_map(|header| ["-H", header.as_str()]).collect();
                let finished = probe::dfget(daemon, &url, &output, &args)?;
                let result = probe::dfget_result(&finished)?;
                ensure!(probe::code(&finished)? == 5, "dfget ends with {}: {result}", finished.status);
                ensure!(result["origin_status"] == 401 && !output.try_exists()?, "{result}");
            }
            Ok(())
        };
        refuse().with_context(|| format!("before, {}", daemon.host().name()))?;
        same(&proxied(daemon).header("Authorization", &ann).get(&url)?.body, &content)?;
        let output = run.data_dir("output")?.join("file");
        let finished = probe::dfget(daemon, &url, &output, &["-H", &format!("Authorization: {ann}")])?;
        ensure!(finished.status.success(), "dfget with credentials: {}", probe::said(&finished));
        same(&fs::read(&output)?, &content)?;
        refuse().with_context(|| format!("after, {}", daemon.host().name()))?;
    }
    let sent = files.bytes_sent("p2p/file")?;
    let (least, most) = (content.len() as u64, content.len() as u64 * 5 / 4);
    ensure!((least..most).contains(&sent), "nginx sent {sent} bytes of {least}: the cache was of no use");
    Ok(Outcome::Passed)
}

pub(super) fn forbidden(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let content = probe::content(LENGTH, 3);
    let origin = RogueOrigin::start(&net.host("origin"), content.clone())?;
    let cluster = probe::cluster(&net, run, &["h1", "h2"], "", "")?;
    // A cookie is a credential like any other.
    for (number, header) in ["Authorization: Bearer ann", "Cookie: session=ann"].into_iter().enumerate() {
        let (name, value) = header.split_once(": ").context("a header")?;
        let url = origin.url(&format!("p2p/{number}"));
        same(&proxied(&cluster.daemons[0]).header(name, value).get(&url)?.body, &content)?;
        // From now on the origin forbids it.
        origin.behave(|b| (b.status, b.errors_left) = (Some(403), u32::MAX));
        for daemon in &cluster.daemons {
            let eve = proxied(daemon).header(name, "eve");
            refused(&eve.get(&url)?, 403, &content).with_context(|| format!("{header}, {}", daemon.host().name()))?;
            refused(&proxied(daemon).get(&url)?, 403, &content).with_context(|| format!("{header}, with nothing"))?;
        }
        origin.behave(|b| b.status = None);
    }
    // While it is still on its way for ann.
    let url = origin.url("p2p/running");
    origin.behave(|b| {
        b.authorization = Some("Bearer ann".into());
        b.rate_bytes_per_s = Some(512 * 1024);
    });
    std::thread::scope(|scope| -> CaseResult {
        let daemons = &cluster.daemons;
        let ann = scope.spawn(|| proxied(&daemons[0]).header("Authorization", "Bearer ann").get(&url));
        probe::wait_until("ann's download runs", probe::SETTLE, || {
            Ok(origin.requests().iter().any(|r| r.uri.ends_with("running") && r.sent_bytes > 300_000))
        })?;
        for daemon in daemons {
            let eve = proxied(daemon).header("Authorization", "Bearer eve");
            refused(&eve.get(&url)?, 401, &content).context("in mid-download")?;
        }
        let reply = ann.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        same(&reply.body, &content)?;
        Ok(Outcome::Passed)
    })
}

/// What a URL gives may depend on who asks: nobody gets what was fetched for somebody else.
pub(super) fn personal(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let origin = RogueOrigin::start(&net.host("origin"), b"for nobody".to_vec())?;
    let callers = ["Bearer alice", "Bearer bob"];
    let contents = [probe::content(LENGTH, 5), probe::content(LENGTH, 6)];
    origin.behave(|b| {
        b.personal = callers.map(str::to_owned).into_iter().zip(contents.clone().map(Into::into)).collect();
        b.rate_bytes_per_s = Some(1 << 20);
    });
    let cluster = probe::cluster(&net, run, &["h1", "h2"], "", "")?;
    let url = origin.url("p2p/me");
    let get = |host: usize, who: usize| proxied(&cluster.daemons[host]).header("Authorization", callers[who]).get(&url);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let alice = scope.spawn(|| get(0, 0));
        probe::wait_until("alice's download runs", probe::SETTLE, || {
            Ok(origin.requests().iter().any(|request| request.sent_bytes > 300_000))
        })?;
        for host in [0, 1] {
            same(&get(host, 1)?.body, &contents[1]).with_context(|| format!("bob on host {host}, meanwhile"))?;
        }
        let reply = alice.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
        same(&reply.body, &contents[0]).context("alice")
    })?;
    for host in [1, 0] {
        for who in [1, 0] {
            let output = run.data_dir("output")?.join("file");
            let header = format!("Authorization: {}", callers[who]);
            let finished = probe::dfget(&cluster.daemons[host], &url, &output, &["-H", &header])?;
            ensure!(finished.status.success(), "dfget: {}", probe::said(&finished));
            same(&fs::read(&output)?, &contents[who]).with_context(|| format!("{} on host {host}", callers[who]))?;
        }
        same(&proxied(&cluster.daemons[host]).get(&url)?.body, b"for nobody").context("a caller with nothing")?;
    }
    Ok(Outcome::Passed)
}

pub(super) fn expired(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let lifetime = Duration::from_secs(4);
    let tokens = TokenServer::start(&net.host("origin"), run, "ann", "secret", Duration::from_secs(600))?;
    let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Token(&tokens), None)?;
    let image = harness::Image::builder()
        .layer(LENGTH as u64, harness::Compression::Gzip, harness::Content::Random)
        .build(run)?;
    image.push(&registry, "team/app", "v1")?;
    tokens.set_lifetime(lifetime);
    let digest = &image.platform().layers[0];
    // The origin is asked again after a second.
    let brief = "[tasks]\nauthorization_ttl = \"1s\"\n";
    let cluster = probe::described(&net, run, &["h1", "h2"], "", brief).upstream(&registry).start()?;
    let fresh = || -> anyhow::Result<String> {
        let ask = Curl::new(&net.host("h1")).header("Authorization", &basic_auth("ann", "secret"));
        let url = format!("{}?service=origin&scope=repository:team/app:pull", tokens.realm());
        let answer = ask.get(&url)?.json()?;
        Ok(format!("Bearer {}", answer["token"].as_str().context("no token")?))
    };
    let get = |daemon: &Daemon, token: &str| {
        let url = probe::mirror_url(daemon, registry.name(), "team/app", digest);
        mirroring(daemon).header("Authorization", token).get(&url)
    };
    let old = fresh()?;
    let first = get(&cluster.daemons[0], &old)?;
    ensure!(probe::sha256(&first.body) == *digest, "ann's pull: {}", probe::told(&first));
    std::thread::sleep(lifetime + Duration::from_secs(2));
    for daemon in &cluster.daemons {
        refused(&get(daemon, &old)?, 401, &first.body)
            .with_context(|| format!("an expired token, {}", daemon.host().name()))?;
        let reply = get(daemon, &fresh()?)?;
        ensure!(reply.body == first.body, "a fresh token, {}: {}", daemon.host().name(), probe::told(&reply));
    }
    Ok(Outcome::Passed)
}

/// Whoever knows a digest could otherwise ask "his" registry, which says yes to everybody.
pub(super) fn other_registry(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2", "evil"])?;
    let auth = RegistryAuth::Password { user: "ann", password: "secret" };
    let registry = Registry::start(&net.host("origin"), run, &auth, None)?;
    let content = probe::content(LENGTH, 4);
    let digest = registry.push_blob("team/app", &content)?;
    let evil = RogueOrigin::start(&net.host("evil"), vec![0; LENGTH])?;
    let extra = probe::plain_upstream(&evil.addr().to_string());
    let cluster = probe::described(&net, run, &["h1", "h2"], "", &extra).upstream(&registry).start()?;
    let ann = basic_auth("ann", "secret");
    let daemon = &cluster.daemons[0];
    let url = probe::mirror_url(daemon, registry.name(), "team/app", &digest);
    same(&mirroring(daemon).header("Authorization", &ann).get(&url)?.body, &content)?;
    for daemon in &cluster.daemons {
        let url = probe::mirror_url(daemon, &evil.addr().to_string(), "mine", &digest);
        if let Ok(reply) = mirroring(daemon).get(&url) {
            ensure!(reply.body != content, "{} gave it away", daemon.host().name());
        }
        let url = probe::blob_url(&evil.addr().to_string(), "mine", &digest);
        if let Ok(reply) = proxied(daemon).get(&url) {
            ensure!(reply.body != content, "{} gave it away through its proxy", daemon.host().name());
        }
    }
    Ok(Outcome::Passed)
}
