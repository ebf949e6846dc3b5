//! Manifests: reading, pushing, deleting.

use std::sync::Arc;

use ::http::header::{CONTENT_TYPE, ETAG, LOCATION};
use ::http::{Response, StatusCode};
use bytes::Bytes;
use db::{DbError, DeleteManifest, Expected, ManifestPut, NewManifest, NewRecord, PutManifestError, StoredManifest};
use futures_util::StreamExt as _;
use http_body_util::BodyStream;
use hyper::body::Incoming;
use oci::{Algorithm, Digest, ErrorCode, Manifest, Problem, Reference, RepositoryName, TagName};

use super::body::Body;
use super::failure::Failure;
use super::receiving::Held;
use super::{Answer, CONTENT_DIGEST, Call, OCI_SUBJECT, OCI_TAG, empty, locations, value};
use crate::app::App;
use crate::records::{self, Gone};

/// Bytes of one line of `OCI-Tag`.
const TAG_LINE_MAX: usize = 4096;

/// `GET` and `HEAD`. What it is served as is what it was pushed as, whatever `Accept` says: another form would have another digest.
pub(super) async fn get(app: &App, call: &Call, name: &RepositoryName, reference: &Reference) -> Answer {
    let manifest = find(app, name, reference).await?.ok_or_else(|| unknown(reference))?;
    if matches!(reference, Reference::Digest(_)) && !keep(app, name, &manifest.digest).await? {
        return Err(unknown(reference));
    }
    let digest = manifest.digest.to_string();
    let mut response = match call.condition().check(Some(&digest)) {
        Ok(()) => super::blobs::finish(call, Response::new(Body::Bytes(manifest.content.clone()))),
        Err(unmet) => super::blobs::not_modified(unmet)?,
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, value(&manifest.media_type));
    headers.insert(CONTENT_DIGEST, value(&digest));
    headers.insert(ETAG, value(format!("\"{digest}\"")));
    Ok(response)
}

/// A client that sees a manifest here may name it in an index without pushing it: it has to stay for a while, where manifests without a tag
/// are removed. Whether it is still here.
async fn keep(app: &App, name: &RepositoryName, digest: &Digest) -> Result<bool, Failure> {
    let Some(after) = app.gc().untagged_after else { return Ok(true) };
    let Some(repository) = app.repository(name).await? else { return Ok(false) };
    let now = app.now_ms();
    // Once in a quarter of that time is enough, so that pulls stay cheap: half of it is left in any case.
    let recently = now.saturating_sub(i64::try_from(after.as_millis() / 4).unwrap_or(i64::MAX));
    if app.cache.is_kept(repository, digest, recently) {
        return Ok(true);
    }
    let is_there = app.db.keep_manifest(repository, digest, now, recently).await?;
    if is_there {
        app.cache.kept(repository, digest, now);
    }
    Ok(is_there)
}

pub(super) async fn find(
    app: &App,
    name: &RepositoryName,
    reference: &Reference,
) -> Result<Option<Arc<StoredManifest>>, Failure> {
    let Some(repository) = app.repository(name).await? else { return Ok(None) };
    if let Some(manifest) = app.cache.manifest(repository, reference) {
        return Ok(Some(manifest));
    }
    let stamp = app.cache.stamp(Some(repository));
    let Some(manifest) = app.db.manifest(repository, reference).await? else { return Ok(None) };
    let manifest = Arc::new(manifest);
    app.cache.put_manifest(repository, reference, stamp, &manifest);
    Ok(Some(manifest))
}

/// `PUT`
pub(super) async fn put(
    app: &App,
    call: &Call,
    name: &RepositoryName,
    reference: &Reference,
    incoming: &mut Incoming,
) -> Answer {
    let tags = tags(app, call, reference)?;
    let condition = call.condition();
    let (raw, _held) = receive(app, incoming, call.content_length()).await?;
    let content_type = call.header(CONTENT_TYPE);
    let manifest = Manifest::parse(raw, content_type, &app.manifest_limits())
        .map_err(|error| Failure::with_status(error.status(), error.code(), error.to_string()))?;
    let (digest, is_there) = digest_of(app, name, reference, &manifest).await?;
    let new = NewManifest {
        repository: name,
        manifest: &manifest,
        digest: &digest,
        record: None,
        tags: &tags,
        now_ms: app.now_ms(),
        expected: (!condition.is_empty()).then_some(Expected { reference, condition: &condition }),
        require_references: true,
    };
    // One that is there already has its record; then only tags move.
    let put = match is_there {
        true => put_recorded(app, &new).await?,
        false => None,
    };
    let put = match put {
        Some(put) => put,
        None => put_with_record(app, &new).await?,
    };
    app.cache.changed(put.repository);
    records::write_tags(app, name, &digest, &put.tags).await?;
    app.metrics.pushed();
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(LOCATION, locations::manifest(app, call, name, &digest));
    headers.insert(CONTENT_DIGEST, value(digest.to_string()));
    if let Some(subject) = manifest.subject() {
        headers.insert(OCI_SUBJECT, value(subject.digest.to_string()));
    }
    if matches!(reference, Reference::Digest(_)) {
        for line in tag_lines(&tags) {
            headers.append(OCI_TAG, value(line));
        }
    }
    Ok(response)
}

