//! What only a filesystem does: locks, damaged files, full disks.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use blobs::{FinishError, Receiver, RunningHash, Store, StoreConfig, StoreError, StoredBlob};
use harness::{Run, SmallDisk};
use oci::upload::UploadId;
use proto::Kind as ErrorKind;

use crate::support::{
    Kind, MIB, Place, all_blobs, begin, checkpoint, content, expect_empty, feed, fresh_id, put, read, resume, run,
    sha256, store_error,
};

#[test]
fn the_layout_is_the_documented_one() {
    run(Kind::Filesystem, async |place: &Place| {
        let store = place.open().await?;
        let blob = put(&store, &content(1, 100)).await?;
        let id = blob.key.to_string();
        let path = place.config.path.join(format!("blobs/{}/{id}.sha256-{}.100", &id[30..], blob.digest.hex()));
        ensure!(fs::read(&path)? == content(1, 100), "{}", path.display());
        let mut receiver = begin(&store, fresh_id()).await?;
        feed(&mut receiver, &content(2, 100)).await?;
        receiver.checkpoint().await?;
        let names: Vec<String> = fs::read_dir(place.config.path.join("uploads"))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<_>>()?;
        ensure!(names.len() == 1 && names[0].parse::<UploadId>().is_ok(), "{names:?}");
        for folder in ["blobs", "records/manifests", "records/tags"] {
            ensure!(fs::read_dir(place.config.path.join(folder))?.count() == 256, "{folder}");
        }
        Ok(())
    });
}

#[test]
fn one_request_at_a_time_writes_to_an_upload() {
    run(Kind::Filesystem, async |place: &Place| {
        let (store, other) = (place.open().await?, place.open().await?);
        let (id, bytes) = (fresh_id(), content(3, 3 * MIB));
        let mut receiver = begin(&store, id).await?;
        feed(&mut receiver, &bytes).await?;
        let row = checkpoint(&mut receiver).await?;
        feed(&mut receiver, &bytes).await?;

        let refused = resume(&other, id, &row).await.map(drop).expect_err("the file is locked");
        ensure!(matches!(store_error(&refused)?, StoreError::Busy), "{refused:?}");
        ensure!(matches!(other.discard(id, None).await, Err(StoreError::Busy)), "a running upload was discarded");
        let mut second = begin(&other, id).await?;
        let refused = async {
            feed(&mut second, &content(4, 100)).await?;
            anyhow::Ok(second.finish(&sha256(&content(4, 100))).await?)
        };
        let refused = refused.await.expect_err("the file is locked");
        ensure!(store_error(&refused)?.kind() == ErrorKind::Conflict, "{refused:?}");

        // Nothing of that did any harm.
        let whole = [&bytes[..], &bytes[..]].concat();
        receiver.finish(&sha256(&whole)).await?;
        let blob = StoredBlob { key: id, digest: sha256(&whole), size: whole.len() as u64 };
        ensure!(read(&store, &blob, None).await? == whole, "the content is another");
        Ok(())
    });
}

/// Whoever waits for the lock must not empty what the file has become meanwhile.
#[test]
fn many_requests_for_one_upload_at_once() {
    run(Kind::Filesystem, async |place: &Place| {
        let store = place.open().await?;
        for round in 0..20 {
            let (id, mut tasks) = (fresh_id(), tokio::task::JoinSet::new());
            for client in 0..8_u64 {
                let store: Store = Arc::clone(&store);
                // Two of a kind, some in one go and some in several.
                let bytes = content(1 + client / 2, if client < 4 { 5000 } else { MIB + 5000 });
                tasks.spawn(async move {
                    let mut receiver = begin(&store, id).await?;
                    feed(&mut receiver, &bytes).await?;
                    receiver.finish(&sha256(&bytes)).await?;
                    anyhow::Ok(StoredBlob { key: id, digest: sha256(&bytes), size: bytes.len() as u64 })
                });
            }
            let mut done = 0;
            while let Some(task) = tasks.join_next().await {
                if let Ok(blob) = task? {
                    let bytes = read(&store, &blob, None).await?;
                    ensure!(sha256(&bytes) == blob.digest, "round {round}: a blob was changed");
                    done += 1;
                }
            }
            ensure!(done > 0, "round {round}: nobody was served");
        }
        let (found, strangers) = all_blobs(&store).await?;
        ensure!(strangers.is_empty() && found.iter().all(blobs::FoundBlob::is_whole), "{found:?} {strangers:?}");
        for blob in found.into_iter().filter_map(|found| found.name) {
            ensure!(sha256(&read(&store, &blob, None).await?) == blob.digest, "a blob was changed: {blob}");
        }
        Ok(())
    });
}

