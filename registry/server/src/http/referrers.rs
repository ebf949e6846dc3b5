//! What refers to a manifest.
//!
//! All of them are rows: whatever was pushed here with a `subject` is one, also by a client that listed it in an index under the fallback tag
//! because it knew no better. An entry of such an index that is no row has no subject, or is not here; the specification wants neither.

use ::http::header::{CONTENT_TYPE, LINK};
use ::http::{HeaderValue, StatusCode};
use db::{ManifestId, Referrer, RepositoryId};
use oci::page::Page;
use oci::{Descriptor, Digest, RepositoryName, referrers};

use super::failure::Failure;
use super::{Answer, Call, OCI_FILTERS_APPLIED, json, locations, value};
use crate::app::App;

/// A page ends where its annotations would be longer than this, in bytes: each manifest may have as many as fit into it.
const PAGE_BYTES_MAX: u64 = 4 << 20;
/// Rows of the first look. The database may read the annotations to tell how long they are, so more are asked for only if there is room.
const LOOK_MIN: usize = 64;

/// `GET /v2/NAME/referrers/DIGEST`: always a list, if only an empty one.
pub(super) async fn list(app: &App, call: &Call, name: &RepositoryName, subject: &Digest) -> Answer {
    let query = call.query()?;
    let cap = usize::try_from(app.config.lists.page_max).unwrap_or(usize::MAX);
    let asked = Page::parse(&query, cap)?;
    let wanted = query.get("artifactType").filter(|wanted| !wanted.is_empty());
    let (found, more) = match app.repository(name).await? {
        Some(repository) => find(app, repository, subject, wanted, &asked).await?,
        None => (Vec::new(), false),
    };
    let found = descriptors(app, found).await?;
    let mut response = json(StatusCode::OK, referrers::index(&found, None).into());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(oci::media_type::OCI_INDEX));
    if wanted.is_some() {
        headers.insert(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let Some(last) = found.last().filter(|_| more) {
        let path = format!("{}{}", locations::base(app, call), call.parts.uri.path());
        let kept: Vec<(&str, &str)> = wanted.map(|wanted| ("artifactType", wanted)).into_iter().collect();
        headers.insert(LINK, value(asked.next(&path, &last.digest.to_string(), &kept)));
    }
    Ok(super::blobs::finish(call, response))
}

/// One page, and whether there is more.
async fn find(
    app: &App,
    repository: RepositoryId,
    subject: &Digest,
    wanted: Option<&str>,
    asked: &Page,
) -> Result<(Vec<Referrer>, bool), Failure> {
    let mut found: Vec<Referrer> = Vec::new();
    let mut look = LOOK_MIN;
    loop {
        let last = found.last().map(|last| last.digest.to_string());
        let after = last.as_deref().or(asked.last.as_deref());
        // One more than the page has tells that there is more.
        let limit = look.min(asked.n.saturating_add(1) - found.len());
        let rows = app.db.referrers(repository, subject, wanted, after, limit as u64).await?;
        let ends = rows.len() < limit;
        found.extend(rows);
        let length = page_length(&found, asked.n);
        if length < found.len() {
            found.truncate(length);
            return Ok((found, true));
        }
        if ends {
            return Ok((found, false));
        }
        look = look.saturating_mul(4);
    }
}

/// How many of those found make a page of at most `most`: at least one, and no more annotations than a page may have.
fn page_length(found: &[Referrer], most: usize) -> usize {
    let mut bytes = 0_u64;
    let fits = |found: &&Referrer| {
        let begun = bytes > 0;
        bytes = bytes.saturating_add(found.annotations_len);
        !begun || bytes <= PAGE_BYTES_MAX
    };
    found.iter().take(most).take_while(fits).count()
}

/// What the list says of them.
async fn descriptors(app: &App, found: Vec<Referrer>) -> Result<Vec<Descriptor>, Failure> {
    let ids: Vec<ManifestId> = found.iter().map(|row| row.id).collect();
    let annotations = app.db.annotations(&ids).await?;
    let described = found.into_iter().map(|row| Descriptor {
        media_type: row.media_type,
        digest: row.digest,
        size: row.size,
        urls: Vec::new(),
        artifact_type: row.artifact_type,
        annotations: annotations.get(&row.id).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
    });
    Ok(described.collect())
}
