use std::ffi::OsString;

use clap_complete::Shell;
use proptest::prelude::*;

use super::*;
use crate::flags::{FLAGS, by_long};

fn parse(line: &str) -> Result<Action, Vec<String>> {
    let dir = Path::new("/w");
    read(line.split_whitespace().map(OsString::from), dir)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

#[track_caller]
fn job(line: &str) -> Job {
    match parse(line) {
        Ok(Action::Download(job)) => *job,
        other => panic!("{line}: {other:?}"),
    }
}

#[track_caller]
fn problems(line: &str) -> Vec<String> {
    parse(line).expect_err(line)
}

const URL: &str = "http://h/d/f.bin";

/// A flag of the table that nobody looks at would be accepted and do nothing.
#[test]
fn every_flag_that_does_something_is_looked_at() {
    let given = Given::read([OsString::from(URL)]);
    assert!(action(&given, Path::new("/w")).is_some());
    let asked = given.asked();
    for flag in FLAGS {
        match flag.effect {
            Effect::Does(_) => assert!(asked.contains(flag.long), "--{} is never looked at", flag.long),
            Effect::Either(longs, _) => assert!(longs.iter().all(|long| asked.contains(long))),
            Effect::Same(_) | Effect::Refused(_) => assert!(!asked.contains(flag.long), "--{}", flag.long),
        }
    }
    for long in asked {
        assert!(by_long(long).is_some(), "--{long} is looked at and not in the table");
    }
}

#[test]
fn refused_flags_say_why() {
    for flag in FLAGS.iter().filter(|flag| matches!(flag.effect, Effect::Refused(_))) {
        let value = if flag.takes == crate::flags::Takes::Nothing { "" } else { "=x" };
        let problems = problems(&format!("{URL} --{}{value}", flag.long));
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(
            problems[0].starts_with(&format!("argument 2 (--{}): is not supported: it ", flag.long)),
            "{problems:?}"
        );
    }
    assert!(problems("server")[0].contains("dfdaemon serves"));
    for scheme in ["s3", "gs", "abs", "oss", "obs", "cos", "hdfs", "hf", "modelscope", "opencsg"] {
        assert!(problems(&format!("{scheme}://b/k"))[0].contains(&format!("{scheme} URLs are not built yet")));
    }
    assert!(problems("ftp://h/f")[0].contains("ftp URLs are not known"));
}

#[test]
fn all_problems_are_listed_with_their_places() {
    let problems = problems(
        "--digset sha256:00 --md5 12 -p fast -e soon --locallimit quick -H nonsense -i a http://h/ http://h/2 --max-files x -n",
    );
    let starts = [
        "argument 1 (--digset): no such flag, did you mean --digest?",
        "argument 3 (--md5): a md5 digest has 32",
        "argument 5 (-p): \"fast\" is neither a pattern",
        "argument 7 (-e): \"soon\" is neither a time",
        "argument 9 (--locallimit): expected a rate",
        "argument 11 (-H): expected Name: value",
        "argument 13 (-i): cannot be used with --md5",
        "argument 16 (http://h/2): one URL at a time",
        "argument 17 (--max-files): expected a number",
        "argument 17 (--max-files): needs --recursive",
        "argument 19 (-n): needs a value",
        "--output: missing: / has no last part",
    ];
    assert_eq!(problems.len(), starts.len(), "{problems:#?}");
    for (problem, start) in problems.iter().zip(starts) {
        assert!(problem.starts_with(start), "{problem} / {start}");
    }
}

#[test]
fn where_the_output_goes() {
    let dir = tempfile::tempdir().unwrap();
    let read = |line: &str| match read(line.split_whitespace().map(OsString::from), dir.path()) {
        Ok(Action::Download(job)) => job.output,
        other => panic!("{other:?}"),
    };
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    assert_eq!(read(URL), dir.path().join("f.bin"));
    assert_eq!(read(&format!("{URL}?x=1#y -O a/../b")), dir.path().join("a/../b"));
    assert_eq!(read(&format!("{URL} -o folder")), dir.path().join("folder/f.bin"));
    assert_eq!(read(&format!("{URL} --output new/")), dir.path().join("new/f.bin"));
    assert_eq!(read(&format!("{URL} -O /abs/x")), Path::new("/abs/x"));
    assert_eq!(read("http://h/a%20b%C3%A4"), dir.path().join("a bä"));
    assert_eq!(read("http://h/dir/ -r"), dir.path());
    assert_eq!(read("http://h/dir/ -r -O out/"), dir.path().join("out"));
    for url in ["http://h", "http://h/d/", "http://h/a%2Fb", "http://h/a%00", "http://h/%2e%2e%2f"] {
        assert!(problems(url)[0].contains("has no last part"), "{url}");
    }
    assert!(problems(&format!("{URL} -O="))[0].contains("is empty"));
}

#[test]
fn short_forms_of_two_meanings() {
    assert_eq!(job(&format!("{URL} -p cdn")).route, Route::SeedOnly);
    assert_eq!(job(&format!("{URL} -p source")).route, Route::OriginOnly);
    assert_eq!(job(&format!("{URL} -p 3")).priority, 3);
    let both = job(&format!("{URL} -p p2p -p 4 -e 5m -e /x.sock"));
    assert_eq!((both.route, both.priority), (Route::P2p, 4));
    assert_eq!(
        (both.timeout, both.endpoint),
        (Some(Duration::from_secs(300)), Some(Endpoint { path: "/x.sock".into(), named: true }))
    );
    assert_eq!(job(&format!("{URL} -e 90")).timeout, Some(Duration::from_secs(90)));
    assert_eq!(job(&format!("{URL} -e ./5m")).endpoint.unwrap().path, Path::new("/w/./5m"));
    for bad in ["-p 7", "-p P2P", "-e x.sock", "-p=", "-e="] {
        assert!(problems(&format!("{URL} {bad}"))[0].contains("is neither"), "{bad}");
    }
    assert!(problems(&format!("{URL} -p 3 --priority 4"))[0].contains("says something else than argument 2 (-p)"));
    let listing = job("-r -l http://h/d/");
    assert!(listing.recursive.unwrap().list && listing.log.is_none());
    let logging = job(&format!("-l debug {URL}"));
    assert_eq!(logging.log.unwrap().level, "debug");
    assert!(job("-rl http://h/d/").recursive.unwrap().list);
    assert!(job("-lr http://h/d/").recursive.unwrap().list);
    assert_eq!(job(&format!("-bltrace {URL}")).log.unwrap().level, "trace");
}

#[test]
fn sums_that_dfget_checks() {
    let checked = job(&format!("{URL} --digest CRC32:cbf43926"));
    assert!(checked.stream && checked.spec.digest.is_none());
    assert_eq!(checked.crc32, Some(0xcbf4_3926));
    let both = job(&format!("{URL} --digest crc32:cbf43926 -m d41d8cd98f00b204e9800998ecf8427e"));
    assert!(both.crc32.is_some() && both.spec.digest.is_some());
    for wrong in ["crc32:", "crc32:cbf4392", "crc32:+bf43926", "crc32:cbf439266", "crc32"] {
        assert!(!problems(&format!("{URL} --digest {wrong}")).is_empty(), "{wrong}");
    }
    assert!(!problems(&format!("{URL} --digest crc32:cbf43926 --force-hard-link")).is_empty());
}

#[test]
fn identity() {
    let id = |flags: &str| job(&format!("{URL}?version=1 {flags}")).spec.id();
    let md5 = "d41d8cd98f00b204e9800998ecf8427e";
    assert_eq!(id(&format!("-m {md5}")), id(&format!("--digest md5:{}", md5.to_uppercase())));
    assert_eq!(id("--digest crc32:cbf43926"), id(""));
    assert_eq!(id("-i x"), id("--tag x"));
    assert_eq!(id("--callsystem x"), id(""));
    assert_eq!(id("-f version&b"), id("--filtered-query-param version --filtered-query-param b"));
    let different = [
        "",
        "--tag x",
        "--application x",
        "--content-for-calculating-task-id x",
        "--piece-length 4MiB",
        "--range 0-9",
        "--filter version",
    ];
    let ids: std::collections::HashSet<_> = different.into_iter().map(id).collect();
    assert_eq!(ids.len(), different.len());
    assert_eq!(id("--piece-length 8m"), id("--piece-length 8388608"));
    assert_eq!(job(&format!("{URL} -H Range:bytes=5-9")).spec.range, ByteRange::new(5, 10));
    assert!(job(&format!("{URL} -H Range:bytes=5-9")).headers.is_empty());
    for bad in [
        "--digest crc32:00",
        "--digest zz",
        "--range 5-2",
        "--range 5-",
        "--range -5",
        "--range 0-1 -H range:bytes=2-3",
        "-H Range:bytes=1-",
    ] {
        assert_eq!(problems(&format!("{URL} {bad}")).len(), 1, "{bad}");
    }
}

#[test]
fn rates_and_times() {
    for (text, bytes) in [
        ("20M", Some(20 << 20)),
        ("20mb", Some(20 << 20)),
        ("512k", Some(512 << 10)),
        ("1G", Some(1 << 30)),
        ("1000", Some(1000)),
        ("0", None),
        ("0M", None),
        ("unlimited", None),
        ("25MB/s", Some(25_000_000)),
        ("16MiB/s", Some(16 << 20)),
        ("200Mb/s", Some(25_000_000)),
        ("1.5M", Some(3 << 19)),
    ] {
        assert_eq!(text.parse::<Rate>(), Ok(Rate(bytes)), "{text}");
    }
    for text in ["", "M", "-1", "20X", "1b/s", "0.1", "/s", "20M/s", "1e9", "99999999999G"] {
        assert!(text.parse::<Rate>().is_err(), "{text}");
    }
    let limits = job(&format!("{URL} -s 20M --totallimit 10M --minrate 64K --timeout 0"));
    assert_eq!(
        (limits.rate_bytes_per_s, limits.rate_min_bytes_per_s, limits.timeout),
        (Some(20 << 20), Some(64 << 10), None)
    );
    assert_eq!(limits.local.total_rate_bytes_per_s, Some(10 << 20));
    assert_eq!(job(&format!("{URL} --ratelimit 20M --totallimit 10M -p source")).rate_bytes_per_s, Some(20 << 20));
    assert_eq!(job(&format!("{URL} --timeout 1h30m")).timeout, Some(Duration::from_secs(5400)));
    assert_eq!(job(URL).timeout, Some(DEFAULT_TIMEOUT));
    assert_eq!(problems(&format!("{URL} --timeout 41days")).len(), 1);
}

#[test]
fn the_built_in_engine() {
    let local = job(&format!(
        "{URL} -n a,b:9=5,[::1]:7=2 --node [fe80::1] --home h --datadir /d --ip 10.0.0.1 --port 15000 --alivetime 5m --expiretime 180 --clientqueue 6"
    ))
    .local;
    let nodes: Vec<_> = local.supernodes.iter().map(|node| (node.endpoint.as_str(), node.weight)).collect();
    assert_eq!(nodes, [("http://a:8002", 1), ("http://b:9", 5), ("http://[::1]:7", 2), ("http://[fe80::1]:8002", 1)]);
    assert_eq!(local.home.as_deref(), Some(Path::new("/w/h")));
    assert_eq!(
        (local.port, local.pieces_in_flight, local.alive),
        (Some(15000), Some(6), Some(Duration::from_secs(300)))
    );
    for bad in ["-n a:b", "-n a/b", "-n a=0", "-n ,", "-n u@h", "--ip x", "--port 0", "--port 70000", "--clientqueue 0"]
    {
        assert_eq!(problems(&format!("{URL} {bad}")).len(), 1, "{bad}");
    }
    let insecure = job(&format!("{URL} --insecure --cacerts ca.pem"));
    assert_eq!((insecure.route, insecure.endpoint), (Route::OriginOnly, None));
    assert_eq!(insecure.local.ca_files, [Path::new("/w/ca.pem")]);
    assert_eq!(problems(&format!("{URL} --insecure -p cdn")).len(), 1);
    assert_eq!(problems(&format!("{URL} --notbs -p source")).len(), 1);
    assert!(job(&format!("{URL} -p 2")).never_origin);
    assert_eq!(job(&format!("{URL} --no-daemon")).endpoint, None);
}

#[test]
fn flags_of_go_programs_take_true_and_false() {
    assert!(job(&format!("{URL} --showbar=true")).show.lines);
    assert!(!job(&format!("{URL} --showbar=false")).show.lines);
    assert!(problems(&format!("{URL} --showbar=maybe"))[0].contains("takes no value but"));
    assert!(!job(&format!("{URL} -b=false")).show.lines);
}

#[test]
fn what_does_not_go_together() {
    for line in [
        "--overwrite --no-clobber",
        "--original-offset",
        "--original-offset --range 0-1 --no-clobber",
        "--force-hard-link --transfer-from-dfdaemon",
        "-r --md5 d41d8cd98f00b204e9800998ecf8427e",
        "-r --range 0-1",
        "--list",
        "-I *.gz",
        "--accept-regex (",
        "-r --accept-regex (",
        "-r -I [",
        "-r --max-concurrent-requests 0",
        "--no-daemon --endpoint /x",
        "--insecure -e /x",
        "--tag a --identifier a",
        "--tag a --tag b",
        "-u http://h/2",
        "--filter",
    ] {
        assert!(!problems(&format!("http://h/d/f {line}")).is_empty(), "{line}");
    }
    assert_eq!(job("http://h/f --tag a --tag a").spec.tag, "a");
    assert!(problems("")[0].starts_with("URL: missing"));
    assert!(problems("h/f")[0].contains("does not begin with http://"));
}

#[test]
fn commands() {
    assert!(matches!(parse("version"), Ok(Action::Version)));
    assert!(matches!(parse("--version"), Ok(Action::Version)));
    assert!(matches!(parse("-V"), Ok(Action::Version)));
    assert!(matches!(parse("gen-doc"), Ok(Action::GenDoc)));
    assert!(matches!(parse("help"), Ok(Action::Help)));
    assert!(matches!(parse("-h"), Ok(Action::Help)));
    assert!(matches!(parse("completions zsh"), Ok(Action::Completions(Shell::Zsh))));
    assert_eq!(problems("completions").len(), 1);
    assert_eq!(problems("completions csh").len(), 1);
    assert_eq!(problems("version now").len(), 1);
}

proptest! {
    #[test]
    fn no_command_line_panics(words in proptest::collection::vec("(-[a-zA-Z]{1,3}|--[a-z-]{1,12})?(=)?[a-z0-9:/.%&\\[\\]]{0,8}", 0..10)) {
        let _ = read(words.into_iter().map(OsString::from), Path::new("/w"));
    }
}
