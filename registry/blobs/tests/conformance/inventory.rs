//! What is there is found, and goes when it is told to.

use anyhow::{Context as _, Result, ensure};
use blobs::{
    FoundBlob, ManifestRecord, RecordId, Shard, StoreEntry, StoreIdentity, StoredBlob, TagRecord, TagRecordName,
};
use bytes::Bytes;

use crate::support::{
    Kind, MIB, PART, Place, all_blobs, begin, content, expect_empty, feed, fresh_id, put, read, sha256,
};

pub(super) async fn blobs_are_listed_and_removed(place: &Place) -> Result<()> {
    let store = place.open().await?;
    let mut pushed = Vec::new();
    for seed in 0..20 {
        pushed.push(put(&store, &content(seed, 1000 + usize::try_from(seed)?)).await?);
    }
    pushed.push(put(&store, &content(20, PART + MIB)).await?);
    pushed.sort();
    let (mut found, strangers) = all_blobs(&store).await?;
    found.sort_by_key(|found| found.key);
    ensure!(strangers.is_empty(), "{strangers:?}");
    ensure!(found.iter().all(FoundBlob::is_whole), "{found:?}");
    let names: Vec<_> = found.iter().filter_map(|found| found.name.clone()).collect();
    ensure!(names == pushed, "{names:?}");
    let id_ms = pushed[0].key.created_ms();
    ensure!(found.iter().all(|found| found.modified_ms.abs_diff(id_ms) < 600_000), "{found:?}");
    let shard = pushed[0].shard();
    ensure!(store.list_blobs(shard).await?.entries.iter().any(|found| found.key == pushed[0].key), "wrong shard");

    let missing = StoredBlob { key: fresh_id(), digest: sha256(b"x"), size: 1 };
    let record = TagRecordName::new(&"a/b".parse()?, &"latest".parse()?, 1);
    let mut entries: Vec<StoreEntry> = pushed.iter().skip(1).cloned().map(StoreEntry::Blob).collect();
    entries.insert(3, StoreEntry::Blob(missing));
    entries.push(StoreEntry::ManifestRecord(RecordId::random()));
    entries.push(StoreEntry::TagRecord(record));
    // As the database would have kept them.
    let entries: Vec<StoreEntry> = entries.iter().map(|entry| entry.to_string().parse()).collect::<Result<_, _>>()?;
    let removed = store.remove(&entries).await;
    ensure!(removed.iter().map(|(entry, _)| entry).eq(&entries), "the answers are in another order");
    for (entry, freed) in &removed {
        let freed = freed.as_ref().map_err(Clone::clone)?;
        match entry {
            StoreEntry::Blob(blob) if pushed.contains(blob) => ensure!(*freed == blob.size, "{entry} {freed}"),
            StoreEntry::Blob(_) if place.is_s3() => {}
            _ => ensure!(*freed == 0, "{entry} {freed}"),
        }
    }
    let (left, _) = all_blobs(&store).await?;
    ensure!(left.len() == 1 && left[0].name.as_ref() == Some(&pushed[0]), "{left:?}");
    ensure!(!read(&store, &pushed[0], None).await?.is_empty(), "the survivor is empty");
    ensure!(store.open(&pushed[1], None).await.is_err(), "a removed blob opens");
    // Again: it is no error.
    let removed = store.remove(&entries).await;
    ensure!(removed.iter().all(|(_, freed)| freed.is_ok()), "{removed:?}");
    store.remove(&[StoreEntry::Blob(pushed[0].clone())]).await;
    expect_empty(&store).await
}

fn manifest(seed: u64) -> Result<ManifestRecord> {
    let bytes = Bytes::from(format!("{{\"schemaVersion\":2,\"n\":{seed}}}\n\n"));
    Ok(ManifestRecord {
        id: RecordId::random(),
        repository: "team/app".parse()?,
        digest: sha256(&bytes),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        time_ms: 1_700_000_000_000 + seed,
        foreign: vec![sha256(b"foreign")],
        bytes,
    })
}

fn tag(name: &str, change: u64) -> Result<TagRecord> {
    Ok(TagRecord {
        repository: "team/app".parse()?,
        tag: name.parse()?,
        digest: sha256(name.as_bytes()),
        gone: false,
        change,
        time_ms: 1_700_000_000_000,
    })
}

