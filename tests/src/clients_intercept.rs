//! Real clients pull over HTTPS that the daemon reads with certificates of its own authority.

use crate::{
    clients_common::{Auth, Client, Plot, Way, short_tokens, two_hosts},
    runner::{Case, rooted},
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        rooted("intercept: two dockers pull at once, the registry is read once", |run| {
            two_hosts(run, Client::Docker, intercept(), true)
        }),
        rooted("intercept: two dockers pull one after the other, registry with a password", |run| {
            two_hosts(run, Client::Docker, intercept().auth(Auth::Password), false)
        }),
        rooted("intercept: two containerds pull at once, the registry is read once", |run| {
            two_hosts(run, Client::Containerd, intercept(), true)
        }),
        rooted("intercept: two containerds pull one after the other, registry with a password", |run| {
            two_hosts(run, Client::Containerd, intercept().auth(Auth::Password), false)
        }),
        rooted("intercept: two podmans pull at once, the registry is read once", |run| {
            two_hosts(run, Client::Podman, intercept(), true)
        }),
        rooted("intercept: two podmans pull one after the other, registry with a password", |run| {
            two_hosts(run, Client::Podman, intercept().auth(Auth::Password), false)
        }),
        rooted("intercept: two skopeos pull at once, the registry is read once", |run| {
            two_hosts(run, Client::Skopeo, intercept(), true)
        }),
        rooted("intercept: two skopeos pull one after the other, registry with a password", |run| {
            two_hosts(run, Client::Skopeo, intercept().auth(Auth::Password), false)
        }),
        rooted("intercept: docker, containerd, podman and skopeo pull for a minute with tokens of 20 s", |run| {
            short_tokens(run, Way::Intercept)
        }),
    ]
}

fn intercept() -> Plot {
    Plot::new(Way::Intercept)
}
