//! Our own registry.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::Duration,
};

use anyhow::Result;

use crate::{Curl, Host, Proc, ProcBuilder, Reply, Run, bin_dir};

/// A database is migrated and a store opened; on a busy machine a few seconds.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// One question to the side of health and metrics.
const API_DEADLINE: Duration = Duration::from_secs(10);

/// A running process of our registry.
#[derive(Debug)]
pub struct SkimmerRegistry {
    proc: Proc,
    program: PathBuf,
    config: PathBuf,
    addr: SocketAddr,
    metrics: SocketAddr,
}

impl SkimmerRegistry {
    /// Starts it on free ports with this configuration, and returns when it is ready. The configuration is TOML of
    /// everything but `listen` and `metrics_listen`: keys without a section first, then sections, as
    /// [`Self::on_files`], [`Self::database`] and [`crate::S3Server::store`] make them.
    ///
    /// # Errors
    /// When our programs are not built, or it does not become ready.
    pub fn start(host: &Host, run: &Run, config: &str) -> Result<Self> {
        let folder = run.data_dir("skimmer-registry")?;
        let (addr, metrics) = (host.addr(host.free_port()?), host.addr(host.free_port()?));
        let path = folder.join("registry.toml");
        fs::write(&path, format!("listen = [\"{addr}\"]\nmetrics_listen = [\"{metrics}\"]\n{config}"))?;
        let program = bin_dir()?.join("registry");
        let start = host.program(&program).args(["serve", "--config"]).arg(&path).env("RUST_BACKTRACE", "1");
        let proc = start.start(run, "skimmer-registry")?;
        let mut registry = Self { proc, program, config: path, addr, metrics };
        registry.ready()?;
        Ok(registry)
    }

    fn ready(&mut self) -> Result<()> {
        self.proc.wait_port(self.metrics, START_DEADLINE)?;
        self.proc.wait_http(&format!("http://{}/readyz", self.metrics), START_DEADLINE)?;
        self.proc.wait_port(self.addr, START_DEADLINE)
    }

    /// The sections of a registry that keeps its files and its SQLite database below this folder.
    #[must_use]
    pub fn on_files(folder: &Path) -> String {
        let database = Self::database(&format!("sqlite://{}", folder.join("registry.db").display()));
        format!("[store]\nkind = \"filesystem\"\npath = \"{}\"\n{database}", folder.join("store").display())
    }

    /// The section that names the database.
    #[must_use]
    pub fn database(url: &str) -> String {
        format!("[database]\nurl = \"{url}\"\n")
    }

    /// Where clients reach it.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `address:port`, as it stands in an image reference.
    #[must_use]
    pub fn name(&self) -> String {
        self.addr.to_string()
    }

    /// The URL of a path: `/v2/…`. Plain HTTP: with TLS it is the test that knows how.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.addr)
    }

    /// The host it runs on.
    #[must_use]
    pub const fn host(&self) -> &Host {
        self.proc.host()
    }

    /// Its configuration file, to be changed before a restart or a SIGHUP.
    #[must_use]
    pub fn config(&self) -> &Path {
        &self.config
    }

    /// Another command of the same binary with the same configuration: `fsck`, `rebuild`.
    #[must_use]
    pub fn command(&self, name: &str) -> ProcBuilder {
        self.host().program(&self.program).args([name, "--config"]).arg(&self.config)
    }

    /// Asks its side of health and metrics.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn api(&self, path: &str) -> Result<Reply> {
        Curl::new(self.host()).max_time(API_DEADLINE).get(&format!("http://{}{path}", self.metrics))
    }

    /// A metric's value by its full name, summed over its labels; 0 when it was never counted.
    ///
    /// # Errors
    /// When no answer comes, or there is no such metric.
    pub fn metric(&self, name: &str) -> Result<f64> {
        self.api("/metrics")?.metric(name)
    }

    /// Its log so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self) -> Result<String> {
        self.proc.log()
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not go.
    pub fn kill(&mut self) -> Result<()> {
        self.proc.kill().map(drop)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it has not ended by the deadline; it is left running.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.proc.terminate(deadline)
    }

    /// Starts it again on the same ports, and returns when it is ready; kills it first when it still runs.
    ///
    /// # Errors
    /// When it does not become ready.
    pub fn restart(&mut self) -> Result<()> {
        self.proc.restart()?;
        self.ready()
    }

    /// The process: signals, memory, processor time.
    pub const fn process(&mut self) -> &mut Proc {
        &mut self.proc
    }
}
