//! Parts of a blob: a download that goes on where it broke, and several streams at once.

use std::{fs, thread, time::Duration};

use anyhow::{Context, ensure};
use harness::Run;

use super::scene::{Scene, digest_of};
use crate::runner::{Case, CaseResult, Outcome, anywhere};

const BLOB_BYTES: u64 = 40_000_000;
const STREAMS: u64 = 8;

pub(super) fn cases() -> Vec<Case> {
    vec![anywhere(
        "registry: curl resumes a broken download of a blob, and eight streams at once fetch its parts",
        ranges,
    )]
}

fn ranges(run: &Run) -> CaseResult {
    let scene = Scene::open(run)?;
    let blob = scene.tools.random_file("blob", BLOB_BYTES)?;
    let digest = digest_of(&blob)?;
    let url = scene.registry.url(&format!("/v2/team/files/blobs/uploads/?digest={digest}"));
    let post = scene.curl().args(["-X", "POST", "--data-binary"]).args([format!("@{}", blob.display())]);
    let post = post.header("Content-Type", "application/octet-stream").get(&url)?;
    ensure!(post.status == 201, "the blob was not taken: {}", post.status);
    let url = scene.registry.url(&format!("/v2/team/files/blobs/{digest}"));

    let part = scene.tools.home().join("part");
    let slow = scene.curl().args(["--limit-rate", "10M"]).max_time(Duration::from_secs(1)).output(&part).get(&url)?;
    let came = fs::metadata(&part)?.len();
    ensure!(slow.exit != 0 && (1..BLOB_BYTES).contains(&came), "the download did not break: {came} bytes came");
    let rest = scene.curl().args(["-C", "-"]).output(&part).get(&url)?;
    ensure!(rest.status == 206, "the download was not resumed: {}", rest.status);
    let range = rest.header("content-range").context("a part of a blob without a range")?;
    ensure!(range == format!("bytes {came}-{}/{BLOB_BYTES}", BLOB_BYTES - 1), "the rest is {range}");
    ensure!(digest_of(&part)? == digest, "the parts are not the blob");

    let length = BLOB_BYTES / STREAMS;
    let streams = thread::scope(|scope| -> anyhow::Result<Vec<Vec<u8>>> {
        let stream = |number: u64| {
            let curl = scene.curl().range(number * length, (number + 1) * length - 1);
            let url = &url;
            scope.spawn(move || {
                let reply = curl.get(url)?;
                ensure!(reply.status == 206 && reply.exit == 0, "stream {number} ended with {}", reply.status);
                Ok(reply.body)
            })
        };
        let streams: Vec<_> = (0..STREAMS).map(stream).collect();
        streams
            .into_iter()
            .map(|stream| stream.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })?;
    ensure!(streams.concat() == fs::read(&blob)?, "the streams are not the blob");

    let last = scene.curl().header("Range", "bytes=-1000").get(&url)?;
    ensure!(
        last.status == 206 && fs::read(&blob)?.ends_with(&last.body) && last.body.len() == 1000,
        "a wrong end came"
    );
    let beyond = scene.curl().range(BLOB_BYTES, BLOB_BYTES + 9).get(&url)?;
    ensure!(beyond.status == 416, "bytes after the end: {}", beyond.status);
    let range = beyond.header("content-range");
    ensure!(range == Some(format!("bytes */{BLOB_BYTES}").as_str()), "the blob's length is said as {range:?}");
    scene.check()?;
    Ok(Outcome::Passed)
}
