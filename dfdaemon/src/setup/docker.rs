//! docker: `registry-mirrors` in `daemon.json`, for docker.io only; and, if wanted, its HTTPS through the proxy.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::journal::FileKind;
use super::{Options, Plan, SetupError, read, read_text};

const DAEMON_JSON: &str = "/etc/docker/daemon.json";
const DROP_IN: &str = "/etc/systemd/system/docker.service.d/50-skimmer-proxy.conf";
const MIRRORS: &str = "registry-mirrors";
const INSECURE: &str = "insecure-registries";

pub(super) fn plan(options: &Options, plan: &mut Plan) -> Result<(), SetupError> {
    let mut hub = options.registries.is_empty().then_some(options.proxy_addr);
    for registry in &options.registries {
        if registry.host == "docker.io" {
            hub = Some(registry.via.unwrap_or(options.proxy_addr));
        } else if options.docker_proxy_ca.is_none() {
            return Err(SetupError::Unsupported(format!(
                "docker mirrors docker.io alone; {} needs --docker-proxy-ca FILE, and to be in proxy.intercept.hosts",
                registry.host
            )));
        }
    }
    // The CA lies outside of a test's root like any file the operator names.
    let certificate = options
        .docker_proxy_ca
        .as_ref()
        .map(|ca| std::fs::read(ca).map_err(|source| SetupError::File { what: "read", path: ca.clone(), source }));
    let certificate = certificate.transpose()?;
    if let Some(address) = hub {
        let path = PathBuf::from(DAEMON_JSON);
        let before = read_text(&options.root, &path)?;
        let after = with_mirror(before.as_deref().unwrap_or_default(), address)
            .map_err(|why| SetupError::Content { path: path.clone(), why })?;
        plan.edit(path, FileKind::DaemonJson, before.map(String::into_bytes), Some(after.into_bytes()));
        plan.notes.push("docker reads this at its next `systemctl reload docker`; running containers go on".into());
    }
    if let Some(certificate) = certificate {
        let address = options.proxy_addr;
        let drop_in = format!(
            "# Written by `dfdaemon setup docker`; `--undo` removes it.\n[Service]\n\
             Environment=\"HTTPS_PROXY=http://{address}\" \"NO_PROXY=localhost,127.0.0.0/8,::1\"\n"
        );
        let path = PathBuf::from(DROP_IN);
        let before = read(&options.root, &path)?;
        plan.edit(path, FileKind::Own, before, Some(drop_in.into_bytes()));
        for registry in &options.registries {
            let host = if registry.host == "docker.io" { "registry-1.docker.io" } else { &registry.host };
            let path = Path::new("/etc/docker/certs.d").join(host).join("skimmer-ca.crt");
            let before = read(&options.root, &path)?;
            plan.edit(path, FileKind::Own, before, Some(certificate.clone()));
        }
        plan.notes.push(
            "the proxy takes effect after `systemctl daemon-reload && systemctl restart docker`; \
             with it docker pulls nothing while dfdaemon is stopped, unlike with the mirror alone"
                .into(),
        );
    }
    Ok(())
}

/// Our mirror first, everything else as it was.
fn with_mirror(text: &str, address: std::net::SocketAddr) -> Result<String, String> {
    let mut config = parse(text)?;
    let url = format!("http://{address}");
    let mirrors = array(&mut config, MIRRORS)?;
    if !mirrors.iter().any(|mirror| is_mirror(mirror, &url)) {
        mirrors.insert(0, Value::String(url));
    }
    // docker takes plain HTTP from loopback without being told.
    if !address.ip().is_loopback() {
        let insecure = array(&mut config, INSECURE)?;
        let host = Value::String(address.to_string());
        if !insecure.contains(&host) {
            insecure.push(host);
        }
    }
    render(&config, text)
}

/// The text without what is in it and was not in the original, as far as it is a mirror or an insecure registry.
pub(super) fn without_ours(text: &str, original: &[u8]) -> Result<String, String> {
    let mut config = parse(text)?;
    let original = parse(std::str::from_utf8(original).unwrap_or_default())?;
    // Mirrors at a plain http address are ours unless they were there before.
    for name in [MIRRORS, INSECURE] {
        let old: Vec<Value> = original.get(name).and_then(Value::as_array).cloned().unwrap_or_default();
        let Some(Value::Array(list)) = config.get_mut(name) else { continue };
        list.retain(|value| old.contains(value) || !is_address(value));
        if list.is_empty() && !original.contains_key(name) {
            config.shift_remove(name);
        }
    }
    render(&config, text)
}

fn is_mirror(value: &Value, url: &str) -> bool {
    value.as_str().is_some_and(|mirror| mirror.trim_end_matches('/') == url)
}

/// `http://IP:PORT` or `IP:PORT`, the only forms we write.
fn is_address(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|text| text.strip_prefix("http://").unwrap_or(text).parse::<std::net::SocketAddr>().is_ok())
}

fn parse(text: &str) -> Result<Map<String, Value>, String> {
    // docker takes an empty file for an empty object.
    if text.trim().is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_str(text) {
        Ok(Value::Object(config)) => Ok(config),
        Ok(_) => Err("it is not a json object".into()),
        Err(error) => Err(error.to_string()),
    }
}

fn array<'a>(config: &'a mut Map<String, Value>, name: &str) -> Result<&'a mut Vec<Value>, String> {
    config
        .entry(name)
        .or_insert_with(|| Value::Array(Vec::new()))
        .as_array_mut()
        .ok_or_else(|| format!("{name} is not an array"))
}

/// With the indentation that is there, so that the diff is ours alone.
fn render(config: &Map<String, Value>, like: &str) -> Result<String, String> {
    let indent: String = like
        .lines()
        .find(|line| line.starts_with([' ', '\t']) && !line.trim().is_empty())
        .map_or_else(|| "  ".into(), |line| line.chars().take_while(|c| c.is_whitespace()).collect());
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    serde::Serialize::serialize(config, &mut serializer).map_err(|error| error.to_string())?;
    out.push(b'\n');
    String::from_utf8(out).map_err(|error| error.to_string())
}
