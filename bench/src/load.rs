//! The load tool: one thread that keeps a few HTTP/1.1 connections busy, and costs little.
//!
//! Requests, blobs and digests are made before the clock runs; bodies nobody wants are thrown away by the kernel
//! (`MSG_TRUNC`). What is left is a `send`, a `poll` and a `recv` for a small request. **Not here:** TLS, HTTP/2,
//! pipelining.

mod connection;
mod content;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use proto::Digest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use connection::Connection;
pub(crate) use content::{Blob, Contents};

/// A server from which nothing comes for so long is stuck.
const STALL: Duration = Duration::from_secs(60);
/// The most that one `recv` throws away. The memory is named in the call and never touched.
const SCRATCH_BYTES: usize = 8 * 1024 * 1024;

/// The server that is measured.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    addr: SocketAddr,
    authority: String,
}

/// A request that was made beforehand.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    bytes: Arc<[u8]>,
    is_head: bool,
    expect: u16,
    keep: Keep,
}

/// What is kept of an answer's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Nothing; it is not even read.
    Nothing,
    /// Its sha256.
    Digest,
    /// All of it.
    Body,
}

/// A blob to upload: POST and PUT, or POST, PATCH and PUT.
#[derive(Debug, Clone)]
pub(crate) struct Push {
    start: Request,
    blob: Blob,
    chunked: bool,
}

/// What one client is to do.
#[derive(Debug, Clone)]
pub(crate) enum Task {
    /// One request.
    Request(Request),
    /// An upload.
    Push(Push),
}

/// A task, by a number that its owner knows it by.
#[derive(Debug, Clone)]
pub(crate) struct Job {
    /// The number.
    pub(crate) id: usize,
    /// What is to be done.
    pub(crate) task: Task,
}

/// What a job brought.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The length of the last answer's body.
    pub(crate) body_bytes: u64,
    /// What was kept of it.
    pub(crate) kept: Kept,
}

/// What was kept of a body, as [`Keep`] said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Nothing.
    Nothing,
    /// Its sha256.
    Digest(Digest),
    /// The body.
    Body(Vec<u8>),
}

/// A job that is over.
#[derive(Debug)]
pub(crate) struct Done {
    /// The job.
    pub(crate) job: Job,
    /// When its first byte was sent.
    pub(crate) began: Instant,
    /// From then to the last byte of its last answer.
    pub(crate) took: Duration,
    /// How it ended.
    pub(crate) result: Result<Answer>,
}

/// What a client without a job does next.
#[derive(Debug)]
pub(crate) enum Next {
    /// This.
    Job(Job),
    /// Nothing before this moment; then it asks again.
    Wait(Instant),
    /// Nothing any more.
    End,
}

/// Where jobs come from and go to.
pub(crate) trait Work {
    /// The next job of this client.
    fn next(&mut self, client: usize) -> Next;

    /// Hears of a job's end.
    ///
    /// # Errors
    /// Whatever ends the work at once: usually that the job failed.
    fn done(&mut self, client: usize, done: Done) -> Result<()>;
}

/// Lets clients do the work, each on a connection of its own, until there is none. Returns the time from the first
/// job's start to the last one's end; connections are made before that.
///
/// # Errors
/// When the server cannot be reached or is stuck, and what [`Work::done`] returns.
pub(crate) fn drive(target: &Target, clients: usize, work: &mut impl Work) -> Result<Duration> {
    let mut connections = (0..clients).map(|_| Connection::open(target)).collect::<Result<Vec<_>>>()?;
    let mut scratch = vec![0; SCRATCH_BYTES];
    let began = Instant::now();
    let mut last = began;
    loop {
        let mut wake = None;
        for (client, connection) in connections.iter_mut().enumerate() {
            while connection.is_idle() {
                match work.next(client) {
                    Next::Job(job) => {
                        if let Some(done) = connection.begin(job, target)? {
                            last = Instant::now();
                            work.done(client, done)?;
                        }
                    }
                    Next::Wait(until) => {
                        wake = Some(wake.map_or(until, |wake: Instant| wake.min(until)));
                        break;
                    }
                    Next::End => break,
                }
            }
        }
        let busy: Vec<usize> = (0..clients).filter(|client| !connections[*client].is_idle()).collect();
        if busy.is_empty() && wake.is_none() {
            return Ok(last - began);
        }
        let ready = wait(&connections, &busy, wake)?;
        for (client, readable) in ready {
            if let Some(done) = connections[client].advance(readable, target, &mut scratch)? {
                last = Instant::now();
                work.done(client, done)?;
            }
        }
    }
}

