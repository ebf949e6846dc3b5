//! Images made of this machine's real files.

use std::{
    fs::{self, File},
    io::{BufWriter, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use proto::{Algorithm, Digest};
use rand::{RngCore, SeedableRng, rngs::SmallRng};
use serde_json::json;

use crate::{Host, Net, Registry, Run};

/// Compressing a few hundred megabytes on a busy machine.
const BUILD_DEADLINE: Duration = Duration::from_secs(300);
/// Pushing the same over loopback or a shaped link.
const PUSH_DEADLINE: Duration = Duration::from_secs(300);
/// Files above this size would make one layer of one file.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// gzip, which every client knows.
    Gzip,
    /// zstd: containerd, podman and skopeo; not docker before 23.
    Zstd,
    /// A bare tar.
    None,
}

/// What a layer's files are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Programs, libraries and texts of this machine.
    Real,
    /// Random bytes: the layer is as large as asked for, whatever the compression.
    Random,
    /// Half of each.
    Mixed,
}

/// A layer to make.
#[derive(Debug, Clone, Copy)]
pub struct LayerSpec {
    /// Bytes of its files, before compression.
    pub bytes: u64,
    /// How it is compressed.
    pub compression: Compression,
    /// What is in it.
    pub content: Content,
}

/// One platform of an image.
#[derive(Debug, Clone)]
pub struct Platform {
    /// As in `amd64`.
    pub architecture: String,
    /// Of the image's manifest for it.
    pub manifest: Digest,
    /// Of its configuration, which docker and podman call the image's id.
    pub config: Digest,
    /// Of the layers as they travel.
    pub layers: Vec<Digest>,
    /// Of the layers unpacked (`diff_ids`).
    pub diff_ids: Vec<Digest>,
    /// Of the layers as they travel, together.
    pub layer_bytes: u64,
}

/// Builds an [`Image`].
#[derive(Debug, Default)]
pub struct ImageBuilder {
    layers: Vec<LayerSpec>,
    second_platform: bool,
    docker_types: bool,
    seed: u64,
}

/// An image, as an OCI layout on disk.
#[derive(Debug)]
pub struct Image {
    folder: PathBuf,
    /// This machine's platform first.
    pub platforms: Vec<Platform>,
    /// The index, when there are two platforms.
    pub index: Option<Digest>,
}

// === impl ImageBuilder ===

impl ImageBuilder {
    /// Adds a layer.
    #[must_use]
    pub fn layer(mut self, bytes: u64, compression: Compression, content: Content) -> Self {
        self.layers.push(LayerSpec { bytes, compression, content });
        self
    }

    /// Makes it an index of two platforms; the other one has a single small layer.
    #[must_use]
    pub const fn two_platforms(mut self) -> Self {
        self.second_platform = true;
        self
    }

    /// Uses Docker's media types (schema 2) instead of OCI's. Not for zstd layers.
    #[must_use]
    pub const fn docker_types(mut self) -> Self {
        self.docker_types = true;
        self
    }

    /// Another seed makes other random bytes, and so other digests.
    #[must_use]
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Makes the layers and the layout in the run's folder.
    ///
    /// # Errors
    /// When a file cannot be written or a compressor fails.
    pub fn build(self, run: &Run) -> Result<Image> {
        ensure!(!self.layers.is_empty(), "an image needs a layer");
        let zstd = self.layers.iter().any(|layer| layer.compression == Compression::Zstd);
        ensure!(!(self.docker_types && zstd), "docker's media types know no zstd");
        let folder = run.data_dir("image")?;
        fs::create_dir_all(folder.join("blobs/sha256"))?;
        fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
        let layout = Layout { folder: &folder, docker_types: self.docker_types };
        let mut files = RealFiles::default();
        let mut platforms = vec![layout.platform(architecture(), &self.layers, self.seed, &mut files)?];
        if self.second_platform {
            let other = if architecture() == "amd64" { "arm64" } else { "amd64" };
            let small = LayerSpec { bytes: 100_000, compression: Compression::Gzip, content: Content::Random };
            platforms.push(layout.platform(other, &[small], self.seed ^ u64::MAX, &mut files)?);
        }
        let index = layout.finish(&platforms, self.second_platform)?;
        Ok(Image { folder, platforms, index })
    }
}

// === impl Image ===

impl Image {
    /// Starts describing one.
    #[must_use]
    pub fn builder() -> ImageBuilder {
        ImageBuilder::default()
    }

    /// The OCI layout.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// This machine's platform.
    #[must_use]
    pub fn platform(&self) -> &Platform {
        &self.platforms[0]
    }

    /// Bytes a client of this machine's platform downloads as layers and configuration.
    ///
    /// # Errors
    /// When a blob is gone.
    pub fn pulled_bytes(&self) -> Result<u64> {
        let platform = self.platform();
        Ok(platform.layer_bytes + fs::metadata(self.blob_path(&platform.config))?.len())
    }

