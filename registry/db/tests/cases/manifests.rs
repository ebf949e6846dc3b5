//! Manifests, tags, referrers, the change log.

use db::{BlobCommit, Change, ChangeId, ChangeKind, Expected, ManifestId, PutManifestError, Referrer};
use oci::{Condition, Digest, Manifest, Reference, Unmet};
use serde_json::json;

use crate::support::*;

pub(crate) async fn a_manifest_is_found_by_tag_and_digest(ground: &Ground) {
    let db = &ground.db;
    push_blob(db, "a", "one", 1, 0).await;
    let manifest = image(&[digest("one")], json!({"annotations": {"x": "ü\u{1F600}"}}));
    let put = put(db, "a", &manifest, &["T", "t"], 5).await;
    assert!(put.created);
    assert_eq!(put.tags.iter().map(|moved| moved.tag.as_str()).collect::<Vec<_>>(), ["T", "t"]);
    let a = id(db, "a").await;
    assert_eq!(put.repository, a);
    for reference in [Reference::Tag(tag("t")), Reference::Tag(tag("T")), Reference::Digest(digest_of(&manifest))] {
        let found = db.manifest(a, &reference).await.unwrap().unwrap();
        assert_eq!(found.content, *manifest.raw());
        assert_eq!(found.media_type, manifest.media_type());
        assert_eq!(found.digest, digest_of(&manifest));
        let head = db.manifest_head(a, &reference).await.unwrap().unwrap();
        assert_eq!(head.digest, digest_of(&manifest));
        assert_eq!((head.media_type.as_str(), head.size), (manifest.media_type(), manifest.raw().len() as u64));
    }
    // Names are compared byte by byte.
    push_image(db, "b", "two", &["v1"], 2, 0).await;
    assert_eq!(tag_digest(db, "b", "V1").await, None);
    assert_eq!(db.manifest(id(db, "b").await, &Reference::Digest(digest_of(&manifest))).await.unwrap(), None);
    assert_eq!(db.catalog(None, 10).await.unwrap(), ["a", "b"]);
}

pub(crate) async fn a_push_needs_its_blobs_and_children(ground: &Ground) {
    let db = &ground.db;
    push_blob(db, "a", "one", 1, 0).await;
    push_blob(db, "b", "two", 2, 0).await;
    let manifest = image(&[digest("one"), digest("two"), digest("three")], json!({}));
    let Err(PutManifestError::MissingBlobs(mut missing)) = try_put(db, "a", &manifest, &["t"], 0).await else {
        panic!()
    };
    missing.sort_by_key(Digest::to_string);
    let mut expected = [digest("two"), digest("three")];
    expected.sort_by_key(Digest::to_string);
    assert_eq!(missing, expected, "a blob of another repository does not count");
    assert_eq!(tag_digest(db, "a", "t").await, None);
    let child = push_image(db, "a", "one", &[], 3, 0).await;
    let index = index(&[child.clone(), digest("no such manifest")]);
    let Err(PutManifestError::MissingManifests(missing)) = try_put(db, "a", &index, &[], 0).await else { panic!() };
    assert_eq!(missing, [digest("no such manifest")]);
    put(db, "a", &crate::support::index(&[child]), &["i"], 0).await;
    // Layers that clients get elsewhere.
    let elsewhere = image(
        &[digest("one")],
        json!({"layers": [{"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar", "digest": digest("far").to_string(), "size": 7}]}),
    );
    put(db, "a", &elsewhere, &["far"], 0).await;
    // A subject need not be there.
    put(db, "a", &image(&[digest("one")], about(&digest("no such subject"))), &[], 0).await;
}

