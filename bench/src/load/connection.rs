//! One client's connection: what it has sent of its job, and what it has heard.

use std::{
    net::TcpStream,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use proto::{Algorithm, DigestHasher};
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send},
};

use super::{
    Answer, Done, Job, Keep, Kept, Push, Request, Target, Task,
    wire::{Chunks, Framing, HEAD_MAX, Head, follow, parse_head, request, with_parameter},
};

/// One connection may not keep the others waiting for longer than it takes to send so much.
const SEND_TURN_BYTES: u64 = 2 * 1024 * 1024;
/// Bytes that are looked at are read in pieces that stay in the processor's cache.
const LOOK_BYTES: usize = 256 * 1024;
/// What is kept of an answer that was not hoped for.
const COMPLAINT_MAX: usize = 2048;
/// One address is on this machine: it connects at once or not at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A keep-alive connection with at most one job at a time.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    input: Box<[u8]>,
    filled: usize,
    busy: Option<Busy>,
}

#[derive(Debug)]
struct Busy {
    job: Job,
    began: Instant,
    step: Step,
    out: Out,
    reply: Reply,
}

/// Which request of its job is on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The only one.
    Only,
    /// The first of an upload.
    Start,
    /// The blob's bytes, as a chunk.
    Chunk,
    /// The last of an upload.
    Finish,
}

/// What is being sent.
#[derive(Debug)]
struct Out {
    head: Arc<[u8]>,
    head_sent: usize,
    /// How much of the job's blob follows, and how much of that is sent.
    body: Option<u64>,
}

/// What is being read.
#[derive(Debug)]
enum Reply {
    Head,
    Body { head: Head, left: Left, bytes: u64, sink: Sink },
}

#[derive(Debug)]
enum Left {
    Bytes(u64),
    Chunks(Chunks),
}

#[derive(Debug)]
enum Sink {
    Nowhere,
    Digest(Box<DigestHasher>),
    Body(Vec<u8>),
    /// The beginning of a body.
    Complaint(Vec<u8>),
}

/// An answer that came whole.
struct Whole {
    head: Head,
    bytes: u64,
    sink: Sink,
}

impl Connection {
    pub(super) fn open(target: &Target) -> Result<Self> {
        let stream = connect(target)?;
        Ok(Self { stream, input: vec![0; HEAD_MAX].into_boxed_slice(), filled: 0, busy: None })
    }

    pub(super) const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    pub(super) const fn is_idle(&self) -> bool {
        self.busy.is_none()
    }

    /// Whether it has to be told when more can be sent.
    pub(super) fn is_sending(&self) -> bool {
        self.busy.as_ref().is_some_and(|busy| !busy.out.is_done(&busy.job))
    }

    /// Begins a job and sends what can be sent at once.
    pub(super) fn begin(&mut self, job: Job, target: &Target) -> Result<Option<Done>> {
        let (step, head) = match &job.task {
            Task::Request(request) => (Step::Only, Arc::clone(&request.bytes)),
            Task::Push(push) => (Step::Start, Arc::clone(&push.start.bytes)),
        };
        let out = Out { head, head_sent: 0, body: None };
        self.busy = Some(Busy { job, began: Instant::now(), step, out, reply: Reply::Head });
        let sent = self.send();
        self.settle(sent.map(|()| None), target)
    }

    /// Goes on after the connection was ready; the job comes back when it is over, however it ended.
    pub(super) fn advance(&mut self, readable: bool, target: &Target, scratch: &mut [u8]) -> Result<Option<Done>> {
        let outcome = self.go_on(readable, target, scratch);
        self.settle(outcome, target)
    }

    /// Turns the end of a job into what its owner hears; a connection on which something failed is made anew.
    fn settle(&mut self, outcome: Result<Option<Answer>>, target: &Target) -> Result<Option<Done>> {
        let result = match outcome {
            Ok(None) => return Ok(None),
            Ok(Some(answer)) => Ok(answer),
            Err(error) => {
                self.reconnect(target)?;
                Err(error)
            }
        };
        let Busy { job, began, .. } = self.busy.take().context("a connection without a job has no outcome")?;
        Ok(Some(Done { took: began.elapsed(), job, began, result }))
    }

    fn go_on(&mut self, readable: bool, target: &Target, scratch: &mut [u8]) -> Result<Option<Answer>> {
        if readable && let Some(whole) = self.receive(scratch)? {
            return self.answered(whole, target);
        }
        self.send()?;
        Ok(None)
    }

