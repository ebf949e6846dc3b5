//! Manifests and tags.

mod delete;
mod put;

use std::collections::HashMap;
use std::fmt;

use bytes::Bytes;
use oci::{Condition, Digest, Manifest, Reference, RepositoryName, TagName};

pub(crate) use self::put::{References, insert, insert_references, touch};
use crate::sql::Run;
use crate::sql::{LIST_MAX, db_size, marks, padded, sql, values};
use crate::{ChangeId, Db, DbError, ManifestId, RepositoryId};

/// Makes the text of a tag's record in the store, for `removals`.
pub type TagEntry<'f> = dyn Fn(&TagName, ChangeId) -> String + Send + Sync + 'f;
/// Makes the text of a manifest's record in the store from the record's name, for `removals`.
pub type RecordEntry<'f> = dyn Fn(&str) -> String + Send + Sync + 'f;

/// A manifest as it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredManifest {
    /// Its digest.
    pub digest: Digest,
    /// Its type.
    pub media_type: String,
    /// The bytes as they were pushed.
    pub content: Bytes,
}

/// What is said about a manifest without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    /// Its digest.
    pub digest: Digest,
    /// Its type.
    pub media_type: String,
    /// Bytes it has.
    pub size: u64,
}

/// A manifest that says something about another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Referrer {
    /// Its number, for [`Db::annotations`].
    pub id: ManifestId,
    /// Its digest.
    pub digest: Digest,
    /// Its type.
    pub media_type: String,
    /// Bytes it has.
    pub size: u64,
    /// What it is for.
    pub artifact_type: Option<String>,
    /// Bytes of its annotations, see [`Db::annotations`].
    pub annotations_len: u64,
}

/// What a client expects to find before it changes something.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'m> {
    /// Where it looks: a tag, or the manifest itself.
    pub reference: &'m Reference,
    /// What it expects there.
    pub condition: &'m Condition,
}

/// A record of a manifest that is durable in the store.
#[derive(Clone, Copy, Debug)]
pub struct NewRecord<'m> {
    /// Its name.
    pub name: &'m str,
    /// The text of its entry, should it turn out to be superfluous.
    pub entry: &'m str,
}

/// A manifest that is pushed.
#[derive(Clone, Copy)]
pub struct NewManifest<'m> {
    /// Where it is pushed to. Made if it is new.
    pub repository: &'m RepositoryName,
    /// What is pushed.
    pub manifest: &'m Manifest,
    /// The digest it is stored under.
    pub digest: &'m Digest,
    /// Its record. Without one it has to be there already, for no manifest may be there without a record.
    pub record: Option<NewRecord<'m>>,
    /// Tags that shall point to it; each once.
    pub tags: &'m [TagName],
    /// Now, in ms since 1970.
    pub now_ms: i64,
    /// Refuse it unless this is there; looked at in the transaction that changes it.
    pub expected: Option<Expected<'m>>,
    /// Refuse it when blobs or manifests it needs are not in the repository. Otherwise they count as referenced once they are.
    pub require_references: bool,
}

/// A manifest that was pushed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestPut {
    /// The repository it is in.
    pub repository: RepositoryId,
    /// It was not there before.
    pub created: bool,
    /// The change that says so.
    pub change: Option<ChangeId>,
    /// The tags that were given, in the order of their names.
    pub tags: Vec<TagMove>,
}

/// What a push did to a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagMove {
    /// The tag.
    pub tag: TagName,
    /// The change that made it point where it points. An old one when it pointed there already.
    pub change: ChangeId,
    /// It pointed elsewhere before, or did not exist.
    pub moved: bool,
    /// The change that had made it point elsewhere. Its record may go once that of this change is durable.
    pub replaced: Option<ChangeId>,
}

/// A manifest was not stored.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PutManifestError {
    /// The repository has no link to these blobs.
    #[error("{} blobs that the manifest needs are not in the repository", .0.len())]
    MissingBlobs(Vec<Digest>),
    /// The repository does not have these manifests.
    #[error("{} manifests that the index names are not in the repository", .0.len())]
    MissingManifests(Vec<Digest>),
    /// It is not there (any more), and came without a record.
    #[error("the manifest is not there, and has no record")]
    NoRecord,
    /// What is there is not what the client expects.
    #[error("what is there is not what the client expects")]
    Unmet(oci::Unmet),
    /// The database failed.
    #[error(transparent)]
    Db(#[from] DbError),
}

/// A tag that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedTag {
    /// The change that says so.
    pub change: ChangeId,
    /// Where it pointed.
    pub digest: Digest,
    /// The entry of its record in the store, which is due to be removed.
    pub entry: String,
}

/// A manifest that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletedManifest {
    /// The change that says so.
    pub change: ChangeId,
    /// The tags that pointed to it, and the changes that say that they are gone.
    pub tags: Vec<(TagName, ChangeId)>,
    /// The blobs it named.
    pub blobs: Vec<Digest>,
    /// Entries of the store that are due to be removed: its record and those of the tags.
    pub entries: Vec<String>,
}

/// Which manifest is to be deleted, and when.
#[derive(Clone, Copy)]
pub struct DeleteManifest<'m> {
    /// Where.
    pub repository: RepositoryId,
    /// Which.
    pub digest: &'m Digest,
    /// Now, in ms since 1970.
    pub now_ms: i64,
    /// From when on the collector may remove its blobs, in ms since 1970.
    pub leased_until_ms: i64,
    /// Names the records of its tags.
    pub tag_entry: &'m TagEntry<'m>,
    /// Names its own record.
    pub record_entry: &'m RecordEntry<'m>,
}

