//! The data.

use super::Effect::{Does, Either, Refused, Same};
use super::Group::{Content, Display, Download, Engine, Limits, Recursive, Source};
use super::Origin::{Ours, V1, V2Go, V2Rust};
use super::Takes::{Many, Nothing, One, Perhaps};
use super::{Effect, Flag, Group, Origin, Takes};

const fn flag(
    group: Group,
    long: &'static str,
    short: &'static [char],
    takes: Takes,
    origins: &'static [Origin],
    effect: Effect,
) -> Flag {
    Flag { long, short, takes, origins, effect, group }
}

const fn refused(long: &'static str, origins: &'static [Origin], takes: Takes, why: &'static str) -> Flag {
    flag(Group::Refused, long, &[], takes, origins, Refused(why))
}

const STORAGE: &str = "belongs to URLs of object stores (s3, gs, abs, oss, obs, cos), which are not built yet";
const HDFS: &str = "belongs to hdfs URLs, which are not built yet";
const HF: &str = "belongs to hf URLs (Hugging Face), which are not built yet";
const MS: &str = "belongs to modelscope URLs, which are not built yet";
const CSG: &str = "belongs to opencsg URLs, which are not built yet";

/// Words that are commands when they stand where the URL would; what they do, or why they are refused.
pub static COMMANDS: &[(&str, Effect)] = &[
    ("version", Does("prints the version, as --version does")),
    ("gen-doc", Does("prints the tables of flags and exit codes as Markdown")),
    ("completions", Does("prints completions for the shell named next: bash, elvish, fish, powershell or zsh")),
    ("help", Does("prints the help, as --help does")),
    ("server", Refused("was the old program's own uploader; the host's dfdaemon serves the peers")),
];

