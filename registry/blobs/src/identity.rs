//! What a store says of itself, so that it is never taken for another one, nor served with a database that knows less than it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::error::StoreError;

/// The name of a store, and how far it has seen its database come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreIdentity {
    v: u8,
    /// Its name, which its database has, too.
    pub id: String,
    /// The number of a change that its database has made: one with fewer changes is older than the store. It is written now and then, so
    /// the last changes may be missing.
    pub change: i64,
    /// What tells that change from another one that got its number later. Empty in stores of the first version.
    #[serde(default)]
    pub made: String,
}

/// Its file or object, at the top of the store.
pub(crate) const NAME: &str = "store.json";
const VERSION: u8 = 1;

impl StoreIdentity {
    /// A store's.
    #[must_use]
    pub const fn new(id: String, change: i64, made: String) -> Self {
        Self { v: VERSION, id, change, made }
    }

    pub(crate) fn encode(&self) -> Bytes {
        // Strings and numbers: serde_json fails for maps with odd keys and for failing writers only.
        serde_json::to_vec(self).expect("a plain struct becomes JSON").into()
    }

    pub(crate) fn decode(content: &[u8]) -> Result<Self, StoreError> {
        let corrupt = |why: String| StoreError::Corrupt { what: NAME.to_owned(), why };
        let identity: Self = serde_json::from_slice(content).map_err(|error| corrupt(error.to_string()))?;
        match identity.v {
            VERSION => Ok(identity),
            v => Err(corrupt(format!("version {v} is not known"))),
        }
    }
}
