//! URLs as they may be seen in logs, errors and debug output.

use std::fmt;

use url::Url;

/// The text of a URL without its credentials: the only form in which one leaves this module in an error.
#[derive(Clone, PartialEq, Eq)]
pub struct RedactedUrl(Box<str>);

/// A query parameter whose name contains one of these (without regard to case) holds a secret or a part of one.
const SECRET_NAMES: [&str; 18] = [
    "sig",
    "token",
    "secret",
    "passw",
    "pwd",
    "key",
    "auth",
    "cred",
    "session",
    "policy",
    "jwt",
    "ticket",
    "nonce",
    "assertion",
    "code",
    "sas",
    "hmac",
    "access",
];
/// A value this long is more likely a secret than something a reader of a log needs.
const VALUE_LEN_MAX: usize = 40;
const HIDDEN: &str = "***";

/// Query parameters that stand for the right to read a URL (pre-signed URLs of the object stores and their like).
const SIGNATURE_NAMES: [&str; 16] = [
    "x-amz-signature",
    "x-amz-security-token",
    "x-amz-credential",
    "x-goog-signature",
    "x-goog-credential",
    "signature",
    "sig",
    "securitytoken",
    "x-obs-security-token",
    "q-signature",
    "x-cos-security-token",
    "x-oss-signature",
    "x-oss-security-token",
    "access_token",
    "token",
    "private_token",
];

/// The URL for people to read: no user information, no fragment, and stars for the values of query parameters that may be secret.
#[must_use]
pub fn redact_url(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only for URLs that cannot have credentials.
    if url.password().is_some() {
        let _ = url.set_password(None);
    }
    if !url.username().is_empty() {
        let _ = url.set_username("");
    }
    url.set_fragment(None);
    if let Some(query) = url.query() {
        let shown: Vec<String> = query.split('&').map(redact_pair).collect();
        let shown = shown.join("&");
        url.set_query(Some(&shown));
    }
    url.into()
}

fn redact_pair(pair: &str) -> String {
    let Some((name, value)) = pair.split_once('=') else {
        // A bare word may itself be a token.
        return if pair.len() > VALUE_LEN_MAX { HIDDEN.to_owned() } else { pair.to_owned() };
    };
    let lower = name.to_ascii_lowercase();
    let secret = value.len() > VALUE_LEN_MAX || SECRET_NAMES.iter().any(|part| lower.contains(part));
    // A percent sign may hide a name from the list above.
    if !value.is_empty() && (secret || name.contains('%')) { format!("{name}={HIDDEN}") } else { pair.to_owned() }
}

/// Whether a URL itself carries the right to read it, by a signature or a token in its query.
#[must_use]
pub fn is_signed_url(url: &Url) -> bool {
    url.query_pairs()
        .any(|(name, value)| !value.is_empty() && SIGNATURE_NAMES.iter().any(|known| name.eq_ignore_ascii_case(known)))
}

// === impl RedactedUrl ===

impl RedactedUrl {
    /// Keeps what may be seen.
    #[must_use]
    pub fn of(url: &Url) -> Self {
        Self(redact_url(url).into())
    }
}

impl fmt::Display for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redacted(url: &str) -> String {
        redact_url(&url.parse().expect("a url"))
    }

    #[test]
    fn secrets_go_and_the_rest_stays() {
        assert_eq!(redacted("https://u:p@h:8443/a/b?x=1#f"), "https://h:8443/a/b?x=1");
        assert_eq!(redacted("https://u@h/"), "https://h/");
        assert_eq!(
            redacted("https://h/f?X-Amz-Signature=abc&X-Amz-Credential=AK&partNumber=3&Expires=12"),
            "https://h/f?X-Amz-Signature=***&X-Amz-Credential=***&partNumber=3&Expires=12"
        );
        assert_eq!(
            redacted("https://h/f?access_token=t&PASSWORD=x&apiKey=k&v"),
            "https://h/f?access_token=***&PASSWORD=***&apiKey=***&v"
        );
        assert_eq!(redacted("https://h/f?t%6fken=abc"), "https://h/f?t%6fken=***");
        assert_eq!(redacted(&format!("https://h/f?z={}", "a".repeat(41))), "https://h/f?z=***");
        assert_eq!(redacted(&format!("https://h/f?{}", "a".repeat(41))), "https://h/f?***");
    }

    #[test]
    fn signed_urls_are_known() {
        for signed in [
            "https://h/f?X-Amz-Signature=a",
            "https://h/f?a=1&Signature=b",
            "https://h/f?sv=1&sig=x",
            "https://h/f?token=x",
        ] {
            assert!(is_signed_url(&signed.parse().unwrap()), "{signed}");
        }
        for plain in ["https://h/f", "https://h/f?version=2", "https://h/f?Signature=", "https://h/Signature=a"] {
            assert!(!is_signed_url(&plain.parse().unwrap()), "{plain}");
        }
    }
}
