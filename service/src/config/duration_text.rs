//! Durations as people write them, for `#[serde(with = …)]`.

use std::fmt;
use std::time::Duration;

use serde::de::{Error, Unexpected, Visitor};

const EXPECTED: &str = "a duration with its unit, for example \"500ms\", \"30s\", \"5m\" or \"1h 30m\"";

struct Text;

impl Visitor<'_> for Text {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
        humantime::parse_duration(text.trim()).map_err(|_| E::invalid_value(Unexpected::Str(text), &self))
    }
}

/// `#[serde(with = "service::config::duration")]` for a `Duration`.
pub mod duration {
    use std::time::Duration;

    use serde::{Deserializer, Serializer};

    /// Writes it as `30s`.
    ///
    /// # Errors
    /// As the format says.
    pub fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*value))
    }

    /// Reads `500ms`, `30s`, `1h 30m`.
    ///
    /// # Errors
    /// When it is no such text.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        deserializer.deserialize_str(super::Text)
    }
}

/// `#[serde(with = "service::config::duration_option")]` for an `Option<Duration>`, together with `default`.
pub mod duration_option {
    use std::fmt;
    use std::time::Duration;

    use serde::de::{Error, Visitor};
    use serde::{Deserializer, Serializer};

    /// Writes it as `30s`, or nothing.
    ///
    /// # Errors
    /// As the format says.
    pub fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => serializer.serialize_some(&humantime::format_duration(*value).to_string()),
            None => serializer.serialize_none(),
        }
    }

    struct Optional;

    impl<'de> Visitor<'de> for Optional {
        type Value = Option<Duration>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(super::EXPECTED)
        }

        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
            super::duration::deserialize(deserializer).map(Some)
        }
    }

    /// Reads `500ms`, `30s`, `1h 30m`.
    ///
    /// # Errors
    /// When it is no such text.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        deserializer.deserialize_option(Optional)
    }
}
