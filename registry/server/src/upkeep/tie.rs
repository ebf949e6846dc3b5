//! Sees whether store and database still belong to each other, and tells the store how far the database has come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::app::App;
use crate::tie::Look;

const INTERVAL: Duration = Duration::from_secs(2);
/// How often the store is told at most.
const NOTE_INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn run(app: Arc<App>) {
    let mut noted = Instant::now();
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Err(error) = look(&app).await {
            tracing::debug!(%error, "whether the database is still the store's cannot be asked");
            continue;
        }
        if noted.elapsed() >= NOTE_INTERVAL {
            noted = Instant::now();
            if let Err(error) = app.tie.note(&app.db, &app.store).await {
                tracing::warn!(%error, "the store cannot be told how far the database has come");
            }
        }
    }
}

async fn look(app: &App) -> anyhow::Result<()> {
    match app.tie.look(&app.db, &app.store).await? {
        Look::Holds => {}
        Look::Lost => app.forget(),
        Look::Back(back) => {
            app.forget();
            app.learn_upload_key().await?;
            app.tie.accept(back, &app.db);
        }
    }
    Ok(())
}
