//! Programs on hosts: started, watched, measured, stopped.

use std::{
    ffi::{CString, OsStr, OsString},
    fs::{self, File, OpenOptions},
    io,
    net::{SocketAddr, TcpStream},
    os::unix::{ffi::OsStrExt, net::UnixStream, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{LazyLock, mpsc},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fd::OwnedFd,
    mount::{MountPropagationFlags, mount_bind, mount_change},
    process::{
        Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, pidfd_open,
        set_parent_process_death_signal, waitid,
    },
    thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe},
};

use crate::{Host, Run, run::log_end};

/// Between two looks at whether something is ready: short enough not to blur measurements in milliseconds.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// One attempt to connect while waiting for a port.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// How long a killed program may take to be gone; it may be in a disk write.
const KILL_TIMEOUT: Duration = Duration::from_secs(20);

/// What to start, and where.
#[derive(Debug, Clone)]
pub struct ProcBuilder {
    host: Host,
    program: OsString,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    dir: Option<PathBuf>,
    mounts: bool,
    binds: Vec<(PathBuf, PathBuf)>,
}

/// A running program. Dropping it kills it and its process group.
#[derive(Debug)]
pub struct Proc {
    builder: ProcBuilder,
    log: PathBuf,
    child: Child,
    pidfd: OwnedFd,
    status: Option<ExitStatus>,
    started: Instant,
}

/// A program that ran to its end.
#[derive(Debug, Clone)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed to stdout.
    pub stdout: Vec<u8>,
    /// What it printed to stderr.
    pub stderr: String,
    /// When its start was asked for.
    pub started: Instant,
    /// From then until it had been started: what a crowd of starts has to wait for.
    pub starting: Duration,
    /// From start to end.
    pub elapsed: Duration,
    /// Processor time of it and of the children it waited for.
    pub cpu: Duration,
}

/// Memory of a running program, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Resident now (`VmRSS`).
    pub resident_bytes: u64,
    /// Of that, what is no file's (`RssAnon`).
    pub private_bytes: u64,
    /// The most that ever was resident (`VmHWM`).
    pub peak_bytes: u64,
}

impl Host {
    /// A program to start on this host.
    pub fn program(&self, program: impl AsRef<OsStr>) -> ProcBuilder {
        ProcBuilder {
            host: self.clone(),
            program: program.as_ref().to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            dir: None,
            mounts: false,
            binds: Vec::new(),
        }
    }
}

// === impl ProcBuilder ===

impl ProcBuilder {
    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.args.push(arg.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn args(mut self, args: impl IntoIterator<Item: AsRef<OsStr>>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Starts it in this folder.
    #[must_use]
    pub fn dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.dir = Some(dir.into());
        self
    }

    /// Gives it a mount namespace of its own, so that what it mounts goes away with it. Needs root.
    #[must_use]
    pub const fn private_mounts(mut self) -> Self {
        self.mounts = true;
        self
    }

    /// Lets it see the file or folder `from` where the machine has `to`, which must be there, too. It gets a mount
    /// namespace of its own for that. Needs root.
    #[must_use]
    pub fn bind(mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Self {
        self.mounts = true;
        self.binds.push((from.into(), to.into()));
        self
    }

    /// Starts it; stdout and stderr go to a log in the run's folder.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start(self, run: &Run, name: &str) -> Result<Proc> {
        let log = run.log_path(&format!("{}-{name}", self.host.name()));
        Proc::spawn(self, log)
    }

    /// Runs it to its end, at most `deadline`, and returns what it printed, however it ended.
    ///
    /// # Errors
    /// When it does not start or is not done in time; then it is killed.
    pub fn output(self, deadline: Duration) -> Result<Finished> {
        let folder = tempfile::tempdir()?;
        let (out, err) = (folder.path().join("out"), folder.path().join("err"));
        let mut command = self.command()?;
        command.stdout(File::create(&out)?).stderr(File::create(&err)?);
        let mut proc = Proc::of(self, err.clone(), command)?;
        let (started, starting) = (proc.started, proc.started.elapsed());
        let (status, cpu, elapsed) = proc.wait_measured(deadline)?;
        let stderr = String::from_utf8_lossy(&fs::read(&err)?).into_owned();
        Ok(Finished { status, stdout: fs::read(&out)?, stderr, started, starting, elapsed, cpu })
    }

    /// As [`ProcBuilder::output`], and an error when its exit code is not 0.
    ///
    /// # Errors
    /// As above, with what it printed to stderr.
    pub fn run(self, deadline: Duration) -> Result<Finished> {
        let shown = self.shown();
        let finished = self.output(deadline)?;
        if !finished.status.success() {
            bail!("{shown}: {}: {}", finished.status, finished.stderr.trim());
        }
        Ok(finished)
    }

    fn shown(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.args);
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(&self.program);
        command.args(&self.args).envs(self.env.iter().map(|(n, v)| (n, v))).stdin(Stdio::null());
        // A group of its own, so that its children can be killed with it.
        command.process_group(0);
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        let namespace = self.host.namespace_file().map(File::try_clone).transpose()?;
        let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).context("path with a zero byte");
        let binds = self.binds.iter().map(|(from, to)| Ok((text(from)?, text(to)?))).collect::<Result<_>>()?;
        prepare(&mut command, namespace, self.mounts, binds);
        Ok(command)
    }
}

