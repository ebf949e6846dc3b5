//! What a command line asks for, checked as a whole.

mod forms;
mod job;
mod name;

use std::ffi::OsStr;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::{ByteRange, Digest, TaskSpec};
use url::Url;

pub use self::forms::Rate;
use self::forms::Route as Pattern;
pub(crate) use self::forms::compile;
pub use self::job::{Action, Endpoint, Job, LocalSettings, LogOptions, Recursive, Show, Supernode};
pub(crate) use self::name::is_plain_name;
use crate::args::{Given, Item, Problem, is_level};
use crate::backend::Route;
use crate::flags::Effect;

/// The dfdaemon's socket.
pub const DEFAULT_ENDPOINT: &str = "/run/skimmer/dfdaemon.sock";
/// The whole command; what the Rust client of Dragonfly 2 waits.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60);
/// `--priority` when absent.
const DEFAULT_PRIORITY: u32 = 6;
/// `--level` when absent.
const DEFAULT_LEVEL: usize = 5;
/// `--level 0`: no tree of folders that people keep is deeper.
const LEVEL_MAX: usize = 64;
/// `--max-files` when absent.
const DEFAULT_FILES_MAX: usize = 100;
/// The largest `--max-files`: each file is an entry in memory.
const FILES_MAX: usize = 1_000_000;
/// `--max-concurrent-requests` when absent.
const DEFAULT_PARALLEL: usize = 5;
/// The largest `--max-concurrent-requests`: each is a stream on the daemon's socket.
const PARALLEL_MAX: usize = 64;
/// Headers of one request, and bytes of one; common servers take no more.
const HEADERS_MAX: usize = 100;
const HEADER_LEN_MAX: usize = 8 << 10;
/// Query parameters to leave out.
const FILTERS_MAX: usize = 100;
/// Tag, application and the like: they stand in every message about the task.
const IDENTITY_LEN_MAX: usize = 1 << 10;
/// Pieces in flight of the built-in engine.
const CLIENT_QUEUE_MAX: u32 = 1024;

/// Reads a command line; every problem of it is found.
///
/// # Errors
/// The problems, in the order of the command line.
pub fn read(
    arguments: impl IntoIterator<Item = std::ffi::OsString>,
    current_dir: &Path,
) -> Result<Action, Vec<Problem>> {
    let given = Given::read(arguments);
    let action = action(&given, current_dir);
    let problems = given.problems();
    match action {
        Some(action) if problems.is_empty() => Ok(action),
        _ => Err(problems),
    }
}

/// `None` only when a problem was remembered.
fn action(given: &Given, current_dir: &Path) -> Option<Action> {
    if given.is_set("help") {
        return Some(Action::Help);
    }
    if given.is_set("version") {
        return Some(Action::Version);
    }
    match given.command() {
        None => download(given, current_dir).map(|job| Action::Download(Box::new(job))),
        Some((_, Effect::Refused(why), item)) => {
            given.wrong(item, format!("no such command any more: it {why}"));
            None
        }
        Some((word, _, _)) => command(given, word),
    }
}

fn command(given: &Given, word: &str) -> Option<Action> {
    let arguments_max = usize::from(word == "completions") + 1;
    for item in given.free().iter().skip(arguments_max) {
        given.wrong(item, format!("the command {word} takes no such argument"));
    }
    match word {
        "version" => Some(Action::Version),
        "gen-doc" => Some(Action::GenDoc),
        "completions" => match given.free().get(1) {
            Some(item) => given.parsed(item, |shell| shell.parse().map(Action::Completions)),
            None => {
                given.missing("completions", "name the shell: bash, elvish, fish, powershell or zsh");
                None
            }
        },
        _ => Some(Action::Help),
    }
}

