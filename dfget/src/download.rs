//! One file: by the dfdaemon, again by the dfdaemon when it was lost, and by the engine in this process otherwise.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use proto::{Kind, TaskSpec};
use tokio::sync::OnceCell;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::Parts;
use crate::backend::daemon::DaemonBackend;
use crate::backend::{Backend, BackendError, Done, Event, Output, Request};
use crate::exit::{Cause, Failure, chain};
use crate::options::Job;
use crate::output::{self, MadeFolders, Place, Special, Temporary};
use crate::report::Reporter;

/// How long a daemon that was lost may take to come back before the engine in this process takes over: a restart by
/// systemd takes a second or two, a package upgrade less than ten.
const RECONNECT_WITHIN: Duration = Duration::from_secs(10);
/// First wait before the next try to reach it; each wait is twice the one before.
const RECONNECT_WAIT_MIN: Duration = Duration::from_millis(50);
/// Longest of these waits.
const RECONNECT_WAIT_MAX: Duration = Duration::from_secs(1);
/// A daemon that is lost so often dies of this very download.
const LOST_MAX: u32 = 30;

/// One file to download.
#[derive(Clone, Debug)]
pub struct FileJob {
    /// Its number in the report, from 0.
    pub number: usize,
    /// What.
    pub spec: TaskSpec,
    /// For the origin.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Where to.
    pub output: PathBuf,
}

/// How a download ended well.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Bytes and whence they came.
    pub done: Done,
    /// Who did it.
    pub by: &'static str,
}

/// Those who can download, shared by all files of a command.
pub struct Engines {
    job: Job,
    daemon: Option<DaemonBackend>,
    /// It has answered: when it is gone, it was lost, and may come back.
    daemon_seen: AtomicBool,
    /// The daemon did not come back: no other file waits for it again.
    daemon_gone: AtomicBool,
    local: OnceCell<Arc<dyn Backend>>,
    parts: Arc<dyn Parts>,
    deadline: Option<Instant>,
    /// Folders made so far. Several files may need one, so the empty ones go at the very end.
    made: Mutex<MadeFolders>,
}

/// Where the bytes of one file go.
enum Sink {
    /// The backend writes the output.
    Backend,
    /// We do.
    Here(Temporary),
    /// We do, and cannot take it back.
    Special(Special),
}

/// What became of a lost daemon.
enum Next {
    Again,
    Here,
}

/// How often and since when the daemon is lost.
#[derive(Default)]
struct Losses {
    count: u32,
    since: Option<Instant>,
    wait: Duration,
}

// === impl Engines ===

impl Engines {
    /// Nothing is connected or started before the first file.
    #[must_use]
    pub fn new(job: Job, parts: Arc<dyn Parts>) -> Self {
        let daemon = job.endpoint.as_ref().map(|endpoint| DaemonBackend::new(endpoint.path.clone()));
        let deadline = job.timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        Self {
            job,
            daemon,
            daemon_seen: AtomicBool::new(false),
            daemon_gone: AtomicBool::new(false),
            local: OnceCell::new(),
            parts,
            deadline,
            made: Mutex::default(),
        }
    }

    /// What the user asked for.
    #[must_use]
    pub const fn job(&self) -> &Job {
        &self.job
    }

    /// The end of the time that the user gave.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The engine in this process, when it was needed.
    #[must_use]
    pub fn local(&self) -> Option<&Arc<dyn Backend>> {
        self.local.get()
    }

    /// Whether the daemon is another user's: it then writes no files for this one.
    fn daemon_is_foreign(&self) -> bool {
        use std::os::unix::fs::MetadataExt as _;
        let own = rustix::process::geteuid();
        let owner =
            self.daemon.as_ref().and_then(|daemon| std::fs::metadata(daemon.path()).ok()).map(|file| file.uid());
        !own.is_root() && owner.is_some_and(|owner| owner != own.as_raw())
    }

