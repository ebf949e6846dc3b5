//! Which of a host's addresses to tell, and which to try first.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Addresses a host tells of itself at most: a hello has to stay short.
const ADVERTISED_MAX: usize = 8;
/// Addresses of another host that are looked at, at most.
pub(super) const DIALLED_MAX: usize = 16;
/// How old the list of interfaces may become: a network that comes up is used this soon.
const INTERFACES_MAX_AGE: Duration = Duration::from_secs(30);
/// Interfaces whose addresses lead to containers on this very host, and mostly exist on every other host as well.
const INNER_INTERFACES: &[&str] =
    &["docker", "br-", "veth", "virbr", "cni", "flannel", "podman", "kube-", "lxc", "cali"];

/// An address of this host and the network it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    ip: IpAddr,
    prefix_bits: u8,
    /// Leads to containers on this host.
    inner: bool,
}

/// The addresses of this host, listed anew now and then.
#[derive(Debug)]
pub(super) struct Interfaces(Mutex<(Instant, Vec<Interface>)>);

impl Interfaces {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self(Mutex::new((Instant::now(), list()?))))
    }

    /// What is there now, or was a short while ago.
    pub(super) fn current(&self) -> Vec<Interface> {
        let mut held = self.0.lock();
        if held.0.elapsed() > INTERFACES_MAX_AGE {
            held.0 = Instant::now();
            match list() {
                Ok(interfaces) => held.1 = interfaces,
                Err(error) => tracing::warn!(%error, "cannot list the network interfaces, using the last list"),
            }
        }
        held.1.clone()
    }
}

fn list() -> io::Result<Vec<Interface>> {
    let interfaces = if_addrs::get_if_addrs()?;
    Ok(interfaces
        .into_iter()
        .map(|interface| Interface {
            ip: interface.ip(),
            prefix_bits: match &interface.addr {
                if_addrs::IfAddr::V4(v4) => v4.prefixlen,
                if_addrs::IfAddr::V6(v6) => v6.prefixlen,
            },
            inner: INNER_INTERFACES.iter().any(|prefix| interface.name.starts_with(prefix)),
        })
        .collect())
}

/// What to tell others, best first: what was configured, else the addresses listened on, where the unspecified
/// address stands for those of the interfaces.
pub(super) fn advertised(configured: &[SocketAddr], bound: &[Bound], interfaces: &[Interface]) -> Vec<SocketAddr> {
    let mut told = Vec::new();
    if configured.is_empty() {
        for bound in bound {
            let address = bound.address;
            if !address.ip().is_unspecified() {
                told.push(address);
                continue;
            }
            let mut ips: Vec<&Interface> = interfaces
                .iter()
                .filter(|i| {
                    !is_link_local(i.ip)
                        && (i.ip.is_ipv4() == address.is_ipv4() || (i.ip.is_ipv4() && bound.dual_stack))
                })
                .collect();
            // Loopback only helps where there is nothing else.
            if ips.iter().any(|i| !i.ip.is_loopback()) {
                ips.retain(|i| !i.ip.is_loopback());
            }
            ips.sort_by_key(|i| (i.inner, i.ip.is_ipv6()));
            told.extend(ips.iter().map(|i| SocketAddr::new(i.ip, address.port())));
        }
    } else {
        // A port of 0 stands for the one that is listened on.
        let port = bound.first().map_or(0, |b| b.address.port());
        told.extend(configured.iter().map(|a| if a.port() == 0 { SocketAddr::new(a.ip(), port) } else { *a }));
    }
    let mut seen = Vec::new();
    told.retain(|address| {
        !seen.contains(address) && {
            seen.push(*address);
            true
        }
    });
    told.truncate(ADVERTISED_MAX);
    told
}

/// An address that is listened on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound {
    pub(super) address: SocketAddr,
    /// An IPv6 socket that IPv4 reaches too.
    pub(super) dual_stack: bool,
}

