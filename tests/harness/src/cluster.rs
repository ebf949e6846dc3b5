//! Our own programs on hosts: a config-service, supernodes, daemons.
//!
//! Their configuration is made from one template file each (`templates/`), so that a renamed field is one line.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{Curl, Host, Net, Proc, ProcBuilder, Registry, Reply, Run};

/// A store is opened and a port bound; on a busy machine a few seconds.
const START_DEADLINE: Duration = Duration::from_secs(30);
/// One question to a node of ours.
const API_DEADLINE: Duration = Duration::from_secs(10);
/// What a node may store, unless a test says otherwise.
const CAPACITY: &str = "20GiB";

/// The folder of our programs: what `./dev` built last, or, without it, where this program lies.
///
/// # Errors
/// When there are none.
pub fn bin_dir() -> Result<PathBuf> {
    match std::env::var_os("SKIMMER_BIN_DIR") {
        Some(folder) => Ok(folder.into()),
        None => {
            let here = std::env::current_exe()?;
            let folder = here.parent().context("a program lies in a folder")?;
            // Unit tests lie one deeper.
            Ok(if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder }.to_owned())
        }
    }
}

/// A daemon to start.
#[derive(Debug, Clone, Default)]
pub struct DaemonSpec {
    /// Name of its host.
    pub host: String,
    /// TOML joined to what the template gives: a section that the template has gets these lines as well, and a key that
    /// it has there gets this value.
    pub extra: String,
    /// Bytes it may store, as in `1GiB`.
    pub capacity: Option<String>,
    /// Lines of `[peer]` instead of listening on the host's IPv4 address; `PORT` in it is the port chosen.
    pub peer: Option<String>,
}

impl DaemonSpec {
    fn peer_section(&self, ports: Ports) -> String {
        match &self.peer {
            Some(lines) => lines.replace("PORT", &ports.peer.port().to_string()),
            None => format!("listen = [\"{}\"]", ports.peer),
        }
    }
}

/// Describes a [`Cluster`].
#[derive(Debug)]
pub struct ClusterBuilder<'a> {
    net: &'a Net,
    run: &'a Run,
    config_service: Option<String>,
    supernodes: Vec<DaemonSpec>,
    daemons: Vec<DaemonSpec>,
    upstreams: Vec<(String, String)>,
    mirror_default: Option<String>,
    hosts: Vec<String>,
    intercept: Vec<String>,
    names: Option<PathBuf>,
}

/// A node of ours: its process, and where it answers.
#[derive(Debug)]
pub struct Daemon {
    proc: Proc,
    ports: Ports,
    /// Its folder: configuration, store, socket.
    folder: PathBuf,
    /// Where each registry has a mirror address of its own.
    mirrors: Vec<(String, SocketAddr)>,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    /// gRPC of a supernode, the proxy and mirror of a daemon, the API of a config-service.
    main: SocketAddr,
    /// Health and metrics.
    http: SocketAddr,
    /// Pieces.
    peer: SocketAddr,
}

/// Running programs of ours. Dropping it kills them.
#[derive(Debug)]
pub struct Cluster {
    /// The config-service, when there is one.
    pub config_service: Option<Daemon>,
    /// The supernodes, in the order described.
    pub supernodes: Vec<Daemon>,
    /// The daemons, in the order described.
    pub daemons: Vec<Daemon>,
}

// === impl ClusterBuilder ===

