//! Logs: `tracing` to stderr, as text or as JSON lines.

use std::io::{self, IsTerminal as _, Write};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, reload};

use crate::config::{Problems, Validate};

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives such as `info,peer=debug`.
    pub level: String,
    /// For people or for machines.
    pub format: LogFormat,
}

/// How a line of log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Logging cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// `level` is no list of directives.
    #[error("the log level is not understood")]
    Level(#[source] tracing_subscriber::filter::ParseError),
    /// Somebody has set up logging in this process already.
    #[error("logging was set up already")]
    Twice(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".to_owned(), format: LogFormat::Text }
    }
}

impl LogConfig {
    fn filter(&self) -> Result<EnvFilter, tracing_subscriber::filter::ParseError> {
        EnvFilter::builder().parse(&self.level)
    }
}

impl Validate for LogConfig {
    fn validate(&self, problems: &mut Problems) {
        if let Err(error) = self.filter() {
            problems.push(
                "level",
                format!("{:?}: {error}, expected error, warn, info, debug, trace, or directives such as \"info,peer=debug\"", self.level),
            );
        }
        // The parser takes any single word for the name of a module, and a typing error would silence everything.
        let word = self.level.trim();
        let plain = !word.contains(['=', ',', '[', ':']);
        if plain && !["off", "error", "warn", "info", "debug", "trace"].contains(&word.to_ascii_lowercase().as_str()) {
            problems.push("level", format!("{word:?} is no level, expected off, error, warn, info, debug or trace"));
        }
    }
}

/// Loses what cannot be written: a service whose log's reader has gone away, or whose log's disk is full, goes on.
#[derive(Debug)]
struct Lossy<W>(W);

impl<W: Write> Write for Lossy<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let _ = self.0.write_all(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// Changes the level of the running logs.
type SetFilter = Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>;

/// Set once, by [`init`].
static SET_FILTER: OnceLock<SetFilter> = OnceLock::new();

/// Sends the logs of this process to stderr.
///
/// # Errors
/// When the level is not understood, or logging was set up before.
pub fn init(config: &LogConfig) -> Result<(), LogError> {
    let filter = config.filter().map_err(LogError::Level)?;
    // Its own errors it would print to stderr, and panic where that fails.
    let builder = tracing_subscriber::fmt().log_internal_errors(false).with_env_filter(filter);
    let builder = builder.with_writer(|| Lossy(io::stderr()));
    let set: SetFilter = match config.format {
        LogFormat::Text => {
            let builder = builder.with_ansi(io::stderr().is_terminal()).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init().map_err(LogError::Twice)?;
            Box::new(move |filter| handle.reload(filter))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_current_span(true).with_span_list(false);
            let builder = builder.with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init().map_err(LogError::Twice)?;
            Box::new(move |filter| handle.reload(filter))
        }
    };
    // Whoever came first has set up the subscriber too, and the second was refused above.
    let _ = SET_FILTER.set(set);
    Ok(())
}

/// Takes the level of a configuration that was read anew. The format stays what it was.
pub(crate) fn set_level(config: &LogConfig) {
    if let (Some(set), Ok(filter)) = (SET_FILTER.get(), config.filter())
        && let Err(error) = set(filter)
    {
        tracing::error!(%error, "the log level could not be changed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_no_error() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
        }
        let mut lossy = Lossy(Full);
        lossy.write_all(b"a line").unwrap();
        assert_eq!(lossy.write(b"a line").unwrap(), 6);
        lossy.flush().unwrap();
    }
}
