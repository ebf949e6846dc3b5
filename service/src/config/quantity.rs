//! Bytes, and bytes per second, as people write them.

use std::fmt;
use std::str::FromStr;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes: `64MiB` (powers of 1024), `1.5GB` (powers of 1000), or a plain number.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// A byte rate, or none: `25MB/s` (bytes), `200Mb/s` (bits), `unlimited`.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Rate(Option<u64>);

/// A text is no quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not allowed here, expected {expected}")]
pub struct InvalidQuantity {
    /// What was given.
    pub text: String,
    /// What is allowed.
    pub expected: &'static str,
}

const SIZE_EXPECTED: &str =
    "a number of bytes such as 65536, \"64KiB\", \"64MiB\" (powers of 1024) or \"1.5GB\" (powers of 1000), below 2^63";
const RATE_EXPECTED: &str =
    "a rate above zero such as \"25MB/s\" or \"16MiB/s\" (bytes), \"200Mb/s\" (bits), or \"unlimited\"";

const SIZE_UNITS: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];
/// In bits.
const RATE_UNITS: &[(&str, u64)] = &[
    ("TiB/s", 8 << 40),
    ("GiB/s", 8 << 30),
    ("MiB/s", 8 << 20),
    ("KiB/s", 8 << 10),
    ("TB/s", 8_000_000_000_000),
    ("GB/s", 8_000_000_000),
    ("MB/s", 8_000_000),
    ("kB/s", 8_000),
    ("KB/s", 8_000),
    ("B/s", 8),
    ("Tb/s", 1_000_000_000_000),
    ("Gb/s", 1_000_000_000),
    ("Mb/s", 1_000_000),
    ("kb/s", 1_000),
    ("Kb/s", 1_000),
    ("b/s", 1),
];

// === impl ByteSize ===

impl ByteSize {
    /// This many bytes.
    #[must_use]
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// This many KiB; saturates.
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 10))
    }

    /// This many MiB; saturates.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 20))
    }

    /// This many GiB; saturates.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n.saturating_mul(1 << 30))
    }

    /// The number of bytes.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The number of bytes for buffers; at most `usize::MAX`.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for ByteSize {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidQuantity { text: text.to_owned(), expected: SIZE_EXPECTED };
        let (number, factor) = split_unit(text, SIZE_UNITS).unwrap_or_else(|| (text.trim(), 1));
        let bytes = scaled(number, factor, 1).ok_or_else(invalid)?;
        // TOML numbers end there, and so do file offsets.
        if bytes > i64::MAX.unsigned_abs() { Err(invalid()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match exact_unit(self.0, SIZE_UNITS, 1) {
            Some((number, unit)) => write!(f, "{number}{unit}"),
            None => write!(f, "{}B", self.0),
        }
    }
}

// === impl Rate ===

impl Rate {
    /// No limit.
    pub const UNLIMITED: Self = Self(None);

    /// This many bytes per second; zero means no limit.
    #[must_use]
    pub const fn bytes_per_s(bytes: u64) -> Self {
        if bytes == 0 { Self(None) } else { Self(Some(bytes)) }
    }

    /// Bytes per second; `None` is no limit.
    #[must_use]
    pub const fn limit_bytes_per_s(self) -> Option<u64> {
        self.0
    }
}

impl FromStr for Rate {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidQuantity { text: text.to_owned(), expected: RATE_EXPECTED };
        if text.trim().eq_ignore_ascii_case("unlimited") {
            return Ok(Self::UNLIMITED);
        }
        let (number, bits) = split_unit(text, RATE_UNITS).ok_or_else(invalid)?;
        match scaled(number, bits, 8) {
            Some(bytes) if bytes > 0 => Ok(Self(Some(bytes))),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("unlimited"),
            Some(bytes) => match exact_unit(bytes, RATE_UNITS, 8) {
                Some((number, unit)) => write!(f, "{number}{unit}"),
                None => write!(f, "{bytes}B/s"),
            },
        }
    }
}

// === parsing ===

