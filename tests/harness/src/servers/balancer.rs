//! nginx in front of several processes of one registry.

use std::{collections::BTreeMap, fmt::Write as _, fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{Certificate, Host, Proc, Run, programs::system_program};

/// It starts in a tenth of a second, on a busy machine in a few.
const START_DEADLINE: Duration = Duration::from_secs(15);

/// A running nginx that hands each request to the next of the processes behind it, whoever sent it.
///
/// Bodies go through as they come, of any size. A process that does not accept connections is passed over for that
/// request, and asked again for the next.
#[derive(Debug)]
pub struct LoadBalancer {
    proc: Proc,
    addr: SocketAddr,
    scheme: &'static str,
    access_log: PathBuf,
}

impl LoadBalancer {
    /// Starts it before these addresses, which speak plain HTTP; with `tls` it speaks HTTPS (1.1 and 2) itself.
    ///
    /// # Errors
    /// When Debian's package `nginx-light` is missing, or it does not start.
    pub fn start(host: &Host, run: &Run, behind: &[SocketAddr], tls: Option<&Certificate>) -> Result<Self> {
        ensure!(!behind.is_empty(), "nothing to balance");
        let program = system_program("nginx", "nginx-light")?;
        let (folder, addr) = (run.data_dir("balancer")?, host.addr(host.free_port()?));
        let access_log = folder.join("access.log");
        let servers = behind.iter().fold(String::new(), |mut text, addr| {
            // max_fails=0: a process that was down for a moment is asked again at once.
            let _ = write!(text, "server {addr} max_fails=0; ");
            text
        });
        let (ssl, certificate) = match tls {
            None => ("", String::new()),
            Some(tls) => (
                " ssl http2",
                format!("ssl_certificate {}; ssl_certificate_key {};", tls.cert.display(), tls.key.display()),
            ),
        };
        // As root, nginx would otherwise switch to a user that cannot read the run's folder.
        let user = if crate::is_root() { "user root;" } else { "" };
        let folder_text = folder.display();
        // One worker: each counts the turns by itself.
        let config = format!(
            r#"daemon off; worker_processes 1; {user} pid {folder_text}/nginx.pid; error_log stderr warn;
events {{ worker_connections 4096; }}
http {{
  log_format skimmer escape=json '{{"status":$status,"behind":"$upstream_addr"}}';
  access_log {log} skimmer;
  client_body_temp_path {folder_text}/body; proxy_temp_path {folder_text}/proxy; fastcgi_temp_path {folder_text}/fastcgi;
  uwsgi_temp_path {folder_text}/uwsgi; scgi_temp_path {folder_text}/scgi;
  client_max_body_size 0; keepalive_requests 1000000;
  upstream behind {{ {servers}keepalive 64; keepalive_requests 1000000; }}
  server {{
    listen {addr}{ssl}; server_name registry; {certificate}
    location / {{
      proxy_pass http://behind;
      proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_request_buffering off; proxy_max_temp_file_size 0;
      proxy_read_timeout 900s; proxy_send_timeout 900s;
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Proto $scheme;
    }}
  }}
}}
"#,
            log = access_log.display(),
        );
        let path = folder.join("nginx.conf");
        fs::write(&path, config)?;
        let program = host.program(program).arg("-p").arg(&folder).args(["-e", "stderr", "-c"]).arg(path);
        let mut proc = program.start(run, "balancer")?;
        proc.wait_port(addr, START_DEADLINE)?;
        Ok(Self { proc, addr, scheme: if tls.is_some() { "https" } else { "http" }, access_log })
    }

    /// Where clients reach it.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `address:port`, as it stands in an image reference.
    #[must_use]
    pub fn name(&self) -> String {
        self.addr.to_string()
    }

    /// The URL of a path: `/v2/…`.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.addr)
    }

    /// How many requests each process behind it has answered so far.
    ///
    /// # Errors
    /// When its log is not what it was told to write.
    pub fn answered(&self) -> Result<BTreeMap<SocketAddr, u64>> {
        let text = fs::read_to_string(&self.access_log)?;
        let mut answered = BTreeMap::new();
        for line in text.lines() {
            let entry: serde_json::Value =
                serde_json::from_str(line).with_context(|| format!("access log line {line}"))?;
            // Of several that were tried, the last one answered; none, when nobody behind it was asked.
            let behind = entry["behind"].as_str().and_then(|tried| tried.rsplit(", ").next()).unwrap_or_default();
            if let Ok(addr) = behind.parse() {
                *answered.entry(addr).or_default() += 1;
            }
        }
        Ok(answered)
    }

    /// The process, to stop and start it.
    pub const fn process(&mut self) -> &mut Proc {
        &mut self.proc
    }
}
