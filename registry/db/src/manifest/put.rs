//! Pushing a manifest.

use std::collections::HashSet;

use oci::{Digest, Manifest, Reference, TagName, Unmet};

use super::{ManifestPut, NewManifest, PutManifestError, TagMove};
use crate::change::{self, NewChange};
use crate::error::Fault;
use crate::lock::{self, Lock};
use crate::repository::Place;
use crate::sql::{LIST_MAX, Run, db_size, marks, padded, repeat, sql, values};
use crate::{ChangeId, ChangeKind, Db, DbError, ManifestId, RepositoryId, removal};

/// What a manifest refers to, as the database has it.
pub(crate) struct References {
    /// Blobs, and whether they have to be there; those of a manifest that was not checked do not.
    blobs: Vec<(String, bool)>,
    children: Vec<String>,
}

impl References {
    /// The blobs that have to be there.
    pub(crate) fn required_blobs(&self) -> impl Iterator<Item = &str> {
        self.blobs.iter().filter(|(_, required)| *required).map(|(digest, _)| digest.as_str())
    }

    pub(crate) fn of(manifest: &Manifest) -> Self {
        let mut blobs: Vec<_> = manifest.blobs().iter().map(|blob| (blob.digest.to_string(), blob.required)).collect();
        let mut children: Vec<_> = manifest.children().iter().map(|child| child.digest.to_string()).collect();
        // Rows of different manifests are inserted in one order.
        blobs.sort_unstable();
        children.sort_unstable();
        Self { blobs, children }
    }
}

/// Why the manifest is not stored.
enum Refusal {
    MissingBlobs(Vec<String>),
    MissingManifests(Vec<String>),
    NoRecord,
    Unmet(Unmet),
}

impl Db {
    /// What a push of this manifest would be refused for at this moment. Whoever writes its record asks before: there shall be none of what
    /// is refused.
    ///
    /// # Errors
    /// When something it needs is missing, or the database fails.
    pub async fn expect_references(
        &self,
        repository: Option<RepositoryId>,
        manifest: &Manifest,
    ) -> Result<(), PutManifestError> {
        let blobs: Vec<Digest> =
            manifest.blobs().iter().filter(|blob| blob.required).map(|blob| blob.digest.clone()).collect();
        let children: Vec<Digest> = manifest.children().iter().map(|child| child.digest.clone()).collect();
        let (mut readable, mut known) = (HashSet::new(), HashSet::new());
        if let Some(repository) = repository {
            readable = self.readable(repository, &blobs).await?;
            known = self.manifests_known(repository, &children).await?;
        }
        let missing = |wanted: Vec<Digest>, there: &HashSet<Digest>| {
            wanted.into_iter().filter(|digest| !there.contains(digest)).collect::<Vec<_>>()
        };
        match (missing(blobs, &readable), missing(children, &known)) {
            (blobs, _) if !blobs.is_empty() => Err(PutManifestError::MissingBlobs(blobs)),
            (_, children) if !children.is_empty() => Err(PutManifestError::MissingManifests(children)),
            _ => Ok(()),
        }
    }

    /// Those of the digests that are manifests of the repository.
    async fn manifests_known(&self, repository: RepositoryId, digests: &[Digest]) -> Result<HashSet<Digest>, DbError> {
        self.read(|run: Run| async move {
            let run = &run;
            let mut found = HashSet::with_capacity(digests.len());
            for digests in digests.chunks(LIST_MAX) {
                let digests = padded(digests.iter().map(ToString::to_string).collect());
                let text = format!(
                    "select digest from manifests where repository_id = ? and digest in {}",
                    marks(digests.len())
                );
                let values = values![repository.0].into_iter().chain(digests.into_iter().map(Into::into));
                for row in run.all(text, values.collect()).await? {
                    found.insert(row.parse(0)?);
                }
            }
            Ok(found)
        })
        .await
    }

    /// Stores a manifest, its references and its tags in one transaction. Doing it again is harmless.
    ///
    /// # Errors
    /// When something it needs is missing, or the database fails.
    pub async fn put_manifest(&self, new: &NewManifest<'_>) -> Result<ManifestPut, PutManifestError> {
        // Remembered from here on, if it is there.
        self.repository_id(new.repository).await?;
        let digest = new.digest.to_string();
        let references = References::of(new.manifest);
        let mut tags: Vec<&TagName> = new.tags.iter().collect();
        tags.sort_unstable();
        tags.dedup();
        let (digest, references, tags) = (&digest, &references, &tags);
        let outcome = self
            .transact(|run: Run| async move {
                let place = Place::enter(&run, self.known(new.repository), new.repository, new.now_ms).await?;
                let outcome = Put { repository: place.id, digest, references, tags, new }.run(&run).await?;
                if outcome.is_err() {
                    place.leave(&run).await?;
                }
                Ok(outcome)
            })
            .await?;
        let digests = |texts: Vec<String>| texts.iter().filter_map(|text| text.parse().ok()).collect();
        let put = outcome.map_err(|refusal| match refusal {
            Refusal::MissingBlobs(missing) => PutManifestError::MissingBlobs(digests(missing)),
            Refusal::MissingManifests(missing) => PutManifestError::MissingManifests(digests(missing)),
            Refusal::NoRecord => PutManifestError::NoRecord,
            Refusal::Unmet(unmet) => PutManifestError::Unmet(unmet),
        })?;
        self.remember(new.repository, put.repository);
        Ok(put)
    }

