//! Content comes in and goes out.

use anyhow::{Result, ensure};
use blobs::{Receiver, RunningHash, StoredBlob};
use proto::{Algorithm, Digest};

use crate::support::{
    MIB, PART, Place, all_blobs, begin, checkpoint, content, expect_empty, feed, fresh_id, put, read, resume, sha256,
    store_error,
};

pub(super) async fn blobs_are_written_and_read(place: &Place) -> Result<()> {
    let store = place.open().await?;
    let sizes = [0, 1, 4096, MIB - 1, MIB, MIB + 1, PART - 1, PART, PART + 1, 3 * PART, 3 * PART + 12345];
    for (seed, size) in sizes.into_iter().enumerate() {
        let bytes = content(seed as u64, size);
        let blob = put(&store, &bytes).await?;
        ensure!(store.stat(&blob).await? == Some(size as u64), "{size}");
        ensure!(store.is_committed(blob.key, &blob.digest, blob.size).await?, "{size}");
        ensure!(!store.is_committed(blob.key, &blob.digest, blob.size + 1).await?, "{size}");
        ensure!(!store.is_committed(fresh_id(), &blob.digest, blob.size).await?, "{size}");
        ensure!(read(&store, &blob, None).await? == bytes, "{size}");
        let end = size as u64;
        for (from, to) in [(0, 1), (0, end), (end.saturating_sub(1), end), (end / 3, end / 2)] {
            if from < to && to <= end {
                let part = read(&store, &blob, Some((from, to))).await?;
                ensure!(part == bytes.slice(usize::try_from(from)?..usize::try_from(to)?), "{size} {from} {to}");
            }
        }
    }
    ensure!(store.list_uploads().await?.entries.is_empty(), "uploads are left");
    // Another process sees them, too.
    ensure!(all_blobs(&place.open().await?).await?.0.len() == sizes.len(), "blobs are missing");
    let missing = StoredBlob { key: fresh_id(), digest: sha256(b""), size: 0 };
    ensure!(store.stat(&missing).await?.is_none(), "a blob from nowhere");
    let error = anyhow::Error::from(store.open(&missing, None).await.expect_err("there is no such blob"));
    ensure!(store_error(&error)?.kind() == proto::Kind::NotFound, "{error:?}");
    Ok(())
}

pub(super) async fn both_algorithms(place: &Place) -> Result<()> {
    let store = place.open().await?;
    for size in [0, 100, MIB + 1, PART + MIB] {
        let (key, bytes) = (fresh_id(), content(7, size));
        let digest = Digest::of(Algorithm::Sha512, &bytes);
        let mut receiver = Receiver::new(store.begin(key).await?, RunningHash::new(Algorithm::Sha512)?, 0);
        feed(&mut receiver, &bytes).await?;
        let finished = receiver.finish(&digest).await?;
        ensure!(finished.bytes_rehashed == 0, "{finished:?}");
        let blob = StoredBlob { key, digest, size: finished.size };
        ensure!(read(&store, &blob, None).await? == bytes, "{size}");
    }
    Ok(())
}

/// Two processes in turn, each of which is another one every time; each also leaves behind what no checkpoint covers.
pub(super) async fn uploads_go_on_in_other_processes(place: &Place) -> Result<()> {
    let (id, bytes) = (fresh_id(), content(1, 40 * MIB));
    let mut row: Option<String> = None;
    for at in (0..bytes.len()).step_by(MIB) {
        let store = place.open().await?;
        let mut receiver = match &row {
            None => begin(&store, id).await?,
            Some(row) => resume(&store, id, row).await?,
        };
        ensure!(receiver.offset() == at as u64, "{} {at}", receiver.offset());
        feed(&mut receiver, &bytes.slice(at..at + MIB)).await?;
        row = Some(checkpoint(&mut receiver).await?);
        if at % (3 * MIB) == 0 {
            // A request that breaks after its checkpoint.
            feed(&mut receiver, &content(99, 2 * MIB + 17)).await?;
        }
    }
    let store = place.open().await?;
    let digest = sha256(&bytes);
    let finished = resume(&store, id, row.as_deref().unwrap_or_default()).await?.finish(&digest).await?;
    ensure!(finished.size == bytes.len() as u64 && finished.bytes_rehashed == 0, "{finished:?}");
    let blob = StoredBlob { key: id, digest, size: finished.size };
    ensure!(read(&store, &blob, None).await? == bytes, "the content is another");
    ensure!(store.list_uploads().await?.entries.is_empty(), "something is left of the upload");
    if place.is_s3() {
        ensure!(place.open_multiparts()? == 0, "a multipart upload is left");
    }
    Ok(())
}