#[test]
fn files_that_others_have_cut_are_refused() {
    run(Kind::Filesystem, async |place: &Place| {
        let store = place.open().await?;
        let id = fresh_id();
        let mut receiver = begin(&store, id).await?;
        feed(&mut receiver, &content(5, 100)).await?;
        let row = checkpoint(&mut receiver).await?;
        drop(receiver);
        // Let the lock go.
        resume(&store, id, &row).await?;
        let path = place.config.path.join(format!("uploads/{id}"));
        fs::OpenOptions::new().write(true).open(&path)?.set_len(99)?;
        let error = resume(&store, id, &row).await.map(drop).expect_err("the file is too short");
        ensure!(store_error(&error)?.kind() == ErrorKind::Corrupt, "{error:?}");
        Ok(())
    });
}

#[test]
fn a_folder_that_cannot_be_a_store() {
    run(Kind::Filesystem, async |place: &Place| {
        let file = place.run.path().join("file");
        fs::write(&file, "")?;
        for path in [file.clone(), file.join("below")] {
            let config = StoreConfig { path, ..StoreConfig::default() };
            let error = blobs::open(&config).await.expect_err("a file is no folder");
            ensure!(error.kind() == ErrorKind::Unavailable, "{error:?}");
        }
        Ok(())
    });
}

#[test]
fn a_rename_does_not_cross_filesystems() {
    run(Kind::Filesystem, async |place: &Place| {
        place.open().await?;
        let disk = SmallDisk::new(&place.run, "elsewhere", MIB as u64)?;
        let blobs = place.config.path.join("blobs");
        fs::rename(&blobs, place.config.path.join("old"))?;
        std::os::unix::fs::symlink(disk.path(), &blobs)?;
        let error = blobs::open(&place.config).await.expect_err("blobs are on another filesystem");
        ensure!(matches!(error, StoreError::Setup { .. }), "{error:?}");
        Ok(())
    });
}

fn small(run: &Run, bytes: usize) -> Result<(SmallDisk, StoreConfig)> {
    let disk = SmallDisk::new(run, "small", bytes as u64)?;
    let config = StoreConfig { path: disk.path().join("store"), ..StoreConfig::default() };
    Ok((disk, config))
}

#[test]
fn a_full_disk() {
    run(Kind::Filesystem, async |place: &Place| {
        let (disk, config) = small(&place.run, 16 * MIB)?;
        let store = blobs::open(&config).await?;
        // Too long for the disk, and too long for what is left at its end.
        for length in [20 * MIB, MIB] {
            let is_full = length == MIB;
            if is_full {
                disk.fill()?;
            }
            let bytes = content(6, length);
            let id = fresh_id();
            let mut receiver = begin(&store, id).await?;
            let error = async {
                feed(&mut receiver, &bytes).await?;
                anyhow::Ok(receiver.finish(&sha256(&bytes)).await?)
            };
            let error = error.await.expect_err("the disk is full");
            ensure!(store_error(&error)?.kind() == ErrorKind::NoSpace, "{error:?}");
            // The broken upload took its bytes with it.
            expect_empty(&store).await?;
            if is_full {
                disk.make_room()?;
            }
        }
        let blob = put(&store, &content(7, 8 * MIB)).await?;
        ensure!(read(&store, &blob, None).await? == content(7, 8 * MIB), "the content is another");
        Ok(())
    });
}

