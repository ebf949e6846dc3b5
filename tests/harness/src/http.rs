//! HTTP as a person would do it: curl, on a host.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use crate::Host;

/// A request curl makes from a host. Proxies of the environment are not used.
#[derive(Debug, Clone)]
pub struct Curl {
    host: Host,
    args: Vec<String>,
    max_time: Duration,
    output: Option<PathBuf>,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The last status, after redirects when they were followed.
    pub status: u16,
    /// Headers of the last answer, names in lower case; of repeated ones the last.
    pub headers: BTreeMap<String, String>,
    /// The body; empty when it went to a file.
    pub body: Vec<u8>,
    /// curl's exit code: not 0 when the body was cut short.
    pub exit: i32,
    /// From start to end of the transfer, as curl measured it.
    pub elapsed: Duration,
}

/// The value of an `Authorization` header.
#[must_use]
pub fn basic_auth(user: &str, password: &str) -> String {
    format!("Basic {}", crate::tls::base64(format!("{user}:{password}").as_bytes(), crate::tls::Alphabet::Standard))
}

impl Curl {
    /// A request from this host, of at most 60 s.
    #[must_use]
    pub fn new(host: &Host) -> Self {
        Self { host: host.clone(), args: Vec::new(), max_time: Duration::from_secs(60), output: None }
    }

    /// Adds arguments as curl takes them.
    #[must_use]
    pub fn args<S: Into<String>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Adds a request header.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        self.args(["-H".to_owned(), format!("{name}: {value}")])
    }

    /// Asks for bytes `first` to `last`, inclusive as in the header.
    #[must_use]
    pub fn range(self, first: u64, last: u64) -> Self {
        self.header("Range", &format!("bytes={first}-{last}"))
    }

    /// Trusts this authority.
    #[must_use]
    pub fn ca(self, file: &Path) -> Self {
        self.args(["--cacert".to_owned(), file.display().to_string()])
    }

    /// Goes through this HTTP proxy.
    #[must_use]
    pub fn proxy(self, url: &str) -> Self {
        self.args(["--proxy", url])
    }

    /// Gives up after this long.
    #[must_use]
    pub const fn max_time(mut self, time: Duration) -> Self {
        self.max_time = time;
        self
    }

    /// Writes the body to a file.
    #[must_use]
    pub fn output(mut self, file: impl Into<PathBuf>) -> Self {
        self.output = Some(file.into());
        self
    }

    /// GET, or whatever the arguments say. An answer cut short is a reply with `exit` other than 0.
    ///
    /// # Errors
    /// When no answer came at all.
    pub fn get(self, url: &str) -> Result<Reply> {
        let folder = tempfile::tempdir()?;
        let (head, body) = (folder.path().join("head"), folder.path().join("body"));
        let program = self.host.program("curl").args(["-sS", "--noproxy", "*", "-w", "%{http_code} %{time_total}"]);
        let uses_proxy = self.args.iter().any(|arg| arg == "--proxy");
        let program = if uses_proxy { program.args(["--noproxy", ""]) } else { program };
        let finished = program
            .args(["--max-time", &format!("{:.3}", self.max_time.as_secs_f64())])
            .arg("-D")
            .arg(&head)
            .arg("-o")
            .arg(self.output.as_ref().unwrap_or(&body))
            .args(&self.args)
            .arg(url)
            .output(self.max_time + Duration::from_secs(5))?;
        let printed = String::from_utf8_lossy(&finished.stdout);
        let mut words = printed.split(' ');
        let status = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        if status == 0 {
            bail!("{url}: {}", finished.stderr.trim());
        }
        let elapsed = words.next().and_then(|word| word.parse().ok()).map(Duration::from_secs_f64);
        let head = String::from_utf8_lossy(&std::fs::read(&head).unwrap_or_default()).into_owned();
        let body = if self.output.is_some() { Vec::new() } else { std::fs::read(&body).unwrap_or_default() };
        Ok(Reply {
            status,
            headers: last_headers(&head),
            body,
            exit: finished.status.code().context("curl was killed")?,
            elapsed: elapsed.unwrap_or(finished.elapsed),
        })
    }
}

impl Reply {
    /// A header's value.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).context("body is not json")
    }

    /// Of an answer with metrics, the value of the one of this full name, summed over its labels; 0 when it was never
    /// counted.
    ///
    /// # Errors
    /// When there is no such metric.
    pub fn metric(&self, name: &str) -> Result<f64> {
        ensure!(self.status == 200, "metrics answer {}", self.status);
        let text = String::from_utf8_lossy(&self.body);
        ensure!(text.contains(name.trim_end_matches("_total")), "there is no metric {name}");
        let lines = text.lines().filter_map(|line| line.strip_prefix(name));
        let values = lines
            .filter(|rest| rest.starts_with([' ', '{']))
            .filter_map(|rest| rest.rsplit(' ').next()?.parse::<f64>().ok());
        Ok(values.sum())
    }
}

/// curl writes the headers of every answer (redirects, proxies) one after another.
fn last_headers(text: &str) -> BTreeMap<String, String> {
    let last = text.trim_end().rsplit("\r\n\r\n").next().unwrap_or_default();
    let pairs = last.lines().skip(1).filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect()
}
