//! Clients: what pulls images on real hosts, each with folders of its own.

mod containerd;
mod docker;
mod podman;
mod skopeo;

use std::time::Duration;

use anyhow::{Result, ensure};
use proto::Digest;

pub use containerd::{Containerd, HostsToml};
pub use docker::{Docker, DockerOptions};
pub use podman::{Podman, PodmanMirror};
pub use skopeo::Skopeo;

use crate::Image;

/// One question to a local runtime.
const ASK_DEADLINE: Duration = Duration::from_secs(60);

/// What a runtime says it has of an image, read back from its own storage after a pull.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// Of the configuration, computed by the runtime or by us from its bytes.
    pub config: Digest,
    /// Of the layers as they travelled; empty where the runtime does not keep them.
    pub layers: Vec<Digest>,
    /// Of the unpacked layers; empty where the client does not unpack.
    pub diff_ids: Vec<Digest>,
}

impl Pulled {
    /// Holds it against what was pushed, this machine's platform.
    ///
    /// # Errors
    /// When something is missing or different.
    pub fn verify(&self, image: &Image) -> Result<()> {
        let wanted = image.platform();
        ensure!(self.config == wanted.config, "configuration is {}, not {}", self.config, wanted.config);
        ensure!(!self.layers.is_empty() || !self.diff_ids.is_empty(), "the client kept no layers");
        ensure!(
            self.layers.is_empty() || self.layers == wanted.layers,
            "layers are {:?}, not {:?}",
            self.layers,
            wanted.layers
        );
        ensure!(self.diff_ids.is_empty() || self.diff_ids == wanted.diff_ids, "layers unpacked to something else");
        Ok(())
    }
}

fn digests(value: &serde_json::Value) -> Result<Vec<Digest>> {
    let texts = value.as_array().map(Vec::as_slice).unwrap_or_default();
    texts.iter().map(|text| Ok(text.as_str().unwrap_or_default().parse()?)).collect()
}

/// With or without `sha256:` before it, as runtimes print ids.
fn image_id(text: &str) -> Result<Digest> {
    let text = text.trim();
    Ok(if text.contains(':') { text.parse()? } else { format!("sha256:{text}").parse()? })
}