pub(super) async fn a_store_keeps_its_identity(place: &Place) -> Result<()> {
    let store = place.open().await?;
    ensure!(store.identity().await?.is_none(), "a store that was never served has no identity");
    ensure!(store.is_empty().await?, "there is nothing yet");
    for identity in [
        StoreIdentity::new("one".to_owned(), 0, String::new()),
        StoreIdentity::new("one".to_owned(), 17, "5 sha256:a".to_owned()),
    ] {
        store.put_identity(&identity).await?;
        ensure!(place.open().await?.identity().await? == Some(identity));
    }
    ensure!(store.is_empty().await?, "an identity is no content");
    store.put_tag_record(&tag("latest", 1)?).await?;
    ensure!(!store.is_empty().await?, "a record is content");
    Ok(())
}

pub(super) async fn records_are_written_and_listed(place: &Place) -> Result<()> {
    let store = place.open().await?;
    let manifests = (0..10).map(manifest).collect::<Result<Vec<_>>>()?;
    let tags = [tag("latest", 1)?, tag("latest", 2)?, tag("v1", 3)?];
    for record in &manifests {
        store.put_manifest_record(record).await?;
    }
    for record in &tags {
        store.put_tag_record(record).await?;
        // Once more, as after an answer that was lost.
        store.put_tag_record(record).await?;
    }
    let (mut found_manifests, mut found_tags) = (Vec::new(), Vec::new());
    for shard in Shard::all() {
        for found in store.list_manifest_records(shard).await?.entries {
            ensure!(found.name.shard() == shard && found.modified_ms > 1_600_000_000_000, "{found:?}");
            found_manifests.push(found.record?);
        }
        for found in store.list_tag_records(shard).await?.entries {
            ensure!(found.name.shard() == shard, "{found:?}");
            found_tags.push(found.record?);
        }
    }
    found_manifests.sort_by_key(|record| record.time_ms);
    found_tags.sort_by_key(|record| record.change);
    ensure!(found_manifests == manifests, "{found_manifests:?}");
    ensure!(found_tags == tags, "{found_tags:?}");
    ensure!(store.list_uploads().await?.entries.is_empty(), "temporary files are left");

    let entries = [StoreEntry::TagRecord(tags[0].name()), StoreEntry::ManifestRecord(manifests[0].id)];
    for (entry, freed) in store.remove(&entries).await {
        ensure!(freed? > 0 || place.is_s3(), "{entry}");
    }
    let left = store.list_tag_records(tags[1].name().shard()).await?.entries;
    ensure!(left.iter().any(|found| found.name == tags[1].name()), "{left:?}");
    ensure!(!left.iter().any(|found| found.name == tags[0].name()), "{left:?}");
    let left = store.list_manifest_records(manifests[0].id.shard()).await?.entries;
    ensure!(!left.iter().any(|found| found.name == manifests[0].id), "{left:?}");
    Ok(())
}

/// Replaces what lies at a path of the store; removes it without content.
fn tamper(place: &Place, path: &str, content: Option<&[u8]>) -> Result<()> {
    if place.kind == Kind::Filesystem {
        let path = place.config.path.join(path);
        match content {
            Some(content) => std::fs::write(path, content)?,
            None => std::fs::remove_file(path)?,
        }
        return Ok(());
    }
    let (server, s3) = (&place.server().s3, place.s3());
    let url = format!("{}/{}/{}/{path}", server.endpoint(), s3.bucket, s3.prefix);
    let reply = match content {
        Some(content) => {
            let file = place.run.path().join(format!("tampered-{}", fresh_id()));
            std::fs::write(&file, content)?;
            server.curl().args(["-X", "PUT", "--data-binary", &format!("@{}", file.display())]).get(&url)?
        }
        None => server.curl().args(["-X", "DELETE"]).get(&url)?,
    };
    ensure!(matches!(reply.status, 200 | 204), "{path}: {} {}", reply.status, String::from_utf8_lossy(&reply.body));
    Ok(())
}

