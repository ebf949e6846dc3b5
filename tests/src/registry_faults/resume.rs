//! Uploads in pieces, over two processes of which one is killed.

use std::{sync::Barrier, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use harness::{Run, S3Kind, SkimmerRegistry};

use super::{
    content::{Blob, offset},
    http::{Client, Connection},
    site::{Database, Servers, Site, Storage},
};
use crate::runner::{Case, CaseResult, Outcome, anywhere};

const MIB: usize = 1 << 20;
/// The upload of the issue.
const LENGTH: usize = 200 * MIB;
const CHUNK: usize = MIB;
/// The chunk in the middle of which a process is killed.
const KILLED_IN: usize = 71;
/// The chunk after which it is back.
const BACK_AFTER: usize = 90;
const REHASHED: &str = "skimmer_registry_upload_bytes_rehashed_total";
/// Digests that two requests at a time finish.
const RACES: u64 = 12;

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere(
            "registry uploads: 200 MB over two processes, one killed -9, MariaDB and MinIO: nothing is hashed twice",
            over_object_storage,
        ),
        anywhere(
            "registry uploads: 200 MB over two processes, one killed -9, PostgreSQL and one folder: nothing is hashed twice",
            over_files,
        ),
        anywhere("registry uploads: eight clients push one blob at a time: all 201, stored once", same_blob),
    ]
}

fn over_object_storage(run: &Run) -> CaseResult {
    two_processes(run, Database::MariaDb, Storage::S3(S3Kind::Minio))
}

fn over_files(run: &Run) -> CaseResult {
    two_processes(run, Database::Postgres, Storage::Files)
}

fn two_processes(run: &Run, database: Database, storage: Storage) -> CaseResult {
    let servers = Servers::start(run, database, storage)?;
    let config = servers.config("", "", "[gc]\nlease = \"1h\"\ninterval = \"100ms\"\n");
    let mut site = Site::start(run, servers, 2, &config)?;
    alternate(&mut site)?;
    out_of_order(&site).context("chunks out of order")?;
    finished_twice(&site).context("two processes finish one upload")?;
    contended(&site).context("two processes receive one upload")?;
    let mut rehashed = 0.0;
    for registry in &site.registries {
        rehashed += registry.metric(REHASHED)?;
    }
    ensure!(rehashed == 0.0, "{rehashed} bytes were read back");
    site.wait_no_uploads()?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}

fn alternate(site: &mut Site) -> Result<()> {
    let blob = Blob::random(LENGTH, 200);
    let mut clients = [site.client_of(0), site.client_of(1)];
    // Its first URL serves for all requests.
    let upload = clients[0].begin("a/b")?;
    let mut restarted: Option<thread::JoinHandle<Result<SkimmerRegistry>>> = None;
    for (number, chunk) in blob.bytes.chunks(CHUNK).enumerate() {
        let at = number * CHUNK;
        if number == KILLED_IN {
            let mut victim = site.registries.pop().context("two processes")?;
            let rehashed = victim.metric(REHASHED)?;
            ensure!(rehashed == 0.0, "{rehashed} bytes were read back");
            let mut connection = Connection::open(victim.addr())?;
            connection.head("PATCH", &upload, &[("content-length", &chunk.len().to_string())])?;
            connection.write(&chunk[..chunk.len() / 2])?;
            victim.kill()?;
            ensure!(connection.response(false).is_err(), "a killed process answers");
            let found = clients[0].offset(&upload)?;
            ensure!(found == at as u64, "the upload has {found} bytes instead of {at}");
            restarted = Some(thread::spawn(move || victim.restart().map(|()| victim)));
        }
        let is_alone = restarted.is_some();
        let client = &mut clients[if is_alone { 0 } else { number % 2 }];
        let response = client.patch(&upload, at, chunk)?.is(202, &format!("chunk {number}"))?;
        ensure!(offset(&response)? == (at + chunk.len()) as u64, "chunk {number}: {:?}", response.header("range"));
        if number == BACK_AFTER {
            let thread = restarted.take().context("it was killed")?;
            site.registries.push(thread.join().map_err(|_| anyhow::anyhow!("the restart panicked"))??);
            clients[1] = site.client_of(1);
        }
    }
    let response = clients[1].finish(&upload, &blob.digest, &[])?.is(201, "the end")?;
    ensure!(response.header("docker-content-digest") == Some(&blob.digest.to_string()), "another digest");
    // Its answer may have been lost: whoever asks again learns the same.
    clients[0].finish(&upload, &blob.digest, &[])?.is(201, "the end once more")?;
    clients.iter_mut().try_for_each(|client| client.pulls_blob("a/b", &blob))
}

