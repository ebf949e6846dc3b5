//! `registry rebuild`: fills a database from the store alone, or adds to one what only the store has.

use std::collections::HashSet;

use blobs::Shard;
use db::{ChangeId, Dangling, Restored, RestoredBlob, RestoredManifest, RestoredTag};
use oci::Manifest;
use oci::upload::UploadId;
use serde::Serialize;
use service::metrics::Metrics;

use super::say;
use crate::app::App;
use crate::config::Config;
use crate::records;

/// Flags of `registry rebuild`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct RebuildArgs {
    /// Also when the database is not empty: adds what it does not know, and changes only rows whose bytes or record are gone
    #[arg(long)]
    pub merge: bool,
    /// One line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Entries written in one transaction.
const BATCH: usize = 200;

#[derive(Debug, Default, Serialize)]
struct Report {
    blobs: u64,
    manifests: u64,
    tags: u64,
    /// Entries that another one has the place of.
    superseded: u64,
    /// Blobs that no manifest needs, and that nobody can read therefore.
    unneeded: u64,
    /// Entries that cannot be read, or have lost what they name.
    skipped: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// When the database is not empty, or store or database fail.
pub(crate) async fn run(config: Config, args: RebuildArgs) -> anyhow::Result<()> {
    let metrics = Metrics::new("registry", env!("CARGO_PKG_VERSION"));
    let (app, rebuild) = App::open_to_rebuild(config, args.merge, &metrics).await?;
    let mut report = Report::default();
    let present = match app.db.is_empty().await? {
        true => None,
        false => Some(Present::list(&app).await?),
    };
    blobs(&app, &mut report, present.as_ref()).await?;
    manifests(&app, &mut report, present.as_ref()).await?;
    tags(&app, &mut report).await?;
    report.unneeded = unneeded(&app).await?;
    rebuild.end(&app.db, &app.store).await?;
    if args.json {
        say(serde_json::to_string(&report)?);
    } else {
        for skipped in &report.skipped {
            say(format_args!("skipped: {skipped}"));
        }
        say(format_args!(
            "restored {} blobs, {} manifests and {} tags; {} entries were older than others, {} skipped",
            report.blobs,
            report.manifests,
            report.tags,
            report.superseded,
            report.skipped.len()
        ));
        if report.unneeded > 0 {
            say(format_args!(
                "{} blobs are needed by no manifest; they stay until `registry fsck --repair` removes them",
                report.unneeded
            ));
        }
    }
    Ok(())
}

impl Report {
    fn count(&mut self, restored: Restored) -> u64 {
        match restored {
            Restored::New => 1,
            Restored::Superseded => {
                self.superseded += 1;
                0
            }
            _ => 0,
        }
    }
}

/// They are not removed here: if records were lost, or are yet to be brought back, they are all there is.
async fn unneeded(app: &App) -> anyhow::Result<u64> {
    let dangling = app.db.dangling_rows(u32::MAX.into()).await?;
    Ok(dangling.iter().filter(|row| matches!(row, Dangling::BlobWithoutLink { .. })).count() as u64)
}

/// What the store has, where the database may name what it has no longer.
struct Present {
    blobs: HashSet<UploadId>,
    records: HashSet<String>,
}

impl Present {
    async fn list(app: &App) -> anyhow::Result<Self> {
        let mut present = Self { blobs: HashSet::new(), records: HashSet::new() };
        for shard in Shard::all() {
            let blobs = app.store.list_blobs(shard).await?.entries;
            present.blobs.extend(blobs.iter().filter(|blob| blob.is_whole()).map(|blob| blob.key));
            let records = app.store.list_manifest_records(shard).await?.entries;
            let whole = records.iter().filter(|entry| entry.record.is_ok());
            present.records.extend(whole.map(|entry| entry.name.to_string()));
        }
        Ok(present)
    }
}

/// Without what was given up on purpose and waits to be removed.
async fn kept<T>(
    app: &App,
    report: &mut Report,
    found: Vec<T>,
    entry: impl Fn(&T) -> String,
) -> anyhow::Result<Vec<T>> {
    let entries: Vec<String> = found.iter().map(entry).collect();
    let due = app.db.removals_known(&entries).await?;
    let kept: Vec<T> =
        found.into_iter().zip(&entries).filter(|(_, entry)| !due.contains(*entry)).map(|(found, _)| found).collect();
    report.superseded += (entries.len() - kept.len()) as u64;
    Ok(kept)
}

async fn blobs(app: &App, report: &mut Report, present: Option<&Present>) -> anyhow::Result<()> {
    let is_there = |key: &UploadId| present.is_none_or(|present| present.blobs.contains(key));
    for shard in Shard::all() {
        let mut found = Vec::new();
        for blob in app.store.list_blobs(shard).await?.entries {
            match &blob.name {
                Some(name) if blob.is_whole() => {
                    found.push(RestoredBlob { digest: name.digest.clone(), size: name.size, key: blob.key })
                }
                _ => report.skipped.push(format!("blob {}: its bytes are not all there", blob.key)),
            }
        }
        let entry = |blob: &RestoredBlob| records::blob_entry(blob.key, &blob.digest, blob.size);
        let found = kept(app, report, found, entry).await?;
        for batch in found.chunks(BATCH) {
            for restored in app.db.restore_blobs(batch, &is_there, app.now_ms()).await? {
                report.blobs += report.count(restored);
            }
        }
    }
    Ok(())
}

async fn manifests(app: &App, report: &mut Report, present: Option<&Present>) -> anyhow::Result<()> {
    let is_there = |record: &str| present.is_none_or(|present| present.records.contains(record));
    let limits = app.stored_manifest_limits();
    for shard in Shard::all() {
        let mut found = Vec::new();
        for entry in app.store.list_manifest_records(shard).await?.entries {
            let record = match entry.record {
                Ok(record) => record,
                Err(error) => {
                    report.skipped.push(format!("record {}: {error}", entry.name));
                    continue;
                }
            };
            match Manifest::parse(record.bytes.clone(), Some(&record.media_type), &limits) {
                Ok(manifest) => found.push(RestoredManifest {
                    repository: record.repository,
                    manifest,
                    digest: record.digest,
                    record: entry.name.to_string(),
                    created_ms: i64::try_from(record.time_ms).unwrap_or(i64::MAX),
                    foreign: record.foreign,
                }),
                Err(error) => report.skipped.push(format!("record {}: {error}", entry.name)),
            }
        }
        let found = kept(app, report, found, |manifest| records::manifest_entry(&manifest.record)).await?;
        for batch in found.chunks(BATCH) {
            for restored in app.db.restore_manifests(batch, &is_there).await? {
                report.manifests += report.count(restored);
            }
        }
    }
    Ok(())
}

async fn tags(app: &App, report: &mut Report) -> anyhow::Result<()> {
    for shard in Shard::all() {
        let mut found = Vec::new();
        for entry in app.store.list_tag_records(shard).await?.entries {
            match entry.record {
                Ok(record) => found.push(RestoredTag {
                    repository: record.repository,
                    tag: record.tag,
                    digest: record.digest,
                    gone: record.gone,
                    change: ChangeId(i64::try_from(record.change).unwrap_or(i64::MAX)),
                    at_ms: i64::try_from(record.time_ms).unwrap_or(i64::MAX),
                }),
                Err(error) => report.skipped.push(format!("tag record {}: {error}", entry.name)),
            }
        }
        for batch in found.chunks(BATCH) {
            for (tag, restored) in batch.iter().zip(app.db.restore_tags(batch).await?) {
                if restored == Restored::Incomplete {
                    report.skipped.push(format!("tag {}:{}: its manifest is not there", tag.repository, tag.tag));
                }
                let restored = report.count(restored);
                report.tags += if tag.gone { 0 } else { restored };
            }
        }
    }
    Ok(())
}
