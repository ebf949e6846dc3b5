//! From wire messages to checked types and back.

use url::Url;

use crate::{ByteRange, Digest, Generation, HostId, InvalidId, PieceHash, PieceLayout, Root, TaskId, TaskSpec, wire};

/// A message has the right shape but a field in it makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("field {field} is not valid")]
pub struct InvalidMessage {
    /// Which field.
    pub field: &'static str,
}

impl InvalidMessage {
    /// An error about this field.
    #[must_use]
    pub const fn new(field: &'static str) -> Self {
        Self { field }
    }
}

impl From<InvalidId> for InvalidMessage {
    fn from(error: InvalidId) -> Self {
        Self::new(match error.expected {
            32 => "task_id",
            _ => "generation or host_id",
        })
    }
}

impl From<&TaskSpec> for wire::TaskSpec {
    fn from(spec: &TaskSpec) -> Self {
        Self {
            url: spec.url.to_string(),
            tag: spec.tag.clone(),
            application: spec.application.clone(),
            digest: spec.digest.as_ref().map(ToString::to_string).unwrap_or_default(),
            filtered_query_params: spec.filtered_query_params.clone(),
            content_addressed: spec.content_addressed,
            range_start: spec.range.map(ByteRange::start),
            range_end: spec.range.map(ByteRange::end),
        }
    }
}

impl TryFrom<wire::TaskSpec> for TaskSpec {
    type Error = InvalidMessage;

    fn try_from(spec: wire::TaskSpec) -> Result<Self, Self::Error> {
        let range = match (spec.range_start, spec.range_end) {
            (None, None) => None,
            (Some(start), Some(end)) => Some(ByteRange::new(start, end).ok_or(InvalidMessage::new("range"))?),
            _ => return Err(InvalidMessage::new("range")),
        };
        let digest = match spec.digest.as_str() {
            "" => None,
            text => Some(text.parse::<Digest>().map_err(|_| InvalidMessage::new("digest"))?),
        };
        if spec.content_addressed && digest.is_none() {
            return Err(InvalidMessage::new("content_addressed"));
        }
        Ok(Self {
            url: Url::parse(&spec.url).map_err(|_| InvalidMessage::new("url"))?,
            tag: spec.tag,
            application: spec.application,
            digest,
            filtered_query_params: spec.filtered_query_params,
            content_addressed: spec.content_addressed,
            range,
        })
    }
}

impl wire::TaskMeta {
    /// The task and generation this speaks of.
    ///
    /// # Errors
    /// When either has the wrong length.
    pub fn key(&self) -> Result<(TaskId, Generation), InvalidMessage> {
        Ok((TaskId::from_bytes(&self.task_id)?, Generation::from_bytes(&self.generation)?))
    }

    /// The layout of the content.
    ///
    /// # Errors
    /// When it is not one we allow.
    pub fn layout(&self) -> Result<PieceLayout, InvalidMessage> {
        PieceLayout::new(self.length, self.piece_len).ok_or(InvalidMessage::new("piece_len"))
    }

    /// The root, when it is known.
    ///
    /// # Errors
    /// When it is neither absent nor 32 bytes.
    pub fn checked_root(&self) -> Result<Option<Root>, InvalidMessage> {
        root_from_wire(&self.root)
    }

    /// The digest the whole must have.
    ///
    /// # Errors
    /// When the text is no digest.
    pub fn checked_digest(&self) -> Result<Option<Digest>, InvalidMessage> {
        match self.digest.as_str() {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| InvalidMessage::new("digest")),
        }
    }
}

/// A root as it stands on the wire: empty while unknown.
pub(crate) fn root_from_wire(bytes: &[u8]) -> Result<Option<Root>, InvalidMessage> {
    match bytes {
        [] => Ok(None),
        bytes => Ok(Some(Root(bytes.try_into().map_err(|_| InvalidMessage::new("root"))?))),
    }
}

impl wire::NewHashes {
    /// The root, when it is known.
    ///
    /// # Errors
    /// When it is neither absent nor 32 bytes.
    pub fn checked_root(&self) -> Result<Option<Root>, InvalidMessage> {
        root_from_wire(&self.root)
    }
}

impl wire::PieceHashes {
    /// Hashes from piece `first` on.
    #[must_use]
    pub fn from_hashes(first: u32, hashes: &[PieceHash]) -> Self {
        Self { first, hashes: hashes.iter().flat_map(|h| h.0).collect::<Vec<u8>>().into() }
    }

    /// The hashes.
    ///
    /// # Errors
    /// When the bytes are not a whole number of hashes.
    pub fn checked(&self) -> Result<Vec<PieceHash>, InvalidMessage> {
        let (hashes, rest) = self.hashes.as_chunks::<32>();
        if !rest.is_empty() {
            return Err(InvalidMessage::new("hashes"));
        }
        Ok(hashes.iter().map(|h| PieceHash(*h)).collect())
    }
}

impl wire::HostInfo {
    /// The host this speaks of.
    ///
    /// # Errors
    /// When the id has the wrong length.
    pub fn id(&self) -> Result<HostId, InvalidMessage> {
        HostId::from_bytes(&self.host_id).map_err(|_| InvalidMessage::new("host_id"))
    }
}