impl ClusterBuilder<'_> {
    /// Runs a config-service on this host.
    #[must_use]
    pub fn config_service(mut self, host: &str) -> Self {
        self.config_service = Some(host.to_owned());
        self
    }

    /// Runs a supernode on this host.
    #[must_use]
    pub fn supernode(self, host: &str) -> Self {
        self.supernode_with(DaemonSpec { host: host.to_owned(), ..DaemonSpec::default() })
    }

    /// Runs a supernode as described.
    #[must_use]
    pub fn supernode_with(mut self, spec: DaemonSpec) -> Self {
        self.supernodes.push(spec);
        self
    }

    /// Runs a daemon on this host.
    #[must_use]
    pub fn daemon(self, host: &str) -> Self {
        self.daemon_with(DaemonSpec { host: host.to_owned(), ..DaemonSpec::default() })
    }

    /// Runs a daemon as described.
    #[must_use]
    pub fn daemon_with(mut self, spec: DaemonSpec) -> Self {
        self.daemons.push(spec);
        self
    }

    /// Tells the daemons how this registry is reached, and gives it a mirror address of its own on each.
    #[must_use]
    pub fn upstream(mut self, registry: &Registry) -> Self {
        let ca = registry.ca().map(|ca| format!("ca = \"{}\"\n", ca.display())).unwrap_or_default();
        let name = registry.name();
        let text = format!("\n[[mirror.upstreams]]\nhost = \"{name}\"\nplain_http = {}\n{ca}", registry.is_plain());
        self.upstreams.push((name.to_owned(), text));
        if !ca.is_empty() {
            self.hosts.push(format!("\n[source.hosts.\"{name}\"]\n{ca}"));
        }
        self
    }

    /// This registry plays docker.io: it has to answer at `registry-1.docker.io`, port 443, as [`Self::names`] says.
    #[must_use]
    pub fn docker_io(mut self, registry: &Registry) -> Self {
        let ca = registry.ca().map(|ca| format!("ca = \"{}\"\n", ca.display())).unwrap_or_default();
        self.upstreams.push(("docker.io".to_owned(), format!("\n[[mirror.upstreams]]\nhost = \"docker.io\"\n{ca}")));
        self.hosts.push(format!("\n[source.hosts.\"registry-1.docker.io\"]\n{ca}"));
        self
    }

    /// All programs look names up in this file instead of `/etc/hosts`. Needs root.
    #[must_use]
    pub fn names(mut self, etc_hosts: &Path) -> Self {
        self.names = Some(etc_hosts.to_owned());
        self
    }

    /// What requests that name no registry are for: docker's, which believes it asks docker.io.
    #[must_use]
    pub fn mirror_default(mut self, registry: &Registry) -> Self {
        self.mirror_default = Some(registry.url(""));
        self
    }

    /// Lets the daemons read HTTPS of this host with certificates of their own.
    #[must_use]
    pub fn intercept(mut self, host: &str) -> Self {
        self.intercept.push(format!("\"{host}\""));
        self
    }

    /// Starts everything, and returns when all answer.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start(self) -> Result<Cluster> {
        let (run, names) = (self.run, self.names.as_deref());
        // The supernodes' addresses stand in the other configurations, so ports are chosen before anything starts.
        let supernodes: Vec<(Host, Ports)> = self
            .supernodes
            .iter()
            .map(|spec| {
                let host = self.net.host(&spec.host);
                Ok((host.clone(), Ports::choose(&host, false)?))
            })
            .collect::<Result<_>>()?;
        let supernode_list: Vec<String> = supernodes
            .iter()
            .enumerate()
            .map(|(number, (_, ports))| {
                format!("{{ id = \"supernode-{number}\", endpoint = \"http://{}\" }}", ports.main)
            })
            .collect();
        let supernode_list = supernode_list.join(", ");
        let config_service = self.config_service.as_ref().map(|name| -> Result<Daemon> {
            let host = self.net.host(name);
            let ports = Ports::choose(&host, false)?;
            // Supernodes register themselves.
            let values = [("listen", ports.main.to_string())];
            let daemon = Daemon::start(&host, run, "config-service", ports, &values, "", names)?;
            daemon.ready(ports.main)
        });
        let config_service = config_service.transpose()?;
        let config_url =
            config_service.as_ref().map(|daemon| format!("\"http://{}\"", daemon.ports.main)).unwrap_or_default();
        // Without root, origins are on loopback, which nodes refuse by themselves.
        let allow_networks = if self.net.is_real() { "" } else { "\"127.0.0.0/8\"" }.to_owned();
        let named = if config_service.is_some() { String::new() } else { supernode_list };
        let started = self.supernodes.iter().zip(&supernodes).map(|(spec, (host, ports))| -> Result<Daemon> {
            let values = [
                ("grpc", ports.main.to_string()),
                ("http", ports.http.to_string()),
                ("peer", spec.peer_section(*ports)),
                ("config_services", config_url.clone()),
                ("supernodes", named.clone()),
                ("capacity", spec.capacity.clone().unwrap_or_else(|| CAPACITY.into())),
                ("allow_networks", allow_networks.clone()),
                ("hosts", self.hosts.concat()),
            ];
            Daemon::start(host, run, "supernode", *ports, &values, &spec.extra, names)?.ready(ports.main)
        });
        let supernodes: Vec<Daemon> = started.collect::<Result<_>>()?;
        let mirror_default = self.mirror_default.as_ref().map(|url| format!("default = \"{url}\"")).unwrap_or_default();
        let started = self.daemons.iter().map(|spec| -> Result<Daemon> {
            let host = self.net.host(&spec.host);
            let ports = Ports::choose(&host, true)?;
            let (mirrors, upstreams) = self.mirrors(&host)?;
            let values = [
                ("proxy", ports.main.to_string()),
                ("http", ports.http.to_string()),
                ("peer", spec.peer_section(ports)),
                ("config_services", config_url.clone()),
                ("supernodes", named.clone()),
                ("capacity", spec.capacity.clone().unwrap_or_else(|| CAPACITY.into())),
                ("upstreams", upstreams),
                ("mirror_default", mirror_default.clone()),
                ("intercept", self.intercept.join(", ")),
                ("allow_networks", allow_networks.clone()),
            ];
            let daemon = Daemon::start(&host, run, "dfdaemon", ports, &values, &spec.extra, names)?;
            let daemon = daemon.ready(ports.main)?;
            Ok(Daemon { mirrors, ..daemon })
        });
        let daemons = started.collect::<Result<_>>()?;
        Ok(Cluster { config_service, supernodes, daemons })
    }

    /// A mirror address on this host for each registry, and the configuration that says so.
    fn mirrors(&self, host: &Host) -> Result<(Vec<(String, SocketAddr)>, String)> {
        let mut text = String::new();
        let mirrors = self.upstreams.iter().map(|(name, upstream)| {
            let listen = private_addr(host, host.free_port()?);
            text.push_str(&format!("{upstream}listen = \"{listen}\"\n"));
            Ok((name.clone(), listen))
        });
        Ok((mirrors.collect::<Result<_>>()?, text))
    }
}

