//! `dfdaemon setup`: what it writes makes real runtimes pull through the daemon, and leaves them their way without it.
//!
//! A registry on the network plays docker.io: it answers at `registry-1.docker.io`, port 443, with a certificate of a
//! private authority that everybody here trusts. The runtimes read the configuration where `setup --root` wrote it.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use harness::{
    Authority, Certificate, Cluster, Containerd, Daemon, DaemonSpec, Docker, DockerOptions, Finished, Host, Image,
    LinkSpec, Net, Podman, Pulled, Registry, RegistryAuth, Run, blob_bytes,
};

use crate::{
    clients_common::{Client, PULL, REPOSITORY, image},
    runner::{Case, CaseResult, Outcome, rooted},
};

/// A clean stop of a daemon that does nothing.
const STOP: Duration = Duration::from_secs(40);
/// Reading and writing some small files.
const SETUP: Duration = Duration::from_secs(20);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        rooted("setup: docker pulls docker.io through the daemon, and directly when it is stopped or killed", docker),
        rooted(
            "setup: containerd pulls all registries through the daemon, and directly when it is stopped or killed",
            containerd,
        ),
        rooted(
            "setup: podman pulls docker.io and a private registry through the daemon, and directly when it is stopped or killed",
            podman,
        ),
        rooted("setup: docker's proxy for other registries, with gen-ca and interception", docker_proxy),
        rooted("setup: mistakes are told and nothing is written", mistakes),
    ]
}

/// docker.io, a registry of plain HTTP, a seed, and a host with a daemon and a root folder for its configuration.
struct Stage {
    // Dropped in this order: programs before the network they are in.
    cluster: Cluster,
    docker_io: Registry,
    private: Registry,
    authority: Authority,
    /// What `/etc/hosts` is to everybody.
    names: PathBuf,
    /// What `--root` is given.
    root: PathBuf,
    net: Net,
}

impl Stage {
    fn new(run: &Run) -> anyhow::Result<Self> {
        let net = Net::new(&["origin", "seed", "one"].map(|name| (name, LinkSpec::default())))?;
        let origin = net.host("origin");
        let authority = Authority::new(&run.data_dir("ca")?)?;
        let certificate: Certificate = authority.issue("registry", &["registry-1.docker.io"], &[origin.ip()])?;
        let tls = Some((&certificate, &authority));
        let docker_io = Registry::start_at(&origin, run, 443, &RegistryAuth::Open, tls)?;
        let private = Registry::start(&origin, run, &RegistryAuth::Open, None)?;
        let names = run.data_dir("names")?.join("hosts");
        fs::write(&names, format!("127.0.0.1 localhost\n{} registry-1.docker.io\n", origin.ip()))?;
        // The daemon's own defaults know where docker.io is.
        let spec = DaemonSpec { host: "one".to_owned(), ..DaemonSpec::default() };
        let cluster = Cluster::builder(&net, run)
            .names(&names)
            .docker_io(&docker_io)
            .upstream(&private)
            .supernode("seed")
            .daemon_with(spec)
            .start()?;
        let root = run.data_dir("root")?;
        Ok(Self { cluster, docker_io, private, authority, names, root, net })
    }

    fn host(&self) -> Host {
        self.net.host("one")
    }

    fn daemon(&self) -> &Daemon {
        &self.cluster.daemons[0]
    }

    /// A file below the root.
    fn put(&self, path: &str, content: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("a file has a folder")?)?;
        fs::write(&path, content)?;
        Ok(path)
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// `dfdaemon setup`, whatever comes of it.
    fn try_setup(&self, arguments: &[&str]) -> anyhow::Result<Finished> {
        let setup = self.host().program(harness::bin_dir()?.join("dfdaemon")).arg("setup").args(arguments);
        setup.arg("--root").arg(&self.root).arg("--proxy-addr").arg(self.daemon().addr().to_string()).output(SETUP)
    }

    fn setup(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let finished = self.try_setup(arguments)?;
        ensure!(finished.status.success(), "setup {arguments:?}: {}", finished.stderr);
        Ok(String::from_utf8_lossy(&finished.stdout).into_owned())
    }

