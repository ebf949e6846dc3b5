//! The binary: arguments, and what they start.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand, ValueEnum};
use dfdaemon::setup::{Options, Registry, Runtime};

/// The agent on every host: P2P downloads, registry mirror and HTTP(S) proxy.
#[derive(Debug, Parser)]
#[command(name = "dfdaemon", version, arg_required_else_help = false)]
struct Args {
    /// The configuration file.
    #[arg(long, global = true, env = "DFDAEMON_CONFIG", default_value = "/etc/skimmer/dfdaemon.toml")]
    config: PathBuf,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon (the default).
    Run,
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

#[derive(Debug, clap::Args)]
struct Setup {
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

#[derive(Debug, clap::Args)]
struct GenCa {
    /// Where the certificate goes.
    #[arg(long, default_value = "/var/lib/skimmer/ca.crt")]
    cert: PathBuf,
    /// Where the private key goes; readable for the owner only.
    #[arg(long, default_value = "/var/lib/skimmer/ca.key")]
    key: PathBuf,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match args.command.unwrap_or(Command::Run) {
        Command::Run => Err(anyhow::anyhow!("the download engine is not part of this build")),
        Command::Setup(setup) => run_setup(&setup),
        Command::GenCa(ca) => run_gen_ca(&ca),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "dfdaemon", &mut io::stdout());
            Ok(())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is gone.
            let _ = writeln!(io::stderr(), "dfdaemon: {error:#}");
            ExitCode::FAILURE
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
    dfdaemon::ca::generate(&ca.cert, &ca.key)?;
    writeln!(io::stdout(), "{}\n{}", ca.cert.display(), ca.key.display())?;
    Ok(())
}
