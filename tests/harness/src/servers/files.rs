//! nginx and Apache as file origins.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};

use super::{AccessEntry, read_access_log};
use crate::{Certificate, Host, Proc, Run};

/// Both start in well under a second, on a busy machine in a few.
const START_DEADLINE: Duration = Duration::from_secs(15);

/// How a file origin behaves.
#[derive(Debug, Clone, Default)]
pub struct FileServerOptions {
    /// User and password of HTTP basic authentication.
    pub basic_auth: Option<(String, String)>,
    /// Bytes per second of one answer; nginx only.
    pub rate_bytes_per_s: Option<u64>,
    /// Answers above this rate get 503 with `Retry-After: 1`; nginx only.
    pub requests_per_s: Option<u32>,
    /// HTTPS with this certificate; nginx only.
    pub tls: Option<Certificate>,
}

/// nginx or Apache over a folder, with listings and ranges.
#[derive(Debug)]
pub struct FileServer {
    proc: Proc,
    root: PathBuf,
    access_log: PathBuf,
    url: String,
}

impl FileServer {
    /// Starts nginx over a fresh folder.
    ///
    /// # Errors
    /// When it does not start.
    pub fn nginx(host: &Host, run: &Run, options: &FileServerOptions) -> Result<Self> {
        let (folder, root, port) = (run.data_dir("nginx")?, run.data_dir("files")?, host.free_port()?);
        let config = nginx_config(host, &folder, &root, port, options)?;
        fs::write(folder.join("nginx.conf"), config)?;
        let program = host.program("nginx").arg("-p").arg(&folder).arg("-e").arg("stderr").arg("-c");
        let proc = program.arg(folder.join("nginx.conf")).start(run, "nginx")?;
        let scheme = if options.tls.is_some() { "https" } else { "http" };
        Self { proc, access_log: folder.join("access.log"), root, url: format!("{scheme}://{}", host.addr(port)) }
            .ready(port)
    }

    /// Starts Apache over a fresh folder.
    ///
    /// # Errors
    /// When it does not start, or an option is nginx's alone.
    pub fn apache(host: &Host, run: &Run, options: &FileServerOptions) -> Result<Self> {
        let nginx_only =
            options.tls.is_some() || options.rate_bytes_per_s.is_some() || options.requests_per_s.is_some();
        ensure!(!nginx_only, "tls and rates are set up for nginx only");
        let (folder, root, port) = (run.data_dir("apache")?, run.data_dir("files")?, host.free_port()?);
        fs::write(folder.join("apache2.conf"), apache_config(host, &folder, &root, port, options)?)?;
        let program = host.program("apache2").args(["-D", "FOREGROUND", "-d"]).arg(&folder).arg("-f");
        let proc = program.arg(folder.join("apache2.conf")).start(run, "apache")?;
        Self { proc, access_log: folder.join("access.log"), root, url: format!("http://{}", host.addr(port)) }
            .ready(port)
    }

    fn ready(mut self, port: u16) -> Result<Self> {
        let addr = self.proc.host().addr(port);
        self.proc.wait_port(addr, START_DEADLINE)?;
        Ok(self)
    }

    /// The folder it serves.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The URL of a path below the folder.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}/{}", self.url, path.trim_start_matches('/'))
    }

    /// What it answered so far, oldest first.
    ///
    /// # Errors
    /// When its log is not what it was told to write.
    pub fn access_log(&self) -> Result<Vec<AccessEntry>> {
        read_access_log(&self.access_log)
    }

    /// Body bytes it sent so far for this path, of answers to GET.
    ///
    /// # Errors
    /// As [`FileServer::access_log`].
    pub fn bytes_sent(&self, path: &str) -> Result<u64> {
        let path = format!("/{}", path.trim_start_matches('/'));
        let entries = self.access_log()?;
        let wanted = entries.iter().filter(|entry| entry.method == "GET" && entry.uri.split('?').next() == Some(&path));
        Ok(wanted.map(|entry| entry.body_bytes).sum())
    }

    /// The process, to stop and start it.
    pub const fn process(&mut self) -> &mut Proc {
        &mut self.proc
    }
}

fn htpasswd(host: &Host, folder: &Path, options: &FileServerOptions) -> Result<Option<PathBuf>> {
    let Some((user, password)) = &options.basic_auth else { return Ok(None) };
    // APR1, which both servers read.
    let finished = host.program("htpasswd").args(["-nbm", user, password]).run(Duration::from_secs(10))?;
    let path = folder.join("htpasswd");
    fs::write(&path, finished.stdout)?;
    Ok(Some(path))
}

