//! Who is counted as one client.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

/// An address, without the last 64 bits where it is of IPv6: whoever has one of those has all of them.
///
/// Clients behind one address are one client. Behind a trusted proxy it is the address that the proxy names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client(IpAddr);

impl Client {
    /// Who is at this address, which is that of [`service::http::client_address`].
    pub(crate) fn at(address: IpAddr) -> Self {
        Self(match address {
            IpAddr::V4(_) => address,
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        })
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_one_client() {
        let client = |address: &str| Client::at(address.parse().unwrap()).to_string();
        assert_eq!(client("192.0.2.1"), "192.0.2.1");
        assert_eq!(client("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
    }
}
