//! `docs/config/supernode.toml` and the defaults are the same.

use proto::api::SupernodeEntry;
use service::config::Config as _;

use super::{ClusterConfig, SupernodeConfig};

/// With something in every list whose entries have fields.
fn filled() -> SupernodeConfig {
    let supernodes = vec![SupernodeEntry { id: "b".into(), endpoint: "http://10.0.0.2:8002".into() }];
    SupernodeConfig { cluster: ClusterConfig { supernodes, ..ClusterConfig::default() }, ..SupernodeConfig::default() }
}

#[test]
fn the_documented_file_is_the_default() {
    let documented = SupernodeConfig::default_toml();
    assert_eq!(load(&documented).unwrap(), SupernodeConfig::default());
    // Every field is there, if only as an example or in a comment.
    for key in keys(&serde_json::to_value(filled()).unwrap()) {
        assert!(
            documented.contains(&format!("{key} =")) || documented.contains(&format!("{key}]")),
            "{key} is not documented"
        );
    }
}

#[test]
fn the_examples_in_it_are_valid() {
    let documented = SupernodeConfig::default_toml();
    let uncommented: String =
        documented.lines().flat_map(|line| [line.strip_prefix("#: ").unwrap_or(line), "\n"]).collect();
    let shown = load(&uncommented).unwrap();
    assert_ne!(shown, SupernodeConfig::default());
    assert!(shown.source.proxy.is_some() && !shown.source.hosts.is_empty());
}

fn load(text: &str) -> Result<SupernodeConfig, service::config::ConfigError> {
    service::config::load_from("c.toml", text, "X", [])
}

fn keys(value: &serde_json::Value) -> Vec<String> {
    match value {
        serde_json::Value::Object(map) => {
            map.iter().flat_map(|(key, value)| std::iter::once(key.clone()).chain(keys(value))).collect()
        }
        serde_json::Value::Array(items) => items.iter().flat_map(keys).collect(),
        _ => Vec::new(),
    }
}
