//! What the suites of real clients share: a registry of some kind, hosts that pull from it through their daemons, and
//! what must be true afterwards.

use std::{
    collections::BTreeSet,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use harness::{
    Authority, Cluster, Compression, Containerd, Content, Daemon, DaemonSpec, Docker, DockerOptions, Host, HostsToml,
    Image, LinkSpec, Net, Podman, PodmanMirror, Pulled, Registry, RegistryAuth, Run, Skopeo, TokenServer,
};

/// One pull of some megabytes, on a busy machine.
pub(crate) const PULL: Duration = Duration::from_secs(90);
/// Who may pull where not everybody may.
pub(crate) const USER: (&str, &str) = ("ann", "secret");
/// What the issue allows of layers to be read more than once.
const ORIGIN_COPIES_MAX: f64 = 1.02;
/// The registry writes its log after the last byte has left.
const LOG_DEADLINE: Duration = Duration::from_secs(10);
/// docker keeps passwords for docker.io under this name.
const DOCKER_IO: &str = "https://index.docker.io/v1/";
/// Where everything of the test's images lies.
pub(crate) const REPOSITORY: &str = "team/app";

/// Who pulls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Client {
    /// dockerd and `docker pull`.
    Docker,
    /// containerd and `ctr` with `hosts.toml`.
    Containerd,
    /// podman.
    Podman,
    /// skopeo.
    Skopeo,
}

/// How it reaches the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The daemon is the registry's mirror.
    Mirror,
    /// The daemon is the HTTP proxy; the registry speaks plain HTTP.
    Proxy,
    /// The daemon is the HTTP proxy and reads the registry's HTTPS with certificates of its own.
    Intercept,
}

/// Whom the registry serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Auth {
    /// Everybody.
    Open,
    /// Who has the password (htpasswd).
    Password,
    /// Who has a token that lasts so many seconds.
    Token(u64),
}

/// What a scene is about.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    pub(crate) way: Way,
    pub(crate) auth: Auth,
    /// The registry speaks HTTPS with a certificate of a private authority.
    pub(crate) https: bool,
    /// Of the host with the registry, into the network; `None` = unshaped.
    pub(crate) origin_up_bits_per_s: Option<u64>,
    /// Names of the pulling hosts.
    pub(crate) hosts: Vec<&'static str>,
    /// Appended to each daemon's configuration.
    pub(crate) extra: String,
}

/// A registry, a seed, and hosts with a daemon each.
#[derive(Debug)]
pub(crate) struct Scene {
    // Dropped in this order: programs before the network they are in.
    pub(crate) cluster: Cluster,
    pub(crate) registry: Registry,
    pub(crate) tokens: Option<TokenServer>,
    pub(crate) plot: Plot,
    /// Of the registry's access log, before the first pull.
    mark: usize,
    pub(crate) net: Net,
}

/// A client on a host, told how to pull one image.
#[derive(Debug)]
pub(crate) struct Puller {
    runtime: Runtime,
    reference: String,
    way: Way,
    user: Option<(&'static str, &'static str)>,
}

#[derive(Debug)]
enum Runtime {
    Docker(Docker),
    Containerd { containerd: Containerd, hosts: HostsToml, env: Vec<(String, String)> },
    Podman(Podman),
    Skopeo(Skopeo),
}

// === impl Plot ===

impl Plot {
    /// Two hosts, an unshaped open registry over plain HTTP, or HTTPS when it is to be read.
    pub(crate) fn new(way: Way) -> Self {
        Self {
            way,
            auth: Auth::Open,
            https: way == Way::Intercept,
            origin_up_bits_per_s: None,
            hosts: vec!["one", "two"],
            extra: String::new(),
        }
    }

    pub(crate) fn auth(self, auth: Auth) -> Self {
        Self { auth, ..self }
    }

    pub(crate) fn https(self) -> Self {
        Self { https: true, ..self }
    }

