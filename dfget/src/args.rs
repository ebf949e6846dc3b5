//! Reads a command line by the table of flags.
//!
//! clap makes the help and the completions, but does not read the arguments: it stops at the first problem, where
//! we name all of them, and it knows no flag whose value's form decides what it means (`-p`, `-e`, `-l`). A test
//! holds the two against each other wherever both can read.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use crate::flags::{self, COMMANDS, Effect, Flag, Takes};

/// More arguments than anybody writes; what comes from a broken script is refused instead of read.
const ARGUMENTS_MAX: usize = 10_000;

/// Words by which `-l` is a `--log-level`.
pub const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "off"];

/// Something wrong with the command line, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Which argument, counted from 1; `None` when something is missing.
    pub place: Option<usize>,
    /// The argument as it was written, without its value.
    pub about: String,
    /// What is wrong.
    pub what: String,
}

/// A flag, or a value without one, as it was given.
#[derive(Clone, Debug)]
pub struct Item {
    /// Which argument, counted from 1.
    pub place: usize,
    /// The flag as it was written; empty for an argument without one.
    pub written: String,
    /// Its value.
    pub value: Option<OsString>,
}

/// A command line, taken apart.
#[derive(Debug, Default)]
pub struct Given {
    flags: Vec<(&'static Flag, Item)>,
    free: Vec<Item>,
    problems: RefCell<Vec<Problem>>,
    asked: RefCell<HashSet<&'static str>>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some(place) => write!(f, "argument {place} ({}): {}", self.about, self.what),
            None => write!(f, "{}: {}", self.about, self.what),
        }
    }
}

// === impl Item ===

impl Item {
    fn problem(&self, what: impl Into<String>) -> Problem {
        let about = match (&self.value, self.written.is_empty()) {
            (Some(value), true) => shorten(value),
            _ => self.written.clone(),
        };
        Problem { place: Some(self.place), about, what: what.into() }
    }
}

/// An argument in a message: bounded, and without what a terminal would obey.
fn shorten(text: &OsStr) -> String {
    text.to_string_lossy().chars().filter(|c| !c.is_control()).take(80).collect()
}

// === impl Given ===

impl Given {
    /// Takes a command line apart, without the program's name. Problems are collected in it.
    pub fn read(arguments: impl IntoIterator<Item = OsString>) -> Self {
        let mut given = Self::default();
        let arguments: Vec<OsString> = arguments.into_iter().take(ARGUMENTS_MAX + 1).collect();
        if arguments.len() > ARGUMENTS_MAX {
            given.missing("arguments", format!("more than {ARGUMENTS_MAX}"));
            return given;
        }
        let mut rest = arguments.iter().enumerate().map(|(n, argument)| (n + 1, argument)).peekable();
        let mut after_unknown = false;
        while let Some((place, argument)) = rest.next() {
            let bytes = argument.as_bytes();
            let unknown_before = std::mem::take(&mut after_unknown);
            if bytes == b"--" {
                given.free.extend(rest.by_ref().map(|(place, value)| Item {
                    place,
                    written: String::new(),
                    value: Some(value.clone()),
                }));
            } else if let Some(name) = bytes.strip_prefix(b"--") {
                let (name, value) = split_value(name);
                match name.to_str().and_then(flags::by_long) {
                    Some(flag) => given.take(flag, format!("--{}", flag.long), place, value, &mut rest),
                    None => {
                        given.unknown(place, argument, name);
                        after_unknown = value.is_none();
                    }
                }
            } else if bytes.len() > 1 && bytes[0] == b'-' {
                after_unknown = given.cluster(place, argument, &mut rest);
            } else if unknown_before && !argument.to_string_lossy().contains("://") {
                // Most likely the value of the unknown flag: another problem about it would only confuse.
            } else {
                given.free.push(Item { place, written: String::new(), value: Some(argument.clone()) });
            }
        }
        given
    }

