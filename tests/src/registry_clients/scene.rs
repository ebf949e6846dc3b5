//! What these suites share: a registry that tells what it was asked, and clients with folders of their own.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, ensure};
use harness::{
    Compression, Content, Curl, Finished, Host, Image, LinkSpec, Net, ProcBuilder, Run, SkimmerRegistry, go_tool,
    python_tool,
};
use proto::{Algorithm, Digest};

/// One command of a client that moves some megabytes, on a busy machine.
pub(super) const CLIENT: Duration = Duration::from_secs(120);
/// The sections of a registry that lets everybody in, at addresses that others can reach.
pub(super) const OPEN: &str = "[auth]\nallow_anonymous = true\n";

/// A registry and the command lines of its clients, on one host.
#[derive(Debug)]
pub(super) struct Scene {
    // Dropped in this order: programs before the network they are in.
    pub(super) registry: SkimmerRegistry,
    pub(super) tools: Tools,
    pub(super) host: Host,
    _net: Net,
}

/// Command-line clients that need neither root nor a daemon. They find nobody's settings and passwords.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    host: Host,
    home: PathBuf,
    /// Whose certificates skopeo takes; without it skopeo speaks HTTP.
    ca: Option<PathBuf>,
}

/// What a registry was asked, by its access log.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: String,
    /// Path and query.
    pub(super) uri: String,
    pub(super) status: u16,
}

// === impl Scene ===

impl Scene {
    /// A registry that lets everybody in.
    pub(super) fn open(run: &Run) -> anyhow::Result<Self> {
        Self::start(run, |_| Ok(OPEN.to_owned()))
    }

    /// A registry on SQLite and a folder; `sections` says the rest of its configuration.
    pub(super) fn start(run: &Run, sections: impl FnOnce(&Host) -> anyhow::Result<String>) -> anyhow::Result<Self> {
        let net = one_host()?;
        let host = net.host("here");
        let registry = on_files(&host, run, &sections(&host)?)?;
        Ok(Self { registry, tools: Tools::new(&host, run)?, host, _net: net })
    }

    /// `address:port/repository`.
    pub(super) fn repository(&self, repository: &str) -> String {
        format!("{}/{repository}", self.registry.name())
    }

    /// A request by curl.
    pub(super) fn curl(&self) -> Curl {
        Curl::new(&self.host)
    }

    /// All requests so far; their number marks a moment.
    pub(super) fn asked(&self) -> anyhow::Result<Vec<Asked>> {
        asked(&self.registry)
    }

    /// The requests since `mark` of them had come.
    pub(super) fn asked_since(&self, mark: usize) -> anyhow::Result<Vec<Asked>> {
        Ok(self.asked()?.split_off(mark))
    }

    /// Whatever happened, the registry had no trouble with it.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        check_calm(&self.registry)
    }
}

/// One machine for everything: with root it has a network of its own.
pub(super) fn one_host() -> anyhow::Result<Net> {
    Net::new_or_loopback(&[("here", LinkSpec::default())])
}

/// A registry on SQLite and a folder. Keys without a section come first in `sections`.
pub(super) fn on_files(host: &Host, run: &Run, sections: &str) -> anyhow::Result<SkimmerRegistry> {
    let folder = run.data_dir("registry")?;
    SkimmerRegistry::start(host, run, &logged(&format!("{sections}{}", SkimmerRegistry::on_files(&folder))))
}

/// The configuration with logs that [`asked`] reads.
pub(super) fn logged(config: &str) -> String {
    format!("{config}[log]\nformat = \"json\"\n")
}

// === what the registry says ===

/// All requests a registry has answered so far, in their order.
pub(super) fn asked(registry: &SkimmerRegistry) -> anyhow::Result<Vec<Asked>> {
    let requests = log_lines(registry)?.into_iter().filter(|line| line["target"] == "access").map(|line| {
        let text = |name: &str| line[name].as_str().unwrap_or_default().to_owned();
        let status = line["status"].as_u64().and_then(|status| status.try_into().ok());
        let status = status.with_context(|| format!("access log line {line}"))?;
        Ok(Asked { method: text("method"), uri: text("uri"), status })
    });
    requests.collect()
}

fn log_lines(registry: &SkimmerRegistry) -> anyhow::Result<Vec<serde_json::Value>> {
    let log = registry.log()?;
    let lines = log.lines().map(|line| serde_json::from_str(line).with_context(|| format!("log line {line}")));
    lines.collect()
}

