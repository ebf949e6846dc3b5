//! Writes the records of tags that a process could not write, or did not come to write before it died.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use db::{ChangeId, DbError};
use oci::{RepositoryName, TagName};

use crate::app::App;
use crate::records;

const INTERVAL: Duration = Duration::from_secs(10);
/// Changes before the last one whose tags are looked after when a process starts: those that were made when it ended.
const LATE_CHANGES: i64 = 500;

pub(super) async fn run(app: Arc<App>) {
    match late(&app).await {
        Ok(tags) => settle(&app, tags).await,
        Err(error) => tracing::warn!(%error, "the last changes cannot be read"),
    }
    loop {
        tokio::time::sleep(INTERVAL).await;
        if app.tie.holds() {
            settle(&app, app.unsettled.take_tags()).await;
        }
    }
}

/// The tags of the last changes.
async fn late(app: &App) -> Result<HashSet<(RepositoryName, TagName)>, DbError> {
    let after = ChangeId(app.db.latest_change().await?.0 - LATE_CHANGES);
    let changes = app.db.changes(after, LATE_CHANGES.unsigned_abs()).await?;
    Ok(changes.into_iter().filter_map(|change| Some((change.repository, change.tag?))).collect())
}

async fn settle(app: &App, tags: HashSet<(RepositoryName, TagName)>) {
    for (repository, tag) in tags {
        if let Err(error) = records::settle(app, &repository, &tag).await {
            tracing::warn!(%repository, %tag, %error, "the record of a tag cannot be written, trying again later");
            app.unsettled.tag(&repository, &tag);
        }
    }
}
