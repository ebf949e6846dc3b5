//! The commands that only prepare things: no engine, no daemon.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Subcommand, ValueEnum};

use crate::setup::{Options, Registry, Runtime};

/// What the binary does besides running.
#[derive(Debug, Subcommand)]
#[non_exhaustive]
pub enum Command {
    /// Point a container runtime at this daemon, or take that back. Restarts nothing.
    Setup(Setup),
    /// Make the certificate authority of interception.
    GenCa(GenCa),
    /// Print completions for a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Arguments of `setup`.
#[derive(Debug, clap::Args)]
pub struct Setup {
    /// For whom.
    runtime: RuntimeName,
    /// Print the changes and write nothing.
    #[arg(long)]
    dry_run: bool,
    /// Restore what was there before.
    #[arg(long)]
    undo: bool,
    /// Registries to pull through the daemon: HOST, or HOST=ADDRESS:PORT for one with a mirror address of its own
    /// (podman and CRI-O need that for all but docker.io). Default: all for containerd, docker.io for the others.
    #[arg(long = "registry", value_name = "HOST[=ADDR]")]
    registries: Vec<Registry>,
    /// Where the daemon listens.
    #[arg(long, default_value = "127.0.0.1:65001")]
    proxy_addr: SocketAddr,
    /// docker only: send its HTTPS through the proxy too, and let it trust this CA for the registries named.
    /// docker then pulls nothing while the daemon is stopped.
    #[arg(long, value_name = "FILE")]
    docker_proxy_ca: Option<PathBuf>,
    /// Write below this folder instead of /.
    #[arg(long, default_value = "/")]
    root: PathBuf,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RuntimeName {
    Containerd,
    Docker,
    Podman,
    Crio,
}

/// Arguments of `gen-ca`.
#[derive(Debug, clap::Args)]
pub struct GenCa {
    /// Where the certificate goes.
    #[arg(long, default_value = "/var/lib/skimmer/ca.crt")]
    cert: PathBuf,
    /// Where the private key goes; readable for the owner only.
    #[arg(long, default_value = "/var/lib/skimmer/ca.key")]
    key: PathBuf,
}

impl Command {
    /// Carries it out. `program` = the whole command line, for completions.
    ///
    /// # Errors
    /// With a message for the operator.
    pub fn run(&self, program: clap::Command) -> anyhow::Result<()> {
        match self {
            Self::Setup(setup) => run_setup(setup),
            Self::GenCa(ca) => run_gen_ca(ca),
            Self::Completions { shell } => {
                let mut program = program;
                clap_complete::generate(*shell, &mut program, "dfdaemon", &mut io::stdout());
                Ok(())
            }
        }
    }
}

fn run_setup(setup: &Setup) -> anyhow::Result<()> {
    let options = Options {
        runtime: match setup.runtime {
            RuntimeName::Containerd => Runtime::Containerd,
            RuntimeName::Docker => Runtime::Docker,
            RuntimeName::Podman => Runtime::Podman,
            RuntimeName::Crio => Runtime::Crio,
        },
        root: setup.root.clone(),
        registries: setup.registries.clone(),
        proxy_addr: setup.proxy_addr,
        docker_proxy_ca: setup.docker_proxy_ca.clone(),
    };
    let plan = if setup.undo { options.plan_undo()? } else { options.plan()? };
    let mut out = io::stdout().lock();
    if plan.is_empty() {
        writeln!(out, "nothing to change")?;
    } else if setup.dry_run {
        write!(out, "{}", plan.diff())?;
    } else {
        plan.apply()?;
        for path in plan.paths() {
            writeln!(out, "{}", path.display())?;
        }
    }
    for note in &plan.notes {
        writeln!(out, "note: {note}")?;
    }
    Ok(())
}

fn run_gen_ca(ca: &GenCa) -> anyhow::Result<()> {
    crate::ca::generate(&ca.cert, &ca.key)?;
    writeln!(io::stdout(), "{}\n{}", ca.cert.display(), ca.key.display())?;
    Ok(())
}