    fn reconnect(&mut self, target: &Target) -> Result<()> {
        self.stream = connect(target)?;
        self.filled = 0;
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        let Some(busy) = &mut self.busy else { return Ok(()) };
        let mut turn = 0;
        while turn < SEND_TURN_BYTES {
            let (bytes, more) = busy.out.next(&busy.job);
            if bytes.is_empty() {
                return Ok(());
            }
            let flags = if more { SendFlags::NOSIGNAL | SendFlags::MORE } else { SendFlags::NOSIGNAL };
            match send(&self.stream, bytes, flags) {
                Ok(sent) => {
                    busy.out.sent(sent);
                    turn += sent as u64;
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot send"),
            }
        }
        Ok(())
    }

    /// Reads until the answer is whole or nothing more is there.
    fn receive(&mut self, scratch: &mut [u8]) -> Result<Option<Whole>> {
        let Some(busy) = &mut self.busy else { bail!("the server speaks without being asked, or has hung up") };
        loop {
            if let Reply::Head = busy.reply {
                let (is_head, keep) = busy.job.expects_body();
                if let Some((head, length)) = parse_head(&self.input[..self.filled], is_head)? {
                    let sink = if head.status == busy.wanted() { Sink::of(keep) } else { Sink::Complaint(Vec::new()) };
                    let left = match head.framing {
                        Framing::Length(length) => Left::Bytes(length),
                        Framing::Chunked => Left::Chunks(Chunks::default()),
                    };
                    let mut body = Reply::Body { head, left, bytes: 0, sink };
                    let taken = body.take(&self.input[length..self.filled])?;
                    ensure!(length + taken == self.filled, "an answer is longer than it says");
                    self.filled = 0;
                    busy.reply = body;
                    continue;
                }
                match read(&self.stream, &mut self.input[self.filled..], RecvFlags::empty())? {
                    Some(read) => self.filled += read,
                    None => return Ok(None),
                }
                continue;
            }
            if busy.reply.is_whole() {
                return match std::mem::replace(&mut busy.reply, Reply::Head) {
                    Reply::Body { head, bytes, sink, .. } => Ok(Some(Whole { head, bytes, sink })),
                    Reply::Head => bail!("a head alone is not a whole answer"),
                };
            }
            if !busy.reply.read_more(&self.stream, scratch)? {
                return Ok(None);
            }
        }
    }

    /// After an answer: the next request of the job, or its end.
    fn answered(&mut self, whole: Whole, target: &Target) -> Result<Option<Answer>> {
        let busy = self.busy.as_mut().context("an answer belongs to a job")?;
        let (status, wanted) = (whole.head.status, busy.wanted());
        if status != wanted {
            let Sink::Complaint(text) = whole.sink else { bail!("{}: {status}", busy.job.shown()) };
            bail!("{}: {status} instead of {wanted}: {}", busy.job.shown(), String::from_utf8_lossy(&text));
        }
        ensure!(busy.out.is_done(&busy.job), "{}: {status} before everything was sent", busy.job.shown());
        let closes = whole.head.closes;
        let answer = busy.advance(whole, target)?;
        if closes {
            self.reconnect(target)?;
        }
        if answer.is_none() {
            self.send()?;
        }
        Ok(answer)
    }
}

fn connect(target: &Target) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target.addr, CONNECT_TIMEOUT)
        .with_context(|| format!("cannot connect to {}", target.addr))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

