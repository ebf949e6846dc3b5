//! Real clients pull through the daemon as their HTTP proxy.

use crate::{
    clients_common::{Auth, Client, Plot, Way, short_tokens, two_hosts},
    runner::{Case, rooted},
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        rooted("proxy: two dockers pull at once, the registry is read once", |run| {
            two_hosts(run, Client::Docker, proxy(), true)
        }),
        rooted("proxy: two dockers pull one after the other, registry with a password", |run| {
            two_hosts(run, Client::Docker, proxy().auth(Auth::Password), false)
        }),
        rooted("proxy: two containerds pull at once, the registry is read once", |run| {
            two_hosts(run, Client::Containerd, proxy(), true)
        }),
        rooted("proxy: two containerds pull one after the other, registry with a password", |run| {
            two_hosts(run, Client::Containerd, proxy().auth(Auth::Password), false)
        }),
        rooted("proxy: two podmans pull at once, the registry is read once", |run| {
            two_hosts(run, Client::Podman, proxy(), true)
        }),
        rooted("proxy: two podmans pull one after the other, registry with a password", |run| {
            two_hosts(run, Client::Podman, proxy().auth(Auth::Password), false)
        }),
        rooted("proxy: two skopeos pull at once, the registry is read once", |run| {
            two_hosts(run, Client::Skopeo, proxy(), true)
        }),
        rooted("proxy: two skopeos pull one after the other, registry with a password", |run| {
            two_hosts(run, Client::Skopeo, proxy().auth(Auth::Password), false)
        }),
        rooted("proxy: docker, containerd, podman and skopeo pull for a minute with tokens of 20 s", |run| {
            short_tokens(run, Way::Proxy)
        }),
    ]
}

fn proxy() -> Plot {
    Plot::new(Way::Proxy)
}
