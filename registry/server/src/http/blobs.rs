//! Blobs: reading, asking for, and taking out of a repository.

use ::http::header::{ACCEPT_RANGES, CACHE_CONTROL, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_RANGE, LOCATION, RANGE};
use ::http::{HeaderValue, Response, StatusCode};
use blobs::{BlobBody, StoreError, StoredBlob};
use db::{Link, Renewal, RepositoryId, Unlink};
use oci::range::{Selection, select};
use oci::{Digest, ErrorCode, RepositoryName, Unmet};
use proto::ByteRange;

use super::body::Body;
use super::failure::Failure;
use super::{Answer, CONTENT_DIGEST, Call, empty, for_head, value};
use crate::app::App;
use crate::records;

/// Content named by its digest never changes.
const FOR_EVER: HeaderValue = HeaderValue::from_static("max-age=31536000, immutable");

/// `GET` and `HEAD`.
pub(super) async fn get(app: &App, call: &Call, name: &RepositoryName, digest: &Digest) -> Answer {
    let (repository, link) = find(app, name, digest).await?.ok_or_else(|| unknown(digest))?;
    if call.is_head() && !keep(app, repository, digest, &link).await? {
        return Err(unknown(digest));
    }
    let etag = value(format!("\"{digest}\""));
    if let Err(unmet) = call.condition().check(Some(&digest.to_string())) {
        let mut response = not_modified(unmet)?;
        headers(&mut response, digest, etag);
        return Ok(response);
    }
    // Only a GET has ranges (RFC 9110 section 14.2).
    let has_range = !call.is_head() && if_range(call, &etag);
    let range = match has_range.then(|| call.header(RANGE)).flatten() {
        header @ Some(_) => select(header, link.size),
        None => Selection::Whole,
    };
    let range = match range {
        Selection::Whole => None,
        Selection::Part(range) => Some(range),
        Selection::Unsatisfiable => {
            return Err(Failure::with_status(416, ErrorCode::SizeInvalid, "no byte of the blob lies in this range")
                .header(CONTENT_RANGE, value(format!("bytes */{}", link.size))));
        }
    };
    let blob = StoredBlob { key: link.key, digest: digest.clone(), size: link.size };
    if !call.is_head()
        && let Some(url) = app.store.presign(&blob, &call.parts.method, app.presign_ttl()).await?
    {
        let mut response = empty(StatusCode::TEMPORARY_REDIRECT);
        headers(&mut response, digest, etag);
        response.headers_mut().insert(LOCATION, value(url.as_str()));
        return Ok(response);
    }
    let body = if call.is_head() { Body::empty() } else { open(app, call, repository, &blob, range).await? };
    let mut response = Response::new(body);
    headers(&mut response, digest, etag);
    let out = response.headers_mut();
    out.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    out.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let length = range.map_or(link.size, ByteRange::len);
    out.insert(::http::header::CONTENT_LENGTH, HeaderValue::from(length));
    if let Some(range) = range {
        out.insert(CONTENT_RANGE, value(format!("bytes {range}/{}", link.size)));
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Ok(response)
}

async fn open(
    app: &App,
    call: &Call,
    repository: RepositoryId,
    blob: &StoredBlob,
    range: Option<ByteRange>,
) -> Result<Body, Failure> {
    match app.store.open(blob, range).await {
        Ok(BlobBody::File { file, offset, len }) => Ok(Body::file(file, offset, len, call.sendfile())),
        Ok(BlobBody::Stream { stream, len }) => Ok(Body::Stream { stream, left: len }),
        // Removed since the link was read.
        Err(StoreError::NotFound { .. }) => {
            app.cache.forget_link(repository, &blob.digest);
            match app.db.link(repository, &blob.digest).await? {
                Some(link) if link.key == blob.key => {
                    tracing::error!(digest = %blob.digest, key = %blob.key, "a blob is not in the store");
                    Err(Failure::new(ErrorCode::Unknown, "the blob is lost; push it again"))
                }
                _ => Err(unknown(&blob.digest)),
            }
        }
        Err(error) => Err(error.into()),
    }
}

/// `DELETE`: takes the blob out of this repository.
pub(super) async fn delete(app: &App, call: &Call, name: &RepositoryName, digest: &Digest) -> Answer {
    let repository = app.repository(name).await?.ok_or_else(|| unknown(digest))?;
    // A blob has one entity tag for ever, so this need not be asked in the transaction. What is not there is 404 all the same.
    if let Err(unmet) = call.condition().check(Some(&digest.to_string())) {
        find(app, name, digest).await?.ok_or_else(|| unknown(digest))?;
        return Err(unmet.into());
    }
    let outcome = app.db.unlink(repository, digest, app.now_ms(), &records::blob_entry).await;
    // Also after an error: it may be gone all the same.
    app.cache.changed(repository);
    match outcome? {
        Unlink::Unlinked => {
            app.removals_wanted();
            Ok(empty(StatusCode::ACCEPTED))
        }
        Unlink::NotFound => Err(unknown(digest)),
        Unlink::Referenced => {
            Err(Failure::new(ErrorCode::Unsupported, "a manifest of this repository needs the blob; delete that first"))
        }
    }
}

/// The link of a blob in a repository.
pub(super) async fn find(
    app: &App,
    name: &RepositoryName,
    digest: &Digest,
) -> Result<Option<(RepositoryId, Link)>, Failure> {
    let Some(repository) = app.repository(name).await? else { return Ok(None) };
    if let Some(link) = app.cache.link(repository, digest, app.now_ms()) {
        return Ok(Some((repository, link)));
    }
    let stamp = app.cache.stamp(Some(repository));
    let Some(link) = app.db.link(repository, digest).await? else { return Ok(None) };
    app.cache.put_link(repository, digest, stamp, &link);
    Ok(Some((repository, link)))
}

/// A client that is told that a blob is here will not upload it: it has to stay for a while. Whether it is still here.
pub(super) async fn keep(app: &App, repository: RepositoryId, digest: &Digest, link: &Link) -> Result<bool, Failure> {
    let Some(until) = link.leased_until else { return Ok(true) };
    let now = app.now_ms();
    let lease = app.lease_ms();
    // Once in a tenth of the lease is enough.
    if until - now > lease - lease / 10 {
        return Ok(true);
    }
    let stamp = app.cache.stamp(Some(repository));
    let until = now + lease;
    match app.db.renew_lease(repository, link.blob, until).await? {
        Renewal::Gone => {
            app.cache.forget_link(repository, digest);
            Ok(false)
        }
        Renewal::Renewed => {
            let link = Link { leased_until: Some(until), ..link.clone() };
            app.cache.put_link(repository, digest, stamp, &link);
            Ok(true)
        }
        Renewal::Referenced => {
            app.cache.forget_link(repository, digest);
            Ok(true)
        }
    }
}

pub(super) fn unknown(digest: &Digest) -> Failure {
    Failure::new(ErrorCode::BlobUnknown, "there is no such blob in this repository")
        .detail(serde_json::json!({ "digest": digest.to_string() }))
}

fn headers(response: &mut Response<Body>, digest: &Digest, etag: HeaderValue) {
    let out = response.headers_mut();
    out.insert(CONTENT_DIGEST, value(digest.to_string()));
    out.insert(ETAG, etag);
    out.insert(CACHE_CONTROL, FOR_EVER);
}

/// What a read is answered whose condition does not hold: nothing has changed, or 412.
pub(super) fn not_modified(unmet: Unmet) -> Answer {
    match unmet {
        Unmet::NoneMatch => Ok(empty(StatusCode::NOT_MODIFIED)),
        Unmet::Match => Err(unmet.into()),
    }
}

/// Whether a `Range` counts: without `If-Range`, or when it names this entity (RFC 9110 section 13.1.5).
fn if_range(call: &Call, etag: &HeaderValue) -> bool {
    call.parts.headers.get(IF_RANGE).is_none_or(|wanted| wanted == etag)
}

/// For manifests too.
pub(super) fn finish(call: &Call, response: Response<Body>) -> Response<Body> {
    if call.is_head() { for_head(response) } else { response }
}