    /// Downloads one file. Dropping the future cancels it and leaves nothing behind.
    ///
    /// # Errors
    /// Why it failed; the output is then what it was before.
    pub async fn download(&self, file: &FileJob, reporter: &Reporter) -> Result<Finished, Failure> {
        let job = &self.job;
        let place = output::prepare(&file.output, job.overwrite, &mut self.made.lock())?;
        // The backend is told where the file really is; the report says what the user wrote.
        let file = &match place.clone() {
            Place::File(output) | Place::Special(output) => FileJob { output, ..file.clone() },
        };
        let target = job.original_offset.then(|| output::ensure_file(&file.output)).transpose()?;
        let mut sink = match place {
            Place::Special(path) => Sink::Special(Special::open(path).await?),
            // The daemon's protocol has paths as text.
            Place::File(path) if job.stream || path.to_str().is_none() || self.daemon_is_foreign() => {
                Sink::Here(Temporary::beside(&path)?)
            }
            Place::File(_) => Sink::Backend,
        };
        let mut losses = Losses::default();
        let mut sum = crc32fast::Hasher::new();
        let finished = loop {
            let (backend, daemon): (&dyn Backend, _) =
                match self.daemon.as_ref().filter(|_| !self.daemon_gone.load(Ordering::Relaxed)) {
                    Some(daemon) => (daemon, Some(daemon)),
                    None => (self.engine().await?.as_ref(), None),
                };
            let error = match self.attempt(backend, file, &mut sink, &mut sum, reporter, &mut losses).await {
                Ok(done) => break Finished { done, by: backend.name() },
                Err(BackendError::Failed(failure)) => return Err(failure),
                Err(error) => error,
            };
            let Some(daemon) = daemon else {
                return Err(Failure::new(
                    Cause::Kind(Kind::Internal),
                    format!("the engine stopped: {}", chain(&error)),
                ));
            };
            daemon.forget_connection();
            if let Next::Here = self.after_loss(daemon, error, &mut losses, reporter).await {
                self.daemon_gone.store(true, Ordering::Relaxed);
            }
        };
        let sum = sum.finalize();
        if let Some(expected) = job.crc32.filter(|expected| *expected != sum) {
            let message = format!("the content's crc32 is {sum:08x}, not {expected:08x}");
            return Err(Failure::new(Cause::Kind(Kind::Corrupt), message));
        }
        self.place(sink, file, &finished)?;
        if let Some(target) = target {
            target.keep();
        }
        Ok(finished)
    }

    async fn engine(&self) -> Result<&Arc<dyn Backend>, Failure> {
        let start = || async {
            debug!("starting the engine in this process");
            self.parts.engine(&self.job.local).await
        };
        self.local.get_or_try_init(start).await
    }

