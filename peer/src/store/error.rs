//! What can go wrong in the store, and which sort of failure it is.

use std::io;
use std::path::{Path, PathBuf};

use proto::{Kind, PieceIndex, Root};

use super::space;

/// An operation of the store failed. The store itself stays usable unless [`super::Store::open`] failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A configured value makes no sense.
    #[error("store configuration: {what}")]
    Config {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The folder was written by a version of the program with another layout.
    #[error("store folder {} has format version {found}, this program reads version {expected}", path.display())]
    Version {
        /// The store's folder.
        path: PathBuf,
        /// The version it states.
        found: String,
        /// The version of this program.
        expected: u32,
    },
    /// The folder holds something else; a store clears what it does not know, so it must not move in here.
    #[error("folder {} is not empty and is no store: {found} is in it", path.display())]
    NotAStore {
        /// The folder.
        path: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// Another process has the folder open.
    #[error("store folder {} is in use by another process (pid {holder})", path.display())]
    Locked {
        /// The store's folder.
        path: PathBuf,
        /// The other's process id as it wrote it down, or `unknown`.
        holder: String,
    },
    /// Neither the store's capacity nor the disk has this much room, also after evicting all that is not in use.
    #[error("no space for {needed_bytes} bytes at {}: {free_bytes} bytes are free", path.display())]
    NoSpace {
        /// What was to be written.
        path: PathBuf,
        /// Bytes that were asked for.
        needed_bytes: u64,
        /// Bytes that are, or could be made, free.
        free_bytes: u64,
    },
    /// The filesystem refused.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The row store refused.
    #[error("cannot {action} in {}", path.display())]
    Rows {
        /// What was tried.
        action: &'static str,
        /// Folder of the rows.
        path: PathBuf,
        /// Why it failed.
        source: rocksdb::Error,
    },
    /// A row does not hold what it should.
    #[error("a stored row has a bad {what}")]
    BadRow {
        /// Which field.
        what: &'static str,
    },
    /// What a task brings along is too large to be kept as a row.
    #[error("the headers of a task have {found_bytes} bytes, at most {limit_bytes} are kept")]
    HeadersTooLong {
        /// Bytes they have.
        found_bytes: usize,
        /// Bytes they may have.
        limit_bytes: usize,
    },
    /// A piece or range reaches beyond the content.
    #[error("piece {piece} lies beyond the end of the content")]
    NoSuchPiece {
        /// Which piece.
        piece: PieceIndex,
    },
    /// A piece has not the length its place asks for.
    #[error("piece {piece} must have {expected_bytes} bytes, not {found_bytes}")]
    WrongLength {
        /// Which piece.
        piece: PieceIndex,
        /// Bytes it must have.
        expected_bytes: u64,
        /// Bytes that were given.
        found_bytes: u64,
    },
    /// Two lengths for one content.
    #[error("the content cannot have {told_bytes} bytes: {known_bytes} are known or present")]
    LengthConflict {
        /// Length known before, or end of the last piece that is present.
        known_bytes: u64,
        /// Length now told.
        told_bytes: u64,
    },
    /// Bytes were asked for that are not here yet.
    #[error("piece {piece} is not here")]
    Absent {
        /// The first piece that lacks.
        piece: PieceIndex,
    },
    /// The whole is needed, and the length is not known or pieces lack.
    #[error("the content is not whole: {present} of {expected:?} pieces are here")]
    Incomplete {
        /// Pieces present.
        present: u32,
        /// Pieces there should be, when the length is known.
        expected: Option<u32>,
    },
    /// The pieces make another whole than the one named.
    #[error("the pieces have root {found:?}, not {expected:?}")]
    WrongRoot {
        /// The root that was named.
        expected: Root,
        /// The root of the pieces that are here.
        found: Root,
    },
    /// The task was discarded while this handle to it was held.
    #[error("the task was discarded")]
    Discarded,
    /// The content proved wrong and was thrown away while this handle to it was held, or while it was being made.
    #[error("{why}")]
    Condemned {
        /// How it was noticed, in a sentence.
        why: String,
    },
    /// Somebody else wrote to the content, most likely through a hard-linked output.
    #[error("content file {} was changed by another program", path.display())]
    Modified {
        /// The content file.
        path: PathBuf,
    },
    /// The output is there already and may not be replaced.
    #[error("output {} is there already", path.display())]
    OutputExists {
        /// The output.
        path: PathBuf,
    },
    /// The output is something that cannot be replaced or written as a file.
    #[error("output {} is {found}", path.display())]
    OutputNotAFile {
        /// The output.
        path: PathBuf,
        /// What it is, with an article.
        found: &'static str,
    },
    /// A hard link was insisted on and cannot be had.
    #[error("output {} cannot be a hard link: {reason}", path.display())]
    NoHardLink {
        /// The output.
        path: PathBuf,
        /// Why not.
        reason: &'static str,
    },
}

impl StoreError {
    /// The sort of failure.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Config { .. }
            | Self::NotAStore { .. }
            | Self::HeadersTooLong { .. }
            | Self::NoSuchPiece { .. }
            | Self::WrongLength { .. } => Kind::Invalid,
            Self::Version { .. }
            | Self::Locked { .. }
            | Self::OutputExists { .. }
            | Self::OutputNotAFile { .. }
            | Self::NoHardLink { .. } => Kind::Conflict,
            Self::NoSpace { .. } => Kind::NoSpace,
            Self::LengthConflict { .. }
            | Self::WrongRoot { .. }
            | Self::Condemned { .. }
            | Self::Modified { .. }
            | Self::BadRow { .. } => Kind::Corrupt,
            Self::Absent { .. } | Self::Incomplete { .. } | Self::Discarded => Kind::NotFound,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Kind::Forbidden,
                io::ErrorKind::NotFound => Kind::NotFound,
                _ => Kind::Internal,
            },
            Self::Rows { .. } => Kind::Internal,
        }
    }

    /// An error of the filesystem; a full disk or quota becomes [`Self::NoSpace`] for `needed_bytes`.
    pub(super) fn io(action: &'static str, path: &Path, needed_bytes: u64, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::NoSpace { path: path.to_owned(), needed_bytes, free_bytes: space::disk_free_near(path) }
            }
            _ => Self::Io { action, path: path.to_owned(), source },
        }
    }

    /// An error of the row store, which tells of a full disk in words only.
    pub(super) fn rows(action: &'static str, path: &Path, needed_bytes: u64, source: rocksdb::Error) -> Self {
        if source.kind() == rocksdb::ErrorKind::IOError && source.as_ref().contains("No space left") {
            return Self::NoSpace { path: path.to_owned(), needed_bytes, free_bytes: space::disk_free_near(path) };
        }
        Self::Rows { action, path: path.to_owned(), source }
    }
}
