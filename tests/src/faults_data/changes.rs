//! Origins that change, lie about lengths, ignore ranges and break off.

use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use harness::{Behaviour, Cluster, FileServer, FileServerOptions, Net, RogueOrigin, Run};

use super::probe::{self, Got, Way, proxied, same, sha256};
use crate::runner::{CaseResult, Outcome};

/// In bytes: 64 pieces of 64 KiB.
const LENGTH: usize = 4 << 20;
const HALF: u64 = LENGTH as u64 / 2;
/// How long a task stays at work after its last use, at a host and then at the seed.
const LINGERS: Duration = Duration::from_secs(10);
const WAYS: [Way; 2] = [Way::Proxy, Way::Dfget];

struct Bed {
    origin: RogueOrigin,
    first: Vec<u8>,
    second: Vec<u8>,
    cluster: Cluster,
    // Dropped last.
    _net: Net,
}

impl Bed {
    fn new(run: &Run) -> anyhow::Result<Self> {
        let net = probe::net(&["h1", "h2"])?;
        let (first, second) = (probe::content(LENGTH, 31), probe::content(LENGTH, 32));
        let origin = RogueOrigin::start(&net.host("origin"), first.clone())?;
        let upstream = probe::plain_upstream(&origin.addr().to_string());
        let cluster = probe::cluster(&net, run, &["h1", "h2"], "", &upstream)?;
        Ok(Self { origin, first, second, cluster, _net: net })
    }

    fn get(&self, run: &Run, way: Way, host: usize, url: &str) -> anyhow::Result<Got> {
        way.get(run, &self.cluster.daemons[host], url)
    }

    /// All of one of these, or known to be broken.
    fn is_honest(&self, got: &Got) -> anyhow::Result<()> {
        match got {
            Got::Whole(bytes) if *bytes == self.first || *bytes == self.second => Ok(()),
            Got::Whole(bytes) => {
                let from_first = bytes.iter().zip(&self.first).take_while(|(a, b)| a == b).count();
                bail!("{} bytes of no generation were given as whole; {from_first} are the first's", bytes.len())
            }
            Got::Broken(_, told) => {
                ensure!(!told.trim().is_empty(), "the error says nothing");
                Ok(())
            }
        }
    }

    /// What the origin has by now.
    fn current(&self) -> anyhow::Result<Vec<u8>> {
        Ok(harness::Curl::new(self.cluster.daemons[0].host()).get(&self.origin.url("p2p/file"))?.body)
    }

    /// Now that the origin behaves, everybody gets what it has.
    fn serves(&self, run: &Run, way: Way, url: &str, expected: &[u8]) -> anyhow::Result<()> {
        for host in [0, 1] {
            let got = self.get(run, way, host, url)?.whole().with_context(|| format!("on host {host} afterwards"))?;
            same(&got, expected).with_context(|| format!("on host {host} afterwards"))?;
        }
        Ok(())
    }
}

/// What an origin does from now on.
type Trick = fn(&mut Behaviour);
/// The same, when it depends on what was served before.
type Change = fn(&mut Behaviour, &Bed);

