//! `[store]`: where the bytes lie.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use service::config::{ByteSize, Problems, Redacted, Validate};
use url::Url;

/// `[store]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// Which backend.
    pub kind: StoreKind,
    /// The folder, of the filesystem backend. It must not be shared with anything else.
    pub path: PathBuf,
    /// The bucket, of the S3 backend.
    pub s3: Option<S3Config>,
}

/// Which backend holds the bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// A folder of a local filesystem.
    #[default]
    Filesystem,
    /// S3-compatible object storage.
    S3,
}

/// `[store.s3]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct S3Config {
    /// Where the storage listens, without the bucket; AWS of the region when it is not given.
    pub endpoint: Option<Url>,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket, which must exist.
    pub bucket: String,
    /// All keys start with this and a slash, so that a bucket can be shared.
    pub prefix: String,
    /// The access key. Empty: what the environment (`AWS_…`) or the machine gives.
    pub access_key: String,
    /// The secret that belongs to it.
    pub secret_key: Redacted<String>,
    /// The bucket stands in the path, not in the host name.
    pub path_style: bool,
    /// Plain HTTP is allowed. Payloads are then signed, which costs a second SHA-256 of everything.
    pub allow_http: bool,
    /// Length of the parts of an upload; 10,000 of them are the longest blob.
    pub part_size: ByteSize,
    /// Parts on their way to the storage at a time, of all uploads together.
    pub parts_in_flight: usize,
    /// Memory for what all uploads together hold of their parts: those on their way, and what does not fill one yet. Uploads for which
    /// there is no room put that into the bucket until it does.
    pub upload_memory: ByteSize,
    /// Ends of uploads that this process keeps in memory, so that it need not read them back; together.
    pub tail_cache: ByteSize,
    /// Clients that fetch a blob are sent to the storage itself, with a signed URL.
    pub redirect: bool,
    /// Where clients reach the storage, when that is another address than `endpoint`.
    pub redirect_endpoint: Option<Url>,
    /// Many objects are removed with one request. Off for storages that do not know it.
    pub bulk_delete: bool,
    /// A connection must stand within this time.
    #[serde(with = "service::config::duration")]
    pub connect_timeout: Duration,
    /// One request must be sent and its answer begun within this time, and bytes may not pause longer than this.
    #[serde(with = "service::config::duration")]
    pub request_timeout: Duration,
    /// A request that fails, or is told to slow down, is repeated for so long.
    #[serde(with = "service::config::duration")]
    pub retry_deadline: Duration,
}

/// S3 allows no smaller ones, but for the last.
const PART_SIZE_MIN: ByteSize = ByteSize::mib(5);
/// More would be held in memory per upload than anybody wants.
const PART_SIZE_MAX: ByteSize = ByteSize::gib(1);
const IN_FLIGHT_MAX: usize = 1024;
const UPLOAD_MEMORY_MAX: ByteSize = ByteSize::gib(1024);
const TIME_MIN: Duration = Duration::from_millis(100);
const TIME_MAX: Duration = Duration::from_secs(3600);

impl Default for StoreConfig {
    fn default() -> Self {
        Self { kind: StoreKind::Filesystem, path: PathBuf::from("/var/lib/skimmer/registry/store"), s3: None }
    }
}

impl Default for S3Config {
    fn default() -> Self {
        Self {
            endpoint: None,
            region: "us-east-1".to_owned(),
            bucket: String::new(),
            prefix: String::new(),
            access_key: String::new(),
            secret_key: Redacted::default(),
            path_style: true,
            allow_http: false,
            part_size: ByteSize::mib(8),
            parts_in_flight: 8,
            upload_memory: ByteSize::mib(128),
            tail_cache: ByteSize::mib(64),
            redirect: false,
            redirect_endpoint: None,
            bulk_delete: true,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(60),
            retry_deadline: Duration::from_secs(30),
        }
    }
}

impl Validate for StoreConfig {
    fn validate(&self, problems: &mut Problems) {
        match (self.kind, &self.s3) {
            (StoreKind::Filesystem, _) => {
                problems.check(!self.path.as_os_str().is_empty(), "path", "must not be empty");
            }
            (StoreKind::S3, Some(s3)) => problems.within("s3", |problems| s3.validate(problems)),
            (StoreKind::S3, None) => problems.push("s3", "is required for this kind of store"),
        }
    }
}

