//! What only object storage does: signed URLs, overload, deadlines.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use blobs::{FinishError, S3Config, Store, StoreConfig, StoreError, StoredBlob};
use harness::S3Kind;
use http::Method;
use proto::Kind as ErrorKind;
use service::config::{ByteSize, Redacted};

use crate::support::proxy::{Fault, Proxy};
use crate::support::{
    Kind, MIB, PART, Place, begin, checkpoint, content, expect_empty, feed, fresh_id, put, read, resume, run, sha256,
};

const KIND: Kind = Kind::S3(S3Kind::Minio);

fn changed(place: &Place, change: impl FnOnce(&mut S3Config)) -> StoreConfig {
    let mut s3 = place.s3().clone();
    change(&mut s3);
    StoreConfig { s3: Some(s3), ..place.config.clone() }
}

/// A store whose requests pass a proxy.
async fn behind_proxy(place: &Place, change: impl FnOnce(&mut S3Config)) -> Result<(Proxy, Store)> {
    let endpoint = place.s3().endpoint.as_ref().context("an endpoint")?;
    let port = endpoint.port().context("a port")?;
    let proxy = Proxy::start(SocketAddr::from(([127, 0, 0, 1], port))).await?;
    let config = changed(place, |s3| {
        s3.endpoint = format!("http://{}", proxy.addr).parse().ok();
        change(s3);
    });
    let store = blobs::open(&config).await?;
    Ok((proxy, store))
}

#[test]
fn clients_are_sent_to_the_storage_minio() {
    run(KIND, clients_are_sent_to_the_storage);
}

#[test]
fn clients_are_sent_to_the_storage_versitygw() {
    run(Kind::S3(S3Kind::Versitygw), clients_are_sent_to_the_storage);
}

async fn clients_are_sent_to_the_storage(place: &Place) -> Result<()> {
    let plain = place.open().await?;
    let bytes = content(1, 3000);
    let blob = put(&plain, &bytes).await?;
    ensure!(plain.presign(&blob, &Method::GET, Duration::from_secs(60)).await?.is_none(), "nobody asked for it");

    let store = blobs::open(&changed(place, |s3| s3.redirect = true)).await?;
    let url = store.presign(&blob, &Method::GET, Duration::from_secs(60)).await?.context("no URL")?;
    let curl = || harness::Curl::new(&harness::Host::local());
    let reply = curl().get(url.as_str())?;
    ensure!(reply.status == 200 && reply.body == bytes, "{} {}", reply.status, reply.body.len());
    let reply = curl().range(10, 19).get(url.as_str())?;
    ensure!(reply.status == 206 && reply.body == bytes[10..20], "{}", reply.status);
    // The signature is for one method, one object and one time.
    ensure!(curl().args(["-X", "DELETE"]).get(url.as_str())?.status == 403, "a GET's URL deletes");
    let head = store.presign(&blob, &Method::HEAD, Duration::from_secs(60)).await?.context("no URL")?;
    let reply = curl().args(["-I"]).get(head.as_str())?;
    ensure!(reply.status == 200 && reply.header("content-length") == Some("3000"), "{reply:?}");
    let other = put(&plain, &content(2, 10)).await?;
    let moved = url.as_str().replace(&blob.key.to_string(), &other.key.to_string());
    ensure!(curl().get(&moved)?.status == 403, "a signature opens another object");
    let brief = store.presign(&blob, &Method::GET, Duration::from_secs(1)).await?.context("no URL")?;
    tokio::time::sleep(Duration::from_millis(2500)).await;
    ensure!(curl().get(brief.as_str())?.status == 403, "the URL is valid for longer than it should be");

    // Where clients reach the storage need not be where we do.
    let elsewhere = changed(place, |s3| {
        s3.redirect = true;
        s3.redirect_endpoint = "https://s3.example.com".parse().ok();
    });
    let url = blobs::open(&elsewhere).await?.presign(&blob, &Method::GET, Duration::from_secs(60)).await?;
    ensure!(url.is_some_and(|url| url.host_str() == Some("s3.example.com") && url.scheme() == "https"), "wrong host");
    Ok(())
}

#[test]
fn what_there_is_no_memory_for_lies_in_the_bucket_minio() {
    run(KIND, what_there_is_no_memory_for_lies_in_the_bucket);
}

#[test]
fn what_there_is_no_memory_for_lies_in_the_bucket_versitygw() {
    run(Kind::S3(S3Kind::Versitygw), what_there_is_no_memory_for_lies_in_the_bucket);
}

