//! How single values are written.

use std::str::FromStr;
use std::time::Duration;

use url::Url;

use super::Supernode;

/// Port of a supernode when the user names none, as the old dfget had it.
const SUPERNODE_PORT: u16 = 8002;
/// Supernodes on one command line.
const SUPERNODES_MAX: usize = 64;
/// How often one supernode may count.
const WEIGHT_MAX: u64 = 1000;
/// `--piece-length` as the Rust client of Dragonfly 2 takes it.
const PIECE_LENGTH_MIN: u64 = 4 << 20;
/// A compiled regular expression may take so many bytes; a pattern on a command line needs few.
const REGEX_SIZE_MAX: usize = 1 << 20;
/// Longest wait that can be said: the daemon's field has 32 bits of milliseconds.
const TIME_MAX: Duration = Duration::from_secs(40 * 24 * 60 * 60);

/// URL schemes that the older programs had and this one has not yet.
const SCHEMES_TO_COME: [&str; 11] =
    ["s3", "gs", "abs", "oss", "obs", "cos", "hdfs", "hf", "modelscope", "opencsg", "oras"];

/// A byte rate; `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

/// `--pattern`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    P2p,
    Cdn,
    Source,
}

impl FromStr for Route {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "p2p" => Ok(Self::P2p),
            "cdn" => Ok(Self::Cdn),
            "source" => Ok(Self::Source),
            _ => Err("expected p2p, cdn or source"),
        }
    }
}

/// How a CRC-32 among the digests begins; the Rust client of Dragonfly 2 takes one.
pub(super) const CRC32: &str = "crc32:";

const RATE_EXPECTED: &str =
    "expected a rate such as 20M or 512K (bytes per second, powers of 1024), 25MB/s, 16MiB/s, 200Mb/s, or unlimited";

/// Powers of 1024 and of 1000; the factor in bits.
const RATE_UNITS: &[(&str, u64)] = &[
    ("GiB/s", 8 << 30),
    ("MiB/s", 8 << 20),
    ("KiB/s", 8 << 10),
    ("GB/s", 8_000_000_000),
    ("MB/s", 8_000_000),
    ("KB/s", 8_000),
    ("kB/s", 8_000),
    ("B/s", 8),
    ("Gb/s", 1_000_000_000),
    ("Mb/s", 1_000_000),
    ("Kb/s", 1_000),
    ("kb/s", 1_000),
    ("b/s", 1),
];
/// As the old dfget wrote them, in any case.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("gib", 1 << 30),
    ("mib", 1 << 20),
    ("kib", 1 << 10),
    ("gb", 1 << 30),
    ("mb", 1 << 20),
    ("kb", 1 << 10),
    ("g", 1 << 30),
    ("m", 1 << 20),
    ("k", 1 << 10),
    ("b", 1),
    ("", 1),
];

impl FromStr for Rate {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.eq_ignore_ascii_case("unlimited") {
            return Ok(Self(None));
        }
        let bytes = if text.ends_with("/s") {
            let (number, bits) = RATE_UNITS
                .iter()
                .find_map(|(unit, bits)| Some((text.strip_suffix(unit)?, *bits)))
                .ok_or(RATE_EXPECTED)?;
            scaled(number, bits, 8)
        } else {
            bytes(text)
        };
        match bytes.ok_or(RATE_EXPECTED)? {
            0 if text.bytes().any(|b| matches!(b, b'1'..=b'9')) => Err("less than one byte per second"),
            0 => Ok(Self(None)),
            bytes => Ok(Self(Some(bytes))),
        }
    }
}

/// A number of bytes; K, M and G are powers of 1024.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let (number, factor) = SIZE_UNITS.iter().find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, *factor)))?;
    scaled(number, factor, 1)
}

/// `number * factor / divisor`, rounded down, for a decimal number.
fn scaled(number: &str, factor: u64, divisor: u64) -> Option<u64> {
    /// More digits cannot matter to a byte.
    const DIGITS_MAX: usize = 12;
    let number = number.trim();
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.len() <= DIGITS_MAX && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) {
        return None;
    }
    let denominator = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let value = whole.parse::<u128>().ok()? * denominator + fraction.parse::<u128>().ok()?;
    u64::try_from(value * u128::from(factor) / (denominator * u128::from(divisor))).ok()
}

/// `5m`, `1h30m`, or seconds.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let time = match text.parse::<u64>() {
        Ok(seconds) if text.bytes().all(|b| b.is_ascii_digit()) => Duration::from_secs(seconds),
        _ => humantime::parse_duration(text)
            .map_err(|_| "expected a time such as 90s, 5m, 1h30m, or seconds".to_owned())?,
    };
    if time > TIME_MAX { Err("more than 40 days".to_owned()) } else { Ok(time) }
}

/// `--priority`.
pub(super) fn priority(text: &str) -> Result<u32, &'static str> {
    match text.as_bytes() {
        [digit @ b'0'..=b'6'] => Ok(u32::from(digit - b'0')),
        _ => Err("expected a priority from 0 to 6"),
    }
}

/// A whole number within bounds.
pub(super) fn number(text: &str, min: u64, max: u64) -> Result<u64, String> {
    let value = text.parse::<u64>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
    value.filter(|n| (min..=max).contains(n)).ok_or_else(|| format!("expected a number from {min} to {max}"))
}

