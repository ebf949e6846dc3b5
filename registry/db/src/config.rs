//! `[database]`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use service::config::{Problems, Redacted, Validate};

use crate::connect::Target;

/// `[database]`: which database, and how patient to be with it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DbConfig {
    /// `sqlite:///folder/registry.db`, `mysql://user:password@host/database` or `postgres://user:password@host/database`.
    pub url: Redacted<String>,
    /// Connections at a time; with SQLite those that read. Each costs a thread with SQLite, and memory of the server otherwise.
    pub max_connections: u32,
    /// Connections that are kept open although nothing needs them.
    pub min_connections: u32,
    /// For a connection to become free, or to be made.
    #[serde(with = "service::config::duration")]
    pub acquire_timeout: Duration,
    /// For the server to answer one statement, locks of others included.
    #[serde(with = "service::config::duration")]
    pub statement_timeout: Duration,
    /// A connection that nothing needed for this time is closed.
    #[serde(with = "service::config::duration")]
    pub idle_timeout: Duration,
    /// Take a server that may lose the last commits when its machine fails. For trials.
    pub allow_lossy: bool,
}

const CONNECTIONS_MAX: u32 = 10_000;
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

impl Default for DbConfig {
    fn default() -> Self {
        Self {
            url: Redacted::new("sqlite:///var/lib/skimmer/registry/registry.db".to_owned()),
            max_connections: 16,
            min_connections: 1,
            acquire_timeout: Duration::from_secs(5),
            statement_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(600),
            allow_lossy: false,
        }
    }
}

impl Validate for DbConfig {
    fn validate(&self, problems: &mut Problems) {
        if let Err(message) = Target::parse(self.url.expose()) {
            problems.push("url", message);
        }
        problems.check(
            (1..=CONNECTIONS_MAX).contains(&self.max_connections),
            "max_connections",
            format!("1 to {CONNECTIONS_MAX} are allowed"),
        );
        problems.check(
            self.min_connections <= self.max_connections,
            "min_connections",
            "must not be above max_connections",
        );
        for (name, value) in [
            ("acquire_timeout", self.acquire_timeout),
            ("statement_timeout", self.statement_timeout),
            ("idle_timeout", self.idle_timeout),
        ] {
            problems.check((TIMEOUT_MIN..=TIMEOUT_MAX).contains(&value), name, "100ms to 1h are allowed");
        }
    }
}
