//! A serde deserializer over the `tree` that knows the path of every error and notes unknown fields as it goes.

use std::cell::RefCell;
use std::fmt;

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, Error as _, IntoDeserializer as _, MapAccess, SeqAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::Problem;
use super::tree::{self, Entry, Node, Segment, Value};

/// What could not be read.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) path: Vec<Segment>,
    pub(super) message: String,
    /// The path names a required value that is not there.
    pub(super) missing: bool,
}

/// Reads a `T`; unknown fields do not stop it and are added to `unknown`.
pub(super) fn read<T: DeserializeOwned>(root: &Node, unknown: &mut Vec<Problem>) -> Result<T, Failure> {
    let sink = RefCell::new(Vec::new());
    let result = T::deserialize(Reader { node: root, path: &Path::Root, unknown: &sink });
    unknown.append(&mut sink.into_inner());
    result.map_err(|error| {
        let mut path = error.path.unwrap_or_default();
        let missing = error.missing.is_some();
        path.extend(error.missing.map(|field| Segment::Key(field.to_owned())));
        Failure { path, message: error.message, missing }
    })
}

/// The way from the root, as a list on the stack.
enum Path<'p> {
    Root,
    Below { parent: &'p Self, segment: Segment },
}

impl Path<'_> {
    fn to_vec(&self) -> Vec<Segment> {
        match self {
            Self::Root => Vec::new(),
            Self::Below { parent, segment } => {
                let mut path = parent.to_vec();
                path.push(segment.clone());
                path
            }
        }
    }
}

#[derive(Debug)]
struct Error {
    path: Option<Vec<Segment>>,
    message: String,
    missing: Option<&'static str>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl serde::de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        // One line per problem.
        Self { path: None, message: message.to_string().replace('\n', ", "), missing: None }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { path: None, message: String::new(), missing: Some(field) }
    }
}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    path: &'a Path<'a>,
    unknown: &'a RefCell<Vec<Problem>>,
}

impl<'a> Reader<'a> {
    /// The error happened here, unless it knows better.
    fn locate<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        result.map_err(|mut error| {
            error.path.get_or_insert_with(|| self.path.to_vec());
            error
        })
    }

    fn table<'de, V: Visitor<'de>>(
        self,
        entries: &'a [Entry],
        fields: Option<&'static [&'static str]>,
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Some(fields) = fields {
            for entry in entries.iter().filter(|entry| !fields.contains(&entry.key.as_str())) {
                self.note_unknown(entry, fields);
            }
        }
        self.locate(visitor.visit_map(Table { reader: self, rest: entries.iter(), current: None, fields }))
    }

    fn note_unknown(&self, entry: &Entry, fields: &[&str]) {
        let mut path = self.path.to_vec();
        path.push(Segment::Key(entry.key.clone()));
        let near = fields.iter().map(|field| (distance(field, &entry.key), *field)).min();
        let mut message = match near {
            Some((edits, field)) if edits <= 1 + field.len() / 4 => format!("unknown field, did you mean {field}? "),
            _ => "unknown field, ".to_owned(),
        };
        message.push_str(&match fields {
            [] => "nothing is allowed here".to_owned(),
            _ => format!("allowed here: {}", fields.join(", ")),
        });
        let place = entry.key_place.clone();
        self.unknown.borrow_mut().push(Problem { place, path: tree::render(&path), message });
    }

    fn number<'de, V: Visitor<'de>>(&self, number: i128, visitor: V) -> Result<V::Value, Error> {
        self.locate(if let Ok(number) = i64::try_from(number) {
            visitor.visit_i64(number)
        } else if let Ok(number) = u64::try_from(number) {
            visitor.visit_u64(number)
        } else {
            Err(Error::custom(format_args!("{number} is too large a number")))
        })
    }

    /// The environment's text read as TOML, for types that have more than one form.
    fn with_env<'de, V: Visitor<'de>>(
        self,
        text: &str,
        visitor: V,
        fits: impl Fn(&Value) -> bool,
        read: impl FnOnce(Reader<'_>, V) -> Result<V::Value, Error>,
    ) -> Result<V::Value, Error> {
        match tree::parse_value(text, &self.node.place) {
            Some(node) if fits(&node.value) => read(Reader { node: &node, ..self }, visitor),
            _ => self.locate(visitor.visit_str(text)),
        }
    }

    fn sequence<'de, V: Visitor<'de>>(self, items: &'a [Node], visitor: V) -> Result<V::Value, Error> {
        self.locate(visitor.visit_seq(Items { reader: self, items, next: 0 }))
    }
}

