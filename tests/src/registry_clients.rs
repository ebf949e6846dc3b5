//! Real clients push to our registry and pull from it: images, charts, artifacts; alone, through two processes, behind
//! nginx with TLS.
//!
//! What a client says of itself is held against what another one pulls, and against the registry's access log.

mod artifacts;
mod deletion;
mod large;
mod lifetime;
mod processes;
mod proxies;
mod ranges;
mod runtimes;
mod scene;
mod tools;

use crate::runner::Case;

pub(crate) fn cases() -> Vec<Case> {
    let suites = [
        runtimes::cases(),
        tools::cases(),
        artifacts::cases(),
        deletion::cases(),
        ranges::cases(),
        large::cases(),
        processes::cases(),
        proxies::cases(),
        lifetime::cases(),
    ];
    suites.into_iter().flatten().collect()
}
