//! Byte ranges: our own half-open ones, and the `Range` and `Content-Range` headers of RFC 9110 section 14.

use std::fmt;

/// A non-empty run of bytes, `start` included, `end` not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

/// A `Range` header, before the length of the content is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeHeader(Vec<Spec>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Spec {
    /// `a-b`, last byte included.
    FromTo(u64, u64),
    /// `a-`
    From(u64),
    /// `-n`: the last n bytes.
    Last(u64),
}

/// A `Content-Range` header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    /// The bytes in the body; absent in a 416 answer (`bytes */n`).
    pub range: Option<ByteRange>,
    /// Length of the whole content, when it was told.
    pub total: Option<u64>,
}

/// A text is no range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a byte range")]
pub struct InvalidRange;

/// No byte of the content lies in the range asked for (416).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no byte of the content lies in the range")]
pub struct Unsatisfiable;

/// RFC 9110 section 14.2 lets a server ignore or refuse headers with many ranges; nobody needs more than this.
const SPECS_MAX: usize = 16;

// === impl ByteRange ===

impl ByteRange {
    /// A range; `None` when it would be empty or reversed.
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Option<Self> {
        if start < end { Some(Self { start, end }) } else { None }
    }

    /// First byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// One past the last byte.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Number of bytes, at least 1.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// The value of a `Range` header that asks for exactly this.
    #[must_use]
    pub fn to_header(self) -> String {
        format!("bytes={}-{}", self.start, self.end - 1)
    }

    /// `a-b` as dfget's `--range` writes it, last byte included.
    ///
    /// # Errors
    /// When the text has another shape or the range is reversed.
    pub fn parse_inclusive(text: &str) -> Result<Self, InvalidRange> {
        match parse_spec(text.trim().strip_prefix("bytes=").unwrap_or_else(|| text.trim()))? {
            Spec::FromTo(first, last) => Self::new(first, last.saturating_add(1)).ok_or(InvalidRange),
            Spec::From(_) | Spec::Last(_) => Err(InvalidRange),
        }
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.start, self.end - 1)
    }
}

// === impl RangeHeader ===

impl RangeHeader {
    /// What stands after `bytes=`; the names of units are case-insensitive (RFC 9110 section 14.1).
    #[must_use]
    pub fn set_of(text: &str) -> Option<&str> {
        let (unit, set) = text.trim().split_once('=')?;
        unit.eq_ignore_ascii_case("bytes").then_some(set)
    }

    /// Reads a `Range` header. A unit other than bytes, or anything malformed, is an error, on which
    /// RFC 9110 tells a server to ignore the header and send the whole.
    ///
    /// # Errors
    /// When the text is not a set of byte ranges, or names more than 16.
    pub fn parse(text: &str) -> Result<Self, InvalidRange> {
        let specs = Self::set_of(text)
            .ok_or(InvalidRange)?
            .split(',')
            .map(str::trim)
            .filter(|spec| !spec.is_empty())
            .take(SPECS_MAX + 1)
            .map(parse_spec)
            .collect::<Result<Vec<_>, _>>()?;
        if specs.is_empty() || specs.len() > SPECS_MAX { Err(InvalidRange) } else { Ok(Self(specs)) }
    }

    /// The ranges of a content of `length` bytes, in the order asked for, unsatisfiable ones left out.
    ///
    /// # Errors
    /// [`Unsatisfiable`] when none is left: the answer is 416.
    pub fn resolve(&self, length: u64) -> Result<Vec<ByteRange>, Unsatisfiable> {
        let ranges: Vec<_> = self
            .0
            .iter()
            .filter_map(|spec| match *spec {
                Spec::FromTo(first, last) => ByteRange::new(first, last.saturating_add(1).min(length)),
                Spec::From(first) => ByteRange::new(first, length),
                Spec::Last(count) => ByteRange::new(length.saturating_sub(count), length),
            })
            .collect();
        if ranges.is_empty() { Err(Unsatisfiable) } else { Ok(ranges) }
    }
}

