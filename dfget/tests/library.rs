use std::collections::HashMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dfget::backend::{Backend, BackendError, BoxFuture, Counts, Done, Event, Events, Request, Started};
use dfget::exit::{Cause, Exit, Failure};
use dfget::lister::{ListRequest, Listed, ListedFile, Lister};
use dfget::options::{self, Action, Job, LocalSettings};
use dfget::report::Reporter;
use dfget::{Parts, execute};
use futures_util::StreamExt as _;
use parking_lot::Mutex;
use proto::Kind;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::fake::{Deed, Fake, Shared};

/// An engine over a map from URL to content, and a reader of one made-up listing.
#[derive(Default)]
struct Stage {
    contents: HashMap<String, &'static [u8]>,
    listing: Vec<ListedFile>,
    settings: Mutex<Vec<LocalSettings>>,
    requests: Mutex<Vec<Request>>,
    listed: Mutex<Vec<ListRequest>>,
    running: AtomicU32,
    most: AtomicU32,
    lingered: AtomicU32,
}

#[derive(Clone)]
struct Handle(Arc<Stage>);

impl Parts for Handle {
    fn engine<'a>(&'a self, settings: &'a LocalSettings) -> BoxFuture<'a, Result<Arc<dyn Backend>, Failure>> {
        self.0.settings.lock().push(settings.clone());
        let engine: Arc<dyn Backend> = Arc::new(self.clone());
        Box::pin(std::future::ready(Ok(engine)))
    }

    fn lister(&self, _: &LocalSettings) -> Result<Arc<dyn Lister>, Failure> {
        Ok(Arc::new(self.clone()))
    }
}

impl Lister for Handle {
    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<Listed, Failure>> {
        self.0.listed.lock().push(request);
        Box::pin(std::future::ready(Ok(Listed { files: self.0.listing.clone(), beyond_depth: 0 })))
    }
}

impl Backend for Handle {
    fn name(&self) -> &'static str {
        "dfget"
    }

    fn download(&self, request: Request) -> BoxFuture<'_, Result<Events, BackendError>> {
        let stage = Arc::clone(&self.0);
        stage.requests.lock().push(request.clone());
        Box::pin(async move {
            let Some(content) = stage.contents.get(request.spec.url.as_str()).copied() else {
                return Err(Failure::of_engine(Kind::NotFound, "the origin says 404", Some(404), 0).into());
            };
            stage.most.fetch_max(stage.running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            stage.running.fetch_sub(1, Ordering::SeqCst);
            let length = content.len() as u64;
            let mut events = vec![Event::Started(Started { key: None, length: Some(length), from_cache: false })];
            match request.output {
                Some(output) => std::fs::write(output.path, content).unwrap(),
                None => events.push(Event::Data(Bytes::from_static(content))),
            }
            let counts = Counts { bytes: length, from_origin: length, ..Counts::default() };
            events.push(Event::Done(Done { counts, output_by: "copy".into() }));
            let events: Events = futures_util::stream::iter(events).map(Ok).boxed();
            Ok(events)
        })
    }

    fn linger(&self) -> BoxFuture<'_, ()> {
        self.0.lingered.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::ready(()))
    }
}

fn job(dir: &TempDir, line: &str) -> Job {
    match options::read(line.split_whitespace().map(OsString::from), dir.path()) {
        Ok(Action::Download(job)) => *job,
        other => panic!("{other:?}"),
    }
}

async fn run(job: Job, stage: &Arc<Stage>) -> Exit {
    let reporter = Reporter::new(job.show);
    execute(job, Arc::new(Handle(Arc::clone(stage))), &reporter, CancellationToken::new()).await
}

