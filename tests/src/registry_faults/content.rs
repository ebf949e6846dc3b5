//! What is pushed: blobs, manifests of them, and how they go to and from a registry.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use proto::{Algorithm, Digest};
use serde_json::{Value, json};

use super::http::{Client, Response};
use crate::faults_data::probe::{content, same};

pub(crate) const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const FOREIGN_LAYER: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

/// Bytes and their name.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) bytes: Arc<[u8]>,
}

/// A manifest, and what belongs to it.
#[derive(Debug, Clone)]
pub(crate) struct Manifest {
    pub(crate) digest: Digest,
    pub(crate) bytes: Arc<[u8]>,
    pub(crate) kind: &'static str,
    /// What an image needs.
    pub(crate) blobs: Vec<Blob>,
    /// What an index names.
    pub(crate) children: Vec<Digest>,
    pub(crate) subject: Option<Digest>,
}

// === impl Blob ===

impl Blob {
    pub(crate) fn of(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes = bytes.into();
        Self { digest: Digest::of(Algorithm::Sha256, &bytes), bytes }
    }

    /// Random bytes; the same for the same seed.
    pub(crate) fn random(length: usize, seed: u64) -> Self {
        Self::of(content(length, seed))
    }

    fn descriptor(&self, kind: &str) -> Value {
        json!({"mediaType": kind, "digest": self.digest.to_string(), "size": self.bytes.len()})
    }

    pub(crate) fn path(&self, repository: &str) -> String {
        format!("/v2/{repository}/blobs/{}", self.digest)
    }
}

// === impl Manifest ===

impl Manifest {
    /// An image. Another `name` is another image.
    pub(crate) fn image(name: &str, layers: &[Blob]) -> Self {
        Self::artifact(name, layers, None)
    }

    /// An image whose layer is to be had elsewhere, and need not be pushed: it may be taken out of its blobs.
    pub(crate) fn foreign(name: &str, layer: Blob) -> Self {
        let mut image = Self::image(name, &[]);
        let mut document: Value = serde_json::from_slice(&image.bytes).expect("made of JSON");
        let mut descriptor = layer.descriptor(FOREIGN_LAYER);
        descriptor["urls"] = json!(["https://example.com/layer"]);
        document["layers"] = json!([descriptor]);
        let Self { digest, bytes, .. } = Self::of(IMAGE, document.to_string());
        (image.digest, image.bytes) = (digest, bytes);
        image.blobs.push(layer);
        image
    }

    /// An image that refers to another manifest.
    pub(crate) fn artifact(name: &str, layers: &[Blob], subject: Option<&Self>) -> Self {
        let config = Blob::of(json!({"architecture": "amd64", "os": "linux", "author": name}).to_string().into_bytes());
        let mut document = json!({
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "config": config.descriptor(CONFIG),
            "layers": layers.iter().map(|layer| layer.descriptor(LAYER)).collect::<Vec<_>>(),
            "annotations": {"name": name},
        });
        if let Some(subject) = subject {
            document["subject"] = subject.descriptor();
            document["artifactType"] = json!("application/vnd.example.signature");
        }
        let mut blobs = vec![config];
        blobs.extend(layers.iter().cloned());
        let subject = subject.map(|subject| subject.digest.clone());
        Self { blobs, subject, ..Self::of(IMAGE, document.to_string()) }
    }

    /// An index of these.
    pub(crate) fn index(name: &str, children: &[&Self]) -> Self {
        let document = json!({
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": children.iter().map(|child| child.descriptor()).collect::<Vec<_>>(),
            "annotations": {"name": name},
        });
        let children = children.iter().map(|child| child.digest.clone()).collect();
        Self { children, ..Self::of(INDEX, document.to_string()) }
    }

    /// Any text, as this kind of manifest.
    pub(crate) fn of(kind: &'static str, text: String) -> Self {
        let bytes: Arc<[u8]> = text.into_bytes().into();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        Self { digest, bytes, kind, blobs: Vec::new(), children: Vec::new(), subject: None }
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.kind, "digest": self.digest.to_string(), "size": self.bytes.len()})
    }
}

// === impl Client ===

