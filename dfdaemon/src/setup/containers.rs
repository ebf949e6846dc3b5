//! podman and CRI-O: a drop-in in `registries.conf.d`.
//!
//! They name no registry in their requests to a mirror, so each registry needs a mirror address of its own; the
//! daemon's main address stands for docker.io. Mirrors are tried first, the registry itself last.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use super::journal::FileKind;
use super::{Options, Plan, Runtime, SetupError, read, read_folder, read_text};

const CONF: &str = "/etc/containers/registries.conf";
const CONF_D: &str = "/etc/containers/registries.conf.d";
/// Later files win, so ours is late.
const DROP_IN: &str = "zz-skimmer.conf";

pub(super) fn plan(options: &Options, plan: &mut Plan) -> Result<(), SetupError> {
    let mut wanted: Vec<(String, SocketAddr)> = Vec::new();
    for registry in &options.registries {
        let address = match registry.via {
            Some(address) => address,
            None if registry.host == "docker.io" => options.proxy_addr,
            None => {
                return Err(SetupError::Unsupported(format!(
                    "podman and CRI-O do not tell a mirror which registry they want: give {0} an address of its own \
                     (listen under [[mirror.upstreams]] in dfdaemon.toml) and write --registry {0}=ADDRESS",
                    registry.host
                )));
            }
        };
        wanted.push((registry.host.clone(), address));
    }
    if wanted.is_empty() {
        wanted.push(("docker.io".into(), options.proxy_addr));
    }

    let own = Path::new(CONF_D).join(DROP_IN);
    let mut sources: Vec<(PathBuf, String)> = Vec::new();
    if let Some(text) = read_text(&options.root, Path::new(CONF))? {
        sources.push((CONF.into(), text));
    }
    sources.extend(read_folder(&options.root, Path::new(CONF_D), "conf")?);
    let mut registries = Vec::new();
    let mut previous: Vec<Value> = Vec::new();
    for (path, text) in &sources {
        let table: Table = text
            .parse()
            .map_err(|e: toml::de::Error| SetupError::Content { path: path.clone(), why: e.message().into() })?;
        if table.contains_key("registries") {
            let why = "it is in the old format (version 1), which cannot be combined with a drop-in".into();
            return Err(SetupError::Content { path: path.clone(), why });
        }
        let entries = table.get("registry").and_then(Value::as_array).cloned().unwrap_or_default();
        if *path == own {
            previous = entries;
            continue;
        }
        for (host, _) in &wanted {
            if *path > own && entries.iter().any(|entry| prefix_of(entry) == Some(host)) {
                plan.notes.push(format!("{} also sets {host} and wins over our drop-in", path.display()));
            }
        }
        registries.extend(entries);
    }

    // Registries of an earlier call stay, those of this call replace them.
    let mut entries: Vec<Value> =
        previous.into_iter().filter(|entry| !wanted.iter().any(|(host, _)| prefix_of(entry) == Some(host))).collect();
    for (host, address) in &wanted {
        // A drop-in replaces an earlier entry for the same prefix altogether: what that says is carried over.
        let base = registries.iter().rev().find(|entry| prefix_of(entry) == Some(host)).cloned();
        entries.push(with_mirror(base, host, *address));
    }
    let mut table = Table::new();
    table.insert("registry".into(), Value::Array(entries));
    let body = toml::to_string(&table).map_err(|e| SetupError::Content { path: own.clone(), why: e.to_string() })?;
    let runtime = if options.runtime == Runtime::Crio { "crio" } else { "podman" };
    let text = format!("# Written by `dfdaemon setup {runtime}`; `--undo` removes it.\n{body}");
    let before = read(&options.root, &own)?;
    // A header that differs only in the runtime's name is no change.
    let unchanged = before.as_ref().is_some_and(|old| {
        let old = String::from_utf8_lossy(old);
        old.split_once('\n').is_some_and(|(_, rest)| rest == body)
    });
    let after = if unchanged { before.clone() } else { Some(text.into_bytes()) };
    plan.edit(own, FileKind::Own, before, after);
    if options.runtime == Runtime::Crio {
        plan.notes.push("CRI-O reads this at its next `systemctl reload crio`".into());
    }
    Ok(())
}

/// What an entry is for: its prefix, or without one its location.
fn prefix_of(entry: &Value) -> Option<&str> {
    entry.get("prefix").or_else(|| entry.get("location"))?.as_str()
}

fn with_mirror(base: Option<Value>, host: &str, address: SocketAddr) -> Value {
    let mut entry = match base {
        Some(Value::Table(table)) => table,
        _ => Table::new(),
    };
    entry.entry("prefix").or_insert_with(|| Value::String(host.to_owned()));
    entry.entry("location").or_insert_with(|| Value::String(host.to_owned()));
    let mut mirror = Table::new();
    mirror.insert("location".into(), Value::String(address.to_string()));
    mirror.insert("insecure".into(), Value::Boolean(true));
    let others = match entry.remove("mirror") {
        Some(Value::Array(mirrors)) => mirrors,
        _ => Vec::new(),
    };
    let mut mirrors = vec![Value::Table(mirror)];
    mirrors.extend(others);
    entry.insert("mirror".into(), Value::Array(mirrors));
    Value::Table(entry)
}
