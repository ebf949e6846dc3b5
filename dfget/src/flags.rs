//! Every flag dfget knows, as data: whence it comes, and what it does here or why it is refused.
//!
//! The command line is read by this table ([`crate::args`]), `--help` and the completions are made from it
//! ([`crate::cli`]), and so is the table in `docs/dfget.md`.

mod markdown;
mod table;

pub use markdown::{block, markdown};
pub use table::{COMMANDS, FLAGS};

/// A flag.
#[derive(Debug)]
pub struct Flag {
    /// Its name behind `--`; empty for a short form whose meaning its value decides.
    pub long: &'static str,
    /// Its names behind `-`.
    pub short: &'static [char],
    /// Whether it has a value.
    pub takes: Takes,
    /// Where people know it from.
    pub origins: &'static [Origin],
    /// What becomes of it.
    pub effect: Effect,
    /// Under which heading it is shown.
    pub group: Group,
}

/// Whether a flag has a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
    /// It is there or not; `=true` and `=false` are understood.
    Nothing,
    /// One value, named thus in the help.
    One(&'static str),
    /// One value each time it is given, any number of times.
    Many(&'static str),
    /// A value of known form, or none (`-l`).
    Perhaps(&'static str),
}

/// Which program a flag comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Dragonfly 0.x and 1.x.
    V1,
    /// Dragonfly 2, the Go client.
    V2Go,
    /// Dragonfly 2, the Rust client.
    V2Rust,
    /// Skimmer.
    Ours,
}

/// What becomes of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does this.
    Does(&'static str),
    /// It is another name of this long flag.
    Same(&'static str),
    /// A short form with two meanings, told apart by the value: the long flags it may stand for, and how.
    Either(&'static [&'static str], &'static str),
    /// Using it is an error, for this reason.
    Refused(&'static str),
}

/// Headings of the help and of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// What, and where to.
    Download,
    /// Which content counts as the same, and what it must be.
    Content,
    /// How the origin is asked.
    Source,
    /// How fast, how long.
    Limits,
    /// `-r`.
    Recursive,
    /// What is shown.
    Display,
    /// The daemon, and the engine inside dfget.
    Engine,
    /// What cannot be used.
    Refused,
}

impl Group {
    /// All headings in their order.
    pub const ALL: [Self; 8] = [
        Self::Download,
        Self::Content,
        Self::Source,
        Self::Limits,
        Self::Recursive,
        Self::Display,
        Self::Engine,
        Self::Refused,
    ];

    /// The heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Download => "Download",
            Self::Content => "Content and identity",
            Self::Source => "Origin and route",
            Self::Limits => "Limits",
            Self::Recursive => "Folders",
            Self::Display => "Display and logs",
            Self::Engine => "Daemon and built-in engine",
            Self::Refused => "Refused",
        }
    }
}

impl Origin {
    /// The name in the table.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2Go => "v2-go",
            Self::V2Rust => "v2-rust",
            Self::Ours => "ours",
        }
    }
}

impl Flag {
    /// The flag as a person writes it.
    #[must_use]
    pub fn shown(&self) -> String {
        match self.short.first() {
            Some(short) if self.long.is_empty() => format!("-{short}"),
            _ => format!("--{}", self.long),
        }
    }

    /// A name of its own, for clap.
    #[must_use]
    pub fn id(&self) -> &'static str {
        match (self.long, self.short) {
            ("", ['e']) => "-e",
            ("", ['l']) => "-l",
            ("", ['p']) => "-p",
            (long, _) => long,
        }
    }

    /// The name under which its value is looked up: the long flag it is another name of, or its own.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match self.effect {
            Effect::Same(long) => long,
            _ => self.long,
        }
    }

    /// The name of the value, when it has one.
    #[must_use]
    pub const fn value_name(&self) -> Option<&'static str> {
        match self.takes {
            Takes::Nothing => None,
            Takes::One(name) | Takes::Many(name) | Takes::Perhaps(name) => Some(name),
        }
    }
}

