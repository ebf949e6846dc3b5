//! Two processes on one MariaDB and one object storage, behind nginx that hands each request to the other one.

use std::{
    collections::BTreeSet,
    fs, thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use harness::{DockerOptions, Host, LoadBalancer, MariaDb, Net, Run, S3Kind, S3Server, SkimmerRegistry};

use super::{
    runtimes::Loaded,
    scene::{
        Asked, CLIENT, OPEN, Tools, asked, check_calm, digest_of, logged, one_host, one_platform, printed,
        two_platforms,
    },
};
use crate::runner::{Case, CaseResult, Outcome, anywhere, rooted};

/// From the first answer of the object storage to the one that does something.
const STORAGE_READY: Duration = Duration::from_secs(30);

pub(super) fn cases() -> Vec<Case> {
    vec![
        rooted("registry: docker pushes and pulls through two processes on MariaDB and MinIO, turn by turn", docker),
        anywhere(
            "registry: skopeo and python-dxf push and pull through two processes on MariaDB and MinIO, turn by turn",
            |run| tools(run, S3Kind::Minio),
        ),
        anywhere(
            "registry: skopeo and python-dxf push and pull through two processes on MariaDB and versitygw, turn by turn",
            |run| tools(run, S3Kind::Versitygw),
        ),
    ]
}

struct Pair {
    // Dropped in this order: programs before what they need.
    balancer: LoadBalancer,
    processes: [SkimmerRegistry; 2],
    _storage: S3Server,
    _database: MariaDb,
    host: Host,
    _net: Net,
}

impl Pair {
    fn start(run: &Run, kind: S3Kind) -> anyhow::Result<Self> {
        let net = one_host()?;
        let host = net.host("here");
        let database = MariaDb::start(&host, run)?;
        let storage = S3Server::start(kind, &host, run)?;
        let bucket = bucket(&storage)?;
        let start = || {
            let (store, database) = (storage.store(&bucket), SkimmerRegistry::database(&database.url()));
            let config = logged(&format!("{OPEN}{store}{database}"));
            SkimmerRegistry::start(&host, run, &config)
        };
        let processes = [start()?, start()?];
        let behind = processes.each_ref().map(SkimmerRegistry::addr);
        let balancer = LoadBalancer::start(&host, run, &behind, None)?;
        Ok(Self { balancer, processes, _storage: storage, _database: database, host, _net: net })
    }

    fn repository(&self, repository: &str) -> String {
        format!("{}/{repository}", self.balancer.name())
    }

    /// Both took part in everything, had no trouble, and read nothing back to hash it.
    fn check(&self) -> anyhow::Result<()> {
        let answered = self.balancer.answered()?;
        let shares = self.processes.each_ref().map(|process| answered.get(&process.addr()).copied().unwrap_or(0));
        ensure!(shares[0] > 0 && shares[0].abs_diff(shares[1]) <= 1, "requests did not take turns: {answered:?}");
        for process in &self.processes {
            check_calm(process)?;
            let rehashed = process.metric("skimmer_registry_upload_bytes_rehashed_total")?;
            ensure!(rehashed == 0.0, "{rehashed} bytes were read back to be hashed");
        }
        Ok(())
    }

    /// Uploads went from one process to the other in the middle.
    fn handed_over(&self) -> anyhow::Result<()> {
        let [first, second] = self.processes.each_ref().map(asked);
        let (first, second) = (first?, second?);
        let begun_here = sessions(&first, "PATCH").intersection(&sessions(&second, "PUT")).count();
        let begun_there = sessions(&second, "PATCH").intersection(&sessions(&first, "PUT")).count();
        ensure!(begun_here + begun_there > 0, "no upload went from one process to the other");
        Ok(())
    }
}

/// The uploads that such requests were about.
fn sessions<'a>(asked: &'a [Asked], method: &str) -> BTreeSet<&'a str> {
    let uris = asked.iter().filter(|asked| asked.method == method).map(|asked| asked.uri.as_str());
    uris.filter_map(|uri| uri.split_once("/blobs/uploads/")?.1.split('?').next()).collect()
}

/// MinIO calls itself ready a moment before it takes requests.
fn bucket(storage: &S3Server) -> anyhow::Result<String> {
    let end = Instant::now() + STORAGE_READY;
    loop {
        match storage.bucket("registry") {
            Err(error) if error.to_string().contains("try again") && Instant::now() < end => {
                thread::sleep(Duration::from_millis(100));
            }
            made => return made,
        }
    }
}

fn docker(run: &Run) -> CaseResult {
    let pair = Pair::start(run, S3Kind::Minio)?;
    let image = one_platform(run)?;
    let options = DockerOptions { insecure: vec![pair.balancer.name()], ..DockerOptions::default() };
    let loaded = Loaded::new(&Tools::new(&pair.host, run)?, run, &options, &image)?;
    let references = [pair.repository("team/app:v1"), pair.repository("other/copy:v1")];
    loaded.push(&references[0])?;
    let said = loaded.push(&references[1])?;
    ensure!(said.contains("Mounted from team/app"), "docker says {said}");
    loaded.forget(&[&references[0], &references[1]])?;
    loaded.pulls_back(&references[1], &image)?;
    pair.handed_over()?;
    pair.check()?;
    Ok(Outcome::Passed)
}

fn tools(run: &Run, kind: S3Kind) -> CaseResult {
    let pair = Pair::start(run, kind)?;
    let tools = Tools::new(&pair.host, run)?;
    let image = two_platforms(run)?;
    let reference = pair.repository("team/app:v1");
    tools.push(&image, &reference)?;
    tools.pulls_whole(run, &reference, &image)?;
    pair.handed_over()?;

    let name = pair.balancer.name();
    let dxf = |args: &[&str]| anyhow::Ok(printed(&tools.dxf(&name)?.args(args).run(CLIENT)?));
    // Three parts and an end that is shorter.
    let file = tools.random_file("blob", 30_000_000)?;
    let digest = digest_of(&file)?.to_string();
    ensure!(dxf(&["push-blob", "team/files", "blob", "@first"])? == digest, "dxf pushed something else");
    ensure!(dxf(&["mount-blob", "other/files", "team/files", &digest, "@second"])? == digest, "nothing was mounted");
    for (repository, alias) in [("team/files", "@first"), ("other/files", "@second")] {
        let pulled = tools.dxf(&name)?.args(["pull-blob", repository, alias]).run(CLIENT)?.stdout;
        ensure!(pulled == fs::read(&file)?, "the blob came back different");
    }
    pair.check()?;
    Ok(Outcome::Passed)
}
