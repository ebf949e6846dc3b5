//! PostgreSQL as the registry's database.

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use super::{check_database_name, files::open_for_others};
use crate::{
    Host, Proc, ProcBuilder, Run,
    programs::{postgres_program, system_program},
};

/// The system tables are written, or a log is read again after a crash; on a busy machine a few seconds.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// One statement of a test.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(60);
/// Killed processes may be in a disk write.
const KILL_DEADLINE: Duration = Duration::from_secs(20);
/// An immediate shutdown writes nothing.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
const USER: &str = "skimmer";
const PASSWORD: &str = "of-one-test-run";
const DATABASE: &str = "registry";
/// Debian's user; postgres refuses to run as root.
const SYSTEM_USER: &str = "postgres";

/// A running postgres with a folder of its own. Every commit is on disk before it is answered.
///
/// Names are compared as the locale C does; isolation is the server's default.
#[derive(Debug)]
pub struct Postgres {
    proc: Proc,
    addr: SocketAddr,
    data: PathBuf,
}

impl Postgres {
    /// Starts it with small buffers and an empty database `registry`.
    ///
    /// # Errors
    /// When Debian's package `postgresql` is missing, or it does not start.
    pub fn start(host: &Host, run: &Run) -> Result<Self> {
        Self::start_with(host, run, &[])
    }

    /// As [`Postgres::start`], with more settings: `shared_buffers=1GB`.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn start_with(host: &Host, run: &Run, settings: &[&str]) -> Result<Self> {
        let folder = run.data_dir("postgres")?;
        let password = folder.join("password");
        fs::write(&password, PASSWORD)?;
        // One folder for all that is not root's: data and socket.
        let own = folder.join("own");
        if crate::is_root() {
            open_for_others(&folder)?;
            let make = host.program("install").args(["-d", "-m", "700", "-o", SYSTEM_USER]);
            make.arg(&own).run(STOP_DEADLINE).context("the user postgres comes with Debian's package postgresql")?;
        } else {
            fs::create_dir(&own)?;
        }
        let data = own.join("data");
        unprivileged(host, "initdb")?
            .args(["-U", USER, "--auth-local=trust", "--auth-host=scram-sha-256", "--no-locale", "-E", "UTF8"])
            .args(["--no-sync", "--pwfile"])
            .arg(&password)
            .arg("-D")
            .arg(&data)
            .dir(&folder)
            .run(START_DEADLINE)?;
        let port = host.free_port()?;
        let fixed = [
            format!("listen_addresses={}", host.ip()),
            format!("unix_socket_directories={}", own.display()),
            format!("port={port}"),
            "fsync=on".to_owned(),
            "synchronous_commit=on".to_owned(),
            "shared_buffers=32MB".to_owned(),
            "max_connections=300".to_owned(),
        ];
        let all = fixed.into_iter().chain(settings.iter().map(|setting| (*setting).to_owned()));
        let proc = unprivileged(host, "postgres")?
            .arg("-D")
            .arg(&data)
            .args(all.flat_map(|setting| ["-c".to_owned(), setting]))
            .dir(&folder)
            .start(run, "postgres")?;
        let mut server = Self { proc, addr: host.addr(port), data };
        server.ready()?;
        server.sql("postgres", &format!("CREATE DATABASE {DATABASE}"))?;
        Ok(server)
    }

    fn ready(&mut self) -> Result<()> {
        let file = self.data.join("postmaster.pid");
        self.proc.wait_until("ready database", START_DEADLINE, |proc| {
            // Its first line is who wrote it, its last the state (miscadmin.h).
            let text = fs::read_to_string(&file).unwrap_or_default();
            text.lines().next() == Some(proc.pid().to_string().as_str()) && text.trim_end().ends_with("\nready")
        })
    }

    /// The database `registry`: `postgres://user:password@address:port/registry`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(DATABASE)
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@{}/{database}", self.addr)
    }

    /// Makes an empty database and returns its URL. A name is letters, digits and underscores, in lower case.
    ///
    /// # Errors
    /// When there is one of this name.
    pub fn database(&self, name: &str) -> Result<String> {
        check_database_name(name)?;
        self.sql(DATABASE, &format!("CREATE DATABASE {name}"))?;
        Ok(self.url_of(name))
    }

    /// Executes statements with PostgreSQL's own client and returns the rows, columns separated by tabs.
    ///
    /// # Errors
    /// When the server refuses or is gone.
    pub fn sql(&self, database: &str, statements: &str) -> Result<String> {
        let finished = self
            .proc
            .host()
            .program(postgres_program("psql")?)
            .args(["-X", "-q", "-A", "-t", "-F", "\t", "-v", "ON_ERROR_STOP=1", "-c", statements])
            .arg(self.url_of(database))
            .run(STATEMENT_DEADLINE)?;
        String::from_utf8(finished.stdout).context("answer is not utf-8")
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `kill -9` of the server and of the process of each connection; what was committed is on disk.
    ///
    /// # Errors
    /// When they do not go.
    pub fn kill(&mut self) -> Result<()> {
        if !self.proc.is_running()? {
            return Ok(());
        }
        // Stopped, so that it starts no more of them while they are counted.
        self.proc.signal(Signal::STOP)?;
        let children = children(self.proc.pid())?;
        self.proc.kill()?;
        let end = Instant::now() + KILL_DEADLINE;
        for child in &children {
            // It may have gone by itself, seeing that the server did.
            let _ = pidfd_send_signal(child, Signal::KILL);
        }
        // A new server does not start while one of them lives.
        children.iter().try_for_each(|child| {
            let left = Timespec::try_from(end.saturating_duration_since(Instant::now()))?;
            let gone = poll(&mut [PollFd::new(child, PollFlags::IN)], Some(&left))?;
            anyhow::ensure!(gone == 1, "a process of the killed postgres lives on");
            Ok(())
        })
    }

    /// Starts it again over the same data, and returns when it answers; kills it first when it still runs.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        self.proc.restart()?;
        self.ready()
    }

    /// The server's process; each connection has one more.
    pub const fn process(&mut self) -> &mut Proc {
        &mut self.proc
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // An immediate shutdown takes the connections' processes along, and leaves no shared memory with the kernel.
        if self.proc.signal(Signal::QUIT).is_err() || self.proc.wait(STOP_DEADLINE).is_err() {
            let _ = self.kill();
        }
    }
}

/// A program of PostgreSQL as a user it agrees to run as.
fn unprivileged(host: &Host, program: &str) -> Result<ProcBuilder> {
    let program = postgres_program(program)?;
    if !crate::is_root() {
        return Ok(host.program(program));
    }
    // Changing the user makes the kernel forget that it has to die with us.
    let change = ["--reuid", SYSTEM_USER, "--regid", SYSTEM_USER, "--clear-groups", "--pdeathsig", "KILL", "--"];
    Ok(host.program(system_program("setpriv", "util-linux")?).args(change).arg(program))
}

/// The processes whose parent this is.
fn children(parent: u32) -> Result<Vec<OwnedFd>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Gone since the folder was read.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        // proc(5): after the name in parentheses come the state and the parent.
        let of = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(1)?.parse::<u32>().ok());
        if of != Some(parent) {
            continue;
        }
        if let Some(Ok(child)) = Pid::from_raw(pid).map(|pid| pidfd_open(pid, PidfdFlags::empty())) {
            found.push(child);
        }
    }
    Ok(found)
}