/// Every flag.
pub static FLAGS: &[Flag] = &[
    // --- what, and where to ---
    flag(
        Download,
        "url",
        &['u'],
        One("URL"),
        &[V1, V2Go],
        Does("the http or https URL to download; may also stand alone, without a flag"),
    ),
    flag(
        Download,
        "output",
        &['O', 'o'],
        One("PATH"),
        &[V1, V2Go, V2Rust],
        Does(
            "where the file goes: a path, or a folder (an existing one, or ending in /), in which it gets the last part of the URL as its name; the current folder when absent. Missing parent folders are made",
        ),
    ),
    flag(
        Download,
        "overwrite",
        &[],
        Nothing,
        &[V2Rust],
        Does(
            "replaces an existing output. This is what happens anyway: the new file takes the place of the old one in one step, after it was verified",
        ),
    ),
    flag(Download, "no-clobber", &[], Nothing, &[Ours], Does("refuses to replace an existing output")),
    flag(
        Download,
        "range",
        &[],
        One("FIRST-LAST"),
        &[V2Go],
        Does("only these bytes of the content, the last one included"),
    ),
    flag(
        Download,
        "original-offset",
        &[],
        Nothing,
        &[V2Go],
        Does(
            "with --range: writes the bytes at their own offset of the output, which keeps all its other bytes, so that several ranges make one file",
        ),
    ),
    flag(
        Download,
        "force-hard-link",
        &[],
        Nothing,
        &[V2Rust],
        Does("fails when the output cannot be a hard link to the stored content, instead of cloning or copying it"),
    ),
    flag(
        Download,
        "transfer-from-dfdaemon",
        &[],
        Nothing,
        &[V2Rust],
        Does(
            "takes the bytes over the socket and writes the output itself; for a dfdaemon that does not see the same file system",
        ),
    ),
    // --- identity ---
    flag(Content, "md5", &['m'], One("HEX"), &[V1], Does("what the content must hash to in MD5; part of the identity")),
    flag(
        Content,
        "digest",
        &[],
        One("ALGORITHM:HEX"),
        &[V2Go, V2Rust],
        Does(
            "what the content must hash to: sha256, sha512, md5 or blake3, part of the identity; or crc32, checked over the output alone",
        ),
    ),
    flag(
        Content,
        "identifier",
        &['i'],
        One("TEXT"),
        &[V1],
        Does("keeps downloads of one URL apart, as --tag does; not together with --md5 or --tag"),
    ),
    flag(
        Content,
        "tag",
        &[],
        One("TEXT"),
        &[V2Go, V2Rust],
        Does("keeps downloads of one URL apart that must not share their content"),
    ),
    flag(
        Content,
        "application",
        &[],
        One("NAME"),
        &[V2Go, V2Rust],
        Does("who asks, for statistics and priorities; part of the identity"),
    ),
    flag(
        Content,
        "callsystem",
        &[],
        One("NAME"),
        &[V1],
        Does("who asks, told to the dfdaemon for its log; not part of the identity"),
    ),
    flag(
        Content,
        "filter",
        &['f'],
        Many("NAME&NAME"),
        &[V1, V2Go],
        Does("query parameters that do not change the content, joined by &"),
    ),
    flag(
        Content,
        "filtered-query-param",
        &[],
        Many("NAME"),
        &[V2Rust],
        Does("a query parameter that does not change the content; those of signed URLs are known already"),
    ),
    flag(
        Content,
        "content-for-calculating-task-id",
        &[],
        One("TEXT"),
        &[V2Rust],
        Does(
            "a further part of the identity. It adds to the URL and does not replace it: otherwise any user could put bytes of another origin in the place of these",
        ),
    ),
    flag(
        Content,
        "piece-length",
        &[],
        One("SIZE"),
        &[V2Rust],
        Does(
            "a further part of the identity, as it was; pieces are cut by the length of the content nevertheless, so that hosts always fit together",
        ),
    ),
    // --- the origin ---
    flag(
        Source,
        "header",
        &['H'],
        Many("NAME: VALUE"),
        &[V1, V2Go, V2Rust],
        Does(
            "a header for the origin. With credentials in it the content is shared only with callers whom the origin lets in too",
        ),
    ),
    flag(
        Source,
        "cacerts",
        &[],
        Many("FILE"),
        &[V1],
        Does(
            "PEM certificates to trust for the origin. Downloads in this process and straight from the origin: dfdaemon and supernode trust what their operator told them",
        ),
    ),
    flag(
        Source,
        "insecure",
        &[],
        Nothing,
        &[V1],
        Does(
            "does not check the origin's certificate. Downloads in this process and straight from the origin, and shares nothing: nobody vouches for such bytes",
        ),
    ),
    flag(
        Source,
        "disable-back-to-source",
        &[],
        Nothing,
        &[V2Rust],
        Does("fails when no peer has the content rather than ask the origin"),
    ),
    flag(Source, "disable-back-source", &[], Nothing, &[V2Go], Same("disable-back-to-source")),
    flag(Source, "notbs", &[], Nothing, &[V1], Same("disable-back-to-source")),
    flag(
        Source,
        "pattern",
        &[],
        One("p2p|cdn|source"),
        &[V1],
        Does("p2p: from peers; cdn: only from the supernode; source: straight from the origin"),
    ),
    flag(
        Source,
        "priority",
        &['P'],
        One("0-6"),
        &[V2Go, V2Rust],
        Does("how urgent it is, 6 when absent. 1 forbids the download, 2 implies --disable-back-to-source"),
    ),
    flag(
        Source,
        "",
        &['p'],
        One("p2p|cdn|source|0-6"),
        &[V1, V2Rust],
        Either(&["pattern", "priority"], "a word is a --pattern, a digit is a --priority; anything else is an error"),
    ),
    // --- limits ---
    flag(
        Limits,
        "locallimit",
        &['s'],
        One("RATE"),
        &[V1],
        Does(
            "at most this rate for this download: 20M or 512K bytes per second (powers of 1024), or 25MB/s, 16MiB/s, 200Mb/s; 0 or unlimited for none",
        ),
    ),
    flag(Limits, "ratelimit", &[], One("RATE"), &[V2Go], Same("locallimit")),
    flag(
        Limits,
        "totallimit",
        &[],
        One("RATE"),
        &[V1],
        Does(
            "one rate for all downloads that name one, shared out equally: those of the dfdaemon, or of this process (with the uploads of its engine); a dfdaemon has a limit of its own besides. No effect with --pattern cdn or source, as ever",
        ),
    ),
    flag(
        Limits,
        "minrate",
        &[],
        One("RATE"),
        &[V1],
        Does("the part of a --totallimit that this download gets at least"),
    ),
    flag(
        Limits,
        "timeout",
        &[],
        One("TIME"),
        &[V1, V2Go, V2Rust],
        Does("for the whole command: 5m, 1h30m, or seconds; 2h when absent, 0 for none"),
    ),
    flag(
        Limits,
        "",
        &['e'],
        One("TIME|SOCKET"),
        &[V1, V2Rust],
        Either(
            &["timeout", "endpoint"],
            "a time is a --timeout, a path with a / in it is an --endpoint; anything else is an error",
        ),
    ),
    // --- folders ---
    flag(
        Recursive,
        "recursive",
        &['r'],
        Nothing,
        &[V2Go, V2Rust],
        Does("downloads the folder that the URL names, from the listings of nginx and Apache, into the output folder"),
    ),
    flag(
        Recursive,
        "include-files",
        &['I'],
        Many("GLOB"),
        &[V2Rust],
        Does(
            "with -r: only files whose path matches; * stops at /, ** does not; a pattern without / is about the file's name",
        ),
    ),
    flag(Recursive, "accept-regex", &[], One("REGEX"), &[V2Go], Does("with -r: only files whose URL matches")),
    flag(Recursive, "reject-regex", &[], One("REGEX"), &[V2Go], Does("with -r: no files whose URL matches")),
    flag(
        Recursive,
        "level",
        &[],
        One("N"),
        &[V2Go],
        Does("with -r: how many levels deep, 1 for the folder's own files; 5 when absent, 0 for all"),
    ),
    flag(
        Recursive,
        "max-files",
        &[],
        One("N"),
        &[V2Rust],
        Does("with -r: more files than this are an error, 100 when absent"),
    ),
    flag(
        Recursive,
        "max-concurrent-requests",
        &[],
        One("N"),
        &[V2Rust],
        Does("with -r: files at a time, 1 to 64, 5 when absent"),
    ),
    flag(
        Recursive,
        "list",
        &[],
        Nothing,
        &[V2Go],
        Does("with -r: prints the URLs that would be downloaded, and downloads nothing"),
    ),
    flag(
        Recursive,
        "",
        &['l'],
        Perhaps("LEVEL"),
        &[V2Go, V2Rust],
        Either(
            &["list", "log-level"],
            "followed by trace, debug, info, warn, error or off it is --log-level, otherwise --list",
        ),
    ),
    // --- display ---
    flag(
        Display,
        "json",
        &[],
        Nothing,
        &[Ours],
        Does("prints events and the result as JSON, one object a line, on stdout"),
    ),
    flag(
        Display,
        "show-progress",
        &['b'],
        Nothing,
        &[V1, V2Go],
        Does("shows progress even when stderr is no terminal, as a line each second"),
    ),
    flag(Display, "showbar", &[], Nothing, &[V1], Same("show-progress")),
    flag(Display, "no-progress", &[], Nothing, &[V2Rust], Does("shows no progress bar on a terminal")),
    flag(
        Display,
        "console",
        &[],
        Nothing,
        &[V1, V2Go, V2Rust],
        Does("writes the log to stderr, also when --logdir is given"),
    ),
    flag(Display, "verbose", &[], Nothing, &[V1], Does("writes the log down to debug level")),
    flag(
        Display,
        "log-level",
        &[],
        One("LEVEL"),
        &[V2Rust],
        Does("writes the log: trace, debug, info, warn, error or off"),
    ),
    flag(Display, "logLevel", &[], One("LEVEL"), &[V2Go], Same("log-level")),
    flag(Display, "logdir", &[], One("DIR"), &[V2Go], Does("writes the log to dfget.log in this folder")),
    flag(Display, "version", &['V'], Nothing, &[V2Rust], Does("prints the version")),
    flag(Display, "help", &['h'], Nothing, &[V1, V2Go, V2Rust], Does("prints the help")),
    // --- daemon and engine ---
    flag(
        Engine,
        "endpoint",
        &[],
        One("SOCKET"),
        &[V2Rust],
        Does("the dfdaemon's Unix socket, /run/skimmer/dfdaemon.sock when absent"),
    ),
    flag(Engine, "daemon-sock", &[], One("SOCKET"), &[V2Go], Same("endpoint")),
    flag(Engine, "no-daemon", &[], Nothing, &[Ours], Does("downloads in this process though a dfdaemon may run")),
    flag(
        Engine,
        "node",
        &['n'],
        Many("HOST[:PORT][=WEIGHT],…"),
        &[V1],
        Does("built-in engine: the supernodes to use, port 8002 and weight 1 when absent"),
    ),
    flag(
        Engine,
        "clientqueue",
        &[],
        One("N"),
        &[V1],
        Does("built-in engine: pieces on their way at a time, 1 to 1024"),
    ),
    flag(Engine, "ip", &[], One("ADDRESS"), &[V1], Does("built-in engine: the address peers reach it under")),
    flag(
        Engine,
        "port",
        &[],
        One("PORT"),
        &[V1],
        Does("built-in engine: the port peers reach it under, any free one when absent"),
    ),
    flag(
        Engine,
        "alivetime",
        &[],
        One("TIME"),
        &[V1],
        Does(
            "built-in engine: after the download goes on serving peers until nobody asked for this long; ends with the download when absent",
        ),
    ),
    flag(
        Engine,
        "expiretime",
        &[],
        One("TIME"),
        &[V1],
        Does("built-in engine: forgets stored content that nobody used for this long"),
    ),
    flag(
        Engine,
        "home",
        &[],
        One("DIR"),
        &[V1],
        Does(
            "built-in engine: its folder; when absent, content lies in $XDG_DATA_HOME/skimmer/dfget or ~/.local/share/skimmer/dfget",
        ),
    ),
    flag(Engine, "workhome", &[], One("DIR"), &[V2Go], Same("home")),
    flag(
        Engine,
        "datadir",
        &[],
        One("DIR"),
        &[V2Go],
        Does("built-in engine: the folder of stored content, data in --home when absent"),
    ),
    // --- refused ---
    refused(
        "dfdaemon",
        &[V1],
        Nothing,
        "told the old program that its daemon called it; nothing here depends on who calls",
    ),
    refused(
        "cachedir",
        &[V2Go],
        One("DIR"),
        "named a folder of the old program's own; here nothing but the store is kept between runs, see --home and --datadir",
    ),
    refused(
        "data",
        &[V1],
        One("DIR"),
        "belonged to the old program's server command; --datadir names the built-in engine's folder",
    ),
    refused(
        "meta",
        &[V1],
        One("FILE"),
        "belonged to the old program's server command and named a file only it could read",
    ),
    refused("storage-region", &[V2Rust], One("TEXT"), STORAGE),
    refused("storage-endpoint", &[V2Rust], One("TEXT"), STORAGE),
    refused("storage-access-key-id", &[V2Rust], One("TEXT"), STORAGE),
    refused("storage-access-key-secret", &[V2Rust], One("TEXT"), STORAGE),
    refused("storage-security-token", &[V2Rust], One("TEXT"), STORAGE),
    refused("storage-session-token", &[V2Rust], One("TEXT"), STORAGE),
    refused("storage-insecure-skip-verify", &[V2Rust], Nothing, STORAGE),
    refused("storage-credential-path", &[V2Rust], One("TEXT"), STORAGE),
    refused("storage-predefined-acl", &[V2Rust], One("TEXT"), STORAGE),
    refused("hdfs-delegation-token", &[V2Rust], One("TEXT"), HDFS),
    refused("hf-revision", &[V2Rust], One("TEXT"), HF),
    refused("hf-token", &[V2Rust], One("TEXT"), HF),
    refused("hf-base-url", &[V2Rust], One("TEXT"), HF),
    refused("ms-revision", &[V2Rust], One("TEXT"), MS),
    refused("ms-token", &[V2Rust], One("TEXT"), MS),
    refused("ms-base-url", &[V2Rust], One("TEXT"), MS),
    refused("csg-revision", &[V2Rust], One("TEXT"), CSG),
    refused("csg-token", &[V2Rust], One("TEXT"), CSG),
    refused("csg-base-url", &[V2Rust], One("TEXT"), CSG),
];