    /// Dry run, twice for real: nothing is written, then something, then nothing more. Returns what was there before.
    fn set_up(&self, arguments: &[&str]) -> anyhow::Result<Snapshot> {
        let before = snapshot(&self.root)?;
        let shown = self.setup(&[arguments, &["--dry-run"]].concat())?;
        ensure!(shown.contains("+++ /etc/") && shown.contains("@@"), "the dry run shows no diff: {shown}");
        ensure!(snapshot(&self.root)? == before, "the dry run wrote something");
        let told = self.setup(arguments)?;
        ensure!(told.lines().any(|line| line.starts_with("/etc/")), "it does not say what it wrote: {told}");
        let after = snapshot(&self.root)?;
        ensure!(after != before, "nothing was written");
        for (path, entry) in &before {
            ensure!(after.get(path).is_some_and(|now| now.mode == entry.mode), "{} has another mode", path.display());
        }
        let again = self.setup(arguments)?;
        ensure!(again.contains("nothing to change"), "the second time: {again}");
        ensure!(snapshot(&self.root)? == after, "the second time something was written");
        Ok(before)
    }

    fn undo(&self, runtime: &str, before: &Snapshot) -> anyhow::Result<()> {
        let set_up = snapshot(&self.root)?;
        self.setup(&[runtime, "--undo", "--dry-run"])?;
        ensure!(snapshot(&self.root)? == set_up, "the dry run of --undo wrote something");
        self.setup(&[runtime, "--undo"])?;
        let now = snapshot(&self.root)?;
        for path in before.keys().chain(now.keys()) {
            ensure!(before.get(path) == now.get(path), "after --undo {} is not as it was", path.display());
        }
        self.setup(&[runtime, "--undo"])?;
        ensure!(snapshot(&self.root)? == *before, "a second --undo wrote something");
        Ok(())
    }

    /// Through the daemon; then directly, with the daemon stopped and killed; then through the daemon again.
    fn with_and_without(
        &mut self,
        registry: fn(&Self) -> &Registry,
        image: &Image,
        puller: &dyn Puller,
    ) -> anyhow::Result<()> {
        let sent = |stage: &Self| anyhow::Ok(blob_bytes(&registry(stage).access_log()?));
        let served = |stage: &Self| stage.daemon().metric("skimmer_proxy_http_served_bytes_total");
        let layer_bytes = image.platform().layer_bytes;
        let through = |stage: &Self, what: &str| -> anyhow::Result<()> {
            let before = served(stage)?;
            puller.pull()?.verify(image).context(what.to_owned())?;
            let bytes = served(stage)? - before;
            ensure!(bytes >= layer_bytes as f64, "{what}: only {bytes} of {layer_bytes} bytes passed the daemon");
            puller.forget()
        };
        let before = sent(self)?;
        through(self, "through the daemon")?;
        let read = sent(self)? - before;
        ensure!(read <= image.pulled_bytes()? * 102 / 100, "the registry sent {read} bytes of {layer_bytes}");
        let received = self.daemon().metric("skimmer_peer_received_bytes_total")?;
        ensure!(received >= layer_bytes as f64 * 0.98, "only {received} bytes came from peers");

        for kill in [false, true] {
            let process = self.cluster.daemons[0].process();
            if kill {
                process.kill()?;
            } else {
                let status = process.terminate(STOP)?;
                ensure!(status.success(), "after SIGTERM dfdaemon ended with {status}");
            }
            let what = if kill { "with the daemon killed" } else { "with the daemon stopped" };
            let before = sent(self)?;
            puller.pull().context(what)?.verify(image)?;
            let read = sent(self)? - before;
            ensure!(read >= layer_bytes, "{what}: the registry sent {read} bytes of {layer_bytes}");
            puller.forget()?;
            self.cluster.daemons[0].restart()?;
            let before = sent(self)?;
            through(self, "with the daemon back")?;
            let read = sent(self)? - before;
            ensure!(read == 0, "what the daemon kept was read again: {read} bytes");
        }
        Ok(())
    }
}

/// One image in one runtime.
trait Puller {
    fn pull(&self) -> anyhow::Result<Pulled>;
    fn forget(&self) -> anyhow::Result<()>;
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    content: Option<Vec<u8>>,
}

type Snapshot = BTreeMap<PathBuf, Entry>;

/// Every file and folder below a folder.
fn snapshot(root: &Path) -> anyhow::Result<Snapshot> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            let content = if metadata.is_file() { Some(fs::read(&path)?) } else { None };
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, Entry { mode: metadata.permissions().mode(), content });
        }
    }
    Ok(found)
}

// === docker ===

struct DockerPuller {
    docker: Docker,
    reference: String,
}

