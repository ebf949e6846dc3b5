//! Each runtime: written, written again, undone; with files that were there, and with files changed meanwhile.

use super::*;

fn options(runtime: Runtime, root: &Path, registries: &[&str]) -> Options {
    Options {
        runtime,
        root: root.into(),
        registries: registries.iter().map(|text| text.parse().unwrap()).collect(),
        proxy_addr: "127.0.0.1:65001".parse().unwrap(),
        docker_proxy_ca: None,
    }
}

fn put(root: &Path, path: &str, content: &str) {
    let path = below(root, Path::new(path));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

fn get(root: &Path, path: &str) -> String {
    std::fs::read_to_string(below(root, Path::new(path))).unwrap()
}

/// Every file and folder below a root, with content and mode.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = path.metadata().unwrap();
            let content = if metadata.is_dir() { Vec::new() } else { std::fs::read(&path).unwrap() };
            if metadata.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, (metadata.permissions().mode(), content));
        }
    }
    found
}

/// Applies twice and undoes; everything must be as before.
fn there_and_back(options: &Options) {
    let before = snapshot(&options.root);
    let plan = options.plan().unwrap();
    assert!(!plan.is_empty() && plan.diff().contains("@@"));
    assert_eq!(snapshot(&options.root), before, "planning writes nothing");
    plan.apply().unwrap();
    let written = snapshot(&options.root);
    assert_ne!(written, before);
    let again = options.plan().unwrap();
    assert!(again.is_empty(), "{}", again.diff());
    again.apply().unwrap();
    assert_eq!(snapshot(&options.root), written);
    let undo = options.plan_undo().unwrap();
    assert!(undo.notes.is_empty(), "{:?}", undo.notes);
    undo.apply().unwrap();
    assert_eq!(snapshot(&options.root), before);
    assert!(options.plan_undo().unwrap().is_empty());
}

#[test]
fn containerd_from_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(Runtime::Containerd, dir.path(), &[]);
    let plan = options.plan().unwrap();
    assert_eq!(plan.notes.len(), 1, "{:?}", plan.notes);
    assert!(plan.notes[0].contains("config_path"));
    there_and_back(&options);
    plan.apply().unwrap();
    let text = get(dir.path(), "/etc/containerd/certs.d/_default/hosts.toml");
    assert!(text.contains("[host.\"http://127.0.0.1:65001\"]") && !text.contains("server"), "{text}");
}

#[test]
fn containerd_beside_what_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    put(
        root,
        "/etc/containerd/config.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/opt/certs:/x\"\n",
    );
    let original =
        "server = \"https://r.corp\"\nca = \"/x.crt\" # mine\n\n[host.\"https://other\"]\n  skip_verify = true";
    put(root, "/opt/certs/r.corp/hosts.toml", original);
    put(root, "/opt/certs/plain.corp/ca.crt", "c");
    put(root, "/opt/certs/plain.corp/me.cert", "c");
    put(root, "/opt/certs/plain.corp/me.key", "k");
    put(root, "/opt/certs/port.corp_5000_/x.crt", "c");
    let options =
        options(Runtime::Containerd, root, &["r.corp", "plain.corp", "port.corp:5000", "new.corp=127.0.0.1:7"]);
    there_and_back(&options);
    let plan = options.plan().unwrap();
    assert!(plan.notes.is_empty(), "{:?}", plan.notes);
    plan.apply().unwrap();
    let text = get(root, "/opt/certs/r.corp/hosts.toml");
    let ours = text.find("127.0.0.1:65001").unwrap();
    assert!(text.find("server").unwrap() < ours && ours < text.find("other").unwrap(), "{text}");
    let plain: toml::Table = get(root, "/opt/certs/plain.corp/hosts.toml").parse().unwrap();
    assert_eq!(plain["ca"][0].as_str(), Some("/opt/certs/plain.corp/ca.crt"));
    assert_eq!(plain["client"][0][1].as_str(), Some("/opt/certs/plain.corp/me.key"));
    assert!(get(root, "/opt/certs/port.corp_5000_/hosts.toml").contains("x.crt"));
    assert!(get(root, "/opt/certs/new.corp/hosts.toml").contains("http://127.0.0.1:7\""));

    // Somebody changes a file: undo takes only our lines.
    put(root, "/opt/certs/r.corp/hosts.toml", &text.replace("mine", "theirs"));
    let undo = options.plan_undo().unwrap();
    assert_eq!(undo.notes.len(), 1);
    undo.apply().unwrap();
    assert_eq!(get(root, "/opt/certs/r.corp/hosts.toml"), original.replace("mine", "theirs"));
}

#[test]
fn containerd_refuses_what_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "/etc/containerd/certs.d/a/hosts.toml", "server = ");
    let error = options(Runtime::Containerd, dir.path(), &["a"]).plan().unwrap_err();
    assert!(matches!(error, SetupError::Content { .. }), "{error}");
}

