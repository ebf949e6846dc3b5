//! Configuration: plain serde structs, read from TOML and overlaid by the environment, with **all** problems listed at once.
//!
//! A binary's configuration is a struct with `#[serde(default, deny_unknown_fields)]` that implements [`Config`]. [`load`]
//! reads the file, lays `SKIMMER_<BINARY>__SECTION__FIELD=value` over it, and answers with the struct or with every
//! problem and its place: line and column in the file, or the name of the environment variable.
//!
//! `#[serde(flatten)]` hides field names from the reader; do not use it in configuration.

mod de;
mod duration_text;
mod network;
mod problem;
mod quantity;
mod redacted;
mod tree;

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use duration_text::{duration, duration_option};
pub use network::networks;
pub use problem::{Place, Problem, Problems, Validate};
pub use quantity::{ByteSize, InvalidQuantity, Rate};
pub use redacted::Redacted;

use crate::log::LogConfig;
use crate::runtime::RuntimeConfig;
use tree::{Node, Segment, Value};

/// A configuration file may not be larger, in bytes: it is read whole.
pub const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// More problems are not looked for: somebody gave the wrong file.
const PROBLEMS_MAX: usize = 200;

/// The configuration of one of our long-running binaries.
pub trait Config: Default + Serialize + DeserializeOwned + Validate + Send + 'static {
    /// Name of the binary, for example `config-service`; names its environment variables and its default file.
    const BINARY: &'static str;

    /// What `--print-default-config` prints: TOML that loads again, if possible with comments.
    #[must_use]
    fn default_toml() -> String {
        toml::to_string_pretty(&Self::default())
            .unwrap_or_else(|error| format!("# the defaults cannot be shown: {error}\n"))
    }

    /// Reads the files that are named, and adds what is wrong with them. For `--check-config`: a service that starts says it itself.
    fn check_files(&self, _problems: &mut Problems) {}

    /// How to log.
    fn log(&self) -> &LogConfig;

    /// Threads, and the time a shutdown may take.
    fn runtime(&self) -> &RuntimeConfig;
}

/// A configuration cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is larger than [`FILE_BYTES_MAX`].
    #[error("the configuration file {} is larger than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// Every problem of the file and the environment.
    #[error("{}", problem::listing(.0))]
    Invalid(Vec<Problem>),
}

impl ConfigError {
    /// The problems found, empty when the file could not even be read.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        match self {
            Self::Invalid(problems) => problems,
            _ => &[],
        }
    }

    /// Logs why a configuration that was read anew is not taken over: a line for each problem, with its place.
    pub fn log(&self) {
        for problem in self.problems() {
            tracing::error!(%problem, "in the configuration");
        }
        let chain = std::iter::successors(Some(self as &dyn std::error::Error), |error| error.source());
        // Its other lines have been written.
        let first = |error: &dyn std::error::Error| error.to_string().lines().next().unwrap_or_default().to_owned();
        let error = chain.map(first).collect::<Vec<_>>().join(": ");
        tracing::error!(error, "the configuration is not usable, keeping the old one");
    }
}

/// The prefix of a binary's environment variables: `SKIMMER_CONFIG_SERVICE` for `config-service`.
#[must_use]
pub fn env_prefix(binary: &str) -> String {
    format!("SKIMMER_{}", binary.replace('-', "_").to_ascii_uppercase())
}

/// Loads a configuration from a file, if one is given, and from the environment variables that start with `<env_prefix>__`.
///
/// # Errors
/// When the file cannot be read, or with every problem found in file and environment.
pub fn load<T: DeserializeOwned + Validate>(path: Option<&Path>, env_prefix: &str) -> Result<T, ConfigError> {
    load_and_judge(path, env_prefix, T::validate)
}

/// As [`load`], and reads the files that the configuration names.
///
/// # Errors
/// As [`load`], or when one of these files cannot be used.
pub fn check<T: Config>(path: Option<&Path>, env_prefix: &str) -> Result<T, ConfigError> {
    load_and_judge(path, env_prefix, |config: &T, problems| {
        config.validate(problems);
        config.check_files(problems);
    })
}

