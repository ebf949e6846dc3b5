//! Forgets uploads that nobody goes on with, and takes back their space.

use std::sync::Arc;
use std::time::Duration;

use blobs::{Checkpoint, StoreError, WriterState};
use db::{DbError, UploadRow};
use futures_util::{StreamExt as _, stream};
use oci::upload::UploadId;

use crate::app::App;

/// How often is looked for them.
const INTERVAL: Duration = Duration::from_secs(60);
const BATCH: u64 = 100;
const DISCARDED_AT_A_TIME: usize = 16;

pub(super) async fn run(app: Arc<App>) {
    loop {
        if !app.tie.holds() {
            tokio::time::sleep(INTERVAL.min(app.config.uploads.expiry)).await;
            continue;
        }
        if let Err(error) = expired(&app).await {
            tracing::warn!(%error, "old uploads cannot be read");
        }
        if let Err(error) = finished(&app).await {
            tracing::warn!(%error, "the rows of uploads that are over cannot be removed");
        }
        match left_behind(&app).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "took back the space of broken uploads"),
            Err(error) => tracing::warn!(reason = error, "the space of broken uploads cannot be taken back"),
        }
        tokio::time::sleep(INTERVAL.min(app.config.uploads.expiry)).await;
    }
}

/// Uploads that have a row. First the row goes, unless somebody has gone on with it meanwhile: then nobody can any more. What cannot be
/// discarded at this moment is left behind, and found there.
async fn expired(app: &App) -> Result<(), DbError> {
    let before = app.now_ms() - expiry_ms(app);
    loop {
        let rows = app.db.expired_uploads(before, BATCH).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut forgotten = Vec::with_capacity(rows.len());
        for row in &rows {
            if app.db.forget_upload(row.id, before).await? {
                forgotten.push((row.id, state(row)));
            }
        }
        discard(app, forgotten).await;
    }
}

/// Rows of uploads that are over: nobody accepts their ids any more.
async fn finished(app: &App) -> Result<(), DbError> {
    let before = app.now_ms() - expiry_ms(app);
    let batch = u32::try_from(BATCH).unwrap_or(u32::MAX);
    while app.db.forget_finished_uploads(before, batch).await? > 0 {}
    Ok(())
}

/// What uploads without a row left behind: their process was killed, or their client went away before anything was kept.
pub(crate) async fn left_behind(app: &App) -> Result<u64, String> {
    let found = app.store.list_uploads().await.map_err(|error| error.to_string())?;
    let before = (app.now_ms() - expiry_ms(app)).unsigned_abs();
    let old: Vec<UploadId> =
        found.entries.iter().filter(|upload| upload.modified_ms < before).map(|upload| upload.id).collect();
    let mut count = 0;
    for ids in old.chunks(BATCH as usize) {
        let known = app.db.known_uploads(ids).await.map_err(|error| error.to_string())?;
        let unknown = ids.iter().filter(|id| !known.contains(id)).map(|id| (*id, None));
        count += discard(app, unknown.collect()).await;
    }
    Ok(count)
}

fn state(row: &UploadRow) -> Option<WriterState> {
    serde_json::from_str::<Checkpoint>(&row.state).ok().map(|checkpoint| checkpoint.writer)
}

/// Takes back their space, and tells of how many it could.
async fn discard(app: &App, uploads: Vec<(UploadId, Option<WriterState>)>) -> u64 {
    // Several at a time: the store waits a moment for each that somebody goes on with.
    let discarded = stream::iter(uploads).map(async |(id, state)| match app.store.discard(id, state.as_ref()).await {
        Ok(()) => 1,
        Err(StoreError::Busy) => 0,
        Err(error) => {
            tracing::warn!(%id, %error, "an upload cannot be discarded");
            0
        }
    });
    discarded.buffer_unordered(DISCARDED_AT_A_TIME).fold(0, async |sum, one| sum + one).await
}

fn expiry_ms(app: &App) -> i64 {
    i64::try_from(app.config.uploads.expiry.as_millis()).unwrap_or(i64::MAX / 4)
}
