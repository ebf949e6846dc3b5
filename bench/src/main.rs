//! The bench binary: one subcommand per bench.

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "bench", about = "Simulated and measured speed of the swarm")]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Simulate a swarm and compare it with the physical limit.
    Sim(bench::sim::cli::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().bench {
        Bench::Sim(args) => bench::sim::cli::run(&args),
    }
}