/// Moves tags to a manifest that was found; `None` if somebody has deleted it since.
async fn put_recorded(app: &App, new: &NewManifest<'_>) -> Result<Option<ManifestPut>, Failure> {
    match app.db.put_manifest(new).await {
        Err(PutManifestError::NoRecord) => Ok(None),
        put => put.map(Some).map_err(|error| failed(app, new, error)),
    }
}

/// Writes the record first: there is no manifest without one at any moment.
async fn put_with_record(app: &App, new: &NewManifest<'_>) -> Result<ManifestPut, Failure> {
    let name = new.repository;
    app.db.expect_references(app.repository(name).await?, new.manifest).await.map_err(refused)?;
    let record = records::Record::new(app, name, new.manifest, new.digest).await?;
    app.store.put_manifest_record(&record.manifest).await?;
    let record_of_it = Some(NewRecord { name: &record.name, entry: &record.entry });
    match app.db.put_manifest(&NewManifest { record: record_of_it, ..*new }).await {
        Ok(put) => Ok(put),
        Err(error) => {
            // If it may be there, its record has to be, too.
            if !is_in_doubt(&error) {
                records::withdraw(app, &record).await;
            }
            Err(failed(app, new, error))
        }
    }
}

const fn is_in_doubt(error: &PutManifestError) -> bool {
    matches!(error, PutManifestError::Db(error) if error.is_in_doubt())
}

/// What the client is told of a push that failed.
fn failed(app: &App, new: &NewManifest<'_>, error: PutManifestError) -> Failure {
    if is_in_doubt(&error) {
        // What we remember is of before, and the records of the tags may have to be written.
        new.tags.iter().for_each(|tag| app.unsettled.tag(new.repository, tag));
        match app.cache.repository(new.repository) {
            Some(repository) => app.cache.changed(repository),
            None => app.cache.changed_everywhere(),
        }
    }
    refused(error)
}

/// The tags a push sets: that of its path, or those of its parameters.
fn tags(app: &App, call: &Call, reference: &Reference) -> Result<Vec<TagName>, Failure> {
    let query = call.query()?;
    let mut tags = match reference {
        Reference::Tag(tag) => vec![tag.clone()],
        Reference::Digest(_) => Vec::new(),
    };
    for tag in query.all("tag") {
        let invalid = |error: oci::InvalidTag| Failure::new(error.code(), error.to_string());
        let tag = tag.parse::<TagName>().map_err(invalid)?;
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    let max = app.config.manifests.max_tags;
    if tags.len() > max {
        let message = format!("at most {max} tags can be set by one request");
        return Err(Failure::with_status(414, ErrorCode::SizeInvalid, message));
    }
    Ok(tags)
}

/// The tags of a push as header lines, few and not too long: some clients take at most 100 lines, others no long ones.
fn tag_lines(tags: &[TagName]) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for tag in tags.iter().map(TagName::as_str) {
        match lines.last_mut() {
            Some(line) if line.len() + tag.len() + 2 <= TAG_LINE_MAX => {
                line.push_str(", ");
                line.push_str(tag);
            }
            _ => lines.push(tag.to_owned()),
        }
    }
    lines
}

/// The digest the manifest is kept under, the one the client names or its SHA-256, and whether it is there already.
///
/// By a tag it is always SHA-256, also if the same bytes are there under their SHA-512: that is the digest clients work out
/// by themselves and pull by.
async fn digest_of(
    app: &App,
    name: &RepositoryName,
    reference: &Reference,
    manifest: &Manifest,
) -> Result<(Digest, bool), Failure> {
    let digest = match reference {
        Reference::Digest(wanted) => {
            let found = manifest.digest(wanted.algorithm());
            if found != *wanted {
                return Err(Failure::new(
                    ErrorCode::DigestInvalid,
                    format!("the digest of the manifest is {found}, not {wanted}"),
                ));
            }
            found
        }
        Reference::Tag(_) => manifest.digest(Algorithm::Sha256),
    };
    let is_there = find(app, name, &Reference::Digest(digest.clone())).await?.is_some();
    Ok((digest, is_there))
}