    /// Keeps a manifest for somebody who was told that it is there, as if it had been pushed: it counts as without a tag from now on, unless
    /// it already does since `recently_ms` or later. Whether it is still there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn keep_manifest(
        &self,
        repository: RepositoryId,
        digest: &Digest,
        now_ms: i64,
        recently_ms: i64,
    ) -> Result<bool, DbError> {
        let digest = digest.to_string();
        let digest = &digest;
        self.transact(|run: Run| async move {
            let text =
                sql!("update manifests set idle_since = ? where repository_id = ? and digest = ? and idle_since < ?");
            if run.execute(text, values![now_ms, repository.0, digest.as_str(), recently_ms]).await? > 0 {
                return Ok(true);
            }
            // Nobody must be about to remove it.
            let text = sql!("select 1 from manifests where repository_id = ? and digest = ? for share");
            Ok(run.one(text, values![repository.0, digest.as_str()]).await?.is_some())
        })
        .await
    }
}

struct Put<'p> {
    repository: RepositoryId,
    digest: &'p str,
    references: &'p References,
    tags: &'p [&'p TagName],
    new: &'p NewManifest<'p>,
}

impl Put<'_> {
    async fn run(&self, run: &Run) -> Result<Result<ManifestPut, Refusal>, Fault> {
        if let Err(missing) = self.lock_blobs(run).await? {
            return Ok(Err(missing));
        }
        let existing = match self.lock_manifests(run).await? {
            Ok(existing) => existing,
            Err(missing) => return Ok(Err(missing)),
        };
        if let Err(unmet) = self.check(run, existing.is_some()).await? {
            return Ok(Err(Refusal::Unmet(unmet)));
        }
        let (id, change) = match (existing, self.new.record) {
            (Some(id), _) => (id, None),
            (None, Some(record)) => self.create(run, record.name).await?,
            (None, None) => return Ok(Err(Refusal::NoRecord)),
        };
        let mut moves = Vec::with_capacity(self.tags.len());
        for tag in self.tags {
            moves.push(self.point(run, tag, id).await?);
        }
        Ok(Ok(ManifestPut { repository: self.repository, created: change.is_some(), change, tags: moves }))
    }

    /// Keeps the blobs readable that the manifest needs. Those it need not have are kept, too, if they are there.
    async fn lock_blobs(&self, run: &Run) -> Result<Result<(), Refusal>, Fault> {
        let blobs = &self.references.blobs;
        let digests: Vec<_> = blobs.iter().map(|(digest, _)| digest.as_str()).collect();
        let locked = lock::links(run, self.repository, &digests, Lock::Shared).await?;
        let locked: HashSet<_> = locked.iter().map(|(digest, _)| digest.as_str()).collect();
        let missing: Vec<_> = blobs
            .iter()
            .filter(|(digest, required)| *required && !locked.contains(digest.as_str()))
            .map(|(digest, _)| digest.clone())
            .collect();
        Ok(if missing.is_empty() || !self.new.require_references {
            Ok(())
        } else {
            Err(Refusal::MissingBlobs(missing))
        })
    }

    /// Keeps the manifests it refers to, its children and its subject, from being found unneeded and removed at the same time, and this
    /// manifest itself, if it is there already; its number then.
    async fn lock_manifests(&self, run: &Run) -> Result<Result<Option<ManifestId>, Refusal>, Fault> {
        let subject = self.new.manifest.subject().map(|subject| subject.digest.to_string());
        let mut wanted: Vec<&str> = self.references.children.iter().map(String::as_str).collect();
        wanted.extend(subject.as_deref());
        wanted.push(self.digest);
        let mut found = HashSet::new();
        let mut existing = None;
        for wanted in wanted.chunks(LIST_MAX) {
            let wanted = padded(wanted.to_vec());
            let text = format!(
                "select id, digest, record from manifests where repository_id = ? and digest in {} order by id for share",
                marks(wanted.len())
            );
            let values = values![self.repository.0].into_iter().chain(wanted.into_iter().map(Into::into));
            for row in run.all(text, values.collect()).await? {
                let digest = row.text(1)?;
                if digest == self.digest {
                    existing = Some((ManifestId(row.int(0)?), row.text(2)?));
                }
                found.insert(digest);
            }
        }
        let missing: Vec<_> =
            self.references.children.iter().filter(|child| !found.contains(*child)).cloned().collect();
        if !missing.is_empty() && self.new.require_references {
            return Ok(Err(Refusal::MissingManifests(missing)));
        }
        let Some((id, record)) = existing else { return Ok(Ok(None)) };
        if let Some(new) = self.new.record.filter(|new| new.name != record) {
            removal::add(run, &[(new.entry.to_owned(), 0)], self.new.now_ms).await?;
        }
        if self.tags.is_empty() {
            touch(run, id, self.new.now_ms).await?;
        }
        Ok(Ok(Some(id)))
    }

    /// Compares what the client expects with what is there. A tag stays as it is until the end of the transaction.
    async fn check(&self, run: &Run, is_there: bool) -> Result<Result<(), Unmet>, Fault> {
        let Some(expected) = self.new.expected else { return Ok(Ok(())) };
        let current = match expected.reference {
            Reference::Digest(_) => is_there.then(|| self.digest.to_owned()),
            Reference::Tag(tag) => lock_tag(run, self.repository, tag).await?.map(|pointed| pointed.digest),
        };
        Ok(expected.condition.check(current.as_deref()))
    }

    /// Whether the client expects something of this tag.
    fn is_expected(&self, tag: &TagName) -> bool {
        self.new.expected.is_some_and(|expected| matches!(expected.reference, Reference::Tag(named) if named == tag))
    }

    async fn create(&self, run: &Run, record: &str) -> Result<(ManifestId, Option<ChangeId>), Fault> {
        let new = self.new;
        let id = insert(run, self.repository, self.digest, new.manifest, record, new.now_ms).await?;
        let Some(id) = id else {
            let taken = sql!("select 1 from manifests where record = ?");
            return Err(match run.one(taken, values![record]).await? {
                Some(_) => Fault::Corrupt(format!("{record:?} is the record of another manifest")),
                None => Fault::Again("a manifest was pushed by somebody else at the same time"),
            });
        };
        insert_references(run, self.repository, id, self.references, new.require_references).await?;
        let change = NewChange {
            kind: ChangeKind::Push,
            repository: self.repository,
            tag: None,
            digest: self.digest,
            previous: None,
            now_ms: new.now_ms,
        };
        Ok((id, Some(change::add(run, &change).await?)))
    }

    /// Makes a tag point to the manifest.
    async fn point(&self, run: &Run, tag: &TagName, id: ManifestId) -> Result<TagMove, Fault> {
        let find = sql!("select manifest_id, change_id from tags where repository_id = ? and name = ? for update");
        loop {
            let Some(row) = run.one(find, values![self.repository.0, tag.as_str()]).await? else {
                match self.make(run, tag, id).await? {
                    Some(change) => return Ok(TagMove { tag: tag.clone(), change, moved: true, replaced: None }),
                    // Somebody else did, and has committed by now.
                    None => continue,
                }
            };
            // There was none to be locked when the client's condition was looked at, and now there is.
            if self.is_expected(tag) && self.check(run, true).await?.is_err() {
                return Err(Fault::Again("a tag was made by somebody else at the same time"));
            }
            let (old, replaced) = (ManifestId(row.int(0)?), ChangeId(row.int(1)?));
            if old == id {
                return Ok(TagMove { tag: tag.clone(), change: replaced, moved: false, replaced: None });
            }
            let digest = sql!("select digest from manifests where id = ?");
            let previous = run.one(digest, values![old.0]).await?.map(|row| row.text(0)).transpose()?;
            let change = self.note(run, tag, previous.as_deref()).await?;
            let update = sql!(
                "update tags set manifest_id = ?, change_id = ?, updated_at = ? where repository_id = ? and name = ?"
            );
            let values = values![id.0, change.0, self.new.now_ms, self.repository.0, tag.as_str()];
            run.execute(update, values).await?;
            touch(run, old, self.new.now_ms).await?;
            return Ok(TagMove { tag: tag.clone(), change, moved: true, replaced: Some(replaced) });
        }
    }

    /// Makes a tag; `None` if there is one now.
    async fn make(&self, run: &Run, tag: &TagName, id: ManifestId) -> Result<Option<ChangeId>, Fault> {
        let change = self.note(run, tag, None).await?;
        let insert = sql!(
            "insert into tags (repository_id, name, manifest_id, change_id, updated_at) values (?, ?, ?, ?, ?) \
             on conflict do nothing"
        );
        let values = values![self.repository.0, tag.as_str(), id.0, change.0, self.new.now_ms];
        if run.insert_new(insert, values).await? {
            return self.be_last(run, tag, change).await.map(Some);
        }
        // Its number may be below that of the change that came first.
        run.execute(sql!("delete from changes where id = ?"), values![change.0]).await?;
        Ok(None)
    }

    /// Somebody may have made and deleted the tag after the change got its number: then it gets one above theirs, or the record of that
    /// deletion would win.
    async fn be_last(&self, run: &Run, tag: &TagName, change: ChangeId) -> Result<ChangeId, Fault> {
        if change::latest(run, self.repository, tag).await? <= change {
            return Ok(change);
        }
        let later = self.note(run, tag, None).await?;
        run.execute(sql!("delete from changes where id = ?"), values![change.0]).await?;
        let update = sql!("update tags set change_id = ? where repository_id = ? and name = ?");
        run.execute(update, values![later.0, self.repository.0, tag.as_str()]).await?;
        Ok(later)
    }

    async fn note(&self, run: &Run, tag: &TagName, previous: Option<&str>) -> Result<ChangeId, Fault> {
        let change = NewChange {
            kind: ChangeKind::Tag,
            repository: self.repository,
            tag: Some(tag),
            digest: self.digest,
            previous,
            now_ms: self.new.now_ms,
        };
        change::add(run, &change).await
    }
}

