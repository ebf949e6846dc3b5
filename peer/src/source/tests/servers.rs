//! Servers a test starts for itself, each with its own folder and ports.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::PATIENCE;

/// A server program, stopped when dropped.
pub(super) struct Server {
    child: Child,
    pub(super) dir: TempDir,
    pub(super) port: u16,
    pub(super) tls_port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ours alone: it was started in the foreground, with one worker that goes with it.
        let id = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &id]).status();
        let _ = self.child.wait();
    }
}

impl Server {
    pub(super) fn www(&self) -> PathBuf {
        self.dir.path().join("www")
    }

    pub(super) fn put(&self, path: &str, bytes: impl AsRef<[u8]>) {
        let path = self.www().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(super) fn tls(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.tls_port)
    }

    pub(super) fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }
}

fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into()]);
    let found = places.map(|dir| dir.join(name)).find(|file| file.is_file());
    found.unwrap_or_else(|| panic!("{name} is neither in PATH nor in /usr/sbin; install the Debian package {name}"))
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts a program; ports are drawn anew when somebody else was faster.
fn start(name: &str, configure: impl Fn(&Path, u16, u16) -> Vec<String>) -> Server {
    let program = program(name);
    for _ in 0..5 {
        let dir = tempfile::tempdir().unwrap();
        // The workers of a server started by root run as somebody else.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir_all(dir.path().join("www")).unwrap();
        certificates(dir.path());
        let (port, tls_port) = (free_port(), free_port());
        let arguments = configure(dir.path(), port, tls_port);
        let log = fs::File::create(dir.path().join("stderr")).unwrap();
        let mut child = Command::new(&program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return Server { child, dir, port, tls_port };
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
        let said = fs::read_to_string(dir.path().join("stderr")).unwrap_or_default();
        assert!(said.contains("in use"), "{name} does not start: {said}");
    }
    panic!("{name} found no free port")
}

/// A private CA in `ca.pem`, and a certificate for localhost in `cert.pem` with `key.pem`.
fn certificates(dir: &Path) {
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = rcgen::CertifiedIssuer::self_signed(ca, rcgen::KeyPair::generate().unwrap()).unwrap();
    let names = ["localhost", "127.0.0.1", "a.test"].map(String::from);
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(names.to_vec()).unwrap().signed_by(&key, &ca).unwrap();
    fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    fs::write(dir.join("cert.pem"), leaf.pem()).unwrap();
    fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
}

pub(super) fn nginx() -> Server {
    start("nginx", |dir, port, tls_port| {
        let d = dir.display();
        let temps: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|n| format!("{n}_temp_path {d}/tmp_{n};\n"))
            .concat();
        let root = if rustix::process::getuid().is_root() { "user root;" } else { "" };
        let config = format!(
            "daemon off; pid {d}/pid; error_log {d}/error.log; {root} worker_processes 1;
             events {{ worker_connections 256; }}
             http {{
               access_log {d}/access.log; {temps} default_type application/octet-stream; types {{ text/html html; }}
               root {d}/www;
               add_header X-Proto $server_protocol;
               server {{
                 listen 127.0.0.1:{port}; listen [::1]:{port};
                 location /list/ {{ autoindex on; }}
                 location /private/ {{ auth_basic files; auth_basic_user_file {d}/htpasswd; autoindex on; }}
                 location /gz/ {{ gzip on; gzip_types *; gzip_min_length 1; }}
                 location = /moved {{ return 302 /file?x=1; }}
                 location = /gone {{ return 410; }}
                 location = /forbidden {{ return 403 \"not you\"; }}
                 location = /teapot {{ return 418 short; }}
               }}
               server {{
                 listen 127.0.0.1:{tls_port} ssl http2;
                 ssl_certificate {d}/cert.pem; ssl_certificate_key {d}/key.pem;
                 location = /down {{ return 302 http://127.0.0.1:{port}/file; }}
               }}
             }}"
        );
        fs::write(dir.join("htpasswd"), "us er:{PLAIN}p @w\n").unwrap();
        fs::write(dir.join("nginx.conf"), config).unwrap();
        vec![
            "-p".into(),
            format!("{d}/"),
            "-c".into(),
            format!("{d}/nginx.conf"),
            "-e".into(),
            format!("{d}/error.log"),
        ]
    })
}

pub(super) fn apache() -> Server {
    start("apache2", |dir, port, _| {
        let d = dir.display();
        let modules: String = ["mpm_event", "authz_core", "autoindex", "dir", "mime"]
            .map(|m| format!("LoadModule {m}_module /usr/lib/apache2/modules/mod_{m}.so\n"))
            .concat();
        let user = if rustix::process::getuid().is_root() { "User www-data\nGroup www-data" } else { "" };
        let config = format!(
            "ServerRoot {d}\nServerName localhost\nPidFile {d}/pid\nErrorLog {d}/error.log\nListen 127.0.0.1:{port}\n{modules}{user}
             TypesConfig /dev/null\nDocumentRoot {d}/www\nAddDefaultCharset UTF-8
             DefaultIcon /icons/unknown.gif\nAddIcon /icons/folder.gif ^^DIRECTORY^^\nAddIcon /icons/back.gif ..
             <Directory {d}/www>\nOptions +Indexes\nRequire all granted\nIndexOptions FancyIndexing NameWidth=*\n</Directory>
             <Directory {d}/www/table>\nIndexOptions FancyIndexing HTMLTable FoldersFirst IconsAreLinks\n</Directory>
             <Directory {d}/www/plain>\nIndexOptions -FancyIndexing\n</Directory>\n"
        );
        fs::write(dir.join("apache.conf"), config).unwrap();
        vec!["-f".into(), format!("{d}/apache.conf"), "-DFOREGROUND".into(), "-E".into(), format!("{d}/stderr")]
    })
}

// === a server that does what a test says ===

/// A request as it was read.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) line: String,
    pub(super) headers: Vec<(String, String)>,
    /// Which connection it came on, from 0.
    pub(super) connection: usize,
}

impl Seen {
    pub(super) fn path(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

/// What to do for an answer.
pub(super) enum Step {
    Send(Vec<u8>),
    Pause(Duration),
    Close,
}

pub(super) fn say(text: impl Into<Vec<u8>>) -> Vec<Step> {
    vec![Step::Send(text.into())]
}

pub(super) fn say_and_close(text: impl Into<Vec<u8>>) -> Vec<Step> {
    vec![Step::Send(text.into()), Step::Close]
}

/// An origin that answers each request as its function says, on loopback.
pub(super) struct Origin {
    pub(super) port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Origin {
    pub(super) async fn start(answer: impl Fn(&Seen, usize) -> Vec<Step> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (answer, log) = (Arc::new(answer), seen.clone());
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (answer, log) = (answer.clone(), log.clone());
                connections.spawn(async move {
                    let _ = serve(stream, number, &*answer, &log).await;
                });
            }
        });
        Self { port, seen, task }
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    pub(super) fn named(&self, host: &str, path: &str) -> String {
        format!("http://{host}:{}{path}", self.port)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }
}

async fn serve(
    mut stream: TcpStream,
    connection: usize,
    answer: &(dyn Fn(&Seen, usize) -> Vec<Step> + Send + Sync),
    log: &Mutex<Vec<Seen>>,
) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let mut lines = text.split("\r\n");
        let line = lines.next().unwrap_or_default().to_owned();
        let headers = lines
            .filter_map(|l| l.split_once(':'))
            .map(|(n, v)| (n.to_ascii_lowercase(), v.trim().to_owned()))
            .collect();
        let seen = Seen { line, headers, connection };
        let number = {
            let mut log = log.lock();
            log.push(seen.clone());
            log.len() - 1
        };
        for step in answer(&seen, number) {
            match step {
                Step::Send(bytes) => stream.write_all(&bytes).await?,
                Step::Pause(time) => tokio::time::sleep(time).await,
                Step::Close => return stream.shutdown().await,
            }
        }
    }
}
