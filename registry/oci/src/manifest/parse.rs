//! Reads the JSON of a manifest within limits, and says where it is wrong.
//!
//! One pass over the bytes finds out how deep they go, so that nothing after it has to fear for the stack. Then serde
//! reads them through seeds that share a [`Reader`]: it knows the place, counts what is limited, and keeps the reason
//! when a value is refused, because an error of serde is only a text. `value.rs` says what each value has to be.

use std::collections::BTreeMap;

use serde::de::DeserializeSeed;

mod reader;
mod value;

use self::reader::Reader;
use super::{Descriptor, InvalidManifest, ManifestLimits};

/// Characters of foreign text in an error.
const EXCERPT_LEN_MAX: usize = 200;

/// The fields of a manifest or index that matter.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) schema_version: Option<u64>,
    pub(super) media_type: Option<String>,
    pub(super) artifact_type: Option<String>,
    pub(super) config: Option<Descriptor>,
    pub(super) layers: List,
    pub(super) manifests: List,
    pub(super) subject: Option<Descriptor>,
    pub(super) annotations: BTreeMap<String, String>,
}

/// A list that a manifest has to have.
#[derive(Debug, Default)]
pub(super) enum List {
    #[default]
    Missing,
    /// `null`: Go writes an empty list so, and also the list of a type that has fields of images and of indexes.
    Null,
    Of(Vec<Descriptor>),
}

// === impl List ===

impl List {
    /// Whether it tells what the manifest is.
    pub(super) const fn is_there(&self) -> bool {
        matches!(self, Self::Of(_))
    }

    /// What it lists; `field` is its name.
    pub(super) fn entries(self, field: &str) -> Result<Vec<Descriptor>, InvalidManifest> {
        match self {
            Self::Missing => Err(missing(field)),
            Self::Null => Ok(Vec::new()),
            Self::Of(entries) => Ok(entries),
        }
    }
}

/// Reads the fields.
pub(super) fn document(raw: &[u8], limits: &ManifestLimits) -> Result<Document, InvalidManifest> {
    if raw.len() > limits.size_bytes_max {
        return Err(InvalidManifest::TooLarge { size: raw.len(), limit: limits.size_bytes_max });
    }
    let text = std::str::from_utf8(raw).map_err(|error| InvalidManifest::Json(error.to_string()))?;
    if depth(raw) > limits.depth_max {
        return Err(InvalidManifest::TooDeep { limit: limits.depth_max });
    }
    let reader = Reader::new(limits);
    let mut json = serde_json::Deserializer::from_str(text);
    let read = reader.seed::<Document>().deserialize(&mut json).and_then(|document| json.end().map(|()| document));
    read.map_err(|error| reader.problem(&error))?.ok_or_else(|| wrong("the manifest", "is null"))
}

pub(super) fn wrong(field: impl Into<String>, reason: impl Into<String>) -> InvalidManifest {
    InvalidManifest::Field { field: field.into(), reason: reason.into() }
}

pub(super) fn missing(field: &str) -> InvalidManifest {
    wrong(field, "is missing")
}

/// The beginning of a text that a stranger wrote.
pub(super) fn excerpt(text: &str) -> String {
    text.chars().take(EXCERPT_LEN_MAX).collect()
}

/// How many objects and lists are within each other. Of what is no JSON it may say anything.
fn depth(raw: &[u8]) -> usize {
    let (mut now, mut most) = (0usize, 0);
    let mut bytes = raw.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'{' | b'[' => {
                now += 1;
                most = most.max(now);
            }
            b'}' | b']' => now = now.saturating_sub(1),
            b'"' => {
                while let Some(byte) = bytes.next() {
                    match byte {
                        b'\\' => {
                            bytes.next();
                        }
                        b'"' => break,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    most
}
