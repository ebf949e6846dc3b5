//! What the documentation shows works: configurations, files for container runtimes, commands.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use harness::{Net, Run, bin_dir};

use crate::runner::{Case, CaseResult, Outcome, anywhere};

const DEADLINE: Duration = Duration::from_secs(20);
/// Our programs that have a configuration.
const PROGRAMS: [&str; 4] = ["config-service", "supernode", "dfdaemon", "registry"];
/// Files of container runtimes, and what `dfdaemon setup` is asked for and writes.
const RUNTIME_FILES: [(&str, &str, &str); 3] = [
    ("hosts.toml", "containerd", "etc/containerd/certs.d/_default/hosts.toml"),
    ("daemon.json", "docker", "etc/docker/daemon.json"),
    ("zz-skimmer.conf", "podman", "etc/containers/registries.conf.d/zz-skimmer.conf"),
];

pub(crate) fn cases() -> Vec<Case> {
    vec![
        anywhere("docs: every configuration shown passes --check-config", configurations),
        anywhere("docs: --print-default-config prints the commented file, which passes --check-config", defaults),
        anywhere("docs: what README says of runtimes is what dfdaemon setup writes", runtimes),
        anywhere("docs: every ./dev command named exists", commands),
        anywhere("docs: every link to a file leads somewhere", links),
    ]
}

/// A fenced block of a page.
struct Block {
    /// `README.md:34`.
    place: String,
    language: String,
    text: String,
}

impl Block {
    /// The file it is of: its first line says so, but JSON has no comments.
    fn file(&self) -> Result<&str> {
        if self.language == "json" {
            return Ok("daemon.json");
        }
        let first = self.text.lines().next().unwrap_or_default();
        let name = first.strip_prefix("# ").and_then(|line| line.split([',', ' ']).next());
        name.with_context(|| format!("{}: the first line of a toml block must be \"# <file name>\"", self.place))
    }
}

/// The checkout: where `./dev` says, or else where this was compiled.
fn root() -> PathBuf {
    std::env::var_os("SKIMMER_ROOT").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), PathBuf::from)
}

/// README.md and the pages below docs.
fn pages() -> Result<Vec<(PathBuf, String)>> {
    let mut files = vec![PathBuf::from("README.md")];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(root().join(&folder))? {
            let (path, kind) = entry.and_then(|entry| Ok((folder.join(entry.file_name()), entry.file_type()?)))?;
            if kind.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                files.push(path);
            }
        }
    }
    files.sort();
    ensure!(files.len() > 5, "the pages are not where they should be: {}", root().display());
    let read = |path: PathBuf| {
        let text = fs::read_to_string(root().join(&path)).with_context(|| path.display().to_string())?;
        Ok((path, text))
    };
    files.into_iter().map(read).collect()
}

fn blocks() -> Result<Vec<Block>> {
    let mut blocks = Vec::new();
    for (path, text) in pages()? {
        let mut open: Option<Block> = None;
        for (number, line) in text.lines().enumerate() {
            match (&mut open, line.strip_prefix("```")) {
                (None, Some(language)) => {
                    let place = format!("{}:{}", path.display(), number + 1);
                    open = Some(Block { place, language: language.trim().to_owned(), text: String::new() });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(block), None) => block.text.extend([line, "\n"]),
                (None, None) => {}
            }
        }
        if let Some(block) = open {
            bail!("{}: the block has no end", block.place);
        }
    }
    Ok(blocks)
}

fn check(run: &Run, program: &str, text: &str) -> Result<()> {
    let file = run.data_dir(program)?.join(format!("{program}.toml"));
    fs::write(&file, text)?;
    let host = Net::loopback(&["host"]).host("host");
    let check = host.program(bin_dir()?.join(program)).arg("--check-config").arg("--config").arg(&file);
    let finished = check.output(DEADLINE)?;
    // Files that the reader has are not here.
    let is_missing = |line: &str| line.contains("cannot read") && line.contains("/etc/skimmer/");
    let mut problems = finished.stderr.lines().filter(|line| line.starts_with("  ")).peekable();
    let only_missing = problems.peek().is_some() && problems.all(is_missing);
    ensure!(
        finished.status.success() || only_missing,
        "{program} --check-config: {}\n{}",
        finished.status,
        finished.stderr
    );
    Ok(())
}

