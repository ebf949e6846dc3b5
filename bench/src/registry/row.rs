//! One test with so many clients: rounds on the servers in turn, and what comes out of them.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use proto::Algorithm;

use super::{
    bed::{Bed, Side},
    plan::{Action, CLIENTS, Figures, Kind, Test},
    report::Row,
    stock::{MANIFEST_TYPE, PULLED, REPOSITORIES, Stock, TAGS, bytes_of, manifest_path, repository},
};
use crate::{
    load::{Blob, Contents, Done, Job, Next, Task, Work, drive},
    measure::{DiskFolder, median, percentile, round},
};

/// Where new blobs go.
const PUSHED: &str = "bench/pushed";
/// A blob that is there is pushed into so many repositories in turn.
const AGAIN: usize = 100;
/// What one round may write, so that the disk does not fill: a few thousand MB in all rounds of a row.
const ROUND_BYTES_MAX: u64 = 800_000_000;
/// More requests than any server answers in a round.
const ROUND_OPS_MAX: u64 = 50_000;
/// Bytes that the floor is measured with in each round, and how often at least and at most.
const FLOOR_BYTES: u64 = 20_000_000;
const FLOOR_SAMPLES_MAX: u64 = 8;
/// Bytes hashed and written at a time for the floor.
const FLOOR_PIECE: usize = 1024 * 1024;

/// How long everything may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Rounds of each row.
    pub(super) rounds: usize,
    /// A round that reads ends after this time.
    pub(super) read: Duration,
    /// A round that writes.
    pub(super) write: Duration,
    /// Blobs that are asked for once in a round.
    pub(super) unique: usize,
}

/// What one server did in one round.
#[derive(Debug, Default)]
struct Sample {
    per_s: f64,
    bytes: u64,
    cpu: Duration,
    took_ms: Vec<f64>,
}

/// What a row is measured with.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    pub(super) disk: &'a DiskFolder,
    pub(super) pace: Pace,
    pub(super) stock: &'a Stock,
}

/// The clients of one round: they take the tasks in turn.
struct Round {
    tasks: std::vec::IntoIter<Task>,
    given: usize,
    /// Tasks that are given in any case.
    least: usize,
    /// Tasks are given in groups of so many.
    group: usize,
    end: Instant,
    bytes: u64,
    took_ms: Vec<f64>,
    /// The places of tasks that were pushes, and what they pushed.
    pushed: Vec<(usize, Blob)>,
}

impl Work for Round {
    fn next(&mut self, _client: usize) -> Next {
        let full = self.given >= self.least && self.given.is_multiple_of(self.group);
        if full && Instant::now() >= self.end {
            return Next::End;
        }
        let Some(task) = self.tasks.next() else { return Next::End };
        self.given += 1;
        Next::Job(Job { id: self.given - 1, task })
    }

    fn done(&mut self, _client: usize, done: Done) -> Result<()> {
        let answer = done.result?;
        self.took_ms.push(done.took.as_secs_f64() * 1e3);
        self.bytes += match done.job.task {
            Task::Request(_) => answer.body_bytes,
            Task::Push(push) => {
                self.pushed.push((done.job.id, push.blob().clone()));
                push.blob().length()
            }
        };
        Ok(())
    }
}