/// The addresses another host told, in the order to try them: first those in a network of ours,
/// then those of a family we have; loopback only where it is all there is. What cannot be dialled is left out.
pub(super) fn dial_order(told: &[String], interfaces: &[Interface]) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for address in told.iter().take(DIALLED_MAX).filter_map(|text| text.parse::<SocketAddr>().ok()) {
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let usable = address.port() != 0 && !address.ip().is_unspecified() && !address.ip().is_multicast();
        if usable && !is_link_local(address.ip()) && !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    addresses.sort_by_key(|address| {
        let ip = address.ip();
        let near = interfaces.iter().any(|i| !i.inner && shares_network(i, ip));
        let family =
            interfaces.iter().any(|i| i.ip.is_ipv4() == ip.is_ipv4() && !i.ip.is_loopback() && !is_link_local(i.ip));
        (ip.is_loopback(), !near, !family)
    });
    addresses
}

fn shares_network(interface: &Interface, ip: IpAddr) -> bool {
    match (interface.ip, ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(interface.prefix_bits)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.to_bits() ^ b.to_bits()).leading_zeros() >= u32::from(interface.prefix_bits)
        }
        _ => false,
    }
}

/// Useless without the interface, which only the owner of the address knows.
const fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(text: &str, inner: bool) -> Interface {
        let (ip, bits) = text.split_once('/').expect("ip/bits");
        Interface { ip: ip.parse().expect("ip"), prefix_bits: bits.parse().expect("bits"), inner }
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|t| t.parse().expect("address")).collect()
    }

    fn bound(text: &str, dual_stack: bool) -> Bound {
        Bound { address: text.parse().expect("address"), dual_stack }
    }

    fn host() -> Vec<Interface> {
        vec![
            interface("127.0.0.1/8", false),
            interface("172.17.0.1/16", true),
            interface("10.1.2.3/24", false),
            interface("fe80::1/64", false),
            interface("2001:db8::3/64", false),
            interface("::1/128", false),
        ]
    }

    #[test]
    fn transport_tells_the_interfaces_for_the_unspecified_address() {
        let told = |bounds: &[Bound]| advertised(&[], bounds, &host());
        assert_eq!(told(&[bound("0.0.0.0:7", false)]), addresses(&["10.1.2.3:7", "172.17.0.1:7"]));
        assert_eq!(told(&[bound("[::]:7", false)]), addresses(&["[2001:db8::3]:7"]));
        assert_eq!(told(&[bound("[::]:7", true)]), addresses(&["10.1.2.3:7", "[2001:db8::3]:7", "172.17.0.1:7"]));
        let several = told(&[bound("10.1.2.3:7", false), bound("127.0.0.1:8", false), bound("10.1.2.3:7", false)]);
        assert_eq!(several, addresses(&["10.1.2.3:7", "127.0.0.1:8"]));
        let alone = [interface("127.0.0.1/8", false)];
        assert_eq!(advertised(&[], &[bound("0.0.0.0:7", false)], &alone), addresses(&["127.0.0.1:7"]));
    }

    #[test]
    fn transport_tells_what_was_configured_instead() {
        let configured = addresses(&["203.0.113.9:0", "203.0.113.9:99"]);
        let told = advertised(&configured, &[bound("0.0.0.0:7", false)], &host());
        assert_eq!(told, addresses(&["203.0.113.9:7", "203.0.113.9:99"]));
    }

    #[test]
    fn transport_dials_the_nearest_first() {
        let told: Vec<String> = [
            "127.0.0.1:1",
            "192.0.2.1:1",
            "172.17.0.1:1",
            "[2001:db8::9]:1",
            "10.1.2.9:1",
            "[fe80::2]:1",
            "nonsense",
            "0.0.0.0:1",
            "10.1.2.9:0",
            "10.1.2.9:1",
        ]
        .map(Into::into)
        .into();
        let order = dial_order(&told, &host());
        let expected = ["[2001:db8::9]:1", "10.1.2.9:1", "192.0.2.1:1", "172.17.0.1:1", "127.0.0.1:1"];
        assert_eq!(order, addresses(&expected));
        let v4_only = [interface("198.51.100.1/24", false)];
        let order = dial_order(&["[2001:db8::9]:1".into(), "192.0.2.1:1".into()], &v4_only);
        assert_eq!(order, addresses(&["192.0.2.1:1", "[2001:db8::9]:1"]));
    }
}
