//! Against the real config-service, in this process.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use config_service::{App, Config};
use service::http::ListenAddr;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn start(dir: &Path, address: &str, lease: Duration) -> Running {
    let config =
        Config { data_dir: dir.to_owned(), listen: vec![address.parse().unwrap()], lease, ..Config::default() };
    let app = started(&config);
    let ListenAddr::Tcp(address) = app.addresses().unwrap()[0] else { panic!("tcp was asked for") };
    let stop = CancellationToken::new();
    let context: service::Context<Config> = service::Context::detached(stop.clone());
    let task = tokio::spawn(app.run(stop.clone(), context.reloads));
    Running { address, stop, task }
}

/// The service before may have ended while a thread of its own still wrote to the folder.
fn started(config: &Config) -> App {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match App::start(config.clone()) {
            Ok(app) => return app,
            Err(error) if Instant::now() > deadline => panic!("{error:#}"),
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

impl Running {
    fn url(&self) -> Url {
        format!("http://{}", self.address).parse().unwrap()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn entry(id: &str) -> SupernodeEntry {
    SupernodeEntry { id: id.to_owned(), endpoint: format!("http://{id}.example:65020") }
}

fn config(endpoints: Vec<Url>, cache: Option<&Path>) -> LocatorConfig {
    LocatorConfig {
        endpoints,
        cache_file: cache.map(|dir| dir.join("sub/nearest.json")),
        timeout: Duration::from_millis(500),
        refresh: Duration::from_secs(1),
        ..LocatorConfig::default()
    }
}

fn nobody() -> Url {
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    format!("http://127.0.0.1:{port}").parse().unwrap()
}

async fn eventually<T: Clone + Send + Sync>(watch: &mut watch::Receiver<T>, holds: impl FnMut(&T) -> bool) -> T {
    tokio::time::timeout(Duration::from_secs(10), watch.wait_for(holds))
        .await
        .expect("it happens within 10 s")
        .unwrap()
        .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn register_find_and_leave() {
    let dir = tempfile::tempdir().unwrap();
    let service = start(dir.path(), "127.0.0.1:0", Duration::from_secs(1));
    let locator = Locator::new(config(vec![nobody(), service.url()], None)).unwrap();
    let error = locator.nearest().await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");

    let stops: Vec<_> = (0..2).map(|_| CancellationToken::new()).collect();
    let one = locator.register("default", entry("one"));
    let two = locator.register("default", entry("two"));
    let mut siblings = one.siblings();
    let one = tokio::spawn(one.run(stops[0].clone()));
    let two = tokio::spawn(two.run(stops[1].clone()));
    eventually(&mut siblings, |all| all.len() == 2).await;
    let mut answers = locator.watch();
    let refresh = tokio::spawn({
        let (locator, stop) = (locator.clone(), stops[0].clone());
        async move { locator.keep_fresh(stop).await }
    });
    let both = |known: &Option<NearestAnswer>| {
        known.as_ref().is_some_and(|answer| answer.supernodes == [entry("one"), entry("two")])
    };
    eventually(&mut answers, both).await;
    // Leases of one second are renewed.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(both(&locator.nearest().await.ok()));
    stops[1].cancel();
    two.await.unwrap();
    eventually(&mut siblings, |all| *all == [entry("one")]).await;
    eventually(&mut answers, |known| known.as_ref().is_some_and(|answer| answer.supernodes.len() == 1)).await;
    stops[0].cancel();
    one.await.unwrap();
    refresh.await.unwrap();
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_answers_when_nobody_does() {
    let (dir, home) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let service = start(dir.path(), "127.0.0.1:0", Duration::from_secs(30));
    let url = service.url();
    let address = service.address.to_string();
    let locator = Locator::new(config(vec![url.clone()], Some(home.path()))).unwrap();
    let stop = CancellationToken::new();
    let registration = locator.register("default", entry("one"));
    let registration = tokio::spawn(registration.run(stop.clone()));
    let found = async {
        while locator.nearest().await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), found).await.unwrap();
    // Killed, not stopped.
    registration.abort();
    service.stop().await;

    let later = Locator::new(config(vec![url.clone()], Some(home.path()))).unwrap();
    assert_eq!(later.current().unwrap().supernodes, [entry("one")]);
    assert_eq!(later.nearest().await.unwrap().supernodes, [entry("one")]);
    let begin = Instant::now();
    later.nearest().await.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(100), "a dead config-service is not asked for every task");
    // Back again, it still knows the supernode, and the answer is its own.
    let service = start(dir.path(), &address, Duration::from_secs(30));
    let fresh = Locator::new(config(vec![url], None)).unwrap();
    assert_eq!(fresh.nearest().await.unwrap().supernodes, [entry("one")]);
    service.stop().await;

    std::fs::write(home.path().join("sub/nearest.json"), "{").unwrap();
    let broken = Locator::new(config(vec![nobody()], Some(home.path()))).unwrap();
    assert!(broken.current().is_none());
    let Err(LocatorError::NoAnswer(error)) = broken.nearest().await else { panic!("nobody answers") };
    assert!(matches!(*error, AskError::Unreachable { .. }));
}

#[tokio::test]
async fn configured_supernodes_ask_nobody() {
    let all = vec![entry("a"), entry("b")];
    let locator = Locator::new(LocatorConfig { supernodes: all.clone(), ..config(vec![nobody()], None) }).unwrap();
    let answer = locator.nearest().await.unwrap();
    assert_eq!((answer.matched_by.as_str(), answer.supernodes), ("static", all.clone()));
    let registration =
        Locator::new(LocatorConfig { supernodes: all, ..LocatorConfig::default() }).unwrap().register("c", entry("c"));
    assert_eq!(registration.siblings().borrow().len(), 3);
    let stop = CancellationToken::new();
    stop.cancel();
    registration.run(stop).await;
    assert!(matches!(Locator::new(LocatorConfig::default()), Err(LocatorError::NotConfigured)));
    let ftp = config(vec!["ftp://x".parse().unwrap()], None);
    assert!(matches!(Locator::new(ftp), Err(LocatorError::Endpoint { .. })));
}

/// Answers every connection with the same bytes, and then waits.
async fn says(bytes: Vec<u8>) -> Url {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let bytes = bytes.clone();
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                let _ = stream.read(&mut buffer).await;
                let _ = stream.write_all(&bytes).await;
                tokio::time::sleep(Duration::from_secs(60)).await;
            });
        }
    });
    format!("http://{address}").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_config_services_are_passed_over() {
    let answer = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
    let none = r#"{"cluster":"c","matched_by":"idc","supernodes":[],"ttl_s":1}"#;
    let huge = format!("\"{}\"", "x".repeat(2 << 20));
    let good = r#"{"cluster":"c","matched_by":"idc","supernodes":[{"id":"one","endpoint":"http://one.example:65020"}],"ttl_s":1}"#;
    let refused = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec();
    let mut endpoints = vec![nobody()];
    for bytes in [Vec::new(), b"garbage\r\n\r\n".to_vec(), answer("{"), answer(none), answer(&huge), refused] {
        let bad = says(bytes).await;
        let locator = Locator::new(config(vec![bad.clone()], None)).unwrap();
        let begin = Instant::now();
        assert!(locator.nearest().await.is_err());
        assert!(begin.elapsed() < Duration::from_secs(2));
        endpoints.push(bad);
    }
    endpoints.push(says(answer(good)).await);
    let locator = Locator::new(config(endpoints, None)).unwrap();
    assert_eq!(locator.nearest().await.unwrap().supernodes, [entry("one")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_share_a_failure() {
    let locator = Locator::new(config(vec![says(Vec::new()).await], None)).unwrap();
    let begin = Instant::now();
    let asks: Vec<_> = (0..20)
        .map(|_| {
            let locator = locator.clone();
            tokio::spawn(async move { locator.nearest().await })
        })
        .collect();
    for ask in asks {
        assert_eq!(ask.await.unwrap().unwrap_err().kind(), Kind::Unavailable);
    }
    assert!(begin.elapsed() < Duration::from_secs(2), "not one timeout after the other: {:?}", begin.elapsed());
}
