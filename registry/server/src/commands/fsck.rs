//! `registry fsck`: compares store and database both ways.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use anyhow::Context as _;
use blobs::{RecordId, Shard, StoreEntry, StoreError, StoredBlob};
use db::{BlobId, BlobRow, ManifestId, ManifestRow, TagRow};
use oci::upload::UploadId;
use serde::Serialize;
use service::metrics::Metrics;

use super::say;
use crate::app::App;
use crate::config::Config;
use crate::records;
use crate::upkeep::scrub;

/// Flags of `registry fsck`.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct FsckArgs {
    /// Mend what can be mended: remove orphans, forget what is lost so that a push heals it, write missing records
    #[arg(long)]
    pub repair: bool,
    /// Read every blob and compare its digest
    #[arg(long)]
    pub deep: bool,
    /// Files younger than this may belong to a push that is being committed, and are not called orphans
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = humantime::parse_duration)]
    pub grace: Duration,
    /// One line of JSON
    #[arg(long)]
    pub json: bool,
}

/// Rows read at a time.
const PAGE: u64 = 1000;
/// Rows that hang in the air, of each sort.
const DANGLING_MAX: u64 = 10_000;
/// A record is written a moment after its row.
const SETTLING: Duration = Duration::from_secs(1);

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub(crate) enum Finding {
    /// The database has a blob, the store has not.
    MissingFile { digest: String, key: String, needed_by: Vec<String> },
    /// The store has fewer or more bytes than the blob has.
    WrongSize { digest: String, key: String, expected: u64, found: u64, needed_by: Vec<String> },
    /// The bytes are not what the digest says.
    WrongContent { digest: String, key: String, found: String, needed_by: Vec<String> },
    /// The store has something that the database does not know.
    Orphan { entry: String },
    /// The store has something that nobody of ours wrote.
    Stranger { path: String },
    /// A row that hangs in the air.
    OrphanRow { row: String },
    /// A manifest, tag or blob whose record is not in the store, so that a rebuild would lose it.
    MissingRecord { what: String },
}

/// What was looked at, and found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) blobs: u64,
    pub(crate) files: u64,
    pub(crate) manifests: u64,
    pub(crate) tags: u64,
    pub(crate) bytes: u64,
    /// Files among them that are due to be removed.
    pub(crate) removals: u64,
    pub(crate) findings: Vec<Finding>,
    pub(crate) repaired: u64,
}

/// Runs it, and prints what it found.
///
/// # Errors
/// When something is wrong that was not mended, or store or database cannot be read.
pub(crate) async fn run(config: Config, args: FsckArgs) -> anyhow::Result<()> {
    let metrics = Metrics::new("registry", env!("CARGO_PKG_VERSION"));
    let app = match args.repair {
        true => App::open(config, &metrics).await?,
        // The process that serves may go on.
        false => App::open_to_read(config, &metrics).await?,
    };
    let report = check(&app, &args).await?;
    if args.json {
        say(serde_json::to_string(&report).context("the report cannot be written")?);
    } else {
        for finding in &report.findings {
            say(serde_json::to_string(finding).context("the report cannot be written")?);
        }
        say(format_args!(
            "{} blobs in the database, {} files in the store ({} bytes), {} manifests, {} tags: {} problems, {} repaired",
            report.blobs,
            report.files,
            report.bytes,
            report.manifests,
            report.tags,
            report.findings.len(),
            report.repaired
        ));
    }
    let left = (report.findings.len() as u64).saturating_sub(report.repaired);
    anyhow::ensure!(left == 0, "{left} problems are left");
    Ok(())
}

/// A blob's bytes in the store.
#[derive(Clone, Copy)]
struct Seen {
    size: u64,
    is_named: bool,
}

