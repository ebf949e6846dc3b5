//! Where the registries of a case stand: a database, a store, one process or two.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use harness::{Host, MariaDb, Net, Postgres, Run, S3Kind, S3Server, SkimmerRegistry};
use serde_json::Value;

use super::http::Client;
use crate::faults_data::probe;

/// One look at everything, of a small store.
const FSCK: Duration = Duration::from_secs(60);
/// Leases of seconds run out, and what they kept is removed. What a killed process was about to remove, others remove a
/// minute later.
const UPKEEP: Duration = Duration::from_secs(100);
/// The backlog is counted every 5 s.
const COUNTED: Duration = Duration::from_secs(6);
/// SIGTERM with nothing to drain.
const STOP: Duration = Duration::from_secs(30);
const BUCKET: &str = "registry";
const DATABASE: &str = "registry";

/// Which database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Database {
    Sqlite,
    MariaDb,
    Postgres,
}

/// Where the bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    Files,
    S3(S3Kind),
}

/// The servers under a registry.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) host: Host,
    pub(crate) folder: PathBuf,
    pub(crate) mariadb: Option<MariaDb>,
    pub(crate) postgres: Option<Postgres>,
    pub(crate) s3: Option<S3Server>,
}

/// Registries over the same servers.
#[derive(Debug)]
pub(crate) struct Site {
    // Dropped in this order.
    pub(crate) registries: Vec<SkimmerRegistry>,
    pub(crate) servers: Servers,
}

/// What `registry fsck --json` says.
#[derive(Debug)]
pub(crate) struct Fsck {
    /// It says that nothing is wrong, or that all is mended.
    pub(crate) success: bool,
    pub(crate) report: Value,
}

// === impl Servers ===

impl Servers {
    pub(crate) fn start(run: &Run, database: Database, storage: Storage) -> Result<Self> {
        let host = Net::loopback(&["registry"]).host("registry");
        let folder = run.data_dir("site")?;
        let mut servers = Self { host: host.clone(), folder, mariadb: None, postgres: None, s3: None };
        match database {
            Database::Sqlite => {}
            Database::MariaDb => servers.mariadb = Some(MariaDb::start(&host, run)?),
            Database::Postgres => servers.postgres = Some(Postgres::start(&host, run)?),
        }
        if let Storage::S3(kind) = storage {
            let s3 = S3Server::start(kind, &host, run)?;
            s3.bucket(BUCKET)?;
            servers.s3 = Some(s3);
        }
        Ok(servers)
    }

    /// The folder of a store of files.
    pub(crate) fn store(&self) -> PathBuf {
        self.folder.join("store")
    }

    /// The file of SQLite.
    pub(crate) fn sqlite(&self) -> PathBuf {
        self.folder.join("registry.db")
    }

    pub(crate) fn database_url(&self) -> String {
        match (&self.mariadb, &self.postgres) {
            (Some(server), _) => server.url(),
            (_, Some(server)) => server.url(),
            _ => format!("sqlite://{}", self.sqlite().display()),
        }
    }

    /// Statements for the database server, by its own client.
    pub(crate) fn sql(&self, statements: &str) -> Result<String> {
        self.sql_in(DATABASE, statements)
    }

    fn sql_in(&self, database: &str, statements: &str) -> Result<String> {
        match (&self.mariadb, &self.postgres) {
            (Some(server), _) => server.sql(database, statements),
            (_, Some(server)) => server.sql(database, statements),
            _ => bail!("SQLite has no client here"),
        }
    }

