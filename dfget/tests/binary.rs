use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proto::wire::Kind;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;
use tonic::Code;

use crate::fake::{Deed, Fake, Shared};

/// No wait in these tests takes longer, unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

struct Scene {
    dir: TempDir,
    daemon: Option<Fake>,
    shared: Arc<Shared>,
}

struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ended {
    fn lines(&self) -> Vec<Value> {
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}")))
            .collect()
    }

    fn last(&self) -> Value {
        self.lines().pop().unwrap_or_else(|| panic!("nothing on stdout; stderr: {}", self.stderr))
    }
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["content", "out"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let shared = Arc::new(Shared::default());
        let mut scene = Self { dir, daemon: None, shared };
        scene.start();
        scene
    }

    fn start(&mut self) {
        self.daemon = None;
        self.daemon = Some(Fake::start(&self.socket(), &self.dir.path().join("content"), Arc::clone(&self.shared)));
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("d.sock")
    }

    fn out(&self, name: &str) -> PathBuf {
        self.dir.path().join("out").join(name)
    }

    fn content(&self, name: &str, length: usize) -> Vec<u8> {
        let content: Vec<u8> = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
        std::fs::write(self.dir.path().join("content").join(name), &content).unwrap();
        content
    }

    fn will(&self, deed: Deed) {
        self.shared.deeds.lock().push_back(deed);
    }

    fn spawn(&self, flags: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dfget"));
        command.current_dir(self.dir.path().join("out")).arg("-e").arg(self.socket()).args(flags);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    fn run(&self, flags: &[&str]) -> Ended {
        end(self.spawn(flags))
    }

    /// Names in the output folder.
    fn outputs(&self) -> Vec<String> {
        names(&self.dir.path().join("out"))
    }

    fn wait_for(&self, what: impl Fn() -> bool) {
        let begin = Instant::now();
        while !what() {
            assert!(begin.elapsed() < PATIENCE, "it never came to be");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn end(child: Child) -> Ended {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code().expect("not killed"), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn a_file_comes_quietly_and_is_replaced() {
    let scene = Scene::new();
    let content = scene.content("f.bin", 200_000);
    for flags in [
        vec!["http://h/d/f.bin"],
        vec!["-u", "http://h/d/f.bin", "-o", "f.bin"],
        vec!["http://h/f.bin", "-O", "f.bin", "--overwrite"],
    ] {
        let ended = scene.run(&flags);
        assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (0, "", ""), "{flags:?}");
        assert_eq!(std::fs::read(scene.out("f.bin")).unwrap(), content);
        std::fs::write(scene.out("f.bin"), "old").unwrap();
    }
    let ended = scene.run(&["http://h/f.bin", "--no-clobber"]);
    assert_eq!((ended.code, std::fs::read(scene.out("f.bin")).unwrap().as_slice()), (8, b"old".as_slice()));
    assert!(ended.stderr.contains("f.bin exists") && ended.stderr.lines().count() == 1, "{}", ended.stderr);
    assert_eq!(scene.outputs(), ["f.bin"]);
}

#[test]
fn json_has_events_and_a_result() {
    let scene = Scene::new();
    scene.content("f", 300_000);
    for stream in [false, true] {
        let mut flags = vec!["--json", "http://user:pw@h/f?token=secret", "-O", "new/folder/g"];
        flags.extend(stream.then_some("--transfer-from-dfdaemon"));
        let ended = scene.run(&flags);
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
        assert!(!ended.stdout.contains("secret") && !ended.stdout.contains("pw"));
        let lines = ended.lines();
        assert_eq!(
            (&lines[0]["event"], &lines[0]["by"], &lines[0]["length"]),
            (&"started".into(), &"dfdaemon".into(), &300_000.into())
        );
        assert!(lines.iter().any(|line| line["event"] == "progress"));
        let last = ended.last();
        assert_eq!(last["ok"], true);
        assert_eq!(
            (&last["length"], &last["from_peers"], &last["from_origin"], &last["from_cache"]),
            (&300_000.into(), &300_000.into(), &0.into(), &0.into())
        );
        assert_eq!(last["output"], scene.out("new/folder/g").to_str().unwrap());
        assert!(last["seconds"].as_f64().unwrap() > 0.0);
        assert_eq!(std::fs::read(scene.out("new/folder/g")).unwrap().len(), 300_000);
        assert_eq!(names(&scene.out("new/folder")), ["g"]);
        std::fs::remove_dir_all(scene.out("new")).unwrap();
    }
}

#[test]
fn what_the_daemon_is_told() {
    let scene = Scene::new();
    scene.content("f", 100);
    let flags = "http://h/f?a=1 --md5 d41d8cd98f00b204e9800998ecf8427e --header X-A:b --header Cookie:c=d -f a&b -p cdn -P 3 -s 20M --minrate 64K \
                 -e 5m --notbs --application app --callsystem me --range 10-19 --force-hard-link";
    let ended = scene.run(&flags.split_whitespace().collect::<Vec<_>>());
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    let request = scene.shared.requests.lock().pop().unwrap();
    let spec = request.spec.unwrap();
    assert_eq!(spec.digest, "md5:d41d8cd98f00b204e9800998ecf8427e");
    assert_eq!((spec.application.as_str(), spec.range_start, spec.range_end), ("app", Some(10), Some(20)));
    assert_eq!(spec.filtered_query_params, ["a", "b"]);
    let headers: Vec<_> = request.headers.iter().map(|h| (h.name.as_str(), &h.value[..])).collect();
    assert_eq!(headers, [("x-a", b"b".as_slice()), ("cookie", b"c=d")]);
    assert_eq!(
        (request.route, request.priority, request.rate_bytes_per_s, request.rate_min_bytes_per_s),
        (1, 3, 20 << 20, 64 << 10)
    );
    assert!((300_000..=305_000).contains(&request.timeout_ms), "{}", request.timeout_ms);
    assert!(request.disable_back_to_source && request.force_hard_link && request.overwrite);
    assert_eq!(request.output, scene.out("f").to_str().unwrap());
    assert_eq!(request.uid, rustix::process::geteuid().as_raw());
    assert_eq!(*scene.shared.callers.lock(), [b"me".to_vec()]);
}

#[test]
fn crc32_is_summed_over_the_output() {
    let scene = Scene::new();
    let content = scene.content("f", 300_000);
    std::fs::write(scene.out("f"), "old").unwrap();
    let sum = crc32fast::hash(&content);
    let wrong = scene.run(&["http://h/f", "--digest", &format!("crc32:{:08x}", sum ^ 1)]);
    assert_eq!(wrong.code, 3, "{}", wrong.stderr);
    assert!(wrong.stderr.contains(&format!("the content's crc32 is {sum:08x}")), "{}", wrong.stderr);
    assert_eq!(std::fs::read(scene.out("f")).unwrap(), b"old");
    assert_eq!(names(&scene.out("")), ["f"]);
    let right = scene.run(&["http://h/f", "--digest", &format!("crc32:{sum:08X}")]);
    assert_eq!(right.code, 0, "{}", right.stderr);
    assert_eq!(std::fs::read(scene.out("f")).unwrap(), content);
}

#[test]
fn failures_have_codes_of_their_own_and_leave_nothing() {
    let scene = Scene::new();
    scene.content("f", 100_000);
    std::fs::write(scene.out("f"), "old").unwrap();
    let cases = [
        (Kind::NotFound, 404, 0, 4, "not_found", 10),
        (Kind::Unauthorized, 401, 0, 5, "unauthorized", 10),
        (Kind::Forbidden, 403, 0, 5, "forbidden", 10),
        (Kind::Corrupt, 0, 2, 3, "corrupt", 2),
        (Kind::Unavailable, 503, 0, 6, "unavailable", 10),
        (Kind::Unavailable, 0, 0, 6, "unavailable", 3),
        (Kind::Unavailable, 0, 1008, 10, "no_peer", 1008),
        (Kind::Throttled, 429, 0, 11, "throttled", 10),
        (Kind::NoSpace, 0, 0, 7, "no_space", 4),
        (Kind::Forbidden, 0, 6, 8, "output", 6),
        (Kind::Internal, 0, 0, 1, "internal", 7),
    ];
    for (kind, status, reason, code, label, given) in cases {
        scene.will(Deed::Fail { kind, status, reason });
        let ended = scene.run(&["--json", "http://h/f", "-O", "f"]);
        let last = ended.last();
        assert_eq!(ended.code, code, "{last}");
        assert_eq!(
            (&last["ok"], &last["kind"], &last["reason"]),
            (&false.into(), &label.into(), &given.into()),
            "{last}"
        );
        assert_eq!(last["origin_status"], if status == 0 { Value::Null } else { status.into() });
        assert_eq!(std::fs::read(scene.out("f")).unwrap(), b"old");
    }
    for (deed, code) in
        [(Deed::Lie, 1), (Deed::Refuse(Code::PermissionDenied), 5), (Deed::Refuse(Code::InvalidArgument), 2)]
    {
        scene.will(deed);
        let ended = scene.run(&["http://h/f", "--transfer-from-dfdaemon", "-O", "f"]);
        assert_eq!(
            (ended.code, ended.stderr.lines().count(), ended.stdout.as_str()),
            (code, 1, ""),
            "{}",
            ended.stderr
        );
        assert_eq!(std::fs::read(scene.out("f")).unwrap(), b"old");
    }
    assert_eq!(scene.run(&["http://h/nowhere", "-O", "made/for/it/x"]).code, 4);
    assert_eq!(scene.outputs(), ["f"], "neither temporary files nor folders are left");
}

#[test]
fn outputs_that_cannot_be_written_are_found_first() {
    let scene = Scene::new();
    scene.content("f", 10);
    std::fs::write(scene.out("file"), "x").unwrap();
    let ended = scene.run(&["http://h/f", "-O", "file/f"]);
    assert_eq!(ended.code, 8, "{}", ended.stderr);
    assert!(ended.stderr.starts_with("dfget: cannot "), "{}", ended.stderr);
    let ended = scene.run(&["http://h/f", "-O", "/proc/nowhere/f"]);
    assert_eq!(ended.code, 8, "{}", ended.stderr);
    assert!(scene.shared.requests.lock().is_empty());
}

#[test]
fn every_problem_of_a_command_line_is_named() {
    let scene = Scene::new();
    let ended = scene.run(&["--digset", "x", "s3://b/k", "-p", "9", "--storage-region", "eu"]);
    assert_eq!(ended.code, 2);
    let lines: Vec<_> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 5, "{}", ended.stderr);
    for (line, part) in lines.iter().zip([
        "argument 3 (--digset)",
        "argument 5 (s3://b/k)",
        "argument 6 (-p)",
        "argument 8 (--storage-region)",
        "see dfget --help",
    ]) {
        assert!(line.starts_with("dfget: ") && line.contains(part), "{line}");
    }
    let ended = scene.run(&["--json", "--nonsense"]);
    assert_eq!(
        (ended.code, &ended.last()["kind"], ended.last()["problems"].as_array().unwrap().len()),
        (2, &"usage".into(), 2)
    );
}

#[test]
fn ranges_go_to_their_own_offsets() {
    let scene = Scene::new();
    let content = scene.content("f", 300_000);
    for stream in [None, Some("--transfer-from-dfdaemon")] {
        for range in ["200000-299999", "0-99999", "100000-199999"] {
            let mut flags = vec!["http://h/f", "--original-offset", "-O", "whole", "--range", range];
            flags.extend(stream);
            let ended = scene.run(&flags);
            assert_eq!(ended.code, 0, "{}", ended.stderr);
        }
        assert_eq!(std::fs::read(scene.out("whole")).unwrap(), content);
        assert_eq!(scene.outputs(), ["whole"]);
        std::fs::remove_file(scene.out("whole")).unwrap();
    }
}

#[test]
fn a_daemon_that_dies_and_comes_back_is_waited_for() {
    for stream in [None, Some("--transfer-from-dfdaemon")] {
        let mut scene = Scene::new();
        let content = scene.content("f", 1_000_000);
        scene.will(Deed::StopAfter(500_000));
        let mut flags = vec!["http://h/f", "--json"];
        flags.extend(stream);
        let child = scene.spawn(&flags);
        scene.wait_for(|| scene.shared.requests.lock().len() == 1);
        std::thread::sleep(Duration::from_millis(200));
        scene.daemon = None;
        std::thread::sleep(Duration::from_millis(700));
        scene.start();
        let ended = end(child);
        assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
        assert_eq!(ended.lines().iter().filter(|line| line["event"] == "reconnecting").count(), 1);
        assert_eq!(ended.last()["by"], "dfdaemon");
        assert_eq!(std::fs::read(scene.out("f")).unwrap(), content);
        assert!(scene.outputs().iter().all(|name| !name.starts_with(".dfget")), "{:?}", scene.outputs());
    }
}

#[test]
fn a_stream_that_ends_without_a_word_is_asked_for_again() {
    let scene = Scene::new();
    let content = scene.content("f", 200_000);
    for deed in [Deed::HangUp, Deed::Refuse(Code::Unavailable), Deed::HangUp] {
        scene.will(deed);
    }
    let ended = scene.run(&["http://h/f", "--transfer-from-dfdaemon"]);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(std::fs::read(scene.out("f")).unwrap(), content);
    assert_eq!(scene.shared.requests.lock().len(), 4);
}

#[test]
fn signals_and_the_timeout_cancel_cleanly() {
    let scene = Scene::new();
    scene.content("f", 1_000_000);
    std::fs::write(scene.out("f"), "old").unwrap();
    for (n, signal) in [Signal::INT, Signal::TERM].into_iter().enumerate() {
        scene.will(Deed::StopAfter(300_000));
        let child = scene.spawn(&["http://h/f", "--transfer-from-dfdaemon", "-O", "f"]);
        scene.wait_for(|| {
            scene.outputs().iter().any(|name| {
                name.ends_with(".part") && std::fs::metadata(scene.out(name)).is_ok_and(|meta| meta.len() > 200_000)
            })
        });
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let ended = end(child);
        assert_eq!((ended.code, ended.stderr.as_str()), (130, "dfget: cancelled\n"));
        assert_eq!(scene.outputs(), ["f"]);
        scene.wait_for(|| *scene.shared.cancelled.lock() as usize == n + 1);
    }
    scene.will(Deed::StopAfter(300_000));
    let ended = scene.run(&["http://h/f", "-O", "f", "--timeout", "1", "--json"]);
    assert_eq!((ended.code, &ended.last()["kind"]), (9, &"timeout".into()));
    scene.wait_for(|| *scene.shared.cancelled.lock() == 3 && scene.outputs() == ["f"]);
    assert_eq!(std::fs::read(scene.out("f")).unwrap(), b"old");
}

#[test]
fn commands_print_and_end() {
    let scene = Scene::new();
    assert_eq!(scene.run(&["version"]).stdout, concat!("dfget ", env!("CARGO_PKG_VERSION"), "\n"));
    assert!(scene.run(&["--help"]).stdout.contains("--transfer-from-dfdaemon"));
    assert!(scene.run(&["gen-doc"]).stdout.contains("| 130 |"));
    assert!(scene.run(&["completions", "bash"]).stdout.contains("_dfget"));
    assert_eq!(scene.run(&["server"]).code, 2);
}

#[test]
fn progress_lines_and_logs_when_asked_for() {
    let scene = Scene::new();
    scene.content("f", 1_000);
    let ended = scene.run(&["http://h/f", "-l", "trace", "--logdir", "../logs"]);
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert!(scene.dir.path().join("logs/dfget.log").is_file());
    let ended = scene.run(&["http://h/f", "-b", "--verbose"]);
    assert_eq!(ended.code, 0);
}

/// Not a bound (this is an unoptimised build on a busy machine) but a look at what a start costs.
#[test]
fn a_warm_download_is_quick() {
    let scene = Scene::new();
    scene.content("f", 1);
    let mut times: Vec<Duration> = (0..15)
        .map(|_| {
            let begin = Instant::now();
            assert_eq!(scene.run(&["http://h/f", "-O", "f"]).code, 0);
            begin.elapsed()
        })
        .collect();
    times.sort();
    // 5 ms of it are the fake's own pause.
    println!("median {:?}, best {:?}", times[times.len() / 2], times[0]);
}