fn stage(files: &[(&str, &str, &'static [u8])]) -> Arc<Stage> {
    Arc::new(Stage {
        contents: files.iter().map(|(_, url, content)| ((*url).to_owned(), *content)).collect(),
        listing: files
            .iter()
            .map(|(path, url, _)| ListedFile { path: path.into(), url: url.parse().unwrap() })
            .collect(),
        ..Stage::default()
    })
}

fn read(dir: &TempDir, path: &str) -> Option<String> {
    std::fs::read_to_string(dir.path().join(path)).ok()
}

#[tokio::test]
async fn without_a_daemon_the_engine_runs_here() {
    let dir = tempfile::tempdir().unwrap();
    let stage = stage(&[("", "http://h/f", b"abc")]);
    let socket = dir.path().join("none.sock");
    assert_eq!(
        run(job(&dir, &format!("http://h/f -n s:1 --alivetime 5 -e {}", socket.display())), &stage).await,
        Exit::Ok
    );
    assert_eq!(read(&dir, "f").as_deref(), Some("abc"));
    let settings = stage.settings.lock().pop().unwrap();
    assert_eq!(
        (settings.supernodes[0].endpoint.as_str(), settings.alive),
        ("http://s:1", Some(Duration::from_secs(5)))
    );
    assert_eq!(stage.lingered.load(Ordering::SeqCst), 1);
    // A socket that nobody listens on any more.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert_eq!(
        run(job(&dir, &format!("http://h/f -O g -e {} --transfer-from-dfdaemon", socket.display())), &stage).await,
        Exit::Ok
    );
    assert_eq!(read(&dir, "g").as_deref(), Some("abc"));
    assert_eq!(run(job(&dir, "http://h/f -O insecure --insecure"), &stage).await, Exit::Ok);
    assert!(stage.settings.lock().last().unwrap().insecure);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_stays_away_is_replaced_after_ten_seconds() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("content")).unwrap();
    std::fs::write(dir.path().join("content/f"), vec![7; 500_000]).unwrap();
    let socket = dir.path().join("d.sock");
    let shared = Arc::new(Shared::default());
    shared.deeds.lock().push_back(Deed::StopAfter(100_000));
    let daemon = tokio::task::block_in_place(|| Fake::start(&socket, &dir.path().join("content"), Arc::clone(&shared)));
    let stage = stage(&[("", "http://h/f", b"by the engine")]);
    let job = job(&dir, &format!("http://h/f --transfer-from-dfdaemon -e {}", socket.display()));
    let begin = tokio::time::Instant::now();
    let killer = {
        let shared = Arc::clone(&shared);
        std::thread::spawn(move || {
            while shared.requests.lock().is_empty() {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(Duration::from_millis(100));
            drop(daemon);
        })
    };
    let job = Job { timeout: None, ..job };
    assert_eq!(run(job, &stage).await, Exit::Ok);
    killer.join().unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(10), "{:?}", begin.elapsed());
    assert_eq!(read(&dir, "f").as_deref(), Some("by the engine"));
    assert_eq!(stage.requests.lock().len(), 1);
}