impl Puller for DockerPuller {
    fn pull(&self) -> anyhow::Result<Pulled> {
        self.docker.pull(&self.reference, PULL)
    }

    fn forget(&self) -> anyhow::Result<()> {
        self.docker.remove(&self.reference)?;
        ensure!(self.docker.read_back(&self.reference).is_err(), "docker still knows the image");
        Ok(())
    }
}

fn docker(run: &Run) -> CaseResult {
    let mut stage = Stage::new(run)?;
    let image = image(run, Client::Docker)?;
    image.push(&stage.docker_io, REPOSITORY, "v1")?;
    // As people write it: tabs, an order of their own, no newline at the end.
    let written =
        "{\n\t\"max-concurrent-downloads\": 2,\n\t\"debug\": false,\n\t\"insecure-registries\": [\"10.9.9.9:1\"]}";
    let config = stage.put("/etc/docker/daemon.json", written)?;
    fs::set_permissions(&config, fs::Permissions::from_mode(0o640))?;
    let before = stage.set_up(&["docker"])?;
    let options = DockerOptions {
        config: Some(config),
        ca: Some(stage.authority.path().to_owned()),
        binds: vec![(stage.names.clone(), "/etc/hosts".into())],
        ..DockerOptions::default()
    };
    let docker = Docker::start(&stage.host(), run, &options)?;
    let puller = DockerPuller { docker, reference: format!("{REPOSITORY}:v1") };
    stage.with_and_without(|stage| &stage.docker_io, &image, &puller)?;
    drop(puller);
    stage.undo("docker", &before)?;
    Ok(Outcome::Passed)
}

fn docker_proxy(run: &Run) -> CaseResult {
    // The operator makes the authority beforehand, and names it to the daemon and to setup.
    let folder = run.data_dir("gen-ca")?;
    let (cert, key) = (folder.join("ca.crt"), folder.join("ca.key"));
    let net = Net::new(&["origin", "seed", "one"].map(|name| (name, LinkSpec::default())))?;
    let gen_ca = || {
        let program = net.host("one").program(harness::bin_dir()?.join("dfdaemon")).arg("gen-ca");
        program.arg("--cert").arg(&cert).arg("--key").arg(&key).output(SETUP)
    };
    let finished = gen_ca()?;
    ensure!(finished.status.success(), "gen-ca: {}", finished.stderr);
    let mode = fs::metadata(&key)?.permissions().mode() & 0o777;
    ensure!(mode == 0o600, "the key's mode is {mode:o}");
    let made = fs::read(&cert)?;
    ensure!(!gen_ca()?.status.success() && fs::read(&cert)? == made, "gen-ca replaces an authority that is in use");

    let origin = net.host("origin");
    let authority = Authority::new(&run.data_dir("ca")?)?;
    let certificate = authority.issue("registry", &["registry.test"], &[origin.ip()])?;
    let registry = Registry::start_at(&origin, run, 443, &RegistryAuth::Open, Some((&certificate, &authority)))?;
    let image = image(run, Client::Docker)?;
    image.push(&registry, REPOSITORY, "v1")?;
    let names = run.data_dir("names")?.join("hosts");
    fs::write(&names, format!("127.0.0.1 localhost\n{} registry.test\n", origin.ip()))?;
    // As docs/runtimes.md has it: the host is named for interception, and its own authority to whoever reads it.
    let upstream =
        format!("\n[[mirror.upstreams]]\nhost = \"registry.test\"\nca = \"{}\"\n", authority.path().display());
    let seed = DaemonSpec {
        host: "seed".to_owned(),
        extra: format!("\n[source.hosts.\"registry.test\"]\nca = \"{}\"\n", authority.path().display()),
        ..DaemonSpec::default()
    };
    let one = DaemonSpec { host: "one".to_owned(), extra: upstream, ..DaemonSpec::default() };
    let mut cluster = Cluster::builder(&net, run)
        .names(&names)
        .intercept("registry.test")
        .supernode_with(seed)
        .daemon_with(one)
        .start()?;
    // The template has its own place for the authority: put the operator's there.
    let daemon = &mut cluster.daemons[0];
    fs::copy(&cert, daemon.ca())?;
    fs::copy(&key, daemon.ca().with_extension("key"))?;
    daemon.restart()?;

    let root = run.data_dir("root")?;
    fs::create_dir_all(root.join("etc/docker"))?;
    let before = snapshot(&root)?;
    let setup = |arguments: &[&str]| {
        let setup = net.host("one").program(harness::bin_dir()?.join("dfdaemon")).args(["setup", "docker"]);
        let setup = setup.arg("--root").arg(&root).arg("--proxy-addr").arg(daemon.addr().to_string());
        setup.args(arguments).run(SETUP)
    };
    let ca = cert.display().to_string();
    setup(&["--docker-proxy-ca", &ca, "--registry", "registry.test"])?;
    let drop_in = fs::read_to_string(root.join("etc/systemd/system/docker.service.d/50-skimmer-proxy.conf"))?;
    let proxy = drop_in.split('"').find_map(|word| word.strip_prefix("HTTPS_PROXY="));
    let proxy = proxy.context("the drop-in sets no HTTPS_PROXY")?.to_owned();

    // A copy, because dockerd writes into its folder.
    let etc_docker = run.data_dir("etc-docker")?;
    let here = net.host("one");
    here.program("cp").arg("-a").arg(root.join("etc/docker/.")).arg(&etc_docker).run(SETUP)?;
    let options = DockerOptions {
        proxy: Some(proxy),
        // What the machine trusts, which is not our authority: that comes from certs.d alone.
        ca: Some(authority.path().to_owned()),
        binds: vec![(names.clone(), "/etc/hosts".into()), (etc_docker, "/etc/docker".into())],
        ..DockerOptions::default()
    };
    let docker = Docker::start(&here, run, &options)?;
    docker.pull(&format!("registry.test/{REPOSITORY}:v1"), PULL)?.verify(&image)?;
    let received = daemon.metric("skimmer_peer_received_bytes_total")?;
    let layer_bytes = image.platform().layer_bytes as f64;
    ensure!(received >= 0.98 * layer_bytes, "only {received} of {layer_bytes} bytes came from peers");
    drop(docker);
    setup(&["--undo"])?;
    ensure!(snapshot(&root)? == before, "after --undo something is not as it was");
    Ok(Outcome::Passed)
}

