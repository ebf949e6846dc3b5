//! As much of HTML as a folder's page needs: the `href`s of its links.

use std::borrow::Cow;

/// What pages of folders call themselves: nginx, Apache, lighttpd and Caddy; Python's server.
const TITLES: [&str; 2] = ["index of", "directory listing"];
/// How far from its start a page has its title.
const HEAD_LEN_MAX: usize = 4 * 1024;
/// A file's name of 255 bytes, each as `%xx` or a character reference, with room for a host and a path before it.
const HREF_LEN_MAX: usize = 8 * 1024;
/// The longest character reference that is resolved: `&#x10FFFF;`.
const REFERENCE_LEN_MAX: usize = 10;

/// The value of `href` of every `<a>`, character references resolved, in order.
pub(super) fn links(page: &str) -> impl Iterator<Item = Cow<'_, str>> {
    Tags { rest: page }.filter_map(href).map(str::trim).filter(|value| value.len() <= HREF_LEN_MAX).map(unescape)
}

/// Whether a page calls itself the index of a folder; an empty folder's has no link to go by.
pub(super) fn looks_like_a_listing(page: &str) -> bool {
    let end = page.char_indices().map(|(at, _)| at).take_while(|at| *at < HEAD_LEN_MAX).last().unwrap_or(0);
    let head = page[..end].to_ascii_lowercase();
    let title = head.split_once("<title>").map_or(head.as_str(), |(_, rest)| rest);
    TITLES.iter().any(|known| title.trim_start().starts_with(known))
}

/// Start tags in a page, each without its angle brackets; comments, scripts and styles are passed over.
struct Tags<'p> {
    rest: &'p str,
}

impl<'p> Iterator for Tags<'p> {
    type Item = &'p str;

    fn next(&mut self) -> Option<&'p str> {
        loop {
            self.rest = &self.rest[self.rest.find('<')? + 1..];
            if let Some(comment) = self.rest.strip_prefix("!--") {
                self.rest = &comment[comment.find("-->")?..];
                continue;
            }
            if !self.rest.starts_with(|c: char| c.is_ascii_alphabetic()) {
                continue;
            }
            let end = tag_end(self.rest)?;
            let tag = &self.rest[..end];
            self.rest = &self.rest[end..];
            for raw in ["script", "style"] {
                if is_named(tag, raw) {
                    let close = find_ignoring_case(self.rest, &format!("</{raw}"))?;
                    self.rest = &self.rest[close..];
                }
            }
            return Some(tag);
        }
    }
}

/// Where the tag ends: at the first `>` outside of quotes.
fn tag_end(text: &str) -> Option<usize> {
    let mut quote = None;
    let mut after_equals = false;
    for (at, byte) in text.bytes().enumerate() {
        match (quote, byte) {
            (Some(open), _) if byte == open => quote = None,
            (Some(_), _) => {}
            (None, b'>') => return Some(at),
            // A quote opens a value only where one may begin.
            (None, b'"' | b'\'') if after_equals => quote = Some(byte),
            (None, _) => {}
        }
        after_equals = byte == b'=' || (after_equals && byte.is_ascii_whitespace());
    }
    None
}

fn is_named(tag: &str, name: &str) -> bool {
    let rest =
        tag.get(..name.len()).filter(|start| start.eq_ignore_ascii_case(name)).and_then(|_| tag.get(name.len()..));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(|c: char| c.is_ascii_whitespace() || c == '/'))
}

fn find_ignoring_case(text: &str, needle: &str) -> Option<usize> {
    text.as_bytes().windows(needle.len()).position(|window| window.eq_ignore_ascii_case(needle.as_bytes()))
}

/// The value of `href`, when the tag is an `<a>` that has one.
fn href(tag: &str) -> Option<&str> {
    if !is_named(tag, "a") {
        return None;
    }
    let mut rest = tag.get(1..)?;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_ascii_whitespace() || c == '/');
        let name_end = rest.find(|c: char| c.is_ascii_whitespace() || matches!(c, '=' | '/')).unwrap_or(rest.len());
        if rest.is_empty() {
            return None;
        }
        // An equals sign without a name before it belongs to the name.
        let name_end = name_end.max(1);
        let name = rest.get(..name_end)?;
        rest = rest[name_end..].trim_start();
        let Some(value) = rest.strip_prefix('=').map(str::trim_start) else { continue };
        let (value, after) = match value.as_bytes().first() {
            Some(quote @ (b'"' | b'\'')) => value[1..].split_once(char::from(*quote))?,
            _ => value.split_at(value.find(|c: char| c.is_ascii_whitespace()).unwrap_or(value.len())),
        };
        if name.eq_ignore_ascii_case("href") {
            return Some(value);
        }
        rest = after;
    }
}

/// Resolves the character references that servers write; others stay as they are.
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('&') {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = rest.bytes().take(REFERENCE_LEN_MAX).position(|b| b == b';');
        match end.and_then(|end| Some((resolve(&rest[1..end])?, end))) {
            Some((c, end)) => {
                plain.push(c);
                rest = &rest[end + 1..];
            }
            None => {
                plain.push('&');
                rest = &rest[1..];
            }
        }
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

fn resolve(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        "nbsp" => Some('\u{a0}'),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix(['x', 'X']) {
                Some(hex) => u32::from_str_radix(hex, 16).ok()?,
                None => number.parse().ok()?,
            };
            char::from_u32(code)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(page: &str) -> Vec<String> {
        links(page).map(Cow::into_owned).collect()
    }

    #[test]
    fn links_in_every_spelling() {
        assert_eq!(all("<a href=\"x\">x</a><A HREF='y'>y</A><a class=z href=z>"), ["x", "y", "z"]);
        assert_eq!(all("<a title=\"a > b\" href = \"x\">"), ["x"]);
        assert_eq!(all("<a href=\"a&amp;b&#39;c&#x20;d&unknown;&\">"), ["a&b'c d&unknown;&"]);
        assert_eq!(all("<!-- <a href=no> --><script>\"<a href=no>\"</SCRIPT><a\nhref=yes\n>"), ["yes"]);
        assert_eq!(
            all("<abbr href=no><area href=no><link href=no><a name=no><a data-href=no></a>1 < 2 <a href=yes>"),
            ["yes"]
        );
        assert_eq!(all("<a href=\"never closed"), Vec::<String>::new());
        assert_eq!(all(&format!("<a href={}><a href=x>", "a".repeat(HREF_LEN_MAX + 1))), ["x"]);
        assert_eq!(
            all("<a href=&#x10FFFF;&#x110000;&#0000000000000038;>"),
            ["\u{10ffff}&#x110000;&#0000000000000038;"]
        );
    }

    #[test]
    fn listings_are_known_by_their_title() {
        assert!(looks_like_a_listing("<html>\n<head><title>Index of /pub/</title></head>"));
        assert!(looks_like_a_listing("<!DOCTYPE HTML><TITLE>Directory listing for /</TITLE>"));
        assert!(!looks_like_a_listing("<html><title>Welcome</title>index of"));
        assert!(!looks_like_a_listing(""));
    }

    proptest! {
        #[test]
        fn any_text_is_read_to_its_end(page in "([<>a='\"/! -]|href|script|style|&#x|;|é|.){0,60}") {
            let _ = (all(&page).len(), looks_like_a_listing(&page));
        }
    }
}
