//! Our own programs on hosts: a config-service, supernodes, daemons.
//!
//! Their configuration is made from one template file each (`templates/`), so that a renamed field is one line.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{Host, Net, Proc, ProcBuilder, Registry, Run};

/// A store is opened and a port bound; on a busy machine a few seconds.
const START_DEADLINE: Duration = Duration::from_secs(30);
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
    /// TOML appended to what the template gives; it may open sections of its own only.
    pub extra: String,
    /// Bytes it may store, as in `1GiB`.
    pub capacity: Option<String>,
}

/// Describes a [`Cluster`].
#[derive(Debug)]
pub struct ClusterBuilder<'a> {
    net: &'a Net,
    run: &'a Run,
    config_service: Option<String>,
    supernodes: Vec<DaemonSpec>,
    daemons: Vec<DaemonSpec>,
    upstreams: Vec<String>,
    hosts: Vec<String>,
    intercept: Vec<String>,
}

/// A node of ours: its process, and where it answers.
#[derive(Debug)]
pub struct Daemon {
    proc: Proc,
    ports: Ports,
    /// Its folder: configuration, store, socket.
    folder: PathBuf,
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

    /// Tells the daemons how this registry is reached.
    #[must_use]
    pub fn upstream(mut self, registry: &Registry) -> Self {
        let ca = registry.ca().map(|ca| format!("ca = \"{}\"\n", ca.display())).unwrap_or_default();
        let name = registry.name();
        self.upstreams
            .push(format!("\n[[mirror.upstreams]]\nhost = \"{name}\"\nplain_http = {}\n{ca}", registry.is_plain()));
        if !ca.is_empty() {
            self.hosts.push(format!("\n[source.hosts.\"{name}\"]\n{ca}"));
        }
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
        let run = self.run;
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
            let daemon = Daemon::start(&host, run, "config-service", ports, &values, "")?;
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
                ("peer", ports.peer.to_string()),
                ("config_services", config_url.clone()),
                ("supernodes", named.clone()),
                ("capacity", spec.capacity.clone().unwrap_or_else(|| CAPACITY.into())),
                ("allow_networks", allow_networks.clone()),
                ("hosts", self.hosts.concat()),
            ];
            Daemon::start(host, run, "supernode", *ports, &values, &spec.extra)?.ready(ports.main)
        });
        let supernodes: Vec<Daemon> = started.collect::<Result<_>>()?;
        let started = self.daemons.iter().map(|spec| -> Result<Daemon> {
            let host = self.net.host(&spec.host);
            let ports = Ports::choose(&host, true)?;
            let values = [
                ("proxy", ports.main.to_string()),
                ("http", ports.http.to_string()),
                ("peer", ports.peer.to_string()),
                ("config_services", config_url.clone()),
                ("supernodes", named.clone()),
                ("capacity", spec.capacity.clone().unwrap_or_else(|| CAPACITY.into())),
                ("upstreams", self.upstreams.concat()),
                ("intercept", self.intercept.join(", ")),
                ("allow_networks", allow_networks.clone()),
            ];
            Daemon::start(&host, run, "dfdaemon", ports, &values, &spec.extra)?.ready(ports.main)
        });
        let daemons = started.collect::<Result<_>>()?;
        Ok(Cluster { config_service, supernodes, daemons })
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
            hosts: Vec::new(),
            intercept: Vec::new(),
        }
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
        let mut taken = Vec::new();
        while taken.len() < 3 {
            // A port that was free a moment ago may be handed out twice.
            let port = host.free_port()?;
            if !taken.contains(&port) {
                taken.push(port);
            }
        }
        let private = |port| {
            if private && host.namespace_file().is_some() {
                SocketAddr::from(([127, 0, 0, 1], port))
            } else {
                host.addr(port)
            }
        };
        Ok(Self { main: private(taken[0]), http: private(taken[1]), peer: host.addr(taken[2]) })
    }
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
        let config = fill(template, &[values, &own].concat())? + extra;
        fs::write(folder.join("config.toml"), config)?;
        let path = bin_dir()?.join(program);
        let proc = host
            .program(path)
            .arg("--config")
            .arg(folder.join("config.toml"))
            .env("RUST_BACKTRACE", "1")
            .start(run, program)?;
        Ok(Self { proc, ports, folder })
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

    /// Where peers reach it.
    #[must_use]
    pub const fn peer(&self) -> SocketAddr {
        self.ports.peer
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