// === containerd ===

struct CtrPuller<'a> {
    containerd: &'a Containerd,
    reference: String,
    folder: PathBuf,
    names: PathBuf,
    ca: PathBuf,
}

impl Puller for CtrPuller<'_> {
    fn pull(&self) -> anyhow::Result<Pulled> {
        let ctr = self.containerd.pulling_with(&self.reference, &self.folder, None);
        let ctr = ctr.bind(&self.names, "/etc/hosts").env("SSL_CERT_FILE", &self.ca);
        ctr.run(PULL)?;
        self.containerd.read_back(&self.reference)
    }

    fn forget(&self) -> anyhow::Result<()> {
        self.containerd.remove(&self.reference)?;
        ensure!(self.containerd.read_back(&self.reference).is_err(), "containerd still knows the image");
        Ok(())
    }
}

fn containerd(run: &Run) -> CaseResult {
    let mut stage = Stage::new(run)?;
    let hub_image = image(run, Client::Containerd)?;
    hub_image.push(&stage.docker_io, REPOSITORY, "v1")?;
    let private_image =
        Image::builder().layer(3_000_000, harness::Compression::Zstd, harness::Content::Mixed).seed(7).build(run)?;
    private_image.push(&stage.private, REPOSITORY, "v1")?;
    let name = stage.private.name().to_owned();
    // The private registry has a file of its own, written by hand.
    let url = stage.private.url("");
    let hosts = format!(
        "# ours, since 2019\nserver = \"{url}\"\n\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\", \"push\"]"
    );
    stage.put(&format!("/etc/containerd/certs.d/{name}/hosts.toml"), &hosts)?;
    stage.put(
        "/etc/containerd/config.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/etc/containerd/certs.d\"\n",
    )?;
    let before = stage.set_up(&["containerd"])?;
    // A registry with a folder of its own does not use the default: it has to be named, and setup says so.
    let told = stage.setup(&["containerd", "--dry-run"])?;
    ensure!(told.contains(&name), "it does not tell that {name} has a folder of its own: {told}");
    stage.setup(&["containerd", "--registry", &name])?;

    let containerd = Containerd::start(&stage.host(), run)?;
    let (folder, names, ca) =
        (stage.path("/etc/containerd/certs.d"), stage.names.clone(), stage.authority.path().to_owned());
    let puller = |reference: String| CtrPuller {
        containerd: &containerd,
        reference,
        folder: folder.clone(),
        names: names.clone(),
        ca: ca.clone(),
    };
    stage.with_and_without(|stage| &stage.docker_io, &hub_image, &puller(format!("docker.io/{REPOSITORY}:v1")))?;
    stage.with_and_without(|stage| &stage.private, &private_image, &puller(format!("{name}/{REPOSITORY}:v1")))?;
    stage.undo("containerd", &before)?;
    Ok(Outcome::Passed)
}