/// Where a tag points.
pub(super) struct Pointed {
    pub(super) manifest: ManifestId,
    pub(super) change: ChangeId,
    pub(super) digest: String,
}

/// Keeps a tag as it is until the end of the transaction.
pub(super) async fn lock_tag(run: &Run, repository: RepositoryId, tag: &TagName) -> Result<Option<Pointed>, Fault> {
    let find = sql!("select manifest_id, change_id from tags where repository_id = ? and name = ? for update");
    let Some(row) = run.one(find, values![repository.0, tag.as_str()]).await? else { return Ok(None) };
    let (manifest, change) = (ManifestId(row.int(0)?), ChangeId(row.int(1)?));
    let digest = sql!("select digest from manifests where id = ?");
    let Some(row) = run.one(digest, values![manifest.0]).await? else {
        return Err(Fault::Corrupt(format!("tag {tag} points to a manifest that is not there")));
    };
    Ok(Some(Pointed { manifest, change, digest: row.text(0)? }))
}

/// Inserts the row of a manifest; its number, unless it is there already.
pub(crate) async fn insert(
    run: &Run,
    repository: RepositoryId,
    digest: &str,
    manifest: &Manifest,
    record: &str,
    now_ms: i64,
) -> Result<Option<ManifestId>, Fault> {
    let text = sql!(
        "insert into manifests (repository_id, digest, media_type, artifact_type, subject, annotations, size, record, \
         created_at, idle_since, content) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) on conflict do nothing"
    );
    let annotations = serde_json::to_string(manifest.annotations()).expect("a map of texts always serialises");
    let values = values![
        repository.0,
        digest,
        manifest.media_type(),
        manifest.artifact_type(),
        manifest.subject().map(|subject| subject.digest.to_string()),
        annotations,
        db_size(manifest.raw().len() as u64),
        record,
        now_ms,
        now_ms,
        manifest.raw().to_vec(),
    ];
    Ok(run.insert(text, values).await?.map(ManifestId))
}

