//! Manifests and indexes.

mod descriptor;
mod parse;

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use proto::{Algorithm, Digest};

pub use self::descriptor::Descriptor;
use crate::{ErrorCode, media_type};

/// What a manifest may cost. Each limit is about one manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ManifestLimits {
    /// Bytes. The specification wants 4 MiB accepted.
    pub size_bytes_max: usize,
    /// Objects and lists within each other. An image needs 4; the parser's stack grows with it.
    pub depth_max: usize,
    /// Descriptors: configuration, layers, entries of an index and the subject. Each is a row in the database.
    pub descriptors_max: usize,
    /// Annotations, those of descriptors included. Each costs far more memory than it has bytes.
    pub annotations_max: usize,
    /// URLs of layers that lie elsewhere.
    pub urls_max: usize,
}

/// A manifest or index: the bytes as they came, and what they say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    raw: Bytes,
    media_type: &'static str,
    kind: Kind,
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    annotations: BTreeMap<String, String>,
}

/// What a manifest is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An image or an artifact.
    Image {
        /// Its configuration, or what stands in for one.
        config: Descriptor,
        /// Its content.
        layers: Vec<Descriptor>,
    },
    /// An index, or Docker's manifest list.
    Index {
        /// Its entries: manifests, and what build caches put there.
        manifests: Vec<Descriptor>,
    },
}

/// A blob that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRef<'m> {
    /// Its digest.
    pub digest: &'m Digest,
    /// The size its first descriptor gives. Nobody has compared it with the blob's.
    pub size_bytes: u64,
    /// Whether it has to be there when the manifest is pushed. Layers that clients get elsewhere need not, but if they
    /// are there, they belong to the manifest like all others.
    pub required: bool,
}

/// Why a manifest is not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidManifest {
    /// More bytes than allowed: 413.
    #[error("the manifest has {size} bytes, more than {limit}")]
    TooLarge {
        /// Bytes it has.
        size: usize,
        /// Bytes it may have.
        limit: usize,
    },
    /// Objects and lists are nested deeper than allowed.
    #[error("the manifest has more than {limit} objects and lists within each other")]
    TooDeep {
        /// How deep it may be.
        limit: usize,
    },
    /// More of something than allowed.
    #[error("the manifest has more than {limit} {what}")]
    TooMany {
        /// Of what: `descriptors`, `annotations` or `urls`.
        what: &'static str,
        /// How many there may be.
        limit: usize,
    },
    /// No JSON object at all.
    #[error("the manifest is not JSON: {0}")]
    Json(String),
    /// A field has no value that could be right.
    #[error("{field}: {reason}")]
    Field {
        /// Where: `layers[3].digest`.
        field: String,
        /// What is wrong.
        reason: String,
    },
    /// `Content-Type` and the field `mediaType` name different types.
    #[error("the header Content-Type says {header:?}, the field mediaType says {field:?}")]
    MediaTypesDiffer {
        /// The header's type.
        header: String,
        /// The field's type.
        field: String,
    },
    /// A type that is no manifest's.
    #[error("{0:?} is not a manifest's media type that this registry takes")]
    MediaType(String),
    /// Docker's schema 1.
    #[error("manifests of Docker's schema 1 are not supported; the client is too old")]
    Schema1,
    /// It has fields of an image and of an index: two readers could see two different things.
    #[error("the manifest has {0:?}, which {1} does not have")]
    Ambiguous(&'static str, &'static str),
}

// === impl ManifestLimits ===

impl Default for ManifestLimits {
    fn default() -> Self {
        Self {
            size_bytes_max: 4 << 20,
            depth_max: 32,
            descriptors_max: 10_000,
            annotations_max: 10_000,
            urls_max: 10_000,
        }
    }
}

// === impl Manifest ===

impl Manifest {
    /// Reads a manifest. `content_type` is the request's header; parameters in it do not matter.
    ///
    /// Header and field `mediaType` must agree when both are there. Without both, what it is made of decides, as the
    /// OCI image specification has it. Fields that are not known are ignored. `null` is as good as no field; of `layers`
    /// and `manifests`, one of which has to be there, it is the empty list, because that is how Go writes it.
    ///
    /// Refused is what different readers would read differently: a known field twice, a field whose name differs from a
    /// known one in case only (Go's parser takes it), an annotation twice, fields of an image and of an index in one
    /// manifest.
    ///
    /// # Errors
    /// [`InvalidManifest`] names the field where that is possible.
    pub fn parse(raw: Bytes, content_type: Option<&str>, limits: &ManifestLimits) -> Result<Self, InvalidManifest> {
        let document = parse::document(&raw, limits)?;
        let header = content_type.map(media_type::essence).filter(|header| !header.is_empty());
        let field = document.media_type;
        if let (Some(header), Some(field)) = (&header, &field)
            && header != field
        {
            return Err(InvalidManifest::MediaTypesDiffer { header: parse::excerpt(header), field: field.clone() });
        }
        let stated = field.or(header);
        if document.schema_version == Some(1) || stated.as_deref().is_some_and(media_type::is_schema1) {
            return Err(InvalidManifest::Schema1);
        }
        if document.schema_version != Some(2) {
            return Err(parse::wrong("schemaVersion", "has to be 2"));
        }
        let media_type = match stated {
            Some(stated) => known(&stated).ok_or_else(|| InvalidManifest::MediaType(parse::excerpt(&stated)))?,
            None if document.config.is_some() || document.layers.is_there() => media_type::OCI_MANIFEST,
            None => media_type::OCI_INDEX,
        };
        let kind = if media_type::is_index(media_type) {
            for (there, name) in [(document.config.is_some(), "config"), (document.layers.is_there(), "layers")] {
                if there {
                    return Err(InvalidManifest::Ambiguous(name, "an index"));
                }
            }
            Kind::Index { manifests: document.manifests.entries("manifests")? }
        } else {
            if document.manifests.is_there() {
                return Err(InvalidManifest::Ambiguous("manifests", "an image"));
            }
            Kind::Image {
                config: document.config.ok_or_else(|| parse::missing("config"))?,
                layers: document.layers.entries("layers")?,
            }
        };
        Ok(Self {
            raw,
            media_type,
            kind,
            subject: document.subject,
            artifact_type: document.artifact_type,
            annotations: document.annotations,
        })
    }

