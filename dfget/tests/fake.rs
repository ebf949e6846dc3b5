//! A dfdaemon that serves files of a folder by the last part of the URL, and fails as a test tells it to.

use std::collections::VecDeque;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use peer::rpc::daemon_server::{Daemon, DaemonServer};
use proto::wire;
use proto::wire::download_event::Body;
use tokio::net::UnixListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

const CHUNK: usize = 64 << 10;

/// What the daemon does with its next download.
#[derive(Clone, Debug)]
pub(crate) enum Deed {
    Serve,
    Fail {
        kind: wire::Kind,
        status: u32,
        reason: u32,
    },
    Refuse(tonic::Code),
    /// Sends so many bytes, or writes them into its own temporary file, and then no more, ever.
    StopAfter(usize),
    /// Ends the stream without a word.
    HangUp,
    /// Claims another length than it sends.
    Lie,
}

#[derive(Debug, Default)]
pub(crate) struct Shared {
    pub(crate) deeds: Mutex<VecDeque<Deed>>,
    pub(crate) requests: Mutex<Vec<wire::DownloadRequest>>,
    pub(crate) callers: Mutex<Vec<Vec<u8>>>,
    /// Downloads whose stream was dropped by the client or the runtime.
    pub(crate) cancelled: Mutex<u32>,
    pub(crate) most_at_once: Mutex<(u32, u32)>,
}

/// A running daemon. Dropping it is a `kill -9`: connections break, nothing is tidied up.
pub(crate) struct Fake {
    runtime: Option<tokio::runtime::Runtime>,
}

struct Service {
    folder: PathBuf,
    shared: Arc<Shared>,
}

impl Fake {
    pub(crate) fn start(socket: &Path, folder: &Path, shared: Arc<Shared>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _ = std::fs::remove_file(socket);
        let listener = runtime.block_on(async { UnixListener::bind(socket).unwrap() });
        let service = DaemonServer::new(Service { folder: folder.to_owned(), shared });
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let service = TowerToHyperService::new(service.clone());
                // Ends with the runtime, as everything here.
                tokio::spawn(async move {
                    Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await
                });
            }
        });
        Self { runtime: Some(runtime) }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

type EventStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<wire::DownloadEvent, Status>> + Send>>;
type Sender = tokio::sync::mpsc::Sender<Result<wire::DownloadEvent, Status>>;

#[tonic::async_trait]
impl Daemon for Service {
    type DownloadStream = EventStream;

