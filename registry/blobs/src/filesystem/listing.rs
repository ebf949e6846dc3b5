//! What lies in the folders.

use std::fs;
use std::io;
use std::path::Path;
use std::str::FromStr;

use bytes::Bytes;

use super::layout::Layout;
use crate::clock::ms_of;
use crate::error::StoreError;
use crate::name::{Shard, StoredBlob};
use crate::record::InvalidRecord;
use crate::store::{FoundBlob, FoundRecord, FoundUpload, Listing};

pub(super) fn blobs(layout: &Layout, shard: Shard) -> Result<Listing<FoundBlob>, StoreError> {
    list(layout, &layout.blobs(shard), |name: StoredBlob, _, metadata, modified_ms| {
        let found = FoundBlob { key: name.key, name: Some(name), size_found: Some(metadata.len()), modified_ms };
        Ok(Some(found))
    })
}

pub(super) fn records<N: FromStr + Copy, R>(
    layout: &Layout,
    folder: &Path,
    decode: fn(N, &Bytes) -> Result<R, InvalidRecord>,
) -> Result<Listing<FoundRecord<N, R>>, StoreError> {
    list(layout, folder, |name: N, path, _, modified_ms| match fs::read(path) {
        Ok(content) => Ok(Some(FoundRecord { name, modified_ms, record: decode(name, &content.into()) })),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::io("read", path, error)),
    })
}

pub(super) fn uploads(layout: &Layout) -> Result<Listing<FoundUpload>, StoreError> {
    list(layout, &layout.uploads(), |id, _, _, modified_ms| Ok(Some(FoundUpload { id, modified_ms })))
}

/// Whether there are neither blobs nor records.
pub(super) fn is_empty(layout: &Layout) -> Result<bool, StoreError> {
    for shard in Shard::all() {
        for folder in [layout.blobs(shard), layout.manifest_records(shard), layout.tag_records(shard)] {
            let first = fs::read_dir(&folder).map(|mut entries| entries.next().is_some());
            if first.map_err(|error| StoreError::io("list", &folder, error))? {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Files whose names are of this sort become entries. What goes away meanwhile is left out.
fn list<N: FromStr, T>(
    layout: &Layout,
    folder: &Path,
    mut entry_of: impl FnMut(N, &Path, &fs::Metadata, u64) -> Result<Option<T>, StoreError>,
) -> Result<Listing<T>, StoreError> {
    let mut listing = Listing { entries: Vec::new(), strangers: Vec::new() };
    let fail = |error| StoreError::io("list", folder, error);
    for entry in fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(StoreError::io("look at", path, error)),
        };
        let modified_ms = metadata.modified().map(ms_of).unwrap_or_default();
        let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        match name {
            Some(name) if metadata.is_file() => listing.entries.extend(entry_of(name, &path, &metadata, modified_ms)?),
            _ => listing.strangers.push(layout.relative(&path)),
        }
    }
    Ok(listing)
}