/// Looks at every flag, so that every problem is found, before it gives up.
fn download(given: &Given, current_dir: &Path) -> Option<Job> {
    refuse(given);
    let url = source_url(given);
    let spec = url.map(|url| identity(given, url));
    let headers = headers(given);
    let recursive = recursive(given);
    let output = output(given, spec.as_ref().map(|spec| &spec.url), recursive.is_some(), current_dir);
    let original_offset = given.is_set("original-offset");
    let range = range(given, &headers);
    if original_offset && range.is_none() && given.one("range").is_none() {
        given.missing("--original-offset", "needs a --range");
    }
    let overwrite = !given.is_set("no-clobber");
    exclusive(
        given,
        &[
            ("overwrite", "no-clobber"),
            ("original-offset", "no-clobber"),
            ("force-hard-link", "transfer-from-dfdaemon"),
            ("force-hard-link", "original-offset"),
        ],
    );
    if recursive.is_some() {
        for flag in ["range", "md5", "digest"] {
            if let Some(item) = given.one(flag) {
                given.wrong(item, "is about one file and cannot be used with --recursive");
            }
        }
    }
    let crc32 = given.one("digest").filter(|item| is_crc32(item)).and_then(|item| given.parsed(item, forms::crc32));
    if let (Some(_), Some(item)) = (crc32, given.switch("force-hard-link")) {
        given.wrong(item, "cannot be used with a crc32, which is summed over the bytes that dfget writes");
    }
    let local = local(given, current_dir);
    let (route, never_origin, priority) = route(given, &local);
    let total = rate(given, "totallimit").filter(|_| route == Route::P2p);
    let job = Job {
        headers: headers.into_iter().filter(|(name, _)| !name.eq_ignore_ascii_case("range")).collect(),
        overwrite,
        force_hard_link: given.is_set("force-hard-link"),
        original_offset,
        crc32,
        stream: given.is_set("transfer-from-dfdaemon") || crc32.is_some(),
        route,
        never_origin,
        priority,
        rate_bytes_per_s: rate(given, "locallimit"),
        rate_min_bytes_per_s: rate(given, "minrate"),
        timeout: timeout(given),
        caller: text(given, "callsystem"),
        recursive,
        endpoint: endpoint(given, &local, current_dir),
        local: LocalSettings {
            total_rate_bytes_per_s: total,
            name: spec.as_ref().map(|spec| spec.id().to_string()).unwrap_or_default(),
            ..local
        },
        show: Show {
            json: given.is_set("json"),
            lines: given.is_set("show-progress"),
            bar: !given.is_set("no-progress"),
        },
        log: log(given, current_dir),
        // Last: every other flag was looked at before one of these ends it.
        output: output?,
        spec: TaskSpec { range, ..spec? },
    };
    Some(job)
}

/// Refused flags, and short forms whose value has neither of their forms.
fn refuse(given: &Given) {
    for (flag, item) in given.special() {
        let value = item.value.as_deref().unwrap_or_default();
        match flag.effect {
            Effect::Refused(why) => given.wrong(item, format!("is not supported: it {why}")),
            Effect::Either(["pattern", _], _) if !is_pattern(value) && !is_priority(value) => {
                given.wrong(item, format!("{value:?} is neither a pattern (p2p, cdn, source) nor a priority (0 to 6)"));
            }
            Effect::Either(["timeout", _], _) if !is_time(value) && !is_path(value) => {
                given.wrong(
                    item,
                    format!("{value:?} is neither a time (5m, 300) nor the path of a socket (with a / in it)"),
                );
            }
            _ => {}
        }
    }
}

fn is_pattern(value: &OsStr) -> bool {
    value.to_str().is_some_and(|text| text.parse::<Pattern>().is_ok())
}

fn is_priority(value: &OsStr) -> bool {
    value.to_str().is_some_and(|text| forms::priority(text).is_ok())
}

fn is_time(value: &OsStr) -> bool {
    value.to_str().is_some_and(|text| forms::time(text).is_ok())
}

/// A sum that finds accidents and no intent: it is checked by dfget, and is part of no identity.
fn is_crc32(item: &Item) -> bool {
    let value = item.value.as_deref().and_then(OsStr::to_str).unwrap_or_default();
    value.get(..forms::CRC32.len()).is_some_and(|start| start.eq_ignore_ascii_case(forms::CRC32))
}

