//! Every client pulls straight from every kind of registry: what the suites with Skimmer in between are held against.

use std::time::Duration;

use anyhow::ensure;
use harness::{
    Authority, Compression, Containerd, Content, Docker, DockerOptions, HostsToml, Image, LinkSpec, Net, Podman,
    PodmanMirror, Registry, RegistryAuth, Run, Skopeo, TokenServer, blob_bytes,
};

use crate::runner::{Case, CaseResult, Outcome, anywhere, rooted};

const PULL: Duration = Duration::from_secs(120);

pub(crate) fn cases() -> Vec<Case> {
    vec![
        rooted("direct: docker pulls from another host's registry", docker),
        rooted("direct: docker pulls from another host's docker-registry", docker_registry),
        rooted("direct: containerd pulls from another host's registry, gzip and zstd layers", containerd),
        rooted("direct: podman pulls from another host's registry, gzip and zstd layers", podman),
        anywhere("direct: skopeo pulls an index for two platforms, with a password, over https", skopeo),
        rooted("direct: clients get tokens, and expired tokens are refused", tokens),
        anywhere("direct: a registry keeps a blob of 0 bytes", empty_blob),
    ]
}

fn net() -> anyhow::Result<Net> {
    Net::new(&[("origin", LinkSpec::default()), ("host", LinkSpec::both(800_000_000))])
}

fn gzip_image(run: &Run) -> anyhow::Result<Image> {
    let builder = Image::builder().layer(4_000_000, Compression::Gzip, Content::Mixed);
    builder
        .layer(2_000_000, Compression::Gzip, Content::Real)
        .layer(50_000, Compression::None, Content::Random)
        .build(run)
}

fn zstd_image(run: &Run) -> anyhow::Result<Image> {
    let builder = Image::builder().layer(4_000_000, Compression::Gzip, Content::Mixed);
    builder.layer(2_000_000, Compression::Zstd, Content::Mixed).two_platforms().build(run)
}

fn docker(run: &Run) -> CaseResult {
    let net = net()?;
    let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Open, None)?;
    docker_from(run, &net, &registry)
}

fn docker_registry(run: &Run) -> CaseResult {
    let net = net()?;
    let registry = Registry::start_docker_registry(&net.host("origin"), run, &RegistryAuth::Open, None)?;
    docker_from(run, &net, &registry)
}

fn docker_from(run: &Run, net: &Net, registry: &Registry) -> CaseResult {
    let image = gzip_image(run)?;
    let reference = image.push(registry, "team/app", "v1")?;
    let options = DockerOptions { insecure: vec![registry.name().to_owned()], ..DockerOptions::default() };
    let docker = Docker::start(&net.host("host"), run, &options)?;
    let before = net.host("host").counters()?;
    let pushed = blob_bytes(&registry.access_log()?);
    docker.pull(&reference, PULL)?.verify(&image)?;
    let received = net.host("host").counters()?.since(before).received_bytes;
    let logged = blob_bytes(&registry.access_log()?) - pushed;
    let expected = image.pulled_bytes()?;
    ensure!(logged == expected, "the registry says it sent {logged} bytes of blobs, the image has {expected}");
    ensure!(
        (expected..expected * 12 / 10).contains(&received),
        "{received} bytes were counted, the image has {expected}"
    );
    docker.remove(&reference)?;
    ensure!(docker.read_back(&reference).is_err(), "docker still knows a removed image");
    docker.pull(&reference, PULL)?.verify(&image)?;
    Ok(Outcome::Passed)
}

fn containerd(run: &Run) -> CaseResult {
    let net = net()?;
    let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Open, None)?;
    let image = zstd_image(run)?;
    let reference = image.push(&registry, "team/app", "v1")?;
    let containerd = Containerd::start(&net.host("host"), run)?;
    let hosts = HostsToml::new(run)?.registry(registry.name(), &registry.url(""), &[], None)?;
    containerd.pull(&reference, &hosts, None, PULL)?.verify(&image)?;
    containerd.remove(&reference)?;
    ensure!(containerd.read_back(&reference).is_err(), "containerd still knows a removed image");
    Ok(Outcome::Passed)
}

