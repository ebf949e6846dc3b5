//! Points container runtimes at this daemon, and takes that back.
//!
//! Only files are written, all of them atomically; no runtime is restarted. What is written always leaves the
//! registry itself as the fallback. A journal remembers what was there before, so that undoing restores it exactly;
//! a file somebody else has changed meanwhile only loses our part.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::pattern::split_authority;

mod containerd;
mod containers;
mod diff;
mod docker;
mod journal;

use journal::{FileKind, Journal};

/// A container runtime that can be pointed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// `certs.d/<host>/hosts.toml`.
    Containerd,
    /// `registry-mirrors` in `daemon.json`.
    Docker,
    /// A drop-in in `registries.conf.d`.
    Podman,
    /// The same drop-in.
    Crio,
}

/// A registry to pull through this daemon: `HOST`, or `HOST=ADDRESS` with a mirror address of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registry {
    /// As in image references.
    pub host: String,
    /// The listener of `mirror.upstreams.listen`, when it has one.
    pub via: Option<SocketAddr>,
}

/// A text names no registry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not HOST or HOST=ADDRESS:PORT")]
pub struct InvalidRegistry(String);

/// What to set up.
#[derive(Clone, Debug)]
pub struct Options {
    /// For whom.
    pub runtime: Runtime,
    /// The system's root; another folder in tests.
    pub root: PathBuf,
    /// Which registries; empty = the runtime's default (containerd: all, the others: docker.io).
    pub registries: Vec<Registry>,
    /// Where the daemon listens.
    pub proxy_addr: SocketAddr,
    /// Docker only: also send its HTTPS through the proxy, trusting this CA. Without the daemon it then pulls nothing.
    pub docker_proxy_ca: Option<PathBuf>,
}

/// What would be written, and what to tell.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    root: PathBuf,
    edits: Vec<Edit>,
    journal: Option<(PathBuf, Option<Journal>)>,
    /// For the operator, a line each.
    pub notes: Vec<String>,
}

/// One file. Paths are those of the system, not below `root`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Edit {
    path: PathBuf,
    kind: FileKind,
    before: Option<Vec<u8>>,
    after: Option<Vec<u8>>,
}

/// Setting up failed; nothing was written unless it says `write`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// A file cannot be read, written or removed.
    #[error("cannot {what} {path}")]
    File {
        /// `read`, `write`, `remove`.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the runtime is not what it should be; it is left alone.
    #[error("{path} cannot be extended: {why}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The runtime cannot do what is asked.
    #[error("{0}")]
    Unsupported(String),
}

// === impl Options ===

impl Options {
    /// What has to be written so that the runtime pulls through this daemon. Reads files, writes none.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn plan(&self) -> Result<Plan, SetupError> {
        let mut plan = Plan { root: self.root.clone(), ..Plan::default() };
        match self.runtime {
            Runtime::Containerd => containerd::plan(self, &mut plan)?,
            Runtime::Docker => docker::plan(self, &mut plan)?,
            Runtime::Podman | Runtime::Crio => containers::plan(self, &mut plan)?,
        }
        plan.edits.retain(|edit| edit.before != edit.after);
        let path = self.runtime.journal();
        let mut journal = Journal::read(&plan.root, &path)?.unwrap_or_default();
        for edit in &plan.edits {
            journal.remember(&plan.root, edit);
        }
        journal.remember_folders(&plan.root, &path);
        plan.journal = (!plan.edits.is_empty()).then_some((path, Some(journal)));
        Ok(plan)
    }

    /// What has to be written to take it all back.
    ///
    /// # Errors
    /// See [`SetupError`].
    pub fn plan_undo(&self) -> Result<Plan, SetupError> {
        let mut plan = Plan { root: self.root.clone(), ..Plan::default() };
        let path = self.runtime.journal();
        let Some(journal) = Journal::read(&plan.root, &path)? else {
            plan.notes.push("nothing was set up here".into());
            return Ok(plan);
        };
        journal.plan_undo(&mut plan)?;
        plan.edits.retain(|edit| edit.before != edit.after);
        plan.journal = Some((path, None));
        Ok(plan)
    }
}

// === impl Plan ===