/// Inserts what a manifest refers to; `checked`: the blobs that have to be there are.
pub(crate) async fn insert_references(
    run: &Run,
    repository: RepositoryId,
    id: ManifestId,
    references: &References,
    checked: bool,
) -> Result<(), Fault> {
    for blobs in references.blobs.chunks(LIST_MAX) {
        let text = format!(
            "insert into manifest_blobs (manifest_id, repository_id, digest, required) values {}",
            repeat("(?, ?, ?, ?)", ", ", blobs.len())
        );
        let rows = blobs.iter().flat_map(|(digest, required)| {
            values![id.0, repository.0, digest.as_str(), i64::from(*required && checked)]
        });
        run.execute(text, rows.collect()).await?;
    }
    for children in references.children.chunks(LIST_MAX) {
        let text = format!(
            "insert into manifest_children (manifest_id, repository_id, digest) values {}",
            repeat("(?, ?, ?)", ", ", children.len())
        );
        let rows = children.iter().flat_map(|digest| values![id.0, repository.0, digest.as_str()]);
        run.execute(text, rows.collect()).await?;
    }
    Ok(())
}

/// From now on counts for how long a manifest has been without a tag.
pub(crate) async fn touch(run: &Run, id: ManifestId, now_ms: i64) -> Result<(), Fault> {
    run.execute(sql!("update manifests set idle_since = ? where id = ?"), values![now_ms, id.0]).await.map(drop)
}
