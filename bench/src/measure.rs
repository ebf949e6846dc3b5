//! Small tools of measuring: contents, digests, metrics, folders, figures.

use std::{
    fs::{self, File},
    io::{BufWriter, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail, ensure};
use harness::{Daemon, Run};
use proto::{Algorithm, Digest};
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};

/// A folder in memory, on most machines.
const MEMORY: &str = "/dev/shm";
/// What statfs(2) calls tmpfs and ramfs.
const IN_MEMORY: [u32; 2] = [0x0102_1994, 0x8584_58f6];
/// How the folders of the harness's runs begin.
const RUN_PREFIX: &str = "skimmer-run-";

/// To four places behind the point.
pub(crate) fn round(value: f64) -> f64 {
    (value * 10_000.0).round() / 10_000.0
}

/// A figure, and what it may be at most.
pub(crate) type Bar = (&'static str, f64, f64);

/// Names the figures that are larger than promised; the exit code says whether there are any.
pub(crate) fn hold(bars: &[Bar]) -> ExitCode {
    let broken: Vec<&Bar> = bars.iter().filter(|(_, figure, most)| figure > most).collect();
    for (what, figure, most) in &broken {
        eprintln!("broken promise: {what} is {figure}, more than {most}");
    }
    if broken.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The middle one; of an even number the mean of the middle two. 0 of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// The value that so large a share of all are not above; 0 of none.
pub(crate) fn percentile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

/// Writes a file that nothing can compress, and returns its digest.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn random_file(path: &Path, bytes: u64, seed: u64) -> Result<Digest> {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut file = BufWriter::new(File::create(path).with_context(|| format!("cannot make {}", path.display()))?);
    let mut hasher = Algorithm::Sha256.hasher();
    let (mut left, mut buffer) = (bytes, vec![0; 256 * 1024]);
    while left > 0 {
        let now = left.min(buffer.len() as u64) as usize;
        random.fill_bytes(&mut buffer[..now]);
        hasher.update(&buffer[..now]);
        file.write_all(&buffer[..now]).with_context(|| format!("cannot write {}", path.display()))?;
        left -= now as u64;
    }
    file.flush()?;
    Ok(hasher.finish())
}

/// The sha256 of a file.
///
/// # Errors
/// When it cannot be read.
pub(crate) fn digest_of(path: &Path) -> Result<Digest> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let (mut hasher, mut buffer) = (Algorithm::Sha256.hasher(), vec![0; 256 * 1024]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

/// A counter of one of our programs, by its full name; an error when there is none: it was renamed.
///
/// # Errors
/// When the program does not answer, too.
pub(crate) fn counter(daemon: &Daemon, name: &str) -> Result<u64> {
    let reply = daemon.api("/metrics")?;
    ensure!(reply.status == 200, "metrics answered {}", reply.status);
    let text = String::from_utf8_lossy(&reply.body);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).with_context(|| format!("no counter {name} among the metrics"))
}

/// The contents of a run's logs for people, when something failed.
pub(crate) fn explain<T>(run: &Run, result: Result<T>) -> Result<T> {
    if result.is_err() {
        eprintln!("{}", run.log_ends());
    }
    result
}

/// Lets everything of this process that asks for a temporary folder have one in `folder`, or, when none is named, in
/// memory if there is room for `bytes`: a disk that other programs write to at the same time would be measured as well.
/// Returns what it is.
///
/// # Errors
/// When the folder named cannot be used.
pub(crate) fn data_folder(folder: Option<&Path>, bytes: u64) -> Result<String> {
    let chosen = match folder {
        Some(folder) => folder.to_owned(),
        None => {
            let free = rustix::fs::statvfs(MEMORY).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
            let room = free.min(available_memory()) > bytes.saturating_mul(2);
            if room { MEMORY.into() } else { std::env::temp_dir() }
        }
    };
    ensure!(chosen.is_dir(), "{} is not a folder", chosen.display());
    let shown = chosen.display().to_string();
    if tempfile::env::temp_dir() != chosen {
        tempfile::env::override_temp_dir(&chosen)
            .map_err(|other| anyhow::anyhow!("temporary files are already in {}", other.display()))?;
    }
    Ok(shown)
}

/// A folder on a disk for the temporary files of one bench at a time.
#[derive(Debug)]
pub(crate) struct DiskFolder {
    path: PathBuf,
    /// Locked for as long as the bench runs.
    _lock: File,
}

impl DiskFolder {
    /// The one named, or `bench` in the cache of `./dev`. What a bench that was killed left there is removed.
    ///
    /// # Errors
    /// When it is in memory, where writing costs nothing, has no room for `bytes`, or another bench uses it.
    pub(crate) fn take(folder: Option<&Path>, bytes: u64) -> Result<Self> {
        let path = match folder {
            Some(folder) => folder.to_owned(),
            None => harness::cache_dir()?.join("bench"),
        };
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        let lock = File::create(path.join("lock"))?;
        if rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another bench works in {}", path.display());
        }
        let kind = rustix::fs::statfs(&path)?.f_type;
        let in_memory = IN_MEMORY.contains(&(kind as u32));
        ensure!(!in_memory, "{} is in memory, and this bench is about disks; see --folder", path.display());
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(RUN_PREFIX) {
                fs::remove_dir_all(entry.path()).with_context(|| format!("cannot remove {:?}", entry.path()))?;
            }
        }
        let free = rustix::fs::statvfs(&path).map_or(0, |stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        ensure!(free >= bytes, "{} has {free} bytes left, and {bytes} are needed; see --folder", path.display());
        data_folder(Some(&path), 0)?;
        Ok(Self { path, _lock: lock })
    }

    /// Lets everything written so far reach the disk, so that it is not charged to what is measured next.
    ///
    /// # Errors
    /// When the disk fails.
    pub(crate) fn settle(&self) -> Result<()> {
        Ok(rustix::fs::syncfs(File::open(&self.path)?)?)
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// What the kernel thinks programs could still have, in bytes; 0 where it does not tell.
fn available_memory() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    line.and_then(|kb| kb.trim().trim_end_matches(" kB").parse::<u64>().ok()).map_or(0, |kb| kb * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(&[]), 0.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn percentiles() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(percentile(&values, 1.0), 100.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn folders_in_memory_and_folders_in_use_are_refused() {
        if Path::new(MEMORY).is_dir() {
            let folder = tempfile::tempdir_in(MEMORY).unwrap();
            let refused = format!("{:#}", DiskFolder::take(Some(folder.path()), 0).unwrap_err());
            assert!(refused.contains("in memory"), "{refused}");
        }
        let folder = tempfile::tempdir().unwrap();
        let lock = File::create(folder.path().join("lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let refused = format!("{:#}", DiskFolder::take(Some(folder.path()), 0).unwrap_err());
        assert!(refused.contains("another bench"), "{refused}");
    }

    #[test]
    fn a_files_digest_is_that_of_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let written = random_file(&path, 1_000_001, 7).unwrap();
        assert_eq!(written, digest_of(&path).unwrap());
        assert_eq!(fs::metadata(&path).unwrap().len(), 1_000_001);
    }
}