impl Cluster {
    /// Starts describing one.
    #[must_use]
    pub const fn builder<'a>(net: &'a Net, run: &'a Run) -> ClusterBuilder<'a> {
        ClusterBuilder {
            net,
            run,
            config_service: None,
            supernodes: Vec::new(),
            daemons: Vec::new(),
            upstreams: Vec::new(),
            mirror_default: None,
            hosts: Vec::new(),
            intercept: Vec::new(),
            names: None,
        }
    }

    /// The daemon on the host of this name, to look at.
    ///
    /// # Panics
    /// When there is none: a mistake in the test.
    #[must_use]
    pub fn daemon_on(&self, host: &str) -> &Daemon {
        match self.daemons.iter().find(|daemon| daemon.host().name() == host) {
            Some(daemon) => daemon,
            None => panic!("no daemon on host {host}"),
        }
    }

    /// Waits until every daemon has a session with a supernode.
    ///
    /// # Errors
    /// When one has none in time.
    pub fn wait_sessions(&self) -> Result<()> {
        let end = Instant::now() + START_DEADLINE;
        for daemon in &self.daemons {
            loop {
                let told = daemon.api("/api/skimmer/v1/host").and_then(|reply| reply.json());
                if told.is_ok_and(|host| host["supernode"] == true) {
                    break;
                }
                let name = daemon.host().name();
                ensure!(Instant::now() < end, "{name} has no session with a supernode within {START_DEADLINE:?}");
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// The daemon on the host of this name.
    ///
    /// # Panics
    /// When there is none: a mistake in the test.
    pub fn daemon(&mut self, host: &str) -> &mut Daemon {
        match self.daemons.iter_mut().find(|daemon| daemon.host().name() == host) {
            Some(daemon) => daemon,
            None => panic!("no daemon on host {host}"),
        }
    }
}

// === impl Ports ===

impl Ports {
    /// Free ports; a daemon's main and http ports are on its own loopback, as in production.
    fn choose(host: &Host, private: bool) -> Result<Self> {
        let private = |port| if private { private_addr(host, port) } else { host.addr(port) };
        Ok(Self {
            main: private(host.free_port()?),
            http: private(host.free_port()?),
            peer: host.addr(host.free_port()?),
        })
    }
}

/// On the host's own loopback, where it has one.
fn private_addr(host: &Host, port: u16) -> SocketAddr {
    if host.namespace_file().is_some() { SocketAddr::from(([127, 0, 0, 1], port)) } else { host.addr(port) }
}

// === impl Daemon ===

impl Daemon {
    fn start(
        host: &Host,
        run: &Run,
        program: &str,
        ports: Ports,
        values: &[(&str, String)],
        extra: &str,
        names: Option<&Path>,
    ) -> Result<Self> {
        let folder = run.data_dir(program)?;
        let template = match program {
            "config-service" => include_str!("../templates/config-service.toml"),
            "supernode" => include_str!("../templates/supernode.toml"),
            _ => include_str!("../templates/dfdaemon.toml"),
        };
        let own = [
            ("data", folder.join("data").display().to_string()),
            ("socket", folder.join("sock").display().to_string()),
        ];
        let config = join(&fill(template, &[values, &own].concat())?, extra);
        fs::write(folder.join("config.toml"), config)?;
        let path = bin_dir()?.join(program);
        let mut builder = host.program(path).arg("--config").arg(folder.join("config.toml")).env("RUST_BACKTRACE", "1");
        if let Some(names) = names {
            builder = builder.bind(names, "/etc/hosts");
        }
        let proc = builder.start(run, program)?;
        Ok(Self { proc, ports, folder, mirrors: Vec::new() })
    }

    fn ready(mut self, addr: SocketAddr) -> Result<Self> {
        self.proc.wait_port(addr, START_DEADLINE)?;
        Ok(self)
    }

    /// The host it runs on.
    #[must_use]
    pub const fn host(&self) -> &Host {
        self.proc.host()
    }

    /// Its process: kill, restart, memory.
    pub const fn process(&mut self) -> &mut Proc {
        &mut self.proc
    }

    /// Starts it again with the same configuration, and returns when it answers.
    ///
    /// # Errors
    /// When it does not.
    pub fn restart(&mut self) -> Result<()> {
        self.proc.restart()?;
        self.proc.wait_port(self.ports.main, START_DEADLINE)
    }

    /// Its main address: gRPC of a supernode, mirror and proxy of a daemon, the API of a config-service.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.ports.main
    }

    /// Where health and metrics are.
    #[must_use]
    pub const fn http(&self) -> SocketAddr {
        self.ports.http
    }

    /// Asks its HTTP side from its own host.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn api(&self, path: &str) -> Result<Reply> {
        Curl::new(self.host()).max_time(API_DEADLINE).get(&format!("http://{}{path}", self.ports.http))
    }

    /// A metric's value by its full name, summed over its labels; 0 when it was never counted.
    ///
    /// # Errors
    /// When no answer comes, or there is no such metric.
    pub fn metric(&self, name: &str) -> Result<f64> {
        self.api("/metrics")?.metric(name)
    }

    /// Where peers reach it.
    #[must_use]
    pub const fn peer(&self) -> SocketAddr {
        self.ports.peer
    }

    /// Where this daemon mirrors the registry of this name, for clients that do not say which one they want.
    ///
    /// # Panics
    /// When it was not told of the registry: a mistake in the test.
    #[must_use]
    pub fn mirror_of(&self, registry: &str) -> SocketAddr {
        match self.mirrors.iter().find(|(name, _)| name == registry) {
            Some((_, addr)) => *addr,
            None => panic!("{registry} is not among the daemon's upstreams"),
        }
    }

    /// The authority whose certificates it shows to clients whose HTTPS it reads.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.folder.join("data.ca.crt")
    }

