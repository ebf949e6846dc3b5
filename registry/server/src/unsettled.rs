//! Records of tags about which there is something left to do, in this process's memory. What is lost with it is looked after when a process
//! starts; the scrub finds records that higher ones have replaced, and tags that have only older ones; `fsck` finds all.

use std::collections::HashSet;
use std::mem;

use blobs::StoreEntry;
use oci::{RepositoryName, TagName};
use parking_lot::Mutex;

/// More are not kept.
const MAX: usize = 10_000;

/// What is left to do.
#[derive(Debug, Default)]
pub(crate) struct Unsettled {
    tags: Mutex<HashSet<(RepositoryName, TagName)>>,
    replaced: Mutex<Vec<StoreEntry>>,
}

impl Unsettled {
    /// The record of this tag may not say what the database says.
    pub(crate) fn tag(&self, repository: &RepositoryName, tag: &TagName) {
        let mut tags = self.tags.lock();
        if tags.len() < MAX {
            tags.insert((repository.clone(), tag.clone()));
        }
    }

    pub(crate) fn take_tags(&self) -> HashSet<(RepositoryName, TagName)> {
        mem::take(&mut *self.tags.lock())
    }

    /// A higher record of the same tag is durable: these may go.
    pub(crate) fn replaced(&self, entries: impl IntoIterator<Item = StoreEntry>) {
        let mut replaced = self.replaced.lock();
        if replaced.len() < MAX {
            replaced.extend(entries);
        }
    }

    pub(crate) fn take_replaced(&self) -> Vec<StoreEntry> {
        mem::take(&mut *self.replaced.lock())
    }
}
