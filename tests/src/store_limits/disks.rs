//! No room, no rights, no store.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, ensure};
use harness::{Cluster, Daemon, FileServer, FileServerOptions, Finished, Host, Net, Run, SmallDisk};

use crate::{
    faults_data::probe::{self, same},
    runner::{CaseResult, Outcome},
};

const MIB: u64 = 1 << 20;
/// Of a full disk; RocksDB and a few small files fit.
const DISK_BYTES: u64 = 64 * MIB;

struct Bed {
    files: FileServer,
    cluster: Cluster,
    net: Net,
}

impl Bed {
    fn new(run: &Run, supernode: &str, daemon: &str) -> anyhow::Result<Self> {
        let net = probe::net(&["h1"])?;
        let files = FileServer::nginx(&net.host("origin"), run, &FileServerOptions::default())?;
        fs::create_dir(files.root().join("p2p"))?;
        let cluster = probe::cluster(&net, run, &["h1"], supernode, daemon)?;
        Ok(Self { files, cluster, net })
    }

    fn daemon(&self) -> &Daemon {
        &self.cluster.daemons[0]
    }

    fn sparse(&self, name: &str, bytes: u64) -> anyhow::Result<String> {
        fs::File::create(self.files.root().join(name))?.set_len(bytes)?;
        Ok(self.files.url(name))
    }

    fn file(&self, name: &str, content: &[u8]) -> anyhow::Result<String> {
        fs::write(self.files.root().join(name), content)?;
        Ok(self.files.url(name))
    }

    /// Small things go on as if nothing had been.
    fn is_usable(&self, run: &Run, seed: u64) -> anyhow::Result<()> {
        let content = probe::content(5 * MIB as usize, seed);
        let url = self.file(&format!("p2p/small{seed}"), &content)?;
        for _ in 0..2 {
            let output = run.data_dir("output")?.join("file");
            let finished = probe::dfget(self.daemon(), &url, &output, &[])?;
            ensure!(finished.status.success(), "the store is of no use afterwards: {}", probe::said(&finished));
            same(&fs::read(&output)?, &content)?;
        }
        same(&probe::proxied(self.daemon()).get(&url)?.body, &content)
    }
}

/// Exit 7, and a message that names this path and how many bytes it was about.
fn no_space(finished: &Finished, path: &Path, bytes: u64) -> anyhow::Result<()> {
    let result = probe::dfget_result(finished)?;
    let message = result["message"].as_str().unwrap_or_default();
    ensure!(probe::code(finished)? == 7 && result["kind"] == "no_space", "ends with {}: {result}", finished.status);
    ensure!(message.contains(&path.display().to_string()), "the path {} is not named: {message}", path.display());
    ensure!(message.contains(&bytes.to_string()), "the {bytes} bytes are not named: {message}");
    Ok(())
}

fn store_at(disk: &Path) -> String {
    format!("[store]\ndir = \"{}\"\ncapacity = \"1GiB\"\n", disk.join("store").display())
}

pub(super) fn too_large(run: &Run) -> CaseResult {
    let small = "[store]\ncapacity = \"64MiB\"\n";
    for (supernode, daemon) in [(small, ""), ("", small)] {
        let bed = Bed::new(run, supernode, daemon)?;
        let url = bed.sparse("p2p/large", 100 * MIB)?;
        let output = run.data_dir("output")?.join("file");
        let finished = probe::dfget(bed.daemon(), &url, &output, &[])?;
        let node = if supernode.is_empty() { bed.daemon() } else { &bed.cluster.supernodes[0] };
        no_space(&finished, &node.store(), 100 * MIB).with_context(|| node.host().name().to_owned())?;
        ensure!(!output.try_exists()?, "there is an output");
        // The proxy may read the origin itself; what it must not do is give less.
        if let Ok(reply) = probe::proxied(bed.daemon()).get(&url) {
            let all = reply.body.len() as u64 == 100 * MIB;
            ensure!(all || reply.exit != 0 || reply.status >= 500, "a short answer: {}", probe::told(&reply));
        }
        bed.is_usable(run, 600)?;
    }
    Ok(Outcome::Passed)
}

pub(super) fn daemon_full(run: &Run) -> CaseResult {
    full(run, false)
}

pub(super) fn seed_full(run: &Run) -> CaseResult {
    full(run, true)
}

