//! The binary.

use std::process::ExitCode;

use clap::Parser as _;

/// Tells every host which cluster managers are nearest to it.
#[derive(clap::Parser)]
#[command(version)]
struct Args {
    #[command(flatten)]
    service: service::Args,
}

fn main() -> ExitCode {
    service::launch(Args::parse().service, config_service::run)
}