#[tokio::test]
async fn folders_come_file_by_file() {
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<(String, String)> =
        (0..20).map(|n| (format!("a/b{}/f{n}.txt", n % 3), format!("http://h/d/a/b{}/f{n}.txt", n % 3))).collect();
    let mut listing: Vec<(&str, &str, &'static [u8])> =
        files.iter().map(|(path, url)| (path.as_str(), url.as_str(), b"x".as_slice())).collect();
    listing.push(("skip.gz", "http://h/d/skip.gz", b"no"));
    let stage = stage(&listing);
    let job = job(
        &dir,
        "--no-daemon -r http://h/d/ -O out/ -I *.txt --reject-regex f1\\d --max-concurrent-requests 3 --level 2 --max-files 10 -H A:b",
    );
    assert_eq!(run(job, &stage).await, Exit::Ok);
    assert_eq!(stage.requests.lock().len(), 10);
    assert_eq!(stage.most.load(Ordering::SeqCst), 3);
    assert_eq!(read(&dir, "out/a/b2/f8.txt").as_deref(), Some("x"));
    assert_eq!(read(&dir, "out/a/b1/f10.txt"), None);
    let listed = stage.listed.lock().pop().unwrap();
    assert_eq!((listed.depth_max, listed.include), (1, vec!["*.txt".to_owned()]));
    assert!(stage.requests.lock().iter().all(|request| request.headers == [("a".to_owned(), b"b".to_vec())]));
}

#[tokio::test]
async fn a_folder_with_failures_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut whole = Arc::into_inner(stage(&[("a", "http://h/a", b"1"), ("b", "http://h/b", b"2")])).unwrap();
    whole.contents.remove("http://h/b");
    let whole = Arc::new(whole);
    assert_eq!(run(job(&dir, "--no-daemon -r http://h/ --json"), &whole).await, Exit::NotFound);
    assert_eq!((read(&dir, "a").as_deref(), read(&dir, "b")), (Some("1"), None));
    std::fs::create_dir(dir.path().join("a2")).unwrap();
    std::fs::create_dir_all(dir.path().join("x/a")).unwrap();
    // One is not there, the other one's place is taken by a folder.
    assert_eq!(run(job(&dir, "--no-daemon -r http://h/ -O x"), &whole).await, Exit::Several);
    assert_eq!(run(job(&dir, "--no-daemon -r http://h/ -O y --max-files 1"), &whole).await, Exit::Usage);
}

#[tokio::test]
async fn credentials_stay_with_their_host_and_names_below_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    let both = stage(&[("a", "http://user:pw@h/a", b"1"), ("b", "http://other/b", b"2")]);
    let job_of = |line: &str| job(&dir, line);
    let mut listing = both.listing.clone();
    listing[0].url = "http://h/a".parse().unwrap();
    let both = Arc::new(Stage { listing, ..Arc::into_inner(both).unwrap() });
    assert_eq!(run(job_of("--no-daemon -r http://user:pw@h/ -H Authorization:x"), &both).await, Exit::Ok);
    for request in both.requests.lock().iter() {
        let home = request.spec.url.host_str() == Some("h");
        assert_eq!((request.headers.len(), request.spec.url.username()), if home { (1, "user") } else { (0, "") });
    }
    for name in ["../x", "/x", "a/../../x", ""] {
        let bad = stage(&[(name, "http://h/x", b"evil")]);
        assert_eq!(run(job_of("--no-daemon -r http://h/ -O out"), &bad).await, Exit::Denied, "{name:?}");
        assert!(bad.requests.lock().is_empty());
    }
    assert!(!Path::new(dir.path()).join("out").is_dir());
}

#[tokio::test]
async fn priority_one_forbids() {
    let dir = tempfile::tempdir().unwrap();
    let stage = stage(&[("", "http://h/f", b"abc")]);
    assert_eq!(run(job(&dir, "--no-daemon http://h/f -p 1"), &stage).await, Exit::Denied);
    assert_eq!(run(job(&dir, "--no-daemon http://h/f -p 2"), &stage).await, Exit::Ok);
    assert!(stage.requests.lock()[0].never_origin);
    assert_eq!(Failure::new(Cause::Cancelled, "").exit(), Exit::Cancelled);
}