/// One misbehaviour after another, each under a URL of its own, by every way.
fn each(run: &Run, cases: &[(&str, Change)]) -> CaseResult {
    let mut problems = Vec::new();
    for way in WAYS {
        for (name, misbehave) in cases {
            let bed = Bed::new(run)?;
            let check = || -> anyhow::Result<()> {
                let url = bed.origin.url("p2p/file");
                bed.origin.behave(|b| misbehave(b, &bed));
                let got = bed.get(run, way, 0, &url)?;
                bed.is_honest(&got)?;
                bed.origin.behave(|b| *b = Behaviour::default());
                bed.serves(run, way, &url, &bed.current()?)
            };
            if let Err(error) = check() {
                problems.push(format!("{name}, {way:?}: {error:#}"));
            }
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(Outcome::Passed)
}

fn slowly(b: &mut Behaviour) {
    b.rate_bytes_per_s = Some(4 << 20);
}

pub(super) fn in_mid_download(run: &Run) -> CaseResult {
    each(
        run,
        &[
            ("the bytes change under a running answer", |b, bed| {
                slowly(b);
                b.change_after = Some((HALF, bed.second.clone().into()));
            }),
            ("the connection drops, and then it is another content", |b, bed| {
                b.change_after = Some((HALF - 64 * 1024, bed.second.clone().into()));
                (b.drop_after, b.drops_left) = (Some(HALF), 1);
            }),
            ("the same, to a shorter content", |b, bed| {
                b.change_after = Some((HALF - 64 * 1024, bed.second[..LENGTH / 2].to_vec().into()));
                (b.drop_after, b.drops_left) = (Some(HALF), 1);
            }),
            ("the same, without validators", |b, bed| {
                b.no_validators = true;
                b.change_after = Some((HALF - 64 * 1024, bed.second.clone().into()));
                (b.drop_after, b.drops_left) = (Some(HALF), 1);
            }),
        ],
    )
}

/// What validators do not tell, digests do.
pub(super) fn behind_its_validators(run: &Run) -> CaseResult {
    let bed = Bed::new(run)?;
    let digest = sha256(&bed.first);
    let url = probe::blob_url(&bed.origin.addr().to_string(), "team/app", &digest);
    bed.origin.behave(|b| {
        slowly(b);
        b.keep_validators = true;
        b.change_after = Some((HALF, bed.second.clone().into()));
    });
    if let Got::Whole(bytes) = bed.get(run, Way::Proxy, 0, &url)? {
        same(&bytes, &bed.first)?;
    }
    bed.origin.replace(bed.first.clone());
    bed.origin.behave(|b| *b = Behaviour::default());
    bed.serves(run, Way::Proxy, &url, &bed.first)?;
    Ok(Outcome::Passed)
}

pub(super) fn drops(run: &Run) -> CaseResult {
    let mut problems = Vec::new();
    let cases: [(&str, Trick); 4] = [
        ("once", |b| (b.drop_after, b.drops_left) = (Some(HALF), 1)),
        ("three times", |b| (b.drop_after, b.drops_left) = (Some(HALF / 2), 3)),
        ("once, without a length", |b| {
            b.hide_length = true;
            (b.drop_after, b.drops_left) = (Some(HALF), 1);
        }),
        ("once, and does not do ranges", |b| {
            b.ignore_range = true;
            (b.drop_after, b.drops_left) = (Some(HALF), 1);
        }),
    ];
    for way in WAYS {
        for (name, misbehave) in cases {
            let bed = Bed::new(run)?;
            bed.origin.behave(misbehave);
            let url = bed.origin.url("p2p/file");
            let check = || {
                same(&bed.get(run, way, 0, &url)?.whole()?, &bed.first)?;
                bed.serves(run, way, &url, &bed.first)
            };
            if let Err(error) = check() {
                problems.push(format!("{name}, {way:?}: {error:#}"));
            }
        }
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(Outcome::Passed)
}

pub(super) fn lies_about_length(run: &Run) -> CaseResult {
    each(
        run,
        &[
            ("more is promised than comes", |b, _| b.length_lie = 100_000),
            ("one byte more is promised than comes", |b, _| b.length_lie = 1),
            ("promised and broken off without ranges", |b, _| {
                b.length_lie = 1;
                b.ignore_range = true;
            }),
        ],
    )?;
    // Fewer bytes than there are look like a shorter content to whoever has no digest: so here is one.
    let bed = Bed::new(run)?;
    let url = probe::blob_url(&bed.origin.addr().to_string(), "team/app", &sha256(&bed.first));
    for lie in [-1, -100_000] {
        bed.origin.behave(|b| b.length_lie = lie);
        let got = bed.get(run, Way::Proxy, 0, &url)?;
        ensure!(matches!(got, Got::Broken(..)), "a shortened blob was given as whole");
    }
    bed.origin.behave(|b| *b = Behaviour::default());
    bed.serves(run, Way::Proxy, &url, &bed.first)?;
    Ok(Outcome::Passed)
}

pub(super) fn ranges(run: &Run) -> CaseResult {
    let mut problems = Vec::new();
    let cases: [(&str, Trick); 2] =
        [("ignores ranges", |b| b.ignore_range = true), ("answers 200 with the range alone", |b| b.ok_to_range = true)];
    for (name, misbehave) in cases {
        let bed = Bed::new(run)?;
        bed.origin.behave(misbehave);
        let mut note = |what: &str, result: anyhow::Result<()>| {
            if let Err(error) = result {
                problems.push(format!("{name}, {what}: {error:#}"));
            }
        };
        // A part by dfget is a task of its own, which asks the origin for that range.
        for (first, last) in [(10_u64, 19_u64), (1_000_000, 1_999_999), (3_000_000, LENGTH as u64 - 1)] {
            let expected = &bed.first[first as usize..=last as usize];
            let range = format!("{first}-{last}");
            note(&format!("dfget --range {range}"), {
                let output = run.data_dir("output")?.join("part");
                let url = bed.origin.url("p2p/range");
                let finished = probe::dfget(&bed.cluster.daemons[0], &url, &output, &["--range", &range])?;
                if finished.status.success() {
                    same(&std::fs::read(&output)?, expected)
                } else if probe::dfget_result(&finished)?["message"].as_str().unwrap_or_default().is_empty() {
                    Err(anyhow::anyhow!("an error without a message: {}", probe::said(&finished)))
                } else {
                    Ok(())
                }
            });
            note(&format!("curl --range {range} through the proxy"), {
                let reply = proxied(&bed.cluster.daemons[1]).range(first, last).get(&bed.origin.url("p2p/part"))?;
                match (reply.status, reply.exit) {
                    (206, 0) => same(&reply.body, expected),
                    (200, 0) => same(&reply.body, &bed.first),
                    _ => Ok(()),
                }
            });
        }
        bed.origin.behave(|b| (b.drop_after, b.drops_left) = (Some(HALF), 1));
        note("the rest after a drop", {
            let got = bed.get(run, Way::Proxy, 0, &bed.origin.url("p2p/rest"))?;
            bed.is_honest(&got)
        });
        bed.origin.behave(|b| *b = Behaviour::default());
        for path in ["p2p/rest", "p2p/part", "p2p/range"] {
            note(path, bed.serves(run, Way::Dfget, &bed.origin.url(path), &bed.first));
        }
        let output = run.data_dir("output")?.join("part");
        let finished =
            probe::dfget(&bed.cluster.daemons[1], &bed.origin.url("p2p/range"), &output, &["--range", "10-19"])?;
        note("--range 10-19 afterwards", {
            if finished.status.success() {
                same(&std::fs::read(&output)?, &bed.first[10..20])
            } else {
                Err(anyhow::anyhow!(finished.stderr))
            }
        });
    }
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(Outcome::Passed)
}

pub(super) fn replaced_between(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let host = net.host("origin");
    let servers = [
        FileServer::nginx(&host, run, &FileServerOptions::default())?,
        FileServer::apache(&host, run, &FileServerOptions::default())?,
    ];
    let cluster = probe::cluster(&net, run, &["h1", "h2"], "", "")?;
    for server in &servers {
        std::fs::create_dir(server.root().join("p2p"))?;
        for way in WAYS {
            let url = server.url(&format!("p2p/{way:?}.tgz"));
            for (day, length) in [(1, LENGTH), (2, LENGTH), (3, LENGTH / 2), (4, 0), (5, 1)] {
                // Validators are no better than a second.
                std::thread::sleep(Duration::from_millis(1100));
                let content = probe::content(length, 40 + day);
                let path = server.root().join(format!("p2p/{way:?}.tgz"));
                std::fs::write(path.with_extension("new"), &content)?;
                std::fs::rename(path.with_extension("new"), &path)?;
                for daemon in &cluster.daemons {
                    let when = || format!("day {day}, {way:?} on {}", daemon.host().name());
                    let got = way.get(run, daemon, &url)?.whole().with_context(when)?;
                    same(&got, &content).with_context(when)?;
                }
            }
        }
    }
    // Without validators nobody can say that it is still the same: so it is read again.
    let origin = RogueOrigin::start(&host, probe::content(LENGTH, 50))?;
    origin.behave(|b| b.no_validators = true);
    for day in 51..54 {
        let content = probe::content(LENGTH, day);
        origin.replace(content.clone());
        for daemon in &cluster.daemons {
            same(&Way::Dfget.get(run, daemon, &origin.url("latest"))?.whole()?, &content)
                .with_context(|| format!("without validators, day {day}"))?;
        }
    }
    Ok(Outcome::Passed)
}

pub(super) fn replaced_while_down(run: &Run) -> CaseResult {
    for way in WAYS {
        let mut bed = Bed::new(run)?;
        let (whole, half) = (bed.origin.url("p2p/whole"), bed.origin.url("p2p/half"));
        same(&bed.get(run, way, 0, &whole)?.whole()?, &bed.first)?;
        // And one that was interrupted half-way.
        bed.origin.behave(|b| b.rate_bytes_per_s = Some(1 << 20));
        let daemon = &bed.cluster.daemons[0];
        let mut curl = daemon.host().program("curl").args(["-sS", "-o", "/dev/null", "--noproxy", "", "--proxy"]);
        curl = curl.arg(format!("http://{}", daemon.addr())).arg(&half);
        let reading = curl.start(run, "interrupted")?;
        probe::wait_until("some of it was read", probe::SETTLE, || {
            Ok(bed.origin.requests().iter().any(|r| r.uri.ends_with("half") && r.sent_bytes > 1 << 20))
        })?;
        for node in bed.cluster.daemons.iter_mut().take(1).chain(&mut bed.cluster.supernodes) {
            node.process().kill()?;
        }
        drop(reading);
        bed.origin.behave(|b| *b = Behaviour::default());
        let second = bed.second.clone();
        bed.origin.replace(second.clone());
        for node in bed.cluster.supernodes.iter_mut().chain(bed.cluster.daemons.iter_mut().take(1)) {
            node.restart()?;
        }
        for url in [&whole, &half] {
            bed.serves(run, way, url, &second).with_context(|| format!("{url}, {way:?}"))?;
        }
    }
    Ok(Outcome::Passed)
}

/// A host's task lingers for some seconds after its last use, and as long again when the seed lingers, too. Its end must
/// not be taken for the end of the next one, for which the origin is still being asked.
pub(super) fn asked_for_again_while_it_lingers(run: &Run) -> CaseResult {
    let bed = Bed::new(run)?;
    let url = bed.origin.url("p2p/file");
    same(&bed.get(run, Way::Proxy, 0, &url)?.whole()?, &bed.first)?;
    bed.origin.behave(|b| b.answer_after = Some(LINGERS + Duration::from_secs(3)));
    let begun = Instant::now();
    same(&bed.get(run, Way::Proxy, 0, &url)?.whole()?, &bed.first)?;
    let took = begun.elapsed();
    ensure!(took > LINGERS, "the origin was not asked");
    ensure!(took < 3 * LINGERS, "took {took:?}");
    Ok(Outcome::Passed)
}
