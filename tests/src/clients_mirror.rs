//! Real clients pull through the daemon as the registry's mirror.

use crate::{
    clients_common::{Auth, Client, Plot, Way, short_tokens, two_hosts},
    runner::{Case, rooted},
};

fn mirror() -> Plot {
    Plot::new(Way::Mirror)
}

pub(crate) fn cases() -> Vec<Case> {
    vec![
        rooted("mirror: two dockers pull at once, the registry is read once", |run| {
            two_hosts(run, Client::Docker, mirror(), true)
        }),
        rooted("mirror: two dockers pull one after the other, registry with a password", |run| {
            two_hosts(run, Client::Docker, mirror().auth(Auth::Password), false)
        }),
        rooted("mirror: two dockers pull at once, https registry with a private authority and a password", |run| {
            two_hosts(run, Client::Docker, mirror().auth(Auth::Password).https(), true)
        }),
        rooted("mirror: two containerds pull at once, the registry is read once", |run| {
            two_hosts(run, Client::Containerd, mirror(), true)
        }),
        rooted("mirror: two containerds pull one after the other, registry with a password", |run| {
            two_hosts(run, Client::Containerd, mirror().auth(Auth::Password), false)
        }),
        rooted("mirror: two containerds pull at once, https registry with a private authority and a password", |run| {
            two_hosts(run, Client::Containerd, mirror().auth(Auth::Password).https(), true)
        }),
        rooted("mirror: two podmans pull at once, the registry is read once", |run| {
            two_hosts(run, Client::Podman, mirror(), true)
        }),
        rooted("mirror: two podmans pull one after the other, registry with a password", |run| {
            two_hosts(run, Client::Podman, mirror().auth(Auth::Password), false)
        }),
        rooted("mirror: two podmans pull at once, https registry with a private authority and a password", |run| {
            two_hosts(run, Client::Podman, mirror().auth(Auth::Password).https(), true)
        }),
        rooted("mirror: two skopeos pull at once, the registry is read once", |run| {
            two_hosts(run, Client::Skopeo, mirror(), true)
        }),
        rooted("mirror: two skopeos pull one after the other, registry with a password", |run| {
            two_hosts(run, Client::Skopeo, mirror().auth(Auth::Password), false)
        }),
        rooted("mirror: two skopeos pull at once, https registry with a private authority and a password", |run| {
            two_hosts(run, Client::Skopeo, mirror().auth(Auth::Password).https(), true)
        }),
        rooted("mirror: docker, containerd, podman and skopeo pull for a minute with tokens of 20 s", |run| {
            short_tokens(run, Way::Mirror)
        }),
    ]
}
