//! The same table as a clap command: the help and the completions come from it.

use clap::builder::ValueHint;
use clap::{Arg, ArgAction, Command};
use clap_complete::Shell;

use crate::flags::{COMMANDS, Effect, FLAGS, Flag, Takes};

/// dfget's flags as clap knows them. Not on the way of a download: making it costs more than reading the arguments.
#[must_use]
pub fn command() -> Command {
    let words: Vec<_> = COMMANDS
        .iter()
        .filter(|(_, effect)| matches!(effect, Effect::Does(_)))
        .map(|(word, effect)| format!("  {word:<12} {}", describe(*effect)))
        .collect();
    Command::new("dfget")
        .about("Downloads a URL through the host's dfdaemon, or with the same engine in this process")
        .override_usage("dfget [FLAGS] URL [-O PATH]")
        .disable_help_flag(true)
        .disable_version_flag(true)
        .after_help(format!(
            "Commands, in the place of the URL:\n{}\n\nExit codes and the JSON output: docs/dfget.md",
            words.join("\n")
        ))
        .arg(Arg::new("URL").value_name("URL").help("what to download").value_hint(ValueHint::Url))
        .args(FLAGS.iter().map(argument))
}

fn argument(flag: &'static Flag) -> Arg {
    let mut arg = Arg::new(flag.id()).help(describe(flag.effect)).help_heading(flag.group.title());
    if !flag.long.is_empty() {
        arg = arg.long(flag.long);
    }
    if let Some((first, more)) = flag.short.split_first() {
        arg = arg.short(*first).visible_short_aliases(more.iter().copied());
    }
    arg = match flag.takes {
        Takes::Nothing => arg.action(ArgAction::SetTrue),
        Takes::One(name) => arg.action(ArgAction::Set).value_name(name),
        Takes::Many(name) => arg.action(ArgAction::Append).value_name(name),
        Takes::Perhaps(name) => arg.action(ArgAction::Set).num_args(0..=1).value_name(name),
    };
    match flag.value_name() {
        Some("PATH" | "FILE" | "SOCKET") => arg = arg.value_hint(ValueHint::FilePath),
        Some("DIR") => arg = arg.value_hint(ValueHint::DirPath),
        Some("URL") => arg = arg.value_hint(ValueHint::Url),
        _ => {}
    }
    arg.hide(matches!(flag.effect, Effect::Refused(_)))
}

fn describe(effect: Effect) -> String {
    match effect {
        Effect::Does(what) => what.to_owned(),
        Effect::Same(long) => format!("another name of --{long}"),
        Effect::Either(longs, how) => {
            let longs: Vec<_> = longs.iter().map(|long| format!("--{long}")).collect();
            format!("{}: {how}", longs.join(" or "))
        }
        Effect::Refused(why) => format!("refused: it {why}"),
    }
}

/// The help.
#[must_use]
pub fn help() -> String {
    command().render_help().to_string()
}

/// Completions for a shell.
#[must_use]
pub fn completions(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "dfget", &mut script);
    script
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::ffi::OsString;

    use proptest::prelude::*;

    use super::*;
    use crate::args::Given;

    #[test]
    fn clap_and_the_table_know_the_same_flags() {
        let command = command();
        command.clone().debug_assert();
        let clap: HashSet<String> = command
            .get_arguments()
            .flat_map(|arg| {
                let longs = arg.get_long().map(|long| format!("--{long}"));
                let shorts = arg.get_short_and_visible_aliases().unwrap_or_default();
                longs.into_iter().chain(shorts.into_iter().map(|short| format!("-{short}")))
            })
            .collect();
        let table: HashSet<String> = FLAGS
            .iter()
            .flat_map(|flag| {
                let long = (!flag.long.is_empty()).then(|| format!("--{}", flag.long));
                long.into_iter().chain(flag.short.iter().map(|short| format!("-{short}")))
            })
            .collect();
        assert_eq!(clap, table);
        for flag in FLAGS {
            let arg = command.get_arguments().find(|arg| arg.get_id() == flag.id()).expect("checked above");
            assert_eq!(arg.get_action().takes_values(), flag.takes != Takes::Nothing, "{}", flag.shown());
        }
        let help = help();
        for flag in FLAGS.iter().filter(|flag| !matches!(flag.effect, Effect::Refused(_))) {
            assert!(help.contains(&flag.shown()), "{} is not in the help", flag.shown());
        }
    }

    #[test]
    fn completions_are_made_for_each_shell() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            let script = String::from_utf8(completions(shell)).unwrap();
            assert!(script.contains("no-clobber"), "{shell}");
        }
    }

    /// A flag with a value, written in one of the ways both readers know.
    fn written() -> impl Strategy<Value = Vec<String>> {
        let flags: Vec<usize> = (0..FLAGS.len()).filter(|n| !matches!(FLAGS[*n].takes, Takes::Perhaps(_))).collect();
        (proptest::sample::select(flags), "[a-z0-9:/.]{1,8}", 0..3usize, any::<bool>()).prop_map(
            |(n, value, way, short)| {
                let flag = &FLAGS[n];
                let short = flag.short.last().filter(|_| short || flag.long.is_empty());
                match (flag.takes, short, way) {
                    (Takes::Nothing, Some(short), _) => vec![format!("-{short}")],
                    (Takes::Nothing, None, _) => vec![format!("--{}", flag.long)],
                    (_, Some(short), 0) => vec![format!("-{short}{value}")],
                    (_, Some(short), 1) => vec![format!("-{short}={value}")],
                    (_, Some(short), _) => vec![format!("-{short}"), value],
                    (_, None, 0) => vec![format!("--{}={value}", flag.long)],
                    (_, None, _) => vec![format!("--{}", flag.long), value],
                }
            },
        )
    }

    proptest! {
        #[test]
        fn we_read_what_clap_reads(parts in proptest::collection::vec(written(), 0..8), url in proptest::option::of("http://[a-z]{1,5}")) {
            let mut words: Vec<String> = parts.into_iter().flatten().collect();
            words.extend(url);
            let given = Given::read(words.iter().map(OsString::from));
            prop_assert!(given.problems().is_empty(), "{:?}", given.problems());
            // clap's own "cannot be used multiple times" is a check of values, which comes later with us.
            let command = command().args_override_self(true);
            let matches = command.try_get_matches_from(std::iter::once("dfget".to_owned()).chain(words)).unwrap();
            for flag in FLAGS {
                let id = flag.id();
                let ours: Vec<_> = given.all().iter().filter(|(f, _)| std::ptr::eq(*f, flag)).filter_map(|(_, item)| item.value.clone()).collect();
                match flag.takes {
                    Takes::Nothing => {
                        let set = given.all().iter().any(|(f, _)| std::ptr::eq(*f, flag));
                        prop_assert_eq!(matches.get_flag(id), set, "{}", id);
                    }
                    Takes::Many(_) => {
                        let theirs: Vec<OsString> = matches.get_many::<String>(id).unwrap_or_default().map(OsString::from).collect();
                        prop_assert_eq!(theirs, ours, "{}", id);
                    }
                    _ => prop_assert_eq!(matches.get_one::<String>(id).map(OsString::from), ours.last().cloned(), "{}", id),
                }
            }
            let free = given.free().first().and_then(|item| item.value.clone());
            prop_assert_eq!(matches.get_one::<String>("URL").map(OsString::from), free);
        }

        #[test]
        fn nothing_makes_it_panic(words in proptest::collection::vec(".{0,12}", 0..10)) {
            let _ = Given::read(words.into_iter().map(OsString::from));
        }
    }
}
