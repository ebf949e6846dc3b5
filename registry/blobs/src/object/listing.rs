//! What lies in the bucket.

use std::collections::BTreeMap;
use std::str::FromStr;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use object_store::ObjectMeta;
use object_store::path::Path;
use oci::upload::UploadId;

use super::shared::Shared;
use crate::clock::ms_of;
use crate::error::StoreError;
use crate::name::{Shard, StoredBlob};
use crate::record::InvalidRecord;
use crate::store::{FoundBlob, FoundRecord, FoundUpload, Listing};

/// Records read at a time.
const READS_MAX: usize = 8;

/// Joins the objects with their names.
pub(super) async fn blobs(shared: &Shared, shard: Shard) -> Result<Listing<FoundBlob>, StoreError> {
    let (contents, names) = (shared.keys.blobs(shard), shared.keys.names(shard));
    // Names last: what is committed between the two has a name without bytes, and those who remove something wait a
    // day; the other way round it would be bytes without a name, which are removed.
    let (contents, names) = (shared.list(&contents).await?, shared.list(&names).await?);
    let mut found: BTreeMap<UploadId, FoundBlob> = BTreeMap::new();
    let mut strangers = Vec::new();
    for object in contents {
        match read_name(&object) {
            Some(key) => {
                let (size_found, modified_ms) = (Some(object.size), modified_ms(&object));
                found.insert(key, FoundBlob { key, name: None, size_found, modified_ms });
            }
            None => strangers.push(shared.keys.relative(&object.location).to_owned()),
        }
    }
    let mut doubles = Vec::new();
    for object in names {
        let Some(name) = read_name::<StoredBlob>(&object) else {
            strangers.push(shared.keys.relative(&object.location).to_owned());
            continue;
        };
        let alone = FoundBlob { key: name.key, name: None, size_found: None, modified_ms: 0 };
        let entry = found.entry(name.key).or_insert(alone);
        let modified_ms = entry.modified_ms.max(modified_ms(&object));
        if entry.name.is_some() {
            // One object can only be one blob.
            doubles.push(FoundBlob { name: Some(name), modified_ms, ..entry.clone() });
        } else {
            (entry.name, entry.modified_ms) = (Some(name), modified_ms);
        }
    }
    Ok(Listing { entries: found.into_values().chain(doubles).collect(), strangers })
}

pub(super) async fn records<N: FromStr + Copy + Send, R: Send>(
    shared: &Shared,
    folder: &Path,
    decode: fn(N, &Bytes) -> Result<R, InvalidRecord>,
) -> Result<Listing<FoundRecord<N, R>>, StoreError> {
    let mut strangers = Vec::new();
    let mut wanted = Vec::new();
    for object in shared.list(folder).await? {
        match read_name::<N>(&object) {
            Some(name) => wanted.push((name, object)),
            None => strangers.push(shared.keys.relative(&object.location).to_owned()),
        }
    }
    let reads = stream::iter(wanted).map(|(name, object)| async move {
        match shared.get(&object.location).await {
            Ok(content) => {
                Ok(Some(FoundRecord { name, modified_ms: modified_ms(&object), record: decode(name, &content) }))
            }
            // It went away meanwhile.
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    });
    let entries: Vec<Option<_>> = reads.buffer_unordered(READS_MAX).try_collect().await?;
    Ok(Listing { entries: entries.into_iter().flatten().collect(), strangers })
}

/// Groups what lies in `uploads/` by upload.
pub(super) async fn uploads(shared: &Shared) -> Result<Listing<FoundUpload>, StoreError> {
    let mut found: BTreeMap<UploadId, u64> = BTreeMap::new();
    let mut strangers = Vec::new();
    for object in shared.list(&shared.keys.uploads()).await? {
        let relative = shared.keys.relative(&object.location);
        let id = relative.split('/').nth(1).and_then(|id| id.parse().ok());
        match id.filter(|_| relative.split('/').count() == 3) {
            Some(id) => {
                let latest = found.entry(id).or_default();
                *latest = modified_ms(&object).max(*latest);
            }
            None => strangers.push(relative.to_owned()),
        }
    }
    let entries = found.into_iter().map(|(id, modified_ms)| FoundUpload { id, modified_ms }).collect();
    Ok(Listing { entries, strangers })
}

fn read_name<N: FromStr>(object: &ObjectMeta) -> Option<N> {
    object.location.filename()?.parse().ok()
}

fn modified_ms(object: &ObjectMeta) -> u64 {
    ms_of(object.last_modified.into())
}