/// The comparison itself.
pub(crate) async fn check(app: &App, args: &FsckArgs) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let rows = blobs(app).await?;
    report.blobs = rows.len() as u64;
    // In a folder a process that died may have left another name beside the blob's.
    let mut seen: HashMap<(UploadId, Option<oci::Digest>), Seen> = HashMap::with_capacity(rows.len());
    let mut orphans = Vec::new();
    let mut records = HashSet::new();
    for shard in Shard::all() {
        let listing = app.store.list_blobs(shard).await?;
        report.findings.extend(listing.strangers.into_iter().map(|path| Finding::Stranger { path }));
        for found in listing.entries {
            report.files += 1;
            report.bytes += found.size_found.unwrap_or(0);
            if let Some(size) = found.size_found {
                let name = found.name.map(|name| name.digest);
                let is_named = name.is_some();
                seen.insert((found.key, name), Seen { size, is_named });
            }
        }
        let manifests = app.store.list_manifest_records(shard).await?;
        let tags = app.store.list_tag_records(shard).await?;
        for path in manifests.strangers.into_iter().chain(tags.strangers) {
            report.findings.push(Finding::Stranger { path });
        }
        let whole = |whole: bool, entry: StoreEntry| whole.then(|| entry.to_string());
        records.extend(
            manifests.entries.iter().filter_map(|r| whole(r.record.is_ok(), StoreEntry::ManifestRecord(r.name))),
        );
        records.extend(tags.entries.iter().filter_map(|r| whole(r.record.is_ok(), StoreEntry::TagRecord(r.name))));
        orphans.extend(scrub::strays(app, shard, args.grace).await?.entries);
    }
    // What was removed on purpose and waits is no orphan.
    let texts: Vec<String> = orphans.iter().map(ToString::to_string).collect();
    let due = app.db.removals_known(&texts).await?;
    let is_due = |entry: &StoreEntry| due.contains(&entry.to_string());
    report.removals =
        orphans.iter().filter(|entry| matches!(entry, StoreEntry::Blob(_)) && is_due(entry)).count() as u64;
    orphans.retain(|entry| !is_due(entry));
    for entry in &orphans {
        report.findings.push(Finding::Orphan { entry: entry.to_string() });
    }
    for row in &rows {
        let seen = seen.get(&(row.key, Some(row.digest.clone()))).or_else(|| seen.get(&(row.key, None)));
        blob(app, args, &mut report, row, seen.copied()).await?;
    }
    missing_records(app, args, &mut report, &records).await?;
    let dangling = app.db.dangling_rows(DANGLING_MAX).await?;
    report.findings.extend(dangling.iter().map(|row| Finding::OrphanRow { row: format!("{row:?}") }));
    if args.repair {
        report.repaired += scrub::remove(app, &orphans).await?;
        let now = app.now_ms();
        report.repaired +=
            app.db.repair(&dangling, now, now + app.lease_ms(), &records::blob_entry).await?.min(dangling.len() as u64);
    }
    Ok(report)
}

async fn blobs(app: &App) -> anyhow::Result<Vec<BlobRow>> {
    let mut all = Vec::new();
    let mut after = BlobId::default();
    loop {
        let page = app.db.blobs_page(after, PAGE).await?;
        let Some(last) = page.last() else { return Ok(all) };
        after = last.id;
        all.extend(page);
    }
}

/// One row against its file.
async fn blob(
    app: &App,
    args: &FsckArgs,
    report: &mut Report,
    row: &BlobRow,
    seen: Option<Seen>,
) -> anyhow::Result<()> {
    let (digest, key) = (row.digest.to_string(), row.key.to_string());
    if seen.is_some_and(|seen| !seen.is_named) {
        report.findings.push(Finding::MissingRecord { what: format!("blob {digest}") });
        if args.repair {
            app.store.put_blob_name(&stored(row)).await?;
            report.repaired += 1;
        }
    }
    let finding = match seen.map(|seen| seen.size) {
        None => {
            // It may have come after its folder was listed, or have gone with its row.
            let blob = stored(row);
            match app.store.stat(&blob).await? {
                Some(size) if size == row.size => return Ok(()),
                _ if app.db.digests_of_keys(&[row.key]).await?.is_empty() => return Ok(()),
                _ => Finding::MissingFile { digest, key, needed_by: Vec::new() },
            }
        }
        Some(size) if size != row.size => {
            Finding::WrongSize { digest, key, expected: row.size, found: size, needed_by: Vec::new() }
        }
        Some(_) if args.deep => match content(app, row).await? {
            Some(found) if found == row.digest => return Ok(()),
            Some(found) => Finding::WrongContent { digest, key, found: found.to_string(), needed_by: Vec::new() },
            None if app.db.digests_of_keys(&[row.key]).await?.is_empty() => return Ok(()),
            None => Finding::MissingFile { digest, key, needed_by: Vec::new() },
        },
        Some(_) => return Ok(()),
    };
    let needed_by = if args.repair {
        report.repaired += 1;
        let needed_by = app.db.forget_blob(row.id, app.now_ms()).await?;
        scrub::remove(app, &[StoreEntry::Blob(stored(row))]).await?;
        needed_by
    } else {
        app.db.needed_by(row.id, &row.digest).await?
    };
    let needed_by = needed_by.iter().map(|needed| format!("{}@{}", needed.repository, needed.manifest));
    report.findings.push(finding.needed_by(needed_by.collect()));
    Ok(())
}

fn stored(row: &BlobRow) -> StoredBlob {
    StoredBlob { key: row.key, digest: row.digest.clone(), size: row.size }
}