fn out_of_order(site: &Site) -> Result<()> {
    let blob = Blob::random(3 * MIB, 210);
    let [first, second, third] = [0, 1, 2].map(|number| &blob.bytes[number * MIB..][..MIB]);
    let mut clients = [site.client_of(0), site.client_of(1)];
    let upload = clients[0].begin("a/b")?;
    clients[0].patch(&upload, 0, first)?.is(202, "the first chunk")?;
    let is_refused = |client: &mut Client, at: usize, bytes: &[u8]| -> Result<()> {
        let response = client.patch(&upload, at, bytes)?;
        ensure!(response.status == 416, "a chunk at {at}: {}", response.told());
        let found = client.offset(&upload)?;
        ensure!(found == MIB as u64, "after a chunk at {at} there are {found} bytes");
        Ok(())
    };
    for client in &mut clients {
        // One too early, one that was there already, one that overlaps.
        is_refused(client, 2 * MIB, third)?;
        is_refused(client, 0, first)?;
        is_refused(client, MIB - 1, second)?;
        let nothing = client.ask("PATCH", &upload, &[], &[])?.is(202, "an empty chunk")?;
        ensure!(offset(&nothing)? == MIB as u64, "an empty chunk changes something");
    }
    clients[1].patch(&upload, MIB, second)?.is(202, "the second chunk")?;
    // No range: it is what comes next.
    clients[0].ask("PATCH", &upload, &[], third)?.is(202, "the third chunk")?;
    clients[1].finish(&upload, &blob.digest, &[])?.is(201, "the end")?;
    clients[0].pulls_blob("a/b", &blob)
}

/// Both say 201, or one of them that the upload is over; and there is one blob.
fn finished_twice(site: &Site) -> Result<()> {
    for number in 0..RACES {
        let blob = Blob::random(100_000 + number as usize, 220 + number);
        let upload = site.client_of(0).begin("a/b")?;
        let half = blob.bytes.len() / 2;
        site.client_of(1).patch(&upload, 0, &blob.bytes[..half])?.is(202, "a chunk")?;
        // With the last bytes in both requests, or before them.
        let last = if number % 2 == 0 {
            &blob.bytes[half..]
        } else {
            site.client_of(0).patch(&upload, half, &blob.bytes[half..])?.is(202, "a chunk")?;
            &[]
        };
        let barrier = Barrier::new(2);
        let answers: Vec<_> = thread::scope(|scope| {
            let finish = |number| {
                let (barrier, upload, blob) = (&barrier, &upload, &blob);
                let mut client = site.client_of(number);
                move || {
                    barrier.wait();
                    client.finish(upload, &blob.digest, last)
                }
            };
            let threads = [0, 1].map(|number| scope.spawn(finish(number)));
            threads.into_iter().map(|thread| thread.join().expect("a request does not panic")).collect()
        });
        let answers = answers.into_iter().collect::<Result<Vec<_>>>()?;
        let told: Vec<String> = answers.iter().map(super::http::Response::told).collect();
        let good = answers.iter().filter(|answer| answer.status == 201).count();
        let over =
            answers.iter().filter(|answer| answer.status == 404 && answer.code() == "BLOB_UPLOAD_UNKNOWN").count();
        ensure!(good >= 1 && good + over == 2, "race {number}: {told:?}");
        site.client_of(0).pulls_blob("a/b", &blob)?;
    }
    Ok(())
}