impl Plan {
    /// Whether everything is as it should be already.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.edits.is_empty() && self.journal.is_none()
    }

    /// The files that change.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.edits.iter().map(|edit| edit.path.as_path())
    }

    /// The changes as a unified diff.
    #[must_use]
    pub fn diff(&self) -> String {
        let mut text = String::new();
        for edit in &self.edits {
            let side = |content: &Option<Vec<u8>>| content.as_ref().map(|c| String::from_utf8_lossy(c).into_owned());
            let name = |there: bool| if there { edit.path.display().to_string() } else { "/dev/null".into() };
            let _ = writeln!(text, "--- {}\n+++ {}", name(edit.before.is_some()), name(edit.after.is_some()));
            text.push_str(&diff::unified(
                &side(&edit.before).unwrap_or_default(),
                &side(&edit.after).unwrap_or_default(),
            ));
        }
        text
    }

    /// Writes it. The journal comes first when there is one to write and last when there is one to remove, so that a
    /// crash in between can always be undone.
    ///
    /// # Errors
    /// [`SetupError::File`] with the file that failed; those before it are written.
    pub fn apply(&self) -> Result<(), SetupError> {
        if let Some((path, Some(journal))) = &self.journal {
            write(&self.root, path, journal.to_json().as_bytes(), 0o600)?;
        }
        for edit in &self.edits {
            match &edit.after {
                Some(content) => write(&self.root, &edit.path, content, 0o644)?,
                None => remove(&self.root, &edit.path)?,
            }
        }
        if let Some((path, None)) = &self.journal {
            let folders = Journal::read(&self.root, path)?.map(|journal| journal.folders).unwrap_or_default();
            remove(&self.root, path)?;
            for folder in folders.iter().rev() {
                // Somebody else may have put something there.
                let _ = std::fs::remove_dir(below(&self.root, folder));
            }
        }
        Ok(())
    }

    fn edit(&mut self, path: PathBuf, kind: FileKind, before: Option<Vec<u8>>, after: Option<Vec<u8>>) {
        self.edits.push(Edit { path, kind, before, after });
    }
}

// === impl Runtime, Registry ===

impl Runtime {
    fn journal(self) -> PathBuf {
        Path::new("/var/lib/skimmer/setup").join(match self {
            Self::Containerd => "containerd.json",
            Self::Docker => "docker.json",
            // They share the file, so they share what is known of it.
            Self::Podman | Self::Crio => "containers.json",
        })
    }
}

impl FromStr for Registry {
    type Err = InvalidRegistry;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidRegistry(text.to_owned());
        let (host, via) = match text.split_once('=') {
            Some((host, via)) => (host, Some(via.parse().map_err(|_| invalid())?)),
            None => (text, None),
        };
        split_authority(host).ok_or_else(invalid)?;
        Ok(Self { host: host.to_ascii_lowercase(), via })
    }
}

// === files ===

/// The same path below another root.
fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn read(root: &Path, path: &Path) -> Result<Option<Vec<u8>>, SetupError> {
    match std::fs::read(below(root, path)) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SetupError::File { what: "read", path: path.into(), source }),
    }
}

fn read_text(root: &Path, path: &Path) -> Result<Option<String>, SetupError> {
    read(root, path)?
        .map(String::from_utf8)
        .transpose()
        .map_err(|_| SetupError::Content { path: path.into(), why: "it is not text".into() })
}

/// Writes beside and renames; an existing file keeps its mode and owner, a symbolic link stays one.
fn write(root: &Path, path: &Path, content: &[u8], mode: u32) -> Result<(), SetupError> {
    let failed = |source| SetupError::File { what: "write", path: path.into(), source };
    let mut target = below(root, path);
    if let Ok(real) = target.canonicalize() {
        target = real;
    }
    let folder = target.parent().unwrap_or(root).to_owned();
    std::fs::create_dir_all(&folder).map_err(failed)?;
    let old = std::fs::metadata(&target).ok();
    let mode = old.as_ref().map_or(mode, |m| m.permissions().mode() & 0o7777);
    let mut temporary = target.clone().into_os_string();
    temporary.push(format!(".skimmer-{:08x}", rand::random::<u32>()));
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content)?;
        // The mode given at creation is subject to the umask.
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        if let Some(old) = &old {
            use std::os::unix::fs::MetadataExt as _;
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.sync_all()?;
        std::fs::rename(&temporary, &target)?;
        std::fs::File::open(&folder)?.sync_all()
    })();
    written.map_err(|error| {
        // Best effort: the error that counts is the first.
        let _ = std::fs::remove_file(&temporary);
        failed(error)
    })
}

fn remove(root: &Path, path: &Path) -> Result<(), SetupError> {
    match std::fs::remove_file(below(root, path)) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(SetupError::File { what: "remove", path: path.into(), source }),
    }
}

/// Names of files in a folder, with their content as text where they are.
fn read_folder(root: &Path, folder: &Path, extension: &str) -> Result<BTreeMap<PathBuf, String>, SetupError> {
    let failed = |source| SetupError::File { what: "read", path: folder.into(), source };
    let entries = match std::fs::read_dir(below(root, folder)) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeMap::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = BTreeMap::new();
    for entry in entries {
        let path = folder.join(entry.map_err(failed)?.file_name());
        if path.extension().is_some_and(|e| e == extension)
            && let Some(text) = read_text(root, &path)?
        {
            files.insert(path, text);
        }
    }
    Ok(files)
}

#[cfg(test)]
mod tests;
