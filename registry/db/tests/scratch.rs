use crate::support::Kind;
use crate::support::*;
use db::*;
use oci::Reference;
use serde_json::json;
use std::time::{Duration, Instant};

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!(
        "{what}: p50 {:?} p95 {:?} p99 {:?} max {:?}",
        times[times.len() / 2],
        times[times.len() * 95 / 100],
        times[times.len() * 99 / 100],
        times[times.len() - 1]
    );
}

pub async fn latency(ground: &Ground) {
    let db = &ground.db;
    println!("== {}", db.name());
    for c in [1u64, 2, 10] {
        let begin = Instant::now();
        let tasks: Vec<_> = (0..c)
            .map(|t| {
                let db = db.clone();
                tokio::spawn(async move {
                    let mut times = vec![];
                    for n in 0..(1000 / c) {
                        let b = Instant::now();
                        push_blob(&db, "a", &format!("{c} {t} {n}"), c * 10_000_000 + t * 100_000 + n, 0).await;
                        times.push(b.elapsed());
                    }
                    times
                })
            })
            .collect();
        let mut all = vec![];
        for t in tasks {
            all.extend(t.await.unwrap());
        }
        println!("{c} clients {:.0}/s", all.len() as f64 / begin.elapsed().as_secs_f64());
        show("commit_blob", all);
    }
    let mut times = vec![];
    for n in 0..300 {
        let m = image(
            &[digest("1 0 0"), digest("1 0 1"), digest(&format!("1 0 {n}"))],
            json!({"annotations": {"n": n.to_string()}}),
        );
        let b = Instant::now();
        put(db, "a", &m, &[&format!("t{n}")], 0).await;
        times.push(b.elapsed());
    }
    show("put_manifest new tag", times);
    let mut times = vec![];
    for n in 0..300 {
        let m = image(
            &[digest("1 0 0"), digest("1 0 1"), digest(&format!("1 0 {n}"))],
            json!({"annotations": {"m": n.to_string()}}),
        );
        let b = Instant::now();
        put(db, "a", &m, &["latest"], 0).await;
        times.push(b.elapsed());
    }
    show("put_manifest moved tag", times);
    let a = id(db, "a").await;
    let mut times = vec![];
    for n in 0..1000 {
        let b = Instant::now();
        db.link(a, &digest(&format!("1 0 {n}"))).await.unwrap().unwrap();
        times.push(b.elapsed());
    }
    show("link", times);
    let mut times = vec![];
    for n in 0..300 {
        let b = Instant::now();
        db.manifest(a, &Reference::Tag(tag(&format!("t{n}")))).await.unwrap().unwrap();
        times.push(b.elapsed());
    }
    show("manifest", times);
    let b = Instant::now();
    let c = collect_all(db, 1_000_000).await;
    println!("collect {:?} in {:?}", c, b.elapsed());
}

pub async fn large(ground: &Ground) {
    let db = &ground.db;
    println!("== {}", db.name());
    db.restore_blobs(&[RestoredBlob { digest: digest("config"), size: 6, key: key(1) }], 0).await.unwrap();
    let scale: usize = std::env::var("SCALE").ok().and_then(|s| s.parse().ok()).unwrap_or(10_000);
    let b = Instant::now();
    let one = image(&[digest("config")], json!({}));
    let mut all = vec![];
    for n in 0..scale * 10 {
        let m = image(&[digest("config")], json!({"annotations": {"n": (n / scale).to_string()}}));
        all.push(RestoredManifest {
            repository: repository(&format!("group/r{:05}", n % scale)),
            digest: digest_of(&m),
            manifest: m,
            record: format!("{n:032x}"),
            created_ms: 0,
        });
    }
    db.restore_manifests(&all).await.unwrap();
    println!("manifests restored in {:?}", b.elapsed());
    let m0 = all[0].digest.clone();
    let tags: Vec<_> = (0..scale * 2)
        .map(|n| RestoredTag {
            repository: repository("group/r00000"),
            tag: tag(&format!("t{n:05}")),
            digest: m0.clone(),
            change: ChangeId(n as i64 + 1),
            at_ms: 0,
        })
        .collect();
    db.restore_tags(&tags).await.unwrap();
    println!("all restored in {:?}", b.elapsed());
    drop(one);
    let a = id(db, "group/r00000").await;
    let rnd = |n: usize| (n * 7919) % scale;
    let mut times = vec![];
    for n in 0..200 {
        let b = Instant::now();
        assert!(db.tags(a, Some(&format!("t{:05}", rnd(n))), 100).await.unwrap().len() > 50);
        times.push(b.elapsed());
    }
    show("tags", times);
    let mut times = vec![];
    for n in 0..200 {
        let b = Instant::now();
        db.catalog(Some(&format!("group/r{:05}", rnd(n))), 100).await.unwrap();
        times.push(b.elapsed());
    }
    show("catalog", times);
    let mut times = vec![];
    for n in 0..200 {
        let b = Instant::now();
        db.manifest(a, &Reference::Tag(tag(&format!("t{:05}", rnd(n))))).await.unwrap().unwrap();
        times.push(b.elapsed());
    }
    show("manifest", times);
    let mut times = vec![];
    for n in 0..50 {
        push_blob(db, &format!("group/r{:05}", rnd(n)), "config", 5_000_000 + n as u64, 0).await;
        let m = image(&[digest("config")], json!({"annotations": {"new": n.to_string()}}));
        let b = Instant::now();
        put(db, &format!("group/r{:05}", rnd(n)), &m, &["new"], 0).await;
        times.push(b.elapsed());
    }
    show("put", times);
    let b = Instant::now();
    println!("backlog {:?} {:?}", db.backlog(1).await.unwrap(), b.elapsed());
    let b = Instant::now();
    println!("untagged {:?} {:?}", db.untagged_manifests(1, ManifestId(0), 1000).await.unwrap().len(), b.elapsed());
    let b = Instant::now();
    println!("dangling {:?} {:?}", db.dangling_rows(10).await.unwrap().len(), b.elapsed());
    let b = Instant::now();
    println!("dry {:?} {:?}", db.collect(i64::MAX / 2, 1, true, &blob_entry).await.unwrap(), b.elapsed());
    let b = Instant::now();
    println!("collect {:?} {:?}", db.collect(i64::MAX / 2, 100, false, &blob_entry).await.unwrap(), b.elapsed());
    println!("delete tags:");
    let b = Instant::now();
    println!("{} tags {:?}", delete(db, a, &m0, 0).await.unwrap().tags.len(), b.elapsed());
}
#[test]
fn latency_sqlite() {
    run(Kind::Sqlite, latency)
}
#[test]
fn latency_mariadb() {
    run(Kind::MariaDb, latency)
}
#[test]
fn latency_postgres() {
    run(Kind::Postgres, latency)
}
#[test]
fn large_sqlite() {
    run(Kind::Sqlite, large)
}
#[test]
fn large_mariadb() {
    run(Kind::MariaDb, large)
}
#[test]
fn large_postgres() {
    run(Kind::Postgres, large)
}
