//! The binary.

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser};

/// The agent on every host: P2P downloads, registry mirror and HTTP(S) proxy.
#[derive(Debug, Parser)]
#[command(name = "dfdaemon", version, subcommand_required = true)]
struct Args {
    #[command(subcommand)]
    command: dfdaemon::cli::Command,
}

fn main() -> ExitCode {
    match Args::parse().command.run(Args::command()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell when stderr is gone.
            let _ = writeln!(io::stderr(), "dfdaemon: {error:#}");
            ExitCode::FAILURE
        }
    }
}