    async fn download(&self, request: Request<wire::DownloadRequest>) -> Result<Response<EventStream>, Status> {
        if let Some(caller) = request.metadata().get_bin("skimmer-caller-bin") {
            self.shared.callers.lock().push(caller.to_bytes().unwrap().to_vec());
        }
        let request = request.into_inner();
        self.shared.requests.lock().push(request.clone());
        let deed = self.shared.deeds.lock().pop_front().unwrap_or(Deed::Serve);
        if let Deed::Refuse(code) = deed {
            return Err(Status::new(code, "no"));
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let shared = Arc::clone(&self.shared);
        let folder = self.folder.clone();
        tokio::spawn(async move {
            {
                let mut at_once = shared.most_at_once.lock();
                at_once.0 += 1;
                at_once.1 = at_once.1.max(at_once.0);
            }
            if carry_out(&folder, &request, deed, &sender).await.is_err() {
                *shared.cancelled.lock() += 1;
            }
            shared.most_at_once.lock().0 -= 1;
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn info(&self, _: Request<wire::InfoRequest>) -> Result<Response<wire::InfoReply>, Status> {
        Ok(Response::new(wire::InfoReply::default()))
    }
}

async fn say(sender: &Sender, body: Body) -> Result<(), ()> {
    sender.send(Ok(wire::DownloadEvent { body: Some(body) })).await.map_err(drop)
}

async fn carry_out(folder: &Path, request: &wire::DownloadRequest, deed: Deed, sender: &Sender) -> Result<(), ()> {
    let spec = request.spec.clone().unwrap();
    let name = spec.url.split('?').next().unwrap().rsplit('/').next().unwrap().to_owned();
    let content = std::fs::read(folder.join(name));
    let fail = |kind: wire::Kind, status: u32, reason: u32| wire::DownloadFailed {
        kind: kind.into(),
        message: format!("the fake fails with {}", kind.as_str_name().to_lowercase()),
        origin_status: status,
        reason,
    };
    let content = match (deed.clone(), content) {
        (Deed::Fail { kind, status, reason }, _) => return say(sender, Body::Failed(fail(kind, status, reason))).await,
        (_, Err(_)) => return say(sender, Body::Failed(fail(wire::Kind::NotFound, 404, 0))).await,
        (_, Ok(content)) => match (spec.range_start, spec.range_end) {
            (Some(start), Some(end)) => content[start as usize..(end as usize).min(content.len())].to_vec(),
            _ => content,
        },
    };
    let length = content.len() as u64;
    let meta = wire::TaskMeta {
        task_id: vec![1; 32].into(),
        generation: vec![2; 16].into(),
        length: Some(length),
        ..Default::default()
    };
    say(sender, Body::Started(wire::DownloadStarted { meta: Some(meta), from_cache: false })).await?;
    let mut part = (!request.output.is_empty()).then(|| Part::beside(Path::new(&request.output)));
    let mut sent = 0;
    for chunk in content.chunks(CHUNK) {
        if let Deed::StopAfter(bytes) = deed
            && sent >= bytes
        {
            sender.closed().await;
            return Err(());
        }
        match &mut part {
            Some(part) => part.0.write_all(chunk).unwrap(),
            None => say(sender, Body::Data(Bytes::copy_from_slice(chunk))).await?,
        }
        sent += chunk.len();
        let progress =
            wire::DownloadProgress { bytes: sent as u64, from_peers: sent as u64, from_origin: 0, from_cache: 0 };
        say(sender, Body::Progress(progress)).await?;
    }
    match deed {
        Deed::HangUp => return Ok(()),
        Deed::Lie => {
            return say(sender, Body::Done(wire::DownloadDone { length: length + 1, ..Default::default() })).await;
        }
        _ => {}
    }
    // Long enough for downloads at the same time to overlap.
    tokio::time::sleep(Duration::from_millis(5)).await;
    if let Some(part) = part
        && let Some(failed) = part.place(request)
    {
        return say(sender, Body::Failed(failed)).await;
    }
    say(
        sender,
        Body::Done(wire::DownloadDone {
            length,
            from_peers: length,
            from_origin: 0,
            from_cache: 0,
            output_by: "copy".into(),
        }),
    )
    .await
}

/// The daemon's own temporary file.
struct Part(std::fs::File, PathBuf);

impl Part {
    fn beside(output: &Path) -> Self {
        let path = output.with_file_name(format!(".daemon-{}", output.file_name().unwrap().to_str().unwrap()));
        Self(std::fs::File::create(&path).unwrap(), path)
    }

    fn place(self, request: &wire::DownloadRequest) -> Option<wire::DownloadFailed> {
        let output = Path::new(&request.output);
        if request.original_offset {
            use std::os::unix::fs::FileExt as _;
            let file = std::fs::OpenOptions::new().write(true).open(output).unwrap();
            file.write_all_at(&std::fs::read(&self.1).unwrap(), request.spec.as_ref().unwrap().range_start.unwrap())
                .unwrap();
            return None;
        }
        if !request.overwrite && output.is_file() {
            return Some(wire::DownloadFailed {
                kind: wire::Kind::Conflict.into(),
                message: "it exists".into(),
                origin_status: 0,
                reason: 6,
            });
        }
        std::fs::rename(&self.1, output).unwrap();
        None
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.1);
    }
}