#[test]
fn a_full_disk_costs_nothing_a_checkpoint_covers() {
    run(Kind::Filesystem, async |place: &Place| {
        let (disk, config) = small(&place.run, 16 * MIB)?;
        let store = blobs::open(&config).await?;
        let (id, bytes) = (fresh_id(), content(8, 6 * MIB));
        let mut receiver = begin(&store, id).await?;
        feed(&mut receiver, &bytes.slice(..3 * MIB)).await?;
        let row = checkpoint(&mut receiver).await?;
        disk.fill()?;
        let error = async {
            feed(&mut receiver, &bytes.slice(3 * MIB..)).await?;
            checkpoint(&mut receiver).await
        };
        let error = error.await.expect_err("the disk is full");
        ensure!(store_error(&error)?.kind() == ErrorKind::NoSpace, "{error:?}");
        let after = receiver.checkpoint().await;
        ensure!(matches!(after, Err(StoreError::Interrupted)), "a broken receiver goes on: {after:?}");
        drop(receiver);
        // Records need room, too.
        let record = blobs::TagRecord {
            repository: "a/b".parse()?,
            tag: "latest".parse()?,
            digest: sha256(b""),
            gone: false,
            change: 1,
            time_ms: 1,
        };
        let full = store.put_tag_record(&record).await.expect_err("the disk is full");
        ensure!(full.kind() == ErrorKind::NoSpace, "{full:?}");
        disk.make_room()?;
        store.put_tag_record(&record).await?;

        let mut receiver = resume(&store, id, &row).await?;
        feed(&mut receiver, &bytes.slice(3 * MIB..)).await?;
        receiver.finish(&sha256(&bytes)).await?;
        let blob = StoredBlob { key: id, digest: sha256(&bytes), size: bytes.len() as u64 };
        ensure!(read(&store, &blob, None).await? == bytes, "the content is another");
        ensure!(store.list_uploads().await?.entries.is_empty(), "something is left");
        Ok(())
    });
}

/// A client that goes away in the middle of the end of its upload.
#[test]
fn an_end_nobody_waits_for_is_whole_or_nothing() {
    run(Kind::Filesystem, async |place: &Place| {
        let store = place.open().await?;
        for seed in 0..40 {
            let bytes = content(seed, 3 * MIB);
            let mut receiver = begin(&store, fresh_id()).await?;
            feed(&mut receiver, &bytes).await?;
            let digest = sha256(&bytes);
            let pause = Duration::from_micros(seed * 150);
            let _ = tokio::time::timeout(pause, receiver.finish(&digest)).await;
        }
        // Those that were not heard of may still be ending.
        tokio::time::sleep(Duration::from_secs(1)).await;
        ensure!(store.list_uploads().await?.entries.is_empty(), "something is left");
        let (found, strangers) = all_blobs(&store).await?;
        ensure!(strangers.is_empty(), "{strangers:?}");
        for found in found {
            let blob = found.name.context("a blob without a name")?;
            ensure!(sha256(&read(&store, &blob, None).await?) == blob.digest, "{blob}");
        }
        Ok(())
    });
}

#[test]
fn no_algorithm_but_sha_names_a_blob() {
    run(Kind::Filesystem, async |place: &Place| {
        let store = place.open().await?;
        for length in [100, 2 * MIB] {
            let bytes = content(9, length);
            let digest = proto::Digest::of(proto::Algorithm::Blake3, &bytes);
            let mut receiver = Receiver::new(store.begin(fresh_id()).await?, RunningHash::sha256(), 0);
            feed(&mut receiver, &bytes).await?;
            let refused = receiver.finish(&digest).await;
            ensure!(matches!(refused, Err(FinishError::Store(StoreError::Algorithm("blake3")))), "{refused:?}");
        }
        expect_empty(&store).await
    });
}

/// The scrub takes what is old and not in the database for a stray.
#[test]
fn an_upload_that_rested_ends_as_a_new_file() {
    run(Kind::Filesystem, async |place: &Place| {
        let (store, id, bytes) = (place.open().await?, fresh_id(), content(30, 1000));
        let mut receiver = begin(&store, id).await?;
        feed(&mut receiver, &bytes).await?;
        let row = checkpoint(&mut receiver).await?;
        drop(receiver);
        let file = fs::File::options().write(true).open(place.config.path.join(format!("uploads/{id}")))?;
        let now = SystemTime::now();
        file.set_modified(now - Duration::from_secs(7200))?;
        resume(&store, id, &row).await?.finish(&sha256(&bytes)).await?;
        let (blobs, _) = all_blobs(&store).await?;
        let hour_ago = (now - Duration::from_secs(3600)).duration_since(UNIX_EPOCH)?.as_millis();
        ensure!(blobs.len() == 1 && u128::from(blobs[0].modified_ms) > hour_ago, "{blobs:?}");
        Ok(())
    });
}
