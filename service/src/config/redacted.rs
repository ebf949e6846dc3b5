//! Secrets that do not show themselves.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A secret: `Debug`, `Display` and `Serialize` show `***`, and an error about it does not quote it.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Redacted<T>(T);

impl<T> Redacted<T> {
    /// Wraps a secret.
    pub const fn new(secret: T) -> Self {
        Self(secret)
    }

    /// The secret itself, for its one use.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

const HIDDEN: &str = "***";

impl<T> fmt::Debug for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl<T> fmt::Display for Redacted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl<T> Serialize for Redacted<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Redacted<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // serde's messages quote the value.
        T::deserialize(deserializer).map(Self).map_err(|_| serde::de::Error::custom("the secret has the wrong form"))
    }
}
