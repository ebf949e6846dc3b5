//! The way from `main` to a running service, the same for every binary.

use std::future::Future;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{self, Config, ConfigError};
use crate::exit::{self, Failure};
use crate::ready::Notifier;
use crate::{log, runtime, shutdown, tls};

/// Flags every long-running binary has; `#[command(flatten)]` it into the binary's own.
#[derive(Clone, Debug, Default, clap::Args)]
// clap names groups after structs; the binary's own is likely to be `Args` as well.
#[group(id = "service")]
pub struct Args {
    /// Configuration file (TOML); by default /etc/skimmer/NAME-OF-BINARY.toml if there is one
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Check the configuration and the files it names, list every problem, and exit: 0 = good, 2 = not
    #[arg(long, conflicts_with = "print_default_config")]
    pub check_config: bool,
    /// Print the default configuration with comments, and exit
    #[arg(long)]
    pub print_default_config: bool,
}

/// What a service gets beside its configuration.
#[derive(Debug)]
pub struct Context<T> {
    /// Cancelled when the service has to end. It may drain for `[runtime] drain_timeout`.
    pub shutdown: CancellationToken,
    /// The configuration again, on each SIGHUP.
    pub reloads: Reloads<T>,
    notifier: Notifier,
}

/// The configuration again, on each SIGHUP.
#[derive(Debug)]
pub struct Reloads<T> {
    hangup: Option<Signal>,
    path: Option<PathBuf>,
    _config: std::marker::PhantomData<fn() -> T>,
}

/// Beyond the drain deadline, for writing last things to disk.
const GRACE: Duration = Duration::from_secs(5);

// === impl Context ===

impl<T> Context<T> {
    /// A context outside [`launch`], for tests and embedding: no signals, no service manager.
    #[must_use]
    pub fn detached(shutdown: CancellationToken) -> Self {
        let reloads = Reloads { hangup: None, path: None, _config: std::marker::PhantomData };
        Self { shutdown, reloads, notifier: Notifier::default() }
    }

    /// Tells the service manager that all listeners are up.
    pub fn ready(&self) {
        self.notifier.ready();
    }
}

// === impl Reloads ===

impl<T: Config> Reloads<T> {
    /// Waits for the next SIGHUP and reads the configuration anew; waits for ever where there are no signals. The log
    /// level is taken over at once.
    ///
    /// # Errors
    /// When the configuration is not usable any more.
    pub async fn next(&mut self) -> Result<T, ConfigError> {
        match &mut self.hangup {
            Some(hangup) => {
                hangup.recv().await;
            }
            None => std::future::pending().await,
        }
        let config: T = config::load(self.path.as_deref(), &config::env_prefix(T::BINARY))?;
        log::set_level(config.log());
        Ok(config)
    }

    /// Hands each configuration that is read anew to `apply`, until the shutdown. One that is not usable is logged and
    /// changes nothing.
    pub async fn apply(mut self, shutdown: CancellationToken, apply: impl Fn(&T)) {
        loop {
            let config = tokio::select! {
                config = self.next() => config,
                () = shutdown.cancelled() => return,
            };
            match config {
                Ok(config) => {
                    apply(&config);
                    info!("the configuration was read anew");
                }
                Err(error) => error.log(),
            }
        }
    }
}

// === launch ===

/// Does what the flags say; if they say nothing else, runs `run` until it ends or a signal comes. To be called first thing
/// in `main`, after parsing flags.
pub fn launch<T, F, Fut>(args: Args, run: F) -> ExitCode
where
    T: Config,
    F: FnOnce(T, Context<T>) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    tls::install_provider();
    exit::report(T::BINARY, start(args, run))
}

fn start<T, F, Fut>(args: Args, run: F) -> Result<(), Failure>
where
    T: Config,
    F: FnOnce(T, Context<T>) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    if args.print_default_config {
        // A reader that goes away early, as `head` does, is no failure.
        let _ = std::io::stdout().write_all(T::default_toml().as_bytes());
        return Ok(());
    }
    let path = match args.config {
        Some(path) => Some(path),
        None => default_path(T::BINARY)?,
    };
    if args.check_config {
        config::check::<T>(path.as_deref(), &config::env_prefix(T::BINARY))?;
        let from =
            path.as_deref().map_or_else(|| "the default configuration".to_owned(), |path| path.display().to_string());
        let _ = writeln!(std::io::stdout(), "{from}: no problems");
        return Ok(());
    }
    let config: T = config::load(path.as_deref(), &config::env_prefix(T::BINARY))?;
    log::init(config.log()).map_err(anyhow::Error::from)?;
    let from = path.as_deref().unwrap_or_else(|| Path::new("defaults")).display();
    info!(binary = T::BINARY, version = env!("CARGO_PKG_VERSION"), config = %from, "starting");
    let drain_timeout = config.runtime().drain_timeout;
    let runtime = runtime::build(config.runtime()).context("cannot start the runtime")?;
    let result = runtime.block_on(Box::pin(supervised(config, path, drain_timeout, run)));
    // What still blocks a thread now was given its time.
    runtime.shutdown_timeout(Duration::from_millis(100));
    result.map_err(Failure::from)
}

async fn supervised<T, F, Fut>(config: T, path: Option<PathBuf>, drain_timeout: Duration, run: F) -> anyhow::Result<()>
where
    T: Config,
    F: FnOnce(T, Context<T>) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let token = shutdown::signals().context("cannot watch for signals")?;
    let hangup = Some(signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?);
    let notifier = Notifier::from_env();
    let reloads = Reloads { hangup, path, _config: std::marker::PhantomData };
    let context = Context { shutdown: token.clone(), reloads, notifier: notifier.clone() };
    let mut service = Box::pin(run(config, context));
    tokio::select! {
        // A service that ends at once must not end before it was said that it stops.
        biased;
        () = token.cancelled() => notifier.stopping(),
        result = &mut service => return result,
    }
    match tokio::time::timeout(drain_timeout + GRACE, service).await {
        Ok(result) => {
            info!("stopped");
            result
        }
        Err(_) => {
            warn!(drain_timeout_s = drain_timeout.as_secs_f64(), "the service did not stop in time");
            anyhow::bail!("did not stop within {} of the signal", humantime::format_duration(drain_timeout + GRACE))
        }
    }
}

fn default_path(binary: &str) -> Result<Option<PathBuf>, ConfigError> {
    let path = PathBuf::from(format!("/etc/skimmer/{binary}.toml"));
    match path.try_exists() {
        Ok(true) => Ok(Some(path)),
        Ok(false) => Ok(None),
        // A file that may be there but cannot be seen must not be replaced by defaults in silence.
        Err(source) => Err(ConfigError::Read { path, source }),
    }
}
