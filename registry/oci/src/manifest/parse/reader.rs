//! What the seeds share: the place, the counts, the reason. And the one seed itself.

use std::cell::{Cell, RefCell};
use std::fmt::{self, Write as _};
use std::marker::PhantomData;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor};

use super::{excerpt, wrong};
use crate::manifest::{InvalidManifest, ManifestLimits};

/// Reads one manifest.
pub(super) struct Reader<'l> {
    limits: &'l ManifestLimits,
    /// The place. A step is taken back after success only, so that it is still there after an error.
    path: RefCell<Vec<Step>>,
    /// Why a value was refused.
    problem: RefCell<Option<InvalidManifest>>,
    counts: [Cell<usize>; 3],
}

pub(super) enum Step {
    Field(&'static str),
    Index(usize),
}

/// What is counted.
#[derive(Clone, Copy)]
pub(super) enum Counted {
    Descriptors,
    Annotations,
    Urls,
}

/// A value of a manifest: which kind of JSON it is, and how it is read. What is not overridden is refused.
pub(super) trait Value: Sized {
    /// What stands in the error otherwise.
    const EXPECTED: &'static str;
    /// Numbers are asked for as such: serde_json has a feature with which they are objects to who takes anything, and
    /// any crate of a build can switch it on for all.
    const NUMBER: bool = false;

    fn object<'de, M: MapAccess<'de>>(_reader: &Reader<'_>, _map: M) -> Result<Self, M::Error> {
        Err(M::Error::invalid_type(Unexpected::Map, &Self::EXPECTED))
    }

    fn list<'de, S: SeqAccess<'de>>(_reader: &Reader<'_>, _list: S) -> Result<Self, S::Error> {
        Err(S::Error::invalid_type(Unexpected::Seq, &Self::EXPECTED))
    }

    fn text<E: Error>(_reader: &Reader<'_>, text: &str) -> Result<Self, E> {
        Err(E::invalid_type(Unexpected::Str(text), &Self::EXPECTED))
    }

    fn number<E: Error>(_reader: &Reader<'_>, number: u64) -> Result<Self, E> {
        Err(E::invalid_type(Unexpected::Unsigned(number), &Self::EXPECTED))
    }
}

/// Reads one `T`; `None` where `null` stands.
pub(super) struct Seed<'r, 'l, T>(&'r Reader<'l>, PhantomData<T>);

/// The keys of one object, those left out that mean nothing here. `F` tells the known ones apart.
pub(super) struct Keys<F: 'static> {
    known: &'static [(&'static str, F)],
    seen: u32,
}