fn parse_spec(spec: &str) -> Result<Spec, InvalidRange> {
    let (first, last) = spec.split_once('-').ok_or(InvalidRange)?;
    match (number(first.trim())?, number(last.trim())?) {
        (Some(first), Some(last)) if first <= last => Ok(Spec::FromTo(first, last)),
        (Some(first), None) => Ok(Spec::From(first)),
        (None, Some(count)) => Ok(Spec::Last(count)),
        _ => Err(InvalidRange),
    }
}

/// Decimal digits only: `str::parse` would also take a sign.
fn number(text: &str) -> Result<Option<u64>, InvalidRange> {
    if text.is_empty() {
        return Ok(None);
    }
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidRange);
    }
    // Larger than any content: the clamp in `resolve` gives it its meaning.
    Ok(Some(text.parse().unwrap_or(u64::MAX)))
}

// === impl ContentRange ===

impl ContentRange {
    /// Reads a `Content-Range` header.
    ///
    /// # Errors
    /// When it is malformed, or its range does not lie in its total.
    pub fn parse(text: &str) -> Result<Self, InvalidRange> {
        let (range, total) = text.trim().strip_prefix("bytes ").and_then(|t| t.split_once('/')).ok_or(InvalidRange)?;
        let total = match total.trim() {
            "*" => None,
            digits => Some(number(digits)?.ok_or(InvalidRange)?),
        };
        let range = match range.trim() {
            "*" => None,
            text => Some(ByteRange::parse_inclusive(text)?),
        };
        match (range, total) {
            (None, None) => Err(InvalidRange),
            (Some(range), Some(total)) if range.end > total => Err(InvalidRange),
            _ => Ok(Self { range, total }),
        }
    }
}

impl fmt::Display for ContentRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes ")?;
        match self.range {
            Some(range) => write!(f, "{range}/")?,
            None => f.write_str("*/")?,
        }
        match self.total {
            Some(total) => write!(f, "{total}"),
            None => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(header: &str, length: u64) -> Result<Vec<(u64, u64)>, Unsatisfiable> {
        let parsed = RangeHeader::parse(header).expect("a valid header");
        parsed.resolve(length).map(|ranges| ranges.iter().map(|r| (r.start(), r.end())).collect())
    }

    #[test]
    fn examples_of_rfc_9110() {
        assert_eq!(resolve("bytes=0-499", 10_000), Ok(vec![(0, 500)]));
        assert_eq!(resolve("bytes=-500", 10_000), Ok(vec![(9_500, 10_000)]));
        assert_eq!(resolve("bytes=9500-", 10_000), Ok(vec![(9_500, 10_000)]));
        assert_eq!(resolve("bytes=0-0,-1", 10_000), Ok(vec![(0, 1), (9_999, 10_000)]));
        assert_eq!(resolve("bytes= 0-0 , 5-6", 10), Ok(vec![(0, 1), (5, 7)]));
    }

    #[test]
    fn edges() {
        assert_eq!(resolve("bytes=0-99999999999999999999999", 10), Ok(vec![(0, 10)]));
        assert_eq!(resolve("bytes=10-", 10), Err(Unsatisfiable));
        assert_eq!(resolve("bytes=-0", 10), Err(Unsatisfiable));
        assert_eq!(resolve("bytes=-5", 0), Err(Unsatisfiable));
        assert_eq!(resolve("bytes=-50", 10), Ok(vec![(0, 10)]));
        for bad in ["", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=+1-2", "bytes=5-2", "items=0-1", "bytes=,"] {
            assert_eq!(RangeHeader::parse(bad), Err(InvalidRange), "{bad:?}");
        }
        assert!(RangeHeader::parse(&format!("bytes={}", "0-0,".repeat(17))).is_err());
    }

    #[test]
    fn content_range_round_trips() {
        for text in ["bytes 0-499/1234", "bytes 0-0/*", "bytes */1234"] {
            assert_eq!(ContentRange::parse(text).expect("valid").to_string(), text);
        }
        for bad in ["bytes */*", "bytes 0-9/5", "bytes 5-1/10", "items 0-1/2", "bytes 0-1"] {
            assert_eq!(ContentRange::parse(bad), Err(InvalidRange), "{bad:?}");
        }
    }
}
