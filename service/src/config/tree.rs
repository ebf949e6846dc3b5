//! A TOML document as a tree whose values know their places, and the environment laid over it.

use std::borrow::Cow;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Place, Problem};

/// A value and where it came from.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    String(String),
    Integer(i128),
    Float(f64),
    Bool(bool),
    Array(Vec<Node>),
    Table(Vec<Entry>),
    /// The text of an environment variable, to be read as whatever type the field has.
    Env(String),
    /// Fits any type: put where a required value is missing, so that the search for problems can go on.
    StandIn,
    /// A list element that was taken out; what follows it keeps its index.
    Gone,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_place: Place,
    pub(super) node: Node,
}

/// A step in a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Key(String),
    Index(usize),
}

/// Parses a document as far as it goes, and lists every syntax error.
pub(super) fn parse(name: &str, text: &str) -> (Node, Vec<Problem>) {
    let places = Places::new(name, text);
    let (document, errors) = DeTable::parse_recoverable(text);
    let problems = errors
        .into_iter()
        .map(|error| Problem {
            place: places.at(error.span().map_or(0, |span| span.start)),
            path: String::new(),
            message: error.message().replace('\n', ", "),
        })
        .collect();
    let value = table(document.into_inner(), &places);
    (Node { place: places.at(0), value }, problems)
}

/// Reads one value, as on the right side of `key = `.
pub(super) fn parse_value(text: &str, place: &Place) -> Option<Node> {
    let parsed = DeValue::parse(text).ok()?;
    let places = Places { name: "", lines: Vec::new(), text: "", fixed: Some(place.clone()) };
    Some(Node { place: place.clone(), value: value(parsed.into_inner(), &places) })
}

/// Byte offsets to lines and columns.
struct Places<'t> {
    name: &'t str,
    text: &'t str,
    /// Where each line starts.
    lines: Vec<usize>,
    fixed: Option<Place>,
}

impl<'t> Places<'t> {
    fn new(name: &'t str, text: &'t str) -> Self {
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name, text, lines, fixed: None }
    }

    fn at(&self, offset: usize) -> Place {
        if let Some(fixed) = &self.fixed {
            return fixed.clone();
        }
        let line = self.lines.partition_point(|start| *start <= offset).max(1);
        let start = self.lines[line - 1];
        let column = self.text.get(start..offset).map_or(0, |text| text.chars().count()) + 1;
        Place::File { name: self.name.to_owned(), line, column }
    }
}

fn node(spanned: Spanned<DeValue<'_>>, places: &Places<'_>) -> Node {
    let place = places.at(spanned.span().start);
    Node { place, value: value(spanned.into_inner(), places) }
}

fn table(table: DeTable<'_>, places: &Places<'_>) -> Value {
    let mut entries: Vec<(usize, Entry)> = table
        .into_iter()
        .map(|(key, spanned)| {
            let at = key.span().start;
            let entry =
                Entry { key_place: places.at(at), key: key.into_inner().into_owned(), node: node(spanned, places) };
            (at, entry)
        })
        .collect();
    // As written, so that problems are met in that order.
    entries.sort_by_key(|(at, _)| *at);
    Value::Table(entries.into_iter().map(|(_, entry)| entry).collect())
}

fn value(value: DeValue<'_>, places: &Places<'_>) -> Value {
    match value {
        DeValue::String(text) => Value::String(Cow::into_owned(text)),
        DeValue::Integer(number) => i128::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::String(number.to_string()), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::String(number.to_string()), Value::Float)
        }
        DeValue::Boolean(yes) => Value::Bool(yes),
        DeValue::Datetime(time) => Value::String(time.to_string()),
        DeValue::Array(items) => Value::Array(items.into_iter().map(|item| node(item, places)).collect()),
        DeValue::Table(entries) => table(entries, places),
    }
}

/// Lays `PREFIX__SECTION__FIELD=value` over the tree.
pub(super) fn overlay(
    root: &mut Node,
    prefix: &str,
    env: impl IntoIterator<Item = (String, String)>,
    problems: &mut Vec<Problem>,
) {
    let mut variables: Vec<_> = env
        .into_iter()
        .filter_map(|(name, text)| {
            let rest = name.strip_prefix(prefix)?.strip_prefix("__")?.to_ascii_lowercase();
            Some((rest, name, text))
        })
        .collect();
    // Sections before their fields, whatever the order of the environment.
    variables.sort();
    for (rest, name, text) in variables {
        let place = Place::Env(name);
        let keys: Vec<&str> = rest.split("__").collect();
        if keys.iter().any(|key| key.is_empty()) {
            problems.push(Problem {
                place,
                path: String::new(),
                message: format!("names no field: {prefix}__SECTION__FIELD is expected"),
            });
            continue;
        }
        if let Err(at) = set(root, &keys, &place, text) {
            let path = at.join(".");
            problems.push(Problem { place, path, message: "is no section, so it has no fields to set".to_owned() });
        }
    }
}

