//! Real programs: curl through tunnels and interception, skopeo through the mirror of a real registry.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use dfdaemon::ca::{self, Authority};
use dfdaemon::config::Config;
use dfdaemon::metrics::{BytesFrom, Metrics, Outcome, Way};
use dfdaemon::passthrough::Passthrough;
use dfdaemon::proxy::Server;
use dfdaemon::setup::{Options, Runtime};
use proto::{Algorithm, Digest};
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::support::{Content, Daemon, Fetching, NoDownloads, Origin, Scripted, answer};

/// Exit code, stdout, stderr.
async fn run(program: &str, args: &[&str]) -> (i32, String, String) {
    let output = Command::new(program).args(args).kill_on_drop(true).output();
    let output = tokio::time::timeout(Duration::from_secs(60), output).await.expect("in time").unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}

/// An HTTPS origin with a private CA, whose certificate is in `origin.crt`.
async fn https_origin(dir: &Path) -> Origin {
    let authority = Authority::load_or_generate(&dir.join("origin.crt"), &dir.join("origin.key")).unwrap();
    let tls = authority.server_config("localhost").await.unwrap();
    Origin::start_with(Some(tls), |seen| {
        let host = seen.headers.get("host").map(|h| h.to_str().unwrap().to_owned()).unwrap_or_default();
        answer(200, &[("x-origin", "yes")], format!("{} {} {host}", seen.method, seen.uri))
    })
    .await
}

#[tokio::test]
async fn curl_through_a_tunnel() {
    let dir = tempfile::tempdir().unwrap();
    let origin = https_origin(dir.path()).await;
    let port = origin.address.port();
    let daemon =
        Daemon::start(&format!("proxy.connect = {{ hosts = ['localhost'], ports = [{port}] }}"), Arc::new(NoDownloads))
            .await;
    let proxy = format!("http://{}", daemon.address);
    let ca = dir.path().join("origin.crt").display().to_string();
    let url = format!("https://localhost:{port}/x");
    let (code, out, err) = run("curl", &["-sS", "--noproxy", "", "--proxy", &proxy, "--cacert", &ca, &url]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("GET "), "{out}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(daemon.metrics.bytes(BytesFrom::Tunnel) > 500);
    for (target, status) in [(format!("127.0.0.1:{port}"), 403), ("localhost:1".into(), 403), ("localhost".into(), 400)]
    {
        let refused = daemon.raw(&format!("CONNECT {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
        assert_eq!(refused.status, status, "{target}");
    }
    assert_eq!(daemon.metrics.requests(Way::Tunnel, Outcome::Ok), 1);
}

#[tokio::test]
async fn curl_through_interception() {
    let dir = tempfile::tempdir().unwrap();
    let origin = https_origin(dir.path()).await;
    let port = origin.address.port();
    let blob = Digest::of(Algorithm::Sha256, b"blob");
    let (certificate, key) = (dir.path().join("ca.crt"), dir.path().join("ca.key"));
    let config = format!(
        r#"
        [proxy]
        rules = [{{ regex = '/never', action = "refuse" }}, {{ regex = '/broken', action = "p2p" }}]
        connect = {{ ports = [{port}] }}
        intercept = {{ hosts = ["localhost"], ca_cert = "{}", ca_key = "{}" }}
        [[mirror.upstreams]]
        host = "localhost:{port}"
        ca = "{}"
        "#,
        certificate.display(),
        key.display(),
        dir.path().join("origin.crt").display(),
    );
    let downloads = Scripted::new(|request| {
        let content = if request.spec.content_addressed {
            Content::new("blob")
        } else {
            Content { fail_at: Some(500_000), chunk: 10_000, ..Content::new(vec![1; 1_000_000]) }
        };
        Ok(content.open(request.spec.id()))
    });
    let daemon = Daemon::start(&config, downloads.clone()).await;
    let proxy = format!("http://{}", daemon.address);
    let ca = certificate.display().to_string();
    let base = format!("https://localhost:{port}");
    for version in ["--http1.1", "--http2"] {
        let curl = |extra: &'static [&'static str], path: String| {
            let (proxy, ca, url) = (proxy.clone(), ca.clone(), format!("{base}{path}"));
            async move {
                let mut args = vec!["-sS", version, "--noproxy", "", "--proxy", &proxy, "--cacert", &ca];
                args.extend(extra);
                args.push(&url);
                run("curl", &args).await
            }
        };
        let (code, out, err) = curl(&["-w", " %{http_version}"], "/direct".into()).await;
        assert_eq!(code, 0, "{err}");
        assert!(out.contains("/direct") && out.contains(&format!("localhost:{port}")), "{out}");
        assert!(out.ends_with(if version == "--http2" { " 2" } else { " 1.1" }), "{out}");
        let (code, out, err) = curl(&[], format!("/v2/a/blobs/{blob}")).await;
        assert_eq!((code, out.as_str()), (0, "blob"), "{err}");
        let (_, out, _) = curl(&["-o", "/dev/null", "-w", "%{http_code}"], "/never".into()).await;
        assert_eq!(out, "403");
        // 18 = partial file, 92 = the stream was reset.
        let (code, _, err) = curl(&["-o", "/dev/null"], "/broken".into()).await;
        assert_eq!(code, if version == "--http2" { 92 } else { 18 }, "{err}");
        let (_, out, _) =
            curl(&["-o", "/dev/null", "-w", "%{http_code}", "-H", "Host: other.example"], "/direct".into()).await;
        assert_eq!(out, "421");
    }
    assert!(downloads.opened.lock().iter().any(|r| r.spec.url.as_str() == format!("{base}/v2/a/blobs/{blob}")));
    // A client that does not trust the CA gets nothing.
    let (code, _, _) = run("curl", &["-sS", "--noproxy", "", "--proxy", &proxy, &format!("{base}/direct")]).await;
    assert_eq!(code, 60);
    assert_eq!(daemon.metrics.requests(Way::Intercept, Outcome::Ok), 11);
}

/// docker-registry with a folder of its own.
struct Registry {
    address: SocketAddr,
    _process: Child,
    _dir: tempfile::TempDir,
}

impl Registry {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // It cannot choose a port itself.
        let address = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            dir.path().join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        for _ in 0..100 {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return Self { address, _process: process, _dir: dir };
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("docker-registry does not start");
    }
}

/// An image of two layers in OCI layout, written by hand; the layers' digests.
fn write_image(dir: &Path) -> Vec<Digest> {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |content: &[u8]| {
        let digest = Digest::of(Algorithm::Sha256, content);
        std::fs::write(blobs.join(digest.hex()), content).unwrap();
        (digest, content.len())
    };
    let layers: Vec<(Digest, usize)> = [3_000_000usize, 64]
        .iter()
        .map(|size| put(&(0..*size).map(|i| ((i * i) >> 3) as u8).collect::<Vec<_>>()))
        .collect();
    let diff_ids: Vec<String> = layers.iter().map(|(digest, _)| digest.to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids }
    });
    let (config, config_len) = put(config.to_string().as_bytes());
    let descriptor = |kind: &str, digest: &Digest, size: usize| serde_json::json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest, "size": size });
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("config.v1+json", &config, config_len),
        "layers": layers.iter().map(|(d, size)| descriptor("layer.v1.tar", d, *size)).collect::<Vec<_>>(),
    });
    let (manifest, manifest_len) = put(manifest.to_string().as_bytes());
    let index = serde_json::json!({
        "schemaVersion": 2, "manifests": [descriptor("manifest.v1+json", &manifest, manifest_len)]
    });
    std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
    std::fs::write(dir.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
    layers.into_iter().map(|(digest, _)| digest).collect()
}