/// The digest of what the store has; `None`: nothing any more.
async fn content(app: &App, row: &BlobRow) -> anyhow::Result<Option<oci::Digest>> {
    use blobs::BlobBody;
    use futures_util::StreamExt as _;
    let mut hasher = row.digest.algorithm().hasher();
    let body = match app.store.open(&stored(row), None).await {
        Err(StoreError::NotFound { .. }) => return Ok(None),
        body => body?,
    };
    match body {
        BlobBody::File { file, offset, len } => {
            let read = move || -> std::io::Result<oci::Digest> {
                use std::os::unix::fs::FileExt as _;
                let mut buffer = vec![0; 1 << 20];
                let (mut at, end) = (offset, offset + len);
                while at < end {
                    let step = usize::try_from((end - at).min(1 << 20)).unwrap_or(1 << 20);
                    file.read_exact_at(&mut buffer[..step], at)?;
                    hasher.update(&buffer[..step]);
                    at += step as u64;
                }
                Ok(hasher.finish())
            };
            Ok(Some(tokio::task::spawn_blocking(read).await??))
        }
        BlobBody::Stream { mut stream, .. } => {
            while let Some(bytes) = stream.next().await {
                hasher.update(&bytes?);
            }
            Ok(Some(hasher.finish()))
        }
    }
}

/// Manifests and tags against their records.
async fn missing_records(
    app: &App,
    args: &FsckArgs,
    report: &mut Report,
    records: &HashSet<String>,
) -> anyhow::Result<()> {
    let (mut manifests, mut tags) = (Vec::new(), Vec::new());
    let mut after = ManifestId::default();
    loop {
        let page = app.db.manifests_page(after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.id;
        report.manifests += page.len() as u64;
        manifests.extend(page.into_iter().filter(|row| !records.contains(&records::manifest_entry(&row.record))));
    }
    let mut last: Option<(db::RepositoryId, oci::TagName)> = None;
    loop {
        let page = app.db.tags_page(last.as_ref().map(|(id, tag)| (*id, tag)), PAGE).await?;
        let Some(end) = page.last() else { break };
        last = Some((end.repository, end.tag.clone()));
        report.tags += page.len() as u64;
        let entry = |row: &TagRow| records::tag_entry(&row.repository_name, &row.tag, row.change);
        tags.extend(page.into_iter().filter(|row| !records.contains(&entry(row))));
    }
    if manifests.is_empty() && tags.is_empty() {
        return Ok(());
    }
    // They may have come after their folder was listed, and their records a moment after them.
    tokio::time::sleep(SETTLING).await;
    for row in lost_manifests(app, manifests).await? {
        let what = format!("manifest {}@{}", row.repository_name, row.digest);
        report.findings.push(Finding::MissingRecord { what });
        if args.repair {
            records::rewrite_manifest(app, &row).await?;
            report.repaired += 1;
        }
    }
    for row in lost_tags(app, tags).await? {
        report.findings.push(Finding::MissingRecord { what: format!("tag {}:{}", row.repository_name, row.tag) });
        if args.repair {
            records::settle(app, &row.repository_name, &row.tag).await?;
            report.repaired += 1;
        }
    }
    Ok(())
}

/// Those whose record really is not there.
async fn lost_manifests(app: &App, rows: Vec<ManifestRow>) -> anyhow::Result<Vec<ManifestRow>> {
    let mut shards = HashMap::<Shard, Vec<ManifestRow>>::new();
    for row in rows {
        shards.entry(row.record.parse::<RecordId>()?.shard()).or_default().push(row);
    }
    let mut lost = Vec::new();
    for (shard, rows) in shards {
        let listing = app.store.list_manifest_records(shard).await?.entries;
        let there: HashSet<String> =
            listing.iter().filter(|found| found.record.is_ok()).map(|found| found.name.to_string()).collect();
        let rows: Vec<_> = rows.into_iter().filter(|row| !there.contains(&row.record)).collect();
        let names: Vec<_> = rows.iter().map(|row| row.record.clone()).collect();
        let known = app.db.manifest_records_known(&names).await?;
        lost.extend(rows.into_iter().filter(|row| known.contains(&row.record)));
    }
    Ok(lost)
}

/// Those whose record really is not there, nor a later one, and that are still where they were.
async fn lost_tags(app: &App, rows: Vec<TagRow>) -> anyhow::Result<Vec<TagRow>> {
    let mut shards = HashMap::<Shard, Vec<TagRow>>::new();
    for row in rows {
        shards.entry(records::tag_name(&row).shard()).or_default().push(row);
    }
    let mut lost = Vec::new();
    for (shard, rows) in shards {
        let mut highest = HashMap::new();
        for found in app.store.list_tag_records(shard).await?.entries.iter().filter(|found| found.record.is_ok()) {
            let of: &mut u64 = highest.entry(found.name.of()).or_default();
            *of = found.name.change().max(*of);
        }
        for row in rows {
            let name = records::tag_name(&row);
            let is_later = highest.get(&name.of()).is_some_and(|change| *change >= name.change());
            if !is_later && app.db.tag(row.repository, &row.tag).await?.is_some_and(|now| now.change == row.change) {
                lost.push(row);
            }
        }
    }
    Ok(lost)
}

impl Finding {
    fn needed_by(mut self, list: Vec<String>) -> Self {
        if let Self::MissingFile { needed_by, .. }
        | Self::WrongSize { needed_by, .. }
        | Self::WrongContent { needed_by, .. } = &mut self
        {
            *needed_by = list;
        }
        self
    }
}
