//! Which addresses an origin may have: what keeps a user's URL from reaching a service that was never meant for it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Which addresses may be connected to for a request.
///
/// It is asked about the very address that is dialled, after name resolution and again after every redirect, so a
/// name that resolves differently a moment later gains nothing. Connections are pooled per guard: a strict request
/// never rides on a connection that a permissive one opened.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Guard {
    /// 127.0.0.0/8, ::1, and the unspecified addresses, which the kernel takes for loopback.
    pub allow_loopback: bool,
    /// 169.254.0.0/16 and fe80::/10.
    pub allow_link_local: bool,
    /// Where clouds hand out credentials to whoever asks, such as 169.254.169.254 and fd00:ec2::254.
    pub allow_metadata: bool,
    /// RFC 1918, RFC 6598 and fc00::/7: where the origins of a company usually are.
    pub allow_private: bool,
    /// Networks that are allowed whatever class their addresses are of.
    pub allow_cidrs: Vec<IpNet>,
    /// Networks that are refused, before anything else is looked at.
    pub deny_cidrs: Vec<IpNet>,
}

/// Why an address was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressClass {
    /// Loopback or unspecified.
    Loopback,
    /// Link-local.
    LinkLocal,
    /// A cloud's metadata service.
    Metadata,
    /// A private network.
    Private,
    /// Multicast, broadcast and what is reserved for nobody.
    Reserved,
    /// In one of [`Guard::deny_cidrs`].
    Denied,
}

/// Metadata services whose addresses are outside the link-local range or deserve more than its refusal:
/// AWS, GCP and Azure; Alibaba; Azure's wire server; Oracle's older one.
const METADATA_V4: [Ipv4Addr; 5] = [
    Ipv4Addr::new(169, 254, 169, 254),
    Ipv4Addr::new(169, 254, 170, 2),
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];
/// AWS (IMDS and ECS) and GCP over IPv6.
const METADATA_V6: [Ipv6Addr; 3] = [
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254),
    Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23),
    Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254),
];

// === impl Guard ===

impl Guard {
    /// For a node that fetches what others ask for: public and private addresses only.
    #[must_use]
    pub const fn strict() -> Self {
        Self {
            allow_loopback: false,
            allow_link_local: false,
            allow_metadata: false,
            allow_private: true,
            allow_cidrs: Vec::new(),
            deny_cidrs: Vec::new(),
        }
    }

    /// For a node that fetches what its own user asks for: whatever that user could reach anyway.
    #[must_use]
    pub const fn permissive() -> Self {
        Self {
            allow_loopback: true,
            allow_link_local: true,
            allow_metadata: true,
            allow_private: true,
            allow_cidrs: Vec::new(),
            deny_cidrs: Vec::new(),
        }
    }

    /// Whether this address may be connected to.
    ///
    /// An IPv6 address that carries an IPv4 one (mapped, compatible, NAT64, 6to4) must pass as both.
    ///
    /// # Errors
    /// The class for which it is refused.
    pub fn check(&self, address: IpAddr) -> Result<(), AddressClass> {
        match address {
            IpAddr::V4(_) => self.check_one(address),
            IpAddr::V6(v6) => {
                if let Some(v4) = v6.to_ipv4_mapped() {
                    return self.check_one(IpAddr::V4(v4));
                }
                self.check_one(address)?;
                embedded_v4(v6).map_or(Ok(()), |v4| self.check_one(IpAddr::V4(v4)))
            }
        }
    }

    fn check_one(&self, address: IpAddr) -> Result<(), AddressClass> {
        if self.deny_cidrs.iter().any(|net| net.contains(&address)) {
            return Err(AddressClass::Denied);
        }
        if self.allow_cidrs.iter().any(|net| net.contains(&address)) {
            return Ok(());
        }
        let Some(class) = class_of(address) else { return Ok(()) };
        let allowed = match class {
            AddressClass::Loopback => self.allow_loopback,
            AddressClass::LinkLocal => self.allow_link_local,
            AddressClass::Metadata => self.allow_metadata,
            AddressClass::Private => self.allow_private,
            AddressClass::Reserved | AddressClass::Denied => false,
        };
        if allowed { Ok(()) } else { Err(class) }
    }
}

impl Default for Guard {
    fn default() -> Self {
        Self::strict()
    }
}