fn is_path(value: &OsStr) -> bool {
    value.to_string_lossy().contains('/')
}

fn exclusive(given: &Given, pairs: &[(&'static str, &'static str)]) {
    for (one, other) in pairs {
        if let (Some(_), Some(item)) = (given.switch(one), given.switch(other)) {
            given.wrong(item, format!("cannot be used with --{one}"));
        }
    }
}

fn source_url(given: &Given) -> Option<Url> {
    let flagged = given.one("url");
    let mut free = given.free().iter();
    let item = match (flagged, free.next()) {
        (Some(item), None) | (None, Some(item)) => item,
        (Some(flagged), Some(free)) => {
            given.wrong(
                free,
                format!("a second URL; the first one is argument {} ({})", flagged.place, flagged.written),
            );
            flagged
        }
        (None, None) => {
            given.missing("URL", "missing: what is to be downloaded?");
            return None;
        }
    };
    for more in free {
        given.wrong(more, "one URL at a time");
    }
    given.parsed(item, forms::url)
}

/// The task: URL, digest, and what keeps it apart from others.
fn identity(given: &Given, url: Url) -> TaskSpec {
    let md5 = given
        .one("md5")
        .and_then(|item| given.parsed(item, |text| format!("md5:{}", text.to_ascii_lowercase()).parse::<Digest>()));
    let digest = given.one("digest").filter(|item| !is_crc32(item));
    let digest = digest.and_then(|item| given.parsed(item, |text| text.to_ascii_lowercase().parse::<Digest>()));
    if let (Some(md5), Some(digest)) = (&md5, &digest)
        && md5 != digest
        && let Some(item) = given.one("digest")
    {
        given.wrong(item, "cannot be used with --md5, which says something else");
    }
    let identifier = given.one("identifier");
    for other in ["md5", "tag"] {
        if let (Some(item), Some(_)) = (identifier, given.one(other)) {
            given.wrong(item, format!("cannot be used with --{other}"));
        }
    }
    let tag = match identifier {
        Some(_) => text(given, "identifier"),
        None => text(given, "tag"),
    };
    let piece_length = given.one("piece-length").and_then(|item| given.parsed(item, forms::piece_length));
    let content = text(given, "content-for-calculating-task-id");
    TaskSpec {
        tag: name::tag(&tag, &content, piece_length),
        application: text(given, "application"),
        digest: digest.or(md5),
        filtered_query_params: filters(given),
        ..TaskSpec::of_url(url)
    }
}

/// A short text that stands in messages and identities.
fn text(given: &Given, long: &'static str) -> String {
    given
        .one(long)
        .and_then(|item| given.parsed(item, |text| forms::identity(text, IDENTITY_LEN_MAX)))
        .unwrap_or_default()
}

fn filters(given: &Given) -> Vec<String> {
    let mut filters = Vec::new();
    for item in given.many("filter") {
        let names = given.text(item).unwrap_or_default().split('&').map(str::trim);
        filters.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
    }
    for item in given.many("filtered-query-param") {
        filters.extend(given.text(item).map(str::to_owned));
    }
    if filters.len() > FILTERS_MAX {
        given.missing("--filter", format!("more than {FILTERS_MAX} query parameters"));
    }
    filters
}

fn headers(given: &Given) -> Vec<(String, Vec<u8>)> {
    let items = given.many("header");
    if items.len() > HEADERS_MAX {
        given.missing("--header", format!("more than {HEADERS_MAX} of them"));
    }
    items.into_iter().filter_map(|item| given.parsed(item, |text| forms::header(text, HEADER_LEN_MAX))).collect()
}

