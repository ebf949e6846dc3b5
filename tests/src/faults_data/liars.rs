//! A peer serves flipped bits.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::{Daemon, FileServer, FileServerOptions, Lie, LyingPeer, Run, TransportKind as Kind};
use proto::PieceLayout;

use super::probe::{self, SETTLE, proxied, same};
use crate::runner::{CaseResult, Outcome};

/// The file, in bytes: 128 pieces.
const LENGTH: usize = 8 << 20;
/// The seed gives so little that a host which believed the liar would take everything from it.
const SLOW_SEED: &str = "[rates]\nupload = \"1MiB/s\"\n";
/// Requests that were on their way when the first bad piece came.
const UNDER_WAY: Duration = Duration::from_secs(2);

pub(super) fn over_tcp(run: &Run) -> CaseResult {
    lies(run, "tcp", Kind::Tcp)
}

pub(super) fn over_quic(run: &Run) -> CaseResult {
    lies(run, "quic", Kind::Quic)
}

fn lies(run: &Run, transport: &str, kind: Kind) -> CaseResult {
    let names = ["liar", "h1", "h2", "h3", "h4"];
    let net = probe::net(&names)?;
    let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    std::fs::create_dir(files.root().join("p2p"))?;
    let contents = [probe::content(LENGTH, 11), probe::content(LENGTH, 12)];
    for (number, content) in contents.iter().enumerate() {
        std::fs::write(files.root().join(format!("p2p/{number}")), content)?;
    }
    let url = |number: usize| files.url(&format!("p2p/{number}"));
    let only = format!("[peer]\ntransports = [\"{transport}\"]\n");
    let supernode = format!("{SLOW_SEED}{only}");
    let cluster = probe::cluster(&net, run, &names[1..], &supernode, &only)?;
    let [first, honest @ ..] = cluster.daemons.as_slice() else { unreachable!("four were described") };

    // So that the supernode knows both files, and the liar can say that it has them, too.
    let mut told = Vec::new();
    for (number, content) in contents.iter().enumerate() {
        same(&proxied(first).get(&url(number))?.body, content)?;
        let task = probe::task_of(&cluster.supernodes[0], &url(number))?;
        let layout = PieceLayout::new(task.length, task.piece_len).context("an impossible piece length")?;
        told.push(Lie::flipped(task.task_id, task.generation.context("no generation")?, layout, content)?);
    }
    let tasks = [told[0].task, told[1].task];
    let liar = LyingPeer::start(&net.host("liar"), cluster.supernodes[0].addr(), &[kind], told)?;

    for (number, daemon) in honest.iter().enumerate() {
        let before = liar.served().len();
        same(&proxied(daemon).get(&url(0))?.body, &contents[0])?;
        let served = liar.served().split_off(before);
        ensure!(!served.is_empty(), "{} never asked the liar: nothing was tested", daemon.host().name());
        let spread = served[served.len() - 1].at.duration_since(served[0].at);
        ensure!(spread < UNDER_WAY, "the liar was still asked {spread:?} after it was first");
        is_named(daemon, &liar)?;
        ensure!(number < 2 || served.len() < 64, "half of the file was asked of the liar");
        // Told off by this host, the liar is not asked by it for another file either.
        let before = Instant::now();
        same(&proxied(daemon).get(&url(1))?.body, &contents[1])?;
        let again: Vec<_> = liar.served().into_iter().filter(|s| s.task == tasks[1] && s.at > before).collect();
        let id = again.iter().filter(|s| Some(s.to) == served.first().map(|s| s.to)).count();
        ensure!(id == 0, "{} asked the liar for {id} pieces of another file", daemon.host().name());
    }
    // Three hosts complained: nobody is given the liar as a neighbour any more.
    let seen = probe::hosts(&cluster.supernodes[0])?.into_iter().find(|host| host.host_id == liar.id());
    let reports = seen.context("the supernode does not know the liar")?.bad_pieces;
    ensure!(reports >= 3, "the supernode counts {reports} reports");
    Ok(Outcome::Passed)
}

fn is_named(daemon: &Daemon, liar: &LyingPeer) -> anyhow::Result<()> {
    let bad = probe::metric(daemon, "skimmer_peer_bad_pieces_total")?;
    let distrusted = probe::metric(daemon, "skimmer_peer_distrusted_peers_total")?;
    ensure!(bad >= 1 && distrusted >= 1, "{bad} bad pieces and {distrusted} distrusted peers are counted");
    let log = daemon.log()?;
    let id = liar.id().to_string();
    let named = |text: &str| log.lines().any(|line| line.contains(text) && line.contains(&id));
    ensure!(named("bad piece") && named("no longer used"), "the log does not name {id}");
    Ok(())
}

/// A disk that forgets: a daemon's stored content changes under its feet, and it sends what it finds.
pub(super) fn rotten_disk(run: &Run) -> CaseResult {
    let net = probe::net(&["rotten", "h1", "h2"])?;
    let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
    std::fs::create_dir(files.root().join("p2p"))?;
    let content = probe::content(LENGTH, 13);
    std::fs::write(files.root().join("p2p/file"), &content)?;
    let url = files.url("p2p/file");
    let cluster = probe::cluster(&net, run, &["rotten", "h1", "h2"], SLOW_SEED, "")?;
    let [rotten, honest @ ..] = cluster.daemons.as_slice() else { unreachable!("three were described") };
    same(&proxied(rotten).get(&url)?.body, &content)?;
    let stored = probe::stored(rotten);
    let [path] = stored.as_slice() else { anyhow::bail!("{} stored contents instead of one", stored.len()) };
    flip_everywhere(path)?;
    for daemon in honest {
        same(&proxied(daemon).get(&url)?.body, &content)?;
    }
    let bad = probe::metric(&honest[0], "skimmer_peer_bad_pieces_total")?;
    ensure!(bad >= 1, "nobody asked the rotten one: nothing was tested");
    // It learns of it, and does not give the bad copy to its own users.
    let right = || Ok(same(&proxied(rotten).get(&url)?.body, &content).is_ok());
    probe::wait_until("the rotten copy is found out", SETTLE, right)?;
    let spoilt = probe::metric(rotten, "skimmer_peer_spoilt_tasks_total")?;
    ensure!(spoilt == 1, "{spoilt} spoilt contents are counted");
    Ok(Outcome::Passed)
}

/// Flips one bit in every 64 KiB, in place, and lets the file look as if nothing had been written to it.
fn flip_everywhere(path: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::FileExt;
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let metadata = file.metadata()?;
    for at in (100..metadata.len()).step_by(64 * 1024) {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 4], at)?;
    }
    file.set_modified(metadata.modified()?)?;
    Ok(())
}
