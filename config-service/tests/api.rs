//! The service seen over HTTP.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use config_service::{App, Config};
use http_body_util::{BodyExt as _, Full};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use proto::api::{ApiError, ClusterView, NearestAnswer, Registered};
use serde_json::{Value, json};
use service::Context;
use service::http::ListenAddr;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

struct Running {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

const CLUSTERS: &str = r#"
listen = ["127.0.0.1:0"]
lease = "1s"
max_supernodes = 3
[body]
max_body = "4KiB"
[[cluster]]
name = "near"
cidrs = ["127.0.0.0/8"]
[[cluster]]
name = "office"
cidrs = ["10.1.0.0/16"]
supernodes = [{ id = "o1", endpoint = "http://10.1.0.1:65020" }]
[[cluster]]
name = "dc"
idcs = ["dc1"]
[[cluster]]
name = "south"
locations = ["eu|de|south"]
supernodes = [{ id = "s1", endpoint = "http://10.9.0.1:65020" }]
[[cluster]]
name = "rest"
default = true
"#;

fn start(dir: &Path, text: &str) -> Running {
    let mut config: Config = service::config::load_from("c.toml", text, "X", []).unwrap();
    config.data_dir = dir.to_owned();
    let app = App::start(config).unwrap();
    let ListenAddr::Tcp(address) = app.addresses().unwrap()[0] else { panic!("tcp was asked for") };
    let stop = CancellationToken::new();
    let context: Context<Config> = Context::detached(stop.clone());
    let task = tokio::spawn(app.run(stop.clone(), context.reloads));
    Running { address, stop, task }
}

impl Running {
    async fn ask(&self, method: &str, path: &str, body: impl Into<String>) -> (u16, String) {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<hyper::body::Bytes>>();
        let request = http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.address))
            .header("content-type", "application/json")
            .header("x-forwarded-for", "10.1.2.3")
            .body(Full::new(body.into().into()))
            .unwrap();
        let response = client.request(request).await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8(response.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    async fn nearest(&self, request: Value) -> Result<(String, String, usize), (u16, String)> {
        let (status, body) = self.ask("POST", "/api/skimmer/v1/nearest", request.to_string()).await;
        if status == 200 {
            let answer: NearestAnswer = serde_json::from_str(&body).unwrap();
            assert_eq!(answer.ttl_s, 60);
            Ok((answer.cluster, answer.matched_by, answer.supernodes.len()))
        } else {
            Err((status, serde_json::from_str::<ApiError>(&body).unwrap().kind))
        }
    }

    async fn register(&self, cluster: &str, id: &str, port: u16) -> (u16, String) {
        let body = json!({ "id": id, "endpoint": format!("http://127.0.0.1:{port}") }).to_string();
        self.ask("PUT", &format!("/api/skimmer/v1/clusters/{cluster}/supernodes"), body).await
    }

    async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.task).await.unwrap().unwrap();
    }
}

fn found(cluster: &str, by: &str, supernodes: usize) -> Result<(String, String, usize), (u16, String)> {
    Ok((cluster.to_owned(), by.to_owned(), supernodes))
}