fn set<'k>(root: &mut Node, keys: &[&'k str], place: &Place, text: String) -> Result<(), Vec<&'k str>> {
    let mut node = root;
    for (depth, key) in keys.iter().enumerate() {
        if let Value::Env(text) = &node.value
            && let Some(parsed) = parse_value(text, &node.place)
        {
            *node = parsed;
        }
        let Value::Table(entries) = &mut node.value else { return Err(keys[..depth].to_vec()) };
        let index = entries.iter().position(|entry| entry.key == *key).unwrap_or_else(|| {
            let node = Node { place: place.clone(), value: Value::Table(Vec::new()) };
            entries.push(Entry { key: (*key).to_owned(), key_place: place.clone(), node });
            entries.len() - 1
        });
        let entry = &mut entries[index];
        if depth + 1 == keys.len() {
            entry.key_place = place.clone();
        }
        node = &mut entry.node;
    }
    *node = Node { place: place.clone(), value: Value::Env(text) };
    Ok(())
}

/// `a.b[2].c`.
pub(super) fn render(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
            Segment::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

fn unrender(path: &str) -> Vec<Segment> {
    let mut segments = Vec::new();
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let mut pieces = part.split('[');
        if let Some(key) = pieces.next() {
            segments.push(Segment::Key(key.to_owned()));
        }
        segments.extend(pieces.filter_map(|index| index.trim_end_matches(']').parse().ok()).map(Segment::Index));
    }
    segments
}

/// The place of a path in dotted form, or of the nearest thing around it that somebody wrote.
pub(super) fn place_of(root: &Node, path: &str) -> Place {
    place_around(root, &unrender(path))
}

pub(super) fn place_around(root: &Node, path: &[Segment]) -> Place {
    let around = (1..=path.len()).rev().find_map(|len| get(root, &path[..len]));
    around.map_or(Place::Default, |node| node.place.clone())
}

fn child<'n>(node: &'n Node, segment: &Segment) -> Option<&'n Node> {
    match (segment, &node.value) {
        (Segment::Key(key), Value::Table(entries)) => entries.iter().find(|e| e.key == *key).map(|e| &e.node),
        (Segment::Index(index), Value::Array(items)) => items.get(*index),
        _ => None,
    }
}

pub(super) fn get<'n>(root: &'n Node, path: &[Segment]) -> Option<&'n Node> {
    path.iter().try_fold(root, child)
}

fn get_mut<'n>(root: &'n mut Node, path: &[Segment]) -> Option<&'n mut Node> {
    path.iter().try_fold(root, |node, segment| match (segment, &mut node.value) {
        (Segment::Key(key), Value::Table(entries)) => entries.iter_mut().find(|e| e.key == *key).map(|e| &mut e.node),
        (Segment::Index(index), Value::Array(items)) => items.get_mut(*index),
        _ => None,
    })
}

/// Whether the path leads to or through a stand-in.
pub(super) fn passes_stand_in(root: &Node, path: &[Segment]) -> bool {
    let mut node = Some(root);
    for segment in path {
        node = node.and_then(|node| child(node, segment));
        if node.is_some_and(|node| matches!(node.value, Value::StandIn)) {
            return true;
        }
    }
    false
}

/// Takes a value out. A value inside an environment variable's text cannot be addressed: then the whole variable goes.
pub(super) fn remove(root: &mut Node, path: &[Segment]) {
    let deepest = (0..=path.len()).rev().find(|len| get(root, &path[..*len]).is_some()).unwrap_or(0);
    let Some((last, parents)) = path[..deepest].split_last() else {
        root.value = Value::Table(Vec::new());
        return;
    };
    match (last, get_mut(root, parents).map(|node| &mut node.value)) {
        (Segment::Key(key), Some(Value::Table(entries))) => entries.retain(|entry| entry.key != *key),
        (Segment::Index(index), Some(Value::Array(items))) => {
            items[*index].value = Value::Gone;
        }
        _ => {}
    }
}

/// Puts a value in for a key of an existing table; without such a table, what is around it goes.
pub(super) fn insert(root: &mut Node, path: &[Segment], node: Node) {
    if let Some((Segment::Key(key), parents)) = path.split_last()
        && let Some(Value::Table(entries)) = get_mut(root, parents).map(|node| &mut node.value)
    {
        entries.push(Entry { key: key.clone(), key_place: Place::Default, node });
        return;
    }
    remove(root, path);
}
