//! The binary.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};
use registry::{FsckArgs, GcArgs, RebuildArgs};

/// An OCI registry: one process on a folder and SQLite, or several on object storage and MariaDB, MySQL or PostgreSQL.
#[derive(clap::Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    service: service::Args,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Serve; also what happens without a command
    Serve(ServeArgs),
    /// Compare store and database both ways; exits with 1 when something is wrong that was not mended
    Fsck(WithService<FsckArgs>),
    /// Fill an empty database from the store alone
    Rebuild(WithService<RebuildArgs>),
    /// Show what waits to be removed, and what would be; changes nothing
    Gc(WithService<GcArgs>),
    /// Print a completion script for a shell
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

#[derive(clap::Args)]
struct ServeArgs {
    #[command(flatten)]
    service: service::Args,
}

#[derive(clap::Args)]
struct WithService<T: clap::Args> {
    /// Configuration file (TOML); by default /etc/skimmer/registry.toml if there is one
    #[arg(short, long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
    #[command(flatten)]
    own: T,
}

impl<T: clap::Args> WithService<T> {
    fn split(self, outer: service::Args) -> (service::Args, T) {
        (service::Args { config: self.config.or(outer.config), ..service::Args::default() }, self.own)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match args.command {
        None => service::launch(args.service, registry::run),
        Some(Command::Serve(serve)) => {
            let service = service::Args { config: serve.service.config.or(args.service.config), ..serve.service };
            service::launch(service, registry::run)
        }
        Some(Command::Fsck(command)) => {
            let (service, own) = command.split(args.service);
            service::launch(service, |config, _| registry::fsck(config, own))
        }
        Some(Command::Rebuild(command)) => {
            let (service, own) = command.split(args.service);
            service::launch(service, |config, _| registry::rebuild(config, own))
        }
        Some(Command::Gc(command)) => {
            let (service, own) = command.split(args.service);
            service::launch(service, |config, _| registry::gc(config, own))
        }
        Some(Command::Completions { shell }) => {
            clap_complete::generate(shell, &mut Args::command(), "registry", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}