/// It said neither that something went wrong, nor to a client that it could not.
pub(super) fn check_calm(registry: &SkimmerRegistry) -> anyhow::Result<()> {
    for line in log_lines(registry)? {
        ensure!(line["level"] != "ERROR", "the registry says: {line}");
        ensure!(line["status"].as_u64().is_none_or(|status| status < 500), "the registry could not: {line}");
    }
    Ok(())
}

/// Blobs that were mounted into the repository.
pub(super) fn mounts(asked: &[Asked], repository: &str) -> usize {
    let uploads = format!("/v2/{repository}/blobs/uploads/?");
    let mounted = asked.iter().filter(|asked| asked.method == "POST" && asked.status == 201);
    mounted.filter(|asked| asked.uri.starts_with(&uploads) && asked.uri.contains("mount=")).count()
}

/// Requests that sent bytes of blobs to the repository.
pub(super) fn uploads(asked: &[Asked], repository: &str) -> usize {
    let uploads = format!("/v2/{repository}/blobs/uploads/");
    let sent = asked.iter().filter(|asked| asked.uri.starts_with(&uploads));
    sent.filter(|asked| match asked.method.as_str() {
        "PATCH" | "PUT" => true,
        "POST" => asked.status == 201 && !asked.uri.contains("mount="),
        _ => false,
    })
    .count()
}

// === impl Tools ===

impl Tools {
    pub(super) fn new(host: &Host, run: &Run) -> anyhow::Result<Self> {
        Ok(Self { host: host.clone(), home: run.data_dir("home")?, ca: None })
    }

    /// For a registry with a certificate of this authority.
    pub(super) fn trusting(&self, ca: &Path) -> Self {
        Self { ca: Some(ca.to_owned()), ..self.clone() }
    }

    pub(super) const fn host(&self) -> &Host {
        &self.host
    }