/// Two requests send the same part of an upload: what was acknowledged to one of them is what counts.
fn contended(site: &Site) -> Result<()> {
    let last = site.registries.len() - 1;
    for (number, begun) in [0, MIB / 2].into_iter().enumerate() {
        let blob = Blob::random(3 * MIB, 270 + number as u64);
        let other = Blob::random(MIB, 280 + number as u64);
        let mut client = site.client_of(0);
        let upload = client.begin("a/b")?;
        let mut kept = blob.bytes[..begun].to_vec();
        if begun > 0 {
            client.patch(&upload, 0, &kept)?.is(202, "the first bytes")?;
        }
        let mut connection = Connection::open(site.registries[last].addr())?;
        connection.head("PATCH", &upload, &[("content-length", &other.bytes.len().to_string())])?;
        // It has found out where the upload stands, and writes later.
        thread::sleep(Duration::from_millis(300));
        let ours = client.patch(&upload, begun, &blob.bytes[begun..begun + MIB])?;
        connection.write(&other.bytes)?;
        let theirs = connection.response(false)?;
        let told = format!("{} and {}", ours.told(), theirs.told());
        match (ours.status, theirs.status) {
            (202, 409) => kept.extend_from_slice(&blob.bytes[begun..begun + MIB]),
            (409, 202) => kept.extend_from_slice(&other.bytes),
            _ => anyhow::bail!("both or neither: {told}"),
        }
        ensure!(client.offset(&upload)? == kept.len() as u64, "{told}, and {} bytes are kept", client.offset(&upload)?);
        kept.extend_from_slice(&blob.bytes[2 * MIB..]);
        let whole = Blob::of(kept);
        client.finish(&upload, &whole.digest, &blob.bytes[2 * MIB..])?.is(201, &told)?;
        client.pulls_blob("a/b", &whole).with_context(|| told)?;
        // Whose answer was lost asks again.
        client.finish(&upload, &whole.digest, &[])?.is(201, "the end once more")?;
    }
    Ok(())
}

/// How many clients push.
const TOGETHER: usize = 8;

fn same_blob(run: &Run) -> CaseResult {
    let mut site = Site::simple(run, "[gc]\nlease = \"1h\"\ninterval = \"100ms\"\n")?;
    contended(&site).context("two requests of one upload")?;
    for round in 0..4 {
        let blob = Blob::random(4 * MIB, 250 + round);
        let barrier = Barrier::new(TOGETHER);
        let pushes: Vec<Result<()>> = thread::scope(|scope| {
            let push = |number: usize| {
                let (barrier, blob) = (&barrier, &blob);
                let mut client = site.client();
                move || {
                    // In one repository, or in several; in one request with a body, or in three.
                    let repository = if round % 2 == 0 { "a/b".to_owned() } else { format!("a/b{number}") };
                    barrier.wait();
                    if number.is_multiple_of(2) {
                        client.push(&repository, blob)?;
                    } else {
                        let upload = client.begin(&repository)?;
                        let (first, last) = blob.bytes.split_at(MIB);
                        client.patch(&upload, 0, first)?.is(202, "a chunk")?;
                        client.finish(&upload, &blob.digest, last)?.is(201, "the end")?;
                    }
                    client.pulls_blob(&repository, blob)
                }
            };
            let threads: Vec<_> = (0..TOGETHER).map(|number| scope.spawn(push(number))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a push does not panic")).collect()
        });
        pushes.into_iter().collect::<Result<()>>().with_context(|| format!("round {round}"))?;
        let hex = blob.digest.hex();
        crate::faults_data::probe::wait_until(
            "the copies too many are removed",
            crate::faults_data::probe::SETTLE,
            || Ok(site.servers.stored("blobs/")?.iter().filter(|name| name.contains(&hex)).count() == 1),
        )?;
    }
    site.wait_no_uploads()?;
    site.fsck(&["--deep"])?.is_clean()?;
    Ok(Outcome::Passed)
}
