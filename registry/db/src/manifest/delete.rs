//! Deleting tags and manifests.

use oci::{Condition, TagName, Unmet};

use super::put::{Pointed, lock_tag, touch};
use super::{DeleteManifest, DeletedManifest, DeletedTag, TagEntry};
use crate::change::{self, NewChange};
use crate::error::Fault;
use crate::lock::{self, Lock};
use crate::sql::{LIST_MAX, Run, marks, padded, parse, sql, values};
use crate::{ChangeId, ChangeKind, Db, DbError, ManifestId, RepositoryId, removal};

impl Db {
    /// Deletes a tag. The manifest stays.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_tag(
        &self,
        repository: RepositoryId,
        tag: &TagName,
        now_ms: i64,
        tag_entry: &TagEntry<'_>,
    ) -> Result<Option<DeletedTag>, DbError> {
        let deleted = self.delete_tag_if(repository, tag, &Condition::default(), now_ms, tag_entry).await?;
        Ok(deleted.ok().flatten())
    }

    /// As [`Db::delete_tag`], but only if it points where the client expects.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_tag_if(
        &self,
        repository: RepositoryId,
        tag: &TagName,
        condition: &Condition,
        now_ms: i64,
        tag_entry: &TagEntry<'_>,
    ) -> Result<Result<Option<DeletedTag>, Unmet>, DbError> {
        self.transact(|run: Run| async move {
            let run = &run;
            let Some(Pointed { manifest, change: replaced, digest }) = lock_tag(run, repository, tag).await? else {
                return Ok(Ok(None));
            };
            if let Err(unmet) = condition.check(Some(&digest)) {
                return Ok(Err(unmet));
            }
            let delete = sql!("delete from tags where repository_id = ? and name = ?");
            run.execute(delete, values![repository.0, tag.as_str()]).await?;
            touch(run, manifest, now_ms).await?;
            let change = NewChange {
                kind: ChangeKind::Untag,
                repository,
                tag: Some(tag),
                digest: &digest,
                previous: None,
                now_ms,
            };
            let change = change::add(run, &change).await?;
            let entry = tag_entry(tag, replaced);
            removal::add(run, &[(entry.clone(), 0)], now_ms).await?;
            Ok(Ok(Some(DeletedTag { change, digest: parse(&digest)?, entry })))
        })
        .await
    }

    /// Deletes a manifest and the tags that point to it.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_manifest(&self, delete: &DeleteManifest<'_>) -> Result<Option<DeletedManifest>, DbError> {
        self.transact(|run: Run| async move { run_delete(&run, delete, None).await }).await
    }

    /// As [`Db::delete_manifest`], but only if it has been without a tag since `idle_before_ms`, no index names it, and what it refers
    /// to is gone.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn delete_untagged(
        &self,
        delete: &DeleteManifest<'_>,
        idle_before_ms: i64,
    ) -> Result<Option<DeletedManifest>, DbError> {
        self.transact(|run: Run| async move { run_delete(&run, delete, Some(idle_before_ms)).await }).await
    }
}