struct KeySeed<'r, 'l, F: 'static>(&'r Reader<'l>, &'static [(&'static str, F)]);

// === impl Reader ===

impl<'l> Reader<'l> {
    pub(super) fn new(limits: &'l ManifestLimits) -> Self {
        Self { limits, path: RefCell::default(), problem: RefCell::default(), counts: Default::default() }
    }

    pub(super) const fn seed<T>(&self) -> Seed<'_, 'l, T> {
        Seed(self, PhantomData)
    }

    /// Reads something one step further in.
    pub(super) fn within<V, E>(&self, step: Step, read: impl FnOnce() -> Result<V, E>) -> Result<V, E> {
        self.path.borrow_mut().push(step);
        let value = read()?;
        self.path.borrow_mut().pop();
        Ok(value)
    }

    /// Reads the value of a field; `None` where `null` stands.
    pub(super) fn value<'de, M: MapAccess<'de>, T: Value>(
        &self,
        map: &mut M,
        field: &'static str,
    ) -> Result<Option<T>, M::Error> {
        self.within(Step::Field(field), || map.next_value_seed(self.seed()))
    }

    /// Reads a list of what has to be counted.
    pub(super) fn items<'de, S: SeqAccess<'de>, T: Value>(
        &self,
        mut list: S,
        counted: Counted,
    ) -> Result<Vec<T>, S::Error> {
        let mut items = Vec::new();
        loop {
            let item = self.within(Step::Index(items.len()), || match list.next_element_seed(self.seed())? {
                None => Ok(None),
                Some(None) => Err(self.refuse("is null")),
                Some(Some(item)) => self.count(counted).map(|()| Some(item)),
            })?;
            match item {
                Some(item) => items.push(item),
                None => return Ok(items),
            }
        }
    }

    /// One more of something that has a limit.
    pub(super) fn count<E: Error>(&self, counted: Counted) -> Result<(), E> {
        let (what, limit) = match counted {
            Counted::Descriptors => ("descriptors", self.limits.descriptors_max),
            Counted::Annotations => ("annotations", self.limits.annotations_max),
            Counted::Urls => ("urls", self.limits.urls_max),
        };
        let count = &self.counts[counted as usize];
        count.set(count.get() + 1);
        if count.get() > limit {
            return Err(self.stop(InvalidManifest::TooMany { what, limit }));
        }
        Ok(())
    }

    /// What stands here cannot be right.
    pub(super) fn refuse<E: Error>(&self, reason: impl Into<String>) -> E {
        self.stop(wrong(self.place(), reason))
    }

    /// A field of the object that is read here cannot be right.
    pub(super) fn refuse_field<E: Error>(&self, field: &'static str, reason: impl Into<String>) -> E {
        self.path.borrow_mut().push(Step::Field(field));
        self.refuse(reason)
    }

    fn stop<E: Error>(&self, problem: InvalidManifest) -> E {
        *self.problem.borrow_mut() = Some(problem);
        E::custom("refused")
    }

    /// Where we are: `layers[3].digest`.
    fn place(&self) -> String {
        let mut place = String::new();
        for step in self.path.borrow().iter() {
            let written = match step {
                Step::Field(field) if place.is_empty() => place.write_str(field),
                Step::Field(field) => write!(place, ".{field}"),
                Step::Index(index) => write!(place, "[{index}]"),
            };
            written.expect("a String takes everything");
        }
        if place.is_empty() { "the manifest".to_owned() } else { place }
    }

    /// Why reading ended with this error.
    pub(super) fn problem(&self, error: &serde_json::Error) -> InvalidManifest {
        if let Some(problem) = self.problem.take() {
            return problem;
        }
        let reason = excerpt(&error.to_string());
        if error.is_data() { wrong(self.place(), reason) } else { InvalidManifest::Json(reason) }
    }
}

// === impl Keys ===

impl<F: Copy> Keys<F> {
    pub(super) const fn new(known: &'static [(&'static str, F)]) -> Self {
        Self { known, seen: 0 }
    }

    /// The next known key. It may stand there once. Values of others are skipped.
    pub(super) fn next<'de, M: MapAccess<'de>>(
        &mut self,
        reader: &Reader<'_>,
        map: &mut M,
    ) -> Result<Option<(&'static str, F)>, M::Error> {
        while let Some(known) = map.next_key_seed(KeySeed(reader, self.known))? {
            let Some(index) = known else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let (name, field) = self.known[index];
            if self.seen & 1 << index != 0 {
                return Err(reader.refuse_field(name, "is there twice"));
            }
            self.seen |= 1 << index;
            return Ok(Some((name, field)));
        }
        Ok(None)
    }
}

impl<'de, F> DeserializeSeed<'de> for KeySeed<'_, '_, F> {
    /// Which of the known keys, if any.
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<F> Visitor<'_> for KeySeed<'_, '_, F> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        let Self(reader, known) = self;
        match known.iter().position(|(name, _)| folds_to(key, name)) {
            Some(index) if known[index].0 == key => Ok(Some(index)),
            Some(index) => {
                Err(reader.refuse_field(known[index].0, format!("is written {key:?}, which some take for it")))
            }
            None => Ok(None),
        }
    }
}

/// Whether Go's `encoding/json` takes a key for this field: it ignores case, and U+017F is an `s` to it. (U+212A is a
/// `k`, which no field has.)
fn folds_to(key: &str, field: &str) -> bool {
    let fold = |c: char| if c == '\u{17f}' { 's' } else { c.to_ascii_lowercase() };
    key.chars().map(fold).eq(field.chars().map(fold))
}

// === impl Seed ===

impl<'de, T: Value> DeserializeSeed<'de> for Seed<'_, '_, T> {
    type Value = Option<T>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        if T::NUMBER { deserializer.deserialize_u64(self) } else { deserializer.deserialize_any(self) }
    }
}

impl<'de, T: Value> Visitor<'de> for Seed<'_, '_, T> {
    type Value = Option<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Self::Value, M::Error> {
        T::object(self.0, map).map(Some)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, list: S) -> Result<Self::Value, S::Error> {
        T::list(self.0, list).map(Some)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        T::text(self.0, text).map(Some)
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        T::number(self.0, number).map(Some)
    }
}