impl Validate for S3Config {
    fn validate(&self, problems: &mut Problems) {
        problems.check(
            !self.bucket.is_empty() && !self.bucket.contains('/'),
            "bucket",
            "the name of a bucket is expected",
        );
        problems.check(!self.region.is_empty(), "region", "must not be empty");
        let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && part.chars().all(is_plain);
        problems.check(
            self.prefix.is_empty() || self.prefix.split('/').all(plain),
            "prefix",
            "letters, digits, '-', '_' and '.' are allowed, with single slashes between them",
        );
        problems.check(
            self.access_key.is_empty() == self.secret_key.expose().is_empty(),
            "secret_key",
            "access_key and secret_key are given together, or neither is",
        );
        for (name, url) in [("endpoint", &self.endpoint), ("redirect_endpoint", &self.redirect_endpoint)] {
            if let Some(url) = url {
                problems.check(
                    matches!(url.scheme(), "http" | "https") && url.has_host() && url.query().is_none(),
                    name,
                    "expected for example \"https://s3.example.com\"",
                );
            }
        }
        if let Some(url) = &self.endpoint {
            problems.check(self.allow_http || url.scheme() != "http", "endpoint", "plain HTTP needs allow_http = true");
        }
        problems.check(
            (PART_SIZE_MIN..=PART_SIZE_MAX).contains(&self.part_size),
            "part_size",
            format!("{PART_SIZE_MIN} to {PART_SIZE_MAX} are allowed"),
        );
        problems.check(
            (1..=IN_FLIGHT_MAX).contains(&self.parts_in_flight),
            "parts_in_flight",
            format!("1 to {IN_FLIGHT_MAX} are allowed"),
        );
        let parts = self.parts_on_their_way();
        problems.check(
            (parts..=UPLOAD_MEMORY_MAX).contains(&self.upload_memory),
            "upload_memory",
            format!("{parts} (parts_in_flight times part_size) to {UPLOAD_MEMORY_MAX} are allowed"),
        );
        for (name, value) in [
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("retry_deadline", self.retry_deadline),
        ] {
            problems.check((TIME_MIN..=TIME_MAX).contains(&value), name, "100ms to 1h are allowed");
        }
    }
}

impl S3Config {
    /// What the parts on their way take of the memory.
    pub(crate) fn parts_on_their_way(&self) -> ByteSize {
        ByteSize::bytes(self.part_size.as_u64().saturating_mul(self.parts_in_flight as u64))
    }

    /// What is left of the memory for what does not fill a part yet.
    pub(crate) fn memory_for_tails(&self) -> ByteSize {
        ByteSize::bytes(self.upload_memory.as_u64().saturating_sub(self.parts_on_their_way().as_u64()))
    }
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<StoreConfig, service::config::ConfigError> {
        service::config::load_from("c.toml", text, "X", [])
    }

    #[test]
    fn both_kinds() {
        assert_eq!(load("").unwrap(), StoreConfig::default());
        let config = load(
            r#"kind = "s3"
[s3]
endpoint = "http://127.0.0.1:9000"
bucket = "images"
prefix = "a/b"
access_key = "key"
secret_key = "secret"
allow_http = true
part_size = "16MiB"
retry_deadline = "1m"
"#,
        )
        .unwrap();
        let s3 = config.s3.as_ref().unwrap();
        assert_eq!((s3.part_size, s3.retry_deadline), (ByteSize::mib(16), Duration::from_secs(60)));
        assert!(!format!("{config:?}").contains("secret\""), "the secret shows");
        assert!(!serde_json::to_string(&config).unwrap().contains("\"secret\""), "the secret shows");
    }

    #[test]
    fn problems_with_places() {
        let paths = |text: &str| -> Vec<String> {
            load(text).unwrap_err().problems().iter().map(|problem| problem.path.clone()).collect()
        };
        assert_eq!(paths("path = \"\""), ["path"]);
        assert_eq!(paths("kind = \"s3\""), ["s3"]);
        assert_eq!(paths("kind = \"nfs\""), ["kind"]);
        assert_eq!(paths("unknown = 1"), ["unknown"]);
        let s3 = "kind = \"s3\"\n[s3]\nbucket = \"b\"\nparts_in_flight = 4\nupload_memory = ";
        assert_eq!(paths(&format!("{s3}\"31MiB\"")), ["s3.upload_memory"]);
        let least = load(&format!("{s3}\"32MiB\"")).unwrap();
        assert_eq!(least.s3.unwrap().memory_for_tails(), ByteSize::bytes(0));
        let s3 = r#"kind = "s3"
[s3]
endpoint = "http://x"
prefix = "a//b"
access_key = "k"
part_size = "1MiB"
parts_in_flight = 0
request_timeout = "0s"
redirect_endpoint = "ftp://x"
"#;
        let mut found = paths(s3);
        found.sort();
        assert_eq!(
            found,
            [
                "s3.bucket",
                "s3.endpoint",
                "s3.part_size",
                "s3.parts_in_flight",
                "s3.prefix",
                "s3.redirect_endpoint",
                "s3.request_timeout",
                "s3.secret_key"
            ]
            .map(ToOwned::to_owned)
        );
    }
}
