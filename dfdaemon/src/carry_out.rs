//! Carrying out dfget's downloads with an engine: the daemon's, or one in dfget's own process.

use std::path::{Path, PathBuf};
use std::time::Duration;

use peer::engine::{Engine, OpenRequest, Progress, Route, Task, TaskError, headers};
use peer::store::{Export, Way};
use proto::wire::download_event::Body as Event;
use proto::{Kind, TaskSpec, wire};
use tokio::sync::mpsc;
use tracing::info;

/// Events waiting for one dfget at most; streamed bytes are among them, so this bounds memory.
const EVENTS_MAX: usize = 8;
/// Progress is told so often.
const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Carries out a download. With `may_write` the output is written here; otherwise its bytes are among the events.
/// Dropping the receiver cancels the download.
#[must_use]
pub fn carry_out(
    engine: Engine,
    request: wire::DownloadRequest,
    may_write: bool,
) -> mpsc::Receiver<wire::DownloadEvent> {
    let (events, queue) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(async move {
        let gone = events.clone();
        tokio::select! {
            result = download(&engine, request, may_write, &events) => {
                if let Err(error) = result {
                    tell(&events, Event::Failed(failed(&error))).await;
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
    request: wire::DownloadRequest,
    trusted: bool,
    events: &mpsc::Sender<wire::DownloadEvent>,
) -> Result<(), TaskError> {
    let invalid = |what: &str| TaskError::new(Kind::Invalid, format!("the request is not valid: {what}"));
    let route = match request.route() {
        wire::download_request::Route::P2p => Route::P2p,
        wire::download_request::Route::SeedOnly => Route::SeedOnly,
        wire::download_request::Route::OriginOnly => Route::OriginOnly,
    };
    let spec: TaskSpec = request.spec.ok_or_else(|| invalid("spec"))?.try_into().map_err(|_| invalid("spec"))?;
    let open = OpenRequest {
        spec,
        headers: headers::from_wire(&request.headers),
        route,
        priority: request.priority,
        never_origin: request.disable_back_to_source,
        rate_bytes_per_s: (request.rate_bytes_per_s > 0).then_some(request.rate_bytes_per_s),
    };
    let output = (trusted && !request.output.is_empty()).then(|| PathBuf::from(&request.output));
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
        let task = engine.open(open).await?;
        started(&task, events).await;
        match output {
            Some(output) => write_output(&task, &output, how, events).await,
            None => stream_output(&task, events).await,
        }
    };
    if request.timeout_ms == 0 {
        return work.await;
    }
    let deadline = Duration::from_millis(request.timeout_ms.into());
    tokio::time::timeout(deadline, work).await.unwrap_or_else(|_| {
        Err(TaskError::new(Kind::Unavailable, format!("the download did not finish within {deadline:?}")))
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
) -> Result<(), TaskError> {
    let mut every = tokio::time::interval(PROGRESS_EVERY);
    every.tick().await;
    let complete = task.complete();
    tokio::pin!(complete);
    let length = loop {
        tokio::select! {
            result = &mut complete => break result?,
            _ = every.tick() => tell(events, Event::Progress(progress(task.progress()))).await,
        }
    };
    let by = task.export(None, output, how).await?;
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

fn failed(error: &TaskError) -> wire::DownloadFailed {
    wire::DownloadFailed {
        kind: wire::Kind::from(error.kind()).into(),
        message: error.to_string(),
        origin_status: error.origin().map_or(0, |origin| u32::from(origin.status)),
        reason: 0,
    }
}