pub(crate) async fn pushing_again_changes_nothing(ground: &Ground) {
    let db = &ground.db;
    push_blob(db, "a", "one", 1, 0).await;
    let manifest = image(&[digest("one")], json!({}));
    let first = put(db, "a", &manifest, &["t"], 5).await;
    let again = put(db, "a", &manifest, &["t", "u"], 6).await;
    assert!(!again.created);
    assert_eq!(again.change, None);
    assert_eq!((again.tags[0].moved, again.tags[0].change), (false, first.tags[0].change));
    assert!(again.tags[1].moved && again.tags[1].replaced.is_none());
    // The second record is superfluous, the first is the manifest's.
    let removals = take_removals(db).await;
    assert_eq!(removals.len(), 1, "{removals:?}");
    let row = &db.manifests_page(ManifestId(0), 10).await.unwrap()[0];
    assert_ne!(removals[0], record_entry(&row.record));
    assert_eq!(db.changes(ChangeId(0), 10).await.unwrap().len(), 3);
    // A name that was given to a record before is a defect of the caller, and no reason to wait.
    let (name, other, entry) = (repository("a"), image(&[digest("one")], json!({"annotations": {"x": "y"}})), "");
    let new = db::NewManifest {
        repository: &name,
        manifest: &other,
        digest: &digest_of(&other),
        record: Some(db::NewRecord { name: &row.record, entry }),
        tags: &[],
        now_ms: 7,
        expected: None,
        require_references: true,
    };
    let Err(PutManifestError::Db(error)) = db.put_manifest(&new).await else { panic!() };
    assert!(matches!(error, db::DbError::Corrupt(_)), "{error:?}");
    // Without a record it has to be there.
    let unrecorded = db::NewManifest { record: None, ..new };
    let refused = db.put_manifest(&unrecorded).await;
    assert!(matches!(refused, Err(PutManifestError::NoRecord)), "{refused:?}");
    let there =
        db::NewManifest { manifest: &manifest, digest: &digest_of(&manifest), tags: &[tag("later")], ..unrecorded };
    assert!(db.put_manifest(&there).await.unwrap().tags[0].moved);
    assert!(take_removals(db).await.is_empty());
}

pub(crate) async fn tags_move_and_their_history_stays(ground: &Ground) {
    let db = &ground.db;
    let one = push_image(db, "a", "one", &["t", "stays"], 1, 1).await;
    let two = push_image(db, "a", "two", &[], 2, 2).await;
    let a = id(db, "a").await;
    let first = db.tag_history(a, &tag("t"), 10).await.unwrap()[0].id;
    let moved = put(db, "a", &image(&[digest("two")], json!({})), &["t"], 3).await.tags.remove(0);
    assert_eq!(moved.replaced, Some(first));
    assert!(moved.change > first);
    assert_eq!(tag_digest(db, "a", "t").await, Some(two.clone()));
    assert_eq!(tag_digest(db, "a", "stays").await, Some(one.clone()));
    // Its record may go only after the new one was written, which the caller does.
    assert!(!take_removals(db).await.contains(&tag_entry(&tag("t"), first)));
    let history = db.tag_history(a, &tag("t"), 10).await.unwrap();
    let shown: Vec<_> = history.iter().map(|c| (c.kind, c.at_ms, &c.digest, c.previous.as_ref())).collect();
    assert_eq!(shown, [(ChangeKind::Tag, 3, &two, Some(&one)), (ChangeKind::Tag, 1, &one, None)]);
    assert_eq!(db.tag_history(a, &tag("t"), 1).await.unwrap().len(), 1);
    assert_eq!(db.tags(a, None, 10).await.unwrap(), ["stays", "t"]);
}

pub(crate) async fn deleting_a_tag_leaves_the_manifest(ground: &Ground) {
    let db = &ground.db;
    let one = push_image(db, "a", "one", &["t"], 1, 1).await;
    let a = id(db, "a").await;
    let made = db.tag_history(a, &tag("t"), 1).await.unwrap()[0].id;
    let deleted = db.delete_tag(a, &tag("t"), 2, &tag_entry).await.unwrap().unwrap();
    assert_eq!(deleted.digest, one);
    assert!(deleted.change > made);
    assert_eq!(db.delete_tag(a, &tag("t"), 3, &tag_entry).await.unwrap(), None);
    assert_eq!(take_removals(db).await, [tag_entry(&tag("t"), made)]);
    assert!(db.manifest(a, &Reference::Digest(one)).await.unwrap().is_some());
    assert_eq!(db.tags(a, None, 10).await.unwrap(), Vec::<String>::new());
    assert_eq!(db.tag_history(a, &tag("t"), 1).await.unwrap()[0].kind, ChangeKind::Untag);
    assert_eq!(collect_all(db, 10_000).await.unlinked, 0);
}