/// The body, and the memory it has: to be held as long as its bytes are.
async fn receive(app: &App, incoming: &mut Incoming, length: Option<u64>) -> Result<(Bytes, Held), Failure> {
    let limits = &app.config.manifests;
    let max = limits.max_size.as_u64();
    let too_large =
        || Failure::with_status(413, ErrorCode::SizeInvalid, format!("a manifest has at most {} bytes", max));
    if length.is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let collect = async {
        let mut body = BodyStream::new(incoming);
        let mut all = app.receiving.begin(usize::try_from(length.unwrap_or(max)).unwrap_or(usize::MAX));
        while let Some(frame) = body.next().await {
            let frame = frame
                .map_err(|error| Failure::new(ErrorCode::ManifestInvalid, format!("the body broke off: {error}")))?;
            let Ok(bytes) = frame.into_data() else { continue };
            if (all.len() + bytes.len()) as u64 > max {
                return Err(too_large());
            }
            all.push(&bytes)?;
        }
        Ok(all.end())
    };
    tokio::time::timeout(limits.body_timeout, collect).await.unwrap_or_else(|_| {
        Err(Failure::with_status(408, ErrorCode::ManifestInvalid, "the manifest took too long to arrive"))
    })
}

fn refused(error: PutManifestError) -> Failure {
    let missing = |what: &str, digests: &[Digest]| {
        let problem = |digest: &Digest| {
            Problem::new(ErrorCode::ManifestBlobUnknown, format!("{what} {digest} is not in this repository"))
                .with_detail(serde_json::json!({ "digest": digest.to_string() }))
        };
        Failure::of(ErrorCode::ManifestBlobUnknown.status(), digests.iter().take(100).map(problem).collect())
    };
    match error {
        PutManifestError::MissingBlobs(digests) => missing("blob", &digests),
        PutManifestError::MissingManifests(digests) => missing("manifest", &digests),
        PutManifestError::Unmet(unmet) => unmet.into(),
        PutManifestError::Db(error) => error.into(),
        error => {
            tracing::error!(%error, "a manifest cannot be kept");
            Failure::new(ErrorCode::Unknown, "the manifest cannot be kept")
        }
    }
}

/// `DELETE`: a tag alone, or a manifest with all its tags.
pub(super) async fn delete(app: &App, call: &Call, name: &RepositoryName, reference: &Reference) -> Answer {
    let repository = app.repository(name).await?.ok_or_else(|| unknown(reference))?;
    let tag_entry = |tag: &TagName, change| records::tag_entry(name, tag, change);
    let now = app.now_ms();
    // Also after an error: it may be gone all the same.
    let changed = |failure: DbError| {
        app.cache.changed(repository);
        Failure::from(failure)
    };
    let (digest, tags, entries) = match reference {
        Reference::Tag(tag) => {
            let deleted = app.db.delete_tag_if(repository, tag, &call.condition(), now, &tag_entry).await;
            let deleted = deleted.map_err(changed)??.ok_or_else(|| unknown(reference))?;
            (deleted.digest, vec![(tag.clone(), deleted.change)], vec![deleted.entry])
        }
        Reference::Digest(digest) => {
            // It has one entity tag for ever, so this need not be asked in the transaction.
            if let Err(unmet) = call.condition().check(Some(&digest.to_string())) {
                find(app, name, reference).await?.ok_or_else(|| unknown(reference))?;
                return Err(unmet.into());
            }
            let delete = DeleteManifest {
                repository,
                digest,
                now_ms: now,
                leased_until_ms: now + app.lease_ms(),
                tag_entry: &tag_entry,
                record_entry: &records::manifest_entry,
            };
            let deleted = app.db.delete_manifest(&delete).await.map_err(changed)?;
            let deleted = deleted.ok_or_else(|| unknown(reference))?;
            (digest.clone(), deleted.tags, deleted.entries)
        }
    };
    app.cache.changed(repository);
    // Before the answer, so that a rebuild does not bring back what was deleted.
    let gone = Gone { repository: name, digest: &digest, tags: &tags, entries: &entries };
    records::forget(app, &gone).await?;
    Ok(empty(StatusCode::ACCEPTED))
}

fn unknown(reference: &Reference) -> Failure {
    Failure::new(ErrorCode::ManifestUnknown, "there is no such manifest in this repository")
        .detail(serde_json::json!({ "reference": reference.to_string() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_told_in_few_lines() {
        let tags: Vec<TagName> = (0..250).map(|number| format!("{number:0>128}").parse().unwrap()).collect();
        let lines = tag_lines(&tags);
        assert!(lines.len() < 10 && lines.iter().all(|line| line.len() <= TAG_LINE_MAX), "{} lines", lines.len());
        let told: Vec<&str> = lines.iter().flat_map(|line| line.split(", ")).collect();
        assert!(told.into_iter().eq(tags.iter().map(TagName::as_str)));
        assert_eq!(tag_lines(&tags[..1]), [tags[0].as_str()]);
        assert!(tag_lines(&[]).is_empty());
    }
}