impl Bench<'_> {
    /// All rounds of a row.
    ///
    /// # Errors
    /// When a request fails or a blob is refused.
    pub(super) fn row(&self, bed: &mut Bed, test: &Test, clients: usize, contents: &mut Contents) -> Result<Row> {
        let (mut ours, mut peer, mut limit, mut floor) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // Caches and the first pages of files are warm afterwards.
        for side in [&mut bed.ours, &mut bed.peer] {
            self.round(side, test, CLIENTS[0], contents, 0, Some(1))?;
        }
        for number in 0..self.pace.rounds {
            let mut turns = [0, 1, 2];
            if number % 2 == 1 {
                turns.reverse();
            }
            for turn in turns {
                match turn {
                    0 => ours.push(self.round(&mut bed.ours, test, clients, contents, number, None)?),
                    1 => peer.push(self.round(&mut bed.peer, test, clients, contents, number, None)?),
                    _ => match &mut bed.limit {
                        Some(side) if test.actions.iter().all(|action| action.is_pull()) => {
                            limit.push(self.limit_round(side, test, clients, number)?.per_s);
                        }
                        _ => {}
                    },
                }
            }
            if test.kind == Kind::Push {
                floor.extend(self.floor(test, contents)?);
            }
        }
        Ok(figures(test, clients, &ours, &peer, &limit, &floor))
    }

    fn round(
        &self,
        side: &mut Side,
        test: &Test,
        clients: usize,
        contents: &mut Contents,
        number: usize,
        groups: Option<usize>,
    ) -> Result<Sample> {
        let count = self.count(test, clients, groups);
        let tasks = (0..count).map(|place| self.task(side, test, place, number, contents)).collect();
        if test.writes() {
            self.disk.settle()?;
        }
        let before = side.cpu()?;
        let (mut sample, pushed) = self.drive(side, test, clients, tasks)?;
        sample.cpu = side.cpu()?.saturating_sub(before);
        for (place, blob) in pushed {
            side.has_blob(&destination(test, place), blob.digest());
        }
        Ok(sample)
    }

    fn limit_round(&self, side: &Side, test: &Test, clients: usize, number: usize) -> Result<Sample> {
        let count = self.count(test, clients, None);
        let tasks = (0..count).map(|place| {
            let blob = match test.actions[place % test.actions.len()] {
                Action::PullUnique(_) => self.unique(number, place),
                action => self.stock.pulled(action.size_mb()),
            };
            Task::Request(side.pull_file(blob.digest()))
        });
        Ok(self.drive(side, test, clients, tasks.collect())?.0)
    }

    fn drive(
        &self,
        side: &Side,
        test: &Test,
        clients: usize,
        tasks: Vec<Task>,
    ) -> Result<(Sample, Vec<(usize, Blob)>)> {
        let time = if test.writes() { self.pace.write } else { self.pace.read };
        let mut work = Round {
            tasks: tasks.into_iter(),
            given: 0,
            least: clients,
            group: test.actions.len(),
            end: Instant::now() + time,
            bytes: 0,
            took_ms: Vec::new(),
            pushed: Vec::new(),
        };
        let took = drive(side.target(), clients, &mut work)?;
        ensure!(!work.took_ms.is_empty(), "{}: nothing was done", test.name);
        let per_s = work.took_ms.len() as f64 / took.as_secs_f64();
        Ok((Sample { per_s, bytes: work.bytes, cpu: Duration::ZERO, took_ms: work.took_ms }, work.pushed))
    }

    /// Tasks to make for a round: more than it can do, unless that is too much for the disk.
    fn count(&self, test: &Test, clients: usize, groups: Option<usize>) -> usize {
        let group = test.actions.len();
        let least = clients.div_ceil(group) * group;
        if let Some(groups) = groups {
            return (groups * group).max(least);
        }
        if test.actions.iter().any(|action| matches!(action, Action::PullUnique(_))) {
            return self.stock.unique().len();
        }
        let written: u64 = test.actions.iter().filter(|action| action.writes()).map(|action| action.size_mb()).sum();
        let groups = match bytes_of(written) {
            0 => ROUND_OPS_MAX / group as u64,
            bytes => ROUND_BYTES_MAX / bytes,
        };
        (groups as usize * group).max(least)
    }

    fn task(&self, side: &Side, test: &Test, place: usize, number: usize, contents: &mut Contents) -> Task {
        match test.actions[place % test.actions.len()] {
            Action::Push(mb) => side.push(&destination(test, place), contents.blob(bytes_of(mb)), false),
            Action::PushChunked(mb) => side.push(&destination(test, place), contents.blob(bytes_of(mb)), true),
            Action::PushAgain(mb) => side.push(&destination(test, place), self.stock.pulled(mb).clone(), false),
            Action::Pull(mb) => Task::Request(side.pull(PULLED, self.stock.pulled(mb).digest())),
            Action::PullUnique(_) => Task::Request(side.pull(PULLED, self.unique(number, place).digest())),
            Action::Manifest => {
                let repository = repository(place % REPOSITORIES);
                let path = manifest_path(&repository, place / REPOSITORIES % TAGS);
                Task::Request(side.target().request("GET", &path, &format!("Accept: {MANIFEST_TYPE}\r\n")))
            }
            Action::Tags => {
                let path = format!("/v2/{}/tags/list", repository(place % REPOSITORIES));
                Task::Request(side.target().request("GET", &path, ""))
            }
            Action::Catalog => Task::Request(side.target().request("GET", "/v2/_catalog", "")),
        }
    }

    /// Each round goes through all of them, from another place on.
    fn unique(&self, number: usize, place: usize) -> &Blob {
        let all = self.stock.unique();
        &all[(place + number * all.len() / self.pace.rounds.max(1)) % all.len()]
    }

    /// Milliseconds that hashing and keeping the bytes of this test's pushes take without a registry.
    fn floor(&self, test: &Test, contents: &mut Contents) -> Result<Vec<f64>> {
        let bytes = bytes_of(test.actions[0].size_mb());
        let samples = (FLOOR_BYTES / bytes).clamp(1, FLOOR_SAMPLES_MAX);
        self.disk.settle()?;
        (0..samples).map(|_| floor(self.disk.path(), &contents.blob(bytes))).collect()
    }
}