pub(crate) async fn deleting_a_manifest_takes_its_tags_and_leases_its_blobs(ground: &Ground) {
    let db = &ground.db;
    push_blob(db, "a", "shared", 1, 0).await;
    push_blob(db, "a", "own", 2, 0).await;
    let both = image(&[digest("shared"), digest("own")], json!({}));
    put(db, "a", &both, &["t", "u"], 1).await;
    put(db, "a", &image(&[digest("shared")], json!({})), &["other"], 1).await;
    let a = id(db, "a").await;
    assert_eq!(collect_all(db, 10_000).await.cleared, 2);
    let deleted = delete(db, a, &digest_of(&both), 20_000).await.unwrap();
    let history = async |name: &str| db.tag_history(a, &tag(name), 1).await.unwrap()[0].id;
    assert_eq!(deleted.tags, [(tag("t"), history("t").await), (tag("u"), history("u").await)]);
    assert_eq!(deleted.blobs.len(), 2);
    let mut entries = deleted.entries.clone();
    entries.sort();
    assert_eq!(take_removals(db).await, entries);
    assert_eq!(entries.len(), 3, "its record and those of two tags");
    assert_eq!(delete(db, a, &digest_of(&both), 20_000).await, None);
    assert_eq!(db.tags(a, None, 10).await.unwrap(), ["other"]);
    let leased = async |content: &str| db.link(a, &digest(content)).await.unwrap().map(|link| link.leased_until);
    assert_eq!(leased("own").await, Some(Some(20_000 + LEASE_MS)));
    let collected = collect_all(db, 20_000 + LEASE_MS).await;
    assert_eq!((collected.cleared, collected.unlinked, collected.blobs, collected.bytes), (1, 1, 1, 3));
    assert_eq!(leased("own").await, None);
    assert_eq!(leased("shared").await, Some(None));
    let kinds: Vec<_> = db.changes(deleted.change, 10).await.unwrap();
    assert_eq!(kinds, [], "the delete is the last change");
}