async fn what_there_is_no_memory_for_lies_in_the_bucket(place: &Place) -> Result<()> {
    let with_memory = |bytes: usize| {
        changed(place, |s3| {
            s3.parts_in_flight = 1;
            s3.upload_memory = ByteSize::bytes((PART + bytes) as u64);
            // Or it would be read back from there.
            s3.tail_cache = ByteSize::bytes(0);
        })
    };
    let in_bucket = async |store: &Store| anyhow::Ok(!store.list_uploads().await?.entries.is_empty());
    // One whose client stalls has all there is.
    let store = blobs::open(&with_memory(4 * MIB)).await?;
    let mut stalled = begin(&store, fresh_id()).await?;
    feed(&mut stalled, &content(20, 4 * MIB)).await?;
    ensure!(!in_bucket(&store).await?, "there is room for one");
    let mut other = begin(&store, fresh_id()).await?;
    feed(&mut other, &content(21, 4 * MIB)).await?;
    ensure!(in_bucket(&store).await?, "there is no room for two");
    drop((stalled, other));
    expect_empty(&store).await?;

    // At once, of every length, with and without checkpoints; nobody waits for anybody.
    let store = blobs::open(&with_memory(0)).await?;
    let push = async |seed: u64, size: usize, halfway: bool| -> Result<StoredBlob> {
        let (id, bytes) = (fresh_id(), content(seed, size));
        let mut receiver = begin(&store, id).await?;
        let half = size / 2;
        feed(&mut receiver, &bytes.slice(..half)).await?;
        if halfway {
            let row = checkpoint(&mut receiver).await?;
            // What comes after it is lost, in memory or not.
            feed(&mut receiver, &content(seed + 1000, 2 * MIB)).await?;
            drop(receiver);
            receiver = resume(&store, id, &row).await?;
        }
        feed(&mut receiver, &bytes.slice(half..)).await?;
        let digest = sha256(&bytes);
        let finished = receiver.finish(&digest).await?;
        ensure!(finished.bytes_rehashed == 0, "{finished:?}");
        let blob = StoredBlob { key: id, digest, size: size as u64 };
        ensure!(read(&store, &blob, None).await? == bytes, "{size}, {halfway}: the content is another");
        Ok(blob)
    };
    let sizes = [100, 3 * MIB, PART, PART + 1, 2 * PART + MIB, 3 * PART];
    let pushes =
        sizes.into_iter().zip(22..).flat_map(|(size, seed)| [push(seed, size, false), push(seed + 50, size, true)]);
    let blobs = futures_util::future::try_join_all(pushes).await?;
    ensure!(place.open_multiparts()? == 0, "a multipart upload is left");
    let entries: Vec<_> = blobs.into_iter().map(blobs::StoreEntry::Blob).collect();
    ensure!(store.remove(&entries).await.iter().all(|(_, freed)| freed.is_ok()), "a blob is not there");
    expect_empty(&store).await
}

#[test]
fn an_overloaded_storage_is_given_time() {
    run(KIND, async |place: &Place| {
        let (proxy, store) = behind_proxy(place, |_| {}).await?;
        for (size, fault) in
            [(1000, Fault::SlowDown(3)), (2 * PART + MIB, Fault::SlowDown(3)), (2 * PART + MIB, Fault::SlowEnd(2))]
        {
            let (Fault::SlowDown(times) | Fault::SlowEnd(times)) = fault else { continue };
            proxy.set(fault);
            let bytes = content(3, size);
            let blob = put(&store, &bytes).await?;
            ensure!(proxy.faults() == times, "{fault:?}: {} requests were refused", proxy.faults());
            ensure!(read(&store, &blob, None).await? == bytes, "{fault:?}: the content is another");
        }
        Ok(())
    });
}

#[test]
fn a_storage_that_stays_overloaded_says_so() {
    run(KIND, async |place: &Place| {
        let deadline = Duration::from_secs(1);
        let (proxy, store) = behind_proxy(place, |s3| s3.retry_deadline = deadline).await?;
        let blob = put(&store, &content(4, 1000)).await?;
        proxy.set(Fault::SlowDown(usize::MAX));
        let started = Instant::now();
        let bytes = content(5, 1000);
        let mut receiver = begin(&store, fresh_id()).await?;
        feed(&mut receiver, &bytes).await?;
        let Err(FinishError::Store(error)) = receiver.finish(&sha256(&bytes)).await else {
            anyhow::bail!("it was stored nevertheless");
        };
        ensure!(error.kind() == ErrorKind::Throttled, "{error:?}");
        ensure!(error.retry_after() == Some(Duration::from_secs(7)), "{error:?}");
        ensure!(proxy.faults() > 1, "it was not tried again");
        ensure!(started.elapsed() < deadline + Duration::from_secs(10), "it took {:?}", started.elapsed());
        for error in [
            store.open(&blob, None).await.map(drop),
            store.stat(&blob).await.map(drop),
            store.list_uploads().await.map(drop),
            store.remove(&[blobs::StoreEntry::Blob(blob.clone())]).await.remove(0).1.map(drop),
        ] {
            let error = error.expect_err("the storage refuses everything");
            ensure!(error.kind() == ErrorKind::Throttled, "{error:?}");
        }
        proxy.set(Fault::None);
        ensure!(store.stat(&blob).await? == Some(1000), "the blob is gone");
        Ok(())
    });
}

