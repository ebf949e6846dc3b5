use super::*;
use crate::backend::Done;
use proto::{Kind, TaskSpec};
use serde_json::{Value, json};

fn reporter() -> Reporter {
    Reporter::with_lines(Show { json: true, ..Show::default() }, Lines::Kept(Mutex::default()))
}

fn lines(reporter: &Reporter) -> Vec<Value> {
    let Lines::Kept(lines) = &reporter.lines else { panic!() };
    lines.lock().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn file(number: usize) -> FileJob {
    let spec = TaskSpec::of_url("http://user:secret@h/f?sig=secret#x".parse().unwrap());
    FileJob { number, spec, headers: Vec::new(), output: "/o/f".into() }
}

fn finished(bytes: u64) -> Finished {
    let counts = Counts { bytes, from_peers: bytes, ..Counts::default() };
    Finished { done: Done { counts, output_by: "reflink".into() }, by: "dfdaemon" }
}

#[test]
fn the_lines_of_one_file() {
    let reporter = reporter();
    reporter.started(&file(0), "dfdaemon", &Started { key: None, length: Some(9), from_cache: false });
    reporter.progress(0, Counts { bytes: 3, from_peers: 2, from_origin: 1, from_cache: 0 });
    reporter.progress(0, Counts { bytes: 4, from_peers: 3, from_origin: 1, from_cache: 0 });
    reporter.result(Path::new("/o/f"), &Ok(finished(9)));
    let lines = lines(&reporter);
    assert_eq!(lines.len(), 3, "progress is rationed: {lines:?}");
    assert_eq!(lines[0]["url"], "http://h/f");
    assert_eq!(lines[1]["from_peers"], 2);
    assert_eq!(lines[2]["ok"], true);
    for (field, value) in [
        ("length", json!(9)),
        ("from_peers", json!(9)),
        ("from_origin", json!(0)),
        ("from_cache", json!(0)),
        ("output", json!("/o/f")),
    ] {
        assert_eq!(lines[2][field], value);
    }
    assert!(lines[2]["seconds"].is_f64());
    let Lines::Kept(text) = &reporter.lines else { panic!() };
    assert!(text.lock()[2].starts_with(
        r#"{"ok":true,"output":"/o/f","length":9,"from_peers":9,"from_origin":0,"from_cache":0,"seconds":"#
    ));
    assert!(!serde_json::to_string(&lines).unwrap().contains("secret"));
}

#[test]
fn a_listing_can_be_used_and_has_no_password() {
    let url = "http://user:secret@h/pub/a%20b.gz?version=1".parse().unwrap();
    let listed = [ListedFile { path: "a b.gz".into(), url }];
    let as_json = reporter();
    as_json.list(&listed);
    assert_eq!(
        lines(&as_json),
        [json!({"event": "found", "url": "http://h/pub/a%20b.gz?version=1", "path": "a b.gz"})]
    );
    let as_text = Reporter::with_lines(Show::default(), Lines::Kept(Mutex::default()));
    as_text.list(&listed);
    let Lines::Kept(text) = &as_text.lines else { panic!() };
    assert_eq!(*text.lock(), ["http://h/pub/a%20b.gz?version=1"]);
}

#[test]
fn a_failure() {
    let reporter = reporter();
    reporter.result(Path::new("/o"), &Err(Failure::of_engine(Kind::NotFound, "the origin says 404", Some(404), 0)));
    assert_eq!(
        lines(&reporter),
        [
            json!({"ok": false, "kind": "not_found", "reason": 10, "origin_status": 404, "message": "the origin says 404"})
        ]
    );
}

#[test]
fn a_folder_fails_as_its_files_do() {
    let of = |kinds: &[Kind]| {
        let failures = kinds.iter().map(|kind| Failure::of_engine(*kind, "x", None, 0)).collect();
        worst(&Folder { finished: vec![finished(1)], failures }).map(|failure| failure.exit().code())
    };
    assert_eq!(of(&[]), None);
    assert_eq!(of(&[Kind::NotFound, Kind::NotFound]), Some(4));
    assert_eq!(of(&[Kind::NotFound, Kind::Forbidden]), Some(12));
}

#[test]
fn messages_cannot_play_with_the_terminal() {
    assert_eq!(one_line("a\x1b[2Jb\nc"), "a [2Jb c");
}
