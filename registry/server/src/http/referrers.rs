//! What refers to a manifest.

use std::collections::{BTreeMap, HashMap};

use ::http::header::{CONTENT_TYPE, LINK};
use ::http::{HeaderValue, StatusCode};
use db::{ManifestId, Referrer, RepositoryId};
use oci::page::Page;
use oci::{Descriptor, Digest, Kind, Manifest, Reference, RepositoryName, referrers};

use super::failure::Failure;
use super::{Answer, Call, OCI_FILTERS_APPLIED, json, locations, manifests, value};
use crate::app::App;

/// Referrers of one manifest that are looked at.
const REFERRERS_MAX: u64 = 20_000;
/// A page ends where its annotations would be longer than this, in characters: each manifest may have as many as fit into it.
const PAGE_CHARS_MAX: u64 = 4 << 20;

/// One that is found.
enum Found {
    /// It names the manifest as its subject.
    Referrer(Referrer),
    /// An old client listed it under the fallback tag.
    Listed(Descriptor),
}

/// `GET /v2/NAME/referrers/DIGEST`: always a list, if only an empty one.
pub(super) async fn list(app: &App, call: &Call, name: &RepositoryName, subject: &Digest) -> Answer {
    let query = call.query()?;
    let cap = usize::try_from(app.config.lists.page_max).unwrap_or(usize::MAX);
    let asked = Page::parse(&query, cap)?;
    let wanted = query.get("artifactType").filter(|wanted| !wanted.is_empty());
    let mut found: Vec<Found> = find(app, name, subject)
        .await?
        .into_iter()
        .filter(|(digest, _)| asked.last.as_ref().is_none_or(|last| digest > last))
        .map(|(_, found)| found)
        .filter(|found| wanted.is_none_or(|wanted| found.artifact_type() == Some(wanted)))
        .collect();
    let length = page_length(&found, asked.n);
    let more = found.len() > length;
    found.truncate(length);
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

/// How many of those found make a page of at most `most`: at least one, and no more annotations than a page may have.
fn page_length(found: &[Found], most: usize) -> usize {
    let mut chars = 0_u64;
    let fits = |found: &&Found| {
        let begun = chars > 0;
        chars = chars.saturating_add(found.annotations_len());
        !begun || chars <= PAGE_CHARS_MAX
    };
    found.iter().take(most).take_while(fits).count()
}

/// Those that name it as their subject, and those that an old client listed under the fallback tag; by digest.
async fn find(app: &App, name: &RepositoryName, subject: &Digest) -> Result<BTreeMap<String, Found>, Failure> {
    let Some(repository) = app.repository(name).await? else { return Ok(BTreeMap::new()) };
    let rows = app.db.referrers(repository, subject, ManifestId::default(), REFERRERS_MAX).await?;
    let mut found: BTreeMap<String, Found> =
        rows.into_iter().map(|row| (row.digest.to_string(), Found::Referrer(row))).collect();
    for listed in fallback(app, name, repository, subject).await? {
        found.entry(listed.digest.to_string()).or_insert(Found::Listed(listed));
    }
    Ok(found)
}

/// The entries of the index under the fallback tag. An entry may have outlived what it names.
async fn fallback(
    app: &App,
    name: &RepositoryName,
    repository: RepositoryId,
    subject: &Digest,
) -> Result<Vec<Descriptor>, Failure> {
    let tag = Reference::Tag(referrers::fallback_tag(subject));
    let Some(stored) = manifests::find(app, name, &tag).await? else { return Ok(Vec::new()) };
    let Ok(manifest) = Manifest::parse(stored.content.clone(), Some(&stored.media_type), &app.manifest_limits()) else {
        return Ok(Vec::new());
    };
    let Kind::Index { manifests: entries } = manifest.kind() else { return Ok(Vec::new()) };
    let mut listed: HashMap<Digest, Descriptor> =
        entries.iter().map(|entry| (entry.digest.clone(), entry.clone())).collect();
    let digests: Vec<Digest> = listed.keys().cloned().collect();
    let there = app.db.artifact_types(repository, &digests).await?;
    let known = there.into_iter().filter_map(|(digest, artifact_type)| {
        let mut entry = listed.remove(&digest)?;
        entry.artifact_type = entry.artifact_type.or(artifact_type);
        Some(entry)
    });
    Ok(known.collect())
}

/// What the list says of them.
async fn descriptors(app: &App, found: Vec<Found>) -> Result<Vec<Descriptor>, Failure> {
    let ids: Vec<ManifestId> = found.iter().filter_map(Found::id).collect();
    let annotations = app.db.annotations(&ids).await?;
    let described = found.into_iter().map(|found| match found {
        Found::Listed(descriptor) => descriptor,
        Found::Referrer(row) => Descriptor {
            media_type: row.media_type,
            digest: row.digest,
            size: row.size,
            urls: Vec::new(),
            artifact_type: row.artifact_type,
            annotations: annotations.get(&row.id).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default(),
        },
    });
    Ok(described.collect())
}

// === impl Found ===

impl Found {
    fn artifact_type(&self) -> Option<&str> {
        match self {
            Self::Referrer(row) => row.artifact_type.as_deref(),
            Self::Listed(descriptor) => descriptor.artifact_type.as_deref(),
        }
    }

    fn annotations_len(&self) -> u64 {
        match self {
            Self::Referrer(row) => row.annotations_len,
            Self::Listed(descriptor) => {
                descriptor.annotations.iter().map(|(name, text)| (name.len() + text.len()) as u64).sum()
            }
        }
    }

    const fn id(&self) -> Option<ManifestId> {
        match self {
            Self::Referrer(row) => Some(row.id),
            Self::Listed(_) => None,
        }
    }
}
