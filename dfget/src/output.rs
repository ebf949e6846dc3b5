//! The output: whether it can be written, and the temporary file when dfget itself writes it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use proto::Kind;
use rustix::fs::Access;

use crate::exit::{Cause, Failure};

/// Copied at a time from the temporary file into an existing one.
const COPY_LEN: usize = 1 << 20;

/// Folders that were made for outputs. Those that are still empty on drop go again: their files failed.
#[derive(Debug, Default)]
pub struct MadeFolders(Vec<PathBuf>);

impl Drop for MadeFolders {
    fn drop(&mut self) {
        // Made after the folder they are in, so gone before it.
        for folder in self.0.drain(..).rev() {
            // Mostly not empty, and so meant to stay.
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// Where an output really goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A regular file, or none yet; symbolic links are followed. It is replaced by rename.
    File(PathBuf),
    /// A device, a pipe or a socket: it must never be replaced, so the bytes are written into it as they come.
    Special(PathBuf),
}

/// Makes the output's folder where it is missing, and finds out beforehand what would fail after all bytes came.
///
/// # Errors
/// When the output exists and may not be replaced, is a folder, or its folder cannot be written.
pub fn prepare(path: &Path, overwrite: bool, made: &mut MadeFolders) -> Result<Place, Failure> {
    if descriptor(path).is_some() {
        return Ok(Place::Special(path.to_owned()));
    }
    let links = links(path);
    if let Some(open) = links.iter().find(|at| is_open_file(at)) {
        return Ok(Place::Special(open.clone()));
    }
    // What is written where a link to nothing leads is meant to be made there.
    let path = links.last().filter(|end| std::fs::symlink_metadata(end).is_err()).map_or(path, PathBuf::as_path);
    let unwritable = |error: io::Error| Failure::of_output(path, "write", &error);
    let existing = match std::fs::metadata(path) {
        Ok(meta) if meta.is_dir() => {
            return Err(Failure::new(Cause::Output, format!("cannot write {}: it is a folder", path.display())));
        }
        Ok(_) if !overwrite => {
            return Err(Failure::new(Cause::Exists, format!("{} exists, and --no-clobber was given", path.display())));
        }
        Ok(meta) => Some(meta),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(unwritable(error)),
    };
    let path = match existing {
        // A rename would put a file where /dev/null was.
        Some(meta) if !meta.is_file() => return Ok(Place::Special(path.to_owned())),
        Some(_) => std::fs::canonicalize(path).map_err(unwritable)?,
        None => path.to_owned(),
    };
    let folder = path.parent().unwrap_or_else(|| Path::new("/"));
    make_folders(folder, made)?;
    // Overwriting is by rename, so it is the folder that must be writable.
    rustix::fs::access(folder, Access::WRITE_OK | Access::EXEC_OK).map_err(|error| unwritable(error.into()))?;
    Ok(Place::File(path))
}

/// Links followed at most, as in the kernel.
const LINKS_MAX: usize = 40;

/// A path and the ones that it leads to, one symbolic link after the other.
fn links(path: &Path) -> Vec<PathBuf> {
    let mut all = vec![path.to_owned()];
    let mut at = path.to_owned();
    while all.len() <= LINKS_MAX
        && let Ok(target) = std::fs::read_link(&at)
    {
        at = at.parent().unwrap_or_else(|| Path::new("/")).join(target);
        all.push(at.clone());
    }
    all
}

/// Whether a path names an open file of a process, this one or another, by whatever way it leads there.
fn is_open_file(path: &Path) -> bool {
    let folder = path.parent().and_then(|folder| folder.canonicalize().ok());
    folder.is_some_and(|folder| folder.starts_with("/proc") && folder.ends_with("fd"))
}

/// The number of an open file that a path names, as `/dev/stdout` does. Whatever it leads to belongs to whoever opened
/// it: it may be a log that others append to.
fn descriptor(path: &Path) -> Option<u32> {
    let text = path.to_str()?;
    match text {
        "/dev/stdin" => return Some(0),
        "/dev/stdout" => return Some(1),
        "/dev/stderr" => return Some(2),
        _ => {}
    }
    let number = text.strip_prefix("/dev/fd/").or_else(|| {
        let (process, number) = text.strip_prefix("/proc/")?.split_once("/fd/")?;
        (process == "self" || process == std::process::id().to_string()).then_some(number)
    })?;
    number.parse().ok()
}

fn open_special(path: &Path) -> io::Result<File> {
    // The same open file, not the path opened anew: its offset and its way of appending are the shell's.
    match descriptor(path) {
        Some(1) => Ok(io::stdout().as_fd().try_clone_to_owned()?.into()),
        Some(2) => Ok(io::stderr().as_fd().try_clone_to_owned()?.into()),
        _ => OpenOptions::new().append(true).open(path),
    }
}

/// A device or a pipe that bytes are written into as they come.
#[derive(Debug)]
pub struct Special {
    path: PathBuf,
    file: Arc<File>,
    length: u64,
}

impl Special {
    /// Opens it; a pipe without a reader is waited for, not on the runtime's thread.
    ///
    /// # Errors
    /// When it cannot be opened for writing.
    pub async fn open(path: PathBuf) -> Result<Self, Failure> {
        let opening = path.clone();
        let opened = tokio::task::spawn_blocking(move || open_special(&opening)).await;
        let file =
            opened.map_err(io::Error::other).flatten().map_err(|error| Failure::of_output(&path, "write", &error))?;
        Ok(Self { path, file: Arc::new(file), length: 0 })
    }

    /// Bytes written so far.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Says whether a download can begin anew: what was written cannot be taken back.
    ///
    /// # Errors
    /// When something was written.
    pub fn restart(&self) -> Result<(), Failure> {
        if self.length == 0 {
            return Ok(());
        }
        let message = format!(
            "the download was interrupted after {} bytes went to {}, which cannot be taken back",
            self.length,
            self.path.display()
        );
        Err(Failure::new(Cause::Kind(Kind::Unavailable), message))
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// When they cannot be written.
    pub async fn append(&mut self, bytes: Bytes) -> Result<(), Failure> {
        let (file, length) = (Arc::clone(&self.file), bytes.len() as u64);
        let written = tokio::task::spawn_blocking(move || (&*file).write_all(&bytes)).await;
        written.map_err(io::Error::other).flatten().map_err(|error| Failure::of_output(&self.path, "write", &error))?;
        self.length += length;
        Ok(())
    }
}

fn make_folders(folder: &Path, made: &mut MadeFolders) -> Result<(), Failure> {
    let missing: Vec<_> = folder.ancestors().take_while(|folder| !folder.is_dir()).collect();
    for folder in missing.into_iter().rev() {
        match std::fs::create_dir(folder) {
            Ok(()) => made.0.push(folder.to_owned()),
            // Another process was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => {}
            Err(error) => return Err(Failure::of_output(folder, "make the folder", &error)),
        }
    }
    Ok(())
}

/// A file that ranges are written into. When it was made for this, it is gone on drop unless kept or written to.
#[derive(Debug)]
pub struct Target(Option<PathBuf>);

/// The file that ranges are written into; made when it is missing.
///
/// # Errors
/// When it cannot be opened for writing.
pub fn ensure_file(path: &Path) -> Result<Target, Failure> {
    let failed = |error: io::Error| Failure::of_output(path, "write", &error);
    match OpenOptions::new().write(true).create_new(true).open(path) {
        Ok(_) => Ok(Target(Some(path.to_owned()))),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            OpenOptions::new().write(true).open(path).map_err(failed)?;
            Ok(Target(None))
        }
        Err(error) => Err(failed(error)),
    }
}

impl Target {
    /// The range is in it.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            // Other ranges may have come meanwhile.
            && std::fs::metadata(&path).is_ok_and(|meta| meta.len() == 0)
        {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Entries of an output's folder that are looked at for leftovers: a download is not to wait for a huge folder.
const ENTRIES_MAX: usize = 10_000;

/// The process that a temporary file is named after; `None` for all other names.
fn maker(name: &str) -> Option<u32> {
    let (process, count) = name.strip_prefix(".dfget-")?.strip_suffix(".part")?.split_once('-')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    (digits(process) && digits(count) && count.parse::<u32>().is_ok()).then(|| process.parse().ok()).flatten()
}

/// Removes temporary files whose processes were killed. What cannot be removed is only lost space.
fn remove_leftovers(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.take(ENTRIES_MAX).flatten() {
        let gone = |process| std::fs::symlink_metadata(format!("/proc/{process}")).is_err();
        if !entry.file_name().to_str().and_then(maker).is_some_and(gone)
            || !entry.file_type().is_ok_and(|t| t.is_file())
        {
            continue;
        }
        // The process may run on another host or in another container, where numbers mean others.
        let file = OpenOptions::new().write(true).open(entry.path());
        if file.is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
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
        if let Some(folder) = output.parent() {
            remove_leftovers(folder);
        }
        // Left behind by a process of the same number that was killed.
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Failure::of_output(&path, "replace", &error));
            }
            _ => {}
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path);
        let file = file.map_err(|error| Failure::of_output(output, "write", &error))?;
        // Says to others that it is no leftover. Where a file system knows no locks, nobody removes leftovers.
        let _ = file.try_lock();
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
        } else {
            // Takes the name first, which only one can; not every file system has hard links or RENAME_NOREPLACE.
            OpenOptions::new().write(true).create_new(true).open(output).map_err(|error| failed(&error))?;
            if let Err(error) = std::fs::rename(&self.path, output) {
                let _ = std::fs::remove_file(output);
                return Err(failed(&error));
            }
        }
        self.kept = true;
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
    use std::os::fd::AsRawFd as _;

    use super::*;
    use crate::exit::Exit;

    #[test]
    fn open_files_are_written_into_and_dangling_links_followed() {
        let mut made = MadeFolders::default();
        for path in ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/2"] {
            let path = Path::new(path);
            assert_eq!(prepare(path, true, &mut made).unwrap(), Place::Special(path.to_owned()));
        }
        assert_eq!(descriptor(Path::new("/dev/fd/x")), None);
        assert_eq!(descriptor(Path::new("/proc/1/fd/1")), None);
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        assert_eq!(prepare(&link, true, &mut made).unwrap(), Place::File(dir.path().join("nowhere")));
        let deep = dir.path().join("deep");
        std::os::unix::fs::symlink("new/f", &deep).unwrap();
        assert_eq!(prepare(&deep, true, &mut made).unwrap(), Place::File(dir.path().join("new/f")));
        assert!(dir.path().join("new").is_dir(), "made before the download");
        let round = dir.path().join("round");
        std::os::unix::fs::symlink("round", &round).unwrap();
        assert_eq!(prepare(&round, true, &mut made).unwrap_err().exit(), Exit::Output);
    }