    /// Where a blob lies.
    #[must_use]
    pub fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs/sha256").join(digest.hex())
    }

    /// Pushes it with skopeo, from the registry's own host, so that no shaped link is in the way; returns the
    /// reference: `address:port/repository:tag`.
    ///
    /// # Errors
    /// When the registry refuses.
    pub fn push(&self, registry: &Registry, repository: &str, tag: &str) -> Result<String> {
        let reference = format!("{}/{repository}:{tag}", registry.name());
        let mut skopeo =
            registry.host().program("skopeo").args(["--insecure-policy", "copy", "--all", "--preserve-digests"]);
        // Nobody's own settings and passwords.
        skopeo = skopeo.env("HOME", &self.folder);
        if registry.is_plain() {
            skopeo = skopeo.arg("--dest-tls-verify=false");
        }
        if let Some(ca) = registry.ca() {
            let folder = ca.parent().context("the authority has a folder")?.join("skopeo-certs");
            fs::create_dir_all(&folder)?;
            fs::copy(ca, folder.join("ca.crt"))?;
            skopeo = skopeo.arg("--dest-cert-dir").arg(folder);
        }
        if let Some((user, password)) = registry.credentials() {
            skopeo = skopeo.args(["--dest-creds", &format!("{user}:{password}")]);
        }
        let source = format!("oci:{}:image", self.folder.display());
        skopeo.args([source, format!("docker://{reference}")]).run(PUSH_DEADLINE)?;
        Ok(reference)
    }
}

// === making it ===

struct Layout<'a> {
    folder: &'a Path,
    docker_types: bool,
}

struct Layer {
    digest: Digest,
    diff_id: Digest,
    bytes: u64,
    compression: Compression,
}