#[tokio::test]
async fn skopeo_pulls_through_the_mirror_of_a_real_registry() {
    let registry = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("image");
    let layers = write_image(&layout);
    let config = format!("mirror.default = 'http://{}'", registry.address);
    let downloads = Fetching::new(&config);
    let daemon = Daemon::start(&config, downloads.clone()).await;
    // Push through the mirror too: uploads pass unread.
    let source = format!("oci:{}", layout.display());
    let name = format!("docker://{}/team/app:v1", daemon.address);
    let (code, _, err) =
        run("skopeo", &["copy", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false", &source, &name])
            .await;
    assert_eq!(code, 0, "{err}");
    assert_eq!(daemon.metrics.requests(Way::MirrorBlob, Outcome::Ok), 0);
    for turn in 0..2 {
        let target = format!("dir:{}", dir.path().join(format!("pulled{turn}")).display());
        let (code, _, err) =
            run("skopeo", &["copy", "--insecure-policy", "--src-tls-verify=false", &name, &target]).await;
        assert_eq!(code, 0, "{err}");
        for layer in &layers {
            let pulled = std::fs::read(dir.path().join(format!("pulled{turn}")).join(layer.hex())).unwrap();
            assert_eq!(Digest::of(Algorithm::Sha256, &pulled), *layer);
        }
    }
    // Two layers and the configuration, twice; the second time from the cache.
    assert_eq!(daemon.metrics.requests(Way::MirrorBlob, Outcome::Ok), 6);
    let cached = daemon.metrics.bytes(BytesFrom::Cache);
    assert!(cached > 3_000_000 && cached == daemon.metrics.bytes(BytesFrom::Swarm));
    // What is not there is said by the registry.
    let missing = format!("docker://{}/team/app:v2", daemon.address);
    let (code, _, err) = run("skopeo", &["inspect", "--tls-verify=false", &missing]).await;
    assert!(code != 0 && err.contains("manifest unknown"), "{err}");
}

fn setup_options(runtime: Runtime, root: &Path, registry: SocketAddr, daemon: SocketAddr) -> Options {
    Options {
        runtime,
        root: root.into(),
        registries: vec![format!("{registry}={daemon}").parse().unwrap()],
        proxy_addr: daemon,
        docker_proxy_ca: None,
    }
}

#[tokio::test]
async fn what_setup_writes_for_podman_is_used_and_fails_open() {
    let registry = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("image");
    write_image(&layout);
    let source = format!("oci:{}", layout.display());
    let name = format!("docker://{}/team/app:v1", registry.address);
    let push = ["copy", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false", &source, &name];
    assert_eq!(run("skopeo", &push).await.0, 0);

    // A mirror address of its own, as clients that send no ns need it.
    let listen = { std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap() };
    let config = format!(
        "proxy.listen = '127.0.0.1:0'\nmirror.upstreams = [{{ host = '{}', plain_http = true, listen = '{listen}' }}]",
        registry.address
    );
    let config: Config = toml::from_str(&config).unwrap();
    let metrics = Metrics::default();
    let downloads = Fetching::new("");
    let server = Server::new(config.clone(), downloads, Passthrough::new(&config).unwrap(), metrics.clone()).unwrap();
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let running = tokio::spawn(async move { server.run(stop).await });

    let root = dir.path().join("root");
    let containers = root.join("etc/containers");
    std::fs::create_dir_all(&containers).unwrap();
    let own = format!("[[registry]]\nlocation = \"{}\"\ninsecure = true\n", registry.address);
    std::fs::write(containers.join("registries.conf"), own).unwrap();
    setup_options(Runtime::Podman, &root, registry.address, listen).plan().unwrap().apply().unwrap();
    let drop_in = containers.join("registries.conf.d/zz-skimmer.conf").display().to_string();
    for (turn, blobs) in [("with", 3), ("without", 3)] {
        if turn == "without" {
            cancel.cancel();
        }
        let target = format!("dir:{}", dir.path().join(turn).display());
        let (code, _, err) =
            run("skopeo", &["--registries-conf", &drop_in, "copy", "--insecure-policy", &name, &target]).await;
        assert_eq!(code, 0, "{turn}: {err}");
        assert_eq!(metrics.requests(Way::MirrorBlob, Outcome::Ok), blobs, "{turn}");
    }
    running.await.unwrap().unwrap();
}

#[tokio::test]
async fn what_setup_writes_for_containerd_is_used_and_fails_open() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: containerd needs root");
        return;
    }
    let registry = Registry::start().await;
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("image");
    write_image(&layout);
    let source = format!("oci:{}", layout.display());
    let docker_name = format!("docker://{}/team/app:v1", registry.address);
    let push = ["copy", "--insecure-policy", "--preserve-digests", "--dest-tls-verify=false", &source, &docker_name];
    assert_eq!(run("skopeo", &push).await.0, 0);
    let config = format!("mirror.upstreams = [{{ host = '{}', plain_http = true }}]", registry.address);
    let mut daemon = Daemon::start(&config, Fetching::new("")).await;

    let root = dir.path().join("root");
    std::fs::create_dir_all(&root).unwrap();
    setup_options(Runtime::Containerd, &root, registry.address, daemon.address).plan().unwrap().apply().unwrap();
    let hosts = root.join("etc/containerd/certs.d").display().to_string();

    let socket = dir.path().join("c.sock").display().to_string();
    let toml = dir.path().join("containerd.toml");
    std::fs::write(
        &toml,
        "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.internal.v1.opt\"]\n",
    )
    .unwrap();
    let _containerd = Command::new("containerd")
        .args(["--config", &toml.display().to_string(), "--address", &socket])
        .args(["--root", &dir.path().join("c").display().to_string()])
        .args(["--state", &dir.path().join("s").display().to_string()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    for _ in 0..200 {
        if tokio::net::UnixStream::connect(&socket).await.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let name = format!("{}/team/app:v1", registry.address);
    for turn in ["with", "without"] {
        if turn == "without" {
            daemon.cancel.cancel();
            daemon.running.take().unwrap().await.unwrap();
        }
        // A namespace of its own each time, so that nothing is there yet.
        let args = ["--address", &socket, "--namespace", turn, "content", "fetch", "--hosts-dir", &hosts, &name];
        let (code, out, err) = run("ctr", &args).await;
        assert_eq!(code, 0, "{turn}: {out} {err}");
        assert_eq!(daemon.metrics.requests(Way::MirrorBlob, Outcome::Ok), 3, "{turn}");
    }
}

#[tokio::test]
async fn gen_ca_by_hand_is_taken_up() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("ca.crt"), dir.path().join("ca.key"));
    ca::generate(&certificate, &key).unwrap();
    let (code, out, err) =
        run("openssl", &["x509", "-in", &certificate.display().to_string(), "-noout", "-text"]).await;
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("CA:TRUE, pathlen:0") && out.contains("Skimmer interception"), "{out}");
}
