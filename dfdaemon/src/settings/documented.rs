//! `docs/config/dfdaemon.toml` and the defaults are the same.

use proto::api::SupernodeEntry;
use service::config::Config as _;

use super::DfdaemonConfig;
use crate::config::{Action, ProxyAuth, Rule, Upstream};

/// With something in every list and option whose entries have fields.
fn filled() -> DfdaemonConfig {
    let mut config = DfdaemonConfig::default();
    config.cluster.supernodes.push(SupernodeEntry { id: "a".into(), endpoint: "http://10.0.0.1:8002".into() });
    config.proxy.rules.push(Rule {
        regex: "a".into(),
        action: Action::Redirect,
        redirect: Some("b".into()),
        use_https: true,
    });
    config.proxy.auth = Some(ProxyAuth { user: "u".into(), password: "p".into() });
    config.mirror.upstreams.push(Upstream {
        host: "h".into(),
        url: Some(config.mirror.default.clone()),
        ca: Some("/ca".into()),
        insecure: true,
        plain_http: true,
        listen: Some(config.proxy.listen),
    });
    config
}

#[test]
fn the_documented_file_is_the_default() {
    let documented = DfdaemonConfig::default_toml();
    assert_eq!(load(&documented).unwrap(), DfdaemonConfig::default());
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
    let documented = DfdaemonConfig::default_toml();
    let uncommented: String =
        documented.lines().flat_map(|line| [line.strip_prefix("#: ").unwrap_or(line), "\n"]).collect();
    let shown = load(&uncommented).unwrap();
    assert_ne!(shown, DfdaemonConfig::default());
    assert!(!shown.proxy.rules.is_empty() && !shown.mirror.upstreams.is_empty() && shown.proxy.auth.is_some());
}

fn load(text: &str) -> Result<DfdaemonConfig, service::config::ConfigError> {
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
