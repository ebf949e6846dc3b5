//! Behind nginx that speaks TLS: clients follow every `Location` to where they came from.

use anyhow::{Context, ensure};
use harness::{Authority, Curl, DockerOptions, LoadBalancer, Run};

use super::{
    runtimes::Loaded,
    scene::{OPEN, Tools, check_calm, on_files, one_host, one_platform, trusted_proxy},
};
use crate::runner::{Case, CaseResult, Outcome, rooted};

/// What a `Location` is.
#[derive(Debug, Clone, Copy)]
enum Locations {
    /// A path.
    Relative,
    /// What the proxy, which is trusted, says that it was called.
    Forwarded,
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        rooted("registry: docker and skopeo push and pull through nginx with TLS, locations are paths", |run| {
            behind_tls(run, Locations::Relative)
        }),
        rooted(
            "registry: docker and skopeo push and pull through nginx with TLS, locations are what a trusted proxy forwards",
            |run| behind_tls(run, Locations::Forwarded),
        ),
    ]
}

fn behind_tls(run: &Run, locations: Locations) -> CaseResult {
    let net = one_host()?;
    let host = net.host("here");
    let trusted = match locations {
        Locations::Relative => String::new(),
        Locations::Forwarded => trusted_proxy(&host),
    };
    let registry = on_files(&host, run, &format!("{trusted}{OPEN}"))?;
    let authority = Authority::new(&run.data_dir("ca")?)?;
    let certificate = authority.issue("nginx", &["registry.test"], &[host.ip()])?;
    let nginx = LoadBalancer::start(&host, run, &[registry.addr()], Some(&certificate))?;

    let begin = Curl::new(&host).ca(authority.path()).args(["-X", "POST"]).header("Content-Length", "0");
    let begin = begin.get(&nginx.url("/v2/team/app/blobs/uploads/"))?;
    let location = begin.header("location").context("an upload without a location")?;
    let start = match locations {
        Locations::Relative => "/v2/team/app/blobs/uploads/".to_owned(),
        Locations::Forwarded => nginx.url("/v2/team/app/blobs/uploads/"),
    };
    ensure!(begin.status == 202 && location.starts_with(&start), "{}, Location: {location}", begin.status);

    let image = one_platform(run)?;
    let tools = Tools::new(&host, run)?.trusting(authority.path());
    let options = DockerOptions { ca: Some(authority.path().to_owned()), ..DockerOptions::default() };
    let loaded = Loaded::new(&tools, run, &options, &image)?;
    let [first, second] = ["team/app:v1", "other/copy:v1"].map(|reference| format!("{}/{reference}", nginx.name()));
    loaded.push(&first)?;
    loaded.push(&second)?;
    loaded.forget(&[&first, &second])?;
    loaded.pulls_back(&second, &image)?;

    let reference = format!("{}/skopeo/app:v1", nginx.name());
    tools.push(&image, &reference)?;
    tools.pulls_whole(run, &reference, &image)?;
    check_calm(&registry)?;
    Ok(Outcome::Passed)
}
