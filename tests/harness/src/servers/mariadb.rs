//! MariaDB as the registry's database.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use anyhow::{Context, Result};

use super::check_database_name;
use crate::{Host, Proc, Run, programs::system_program};

/// The system tables are written, or a log is read again after a crash; on a busy machine a few seconds.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// One statement of a test.
const STATEMENT_DEADLINE: Duration = Duration::from_secs(60);
const USER: &str = "skimmer";
const PASSWORD: &str = "of-one-test-run";
const DATABASE: &str = "registry";

/// A running mariadbd with a folder of its own. Every commit is on disk before it is answered.
///
/// Character sets and isolation are the server's defaults, as an administrator leaves them.
#[derive(Debug)]
pub struct MariaDb {
    proc: Proc,
    addr: SocketAddr,
}

impl MariaDb {
    /// Starts it with small buffers and an empty database `registry`.
    ///
    /// # Errors
    /// When Debian's package `mariadb-server` is missing, or it does not start.
    pub fn start(host: &Host, run: &Run) -> Result<Self> {
        Self::start_with(host, run, &[])
    }

    /// As [`MariaDb::start`], with more options of mariadbd: `--innodb-buffer-pool-size=1G`.
    ///
    /// # Errors
    /// As [`MariaDb::start`].
    pub fn start_with(host: &Host, run: &Run, options: &[&str]) -> Result<Self> {
        let server = system_program("mariadbd", "mariadb-server")?;
        let folder = run.data_dir("mariadb")?;
        let (data, temporary) = (folder.join("data"), folder.join("tmp"));
        fs::create_dir(&temporary)?;
        install(host, &folder, &data)?;
        // Executed at every start, before the port is open.
        let init = folder.join("init.sql");
        fs::write(
            &init,
            format!(
                "CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{PASSWORD}';\n\
                 GRANT ALL ON *.* TO '{USER}'@'%';\n\
                 CREATE DATABASE IF NOT EXISTS {DATABASE};\n"
            ),
        )?;
        let port = host.free_port()?;
        let proc = host
            .program(server)
            .arg("--no-defaults")
            .args(user_option())
            .args([
                format!("--datadir={}", data.display()),
                format!("--tmpdir={}", temporary.display()),
                format!("--socket={}", folder.join("sock").display()),
                format!("--pid-file={}", folder.join("pid").display()),
                format!("--init-file={}", init.display()),
                format!("--bind-address={}", host.ip()),
                format!("--port={port}"),
            ])
            .args([
                "--innodb-flush-log-at-trx-commit=1",
                "--innodb-buffer-pool-size=64M",
                "--innodb-log-file-size=48M",
                "--max-connections=300",
                "--skip-log-bin",
                "--skip-name-resolve",
                "--performance-schema=OFF",
            ])
            .args(options)
            .start(run, "mariadb")?;
        let mut server = Self { proc, addr: host.addr(port) };
        server.ready()?;
        Ok(server)
    }

    fn ready(&mut self) -> Result<()> {
        self.proc.wait_port(self.addr, START_DEADLINE)?;
        // The port is bound a moment before it is served.
        self.sql(DATABASE, "SELECT 1").map(drop)
    }

    /// The database `registry`: `mysql://user:password@address:port/registry`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url_of(DATABASE)
    }

    fn url_of(&self, database: &str) -> String {
        format!("mysql://{USER}:{PASSWORD}@{}/{database}", self.addr)
    }

    /// Makes an empty database and returns its URL. A name is letters, digits and underscores, in lower case.
    ///
    /// # Errors
    /// When there is one of this name.
    pub fn database(&self, name: &str) -> Result<String> {
        check_database_name(name)?;
        self.sql(DATABASE, &format!("CREATE DATABASE {name}"))?;
        Ok(self.url_of(name))
    }

    /// Executes statements with MariaDB's own client and returns the rows, columns separated by tabs.
    ///
    /// # Errors
    /// When the server refuses or is gone.
    pub fn sql(&self, database: &str, statements: &str) -> Result<String> {
        let client = system_program("mariadb", "mariadb-client")?;
        let (ip, port) = (self.addr.ip().to_string(), self.addr.port().to_string());
        let finished = self
            .proc
            .host()
            .program(client)
            .args(["--no-defaults", "--protocol=tcp", "-h", &ip, "-P", &port, "-u", USER])
            .args(["--batch", "--skip-column-names", "--default-character-set=utf8mb4", database, "-e", statements])
            .env("MYSQL_PWD", PASSWORD)
            .run(STATEMENT_DEADLINE)?;
        String::from_utf8(finished.stdout).context("answer is not utf-8")
    }

    /// Where it listens.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `kill -9`; what was committed is on disk.
    ///
    /// # Errors
    /// When it does not go.
    pub fn kill(&mut self) -> Result<()> {
        self.proc.kill().map(drop)
    }

    /// Starts it again over the same data, and returns when it answers; kills it first when it still runs.
    ///
    /// # Errors
    /// When it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.proc.restart()?;
        self.ready()
    }

    /// The process, to stop, continue or measure it.
    pub const fn process(&mut self) -> &mut Proc {
        &mut self.proc
    }
}

fn install(host: &Host, folder: &Path, data: &Path) -> Result<()> {
    let install = system_program("mariadb-install-db", "mariadb-server")?;
    host.program(install)
        .arg("--no-defaults")
        .args(user_option())
        .args([
            format!("--datadir={}", data.display()),
            // A server that starts removes what others keep in the folder they share.
            format!("--tmpdir={}", folder.display()),
            // Of the size the server is started with, or it would have to write them anew.
            "--innodb-log-file-size=48M".to_owned(),
            "--auth-root-authentication-method=normal".to_owned(),
            "--skip-name-resolve".to_owned(),
            "--skip-test-db".to_owned(),
        ])
        .dir(folder)
        .run(START_DEADLINE)
        .map(drop)
}

/// mariadbd runs as root only when told so.
fn user_option() -> Option<&'static str> {
    crate::is_root().then_some("--user=root")
}
