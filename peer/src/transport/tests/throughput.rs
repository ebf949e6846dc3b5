//! How fast, on loopback. Not run by default: `cargo test --release -p peer throughput -- --ignored --nocapture`.

use tokio::time::Instant;

use super::*;
use crate::limit::Limit;

const FILE_BYTES: u64 = 1 << 30;
const PIECE_BYTES: u64 = 4 << 20;

async fn measure(kind: Kind, congestion: Option<&str>, channels: u64, limit: Limit) {
    let config = TransportConfig { congestion: congestion.map(Into::into), ..config(&[kind]) };
    let (a, b) = (bind(1, config.clone()).await, bind(2, config).await);
    let file = Arc::new(file_of(&pattern(usize::try_from(PIECE_BYTES).expect("fits"))));
    let cpu = cpu_seconds();
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..channels {
        let (dialled, accepted) = join(&a, &b, Purpose::Data).await;
        let (file, limit) = (Arc::clone(&file), limit.clone());
        tasks.spawn(async move {
            let (mut sender, _keep) = dialled.split();
            let header = piece(u32::try_from(PIECE_BYTES).expect("fits"));
            for _ in 0..FILE_BYTES / PIECE_BYTES / channels {
                sender.send_content(&header, &file, range(0, PIECE_BYTES), &limit).await.expect("sent");
            }
            sender.finish().await.expect("finished");
        });
        tasks.spawn(async move {
            let (_keep, mut receiver) = accepted.split();
            let mut out = vec![0; 256 * 1024];
            while let Ok(frame) = receiver.recv().await {
                let Some(Body::Piece(piece)) = frame.body else { panic!("no piece") };
                let mut left = piece.length as usize;
                while left > 0 {
                    let want = out.len().min(left);
                    left -= receiver.recv_some(&mut out[..want]).await.expect("received");
                }
            }
        });
    }
    tasks.join_all().await;
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let gigabytes = FILE_BYTES as f64 / 1e9;
    println!(
        "{kind} {} {channels} channels: {:.2} GB/s, {:.2} cpu-s/GB",
        congestion.unwrap_or("-"),
        gigabytes / seconds,
        cpu / gigabytes
    );
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("linux");
    // User and system time, in ticks, which Linux fixes at 100 a second for everyone.
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("after the name").split(' ').collect();
    [fields[11], fields[12]].iter().map(|ticks| ticks.parse::<f64>().expect("a number") / 100.0).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput() {
    for channels in [1, 4] {
        measure(Kind::Tcp, Some("cubic"), channels, Limit::unlimited()).await;
        measure(Kind::Tcp, None, channels, Limit::unlimited()).await;
        measure(Kind::Tcp, Some("cubic"), channels, Limit::new(Some(20_000_000_000)).child(None)).await;
        measure(Kind::Quic, None, channels, Limit::unlimited()).await;
    }
}
