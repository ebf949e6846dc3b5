//! What pulls images in the demo: the container runtimes, or skopeo where there is no root.

use anyhow::Result;
use harness::{
    Cluster, Containerd, Daemon, Docker, DockerOptions, Host, HostsToml, Podman, PodmanMirror, ProcBuilder, Pulled,
    Registry, Run, Skopeo,
};

/// Clients, and so hosts.
pub(super) const COUNT: usize = 4;

/// A client on a host, pointed at the host's dfdaemon.
#[derive(Debug)]
pub(super) struct Client {
    name: String,
    host: Host,
    /// As this client names the image.
    reference: String,
    runtime: Runtime,
}

#[derive(Debug)]
enum Runtime {
    Docker(Docker),
    Containerd(Containerd, HostsToml),
    Podman(Podman),
    Skopeo(Skopeo),
}

/// Starts one on each daemon's host.
///
/// # Errors
/// When one does not start.
pub(super) fn start(
    run: &Run,
    registry: &Registry,
    cluster: &Cluster,
    repository: &str,
    tag: &str,
) -> Result<Vec<Client>> {
    let image = format!("{repository}:{tag}");
    let named = format!("{}/{image}", registry.name());
    let clients = cluster.daemons.iter().enumerate().map(|(place, daemon)| {
        let (kind, reference, runtime) = if harness::is_root() {
            match place {
                0 => ("docker, mirror", format!("docker.io/{image}"), docker_by_mirror(run, registry, daemon)?),
                1 => ("docker, proxy", named.clone(), docker_by_proxy(run, registry, daemon)?),
                2 => ("containerd", named.clone(), containerd(run, registry, daemon)?),
                _ => ("podman", named.clone(), podman(run, registry, daemon)?),
            }
        } else {
            let mirror = daemon.mirror_of(registry.name());
            ("skopeo", format!("{mirror}/{image}"), Runtime::Skopeo(Skopeo::new(daemon.host(), run, true)?))
        };
        let host = daemon.host().clone();
        Ok(Client { name: format!("{} ({kind})", host.name()), host, reference, runtime })
    });
    clients.collect()
}

/// docker's mirrors are for docker.io, which it takes the dfdaemon for.
fn docker_by_mirror(run: &Run, registry: &Registry, daemon: &Daemon) -> Result<Runtime> {
    let mirrors = vec![format!("http://{}", daemon.mirror_of(registry.name()))];
    Ok(Runtime::Docker(Docker::start(daemon.host(), run, &DockerOptions { mirrors, ..DockerOptions::default() })?))
}

fn docker_by_proxy(run: &Run, registry: &Registry, daemon: &Daemon) -> Result<Runtime> {
    let insecure = vec![registry.name().to_owned()];
    let proxy = Some(format!("http://{}", daemon.addr()));
    Ok(Runtime::Docker(Docker::start(
        daemon.host(),
        run,
        &DockerOptions { insecure, proxy, ..DockerOptions::default() },
    )?))
}

fn containerd(run: &Run, registry: &Registry, daemon: &Daemon) -> Result<Runtime> {
    let mirror = format!("http://{}", daemon.addr());
    let hosts = HostsToml::new(run)?.registry(registry.name(), &registry.url(""), &[&mirror], None)?;
    Ok(Runtime::Containerd(Containerd::start(daemon.host(), run)?, hosts))
}

fn podman(run: &Run, registry: &Registry, daemon: &Daemon) -> Result<Runtime> {
    let mirrors = vec![(daemon.mirror_of(registry.name()).to_string(), true)];
    let known = PodmanMirror { registry: registry.name().to_owned(), registry_plain: true, mirrors };
    Ok(Runtime::Podman(Podman::new(daemon.host(), run, &[known])?))
}

// === impl Client ===

impl Client {
    /// Its host and what it is.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Where it runs.
    pub(super) const fn host(&self) -> &Host {
        &self.host
    }

    /// A pull to be started.
    pub(super) fn pulling(&self) -> ProcBuilder {
        match &self.runtime {
            Runtime::Docker(docker) => docker.pulling(&self.reference),
            Runtime::Containerd(containerd, hosts) => containerd.pulling(&self.reference, hosts, None),
            Runtime::Podman(podman) => podman.pulling(&self.reference, None),
            Runtime::Skopeo(skopeo) => skopeo.pulling(&self.reference),
        }
    }

    /// What the runtime says it has.
    ///
    /// # Errors
    /// When it has no such image, or its bytes are not what their digests say.
    pub(super) fn read_back(&self) -> Result<Pulled> {
        match &self.runtime {
            Runtime::Docker(docker) => docker.read_back(&self.reference),
            Runtime::Containerd(containerd, _) => containerd.read_back(&self.reference),
            Runtime::Podman(podman) => podman.read_back(&self.reference),
            Runtime::Skopeo(skopeo) => skopeo.read_back(),
        }
    }
}