fn podman(run: &Run) -> CaseResult {
    let net = net()?;
    let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Open, None)?;
    let image = zstd_image(run)?;
    let reference = image.push(&registry, "team/app", "v1")?;
    let known = PodmanMirror { registry: registry.name().to_owned(), registry_plain: true, mirrors: Vec::new() };
    let podman = Podman::new(&net.host("host"), run, &[known])?;
    podman.pull(&reference, None, PULL)?.verify(&image)?;
    podman.remove(&reference)?;
    ensure!(podman.read_back(&reference).is_err(), "podman still knows a removed image");
    Ok(Outcome::Passed)
}

fn skopeo(run: &Run) -> CaseResult {
    let net = Net::new_or_loopback(&[("origin", LinkSpec::default()), ("host", LinkSpec::default())])?;
    let origin = net.host("origin");
    let authority = Authority::new(&run.data_dir("ca")?)?;
    let tls = authority.issue("registry", &["registry.test"], &[origin.ip()])?;
    let password = RegistryAuth::Password { user: "ann", password: "secret" };
    let registry = Registry::start(&origin, run, &password, Some((&tls, &authority)))?;
    let image = zstd_image(run)?;
    let reference = image.push(&registry, "team/app", "v1")?;
    let host = net.host("host");
    let skopeo = |args: &[&str]| {
        anyhow::Ok(
            Skopeo::new(&host, run, false)?
                .args(args.iter().copied())
                .env("SSL_CERT_FILE", &authority.path().display().to_string()),
        )
    };
    ensure!(!skopeo(&[])?.try_pull(&reference, PULL)?.status.success(), "the registry asks for no password");
    skopeo(&["--src-creds", "ann:secret"])?.pull(&reference, PULL)?.verify(&image)?;
    ensure!(image.index.is_some() && image.platforms.len() == 2, "not two platforms");
    Ok(Outcome::Passed)
}

fn tokens(run: &Run) -> CaseResult {
    let net = net()?;
    let tokens = TokenServer::start(&net.host("origin"), run, "ann", "secret", Duration::from_secs(20))?;
    let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Token(&tokens), None)?;
    let image = gzip_image(run)?;
    let reference = image.push(&registry, "team/app", "v1")?;
    let options = DockerOptions { insecure: vec![registry.name().to_owned()], ..DockerOptions::default() };
    let docker = Docker::start(&net.host("host"), run, &options)?;
    ensure!(!docker.try_pull(&reference, PULL)?.status.success(), "the registry asks for no token");
    docker.login(registry.name(), "ann", "secret")?;
    docker.pull(&reference, PULL)?.verify(&image)?;
    ensure!(tokens.issued().iter().any(|scope| scope.contains("team/app:pull")), "no token was given for the pull");

    // A token lasts as long as it should, not as long as the registry's leeway would have it.
    tokens.set_lifetime(Duration::from_secs(2));
    let host = net.host("host");
    let ask = harness::Curl::new(&host).header("Authorization", &harness::basic_auth("ann", "secret"));
    let answer = ask.get(&format!("{}?service=origin&scope=repository:team/app:pull", tokens.realm()))?.json()?;
    let bearer = format!("Bearer {}", answer["token"].as_str().unwrap_or_default());
    let url = registry.url("/v2/team/app/manifests/v1");
    let accept = "application/vnd.oci.image.manifest.v1+json";
    let status = || {
        anyhow::Ok(
            harness::Curl::new(&host).header("Authorization", &bearer).header("Accept", accept).get(&url)?.status,
        )
    };
    ensure!(status()? == 200, "a fresh token is refused: {}", status()?);
    std::thread::sleep(Duration::from_secs(4));
    ensure!(status()? == 401, "an expired token is taken: {}", status()?);
    Ok(Outcome::Passed)
}

fn empty_blob(run: &Run) -> CaseResult {
    let net = Net::loopback(&["origin"]);
    let registry = Registry::start(&net.host("origin"), run, &RegistryAuth::Open, None)?;
    let digest = registry.push_blob("team/app", b"")?;
    let reply = registry.curl().get(&registry.url(&format!("/v2/team/app/blobs/{digest}")))?;
    ensure!(reply.status == 200 && reply.body.is_empty() && reply.header("content-length") == Some("0"), "{reply:?}");
    Ok(Outcome::Passed)
}
