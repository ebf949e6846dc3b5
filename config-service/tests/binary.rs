//! The real binary: flags, configuration, signals, kill -9.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);

fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_config-service"));
    command.env_remove("NOTIFY_SOCKET");
    command
}

struct Service {
    child: Child,
    socket: PathBuf,
}

impl Service {
    /// Starts it with a configuration in `dir`, listening on a socket file there, and waits for its READY=1.
    fn start(dir: &Path) -> Self {
        let notify = dir.join("notify");
        let _ = std::fs::remove_file(&notify);
        let manager = UnixDatagram::bind(&notify).unwrap();
        manager.set_read_timeout(Some(DEADLINE)).unwrap();
        let socket = dir.join("api.sock");
        let child = binary()
            .arg("--config")
            .arg(dir.join("c.toml"))
            .env("NOTIFY_SOCKET", &notify)
            .env("SKIMMER_CONFIG_SERVICE__LISTEN", format!("unix:{}", socket.display()))
            .env("SKIMMER_CONFIG_SERVICE__DATA_DIR", dir.join("data"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let service = Self { child, socket };
        let mut buffer = [0; 64];
        let n = manager.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..n], b"READY=1");
        service
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let length = body.len();
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status().unwrap();
        assert!(sent.success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begin.elapsed() < DEADLINE, "it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_printed_configuration_loads() {
    let dir = tempfile::tempdir().unwrap();
    let (code, printed, _) = text(&binary().arg("--print-default-config").output().unwrap());
    assert_eq!(code, Some(0));
    assert!(printed.contains("# "), "with comments");
    let path = dir.path().join("c.toml");
    std::fs::write(&path, printed).unwrap();
    let (code, out, err) = text(&binary().arg("--check-config").arg("--config").arg(&path).output().unwrap());
    assert_eq!((code, out, err), (Some(0), format!("{}: no problems\n", path.display()), String::new()));
}

#[test]
fn bad_configuration_and_flags() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.toml");
    std::fs::write(&path, "listn = 1\nlease = 'soon'\n[http]\nmax_connections = 0\n[log]\nlevel = 'loud'\n").unwrap();
    for check in [true, false] {
        let mut command = binary();
        command.arg("--config").arg(&path).env("SKIMMER_CONFIG_SERVICE__HTTP__MAX_HEADER", "1");
        if check {
            command.arg("--check-config");
        }
        let (code, _, err) = text(&command.output().unwrap());
        assert_eq!(code, Some(2), "{err}");
        let path = path.display();
        for line in [
            "5 problems in the configuration".to_owned(),
            format!("{path}:1:1: listn: unknown field, did you mean listen?"),
            format!("{path}:2:9: lease: "),
            format!("{path}:4:19: http.max_connections: 1 to "),
            format!("{path}:6:9: log.level: "),
            "environment variable SKIMMER_CONFIG_SERVICE__HTTP__MAX_HEADER: http.max_header: ".to_owned(),
        ] {
            assert!(err.contains(&line), "{line} is not in\n{err}");
        }
    }
    let (code, _, err) = text(&binary().arg("--config").arg(dir.path().join("none.toml")).output().unwrap());
    assert_eq!(code, Some(2));
    assert!(err.contains("none.toml: No such file"), "{err}");
    assert_eq!(text(&binary().arg("--no-such-flag").output().unwrap()).0, Some(2));
    // A good configuration that cannot work here is no mistake in it.
    std::fs::write(&path, format!("data_dir = {:?}\n", path.join("below a file"))).unwrap();
    let (code, _, err) = text(&binary().arg("--config").arg(&path).output().unwrap());
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("cannot create"), "{err}");
}

const SUPERNODES: &str = "/api/skimmer/v1/clusters/one/supernodes";

#[test]
fn kill_and_restart() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.toml"), "[[cluster]]\nname = 'one'\ndefault = true\n").unwrap();
    for round in 0..5 {
        let mut service = Service::start(dir.path());
        let known = service.ask("POST", "/api/skimmer/v1/nearest", "{}");
        if round > 0 {
            assert!(known.contains(&format!("http://10.0.0.1:{round}")), "round {round}: {known}");
        }
        let body = format!("{{\"id\":\"s\",\"endpoint\":\"http://10.0.0.1:{}\"}}", round + 1);
        assert!(service.ask("PUT", SUPERNODES, &body).starts_with("HTTP/1.1 200"));
        // The moment it is acknowledged.
        service.child.kill().unwrap();
        service.child.wait().unwrap();
    }
}

#[test]
fn signals() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "[[cluster]]\nname = 'one'\ndefault = true\n").unwrap();
    let mut service = Service::start(dir.path());
    assert!(service.ask("PUT", SUPERNODES, "{\"id\":\"s\",\"endpoint\":\"http://x:1\"}").starts_with("HTTP/1.1 200"));
    std::fs::write(&file, "[[cluster]]\nname = 'one'\n[[cluster]]\nname = 'two'\ndefault = true\n").unwrap();
    service.signal("HUP");
    let begin = Instant::now();
    while !service.ask("GET", "/api/skimmer/v1/clusters", "").contains("two") {
        assert!(begin.elapsed() < DEADLINE, "the configuration is not reloaded");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(service.ask("GET", "/api/skimmer/v1/clusters", "").contains("http://x:1"), "leases stay");
    std::fs::write(&file, "nonsense").unwrap();
    service.signal("HUP");
    std::thread::sleep(Duration::from_millis(200));
    assert!(service.ask("GET", "/api/skimmer/v1/clusters", "").contains("two"), "a bad file changes nothing");
    service.signal("TERM");
    assert_eq!(service.exit_code(), Some(0));
    assert!(!service.socket.try_exists().unwrap(), "the socket file is removed");
}

#[test]
fn a_second_signal_leaves_at_once() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("c.toml"), "[body]\nbody_timeout = '1h'\n").unwrap();
    let mut service = Service::start(dir.path());
    let mut stream = UnixStream::connect(&service.socket).unwrap();
    stream.write_all(b"POST /api/skimmer/v1/nearest HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    service.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    assert!(service.child.try_wait().unwrap().is_none(), "it drains");
    service.signal("INT");
    assert_eq!(service.exit_code(), Some(130));
}
