//! Many clients do anything at any time, and processes are killed at any moment; afterwards every manifest that was
//! acknowledged pulls whole, and there is a file for each row.
//!
//! A client owns its manifests and tags, so that it knows what has to be true of each; layers are everybody's, and come and go
//! under the feet of all. What a client was not answered it does not touch again: at the end it is whole, or not there.
//!
//! The rows take well under a minute of chaos each. `SKIMMER_CHAOS_MINUTES=10` makes it ten minutes, and
//! `SKIMMER_CHAOS_SEED` repeats the choices of a run, though not the moments at which they meet.

mod claims;
mod random;
mod worker;

use std::{
    env,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use harness::{Run, S3Kind};

use self::{claims::Tally, random::Random, worker::Worker};
use crate::{
    registry_faults::{
        content::Blob,
        http::Client,
        site::{Database, Servers, Site, Storage},
    },
    runner::{Case, CaseResult, Outcome, anywhere},
};

/// Chaos of each row, when nobody asks for more.
const SHORT: Duration = Duration::from_secs(35);
const LEASE: Duration = Duration::from_secs(2);
const CLIENTS: u64 = 6;
const REPOSITORIES: [&str; 3] = ["chaos/one", "chaos/two", "chaos/three"];
/// Layers all clients choose from. Few, so that they meet.
const POOL: usize = 24;
/// So many of them are also deleted by name, whatever they are for.
const FRAGILE: usize = 4;
const LAYER_MAX: usize = 200_000;
/// Uploads that were broken off are forgotten soon.
const EXPIRY: Duration = Duration::from_secs(8);
/// Rounds of the row in which the only process is killed all the time.
const KILLS: u32 = 24;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        anywhere("registry kills: a process killed 24 times at any moment loses nothing it acknowledged", kills),
        anywhere("registry chaos: one process on SQLite and a folder", sqlite),
        anywhere("registry chaos: two processes on MariaDB and MinIO", mariadb),
        anywhere("registry chaos: two processes on PostgreSQL and one folder", postgres),
    ]
}

/// What all clients share.
#[derive(Debug)]
struct World {
    addrs: Vec<SocketAddr>,
    pool: Vec<Blob>,
    lease: Duration,
    stop: AtomicBool,
}

/// Clients between their turns.
#[derive(Debug)]
struct Chaos {
    world: World,
    workers: Vec<Worker>,
    random: Random,
}

impl Chaos {
    fn new(run: &Run, site: &Site) -> Result<Self> {
        let seed = match env::var("SKIMMER_CHAOS_SEED") {
            Ok(seed) => seed.parse().context("SKIMMER_CHAOS_SEED is a number")?,
            Err(_) => u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() & 0xffff_ffff)?,
        };
        run.note(format!("SKIMMER_CHAOS_SEED={seed}"));
        eprintln!("registry chaos: SKIMMER_CHAOS_SEED={seed}");
        let mut random = Random::new(seed);
        let pool = (0..POOL).map(|_| Blob::random(1 + random.below(LAYER_MAX), random.next())).collect();
        let addrs = site.registries.iter().map(harness::SkimmerRegistry::addr).collect();
        let workers = (0..CLIENTS).map(|id| Worker::new(id, Random::new(random.next()))).collect();
        Ok(Self { world: World { addrs, pool, lease: LEASE, stop: AtomicBool::new(false) }, workers, random })
    }

    /// Lets the clients do what they like until `meanwhile` is over.
    fn during(&mut self, meanwhile: impl FnOnce(&mut Random, &World) -> Result<()>) -> Result<()> {
        let (world, random) = (&self.world, &mut self.random);
        world.stop.store(false, Ordering::Relaxed);
        let done = thread::scope(|scope| {
            let clients: Vec<_> = self.workers.iter_mut().map(|worker| scope.spawn(|| worker.work(world))).collect();
            let done = meanwhile(random, world);
            world.stop.store(true, Ordering::Relaxed);
            let fine = clients.into_iter().all(|client| client.join().is_ok());
            done.and_then(|()| {
                ensure!(fine, "a client panicked");
                Ok(())
            })
        });
        let wrong: Vec<&String> = self.workers.iter().flat_map(|worker| &worker.wrong).collect();
        ensure!(
            wrong.is_empty(),
            "{} answers that cannot be, the first: {:#?}",
            wrong.len(),
            &wrong[..wrong.len().min(5)]
        );
        done
    }

    /// What was acknowledged is so.
    fn verify(&self) -> Result<Tally> {
        let mut clients: Vec<Client> = self.world.addrs.iter().map(|addr| Client::new(*addr)).collect();
        let mut tally = Tally::default();
        for (number, worker) in self.workers.iter().enumerate() {
            let client = number % clients.len();
            worker.claims.verify(&mut clients[client], &mut tally).with_context(|| format!("of client {number}"))?;
        }
        tally.lists(&mut clients[0])?;
        Ok(tally)
    }

    fn note(&self, run: &Run, tally: &Tally, kills: u32) {
        let done: u64 = self.workers.iter().map(|worker| worker.done).sum();
        let unanswered: u64 = self.workers.iter().map(|worker| worker.unanswered).sum();
        run.note(format!("{done} requests, {unanswered} without an answer, {kills} kills; in the end {tally}"));
    }
}