    /// The database as it was before anything used it. Nobody may use it meanwhile.
    pub(crate) fn empty_database(&self) -> Result<()> {
        match (&self.mariadb, &self.postgres) {
            (Some(_), _) => drop(self.sql_in("mysql", "DROP DATABASE registry; CREATE DATABASE registry")?),
            (_, Some(_)) => {
                self.sql_in("postgres", "DROP DATABASE registry WITH (FORCE)")?;
                self.sql_in("postgres", "CREATE DATABASE registry")?;
            }
            _ => {
                for file in probe::files(&self.folder) {
                    let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    if file.parent() == Some(&self.folder) && name.starts_with("registry.db") {
                        std::fs::remove_file(file)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Keeps a copy of PostgreSQL's database, or puts it back in its place. Nobody may use the one that is copied meanwhile.
    pub(crate) fn copy_database(&self, put_back: bool) -> Result<()> {
        let (from, to) = if put_back { ("copy", DATABASE) } else { (DATABASE, "copy") };
        self.sql_in("postgres", &format!("DROP DATABASE IF EXISTS {to} WITH (FORCE)"))?;
        self.sql_in("postgres", &format!("CREATE DATABASE {to} TEMPLATE {from}")).map(drop)
    }

    /// The configuration of a registry. The keys go to the end of the sections `[store]` (or `[store.s3]`) and `[database]`.
    pub(crate) fn config(&self, store_keys: &str, database_keys: &str, more: &str) -> String {
        let store = match &self.s3 {
            Some(s3) => s3.store(BUCKET),
            None => format!("[store]\nkind = \"filesystem\"\npath = \"{}\"\n", self.store().display()),
        };
        let database = SkimmerRegistry::database(&self.database_url());
        format!("{store}{store_keys}\n{database}{database_keys}\n{more}")
    }

    /// Everything there is in the store: names of files, or keys of objects.
    pub(crate) fn stored(&self, prefix: &str) -> Result<Vec<String>> {
        let Some(s3) = &self.s3 else {
            let root = self.store();
            let relative = |path: PathBuf| Some(path.strip_prefix(&root).ok()?.display().to_string());
            return Ok(probe::files(&root.join(prefix)).into_iter().filter_map(relative).collect());
        };
        let mut keys: Vec<String> = Vec::new();
        // As it has to be signed; curl leaves it as it is.
        let encoded = |key: &str| key.replace('/', "%2F");
        let prefix = encoded(prefix);
        loop {
            let after = keys.last().map(|key| format!("&start-after={}", encoded(key))).unwrap_or_default();
            let reply = s3.curl().get(&format!("{}/{BUCKET}?list-type=2&prefix={prefix}{after}", s3.endpoint()))?;
            let text = String::from_utf8(reply.body)?;
            ensure!(reply.status == 200, "the bucket cannot be listed: {} {text}", reply.status);
            let before = keys.len();
            keys.extend(text.split("<Key>").skip(1).filter_map(|rest| Some(rest.split_once("</Key>")?.0.to_owned())));
            if keys.len() == before {
                return Ok(keys);
            }
        }
    }

    /// What one of them holds.
    pub(crate) fn content(&self, name: &str) -> Result<Vec<u8>> {
        let Some(s3) = &self.s3 else { return Ok(std::fs::read(self.store().join(name))?) };
        let reply = s3.curl().get(&format!("{}/{BUCKET}/{name}", s3.endpoint()))?;
        ensure!(reply.status == 200, "{name} cannot be read: {}", reply.status);
        Ok(reply.body)
    }

    /// Uploads that the object storage has begun and not ended; none with files.
    pub(crate) fn multipart_uploads(&self) -> Result<usize> {
        let Some(s3) = &self.s3 else { return Ok(0) };
        let reply = s3.curl().get(&format!("{}/{BUCKET}?uploads=", s3.endpoint()))?;
        let text = String::from_utf8(reply.body)?;
        ensure!(reply.status == 200, "uploads cannot be listed: {} {text}", reply.status);
        Ok(text.matches("<UploadId>").count())
    }

    /// The stored object of a blob, to be spoilt: its file, or its key.
    pub(crate) fn spoil(&self, name: &str, content: Option<&[u8]>) -> Result<()> {
        let Some(s3) = &self.s3 else {
            let path = self.store().join(name);
            match content {
                Some(content) => std::fs::write(path, content)?,
                None => std::fs::remove_file(path)?,
            }
            return Ok(());
        };
        let url = format!("{}/{BUCKET}/{name}", s3.endpoint());
        let reply = match content {
            Some(content) => {
                let file = self.folder.join("object");
                std::fs::write(&file, content)?;
                s3.curl().args(["-T", &file.display().to_string()]).get(&url)?
            }
            None => s3.curl().args(["-X", "DELETE"]).get(&url)?,
        };
        ensure!((200..300).contains(&reply.status), "{name} was not changed: {}", reply.status);
        Ok(())
    }
}

// === impl Site ===

impl Site {
    /// Starts so many registries of one configuration.
    pub(crate) fn start(run: &Run, servers: Servers, processes: usize, config: &str) -> Result<Self> {
        let start = |_| SkimmerRegistry::start(&servers.host, run, config);
        let registries = (0..processes).map(start).collect::<Result<_>>()?;
        Ok(Self { registries, servers })
    }

    /// SQLite, files, one process.
    pub(crate) fn simple(run: &Run, more: &str) -> Result<Self> {
        let servers = Servers::start(run, Database::Sqlite, Storage::Files)?;
        let config = servers.config("", "", more);
        Self::start(run, servers, 1, &config)
    }

    pub(crate) fn client(&self) -> Client {
        self.client_of(0)
    }

    pub(crate) fn client_of(&self, number: usize) -> Client {
        Client::new(self.registries[number].addr())
    }

    /// Compares store and database while nobody serves from them, and serves again.
    pub(crate) fn fsck(&mut self, args: &[&str]) -> Result<Fsck> {
        self.stop()?;
        let fsck = self.fsck_stopped(args)?;
        self.registries.iter_mut().try_for_each(SkimmerRegistry::restart)?;
        Ok(fsck)
    }

    pub(crate) fn stop(&mut self) -> Result<()> {
        for registry in &mut self.registries {
            let status = registry.terminate(STOP)?;
            ensure!(status.success(), "the registry ends with {status}: {}", registry.log()?);
        }
        Ok(())
    }

    /// As [`Self::fsck`], after [`Self::stop`].
    pub(crate) fn fsck_stopped(&self, args: &[&str]) -> Result<Fsck> {
        let command = self.registries[0].command("fsck").args(["--json", "--grace", "0s"]).args(args);
        let finished = command.output(FSCK)?;
        let report = serde_json::from_slice(&finished.stdout)
            .with_context(|| format!("fsck says {}", finished.stderr.trim_end()))?;
        Ok(Fsck { success: finished.status.success(), report })
    }

    /// Waits until no lease is left, and nothing waits to be removed.
    pub(crate) fn wait_upkeep(&self) -> Result<()> {
        self.wait_leases()?;
        self.wait_removals()
    }

    pub(crate) fn wait_leases(&self) -> Result<()> {
        self.wait_none(&["gc_links_due", "gc_links_leased"])
    }

    pub(crate) fn wait_removals(&self) -> Result<()> {
        self.wait_none(&["gc_removals"])
    }

    fn wait_none(&self, gauges: &[&str]) -> Result<()> {
        let end = Instant::now() + UPKEEP;
        // What was counted before may be older than the last request.
        std::thread::sleep(COUNTED);
        loop {
            let mut left = Vec::new();
            for registry in &self.registries {
                for gauge in gauges {
                    let count = registry.metric(&format!("skimmer_registry_{gauge}"))?;
                    if count > 0.0 {
                        left.push(format!("{gauge} {count}"));
                    }
                }
            }
            if left.is_empty() {
                return Ok(());
            }
            ensure!(Instant::now() < end, "upkeep is not done within {UPKEEP:?}: {}", left.join(", "));
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Waits until nothing is left of uploads that did not end.
    pub(crate) fn wait_no_uploads(&self) -> Result<()> {
        probe::wait_until("the space of broken uploads is taken back", UPKEEP, || {
            Ok(self.servers.stored("uploads/")?.is_empty() && self.servers.multipart_uploads()? == 0)
        })
    }
}

// === impl Fsck ===

impl Fsck {
    pub(crate) fn problems(&self) -> Vec<String> {
        let findings = self.report["findings"].as_array().into_iter().flatten();
        findings.map(|finding| finding["problem"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Nothing is wrong, and there is a file for each row, but for those that are due to be removed.
    pub(crate) fn is_clean(&self) -> Result<()> {
        ensure!(self.success && self.problems().is_empty(), "fsck: {}", self.report);
        let count = |name: &str| self.report[name].as_u64().unwrap_or_default();
        let (rows, files, due) = (count("blobs"), count("files"), count("removals"));
        ensure!(rows + due == files, "{rows} rows, {due} removals and {files} files: {}", self.report);
        Ok(())
    }

    /// Nothing worse than these.
    pub(crate) fn only(&self, allowed: &[&str]) -> Result<()> {
        let worse: Vec<String> =
            self.problems().into_iter().filter(|problem| !allowed.contains(&problem.as_str())).collect();
        ensure!(worse.is_empty(), "fsck finds {worse:?}: {}", self.report);
        Ok(())
    }

    /// A finding of this sort that mentions this text.
    pub(crate) fn finds(&self, problem: &str, text: &str) -> Result<()> {
        let findings = self.report["findings"].as_array().into_iter().flatten();
        let found = findings.into_iter().any(|one| one["problem"] == problem && one.to_string().contains(text));
        ensure!(found, "fsck does not find {problem} of {text}: {}", self.report);
        Ok(())
    }
}
