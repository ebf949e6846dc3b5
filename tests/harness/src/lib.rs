//! Starts real programs in network namespaces for the tests, the demo and the benches.
//!
//! Read first: [`Run`] (a folder for everything one run makes), [`Net`] and [`Host`] (machines made of network
//! namespaces, with shaped links), [`Proc`] (a program on a host). On these stand the origins ([`Registry`],
//! [`TokenServer`], [`FileServer`], [`RogueOrigin`]), the clients ([`Docker`], [`Containerd`], [`Podman`],
//! [`Skopeo`]), [`Image`] (what they pull) and [`Cluster`] (our own programs). [`SkimmerRegistry`] is our registry,
//! which needs [`MariaDb`], [`Postgres`] or neither, an [`S3Server`] or none, and may stand behind a [`LoadBalancer`].
//!
//! Invariants: nothing waits without a deadline; whatever was started ends when its handle is dropped, also when the
//! run dies (the kernel kills a program whose starter is gone, namespaces of dead runs are removed by the next);
//! system services and their folders are never touched.
//!
//! **Not here:** what is true of Skimmer. The crate knows how to start things and how to read back what they did.

mod clients;
mod cluster;
mod exec;
mod http;
mod image;
mod liar;
mod mounts;
mod net;
mod ports;
mod programs;
mod run;
mod servers;
mod tls;

pub use clients::{Containerd, Docker, DockerOptions, HostsToml, Podman, PodmanMirror, Pulled, Skopeo};
pub use cluster::{Cluster, ClusterBuilder, Daemon, DaemonSpec, bin_dir};
pub use exec::{Finished, Memory, Proc, ProcBuilder};
pub use http::{Curl, Reply, basic_auth};
pub use image::{Compression, Content, Image, ImageBuilder, LayerSpec, Platform};
pub use liar::{Lie, LyingPeer};
pub use mounts::SmallDisk;
pub use net::{Counters, Host, LinkSpec, Net};
pub use peer::transport::Kind as TransportKind;
pub use programs::{cache_dir, go_tool, python_tool};
pub use run::Run;
pub use rustix::process::Signal;
pub use servers::{
    AccessEntry, Behaviour, FileServer, FileServerOptions, LoadBalancer, MariaDb, Postgres, Registry, RegistryAuth,
    RogueOrigin, RogueRequest, S3Kind, S3Server, SkimmerRegistry, TokenServer, blob_bytes,
};
pub use tls::{Authority, Certificate};

/// Whether this process may make namespaces and start container runtimes.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
