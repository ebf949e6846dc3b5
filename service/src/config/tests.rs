use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use ipnet::IpNet;
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

use super::*;

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sample {
    name: String,
    listen: Vec<SocketAddr>,
    limits: Limits,
    cluster: Vec<Cluster>,
    labels: BTreeMap<String, u32>,
    secret: Option<Redacted<String>>,
    mode: Mode,
    ratio: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Limits {
    connections: u16,
    body: ByteSize,
    rate: Rate,
    #[serde(with = "duration")]
    idle: Duration,
    #[serde(with = "duration_option")]
    extra: Option<Duration>,
    on: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Cluster {
    name: String,
    #[serde(default)]
    cidrs: Vec<IpNet>,
    weight: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    #[default]
    Slow,
    Fast,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10,
            body: ByteSize::mib(1),
            rate: Rate::UNLIMITED,
            idle: Duration::from_secs(30),
            extra: None,
            on: true,
        }
    }
}

impl Validate for Sample {
    fn validate(&self, problems: &mut Problems) {
        problems.within("limits", |problems| {
            problems.check(self.limits.connections > 0, "connections", "must be above zero");
        });
        problems.each("cluster", &self.cluster, |cluster, problems| {
            problems.check(!cluster.name.is_empty(), "name", "must not be empty");
        });
        problems.check(self.name != "bad", "name", "\"bad\" is not allowed");
    }
}

fn load_sample(text: &str, env: &[(&str, &str)]) -> Result<Sample, ConfigError> {
    let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    load_from("x.toml", text, "SKIMMER_SAMPLE", env)
}

fn lines(result: Result<Sample, ConfigError>) -> Vec<String> {
    result.unwrap_err().problems().iter().map(ToString::to_string).collect()
}

#[test]
fn everything_good() {
    let sample = load_sample(
        r#"
        name = "n"
        listen = ["127.0.0.1:1", "[::1]:2"]
        labels = { a = 1, b = 2 }
        secret = "hush"
        mode = "fast"
        ratio = 0.5
        [limits]
        body = "64MiB"
        rate = "200Mb/s"
        idle = "1m 30s"
        extra = "5ms"
        [[cluster]]
        name = "one"
        cidrs = ["10.0.0.0/8"]
        weight = 0x10
        "#,
        &[],
    )
    .unwrap();
    assert_eq!(sample.limits.body, ByteSize::mib(64));
    assert_eq!(sample.limits.rate.limit_bytes_per_s(), Some(25_000_000));
    assert_eq!((sample.limits.idle, sample.limits.extra), (Duration::from_secs(90), Some(Duration::from_millis(5))));
    assert_eq!((sample.mode, sample.labels.len(), sample.cluster[0].weight), (Mode::Fast, 2, 16));
    assert_eq!(sample.secret.as_ref().unwrap().expose(), "hush");
    assert!(!format!("{sample:?}").contains("hush"));
    assert_eq!(load_sample("", &[]).unwrap(), Sample::default());
}

#[test]
fn every_problem_with_its_place() {
    let text = r#"name = 5
listn = []
mode = "medium"
secret = 12345

[limits]
connections = 70000
body = "64 apples"
rate = "fast"
idle = "soon"
on = "yes"
conections = 3

[[cluster]]
name = "one"
cidrs = ["10.0.0.0/8", "10.0.0.0/99", "nonsense"]

[[cluster]]
weight = "heavy"

[other.section]
"#;
    let lines = lines(load_sample(
        text,
        &[("SKIMMER_SAMPLE__LISTEN", "here"), ("SKIMMER_SAMPLE__NO__SUCH", "1"), ("SKIMMER_SAMPLE__", "1")],
    ));
    let expected = [
        "x.toml:1:8: name: invalid type: integer `5`, expected a string",
        "x.toml:2:1: listn: unknown field, did you mean listen? allowed here: name, listen",
        "x.toml:3:8: mode: \"medium\" is unknown, expected one of: slow, fast",
        "x.toml:4:10: secret: the secret has the wrong form",
        "x.toml:7:15: limits.connections: invalid value: integer `70000`, expected u16",
        "x.toml:8:8: limits.body: \"64 apples\" is not allowed here, expected a number of bytes such as",
        "x.toml:9:8: limits.rate: \"fast\" is not allowed here, expected a rate",
        "x.toml:10:8: limits.idle: invalid value: string \"soon\", expected a duration with its unit",
        "x.toml:11:6: limits.on: invalid type: string \"yes\", expected a boolean",
        "x.toml:12:1: limits.conections: unknown field, did you mean connections?",
        "x.toml:14:1: cluster[0].weight: is required and missing",
        "x.toml:16:24: cluster[0].cidrs[1]: ",
        "x.toml:16:39: cluster[0].cidrs[2]: ",
        "x.toml:18:1: cluster[1].name: is required and missing",
        "x.toml:19:10: cluster[1].weight: invalid type: string \"heavy\", expected u32",
        "x.toml:21:2: other: unknown field, allowed here: ",
        "environment variable SKIMMER_SAMPLE__: names no field",
        "environment variable SKIMMER_SAMPLE__LISTEN: listen[0]: ",
        "environment variable SKIMMER_SAMPLE__NO__SUCH: no: unknown field",
    ];
    for start in expected {
        assert!(lines.iter().any(|line| line.starts_with(start)), "{start}\nis not in\n{lines:#?}");
    }
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    assert!(!lines.join("").contains("12345"), "a secret is not quoted");
}

