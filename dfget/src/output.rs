//! The output: whether it can be written, and the temporary file when dfget itself writes it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use rustix::fs::Access;

use crate::exit::{Cause, Failure};

/// Copied at a time from the temporary file into an existing one.
const COPY_LEN: usize = 1 << 20;

/// Folders that were made for an output; gone again on drop unless kept, if nobody put anything in.
#[derive(Debug, Default)]
pub struct MadeFolders(Vec<PathBuf>);

impl MadeFolders {
    /// The download succeeded.
    pub fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFolders {
    fn drop(&mut self) {
        for folder in self.0.drain(..).rev() {
            // Not empty: somebody else's file is in it.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Makes the output's folder where it is missing, and finds out beforehand what would fail after all bytes came.
///
/// # Errors
/// When the output exists and may not be replaced, is a folder, or its folder cannot be written.
pub fn prepare(path: &Path, overwrite: bool) -> Result<MadeFolders, Failure> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => {
            return Err(Failure::new(Cause::Output, format!("cannot write {}: it is a folder", path.display())));
        }
        Ok(_) if !overwrite => {
            return Err(Failure::new(Cause::Exists, format!("{} exists, and --no-clobber was given", path.display())));
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Failure::of_output(path, "write", &error)),
    }
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    let made = make_folders(folder)?;
    // Overwriting is by rename, so it is the folder that must be writable.
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK)
        .map_err(|error| Failure::of_output(path, "write", &error.into()))?;
    Ok(made)
}

fn make_folders(folder: &Path) -> Result<MadeFolders, Failure> {
    let mut made = MadeFolders::default();
    let missing: Vec<_> = folder.ancestors().take_while(|folder| !folder.is_dir()).collect();
    for folder in missing.into_iter().rev() {
        match std::fs::create_dir(folder) {
            Ok(()) => made.0.push(folder.to_owned()),
            // Another download of the same command was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(error) => return Err(Failure::of_output(folder, "make the folder", &error)),
        }
    }
    Ok(made)
}

/// A file that several ranges are written into; made when it is missing.
///
/// # Errors
/// When it cannot be opened for writing.
pub fn ensure_file(path: &Path) -> Result<(), Failure> {
    let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
    opened.map(drop).map_err(|error| Failure::of_output(path, "write", &error))
}

/// A file next to the output, gone on drop unless it took the output's place.
#[derive(Debug)]
pub struct Temporary {
    path: PathBuf,
    file: Arc<File>,
    length: u64,
    kept: bool,
}

impl Temporary {
    /// A new one in the folder of `output`, with a name that no other process and no other download of this one uses.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn beside(output: &Path) -> Result<Self, Failure> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!(".dfget-{}-{}.part", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = output.with_file_name(name);
        // Left behind by a process of the same number that was killed.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::of_output(&path, "replace", &error));
            }
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|error| Failure::of_output(output, "write", &error))?;
        Ok(Self { path, file: Arc::new(file), length: 0, kept: false })
    }

    /// Bytes written so far.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Forgets all bytes: they were of another content.
    ///
    /// # Errors
    /// When the file cannot be cut.
    pub fn restart(&mut self) -> Result<(), Failure> {
        self.length = 0;
        self.file.set_len(0).map_err(|error| Failure::of_output(&self.path, "write", &error))
    }

    /// Appends bytes, not on the runtime's thread: a disk may take long.
    ///
    /// # Errors
    /// When they cannot be written.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let (file, offset, length) = (Arc::clone(&self.file), self.length, bytes.len() as u64);
        let written = tokio::task::spawn_blocking(move || file.write_all_at(&bytes, offset)).await;
        written.map_err(io::Error::other).flatten().map_err(|error| Failure::of_output(&self.path, "write", &error))?;
        self.length += length;
        Ok(())
    }

    /// Takes the output's place.
    ///
    /// # Errors
    /// When the output came into being meanwhile and may not be replaced, or the rename fails.
    pub fn finish(mut self, output: &Path, overwrite: bool) -> Result<(), Failure> {
        let failed = |error: &io::Error| Failure::of_output(output, "write", error);
        if overwrite {
            // A power loss must not leave an empty file where a good one was.
            if output.is_file() {
                self.file.sync_data().map_err(|error| failed(&error))?;
            }
            std::fs::rename(&self.path, output).map_err(|error| failed(&error))?;
            self.kept = true;
        } else {
            // Unlike rename, a link never replaces.
            std::fs::hard_link(&self.path, output).map_err(|error| failed(&error))?;
        }
        Ok(())
    }

    /// Writes the bytes into `output`, from `offset` on, and leaves the others as they are.
    ///
    /// # Errors
    /// When reading or writing fails.
    pub fn finish_into(self, output: &Path, offset: u64) -> Result<(), Failure> {
        let copied = OpenOptions::new()
            .write(true)
            .open(output)
            .and_then(|target| copy(&self.file, self.length, &target, offset));
        copied.map_err(|error| Failure::of_output(output, "write", &error))
    }
}

fn copy(from: &File, length: u64, to: &File, offset: u64) -> io::Result<()> {
    let mut buffer = vec![0; COPY_LEN];
    let mut done = 0;
    while done < length {
        let wanted = usize::try_from(length - done).unwrap_or(COPY_LEN).min(COPY_LEN);
        from.read_exact_at(&mut buffer[..wanted], done)?;
        to.write_all_at(&buffer[..wanted], offset + done)?;
        done += wanted as u64;
    }
    Ok(())
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn folders_are_made_and_go_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c.bin");
        drop(prepare(&path, true).unwrap());
        assert!(!dir.path().join("a").is_dir());
        prepare(&path, true).unwrap().keep();
        assert!(dir.path().join("a/b").is_dir());
        std::fs::write(&path, "x").unwrap();
        assert_eq!(prepare(&path, false).unwrap_err().cause, Cause::Exists);
        assert!(prepare(&path, true).is_ok());
        assert_eq!(prepare(&dir.path().join("a"), true).unwrap_err().exit(), Exit::Output);
        let below_a_file = prepare(&path.join("d"), true).unwrap_err();
        assert_eq!(below_a_file.exit(), Exit::Output);
    }

    #[tokio::test]
    async fn a_temporary_file_replaces_or_vanishes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "old").unwrap();
        let mut part = Temporary::beside(&path).unwrap();
        part.append(Bytes::from_static(b"wrong")).await.unwrap();
        part.restart().unwrap();
        part.append(Bytes::from_static(b"n")).await.unwrap();
        part.append(Bytes::from_static(b"ew")).await.unwrap();
        assert_eq!(part.length(), 3);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let other = Temporary::beside(&path).unwrap();
        assert_eq!(other.finish(&path, false).unwrap_err().cause, Cause::Exists);
        part.finish(&path, true).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        let mut part = Temporary::beside(&path).unwrap();
        part.append(Bytes::from_static(b"E")).await.unwrap();
        part.finish_into(&path, 1).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"nEw");
        drop(Temporary::beside(&path).unwrap());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
