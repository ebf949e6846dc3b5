//! Disks that fill up.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::Run;

/// A disk of a few MiB, in memory; gone when dropped. Needs root.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts one of so many bytes in the run's folder, writable by all users.
    ///
    /// # Errors
    /// Without root, and when the kernel refuses.
    pub fn new(run: &Run, name: &str, bytes: u64) -> Result<Self> {
        ensure!(crate::is_root(), "mounting needs root");
        let path = run.data_dir(name)?;
        let options = std::ffi::CString::new(format!("size={bytes},mode=1777"))?;
        mount("tmpfs", &path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())
            .with_context(|| format!("cannot mount a tmpfs at {}", path.display()))?;
        Ok(Self { path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Fills it up to the last byte with a file.
    ///
    /// # Errors
    /// When something else than the disk's end gets in the way.
    pub fn fill(&self) -> Result<()> {
        use std::io::Write;
        let mut file = fs::File::create(self.filler())?;
        let block = vec![1; 64 * 1024];
        for size in [block.len(), 4096, 1] {
            loop {
                match file.write(&block[..size]) {
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Takes away what [`Self::fill`] put there.
    ///
    /// # Errors
    /// When it was not filled.
    pub fn make_room(&self) -> Result<()> {
        // Emptied first: a program that another row was starting has a copy of our open files until its exec, and while it
        // has, removing gives no byte back.
        fs::OpenOptions::new().write(true).truncate(true).open(self.filler())?;
        Ok(fs::remove_file(self.filler())?)
    }

    fn filler(&self) -> PathBuf {
        self.path.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a program that is just being killed may still have files open.
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}
