//! What `-r` needs of somebody who reads listings of folders.

use std::path::PathBuf;

use url::Url;

use crate::backend::BoxFuture;
use crate::exit::Failure;

/// Reads listings of folders.
pub trait Lister: Send + Sync {
    /// The files under a folder.
    fn list(&self, request: ListRequest) -> BoxFuture<'_, Result<Listed, Failure>>;
}

/// What to list.
#[derive(Clone)]
pub struct ListRequest {
    /// The folder.
    pub url: Url,
    /// The caller's own, for the origin; they may hold credentials.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Globs of files to take; all when empty. The caller applies them too.
    pub include: Vec<String>,
    /// Folders below the one named: 0 for none.
    pub depth_max: usize,
    /// More files than this are an error.
    pub files_max: usize,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Listed {
    /// The files.
    pub files: Vec<ListedFile>,
    /// Folders that were deeper than asked for.
    pub beyond_depth: usize,
}

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedFile {
    /// Where it belongs below the output folder.
    pub path: PathBuf,
    /// Where it comes from, without user information.
    pub url: Url,
}

/// Without headers and URL: they may hold credentials.
impl std::fmt::Debug for ListRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ListRequest")
            .field("depth_max", &self.depth_max)
            .field("files_max", &self.files_max)
            .finish_non_exhaustive()
    }
}
