//! Knows every cluster and its supernodes, and tells each host which are nearest.
//!
//! Clusters come from the configuration. Supernodes come from there too, or register themselves and keep their lease alive
//! by registering again. The decision itself is [`nearest`], a pure function.
//!
//! **Not here:** health checks of supernodes (the lease is the check), and any knowledge of tasks or files.
//!
//! **What a crash may lose:** nothing that matters. Registrations are written to a small file before they are
//! acknowledged; after a restart each gets a whole lease to say that it still lives. If the file is lost, they come back by
//! themselves within a third of the lease.

#![forbid(unsafe_code)]

mod api;
mod app;
mod config;
mod directory;
mod file;
pub mod nearest;

pub use app::App;
pub use config::{ClusterConfig, Config};

/// Runs until the shutdown.
///
/// # Errors
/// When the data folder cannot be used or an address cannot be listened on.
pub async fn run(config: Config, context: service::Context<Config>) -> anyhow::Result<()> {
    let app = App::start(config)?;
    context.ready();
    app.run(context.shutdown, context.reloads).await;
    Ok(())
}