/// `--piece-length`.
pub(super) fn piece_length(text: &str) -> Result<u64, String> {
    let length = bytes(text).ok_or("expected a number of bytes such as 4MiB or 4194304")?;
    if length < PIECE_LENGTH_MIN { Err("less than 4 MiB".to_owned()) } else { Ok(length) }
}

/// `crc32:` and eight hexadecimal digits.
pub(super) fn crc32(text: &str) -> Result<u32, &'static str> {
    let hex = text.get(CRC32.len()..).filter(|hex| hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    hex.and_then(|hex| u32::from_str_radix(hex, 16).ok()).ok_or("expected crc32: and 8 hexadecimal digits")
}

/// An http or https URL.
pub(super) fn url(text: &str) -> Result<Url, String> {
    // Messages name no more than the scheme: the rest may hold secrets.
    let url = Url::parse(text).map_err(|error| match error {
        url::ParseError::RelativeUrlWithoutBase => "no URL: it does not begin with http:// or https://".to_owned(),
        error => format!("no URL: {error}"),
    })?;
    match url.scheme() {
        "http" | "https" if url.host().is_none() => Err("it names no host".to_owned()),
        "http" | "https" => Ok(url),
        scheme if SCHEMES_TO_COME.contains(&scheme) => {
            Err(format!("{scheme} URLs are not built yet; http and https are"))
        }
        scheme => {
            Err(format!("{} URLs are not known; http and https are", scheme.chars().take(32).collect::<String>()))
        }
    }
}

/// `Name: value`.
pub(super) fn header(text: &str, len_max: usize) -> Result<(String, Vec<u8>), String> {
    if text.len() > len_max {
        return Err(format!("longer than {len_max} bytes"));
    }
    let (name, value) = text.split_once(':').ok_or("expected Name: value")?;
    let name = http::HeaderName::from_bytes(name.trim().as_bytes())
        .map_err(|_| "the name before the colon is no header name")?;
    let value = http::HeaderValue::from_bytes(value.trim().as_bytes())
        .map_err(|_| "the value behind the colon has characters a header may not have")?;
    Ok((name.as_str().to_owned(), value.as_bytes().to_vec()))
}

/// A tag, an application, and the like.
pub(super) fn identity(text: &str, len_max: usize) -> Result<String, String> {
    if text.len() > len_max {
        return Err(format!("longer than {len_max} bytes"));
    }
    if text.chars().any(char::is_control) { Err("holds control characters".to_owned()) } else { Ok(text.to_owned()) }
}

/// A regular expression that can be compiled.
pub(super) fn regex(text: &str) -> Result<String, String> {
    compile(text).map(|_| text.to_owned())
}

/// Compiles a regular expression within bounds.
pub(crate) fn compile(text: &str) -> Result<regex::Regex, String> {
    regex::RegexBuilder::new(text).size_limit(REGEX_SIZE_MAX).build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "the regular expression is too large".to_owned(),
        // The library draws over several lines; the last one says it.
        error => format!(
            "no regular expression: {}",
            error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ")
        ),
    })
}

/// A glob that can be compiled.
pub(super) fn glob(text: &str) -> Result<String, String> {
    globset::Glob::new(text).map(|_| text.to_owned()).map_err(|error| format!("no glob: {}", error.kind()))
}

/// `host:port=weight,…`
pub(super) fn nodes(text: &str) -> Result<Vec<Supernode>, String> {
    let nodes: Vec<_> =
        text.split(',').map(str::trim).filter(|node| !node.is_empty()).map(node).collect::<Result<_, _>>()?;
    match nodes.len() {
        0 => Err("names no supernode".to_owned()),
        1..=SUPERNODES_MAX => Ok(nodes),
        _ => Err(format!("names more than {SUPERNODES_MAX} supernodes")),
    }
}

fn node(text: &str) -> Result<Supernode, String> {
    const EXPECTED: &str = "expected host:port=weight, host:port or host; an IPv6 address in brackets";
    let (address, weight) = match text.split_once('=') {
        Some((address, weight)) => (address, u32::try_from(number(weight, 1, WEIGHT_MAX)?).map_err(|_| EXPECTED)?),
        None => (text, 1),
    };
    let address = address.strip_prefix("http://").unwrap_or(address);
    let url = Url::parse(&format!("http://{address}")).map_err(|_| EXPECTED)?;
    // `Url` reads many things as a host that were not meant as one.
    if url.path() != "/"
        || url.query().is_some()
        || !url.username().is_empty()
        || url.password().is_some()
        || address.ends_with('/')
    {
        return Err(EXPECTED.to_owned());
    }
    let explicit = address.rsplit_once(':').map(|(_, port)| port).filter(|port| !port.ends_with(']'));
    let port = match explicit {
        Some(port) => u16::try_from(number(port, 1, u64::from(u16::MAX))?).map_err(|_| EXPECTED)?,
        None => SUPERNODE_PORT,
    };
    let host = url.host_str().ok_or(EXPECTED)?;
    Ok(Supernode { endpoint: format!("http://{host}:{port}"), weight })
}
