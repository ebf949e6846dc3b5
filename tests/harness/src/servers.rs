//! Servers: origins of images and files; our own registry, its databases, its object storage, and what stands before it.

mod balancer;
mod files;
mod mariadb;
mod postgres;
mod registry;
mod rogue;
mod skimmer;
mod storage;
mod token;

use std::path::Path;

use anyhow::{Context, Result, ensure};

pub use balancer::LoadBalancer;
pub use files::{FileServer, FileServerOptions};
pub use mariadb::MariaDb;
pub use postgres::Postgres;
pub use registry::{Registry, RegistryAuth, blob_bytes};
pub use rogue::{Behaviour, RogueOrigin, RogueRequest};
pub use skimmer::SkimmerRegistry;
pub use storage::{S3Kind, S3Server};
pub use token::TokenServer;

/// A line of an origin's access log: what it says it did, for counting outside our own processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessEntry {
    /// GET, HEAD and so on.
    pub method: String,
    /// Path and query.
    pub uri: String,
    /// The status answered.
    pub status: u16,
    /// Bytes of the body that were sent.
    pub body_bytes: u64,
    /// The Range header, or empty.
    pub range: String,
    /// Who asked, an address.
    pub from: String,
}

/// Names of databases stand in statements as they are.
fn check_database_name(name: &str) -> Result<()> {
    let plain = name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'));
    let fits = name.starts_with(|first: char| first.is_ascii_lowercase()) && name.len() <= 63;
    ensure!(plain && fits, "{name:?} is no name for a database");
    Ok(())
}

/// Reads an access log of one JSON object a line, written in the names that nginx and apache are told to use.
fn read_access_log(path: &Path) -> Result<Vec<AccessEntry>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let number = |value: &serde_json::Value| value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or(0);
    let lines = text.lines().map(|line| -> Result<AccessEntry> {
        let line: serde_json::Value = serde_json::from_str(line).with_context(|| format!("access log line {line}"))?;
        let text = |name: &str| line[name].as_str().filter(|text| *text != "-").unwrap_or_default().to_owned();
        Ok(AccessEntry {
            method: text("method"),
            uri: text("uri"),
            status: u16::try_from(number(&line["status"]))?,
            body_bytes: number(&line["bytes"]),
            range: text("range"),
            from: text("from"),
        })
    });
    lines.collect()
}
