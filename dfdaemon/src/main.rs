//! The binary.

use std::process::ExitCode;

use clap::Parser;

/// The agent on every host
#[derive(Debug, Parser)]
#[command(name = "dfdaemon", version)]
struct Cli {
    #[command(flatten)]
    service: service::Args,
}

fn main() -> ExitCode {
    service::launch(Cli::parse().service, dfdaemon::run)
}
