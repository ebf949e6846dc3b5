//! Outputs: a content, or part of it, as a file of the user's.
//!
//! In order of preference a reflink (shares blocks until one side writes), a hard link (shares the file, so it has to
//! stay read-only) and a copy. A new output appears whole under its name or not at all.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use proto::ByteRange;
use rustix::fs::{CWD, OFlags, RenameFlags, copy_file_range, ioctl_ficlone, renameat_with};
use rustix::io::Errno;

use super::StoreError;
use super::content::Content;
use super::load::preallocate;

/// Bytes copied by one call, so that an interrupt is not kept waiting for a whole file.
const COPY_STEP_BYTES: u64 = 64 * 1024 * 1024;
/// Bytes copied through memory at a time, where the kernel does not copy by itself.
const COPY_BUFFER_BYTES: usize = 1024 * 1024;
/// Bytes of the output's name that its temporary name repeats; file names have at most 255.
const NAME_BYTES_MAX: usize = 200;
/// The permission bits of a file.
const MODE_BITS: u32 = 0o7777;

/// How an output is to be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Export {
    /// An existing file is replaced; otherwise it is an error.
    pub overwrite: bool,
    /// A hard link or an error, never a copy. The output then has the store's owner, and is read-only: `owner` and
    /// `mode` do not apply.
    pub force_hard_link: bool,
    /// Write into the file at this offset, in place, and leave its other bytes alone. It is made when it is not there.
    pub offset: Option<u64>,
    /// User and group id of a new output; the process's own when absent. When given, links and devices are refused as
    /// outputs: the file is made on behalf of somebody else, who must not point a privileged process at others' files.
    /// Whether that user may write to the output's *folder* is for the caller to check.
    pub owner: Option<(u32, u32)>,
    /// Permissions of a new output. When absent those of any new file (umask), or read-only for a hard link, which is
    /// only made when this is absent or equal to the content file's permissions (0444 and umask).
    pub mode: Option<u32>,
}

/// How an output was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Shares blocks with the content until one of them is written to.
    Reflink,
    /// Is the content's file under another name.
    HardLink,
    /// Has bytes of its own.
    Copy,
}

/// An output that was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Bytes written or linked.
    pub bytes: u64,
    /// How.
    pub way: Way,
}

/// What is to be exported.
#[derive(Clone, Copy)]
struct Part {
    start: u64,
    len: u64,
    is_whole: bool,
}

/// A file under a name of its own beside the output, deleted when it does not become the output.
struct Temporary(PathBuf);