#[test]
fn docker_keeps_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let options = options(Runtime::Docker, root, &[]);
    there_and_back(&options);
    put(root, "/etc/docker/daemon.json", "");
    there_and_back(&options);
    let original = "{\n    \"storage-driver\": \"overlay2\",\n    \"registry-mirrors\": [\n        \"https://m\"\n    ],\n    \"a\": 1\n}\n";
    put(root, "/etc/docker/daemon.json", original);
    std::fs::set_permissions(below(root, Path::new("/etc/docker/daemon.json")), std::fs::Permissions::from_mode(0o600))
        .unwrap();
    there_and_back(&options);
    options.plan().unwrap().apply().unwrap();
    let text = get(root, "/etc/docker/daemon.json");
    assert_eq!(text, original.replace("\"https://m\"", "\"http://127.0.0.1:65001\",\n        \"https://m\""));
    put(root, "/etc/docker/daemon.json", &text.replace("\"a\": 1", "\"a\": 2"));
    options.plan_undo().unwrap().apply().unwrap();
    assert_eq!(get(root, "/etc/docker/daemon.json"), original.replace("\"a\": 1", "\"a\": 2"));

    for bad in ["[]", "{", "{\"registry-mirrors\": 1}"] {
        put(root, "/etc/docker/daemon.json", bad);
        assert!(options.plan().is_err(), "{bad}");
    }
}

#[test]
fn docker_with_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("ca.pem");
    std::fs::write(&ca, "CERT").unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let mut options = options(Runtime::Docker, &root, &["quay.io", "docker.io"]);
    assert!(matches!(options.plan(), Err(SetupError::Unsupported(_))));
    options.docker_proxy_ca = Some(ca);
    there_and_back(&options);
    options.plan().unwrap().apply().unwrap();
    assert_eq!(get(&root, "/etc/docker/certs.d/quay.io/skimmer-ca.crt"), "CERT");
    assert!(
        get(&root, "/etc/systemd/system/docker.service.d/50-skimmer-proxy.conf")
            .contains("HTTPS_PROXY=http://127.0.0.1:65001")
    );
}

#[test]
fn docker_elsewhere_than_on_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(Runtime::Docker, dir.path(), &[]);
    options.proxy_addr = "10.0.0.1:65001".parse().unwrap();
    there_and_back(&options);
    options.plan().unwrap().apply().unwrap();
    assert!(get(dir.path(), "/etc/docker/daemon.json").contains("insecure-registries"));
}

#[test]
fn podman_and_crio_share_a_drop_in() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    put(root, "/etc/containers/registries.conf", "unqualified-search-registries = [\"docker.io\"]\n");
    put(
        root,
        "/etc/containers/registries.conf.d/10-mine.conf",
        "[[registry]]\nlocation = \"docker.io\"\nblocked = false\n[[registry.mirror]]\nlocation = \"m.corp\"\n",
    );
    let podman = options(Runtime::Podman, root, &["docker.io", "quay.io=127.0.0.1:65011"]);
    there_and_back(&podman);
    podman.plan().unwrap().apply().unwrap();
    let table: toml::Table = get(root, "/etc/containers/registries.conf.d/zz-skimmer.conf").parse().unwrap();
    let hub = &table["registry"][0];
    assert_eq!(hub["mirror"][0]["location"].as_str(), Some("127.0.0.1:65001"));
    assert_eq!(hub["mirror"][1]["location"].as_str(), Some("m.corp"));
    assert_eq!(hub["blocked"].as_bool(), Some(false));
    assert_eq!(table["registry"][1]["location"].as_str(), Some("quay.io"));
    // The other runtime finds everything done.
    let crio = options(Runtime::Crio, root, &["docker.io"]);
    assert!(crio.plan().unwrap().edits.iter().all(|edit| edit.path.ends_with("zz-skimmer.conf")));
    assert!(matches!(options(Runtime::Podman, root, &["quay.io"]).plan(), Err(SetupError::Unsupported(_))));
    put(root, "/etc/containers/registries.conf", "[registries.search]\nregistries = []\n");
    assert!(matches!(podman.plan(), Err(SetupError::Content { .. })));
}

#[test]
fn a_file_of_ours_that_was_edited_is_kept_aside() {
    let dir = tempfile::tempdir().unwrap();
    let options = options(Runtime::Podman, dir.path(), &[]);
    options.plan().unwrap().apply().unwrap();
    put(dir.path(), "/etc/containers/registries.conf.d/zz-skimmer.conf", "# edited\n");
    options.plan_undo().unwrap().apply().unwrap();
    assert_eq!(get(dir.path(), "/etc/containers/registries.conf.d/zz-skimmer.conf.skimmer-saved"), "# edited\n");
    assert!(!below(dir.path(), Path::new("/etc/containers/registries.conf.d/zz-skimmer.conf")).is_file());
}
