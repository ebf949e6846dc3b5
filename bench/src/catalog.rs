//! `bench catalog`: how fast a registry that has much answers, on SQLite and on MariaDB.

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use harness::{Host, LinkSpec, MariaDb, Net, Run, SkimmerRegistry};
use proto::{Algorithm, Digest};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use serde::Serialize;

use crate::{
    live::say,
    load::{self, Keep, Kept, Target, Task},
    measure::{DiskFolder, explain, percentile, round},
    registry::{MANIFEST_TYPE, ours},
};

/// Manifests, repositories, and tags of the largest repository, at `--scale 1`.
const MANIFESTS: usize = 100_000;
const REPOSITORIES: usize = 10_000;
const TAGS_OF_ONE: usize = 20_000;
/// Clients that fill the registry; so many commits share one write to the disk.
const FILLERS: usize = 32;
/// Clients while it is measured.
const CLIENTS: usize = 4;
/// Requests of each sort.
const REQUESTS: usize = 2_000;
/// Entries of a page.
const PAGE: usize = 100;
/// What is promised of each sort, in milliseconds.
const P95_MAX_MS: f64 = 10.0;
/// The database, and one blob of two bytes.
const DISK_BYTES: u64 = 4_000_000_000;
/// All connections are told to end, and the database is closed.
const STOP_DEADLINE: Duration = Duration::from_secs(60);
/// The configuration that every image has.
const CONFIG: &str = "{}";

/// Arguments of `bench catalog`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
    /// The registry's size, as a share of what the promise is about.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Where data lies, on a disk; the cache of ./dev when not given.
    #[arg(long)]
    folder: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    rows: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Row {
    database: &'static str,
    what: &'static str,
    p95_ms: f64,
}

/// What the registry has: names that sort as their numbers do.
#[derive(Debug, Clone, Copy)]
struct Shape {
    manifests: usize,
    repositories: usize,
    tags_of_one: usize,
}

/// One sort of request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Tags,
    Catalog,
    Manifest,
    Push,
}

/// Runs the bench and prints what came out.
///
/// # Errors
/// When something does not start, a request fails, or a page is not what it should be.
pub fn run(args: &Args) -> Result<ExitCode> {
    let shape = Shape::scaled(args.scale)?;
    let disk = DiskFolder::take(args.folder.as_deref(), DISK_BYTES)?;
    say(&format!(
        "{} manifests in {} repositories, data in {}",
        shape.manifests,
        shape.repositories,
        disk.path().display()
    ));
    let run = Run::new()?;
    let net = Net::new_or_loopback(&[("host", LinkSpec::default())])?;
    let host = net.host("host");
    let report = explain(&run, host.inside(|| measure(shape, &run, &host)))?;
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
    }
    let mut kept = true;
    for Row { database, what, p95_ms } in &report.rows {
        if !args.json {
            println!("{database}: {what}: p95 {p95_ms:.2} ms");
        }
        if *p95_ms > P95_MAX_MS {
            eprintln!("broken promise: p95 of {what} on {database} is {p95_ms} ms, more than {P95_MAX_MS}");
            kept = false;
        }
    }
    Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn measure(shape: Shape, run: &Run, host: &Host) -> Result<Report> {
    let store = run.data_dir("sqlite")?;
    let mut rows = measure_on("sqlite", shape, ours(host, run, &SkimmerRegistry::on_files(&store))?)?;
    let database = MariaDb::start(host, run)?;
    let store = run.data_dir("files")?.join("store");
    let files = format!("[store]\nkind = \"filesystem\"\npath = \"{}\"\n", store.display());
    let sections = files + &SkimmerRegistry::database(&database.url());
    rows.extend(measure_on("mariadb", shape, ours(host, run, &sections)?)?);
    Ok(Report { rows })
}

fn measure_on(database: &'static str, shape: Shape, mut registry: SkimmerRegistry) -> Result<Vec<Row>> {
    let target = Target::new(registry.addr());
    let began = Instant::now();
    fill(&target, shape)?;
    say(&format!("{database}: filled in {:.0} s", began.elapsed().as_secs_f64()));
    let status = registry.terminate(STOP_DEADLINE)?;
    ensure!(status.success(), "the registry ended with {status}");
    registry.restart()?;
    let mut random = SmallRng::seed_from_u64(1);
    [What::Tags, What::Catalog, What::Manifest, What::Push]
        .into_iter()
        .map(|what| {
            let p95_ms = round(ask(&target, shape, what, &mut random)?);
            say(&format!("{database}: {}: p95 {p95_ms:.2} ms", what.name()));
            Ok(Row { database, what: what.name(), p95_ms })
        })
        .collect()
}

/// Pushes everything through the API.
fn fill(target: &Target, shape: Shape) -> Result<()> {
    let config = Digest::of(Algorithm::Sha256, CONFIG.as_bytes());
    let first = shape.repository(0);
    let path = format!("/v2/{first}/blobs/uploads/?digest={config}");
    let upload = target.upload("POST", &path, "Content-Type: application/octet-stream\r\n", CONFIG.as_bytes());
    load::all(target, 1, std::iter::once(Task::Request(upload)), |done| done.result.map(drop))?;
    let mounts = (1..shape.repositories).map(|number| {
        let name = shape.repository(number);
        let path = format!("/v2/{name}/blobs/uploads/?mount={config}&from={first}");
        Task::Request(target.request("POST", &path, "").expect(201))
    });
    load::all(target, FILLERS, mounts, |done| done.result.map(drop))?;
    // Neighbours are pushed far apart, as it happens in the life of a registry.
    let manifests = shape.scattered().map(|number| {
        let (repository, tag) = shape.place(number);
        put(target, &shape.repository(repository), &tag_name(tag), &config, number)
    });
    load::all(target, FILLERS, manifests, |done| done.result.map(drop))?;
    Ok(())
}