pub(crate) async fn referrers_are_listed_in_pages(ground: &Ground) {
    let db = &ground.db;
    let subject = push_image(db, "a", "one", &[], 1, 0).await;
    push_image(db, "b", "one", &[], 2, 0).await;
    let mut expected = Vec::new();
    for number in 0..7 {
        let mut more = about(&subject);
        more["annotations"] = json!({"number": number.to_string()});
        more["artifactType"] = json!(if number == 6 { "application/vnd.Other" } else { "application/vnd.test" });
        let manifest = image(&[digest("one")], more);
        put(db, "a", &manifest, &[], 0).await;
        // Of another repository, and of another subject.
        put(db, "b", &manifest, &[], 0).await;
        put(db, "a", &image(&[digest("one")], about(&digest_of(&manifest))), &[], 0).await;
        expected.push(digest_of(&manifest));
    }
    let other = expected[6].clone();
    expected.sort_by_key(Digest::to_string);
    let a = id(db, "a").await;
    let pages = async |wanted: Option<&str>| {
        let mut found: Vec<Referrer> = Vec::new();
        loop {
            let after = found.last().map(|last| last.digest.to_string());
            let page = db.referrers(a, &subject, wanted, after.as_deref(), 2).await.unwrap();
            if page.is_empty() {
                return found;
            }
            found.extend(page);
        }
    };
    let digests = |found: &[Referrer]| found.iter().map(|referrer| referrer.digest.clone()).collect::<Vec<_>>();
    let found = pages(None).await;
    assert_eq!(digests(&found), expected);
    assert_eq!(found[3].annotations_len, 14);
    assert_eq!(digests(&pages(Some("application/vnd.Other")).await), std::slice::from_ref(&other));
    assert_eq!(pages(Some("application/vnd.other")).await, [], "types are compared byte by byte");
    assert_eq!(pages(Some("application/vnd.test")).await.len(), 6);
    let Some(last) = found.iter().find(|referrer| referrer.digest == other) else { panic!() };
    assert_eq!(last.artifact_type.as_deref(), Some("application/vnd.Other"));
    let annotations = db.annotations(&[last.id, found[4].id, ManifestId(0)]).await.unwrap();
    assert_eq!(annotations[&last.id], r#"{"number":"6"}"#);
    assert_eq!(db.referrers(a, &digest("none"), None, None, 10).await.unwrap(), []);
    delete(db, a, &expected[0], 1).await.unwrap();
    let left = db.referrers(a, &subject, None, None, 10).await.unwrap();
    assert_eq!(digests(&left), expected[1..]);
    // What is no digest is a bound, too.
    assert_eq!(db.referrers(a, &subject, None, Some("sha256"), 10).await.unwrap(), left);
    assert_eq!(db.referrers(a, &subject, None, Some("sha257"), 10).await.unwrap(), []);
}

pub(crate) async fn a_refused_push_makes_no_repository(ground: &Ground) {
    let db = &ground.db;
    let manifest = image(&[digest("one")], json!({}));
    let there = async |name: &str| db.repository_id(&repository(name)).await.unwrap().is_some();
    let Err(PutManifestError::MissingBlobs(_)) = try_put(db, "a", &manifest, &["t"], 0).await else { panic!() };
    let lists = index(&[digest("none")]);
    let Err(PutManifestError::MissingManifests(_)) = try_put(db, "a", &lists, &["t"], 0).await else { panic!() };
    let (reference, condition) = (Reference::Tag(tag("t")), Condition::parse(["*"], []));
    let expected = Expected { reference: &reference, condition: &condition };
    let refused = put_if(db, "a", &index(&[]), &["t"], expected).await;
    assert!(matches!(refused, Err(PutManifestError::Unmet(Unmet::Match))), "{refused:?}");
    assert!(!there("a").await);
    // Bytes that were given up, and a blob that cannot be mounted.
    db.save_checkpoint(key(1), &repository("a"), "state", 1, FIRST, 0).await.unwrap();
    db.cancel_upload(key(1), &repository("a"), 1).await.unwrap();
    assert_eq!(push_blob(db, "a", "one", 1, 2).await, BlobCommit::Over);
    assert_eq!(db.mount(&digest("one"), None, &repository("a"), 0, LEASE_MS).await.unwrap(), None);
    push_blob(db, "b", "one", 2, 0).await;
    push_blob(db, "c", "two", 3, 0).await;
    let from = repository("c");
    assert_eq!(db.mount(&digest("one"), Some(&from), &repository("a"), 0, LEASE_MS).await.unwrap(), None);
    assert!(!there("a").await);
    // What is accepted makes it, and what is refused afterwards does not take it away.
    assert!(db.mount(&digest("one"), None, &repository("a"), 0, LEASE_MS).await.unwrap().is_some());
    assert!(there("a").await);
    let Err(_) = try_put(db, "a", &image(&[digest("two")], json!({})), &["t"], 0).await else { panic!() };
    assert!(there("a").await);
    let put = put(db, "d", &index(&[]), &["t"], 0).await;
    assert_eq!(put.repository, id(db, "d").await);
}

pub(crate) async fn pushes_and_deletes_have_conditions(ground: &Ground) {
    let db = &ground.db;
    push_blob(db, "a", "one", 1, 0).await;
    let image = |name: &str| image(&[digest("one")], json!({"annotations": {"name": name}}));
    let [one, two, three] = ["1", "2", "3"].map(image);
    let quoted = |manifest: &Manifest| format!("\"{}\"", digest_of(manifest));
    let at = Reference::Tag(tag("t"));
    let push = async |manifest: &Manifest, reference: &Reference, condition: Condition| {
        let tags = if matches!(reference, Reference::Tag(_)) { &["t"][..] } else { &[] };
        let put = put_if(db, "a", manifest, tags, Expected { reference, condition: &condition }).await;
        match put {
            Ok(_) => Ok(()),
            Err(PutManifestError::Unmet(unmet)) => Err(unmet),
            Err(error) => panic!("{error:?}"),
        }
    };
    let new = || Condition::parse([], ["*"]);
    assert_eq!(push(&one, &at, Condition::parse(["*"], [])).await, Err(Unmet::Match));
    assert_eq!(db.changes(ChangeId(0), 10).await.unwrap(), [], "nothing is left of what was refused");
    assert_eq!(push(&one, &at, new()).await, Ok(()));
    assert_eq!(push(&two, &at, new()).await, Err(Unmet::NoneMatch));
    assert_eq!(push(&two, &at, Condition::parse([&*quoted(&two)], [])).await, Err(Unmet::Match));
    let a = id(db, "a").await;
    let two_by_digest = Reference::Digest(digest_of(&two));
    assert_eq!(db.manifest(a, &two_by_digest).await.unwrap(), None);
    assert_eq!(push(&two, &at, Condition::parse([&*quoted(&one)], [])).await, Ok(()));
    assert_eq!(tag_digest(db, "a", "t").await, Some(digest_of(&two)));
    // By digest it is the manifest that is there or not.
    assert_eq!(push(&two, &two_by_digest, new()).await, Err(Unmet::NoneMatch));
    let three_by_digest = Reference::Digest(digest_of(&three));
    assert_eq!(push(&three, &three_by_digest, Condition::parse(["*"], [])).await, Err(Unmet::Match));
    assert_eq!(push(&three, &three_by_digest, new()).await, Ok(()));
    // Deletes.
    let delete = async |condition: &Condition| db.delete_tag_if(a, &tag("t"), condition, 1, &tag_entry).await.unwrap();
    assert_eq!(delete(&Condition::parse([&*quoted(&one)], [])).await, Err(Unmet::Match));
    assert_eq!(tag_digest(db, "a", "t").await, Some(digest_of(&two)));
    let deleted = delete(&Condition::parse([&*quoted(&two)], [])).await.unwrap().unwrap();
    assert_eq!(deleted.digest, digest_of(&two));
    assert_eq!(delete(&Condition::parse(["*"], [])).await, Ok(None));
}

pub(crate) async fn what_was_asked_for_stays_untagged(ground: &Ground) {
    let db = &ground.db;
    let one = push_image(db, "a", "one", &[], 1, 0).await;
    let a = id(db, "a").await;
    let untagged = async |before: i64| db.untagged_manifests(before, ManifestId(0), 10).await.unwrap().len();
    assert_eq!(untagged(100).await, 1);
    assert!(db.keep_manifest(a, &one, 100, 75).await.unwrap());
    assert_eq!(untagged(100).await, 0);
    assert_eq!(db.delete_untagged(&deletion(a, &one, 110), 100).await.unwrap(), None);
    // Not so often.
    assert!(db.keep_manifest(a, &one, 120, 95).await.unwrap());
    assert_eq!(untagged(101).await, 1);
    assert!(db.delete_untagged(&deletion(a, &one, 130), 101).await.unwrap().is_some());
    assert!(!db.keep_manifest(a, &one, 200, 175).await.unwrap());
}

pub(crate) async fn large_manifests_and_many_layers(ground: &Ground) {
    let db = &ground.db;
    let layers: Vec<Digest> = (0..1500).map(|number| digest(&format!("layer {number}"))).collect();
    for (number, _) in layers.iter().enumerate() {
        push_blob(db, "a", &format!("layer {number}"), number as u64, 0).await;
    }
    let many = image(&layers, json!({}));
    put(db, "a", &many, &["many"], 0).await;
    // As large as any registry takes, in what is kept apart, too.
    let large = image(&layers[..1], json!({"annotations": {"a": "ü".repeat(2 << 20)}}));
    assert!(large.raw().len() > 4 << 20);
    put(db, "a", &large, &["large"], 0).await;
    let a = id(db, "a").await;
    let found = db.manifest(a, &Reference::Tag(tag("large"))).await.unwrap().unwrap();
    assert_eq!(found.content, *large.raw());
    assert_eq!(collect_all(db, 10_000).await.cleared, 1500);
    delete(db, a, &digest_of(&many), 10_000).await.unwrap();
    let collected = collect_all(db, 20_000).await;
    assert_eq!((collected.cleared, collected.blobs), (1, 1499));
}

pub(crate) async fn only_what_nothing_holds_counts_as_untagged(ground: &Ground) {
    let db = &ground.db;
    let tagged = push_image(db, "a", "tagged", &["t"], 1, 0).await;
    let child = push_image(db, "a", "child", &[], 2, 0).await;
    put(db, "a", &index(std::slice::from_ref(&child)), &["i"], 0).await;
    let alone = push_image(db, "a", "alone", &[], 3, 0).await;
    let young = push_image(db, "a", "young", &[], 4, 50).await;
    // A signature of something alive, and one of something gone.
    put(db, "a", &image(&[digest("tagged")], about(&tagged)), &[], 0).await;
    let orphan = image(&[digest("tagged")], about(&digest("gone")));
    put(db, "a", &orphan, &[], 0).await;
    let a = id(db, "a").await;
    let untagged = async |before: i64| -> Vec<Digest> {
        let page = db.untagged_manifests(before, ManifestId(0), 10).await.unwrap();
        page.into_iter().map(|row| row.digest).collect()
    };
    assert_eq!(untagged(10).await, [alone.clone(), digest_of(&orphan)]);
    assert_eq!(untagged(60).await, [alone.clone(), young.clone(), digest_of(&orphan)]);
    assert_eq!(db.untagged_manifests(10, ManifestId(0), 1).await.unwrap().len(), 1);
    // A tag that went elsewhere leaves it young again, and so does another push.
    db.delete_tag(a, &tag("t"), 100, &tag_entry).await.unwrap();
    put(db, "a", &image(&[digest("alone")], json!({})), &[], 100).await;
    assert_eq!(untagged(100).await, [young.clone(), digest_of(&orphan)]);
    // Whoever removes looks again.
    for held in [&child, &tagged, &alone] {
        assert_eq!(db.delete_untagged(&deletion(a, held, 110), 100).await.unwrap(), None, "{held}");
    }
    assert!(db.delete_untagged(&deletion(a, &young, 110), 100).await.unwrap().is_some());
    assert!(db.delete_untagged(&deletion(a, &alone, 110), 101).await.unwrap().is_some());
    assert!(!untagged(1000).await.contains(&child));
}

pub(crate) async fn changes_are_a_log(ground: &Ground) {
    let db = &ground.db;
    let one = push_image(db, "a", "one", &["t"], 1, 1).await;
    let a = id(db, "a").await;
    push_image(db, "b", "two", &[], 2, 2).await;
    delete(db, a, &one, 3).await.unwrap();
    let log = db.changes(ChangeId(0), 100).await.unwrap();
    let shown: Vec<_> =
        log.iter().map(|c| (c.kind, c.repository.as_str(), c.tag.as_ref().map(|t| t.as_str()), c.at_ms)).collect();
    assert_eq!(
        shown,
        [
            (ChangeKind::Push, "a", None, 1),
            (ChangeKind::Tag, "a", Some("t"), 1),
            (ChangeKind::Push, "b", None, 2),
            (ChangeKind::Untag, "a", Some("t"), 3),
            (ChangeKind::Delete, "a", None, 3),
        ]
    );
    let Change { id, .. } = log[1];
    assert_eq!(db.changes(id, 2).await.unwrap(), log[2..4]);
    // Numbers are never given twice.
    push_image(db, "a", "three", &["t"], 3, 4).await;
    assert!(db.tag_history(a, &tag("t"), 1).await.unwrap()[0].id > log[4].id);
}
