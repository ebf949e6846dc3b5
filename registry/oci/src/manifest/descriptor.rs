//! Descriptors.

use std::collections::BTreeMap;

use proto::Digest;
use serde::Serialize;

/// Names a blob or manifest: what it is, which one, how large. Fields that nobody here needs (`data`, `platform`) are
/// not kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The type of what it names.
    pub media_type: String,
    /// Which one.
    pub digest: Digest,
    /// Bytes it has, as the descriptor says.
    pub size: u64,
    /// Where else to get it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// What it is for, when it is a manifest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Names and values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}
