//! Secrets on their way: to nobody else, into no log, onto no disk.

use std::{fs, path::Path};

use anyhow::ensure;
use harness::{Cluster, Curl, Registry, RegistryAuth, RogueOrigin, RogueRequest, Run, basic_auth};

use crate::{
    faults_data::probe::{self, mirroring, proxied, same, sha256},
    runner::{CaseResult, Outcome},
};

const LENGTH: usize = 1 << 20;
const BEARER: &str = "Bearer kQ7-bearer-9fW2";
const COOKIE: &str = "session=kQ7-cookie-51Lz";

pub(super) fn redirects(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2", "cdn"])?;
    let content = probe::content(LENGTH, 5);
    let origin = RogueOrigin::start(&net.host("origin"), content.clone())?;
    let cdn = RogueOrigin::start(&net.host("cdn"), content.clone())?;
    origin.behave(|b| b.redirect = Some(cdn.url("p2p/elsewhere")));
    let upstream = probe::plain_upstream(&origin.addr().to_string());
    let cluster = probe::cluster(&net, run, &["h1", "h2"], "", &upstream)?;
    let digest = sha256(&content);
    for daemon in &cluster.daemons {
        let secret = |curl: Curl| curl.header("Authorization", BEARER).header("Cookie", COOKIE);
        same(&secret(proxied(daemon)).get(&origin.url("p2p/file"))?.body, &content)?;
        let registry = origin.addr().to_string();
        let url = probe::mirror_url(daemon, &registry, "team/app", &digest);
        same(&secret(mirroring(daemon)).get(&url)?.body, &content)?;
        let output = run.data_dir("output")?.join("file");
        let (authorization, cookie) = (format!("Authorization: {BEARER}"), format!("Cookie: {COOKIE}"));
        let args = ["-H", authorization.as_str(), "-H", cookie.as_str()];
        let finished = probe::dfget(daemon, &origin.url("dfget"), &output, &args)?;
        ensure!(finished.status.success(), "dfget: {}", probe::said(&finished));
        same(&fs::read(&output)?, &content)?;
    }
    let has = |request: &RogueRequest| {
        let secret = |value: &http::HeaderValue| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            value.contains("kQ7-")
        };
        request.headers.values().any(secret) || request.uri.contains("kQ7-")
    };
    ensure!(origin.requests().iter().filter(|request| has(request)).count() >= 3, "the origin got no credentials");
    ensure!(cdn.requests().len() >= 3, "nobody followed the redirect");
    let told: Vec<_> = cdn.requests().into_iter().filter(has).map(|request| (request.uri, request.headers)).collect();
    ensure!(told.is_empty(), "the other host was told: {told:?}");
    Ok(Outcome::Passed)
}

pub(super) fn traces(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let content = probe::content(LENGTH, 6);
    let origin = RogueOrigin::start(&net.host("origin"), content.clone())?;
    let password = "kQ7-password-x8Rd";
    let auth = RegistryAuth::Password { user: "ann", password };
    let registry = Registry::start(&net.host("origin"), run, &auth, None)?;
    let digest = registry.push_blob("team/app", &content)?;
    let everything = "[log]\nlevel = \"trace\"\n";
    let mut cluster = probe::described(&net, run, &["h1", "h2"], everything, everything).upstream(&registry).start()?;
    let basic = basic_auth("ann", password);
    let token = "kQ7-token-77aQ";
    let signed =
        format!("p2p/signed?X-Amz-Signature=kQ7-signature-Zz3&X-Amz-Credential=kQ7-credential-u2&token={token}");
    for daemon in &cluster.daemons {
        let blob = probe::mirror_url(daemon, registry.name(), "team/app", &digest);
        same(&mirroring(daemon).header("Authorization", &basic).get(&blob)?.body, &content)?;
        let manifest = format!("http://{}/v2/team/app/manifests/none?ns={}", daemon.addr(), registry.name());
        mirroring(daemon).header("Authorization", &basic).get(&manifest)?;
        let secret = proxied(daemon).header("Authorization", BEARER).header("Cookie", COOKIE);
        same(&secret.get(&origin.url("p2p/file"))?.body, &content)?;
        same(&proxied(daemon).get(&origin.url(&signed))?.body, &content)?;
        // Passed through, not by peers.
        same(&proxied(daemon).header("Authorization", BEARER).get(&origin.url("direct/file"))?.body, &content)?;
        let output = run.data_dir("output")?.join("file");
        let userinfo = origin.url("userinfo").replace("http://", &format!("http://ann:{password}@"));
        let header = format!("Authorization: {BEARER}");
        let requests: [(&str, &[&str]); 3] =
            [(&userinfo, &[]), (&origin.url(&signed), &[]), (&origin.url("header"), &["-H", &header])];
        for (url, args) in requests {
            let finished = probe::dfget(daemon, url, &output, args)?;
            ensure!(finished.status.success(), "dfget {url}: {}", probe::said(&finished));
            let printed = String::from_utf8_lossy(&finished.stdout).into_owned() + &finished.stderr;
            ensure!(!printed.contains("kQ7-"), "dfget prints a secret: {printed}");
        }
        // Failures are told at length.
        origin.behave(|b| (b.status, b.errors_left) = (Some(500), 100));
        let secret = proxied(daemon).header("Authorization", BEARER).header("Cookie", COOKIE);
        let reply = secret.get(&origin.url(&format!("p2p/failing?token={token}")))?;
        ensure!(reply.status >= 500, "a failing origin gives {}", reply.status);
        origin.behave(|b| (b.status, b.errors_left) = (None, 0));
    }
    let mut leaks = Vec::new();
    for (what, text) in said(&cluster)? {
        if text.contains("kQ7-") {
            leaks.push(what);
        }
    }
    // Rows may be in memory until the end.
    for node in cluster.daemons.iter_mut().chain(&mut cluster.supernodes) {
        node.process().terminate(probe::SETTLE)?;
    }
    let base64 = basic.trim_start_matches("Basic ").to_owned();
    let logs = run.path().join("logs");
    for needle in ["kQ7-", base64.trim_end_matches('=')] {
        for node in cluster.daemons.iter().chain(&cluster.supernodes) {
            let folder = node.store().parent().map(Path::to_owned).unwrap_or_default();
            leaks.extend(probe::holding(&folder, needle.as_bytes()).iter().map(|path| path.display().to_string()));
        }
        for path in probe::holding(&logs, needle.as_bytes()) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.contains("dfdaemon") || name.contains("supernode") {
                let text = String::from_utf8_lossy(&fs::read(&path)?).into_owned();
                let line = text.lines().find(|line| line.contains(needle)).unwrap_or_default();
                let count = text.lines().filter(|line| line.contains(needle)).count();
                leaks.push(format!("{name}, {count} lines, as: {}", &line[..line.len().min(400)]));
            }
        }
    }
    ensure!(leaks.is_empty(), "secrets are found in:\n{}", leaks.join("\n"));
    Ok(Outcome::Passed)
}

/// What nodes tell over HTTP.
fn said(cluster: &Cluster) -> anyhow::Result<Vec<(String, String)>> {
    let mut said = Vec::new();
    for node in cluster.daemons.iter().chain(&cluster.supernodes) {
        for path in ["metrics", "api/skimmer/v1/tasks", "api/skimmer/v1/hosts"] {
            let reply = Curl::new(node.host()).get(&format!("http://{}/{path}", node.http()))?;
            said.push((format!("{path} of {}", node.host().name()), String::from_utf8_lossy(&reply.body).into_owned()));
        }
    }
    Ok(said)
}