impl Content {
    /// Makes an output of the whole content, or of a range whose pieces are here. An output that is there stays as it
    /// is unless all went well; only writing at an offset, and to a device or pipe, is done in place. The output is not
    /// synced, as no downloader's is.
    ///
    /// # Errors
    /// When pieces lack; when the output is there and may not be replaced, is a folder, or cannot be written; when
    /// there is no space for it; when a hard link was insisted on and cannot be had.
    pub fn export(&self, range: Option<ByteRange>, output: &Path, how: Export) -> Result<Exported, StoreError> {
        let part = self.part(range)?;
        self.check_intact()?;
        let output = resolve(output, how)?;
        let refuse_link = |reason| StoreError::NoHardLink { path: output.clone(), reason };
        match fs::symlink_metadata(&output) {
            Ok(found) if found.is_dir() => {
                return Err(StoreError::OutputNotAFile { path: output, found: "a folder" });
            }
            Ok(found) if !found.is_file() => {
                if how.owner.is_some() {
                    return Err(StoreError::OutputNotAFile { path: output, found: "a device or pipe" });
                }
                if found.file_type().is_block_device() && !how.overwrite {
                    return Err(StoreError::OutputExists { path: output });
                }
                if how.force_hard_link {
                    return Err(refuse_link("it is a device or pipe"));
                }
                self.stream(part, &output)?;
                return Ok(Exported { bytes: part.len, way: Way::Copy });
            }
            Ok(_) if !how.overwrite && how.offset.is_none() => {
                return Err(StoreError::OutputExists { path: output });
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::io("look at", &output, part.len, error));
            }
            _ => {}
        }
        let way = match how.offset {
            Some(_) if how.force_hard_link => return Err(refuse_link("it is written at an offset")),
            Some(offset) => self.write_in_place(part, &output, offset, how)?,
            None => self.replace(part, &output, how)?,
        };
        Ok(Exported { bytes: part.len, way })
    }

    /// The bytes of a range, which must all be here.
    fn part(&self, range: Option<ByteRange>) -> Result<Part, StoreError> {
        let facts = self.facts()?;
        let Some(range) = range else {
            let length = facts.layout.length().filter(|_| facts.is_full());
            let incomplete = || StoreError::Incomplete { present: facts.have.len(), expected: facts.layout.count() };
            return Ok(Part { start: 0, len: length.ok_or_else(incomplete)?, is_whole: true });
        };
        let (first, last) = facts.layout.pieces_of(range);
        if facts.layout.length().is_some_and(|length| range.end() > length) {
            return Err(StoreError::NoSuchPiece { piece: last });
        }
        let absent = facts.have.first_absent(first);
        if absent <= last {
            return Err(StoreError::Absent { piece: absent });
        }
        let is_whole = range.start() == 0 && facts.layout.length() == Some(range.end());
        Ok(Part { start: range.start(), len: range.len(), is_whole })
    }

    /// Makes the output under a temporary name and renames it.
    fn replace(&self, part: Part, output: &Path, how: Export) -> Result<Way, StoreError> {
        let temporary = Temporary::beside(output)?;
        let failed = |error| StoreError::io("write", output, part.len, error);
        let linked = |path: &Path| self.link(part, path, how).map_err(failed);
        let way = if how.force_hard_link {
            linked(&temporary.0)?.map_err(|reason| StoreError::NoHardLink { path: output.to_owned(), reason })?;
            Way::HardLink
        } else if self.reflink(part, &temporary.0, how).map_err(failed)? {
            Way::Reflink
        } else if part.len > 0 && linked(&temporary.0)?.is_ok() {
            Way::HardLink
        } else {
            let file = OpenOptions::new().write(true).create_new(true).open(&temporary.0).map_err(failed)?;
            preallocate(&file, 0, part.len).map_err(failed)?;
            self.copy(part, &file, 0, output)?;
            dress(&file, how).map_err(failed)?;
            Way::Copy
        };
        if way != Way::HardLink {
            // What was written to in the meantime is not passed on.
            self.check_intact()?;
        }
        temporary.publish(output, how.overwrite)?;
        Ok(way)
    }

    /// Makes `path` a file that shares the content's blocks, if the filesystem can.
    fn reflink(&self, part: Part, path: &Path, how: Export) -> io::Result<bool> {
        if !part.is_whole || part.len == 0 {
            return Ok(false);
        }
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        match ioctl_ficlone(&file, &self.reader) {
            Ok(()) => dress(&file, how).map(|()| true),
            Err(Errno::NOSPC) => Err(Errno::NOSPC.into()),
            // Other errors say in various ways that this filesystem, or this pair of them, cannot.
            Err(_) => fs::remove_file(path).map(|()| false),
        }
    }

    /// Makes `path` a hard link to the content file, or says why it cannot be one.
    fn link(&self, part: Part, path: &Path, how: Export) -> io::Result<Result<(), &'static str>> {
        if !part.is_whole {
            return Ok(Err("it is only a part of the content"));
        }
        if let Err(reason) = self.may_share(how)? {
            return Ok(Err(reason));
        }
        match fs::hard_link(self.path(), path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                return Ok(Err("it is on another filesystem than the store"));
            }
            Err(error) if error.kind() == io::ErrorKind::TooManyLinks => {
                return Ok(Err("the content has too many links"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.path().try_exists()? => {
                return Ok(Err("the task was discarded"));
            }
            Err(error)
                if matches!(
                    error.raw_os_error().map(Errno::from_raw_os_error),
                    Some(Errno::PERM | Errno::OPNOTSUPP)
                ) =>
            {
                return Ok(Err("its filesystem does not allow it"));
            }
            Err(error) => return Err(error),
        }
        // The task may have been discarded and made anew since: then the name leads to another file.
        if fs::symlink_metadata(path)?.ino() != self.reader.metadata()?.ino() {
            fs::remove_file(path)?;
            return Ok(Err("the task was discarded"));
        }
        Ok(Ok(()))
    }

    /// Whether the output may be the content's own file, which stays as it is: whole, read-only, the store's.
    fn may_share(&self, how: Export) -> io::Result<Result<(), &'static str>> {
        if !self.facts().is_ok_and(|facts| facts.sealed.is_some()) {
            return Ok(Err("the content is not whole"));
        }
        if how.force_hard_link {
            return Ok(Ok(()));
        }
        let metadata = self.reader.metadata()?;
        if how.owner.is_some_and(|owner| owner != (metadata.uid(), metadata.gid())) {
            return Ok(Err("it is to have another owner than the store"));
        }
        if how.mode.is_some_and(|mode| mode & MODE_BITS != metadata.mode() & MODE_BITS) {
            return Ok(Err("it is to have other permissions than the store's content"));
        }
        Ok(Ok(()))
    }

    /// Writes into a file that stays otherwise as it is.
    fn write_in_place(&self, part: Part, output: &Path, offset: u64, how: Export) -> Result<Way, StoreError> {
        let failed = |error| StoreError::io("write", output, part.len, error);
        let mut options = OpenOptions::new();
        // The link was followed before, if it may be.
        options.write(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
        let file = match options.open(output) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = options.create_new(true).open(output).map_err(failed)?;
                dress(&file, how).map_err(failed)?;
                file
            }
            opened => opened.map_err(failed)?,
        };
        let metadata = file.metadata().map_err(failed)?;
        if metadata.nlink() > 1 && self.inner_has_inode(&metadata).map_err(failed)? {
            let found = "a hard link to content in the store, which is read-only";
            return Err(StoreError::OutputNotAFile { path: output.to_owned(), found });
        }
        if offset.checked_add(part.len).is_none() {
            return Err(failed(io::ErrorKind::FileTooLarge.into()));
        }
        preallocate(&file, offset, part.len).map_err(failed)?;
        self.copy(part, &file, offset, output)?;
        self.check_intact()?;
        Ok(Way::Copy)
    }

    fn inner_has_inode(&self, metadata: &fs::Metadata) -> io::Result<bool> {
        if metadata.dev() != self.reader.metadata()?.dev() {
            return Ok(false);
        }
        let slots: Vec<_> = self.inner.tasks.lock().values().map(Arc::clone).collect();
        Ok(slots.iter().any(|slot| slot.inode.load(Ordering::Acquire) == metadata.ino()))
    }

    /// Copies in the kernel where it can.
    fn copy(&self, part: Part, file: &File, at: u64, output: &Path) -> Result<(), StoreError> {
        let (mut from, mut to) = (part.start, at);
        let end = part.start + part.len;
        while from < end {
            let step = usize::try_from((end - from).min(COPY_STEP_BYTES)).unwrap_or(usize::MAX);
            match copy_file_range(&self.reader, Some(&mut from), file, Some(&mut to), step) {
                Ok(0) | Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(StoreError::io("write", output, part.len, error.into())),
            }
        }
        self.through_memory(from, end, |bytes| {
            file.write_all_at(bytes, to).map_err(|e| StoreError::io("write", output, part.len, e))?;
            to += bytes.len() as u64;
            Ok(())
        })
    }

    /// Writes to something that has no offsets.
    fn stream(&self, part: Part, output: &Path) -> Result<(), StoreError> {
        let failed = |error| StoreError::io("write", output, part.len, error);
        let mut file = OpenOptions::new().write(true).open(output).map_err(failed)?;
        self.through_memory(part.start, part.start + part.len, |bytes| file.write_all(bytes).map_err(failed))
    }

    fn through_memory(
        &self,
        from: u64,
        end: u64,
        mut write: impl FnMut(&[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let left = usize::try_from(end - from).unwrap_or(usize::MAX);
        let mut buf = vec![0; left.min(COPY_BUFFER_BYTES)];
        let mut at = from;
        while at < end {
            let len = usize::try_from(end - at).map_or(buf.len(), |left| left.min(buf.len()));
            let read = self.read(at, &mut buf[..len])?;
            if read == 0 {
                return Err(StoreError::Modified { path: self.path() });
            }
            write(&buf[..read])?;
            at += read as u64;
        }
        Ok(())
    }
}

/// Gives a new output its owner and permissions.
fn dress(file: &File, how: Export) -> io::Result<()> {
    if let Some((user, group)) = how.owner {
        fchown(file, Some(user), Some(group))?;
    }
    if let Some(mode) = how.mode {
        file.set_permissions(Permissions::from_mode(mode & MODE_BITS))?;
    }
    Ok(())
}

/// Follows a link given as output, so that it stays and what it points to is written, unless that is refused.
fn resolve(output: &Path, how: Export) -> Result<PathBuf, StoreError> {
    let refused = |found| StoreError::OutputNotAFile { path: output.to_owned(), found };
    if output.file_name().is_none() {
        return Err(refused("a folder"));
    }
    if !fs::symlink_metadata(output).is_ok_and(|metadata| metadata.is_symlink()) {
        return Ok(output.to_owned());
    }
    if how.owner.is_some() {
        return Err(refused("a symbolic link"));
    }
    fs::canonicalize(output).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => refused("a symbolic link to nothing"),
        _ => StoreError::io("follow", output, 0, error),
    })
}

