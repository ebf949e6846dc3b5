//! Bad flags and bad configuration of every program.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use harness::{Cluster, Finished, LinkSpec, Net, Run, Signal, bin_dir};

use crate::{
    faults_data::probe::{SETTLE, wait_until},
    runner::{Case, CaseResult, Outcome, anywhere, rooted},
};

const ASK: Duration = Duration::from_secs(20);
const SERVERS: [&str; 4] = ["dfdaemon", "supernode", "config-service", "registry"];
/// Bad flags and bad configuration.
const BAD: i32 = 2;

pub(super) fn cases() -> Vec<Case> {
    vec![
        anywhere("faults: bad flags of every program: exit code 2, the flag is named", flags),
        anywhere("faults: bad configuration: every problem listed with its place, exit code 2", files),
        anywhere("faults: bad environment: every problem listed with its place, exit code 2", environment),
        rooted("configuration: SIGHUP has rates and log level read again; a bad file changes nothing", hang_up),
        anywhere("configuration: defaults printed pass the check, and so do the documented files", defaults),
    ]
}

fn ask(program: &str, args: &[&str]) -> Result<Finished> {
    ask_with(program, args, &[])
}

fn ask_with(program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Finished> {
    let net = Net::loopback(&["here"]);
    let mut asked = net.host("here").program(bin_dir()?.join(program)).args(args);
    for (name, value) in env {
        asked = asked.env(name, value);
    }
    asked.output(ASK).with_context(|| format!("{program} {}", args.join(" ")))
}

/// It exits with 2 and its errors name all of these.
fn refuses(program: &str, finished: &Finished, names: &[&str]) -> Result<()> {
    let code = finished.status.code();
    ensure!(code == Some(BAD), "{program} exits {code:?}, not {BAD}: {}", finished.stderr.trim());
    let missing: Vec<&&str> = names.iter().filter(|name| !finished.stderr.contains(**name)).collect();
    ensure!(missing.is_empty(), "{program} does not name {missing:?}: {}", finished.stderr.trim());
    Ok(())
}

fn all(results: impl IntoIterator<Item = Result<()>>) -> CaseResult {
    let problems: Vec<String> =
        results.into_iter().filter_map(|result| result.err().map(|error| format!("{error:#}"))).collect();
    ensure!(problems.is_empty(), "{}", problems.join("\n"));
    Ok(Outcome::Passed)
}

fn flags(_run: &Run) -> CaseResult {
    let mut results = Vec::new();
    for program in SERVERS {
        let bad = |args: &[&str], names: &[&str]| refuses(program, &ask(program, args)?, names);
        results.push(bad(&["--no-such-flag"], &["--no-such-flag"]));
        results.push(bad(&["--config"], &["--config"]));
        results.push(bad(&["--config", "/nonexistent/file.toml"], &["/nonexistent/file.toml"]));
        results.push(bad(&["surplus"], &["surplus"]));
    }
    let dfget = |args: &[&str], names: &[&str]| refuses("dfget", &ask("dfget", args)?, names);
    results.push(dfget(&["--no-such-flag", "http://origin.test/x"], &["--no-such-flag"]));
    results.push(dfget(&[], &["URL"]));
    results.push(dfget(&["not a url"], &["not a url"]));
    // All problems at once, each with the flag it stands at.
    results.push(dfget(
        &["http://origin.test/x", "--digest", "sha256:12", "--range", "9-3", "--timeout", "soon", "--priority", "17"],
        &["--digest", "--range", "--timeout", "--priority"],
    ));
    results.push(dfget(&["s3://bucket/key"], &["s3"]));
    all(results)
}

/// A file of several mistakes, and where each of them is.
struct Mistakes {
    program: &'static str,
    text: &'static str,
    places: &'static [&'static str],
}

const MISTAKES: [Mistakes; 3] = [
    Mistakes {
        program: "dfdaemon",
        text: "[store]\ncapacity = \"a lot\"\nhigh_watermark = 0.5\nlow_watermark = 0.9\n[rates]\ndownload = \"-3\"\n\
               [peer]\nlisten = [\"nowhere\"]\n[nonsense]\nx = 1\n[proxy]\nno_such = true\n[log]\nlevel = 7\n",
        places: &["store.capacity", "rates.download", "peer.listen", "nonsense", "proxy.no_such", "log.level"],
    },
    Mistakes {
        program: "supernode",
        text: "[grpc]\nlisten = \"nowhere\"\n[scheduler]\nneighbours = \"many\"\nleases_per_s = -1\n[store]\ndir = 5\n\
               [cluster]\nconfig_services = [\"not a url\"]\n",
        places: &[
            "grpc.listen",
            "scheduler.neighbours",
            "scheduler.leases_per_s",
            "store.dir",
            "cluster.config_services",
        ],
    },
    Mistakes {
        program: "config-service",
        text: "listen = [\"nowhere\"]\nlease = \"soon\"\nmax_supernodes = -1\n[[cluster]]\nname = 7\n",
        places: &["listen", "lease", "max_supernodes", "cluster"],
    },
];

/// Mistakes that only show when all of the file has been read.
const CONTRADICTIONS: [Mistakes; 2] = [
    Mistakes {
        program: "dfdaemon",
        text: "[store]\nhigh_watermark = 0.5\nlow_watermark = 0.9\n[socket]\npath = \"relative\"\n[cluster]\nrefresh = \"0s\"\n\
               supernodes = [{ id = \"\", endpoint = \"ftp://x\" }]\n[source]\norphan_delay_min = \"9s\"\norphan_delay_max = \"1s\"\n",
        places: &["store", "socket.path", "cluster.refresh", "cluster.supernodes", "orphan_delay_min"],
    },
    Mistakes {
        program: "supernode",
        text: "[scheduler]\nneighbours = 0\nleases_per_s = 0\n[cluster]\nconfig_services = [\"http://c:1\"]\nadvertise_endpoint = \"x\"\n",
        places: &["scheduler.neighbours", "scheduler.leases_per_s", "cluster.name", "cluster.advertise_endpoint"],
    },
];

