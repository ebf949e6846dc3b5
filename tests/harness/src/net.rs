//! Machines made of network namespaces, joined by a switch, with shaped links.

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result, bail, ensure};

use crate::ports;

/// Namespaces of all runs start with it, then the run's process id: what the next run cleans up by.
const PREFIX: &str = "skimmer-";
/// A token bucket of this size lets one full-size segmentation offload burst through and no more.
const BURST: &str = "128kb";
/// How long a packet may wait at a shaped link before it is dropped: a shallow buffer of a real switch port.
const LATENCY: &str = "50ms";
/// Hosts per network; the address plan has a /24 per network card.
const HOSTS_MAX: usize = 200;

/// How one host is connected.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkSpec {
    /// From the host into the network, bits per second; `None` = unshaped.
    pub up_bits_per_s: Option<u64>,
    /// From the network to the host, bits per second; `None` = unshaped.
    pub down_bits_per_s: Option<u64>,
}

impl LinkSpec {
    /// The same rate both ways.
    #[must_use]
    pub const fn both(bits_per_s: u64) -> Self {
        Self { up_bits_per_s: Some(bits_per_s), down_bits_per_s: Some(bits_per_s) }
    }
}

/// What went over a host's network card since it was made, as the kernel counts it, headers included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Received by the host, bytes.
    pub received_bytes: u64,
    /// Sent by the host, bytes.
    pub sent_bytes: u64,
}

impl Counters {
    /// What was counted since `earlier`.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self {
            received_bytes: self.received_bytes.saturating_sub(earlier.received_bytes),
            sent_bytes: self.sent_bytes.saturating_sub(earlier.sent_bytes),
        }
    }
}

/// A network of hosts. Dropping it removes the namespaces; hosts must not be used afterwards.
#[derive(Debug)]
pub struct Net {
    /// Of this network's namespaces; `None` on loopback.
    name: Option<String>,
    hosts: Vec<Host>,
}

/// A machine: a network namespace with `eth0` and `lo`, or, without root, an address of the loopback network.
#[derive(Debug, Clone)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    namespace: Option<Namespace>,
    v4: Ipv4Addr,
    v6: Ipv6Addr,
}

#[derive(Debug)]
struct Namespace {
    name: String,
    switch: String,
    /// The host's number, which its interfaces and addresses are made of.
    number: usize,
    file: File,
}

// === impl Net ===

impl Net {
    /// Hosts with these names and links, on one switch. Every host reaches every other by IPv4 and IPv6, and nothing else.
    ///
    /// # Errors
    /// Without root, and when the kernel or iproute2 refuses.
    pub fn new(hosts: &[(&str, LinkSpec)]) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        ensure!(crate::is_root(), "network namespaces need root");
        ensure!(hosts.len() <= HOSTS_MAX, "at most {HOSTS_MAX} hosts, not {}", hosts.len());
        remove_dead_runs();
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        // From here on dropping it cleans up, whatever fails.
        let mut net = Self { name: Some(name.clone()), hosts: Vec::new() };
        let switch = format!("{name}-switch");
        ip(&["netns", "add", &switch])?;
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
        ip(&["-n", &switch, "link", "set", "br0", "up"])?;
        for (index, (host, link)) in hosts.iter().enumerate() {
            let host = Host::make(&name, &switch, index + 1, host)?;
            host.add_card(0)?;
            net.hosts.push(host.clone());
            host.set_link(*link)?;
        }
        Ok(net)
    }

    /// Hosts that are addresses of the loopback network: for machines without root. Links are not shaped, cannot be
    /// cut and are not counted.
    #[must_use]
    pub fn loopback(hosts: &[&str]) -> Self {
        let hosts = hosts.iter().enumerate().map(|(index, name)| {
            let number = u8::try_from(index + 1).unwrap_or(u8::MAX);
            let (v4, v6) = (Ipv4Addr::new(127, 0, 77, number), Ipv6Addr::LOCALHOST);
            Host { inner: Arc::new(Inner { name: (*name).to_owned(), namespace: None, v4, v6 }) }
        });
        Self { name: None, hosts: hosts.collect() }
    }

    /// Namespaces with root, loopback without; says on stderr when it is the latter.
    ///
    /// # Errors
    /// As [`Net::new`].
    pub fn new_or_loopback(hosts: &[(&str, LinkSpec)]) -> Result<Self> {
        if crate::is_root() {
            return Self::new(hosts);
        }
        eprintln!("no root: hosts are loopback addresses, links are not shaped");
        Ok(Self::loopback(&hosts.iter().map(|(name, _)| *name).collect::<Vec<_>>()))
    }

    /// The TCP congestion control of all hosts; `None` on loopback, where it is the machine's.
    #[must_use]
    pub fn congestion_control(&self) -> Option<&'static str> {
        self.name.as_ref().and_then(|_| congestion_control().ok())
    }

    /// Whether the hosts are namespaces with links of their own.
    #[must_use]
    pub const fn is_real(&self) -> bool {
        self.name.is_some()
    }

    /// The hosts, in the order given.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The host of this name.
    ///
    /// # Panics
    /// When there is none: a mistake in the test.
    #[must_use]
    pub fn host(&self, name: &str) -> Host {
        match self.hosts.iter().find(|host| host.name() == name) {
            Some(host) => host.clone(),
            None => panic!("the network has no host {name}"),
        }
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            remove_namespaces(|namespace| {
                namespace.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('-'))
            });
        }
    }
}