/// Lets the child enter its namespaces and die with us, between fork and exec.
fn prepare(command: &mut Command, namespace: Option<File>, mounts: bool, binds: Vec<(CString, CString)>) {
    let in_child = move || -> io::Result<()> {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if let Some(namespace) = &namespace {
            use rustix::fd::AsFd;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        if mounts {
            // SAFETY: a new mount namespace changes what paths mean in this process only, which is about to exec.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
            mount_change(c"/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)?;
        }
        for (from, to) in &binds {
            mount_bind(from.as_c_str(), to.as_c_str())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure only makes system calls on what it owns: it takes no lock and
    // allocates nothing (its paths are C strings).
    unsafe { command.pre_exec(in_child) };
}

// === impl Proc ===

impl Proc {
    fn spawn(builder: ProcBuilder, log: PathBuf) -> Result<Self> {
        let output = OpenOptions::new().create(true).append(true).open(&log)?;
        let mut command = builder.command()?;
        command.stdout(output.try_clone()?).stderr(output);
        Self::of(builder, log, command)
    }

    fn of(builder: ProcBuilder, log: PathBuf, command: Command) -> Result<Self> {
        let started = Instant::now();
        let child = spawn_on_lasting_thread(command).with_context(|| format!("cannot start {}", builder.shown()))?;
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
        Ok(Self { builder, log, child, pidfd, status: None, started })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The host it runs on.
    #[must_use]
    pub const fn host(&self) -> &Host {
        &self.builder.host
    }

    /// The whole log so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }

    /// Where the log is.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the kernel does not know it.
    pub fn is_running(&mut self) -> Result<bool> {
        if self.status.is_none() {
            self.status = self.child.try_wait()?;
        }
        Ok(self.status.is_none())
    }

    /// Sends a signal to it alone.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if !self.is_running()? {
            bail!("{} is gone", self.builder.shown());
        }
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// `kill -9`, of it and of its process group; returns when it is gone.
    ///
    /// # Errors
    /// When it does not go.
    pub fn kill(&mut self) -> Result<ExitStatus> {
        if self.is_running()? {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
        self.wait(KILL_TIMEOUT)
    }

    /// SIGTERM, and waits for the end.
    ///
    /// # Errors
    /// When it has not ended by the deadline; it is left running.
    pub fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        if self.is_running()? {
            kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        }
        self.wait(deadline)
    }

    /// Starts it again as it was first, into the same log; kills it first when it still runs.
    ///
    /// # Errors
    /// When it does not go or does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let next = Self::spawn(self.builder.clone(), self.log.clone())?;
        *self = next;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended by the deadline.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.status {
            return Ok(status);
        }
        self.wait_measured(deadline).map(|(status, _, _)| status)
    }

    fn wait_measured(&mut self, deadline: Duration) -> Result<(ExitStatus, Duration, Duration)> {
        let end = Instant::now() + deadline;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).context("deadline too far")?;
            match poll(&mut [PollFd::new(&self.pidfd, PollFlags::IN)], Some(&left)) {
                Ok(0) => bail!("{} has not ended within {deadline:?}", self.builder.shown()),
                Ok(_) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let elapsed = self.started.elapsed();
        // Its times are readable until somebody fetches the exit status.
        let pid = Pid::from_child(&self.child);
        let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT);
        let cpu = self.cpu().unwrap_or_default();
        let status = self.child.wait()?;
        self.status = Some(status);
        Ok((status, cpu, elapsed))
    }

    /// Processor time so far, user and system, of it and of the children it waited for.
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // proc(5): the fields start after the name in parentheses; utime, stime, cutime, cstime are 14 to 17.
        let (_, fields) = text.rsplit_once(") ").context("unexpected /proc/pid/stat")?;
        let ticks: u64 = fields.split(' ').skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum();
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    /// Its memory.
    ///
    /// # Errors
    /// When it is gone.
    pub fn memory(&self) -> Result<Memory> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let kib = |name: &str| -> Result<u64> {
            let line =
                text.lines().find_map(|line| line.strip_prefix(name)).context("process has no memory any more")?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        Ok(Memory {
            resident_bytes: kib("VmRSS:")? * 1024,
            private_bytes: kib("RssAnon:")? * 1024,
            peak_bytes: kib("VmHWM:")? * 1024,
        })
    }

    /// Waits until `ready` says so.
    ///
    /// # Errors
    /// When the program ends first, or the deadline passes; with the end of its log.
    pub fn wait_until(&mut self, what: &str, deadline: Duration, mut ready: impl FnMut(&Self) -> bool) -> Result<()> {
        let end = Instant::now() + deadline;
        loop {
            if ready(self) {
                return Ok(());
            }
            if !self.is_running()? {
                let status = self.status.map(|status| status.to_string()).unwrap_or_default();
                bail!("{} ended ({status}) before {what}: {}", self.builder.shown(), log_end(&self.log));
            }
            if Instant::now() >= end {
                bail!("{}: no {what} within {deadline:?}: {}", self.builder.shown(), log_end(&self.log));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until something accepts connections at the address, seen from the program's host.
    ///
    /// # Errors
    /// As [`Proc::wait_until`].
    pub fn wait_port(&mut self, addr: SocketAddr, deadline: Duration) -> Result<()> {
        self.wait_until(&format!("port {addr}"), deadline, |proc| {
            proc.host().inside(|| Ok(TcpStream::connect_timeout(&addr, CONNECT_TIMEOUT)?)).is_ok()
        })
    }

    /// Waits until something accepts connections at the Unix socket.
    ///
    /// # Errors
    /// As [`Proc::wait_until`].
    pub fn wait_socket(&mut self, path: &Path, deadline: Duration) -> Result<()> {
        self.wait_until(&format!("socket {}", path.display()), deadline, |_| UnixStream::connect(path).is_ok())
    }

    /// Waits until the URL answers 200.
    ///
    /// # Errors
    /// As [`Proc::wait_until`].
    pub fn wait_http(&mut self, url: &str, deadline: Duration) -> Result<()> {
        self.wait_until(&format!("answer from {url}"), deadline, |proc| {
            crate::Curl::new(proc.host()).max_time(CONNECT_TIMEOUT).get(url).is_ok_and(|reply| reply.status == 200)
        })
    }

    /// Waits until the log holds this text.
    ///
    /// # Errors
    /// As [`Proc::wait_until`].
    pub fn wait_log(&mut self, text: &str, deadline: Duration) -> Result<()> {
        self.wait_until(&format!("{text:?} in the log"), deadline, |proc| {
            proc.log().is_ok_and(|log| log.contains(text))
        })
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        let _ = self.kill();
        // The leader may have ended long ago and left children behind.
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
    }
}

/// The kernel's "die with your parent" means the parent's *thread*: so all programs are started from one that lasts.
fn spawn_on_lasting_thread(command: Command) -> io::Result<Child> {
    type Order = (Command, mpsc::SyncSender<io::Result<Child>>);
    static SPAWNER: LazyLock<mpsc::SyncSender<Order>> = LazyLock::new(|| {
        // As many orders as can reasonably wait while a fork takes a millisecond.
        let (orders, inbox) = mpsc::sync_channel::<Order>(64);
        let serve = move || {
            for (mut command, answer) in inbox {
                // Nobody waits for the answer any more: then the child is dropped, and dies with us.
                let _ = answer.send(command.spawn());
            }
        };
        let thread = thread::Builder::new().name("spawner".into()).spawn(serve);
        thread.expect("a thread can be started at the beginning of a run");
        orders
    });
    let (answer, inbox) = mpsc::sync_channel(1);
    SPAWNER.send((command, answer)).map_err(|_| io::Error::other("the spawning thread is gone"))?;
    inbox.recv().map_err(|_| io::Error::other("the spawning thread is gone"))?
}
