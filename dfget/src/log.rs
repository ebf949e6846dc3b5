//! The log of one command; off unless a flag asks for it.

use std::fs::{File, OpenOptions};
use std::sync::Arc;

use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::exit::Failure;
use crate::options::LogOptions;

/// The log file's name in `--logdir`.
const FILE_NAME: &str = "dfget.log";

/// Begins to log.
///
/// # Errors
/// When the log file cannot be written.
pub(crate) fn init(options: &LogOptions) -> Result<(), Failure> {
    let level: LevelFilter = options.level.parse().unwrap_or(LevelFilter::INFO);
    let stderr =
        options.stderr.then(|| tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(level));
    let file = options.folder.as_ref().map(|folder| open(folder)).transpose()?;
    let file = file
        .map(|file| tracing_subscriber::fmt::layer().with_ansi(false).with_writer(Arc::new(file)).with_filter(level));
    // Fails only when the embedding program logs already; then it decides where to.
    let _ = tracing_subscriber::registry().with(stderr).with(file).try_init();
    Ok(())
}

fn open(folder: &std::path::Path) -> Result<File, Failure> {
    let path = folder.join(FILE_NAME);
    std::fs::create_dir_all(folder)
        .and_then(|()| OpenOptions::new().create(true).append(true).open(&path))
        .map_err(|error| Failure::of_output(&path, "write the log", &error))
}