/// Bytes that are there; `None` when there are none yet.
fn read(stream: &TcpStream, into: &mut [u8], flags: RecvFlags) -> Result<Option<usize>> {
    loop {
        match recv(stream, &mut *into, flags) {
            Ok((_, 0)) => bail!("the server closed the connection within an answer"),
            Ok((_, read)) => return Ok(Some(read)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("cannot read an answer"),
        }
    }
}

// === impl Job ===

impl Job {
    /// Whether the answer to its request is a head alone, and what is kept of the body.
    const fn expects_body(&self) -> (bool, Keep) {
        match &self.task {
            Task::Request(Request { is_head, keep, .. }) => (*is_head, *keep),
            Task::Push(_) => (false, Keep::Nothing),
        }
    }

    fn shown(&self) -> String {
        let bytes = match &self.task {
            Task::Request(request) => &request.bytes,
            Task::Push(push) => &push.start.bytes,
        };
        String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().to_owned()
    }
}

// === impl Busy ===

impl Busy {
    fn wanted(&self) -> u16 {
        match (&self.job.task, self.step) {
            (Task::Request(request), _) => request.expect,
            (Task::Push(_), Step::Finish) => 201,
            (Task::Push(_), _) => 202,
        }
    }

    /// The next request of the job, or what the last one brought.
    fn advance(&mut self, whole: Whole, target: &Target) -> Result<Option<Answer>> {
        let push = match &self.job.task {
            Task::Push(push) if self.step != Step::Finish => push,
            _ => return Ok(Some(Answer { body_bytes: whole.bytes, kept: whole.sink.kept() })),
        };
        let location = whole.head.location.with_context(|| format!("{}: no location", self.job.shown()))?;
        let next = follow(&location, &target.authority)?;
        (self.step, self.out) = match (self.step, push.chunked) {
            (Step::Start, true) => (Step::Chunk, push.bytes("PATCH", &next, target)),
            (Step::Start, false) => (Step::Finish, push.bytes("PUT", &push.finish(&next), target)),
            _ => {
                let head = request("PUT", &push.finish(&next), &target.authority, Some(0), "");
                (Step::Finish, Out { head: head.into(), head_sent: 0, body: None })
            }
        };
        Ok(None)
    }
}

impl Push {
    fn finish(&self, target: &str) -> String {
        with_parameter(target, "digest", self.blob.digest())
    }

    fn bytes(&self, method: &str, next: &str, target: &Target) -> Out {
        let kind = "Content-Type: application/octet-stream\r\n";
        let head = request(method, next, &target.authority, Some(self.blob.length()), kind);
        Out { head: head.into(), head_sent: 0, body: Some(0) }
    }
}

// === impl Out ===

impl Out {
    /// What is to be sent next, and whether more comes after it.
    fn next<'a>(&'a self, job: &'a Job) -> (&'a [u8], bool) {
        if self.head_sent < self.head.len() {
            return (&self.head[self.head_sent..], self.body.is_some());
        }
        match (&job.task, self.body) {
            (Task::Push(push), Some(sent)) => {
                let part = push.blob.part(sent);
                (part, sent + (part.len() as u64) < push.blob.length())
            }
            _ => (&[], false),
        }
    }

    fn is_done(&self, job: &Job) -> bool {
        self.next(job).0.is_empty()
    }

    fn sent(&mut self, bytes: usize) {
        match &mut self.body {
            Some(sent) if self.head_sent == self.head.len() => *sent += bytes as u64,
            _ => self.head_sent += bytes,
        }
    }
}

// === impl Reply ===

impl Reply {
    /// Takes bytes of the body; returns how many belonged to it.
    fn take(&mut self, bytes: &[u8]) -> Result<usize> {
        let Self::Body { left, bytes: counted, sink, .. } = self else { return Ok(0) };
        match left {
            Left::Bytes(left) => {
                let now = (*left).min(bytes.len() as u64);
                sink.take(&bytes[..now as usize]);
                *left -= now;
                *counted += now;
                Ok(now as usize)
            }
            Left::Chunks(chunks) => chunks.take(bytes, |content| {
                *counted += content.len() as u64;
                sink.take(content);
            }),
        }
    }

    fn is_whole(&self) -> bool {
        match self {
            Self::Head => false,
            Self::Body { left: Left::Bytes(left), .. } => *left == 0,
            Self::Body { left: Left::Chunks(chunks), .. } => chunks.is_done(),
        }
    }

    /// Reads what is there of the body; false when nothing is.
    fn read_more(&mut self, stream: &TcpStream, scratch: &mut [u8]) -> Result<bool> {
        if let Self::Body { left: Left::Bytes(left), bytes, sink: Sink::Nowhere, .. } = self {
            // The kernel throws the bytes away without copying them.
            let length = (*left).min(scratch.len() as u64) as usize;
            let Some(read) = read(stream, &mut scratch[..length], RecvFlags::TRUNC)? else { return Ok(false) };
            *left -= read as u64;
            *bytes += read as u64;
            return Ok(true);
        }
        let length = scratch.len().min(LOOK_BYTES);
        let Some(read) = read(stream, &mut scratch[..length], RecvFlags::empty())? else { return Ok(false) };
        ensure!(self.take(&scratch[..read])? == read, "an answer is longer than it says");
        Ok(true)
    }
}

// === impl Sink ===

impl Sink {
    fn of(keep: Keep) -> Self {
        match keep {
            Keep::Nothing => Self::Nowhere,
            Keep::Digest => Self::Digest(Box::new(Algorithm::Sha256.hasher())),
            Keep::Body => Self::Body(Vec::new()),
        }
    }

    fn take(&mut self, bytes: &[u8]) {
        match self {
            Self::Nowhere => {}
            Self::Digest(hash) => hash.update(bytes),
            Self::Body(body) => body.extend_from_slice(bytes),
            Self::Complaint(text) => {
                let room = COMPLAINT_MAX.saturating_sub(text.len());
                text.extend_from_slice(&bytes[..bytes.len().min(room)]);
            }
        }
    }

    fn kept(self) -> Kept {
        match self {
            Self::Nowhere | Self::Complaint(_) => Kept::Nothing,
            Self::Digest(hash) => Kept::Digest(hash.finish()),
            Self::Body(body) => Kept::Body(body),
        }
    }
}