fn nginx_config(host: &Host, folder: &Path, root: &Path, port: u16, options: &FileServerOptions) -> Result<String> {
    let folder_text = folder.display();
    // As root, nginx would otherwise switch to a user that cannot read the run's folder.
    let user = if crate::is_root() { "user root;" } else { "" };
    let mut config = format!(
        r#"daemon off; worker_processes 2; {user} pid {folder_text}/nginx.pid; error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
  log_format skimmer escape=json '{{"method":"$request_method","uri":"$request_uri","status":$status,"bytes":$body_bytes_sent,"range":"$http_range","from":"$remote_addr"}}';
  access_log {folder_text}/access.log skimmer;
  client_body_temp_path {folder_text}/body; proxy_temp_path {folder_text}/proxy; fastcgi_temp_path {folder_text}/fastcgi;
  uwsgi_temp_path {folder_text}/uwsgi; scgi_temp_path {folder_text}/scgi;
  sendfile on; tcp_nopush on; default_type application/octet-stream;
"#
    );
    if let Some(rate) = options.requests_per_s {
        writeln!(config, "  limit_req_zone $server_name zone=all:1m rate={rate}r/s;")?;
    }
    let tls = if options.tls.is_some() { " ssl" } else { "" };
    writeln!(
        config,
        "  server {{ listen {}{tls}; server_name origin; root {}; autoindex on;",
        host.addr(port),
        root.display()
    )?;
    if let Some(tls) = &options.tls {
        writeln!(config, "    ssl_certificate {}; ssl_certificate_key {};", tls.cert.display(), tls.key.display())?;
    }
    if let Some(rate) = options.rate_bytes_per_s {
        writeln!(config, "    limit_rate {rate};")?;
    }
    if options.requests_per_s.is_some() {
        // Without `always` nginx leaves the header off error answers.
        writeln!(config, "    limit_req zone=all burst=1 nodelay; add_header Retry-After 1 always;")?;
    }
    if let Some(users) = htpasswd(host, folder, options)? {
        writeln!(config, "    auth_basic origin; auth_basic_user_file {};", users.display())?;
    }
    config.push_str("  }\n}\n");
    Ok(config)
}

fn apache_config(host: &Host, folder: &Path, root: &Path, port: u16, options: &FileServerOptions) -> Result<String> {
    let (folder_text, root_text) = (folder.display(), root.display());
    let mut config = String::new();
    let modules =
        ["mpm_event", "authz_core", "authz_user", "authn_core", "authn_file", "auth_basic", "dir", "autoindex", "mime"];
    for module in modules {
        writeln!(config, "LoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so")?;
    }
    let access = match htpasswd(host, folder, options)? {
        Some(users) => {
            format!("AuthType Basic\n AuthName origin\n AuthUserFile {}\n Require valid-user", users.display())
        }
        None => "Require all granted".to_owned(),
    };
    // Apache refuses to serve as root; files of a run are readable by all, its folder is opened below.
    let user = if crate::is_root() { "User www-data\nGroup www-data\n" } else { "" };
    if crate::is_root() {
        open_for_others(folder)?;
        open_for_others(root)?;
    }
    writeln!(
        config,
        r#"ServerName origin
Listen {addr}
{user}PidFile {folder_text}/apache.pid
ErrorLog /dev/stderr
LogFormat "{{\"method\":\"%m\",\"uri\":\"%U%q\",\"status\":%>s,\"bytes\":\"%B\",\"range\":\"%{{Range}}i\",\"from\":\"%a\"}}" skimmer
CustomLog {folder_text}/access.log skimmer
TypesConfig /etc/mime.types
DocumentRoot {root_text}
<Directory {root_text}>
 Options +Indexes
 IndexOptions FancyIndexing HTMLTable
 {access}
</Directory>"#,
        addr = host.addr(port),
    )?;
    Ok(config)
}

/// Lets other users walk down to a folder of the run, as servers that change their user must.
pub(super) fn open_for_others(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let temp = std::env::temp_dir();
    for folder in folder.ancestors().take_while(|ancestor| *ancestor != temp && ancestor.parent().is_some()) {
        let mode = fs::metadata(folder)?.permissions().mode();
        if mode & 0o005 != 0o005 {
            fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o055))?;
        }
    }
    Ok(())
}
