//! The bench binary: one subcommand per bench.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bench", about = "The demo, and simulated and measured speed of the swarm")]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Four hosts pull an image and a file through each other; exits with 1 when a promise is not kept.
    Demo(bench::demo::Args),
    /// Simulate a swarm and compare it with the physical limit.
    Sim(bench::sim::cli::Args),
    /// Hosts in a shaped network download one file at the same time.
    Testbed(bench::testbed::Args),
    /// dfget on one host against curl.
    Single(bench::single::Args),
    /// Memory of a dfdaemon.
    Memory(bench::memory::Args),
    /// Our registry beside Distribution.
    Registry(bench::registry::Args),
    /// Lists, manifests and pushes of a registry with 100,000 manifests.
    Catalog(bench::catalog::Args),
    /// Pushes while the collector removes 50,000 blobs.
    Gc(bench::gc::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().bench {
        Bench::Demo(args) => bench::demo::run(&args),
        Bench::Sim(args) => bench::sim::cli::run(&args),
        Bench::Testbed(args) => bench::testbed::run(&args),
        Bench::Single(args) => bench::single::run(&args),
        Bench::Memory(args) => bench::memory::run(&args),
        Bench::Registry(args) => bench::registry::run(&args),
        Bench::Catalog(args) => bench::catalog::run(&args),
        Bench::Gc(args) => bench::gc::run(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("bench: {error:#}");
        ExitCode::FAILURE
    })
}
