//! `registry gc`: what waits for the collector, and what it would remove.

use anyhow::Context as _;
use db::Db;
use serde::Serialize;

use super::say;
use crate::config::Config;
use crate::records;

/// Flags of `registry gc`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct GcArgs {
    /// One line of JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    links_due: u64,
    links_leased: u64,
    removals: u64,
    removal_bytes: u64,
    would_unlink: u64,
    would_remove_blobs: u64,
    would_free_bytes: u64,
}

/// Prints the backlog and what the next rounds would do; changes nothing.
///
/// # Errors
/// When the database cannot be read.
pub(crate) async fn run(config: Config, args: GcArgs) -> anyhow::Result<()> {
    let db = Db::connect_to_read(&config.database).await.context("cannot open the database")?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let now = i64::try_from(now.as_millis())?;
    let backlog = db.backlog(now).await?;
    let dry = db.collect(now, u32::MAX, true, &records::blob_entry).await?;
    let report = Report {
        links_due: backlog.links_due,
        links_leased: backlog.links_leased,
        removals: backlog.removals,
        removal_bytes: backlog.removal_bytes,
        would_unlink: dry.unlinked,
        would_remove_blobs: dry.blobs,
        would_free_bytes: dry.bytes,
    };
    if args.json {
        say(serde_json::to_string(&report)?);
    } else {
        say(format_args!(
            "{} leases are over, {} are not; {} entries ({} bytes) wait to be removed\n\
             a round now would take {} blobs out of repositories, and remove {} of them ({} bytes)",
            report.links_due,
            report.links_leased,
            report.removals,
            report.removal_bytes,
            report.would_unlink,
            report.would_remove_blobs,
            report.would_free_bytes
        ));
    }
    Ok(())
}
