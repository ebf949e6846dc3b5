//! Images that are deleted, and some that are not.

use anyhow::{Result, bail, ensure};
use proto::{Algorithm, Digest};

use crate::{
    load::{self, Blob, Contents, Keep, Kept, Push, Target, Task},
    registry::MANIFEST_TYPE,
};

/// Images to delete at `--scale 1`, and blobs that each has for itself.
const IMAGES: usize = 5_000;
const BLOBS: usize = 10;
/// The size of each blob.
const BLOB_BYTES: u64 = 64 * 1024;
/// Repositories they lie in.
const REPOSITORIES: usize = 10;
/// Of so many images one is not deleted.
const SURVIVOR: usize = 25;
/// Blobs in each repository that images to delete share with those that stay.
const SHARED: usize = 10;
const FILLERS: usize = 16;
const CLIENTS: usize = 4;
/// The configuration that every image has.
const CONFIG: &str = "{}";

/// All images.
#[derive(Debug)]
pub(super) struct Images {
    images: Vec<Image>,
    /// By repository.
    shared: Vec<Vec<Blob>>,
}

#[derive(Debug)]
struct Image {
    number: usize,
    blobs: Vec<Blob>,
    body: String,
    digest: Digest,
}

impl Images {
    /// Makes them; nothing is pushed yet.
    pub(super) fn new(scale: f64, contents: &mut Contents) -> Self {
        let deleted = ((IMAGES as f64 * scale) as usize).max(REPOSITORIES);
        let shared: Vec<Vec<Blob>> =
            (0..REPOSITORIES).map(|_| (0..SHARED).map(|_| contents.blob(BLOB_BYTES)).collect()).collect();
        let images = (0..deleted + deleted.div_ceil(SURVIVOR - 1)).map(|number| {
            let blobs: Vec<Blob> = (0..BLOBS).map(|_| contents.blob(BLOB_BYTES)).collect();
            let common = &shared[number % REPOSITORIES][number / REPOSITORIES % SHARED];
            let body = manifest(blobs.iter().chain([common]));
            Image { number, digest: Digest::of(Algorithm::Sha256, body.as_bytes()), blobs, body }
        });
        Self { images: images.collect(), shared }
    }

    /// Pushes all of them.
    ///
    /// # Errors
    /// When the registry refuses one.
    pub(super) fn push(&self, target: &Target) -> Result<()> {
        let config = Digest::of(Algorithm::Sha256, CONFIG.as_bytes());
        let configs = (0..REPOSITORIES).map(|number| {
            let path = format!("/v2/{}/blobs/uploads/?digest={config}", repository(number));
            let headers = "Content-Type: application/octet-stream\r\n";
            Task::Request(target.upload("POST", &path, headers, CONFIG.as_bytes()))
        });
        load::all(target, 1, configs, |done| done.result.map(drop))?;
        let shared = self.shared.iter().enumerate().flat_map(|(number, blobs)| blobs.iter().map(move |b| (number, b)));
        let own = self.images.iter().flat_map(|image| image.blobs.iter().map(|blob| (image.number, blob)));
        let pushes = shared
            .chain(own)
            .map(|(number, blob)| Task::Push(Push::new(target.start_upload(&repository(number)), blob.clone(), false)));
        load::all(target, FILLERS, pushes, |done| done.result.map(drop))?;
        let manifests = self.images.iter().map(|image| {
            let path = format!("/v2/{}/manifests/image-{}", repository(image.number), image.number);
            let headers = format!("Content-Type: {MANIFEST_TYPE}\r\n");
            Task::Request(target.upload("PUT", &path, &headers, image.body.as_bytes()))
        });
        load::all(target, FILLERS, manifests, |done| done.result.map(drop))?;
        Ok(())
    }

    /// Deletes one part of those to delete.
    ///
    /// # Errors
    /// When the registry refuses.
    pub(super) fn delete(&self, target: &Target, part: usize, parts: usize) -> Result<()> {
        let condemned: Vec<&Image> = self.images.iter().filter(|image| !image.survives()).collect();
        let size = condemned.len().div_ceil(parts);
        let deletes = condemned.chunks(size).nth(part).into_iter().flatten().map(|image| {
            let path = format!("/v2/{}/manifests/{}", repository(image.number), image.digest);
            Task::Request(target.request("DELETE", &path, "").expect(202))
        });
        load::all(target, CLIENTS, deletes, |done| done.result.map(drop))?;
        Ok(())
    }