#[test]
fn other_failures_have_their_kind() {
    run(KIND, async |place: &Place| {
        let (proxy, store) = behind_proxy(place, |s3| {
            s3.retry_deadline = Duration::from_millis(300);
            s3.request_timeout = Duration::from_millis(500);
        })
        .await?;
        let bytes = content(6, 1000);
        for (fault, kind) in [
            (Fault::Status(507), ErrorKind::NoSpace),
            (Fault::Status(500), ErrorKind::Unavailable),
            (Fault::Status(403), ErrorKind::Unavailable),
            (Fault::Stall, ErrorKind::Unavailable),
        ] {
            proxy.set(fault);
            let mut receiver = begin(&store, fresh_id()).await?;
            feed(&mut receiver, &bytes).await?;
            let started = Instant::now();
            let refused = tokio::time::timeout(Duration::from_secs(20), receiver.finish(&sha256(&bytes))).await?;
            let Err(FinishError::Store(error)) = refused else { anyhow::bail!("{fault:?}: {refused:?}") };
            ensure!(error.kind() == kind, "{fault:?}: {error:?}");
            ensure!(started.elapsed() < Duration::from_secs(10), "{fault:?}: {:?}", started.elapsed());
        }
        proxy.set(Fault::None);
        put(&store, &bytes).await?;
        Ok(())
    });
}

#[test]
fn a_broken_upload_to_an_overloaded_storage_goes_on_later() {
    run(KIND, async |place: &Place| {
        let (proxy, store) = behind_proxy(place, |s3| s3.retry_deadline = Duration::from_millis(300)).await?;
        let (id, bytes) = (fresh_id(), content(7, 3 * PART));
        let mut receiver = begin(&store, id).await?;
        feed(&mut receiver, &bytes.slice(..PART + MIB)).await?;
        let row = checkpoint(&mut receiver).await?;
        proxy.set(Fault::SlowDown(usize::MAX));
        let broken = async {
            feed(&mut receiver, &bytes.slice(PART + MIB..)).await?;
            checkpoint(&mut receiver).await
        };
        ensure!(broken.await.is_err(), "the storage refuses everything");
        drop(receiver);
        proxy.set(Fault::None);
        let mut receiver = resume(&store, id, &row).await?;
        feed(&mut receiver, &bytes.slice(PART + MIB..)).await?;
        receiver.finish(&sha256(&bytes)).await?;
        let blob = StoredBlob { key: id, digest: sha256(&bytes), size: bytes.len() as u64 };
        ensure!(read(&store, &blob, None).await? == bytes, "the content is another");
        ensure!(place.open_multiparts()? == 0, "a multipart upload is left");
        Ok(())
    });
}

#[test]
fn a_storage_that_cannot_be_used() {
    run(KIND, async |place: &Place| {
        let unusable = [
            changed(place, |s3| s3.bucket = "nobody-made-it".to_owned()),
            changed(place, |s3| s3.secret_key = Redacted::new("wrong".to_owned())),
            changed(place, |s3| {
                s3.endpoint = "http://127.0.0.1:9".parse().ok();
                s3.retry_deadline = Duration::from_millis(200);
            }),
            StoreConfig { s3: None, ..place.config.clone() },
        ];
        for config in unusable {
            let opened = tokio::time::timeout(Duration::from_secs(20), blobs::open(&config)).await?;
            ensure!(opened.is_err(), "{:?} is no store", config.s3);
        }
        Ok(())
    });
}

/// Many are removed with one request each, where the storage does not know how to remove several at once.
#[test]
fn objects_are_removed_one_by_one() {
    run(KIND, async |place: &Place| {
        let store = blobs::open(&changed(place, |s3| s3.bulk_delete = false)).await?;
        let mut entries = Vec::new();
        for seed in 0..5 {
            entries.push(blobs::StoreEntry::Blob(put(&store, &content(seed, 100)).await?));
        }
        let missing = StoredBlob { key: fresh_id(), digest: sha256(b""), size: 0 };
        entries.insert(2, blobs::StoreEntry::Blob(missing));
        let removed = store.remove(&entries).await;
        ensure!(removed.iter().all(|(_, freed)| freed.is_ok()), "{removed:?}");
        expect_empty(&store).await
    });
}

/// What there is of another process is not touched, and what it made is not overwritten.
#[test]
fn an_object_is_made_once() {
    run(KIND, async |place: &Place| {
        let store = place.open().await?;
        for size in [1000, PART + MIB] {
            let (id, first, second) = (fresh_id(), content(8, size), content(9, size));
            for (bytes, taken) in [(&first, false), (&second, true), (&first, false)] {
                let mut receiver = begin(&store, id).await?;
                feed(&mut receiver, bytes).await?;
                match receiver.finish(&sha256(bytes)).await {
                    Ok(_) => ensure!(!taken, "{size}: an object was overwritten"),
                    Err(FinishError::Store(StoreError::Taken)) => ensure!(taken, "{size}: its own content was refused"),
                    Err(error) => return Err(error.into()),
                }
            }
            let blob = StoredBlob { key: id, digest: sha256(&first), size: size as u64 };
            ensure!(read(&store, &blob, None).await? == first, "{size}: the content is another");
        }
        Ok(())
    });
}
