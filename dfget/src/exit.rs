//! Why a download failed, and the exit code that follows. All of it in one table.

use std::error::Error;

use proto::Kind;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Exit {
    /// Everything is where it should be.
    Ok,
    /// A defect of ours.
    Internal,
    /// The command line makes no sense.
    Usage,
    /// Bytes are not what their digest says.
    Digest,
    /// The origin has no such thing.
    NotFound,
    /// The origin, or a rule, says no.
    Denied,
    /// Something that is needed does not answer.
    Unavailable,
    /// No room on the disk.
    NoSpace,
    /// The output cannot be written, or exists.
    Output,
    /// The time given is over.
    Timeout,
    /// Nobody has it, and the origin must not be asked.
    NoPeer,
    /// The origin says later.
    Throttled,
    /// Several files failed for different reasons.
    Several,
    /// A signal.
    Cancelled,
}

/// What went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// The engine's, or the origin's, word.
    Kind(Kind),
    /// The command line.
    Usage,
    /// The output cannot be written.
    Output,
    /// The output exists and may not be replaced.
    Exists,
    /// `--timeout`.
    Timeout,
    /// Nobody has it, and the origin must not be asked.
    NoPeer,
    /// Several files failed for different reasons.
    Several,
    /// A signal.
    Cancelled,
}

/// A row of the table of exit codes.
#[derive(Debug)]
pub struct Row {
    /// The exit code.
    pub exit: Exit,
    /// `kind` in the JSON result.
    pub kinds: &'static [&'static str],
    /// For people.
    pub meaning: &'static str,
}

/// A download that failed, for people and for scripts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// What went wrong.
    pub cause: Cause,
    /// One line.
    pub message: String,
    /// The status the origin answered with.
    pub origin_status: Option<u16>,
    /// The old dfget's code for it, 0 when none fits.
    pub reason: u32,
}

const fn row(exit: Exit, kinds: &'static [&'static str], meaning: &'static str) -> Row {
    Row { exit, kinds, meaning }
}

/// Every exit code.
pub const EXITS: &[Row] = &[
    row(Exit::Ok, &[], "done; the output is complete and verified"),
    row(Exit::Internal, &["internal"], "a defect of dfget or dfdaemon"),
    row(
        Exit::Usage,
        &["usage", "invalid"],
        "the command line, or what it asks for, makes no sense; every problem was listed",
    ),
    row(Exit::Digest, &["corrupt"], "the content is not what --digest or --md5 says; there is no output"),
    row(Exit::NotFound, &["not_found"], "the origin has no such thing (404, 410)"),
    row(
        Exit::Denied,
        &["unauthorized", "forbidden"],
        "the origin refuses these credentials, or a rule forbids it (401, 403)",
    ),
    row(
        Exit::Unavailable,
        &["unavailable"],
        "the origin, or a part that is needed, does not answer (5xx, connection); a later try may succeed",
    ),
    row(Exit::NoSpace, &["no_space"], "no room on the disk"),
    row(
        Exit::Output,
        &["output", "exists", "conflict"],
        "the output cannot be written, or exists and --no-clobber was given",
    ),
    row(Exit::Timeout, &["timeout"], "--timeout is over"),
    row(Exit::NoPeer, &["no_peer"], "--disable-back-to-source was given and no peer has the content"),
    row(Exit::Throttled, &["throttled"], "the origin asks to come later (429)"),
    row(Exit::Several, &["several"], "files of a recursive download failed for different reasons"),
    row(Exit::Cancelled, &["cancelled"], "SIGINT or SIGTERM; no partial output is left"),
];