    /// Starts everything but the clients.
    pub(crate) fn stage(self, run: &Run) -> anyhow::Result<Scene> {
        let origin_link = LinkSpec { up_bits_per_s: self.origin_up_bits_per_s, down_bits_per_s: None };
        let mut hosts = vec![("origin", origin_link), ("seed", LinkSpec::default())];
        hosts.extend(self.hosts.iter().map(|name| (*name, LinkSpec::default())));
        let net = Net::new(&hosts)?;
        let origin = net.host("origin");
        let tls = match self.https {
            true => {
                let authority = Authority::new(&run.data_dir("ca")?)?;
                let certificate = authority.issue("registry", &["registry.test"], &[origin.ip()])?;
                Some((certificate, authority))
            }
            false => None,
        };
        let tokens = match self.auth {
            Auth::Token(seconds) => {
                Some(TokenServer::start(&origin, run, USER.0, USER.1, Duration::from_secs(seconds))?)
            }
            _ => None,
        };
        let auth = match (&tokens, self.auth) {
            (Some(tokens), _) => RegistryAuth::Token(tokens),
            (None, Auth::Password) => RegistryAuth::Password { user: USER.0, password: USER.1 },
            (None, _) => RegistryAuth::Open,
        };
        let tls = tls.as_ref().map(|(certificate, authority)| (certificate, authority));
        let registry = Registry::start(&origin, run, &auth, tls)?;
        let cluster = self.cluster(&net, run, &registry)?;
        Ok(Scene { cluster, registry, tokens, plot: self, mark: 0, net })
    }

    fn cluster(&self, net: &Net, run: &Run, registry: &Registry) -> anyhow::Result<Cluster> {
        let mut extra = self.extra.clone();
        let mut builder = Cluster::builder(net, run).supernode("seed").upstream(registry).mirror_default(registry);
        if self.way == Way::Intercept {
            builder = builder.intercept(registry.name());
        }
        if self.way != Way::Mirror {
            let port = registry.name().rsplit_once(':').context("a registry has a port")?.1;
            extra.push_str(&format!("\n[proxy.connect]\nports = [443, {port}]\n"));
        }
        for host in &self.hosts {
            let spec = DaemonSpec { host: (*host).to_owned(), extra: extra.clone(), ..DaemonSpec::default() };
            builder = builder.daemon_with(spec);
        }
        builder.start()
    }
}

// === impl Scene ===

impl Scene {
    /// Pushes the image, and counts what the registry sends from here on.
    pub(crate) fn push(&mut self, image: &Image, tag: &str) -> anyhow::Result<()> {
        image.push(&self.registry, REPOSITORY, tag)?;
        self.mark()
    }

    /// Counts what the registry sends from here on.
    pub(crate) fn mark(&mut self) -> anyhow::Result<()> {
        self.mark = self.registry.access_log()?.len();
        Ok(())
    }

    /// The user, where the registry asks for one.
    pub(crate) fn user(&self) -> Option<(&'static str, &'static str)> {
        (self.plot.auth != Auth::Open).then_some(USER)
    }

    /// The daemon on this host.
    pub(crate) fn daemon(&self, host: &str) -> anyhow::Result<&Daemon> {
        self.cluster.daemons.iter().find(|daemon| daemon.host().name() == host).context("no daemon there")
    }

    /// Sets up a client on a host, to pull `tag` the scene's way.
    pub(crate) fn puller(&self, run: &Run, client: Client, host: &str, tag: &str) -> anyhow::Result<Puller> {
        let (daemon, host) = (self.daemon(host)?, self.net.host(host));
        let user = self.user();
        let (runtime, reference) = match client {
            Client::Docker => self.docker(run, &host, daemon, tag)?,
            Client::Containerd => self.containerd(run, &host, daemon, tag)?,
            Client::Podman => self.podman(run, &host, daemon, tag)?,
            Client::Skopeo => self.skopeo(run, &host, daemon, tag)?,
        };
        Ok(Puller { runtime, reference, way: self.plot.way, user })
    }

    /// As it stands in references that name the registry.
    fn reference(&self, tag: &str) -> String {
        format!("{}/{REPOSITORY}:{tag}", self.registry.name())
    }

