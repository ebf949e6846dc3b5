//! Carrying out dfget's downloads with an engine: the daemon's, or one in dfget's own process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use peer::engine::{Engine, OpenRequest, Progress, Route, Task, TaskError, headers};
use peer::store::{Export, Way};
use proto::wire::download_event::Body as Event;
use proto::{Kind, TaskSpec, wire};
use tokio::sync::mpsc;
use tracing::info;

mod sharing;

use sharing::Share;
pub use sharing::Shares;

/// The header of a request that names the caller (`--callsystem`).
pub const CALLER_KEY: &str = "skimmer-caller-bin";

/// Events waiting for one dfget at most; streamed bytes are among them, so this bounds memory.
const EVENTS_MAX: usize = 8;
/// Progress is told so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// A download that failed, and the reason that v1's scripts know it by.
struct Failure {
    error: TaskError,
    reason: u32,
}

/// Reasons of v1's dfget for going back to the source.
mod reason {
    /// The content has another digest.
    pub(super) const DIGEST: u32 = 2;
    /// The download itself failed.
    pub(super) const DOWNLOAD: u32 = 3;
    /// There is no space.
    pub(super) const NO_SPACE: u32 = 4;
    /// The output could not be written.
    pub(super) const WRITE: u32 = 6;
    /// The origin failed.
    pub(super) const SOURCE: u32 = 10;
    /// Added when the origin was needed but must not be read.
    pub(super) const FORCED: u32 = 1000;
}

/// Carries out a download. With `may_write` the output is written here; otherwise its bytes are among the events.
/// Dropping the receiver cancels the download.
#[must_use]
pub fn carry_out(
    engine: Engine,
    shares: &Shares,
    request: wire::DownloadRequest,
    may_write: bool,
) -> mpsc::Receiver<wire::DownloadEvent> {
    let (events, queue) = mpsc::channel(EVENTS_MAX);
    let shares = shares.clone();
    tokio::spawn(async move {
        let gone = events.clone();
        tokio::select! {
            result = download(&engine, &shares, request, may_write, &events) => {
                if let Err(failure) = result {
                    tell(&events, Event::Failed(failure.told())).await;
                }
            }
            // dfget went away: dropping the task stops its download.
            () = gone.closed() => {}
        }
    });
    queue
}

async fn download(
    engine: &Engine,
    shares: &Shares,
    request: wire::DownloadRequest,
    trusted: bool,
    events: &mpsc::Sender<wire::DownloadEvent>,
) -> Result<(), Failure> {
    let never_origin = request.disable_back_to_source;
    let invalid = |what: &str| {
        Failure::of_download(TaskError::new(Kind::Invalid, format!("the request is not valid: {what}")), false)
    };
    let route = match request.route() {
        wire::download_request::Route::P2p => Route::P2p,
        wire::download_request::Route::SeedOnly => Route::SeedOnly,
        wire::download_request::Route::OriginOnly => Route::OriginOnly,
    };
    let spec: TaskSpec = request.spec.ok_or_else(|| invalid("spec"))?.try_into().map_err(|_| invalid("spec"))?;
    let given = |rate: u64| (rate > 0).then_some(rate);
    let share = Share {
        total: given(request.total_rate_bytes_per_s),
        own: given(request.rate_bytes_per_s),
        min: given(request.rate_min_bytes_per_s),
    };
    let open = OpenRequest {
        spec,
        headers: headers::from_wire(&request.headers),
        route,
        priority: request.priority,
        never_origin: request.disable_back_to_source,
        rate_bytes_per_s: share.own,
    };
    let output = (!request.output.is_empty()).then(|| PathBuf::from(&request.output));
    if output.is_some() && !trusted {
        let message = "this daemon writes files for root and for its own user only; take the bytes over the socket";
        return Err(Failure::of_output(TaskError::new(Kind::Forbidden, message)));
    }
    if let Some(output) = &output
        && !output.is_absolute()
    {
        return Err(invalid("output must be an absolute path"));
    }
    let how = Export {
        overwrite: request.overwrite,
        force_hard_link: request.force_hard_link,
        offset: request.original_offset.then(|| open.spec.range.map_or(0, proto::ByteRange::start)),
        owner: Some((request.uid, request.gid)),
        mode: None,
    };
    let work = async {
        let task = engine.open(open).await.map_err(|error| Failure::of_download(error, never_origin))?;
        let _member = shares.join(share, &task);
        started(&task, events).await;
        match output {
            Some(output) => write_output(&task, &output, how, events, never_origin).await,
            None => stream_output(&task, events).await.map_err(|error| Failure::of_download(error, never_origin)),
        }
    };
    if request.timeout_ms == 0 {
        return work.await;
    }
    let deadline = Duration::from_millis(request.timeout_ms.into());
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| {
        let error = TaskError::new(Kind::Unavailable, format!("the download did not finish within {deadline:?}"));
        Err(Failure::of_download(error, false))
    })
}

