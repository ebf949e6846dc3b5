//! A peer that joins a cluster, says that it holds a task, and serves it with flipped bits.

use std::{
    net::SocketAddr,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use peer::{
    limit::Limit,
    rpc::cluster_client::ClusterClient,
    transport::{Frame, Kind, Purpose, Receiver, Sender, Transport, TransportConfig},
};
use proto::{
    Generation, HostId, PROTOCOL_VERSION, PROTOCOL_VERSION_MIN, PieceIndex, PieceLayout, PieceSet, TaskId, wire,
    wire::{frame::Body, from_daemon::Body as Say, from_supernode::Body as Said},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;

use crate::Host;

/// Messages to the supernode that wait at most; a liar has little to say.
const QUEUE_MAX: usize = 16;
/// To reach the supernode and be welcomed.
const JOIN_DEADLINE: Duration = Duration::from_secs(10);

/// What a liar says it holds.
#[derive(Debug, Clone)]
pub struct Lie {
    /// The task.
    pub task: TaskId,
    /// Its generation.
    pub generation: Generation,
    /// How it is cut into pieces.
    pub layout: PieceLayout,
    /// What it has under that name: its lies, or true bytes.
    pub bytes: Vec<u8>,
}

/// A running liar. Ends, and leaves the cluster without a word, when dropped.
#[derive(Debug)]
pub struct LyingPeer {
    id: HostId,
    served: Arc<Mutex<Vec<Served>>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A piece that a liar sent.
#[derive(Debug, Clone, Copy)]
pub struct Served {
    /// To whom.
    pub to: HostId,
    /// Of which task.
    pub task: TaskId,
    /// Which piece.
    pub piece: PieceIndex,
    /// When it was asked for.
    pub at: Instant,
}

#[derive(Debug)]
struct Shop {
    lies: Vec<(Lie, std::fs::File)>,
    served: Arc<Mutex<Vec<Served>>>,
}

impl Lie {
    /// Of a content in these pieces, with one bit of every piece flipped, each at another place.
    ///
    /// # Errors
    /// When the layout has no length, or another one than the content.
    pub fn flipped(task: TaskId, generation: Generation, layout: PieceLayout, content: &[u8]) -> Result<Self> {
        let mut bytes = content.to_vec();
        for piece in 0..layout.count().context("a liar has to know the length")? {
            let range = layout.range(PieceIndex(piece)).context("a piece beyond the end")?;
            let at = range.start() + u64::from(piece).wrapping_mul(7919) % range.len();
            *bytes.get_mut(usize::try_from(at)?).context("layout and content have different lengths")? ^=
                1 << (piece % 8);
        }
        Ok(Self { task, generation, layout, bytes })
    }
}

impl LyingPeer {
    /// Starts one on this host, listening by these transports, and returns when the supernode knows what it says.
    ///
    /// # Errors
    /// When the supernode does not welcome it.
    pub fn start(host: &Host, supernode: SocketAddr, kinds: &[Kind], lies: Vec<Lie>) -> Result<Self> {
        let id = HostId::new(rand::random());
        let served = Arc::<Mutex<Vec<Served>>>::default();
        let with_files = lies.into_iter().map(|lie| {
            use std::io::Write;
            let mut file = tempfile::tempfile()?;
            file.write_all(&lie.bytes)?;
            Ok((lie, file))
        });
        let shop = Arc::new(Shop { lies: with_files.collect::<Result<_>>()?, served: Arc::clone(&served) });
        let (stop, stopped) = oneshot::channel();
        let (started, start) = std::sync::mpsc::sync_channel(1);
        let (inside, kinds) = (host.clone(), kinds.to_vec());
        let work = move || {
            inside.enter()?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async move {
                let config = TransportConfig {
                    listen: vec![SocketAddr::new(inside.ip(), 0)],
                    kinds,
                    ..TransportConfig::default()
                };
                let local = wire::HostInfo {
                    host_id: id.to_bytes().to_vec().into(),
                    hostname: "liar".to_owned(),
                    ..wire::HostInfo::default()
                };
                let transport = Transport::bind(config, local).await?;
                let joined = tokio::time::timeout(JOIN_DEADLINE, join(&transport, supernode, &shop)).await;
                let (say, mut said) = joined.context("the supernode did not answer")??;
                let _ = started.send(());
                tokio::select! {
                    () = serve(&transport, &shop) => {}
                    // It only has to be listened to.
                    () = async { while let Ok(Some(_)) = said.message().await {} } => {}
                    _ = stopped => {}
                }
                drop(say);
                anyhow::Ok(())
            })
        };
        let thread = std::thread::Builder::new().name("liar".into()).spawn(move || {
            if let Err(error) = work() {
                eprintln!("lying peer: {error:#}");
            }
        })?;
        start.recv().context("the lying peer did not start")?;
        Ok(Self { id, served, stop: Some(stop), thread: Some(thread) })
    }

    /// Who it says it is.
    #[must_use]
    pub const fn id(&self) -> HostId {
        self.id
    }

    /// What it sent so far, oldest first.
    #[must_use]
    pub fn served(&self) -> Vec<Served> {
        self.served.lock().clone()
    }
}

impl Drop for LyingPeer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn join(
    transport: &Transport,
    supernode: SocketAddr,
    shop: &Shop,
) -> Result<(mpsc::Sender<wire::FromDaemon>, tonic::Streaming<wire::FromSupernode>)> {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{supernode}"))?.connect().await?;
    let (say, queue) = mpsc::channel(QUEUE_MAX);
    let hello = wire::SessionHello {
        version_min: PROTOCOL_VERSION_MIN,
        version_max: PROTOCOL_VERSION,
        host: Some(transport.local().clone()),
        inventory_total: u32::try_from(shop.lies.len())?,
    };
    say.send(wire::FromDaemon { body: Some(Say::Hello(hello)) }).await?;
    let mut said = ClusterClient::new(channel).session(ReceiverStream::new(queue)).await?.into_inner();
    match said.message().await?.and_then(|message| message.body) {
        Some(Said::Welcome(welcome)) if welcome.refused.is_empty() => {}
        other => bail!("no welcome but {other:?}"),
    }
    let items = shop.lies.iter().map(|(lie, _)| wire::inventory::Item {
        task_id: lie.task.to_bytes().to_vec().into(),
        generation: lie.generation.to_bytes().to_vec().into(),
        complete: true,
        pieces: lie.layout.count().unwrap_or(0),
        downloading: false,
    });
    let inventory = wire::Inventory { items: items.collect(), last: true };
    say.send(wire::FromDaemon { body: Some(Say::Inventory(inventory)) }).await?;
    Ok((say, said))
}

async fn serve(transport: &Transport, shop: &Arc<Shop>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = transport.accept().await;
        let Ok(to) = accepted.remote.id() else { continue };
        let shop = Arc::clone(shop);
        let (sender, receiver) = accepted.channel.split();
        connections.spawn(async move {
            // A connection that breaks is the other side's choice.
            let _ = match accepted.purpose {
                Purpose::Control => control(&shop, sender, receiver).await,
                Purpose::Data => data(&shop, to, sender, receiver).await,
            };
        });
        while connections.try_join_next().is_some() {}
    }
}

impl Shop {
    fn find(&self, task: &[u8], generation: &[u8]) -> Option<&(Lie, std::fs::File)> {
        self.lies.iter().find(|(lie, _)| lie.task.to_bytes() == task && lie.generation.to_bytes() == generation)
    }
}

async fn control(shop: &Shop, mut sender: Sender, mut receiver: Receiver) -> Result<()> {
    loop {
        let answer = match receiver.recv().await?.body {
            Some(Body::Ping(ping)) => Body::Pong(wire::Pong { nonce: ping.nonce }),
            Some(Body::Subscribe(asked)) => {
                let lie = shop.find(&asked.task_id, &asked.generation);
                let pieces = lie.and_then(|(lie, _)| lie.layout.count()).map(PieceSet::full);
                Body::Have(wire::Have {
                    gone: pieces.is_none(),
                    added: pieces.map(|pieces| pieces.to_runs()),
                    replaces: true,
                    task_id: asked.task_id,
                    generation: asked.generation,
                    // Faster than any honest host: so it is asked first.
                    upload_kib_per_s: 1024 * 1024,
                    ..wire::Have::default()
                })
            }
            _ => continue,
        };
        sender.send(&Frame { body: Some(answer) }).await?;
    }
}

async fn data(shop: &Shop, to: HostId, mut sender: Sender, mut receiver: Receiver) -> Result<()> {
    let limit = Limit::new(None);
    loop {
        let Some(Body::Request(request)) = receiver.recv().await?.body else { bail!("no request") };
        let piece = PieceIndex(request.piece);
        let found = shop.find(&request.task_id, &request.generation);
        let found = found.and_then(|(lie, file)| Some((lie, file, lie.layout.range(piece)?)));
        let answer = |status: wire::piece::Status, length: u64| Frame {
            body: Some(Body::Piece(wire::Piece {
                id: request.id,
                status: status.into(),
                length: u32::try_from(length).unwrap_or(u32::MAX),
                queued_bytes_kib: 0,
            })),
        };
        let Some((lie, file, range)) = found else {
            sender.send(&answer(wire::piece::Status::Missing, 0)).await?;
            continue;
        };
        shop.served.lock().push(Served { to, task: lie.task, piece, at: Instant::now() });
        sender.send_content(&answer(wire::piece::Status::Ok, range.len()), file, range, &limit).await?;
    }
}
