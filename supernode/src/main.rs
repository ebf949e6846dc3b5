//! The `supernode` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser;

/// Cluster manager: fetches each file from its origin once, seeds it, and schedules peers
#[derive(Debug, Parser)]
#[command(name = "supernode", version)]
struct Cli {
    #[command(flatten)]
    service: service::Args,
}

fn main() -> ExitCode {
    service::launch(Cli::parse().service, supernode::run)
}
