//! Names: of outputs, and of tasks that are kept apart.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use url::Url;

/// What file systems allow for one name.
const NAME_LEN_MAX: usize = 255;
/// ASCII's own separator. No tag that a user gives holds it.
const SEPARATOR: char = '\u{1f}';

/// Where a download goes: `path` itself, or the URL's last part in the folder it names.
///
/// # Errors
/// When the URL has no last part that may be a file's name.
pub(super) fn output(path: Option<PathBuf>, url: &Url, recursive: bool, current_dir: &Path) -> Result<PathBuf, String> {
    let in_folder = match &path {
        None => true,
        Some(path) => path.as_os_str().as_bytes().ends_with(b"/") || path.is_dir(),
    };
    let path = path.unwrap_or_else(|| current_dir.to_owned());
    if recursive || !in_folder {
        // Without `.` and doubled slashes, and without the one at the end.
        return Ok(path.components().collect());
    }
    match last_part(url) {
        Some(name) => Ok(path.components().collect::<PathBuf>().join(name)),
        None => Err(format!(
            "missing: {} has no last part that could name the file",
            url.path().chars().take(80).collect::<String>()
        )),
    }
}

/// The last part of a URL's path as a file's name: decoded, not empty, and no way out of its folder.
pub(crate) fn last_part(url: &Url) -> Option<OsString> {
    let last = url.path_segments()?.next_back()?;
    let name: Vec<u8> = percent_encoding::percent_decode_str(last).collect();
    is_plain_name(OsStr::from_bytes(&name)).then(|| OsString::from_vec(name))
}

/// Whether this is the name of something in a folder, and nothing else.
pub(crate) fn is_plain_name(name: &OsStr) -> bool {
    let bytes = name.as_bytes();
    !matches!(bytes, b"" | b"." | b"..") && bytes.len() <= NAME_LEN_MAX && !bytes.iter().any(|b| matches!(b, b'/' | 0))
}

/// One tag for all that keeps a task apart. Just the user's tag when there is nothing else, so that other
/// programs' requests with the same tag mean the same.
pub(super) fn tag(tag: &str, content: &str, piece_length: Option<u64>) -> String {
    let mut whole = tag.to_owned();
    if !content.is_empty() {
        whole.push_str(&format!("{SEPARATOR}content={content}"));
    }
    if let Some(length) = piece_length {
        whole.push_str(&format!("{SEPARATOR}piece-length={length}"));
    }
    whole
}
