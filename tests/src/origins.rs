//! The origins behave, and misbehave, as the other suites believe.

use std::time::Duration;

use anyhow::ensure;
use harness::{Authority, Curl, FileServer, FileServerOptions, Net, Reply, RogueOrigin, Run, basic_auth};

use crate::runner::{Case, CaseResult, Outcome, anywhere};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        anywhere("origins: nginx and apache serve files, ranges and listings, and ask for passwords", files_and_ranges),
        anywhere("origins: nginx over https with a private authority, limited in rate", https_and_rate),
        anywhere("origins: the rogue flips, changes, lies, ignores ranges, drops and refuses on order", rogue),
    ]
}

fn files_and_ranges(run: &Run) -> CaseResult {
    let net = Net::loopback(&["origin"]);
    let host = net.host("origin");
    let locked =
        FileServerOptions { basic_auth: Some(("ann".into(), "secret".into())), ..FileServerOptions::default() };
    for options in [FileServerOptions::default(), locked] {
        for server in [FileServer::nginx(&host, run, &options)?, FileServer::apache(&host, run, &options)?] {
            let content: Vec<u8> = (0..100_000_u32).map(|at| (at % 251) as u8).collect();
            std::fs::write(server.root().join("file.bin"), &content)?;
            let curl = || Curl::new(&host);
            let curl = || match &options.basic_auth {
                Some((user, password)) => curl().header("Authorization", &basic_auth(user, password)),
                None => curl(),
            };
            let part = curl().range(10, 19).get(&server.url("file.bin"))?;
            ensure!(part.status == 206 && part.body == content[10..20], "wrong part, {}", part.status);
            ensure!(part.header("content-range") == Some("bytes 10-19/100000"), "wrong content-range");
            ensure!(curl().range(100_000, 100_001).get(&server.url("file.bin"))?.status == 416, "no 416");
            let whole = curl().get(&server.url("file.bin"))?;
            ensure!(whole.body == content && whole.header("etag").is_some(), "wrong content");
            let listing = String::from_utf8(curl().get(&server.url(""))?.body)?;
            ensure!(listing.contains("href=\"file.bin\""), "listing lacks the file: {listing}");
            if options.basic_auth.is_some() {
                ensure!(Curl::new(&host).get(&server.url("file.bin"))?.status == 401, "no password was asked for");
            }
            let entries = server.access_log()?;
            ensure!(
                entries
                    .iter()
                    .any(|entry| entry.range == "bytes=10-19" && entry.status == 206 && entry.body_bytes == 10),
                "{entries:?}"
            );
            ensure!(server.bytes_sent("file.bin")? >= 100_010, "too few bytes counted");
        }
    }
    Ok(Outcome::Passed)
}

fn https_and_rate(run: &Run) -> CaseResult {
    let net = Net::loopback(&["origin"]);
    let host = net.host("origin");
    let authority = Authority::new(&run.data_dir("ca")?)?;
    let tls = Some(authority.issue("origin", &["origin.test"], &[host.ip()])?);
    let options = FileServerOptions { tls, rate_bytes_per_s: Some(1_000_000), ..FileServerOptions::default() };
    let server = FileServer::nginx(&host, run, &options)?;
    std::fs::write(server.root().join("file"), vec![1; 2_000_000])?;
    ensure!(Curl::new(&host).get(&server.url("file")).is_err(), "an unknown authority was trusted");
    let reply = Curl::new(&host).ca(authority.path()).get(&server.url("file"))?;
    ensure!(reply.body.len() == 2_000_000, "{} bytes came", reply.body.len());
    ensure!((1.0..4.0).contains(&reply.elapsed.as_secs_f64()), "it took {:?}", reply.elapsed);
    let options = FileServerOptions { requests_per_s: Some(1), ..FileServerOptions::default() };
    let server = FileServer::nginx(&host, run, &options)?;
    std::fs::write(server.root().join("file"), "x")?;
    let replies: Vec<Reply> = (0..6).map(|_| Curl::new(&host).get(&server.url("file"))).collect::<Result<_, _>>()?;
    let refused = replies.iter().find(|reply| reply.status == 503);
    ensure!(refused.is_some_and(|reply| reply.header("retry-after") == Some("1")), "nobody was told to come later");
    Ok(Outcome::Passed)
}

