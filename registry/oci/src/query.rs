//! The query of a URL.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::ErrorCode;

/// Parameters a query may have. A push by digest may name many tags; nothing else repeats.
pub const PARAMS_MAX: usize = 256;

/// The parameters of a URL's query, decoded, in their order.
///
/// A `+` stays a `+`: no parameter of the protocol has spaces, and `artifactType=application/vnd.example+json` is what
/// people type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query<'q>(Vec<(Cow<'q, str>, Cow<'q, str>)>);

/// Why a text is no query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidQuery {
    /// A `%` without two hexadecimal digits after it, or what it encodes is not UTF-8.
    #[error("the query of the URL is not percent-encoded UTF-8")]
    Encoding,
    /// More than [`PARAMS_MAX`].
    #[error("the query of the URL has more than {PARAMS_MAX} parameters")]
    TooMany,
}

// === impl Query ===

impl<'q> Query<'q> {
    /// Reads the part of a URL after the `?`.
    ///
    /// # Errors
    /// When something is not percent-encoded UTF-8, or there are too many parameters.
    pub fn parse(raw: &'q str) -> Result<Self, InvalidQuery> {
        let mut params = Vec::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            if params.len() == PARAMS_MAX {
                return Err(InvalidQuery::TooMany);
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            params.push((decode(name)?, decode(value)?));
        }
        Ok(Self(params))
    }

    /// The first parameter of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    /// All parameters of this name, in their order.
    pub fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s str> {
        self.iter().filter(move |(found, _)| *found == name).map(|(_, value)| value)
    }

    /// All parameters: names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_ref(), value.as_ref()))
    }
}

// === impl InvalidQuery ===

impl InvalidQuery {
    /// What the answer says.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        ErrorCode::Unsupported
    }

    /// The HTTP status: 400, or 414 for too many parameters.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Encoding => 400,
            Self::TooMany => 414,
        }
    }
}

/// Decodes percent-encoding. Unlike [`percent_decode_str`] alone it does not let a lone `%` pass.
pub(crate) fn decode(text: &str) -> Result<Cow<'_, str>, InvalidQuery> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&b| b == b'%') {
        match &rest[at + 1..] {
            [high, low, after @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => rest = after,
            _ => return Err(InvalidQuery::Encoding),
        }
    }
    percent_decode_str(text).decode_utf8().map_err(|_| InvalidQuery::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(raw: &str) -> Result<Vec<(String, String)>, InvalidQuery> {
        let query = Query::parse(raw)?;
        Ok(query.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    #[test]
    fn parameters_are_decoded_in_their_order() {
        let query = Query::parse("tag=1&digest=sha256%3Aab&tag=2&from=a%2Fb&flag&&empty=").expect("a query");
        assert_eq!(query.get("digest"), Some("sha256:ab"));
        assert_eq!(query.all("tag").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.get("tag"), Some("1"));
        assert_eq!(query.get("from"), Some("a/b"));
        assert_eq!((query.get("flag"), query.get("empty"), query.get("none")), (Some(""), Some(""), None));
        assert_eq!(read("%61=%3d=%26"), Ok(vec![("a".into(), "===&"[1..].into())]));
        assert_eq!(read(""), Ok(Vec::new()));
    }

    #[test]
    fn a_plus_is_a_plus() {
        let query = Query::parse("artifactType=application/vnd.example+json&other=a%2Bb").expect("a query");
        assert_eq!(query.get("artifactType"), Some("application/vnd.example+json"));
        assert_eq!(query.get("other"), Some("a+b"));
    }

    #[test]
    fn bad_encoding_is_refused() {
        for bad in ["a=%", "a=%2", "a=%zz", "a=%ff", "%=1", "a=%c3%28", "a=1&b=%%41"] {
            assert_eq!(read(bad), Err(InvalidQuery::Encoding), "{bad:?}");
        }
    }

    #[test]
    fn so_many_and_no_more() {
        let tags = |count| vec!["tag=x"; count].join("&");
        assert_eq!(Query::parse(&tags(PARAMS_MAX)).map(|query| query.all("tag").count()), Ok(PARAMS_MAX));
        assert_eq!(read(&tags(PARAMS_MAX + 1)), Err(InvalidQuery::TooMany));
    }
}