    /// The bytes as they came. What is stored, hashed and served.
    #[must_use]
    pub const fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// One of [`media_type::MANIFESTS`]: the `Content-Type` it is served with.
    #[must_use]
    pub const fn media_type(&self) -> &'static str {
        self.media_type
    }

    /// What it is made of.
    #[must_use]
    pub const fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The manifest it says something about. That one need not exist.
    #[must_use]
    pub const fn subject(&self) -> Option<&Descriptor> {
        self.subject.as_ref()
    }

    /// What it is for, as lists of referrers have it: its `artifactType`, and for an image without one its
    /// configuration's type.
    #[must_use]
    pub fn artifact_type(&self) -> Option<&str> {
        let own = self.artifact_type.as_deref();
        match &self.kind {
            Kind::Image { config, .. } => own.or(Some(&config.media_type)),
            Kind::Index { .. } => own,
        }
    }

    /// Its annotations; those of its descriptors are with them.
    #[must_use]
    pub const fn annotations(&self) -> &BTreeMap<String, String> {
        &self.annotations
    }

    /// The digest of its bytes.
    #[must_use]
    pub fn digest(&self, algorithm: Algorithm) -> Digest {
        Digest::of(algorithm, &self.raw)
    }

    /// The blobs it names, each digest once, in their order.
    ///
    /// An index names manifests, but build caches put blobs into it. So an entry that is no manifest by its media type
    /// is a blob.
    #[must_use]
    pub fn blobs(&self) -> Vec<BlobRef<'_>> {
        let named = match &self.kind {
            Kind::Image { config, layers } => {
                let elsewhere =
                    |layer: &Descriptor| media_type::is_nondistributable(&layer.media_type) || !layer.urls.is_empty();
                let layers = layers.iter().map(|layer| (layer, !elsewhere(layer)));
                std::iter::once((config, true)).chain(layers).collect()
            }
            Kind::Index { manifests } => {
                let blobs = manifests.iter().filter(|entry| !media_type::is_manifest(&entry.media_type));
                blobs.map(|entry| (entry, true)).collect::<Vec<_>>()
            }
        };
        let required: HashSet<_> =
            named.iter().filter(|(_, required)| *required).map(|(descriptor, _)| &descriptor.digest).collect();
        let mut seen = HashSet::with_capacity(named.len());
        named
            .into_iter()
            .filter(|(descriptor, _)| seen.insert(&descriptor.digest))
            .map(|(Descriptor { digest, size, .. }, _)| BlobRef {
                digest,
                size_bytes: *size,
                required: required.contains(digest),
            })
            .collect()
    }

    /// The blobs that have to be there when it is pushed: those of [`Self::blobs`] that are `required`.
    #[must_use]
    pub fn required_blobs(&self) -> Vec<BlobRef<'_>> {
        self.blobs().into_iter().filter(|blob| blob.required).collect()
    }

    /// The manifests an index names, each digest once, in their order. Empty for an image.
    #[must_use]
    pub fn children(&self) -> Vec<&Descriptor> {
        let Kind::Index { manifests } = &self.kind else { return Vec::new() };
        let mut seen = HashSet::with_capacity(manifests.len());
        manifests
            .iter()
            .filter(|entry| media_type::is_manifest(&entry.media_type) && seen.insert(&entry.digest))
            .collect()
    }

    /// What a list of referrers says about it. `digest` is the one it is stored under.
    #[must_use]
    pub fn to_referrer(&self, digest: Digest) -> Descriptor {
        Descriptor {
            media_type: self.media_type.to_owned(),
            digest,
            size: self.raw.len() as u64,
            urls: Vec::new(),
            artifact_type: self.artifact_type().map(str::to_owned),
            annotations: self.annotations.clone(),
        }
    }
}

/// The constant for a manifest's media type.
fn known(media_type: &str) -> Option<&'static str> {
    media_type::MANIFESTS.into_iter().find(|known| *known == media_type)
}

// === impl InvalidManifest ===

impl InvalidManifest {
    /// What the answer says.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::TooLarge { .. } => ErrorCode::SizeInvalid,
            _ => ErrorCode::ManifestInvalid,
        }
    }

    /// The HTTP status.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::TooLarge { .. } => 413,
            _ => 400,
        }
    }
}
