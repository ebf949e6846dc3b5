//! What a command line asks for, as data.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::Shell;
use proto::TaskSpec;

use crate::backend::Route;

/// What to do.
#[derive(Debug)]
pub enum Action {
    /// Download.
    Download(Box<Job>),
    /// Print the help.
    Help,
    /// Print the version.
    Version,
    /// Print the tables of the documentation.
    GenDoc,
    /// Print completions.
    Completions(Shell),
}

/// A download, of a file or a folder.
#[derive(Clone, Debug)]
pub struct Job {
    /// What: identity and range.
    pub spec: TaskSpec,
    /// For the origin.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Where to, absolute; ends in a file's name unless the job is recursive.
    pub output: PathBuf,
    /// An existing output may be replaced.
    pub overwrite: bool,
    /// Nothing but a hard link will do.
    pub force_hard_link: bool,
    /// Write into the output at the range's own offset.
    pub original_offset: bool,
    /// `--digest crc32:`: checked over the bytes that dfget writes.
    pub crc32: Option<u32>,
    /// Bytes come over the socket, and dfget writes.
    pub stream: bool,
    /// Where the bytes may come from.
    pub route: Route,
    /// The origin must not be asked.
    pub never_origin: bool,
    /// 0 to 6.
    pub priority: u32,
    /// Limit of this download.
    pub rate_bytes_per_s: Option<u64>,
    /// Its share at least.
    pub rate_min_bytes_per_s: Option<u64>,
    /// For the whole command.
    pub timeout: Option<Duration>,
    /// Who asks, for the dfdaemon's log.
    pub caller: String,
    /// `-r`.
    pub recursive: Option<Recursive>,
    /// The dfdaemon's socket; `None` when the download is to run in this process.
    pub endpoint: Option<Endpoint>,
    /// For the engine in this process.
    pub local: LocalSettings,
    /// What is shown.
    pub show: Show,
    /// What is logged.
    pub log: Option<LogOptions>,
}

/// A socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Its path.
    pub path: PathBuf,
    /// The user named it.
    pub named: bool,
}

/// How a folder is downloaded.
#[derive(Clone, Debug)]
pub struct Recursive {
    /// Globs; any one must match, unless there is none.
    pub include: Vec<String>,
    /// A URL must match it.
    pub accept: Option<String>,
    /// A URL must not match it.
    pub reject: Option<String>,
    /// Folders below the one named: 0 for none.
    pub depth_max: usize,
    /// Files.
    pub files_max: usize,
    /// Files at a time.
    pub parallel: usize,
    /// Only print the URLs.
    pub list: bool,
}

/// What is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Show {
    /// JSON on stdout.
    pub json: bool,
    /// Lines of progress where no bar can be.
    pub lines: bool,
    /// A bar on a terminal.
    pub bar: bool,
}

/// What is logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogOptions {
    /// One of [`crate::args::LEVELS`].
    pub level: String,
    /// The folder of `dfget.log`.
    pub folder: Option<PathBuf>,
    /// To stderr.
    pub stderr: bool,
}

/// What only the engine in this process needs to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalSettings {
    /// Supernodes to use instead of the ones found.
    pub supernodes: Vec<Supernode>,
    /// `--home`.
    pub home: Option<PathBuf>,
    /// `--datadir`: the store.
    pub data_dir: Option<PathBuf>,
    /// What is downloaded, for a store of this download's own when another dfget has the usual one.
    pub name: String,
    /// Address of the peer listener, told to others.
    pub ip: Option<IpAddr>,
    /// Port of the peer listener.
    pub port: Option<u16>,
    /// After the download peers are served until nobody asked for this long.
    pub alive: Option<Duration>,
    /// Stored content that nobody used for this long is forgotten.
    pub expire: Option<Duration>,
    /// Pieces on their way at a time.
    pub pieces_in_flight: Option<u32>,
    /// Limit of all traffic.
    pub total_rate_bytes_per_s: Option<u64>,
    /// PEM files with certificates to trust for origins.
    pub ca_files: Vec<PathBuf>,
    /// Origins' certificates are not checked.
    pub insecure: bool,
}

/// A supernode the user named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Supernode {
    /// `http://host:port` of its gRPC listener.
    pub endpoint: String,
    /// How often it is drawn compared with the others, at least 1.
    pub weight: u32,
}
