//! How uploads end otherwise.

use anyhow::{Result, bail, ensure};
use blobs::{FinishError, StoreError, StoredBlob};
use bytes::Bytes;
use proto::{Algorithm, Digest};

use crate::support::{
    Kind, MIB, PART, Place, begin, checkpoint, content, expect_empty, feed, fresh_id, read, resume, sha256, store_error,
};

pub(super) async fn a_digest_that_does_not_match(place: &Place) -> Result<()> {
    let store = place.open().await?;
    for size in [0, 1000, MIB + 1, 2 * PART + MIB] {
        for with_checkpoint in [false, true] {
            let (id, bytes) = (fresh_id(), content(4, size));
            let mut receiver = begin(&store, id).await?;
            feed(&mut receiver, &bytes).await?;
            if with_checkpoint {
                receiver.checkpoint().await?;
            }
            match receiver.finish(&sha256(b"something else")).await {
                Err(FinishError::Mismatch { computed }) => ensure!(computed == sha256(&bytes), "{size} {computed}"),
                other => bail!("{size} {with_checkpoint}: {other:?}"),
            }
            if with_checkpoint {
                store.discard(id, None).await?;
            }
            expect_empty(&store).await?;
        }
    }
    Ok(())
}

/// SHA-256 runs, and the end names a SHA-512: once more over everything, but not for what is still in the first buffer.
pub(super) async fn an_algorithm_that_nobody_announced(place: &Place) -> Result<()> {
    let store = place.open().await?;
    for (size, with_checkpoint, read_back) in
        [(1000, false, false), (1000, true, true), (MIB + 1, false, true), (PART + MIB, true, true)]
    {
        let bytes = content(5, size);
        let right = Digest::of(Algorithm::Sha512, &bytes);
        for (digest, fits) in [(Digest::of(Algorithm::Sha512, b"else"), false), (right.clone(), true)] {
            let id = fresh_id();
            let mut receiver = begin(&store, id).await?;
            feed(&mut receiver, &bytes).await?;
            if with_checkpoint {
                receiver.checkpoint().await?;
            }
            match receiver.finish(&digest).await {
                Ok(finished) if fits => {
                    let expected = if read_back { size as u64 } else { 0 };
                    ensure!(finished.bytes_rehashed == expected, "{size} {with_checkpoint}: {finished:?}");
                    let blob = StoredBlob { key: id, digest, size: finished.size };
                    ensure!(read(&store, &blob, None).await? == bytes, "{size}");
                }
                Err(FinishError::Mismatch { computed }) if !fits => {
                    ensure!(computed == right, "{size} {computed}");
                    let blob = StoredBlob { key: id, digest, size: size as u64 };
                    ensure!(store.stat(&blob).await?.is_none(), "{size}: there are bytes under a wrong digest");
                    store.discard(id, None).await?;
                }
                other => bail!("{size} {with_checkpoint}: {other:?}"),
            }
        }
    }
    Ok(())
}

pub(super) async fn a_discarded_upload_is_gone(place: &Place) -> Result<()> {
    let store = place.open().await?;
    for size in [0, 1000, MIB + 1, 2 * PART + MIB] {
        let (id, bytes) = (fresh_id(), content(6, size));
        let mut receiver = begin(&store, id).await?;
        feed(&mut receiver, &bytes).await?;
        let made = receiver.checkpoint().await?;
        let row = serde_json::to_string(&made)?;
        drop(receiver);
        store.discard(id, Some(&made.writer)).await?;
        expect_empty(&store).await?;
        if place.is_s3() {
            ensure!(place.open_multiparts()? == 0, "a multipart upload is left");
        }
        if size > 0 {
            // Who still goes on with it is told.
            let went_on = async {
                let mut receiver = resume(&store, id, &row).await?;
                feed(&mut receiver, &bytes).await?;
                let digest = sha256(&[&bytes[..], &bytes[..]].concat());
                anyhow::Ok(receiver.finish(&digest).await?)
            };
            let error = went_on.await.expect_err("the upload is gone");
            ensure!(store_error(&error)?.kind() == proto::Kind::NotFound, "{error:?}");
        }
        store.discard(id, Some(&made.writer)).await?;
        store.discard(id, None).await?;
    }
    store.discard(fresh_id(), None).await?;
    Ok(())
}

pub(super) async fn a_dropped_upload_leaves_nothing(place: &Place) -> Result<()> {
    let store = place.open().await?;
    for (size, forgotten) in
        [1000, MIB + 1, 3 * PART, 2 * PART + 5].into_iter().flat_map(|size| [(size, false), (size, true)])
    {
        let id = fresh_id();
        let mut receiver = begin(&store, id).await?;
        feed(&mut receiver, &content(8, size)).await?;
        // A checkpoint that nobody was told of is as none.
        if forgotten {
            receiver.checkpoint().await?;
            feed(&mut receiver, &content(8, 10)).await?;
            receiver.checkpoint().await?;
            receiver.forget().await?;
        }
        drop(receiver);
        expect_empty(&store).await?;
        if place.is_s3() {
            ensure!(place.open_multiparts()? == 0, "a multipart upload is left");
        }
    }
    // And what comes after a checkpoint is cut off.
    let (id, bytes) = (fresh_id(), content(9, 3 * MIB));
    let mut receiver = begin(&store, id).await?;
    feed(&mut receiver, &bytes).await?;
    let row = checkpoint(&mut receiver).await?;
    feed(&mut receiver, &content(10, 2 * PART)).await?;
    drop(receiver);
    resume(&store, id, &row).await?.finish(&sha256(&bytes)).await?;
    let blob = StoredBlob { key: id, digest: sha256(&bytes), size: bytes.len() as u64 };
    ensure!(read(&store, &blob, None).await? == bytes, "the content is another");
    Ok(())
}