fn split_unit<'t>(text: &'t str, units: &[(&str, u64)]) -> Option<(&'t str, u64)> {
    let text = text.trim();
    units.iter().find_map(|(unit, factor)| text.strip_suffix(unit).map(|number| (number.trim_end(), *factor)))
}

/// `number * factor / divisor`, exactly and rounded down, for a decimal number.
fn scaled(number: &str, factor: u64, divisor: u64) -> Option<u64> {
    /// More digits than that cannot matter to a byte.
    const FRACTION_DIGITS_MAX: usize = 12;
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let digits = |text: &str| !text.is_empty() && text.len() <= 20 && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || fraction.len() > FRACTION_DIGITS_MAX {
        return None;
    }
    let denominator = 10u128.pow(u32::try_from(fraction.len()).ok()?);
    let value = whole.parse::<u128>().ok()?.checked_mul(denominator)?.checked_add(fraction.parse().ok()?)?;
    let value = value.checked_mul(u128::from(factor))? / (denominator * u128::from(divisor));
    u64::try_from(value).ok()
}

/// The largest unit in which the value is a whole number.
fn exact_unit(bytes: u64, units: &[(&'static str, u64)], bits: u64) -> Option<(u64, &'static str)> {
    units
        .iter()
        .filter(|(_, factor)| factor.is_multiple_of(bits))
        .map(|(unit, factor)| (factor / bits, *unit))
        .filter(|(factor, _)| bytes >= *factor && bytes.is_multiple_of(*factor))
        .max_by_key(|(factor, _)| *factor)
        .map(|(factor, unit)| (bytes / factor, unit))
}

// === serde ===

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SIZE_EXPECTED)
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(bytes))
    }

    fn visit_i64<E: Error>(self, bytes: i64) -> Result<ByteSize, E> {
        u64::try_from(bytes).map(ByteSize).map_err(|_| E::invalid_value(serde::de::Unexpected::Signed(bytes), &self))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

struct RateVisitor;

impl Visitor<'_> for RateVisitor {
    type Value = Rate;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(RATE_EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Rate, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(RateVisitor)
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("64MiB", 64 << 20),
            ("1.5GB", 1_500_000_000),
            ("65536", 65536),
            ("0", 0),
            ("10 kB", 10_000),
            ("7B", 7),
            ("0.5KiB", 512),
        ] {
            assert_eq!(text.parse::<ByteSize>().unwrap().as_u64(), bytes, "{text}");
        }
        for text in ["", "MiB", "64M", "-1", "1e9", "99999999999TiB", "1.GB", "64mib", "64 apples"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn rates() {
        for (text, bytes) in [
            ("200Mb/s", 25_000_000),
            ("25MB/s", 25_000_000),
            ("16MiB/s", 16 << 20),
            ("12b/s", 1),
            ("2.5Gb/s", 312_500_000),
        ] {
            assert_eq!(text.parse::<Rate>().unwrap().limit_bytes_per_s(), Some(bytes), "{text}");
        }
        assert_eq!("Unlimited".parse::<Rate>().unwrap(), Rate::UNLIMITED);
        for text in ["", "0MB/s", "25MB", "200", "1b/s", "fast"] {
            let error = text.parse::<Rate>().unwrap_err();
            assert!(error.to_string().contains("unlimited"), "{text}: says what is allowed");
        }
    }

    proptest! {
        #[test]
        fn a_size_reads_back(bytes in 0u64..=i64::MAX as u64, shift in 0u32..60) {
            let size = ByteSize::bytes(bytes >> shift << shift);
            prop_assert_eq!(size.to_string().parse::<ByteSize>().unwrap(), size);
        }

        #[test]
        fn a_rate_reads_back(bytes in 1u64.., shift in 0u32..60) {
            let rate = Rate::bytes_per_s(bytes >> shift << shift);
            prop_assert_eq!(rate.to_string().parse::<Rate>().unwrap(), rate);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = (text.parse::<ByteSize>(), text.parse::<Rate>());
        }
    }
}