/// Asks for one sort of thing, and returns the 95th percentile of the times, in milliseconds.
fn ask(target: &Target, shape: Shape, what: What, random: &mut SmallRng) -> Result<f64> {
    let config = Digest::of(Algorithm::Sha256, CONFIG.as_bytes());
    let mut expected = Vec::new();
    let mut tasks = Vec::new();
    for number in 0..REQUESTS {
        let (repository, tag) = shape.place(random.random_range(0..shape.manifests));
        let name = shape.repository(repository);
        tasks.push(match what {
            What::Tags | What::Catalog => {
                let (all, path) = match what {
                    What::Tags => (shape.tags_of_one, format!("/v2/{}/tags/list", shape.repository(0))),
                    _ => (shape.repositories, "/v2/_catalog".to_owned()),
                };
                let last = random.random_range(0..all);
                let entry = |number| if what == What::Tags { tag_name(number) } else { shape.repository(number) };
                expected.push((last + 1..all).take(PAGE).map(entry).collect::<Vec<String>>());
                let path = format!("{path}?n={PAGE}&last={}", entry(last).replace('/', "%2F"));
                Task::Request(target.request("GET", &path, "").keep(Keep::Body))
            }
            What::Manifest => {
                let path = format!("/v2/{name}/manifests/{}", tag_name(tag));
                Task::Request(target.request("GET", &path, &format!("Accept: {MANIFEST_TYPE}\r\n")))
            }
            What::Push => put(target, &name, &format!("one-more-{number}"), &config, shape.manifests + number),
        });
    }
    let (mut took_ms, mut pages) = (Vec::new(), Vec::new());
    load::all(target, CLIENTS, tasks.into_iter(), |done| {
        took_ms.push(done.took.as_secs_f64() * 1e3);
        if let Kept::Body(body) = done.result?.kept {
            pages.push((done.job.id, body));
        }
        Ok(())
    })?;
    for (id, body) in pages {
        let page: serde_json::Value = serde_json::from_slice(&body).context("a page is not JSON")?;
        let list = page[if what == What::Tags { "tags" } else { "repositories" }].as_array();
        let found: Vec<&str> = list.into_iter().flatten().filter_map(|entry| entry.as_str()).collect();
        ensure!(found == expected[id], "{}: a page has {found:?} instead of {:?}", what.name(), expected[id]);
    }
    Ok(percentile(&took_ms, 0.95))
}

/// The push of an image that is nothing but its number.
fn put(target: &Target, repository: &str, tag: &str, config: &Digest, number: usize) -> Task {
    let body = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST_TYPE}\",\
         \"config\":{{\"mediaType\":\"application/vnd.oci.empty.v1+json\",\"digest\":\"{config}\",\"size\":{}}},\
         \"layers\":[],\"annotations\":{{\"number\":\"{number}\"}}}}",
        CONFIG.len()
    );
    let path = format!("/v2/{repository}/manifests/{tag}");
    Task::Request(target.upload("PUT", &path, &format!("Content-Type: {MANIFEST_TYPE}\r\n"), body.as_bytes()))
}

fn tag_name(number: usize) -> String {
    format!("tag-{number:06}")
}

impl What {
    const fn name(self) -> &'static str {
        match self {
            Self::Tags => "tags list",
            Self::Catalog => "catalog page",
            Self::Manifest => "manifest by tag",
            Self::Push => "push of one more",
        }
    }
}

// === impl Shape ===

impl Shape {
    fn scaled(scale: f64) -> Result<Self> {
        ensure!(scale > 0.0 && scale <= 10.0, "a scale between 0 and 10 is expected");
        let scaled = |number: usize| ((number as f64 * scale) as usize).max(2);
        let shape =
            Self { manifests: scaled(MANIFESTS), repositories: scaled(REPOSITORIES), tags_of_one: scaled(TAGS_OF_ONE) };
        ensure!(shape.manifests - shape.tags_of_one >= shape.repositories - 1, "the scale is too small");
        Ok(shape)
    }

    fn repository(self, number: usize) -> String {
        format!("catalog/repository-{number:05}")
    }

    /// The repository and the tag of a manifest: the first repository has the many, the others share the rest.
    const fn place(self, manifest: usize) -> (usize, usize) {
        match manifest.checked_sub(self.tags_of_one) {
            None => (0, manifest),
            Some(rest) => {
                let others = self.repositories - 1;
                (1 + rest % others, rest / others)
            }
        }
    }

    /// All manifests, each once, neighbours far apart.
    fn scattered(self) -> impl Iterator<Item = usize> {
        /// A prime that divides no number of manifests there may be.
        const STRIDE: usize = 15_485_863;
        (0..self.manifests).map(move |number| number * STRIDE % self.manifests)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;

    #[test]
    fn the_registry_has_its_shape() {
        for scale in [1.0, 0.01] {
            let shape = Shape::scaled(scale).unwrap();
            let mut repositories = BTreeMap::<usize, BTreeSet<usize>>::new();
            for manifest in shape.scattered() {
                let (repository, tag) = shape.place(manifest);
                assert!(repositories.entry(repository).or_default().insert(tag));
            }
            assert_eq!(repositories.len(), shape.repositories);
            assert_eq!(repositories[&0].len(), shape.tags_of_one);
            assert_eq!(repositories.values().map(BTreeSet::len).sum::<usize>(), shape.manifests);
        }
    }

    #[test]
    fn too_small_a_registry_is_refused() {
        assert!(Shape::scaled(0.0).is_err());
        assert!(Shape::scaled(-1.0).is_err());
        assert!(Shape::scaled(f64::NAN).is_err());
    }
}
