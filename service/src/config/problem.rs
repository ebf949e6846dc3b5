//! What is wrong with a configuration, and where.

use std::fmt;

/// Where a value came from. Ordered as problems are listed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Place {
    /// In a file.
    File {
        /// Its path.
        name: String,
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// In an environment variable.
    Env(String),
    /// Nobody gave it: it is the default.
    Default,
}

/// One problem of a configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where the value came from.
    pub place: Place,
    /// The key, for example `http.limits.max_connections` or `cluster[1].name`; empty for the whole.
    pub path: String,
    /// What is wrong, and what is allowed.
    pub message: String,
}

/// Checks that types cannot express: relations between fields, ranges, what must not be empty.
pub trait Validate {
    /// Adds every problem; says what is allowed.
    fn validate(&self, problems: &mut Problems);
}

/// Collects problems under the path at which they are found.
#[derive(Debug, Default)]
pub struct Problems {
    prefix: Vec<String>,
    found: Vec<(String, String)>,
}

impl Problems {
    /// Runs `check` for what is inside the field `name`.
    pub fn within(&mut self, name: &str, check: impl FnOnce(&mut Self)) {
        self.prefix.push(name.to_owned());
        check(self);
        self.prefix.pop();
    }

    /// Runs `check` for every element of the list `name`.
    pub fn each<'t, T>(&mut self, name: &str, items: &'t [T], mut check: impl FnMut(&'t T, &mut Self)) {
        for (index, item) in items.iter().enumerate() {
            self.within(&format!("{name}[{index}]"), |problems| check(item, problems));
        }
    }

    /// Notes a problem of the field `name`; an empty name means the place itself.
    pub fn push(&mut self, name: &str, message: impl Into<String>) {
        let mut path = self.prefix.join(".");
        if !name.is_empty() {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(name);
        }
        self.found.push((path, message.into()));
    }

    /// Notes a problem unless `holds`.
    pub fn check(&mut self, holds: bool, name: &str, message: impl Into<String>) {
        if !holds {
            self.push(name, message);
        }
    }

    /// Notes an error with its reasons.
    pub fn failed(&mut self, name: &str, error: &dyn std::error::Error) {
        let chain = std::iter::successors(Some(error), |error| error.source());
        self.push(name, chain.map(ToString::to_string).collect::<Vec<_>>().join(": "));
    }

    /// What was found: paths and messages.
    #[must_use]
    pub fn into_vec(self) -> Vec<(String, String)> {
        self.found
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Default => f.write_str("not set"),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

pub(super) fn listing(problems: &[Problem]) -> String {
    let mut text = match problems.len() {
        1 => "1 problem in the configuration".to_owned(),
        n => format!("{n} problems in the configuration"),
    };
    for problem in problems {
        text.push_str("\n  ");
        text.push_str(&problem.to_string());
    }
    text
}