fn load_and_judge<T: DeserializeOwned>(
    path: Option<&Path>,
    env_prefix: &str,
    judge: impl FnOnce(&T, &mut Problems),
) -> Result<T, ConfigError> {
    let text = match path {
        Some(path) => read(path)?,
        None => String::new(),
    };
    let name = path.map_or_else(String::new, |path| path.display().to_string());
    // Values that are no UTF-8 cannot be configuration of ours; `vars` would panic on them.
    let env = std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    read_and_judge(&name, &text, env_prefix, env, judge)
}

/// [`load`] from a text and given variables, for tests and for texts that are no files.
///
/// # Errors
/// With every problem found.
pub fn load_from<T: DeserializeOwned + Validate>(
    name: &str,
    text: &str,
    env_prefix: &str,
    env: impl IntoIterator<Item = (String, String)>,
) -> Result<T, ConfigError> {
    read_and_judge(name, text, env_prefix, env, T::validate)
}

fn read_and_judge<T: DeserializeOwned>(
    name: &str,
    text: &str,
    env_prefix: &str,
    env: impl IntoIterator<Item = (String, String)>,
    judge: impl FnOnce(&T, &mut Problems),
) -> Result<T, ConfigError> {
    let (mut root, mut problems) = tree::parse(name, text);
    let broken_syntax = !problems.is_empty();
    tree::overlay(&mut root, env_prefix, env, &mut problems);
    let outcome = repair_and_read::<T>(&mut root, &mut problems, broken_syntax);
    if let (Some(value), true) = (&outcome.value, outcome.indexes_hold && !broken_syntax) {
        let mut found = Problems::default();
        judge(value, &mut found);
        for (path, message) in found.into_vec() {
            // What could not be read was reported already; its stand-in is not judged.
            if !problems.iter().any(|p| !p.path.is_empty() && path.starts_with(&p.path)) {
                let place = tree::place_of(&root, &path);
                problems.push(Problem { place, path, message });
            }
        }
    }
    problems.sort();
    problems.dedup();
    match outcome.value {
        Some(value) if problems.is_empty() => Ok(value),
        _ => Err(ConfigError::Invalid(problems)),
    }
}

struct Outcome<T> {
    value: Option<T>,
    /// No array element had to be taken out, so paths in `value` are paths in the file.
    indexes_hold: bool,
}

/// Serde stops at the first error. So whatever cannot be read is noted and taken out, and the reading starts again: what
/// is missing is then filled by its default, or by a stand-in that fits any type, until nothing is left to complain about.
fn repair_and_read<T: DeserializeOwned>(
    root: &mut Node,
    problems: &mut Vec<Problem>,
    broken_syntax: bool,
) -> Outcome<T> {
    let mut indexes_hold = true;
    for _ in 0..PROBLEMS_MAX {
        let mut unknown = Vec::new();
        let result = de::read::<T>(root, &mut unknown);
        for problem in unknown {
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        let failure = match result {
            Ok(value) => return Outcome { value: Some(value), indexes_hold },
            Err(failure) => failure,
        };
        let mut at = failure.path;
        let path = tree::render(&at);
        let known = problems.iter().any(|p| p.path == path);
        let within_stand_in = tree::passes_stand_in(root, &at);
        if failure.missing && !within_stand_in {
            if !known && !broken_syntax {
                let place =
                    tree::get(root, &at[..at.len() - 1]).map_or_else(|| root.place.clone(), |node| node.place.clone());
                problems.push(Problem { place, path, message: "is required and missing".to_owned() });
            }
            tree::insert(root, &at, Node { place: Place::Default, value: Value::StandIn });
            continue;
        }
        if within_stand_in {
            // The stand-in does not help: what contains it goes, without another complaint.
            while tree::passes_stand_in(root, &at) {
                at.pop();
            }
        } else if !known {
            let place = tree::place_around(root, &at);
            problems.push(Problem { place, path, message: failure.message });
        }
        match at.last() {
            None => break,
            Some(Segment::Index(_)) => indexes_hold = false,
            Some(Segment::Key(_)) => {}
        }
        tree::remove(root, &at);
    }
    Outcome { value: None, indexes_hold }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read as _;
    let fail = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(fail)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(fail)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned() });
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