/// Many files of few folders, all but one of them failing while others come: no folder vanishes under a file.
#[tokio::test]
async fn a_failing_file_does_not_take_its_neighbours_folder() {
    let dir = tempfile::tempdir().unwrap();
    let names: Vec<(String, String)> = (0..30).map(|n| (format!("d/e/f{n}"), format!("http://h/d/e/f{n}"))).collect();
    let listing: Vec<(&str, &str, &'static [u8])> =
        names.iter().map(|(path, url)| (path.as_str(), url.as_str(), b"x".as_slice())).collect();
    let mut whole = Arc::into_inner(stage(&listing)).unwrap();
    for n in (0..30).filter(|n| n % 5 != 4) {
        whole.contents.remove(&format!("http://h/d/e/f{n}"));
    }
    let whole = Arc::new(whole);
    assert_eq!(run(job(&dir, "--no-daemon -r http://h/ --max-concurrent-requests 3"), &whole).await, Exit::NotFound);
    assert_eq!(std::fs::read_dir(dir.path().join("d/e")).unwrap().count(), 6);
    let none = Arc::new(Stage { listing: whole.listing.clone(), ..Stage::default() });
    assert_eq!(run(job(&dir, "--no-daemon -r http://h/ -O gone/below"), &none).await, Exit::NotFound);
    assert!(!dir.path().join("gone").is_dir());
}

/// Cancelling a folder in the middle leaves neither temporary files nor empty folders.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_folder_leaves_nothing_temporary() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("content")).unwrap();
    let shared = Arc::new(Shared::default());
    let mut listing = Vec::new();
    for n in 0..4 {
        std::fs::write(dir.path().join(format!("content/f{n}")), vec![7; 500_000]).unwrap();
        shared.deeds.lock().push_back(Deed::StopAfter(100_000));
        listing.push(ListedFile { path: format!("sub/f{n}").into(), url: format!("http://h/f{n}").parse().unwrap() });
    }
    let socket = dir.path().join("d.sock");
    let daemon = tokio::task::block_in_place(|| Fake::start(&socket, &dir.path().join("content"), Arc::clone(&shared)));
    let stage = Arc::new(Stage { listing, ..Stage::default() });
    let job = job(&dir, &format!("-r http://h/ -O out --transfer-from-dfdaemon -e {}", socket.display()));
    let cancel = CancellationToken::new();
    let reporter = Reporter::new(job.show);
    let out = dir.path().join("out/sub");
    let (exit, ()) = tokio::join!(execute(job, Arc::new(Handle(stage)), &reporter, cancel.clone()), async {
        while shared.most_at_once.lock().1 < 4 || std::fs::read_dir(&out).map_or(0, Iterator::count) < 4 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel();
    });
    assert_eq!(exit, Exit::Cancelled);
    assert!(!dir.path().join("out").is_dir());
    tokio::task::block_in_place(|| drop(daemon));
}

/// A daemon that was there and is gone when the next file begins is waited for as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_lost_between_two_files_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let content = dir.path().join("content");
    std::fs::create_dir(&content).unwrap();
    for name in ["a", "b"] {
        std::fs::write(content.join(name), name).unwrap();
    }
    let shared = Arc::new(Shared::default());
    shared.deeds.lock().extend([Deed::Serve, Deed::StopAfter(0)]);
    let socket = dir.path().join("d.sock");
    let first = tokio::task::block_in_place(|| Fake::start(&socket, &content, Arc::clone(&shared)));
    let listing = ["a", "b"]
        .map(|name| ListedFile { path: name.into(), url: format!("http://h/{name}").parse().unwrap() })
        .to_vec();
    let stage = Arc::new(Stage { listing, ..Stage::default() });
    let job = job(&dir, &format!("-r http://h/ -O out --max-concurrent-requests 1 -e {}", socket.display()));
    let restart = {
        let (shared, socket) = (Arc::clone(&shared), socket.clone());
        std::thread::spawn(move || {
            while shared.requests.lock().len() < 2 {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop(first);
            std::fs::remove_file(&socket).unwrap();
            std::thread::sleep(Duration::from_millis(500));
            Fake::start(&socket, &content, shared)
        })
    };
    assert_eq!(run(job, &stage).await, Exit::Ok);
    let second = tokio::task::block_in_place(|| restart.join().unwrap());
    assert_eq!(read(&dir, "out/b").as_deref(), Some("b"));
    assert!(stage.requests.lock().is_empty(), "the engine was not needed");
    tokio::task::block_in_place(|| drop(second));
}