fn files(run: &Run) -> CaseResult {
    let folder = run.data_dir("mistakes")?;
    let check = |mistakes: &Mistakes| {
        let path = folder.join(format!("{}.toml", mistakes.program));
        fs::write(&path, mistakes.text)?;
        let text = path.display().to_string();
        // With and without --check-config: a program never starts from a bad file.
        for args in [&["--check-config", "--config", &text][..], &["--config", &text]] {
            let finished = ask(mistakes.program, args)?;
            refuses(mistakes.program, &finished, mistakes.places)?;
            refuses(mistakes.program, &finished, &[text.as_str()])?;
        }
        Ok(())
    };
    let torn = |program: &&str| {
        let path = folder.join(format!("{program}-torn.toml"));
        fs::write(&path, "[store\ndir = \"/x\"\n")?;
        let finished = ask(program, &["--check-config", "--config", &path.display().to_string()])?;
        // A file that is no TOML has a line and nothing else.
        refuses(program, &finished, &[&format!("{}:1", path.display())])
    };
    all(MISTAKES.iter().chain(&CONTRADICTIONS).map(check).chain(SERVERS.iter().map(torn)))
}

fn environment(_run: &Run) -> CaseResult {
    let bad = |program: &str, env: &[(&str, &str)]| {
        let names: Vec<&str> = env.iter().map(|(name, _)| *name).collect();
        refuses(program, &ask_with(program, &["--check-config"], env)?, &names)
    };
    all([
        bad("dfdaemon", &[("SKIMMER_DFDAEMON__STORE__CAPACITY", "a lot"), ("SKIMMER_DFDAEMON__NO_SUCH__FIELD", "1")]),
        bad(
            "supernode",
            &[("SKIMMER_SUPERNODE__GRPC__LISTEN", "nowhere"), ("SKIMMER_SUPERNODE__SCHEDULER__NEIGHBOURS", "x")],
        ),
        bad("config-service", &[("SKIMMER_CONFIG_SERVICE__LEASE", "soon")]),
    ])
}

fn defaults(run: &Run) -> CaseResult {
    let folder = run.data_dir("defaults")?;
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/config");
    let passes = |program: &str, path: PathBuf| {
        let finished = ask(program, &["--check-config", "--config", &path.display().to_string()])?;
        ensure!(finished.status.success(), "{program} refuses {}: {}", path.display(), finished.stderr.trim());
        Ok(())
    };
    let printed = |program: &&str| {
        let finished = ask(program, &["--print-default-config"])?;
        ensure!(finished.status.success() && !finished.stdout.is_empty(), "{program} prints no defaults");
        let path = folder.join(format!("{program}.toml"));
        fs::write(&path, finished.stdout)?;
        passes(program, path)
    };
    let mut results: Vec<Result<()>> = SERVERS.iter().map(printed).collect();
    for entry in fs::read_dir(&docs).with_context(|| format!("cannot read {}", docs.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()) else { continue };
        // `dfdaemon.toml`, or `dfdaemon-of-a-laptop.toml`.
        let program = SERVERS.into_iter().find(|program| name.starts_with(program));
        match program {
            Some(program) => results.push(passes(program, path)),
            None => results.push(Err(anyhow::anyhow!("{} belongs to no program", path.display()))),
        }
    }
    let documented = SERVERS.iter().map(|program| {
        let path = docs.join(format!("{program}.toml"));
        ensure!(path.is_file(), "there is no {}", path.display());
        Ok(())
    });
    results.extend(documented);
    all(results)
}

fn hang_up(run: &Run) -> CaseResult {
    let net = Net::new(&[("s0", LinkSpec::default()), ("a", LinkSpec::default())])?;
    let mut cluster = Cluster::builder(&net, run).supernode("s0").daemon("a").start()?;
    cluster.wait_sessions()?;
    let daemon = cluster.daemon("a");
    let written = fs::read_to_string(daemon.config())?;
    let mut change = |lines: &str| -> Result<()> {
        fs::write(daemon.config(), format!("{written}\n{lines}"))?;
        daemon.process().signal(Signal::HUP)
    };
    change("[rates]\ndownload = \"33MB/s\"\n[log]\nlevel = \"debug\"\n")?;
    let daemon = cluster.daemon_on("a");
    let download = || -> Result<_> { Ok(daemon.api("/api/skimmer/v1/rates")?.json()?["download"].clone()) };
    wait_until("the rate is taken over", SETTLE, || Ok(download()? == "33MB/s"))?;
    wait_until("the log goes down to debug", SETTLE, || {
        daemon.api("/healthz")?;
        Ok(daemon.log()?.contains("DEBUG"))
    })?;
    let daemon = cluster.daemon("a");
    fs::write(daemon.config(), format!("{written}\n[rates]\ndownload = \"much\"\n"))?;
    daemon.process().signal(Signal::HUP)?;
    let daemon = cluster.daemon_on("a");
    wait_until("the bad file is logged", SETTLE, || Ok(daemon.log()?.contains("rates.download")))?;
    let rate = daemon.api("/api/skimmer/v1/rates")?.json()?["download"].clone();
    ensure!(rate == "33MB/s", "a bad file changed the rate to {rate}");
    Ok(Outcome::Passed)
}
