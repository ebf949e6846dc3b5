//! More than fits.

use std::{
    fs,
    io::{Read, Seek, Write},
    net::TcpStream,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, ensure};
use harness::{Daemon, FileServer, FileServerOptions, Run};
use proto::{Algorithm, Digest};

use crate::{
    faults_data::probe::{self, proxied},
    runner::{CaseResult, Outcome},
};

const GIB: u64 = 1 << 30;
/// 20 of them are 5 GiB.
const FILE_BYTES: u64 = 256 << 20;
const FILES: usize = 20;
/// Two of them fit into a small store, three do not.
const BLOBS: u64 = 4;
const BLOB_BYTES: usize = 24 << 20;
/// Far less than the time after which a download without progress is given up.
const SOON: Duration = Duration::from_secs(60);
/// Rows, their journal, and what the file system rounds up.
const SLACK_BYTES: u64 = 32 << 20;
/// How much of the first file its reader takes at first: the rest it wants only when everything else has gone through.
const FIRST_BYTES: usize = 8 << 20;

pub(super) fn five_through_one(run: &Run) -> CaseResult {
    let net = probe::net(&["h1"])?;
    let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    fs::create_dir(files.root().join("p2p"))?;
    for number in 0..FILES {
        // Mostly holes, so that the origin costs nothing; different at the beginning, in the middle and at the end.
        let mut file = fs::File::create(files.root().join(format!("p2p/{number}")))?;
        let mark = probe::content(4096, 700 + number as u64);
        for at in [0, FILE_BYTES / 2, FILE_BYTES - 4096] {
            file.seek(std::io::SeekFrom::Start(at))?;
            file.write_all(&mark)?;
        }
    }
    let small = "[store]\ncapacity = \"1GiB\"\n";
    let cluster = probe::cluster(&net, run, &["h1"], small, small)?;
    let daemon = &cluster.daemons[0];
    let nodes = [daemon, &cluster.supernodes[0]];
    let most = Mutex::new([0_u64; 2]);
    let done = AtomicBool::new(false);
    let stores = nodes.map(Daemon::store);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                for (most, store) in most.lock().unwrap_or_else(|e| e.into_inner()).iter_mut().zip(&stores) {
                    *most = (*most).max(probe::disk_usage(store));
                }
                std::thread::sleep(Duration::from_millis(200));
            }
        });
        let work = || -> anyhow::Result<()> {
            let mut slow = SlowReader::start(daemon, &files.url("p2p/0"))?;
            for number in 1..FILES {
                let output = run.data_dir("output")?.join("file");
                let reply = proxied(daemon).output(&output).get(&files.url(&format!("p2p/{number}")))?;
                ensure!((reply.status, reply.exit) == (200, 0), "file {number}: {}", probe::told(&reply));
                let expected = digest(&files.root().join(format!("p2p/{number}")))?;
                ensure!(digest(&output)? == expected, "file {number} is another one");
                fs::remove_file(&output)?;
            }
            let read = files.bytes_sent("p2p/0")?;
            let found = slow.finish()?;
            ensure!(found == digest(&files.root().join("p2p/0"))?, "the content in use is another one");
            let again = files.bytes_sent("p2p/0")? - read;
            ensure!(again <= FILE_BYTES / 50, "{again} bytes of the content in use were read from the origin again");
            Ok(())
        };
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })?;
    let most = most.into_inner().unwrap_or_else(|e| e.into_inner());
    for (most, node) in most.iter().zip(nodes) {
        let name = node.host().name();
        ensure!(*most <= GIB + SLACK_BYTES, "{name} used {most} bytes of {GIB}");
        ensure!(*most > GIB / 2, "{name} used only {most} bytes: the limit was not put to the test");
    }
    run.note(format!("at most {} MiB at the daemon, {} MiB at the seed", most[0] >> 20, most[1] >> 20));
    // What was used last is there still; what is gone comes again, right.
    let last = files.bytes_sent(&format!("p2p/{}", FILES - 1))?;
    let reply = proxied(daemon).output("/dev/null").get(&files.url(&format!("p2p/{}", FILES - 1)))?;
    ensure!(reply.exit == 0, "{}", probe::told(&reply));
    ensure!(files.bytes_sent(&format!("p2p/{}", FILES - 1))? == last, "what was used last is not there");
    let output = run.data_dir("output")?.join("file");
    proxied(daemon).output(&output).get(&files.url("p2p/1"))?;
    ensure!(digest(&output)? == digest(&files.root().join("p2p/1"))?, "what was evicted does not come back");
    Ok(Outcome::Passed)
}