async fn started(task: &Task, events: &mpsc::Sender<wire::DownloadEvent>) {
    let info = task.info();
    let meta = wire::TaskMeta {
        task_id: info.task.to_bytes().to_vec().into(),
        generation: info.generation.to_bytes().to_vec().into(),
        length: task.length(),
        guarded: info.guarded,
        headers: headers::to_wire(&info.headers),
        ..wire::TaskMeta::default()
    };
    tell(events, Event::Started(wire::DownloadStarted { meta: Some(meta), from_cache: info.from_cache })).await;
}

async fn write_output(
    task: &Task,
    output: &Path,
    how: Export,
    events: &mpsc::Sender<wire::DownloadEvent>,
    never_origin: bool,
) -> Result<(), Failure> {
    let mut every = tokio::time::interval(PROGRESS_EVERY);
    every.tick().await;
    let complete = task.complete();
    tokio::pin!(complete);
    let length = loop {
        tokio::select! {
            result = &mut complete => break result.map_err(|error| Failure::of_download(error, never_origin))?,
            _ = every.tick() => tell(events, Event::Progress(progress(task.progress()))).await,
        }
    };
    let by = task.export(None, output, how).await.map_err(Failure::of_output)?;
    let by = match by.way {
        Way::Reflink => "reflink",
        Way::HardLink => "hardlink",
        Way::Copy => "copy",
    };
    info!(task = ?task.info().task, output = %output.display(), by, "output written");
    tell(events, Event::Done(done(task, length, by))).await;
    Ok(())
}

async fn stream_output(task: &Task, events: &mpsc::Sender<wire::DownloadEvent>) -> Result<(), TaskError> {
    let mut reader = task.reader(None);
    let mut told = tokio::time::Instant::now();
    let mut length = 0;
    while let Some(bytes) = reader.next().await.transpose()? {
        length += bytes.len() as u64;
        tell(events, Event::Data(bytes)).await;
        if told.elapsed() > PROGRESS_EVERY {
            told = tokio::time::Instant::now();
            tell(events, Event::Progress(progress(task.progress()))).await;
        }
    }
    tell(events, Event::Done(done(task, length, "stream"))).await;
    Ok(())
}

async fn tell(events: &mpsc::Sender<wire::DownloadEvent>, body: Event) {
    // Nobody to tell is noticed by whoever started the download.
    let _ = events.send(wire::DownloadEvent { body: Some(body) }).await;
}

const fn progress(progress: Progress) -> wire::DownloadProgress {
    let Progress { bytes, from_peers, from_origin, from_cache } = progress;
    wire::DownloadProgress { bytes, from_peers, from_origin, from_cache }
}

fn done(task: &Task, length: u64, by: &str) -> wire::DownloadDone {
    let Progress { from_peers, from_origin, from_cache, .. } = task.progress();
    wire::DownloadDone { length, from_peers, from_origin, from_cache, output_by: by.to_owned() }
}

impl Failure {
    fn of_download(error: TaskError, never_origin: bool) -> Self {
        let reason = match error.kind() {
            Kind::Corrupt => reason::DIGEST,
            Kind::NoSpace => reason::NO_SPACE,
            Kind::Unavailable if never_origin => reason::FORCED + reason::SOURCE,
            _ if error.origin().is_some() => reason::SOURCE,
            _ => reason::DOWNLOAD,
        };
        Self { error, reason }
    }

    fn of_output(error: TaskError) -> Self {
        let reason = if error.kind() == Kind::NoSpace { reason::NO_SPACE } else { reason::WRITE };
        Self { error, reason }
    }

    fn told(&self) -> wire::DownloadFailed {
        let kind = match self.error.kind() {
            // To dfget a conflict is an output that exists; a content that changed under way may be asked for again.
            Kind::Conflict if self.reason != reason::WRITE => Kind::Unavailable,
            kind => kind,
        };
        wire::DownloadFailed {
            kind: wire::Kind::from(kind).into(),
            message: self.error.to_string(),
            origin_status: self.error.origin().map_or(0, |origin| u32::from(origin.status)),
            reason: self.reason,
        }
    }
}
