//! Who a host is.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A host's identity: 128 random bits, made once and kept in the host's store folder.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(u128);

/// A text or a run of bytes is no identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an identifier of {expected} bytes was expected")]
pub struct InvalidId {
    /// Bytes it should have.
    pub expected: usize,
}

impl HostId {
    /// An identity from 128 bits, which the caller draws at random.
    #[must_use]
    pub const fn new(bits: u128) -> Self {
        Self(bits)
    }

    /// The bits, for seeding a generator that must differ from host to host.
    #[must_use]
    pub const fn bits(self) -> u128 {
        self.0
    }

    /// The bytes on the wire.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }

    /// Reads the bytes on the wire.
    ///
    /// # Errors
    /// When there are not exactly 16 bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, InvalidId> {
        bytes.try_into().map(|b| Self(u128::from_be_bytes(b))).map_err(|_| InvalidId { expected: 16 })
    }
}

impl fmt::Display for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for HostId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The first 32 bits tell hosts apart in logs of any realistic cluster.
        write!(f, "{:08x}", self.0 >> 96)
    }
}

impl FromStr for HostId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = hex::decode(text).map_err(|_| InvalidId { expected: 16 })?;
        Self::from_bytes(&bytes)
    }
}

impl Serialize for HostId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HostId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
