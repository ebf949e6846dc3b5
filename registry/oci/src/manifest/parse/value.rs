//! The values of a manifest.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use proto::Digest;
use serde::de::{Error, MapAccess, SeqAccess};

use super::reader::{Counted, Keys, Reader, Value};
use super::{Document, List, excerpt};
use crate::manifest::Descriptor;
use crate::parse_digest;

/// Bytes of a media type or an artifact type; RFC 6838 allows 127 on each side of the slash.
const TYPE_LEN_MAX: usize = 255;

#[derive(Clone, Copy)]
enum DocumentField {
    SchemaVersion,
    MediaType,
    ArtifactType,
    Config,
    Layers,
    Manifests,
    Subject,
    Annotations,
}

const DOCUMENT: &[(&str, DocumentField)] = &[
    ("schemaVersion", DocumentField::SchemaVersion),
    ("mediaType", DocumentField::MediaType),
    ("artifactType", DocumentField::ArtifactType),
    ("config", DocumentField::Config),
    ("layers", DocumentField::Layers),
    ("manifests", DocumentField::Manifests),
    ("subject", DocumentField::Subject),
    ("annotations", DocumentField::Annotations),
];

#[derive(Clone, Copy)]
enum DescriptorField {
    MediaType,
    Digest,
    Size,
    Urls,
    ArtifactType,
    Annotations,
}

const DESCRIPTOR: &[(&str, DescriptorField)] = &[
    ("mediaType", DescriptorField::MediaType),
    ("digest", DescriptorField::Digest),
    ("size", DescriptorField::Size),
    ("urls", DescriptorField::Urls),
    ("artifactType", DescriptorField::ArtifactType),
    ("annotations", DescriptorField::Annotations),
];

/// A media type or an artifact type. It goes into headers and columns, so it is short and without control characters.
/// An empty one is none.
struct Type(Option<String>);

/// Names and values.
struct Annotations(BTreeMap<String, String>);

impl Value for Document {
    const EXPECTED: &'static str = "an object";

    fn object<'de, M: MapAccess<'de>>(reader: &Reader<'_>, mut map: M) -> Result<Self, M::Error> {
        let mut document = Self::default();
        let mut keys = Keys::new(DOCUMENT);
        while let Some((name, field)) = keys.next(reader, &mut map)? {
            match field {
                DocumentField::SchemaVersion => document.schema_version = reader.value(&mut map, name)?,
                DocumentField::MediaType => document.media_type = read_type(reader, &mut map, name)?,
                DocumentField::ArtifactType => document.artifact_type = read_type(reader, &mut map, name)?,
                DocumentField::Config => document.config = read_descriptor(reader, &mut map, name)?,
                DocumentField::Layers => document.layers = read_list(reader, &mut map, name)?,
                DocumentField::Manifests => document.manifests = read_list(reader, &mut map, name)?,
                DocumentField::Subject => document.subject = read_descriptor(reader, &mut map, name)?,
                DocumentField::Annotations => document.annotations = read_annotations(reader, &mut map, name)?,
            }
        }
        Ok(document)
    }
}

impl Value for Descriptor {
    const EXPECTED: &'static str = "a descriptor";

    fn object<'de, M: MapAccess<'de>>(reader: &Reader<'_>, mut map: M) -> Result<Self, M::Error> {
        let (mut media_type, mut digest, mut size, mut artifact_type) = (None, None, None, None);
        let (mut urls, mut annotations) = (Vec::new(), BTreeMap::new());
        let mut keys = Keys::new(DESCRIPTOR);
        while let Some((name, field)) = keys.next(reader, &mut map)? {
            match field {
                DescriptorField::MediaType => media_type = read_type(reader, &mut map, name)?,
                DescriptorField::Digest => digest = reader.value(&mut map, name)?,
                DescriptorField::Size => size = reader.value(&mut map, name)?,
                DescriptorField::Urls => urls = reader.value(&mut map, name)?.unwrap_or_default(),
                DescriptorField::ArtifactType => artifact_type = read_type(reader, &mut map, name)?,
                DescriptorField::Annotations => annotations = read_annotations(reader, &mut map, name)?,
            }
        }
        Ok(Self {
            media_type: media_type.ok_or_else(|| reader.refuse_field("mediaType", "is missing"))?,
            digest: digest.ok_or_else(|| reader.refuse_field("digest", "is missing"))?,
            size: size.ok_or_else(|| reader.refuse_field("size", "is missing"))?,
            urls,
            artifact_type,
            annotations,
        })
    }
}

