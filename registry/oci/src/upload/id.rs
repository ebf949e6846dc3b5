//! Names of uploads.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of an upload, and later of its bytes in the store: 6 bytes of time, 10 of randomness. In the order of their
/// time, as values and as text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadId([u8; 16]);

/// A text is no upload's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the id of an upload is 32 lower-case hexadecimal characters")]
pub struct InvalidUploadId;

// === impl UploadId ===

impl UploadId {
    /// An id made at `now_ms`, milliseconds since 1970, of which the lower 48 bits count: enough until the year 10889.
    #[must_use]
    pub fn new(now_ms: u64, random: [u8; 10]) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&now_ms.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        Self(bytes)
    }

    /// An id from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// When it was made, in milliseconds since 1970.
    #[must_use]
    pub fn created_ms(self) -> u64 {
        self.0[..6].iter().fold(0, |ms, &byte| ms << 8 | u64::from(byte))
    }
}

impl FromStr for UploadId {
    type Err = InvalidUploadId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(InvalidUploadId);
        }
        let mut bytes = [0; 16];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| InvalidUploadId)?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for UploadId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for UploadId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_and_randomness() {
        let id = UploadId::new(0x0123_4567_89ab, [0xff; 10]);
        assert_eq!(id.to_string(), "0123456789abffffffffffffffffffff");
        assert_eq!(id.created_ms(), 0x0123_4567_89ab);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(serde_json::to_string(&id).expect("a text"), "\"0123456789abffffffffffffffffffff\"");
        assert_eq!(serde_json::from_str::<UploadId>("\"0123456789abffffffffffffffffffff\"").expect("an id"), id);
        // Only 48 bits of the time are kept.
        assert_eq!(UploadId::new(u64::MAX, [0; 10]).created_ms(), (1 << 48) - 1);
        assert_eq!(UploadId::from_bytes(*id.as_bytes()), id);
    }

    #[test]
    fn later_is_greater() {
        let (early, late) = (UploadId::new(255, [0xff; 10]), UploadId::new(256, [0; 10]));
        assert!(early < late && early.to_string() < late.to_string());
    }

    #[test]
    fn what_is_no_id() {
        for bad in ["", "0", &"0".repeat(31), &"0".repeat(33), &"A".repeat(32), &"g".repeat(32), &"é".repeat(16)] {
            assert_eq!(bad.parse::<UploadId>(), Err(InvalidUploadId), "{bad:?}");
        }
    }
}
