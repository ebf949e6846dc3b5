//! Lists in pages: `n`, `last` and the `Link` to the next page.

use std::fmt::Write as _;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::{ErrorCode, Query};

/// Characters of `last`: more than any tag, and as many as a repository's name.
const LAST_LEN_MAX: usize = 255;

/// What RFC 3986 calls unreserved stays as it is.
const VALUE: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The part of a list that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Entries at most. 0 asks for none, and then there is no next page.
    pub n: usize,
    /// The list goes on after this text. It need not be an entry of the list.
    pub last: Option<String>,
}

/// Why a page cannot be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidPage {
    /// `n` is no number.
    #[error("n is a number of entries: 0 or more, in decimal digits")]
    Number,
    /// `last` can be no tag and no repository's name.
    #[error("last is at most {LAST_LEN_MAX} printable ASCII characters")]
    Last,
}

// === impl Page ===

impl Page {
    /// Reads `n` and `last`. At most `cap` entries are given, whatever `n` says, and that many when it says nothing.
    ///
    /// # Errors
    /// When `n` is no number, or `last` has characters that no tag and no name has.
    pub fn parse(query: &Query<'_>, cap: usize) -> Result<Self, InvalidPage> {
        let n = match query.get("n") {
            None => cap,
            Some(digits) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                // More than a usize holds is more than the cap.
                digits.parse().unwrap_or(usize::MAX).min(cap)
            }
            Some(_) => return Err(InvalidPage::Number),
        };
        let last = query.get("last").filter(|last| !last.is_empty());
        if last.is_some_and(|last| last.len() > LAST_LEN_MAX || !last.bytes().all(|b| b.is_ascii_graphic())) {
            return Err(InvalidPage::Last);
        }
        Ok(Self { n, last: last.map(str::to_owned) })
    }

    /// The value of the `Link` header to the page after this one: `</v2/a/tags/list?n=2&last=b>; rel="next"`.
    ///
    /// `path` is where the list is: a path, or a whole URL without query. `last` is the last entry of this page. `more`
    /// are parameters that have to be kept, such as `artifactType`.
    #[must_use]
    pub fn next(&self, path: &str, last: &str, more: &[(&str, &str)]) -> String {
        let mut link = format!("<{path}?n={}&last={}", self.n, utf8_percent_encode(last, VALUE));
        for (name, value) in more {
            let (name, value) = (utf8_percent_encode(name, VALUE), utf8_percent_encode(value, VALUE));
            write!(link, "&{name}={value}").expect("a String takes everything");
        }
        link.push_str(">; rel=\"next\"");
        link
    }
}

// === impl InvalidPage ===

impl InvalidPage {
    /// What the answer says. The specification has no code of its own for this.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::Unsupported
    }

    /// The HTTP status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        400
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(raw: &str) -> Result<Page, InvalidPage> {
        Page::parse(&Query::parse(raw).expect("a query"), 100)
    }

    #[test]
    fn n_and_last() {
        assert_eq!(page(""), Ok(Page { n: 100, last: None }));
        assert_eq!(page("n=0"), Ok(Page { n: 0, last: None }));
        assert_eq!(page("n=7&last=v1.0"), Ok(Page { n: 7, last: Some("v1.0".into()) }));
        assert_eq!(page("last=a%2Fb"), Ok(Page { n: 100, last: Some("a/b".into()) }));
        assert_eq!(page("last="), Ok(Page { n: 100, last: None }));
        assert_eq!(page("n=101").map(|page| page.n), Ok(100));
        assert_eq!(page("n=99999999999999999999999999").map(|page| page.n), Ok(100));
    }

    #[test]
    fn what_is_refused() {
        for bad in ["n=", "n=-1", "n=%2B1", "n=1.0", "n=x", "n=1%20", "n=0x1"] {
            assert_eq!(page(bad), Err(InvalidPage::Number), "{bad:?}");
        }
        // No database likes a NUL, and none of these is a tag.
        for bad in ["last=%00", "last=a%20b", "last=%C3%A9", "last=%0A", &format!("last={}", "a".repeat(256))] {
            assert_eq!(page(bad), Err(InvalidPage::Last), "{bad:?}");
        }
    }

    #[test]
    fn links() {
        let two = Page { n: 2, last: None };
        assert_eq!(
            two.next("/v2/a/b/tags/list", "v1.0-rc_1", &[]),
            r#"</v2/a/b/tags/list?n=2&last=v1.0-rc_1>; rel="next""#
        );
        assert_eq!(
            two.next("https://r.example/v2/_catalog", "a/b", &[("artifactType", "application/x+json;\">,")]),
            r#"<https://r.example/v2/_catalog?n=2&last=a%2Fb&artifactType=application%2Fx%2Bjson%3B%22%3E%2C>; rel="next""#
        );
    }
}
