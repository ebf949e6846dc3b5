//! The last answer on disk.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use proto::api::NearestAnswer;
use serde::{Deserialize, Serialize};
use tracing::warn;

#[derive(Serialize, Deserialize)]
struct FileV1 {
    version: u32,
    answer: NearestAnswer,
}

const VERSION: u32 = 1;
/// More is no file of ours.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A file that holds one answer.
#[derive(Debug)]
pub(super) struct Cache {
    path: PathBuf,
}

impl Cache {
    pub(super) const fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What was remembered. A file that cannot be read counts as none, and is said in the log: the answer is only asked for again.
    pub(super) fn load(&self) -> Option<NearestAnswer> {
        match read(&self.path) {
            Ok(answer) => answer,
            Err(error) => {
                warn!(%error, path = %self.path.display(), "the remembered supernodes cannot be read");
                None
            }
        }
    }

    pub(super) async fn save(&self, answer: NearestAnswer) {
        let path = self.path.clone();
        let saved =
            tokio::task::spawn_blocking(move || write(&path, answer)).await.unwrap_or_else(|error| Err(error.into()));
        if let Err(error) = saved {
            warn!(%error, path = %self.path.display(), "the nearest supernodes could not be remembered");
        }
    }
}

fn read(path: &Path) -> io::Result<Option<NearestAnswer>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let file: FileV1 = serde_json::from_slice(&bytes)?;
    if file.version != VERSION || file.answer.supernodes.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "of another version, or without supernodes"));
    }
    Ok(Some(file.answer))
}

/// After a crash the file is either the old or the new one. The new one has a name of its own, since dfget and dfdaemon may
/// both write.
fn write(path: &Path, answer: NearestAnswer) -> io::Result<()> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(dir)?;
    let bytes = serde_json::to_vec(&FileV1 { version: VERSION, answer })?;
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".{}.new", std::process::id()));
    let new = PathBuf::from(new);
    let written = File::create(&new).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()
    });
    if let Err(error) = written.and_then(|()| std::fs::rename(&new, path)) {
        // The half-written file has no use; that it cannot be removed adds nothing to the error.
        let _ = std::fs::remove_file(&new);
        return Err(error);
    }
    // The rename is durable only with its folder.
    File::open(dir)?.sync_all()
}