/// A process died after the blob was there and before the database knew.
pub(super) async fn a_retried_end_finds_the_blob(place: &Place) -> Result<()> {
    let store = place.open().await?;
    for size in [1000, MIB + 1, 2 * PART + MIB] {
        let (id, bytes) = (fresh_id(), content(11, size));
        let digest = sha256(&bytes);
        let mut receiver = begin(&store, id).await?;
        feed(&mut receiver, &bytes).await?;
        let row = checkpoint(&mut receiver).await?;
        receiver.finish(&digest).await?;
        let other = place.open().await?;
        ensure!(other.is_committed(id, &digest, size as u64).await?, "{size}");
        let again = async { anyhow::Ok(resume(&other, id, &row).await?.finish(&digest).await?) };
        match again.await {
            Ok(finished) => ensure!(finished.size == size as u64, "{finished:?}"),
            Err(error) => ensure!(matches!(store_error(&error)?, StoreError::NotFound { .. }), "{size} {error:?}"),
        }
        let blob = StoredBlob { key: id, digest, size: size as u64 };
        ensure!(read(&other, &blob, None).await? == bytes, "{size}: the content is another");
        ensure!(other.list_uploads().await?.entries.is_empty(), "{size}: something is left of the upload");
    }
    Ok(())
}

/// With contents that differ: whatever becomes of them, no blob has another content than its digest says.
pub(super) async fn two_requests_end_one_upload(place: &Place) -> Result<()> {
    let store = place.open().await?;
    for size in [1000, MIB, 2 * PART + MIB] {
        for with_checkpoint in [false, true] {
            let id = fresh_id();
            let common = content(12, if with_checkpoint { size } else { 0 });
            let mut receiver = begin(&store, id).await?;
            feed(&mut receiver, &common).await?;
            let row = checkpoint(&mut receiver).await?;
            drop(receiver);
            let end = async |rest: Bytes| {
                let store = place.open().await?;
                let mut receiver = resume(&store, id, &row).await?;
                feed(&mut receiver, &rest).await?;
                let whole = [&common[..], &rest[..]].concat();
                receiver.finish(&sha256(&whole)).await?;
                anyhow::Ok(())
            };
            let rests = [content(13, size), content(14, size)];
            let (one, two) = tokio::join!(end(rests[0].clone()), end(rests[1].clone()));
            let mut whole = 0;
            for (rest, ended) in rests.iter().zip([one, two]) {
                let bytes = [&common[..], &rest[..]].concat();
                let blob = StoredBlob { key: id, digest: sha256(&bytes), size: bytes.len() as u64 };
                match ended {
                    Ok(()) => {
                        ensure!(read(&store, &blob, None).await? == bytes, "{size}: the content is another");
                        whole += 1;
                    }
                    Err(error) => {
                        // Whatever it is: it was told.
                        store_error(&error)?;
                    }
                }
            }
            if whole == 0 {
                // Each has overwritten a part of the other. Whoever tries again gets through.
                ensure!(place.is_s3() && with_checkpoint, "{size} {with_checkpoint}: nobody ended well");
                end(rests[0].clone()).await?;
            }
            // On a filesystem the second may find the name free again, and become a blob of its own.
            let most = if place.kind == Kind::Filesystem { 2 } else { 1 };
            ensure!(whole <= most, "{size} {with_checkpoint}: {whole} ended well");
            store.discard(id, None).await?;
        }
    }
    Ok(())
}

pub(super) async fn a_checkpoint_of_another_store(place: &Place) -> Result<()> {
    let store = place.open().await?;
    let state = match place.kind {
        Kind::Filesystem => r#"{"store":"s3","part_size":8,"multipart":null,"parts":[],"segments":[],"covered":[]}"#,
        Kind::S3(_) => r#"{"store":"file","offset":3}"#,
    };
    let foreign = store.resume(fresh_id(), &serde_json::from_str(state)?).await.map(drop);
    ensure!(matches!(foreign, Err(StoreError::Checkpoint(_))), "{foreign:?}");
    // A row somebody has changed.
    let id = fresh_id();
    let mut receiver = begin(&store, id).await?;
    feed(&mut receiver, &content(15, 100)).await?;
    let row = checkpoint(&mut receiver).await?;
    drop(receiver);
    let changed = row.replacen("\"offset\":100", "\"offset\":99", 1);
    ensure!(changed != row, "{row}");
    let error = resume(&store, id, &changed).await.map(drop).expect_err("the row was changed");
    ensure!(matches!(store_error(&error)?, StoreError::Checkpoint(_)), "{error:?}");
    Ok(())
}