    /// The socket dfget uses.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.folder.join("sock")
    }

    /// Its configuration, to be changed before a restart.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.folder.join("config.toml")
    }

    /// Its store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// Its log so far.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn log(&self) -> Result<String> {
        self.proc.log()
    }

    /// A dfget that uses this daemon.
    ///
    /// # Errors
    /// When our programs are not built.
    pub fn dfget(&self, url: &str, output: &Path) -> Result<ProcBuilder> {
        let dfget = self.host().program(bin_dir()?.join("dfget")).arg("--endpoint").arg(self.socket());
        Ok(dfget.arg(url).arg("-O").arg(output))
    }
}

/// Fills a template; every value must have a place and every place a value.
fn fill(template: &str, values: &[(&str, String)]) -> Result<String> {
    let mut text = template.to_owned();
    for (name, value) in values {
        text = text.replace(&format!("{{{{{name}}}}}"), value);
    }
    let left = text.lines().find(|line| !line.starts_with('#') && line.contains("{{"));
    ensure!(left.is_none(), "template has a place without a value: {}", left.unwrap_or_default());
    Ok(text)
}

/// Joins two TOML texts of one-line values; where both have a key, the second one's value counts.
fn join(template: &str, extra: &str) -> String {
    let is_section = |line: &str| line.starts_with('[') && !line.starts_with("[[");
    let key = |line: &str| line.split_once('=').map(|(key, _)| key.trim().to_owned());
    let mut lines: Vec<String> = template.lines().map(ToOwned::to_owned).collect();
    // Where the section that is being read begins and ends in `lines`; `None` = at their end.
    let mut place: Option<(usize, usize)> = None;
    for line in extra.lines() {
        if line.starts_with('[') {
            let begin = lines.iter().position(|have| is_section(line) && have.trim() == line.trim());
            place = begin.map(|begin| {
                let rest = lines[begin + 1..].iter().position(|have| have.starts_with('['));
                (begin, rest.map_or(lines.len(), |rest| begin + 1 + rest))
            });
            if place.is_none() {
                lines.push(line.to_owned());
            }
            continue;
        }
        let Some((begin, end)) = place else {
            lines.push(line.to_owned());
            continue;
        };
        match (begin + 1..end).find(|at| key(line).is_some() && key(&lines[*at]) == key(line)) {
            Some(at) => line.clone_into(&mut lines[at]),
            None => {
                lines.insert(begin + 1, line.to_owned());
                place = Some((begin, end + 1));
            }
        }
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::join;

    #[test]
    fn sections_are_joined() {
        let joined = join("[a]\nx = 1\n\n[b]\ny = 2\n", "\n[b]\ny = 3\nz = 4\n[c]\nw = 5\n[[d]]\nx = 6\n");
        assert_eq!(joined, "[a]\nx = 1\n\n[b]\nz = 4\ny = 3\n\n[c]\nw = 5\n[[d]]\nx = 6\n");
    }
}
