//! When the registry goes wrong: killed, its disk full or failing, its database or storage gone, its clients bad.
//!
//! What the cases have in common is here and in the modules without cases: HTTP by hand, what is pushed, servers, strace,
//! a proxy that makes trouble. Everything is on addresses of the loopback network, so that most of it needs no root.

mod answers;
mod bad_clients;
mod bad_requests;
pub(crate) mod content;
mod disks;
mod durability;
pub(crate) mod http;
mod logs;
mod merge;
mod outages;
mod proxy;
mod recovery;
mod rested;
mod resume;
pub(crate) mod site;
mod ties;
mod trace;
mod visibility;

use crate::runner::Case;

pub(crate) fn cases() -> Vec<Case> {
    let suites = [
        durability::cases(),
        resume::cases(),
        rested::cases(),
        ties::cases(),
        merge::cases(),
        recovery::cases(),
        disks::cases(),
        logs::cases(),
        answers::cases(),
        outages::cases(),
        bad_clients::cases(),
        bad_requests::cases(),
        visibility::cases(),
    ];
    suites.into_iter().flatten().collect()
}
