//! containerd: `certs.d/<host>/hosts.toml`, which it reads anew for every pull.
//!
//! containerd names the registry in `?ns=`, so one address serves all. It tries the hosts of the file in turn and
//! the registry itself last: with the daemon gone it pulls directly.

use std::path::{Path, PathBuf};

use super::journal::FileKind;
use super::{Options, Plan, SetupError, below, read_text};

const CONFIG: &str = "/etc/containerd/config.toml";
const CERTS_D: &str = "/etc/containerd/certs.d";
const BEGIN: &str = "# >>> skimmer: `dfdaemon setup containerd --undo` takes this out";
const END: &str = "# <<< skimmer";

pub(super) fn plan(options: &Options, plan: &mut Plan) -> Result<(), SetupError> {
    let folder = match config_path(options)? {
        Some(folder) => folder,
        None => {
            plan.notes.push(format!(
                "the CRI plugin of containerd reads {CERTS_D} only with config_path = \"{CERTS_D}\" under \
                 [plugins.\"io.containerd.grpc.v1.cri\".registry] in {CONFIG}, which is not set (ctr: --hosts-dir)"
            ));
            PathBuf::from(CERTS_D)
        }
    };
    let hosts: Vec<(String, std::net::SocketAddr)> = if options.registries.is_empty() {
        for other in existing(&options.root, &folder) {
            plan.notes
                .push(format!("{other} has a folder of its own in {}: name it with --registry", folder.display()));
        }
        vec![("_default".into(), options.proxy_addr)]
    } else {
        options.registries.iter().map(|r| (r.host.clone(), r.via.unwrap_or(options.proxy_addr))).collect()
    };
    for (host, address) in hosts {
        // containerd looks for this spelling first.
        let spelled = host.rsplit_once(':').map(|(name, port)| format!("{name}_{port}_"));
        let name = spelled.filter(|name| below(&options.root, &folder.join(name)).is_dir()).unwrap_or(host);
        let path = folder.join(name).join("hosts.toml");
        let before = read_text(&options.root, &path)?;
        let base = match &before {
            Some(text) => without_block(text),
            None => certificates(&options.root, path.parent().unwrap_or(&folder)),
        };
        let after = with_block(&base, &format!("http://{address}"));
        if let Err(error) = after.parse::<toml::Table>() {
            return Err(SetupError::Content { path, why: error.message().to_owned() });
        }
        plan.edit(path, FileKind::HostsToml, before.map(String::into_bytes), Some(after.into_bytes()));
    }
    Ok(())
}

/// The folder that containerd's own configuration names, if any.
fn config_path(options: &Options) -> Result<Option<PathBuf>, SetupError> {
    let path = Path::new(CONFIG);
    let Some(text) = read_text(&options.root, path)? else { return Ok(None) };
    let config: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| SetupError::Content { path: path.into(), why: error.message().to_owned() })?;
    // Configuration versions 2 and 3.
    let found = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images"]
        .iter()
        .find_map(|plugin| config.get("plugins")?.get(plugin)?.get("registry")?.get("config_path")?.as_str());
    Ok(found.and_then(|list| list.split(':').find(|folder| !folder.is_empty())).map(PathBuf::from))
}

/// Registries that have a folder, which therefore do not use `_default`.
fn existing(root: &Path, folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(below(root, folder)) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name != "_default")
        .collect();
    names.sort();
    names
}

/// In a folder without `hosts.toml` containerd takes the certificates lying there; with one it no longer does, so
/// they have to be named.
fn certificates(root: &Path, folder: &Path) -> String {
    let Ok(entries) = std::fs::read_dir(below(root, folder)) else { return String::new() };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    let quoted = |name: &str| toml::Value::String(folder.join(name).display().to_string()).to_string();
    let authorities: Vec<String> = names.iter().filter(|n| n.ends_with(".crt")).map(|n| quoted(n)).collect();
    let clients: Vec<String> = names
        .iter()
        .filter_map(|cert| Some((cert, format!("{}.key", cert.strip_suffix(".cert")?))))
        .filter(|(_, key)| names.contains(key))
        .map(|(cert, key)| format!("[{}, {}]", quoted(cert), quoted(&key)))
        .collect();
    let mut text = String::new();
    if !authorities.is_empty() {
        text.push_str(&format!("ca = [{}]\n", authorities.join(", ")));
    }
    if !clients.is_empty() {
        text.push_str(&format!("client = [{}]\n", clients.join(", ")));
    }
    text
}

/// Puts our host before all others: containerd keeps the order of the file.
fn with_block(text: &str, url: &str) -> String {
    let block = format!("{BEGIN}\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n{END}\n");
    let first_table = text
        .split_inclusive('\n')
        .scan(0, |offset, line| {
            let start = *offset;
            *offset += line.len();
            Some((start, line))
        })
        .find(|(_, line)| line.trim_start().starts_with('['))
        .map_or(text.len(), |(start, _)| start);
    let (head, tail) = text.split_at(first_table);
    let gap = if head.is_empty() || head.ends_with('\n') { "" } else { "\n" };
    format!("{head}{gap}{block}{tail}")
}

/// The text without what [`with_block`] put in.
pub(super) fn without_block(text: &str) -> String {
    let mut inside = false;
    text.split_inclusive('\n')
        .filter(|line| {
            let line = line.trim_end();
            inside |= line == BEGIN;
            let keep = !inside;
            inside &= line != END;
            keep
        })
        .collect()
}
