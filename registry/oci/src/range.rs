//! Which bytes of a blob a `GET` is about.

use proto::{ByteRange, RangeHeader};

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selection {
    /// Everything: 200.
    Whole,
    /// These bytes: 206 with a `Content-Range`.
    Part(ByteRange),
    /// None of the bytes asked for exist: 416 with `Content-Range: bytes */length`.
    Unsatisfiable,
}

/// What a `Range` header means for a content of `length` bytes.
///
/// - A header that is malformed or in another unit is ignored, as RFC 9110 tells a server to.
/// - A single range that ends before it starts is malformed by RFC 9110, but the OCI suite wants it refused.
/// - Several ranges get the whole, which RFC 9110 allows; nobody asks a registry for them.
/// - An empty content is sent whole: some clients put `Range: bytes=0-` on everything.
#[must_use]
pub fn select(header: Option<&str>, length: u64) -> Selection {
    let Some(header) = header else { return Selection::Whole };
    if is_reversed(header) {
        return Selection::Unsatisfiable;
    }
    let Ok(header) = RangeHeader::parse(header) else { return Selection::Whole };
    if length == 0 {
        return Selection::Whole;
    }
    match header.resolve(length).as_deref() {
        Ok([range]) => Selection::Part(*range),
        Ok(_) => Selection::Whole,
        Err(_) => Selection::Unsatisfiable,
    }
}

/// `bytes=b-a` with `a < b`.
fn is_reversed(header: &str) -> bool {
    let digits = |text: &str| {
        let text = text.trim();
        // Numbers that are too large for a u64 are beyond every content alike.
        let number = || text.parse::<u64>().unwrap_or(u64::MAX);
        (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(number)
    };
    RangeHeader::set_of(header)
        .and_then(|range| range.split_once('-'))
        .and_then(|(first, last)| Some(digits(first)? > digits(last)?))
        .unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(start: u64, end: u64) -> Selection {
        Selection::Part(ByteRange::new(start, end).expect("not empty"))
    }

    #[test]
    fn what_the_conformance_suite_asks_for() {
        // Its blob has 2048 bytes.
        for (header, wanted) in [
            ("bytes=500-1499", part(500, 1500)),
            ("bytes=500-", part(500, 2048)),
            ("bytes=-500", part(1548, 2048)),
            ("bytes=2000-5000", part(2000, 2048)),
            ("bytes=500-0", Selection::Unsatisfiable),
            ("bytes=5000-10000", Selection::Unsatisfiable),
        ] {
            assert_eq!(select(Some(header), 2048), wanted, "{header}");
        }
    }

    #[test]
    fn what_is_ignored_and_what_is_not() {
        assert_eq!(select(None, 10), Selection::Whole);
        for ignored in ["", "bytes", "bytes=", "bytes=a-b", "items=0-1", "bytes=-", "bytes=0-1,5-6", "bytes=+5-1"] {
            assert_eq!(select(Some(ignored), 10), Selection::Whole, "{ignored:?}");
        }
        // One of two that exists.
        assert_eq!(select(Some("bytes=0-1,50-60"), 10), part(0, 2));
        assert_eq!(select(Some("bytes=99999999999999999999999-5"), 10), Selection::Unsatisfiable);
        assert_eq!(select(Some("bytes=-0"), 10), Selection::Unsatisfiable);
        assert_eq!(select(Some("bytes=10-"), 10), Selection::Unsatisfiable);
        assert_eq!(select(Some("bytes=9-9"), 10), part(9, 10));
        assert_eq!(select(Some("Bytes=9-9"), 10), part(9, 10));
        assert_eq!(select(Some("BYTES=5-1"), 10), Selection::Unsatisfiable);
    }

    #[test]
    fn an_empty_blob_is_sent_whole() {
        for header in ["bytes=0-", "bytes=0-0", "bytes=-5"] {
            assert_eq!(select(Some(header), 0), Selection::Whole, "{header}");
        }
    }
}