impl Db {
    /// A manifest by tag or digest.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn manifest(
        &self,
        repository: RepositoryId,
        reference: &Reference,
    ) -> Result<Option<StoredManifest>, DbError> {
        let (text, name) = match reference {
            Reference::Tag(tag) => (
                sql!(
                    "select m.digest, m.media_type, m.content from tags t join manifests m on m.id = t.manifest_id \
                     where t.repository_id = ? and t.name = ?"
                ),
                tag.to_string(),
            ),
            Reference::Digest(digest) => (
                sql!("select digest, media_type, content from manifests where repository_id = ? and digest = ?"),
                digest.to_string(),
            ),
        };
        let name = &name;
        self.read(|run: Run| async move {
            let run = &run;
            let row = run.one(text, values![repository.0, name.as_str()]).await?;
            row.map(|row| {
                Ok(StoredManifest { digest: row.parse(0)?, media_type: row.text(1)?, content: row.bytes(2)? })
            })
            .transpose()
        })
        .await
    }

    /// A manifest by tag or digest, without its bytes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn manifest_head(
        &self,
        repository: RepositoryId,
        reference: &Reference,
    ) -> Result<Option<ManifestHead>, DbError> {
        let (text, name) = match reference {
            Reference::Tag(tag) => (
                sql!(
                    "select m.digest, m.media_type, m.size from tags t join manifests m on m.id = t.manifest_id \
                     where t.repository_id = ? and t.name = ?"
                ),
                tag.to_string(),
            ),
            Reference::Digest(digest) => (
                sql!("select digest, media_type, size from manifests where repository_id = ? and digest = ?"),
                digest.to_string(),
            ),
        };
        let name = &name;
        self.read(|run: Run| async move {
            let run = &run;
            let row = run.one(text, values![repository.0, name.as_str()]).await?;
            row.map(|row| Ok(ManifestHead { digest: row.parse(0)?, media_type: row.text(1)?, size: row.size(2)? }))
                .transpose()
        })
        .await
    }

    /// Tags after the given text, in the order of their bytes.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn tags(
        &self,
        repository: RepositoryId,
        after: Option<&str>,
        limit: u64,
    ) -> Result<Vec<String>, DbError> {
        let text = sql!("select name from tags where repository_id = ? and name > ? order by name limit ?");
        self.read(|run: Run| async move {
            let run = &run;
            let rows = run.all(text, values![repository.0, after.unwrap_or_default(), db_size(limit)]).await?;
            rows.iter().map(|row| row.text(0)).collect()
        })
        .await
    }

    /// Manifests whose subject has this digest, in the order of their digests, without their annotations, which may be long: see
    /// [`Db::annotations`]. With `artifact_type` only those that have it. They come after the given text; it need not be a digest.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn referrers(
        &self,
        repository: RepositoryId,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: Option<&str>,
        limit: u64,
    ) -> Result<Vec<Referrer>, DbError> {
        let subject = subject.to_string();
        let after = after.unwrap_or_default();
        let (text, values) = match artifact_type {
            None => (
                sql!(
                    "select id, digest, media_type, size, artifact_type, size + octet_length(annotations) from manifests \
                     where repository_id = ? and subject = ? and digest > ? order by digest limit ?"
                ),
                values![repository.0, subject, after, db_size(limit)],
            ),
            Some(wanted) => (
                sql!(
                    "select id, digest, media_type, size, artifact_type, size + octet_length(annotations) from manifests \
                     where repository_id = ? and subject = ? and digest > ? and artifact_type = ? order by digest limit ?"
                ),
                values![repository.0, subject, after, wanted, db_size(limit)],
            ),
        };
        let values = &values;
        self.read(|run: Run| async move {
            let rows = run.all(text, values.clone()).await?;
            rows.iter()
                .map(|row| {
                    let size = row.size(3)?;
                    Ok(Referrer {
                        id: ManifestId(row.int(0)?),
                        digest: row.parse(1)?,
                        media_type: row.text(2)?,
                        size,
                        artifact_type: row.text_option(4)?,
                        annotations_len: row.size(5)?.saturating_sub(size),
                    })
                })
                .collect()
        })
        .await
    }

    /// The annotations of manifests, as JSON objects.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn annotations(&self, manifests: &[ManifestId]) -> Result<HashMap<ManifestId, String>, DbError> {
        self.read(|run: Run| async move {
            let run = &run;
            let mut found = HashMap::with_capacity(manifests.len());
            for ids in manifests.chunks(LIST_MAX) {
                let ids = padded(ids.iter().map(|id| id.0).collect());
                let text = format!("select id, annotations from manifests where id in {}", marks(ids.len()));
                for row in run.all(text, ids.into_iter().map(Into::into).collect()).await? {
                    found.insert(ManifestId(row.int(0)?), row.text(1)?);
                }
            }
            Ok(found)
        })
        .await
    }
}

impl fmt::Debug for NewManifest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewManifest")
            .field("repository", self.repository)
            .field("digest", self.digest)
            .field("record", &self.record)
            .field("tags", &self.tags)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for DeleteManifest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeleteManifest")
            .field("repository", &self.repository)
            .field("digest", self.digest)
            .field("leased_until_ms", &self.leased_until_ms)
            .finish_non_exhaustive()
    }
}
