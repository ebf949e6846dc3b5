//! Container runtimes with daemons or storage of their own: docker, containerd, podman, buildah.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use harness::{
    Compression, Containerd, Content, Docker, DockerOptions, Host, HostsToml, Image, Podman, PodmanMirror, ProcBuilder,
    Run,
};
use proto::{Algorithm, Digest};

use super::scene::{
    CLIENT, Scene, Tools, archive, layout, mounts, one_platform, printed, refused, two_platforms, uploads,
};
use crate::runner::{Case, CaseResult, Outcome, rooted};

/// Who may come in where not everybody may.
const USER: (&str, &str) = ("ann", "secret");

pub(super) fn cases() -> Vec<Case> {
    vec![
        rooted(
            "registry: docker pushes and pulls an image, skips layers that are there, mounts them from another repository",
            docker,
        ),
        rooted(
            "registry: docker pushes and pulls with a login, and is refused without one or with a wrong password",
            login,
        ),
        rooted(
            "registry: containerd pushes and pulls an index for two platforms, gzip, zstd and bare layers",
            containerd,
        ),
        rooted("registry: podman pushes images, makes an index of them, and pulls it", podman),
        rooted("registry: buildah pushes what it built for two platforms, and pulls it", buildah),
    ]
}

// === docker ===

/// An image in a dockerd, with the command line that the harness, which only pulls, has no need of.
pub(super) struct Loaded {
    pub(super) docker: Docker,
    folder: PathBuf,
    host: Host,
    /// What dockerd calls it.
    name: String,
}

impl Loaded {
    /// Starts dockerd and loads the image.
    pub(super) fn new(tools: &Tools, run: &Run, options: &DockerOptions, image: &Image) -> anyhow::Result<Self> {
        let docker = Docker::start(tools.host(), run, options)?;
        let archive = run.data_dir("docker-archive")?.join("image.tar");
        let name = "loaded:image".to_owned();
        let copy = tools.skopeo().args(["copy", &layout(image)]);
        copy.arg(format!("docker-archive:{}:{name}", archive.display())).run(CLIENT)?;
        let loaded = Self { docker, folder: folder_of(run, "docker")?, host: tools.host().clone(), name };
        loaded.docker().args(["load", "-i"]).arg(&archive).run(CLIENT)?;
        Ok(loaded)
    }

    fn docker(&self) -> ProcBuilder {
        let socket = format!("unix://{}", self.folder.join("sock").display());
        self.host.program("docker").arg("--config").arg(self.folder.join("client")).args(["-H", &socket])
    }

    /// A push that the caller runs.
    pub(super) fn pushing(&self, reference: &str) -> anyhow::Result<ProcBuilder> {
        self.docker().args(["tag", &self.name, reference]).run(CLIENT)?;
        Ok(self.docker().args(["push", reference]))
    }

    /// Pushes, and returns what docker printed.
    pub(super) fn push(&self, reference: &str) -> anyhow::Result<String> {
        Ok(printed(&self.pushing(reference)?.run(CLIENT)?))
    }

    /// Forgets the image, so that it has to come from a registry.
    pub(super) fn forget(&self, references: &[&str]) -> anyhow::Result<()> {
        for name in references.iter().chain([&self.name.as_str()]) {
            self.docker.remove(name)?;
        }
        Ok(())
    }

    /// Pulls what is not there any more, and holds it against what was loaded. docker compresses layers by itself, so
    /// that they travel under other digests; those are known once the first push is over.
    pub(super) fn pulls_back(&self, reference: &str, image: &Image) -> anyhow::Result<()> {
        let pulled = self.docker.pull(reference, CLIENT)?;
        let platform = image.platform();
        ensure!(pulled.config == platform.config, "docker pulled {}, not {}", pulled.config, platform.config);
        ensure!(pulled.diff_ids == platform.diff_ids, "layers unpacked to something else");
        Ok(())
    }
}