/// The special class of an address; `None` for an ordinary public one.
fn class_of(address: IpAddr) -> Option<AddressClass> {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            match () {
                () if METADATA_V4.contains(&v4) => Some(AddressClass::Metadata),
                // 0.0.0.0/8 is "this network"; Linux connects 0.0.0.0 to loopback.
                () if v4.is_loopback() || a == 0 => Some(AddressClass::Loopback),
                () if v4.is_link_local() => Some(AddressClass::LinkLocal),
                () if v4.is_private() || (a == 100 && b & 0xc0 == 64) => Some(AddressClass::Private),
                () if a >= 224 => Some(AddressClass::Reserved),
                () => None,
            }
        }
        IpAddr::V6(v6) => {
            let first = v6.segments()[0];
            match () {
                () if METADATA_V6.contains(&v6) => Some(AddressClass::Metadata),
                () if v6.is_loopback() || v6.is_unspecified() => Some(AddressClass::Loopback),
                () if v6.is_unicast_link_local() => Some(AddressClass::LinkLocal),
                // fec0::/10 is the site-local range of old, still routed here and there.
                () if v6.is_unique_local() || first & 0xffc0 == 0xfec0 => Some(AddressClass::Private),
                () if v6.is_multicast() => Some(AddressClass::Reserved),
                () => None,
            }
        }
    }
}

/// The IPv4 address that a translator behind this IPv6 one would connect to.
fn embedded_v4(v6: Ipv6Addr) -> Option<Ipv4Addr> {
    let s = v6.segments();
    let of = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    };
    match s {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(of(high, low)), // NAT64, RFC 6052
        [0x2002, high, low, ..] => Some(of(high, low)),               // 6to4, RFC 3056
        [0, 0, 0, 0, 0, 0, 0, 0 | 1] => None,                         // unspecified and loopback have their own class
        [0, 0, 0, 0, 0, 0, high, low] => Some(of(high, low)),         // IPv4-compatible, RFC 4291
        _ => None,
    }
}

// === impl AddressClass ===

impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Loopback => "a loopback address",
            Self::LinkLocal => "a link-local address",
            Self::Metadata => "a cloud metadata address",
            Self::Private => "a private address",
            Self::Reserved => "a reserved address",
            Self::Denied => "an address in a denied network",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(guard: &Guard, address: &str) -> Option<AddressClass> {
        guard.check(address.parse().expect("an address")).err()
    }

    #[test]
    fn the_strict_guard_knows_every_spelling() {
        use AddressClass::*;
        let guard = Guard::strict();
        for (address, expected) in [
            ("127.0.0.1", Loopback),
            ("127.255.0.9", Loopback),
            ("0.0.0.0", Loopback),
            ("0.1.2.3", Loopback),
            ("::1", Loopback),
            ("::", Loopback),
            ("::ffff:127.0.0.1", Loopback),
            ("::ffff:0.0.0.0", Loopback),
            ("::127.0.0.1", Loopback),
            ("64:ff9b::7f00:1", Loopback),
            ("2002:7f00:1::1", Loopback),
            ("169.254.1.1", LinkLocal),
            ("fe80::1", LinkLocal),
            ("febf::1", LinkLocal),
            ("::ffff:169.254.1.1", LinkLocal),
            ("169.254.169.254", Metadata),
            ("::ffff:169.254.169.254", Metadata),
            ("64:ff9b::a9fe:a9fe", Metadata),
            ("fd00:ec2::254", Metadata),
            ("100.100.100.200", Metadata),
            ("224.0.0.1", Reserved),
            ("255.255.255.255", Reserved),
            ("ff02::1", Reserved),
        ] {
            assert_eq!(class(&guard, address), Some(expected), "{address}");
        }
        for address in
            ["10.1.2.3", "192.168.0.1", "172.31.0.1", "100.64.0.1", "fd12::1", "93.184.216.34", "2606:2800::1"]
        {
            assert_eq!(class(&guard, address), None, "{address}");
        }
    }

    #[test]
    fn cidrs_override_classes_and_denial_wins() {
        let guard = Guard {
            allow_private: false,
            allow_cidrs: vec!["10.1.0.0/16".parse().unwrap(), "127.0.0.2/32".parse().unwrap()],
            deny_cidrs: vec!["10.1.9.0/24".parse().unwrap(), "8.8.8.0/24".parse().unwrap()],
            ..Guard::strict()
        };
        assert_eq!(class(&guard, "10.1.2.3"), None);
        assert_eq!(class(&guard, "::ffff:10.1.2.3"), None);
        assert_eq!(class(&guard, "127.0.0.2"), None);
        assert_eq!(class(&guard, "127.0.0.1"), Some(AddressClass::Loopback));
        assert_eq!(class(&guard, "10.2.0.1"), Some(AddressClass::Private));
        assert_eq!(class(&guard, "10.1.9.1"), Some(AddressClass::Denied));
        assert_eq!(class(&guard, "64:ff9b::808:808"), Some(AddressClass::Denied));
        assert_eq!(class(&Guard::permissive(), "169.254.169.254"), None);
    }
}