/// With `idle_before_ms` only if nothing holds it.
async fn run_delete(
    run: &Run,
    delete: &DeleteManifest<'_>,
    idle_before_ms: Option<i64>,
) -> Result<Option<DeletedManifest>, Fault> {
    let &DeleteManifest { repository, now_ms, .. } = delete;
    let digest = delete.digest.to_string();
    let find = sql!("select id from manifests where repository_id = ? and digest = ?");
    let Some(row) = run.one(find, values![repository.0, digest.as_str()]).await? else { return Ok(None) };
    let id = ManifestId(row.int(0)?);
    // What a manifest needs never changes, so it can be read before the manifest is locked: links come first.
    let needed = sql!("select digest from manifest_blobs where manifest_id = ?");
    let needed = run.all(needed, values![id.0]).await?;
    let blobs = needed.iter().map(|row| row.text(0)).collect::<Result<Vec<_>, _>>()?;
    let digests: Vec<_> = blobs.iter().map(String::as_str).collect();
    let links = lock::links(run, repository, &digests, Lock::Alone).await?;
    let lock = sql!("select record from manifests where id = ? for update");
    let Some(row) = run.one(lock, values![id.0]).await? else {
        return Err(Fault::Again("a manifest was deleted by somebody else at the same time"));
    };
    let record = row.text(0)?;
    if let Some(before_ms) = idle_before_ms
        && is_held(run, repository, id, &digest, before_ms).await?
    {
        return Ok(None);
    }
    let mut entries = vec![(delete.record_entry)(&record)];
    let tags = delete_tags(run, delete, id, &digest, &mut entries).await?;
    let leased: Vec<i64> = links.iter().map(|(_, blob)| blob.0).collect();
    lease(run, repository, &leased, delete.leased_until_ms).await?;
    run.execute(sql!("delete from manifest_blobs where manifest_id = ?"), values![id.0]).await?;
    run.execute(sql!("delete from manifest_children where manifest_id = ?"), values![id.0]).await?;
    run.execute(sql!("delete from manifests where id = ?"), values![id.0]).await?;
    let change = NewChange { kind: ChangeKind::Delete, repository, tag: None, digest: &digest, previous: None, now_ms };
    let change = change::add(run, &change).await?;
    let removals: Vec<_> = entries.iter().map(|entry| (entry.clone(), 0)).collect();
    removal::add(run, &removals, now_ms).await?;
    let blobs = needed.iter().map(|row| row.parse(0)).collect::<Result<_, _>>()?;
    Ok(Some(DeletedManifest { change, tags, blobs, entries }))
}

/// Whether a tag, an index or its subject holds a manifest, or it was used lately. It is locked; whoever makes it needed locks it, too.
async fn is_held(
    run: &Run,
    repository: RepositoryId,
    id: ManifestId,
    digest: &str,
    before_ms: i64,
) -> Result<bool, Fault> {
    let used = sql!("select 1 from manifests where id = ? and idle_since >= ?");
    let tagged = sql!("select 1 from tags where manifest_id = ? limit 1");
    let named = sql!("select 1 from manifest_children where repository_id = ? and digest = ? limit 1");
    let subject = sql!(
        "select 1 from manifests m join manifests s on s.repository_id = m.repository_id and s.digest = m.subject \
         where m.id = ?"
    );
    Ok(run.one(used, values![id.0, before_ms]).await?.is_some()
        || run.one(tagged, values![id.0]).await?.is_some()
        || run.one(named, values![repository.0, digest]).await?.is_some()
        || run.one(subject, values![id.0]).await?.is_some())
}

/// Deletes the tags of a manifest, which is locked; their names. Their records are added to `entries`.
async fn delete_tags(
    run: &Run,
    delete: &DeleteManifest<'_>,
    id: ManifestId,
    digest: &str,
    entries: &mut Vec<String>,
) -> Result<Vec<(TagName, ChangeId)>, Fault> {
    let find = sql!("select name, change_id from tags where manifest_id = ? order by name for update");
    let mut tags = Vec::new();
    for row in run.all(find, values![id.0]).await? {
        let tag: TagName = row.parse(0)?;
        entries.push((delete.tag_entry)(&tag, ChangeId(row.int(1)?)));
        tags.push(tag);
    }
    if tags.is_empty() {
        return Ok(Vec::new());
    }
    run.execute(sql!("delete from tags where manifest_id = ?"), values![id.0]).await?;
    change::add_untags(run, delete.repository, &tags, digest, delete.now_ms).await?;
    let mut gone = Vec::with_capacity(tags.len());
    for tag in tags {
        let change = change::latest(run, delete.repository, &tag).await?;
        gone.push((tag, change));
    }
    Ok(gone)
}

/// Links that may be unneeded now are looked at when this time has come. They are locked.
async fn lease(run: &Run, repository: RepositoryId, blobs: &[i64], until_ms: i64) -> Result<(), Fault> {
    for blobs in blobs.chunks(LIST_MAX) {
        let blobs = padded(blobs.to_vec());
        let text = format!(
            "update links set leased_until = ? where repository_id = ? and blob_id in {} \
             and (leased_until is null or leased_until < ?)",
            marks(blobs.len())
        );
        let values = values![until_ms, repository.0]
            .into_iter()
            .chain(blobs.into_iter().map(Into::into))
            .chain(values![until_ms])
            .collect();
        run.execute(text, values).await?;
    }
    Ok(())
}