/// The only folder of this name that the harness made in the run.
fn folder_of(run: &Run, name: &str) -> anyhow::Result<PathBuf> {
    let ours = |path: &PathBuf| path.to_string_lossy().ends_with(&format!("-{name}"));
    let entries = fs::read_dir(run.path().join("data"))?.collect::<Result<Vec<_>, _>>()?;
    let mut folders = entries.into_iter().map(|entry| entry.path()).filter(ours);
    let folder = folders.next().with_context(|| format!("{name} has no folder"))?;
    ensure!(folders.next().is_none(), "{name} has several folders");
    Ok(folder)
}

fn docker(run: &Run) -> CaseResult {
    let scene = Scene::open(run)?;
    let image = one_platform(run)?;
    let options = DockerOptions { insecure: vec![scene.registry.name()], ..DockerOptions::default() };
    let loaded = Loaded::new(&scene.tools, run, &options, &image)?;
    let (first, second) = (scene.repository("team/app:v1"), scene.repository("other/copy:v1"));
    loaded.push(&first)?;

    let mark = scene.asked()?.len();
    let said = loaded.push(&scene.repository("team/app:v2"))?;
    let asked = scene.asked_since(mark)?;
    ensure!(said.matches("Layer already exists").count() == image.platform().layers.len(), "docker says {said}");
    ensure!(uploads(&asked, "team/app") == 0, "what is there was sent again: {asked:?}");

    let mark = scene.asked()?.len();
    let said = loaded.push(&second)?;
    let (asked, layers) = (scene.asked_since(mark)?, image.platform().layers.len());
    ensure!(said.matches("Mounted from team/app").count() == layers, "docker says {said}");
    ensure!(mounts(&asked, "other/copy") == layers, "layers were not mounted: {asked:?}");

    loaded.forget(&[&first, &scene.repository("team/app:v2"), &second])?;
    loaded.pulls_back(&second, &image)?;
    // docker checks layers by what they unpack to, skopeo by their digests.
    scene.tools.pull(run, &first)?;

    // Of an index it takes this machine's platform.
    let index = Image::builder().layer(500_000, Compression::Gzip, Content::Random).two_platforms().build(run)?;
    let reference = scene.repository("team/index:v1");
    scene.tools.push(&index, &reference)?;
    loaded.docker.pull(&reference, CLIENT)?.verify(&index)?;
    scene.check()?;
    Ok(Outcome::Passed)
}

fn login(run: &Run) -> CaseResult {
    let file = run.data_dir("passwords")?.join("htpasswd");
    let scene = Scene::start(run, |host| {
        host.program("htpasswd").args(["-cbB"]).arg(&file).args([USER.0, USER.1]).run(CLIENT)?;
        Ok(format!("[auth]\nhtpasswd = \"{}\"\n", file.display()))
    })?;
    let image = one_platform(run)?;
    let name = scene.registry.name();
    let options = DockerOptions { insecure: vec![name.clone()], ..DockerOptions::default() };
    let loaded = Loaded::new(&scene.tools, run, &options, &image)?;
    let reference = scene.repository("team/app:v1");
    refused(loaded.pushing(&reference)?, "no basic auth credentials")?;
    let Err(wrong) = loaded.docker.login(&name, USER.0, "wrong") else {
        anyhow::bail!("a wrong password was taken");
    };
    ensure!(wrong.to_string().contains("401 Unauthorized"), "login with a wrong password says {wrong:#}");
    // Written down without asking, a wrong password is refused as well.
    loaded.docker.know(&name, USER.0, "wrong")?;
    refused(loaded.pushing(&reference)?, "unauthorized")?;
    let pushed = scene.asked()?.into_iter().filter(|asked| asked.method != "GET" && asked.status < 400);
    ensure!(pushed.count() == 0, "somebody without a password changed something");

    loaded.docker.login(&name, USER.0, USER.1)?;
    loaded.push(&reference)?;
    loaded.forget(&[&reference])?;
    loaded.pulls_back(&reference, &image)?;
    let inspect = || scene.tools.skopeo().args(["inspect", "--raw", "--tls-verify=false"]);
    let source = format!("docker://{reference}");
    refused(inspect().arg(&source), "unauthorized")?;
    refused(inspect().args(["--creds", "ann:wrong"]).arg(&source), "unauthorized")?;
    inspect().args(["--creds", &format!("{}:{}", USER.0, USER.1)]).arg(&source).run(CLIENT)?;
    scene.check()?;
    Ok(Outcome::Passed)
}