/// Lets clients do all tasks, numbered from 0 in their order, and hears of the end of each. Returns the time it took.
///
/// # Errors
/// As [`drive`], and what `done` returns.
pub(crate) fn all(
    target: &Target,
    clients: usize,
    tasks: impl Iterator<Item = Task>,
    done: impl FnMut(Done) -> Result<()>,
) -> Result<Duration> {
    struct All<T, D>(std::iter::Enumerate<T>, D);
    impl<T: Iterator<Item = Task>, D: FnMut(Done) -> Result<()>> Work for All<T, D> {
        fn next(&mut self, _client: usize) -> Next {
            self.0.next().map_or(Next::End, |(id, task)| Next::Job(Job { id, task }))
        }

        fn done(&mut self, _client: usize, done: Done) -> Result<()> {
            (self.1)(done)
        }
    }
    drive(target, clients, &mut All(tasks.enumerate(), done))
}

/// Waits until a connection is ready or the moment has come; which are, and whether there is something to read.
fn wait(connections: &[Connection], busy: &[usize], wake: Option<Instant>) -> Result<Vec<(usize, bool)>> {
    let mut polled: Vec<PollFd<'_>> = busy
        .iter()
        .map(|client| {
            let connection = &connections[*client];
            let sending = if connection.is_sending() { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::new(connection.stream(), PollFlags::IN | sending)
        })
        .collect();
    let timeout = wake.map_or(STALL, |wake| wake.saturating_duration_since(Instant::now()).min(STALL));
    let timeout = Timespec::try_from(timeout).context("the time to wait is too long")?;
    match poll(&mut polled, Some(&timeout)) {
        Ok(0) => ensure!(wake.is_some(), "the server has not answered for {STALL:?}"),
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
    let ready = polled.iter().zip(busy).filter(|(fd, _)| !fd.revents().is_empty());
    Ok(ready.map(|(fd, client)| (*client, fd.revents().intersects(readable))).collect())
}

// === impl Target ===

impl Target {
    /// The server at this address, spoken to by it.
    pub(crate) fn new(addr: SocketAddr) -> Self {
        Self { addr, authority: addr.to_string() }
    }

    /// A request without a body; headers end with CRLF each.
    pub(crate) fn request(&self, method: &str, path: &str, headers: &str) -> Request {
        let length = (method != "GET" && method != "HEAD").then_some(0);
        let bytes = wire::request(method, path, &self.authority, length, headers).into();
        Request { bytes, is_head: method == "HEAD", expect: 200, keep: Keep::Nothing }
    }

    /// A request with a body.
    pub(crate) fn upload(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Request {
        let mut bytes = wire::request(method, path, &self.authority, Some(body.len() as u64), headers);
        bytes.extend_from_slice(body);
        Request { bytes: bytes.into(), is_head: false, expect: 201, keep: Keep::Nothing }
    }

    /// The first request of an upload.
    pub(crate) fn start_upload(&self, repository: &str) -> Request {
        self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "").expect(202)
    }
}

// === impl Request ===

impl Request {
    /// The status that means success.
    pub(crate) const fn expect(mut self, status: u16) -> Self {
        self.expect = status;
        self
    }

    /// What is kept of the body.
    pub(crate) const fn keep(mut self, keep: Keep) -> Self {
        self.keep = keep;
        self
    }
}

impl Push {
    /// An upload that begins with this request.
    pub(crate) const fn new(start: Request, blob: Blob, chunked: bool) -> Self {
        Self { start, blob, chunked }
    }

    /// What it uploads.
    pub(crate) const fn blob(&self) -> &Blob {
        &self.blob
    }
}