fn configurations(run: &Run) -> CaseResult {
    let mut seen = [0; PROGRAMS.len()];
    for block in blocks()?.iter().filter(|block| matches!(block.language.as_str(), "toml" | "json")) {
        let file = block.file()?;
        let ours = PROGRAMS.iter().position(|program| file == format!("{program}.toml"));
        match ours {
            Some(index) => {
                check(run, PROGRAMS[index], &block.text).with_context(|| block.place.clone())?;
                seen[index] += 1;
            }
            // A containerd configuration is not ours to check, but it is still TOML.
            None if file == "config.toml" => drop(data(file, &block.text).with_context(|| block.place.clone())?),
            None => ensure!(
                RUNTIME_FILES.iter().any(|(name, ..)| *name == file),
                "{}: nobody checks a {file}; add it here",
                block.place
            ),
        }
    }
    ensure!(seen.iter().all(|count| *count > 0), "the pages show a configuration of each of {PROGRAMS:?}: {seen:?}");
    Ok(Outcome::Passed)
}

fn defaults(run: &Run) -> CaseResult {
    let host = Net::loopback(&["host"]).host("host");
    for program in PROGRAMS {
        let printed = host.program(bin_dir()?.join(program)).arg("--print-default-config").run(DEADLINE)?;
        let printed = String::from_utf8(printed.stdout)?;
        let documented = fs::read_to_string(root().join(format!("docs/config/{program}.toml")))?;
        ensure!(printed == documented, "{program} prints something else than docs/config/{program}.toml");
        check(run, program, &printed)?;
    }
    Ok(Outcome::Passed)
}

/// A file's content without comments and layout.
fn data(file: &str, text: &str) -> Result<serde_json::Value> {
    Ok(if file.ends_with(".json") { serde_json::from_str(text)? } else { toml::from_str(text)? })
}

fn runtimes(run: &Run) -> CaseResult {
    let blocks = blocks()?;
    for (file, runtime, path) in RUNTIME_FILES {
        let system = run.data_dir(runtime)?;
        let setup = Net::loopback(&["host"]).host("host").program(bin_dir()?.join("dfdaemon"));
        setup.args(["setup", runtime, "--root"]).arg(&system).run(DEADLINE)?;
        let written = data(file, &fs::read_to_string(system.join(path))?)?;
        let shown: Vec<_> =
            blocks.iter().filter(|b| b.place.starts_with("README") && b.file().ok() == Some(file)).collect();
        let [block] = shown[..] else { bail!("README shows {} blocks of {file}, not one", shown.len()) };
        let told = data(file, &block.text).with_context(|| block.place.clone())?;
        ensure!(told == written, "{}: README says {told}, `dfdaemon setup {runtime}` writes {written}", block.place);
    }
    Ok(Outcome::Passed)
}

fn commands(_run: &Run) -> CaseResult {
    let dev = root().join("dev");
    let usage = Net::loopback(&["host"]).host("host").program(&dev).arg("help").run(DEADLINE)?;
    let usage = String::from_utf8(usage.stdout)?;
    let known: Vec<&str> = usage
        .lines()
        .filter_map(|line| line.strip_prefix("  ").filter(|rest| rest.starts_with(|c: char| c.is_ascii_lowercase())))
        .filter_map(|line| line.split_whitespace().next())
        .chain(["help"])
        .collect();
    ensure!(known.contains(&"demo") && known.contains(&"test"), "./dev help lists {known:?}");
    let mut named = 0;
    for (path, text) in pages()? {
        for (number, line) in text.lines().enumerate() {
            for rest in line.split("./dev ").skip(1) {
                let word: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '-').collect();
                // `./dev COMMAND`, and sentences that go on after the script's name.
                if word.is_empty() {
                    continue;
                }
                ensure!(
                    known.contains(&word.as_str()),
                    "{}:{}: ./dev {word} does not exist",
                    path.display(),
                    number + 1
                );
                named += 1;
            }
        }
    }
    ensure!(named >= 2, "README names ./dev demo and ./dev test");
    Ok(Outcome::Passed)
}

fn links(_run: &Run) -> CaseResult {
    for (path, text) in pages()? {
        let folder = root().join(&path).parent().map(Path::to_owned).unwrap_or_default();
        for rest in text.split("](").skip(1) {
            let Some((target, _)) = rest.split_once(')') else { continue };
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") || file.contains(char::is_whitespace) {
                continue;
            }
            ensure!(folder.join(file).try_exists()?, "{}: the link to {target} leads nowhere", path.display());
        }
    }
    Ok(Outcome::Passed)
}