#[tokio::test(flavor = "multi_thread")]
async fn nearest_by_each_rule() {
    let dir = tempfile::tempdir().unwrap();
    let service = start(dir.path(), CLUSTERS);
    assert_eq!(service.nearest(json!({ "addresses": ["10.1.9.9"] })).await, found("office", "cidr", 1));
    assert_eq!(service.nearest(json!({ "location": "EU|de|south|x" })).await, found("south", "location", 1));
    assert_eq!(service.nearest(json!({ "location": "eu|de" })).await, found("south", "location", 1));
    // Nobody lives in "dc" and "rest" yet, and X-Forwarded-For is not believed.
    assert_eq!(service.nearest(json!({ "idc": "dc1" })).await, Err((404, "not_found".to_owned())));
    assert_eq!(service.register("dc", "d1", 1).await.0, 200);
    assert_eq!(service.nearest(json!({ "idc": "dc1", "location": "eu|de|south" })).await, found("dc", "idc", 1));
    assert_eq!(service.register("rest", "r1", 2).await.0, 200);
    assert_eq!(service.nearest(json!({})).await, found("rest", "default", 1));
    // The peer's own address counts.
    assert_eq!(service.register("near", "n1", 3).await.0, 200);
    assert_eq!(service.nearest(json!({ "idc": "dc1" })).await, found("near", "cidr", 1));
    let (_, body) = service.ask("GET", "/api/skimmer/v1/clusters", "").await;
    let clusters: Vec<ClusterView> = serde_json::from_str(&body).unwrap();
    assert_eq!(clusters.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["near", "office", "dc", "south", "rest"]);
    assert_eq!(clusters[0].supernodes[0].endpoint, "http://127.0.0.1:3");
    let (_, metrics) = service.ask("GET", "/metrics", "").await;
    assert!(metrics.contains("skimmer_config_service_answers_total{by=\"location\"} 2"), "{metrics}");
    assert!(metrics.contains("skimmer_config_service_supernodes{cluster=\"dc\"} 1"), "{metrics}");
    assert_eq!(service.ask("GET", "/readyz", "").await.0, 200);
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trusted_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let service = start(dir.path(), &format!("trusted_proxies = ['127.0.0.1/32']\n{CLUSTERS}"));
    assert_eq!(service.nearest(json!({})).await, found("office", "cidr", 1));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_end_and_are_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let service = start(dir.path(), CLUSTERS);
    let (status, body) = service.register("near", "n1", 1).await;
    assert_eq!(status, 200);
    let registered: Registered = serde_json::from_str(&body).unwrap();
    assert_eq!((registered.ttl_s, registered.siblings.len()), (1, 1));
    service.register("near", "n2", 2).await;
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(400)).await;
        let registered: Registered = serde_json::from_str(&service.register("near", "n1", 1).await.1).unwrap();
        assert!(registered.siblings.iter().any(|entry| entry.id == "n1"));
    }
    assert_eq!(service.nearest(json!({})).await, found("near", "cidr", 1), "n2 was silent");
    assert_eq!(service.ask("DELETE", "/api/skimmer/v1/clusters/near/supernodes/n1", "").await.0, 204);
    assert_eq!(service.ask("DELETE", "/api/skimmer/v1/clusters/near/supernodes/n1", "").await.0, 404);
    assert_eq!(service.nearest(json!({})).await, Err((404, "not_found".to_owned())));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_remembers() {
    let dir = tempfile::tempdir().unwrap();
    let text = CLUSTERS.replace("lease = \"1s\"", "lease = \"30s\"");
    let service = start(dir.path(), &text);
    service.register("near", "n1", 1).await;
    service.register("dc", "d1", 2).await;
    service.ask("DELETE", "/api/skimmer/v1/clusters/dc/supernodes/d1", "").await;
    service.stop().await;
    let text = text.replace("name = \"dc\"", "name = \"renamed\"");
    let service = start(dir.path(), &text);
    assert_eq!(service.nearest(json!({})).await, found("near", "cidr", 1));
    service.stop().await;
    // The folder belongs to one process at a time.
    let service = start(dir.path(), &text);
    let config =
        Config { data_dir: dir.path().to_owned(), listen: vec!["127.0.0.1:0".parse().unwrap()], ..Config::default() };
    assert!(App::start(config).unwrap_err().to_string().contains("another process uses"));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let service = start(dir.path(), CLUSTERS);
    let near = "/api/skimmer/v1/clusters/near/supernodes";
    for (method, path, body, expected) in [
        ("POST", "/api/skimmer/v1/nearest", "", 400),
        ("POST", "/api/skimmer/v1/nearest", "{\"adresses\":[]}", 400),
        ("POST", "/api/skimmer/v1/nearest", "{\"addresses\":[\"300.1.1.1\"]}", 400),
        ("POST", "/api/skimmer/v1/nearest", &json!({ "addresses": vec!["10.0.0.1"; 65] }).to_string(), 400),
        ("POST", "/api/skimmer/v1/nearest", &json!({ "idc": "x".repeat(257) }).to_string(), 400),
        ("POST", "/api/skimmer/v1/nearest", &json!({ "idc": "x".repeat(5000) }).to_string(), 413),
        ("GET", "/api/skimmer/v1/nearest", "", 405),
        ("PUT", near, "{\"id\":\"x\",\"endpoint\":\"nowhere\"}", 400),
        ("PUT", near, "{\"id\":\"a/b\",\"endpoint\":\"http://x:1\"}", 400),
        ("PUT", near, "{\"id\":\"x\"}", 400),
        ("PUT", "/api/skimmer/v1/clusters/nobody/supernodes", "{\"id\":\"x\",\"endpoint\":\"http://x:1\"}", 404),
        ("DELETE", "/api/skimmer/v1/clusters/nobody/supernodes/x", "", 404),
        ("GET", "/api/skimmer/v2", "", 404),
    ] {
        let (status, answer) = service.ask(method, path, body).await;
        assert_eq!(status, expected, "{method} {path} {body} {answer}");
        serde_json::from_str::<ApiError>(&answer).unwrap();
    }
    for port in 1..=3 {
        assert_eq!(service.register("near", &format!("n{port}"), port).await.0, 200);
    }
    assert_eq!(service.register("near", "n4", 4).await.0, 409, "max_supernodes");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_lives() {
    let dir = tempfile::tempdir().unwrap();
    let service = start(dir.path(), "listen = ['127.0.0.1:0']");
    assert_eq!(service.nearest(json!({})).await, Err((503, "unavailable".to_owned())));
    assert_eq!(service.register("default", "s", 1).await.0, 200);
    assert_eq!(service.nearest(json!({})).await, found("default", "default", 1));
    service.stop().await;
}