    #[test]
    fn links_to_open_files_are_written_into() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        std::fs::write(&log, "kept").unwrap();
        let file = OpenOptions::new().append(true).open(&log).unwrap();
        let number = file.as_fd().as_raw_fd().to_string();
        let own = format!("/proc/{}/fd", std::process::id());
        let task = format!("/proc/self/task/{}/fd/{number}", std::process::id());
        std::os::unix::fs::symlink(Path::new(&own).join(&number), dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("link", dir.path().join("twice")).unwrap();
        std::os::unix::fs::symlink("/dev/fd", dir.path().join("all")).unwrap();
        std::os::unix::fs::symlink("/dev/stdout", dir.path().join("stdout")).unwrap();
        let numbered = |folder: &str| dir.path().join(folder).join(&number);
        let mut made = MadeFolders::default();
        for path in [dir.path().join("twice"), numbered("all"), task.into(), dir.path().join("stdout")] {
            let place = prepare(&path, true, &mut made).unwrap();
            assert!(matches!(place, Place::Special(_)), "{}: {place:?}", path.display());
            assert_eq!(prepare(&path, false, &mut made).unwrap(), place, "nothing of it is replaced");
        }
        let Place::Special(path) = prepare(&dir.path().join("twice"), true, &mut made).unwrap() else { panic!() };
        open_special(&path).unwrap().write_all(b" and more").unwrap();
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "kept and more");
    }

    #[test]
    fn leftovers_of_the_killed_are_removed() {
        /// Beyond what the kernel gives out.
        const NOBODY: u32 = 1 << 30;
        let dir = tempfile::tempdir().unwrap();
        let file = |name: String| {
            std::fs::write(dir.path().join(&name), "x").unwrap();
            dir.path().join(name)
        };
        let left = file(format!(".dfget-{NOBODY}-0.part"));
        let elsewhere = file(format!(".dfget-{NOBODY}-1.part"));
        let living = file(".dfget-1-0.part".to_owned());
        let others = [format!(".dfget-{NOBODY}-.part"), format!("dfget-{NOBODY}-0.part"), ".dfget-x-0.part".to_owned()];
        let others = others.map(file);
        let held = File::open(&elsewhere).unwrap();
        held.lock().unwrap();
        drop(Temporary::beside(&dir.path().join("f")).unwrap());
        assert!(!left.try_exists().unwrap());
        for kept in [&elsewhere, &living].into_iter().chain(&others) {
            assert!(kept.try_exists().unwrap(), "{}", kept.display());
        }
    }

    #[test]
    fn folders_are_made_and_go_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c.bin");
        let mut made = MadeFolders::default();
        prepare(&path, true, &mut made).unwrap();
        prepare(&dir.path().join("a/c/d"), true, &mut made).unwrap();
        assert!(dir.path().join("a/b").is_dir() && dir.path().join("a/c").is_dir());
        drop(std::mem::take(&mut made));
        assert!(!dir.path().join("a").is_dir());
        prepare(&path, true, &mut made).unwrap();
        std::fs::write(&path, "x").unwrap();
        drop(std::mem::take(&mut made));
        let mut prepare = |path: &Path, overwrite| prepare(path, overwrite, &mut made);
        assert_eq!(prepare(&path, false).unwrap_err().cause, Cause::Exists);
        assert!(prepare(&path, true).is_ok());
        assert_eq!(prepare(&dir.path().join("a"), true).unwrap_err().exit(), Exit::Output);
        std::os::unix::fs::symlink("a/b/c.bin", dir.path().join("link")).unwrap();
        assert_eq!(prepare(&dir.path().join("link"), true).unwrap(), Place::File(path.canonicalize().unwrap()));
        assert_eq!(prepare("/dev/null".as_ref(), true).unwrap(), Place::Special("/dev/null".into()));
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
        Temporary::beside(&path).unwrap().finish(&dir.path().join("g"), false).unwrap();
        std::fs::remove_file(dir.path().join("g")).unwrap();
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