fn full(run: &Run, seed: bool) -> CaseResult {
    let disk = SmallDisk::new(run, "disk", DISK_BYTES)?;
    let store = store_at(disk.path());
    let bed = if seed { Bed::new(run, &store, "")? } else { Bed::new(run, "", &store)? };
    let output = run.data_dir("output")?.join("file");
    // Fits into the configured store, but not onto the disk; twice, because the first try may have left something.
    for number in 0..2 {
        let url = bed.sparse(&format!("p2p/large{number}"), 100 * MIB)?;
        let finished = probe::dfget(bed.daemon(), &url, &output, &[])?;
        no_space(&finished, disk.path(), 100 * MIB)?;
        ensure!(!output.try_exists()?, "there is an output");
        bed.is_usable(run, 610 + number)?;
    }
    // Five of 20 MiB through 64: the disk's end makes room as the configured limit would, or is told of clearly.
    for number in 0..5 {
        let content = probe::content(20 * MIB as usize, 620 + number);
        let url = bed.file(&format!("p2p/middle{number}"), &content)?;
        let finished = probe::dfget(bed.daemon(), &url, &output, &[])?;
        if finished.status.success() {
            same(&fs::read(&output)?, &content)?;
        } else {
            no_space(&finished, disk.path(), 20 * MIB)?;
        }
    }
    bed.is_usable(run, 630)?;
    Ok(Outcome::Passed)
}

pub(super) fn not_a_byte(run: &Run) -> CaseResult {
    let disk = SmallDisk::new(run, "disk", DISK_BYTES)?;
    let bed = Bed::new(run, "", &store_at(disk.path()))?;
    bed.is_usable(run, 640)?;
    let content = probe::content(5 * MIB as usize, 641);
    let url = bed.file("p2p/other", &content)?;
    let output = run.data_dir("output")?.join("file");
    disk.fill()?;
    for _ in 0..3 {
        let finished = probe::dfget(bed.daemon(), &url, &output, &[])?;
        if finished.status.success() {
            // Room can be made by evicting what was there.
            same(&fs::read(&output)?, &content)?;
            continue;
        }
        let result = probe::dfget_result(&finished)?;
        let message = result["message"].as_str().unwrap_or_default();
        ensure!(probe::code(&finished)? == 7, "ends with {}: {result}", finished.status);
        ensure!(message.contains(&disk.path().display().to_string()), "the path is not named: {message}");
    }
    disk.make_room()?;
    let finished = probe::dfget(bed.daemon(), &url, &output, &[])?;
    ensure!(finished.status.success(), "with room again: {}", probe::said(&finished));
    same(&fs::read(&output)?, &content)?;
    bed.is_usable(run, 642)?;
    Ok(Outcome::Passed)
}

pub(super) fn outputs(run: &Run) -> CaseResult {
    let bed = Bed::new(run, "", "")?;
    let content = probe::content(5 * MIB as usize, 650);
    let url = bed.file("p2p/file", &content)?;
    let serves = || -> anyhow::Result<()> {
        let output = run.data_dir("output")?.join("file");
        let finished = probe::dfget(bed.daemon(), &url, &output, &[])?;
        ensure!(finished.status.success(), "afterwards: {}", probe::said(&finished));
        same(&fs::read(&output)?, &content)
    };
    // Warm and cold.
    for round in 0..2 {
        let url = if round == 0 { bed.files.url("p2p/file?cold") } else { url.clone() };
        // A file where a folder should be.
        let folder = run.data_dir("output")?;
        fs::write(folder.join("file"), "x")?;
        let output = folder.join("file/below");
        let finished = probe::dfget(bed.daemon(), &url, &output, &[])?;
        failed_output(&finished, &[8], &folder.join("file")).context("below a file")?;
        ensure!(fs::read(folder.join("file"))? == b"x", "the file was touched");
        serves()?;

        // The disk of the output is full.
        let disk = SmallDisk::new(run, "outputs", 3 * MIB)?;
        let output = disk.path().join("out");
        let finished = probe::dfget(bed.daemon(), &url, &output, &[])?;
        failed_output(&finished, &[7], disk.path()).context("on a full disk")?;
        let left: Vec<_> = fs::read_dir(disk.path())?.flatten().map(|entry| entry.file_name()).collect();
        ensure!(left.is_empty(), "left on the full disk: {left:?}");
        serves()?;

        // Somebody who may not write there.
        let output = folder.join("theirs");
        let finished = as_nobody(&bed.net.host("h1"), bed.daemon(), &url, &output)?;
        failed_output(&finished, &[8], &folder).context("as a user without rights")?;
        ensure!(!output.try_exists()?, "a user without rights wrote an output");
        serves()?;

        // And where he may, it is his.
        let disk = SmallDisk::new(run, "theirs", 16 * MIB)?;
        let output = disk.path().join("out");
        open_up(run.path(), disk.path())?;
        let finished = as_nobody(&bed.net.host("h1"), bed.daemon(), &url, &output)?;
        ensure!(finished.status.success(), "as another user: {}", finished.stderr);
        same(&fs::read(&output)?, &content)?;
        use std::os::unix::fs::MetadataExt;
        ensure!(fs::metadata(&output)?.uid() == NOBODY, "the output belongs to somebody else");
    }
    Ok(Outcome::Passed)
}

