//! Disks that are full, stores that are too small, outputs that cannot be written, digests that are wrong.

mod disks;
mod eviction;

use std::fs;

use anyhow::ensure;
use harness::{FileServer, FileServerOptions, Run};
use proto::{Algorithm, Digest};

use crate::{
    faults_data::probe::{self, same},
    runner::{Case, CaseResult, Outcome, rooted},
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        rooted(
            "5 GB of tasks through 1 GB stores: nothing in use is evicted, the limit holds",
            eviction::five_through_one,
        ),
        rooted(
            "what the host and the seed evicted, and what only its last holder evicted, comes again",
            eviction::gone,
        ),
        rooted(
            "a content larger than the store: an error that names path and bytes, the store stays usable",
            disks::too_large,
        ),
        rooted(
            "a daemon's disk is full: an error that names path and bytes, the store stays usable",
            disks::daemon_full,
        ),
        rooted(
            "a supernode's disk is full: an error that names path and bytes, the store stays usable",
            disks::seed_full,
        ),
        rooted("a disk without a free byte: an error, and all is well again when there is room", disks::not_a_byte),
        rooted("an output cannot be written: exit 7 or 8, the path is named, the cache serves others", disks::outputs),
        rooted(
            "a store folder of another version, or of something else: refused by name, left as it is",
            disks::versions,
        ),
        rooted("a wrong --digest or --md5: exit 3, no output, not kept as good, the right one succeeds", wrong_digests),
    ]
}

fn wrong_digests(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    let cluster = probe::cluster(&net, run, &["h1", "h2"], "", "")?;
    for (number, (algorithm, reason)) in
        [(Algorithm::Sha256, None), (Algorithm::Sha512, None), (Algorithm::Blake3, None), (Algorithm::Md5, Some(2))]
            .into_iter()
            .enumerate()
    {
        let content = probe::content(3 << 20, 500 + number as u64);
        let name = format!("file{number}");
        fs::write(files.root().join(&name), &content)?;
        let url = files.url(&name);
        let right = Digest::of(algorithm, &content);
        let wrong = Digest::of(algorithm, b"something else");
        let args = |digest: &Digest| match algorithm {
            Algorithm::Md5 => vec!["--md5".to_owned(), digest.hex()],
            _ => vec!["--digest".to_owned(), digest.to_string()],
        };
        let folder = run.data_dir("output")?;
        let output = folder.join("file");
        for daemon in [&cluster.daemons[0], &cluster.daemons[1], &cluster.daemons[0]] {
            // The seed may take a moment longer than the host to find it wrong; until then both fetch the same bytes.
            probe::wait_until("the seed has done with it", probe::SETTLE, || {
                Ok(probe::tasks(&cluster.supernodes[0])?.iter().all(|task| task.state != "running"))
            })?;
            let before = files.bytes_sent(&name)?;
            let args = args(&wrong);
            let finished = probe::dfget(daemon, &url, &output, &args.iter().map(String::as_str).collect::<Vec<_>>())?;
            let result = probe::dfget_result(&finished)?;
            ensure!(probe::code(&finished)? == 3, "{algorithm:?}: ends with {}: {result}", finished.status);
            ensure!(result["kind"] == "corrupt", "{result}");
            ensure!(reason.is_none_or(|reason| result["reason"] == reason), "{result}");
            let message = result["message"].as_str().unwrap_or_default().to_owned() + &finished.stderr;
            ensure!(message.contains("digest") || message.contains(&wrong.hex()), "{result}");
            ensure!(fs::read_dir(&folder)?.next().is_none(), "something is left in the folder of the output");
            probe::wait_until("the origin was asked: nothing was kept", probe::SETTLE, || {
                Ok(files.bytes_sent(&name)? > before)
            })?;
        }
        let kept = || cluster.daemons.iter().chain(&cluster.supernodes).map(|node| probe::stored(node).len()).sum();
        let expected = number * 4;
        probe::wait_until("nobody keeps it", probe::SETTLE, || Ok(kept_is(kept(), expected)))?;
        // Two tasks more, on two hosts each, and at the seed.
        for (daemon, args) in [(0, args(&right)), (1, args(&right)), (0, Vec::new()), (1, Vec::new())] {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let finished = probe::dfget(&cluster.daemons[daemon], &url, &output, &args)?;
            ensure!(finished.status.success(), "{algorithm:?}, the right one: {}", probe::said(&finished));
            same(&fs::read(&output)?, &content)?;
        }
        for node in cluster.daemons.iter().chain(&cluster.supernodes) {
            ensure!(probe::stored(node).len() == (number + 1) * 2, "{} keeps something else", node.host().name());
        }
    }
    Ok(Outcome::Passed)
}

/// Right contents of earlier algorithms stay, on three nodes.
const fn kept_is(kept: usize, earlier: usize) -> bool {
    kept == earlier / 4 * 2 * 3
}
