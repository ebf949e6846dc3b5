//! MinIO and versitygw: object storage that speaks S3.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Result, ensure};

use crate::{Curl, Host, Proc, Run, go_tool};

/// Big programs that read their folder first; on a busy machine a few seconds.
const START_DEADLINE: Duration = Duration::from_secs(60);
const ACCESS_KEY: &str = "skimmer";
const SECRET_KEY: &str = "of-one-test-run";
const REGION: &str = "us-east-1";

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum S3Kind {
    /// MinIO, which holds on to S3's smallest part of 5 MiB.
    Minio,
    /// versitygw, which keeps objects as files.
    Versitygw,
}

/// A running S3 server with a folder of its own, plain HTTP. Objects are named by path (`/bucket/key`).
#[derive(Debug)]
pub struct S3Server {
    proc: Proc,
    addr: SocketAddr,
    health: &'static str,
}

impl S3Kind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Minio, Self::Versitygw];

    /// `minio` or `versitygw`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Minio => "minio",
            Self::Versitygw => "versitygw",
        }
    }
}

impl S3Server {
    /// Starts one without buckets.
    ///
    /// # Errors
    /// When `./dev setup` has not built it, or it does not start.
    pub fn start(kind: S3Kind, host: &Host, run: &Run) -> Result<Self> {
        let program = host.program(go_tool(kind.name())?);
        let (folder, addr) = (run.data_dir(kind.name())?, host.addr(host.free_port()?));
        let (program, health) = match kind {
            S3Kind::Minio => {
                let program = program.args(["server", "--quiet", "--address", &addr.to_string(), "--certs-dir"]);
                let program = program.arg(folder.join("certificates")).arg(folder.join("data"));
                let keys = [("MINIO_ROOT_USER", ACCESS_KEY), ("MINIO_ROOT_PASSWORD", SECRET_KEY)];
                // It has a web page on one more port, and asks the internet for a newer version.
                let switched_off = [("MINIO_BROWSER", "off"), ("MINIO_UPDATE", "off")];
                let program = keys
                    .into_iter()
                    .chain(switched_off)
                    .fold(program, |program, (name, value)| program.env(name, value));
                (program, "/minio/health/ready")
            }
            S3Kind::Versitygw => {
                let data = folder.join("data");
                std::fs::create_dir(&data)?;
                let program =
                    program.args(["--port", &addr.to_string(), "--keep-alive", "--quiet", "--health", "/health"]);
                let program = program.arg("posix").arg(data);
                (program.env("ROOT_ACCESS_KEY", ACCESS_KEY).env("ROOT_SECRET_KEY", SECRET_KEY), "/health")
            }
        };
        let proc = program.env("HOME", &folder).dir(&folder).start(run, kind.name())?;
        let mut server = Self { proc, addr, health };
        server.ready()?;
        Ok(server)
    }

    fn ready(&mut self) -> Result<()> {
        self.proc.wait_port(self.addr, START_DEADLINE)?;
        let url = format!("{}{}", self.endpoint(), self.health);
        self.proc.wait_http(&url, START_DEADLINE)?;
        // MinIO calls itself ready a moment before it knows its own users and buckets.
        let (curl, list) = (self.curl(), format!("{}/", self.endpoint()));
        self.proc.wait_until("lists its buckets", START_DEADLINE, |_| {
            curl.clone().get(&list).is_ok_and(|reply| reply.status == 200)
        })
    }

    /// `http://address:port`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The name of its only user's key.
    #[must_use]
    pub const fn access_key(&self) -> &'static str {
        ACCESS_KEY
    }

    /// The key.
    #[must_use]
    pub const fn secret_key(&self) -> &'static str {
        SECRET_KEY
    }

    /// The region requests are signed for.
    #[must_use]
    pub const fn region(&self) -> &'static str {
        REGION
    }

    /// Makes an empty bucket and returns its name.
    ///
    /// # Errors
    /// When there is one of this name, or the name is not one.
    pub fn bucket(&self, name: &str) -> Result<String> {
        let reply = self.curl().args(["-X", "PUT"]).get(&format!("{}/{name}", self.endpoint()))?;
        let said = String::from_utf8_lossy(&reply.body);
        ensure!(reply.status == 200, "bucket {name} was not made: {} {said}", reply.status);
        Ok(name.to_owned())
    }

    /// The sections of a registry's configuration that make this bucket its store.
    #[must_use]
    pub fn store(&self, bucket: &str) -> String {
        format!(
            "[store]\nkind = \"s3\"\n[store.s3]\nendpoint = \"{}\"\nbucket = \"{bucket}\"\nregion = \"{REGION}\"\n\
             access_key = \"{ACCESS_KEY}\"\nsecret_key = \"{SECRET_KEY}\"\nallow_http = true\n",
            self.endpoint()
        )
    }

    /// curl from the server's host that signs its requests: to look at, change and remove objects behind the
    /// registry's back.
    #[must_use]
    pub fn curl(&self) -> Curl {
        let user = format!("{ACCESS_KEY}:{SECRET_KEY}");
        let curl = Curl::new(self.proc.host()).args(["--aws-sigv4", &format!("aws:amz:{REGION}:s3"), "--user", &user]);
        curl.header("x-amz-content-sha256", "UNSIGNED-PAYLOAD")
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it does not go.
    pub fn kill(&mut self) -> Result<()> {
        self.proc.kill().map(drop)
    }

    /// Starts it again over the same folder, and returns when it answers; kills it first when it still runs.
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
