//! Many at once. Nothing may fail because others were in the way, and nothing that was acknowledged may be gone.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use db::{BlobCommit, ChangeId, ChangeKind, Db, Expected, PutManifestError, RemovalId};
use oci::{Condition, Manifest, Reference};
use serde_json::json;
use tokio::task::JoinSet;

use crate::support::*;

const TASKS: u64 = 8;

async fn together<F: Future<Output = ()> + Send + 'static>(work: impl Fn(u64) -> F) {
    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        tasks.spawn(work(task));
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

pub(crate) async fn one_digest_is_stored_once(ground: &Ground) {
    const DIGESTS: u64 = 10;
    let db = &ground.db;
    let stored = Arc::new(std::sync::Mutex::new(HashMap::<u64, u64>::new()));
    together(|task| {
        let (db, stored) = (db.clone(), Arc::clone(&stored));
        async move {
            for number in 0..DIGESTS {
                let repository = format!("r{}", task % 3);
                match push_blob(&db, &repository, &format!("blob {number}"), number * TASKS + task, 0).await {
                    BlobCommit::Stored(_) => *stored.lock().unwrap().entry(number).or_default() += 1,
                    BlobCommit::Existed(linked) => assert_ne!(linked.link.key, key(number * TASKS + task)),
                    BlobCommit::Over => panic!("nobody gave it up"),
                }
            }
        }
    })
    .await;
    assert_eq!(*stored.lock().unwrap(), (0..DIGESTS).map(|number| (number, 1)).collect());
    assert_eq!(take_removals(db).await.len() as u64, DIGESTS * (TASKS - 1));
    for number in 0..DIGESTS {
        for repository in ["r0", "r1", "r2"] {
            let digest = digest(&format!("blob {number}"));
            assert!(db.link(id(db, repository).await, &digest).await.unwrap().is_some());
        }
    }
}

/// Of a commit and somebody who gives the bytes up, one wins, and both know who.
pub(crate) async fn an_upload_is_a_blob_or_ended(ground: &Ground) {
    const KEYS: u64 = 40;
    let db = &ground.db;
    let outcomes = Arc::new(std::sync::Mutex::new(HashMap::<u64, Vec<bool>>::new()));
    together(|task| {
        let (db, outcomes) = (db.clone(), Arc::clone(&outcomes));
        async move {
            for number in 0..KEYS {
                let is_blob = if (task + number) % 2 == 0 {
                    !matches!(push_blob(&db, "a", &format!("blob {number}"), number, 0).await, BlobCommit::Over)
                } else {
                    !db.end_uploads(&[key(number)], 1).await.unwrap().contains(&key(number))
                };
                outcomes.lock().unwrap().entry(number).or_default().push(is_blob);
            }
        }
    })
    .await;
    let outcomes = std::mem::take(&mut *outcomes.lock().unwrap());
    for (number, outcomes) in outcomes {
        assert_eq!(outcomes.len() as u64, TASKS);
        let is_blob = db.digests_of_keys(&[key(number)]).await.unwrap().contains_key(&key(number));
        assert!(outcomes.iter().all(|outcome| *outcome == is_blob), "{number}: {outcomes:?}");
    }
}

pub(crate) async fn one_tag_has_one_history(ground: &Ground) {
    const PUSHES: u64 = 5;
    let db = &ground.db;
    push_blob(db, "a", "one", 1, 0).await;
    together(|task| {
        let db = db.clone();
        async move {
            for number in 0..PUSHES {
                let manifest = image(&[digest("one")], json!({"annotations": {"n": format!("{task}.{number}")}}));
                let put = put(&db, "a", &manifest, &["t", "u"], 0).await;
                assert!(put.created && put.tags.iter().all(|moved| moved.moved));
            }
        }
    })
    .await;
    let a = id(db, "a").await;
    for name in ["t", "u"] {
        let history = db.tag_history(a, &tag(name), 1000).await.unwrap();
        assert_eq!(history.len() as u64, TASKS * PUSHES);
        // The latest first: what each found is what the one below made.
        for pair in history.windows(2) {
            assert_eq!(pair[0].previous.as_ref(), Some(&pair[1].digest));
        }
        assert_eq!(tag_digest(db, "a", name).await.as_ref(), Some(&history[0].digest));
        assert_eq!(db.tags_of_changes(&[history[0].id]).await.unwrap()[0].tag, tag(name));
    }
}