// === impl Host ===

impl Host {
    fn make(net: &str, switch: &str, number: usize, name: &str) -> Result<Self> {
        let namespace = format!("{net}-{name}");
        ip(&["netns", "add", &namespace])?;
        ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
        let file = File::open(Path::new("/run/netns").join(&namespace))?;
        let last = u8::try_from(number).context("host number")?;
        let inner = Inner {
            name: name.to_owned(),
            v4: Ipv4Addr::new(10, 77, 0, last),
            v6: Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, u16::from(last)),
            namespace: Some(Namespace { name: namespace, switch: switch.to_owned(), number, file }),
        };
        let host = Self { inner: Arc::new(inner) };
        host.sysctl("net/ipv4/tcp_congestion_control", congestion_control()?)?;
        Ok(host)
    }

    /// Adds network card `eth{card}` (0 to 9) with addresses in `10.77.{card}.0/24` and `fd00:77:{card}::/64`.
    ///
    /// # Errors
    /// On loopback, and when iproute2 refuses.
    pub fn add_card(&self, card: u8) -> Result<IpAddr> {
        let Namespace { name, switch, number, .. } = self.namespace()?;
        let (port, device) = (port(*number, card), format!("eth{card}"));
        ip(&["-n", switch, "link", "add", &port, "type", "veth", "peer", "name", &device, "netns", name])?;
        ip(&["-n", switch, "link", "set", &port, "master", "br0", "up"])?;
        let v4 = Ipv4Addr::new(10, 77, card, self.inner.v4.octets()[3]);
        ip(&["-n", name, "addr", "add", &format!("{v4}/24"), "dev", &device])?;
        let v6 = format!("fd00:77:{card}::{number:x}/64");
        // The address is usable at once: nobody else is on this network.
        ip(&["-n", name, "addr", "add", &v6, "dev", &device, "nodad"])?;
        ip(&["-n", name, "link", "set", &device, "up"])?;
        Ok(v4.into())
    }

    /// This machine itself, as its programs see it at 127.0.0.1: no network of its own, and no root needed.
    #[must_use]
    pub fn local() -> Self {
        let (v4, v6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
        Self { inner: Arc::new(Inner { name: "local".to_owned(), namespace: None, v4, v6 }) }
    }

    /// The name given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its IPv4 address.
    #[must_use]
    pub fn ip(&self) -> IpAddr {
        self.inner.v4.into()
    }

    /// Its IPv6 address; the same for all hosts on loopback.
    #[must_use]
    pub fn ip6(&self) -> IpAddr {
        self.inner.v6.into()
    }

    /// The IPv4 address with this port.
    #[must_use]
    pub fn addr(&self, port: u16) -> SocketAddr {
        (self.ip(), port).into()
    }

    /// Where processes enter it; `None` on loopback.
    #[must_use]
    pub fn namespace_file(&self) -> Option<&File> {
        self.inner.namespace.as_ref().map(|namespace| &namespace.file)
    }

    fn namespace(&self) -> Result<&Namespace> {
        self.inner.namespace.as_ref().context("host has no network of its own; this needs root")
    }

    /// Runs `work` on a new thread inside the host's network; sockets made there stay there.
    ///
    /// # Errors
    /// When the network cannot be entered, or `work` fails.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter()?;
                work()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the host's network, for good.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enter(&self) -> Result<()> {
        use rustix::{
            fd::AsFd,
            thread::{LinkNameSpaceType, move_into_link_name_space},
        };
        match self.namespace_file() {
            None => Ok(()),
            Some(file) => move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .with_context(|| format!("cannot enter the network of {}", self.name())),
        }
    }

    /// A TCP port nobody listens on; each call gives another one.
    ///
    /// # Errors
    /// When there is none.
    pub fn free_port(&self) -> Result<u16> {
        let ip = self.ip();
        self.inside(move || ports::free(ip))
    }

    /// Sets a kernel parameter of the host's network, as in `net/ipv4/tcp_rmem`.
    ///
    /// # Errors
    /// On loopback (it would be the machine's own), and when the kernel refuses.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.namespace()?;
        let path = PathBuf::from("/proc/sys").join(name);
        self.inside(|| {
            std::fs::write(&path, value).with_context(|| format!("cannot set {} to {value}", path.display()))
        })
    }

    /// Shapes `eth0`; may be called again while traffic flows.
    ///
    /// # Errors
    /// On loopback, and when `tc` refuses.
    pub fn set_link(&self, link: LinkSpec) -> Result<()> {
        let Namespace { name, switch, number, .. } = self.namespace()?;
        shape(name, "eth0", link.up_bits_per_s)?;
        shape(switch, &port(*number, 0), link.down_bits_per_s)
    }

    /// Pulls the plug of `eth0`: packets are lost both ways until [`Host::restore`].
    ///
    /// # Errors
    /// On loopback, and when iproute2 refuses.
    pub fn cut(&self) -> Result<()> {
        let Namespace { switch, number, .. } = self.namespace()?;
        ip(&["-n", switch, "link", "set", &port(*number, 0), "down"]).map(drop)
    }

    /// Puts the plug back.
    ///
    /// # Errors
    /// On loopback, and when iproute2 refuses.
    pub fn restore(&self) -> Result<()> {
        let Namespace { switch, number, .. } = self.namespace()?;
        ip(&["-n", switch, "link", "set", &port(*number, 0), "up"]).map(drop)
    }

    /// What went over `eth0` so far.
    ///
    /// # Errors
    /// On loopback, and when iproute2's answer is not understood.
    pub fn counters(&self) -> Result<Counters> {
        self.counters_of(0)
    }

    /// What went over network card `eth{card}` so far.
    ///
    /// # Errors
    /// As [`Host::counters`], and when there is no such card.
    pub fn counters_of(&self, card: u8) -> Result<Counters> {
        let Namespace { name, .. } = self.namespace()?;
        let answer = ip(&["-n", name, "-s", "-j", "link", "show", &format!("eth{card}")])?;
        let answer: serde_json::Value = serde_json::from_slice(&answer).context("cannot read what ip printed")?;
        let bytes = |way: &str| answer[0]["stats64"][way]["bytes"].as_u64().context("ip printed no byte counters");
        Ok(Counters { received_bytes: bytes("rx")?, sent_bytes: bytes("tx")? })
    }
}