/// `--range`, or a `Range` header as the old dfget took it.
fn range(given: &Given, headers: &[(String, Vec<u8>)]) -> Option<ByteRange> {
    const EXPECTED: &str = "expected FIRST-LAST in bytes, for example 0-1023";
    let flag = given
        .one("range")
        .and_then(|item| given.parsed(item, |text| ByteRange::parse_inclusive(text).map_err(|_| EXPECTED)));
    let header = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("range")).and_then(|(_, value)| {
        let range = std::str::from_utf8(value).ok().and_then(|text| ByteRange::parse_inclusive(text).ok());
        if range.is_none() {
            given.missing("--header", format!("the value of Range is not understood: {EXPECTED}"));
        }
        range
    });
    if let (Some(flag), Some(header)) = (flag, header)
        && flag != header
    {
        given.missing("--range", "says something else than the header Range");
    }
    flag.or(header)
}

fn recursive(given: &Given) -> Option<Recursive> {
    let on = given.is_set("recursive");
    let regex = |long| given.one(long).and_then(|item| given.parsed(item, forms::regex));
    let number = |long, max: usize| {
        given.one(long).and_then(|item| given.parsed(item, |text| forms::number(text, 0, max as u64)))
    };
    let include: Vec<String> =
        given.many("include-files").into_iter().filter_map(|item| given.parsed(item, forms::glob)).collect();
    let (accept, reject) = (regex("accept-regex"), regex("reject-regex"));
    let level = number("level", LEVEL_MAX).map_or(DEFAULT_LEVEL, |n| n as usize);
    let files_max = number("max-files", FILES_MAX).map_or(DEFAULT_FILES_MAX, |n| n as usize);
    let parallel = given
        .one("max-concurrent-requests")
        .and_then(|item| given.parsed(item, |text| forms::number(text, 1, PARALLEL_MAX as u64)))
        .map_or(DEFAULT_PARALLEL, |n| n as usize);
    let list = given.is_set("list");
    if !on {
        let needing =
            ["include-files", "accept-regex", "reject-regex", "level", "max-files", "max-concurrent-requests"];
        let first = needing.into_iter().find_map(|long| given.many(long).into_iter().next());
        for item in first.into_iter().chain(given.switch("list")) {
            given.wrong(item, "needs --recursive");
        }
        return None;
    }
    let depth_max = if level == 0 { LEVEL_MAX } else { level - 1 };
    Some(Recursive { include, accept, reject, depth_max, files_max, parallel, list })
}

fn output(given: &Given, url: Option<&Url>, folder: bool, current_dir: &Path) -> Option<PathBuf> {
    let item = given.one("output");
    if let Some(item) = item
        && item.value.as_ref().is_none_or(|value| value.is_empty())
    {
        given.wrong(item, "is empty");
        return None;
    }
    let path = item.and_then(|item| item.value.as_ref()).map(|value| current_dir.join(value));
    match name::output(path, url?, folder, current_dir) {
        Ok(path) => Some(path),
        Err(what) => {
            given.missing("--output", what);
            None
        }
    }
}

fn rate(given: &Given, long: &'static str) -> Option<u64> {
    given.one(long).and_then(|item| given.parsed(item, str::parse::<Rate>)).and_then(|rate| rate.0)
}

fn timeout(given: &Given) -> Option<Duration> {
    match given.one_of_form("timeout", is_time) {
        Some(item) => given.parsed(item, forms::time).filter(|time| !time.is_zero()),
        None => Some(DEFAULT_TIMEOUT),
    }
}

fn endpoint(given: &Given, local: &LocalSettings, current_dir: &Path) -> Option<Endpoint> {
    let item = given.one_of_form("endpoint", |value| is_path(value) && !is_time(value));
    let off = given.switch("no-daemon");
    if let (Some(item), Some(_)) = (item, off) {
        given.wrong(item, "cannot be used with --no-daemon");
    }
    // What is only told to the engine in this process would be lost on a daemon.
    if let Some(item) = item.filter(|_| local.insecure || !local.ca_files.is_empty()) {
        given.wrong(item, "cannot be used with --insecure or --cacerts: the dfdaemon trusts what its operator told it");
    }
    if off.is_some() || local.insecure || !local.ca_files.is_empty() {
        return None;
    }
    Some(match item.and_then(|item| item.value.as_ref()) {
        Some(value) => {
            let path = value
                .to_str()
                .and_then(|text| text.strip_prefix("unix://"))
                .map_or_else(|| Path::new(value), Path::new);
            Endpoint { path: current_dir.join(path), named: true }
        }
        None => Endpoint { path: DEFAULT_ENDPOINT.into(), named: false },
    })
}