/// The flag of this long name.
#[must_use]
pub fn by_long(long: &str) -> Option<&'static Flag> {
    if long.is_empty() { None } else { FLAGS.iter().find(|flag| flag.long == long) }
}

/// The flag of this short name.
#[must_use]
pub fn by_short(short: char) -> Option<&'static Flag> {
    FLAGS.iter().find(|flag| flag.short.contains(&short))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_references_lead_somewhere() {
        let mut longs = HashSet::new();
        let mut shorts = HashSet::new();
        let mut ids = HashSet::new();
        for flag in FLAGS {
            assert!(flag.long.is_empty() || longs.insert(flag.long), "--{} twice", flag.long);
            assert!(!flag.long.is_empty() || flag.short.len() == 1, "a flag without any name");
            for short in flag.short {
                assert!(shorts.insert(*short), "-{short} twice");
            }
            assert!(ids.insert(flag.id()) && !flag.id().is_empty(), "{} has no id of its own", flag.shown());
            assert!(!flag.origins.is_empty(), "{} comes from nowhere", flag.shown());
            match flag.effect {
                Effect::Same(long) => {
                    let other = by_long(long).unwrap_or_else(|| panic!("--{} is the same as nothing", flag.long));
                    assert!(matches!(other.effect, Effect::Does(_)), "--{} is the same as an alias", flag.long);
                    assert_eq!(flag.group, other.group);
                }
                Effect::Either(longs, how) => {
                    assert!(longs.len() == 2 && !how.is_empty());
                    assert!(
                        longs.iter().all(|long| by_long(long).is_some_and(|f| matches!(f.effect, Effect::Does(_))))
                    );
                }
                Effect::Does(what) => assert!(!what.is_empty()),
                Effect::Refused(why) => assert!(!why.is_empty() && flag.group == Group::Refused),
            }
        }
    }

    /// The lists people script against. A name that is missing here was forgotten in the table.
    #[test]
    fn the_lists_of_the_older_programs_are_complete() {
        let lists: [(Origin, &str, &str); 3] = [
            (
                Origin::V1,
                "url output md5 identifier filter header cacerts insecure node notbs pattern locallimit minrate totallimit \
                 clientqueue timeout expiretime alivetime ip port home callsystem dfdaemon showbar console verbose data meta",
                "uomifnpseb",
            ),
            (
                Origin::V2Rust,
                "output recursive include-files max-files max-concurrent-requests timeout digest priority piece-length \
                 application tag header filtered-query-param content-for-calculating-task-id disable-back-to-source overwrite \
                 force-hard-link transfer-from-dfdaemon storage-region storage-endpoint storage-access-key-id \
                 storage-access-key-secret storage-security-token storage-session-token storage-insecure-skip-verify \
                 storage-credential-path storage-predefined-acl hdfs-delegation-token hf-revision hf-token hf-base-url \
                 ms-revision ms-token ms-base-url csg-revision csg-token csg-base-url endpoint log-level console no-progress \
                 version",
                "OrIpHelV",
            ),
            (
                Origin::V2Go,
                "url output timeout ratelimit digest tag application priority filter header disable-back-source recursive level \
                 list accept-regex reject-regex range original-offset daemon-sock workhome logdir logLevel datadir cachedir \
                 show-progress console",
                "uOPHrlb",
            ),
        ];
        for (origin, longs, shorts) in lists {
            for long in longs.split_whitespace() {
                let flag = by_long(long).unwrap_or_else(|| panic!("--{long} of {origin:?} is missing"));
                assert!(flag.origins.contains(&origin), "--{long} does not say {origin:?}");
            }
            for short in shorts.chars() {
                let flag = by_short(short).unwrap_or_else(|| panic!("-{short} of {origin:?} is missing"));
                assert!(flag.origins.contains(&origin), "-{short} does not say {origin:?}");
            }
        }
    }
}