impl Value for Vec<Descriptor> {
    const EXPECTED: &'static str = "a list of descriptors";

    fn list<'de, S: SeqAccess<'de>>(reader: &Reader<'_>, list: S) -> Result<Self, S::Error> {
        reader.items(list, Counted::Descriptors)
    }
}

impl Value for Vec<String> {
    const EXPECTED: &'static str = "a list of URLs";

    fn list<'de, S: SeqAccess<'de>>(reader: &Reader<'_>, list: S) -> Result<Self, S::Error> {
        reader.items(list, Counted::Urls)
    }
}

impl Value for Annotations {
    const EXPECTED: &'static str = "an object of texts";

    fn object<'de, M: MapAccess<'de>>(reader: &Reader<'_>, mut map: M) -> Result<Self, M::Error> {
        let mut annotations = BTreeMap::new();
        while let Some(name) = map.next_key::<String>()? {
            reader.count(Counted::Annotations)?;
            match annotations.entry(name) {
                Entry::Occupied(there) => {
                    return Err(reader.refuse(format!("has {:?} twice", excerpt(there.key()))));
                }
                Entry::Vacant(free) => match map.next_value_seed(reader.seed::<String>())? {
                    Some(value) => {
                        free.insert(value);
                    }
                    None => return Err(reader.refuse(format!("has no text for {:?}", excerpt(free.key())))),
                },
            }
        }
        Ok(Self(annotations))
    }
}

impl Value for String {
    const EXPECTED: &'static str = "a text";

    fn text<E: Error>(_: &Reader<'_>, text: &str) -> Result<Self, E> {
        Ok(text.to_owned())
    }
}

impl Value for Type {
    const EXPECTED: &'static str = "a media type";

    fn text<E: Error>(reader: &Reader<'_>, text: &str) -> Result<Self, E> {
        if text.len() > TYPE_LEN_MAX || text.chars().any(char::is_control) {
            return Err(reader.refuse(format!("has more than {TYPE_LEN_MAX} bytes or control characters")));
        }
        Ok(Self(Some(text).filter(|text| !text.is_empty()).map(str::to_owned)))
    }
}

impl Value for Digest {
    const EXPECTED: &'static str = "a digest";

    fn text<E: Error>(reader: &Reader<'_>, text: &str) -> Result<Self, E> {
        parse_digest(text).map_err(|invalid| reader.refuse(invalid.to_string()))
    }
}

impl Value for u64 {
    const EXPECTED: &'static str = "a whole number, not negative, of at most 63 bits";
    const NUMBER: bool = true;

    fn number<E: Error>(reader: &Reader<'_>, number: u64) -> Result<Self, E> {
        // The specification's integers have a sign.
        if i64::try_from(number).is_err() {
            return Err(reader.refuse(format!("{number} is not {}", Self::EXPECTED)));
        }
        Ok(number)
    }
}

fn read_type<'de, M: MapAccess<'de>>(
    reader: &Reader<'_>,
    map: &mut M,
    field: &'static str,
) -> Result<Option<String>, M::Error> {
    Ok(reader.value::<M, Type>(map, field)?.and_then(|Type(text)| text))
}

fn read_annotations<'de, M: MapAccess<'de>>(
    reader: &Reader<'_>,
    map: &mut M,
    field: &'static str,
) -> Result<BTreeMap<String, String>, M::Error> {
    Ok(reader.value::<M, Annotations>(map, field)?.map(|Annotations(all)| all).unwrap_or_default())
}

fn read_list<'de, M: MapAccess<'de>>(reader: &Reader<'_>, map: &mut M, field: &'static str) -> Result<List, M::Error> {
    Ok(reader.value(map, field)?.map_or(List::Null, List::Of))
}

/// A descriptor that is in no list.
fn read_descriptor<'de, M: MapAccess<'de>>(
    reader: &Reader<'_>,
    map: &mut M,
    field: &'static str,
) -> Result<Option<Descriptor>, M::Error> {
    reader.count(Counted::Descriptors)?;
    reader.value(map, field)
}