fn config(servers: &Servers) -> String {
    let upkeep = format!(
        "[gc]\nlease = \"{}s\"\ninterval = \"100ms\"\nrate = 10000\n[uploads]\nexpiry = \"{}s\"\n",
        LEASE.as_secs(),
        EXPIRY.as_secs()
    );
    servers.config("", "", &upkeep)
}

/// How long each row goes on.
fn duration() -> Result<Duration> {
    match env::var("SKIMMER_CHAOS_MINUTES") {
        Ok(minutes) => {
            let minutes: f64 = minutes.parse().context("SKIMMER_CHAOS_MINUTES is a number")?;
            Ok(Duration::from_secs_f64(minutes * 60.0))
        }
        Err(_) => Ok(SHORT),
    }
}

// === rows ===

fn sqlite(run: &Run) -> CaseResult {
    chaos(run, Database::Sqlite, Storage::Files, 1)
}

fn mariadb(run: &Run) -> CaseResult {
    chaos(run, Database::MariaDb, Storage::S3(S3Kind::Minio), 2)
}

fn postgres(run: &Run) -> CaseResult {
    chaos(run, Database::Postgres, Storage::Files, 2)
}

fn chaos(run: &Run, database: Database, storage: Storage, processes: usize) -> CaseResult {
    let servers = Servers::start(run, database, storage)?;
    let config = config(&servers);
    let mut site = Site::start(run, servers, processes, &config)?;
    let mut chaos = Chaos::new(run, &site)?;
    let duration = duration()?;
    let mut kills = 0;
    chaos.during(|random, _| {
        let end = Instant::now() + duration;
        while Instant::now() < end {
            thread::sleep(Duration::from_millis(500 + random.below(3500) as u64));
            let victim = random.below(processes);
            site.registries[victim].kill()?;
            kills += 1;
            thread::sleep(Duration::from_millis(random.below(800) as u64));
            site.registries[victim].restart()?;
        }
        // What was on its way when the last one died is over.
        thread::sleep(Duration::from_secs(1));
        Ok(())
    })?;
    let tally = chaos.verify()?;
    chaos.note(run, &tally, kills);
    ensure!(tally.present > 0, "nothing was pushed: nothing was tested");
    settle(&mut site, &chaos)?;
    Ok(Outcome::Passed)
}

/// The one process is killed as often as can be.
fn kills(run: &Run) -> CaseResult {
    let servers = Servers::start(run, Database::Sqlite, Storage::Files)?;
    let config = config(&servers);
    let mut site = Site::start(run, servers, 1, &config)?;
    let mut chaos = Chaos::new(run, &site)?;
    let mut tally = Tally::default();
    for round in 0..KILLS {
        chaos.during(|random, _| {
            thread::sleep(Duration::from_millis(50 + random.below(600) as u64));
            site.registries[0].kill()
        })?;
        site.registries[0].restart()?;
        tally = chaos.verify().with_context(|| format!("after kill {round}"))?;
    }
    chaos.note(run, &tally, KILLS);
    ensure!(tally.present > 0, "nothing was pushed: nothing was tested");
    settle(&mut site, &chaos)?;
    Ok(Outcome::Passed)
}

/// When the dust has settled there is a file for each row, and nothing is left over.
fn settle(site: &mut Site, chaos: &Chaos) -> Result<()> {
    site.wait_leases()?;
    if env::var_os("SKIMMER_CHAOS_MINUTES").is_some() {
        // A killed process's removals are others' after a minute, which a short run does not wait for.
        site.wait_removals()?;
    }
    site.wait_no_uploads()?;
    chaos.verify().context("after leases ran out")?;
    // A process that dies after a name was given and before the database was told leaves an orphan; after the database
    // was told and before the record of a tag was written, a record is missing of what nobody was told of.
    site.fsck(&["--repair", "--deep"])?.only(&["orphan", "missing_record"])?;
    chaos.verify().context("after the repair")?;
    site.fsck(&["--deep"])?.is_clean()?;
    chaos.verify().context("in the end").map(drop)
}