impl Layout<'_> {
    fn platform(&self, architecture: &str, specs: &[LayerSpec], seed: u64, files: &mut RealFiles) -> Result<Platform> {
        let layers: Vec<Layer> = specs
            .iter()
            .enumerate()
            .map(|(number, spec)| self.layer(number, spec, seed.wrapping_mul(1000).wrapping_add(number as u64), files))
            .collect::<Result<_>>()?;
        let diff_ids: Vec<Digest> = layers.iter().map(|layer| layer.diff_id.clone()).collect();
        let history: Vec<_> = layers.iter().map(|_| json!({"created_by": "layer of real files"})).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "created": "2026-01-01T00:00:00Z",
            "config": {"Cmd": ["/bin/true"]}, "history": history,
            "rootfs": {"type": "layers", "diff_ids": diff_ids.iter().map(Digest::to_string).collect::<Vec<_>>()},
        });
        let (config, config_bytes) = self.blob(config.to_string().as_bytes())?;
        let described: Vec<_> = layers
            .iter()
            .map(|layer| json!({"mediaType": self.layer_type(layer.compression), "digest": layer.digest.to_string(), "size": layer.bytes}))
            .collect();
        let (manifest_type, config_type) = self.types();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": manifest_type,
            "config": {"mediaType": config_type, "digest": config.to_string(), "size": config_bytes},
            "layers": described,
        });
        let (manifest, _) = self.blob(manifest.to_string().as_bytes())?;
        Ok(Platform {
            architecture: architecture.to_owned(),
            manifest,
            config,
            diff_ids,
            layer_bytes: layers.iter().map(|layer| layer.bytes).sum(),
            layers: layers.into_iter().map(|layer| layer.digest).collect(),
        })
    }

    const fn types(&self) -> (&'static str, &'static str) {
        if self.docker_types {
            ("application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.container.image.v1+json")
        } else {
            ("application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.config.v1+json")
        }
    }

    const fn layer_type(&self, compression: Compression) -> &'static str {
        match (self.docker_types, compression) {
            (true, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (true, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            (false, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (false, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (false, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
        }
    }

    fn layer(&self, number: usize, spec: &LayerSpec, seed: u64, files: &mut RealFiles) -> Result<Layer> {
        let work = tempfile::Builder::new().prefix("layer-").tempdir_in(self.folder)?;
        let root = work.path().join("root").join(format!("layer-{number}"));
        fs::create_dir_all(&root)?;
        let real = match spec.content {
            Content::Real => spec.bytes,
            Content::Mixed => spec.bytes / 2,
            Content::Random => 0,
        };
        // The machine may not have so many files: the rest is random.
        let real = files.copy(&root, real)?;
        if spec.bytes > real {
            write_random(&root.join("random"), spec.bytes - real, seed)?;
        }
        let host = here();
        let tar = work.path().join("layer.tar");
        let reproducible = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner", "--mode=go-w"];
        let make = host.program("tar").arg("-C").arg(work.path().join("root")).args(reproducible);
        make.arg("-cf").arg(&tar).arg(".").run(BUILD_DEADLINE)?;
        let diff_id = digest_of(&tar)?;
        let file = match spec.compression {
            Compression::None => tar,
            Compression::Gzip => {
                host.program("gzip").args(["-n", "-1"]).arg(&tar).run(BUILD_DEADLINE)?;
                tar.with_extension("tar.gz")
            }
            Compression::Zstd => {
                host.program("zstd").args(["-q", "-1"]).arg(&tar).run(BUILD_DEADLINE)?;
                tar.with_extension("tar.zst")
            }
        };
        let digest = digest_of(&file)?;
        let bytes = fs::metadata(&file)?.len();
        fs::rename(&file, self.folder.join("blobs/sha256").join(digest.hex()))?;
        Ok(Layer { digest, diff_id, bytes, compression: spec.compression })
    }

    fn finish(&self, platforms: &[Platform], with_index: bool) -> Result<Option<Digest>> {
        let (manifest_type, _) = self.types();
        let size = |digest: &Digest| -> Result<u64> {
            Ok(fs::metadata(self.folder.join("blobs/sha256").join(digest.hex()))?.len())
        };
        let mut manifests = Vec::new();
        for platform in platforms {
            manifests.push(json!({
                "mediaType": manifest_type, "digest": platform.manifest.to_string(), "size": size(&platform.manifest)?,
                "platform": {"architecture": platform.architecture, "os": "linux"},
            }));
        }
        let index_type = if self.docker_types {
            "application/vnd.docker.distribution.manifest.list.v2+json"
        } else {
            "application/vnd.oci.image.index.v1+json"
        };
        let (index, mut top) = if with_index {
            let (index, bytes) = self.blob(
                json!({"schemaVersion": 2, "mediaType": index_type, "manifests": manifests}).to_string().as_bytes(),
            )?;
            let top = json!({"mediaType": index_type, "digest": index.to_string(), "size": bytes});
            (Some(index), top)
        } else {
            (None, manifests.swap_remove(0))
        };
        top["annotations"] = json!({"org.opencontainers.image.ref.name": "image"});
        fs::write(self.folder.join("index.json"), json!({"schemaVersion": 2, "manifests": [top]}).to_string())?;
        Ok(index)
    }

    fn blob(&self, content: &[u8]) -> Result<(Digest, u64)> {
        let digest = Digest::of(Algorithm::Sha256, content);
        fs::write(self.folder.join("blobs/sha256").join(digest.hex()), content)?;
        Ok((digest, content.len() as u64))
    }
}

/// Walks through this machine's programs, libraries and texts, a new file at each step.
#[derive(Debug, Default)]
struct RealFiles {
    found: Option<std::vec::IntoIter<(PathBuf, u64)>>,
    copied: u64,
}

impl RealFiles {
    /// Copies files of about this many bytes in all; returns how many it really were.
    fn copy(&mut self, into: &Path, bytes: u64) -> Result<u64> {
        let mut done = 0;
        if bytes == 0 {
            return Ok(done);
        }
        let found = self.found.get_or_insert_with(|| find_files().into_iter());
        for (path, size) in found.by_ref() {
            if done + size > bytes {
                continue;
            }
            let folder = into
                .join(path.parent().and_then(|parent| parent.strip_prefix("/").ok()).unwrap_or_else(|| Path::new("")));
            fs::create_dir_all(&folder)?;
            let name = path.file_name().context("a file has a name")?;
            // Files can be unreadable without root, or vanish while packages are installed.
            if fs::copy(&path, folder.join(name)).is_ok() {
                done += size;
                self.copied += 1;
            }
            if done + 4096 > bytes {
                break;
            }
        }
        Ok(done)
    }
}

fn find_files() -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut todo: Vec<PathBuf> =
        ["/usr/share/doc", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/bin"]
            .map(PathBuf::from)
            .into();
    while let Some(folder) = todo.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                todo.push(entry.path());
            } else if metadata.is_file() && metadata.len() <= FILE_BYTES_MAX {
                found.push((entry.path(), metadata.len()));
            }
        }
    }
    found
}

fn write_random(path: &Path, bytes: u64, seed: u64) -> Result<()> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut file = BufWriter::new(File::create(path)?);
    let mut left = bytes;
    let mut buffer = vec![0; 64 * 1024];
    while left > 0 {
        random.fill_bytes(&mut buffer);
        let now = left.min(buffer.len() as u64);
        file.write_all(&buffer[..now as usize])?;
        left -= now;
    }
    Ok(file.flush()?)
}

fn digest_of(path: &Path) -> Result<Digest> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hasher = Algorithm::Sha256.hasher();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}

/// This machine itself, for programs that need no network.
fn here() -> Host {
    Net::loopback(&["here"]).host("here")
}