    fn request(&self, file: &FileJob, streamed: bool) -> Request {
        let job = &self.job;
        let output = (!streamed).then(|| Output {
            path: file.output.clone(),
            overwrite: job.overwrite,
            force_hard_link: job.force_hard_link,
            at_offset: job.original_offset,
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
        });
        Request {
            spec: file.spec.clone(),
            headers: file.headers.clone(),
            output,
            rate_bytes_per_s: job.rate_bytes_per_s,
            total_rate_bytes_per_s: job.local.total_rate_bytes_per_s,
            rate_min_bytes_per_s: job.rate_min_bytes_per_s,
            timeout: self.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now())),
            priority: job.priority,
            route: job.route,
            never_origin: job.never_origin,
            caller: job.caller.clone(),
        }
    }

    /// Asks a backend once, and follows what it says to its end.
    async fn attempt(
        &self,
        backend: &dyn Backend,
        file: &FileJob,
        sink: &mut Sink,
        sum: &mut crc32fast::Hasher,
        reporter: &Reporter,
        losses: &mut Losses,
    ) -> Result<Done, BackendError> {
        // Bytes of an attempt that did not come to its end were not checked as a whole.
        sink.restart()?;
        sum.reset();
        let mut events = backend.download(self.request(file, !matches!(sink, Sink::Backend))).await?;
        while let Some(event) = events.next().await {
            match event? {
                Event::Started(started) => {
                    losses.since = None;
                    if self.daemon.is_some() {
                        self.daemon_seen.store(true, Ordering::Relaxed);
                    }
                    sink.restart()?;
                    sum.reset();
                    reporter.started(file, backend.name(), &started);
                }
                Event::Progress(counts) => reporter.progress(file.number, counts),
                Event::Data(bytes) => {
                    if self.job.crc32.is_some() {
                        sum.update(&bytes);
                    }
                    sink.append(bytes).await?;
                }
                Event::Done(done) => return Ok(done),
            }
        }
        Err(BackendError::Lost(None))
    }

    /// Waits before the daemon is asked again, or says that it will not be.
    async fn after_loss(
        &self,
        daemon: &DaemonBackend,
        error: BackendError,
        losses: &mut Losses,
        reporter: &Reporter,
    ) -> Next {
        let named = self.job.endpoint.as_ref().is_some_and(|endpoint| endpoint.named);
        if let BackendError::Unreachable { .. } = &error
            && losses.count == 0
            && !self.daemon_seen.load(Ordering::Relaxed)
        {
            // None runs here, which is as good a way to use dfget as any; one that was asked for by name is missed.
            debug!(reason = chain(&error), "no dfdaemon");
            if named {
                reporter.fallback(&chain(&error));
            }
            return Next::Here;
        }
        losses.count += 1;
        let since = *losses.since.get_or_insert_with(|| {
            losses.wait = RECONNECT_WAIT_MIN;
            Instant::now()
        });
        let lost_for = since.elapsed();
        warn!(reason = chain(&error), lost_for_ms = lost_for.as_millis(), "the dfdaemon is lost");
        if lost_for >= RECONNECT_WITHIN || losses.count > LOST_MAX {
            reporter.fallback(&format!("the dfdaemon at {} did not come back", daemon.path().display()));
            return Next::Here;
        }
        reporter.reconnecting(lost_for);
        tokio::time::sleep(losses.wait).await;
        losses.wait = (losses.wait * 2).min(RECONNECT_WAIT_MAX);
        Next::Again
    }

    /// Bytes that we wrote take the place of the output.
    fn place(&self, sink: Sink, file: &FileJob, finished: &Finished) -> Result<(), Failure> {
        let written = match &sink {
            Sink::Backend => return Ok(()),
            Sink::Here(part) => part.length(),
            Sink::Special(special) => special.length(),
        };
        if written != finished.done.counts.bytes {
            let message = format!("the {} sent {written} of {} bytes", finished.by, finished.done.counts.bytes);
            return Err(Failure::new(Cause::Kind(Kind::Internal), message));
        }
        match (sink, file.spec.range.filter(|_| self.job.original_offset)) {
            (Sink::Here(part), Some(range)) => part.finish_into(&file.output, range.start()),
            (Sink::Here(part), None) => part.finish(&file.output, self.job.overwrite),
            _ => Ok(()),
        }
    }
}

impl Sink {
    /// What came so far is void.
    fn restart(&mut self) -> Result<(), Failure> {
        match self {
            Self::Backend => Ok(()),
            Self::Here(part) => part.restart(),
            Self::Special(special) => special.restart(),
        }
    }

    async fn append(&mut self, bytes: Bytes) -> Result<(), Failure> {
        match self {
            Self::Backend => Err(Failure::new(Cause::Kind(Kind::Internal), "bytes came that nobody asked for")),
            Self::Here(part) => part.append(bytes).await,
            Self::Special(special) => special.append(bytes).await,
        }
    }
}

impl std::fmt::Debug for Engines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engines").field("daemon", &self.daemon).finish_non_exhaustive()
    }
}