impl Client {
    /// Begins an upload and returns its path.
    pub(crate) fn begin(&mut self, repository: &str) -> Result<String> {
        let response = self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], &[])?;
        location(&response.is(202, "an upload begins")?)
    }

    /// Bytes that an upload goes on with, from `offset` on.
    pub(crate) fn patch(&mut self, upload: &str, offset: usize, bytes: &[u8]) -> Result<Response> {
        let range = format!("{offset}-{}", (offset + bytes.len()).saturating_sub(1));
        self.ask("PATCH", upload, &[OCTETS, ("content-range", &range)], bytes)
    }

    /// The end of an upload, with its last bytes.
    pub(crate) fn finish(&mut self, upload: &str, digest: &Digest, last: &[u8]) -> Result<Response> {
        self.ask("PUT", &format!("{upload}?digest={digest}"), &[OCTETS], last)
    }

    /// How many bytes an upload has.
    pub(crate) fn offset(&mut self, upload: &str) -> Result<u64> {
        offset(&self.get(upload)?.is(204, "the state of an upload")?)
    }

    /// Pushes a blob in two requests.
    pub(crate) fn try_push(&mut self, repository: &str, blob: &Blob) -> Result<Response> {
        let upload = self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], &[])?;
        if upload.status != 202 {
            return Ok(upload);
        }
        self.finish(&location(&upload)?, &blob.digest, &blob.bytes)
    }

    pub(crate) fn push(&mut self, repository: &str, blob: &Blob) -> Result<()> {
        self.try_push(repository, blob)?.is(201, "push of a blob").map(drop)
    }

    /// Mounts a blob from another repository; 202 when it cannot be.
    pub(crate) fn mount(&mut self, repository: &str, blob: &Blob, from: Option<&str>) -> Result<Response> {
        let from = from.map(|from| format!("&from={from}")).unwrap_or_default();
        self.ask("POST", &format!("/v2/{repository}/blobs/uploads/?mount={}{from}", blob.digest), &[], &[])
    }

    pub(crate) fn put_manifest(&mut self, repository: &str, reference: &str, manifest: &Manifest) -> Result<Response> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.ask("PUT", &path, &[("content-type", manifest.kind)], &manifest.bytes)
    }

    /// Pushes the blobs of a manifest and it; an empty tag is none.
    pub(crate) fn push_image(&mut self, repository: &str, tag: &str, manifest: &Manifest) -> Result<()> {
        manifest.blobs.iter().try_for_each(|blob| self.push(repository, blob))?;
        let digest = manifest.digest.to_string();
        let reference = if tag.is_empty() { &digest } else { tag };
        self.put_manifest(repository, reference, manifest)?.is(201, "push of a manifest").map(drop)
    }

    pub(crate) fn manifest(&mut self, repository: &str, reference: &str) -> Result<Response> {
        self.get(&format!("/v2/{repository}/manifests/{reference}"))
    }

    pub(crate) fn delete_manifest(&mut self, repository: &str, reference: &str) -> Result<Response> {
        self.ask("DELETE", &format!("/v2/{repository}/manifests/{reference}"), &[], &[])
    }

    /// 200 or 404.
    pub(crate) fn head_blob(&mut self, repository: &str, blob: &Blob) -> Result<u16> {
        Ok(self.ask("HEAD", &blob.path(repository), &[], &[])?.status)
    }

    /// The blob is there, to the last byte.
    pub(crate) fn pulls_blob(&mut self, repository: &str, blob: &Blob) -> Result<()> {
        let what = || format!("blob {} of {repository}", blob.digest);
        let response = self.get(&blob.path(repository))?.is(200, &what())?;
        same(&response.body, &blob.bytes).with_context(what)
    }

    /// The manifest and all its blobs are there, to the last byte. Not looked at: what an index names.
    pub(crate) fn pulls(&mut self, repository: &str, reference: &str, manifest: &Manifest) -> Result<()> {
        let what = || format!("manifest {repository}:{reference}");
        let response = self.manifest(repository, reference)?.is(200, &what())?;
        same(&response.body, &manifest.bytes).with_context(what)?;
        let named = response.header("docker-content-digest").unwrap_or_default();
        ensure!(named == manifest.digest.to_string(), "{}: is called {named}", what());
        ensure!(response.header("content-type") == Some(manifest.kind), "{}: of another type", what());
        manifest.blobs.iter().try_for_each(|blob| self.pulls_blob(repository, blob)).with_context(what)
    }

    /// A list: `tags`, `repositories`; of referrers their digests.
    pub(crate) fn tags(&mut self, repository: &str) -> Result<Vec<String>> {
        let response = self.get(&format!("/v2/{repository}/tags/list"))?.is(200, "list of tags")?;
        Ok(serde_json::from_value(response.json()?["tags"].take())?)
    }

    pub(crate) fn referrers(&mut self, repository: &str, subject: &Digest) -> Result<Vec<String>> {
        let response = self.get(&format!("/v2/{repository}/referrers/{subject}"))?.is(200, "list of referrers")?;
        let list = response.json()?;
        let digests = list["manifests"].as_array().context("no list of referrers")?.iter();
        Ok(digests.map(|one| one["digest"].as_str().unwrap_or_default().to_owned()).collect())
    }
}

/// The path in `Location`.
pub(crate) fn location(response: &Response) -> Result<String> {
    let location = response.header("location").with_context(|| format!("no Location: {}", response.told()))?;
    let path = location.find("/v2/").with_context(|| format!("the location is {location}"))?;
    Ok(location[path..].to_owned())
}

/// The bytes an upload has, by the header `Range`. One byte looks like none.
pub(crate) fn offset(response: &Response) -> Result<u64> {
    let range = response.header("range").with_context(|| format!("no Range: {}", response.told()))?;
    let last: u64 = range.strip_prefix("0-").and_then(|last| last.parse().ok()).with_context(|| range.to_owned())?;
    Ok(if last == 0 { 0 } else { last + 1 })
}
