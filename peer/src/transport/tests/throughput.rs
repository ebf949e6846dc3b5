//! How fast, on loopback. Not run by default: `cargo test --release -p peer throughput -- --ignored --nocapture`.

use tokio::time::Instant;

use super::*;
use crate::limit::Limit;

const FILE_BYTES: u64 = 1 << 30;
const PIECE_BYTES: u64 = 4 << 20;

async fn measure(file: &Arc<File>, kind: Kind, congestion: Option<&str>, channels: u64, limit: Limit) {
    let config = TransportConfig { congestion: congestion.map(Into::into), ..config(&[kind]) };
    let (a, b) = (bind(1, config.clone()).await, bind(2, config).await);
    let cpu = cpu_seconds();
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for channel in 0..channels {
        let (dialled, accepted) = join(&a, &b, Purpose::Data).await;
        let (file, limit) = (Arc::clone(file), limit.clone());
        tasks.spawn(async move {
            let (mut sender, _keep) = dialled.split();
            let header = piece(u32::try_from(PIECE_BYTES).expect("fits"));
            // Every byte of the file once: a piece sent again and again would only measure the processor's cache.
            for at in (channel..FILE_BYTES / PIECE_BYTES).step_by(usize::try_from(channels).expect("few")) {
                let (start, end) = (at * PIECE_BYTES, (at + 1) * PIECE_BYTES);
                sender.send_content(&header, &file, range(start, end), &limit).await.expect("sent");
            }
            sender.finish().await.expect("finished");
            0
        });
        tasks.spawn(async move {
            let (_keep, mut receiver) = accepted.split();
            let mut out = vec![0; 256 * 1024];
            let mut got = 0;
            loop {
                let frame = match receiver.recv().await {
                    Ok(frame) => frame,
                    Err(RecvError::Closed) => return got,
                    Err(error) => panic!("{error:?}"),
                };
                let Some(Body::Piece(piece)) = frame.body else { panic!("no piece") };
                let mut left = piece.length as usize;
                while left > 0 {
                    let want = out.len().min(left);
                    left -= receiver.recv_some(&mut out[..want]).await.expect("received");
                }
                got += u64::from(piece.length);
            }
        });
    }
    let got: u64 = tasks.join_all().await.into_iter().sum();
    assert_eq!(got, FILE_BYTES);
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let gigabytes = FILE_BYTES as f64 / 1e9;
    println!(
        "{kind} {} {channels} channels: {:.2} GB/s, {:.2} cpu-s/GB",
        congestion.unwrap_or("-"),
        gigabytes / seconds,
        cpu / gigabytes
    );
}

/// What the process's threads have run, to the nanosecond: ticks of 10 ms are too coarse for runs of 100 ms.
/// Threads that ended are not in it; the runtime's live longer than a run.
fn cpu_seconds() -> f64 {
    let threads = std::fs::read_dir("/proc/self/task").expect("linux");
    let nanos = threads.filter_map(|thread| {
        let text = std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    nanos.sum::<u64>() as f64 / 1e9
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn throughput() {
    let file = tempfile::tempfile().expect("a file");
    let mut block = pattern(usize::try_from(PIECE_BYTES).expect("fits"));
    for at in 0..FILE_BYTES / PIECE_BYTES {
        block[..8].copy_from_slice(&at.to_le_bytes());
        (&file).write_all(&block).expect("written");
    }
    let file = Arc::new(file);
    let limited = || Limit::new(Some(20_000_000_000)).child(None);
    for _round in 0..3 {
        for channels in [1, 4] {
            measure(&file, Kind::Tcp, Some("cubic"), channels, Limit::unlimited()).await;
            measure(&file, Kind::Tcp, Some("bbr"), channels, Limit::unlimited()).await;
            measure(&file, Kind::Tcp, Some("cubic"), channels, limited()).await;
            measure(&file, Kind::Quic, None, channels, Limit::unlimited()).await;
        }
    }
}
