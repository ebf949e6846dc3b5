//! What was there before.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use proto::{Algorithm, Digest};
use serde::{Deserialize, Serialize};

use super::{Edit, Plan, SetupError, below, containerd, docker, read};

/// Files we changed or made, in the order it was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Journal {
    version: u32,
    files: Vec<Entry>,
    /// Folders that did not exist, outermost first.
    pub(super) folders: Vec<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    path: PathBuf,
    kind: FileKind,
    /// Base64 of the content before the first change; absent when there was no file.
    original: Option<String>,
    /// Of the content we wrote last.
    written: Digest,
}

/// How our part is told from the rest of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FileKind {
    /// Between two marker lines.
    HostsToml,
    /// Elements of arrays in JSON.
    DaemonJson,
    /// All of it is ours.
    Own,
}

/// The only layout so far.
const VERSION: u32 = 1;

// === impl Journal ===

impl Journal {
    pub(super) fn read(root: &Path, path: &Path) -> Result<Option<Self>, SetupError> {
        let Some(text) = read(root, path)? else { return Ok(None) };
        let bad = |why: String| SetupError::Content { path: path.into(), why };
        let journal: Self = serde_json::from_slice(&text).map_err(|error| bad(error.to_string()))?;
        if journal.version != VERSION {
            return Err(bad(format!("it has version {}, this program writes {VERSION}", journal.version)));
        }
        Ok(Some(journal))
    }

    pub(super) fn to_json(&self) -> String {
        // Paths are the only part that could fail, and ours are text.
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    /// Keeps the first original of a file, however often it is changed.
    pub(super) fn remember(&mut self, root: &Path, edit: &Edit) {
        self.version = VERSION;
        let Some(after) = &edit.after else { return };
        let written = Digest::of(Algorithm::Sha256, after);
        match self.files.iter_mut().find(|entry| entry.path == edit.path) {
            Some(entry) => entry.written = written,
            None => self.files.push(Entry {
                path: edit.path.clone(),
                kind: edit.kind,
                original: edit.before.as_ref().map(|content| STANDARD.encode(content)),
                written,
            }),
        }
        self.remember_folders(root, &edit.path);
    }

    /// Folders that will be made for this file.
    pub(super) fn remember_folders(&mut self, root: &Path, path: &Path) {
        let missing: Vec<PathBuf> = path
            .ancestors()
            .skip(1)
            .take_while(|folder| !below(root, folder).is_dir())
            .map(Path::to_path_buf)
            .collect();
        for folder in missing.into_iter().rev() {
            if !self.folders.contains(&folder) {
                self.folders.push(folder);
            }
        }
    }

    /// Restores what is as we left it, and takes our part out of what is not.
    pub(super) fn plan_undo(&self, plan: &mut Plan) -> Result<(), SetupError> {
        for entry in &self.files {
            let current = read(&plan.root, &entry.path)?;
            let original = match &entry.original {
                None => None,
                Some(text) => Some(STANDARD.decode(text).map_err(|error| SetupError::Content {
                    path: entry.path.clone(),
                    why: format!("its journal entry is damaged: {error}"),
                })?),
            };
            let Some(content) = current.clone() else {
                plan.notes.push(format!("{} is gone already", entry.path.display()));
                continue;
            };
            if Digest::of(Algorithm::Sha256, &content) == entry.written || current == original {
                plan.edit(entry.path.clone(), entry.kind, current, original);
                continue;
            }
            plan.notes.push(format!("{} was changed since: only our part is taken out", entry.path.display()));
            let bad = |why: String| SetupError::Content { path: entry.path.clone(), why };
            let text = String::from_utf8(content).map_err(|_| bad("it is not text".into()))?;
            let rest = match entry.kind {
                FileKind::HostsToml => Some(containerd::without_block(&text)),
                FileKind::DaemonJson => {
                    Some(docker::without_ours(&text, original.as_deref().unwrap_or(b"{}")).map_err(bad)?)
                }
                FileKind::Own => {
                    let mut saved = entry.path.clone().into_os_string();
                    saved.push(".skimmer-saved");
                    plan.edit(PathBuf::from(saved), FileKind::Own, None, current.clone());
                    None
                }
            };
            let rest = rest.filter(|rest| !(rest.trim().is_empty() && original.is_none())).map(String::into_bytes);
            plan.edit(entry.path.clone(), entry.kind, current, rest);
        }
        Ok(())
    }
}