// === impl Temporary ===

impl Temporary {
    /// A name that nothing has yet, in the output's folder, because a rename does not cross filesystems.
    fn beside(output: &Path) -> Result<Self, StoreError> {
        let name = output.file_name().map(OsStrExt::as_bytes).unwrap_or_default();
        let name = &name[..name.len().min(NAME_BYTES_MAX)];
        let tail = format!(".{:016x}.part", rand::random::<u64>());
        let name = OsString::from_vec([b".", name, tail.as_bytes()].concat());
        Ok(Self(output.with_file_name(name)))
    }

    /// Gives the file its name.
    fn publish(self, output: &Path, overwrite: bool) -> Result<(), StoreError> {
        let failed = |error| StoreError::io("write", output, 0, error);
        if overwrite {
            // If both are links to one file this does nothing, and dropping `self` removes the one too many.
            return fs::rename(&self.0, output).map_err(failed);
        }
        let exists = || StoreError::OutputExists { path: output.to_owned() };
        match renameat_with(CWD, &self.0, CWD, output, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(exists()),
            // Not every filesystem has this kind of rename; a link does not replace anything either.
            Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(&self.0, output).map_err(|error| match error.kind() {
                io::ErrorKind::AlreadyExists => exists(),
                _ => failed(error),
            }),
            Err(error) => Err(failed(error.into())),
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already if it was renamed. If it cannot be removed there is nobody left to tell.
        let _ = fs::remove_file(&self.0);
    }
}