macro_rules! scalar {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            match &self.node.value {
                Value::StandIn => self.locate(visitor.visit_u64(0)),
                Value::Env(text) => {
                    let number = |value: &Value| matches!(value, Value::Integer(_) | Value::Float(_));
                    self.with_env(text.trim(), visitor, number, |reader, visitor| reader.deserialize_any(visitor))
                }
                _ => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::String(text) => self.locate(visitor.visit_str(text)),
            Value::Integer(number) => self.number(*number, visitor),
            Value::Float(number) => self.locate(visitor.visit_f64(*number)),
            Value::Bool(yes) => self.locate(visitor.visit_bool(*yes)),
            Value::Array(items) => self.sequence(items, visitor),
            Value::Table(entries) => self.table(entries, None, visitor),
            Value::Env(text) => {
                self.with_env(text, visitor, |_| true, |reader, visitor| reader.deserialize_any(visitor))
            }
            Value::StandIn => self.locate(visitor.visit_str("")),
            Value::Gone => self.locate(visitor.visit_unit()),
        }
    }

    scalar! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::StandIn => self.locate(visitor.visit_bool(false)),
            Value::Env(text) => match text.trim().parse() {
                Ok(yes) => self.locate(visitor.visit_bool(yes)),
                Err(_) => self.locate(visitor.visit_str(text)),
            },
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Env(text) => self.locate(visitor.visit_str(text)),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::StandIn => self.locate(visitor.visit_none()),
            Value::Env(text) if text.is_empty() => self.locate(visitor.visit_none()),
            _ => self.locate(visitor.visit_some(self)),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::StandIn => self.sequence(&[], visitor),
            Value::Env(text) => {
                if let Some(Node { value: Value::Array(items), .. }) = tree::parse_value(text, &self.node.place) {
                    return self.locate(visitor.visit_seq(Items { reader: self, items: &items, next: 0 }));
                }
                // `a,b,c` is what people write.
                let item =
                    |text: &str| Node { place: self.node.place.clone(), value: Value::Env(text.trim().to_owned()) };
                let items: Vec<Node> = text.split(',').filter(|text| !text.trim().is_empty()).map(item).collect();
                self.locate(visitor.visit_seq(Items { reader: self, items: &items, next: 0 }))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::StandIn => self.table(&[], None, visitor),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.node.value {
            Value::Table(entries) => self.table(entries, Some(fields), visitor),
            Value::StandIn => self.table(&[], None, visitor),
            Value::Env(text) => {
                let table = |value: &Value| matches!(value, Value::Table(_));
                self.with_env(text, visitor, table, |reader, visitor| reader.deserialize_struct(name, fields, visitor))
            }
            Value::Array(_) => {
                Err(Error { path: Some(self.path.to_vec()), ..Error::custom("a list was given, expected a section") })
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value, Error> {
        self.locate(visitor.visit_newtype_struct(self))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let allowed = || Error::custom(format_args!("expected one of: {}", variants.join(", ")));
        self.locate(match &self.node.value {
            Value::String(text) | Value::Env(text) => {
                if variants.contains(&text.as_str()) {
                    let text: StrDeserializer<'_, Error> = text.as_str().into_deserializer();
                    visitor.visit_enum(text)
                } else {
                    Err(Error::custom(format_args!("{text:?} is unknown, expected one of: {}", variants.join(", "))))
                }
            }
            Value::Table(entries) => visitor.visit_enum(MapAccessDeserializer::new(Table {
                reader: self,
                rest: entries.iter(),
                current: None,
                fields: None,
            })),
            _ => Err(allowed()),
        })
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { bytes byte_buf unit unit_struct }
}

struct Table<'a> {
    reader: Reader<'a>,
    rest: std::slice::Iter<'a, Entry>,
    current: Option<&'a Entry>,
    /// Others were noted already and are passed over.
    fields: Option<&'static [&'static str]>,
}

impl<'de> MapAccess<'de> for Table<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.current =
            self.rest.by_ref().find(|entry| self.fields.is_none_or(|fields| fields.contains(&entry.key.as_str())));
        let Some(entry) = self.current else { return Ok(None) };
        // A key is a text; maps with keys of another type read it from there.
        let node = Node { place: entry.key_place.clone(), value: Value::Env(entry.key.clone()) };
        let path = below(self.reader.path, Segment::Key(entry.key.clone()));
        let reader = Reader { node: &node, path: &path, unknown: self.reader.unknown };
        reader.locate(seed.deserialize(reader)).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(entry) = self.current else { return Err(Error::custom("a value was asked for before its key")) };
        let path = below(self.reader.path, Segment::Key(entry.key.clone()));
        let reader = Reader { node: &entry.node, path: &path, unknown: self.reader.unknown };
        reader.locate(seed.deserialize(reader))
    }
}

struct Items<'a, 'i> {
    reader: Reader<'a>,
    items: &'i [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for Items<'_, '_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        while matches!(self.items.get(self.next), Some(Node { value: Value::Gone, .. })) {
            self.next += 1;
        }
        let Some(node) = self.items.get(self.next) else { return Ok(None) };
        let path = below(self.reader.path, Segment::Index(self.next));
        self.next += 1;
        let reader = Reader { node, path: &path, unknown: self.reader.unknown };
        reader.locate(seed.deserialize(reader)).map(Some)
    }
}

const fn below<'p>(parent: &'p Path<'p>, segment: Segment) -> Path<'p> {
    Path::Below { parent, segment }
}

/// Edits that make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substitute = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}
