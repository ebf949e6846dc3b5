//! Where the programs lie that are not in everybody's PATH.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// What Debian has in folders that only administrators have in their PATH.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/usr/local/sbin"];

/// What is built once and kept: `SKIMMER_CACHE`, or `.cache/skimmer` in the home folder.
///
/// # Errors
/// When neither it nor a home folder is known.
pub fn cache_dir() -> Result<PathBuf> {
    match env::var_os("SKIMMER_CACHE") {
        Some(folder) => Ok(folder.into()),
        None => Ok(env::home_dir().context("neither SKIMMER_CACHE nor HOME is set")?.join(".cache/skimmer")),
    }
}

/// A program that `./dev setup` builds from Go sources: `crane`, `distribution`, `helm`, `minio`, `regctl`,
/// `versitygw` (`dev.d/tools.txt`).
///
/// # Errors
/// When it has not been built.
pub fn go_tool(name: &str) -> Result<PathBuf> {
    kept(&cache_dir()?.join("go/bin"), name)
}

/// A program that `./dev setup` installs from PyPI: `dxf`, or `python`, which has the packages (`oras`, `dxf`).
///
/// # Errors
/// When it has not been installed.
pub fn python_tool(name: &str) -> Result<PathBuf> {
    kept(&cache_dir()?.join("python/bin"), name)
}

fn kept(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = folder.join(name);
    if !path.is_file() {
        bail!("{} is missing: run ./dev setup", path.display());
    }
    Ok(path)
}

/// A program of a Debian package.
pub(crate) fn system_program(name: &str, package: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(SYSTEM_FOLDERS.map(PathBuf::from));
    match folders.map(|folder| folder.join(name)).find(|path| path.is_file()) {
        Some(path) => Ok(path),
        None => bail!("{name} is missing: install Debian's package {package}, or run ./dev setup as root"),
    }
}

/// A program of the newest PostgreSQL; Debian keeps each version in a folder of its own.
pub(crate) fn postgres_program(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().filter_map(|entry| {
        let path = entry.ok()?.path();
        let version = path.file_name()?.to_str()?.parse::<u32>().ok()?;
        let program = path.join("bin").join(name);
        program.is_file().then_some((version, program))
    });
    match versions.max() {
        Some((_, program)) => Ok(program),
        None => bail!("{name} is missing: install Debian's package postgresql, or run ./dev setup as root"),
    }
}