    /// `-bOfile`: flags without values, then at most one with.
    fn cluster<'a>(
        &mut self,
        place: usize,
        argument: &OsStr,
        rest: &mut std::iter::Peekable<impl Iterator<Item = (usize, &'a OsString)>>,
    ) -> bool {
        let mut bytes = &argument.as_bytes()[1..];
        while let Some((&first, tail)) = bytes.split_first() {
            let Some(flag) = flags::by_short(char::from(first)) else {
                self.unknown(place, argument, OsStr::from_bytes(&bytes[..1]));
                return true;
            };
            let written = format!("-{}", char::from(first));
            let attached =
                (!tail.is_empty()).then(|| OsStr::from_bytes(tail.strip_prefix(b"=").unwrap_or(tail)).to_owned());
            match (flag.takes, attached) {
                (Takes::Nothing, Some(value)) if tail[0] == b'=' => {
                    self.take(flag, written, place, Some(value), rest);
                    return false;
                }
                (Takes::Nothing, _) => self.take(flag, written, place, None, rest),
                (Takes::Perhaps(_), Some(value)) if tail[0] != b'=' && !is_level(&value) => {
                    // `-lr`: the letters after it are flags of their own.
                    self.flags.push((flag, Item { place, written, value: None }));
                }
                (_, attached) => {
                    self.take(flag, written, place, attached, rest);
                    return false;
                }
            }
            bytes = tail;
        }
        false
    }

    fn take<'a>(
        &mut self,
        flag: &'static Flag,
        written: String,
        place: usize,
        attached: Option<OsString>,
        rest: &mut std::iter::Peekable<impl Iterator<Item = (usize, &'a OsString)>>,
    ) {
        let value = match (flag.takes, attached) {
            (Takes::Nothing, None) => None,
            (Takes::Nothing, Some(value)) => match value.to_str() {
                Some("true") => None,
                Some("false") => return,
                _ => {
                    return self.push(Problem {
                        place: Some(place),
                        about: written,
                        what: "takes no value but =true or =false".into(),
                    });
                }
            },
            (Takes::Perhaps(_), None) => rest.next_if(|(_, next)| is_level(next)).map(|(_, next)| next.clone()),
            (_, Some(value)) => Some(value),
            (Takes::One(name) | Takes::Many(name), None) => match rest.next_if(|(_, next)| !is_known_flag(next)) {
                Some((_, next)) => Some(next.clone()),
                None => {
                    return self.push(Problem {
                        place: Some(place),
                        about: written,
                        what: format!("needs a value: {name}"),
                    });
                }
            },
        };
        self.flags.push((flag, Item { place, written, value }));
    }

    fn unknown(&self, place: usize, argument: &OsStr, name: &OsStr) {
        let about = shorten(OsStr::from_bytes(argument.as_bytes().split(|b| *b == b'=').next().unwrap_or_default()));
        let what = match nearest(&name.to_string_lossy()) {
            Some(flag) => format!("no such flag, did you mean --{flag}?"),
            None => "no such flag".to_owned(),
        };
        self.push(Problem { place: Some(place), about, what });
    }

    /// Remembers a problem.
    pub fn push(&self, problem: Problem) {
        self.problems.borrow_mut().push(problem);
    }

    /// Remembers that something is wrong with an item.
    pub fn wrong(&self, item: &Item, what: impl Into<String>) {
        self.push(item.problem(what));
    }

    /// Remembers that something is missing, or wrong as a whole.
    pub fn missing(&self, about: &str, what: impl Into<String>) {
        self.push(Problem { place: None, about: about.to_owned(), what: what.into() });
    }

    /// The problems found so far, in the order of the command line.
    #[must_use]
    pub fn problems(&self) -> Vec<Problem> {
        let mut problems = self.problems.borrow().clone();
        problems.sort_by_key(|problem| problem.place.unwrap_or(usize::MAX));
        problems
    }

    /// Arguments without a flag.
    #[must_use]
    pub fn free(&self) -> &[Item] {
        &self.free
    }

    /// The command this is, when its first free argument names one.
    #[must_use]
    pub fn command(&self) -> Option<(&'static str, Effect, &Item)> {
        let item = self.free.first()?;
        let (word, effect) = COMMANDS.iter().find(|(word, _)| item.value.as_deref() == Some(OsStr::new(word)))?;
        Some((word, *effect, item))
    }

    /// Every time this long flag was given, by whichever name; short forms of two meanings are looked at by `form`.
    fn items(&self, long: &'static str, form: impl Fn(&OsStr) -> bool) -> Vec<&Item> {
        self.asked.borrow_mut().insert(long);
        self.flags
            .iter()
            .filter(|(flag, item)| match flag.effect {
                Effect::Either(longs, _) => longs.contains(&long) && form(item.value.as_deref().unwrap_or_default()),
                _ => flag.key() == long,
            })
            .map(|(_, item)| item)
            .collect()
    }