    /// Where they are started: names of files are relative to it.
    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    fn at_home(&self, program: ProcBuilder) -> ProcBuilder {
        // Large layers lie in TMPDIR on their way.
        let folders = ["HOME", "TMPDIR", "DOCKER_CONFIG", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"];
        let program = folders.into_iter().fold(program, |program, name| program.env(name, &self.home));
        program.env("REGISTRY_AUTH_FILE", self.home.join("auth.json")).env("NO_PROXY", "*").dir(&self.home)
    }

    /// crane, which speaks HTTP where HTTPS is not answered.
    pub(super) fn crane(&self) -> anyhow::Result<ProcBuilder> {
        Ok(self.at_home(self.host.program(go_tool("crane")?)).arg("--insecure"))
    }

    /// regctl, told that this registry speaks HTTP.
    pub(super) fn regctl(&self, registry: &str) -> anyhow::Result<ProcBuilder> {
        let regctl = self.at_home(self.host.program(go_tool("regctl")?));
        Ok(regctl.args(["--host", &format!("reg={registry},tls=disabled")]))
    }

    /// helm; `--plain-http` belongs after the command.
    pub(super) fn helm(&self) -> anyhow::Result<ProcBuilder> {
        Ok(self.at_home(self.host.program(go_tool("helm")?)))
    }

    /// Python with `oras` and `dxf`.
    pub(super) fn python(&self) -> anyhow::Result<ProcBuilder> {
        Ok(self.at_home(self.host.program(python_tool("python")?)))
    }

    /// python-dxf's command, for a registry that speaks HTTP.
    pub(super) fn dxf(&self, registry: &str) -> anyhow::Result<ProcBuilder> {
        let dxf = self.at_home(self.host.program(python_tool("dxf")?));
        Ok(dxf.env("DXF_HOST", registry).env("DXF_INSECURE", "1").env("DXF_PROGRESS", "0"))
    }

    /// skopeo; where HTTP is spoken, `--tls-verify=false` and the like belong after the command.
    pub(super) fn skopeo(&self) -> ProcBuilder {
        let skopeo = self.at_home(self.host.program("skopeo")).arg("--insecure-policy");
        // Even root's knowledge of where blobs were seen is then kept in the home folder.
        let skopeo = skopeo.env("_CONTAINERS_ROOTLESS_UID", "1");
        match &self.ca {
            Some(ca) => skopeo.env("SSL_CERT_FILE", ca).env("SSL_CERT_DIR", "/nonexistent"),
            None => skopeo,
        }
    }

    /// Copies all of an image to `address:port/repository:tag` with skopeo, as it is.
    pub(super) fn push(&self, image: &Image, reference: &str) -> anyhow::Result<()> {
        self.copy(&layout(image), &format!("docker://{reference}")).map(drop)
    }

    /// skopeo gets all of what the reference names, into a layout; it checks every digest.
    pub(super) fn pull(&self, run: &Run, reference: &str) -> anyhow::Result<PathBuf> {
        let pulled = run.data_dir("pulled")?;
        self.copy(&format!("docker://{reference}"), &format!("oci:{}:image", pulled.display()))?;
        Ok(pulled)
    }

    /// skopeo copies everything as it is.
    pub(super) fn copy(&self, from: &str, to: &str) -> anyhow::Result<Finished> {
        let verify = |side: &str| format!("--{side}-tls-verify={}", self.ca.is_some());
        let copy = self.skopeo().args(["copy", "--all", "--preserve-digests", &verify("src"), &verify("dest")]);
        copy.args([from, to]).run(CLIENT)
    }

    /// All of the image comes from there, every manifest, configuration and layer as it was made.
    pub(super) fn pulls_whole(&self, run: &Run, reference: &str, image: &Image) -> anyhow::Result<()> {
        same_blobs(&self.pull(run, reference)?, image)
    }

    /// A file of random bytes in the home folder.
    pub(super) fn random_file(&self, name: &str, bytes: u64) -> anyhow::Result<PathBuf> {
        let path = self.home.join(name);
        std::io::copy(&mut File::open("/dev/urandom")?.take(bytes), &mut File::create(&path)?)?;
        Ok(path)
    }
}

// === what is pushed, and what came back ===

/// The image as skopeo names it.
pub(super) fn layout(image: &Image) -> String {
    format!("oci:{}:image", image.folder().display())
}

/// Two platforms; gzip, zstd and bare layers.
pub(super) fn two_platforms(run: &Run) -> anyhow::Result<Image> {
    Image::builder()
        .layer(5_000_000, Compression::Gzip, Content::Mixed)
        .layer(2_000_000, Compression::Zstd, Content::Real)
        .layer(300_000, Compression::None, Content::Random)
        .two_platforms()
        .build(run)
}

/// One platform and layers that everybody knows.
pub(super) fn one_platform(run: &Run) -> anyhow::Result<Image> {
    Image::builder()
        .layer(4_000_000, Compression::Gzip, Content::Mixed)
        .layer(200_000, Compression::Gzip, Content::Random)
        .build(run)
}

/// Blobs that a push of this image's own platform sends: layers and configuration.
pub(super) fn blobs(image: &Image) -> usize {
    image.platform().layers.len() + 1
}

/// The image in one file, for those who read no folders.
pub(super) fn archive(run: &Run, image: &Image) -> anyhow::Result<PathBuf> {
    let archive = run.data_dir("archive")?.join("image.tar");
    let tar = Host::local().program("tar").arg("-C").arg(image.folder()).arg("-cf").arg(&archive);
    tar.args(["blobs", "index.json", "oci-layout"]).run(CLIENT)?;
    Ok(archive)
}

/// The layout in this folder has all blobs of the image.
pub(super) fn same_blobs(layout: &Path, image: &Image) -> anyhow::Result<()> {
    let blobs = image
        .platforms
        .iter()
        .flat_map(|platform| platform.layers.iter().chain([&platform.config, &platform.manifest]));
    for blob in blobs.chain(&image.index) {
        let found = digest_of(&layout.join("blobs/sha256").join(blob.hex()))?;
        ensure!(found == *blob, "what was pulled as {blob} is {found}");
    }
    Ok(())
}

/// Of a file of any size.
pub(super) fn digest_of(path: &Path) -> anyhow::Result<Digest> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let (mut hasher, mut buffer) = (Algorithm::Sha256.hasher(), vec![0; 256 * 1024]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// What a command printed, without the end of the line.
pub(super) fn printed(finished: &Finished) -> String {
    String::from_utf8_lossy(&finished.stdout).trim().to_owned()
}

/// A command that has to fail, and to say this.
pub(super) fn refused(command: ProcBuilder, word: &str) -> anyhow::Result<()> {
    let finished = command.output(CLIENT)?;
    let said = format!("{}{}", printed(&finished), finished.stderr);
    ensure!(!finished.status.success(), "it was not refused: {said}");
    ensure!(said.contains(word), "it was not refused with {word:?}: {said}");
    Ok(())
}

/// The key that makes this host a proxy whose word is taken.
pub(super) fn trusted_proxy(proxy: &Host) -> String {
    format!("trusted_proxies = [\"{}/32\"]\n", proxy.ip())
}