fn rogue(_run: &Run) -> CaseResult {
    let net = Net::loopback(&["origin"]);
    let host = net.host("origin");
    let content: Vec<u8> = (0..1_000_000_u32).map(|at| (at % 253) as u8).collect();
    let origin = RogueOrigin::start(&host, content.clone())?;
    let get = || Curl::new(&host).max_time(Duration::from_secs(10)).get(&origin.url("file"));
    let part = || Curl::new(&host).range(5, 14).get(&origin.url("file"));

    ensure!(get()?.body == content && part()?.body == content[5..15], "well-behaved, and yet wrong");
    ensure!(origin.sent_bytes() == 1_000_010, "{} bytes counted", origin.sent_bytes());

    origin.behave(|b| (b.flip_at, b.flips_left) = (Some(7), 1));
    ensure!(part()?.body[2] == content[7] ^ 1 && part()?.body == content[5..15], "flips once, then not");

    origin.behave(|b| b.ignore_range = true);
    let reply = part()?;
    ensure!(
        reply.status == 200 && reply.body == content && reply.header("accept-ranges").is_none(),
        "ranges not ignored"
    );
    origin.behave(|b| (b.ignore_range, b.ok_to_range) = (false, true));
    ensure!((part()?.status, part()?.body.len()) == (200, 10), "no 200 to a range");

    origin.behave(|b| (b.ok_to_range, b.length_lie) = (false, 10));
    let reply = get()?;
    ensure!(reply.exit == 18 && reply.body == content, "curl believes a length that is too large: {}", reply.exit);
    origin.behave(|b| b.length_lie = -10);
    ensure!(get()?.body.len() == content.len() - 10, "wrong length not claimed");
    origin.behave(|b| (b.length_lie, b.hide_length) = (0, true));
    ensure!(get()?.header("content-length").is_none() && get()?.body == content, "length not hidden");

    origin.behave(|b| (b.hide_length, b.drop_after, b.drops_left) = (false, Some(300_000), 1));
    let reply = get()?;
    ensure!(reply.exit != 0 && reply.body == content[..300_000], "{} bytes, exit {}", reply.body.len(), reply.exit);
    ensure!(get()?.body == content, "dropped twice");

    origin.behave(|b| (b.status, b.errors_left, b.retry_after_s) = (Some(429), 1, Some(3)));
    let reply = get()?;
    ensure!(reply.status == 429 && reply.header("retry-after") == Some("3") && get()?.status == 200, "no single 429");

    origin.behave(|b| b.authorization = Some("Bearer one".into()));
    ensure!(get()?.status == 401, "token not asked for");
    let with = |token: &str| Curl::new(&host).header("Authorization", token).get(&origin.url("file"));
    ensure!(with("Bearer one")?.status == 200, "token refused");
    origin.behave(|b| b.authorization = Some("Bearer two".into()));
    ensure!(with("Bearer one")?.status == 401, "token never expires");

    let next: Vec<u8> = content.iter().map(|byte| byte ^ 0xff).collect();
    let tag = with("Bearer two")?.header("etag").map(ToOwned::to_owned);
    let change = Some((origin.sent_bytes() + 500_000, next.clone().into()));
    origin.behave(|b| (b.authorization, b.change_after) = (None, change));
    let mixed = get()?.body;
    ensure!(mixed.first() == content.first() && mixed.last() == next.last(), "did not change in mid-download");
    ensure!(get()?.body == next && get()?.header("etag") != tag.as_deref(), "did not stay changed");

    let requests = origin.requests();
    ensure!(requests.iter().any(|request| request.status == 206 && request.sent_bytes == 10), "{requests:?}");
    Ok(Outcome::Passed)
}
