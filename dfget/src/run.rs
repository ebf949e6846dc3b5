//! From a command line to an exit code.

use std::ffi::OsString;
use std::io::Write as _;
use std::sync::Arc;

use proto::Kind;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::backend::{Backend, BoxFuture};
use crate::download::{Engines, FileJob};
use crate::exit::{Cause, Exit, Failure};
use crate::lister::Lister;
use crate::options::{self, Action, Job, LocalSettings, Show};
use crate::report::Reporter;
use crate::{cli, flags, log, recursive};

/// What a command may need besides a dfdaemon. Nothing of it is made before it is needed.
pub trait Parts: Send + Sync {
    /// The engine in this process.
    fn engine<'a>(&'a self, settings: &'a LocalSettings) -> BoxFuture<'a, Result<Arc<dyn Backend>, Failure>>;

    /// Who reads listings of folders.
    ///
    /// # Errors
    /// When it cannot be made, for example because a file of `--cacerts` cannot be read.
    fn lister(&self, settings: &LocalSettings) -> Result<Arc<dyn Lister>, Failure>;
}

/// Does what a command line (without the program's name) says, and gives the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>, parts: Arc<dyn Parts>) -> Exit {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let current_dir = match std::env::current_dir() {
        Ok(dir) => dir,
        Err(error) => {
            let failure = Failure::of_output(".".as_ref(), "find the folder", &error);
            Reporter::new(Show::default()).failure(&failure);
            return failure.exit();
        }
    };
    match options::read(arguments.iter().cloned(), &current_dir) {
        Err(problems) => {
            // The problems may be about anything but this.
            let json = arguments.iter().any(|argument| argument == "--json" || argument == "--json=true");
            Reporter::new(Show { json, ..Show::default() }).usage(&problems);
            Exit::Usage
        }
        Ok(Action::Download(job)) => download(*job, parts),
        Ok(Action::Help) => print(cli::help().as_bytes()),
        Ok(Action::Version) => print(format!("dfget {}\n", env!("CARGO_PKG_VERSION")).as_bytes()),
        Ok(Action::GenDoc) => print(flags::markdown().as_bytes()),
        Ok(Action::Completions(shell)) => print(&cli::completions(shell)),
    }
}

fn print(text: &[u8]) -> Exit {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text).and_then(|()| stdout.flush()) {
        Ok(()) => Exit::Ok,
        // `dfget --help | head` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Ok,
        Err(_) => Exit::Internal,
    }
}

fn download(job: Job, parts: Arc<dyn Parts>) -> Exit {
    let reporter = Reporter::new(job.show);
    let fail = |failure: &Failure| {
        reporter.failure(failure);
        failure.exit()
    };
    if let Some(options) = &job.log
        && let Err(failure) = log::init(options)
    {
        return fail(&failure);
    }
    // One thread: dfget itself only passes events on, and each further thread costs start-up time.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&Failure::new(Cause::Kind(Kind::Internal), format!("cannot start: {error}"))),
    };
    let exit = runtime.block_on(async {
        let cancel = match signals() {
            Ok(cancel) => cancel,
            Err(error) => {
                return fail(&Failure::new(Cause::Kind(Kind::Internal), format!("cannot watch signals: {error}")));
            }
        };
        execute(job, parts, &reporter, cancel).await
    });
    // What still runs in the background has nothing left to do for anybody.
    runtime.shutdown_background();
    exit
}

/// A token that SIGINT and SIGTERM cancel.
fn signals() -> std::io::Result<CancellationToken> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    // Lives as long as the runtime, which is as long as there is something to cancel.
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(token)
}

/// Carries a job out and reports it: the part of [`run`] between the command line and the exit code.
pub async fn execute(job: Job, parts: Arc<dyn Parts>, reporter: &Reporter, cancel: CancellationToken) -> Exit {
    let engines = Engines::new(job, Arc::clone(&parts));
    let deadline = engines.deadline();
    let ended = tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Failure::new(Cause::Cancelled, "cancelled")),
        () = sleep_until(deadline) => Err(timed_out(engines.job())),
        exit = work(&engines, parts.as_ref(), reporter) => Ok(exit),
    };
    let exit = match ended {
        Ok(exit) => exit,
        Err(failure) => {
            reporter.failure(&failure);
            return failure.exit();
        }
    };
    if let Some(local) = engines.local() {
        tokio::select! {
            () = cancel.cancelled() => debug!("cancelled while serving peers"),
            () = local.linger() => {}
        }
    }
    exit
}

async fn sleep_until(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn timed_out(job: &Job) -> Failure {
    let after = job.timeout.unwrap_or_default();
    Failure::new(Cause::Timeout, format!("not complete after {} (--timeout)", humantime::format_duration(after)))
}

async fn work(engines: &Engines, parts: &dyn Parts, reporter: &Reporter) -> Exit {
    let job = engines.job();
    if job.priority == 1 {
        let failure = Failure::new(Cause::Kind(Kind::Forbidden), "priority 1 forbids the download");
        reporter.failure(&failure);
        return failure.exit();
    }
    match &job.recursive {
        None => {
            let file =
                FileJob { number: 0, spec: job.spec.clone(), headers: job.headers.clone(), output: job.output.clone() };
            let result = engines.download(&file, reporter).await;
            reporter.result(&file.output, &result);
            result.map_or_else(|failure| failure.exit(), |_| Exit::Ok)
        }
        Some(recursive) => match recursive::run(engines, recursive, parts, reporter).await {
            Ok(folder) => reporter.folder_result(job, &folder).map_or(Exit::Ok, |failure| failure.exit()),
            Err(failure) => {
                reporter.failure(&failure);
                failure.exit()
            }
        },
    }
}