/// What fsck and the scrub live on.
pub(super) async fn damage_is_found(place: &Place) -> Result<()> {
    let store = place.open().await?;
    let bytes = content(1, 5000);
    let (whole, short, lost) = (put(&store, &bytes).await?, put(&store, &bytes).await?, put(&store, &bytes).await?);
    let (manifest, tag) = (manifest(1)?, tag("latest", 1)?);
    store.put_manifest_record(&manifest).await?;
    store.put_tag_record(&tag).await?;
    let at = |blob: &StoredBlob| match place.kind {
        Kind::Filesystem => format!("blobs/{}/{blob}", blob.shard()),
        Kind::S3(_) => format!("blobs/{}/{}", blob.shard(), blob.key),
    };
    tamper(place, &at(&short), Some(&bytes[..4999]))?;
    tamper(place, &at(&lost), None)?;
    tamper(place, "blobs/00/stranger.txt", Some(b"?"))?;
    tamper(place, &format!("records/tags/{}/{}", tag.name().shard(), tag.name()), Some(b"{\"v\":1,"))?;
    let broken =
        [&br#"{"v":1,"repository":"team/app","digest":""#[..], manifest.digest.to_string().as_bytes()].concat();
    let broken = [&broken[..], b"\",\"media_type\":\"x\",\"time_ms\":1}\n{}"].concat();
    tamper(place, &format!("records/manifests/{}/{}", manifest.id.shard(), manifest.id), Some(&broken))?;
    tamper(place, "records/tags/00/stranger", Some(b"?"))?;

    let (found, strangers) = all_blobs(&store).await?;
    ensure!(strangers == ["blobs/00/stranger.txt"], "{strangers:?}");
    let of = |blob: &StoredBlob| found.iter().find(|found| found.key == blob.key);
    ensure!(of(&whole).is_some_and(FoundBlob::is_whole), "{found:?}");
    let damaged = of(&short).context("the short blob is not listed")?;
    ensure!(damaged.size_found == Some(4999) && damaged.name.as_ref() == Some(&short), "{damaged:?}");
    ensure!(!damaged.is_whole(), "{damaged:?}");
    let error = store.open(&short, None).await.expect_err("a damaged blob opens");
    ensure!(error.kind() == proto::Kind::Corrupt, "{error:?}");
    ensure!(store.stat(&short).await? == Some(4999), "stat says what is there");
    ensure!(!store.is_committed(short.key, &short.digest, short.size).await?, "a damaged blob counts as committed");
    match place.kind {
        Kind::Filesystem => ensure!(of(&lost).is_none(), "{found:?}"),
        Kind::S3(_) => {
            let nameless = of(&lost).context("a name without bytes is not listed")?;
            ensure!(nameless.size_found.is_none() && nameless.name.as_ref() == Some(&lost), "{nameless:?}");
            tamper(place, &format!("names/{}/{whole}", whole.shard()), None)?;
            let (found, _) = all_blobs(&store).await?;
            let orphan = found.iter().find(|found| found.key == whole.key).context("bytes without a name")?;
            ensure!(orphan.name.is_none() && orphan.size_found == Some(5000), "{orphan:?}");
            let removed = store.remove(&[StoreEntry::Bytes(whole.key)]).await;
            ensure!(removed[0].1.as_ref().is_ok_and(|freed| *freed == 0), "{removed:?}");
            let (found, _) = all_blobs(&store).await?;
            ensure!(!found.iter().any(|found| found.key == whole.key), "bytes without a name stay");
        }
    }
    let tags = store.list_tag_records(tag.name().shard()).await?.entries;
    ensure!(tags.iter().any(|found| found.name == tag.name() && found.record.is_err()), "{tags:?}");
    let manifests = store.list_manifest_records(manifest.id.shard()).await?.entries;
    ensure!(manifests.iter().any(|found| found.name == manifest.id && found.record.is_err()), "{manifests:?}");
    ensure!(store.list_tag_records(Shard::from(0)).await?.strangers == ["records/tags/00/stranger"], "no stranger");
    Ok(())
}

/// Processes that died: nothing cleaned up after them.
pub(super) async fn unfinished_uploads_are_found(place: &Place) -> Result<()> {
    let mut ids = Vec::new();
    for size in [2 * MIB, 3 * PART] {
        let store = place.open().await?;
        let id = fresh_id();
        let mut receiver = begin(&store, id).await?;
        feed(&mut receiver, &content(1, size)).await?;
        receiver.checkpoint().await?;
        feed(&mut receiver, &content(2, PART)).await?;
        ids.push(id);
        // As by kill -9, but for the lock on the file, which the kernel would release.
        std::mem::forget(receiver);
    }
    let store = place.open().await?;
    let mut found = store.list_uploads().await?.entries;
    found.sort_by_key(|found| found.id);
    ids.sort();
    ensure!(found.iter().map(|found| found.id).eq(ids.iter().copied()), "{found:?}");
    ensure!(found.iter().all(|found| found.modified_ms.abs_diff(found.id.created_ms()) < 600_000), "{found:?}");
    if place.is_s3() {
        ensure!(place.open_multiparts()? >= 1, "there is no multipart upload to clean up");
        for id in ids {
            store.discard(id, None).await?;
        }
        ensure!(place.open_multiparts()? == 0, "a multipart upload is left");
        expect_empty(&store).await?;
    } else {
        // The writers that were forgotten hold their locks still.
        let held = store.discard(ids[0], None).await;
        ensure!(matches!(held, Err(blobs::StoreError::Busy)), "{held:?}");
    }
    Ok(())
}
