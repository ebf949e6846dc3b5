//! Black-box suites: real binaries, real origins, real clients, in network namespaces.
//!
//! `./dev test` runs them after the unit tests. A suite is a module with a `cases()` function; a case is a row of the
//! report. Cases that measure rates run alone, the others a few at a time. Everything a case starts ends with it; when
//! it fails, the ends of the logs of what it started are printed.

#![forbid(unsafe_code)]

mod clients_common;
mod clients_direct;
mod clients_intercept;
mod clients_mirror;
mod clients_passthrough;
mod clients_proxy;
mod clients_setup;
mod credentials;
mod docs;
mod faults_data;
mod faults_nodes;
mod limits;
mod origins;
mod ranges;
mod registry_chaos;
mod registry_clients;
mod registry_faults;
mod runner;
mod store_limits;
mod testbed;

fn main() -> std::process::ExitCode {
    let suites = [
        testbed::cases(),
        origins::cases(),
        clients_direct::cases(),
        clients_intercept::cases(),
        clients_mirror::cases(),
        clients_passthrough::cases(),
        clients_proxy::cases(),
        clients_setup::cases(),
        credentials::cases(),
        docs::cases(),
        faults_data::cases(),
        faults_nodes::cases(),
        limits::cases(),
        ranges::cases(),
        registry_chaos::cases(),
        registry_clients::cases(),
        registry_faults::cases(),
        store_limits::cases(),
    ];
    runner::main(suites.into_iter().flatten().collect())
}