// === podman ===

struct PodmanPuller<'a> {
    podman: &'a Podman,
    reference: String,
}

impl Puller for PodmanPuller<'_> {
    fn pull(&self) -> anyhow::Result<Pulled> {
        self.podman.pull(&self.reference, None, PULL)
    }

    fn forget(&self) -> anyhow::Result<()> {
        self.podman.remove(&self.reference)?;
        ensure!(self.podman.read_back(&self.reference).is_err(), "podman still knows the image");
        Ok(())
    }
}

fn podman(run: &Run) -> CaseResult {
    let mut stage = Stage::new(run)?;
    let hub_image = image(run, Client::Podman)?;
    hub_image.push(&stage.docker_io, REPOSITORY, "v1")?;
    let private_image =
        Image::builder().layer(3_000_000, harness::Compression::Zstd, harness::Content::Mixed).seed(7).build(run)?;
    private_image.push(&stage.private, REPOSITORY, "v1")?;
    let name = stage.private.name().to_owned();
    stage.put("/etc/containers/policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
    stage.put(
        "/etc/containers/registries.conf",
        &format!(
            "# by hand\nunqualified-search-registries = []\n[[registry]]\nlocation = \"{name}\"\ninsecure = true\n"
        ),
    )?;
    let mirror = format!("{name}={}", stage.daemon().mirror_of(&name));
    let arguments = ["podman", "--registry", "docker.io", "--registry", &mirror];
    let before = stage.set_up(&arguments)?;
    // The folder /etc/containers has more than podman's registries on a real machine.
    let podman = Podman::with_etc(&stage.host(), run, &stage.path("/etc/containers"))?
        .bind(&stage.names, "/etc/hosts")
        .env("SSL_CERT_FILE", &stage.authority.path().display().to_string());
    let puller = |reference: String| PodmanPuller { podman: &podman, reference };
    stage.with_and_without(|stage| &stage.docker_io, &hub_image, &puller(format!("docker.io/{REPOSITORY}:v1")))?;
    stage.with_and_without(|stage| &stage.private, &private_image, &puller(format!("{name}/{REPOSITORY}:v1")))?;
    stage.undo("podman", &before)?;
    Ok(Outcome::Passed)
}

// === mistakes ===

fn mistakes(run: &Run) -> CaseResult {
    let stage = Stage::new(run)?;
    stage.put("/etc/docker/daemon.json", "{ this is not json")?;
    stage.put("/etc/containers/registries.conf", "[registries.search]\nregistries = ['docker.io']\n")?;
    stage.put("/etc/containerd/certs.d/broken.test/hosts.toml", "server = ")?;
    let before = snapshot(&stage.root)?;
    for (arguments, code, word) in [
        (&["docker"][..], 1, "daemon.json"),
        (&["podman"][..], 1, "registries.conf"),
        (&["containerd", "--registry", "broken.test"][..], 1, "hosts.toml"),
        (&["docker", "--registry", "quay.io"][..], 1, "--docker-proxy-ca"),
        (&["podman", "--registry", "quay.io"][..], 1, "mirror.upstreams"),
        (&["docker", "--registry", "docker.io", "--docker-proxy-ca", "/no/such/file"][..], 1, "/no/such/file"),
        (&["podman", "--registry", "quay.io=nowhere"][..], 2, "ADDRESS:PORT"),
        (&["rkt"][..], 2, "containerd"),
    ] {
        let finished = stage.try_setup(arguments)?;
        ensure!(finished.status.code() == Some(code), "{arguments:?}: {} {}", finished.status, finished.stderr);
        ensure!(finished.stderr.contains(word), "{arguments:?} does not name {word}: {}", finished.stderr);
        ensure!(snapshot(&stage.root)? == before, "{arguments:?} wrote something all the same");
    }
    let told = stage.setup(&["docker", "--undo"])?;
    ensure!(told.contains("nothing was set up"), "undoing nothing: {told}");
    Ok(Outcome::Passed)
}
