//! Exit codes of our long-running binaries, and how a failure becomes one.

use std::fmt;
use std::io::Write as _;
use std::process::ExitCode;

use crate::config::ConfigError;

/// All went well.
pub const OK: u8 = 0;
/// It ran, and failed.
pub const FAILURE: u8 = 1;
/// Flags or configuration are wrong; nothing was started. clap uses the same code.
pub const USAGE: u8 = 2;

/// Why a binary ends.
#[derive(Debug)]
#[non_exhaustive]
pub enum Failure {
    /// The configuration cannot be used: exit code [`USAGE`].
    Config(ConfigError),
    /// Anything else: exit code [`FAILURE`].
    Run(anyhow::Error),
}

impl Failure {
    /// The exit code of this failure.
    #[must_use]
    pub const fn code(&self) -> u8 {
        match self {
            Self::Config(_) => USAGE,
            Self::Run(_) => FAILURE,
        }
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Config(error)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        // A configuration error may have travelled through code that knows only `anyhow`.
        match error.downcast::<ConfigError>() {
            Ok(error) => Self::Config(error),
            Err(error) => Self::Run(error),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => {
                write!(f, "{error}")?;
                let mut source = std::error::Error::source(error);
                while let Some(error) = source {
                    write!(f, ": {error}")?;
                    source = error.source();
                }
                Ok(())
            }
            Self::Run(error) => write!(f, "{error:#}"),
        }
    }
}

/// Says on stderr why the binary ends, and gives the code for it.
pub fn report(binary: &str, result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(OK),
        Err(failure) => {
            // Where nobody hears it, the code says it.
            let _ = writeln!(std::io::stderr(), "{binary}: {failure}");
            ExitCode::from(failure.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        let config = || ConfigError::Invalid(Vec::new());
        assert_eq!(Failure::from(config()).code(), USAGE);
        assert_eq!(Failure::from(anyhow::Error::from(config())).code(), USAGE);
        let failure = Failure::from(anyhow::anyhow!("inner").context("outer"));
        assert_eq!(failure.code(), FAILURE);
        assert_eq!(failure.to_string(), "outer: inner");
    }
}
