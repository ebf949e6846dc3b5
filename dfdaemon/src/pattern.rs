//! Names of hosts as operators write them: `name`, `*.domain`, `*`, each with `:port` if wanted. Pure.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Which hosts, and maybe which port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPattern {
    host: Host,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Any,
    /// With its leading dot.
    Under(String),
    Exactly(String),
}

/// A text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a host pattern: write name, *.domain or *, with :port if wanted")]
pub struct InvalidPattern(String);

impl HostPattern {
    /// Whether this host and port are meant. Case does not matter, nor a dot at the end of the name.
    #[must_use]
    pub fn matches(&self, host: &str, port: u16) -> bool {
        if self.port.is_some_and(|wanted| wanted != port) {
            return false;
        }
        let host = normal(host);
        match &self.host {
            Host::Any => true,
            Host::Under(domain) => host.len() > domain.len() && host.ends_with(domain),
            Host::Exactly(name) => host == *name,
        }
    }

    /// Reads a list that was validated before.
    pub(crate) fn parse_all(list: &[String]) -> Result<Vec<Self>, InvalidPattern> {
        list.iter().map(|text| text.parse()).collect()
    }
}

impl FromStr for HostPattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPattern(text.to_owned());
        let (host, port) = match text.strip_prefix('*') {
            None => {
                let (host, port) = split_authority(text).ok_or_else(invalid)?;
                return Ok(Self { host: Host::Exactly(normal(host)), port });
            }
            Some(rest) => match rest.split_once(':') {
                Some((rest, port)) => (rest, Some(port.parse().map_err(|_| invalid())?)),
                None => (rest, None),
            },
        };
        match host.strip_prefix('.') {
            _ if host.is_empty() => Ok(Self { host: Host::Any, port }),
            Some(domain) if is_name(domain) => Ok(Self { host: Host::Under(format!(".{}", normal(domain))), port }),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Any => f.write_str("*")?,
            Host::Under(domain) => write!(f, "*{domain}")?,
            Host::Exactly(name) if name.contains(':') => write!(f, "[{name}]")?,
            Host::Exactly(name) => f.write_str(name)?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`, without brackets. `None` when it is none of them.
#[must_use]
pub fn split_authority(text: &str) -> Option<(&str, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, rest)
        }
        None => match text.find(':') {
            Some(colon) => text.split_at(colon),
            None => (text, ""),
        },
    };
    let port = match port.strip_prefix(':') {
        Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
        None if port.is_empty() => None,
        _ => return None,
    };
    (host.parse::<IpAddr>().is_ok() || is_name(host)).then_some((host, port))
}

fn is_name(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    !host.is_empty()
        && host.len() <= 253
        && host.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        })
}

fn normal(host: &str) -> String {
    let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, host: &str, port: u16) -> bool {
        pattern.parse::<HostPattern>().unwrap().matches(host, port)
    }

    #[test]
    fn what_matches() {
        assert!(matches("*", "anything", 1));
        assert!(matches("*:443", "x", 443) && !matches("*:443", "x", 80));
        assert!(matches("quay.io", "QUAY.io.", 443) && !matches("quay.io", "cdn.quay.io", 443));
        assert!(matches("*.quay.io", "cdn.quay.io", 443) && !matches("*.quay.io", "quay.io", 443));
        assert!(!matches("*.quay.io", "evilquay.io", 443));
        assert!(matches("[::1]:5000", "::1", 5000) && matches("[::1]", "[::1]", 1));
        assert!(matches("localhost:5000", "localhost", 5000) && !matches("localhost:5000", "localhost", 5001));
    }

    #[test]
    fn bad_patterns_are_refused() {
        for bad in
            ["", "a*b", "**", "*a", "*.", "*.a*", "a:b", "a:", "a:99999", "a/b", "a b", "u@h", "[::1", "a..b", "*:x"]
        {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad:?}");
        }
        for good in ["*", "*.a.b:1", "a-b_c:65535", "127.0.0.1:5000", "[fe80::1]:80"] {
            assert_eq!(good.parse::<HostPattern>().unwrap().to_string(), good);
        }
    }
}