/// A blob is named by its digest, so nobody asks the origin about it again: who holds it has to be known.
pub(super) fn gone(run: &Run) -> CaseResult {
    let net = probe::net(&["h1", "h2"])?;
    let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    let blobs = files.root().join("v2/team/app/blobs");
    fs::create_dir_all(&blobs)?;
    let mut contents = Vec::new();
    for number in 0..BLOBS {
        let content = probe::content(BLOB_BYTES, 730 + number);
        let digest = probe::sha256(&content);
        fs::write(blobs.join(digest.to_string()), &content)?;
        contents.push((digest, content));
    }
    let registry = files.url("").trim_start_matches("http://").trim_end_matches('/').to_owned();
    let small = "[store]\ncapacity = \"64MiB\"\n";
    let daemons = format!("{small}{}", probe::plain_upstream(&registry));
    let cluster = probe::cluster(&net, run, &["h1", "h2"], small, &daemons)?;
    let pull = |host: usize, number: usize| -> anyhow::Result<()> {
        let (digest, content) = &contents[number];
        let url = probe::mirror_url(&cluster.daemons[host], &registry, "team/app", digest);
        let reply = probe::mirroring(&cluster.daemons[host]).max_time(SOON).get(&url)?;
        ensure!((reply.status, reply.exit) == (200, 0), "blob {number} on host {host}: {}", probe::told(&reply));
        probe::same(&reply.body, content)
    };
    let copies = |number: usize| -> anyhow::Result<u64> {
        let path = format!("v2/team/app/blobs/{}", contents[number].0);
        Ok(files.bytes_sent(&path)? / BLOB_BYTES as u64)
    };
    let drive_out_the_first = || -> anyhow::Result<()> {
        for number in (1..BLOBS).cycle().take(4 * BLOBS as usize) {
            pull(0, number as usize)?;
            let nodes = [&cluster.daemons[0], &cluster.supernodes[0]];
            if nodes.iter().all(|node| probe::holding(&node.store(), &contents[0].1[..64]).is_empty()) {
                return Ok(());
            }
        }
        anyhow::bail!("the first blob is still here: the limit was not put to the test")
    };
    pull(0, 0)?;
    drive_out_the_first()?;
    pull(0, 0)?;
    ensure!(copies(0)? == 2, "the origin gave the first blob {} times", copies(0)?);
    drive_out_the_first()?;
    pull(1, 0)?;
    Ok(Outcome::Passed)
}

fn digest(path: &std::path::Path) -> anyhow::Result<Digest> {
    let mut hasher = Algorithm::Blake3.hasher();
    let mut file = fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            count => hasher.update(&buffer[..count]),
        }
    }
}

/// A client that reads a little and then nothing for a long time.
struct SlowReader {
    stream: TcpStream,
    taken: Vec<u8>,
}

impl SlowReader {
    fn start(daemon: &Daemon, url: &str) -> anyhow::Result<Self> {
        let addr = daemon.addr();
        let mut stream = daemon.host().inside(|| Ok(TcpStream::connect(addr)?))?;
        stream.set_read_timeout(Some(probe::TRANSFER))?;
        let host = url.trim_start_matches("http://").split('/').next().unwrap_or_default();
        write!(stream, "GET {url} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
        let mut taken = vec![0; FIRST_BYTES];
        stream.read_exact(&mut taken).context("the slow reader's beginning")?;
        ensure!(taken.starts_with(b"HTTP/1.1 200"), "the slow reader is refused");
        Ok(Self { stream, taken })
    }

    fn finish(&mut self) -> anyhow::Result<Digest> {
        self.stream.read_to_end(&mut self.taken).context("the slow reader's rest")?;
        let head = self.taken.windows(4).position(|four| four == b"\r\n\r\n").context("no headers")? + 4;
        let body = &self.taken[head..];
        ensure!(body.len() as u64 == FILE_BYTES, "the slow reader got {} bytes", body.len());
        Ok(Digest::of(Algorithm::Blake3, body))
    }
}