    /// The environment of a client that uses the proxy.
    pub(crate) fn proxy_env(&self, daemon: &Daemon) -> Vec<(String, String)> {
        let url = format!("http://{}", daemon.addr());
        let mut env: Vec<(String, String)> = Vec::new();
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"] {
            env.push((name.to_owned(), url.clone()));
        }
        for name in ["NO_PROXY", "no_proxy"] {
            env.push((name.to_owned(), String::new()));
        }
        if self.plot.way == Way::Intercept {
            // Nothing else is trusted: whatever gets through was read by the daemon.
            env.push(("SSL_CERT_FILE".to_owned(), daemon.ca().display().to_string()));
            env.push(("SSL_CERT_DIR".to_owned(), "/nonexistent".to_owned()));
        }
        env
    }

    fn docker(&self, run: &Run, host: &Host, daemon: &Daemon, tag: &str) -> anyhow::Result<(Runtime, String)> {
        let mut options = DockerOptions::default();
        let proxy = Some(format!("http://{}", daemon.addr()));
        let reference = match self.plot.way {
            Way::Mirror => {
                options.mirrors.push(format!("http://{}", daemon.addr()));
                format!("{REPOSITORY}:{tag}")
            }
            Way::Proxy => {
                options.proxy = proxy;
                options.insecure.push(self.registry.name().to_owned());
                self.reference(tag)
            }
            Way::Intercept => {
                options.proxy = proxy;
                options.ca = Some(daemon.ca());
                self.reference(tag)
            }
        };
        if let Auth::Token(_) = self.plot.auth {
            // Like podman and skopeo, docker takes every token for good for a minute at least. Layers that are begun later
            // than a token really lasts fail without us, too; so all begin at once, and outlast it.
            options.downloads_at_once = Some(16);
        }
        let docker = Docker::start(host, run, &options)?;
        if let Some((user, password)) = self.user() {
            match self.plot.way {
                Way::Mirror => docker.know(DOCKER_IO, user, password)?,
                // Through the proxy as well.
                _ => docker.login(self.registry.name(), user, password)?,
            }
        }
        Ok((Runtime::Docker(docker), reference))
    }

    fn containerd(&self, run: &Run, host: &Host, daemon: &Daemon, tag: &str) -> anyhow::Result<(Runtime, String)> {
        let containerd = Containerd::start(host, run)?;
        let (hosts, server) = (HostsToml::new(run)?, self.registry.url(""));
        let name = self.registry.name();
        let (hosts, env) = match self.plot.way {
            Way::Mirror => {
                let mirror = format!("http://{}", daemon.addr());
                (hosts.registry(name, &server, &[&mirror], self.registry.ca())?, Vec::new())
            }
            _ => (hosts.registry(name, &server, &[], None)?, self.proxy_env(daemon)),
        };
        Ok((Runtime::Containerd { containerd, hosts, env }, self.reference(tag)))
    }

    /// podman's and skopeo's registries: the mirror first, or the registry as it is.
    pub(crate) fn registries(&self, daemon: &Daemon) -> [PodmanMirror; 1] {
        let mirrors = match self.plot.way {
            Way::Mirror => vec![(daemon.mirror_of(self.registry.name()).to_string(), true)],
            _ => Vec::new(),
        };
        let registry = self.registry.name().to_owned();
        [PodmanMirror { registry, registry_plain: self.registry.is_plain(), mirrors }]
    }

    fn podman(&self, run: &Run, host: &Host, daemon: &Daemon, tag: &str) -> anyhow::Result<(Runtime, String)> {
        let mut podman = Podman::new(host, run, &self.registries(daemon))?;
        if self.plot.way != Way::Mirror {
            for (name, value) in self.proxy_env(daemon) {
                podman = podman.env(&name, &value);
            }
        }
        if let (Way::Mirror, Some((user, password))) = (self.plot.way, self.user()) {
            // `--creds` is for the registry, and is not shown to its mirrors.
            podman.login(&daemon.mirror_of(self.registry.name()).to_string(), true, user, password)?;
        }
        Ok((Runtime::Podman(podman), self.reference(tag)))
    }

    fn skopeo(&self, run: &Run, host: &Host, daemon: &Daemon, tag: &str) -> anyhow::Result<(Runtime, String)> {
        let mut skopeo = Skopeo::new(host, run, false)?.registries(&self.registries(daemon))?;
        if self.plot.way != Way::Mirror {
            for (name, value) in self.proxy_env(daemon) {
                skopeo = skopeo.env(&name, &value);
            }
        }
        match (self.plot.way, self.user()) {
            (Way::Mirror, Some((user, password))) => {
                skopeo.login(&daemon.mirror_of(self.registry.name()).to_string(), true, user, password)?;
            }
            (_, Some((user, password))) => skopeo = skopeo.args(["--src-creds", &format!("{user}:{password}")]),
            (_, None) => {}
        }
        if let Auth::Token(_) = self.plot.auth {
            // As with docker: what is begun after the token's end fails without us, too.
            skopeo = skopeo.at_once();
        }
        Ok((Runtime::Skopeo(skopeo), self.reference(tag)))
    }

    /// Bytes of the image's layers that the registry sent since the last mark, as copies. Waits for its log to name
    /// every layer.
    pub(crate) fn origin_copies(&self, image: &Image) -> anyhow::Result<f64> {
        let platform = image.platform();
        let layers: BTreeSet<String> = platform.layers.iter().map(ToString::to_string).collect();
        let end = Instant::now() + LOG_DEADLINE;
        loop {
            let log = self.registry.access_log()?;
            let gets = log.get(self.mark..).unwrap_or_default().iter().filter(|entry| entry.method == "GET");
            let digest = |uri: &str| {
                uri.rsplit_once("/blobs/").map(|(_, rest)| rest.split('?').next().unwrap_or(rest).to_owned())
            };
            let layer_gets: Vec<(String, u64)> = gets
                .filter_map(|entry| Some((digest(&entry.uri)?, entry.body_bytes)))
                .filter(|(digest, _)| layers.contains(digest))
                .collect();
            let seen: BTreeSet<&String> = layer_gets.iter().map(|(digest, _)| digest).collect();
            if seen.len() == layers.len() || Instant::now() >= end {
                let bytes: u64 = layer_gets.iter().map(|(_, bytes)| bytes).sum();
                return Ok(bytes as f64 / platform.layer_bytes as f64);
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// After every host pulled the image once: the registry was read once, and each host got the image from others.
    pub(crate) fn check_shared(&self, run: &Run, image: &Image) -> anyhow::Result<()> {
        let copies = self.origin_copies(image)?;
        ensure!(copies <= ORIGIN_COPIES_MAX, "the registry sent the layers {copies:.3} times");
        // Without this a count of nothing would pass.
        ensure!(copies >= 0.99, "the registry's log has {copies:.3} copies of the layers");
        let layer_bytes = image.platform().layer_bytes as f64;
        let mut figures = Vec::new();
        for daemon in &self.cluster.daemons {
            let (name, received) = (daemon.host().name(), daemon.metric("skimmer_peer_received_bytes_total")?);
            ensure!(
                received >= 0.98 * layer_bytes,
                "the daemon of host {name} received {received} bytes from others, the layers have {layer_bytes}"
            );
            let fallbacks = daemon.metric("skimmer_proxy_http_fallbacks_total")?;
            ensure!(fallbacks == 0.0, "the daemon of host {name} asked the registry by itself {fallbacks} times");
            figures.push(format!("{name} {:.3}", received / layer_bytes));
        }
        run.note(format!("origin copies {copies:.3}; from peers: {}", figures.join(", ")));
        Ok(())
    }
}

// === impl Puller ===

impl Puller {
    /// Pulls, and says what the runtime has afterwards.
    pub(crate) fn pull(&self) -> anyhow::Result<Pulled> {
        self.pull_within(PULL)
    }

    /// Pulls within this time.
    pub(crate) fn pull_within(&self, deadline: Duration) -> anyhow::Result<Pulled> {
        match &self.runtime {
            Runtime::Docker(docker) => docker.pull(&self.reference, deadline),
            Runtime::Containerd { containerd, hosts, env } => {
                let ctr = containerd.pulling(&self.reference, hosts, self.user);
                env.iter().fold(ctr, |ctr, (name, value)| ctr.env(name, value)).run(deadline)?;
                containerd.read_back(&self.reference)
            }
            Runtime::Podman(podman) => {
                // Logged in at the mirror, and so nobody to the registry itself.
                podman.pull(&self.reference, self.user.filter(|_| self.way != Way::Mirror), deadline)
            }
            Runtime::Skopeo(skopeo) => skopeo.pull(&self.reference, deadline),
        }
    }
}

/// All at once.
pub(crate) fn pull_together(pullers: &[Puller], image: &Image, deadline: Duration) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let running: Vec<_> = pullers.iter().map(|puller| scope.spawn(move || puller.pull_within(deadline))).collect();
        for thread in running {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?.verify(image)?;
        }
        Ok(())
    })
}