// === helpers ===

/// What all hosts use: cubic, as most machines do, since BBR paces by its own estimate and would hide what the shaping
/// does. Some kernels let a namespace have only what `tcp_allowed_congestion_control` lists; changing that is the
/// machine owner's business, and then it is reno, which every kernel allows and which on short links does the same.
fn congestion_control() -> Result<&'static str> {
    static CHOSEN: LazyLock<Result<&'static str, String>> = LazyLock::new(|| {
        let path = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
        let allowed = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
        if allowed.split_whitespace().any(|name| name == "cubic") {
            return Ok("cubic");
        }
        eprintln!("this machine does not allow cubic in network namespaces ({path}); hosts use reno");
        Ok("reno")
    });
    CHOSEN.clone().map_err(anyhow::Error::msg)
}

/// The switch's side of a host's network card.
fn port(number: usize, card: u8) -> String {
    format!("p{number}c{card}")
}

fn shape(namespace: &str, device: &str, bits_per_s: Option<u64>) -> Result<()> {
    match bits_per_s {
        Some(rate) => {
            let rate = format!("{rate}bit");
            let shaper = ["root", "tbf", "rate", &rate, "burst", BURST, "latency", LATENCY];
            tool("tc", &[&["-n", namespace, "qdisc", "replace", "dev", device], &shaper[..]].concat()).map(drop)
        }
        None => {
            // There may be nothing to remove.
            let _ = tool("tc", &["-n", namespace, "qdisc", "del", "dev", device, "root"]);
            Ok(())
        }
    }
}

fn ip(arguments: &[&str]) -> Result<Vec<u8>> {
    tool("ip", arguments)
}

fn tool(name: &str, arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(name).args(arguments).output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}

/// Removes namespaces whose run no longer lives.
fn remove_dead_runs() {
    remove_namespaces(|namespace| {
        let pid = namespace.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        pid.is_some_and(|pid| matches!(Path::new("/proc").join(pid.to_string()).try_exists(), Ok(false)))
    });
}

fn remove_namespaces(condemned: impl Fn(&str) -> bool) {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if let Some(name) = name.to_str().filter(|name| condemned(name)) {
            // Another run may be removing it as well.
            let _ = ip(&["netns", "del", name]);
        }
    }
}