// === containerd ===

fn containerd(run: &Run) -> CaseResult {
    let scene = Scene::open(run)?;
    let image = two_platforms(run)?;
    let containerd = Containerd::start(&scene.host, run)?;
    let socket = folder_of(run, "containerd")?.join("sock");
    let images = || scene.host.program("ctr").arg("-a").arg(&socket).arg("images");
    let reference = scene.repository("team/app:v1");
    let import = images().args(["import", "--all-platforms", "--no-unpack", "--base-name", "imported"]);
    import.arg(archive(run, &image)?).run(CLIENT)?;
    // The layout's annotation becomes the tag.
    images().args(["push", "--plain-http", &reference, "imported:image"]).run(CLIENT)?;
    images().args(["rm", "--sync", "imported:image"]).run(CLIENT)?;

    let hosts = HostsToml::new(run)?.registry(&scene.registry.name(), &scene.registry.url(""), &[], None)?;
    containerd.pull(&reference, &hosts, None, CLIENT)?.verify(&image)?;
    scene.tools.pulls_whole(run, &reference, &image)?;
    scene.check()?;
    Ok(Outcome::Passed)
}

// === podman and buildah ===

/// podman or buildah with storage in a folder of its own; it finds that folder's settings where the machine's are.
fn with_storage(scene: &Scene, run: &Run, program: &'static str) -> anyhow::Result<impl Fn() -> ProcBuilder> {
    let folder = run.data_dir("storage")?;
    let etc = folder.join("etc");
    fs::create_dir(&etc)?;
    fs::write(etc.join("policy.json"), r#"{"default":[{"type":"insecureAcceptAnything"}]}"#)?;
    fs::write(etc.join("registries.conf"), "unqualified-search-registries = []\n")?;
    fs::write(folder.join("auth.json"), "{}")?;
    let host = scene.host.clone();
    // Where root's podman and buildah keep what they know of blobs, whatever their storage is. They make it if need be.
    let known = Path::new("/var/lib/containers");
    let known = known.is_dir().then(|| (folder.join("known"), known));
    if let Some((ours, _)) = &known {
        fs::create_dir(ours)?;
    }
    Ok(move || {
        let command = host.program(program).bind(&etc, "/etc/containers").dir(&folder);
        let command = known.iter().fold(command, |command, (ours, theirs)| command.bind(ours, *theirs));
        let command = command.arg("--root").arg(folder.join("root")).arg("--runroot").arg(folder.join("run"));
        let command = command.args(["--storage-driver", "overlay"]).env("HOME", &folder).env("TMPDIR", &folder);
        command.env("REGISTRY_AUTH_FILE", folder.join("auth.json"))
    })
}

fn podman(run: &Run) -> CaseResult {
    let scene = Scene::open(run)?;
    let images = [one_platform(run)?, two_platforms(run)?];
    let pushed = |number: usize| scene.repository(&format!("team/app:v{number}"));
    let storage = with_storage(&scene, run, "podman")?;
    let temporary = run.data_dir("tmp")?;
    let podman = || {
        let podman = storage().arg("--tmpdir").arg(&temporary);
        podman.args(["--events-backend", "none", "--cgroup-manager", "cgroupfs"])
    };
    for (number, image) in images.iter().enumerate() {
        // A layout's folder would become a name, which may have no capital letters.
        let source = format!("oci-archive:{}", archive(run, image)?.display());
        let id = printed(&podman().args(["pull", "--quiet", &source]).run(CLIENT)?);
        let to = format!("docker://{}", pushed(number));
        podman().args(["push", "--tls-verify=false", &id, &to]).run(CLIENT)?;
    }
    podman().args(["manifest", "create", "list"]).run(CLIENT)?;
    for (number, architecture) in [(0, "amd64"), (1, "riscv64")] {
        let add = podman().args(["manifest", "add", "--tls-verify=false", "--os", "linux", "--arch", architecture]);
        add.args(["list", &format!("docker://{}", pushed(number))]).run(CLIENT)?;
    }
    let mark = scene.asked()?.len();
    let list = scene.repository("team/list:v1");
    let push = podman().args(["manifest", "push", "--tls-verify=false", "--all", "list"]);
    push.arg(format!("docker://{list}")).run(CLIENT)?;
    // podman knows where the blobs came from, and does not fetch them to send them back.
    let asked = scene.asked_since(mark)?;
    let layers: usize = images.iter().map(|image| image.platform().layers.len()).sum();
    ensure!(mounts(&asked, "team/list") >= layers, "not all {layers} layers were mounted: {asked:?}");

    let known = PodmanMirror { registry: scene.registry.name(), registry_plain: true, mirrors: Vec::new() };
    let fresh = Podman::new(&scene.host, run, &[known])?;
    for (number, image) in images.iter().enumerate() {
        fresh.pull(&pushed(number), None, CLIENT)?.verify(image)?;
    }
    ensure!(platforms(&scene, "team/list")? == ["amd64", "riscv64"], "the list has other platforms");
    scene.tools.pull(run, &list)?;
    scene.check()?;
    Ok(Outcome::Passed)
}

fn buildah(run: &Run) -> CaseResult {
    let scene = Scene::open(run)?;
    let context = run.data_dir("context")?;
    fs::rename(scene.tools.random_file("content", 3_000_000)?, context.join("content"))?;
    fs::write(context.join("Containerfile"), "FROM scratch\nCOPY content /content\n")?;
    let buildah = with_storage(&scene, run, "buildah")?;
    let build = buildah().args(["bud", "--isolation", "chroot", "--platform", "linux/amd64,linux/arm64"]);
    build.args(["--manifest", "built"]).arg(&context).run(CLIENT)?;
    let reference = scene.repository("team/built:v1");
    let push = buildah().args(["manifest", "push", "--tls-verify=false", "--all", "built"]);
    push.arg(format!("docker://{reference}")).run(CLIENT)?;
    ensure!(platforms(&scene, "team/built")? == ["amd64", "arm64"], "the list has other platforms");

    let fresh = with_storage(&scene, run, "buildah")?;
    let pull = fresh().args(["pull", "--quiet", "--tls-verify=false"]).arg(format!("docker://{reference}"));
    let id = printed(&pull.run(CLIENT)?);
    // An image's id is the digest of its configuration, which names the layers as they are unpacked.
    let config = scene.tools.crane()?.args(["config", "--platform", &format!("linux/{}", architecture()), &reference]);
    let config = Digest::of(Algorithm::Sha256, &config.run(CLIENT)?.stdout);
    ensure!(id == config.hex(), "buildah pulled {id}, not {config}");
    scene.tools.crane()?.args(["validate", "--remote", &reference]).run(CLIENT)?;
    scene.check()?;
    Ok(Outcome::Passed)
}

/// The architectures of the index tagged `v1`, sorted.
fn platforms(scene: &Scene, repository: &str) -> anyhow::Result<Vec<String>> {
    let index = scene.curl().get(&scene.registry.url(&format!("/v2/{repository}/manifests/v1")))?.json()?;
    let entries = index["manifests"].as_array().with_context(|| format!("{index} is no index"))?;
    let name = |entry: &serde_json::Value| entry["platform"]["architecture"].as_str().unwrap_or_default().to_owned();
    let mut names: Vec<_> = entries.iter().map(name).collect();
    names.sort_unstable();
    Ok(names)
}

/// This machine's, as images call it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    }
}
