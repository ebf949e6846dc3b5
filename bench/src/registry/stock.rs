//! What tests read, and what they write: the same for all servers.

use std::collections::BTreeMap;

use proto::Digest;

use super::plan::{Action, SIZES_MB};
use crate::load::{Blob, Contents};

/// The media type of all manifests here.
pub(crate) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
/// Where blobs are pulled from.
pub(super) const PULLED: &str = "small/repository-00";
/// Repositories of a small registry.
pub(super) const REPOSITORIES: usize = 20;
/// Tags in each.
pub(super) const TAGS: usize = 10;
/// Configurations and layers of the small registry's images: what matters is that they are there.
const SMALL_BLOB_BYTES: u64 = 1024;

/// Blobs and manifests that are there before the clock runs.
#[derive(Debug, Default)]
pub(super) struct Stock {
    pulled: BTreeMap<u64, Blob>,
    unique: Vec<Blob>,
    small: Vec<(String, Blob)>,
    manifests: Vec<(String, String)>,
}

/// A megabyte, as in the names of tests.
pub(super) const fn bytes_of(mb: u64) -> u64 {
    mb * 1_000_000
}

/// The name of a repository of the small registry.
pub(super) fn repository(number: usize) -> String {
    format!("small/repository-{number:02}")
}

/// The path of one of its manifests.
pub(super) fn manifest_path(repository: &str, tag: usize) -> String {
    format!("/v2/{repository}/manifests/tag-{tag}")
}

impl Stock {
    /// What all tests together read, with so many blobs that are asked for once.
    pub(super) fn for_reading(contents: &mut Contents, unique: usize) -> Self {
        let mut stock = Self { pulled: SIZES_MB.map(|mb| (mb, contents.blob(bytes_of(mb)))).into(), ..Self::default() };
        stock.unique = (0..unique).map(|_| contents.blob(bytes_of(1))).collect();
        for number in 0..REPOSITORIES {
            let name = repository(number);
            let [config, layer] = [(); 2].map(|()| contents.blob(SMALL_BLOB_BYTES));
            for tag in 0..TAGS {
                stock.manifests.push((manifest_path(&name, tag), manifest(config.digest(), layer.digest(), tag)));
            }
            stock.small.extend([(name.clone(), config), (name, layer)]);
        }
        stock
    }

    /// What these actions read beside what they write.
    pub(super) fn for_writing(contents: &mut Contents, actions: &[Action]) -> Self {
        let read = actions.iter().filter(|action| matches!(action, Action::Pull(_) | Action::PushAgain(_)));
        let pulled = read.map(|action| (action.size_mb(), contents.blob(bytes_of(action.size_mb())))).collect();
        Self { pulled, ..Self::default() }
    }

    /// The blob of this size that is pulled again and again.
    ///
    /// # Panics
    /// When the stock was made for other actions.
    pub(super) fn pulled(&self, mb: u64) -> &Blob {
        self.pulled.get(&mb).expect("the stock was made for the actions of its test")
    }

    /// The blobs that are asked for once.
    pub(super) fn unique(&self) -> &[Blob] {
        &self.unique
    }

    /// All blobs, with their repositories.
    pub(super) fn blobs(&self) -> impl Iterator<Item = (&str, &Blob)> {
        let pulled = self.pulled.values().chain(&self.unique).map(|blob| (PULLED, blob));
        pulled.chain(self.small.iter().map(|(name, blob)| (name.as_str(), blob)))
    }

    /// All manifests, with their paths.
    pub(super) fn manifests(&self) -> impl Iterator<Item = (&str, &str)> {
        self.manifests.iter().map(|(path, body)| (path.as_str(), body.as_str()))
    }
}

fn manifest(config: &Digest, layer: &Digest, number: usize) -> String {
    format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST_TYPE}\",\
         \"config\":{{\"mediaType\":\"application/vnd.oci.image.config.v1+json\",\"digest\":\"{config}\",\"size\":{SMALL_BLOB_BYTES}}},\
         \"layers\":[{{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"{layer}\",\"size\":{SMALL_BLOB_BYTES}}}],\
         \"annotations\":{{\"number\":\"{number}\"}}}}"
    )
}

#[cfg(test)]
mod tests {
    use proto::Algorithm;

    use super::*;

    #[test]
    fn the_small_registry_has_its_size() {
        let stock = Stock::for_reading(&mut Contents::new(1, 1000), 3);
        assert_eq!(stock.manifests().count(), REPOSITORIES * TAGS);
        assert_eq!(stock.blobs().count(), SIZES_MB.len() + 3 + 2 * REPOSITORIES);
        let repositories: std::collections::BTreeSet<&str> = stock.blobs().map(|(name, _)| name).collect();
        assert_eq!(repositories.len(), REPOSITORIES);
        let digests: std::collections::HashSet<Digest> =
            stock.manifests().map(|(_, body)| Digest::of(Algorithm::Sha256, body.as_bytes())).collect();
        assert_eq!(digests.len(), REPOSITORIES * TAGS);
        for (_, body) in stock.manifests() {
            serde_json::from_str::<serde_json::Value>(body).unwrap();
        }
    }
}