/// The old dfget's back-to-source reasons, which scripts know.
pub mod reason {
    /// Content does not match its MD5.
    pub const MD5_NOT_MATCH: u32 = 2;
    /// A download went wrong on the way.
    pub const DOWNLOAD_ERROR: u32 = 3;
    /// The disk is full.
    pub const NO_SPACE: u32 = 4;
    /// It could not start.
    pub const INIT_ERROR: u32 = 5;
    /// The output could not be written.
    pub const WRITE_ERROR: u32 = 6;
    /// The host is in trouble.
    pub const HOST_SYS_ERROR: u32 = 7;
    /// No supernode.
    pub const NODE_EMPTY: u32 = 8;
    /// The origin said no.
    pub const SOURCE_ERROR: u32 = 10;
    /// Added to another one when going to the origin was forbidden.
    pub const FORCE_NOT_BACK_SOURCE: u32 = 1000;
}

// === impl Exit ===

impl Exit {
    /// The number the shell sees.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Internal => 1,
            Self::Usage => 2,
            Self::Digest => 3,
            Self::NotFound => 4,
            Self::Denied => 5,
            Self::Unavailable => 6,
            Self::NoSpace => 7,
            Self::Output => 8,
            Self::Timeout => 9,
            Self::NoPeer => 10,
            Self::Throttled => 11,
            Self::Several => 12,
            Self::Cancelled => 130,
        }
    }
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

// === impl Cause ===

impl Cause {
    /// `kind` in the JSON result.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Kind(kind) => kind.label(),
            Self::Usage => "usage",
            Self::Output => "output",
            Self::Exists => "exists",
            Self::Timeout => "timeout",
            Self::NoPeer => "no_peer",
            Self::Several => "several",
            Self::Cancelled => "cancelled",
        }
    }

    /// How the process ends.
    #[must_use]
    pub const fn exit(self) -> Exit {
        match self {
            Self::Kind(Kind::NotFound) => Exit::NotFound,
            Self::Kind(Kind::Unauthorized | Kind::Forbidden) => Exit::Denied,
            Self::Kind(Kind::Throttled) => Exit::Throttled,
            Self::Kind(Kind::Corrupt) => Exit::Digest,
            Self::Kind(Kind::Unavailable) => Exit::Unavailable,
            Self::Kind(Kind::NoSpace) => Exit::NoSpace,
            Self::Kind(Kind::Conflict) | Self::Output | Self::Exists => Exit::Output,
            Self::Kind(Kind::Invalid) | Self::Usage => Exit::Usage,
            Self::Timeout => Exit::Timeout,
            Self::NoPeer => Exit::NoPeer,
            Self::Several => Exit::Several,
            Self::Cancelled => Exit::Cancelled,
            // Kinds that later versions add are ours to learn.
            Self::Kind(_) => Exit::Internal,
        }
    }

    /// The old dfget's code for it, when the engine names none.
    const fn reason(self, from_origin: bool) -> u32 {
        match self {
            Self::Kind(Kind::Corrupt) => reason::MD5_NOT_MATCH,
            Self::Kind(Kind::NoSpace) => reason::NO_SPACE,
            Self::Kind(Kind::NotFound | Kind::Unauthorized | Kind::Forbidden | Kind::Throttled) => reason::SOURCE_ERROR,
            Self::Kind(Kind::Unavailable) if from_origin => reason::SOURCE_ERROR,
            Self::Kind(Kind::Unavailable) | Self::Timeout | Self::Several => reason::DOWNLOAD_ERROR,
            Self::Kind(Kind::Conflict) | Self::Output | Self::Exists => reason::WRITE_ERROR,
            Self::Kind(Kind::Invalid) | Self::Usage => reason::INIT_ERROR,
            Self::NoPeer => reason::FORCE_NOT_BACK_SOURCE + reason::DOWNLOAD_ERROR,
            Self::Cancelled => 0,
            Self::Kind(_) => reason::HOST_SYS_ERROR,
        }
    }
}

// === impl Failure ===

impl Failure {
    /// A failure that dfget itself found.
    pub fn new(cause: Cause, message: impl Into<String>) -> Self {
        Self { cause, message: message.into(), origin_status: None, reason: cause.reason(false) }
    }