/// Each finds what the one before left, or is refused; of several that expect the same, one is taken.
pub(crate) async fn of_conditional_pushes_one_wins(ground: &Ground) {
    const ROUNDS: u64 = 10;
    let db = &ground.db;
    push_blob(db, "a", "one", 1, 0).await;
    let won = Arc::new(AtomicU64::new(0));
    let mut current = None;
    for round in 0..ROUNDS {
        let before = won.load(Ordering::Relaxed);
        together(|task| {
            let (db, won, current) = (db.clone(), Arc::clone(&won), current.clone());
            async move {
                let manifest = image(&[digest("one")], json!({"annotations": {"n": format!("{round}.{task}")}}));
                let condition = match &current {
                    None => Condition::parse([], ["*"]),
                    Some(current) => Condition::parse([&*format!("\"{current}\"")], []),
                };
                let reference = Reference::Tag(tag("t"));
                let expected = Expected { reference: &reference, condition: &condition };
                match put_if(&db, "a", &manifest, &["t"], expected).await {
                    Ok(put) => assert!(put.tags[0].moved && won.fetch_add(1, Ordering::Relaxed) == before),
                    Err(PutManifestError::Unmet(_)) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        })
        .await;
        assert_eq!(won.load(Ordering::Relaxed), before + 1, "of one round");
        current = tag_digest(db, "a", "t").await;
        // Every other round begins without a tag.
        if round % 2 == 1 {
            db.delete_tag(id(db, "a").await, &tag("t"), 0, &tag_entry).await.unwrap();
            current = None;
        }
    }
    // Nothing is left of those that were refused.
    let pushed = db.changes(ChangeId(0), 1000).await.unwrap();
    let pushed = pushed.iter().filter(|change| change.kind == ChangeKind::Push).count();
    assert_eq!(pushed as u64, ROUNDS);
}

/// A repository comes to be with its first push, though some are refused at the same time.
pub(crate) async fn first_pushes_make_one_repository(ground: &Ground) {
    const REPOSITORIES: u64 = 10;
    let db = &ground.db;
    together(|task| {
        let db = db.clone();
        async move {
            for number in 0..REPOSITORIES {
                let name = format!("r{number}");
                if task % 2 == 0 {
                    let mounted = db.mount(&digest("none"), None, &repository(&name), 0, LEASE_MS).await.unwrap();
                    assert_eq!(mounted, None);
                } else {
                    let content = format!("{number}.{task}");
                    push_blob(&db, &name, &content, number * TASKS + task, 0).await;
                    put(&db, &name, &image(&[digest(&content)], json!({})), &["t"], 0).await;
                }
            }
        }
    })
    .await;
    for number in 0..REPOSITORIES {
        let a = id(db, &format!("r{number}")).await;
        for task in (0..TASKS).filter(|task| task % 2 == 1) {
            assert!(db.link(a, &digest(&format!("{number}.{task}"))).await.unwrap().is_some());
        }
    }
    assert_eq!(db.catalog(None, 100).await.unwrap().len() as u64, REPOSITORIES);
}

/// Collects in the background until it is told to stop; the entries that became removals.
fn collector(db: &Db, stop: &Arc<AtomicBool>) -> tokio::task::JoinHandle<HashSet<String>> {
    let (db, stop) = (db.clone(), Arc::clone(stop));
    tokio::spawn(async move {
        let mut gone = HashSet::new();
        while !stop.load(Ordering::Relaxed) {
            db.collect(1, 5, false, &blob_entry).await.unwrap();
            gone.extend(take_removals(&db).await);
        }
        gone
    })
}

/// Manifests of several blobs, in several repositories: databases find such links by other indexes than single ones.
pub(crate) async fn pushes_of_several_blobs_and_the_collector(ground: &Ground) {
    const PUSHES: u64 = 40;
    const BLOBS: u64 = 4;
    let db = &ground.db;
    let stop = Arc::new(AtomicBool::new(false));
    let collector = collector(db, &stop);
    together(|task| {
        let db = db.clone();
        async move {
            let name = format!("r{}", task % 2);
            for number in 0..PUSHES {
                let contents: Vec<String> = (0..BLOBS).map(|blob| format!("{task} {number} {blob}")).collect();
                let digests: Vec<_> = contents.iter().map(|content| digest(content)).collect();
                let manifest = image(&digests, json!({}));
                loop {
                    for (blob, content) in contents.iter().enumerate() {
                        let key = rand::random_range(1_000_000..u64::MAX / 2) + blob as u64;
                        push_blob(&db, &name, content, key, -LEASE_MS).await;
                    }
                    match try_put(&db, &name, &manifest, &[], 0).await {
                        Ok(_) => break,
                        Err(PutManifestError::MissingBlobs(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                let repository = id(&db, &name).await;
                for digest in &digests {
                    assert!(db.link(repository, digest).await.unwrap().is_some(), "a blob of {task} {number} is gone");
                }
            }
        }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    collector.await.unwrap();
    assert_eq!(db.dangling_rows(10).await.unwrap(), []);
}

pub(crate) async fn pushes_and_the_collector(ground: &Ground) {
    const PUSHES: u64 = 25;
    let db = &ground.db;
    let stop = Arc::new(AtomicBool::new(false));
    let collector = collector(db, &stop);
    let pushed = Arc::new(std::sync::Mutex::new(Vec::<(u64, Manifest)>::new()));
    let refused = Arc::new(AtomicU64::new(0));
    together(|task| {
        let (db, pushed, refused) = (db.clone(), Arc::clone(&pushed), Arc::clone(&refused));
        async move {
            for number in 0..PUSHES {
                // Its lease is over as soon as it is there. Some are shared by two tasks.
                let content = format!("{} {number}", task / 2);
                push_blob(&db, "a", &content, task * 1000 + number, -LEASE_MS).await;
                let manifest = image(&[digest(&content)], json!({"annotations": {"task": task.to_string()}}));
                match try_put(&db, "a", &manifest, &[], 0).await {
                    Ok(_) => pushed.lock().unwrap().push((task, manifest)),
                    Err(PutManifestError::MissingBlobs(missing)) => {
                        assert_eq!(missing, [digest(&content)]);
                        refused.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) => panic!("{error}"),
                }
            }
        }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let mut gone = collector.await.unwrap();
    collect_all(db, 1).await;
    gone.extend(take_removals(db).await);
    let a = id(db, "a").await;
    let pushed = pushed.lock().unwrap().clone();
    assert!(!pushed.is_empty());
    for (_, manifest) in &pushed {
        let needed = manifest.required_blobs()[0].digest.clone();
        let link = db.link(a, &needed).await.unwrap().expect("a referenced blob was removed");
        assert!(!gone.contains(&blob_entry(link.key, &needed, link.size)), "its bytes are gone");
        assert!(db.manifest(a, &Reference::Digest(digest_of(manifest))).await.unwrap().is_some());
    }
    assert_eq!(pushed.len() as u64 + refused.load(Ordering::Relaxed), TASKS * PUSHES);
}

pub(crate) async fn mounts_and_the_collector(ground: &Ground) {
    const ROUNDS: u64 = 20;
    let db = &ground.db;
    let stop = Arc::new(AtomicBool::new(false));
    let collector = collector(db, &stop);
    together(|task| {
        let db = db.clone();
        async move {
            let mut mounted = 0;
            for number in 0..ROUNDS {
                let content = format!("blob {}", number % 4);
                let to = repository(&format!("to{task}/n{number}"));
                // The link it comes from may go at any moment.
                push_blob(&db, "from", &content, task * 1000 + number, -LEASE_MS).await;
                let from = repository("from");
                let source = if number % 2 == 0 { Some(&from) } else { None };
                if let Some(linked) = db.mount(&digest(&content), source, &to, 0, 1_000_000).await.unwrap() {
                    mounted += 1;
                    let link = db.link(linked.repository, &digest(&content)).await.unwrap();
                    assert_eq!(link, Some(linked.link), "a leased link was removed");
                }
            }
            assert!(mounted > 0, "not one mount was quick enough");
        }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    collector.await.unwrap();
    // As if all leases were over: nothing stays.
    collect_all(db, 1_000_000).await;
    assert_eq!(db.blobs_page(db::BlobId(0), 10).await.unwrap(), []);
}

pub(crate) async fn deletes_and_pushes(ground: &Ground) {
    const ROUNDS: u64 = 12;
    let db = &ground.db;
    for number in 0..4 {
        push_blob(db, "a", &format!("blob {number}"), number, 1_000_000).await;
    }
    let a = id(db, "a").await;
    let manifest_of = |number: u64| {
        // Each shares blobs with its neighbours.
        let blobs = [number % 4, (number + 1) % 4].map(|number| digest(&format!("blob {number}")));
        image(&blobs, json!({}))
    };
    together(|task| {
        let db = db.clone();
        async move {
            for round in 0..ROUNDS {
                let manifest = manifest_of(task + round);
                let names = ["t", "u", "v"];
                let (one, two) = (names[(task + round) as usize % 3], names[(task + 1) as usize % 3]);
                match task % 4 {
                    0 | 1 => drop(put(&db, "a", &manifest, &[one, two], 0).await),
                    2 => drop(db.delete_manifest(&deletion(a, &digest_of(&manifest), 0)).await.unwrap()),
                    _ => {
                        drop(db.delete_tag(a, &tag(one), 0, &tag_entry).await.unwrap());
                        drop(db.delete_untagged(&deletion(a, &digest_of(&manifest), 0), 1).await.unwrap());
                    }
                }
            }
        }
    })
    .await;
    // The log tells the same story as the tables.
    let mut there = HashSet::new();
    let mut tags = HashMap::new();
    for change in db.changes(ChangeId(0), 10_000).await.unwrap() {
        match change.kind {
            ChangeKind::Push => assert!(there.insert(change.digest)),
            ChangeKind::Delete => assert!(there.remove(&change.digest)),
            ChangeKind::Tag => drop(tags.insert(change.tag.unwrap(), change.digest)),
            ChangeKind::Untag => assert_eq!(tags.remove(&change.tag.unwrap()), Some(change.digest)),
        }
    }
    let found = db.manifests_page(db::ManifestId(0), 100).await.unwrap();
    assert_eq!(found.into_iter().map(|row| row.digest).collect::<HashSet<_>>(), there);
    let found = db.tags_page(None, 100).await.unwrap();
    assert_eq!(found.into_iter().map(|row| (row.tag, row.digest)).collect::<HashMap<_, _>>(), tags);
}

pub(crate) async fn collectors_beside_each_other(ground: &Ground) {
    const BLOBS: u64 = 300;
    let db = &ground.db;
    for number in 0..BLOBS {
        push_blob(db, "a", &format!("blob {number}"), number, 0).await;
    }
    let taken = Arc::new(std::sync::Mutex::new(Vec::<RemovalId>::new()));
    let unlinked = Arc::new(AtomicU64::new(0));
    together(|_| {
        let (db, taken, unlinked) = (db.clone(), Arc::clone(&taken), Arc::clone(&unlinked));
        async move {
            while db.backlog(LEASE_MS).await.unwrap().links_due > 0 {
                let step = db.collect(LEASE_MS, 20, false, &blob_entry).await.unwrap();
                unlinked.fetch_add(step.unlinked, Ordering::Relaxed);
                let removals = db.removals(0, 10, 50).await.unwrap();
                taken.lock().unwrap().extend(removals.iter().map(|removal| removal.id));
            }
        }
    })
    .await;
    let rest = db.removals(0, 10, 1000).await.unwrap();
    assert_eq!(unlinked.load(Ordering::Relaxed), BLOBS);
    let mut taken = taken.lock().unwrap().clone();
    taken.extend(rest.iter().map(|removal| removal.id));
    assert_eq!(taken.len() as u64, BLOBS);
    assert_eq!(taken.iter().collect::<HashSet<_>>().len() as u64, BLOBS, "one was taken twice");
}

/// A client that goes away drops what is done for it.
pub(crate) async fn futures_can_be_sent_and_dropped(ground: &Ground) {
    const ROUNDS: u64 = 30;
    let db = &ground.db;
    push_blob(db, "a", "first", 1_000_000, 0).await;
    let begin = std::time::Instant::now();
    push_blob(db, "a", "second", 1_000_001, 0).await;
    // Together they take longer than alone; so some are given up early, some late, some not at all.
    let patience_max = begin.elapsed() * 12;
    let acknowledged = Arc::new(std::sync::Mutex::new(Vec::new()));
    together(|task| {
        let (db, acknowledged) = (db.clone(), Arc::clone(&acknowledged));
        async move {
            for round in 0..ROUNDS {
                let number = task * ROUNDS + round;
                let content = format!("blob {number}");
                let patience = match number % 5 {
                    0 => Duration::from_secs(60),
                    _ => patience_max.mul_f64((number * 37 % 100) as f64 / 100.0),
                };
                if tokio::time::timeout(patience, push_blob(&db, "a", &content, number, 0)).await.is_ok() {
                    acknowledged.lock().unwrap().push(content);
                }
            }
        }
    })
    .await;
    // It goes on as if nothing had been.
    push_image(db, "a", "last", &["t"], 1_000_002, 0).await;
    let acknowledged = acknowledged.lock().unwrap().clone();
    assert!(!acknowledged.is_empty(), "not one was quick enough");
    let a = id(db, "a").await;
    for content in acknowledged {
        assert!(db.link(a, &digest(&content)).await.unwrap().is_some(), "{content} was acknowledged");
    }
}