/// The repository that the push at this place of a round goes to.
fn destination(test: &Test, place: usize) -> String {
    match test.actions[place % test.actions.len()] {
        Action::PushAgain(_) => format!("bench/again-{:02}", place % AGAIN),
        _ => PUSHED.to_owned(),
    }
}

fn figures(test: &Test, clients: usize, ours: &[Sample], peer: &[Sample], limit: &[f64], floor: &[f64]) -> Row {
    let rates = |samples: &[Sample]| median(&samples.iter().map(|sample| sample.per_s).collect::<Vec<_>>());
    let times =
        |samples: &[Sample]| -> Vec<f64> { samples.iter().flat_map(|sample| sample.took_ms.iter().copied()).collect() };
    // Lists and manifests move next to nothing.
    let cpu = |samples: &[Sample]| {
        let bytes: u64 = samples.iter().map(|sample| sample.bytes).sum();
        let cpu: Duration = samples.iter().map(|sample| sample.cpu).sum();
        (test.size_mb() > 0.0).then(|| cpu.as_secs_f64() / (bytes as f64 / 1e9))
    };
    let ratios: Vec<f64> = ours.iter().zip(peer).map(|(ours, peer)| ours.per_s / peer.per_s).collect();
    let (ours_ms, peer_ms) = (times(ours), times(peer));
    let figures = Figures {
        ratio: median(&ratios),
        p50_ms: percentile(&ours_ms, 0.5),
        floor_ms: (!floor.is_empty()).then(|| median(floor)),
        ours_cpu: cpu(ours),
        peer_cpu: cpu(peer),
    };
    Row {
        name: test.name,
        kind: test.kind,
        size_mb: round(test.size_mb()),
        blobs: test.blobs,
        clients,
        ours_rps: round(rates(ours)),
        peer_rps: round(rates(peer)),
        ratio: round(figures.ratio),
        ratio_min: round(ratios.iter().copied().fold(f64::INFINITY, f64::min)),
        ratio_max: round(ratios.iter().copied().fold(0.0, f64::max)),
        limit_rps: (!limit.is_empty()).then(|| round(median(limit))),
        floor_ms: figures.floor_ms.map(round),
        ours_p50_ms: round(figures.p50_ms),
        ours_p99_ms: round(percentile(&ours_ms, 0.99)),
        peer_p50_ms: round(percentile(&peer_ms, 0.5)),
        peer_p99_ms: round(percentile(&peer_ms, 0.99)),
        ours_cpu_s_per_gb: figures.ours_cpu.map(round),
        peer_cpu_s_per_gb: figures.peer_cpu.map(round),
        missed: test.missed(clients, &figures),
    }
}

/// SHA-256, write, fsync, rename, fsync of the folder, one after another: milliseconds.
fn floor(folder: &Path, blob: &Blob) -> Result<f64> {
    let began = Instant::now();
    let temporary = folder.join("floor.new");
    let mut file = File::create(&temporary)?;
    let (mut hash, mut offset) = (Algorithm::Sha256.hasher(), 0);
    while offset < blob.length() {
        let part = blob.part(offset);
        let part = &part[..part.len().min(FLOOR_PIECE)];
        hash.update(part);
        file.write_all(part)?;
        offset += part.len() as u64;
    }
    ensure!(hash.finish() == *blob.digest(), "a blob is not what it was made as");
    file.sync_all()?;
    let path = folder.join("floor");
    fs::rename(&temporary, &path)?;
    File::open(folder)?.sync_all()?;
    let took = began.elapsed();
    fs::remove_file(&path)?;
    Ok(took.as_secs_f64() * 1e3)
}
