//! The folder of one run.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result};

/// How much of the end of each log is shown when something failed, in bytes: some thirty lines.
const LOG_END_BYTES: u64 = 4096;

/// A folder for logs, configuration and data of one run; removed when dropped, unless `SKIMMER_KEEP` is set.
#[derive(Debug)]
pub struct Run {
    folder: tempfile::TempDir,
    next: AtomicU32,
    notes: Mutex<Vec<String>>,
}

impl Run {
    /// A fresh folder under the system's temporary folder.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        let mut folder =
            tempfile::Builder::new().prefix("skimmer-run-").tempdir().context("cannot make a folder for the run")?;
        if std::env::var_os("SKIMMER_KEEP").is_some() {
            folder.disable_cleanup(true);
            eprintln!("keeping {}", folder.path().display());
        }
        for sub in ["logs", "data"] {
            fs::create_dir(folder.path().join(sub))?;
        }
        Ok(Self { folder, next: AtomicU32::new(0), notes: Mutex::default() })
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path that nothing has used yet, for a log.
    pub(crate) fn log_path(&self, name: &str) -> PathBuf {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.path().join("logs").join(format!("{number:02}-{name}.log"))
    }

    /// A fresh, empty folder for a program's data.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn data_dir(&self, name: &str) -> Result<PathBuf> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let path = self.path().join("data").join(format!("{number:02}-{name}"));
        fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(path)
    }

    /// Keeps a figure for people: it is shown with the outcome.
    pub fn note(&self, text: impl Into<String>) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(text.into());
    }

    /// The figures kept so far.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The ends of all logs that hold anything, in the order the programs were started.
    #[must_use]
    pub fn log_ends(&self) -> String {
        let mut paths: Vec<PathBuf> = fs::read_dir(self.path().join("logs"))
            .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
            .unwrap_or_default();
        paths.sort();
        let mut text = String::new();
        for path in paths {
            let end = log_end(&path);
            if !end.is_empty() {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                text.push_str(&format!("--- {name}\n{end}\n"));
            }
        }
        text
    }
}

/// The end of one log, at most [`LOG_END_BYTES`], from the start of a line; empty when it cannot be read.
pub(crate) fn log_end(path: &Path) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_END_BYTES)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = String::from_utf8_lossy(&read().unwrap_or_default()).into_owned();
    let whole = text.len() < LOG_END_BYTES as usize;
    let start = if whole { 0 } else { text.find('\n').map_or(0, |at| at + 1) };
    text[start..].trim_end().to_owned()
}
