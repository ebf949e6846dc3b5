//! What the suite runs against.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};
use harness::{Host, LoadBalancer, MariaDb, Run, S3Kind, S3Server, SkimmerRegistry};

/// A way to run the registry.
#[derive(Debug)]
pub(crate) enum Setup {
    /// One process, SQLite and a folder.
    Alone,
    /// Two processes on MariaDB and S3; each request goes to the other one than the request before.
    Balanced,
    /// Somebody else's registry at this address.
    Given(String),
}

/// What a setup needs before there is a registry.
#[derive(Debug)]
pub(crate) enum Servers {
    /// Nothing.
    None,
    /// For [`Setup::Balanced`].
    Shared(Box<Shared>),
    /// For [`Setup::Given`].
    Given(String),
}

/// Each registry gets a database and a bucket, named by the next number.
#[derive(Debug)]
pub(crate) struct Shared {
    database: MariaDb,
    storage: S3Server,
    next: AtomicU32,
}

/// A registry to test. Dropping it stops it.
#[derive(Debug)]
pub(crate) struct Target {
    /// `address:port`.
    pub(crate) name: String,
    processes: Vec<SkimmerRegistry>,
    balancer: Option<LoadBalancer>,
}

impl Setup {
    pub(crate) const fn database(&self) -> &'static str {
        match self {
            Self::Alone => "sqlite",
            Self::Balanced => "mariadb",
            Self::Given(_) => "unknown",
        }
    }

    pub(crate) const fn storage(&self) -> &'static str {
        match self {
            Self::Alone => "filesystem",
            Self::Balanced => "s3",
            Self::Given(_) => "unknown",
        }
    }

    pub(crate) const fn processes(&self) -> usize {
        match self {
            Self::Alone | Self::Given(_) => 1,
            Self::Balanced => 2,
        }
    }

    /// For people, and for the filter.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Alone | Self::Balanced => format!("{} and {}", self.database(), self.storage()),
            Self::Given(addr) => addr.clone(),
        }
    }

    pub(crate) fn start(&self, host: &Host, run: &Run) -> Result<Servers> {
        Ok(match self {
            Self::Alone => Servers::None,
            Self::Balanced => Servers::Shared(Box::new(Shared {
                database: MariaDb::start(host, run)?,
                storage: S3Server::start(S3Kind::Minio, host, run)?,
                next: AtomicU32::new(0),
            })),
            Self::Given(addr) => Servers::Given(addr.clone()),
        })
    }
}

impl Servers {
    /// A registry with nothing in it.
    pub(crate) fn registry(&self, host: &Host, run: &Run) -> Result<Target> {
        match self {
            Self::None => {
                let config = SkimmerRegistry::on_files(&run.data_dir("registry")?);
                let registry = SkimmerRegistry::start(host, run, &config)?;
                Ok(Target { name: registry.name(), processes: vec![registry], balancer: None })
            }
            Self::Shared(shared) => shared.registry(host, run),
            Self::Given(addr) => Ok(Target { name: addr.clone(), processes: Vec::new(), balancer: None }),
        }
    }
}

impl Shared {
    fn registry(&self, host: &Host, run: &Run) -> Result<Target> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let url = self.database.database(&format!("conformance_{number}"))?;
        let bucket = self.storage.bucket(&format!("conformance-{number}"))?;
        let config = self.storage.store(&bucket) + &SkimmerRegistry::database(&url);
        let start = || SkimmerRegistry::start(host, run, &config);
        let processes = vec![start()?, start()?];
        let behind: Vec<_> = processes.iter().map(SkimmerRegistry::addr).collect();
        let balancer = LoadBalancer::start(host, run, &behind, None)?;
        Ok(Target { name: balancer.name(), processes, balancer: Some(balancer) })
    }
}

impl Target {
    /// Afterwards: whether the processes took turns, when they should have.
    pub(crate) fn check(&self) -> Result<()> {
        let Some(balancer) = &self.balancer else { return Ok(()) };
        let answered = balancer.answered()?;
        let share = |process: &SkimmerRegistry| answered.get(&process.addr()).copied().unwrap_or(0);
        let shares: Vec<u64> = self.processes.iter().map(share).collect();
        let (least, most) = (shares.iter().min().copied().unwrap_or(0), shares.iter().max().copied().unwrap_or(0));
        ensure!(least > 0 && most - least <= 1, "requests did not take turns: {answered:?}");
        Ok(())
    }
}
