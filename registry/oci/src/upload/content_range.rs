//! Where a chunk belongs.

use crate::ErrorCode;

/// The `Content-Range` of a chunk: `0-1023`, the last byte included. Not RFC 9110's header of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentRange {
    start: u64,
    end: u64,
}

/// A `Content-Range` is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Content-Range of a chunk is written first-last, in bytes, for example 0-1023")]
pub struct InvalidContentRange;

// === impl ContentRange ===

impl ContentRange {
    /// Reads the header: `a-b` as the specification has it, or `bytes a-b/total` as RFC 9110 and some clients do.
    /// A range that ends one byte before it starts is empty.
    ///
    /// # Errors
    /// When it is neither, ends earlier than that, or has numbers of more than 63 bits.
    pub fn parse(text: &str) -> Result<Self, InvalidContentRange> {
        let text = text.trim();
        let range = match text.strip_prefix("bytes ") {
            Some(rest) => {
                let (range, total) = rest.split_once('/').unwrap_or((rest, "*"));
                if total != "*" {
                    number(total)?;
                }
                range
            }
            None => text,
        };
        let (first, last) = range.split_once('-').ok_or(InvalidContentRange)?;
        let (start, end) = (number(first)?, number(last)? + 1);
        if start <= end { Ok(Self { start, end }) } else { Err(InvalidContentRange) }
    }

    /// Its first byte.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// One past its last byte.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Bytes in it.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether it has no bytes.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// Decimal digits only: `str::parse` would also take a sign. One more always fits.
fn number(text: &str) -> Result<u64, InvalidContentRange> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(InvalidContentRange);
    }
    text.parse().ok().filter(|&number| number <= i64::MAX as u64).ok_or(InvalidContentRange)
}

// === impl InvalidContentRange ===

impl InvalidContentRange {
    /// What the answer says.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::BlobUploadInvalid
    }
}

/// The `Range` header of an upload that has `offset` bytes: `0-1023` for 1024. Nothing yet is `0-0`, as one byte is;
/// the specification has no other way to write it.
#[must_use]
pub fn range_header(offset: u64) -> String {
    format!("0-{}", offset.saturating_sub(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_specification_and_as_others_write_it() {
        for text in ["0-1023", " 0-1023 ", "bytes 0-1023/*", "bytes 0-1023/2048", "bytes 0-1023"] {
            let range = ContentRange::parse(text).expect("a range");
            assert_eq!((range.start(), range.end(), range.len(), range.is_empty()), (0, 1024, 1024, false), "{text}");
        }
        let empty = ContentRange::parse("5-4").expect("a range");
        assert_eq!((empty.start(), empty.len(), empty.is_empty()), (5, 0, true));
        let last = ContentRange::parse("0-9223372036854775807").expect("a range");
        assert_eq!(last.len(), 1 << 63);
    }

    #[test]
    fn what_is_no_range() {
        for bad in [
            "",
            "-",
            "0-",
            "-5",
            "5-3",
            "a-b",
            "0--1",
            "+0-1",
            "0-1-2",
            "0 - 1",
            "bytes=0-1",
            "bytes */5",
            "bytes 0-1/x",
            "0-9223372036854775808",
            "99999999999999999999-99999999999999999999",
        ] {
            assert_eq!(ContentRange::parse(bad), Err(InvalidContentRange), "{bad:?}");
        }
    }

    #[test]
    fn range_headers() {
        assert_eq!(range_header(0), "0-0");
        assert_eq!(range_header(1), "0-0");
        assert_eq!(range_header(1024), "0-1023");
    }
}
