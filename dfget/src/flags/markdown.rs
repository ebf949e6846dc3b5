//! The tables of `docs/dfget.md`.

use std::fmt::Write as _;

use super::{COMMANDS, Effect, FLAGS, Flag, Group};
use crate::exit::EXITS;

/// The tables of flags, commands and exit codes, as `dfget gen-doc` prints them.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::new();
    for group in Group::ALL {
        // Writing to a String cannot fail.
        let _ = write!(text, "### {}\n\n| flag | from | what it does |\n|---|---|---|\n", group.title());
        for flag in FLAGS.iter().filter(|flag| flag.group == group) {
            let origins: Vec<_> = flag.origins.iter().map(|origin| origin.label()).collect();
            let _ = writeln!(text, "| {} | {} | {} |", names(flag), origins.join(", "), effect(flag.effect));
        }
        text.push('\n');
    }
    text.push_str("### Commands\n\n| word | what it does |\n|---|---|\n");
    for (word, what) in COMMANDS {
        let _ = writeln!(text, "| `{word}` | {} |", effect(*what));
    }
    text.push_str("\n### Exit codes\n\n| code | `kind` in the JSON result | meaning |\n|---|---|---|\n");
    for row in EXITS {
        let kinds: Vec<_> = row.kinds.iter().map(|kind| format!("`{kind}`")).collect();
        let _ = writeln!(text, "| {} | {} | {} |", row.exit.code(), kinds.join(", "), row.meaning);
    }
    text
}

/// [`markdown`] between the marks that the page has around it.
#[must_use]
pub fn block() -> String {
    format!("<!-- made by dfget gen-doc: begin -->\n\n{}\n<!-- made by dfget gen-doc: end -->", markdown())
}

fn names(flag: &Flag) -> String {
    let mut names: Vec<String> = flag.short.iter().map(|short| format!("-{short}")).collect();
    if !flag.long.is_empty() {
        names.push(format!("--{}", flag.long));
    }
    let value = flag.value_name().map(|value| format!(" {}", value.replace('|', "\\|"))).unwrap_or_default();
    format!("`{}{value}`", names.join(", "))
}

fn effect(effect: Effect) -> String {
    match effect {
        Effect::Does(what) => what.to_owned(),
        Effect::Same(long) => format!("another name of `--{long}`"),
        Effect::Either(longs, how) => {
            let longs: Vec<_> = longs.iter().map(|long| format!("`--{long}`")).collect();
            format!("{}: {how}", longs.join(" or "))
        }
        Effect::Refused(why) => format!("refused: it {why}"),
    }
}