const NOBODY: u32 = 65534;

/// Lets others walk down from the run's folder.
fn open_up(top: &Path, down: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    for folder in down.ancestors().take_while(|folder| folder.starts_with(top)) {
        let mode = fs::metadata(folder)?.permissions().mode();
        fs::set_permissions(folder, fs::Permissions::from_mode(mode | 0o011))?;
    }
    Ok(())
}

fn as_nobody(host: &Host, daemon: &Daemon, url: &str, output: &Path) -> anyhow::Result<Finished> {
    let top = daemon.socket().ancestors().nth(3).map(Path::to_owned).context("a socket lies in a run's folder")?;
    open_up(&top, &daemon.socket())?;
    if let Some(folder) = output.parent() {
        open_up(&top, folder)?;
    }
    let user = format!("--reuid={NOBODY}");
    let program = host.program("setpriv").args([&user, "--regid=65534", "--clear-groups"]);
    let program = program.arg(harness::bin_dir()?.join("dfget")).arg("--endpoint").arg(daemon.socket()).arg("--json");
    program.arg(url).arg("-O").arg(output).output(probe::TRANSFER)
}

fn failed_output(finished: &Finished, codes: &[i32], path: &Path) -> anyhow::Result<()> {
    let result = probe::dfget_result(finished)?;
    let message = result["message"].as_str().unwrap_or_default();
    ensure!(codes.contains(&probe::code(finished)?), "ends with {} and not {codes:?}: {result}", finished.status);
    ensure!(message.contains(&path.display().to_string()), "the path {} is not named: {message}", path.display());
    Ok(())
}

pub(super) fn versions(run: &Run) -> CaseResult {
    let mut bed = Bed::new(run, "", "")?;
    let content = probe::content(5 * MIB as usize, 660);
    let url = bed.file("p2p/file", &content)?;
    same(&probe::proxied(bed.daemon()).get(&url)?.body, &content)?;
    std::thread::sleep(Duration::from_secs(1));
    let sent = bed.files.bytes_sent("p2p/file")?;
    for supernode in [false, true] {
        let node = if supernode { &mut bed.cluster.supernodes[0] } else { &mut bed.cluster.daemons[0] };
        node.process().terminate(probe::SETTLE)?;
        let version = node.store().join("VERSION");
        let right = fs::read(&version)?;
        let before = probe::stored(node);
        fs::write(&version, "999\n")?;
        ensure!(node.restart().is_err(), "{} starts in a store of version 999", node.host().name());
        let log = node.log()?;
        let line = log.lines().rev().find(|line| line.contains("999")).context("the version is not named")?;
        ensure!(line.contains(&node.store().display().to_string()), "the folder is not named: {line}");
        ensure!(fs::read(&version)? == b"999\n" && probe::stored(node) == before, "the folder was touched");
        fs::write(&version, right)?;
        node.restart()?;
    }
    same(&probe::proxied(bed.daemon()).get(&url)?.body, &content)?;
    ensure!(bed.files.bytes_sent("p2p/file")? == sent, "the store was of no use after that");

    // A folder that holds something else.
    let node = &mut bed.cluster.daemons[0];
    node.process().terminate(probe::SETTLE)?;
    let (store, aside) = (node.store(), node.store().with_extension("aside"));
    fs::rename(&store, &aside)?;
    fs::create_dir(&store)?;
    fs::write(store.join("thesis.tex"), "years of work")?;
    ensure!(node.restart().is_err(), "it moves into a folder of something else");
    let log = node.log()?;
    ensure!(log.lines().any(|line| line.contains("thesis.tex")), "what is in the folder is not named");
    ensure!(fs::read(store.join("thesis.tex"))? == b"years of work", "it was touched");
    fs::remove_dir_all(&store)?;
    fs::rename(&aside, &store)?;
    node.restart()?;
    same(&probe::proxied(bed.daemon()).get(&url)?.body, &content)?;
    Ok(Outcome::Passed)
}