    /// Blobs that nothing needs once all that can be deleted is, with the number of their image.
    pub(super) fn deletable_blobs(&self) -> impl Iterator<Item = (usize, &Blob)> {
        let condemned = self.images.iter().filter(|image| !image.survives());
        condemned.flat_map(|image| image.blobs.iter().map(|blob| (image.number, blob)))
    }

    /// How many of these the registry has no more.
    ///
    /// # Errors
    /// When it does not answer.
    pub(super) fn gone(&self, target: &Target) -> Result<usize> {
        let heads = self.deletable_blobs().map(|(number, blob)| {
            let path = format!("/v2/{}/blobs/{}", repository(number), blob.digest());
            Task::Request(target.request("HEAD", &path, "").expect(404))
        });
        let mut gone = 0;
        load::all(target, CLIENTS, heads, |done| {
            gone += usize::from(done.result.is_ok());
            Ok(())
        })?;
        Ok(gone)
    }

    /// Pulls every image that was not deleted, with all blobs, and counts them.
    ///
    /// # Errors
    /// When one is not as it was pushed.
    pub(super) fn pull_survivors(&self, target: &Target) -> Result<usize> {
        let survivors: Vec<&Image> = self.images.iter().filter(|image| image.survives()).collect();
        let mut wanted: Vec<(String, &Digest)> = Vec::new();
        for image in &survivors {
            let name = repository(image.number);
            wanted.push((format!("/v2/{name}/manifests/image-{}", image.number), &image.digest));
            let common = &self.shared[image.number % REPOSITORIES][image.number / REPOSITORIES % SHARED];
            let blobs = image.blobs.iter().chain([common]);
            wanted.extend(blobs.map(|blob| (format!("/v2/{name}/blobs/{}", blob.digest()), blob.digest())));
        }
        let accept = format!("Accept: {MANIFEST_TYPE}\r\n");
        let pulls =
            wanted.iter().map(|(path, _)| Task::Request(target.request("GET", path, &accept).keep(Keep::Digest)));
        load::all(target, CLIENTS, pulls, |done| {
            let (path, digest) = &wanted[done.job.id];
            match done.result?.kept {
                Kept::Digest(found) if found == **digest => Ok(()),
                found => bail!("{path} is {found:?}"),
            }
        })?;
        ensure!(!survivors.is_empty(), "there were no images to survive");
        Ok(survivors.len())
    }
}

impl Image {
    const fn survives(&self) -> bool {
        self.number.is_multiple_of(SURVIVOR)
    }
}

fn repository(number: usize) -> String {
    format!("gc/repository-{}", number % REPOSITORIES)
}

fn manifest<'a>(blobs: impl Iterator<Item = &'a Blob>) -> String {
    let config = Digest::of(Algorithm::Sha256, CONFIG.as_bytes());
    let layer = |blob: &Blob| {
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        format!("{{\"mediaType\":\"{media_type}\",\"digest\":\"{}\",\"size\":{}}}", blob.digest(), blob.length())
    };
    let layers: Vec<String> = blobs.map(layer).collect();
    format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST_TYPE}\",\
         \"config\":{{\"mediaType\":\"application/vnd.oci.empty.v1+json\",\"digest\":\"{config}\",\"size\":{}}},\
         \"layers\":[{}]}}",
        CONFIG.len(),
        layers.join(",")
    )
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_is_deleted_leaves_the_blobs_that_others_share() {
        let images = Images::new(1.0, &mut Contents::new(1, BLOB_BYTES));
        let survivors: Vec<&Image> = images.images.iter().filter(|image| image.survives()).collect();
        assert_eq!(images.images.len() - survivors.len(), IMAGES);
        let deletable: HashSet<String> = images.deletable_blobs().map(|(_, blob)| blob.digest().to_string()).collect();
        assert_eq!(deletable.len(), IMAGES * BLOBS);
        for image in survivors {
            assert!(image.blobs.iter().all(|blob| !deletable.contains(&blob.digest().to_string())));
            let common = &images.shared[image.number % REPOSITORIES][image.number / REPOSITORIES % SHARED];
            assert!(image.body.contains(&common.digest().to_string()));
        }
        let repositories: HashSet<String> =
            images.images.iter().filter(|image| image.survives()).map(|image| repository(image.number)).collect();
        assert!(repositories.len() > 1);
        let digests: HashSet<String> = images.images.iter().map(|image| image.digest.to_string()).collect();
        assert_eq!(digests.len(), images.images.len());
    }
}