#[test]
fn syntax_errors_all_listed() {
    let lines = lines(load_sample("name = \n[limits\nconnections = 3\nlistn = []\nname = 'é' x\n", &[]));
    assert!(lines.len() >= 3, "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("x.toml:1:")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("x.toml:2:")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("x.toml:5:12: ")), "columns are characters: {lines:#?}");
}

#[test]
fn validation_knows_places() {
    let found =
        lines(load_sample("name = 'bad'\n[limits]\nconnections = 0\n[[cluster]]\nname = ''\nweight = 1\n", &[]));
    assert_eq!(
        found,
        [
            "x.toml:1:8: name: \"bad\" is not allowed",
            "x.toml:3:15: limits.connections: must be above zero",
            "x.toml:5:8: cluster[0].name: must not be empty",
        ]
    );
    let found = lines(load_sample("", &[("SKIMMER_SAMPLE__NAME", "bad"), ("SKIMMER_SAMPLE__LIMITS__IDLE", "x")]));
    assert_eq!(found.len(), 2, "{found:#?}");
    assert!(
        found.iter().any(|line| line == "environment variable SKIMMER_SAMPLE__NAME: name: \"bad\" is not allowed"),
        "{found:#?}"
    );
}

#[test]
fn the_environment_wins() {
    let env = [
        ("SKIMMER_SAMPLE__NAME", "123"),
        ("SKIMMER_SAMPLE__LISTEN", "127.0.0.1:1, 127.0.0.1:2"),
        ("SKIMMER_SAMPLE__LIMITS__CONNECTIONS", "7"),
        ("SKIMMER_SAMPLE__LIMITS__BODY", "4096"),
        ("SKIMMER_SAMPLE__LIMITS__RATE", "25MB/s"),
        ("SKIMMER_SAMPLE__LIMITS__ON", "false"),
        ("SKIMMER_SAMPLE__LIMITS__EXTRA", ""),
        ("SKIMMER_SAMPLE__MODE", "fast"),
        ("SKIMMER_SAMPLE__RATIO", "2"),
        ("SKIMMER_SAMPLE__LABELS__A", "1"),
        ("SKIMMER_SAMPLE__CLUSTER", "[{ name = 'c', weight = 1 }]"),
        ("SKIMMER_SAMPLE__SECRET", "777"),
        ("SKIMMER_SAMPLER__NAME", "another binary"),
        ("SKIMMER_SAMPLE", "no field"),
    ];
    let sample = load_sample("name = 'file'\n[limits]\nconnections = 1\nidle = '9s'\nextra = '1s'\n", &env).unwrap();
    assert_eq!(sample.name, "123");
    assert_eq!(sample.listen.len(), 2);
    assert_eq!((sample.limits.connections, sample.limits.on, sample.limits.extra), (7, false, None));
    assert_eq!((sample.limits.body.as_u64(), sample.limits.idle), (4096, Duration::from_secs(9)));
    assert_eq!((sample.mode, sample.ratio, sample.cluster[0].weight), (Mode::Fast, 2.0, 1));
    assert_eq!(sample.labels["a"], 1);
    assert_eq!(sample.secret.unwrap().expose(), "777");
}

#[test]
fn files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    let none: Result<Sample, _> = load(Some(&path), "SKIMMER_NOBODY_SETS_THIS");
    assert!(matches!(none, Err(ConfigError::Read { .. })));
    std::fs::write(&path, "name = 'n'").unwrap();
    assert_eq!(load::<Sample>(Some(&path), "SKIMMER_NOBODY_SETS_THIS").unwrap().name, "n");
    std::fs::write(&path, vec![b'#'; usize::try_from(FILE_BYTES_MAX).unwrap() + 1]).unwrap();
    assert!(matches!(load::<Sample>(Some(&path), "SKIMMER_NOBODY_SETS_THIS"), Err(ConfigError::TooLarge { .. })));
    assert_eq!(env_prefix("config-service"), "SKIMMER_CONFIG_SERVICE");
}

proptest! {
    #[test]
    fn no_text_panics_or_hangs(text in "[a-z=\\[\\]{}'\" \n.0-9,#-]{0,200}", value in "[a-z\\[\\]{}'=,0-9]{0,30}") {
        let env = [("SKIMMER_SAMPLE__LIMITS", value.as_str()), ("SKIMMER_SAMPLE__CLUSTER", value.as_str())];
        if let Err(error) = load_sample(&text, &env) {
            prop_assert!(!error.problems().is_empty());
        }
    }

    #[test]
    fn what_is_printed_loads(connections in 1u16.., on: bool, body in 0u64..1 << 50, name in "[a-z]{4}") {
        let mut sample = Sample { name, ..Sample::default() };
        sample.limits = Limits { connections, on, body: ByteSize::bytes(body), ..sample.limits };
        sample.cluster.push(Cluster { name: "c".to_owned(), cidrs: vec!["10.0.0.0/8".parse().unwrap()], weight: 3 });
        prop_assert_eq!(load_sample(&toml::to_string_pretty(&sample).unwrap(), &[]).unwrap(), sample);
    }
}
