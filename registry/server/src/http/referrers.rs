//! What refers to a manifest.

use ::http::header::{CONTENT_TYPE, LINK};
use ::http::{HeaderValue, StatusCode};
use bytes::Bytes;
use db::ManifestId;
use oci::page::Page;
use oci::{Descriptor, Digest, Kind, Manifest, Reference, RepositoryName, referrers};

use super::failure::Failure;
use super::{Answer, Call, OCI_FILTERS_APPLIED, json, locations, manifests, value};
use crate::app::App;

/// Referrers of one manifest that are looked at. Each has its descriptor in memory while a page is made.
const REFERRERS_MAX: u64 = 20_000;

/// `GET /v2/NAME/referrers/DIGEST`: always a list, if only an empty one.
pub(super) async fn list(app: &App, call: &Call, name: &RepositoryName, subject: &Digest) -> Answer {
    let query = call.query()?;
    let cap = usize::try_from(app.config.lists.page_max).unwrap_or(usize::MAX);
    let asked = Page::parse(&query, cap)?;
    let wanted = query.get("artifactType").filter(|wanted| !wanted.is_empty());
    let mut found = find(app, name, subject).await?;
    found.retain(|referrer| {
        let after = asked.last.as_ref().is_none_or(|last| referrer.digest.to_string() > *last);
        after && wanted.is_none_or(|wanted| referrer.artifact_type.as_deref() == Some(wanted))
    });
    let more = found.len() > asked.n;
    found.truncate(asked.n);
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

/// Those that name it as their subject, and those that an old client listed under the fallback tag; by digest.
async fn find(app: &App, name: &RepositoryName, subject: &Digest) -> Result<Vec<Descriptor>, Failure> {
    let Some(repository) = app.repository(name).await? else { return Ok(Vec::new()) };
    let rows = app.db.referrers(repository, subject, ManifestId::default(), REFERRERS_MAX).await?;
    let mut found: Vec<Descriptor> = rows
        .into_iter()
        .map(|row| Descriptor {
            media_type: row.media_type,
            digest: row.digest,
            size: row.size,
            urls: Vec::new(),
            artifact_type: row.artifact_type,
            annotations: serde_json::from_str(&row.annotations).unwrap_or_default(),
        })
        .collect();
    for listed in fallback(app, name, subject).await? {
        if found.iter().all(|one| one.digest != listed.digest) {
            found.push(listed);
        }
    }
    found.sort_by_cached_key(|one| one.digest.to_string());
    Ok(found)
}

/// The entries of the index under the fallback tag.
async fn fallback(app: &App, name: &RepositoryName, subject: &Digest) -> Result<Vec<Descriptor>, Failure> {
    let tag = Reference::Tag(referrers::fallback_tag(subject));
    let Some(stored) = manifests::find(app, name, &tag).await? else { return Ok(Vec::new()) };
    let content: Bytes = stored.content.clone();
    let Ok(manifest) = Manifest::parse(content, Some(&stored.media_type), &app.manifest_limits()) else {
        return Ok(Vec::new());
    };
    let Kind::Index { manifests: entries } = manifest.kind() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in entries {
        // The entry may have outlived what it names.
        let reference = Reference::Digest(entry.digest.clone());
        let Some(there) = manifests::find(app, name, &reference).await? else { continue };
        let mut entry = entry.clone();
        if entry.artifact_type.is_none() {
            let parsed = Manifest::parse(there.content.clone(), Some(&there.media_type), &app.manifest_limits());
            entry.artifact_type = parsed.ok().and_then(|parsed| parsed.artifact_type().map(str::to_owned));
        }
        found.push(entry);
    }
    Ok(found)
}