/// Route, whether the origin is forbidden, and the priority.
fn route(given: &Given, local: &LocalSettings) -> (Route, bool, u32) {
    let pattern = given.one_of_form("pattern", is_pattern);
    let mut route = match pattern.and_then(|item| given.parsed(item, str::parse)) {
        None | Some(Pattern::P2p) => Route::P2p,
        Some(Pattern::Cdn) => Route::SeedOnly,
        Some(Pattern::Source) => Route::OriginOnly,
    };
    let priority = given.one_of_form("priority", is_priority);
    let level = priority.and_then(|item| given.parsed(item, forms::priority)).unwrap_or(DEFAULT_PRIORITY);
    let never = given.is_set("disable-back-to-source") || level == 2;
    if local.insecure || !local.ca_files.is_empty() {
        if let Some(item) = pattern.filter(|_| route != Route::OriginOnly) {
            given.wrong(item, "cannot be used with --insecure or --cacerts, which go straight to the origin");
        }
        route = Route::OriginOnly;
    }
    if never && route == Route::OriginOnly {
        given.missing(
            "--disable-back-to-source",
            "the download goes straight to the origin (--pattern source, --insecure or --cacerts)",
        );
    }
    (route, never, level)
}

fn local(given: &Given, current_dir: &Path) -> LocalSettings {
    let path = |item: &Item| item.value.as_ref().map(|value| current_dir.join(value));
    let folder = |long| given.one(long).and_then(path);
    let time = |long| {
        given.one(long).and_then(|item| given.parsed(item, forms::time)).filter(|time: &Duration| !time.is_zero())
    };
    let within =
        |long, max: u64| given.one(long).and_then(|item| given.parsed(item, |text| forms::number(text, 1, max)));
    let supernodes =
        given.many("node").into_iter().filter_map(|item| given.parsed(item, forms::nodes)).flatten().collect();
    LocalSettings {
        supernodes,
        home: folder("home"),
        data_dir: folder("datadir"),
        ip: given
            .one("ip")
            .and_then(|item| given.parsed(item, |text| text.parse::<IpAddr>().map_err(|_| "not an IP address"))),
        port: within("port", u64::from(u16::MAX)).and_then(|port| u16::try_from(port).ok()),
        alive: time("alivetime"),
        expire: time("expiretime"),
        pieces_in_flight: within("clientqueue", u64::from(CLIENT_QUEUE_MAX)).and_then(|n| u32::try_from(n).ok()),
        total_rate_bytes_per_s: None,
        name: String::new(),
        ca_files: given.many("cacerts").into_iter().filter_map(path).collect(),
        insecure: given.is_set("insecure"),
    }
}

fn log(given: &Given, current_dir: &Path) -> Option<LogOptions> {
    let level = given.one_of_form("log-level", is_level).and_then(|item| {
        given.parsed(item, |text| {
            let text = text.to_ascii_lowercase();
            if is_level(OsStr::new(&text)) { Ok(text) } else { Err("expected trace, debug, info, warn, error or off") }
        })
    });
    let folder = given.one("logdir").and_then(|item| item.value.as_ref()).map(|value| current_dir.join(value));
    let (console, verbose) = (given.is_set("console"), given.is_set("verbose"));
    if level.is_none() && folder.is_none() && !console && !verbose {
        return None;
    }
    let level = level.unwrap_or_else(|| if verbose { "debug" } else { "info" }.to_owned());
    Some(LogOptions { level, stderr: console || folder.is_none(), folder })
}

#[cfg(test)]
mod tests;