/// Four layers of different sizes and compressions; zstd where the client knows it.
pub(crate) fn image(run: &Run, client: Client) -> anyhow::Result<Image> {
    let second = if client == Client::Docker { Compression::Gzip } else { Compression::Zstd };
    Image::builder()
        .layer(6_000_000, Compression::Gzip, Content::Mixed)
        .layer(2_500_000, second, Content::Real)
        .layer(700_000, second, Content::Random)
        .layer(40_000, Compression::None, Content::Random)
        .two_platforms()
        .build(run)
}

/// Two hosts pull the same image: at once, or the second after the first.
pub(crate) fn two_hosts(run: &Run, client: Client, plot: Plot, at_once: bool) -> crate::runner::CaseResult {
    let mut scene = plot.stage(run)?;
    let image = image(run, client)?;
    scene.push(&image, "v1")?;
    let pullers = [scene.puller(run, client, "one", "v1")?, scene.puller(run, client, "two", "v1")?];
    if at_once {
        pull_together(&pullers, &image, PULL)?;
    } else {
        for puller in &pullers {
            puller.pull()?.verify(&image)?;
        }
    }
    scene.check_shared(run, &image)?;
    Ok(crate::runner::Outcome::Passed)
}

/// docker, containerd, podman and skopeo, on a host each, pull the same image at once over a link so slow that it takes
/// a minute, with tokens that last 20 s: none lasts as long as the layers it was given for.
pub(crate) fn short_tokens(run: &Run, way: Way) -> crate::runner::CaseResult {
    // As many as podman and skopeo begin at once.
    const LAYERS: u64 = 6;
    const LAYER_BYTES: u64 = 11_000_000;
    let mut plot = Plot::new(way).auth(Auth::Token(20));
    plot.origin_up_bits_per_s = Some(8_500_000);
    plot.hosts = vec!["one", "two", "three", "four"];
    let mut scene = plot.stage(run)?;
    let layers =
        (0..LAYERS).fold(Image::builder(), |image, _| image.layer(LAYER_BYTES, Compression::Gzip, Content::Random));
    let image = layers.build(run)?;
    scene.push(&image, "v1")?;
    let clients = [Client::Docker, Client::Containerd, Client::Podman, Client::Skopeo];
    let pullers = clients.iter().zip(["one", "two", "three", "four"]);
    let pullers = pullers.map(|(client, host)| scene.puller(run, *client, host, "v1"));
    let pullers = pullers.collect::<anyhow::Result<Vec<_>>>()?;
    let tokens = |scene: &Scene| scene.tokens.as_ref().map(|tokens| tokens.issued().len()).unwrap_or_default();
    let (before, begun) = (tokens(&scene), Instant::now());
    pull_together(&pullers, &image, 4 * PULL)?;
    let (elapsed, issued) = (begun.elapsed(), tokens(&scene) - before);
    run.note(format!("{:.0} s, {issued} tokens", elapsed.as_secs_f64()));
    // Otherwise nothing was tried.
    ensure!(elapsed >= Duration::from_secs(55), "the pull took only {elapsed:?}");
    ensure!(issued > clients.len(), "{issued} tokens were enough for {} clients", clients.len());
    scene.check_shared(run, &image)?;
    Ok(crate::runner::Outcome::Passed)
}