pub(super) async fn one_writer_makes_many_checkpoints(place: &Place) -> Result<()> {
    let store = place.open().await?;
    let (id, bytes) = (fresh_id(), content(2, 2 * PART + 3 * MIB));
    let mut receiver = begin(&store, id).await?;
    let mut middle = String::new();
    for at in (0..bytes.len()).step_by(MIB / 2) {
        feed(&mut receiver, &bytes.slice(at..at + MIB / 2)).await?;
        let row = checkpoint(&mut receiver).await?;
        if at == 13 * MIB / 2 {
            middle = row;
        }
    }
    drop(receiver);
    // The row in the middle is as good as the last, as long as nobody has gone on from a later one.
    let mut receiver = resume(&store, id, &middle).await?;
    let from = usize::try_from(receiver.offset())?;
    ensure!(from == 7 * MIB, "{from}");
    feed(&mut receiver, &bytes.slice(from..)).await?;
    receiver.finish(&sha256(&bytes)).await?;
    let blob = StoredBlob { key: id, digest: sha256(&bytes), size: bytes.len() as u64 };
    ensure!(read(&store, &blob, None).await? == bytes, "the content is another");
    Ok(())
}

/// Clients choose how long a chunk is.
pub(super) async fn tiny_chunks(place: &Place) -> Result<()> {
    let (first, second) = (place.open().await?, place.open().await?);
    let (id, bytes) = (fresh_id(), content(3, 100 * 777));
    let mut row: Option<String> = None;
    for at in (0..bytes.len()).step_by(777) {
        let store = if at % 2 == 0 { &first } else { &second };
        let mut receiver = match &row {
            None => begin(store, id).await?,
            Some(row) => resume(store, id, row).await?,
        };
        feed(&mut receiver, &bytes.slice(at..at + 777)).await?;
        let json = checkpoint(&mut receiver).await?;
        ensure!(json.len() < 16 * 1024, "the checkpoint has {} bytes", json.len());
        row = Some(json);
    }
    let receiver = resume(&first, id, row.as_deref().unwrap_or_default()).await?;
    receiver.finish(&sha256(&bytes)).await?;
    let blob = StoredBlob { key: id, digest: sha256(&bytes), size: bytes.len() as u64 };
    ensure!(read(&second, &blob, None).await? == bytes, "the content is another");
    ensure!(first.list_uploads().await?.entries.is_empty(), "something is left of the upload");
    Ok(())
}

pub(super) async fn empty_chunks(place: &Place) -> Result<()> {
    let store = place.open().await?;
    let id = fresh_id();
    let row = checkpoint(&mut begin(&store, id).await?).await?;
    let mut receiver = resume(&store, id, &row).await?;
    let row = checkpoint(&mut receiver).await?;
    drop(receiver);
    let finished = resume(&store, id, &row).await?.finish(&sha256(b"")).await?;
    ensure!(finished.size == 0, "{finished:?}");
    let blob = StoredBlob { key: id, digest: sha256(b""), size: 0 };
    ensure!(read(&store, &blob, None).await?.is_empty(), "an empty blob has bytes");
    let removed = store.remove(&[blobs::StoreEntry::Blob(blob)]).await;
    ensure!(removed.iter().all(|(_, freed)| freed.is_ok()), "{removed:?}");
    expect_empty(&store).await
}