    /// What the engine says of a download, in this process or in the dfdaemon.
    ///
    /// `reason` is the old dfget's code, 0 when the engine gives none; 1000 and more says that the origin was
    /// needed and forbidden, 6 that the output could not be written.
    pub fn of_engine(kind: Kind, message: impl Into<String>, origin_status: Option<u16>, given: u32) -> Self {
        let cause = match (kind, given) {
            (_, reason::FORCE_NOT_BACK_SOURCE..) => Cause::NoPeer,
            (Kind::NoSpace, _) => Cause::Kind(Kind::NoSpace),
            (Kind::Conflict, reason::WRITE_ERROR) => Cause::Exists,
            (_, reason::WRITE_ERROR) => Cause::Output,
            (kind, _) => Cause::Kind(kind),
        };
        let reason = if given == 0 { cause.reason(origin_status.is_some()) } else { given };
        Self { cause, message: message.into(), origin_status, reason }
    }

    /// How the process ends.
    #[must_use]
    pub const fn exit(&self) -> Exit {
        self.cause.exit()
    }

    /// An error of the file system about the output.
    #[must_use]
    pub fn of_output(path: &std::path::Path, what: &str, error: &std::io::Error) -> Self {
        let cause = match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Cause::Kind(Kind::NoSpace),
            std::io::ErrorKind::AlreadyExists => Cause::Exists,
            _ => Cause::Output,
        };
        Self::new(cause, format!("cannot {what} {}: {}", path.display(), plain(error)))
    }
}

/// An error and what caused it on one line.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = plain(error);
    let mut source = error.source();
    while let Some(error) = source {
        let more = plain(error);
        // Wrappers like to repeat what they wrap.
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

/// An error without the "(os error 13)" of the system's ones, and in lower case, as our messages are.
fn plain(error: &dyn Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn causes() -> impl Iterator<Item = Cause> {
        Kind::ALL.into_iter().map(Cause::Kind).chain([
            Cause::Usage,
            Cause::Output,
            Cause::Exists,
            Cause::Timeout,
            Cause::NoPeer,
            Cause::Several,
            Cause::Cancelled,
        ])
    }

    #[test]
    fn the_table_has_each_code_and_each_kind_once() {
        let mut codes: Vec<_> = EXITS.iter().map(|row| row.exit.code()).collect();
        codes.dedup();
        assert_eq!(codes.len(), EXITS.len());
        for cause in causes() {
            let rows: Vec<_> = EXITS.iter().filter(|row| row.kinds.contains(&cause.label())).collect();
            assert_eq!(rows.len(), 1, "{cause:?}");
            assert_eq!(rows[0].exit, cause.exit(), "{cause:?}");
        }
    }

    #[test]
    fn what_the_engine_says() {
        let of = |kind, status, reason| {
            let failure = Failure::of_engine(kind, "x", status, reason);
            (failure.exit(), failure.reason)
        };
        assert_eq!(of(Kind::Corrupt, None, 0), (Exit::Digest, 2));
        assert_eq!(of(Kind::Unavailable, Some(503), 0), (Exit::Unavailable, 10));
        assert_eq!(of(Kind::Unavailable, None, 0), (Exit::Unavailable, 3));
        assert_eq!(of(Kind::Unavailable, None, 1008), (Exit::NoPeer, 1008));
        assert_eq!(of(Kind::Forbidden, None, 6), (Exit::Output, 6));
        assert_eq!(of(Kind::NoSpace, None, 6), (Exit::NoSpace, 6));
        assert_eq!(of(Kind::NotFound, Some(404), 0), (Exit::NotFound, 10));
    }

    #[test]
    fn errors_of_the_file_system_read_plainly() {
        let error = std::io::Error::from_raw_os_error(13);
        let failure = Failure::of_output("/x/y".as_ref(), "write", &error);
        assert_eq!(failure.message, "cannot write /x/y: permission denied");
    }
}