    /// Whether a flag without value was given.
    pub fn is_set(&self, long: &'static str) -> bool {
        !self.items(long, OsStr::is_empty).is_empty()
    }

    /// The item of a flag without value, for problems about it.
    pub fn switch(&self, long: &'static str) -> Option<&Item> {
        self.items(long, OsStr::is_empty).into_iter().next()
    }

    /// The value of a flag that may be given once, under any of its names.
    pub fn one(&self, long: &'static str) -> Option<&Item> {
        self.one_of_form(long, |_| false)
    }

    /// As [`Given::one`]; values of a short form with two meanings count when `form` says so.
    pub fn one_of_form(&self, long: &'static str, form: impl Fn(&OsStr) -> bool) -> Option<&Item> {
        let items = self.items(long, form);
        let (first, more) = items.split_first()?;
        for other in more.iter().filter(|other| other.value != first.value) {
            self.wrong(other, format!("says something else than argument {} ({})", first.place, first.written));
        }
        Some(first)
    }

    /// All values of a flag that may be given several times.
    pub fn many(&self, long: &'static str) -> Vec<&Item> {
        self.items(long, |_| false)
    }

    /// The value of an item as text; a problem and `None` when it is not UTF-8.
    pub fn text<'i>(&self, item: &'i Item) -> Option<&'i str> {
        let text = item.value.as_deref().unwrap_or_default().to_str();
        if text.is_none() {
            self.wrong(item, "is not UTF-8");
        }
        text
    }

    /// The value of an item read by `parse`; its error is remembered.
    pub fn parsed<T, E: fmt::Display>(&self, item: &Item, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        match parse(self.text(item)?) {
            Ok(value) => Some(value),
            Err(error) => {
                self.wrong(item, error.to_string());
                None
            }
        }
    }

    /// Flags of two meanings and refused ones, to be looked at once.
    pub(crate) fn special(&self) -> impl Iterator<Item = (&'static Flag, &Item)> {
        self.flags
            .iter()
            .filter(|(flag, _)| matches!(flag.effect, Effect::Either(..) | Effect::Refused(_)))
            .map(|(flag, item)| (*flag, item))
    }

    /// The long flags that were looked up, for the test that each flag of the table is.
    #[cfg(test)]
    pub(crate) fn asked(&self) -> HashSet<&'static str> {
        self.asked.borrow().clone()
    }

    /// The flags in the order given, for the comparison with clap.
    #[cfg(test)]
    pub(crate) fn all(&self) -> &[(&'static Flag, Item)] {
        &self.flags
    }
}

fn split_value(argument: &[u8]) -> (&OsStr, Option<OsString>) {
    match argument.iter().position(|b| *b == b'=') {
        Some(at) => (OsStr::from_bytes(&argument[..at]), Some(OsString::from_vec(argument[at + 1..].to_vec()))),
        None => (OsStr::from_bytes(argument), None),
    }
}

/// Whether a value is a level by which `-l` is a `--log-level`.
pub(crate) fn is_level(value: &OsStr) -> bool {
    LEVELS.iter().any(|level| value.eq_ignore_ascii_case(level))
}

/// Whether an argument is a flag of ours, and so no value of the one before.
fn is_known_flag(argument: &OsStr) -> bool {
    let bytes = argument.as_bytes();
    match bytes.strip_prefix(b"--") {
        Some(name) => {
            name.is_empty() || split_value(name).0.to_str().is_some_and(|name| flags::by_long(name).is_some())
        }
        None => matches!(bytes, [b'-', short, ..] if flags::by_short(char::from(*short)).is_some()),
    }
}

/// The flag somebody may have meant: one that differs in at most two letters.
fn nearest(name: &str) -> Option<&'static str> {
    /// Longer than any flag, and a bound for the work below.
    const NAME_LEN_MAX: usize = 40;
    if name.len() < 3 || name.len() > NAME_LEN_MAX {
        return None;
    }
    flags::FLAGS
        .iter()
        .filter(|flag| !flag.long.is_empty() && !matches!(flag.effect, Effect::Refused(_)))
        .map(|flag| (distance(name, flag.long), flag.long))
        .filter(|(distance, _)| *distance <= 2)
        .min()
        .map(|(_, long)| long)
}

/// Letters to insert, remove or change (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
