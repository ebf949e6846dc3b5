//! Deletes manifests without a tag, where the configuration asks for it.

use std::sync::Arc;
use std::time::Duration;

use db::{DbError, DeleteManifest, ManifestId};

use crate::app::App;
use crate::records::{self, Gone};

const INTERVAL: Duration = Duration::from_secs(60);
const BATCH: u64 = 100;

pub(super) async fn run(app: Arc<App>) {
    loop {
        let gc = app.gc();
        if let (true, Some(after)) = (gc.enabled, gc.untagged_after) {
            match round(&app, after).await {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "deleted manifests without a tag"),
                Err(error) => tracing::warn!(%error, "manifests without a tag cannot be deleted"),
            }
        }
        tokio::time::sleep(INTERVAL.min(gc.interval)).await;
    }
}

async fn round(app: &App, after: Duration) -> Result<u64, DbError> {
    let now = app.now_ms();
    let before = now.saturating_sub(i64::try_from(after.as_millis()).unwrap_or(i64::MAX));
    let mut last = ManifestId::default();
    let mut count = 0;
    loop {
        let page = app.db.untagged_manifests(before, last, BATCH).await?;
        let Some(end) = page.last() else { return Ok(count) };
        last = end.id;
        for manifest in &page {
            let name = &manifest.repository_name;
            let delete = DeleteManifest {
                repository: manifest.repository,
                digest: &manifest.digest,
                now_ms: now,
                leased_until_ms: now + app.lease_ms(),
                tag_entry: &|tag, change| records::tag_entry(name, tag, change),
                record_entry: &records::manifest_entry,
            };
            if let Some(deleted) = app.db.delete_untagged(&delete, before).await? {
                app.cache.changed(manifest.repository);
                let gone =
                    Gone { repository: name, digest: &manifest.digest, tags: &deleted.tags, entries: &deleted.entries };
                if let Err(error) = records::forget(app, &gone).await {
                    tracing::warn!(%error, digest = %manifest.digest, "the record of a manifest is removed later");
                }
                count += 1;
            }
        }
    }
}
