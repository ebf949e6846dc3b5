//! What another process needs to go on with an upload to object storage.

use serde::{Deserialize, Serialize};

/// Parts and segments of an unfinished upload.
///
/// The parts are of equal length and belong to a multipart upload. What comes after them and does not fill a part lies in
/// *segments*, objects of their own, until a part can be made of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectState {
    /// Length of a part in bytes; kept here, so that a changed configuration does not concern uploads that have begun.
    pub(super) part_size: u64,
    /// The multipart upload, once there is a part.
    pub(super) multipart: Option<Multipart>,
    /// The tags of its parts, in order, without quotes.
    pub(super) parts: Vec<String>,
    /// What comes after the parts, in order.
    pub(super) segments: Vec<Segment>,
    /// Segments that parts have been made of. They go once this state is known to be the upload's.
    pub(super) covered: Vec<Segment>,
}

/// A multipart upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Multipart {
    /// The storage's id for it.
    pub(super) id: String,
    /// Of the note's name.
    pub(super) random: String,
}

/// An object that holds some bytes of an unfinished upload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Segment {
    /// Of its first byte in the upload.
    pub(super) offset: u64,
    /// Its length in bytes.
    pub(super) length: u64,
    /// Of its name: two requests that write to one upload at once do not write to one object.
    pub(super) random: String,
}

// === impl ObjectState ===

impl ObjectState {
    /// Bytes of the upload that are durable.
    pub(crate) fn offset(&self) -> u64 {
        self.tail_start() + self.segments.iter().map(|segment| segment.length).sum::<u64>()
    }

    /// Where the parts end.
    pub(super) fn tail_start(&self) -> u64 {
        self.part_size * self.parts.len() as u64
    }

    /// Whether the numbers fit each other; a state comes from a database that others may have touched.
    pub(super) fn is_sound(&self) -> bool {
        let mut at = self.part_size.checked_mul(self.parts.len() as u64);
        for segment in &self.segments {
            at = at.filter(|at| *at == segment.offset).and_then(|at| at.checked_add(segment.length));
        }
        let tail: u64 = self.segments.iter().fold(0, |sum, segment| sum.saturating_add(segment.length));
        at.is_some()
            && self.part_size > 0
            && tail <= self.part_size
            && self.parts.is_empty() == self.multipart.is_none()
    }
}

/// The random part of an object's name.
pub(super) fn random_name() -> String {
    format!("{:016x}", rand::random::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_state() {
        let segment = |offset, length| Segment { offset, length, random: "00000000000000ab".to_owned() };
        let state = ObjectState {
            part_size: 8,
            multipart: Some(Multipart { id: "m".to_owned(), random: "00000000000000cd".to_owned() }),
            parts: vec!["e1".to_owned(), "e2".to_owned()],
            segments: vec![segment(16, 3), segment(19, 4)],
            covered: vec![segment(8, 5)],
        };
        let golden = r#"{"part_size":8,"multipart":{"id":"m","random":"00000000000000cd"},"parts":["e1","e2"],"segments":[{"offset":16,"length":3,"random":"00000000000000ab"},{"offset":19,"length":4,"random":"00000000000000ab"}],"covered":[{"offset":8,"length":5,"random":"00000000000000ab"}]}"#;
        assert_eq!(serde_json::to_string(&state).unwrap(), golden, "rows of unfinished uploads hold this form");
        assert_eq!(serde_json::from_str::<ObjectState>(golden).unwrap(), state);
        assert!(state.is_sound());
        assert_eq!((state.tail_start(), state.offset()), (16, 23));
    }

    #[test]
    fn unsound_states() {
        let segment = |offset, length| Segment { offset, length, random: String::new() };
        let good = ObjectState {
            part_size: 8,
            multipart: None,
            parts: Vec::new(),
            segments: vec![segment(0, 8)],
            covered: Vec::new(),
        };
        assert!(good.is_sound());
        for bad in [
            ObjectState { part_size: 0, segments: Vec::new(), ..good.clone() },
            ObjectState { segments: vec![segment(1, 3)], ..good.clone() },
            ObjectState { segments: vec![segment(0, 3), segment(4, 1)], ..good.clone() },
            ObjectState { segments: vec![segment(0, 9)], ..good.clone() },
            ObjectState { segments: vec![segment(0, u64::MAX), segment(u64::MAX, 1)], ..good.clone() },
            ObjectState { parts: vec![String::new()], ..good.clone() },
            ObjectState { part_size: u64::MAX, parts: vec![String::new(); 2], segments: Vec::new(), ..good },
        ] {
            assert!(!bad.is_sound(), "{bad:?}");
        }
    }
}
