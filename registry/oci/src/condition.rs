//! `If-Match` and `If-None-Match` (RFC 9110 section 13.1): what a request expects to find.

/// What a request expects of what is there. Without either header it expects nothing, and always holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    is_match: Option<EntityTags>,
    none_match: Option<EntityTags>,
}

/// Which of the two headers was not fulfilled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmet {
    /// `If-Match`: what is there is something else, or nothing.
    Match,
    /// `If-None-Match`: what is there is one of those named. Whoever only reads is told that nothing has changed.
    NoneMatch,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum EntityTags {
    /// `*`: whatever is there.
    Any,
    Listed(Vec<EntityTag>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct EntityTag {
    text: String,
    is_weak: bool,
}

// === impl Condition ===

impl Condition {
    /// Reads the values of the headers; each may be there several times.
    #[must_use]
    pub fn parse<'h>(
        if_match: impl IntoIterator<Item = &'h str>,
        if_none_match: impl IntoIterator<Item = &'h str>,
    ) -> Self {
        Self { is_match: EntityTags::parse(if_match), none_match: EntityTags::parse(if_none_match) }
    }

    /// Whether nothing is expected.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.is_match.is_none() && self.none_match.is_none()
    }

    /// Compares it with what is there: the text of its entity tag without quotes, `None` if there is nothing.
    ///
    /// # Errors
    /// When it does not hold.
    pub fn check(&self, current: Option<&str>) -> Result<(), Unmet> {
        if self.is_match.as_ref().is_some_and(|tags| !tags.matches(current, false)) {
            return Err(Unmet::Match);
        }
        if self.none_match.as_ref().is_some_and(|tags| tags.matches(current, true)) {
            return Err(Unmet::NoneMatch);
        }
        Ok(())
    }
}

// === impl EntityTags ===

impl EntityTags {
    fn parse<'h>(values: impl IntoIterator<Item = &'h str>) -> Option<Self> {
        let mut values = values.into_iter().peekable();
        values.peek()?;
        let mut listed = Vec::new();
        for value in values {
            if value.trim() == "*" {
                return Some(Self::Any);
            }
            let mut rest = value;
            while let Some(tag) = EntityTag::next(&mut rest) {
                listed.push(tag);
            }
        }
        Some(Self::Listed(listed))
    }

    fn matches(&self, current: Option<&str>, weakly: bool) -> bool {
        let Some(current) = current else { return false };
        match self {
            Self::Any => true,
            Self::Listed(tags) => tags.iter().any(|tag| tag.text == current && (weakly || !tag.is_weak)),
        }
    }
}

// === impl EntityTag ===

impl EntityTag {
    /// The next one of a list. Forgotten quotes are forgiven: a digest has no comma.
    fn next(rest: &mut &str) -> Option<Self> {
        let list = rest.trim_start_matches([' ', '\t', ',']);
        if list.is_empty() {
            return None;
        }
        let (is_weak, tag) = list.strip_prefix("W/").map_or((false, list), |tag| (true, tag));
        let quoted = tag.strip_prefix('"').and_then(|tag| tag.split_once('"'));
        let (text, after) = quoted.unwrap_or_else(|| tag.split_at(tag.find(',').unwrap_or(tag.len())));
        *rest = after;
        Some(Self { text: text.trim().to_owned(), is_weak })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn if_match(values: &[&str], current: Option<&str>) -> Result<(), Unmet> {
        Condition::parse(values.iter().copied(), []).check(current)
    }

    fn if_none_match(values: &[&str], current: Option<&str>) -> Result<(), Unmet> {
        Condition::parse([], values.iter().copied()).check(current)
    }

    #[test]
    fn without_headers_everything_holds() {
        let none = Condition::parse([], []);
        assert!(none.is_empty());
        assert_eq!((none.check(None), none.check(Some("a"))), (Ok(()), Ok(())));
    }

    #[test]
    fn what_is_there_has_to_be_one_of_those() {
        for values in
            [&["\"a\""][..], &["\"b\", \"a\""], &["\"b\"", "\"a\""], &["\"b,\",\"a\""], &["*"], &["a"], &[" , a ,"]]
        {
            assert_eq!(if_match(values, Some("a")), Ok(()), "{values:?}");
            assert_eq!(if_match(values, None), Err(Unmet::Match), "{values:?}");
        }
        // Only strong tags are compared, and a header without any names nothing.
        for values in [&["\"b\""][..], &["W/\"a\""], &[""], &[","], &["\"a"], &["\"\""], &["\"A\""]] {
            assert_eq!(if_match(values, Some("a")), Err(Unmet::Match), "{values:?}");
        }
    }

    #[test]
    fn what_is_there_must_be_none_of_those() {
        for values in [&["\"a\""][..], &["\"b\", W/\"a\""], &["*"], &["W/a"], &["\"b\"", "\"a\""]] {
            assert_eq!(if_none_match(values, Some("a")), Err(Unmet::NoneMatch), "{values:?}");
            assert_eq!(if_none_match(values, None), Ok(()), "{values:?}");
        }
        assert_eq!(if_none_match(&["\"b\""], Some("a")), Ok(()));
        assert_eq!(if_none_match(&[""], Some("a")), Ok(()));
    }

    #[test]
    fn both_have_to_hold_and_the_first_is_looked_at_first() {
        let both = Condition::parse(["\"a\""], ["\"b\""]);
        assert_eq!(both.check(Some("a")), Ok(()));
        assert_eq!(both.check(Some("b")), Err(Unmet::Match));
        assert_eq!(Condition::parse(["*"], ["*"]).check(Some("a")), Err(Unmet::NoneMatch));
    }
}
