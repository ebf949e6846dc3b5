//! Wrong bytes, from whomever they come: nobody gets them for right ones, and nobody keeps them.

mod changes;
mod flips;
mod liars;
mod power;
pub(crate) mod probe;

use crate::runner::{Case, rooted};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        rooted(
            "a peer serves flipped bits over tcp: refused, named, no longer used, the download finishes",
            liars::over_tcp,
        ),
        rooted(
            "a peer serves flipped bits over quic: refused, named, no longer used, the download finishes",
            liars::over_quic,
        ),
        rooted("a peer's disk flips bits: neighbours refuse them, and it finds its own copy out", liars::rotten_disk),
        rooted(
            "the origin flips a byte, proxy: the connection breaks, nobody keeps it, the next try succeeds",
            flips::by_proxy,
        ),
        rooted(
            "the origin flips a byte, mirror: the connection breaks, nobody keeps it, the next try succeeds",
            flips::by_mirror,
        ),
        rooted(
            "the origin flips a byte and tells no length: chunked and HTTP/1.0 readers see it break",
            flips::without_length,
        ),
        rooted(
            "the origin flips a byte, dfget -O: exit 3, an existing file is untouched, the next try succeeds",
            flips::by_dfget,
        ),
        rooted(
            "the origin flips a byte, dfget without a daemon: exit 3, an existing file is untouched",
            flips::by_lone_dfget,
        ),
        rooted(
            "the origin changes in mid-download: one generation or an error, nothing wrong is kept",
            changes::in_mid_download,
        ),
        rooted("the origin changes behind its validators: the digest tells", changes::behind_its_validators),
        rooted(
            "the origin lies about the length, both ways: an error, nothing wrong is kept",
            changes::lies_about_length,
        ),
        rooted("the origin drops the connection: the download goes on and is right", changes::drops),
        rooted("the origin ignores ranges, or answers 200 to them: right bytes or an error", changes::ranges),
        rooted(
            "the file is replaced between two downloads: fetched anew, also without validators",
            changes::replaced_between,
        ),
        rooted(
            "a URL is asked for again while its last download lingers, and the origin answers late",
            changes::asked_for_again_while_it_lingers,
        ),
        rooted("the file is replaced while daemon and supernode are down: fetched anew", changes::replaced_while_down),
        rooted("power loss in mid-download, daemon: no bad byte is served, the download completes", power::daemon),
        rooted("power loss in mid-download, seed: no bad byte is served, the download completes", power::seed),
        rooted("kill -9 after a download: what was finished is kept, nothing is read again", power::finished_stays),
    ]
}
