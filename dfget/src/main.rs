//! The binary.

use std::process::ExitCode;
use std::sync::Arc;

use dfget::Parts;
use dfget::backend::{Backend, BoxFuture};
use dfget::exit::{Cause, Failure};
use dfget::lister::Lister;
use dfget::options::LocalSettings;
use proto::Kind;

/// A dfget that needs a dfdaemon.
struct DaemonOnly;

impl Parts for DaemonOnly {
    fn engine<'a>(&'a self, _: &'a LocalSettings) -> BoxFuture<'a, Result<Arc<dyn Backend>, Failure>> {
        let failure = Failure::new(Cause::Kind(Kind::Unavailable), "no dfdaemon answers, and this dfget has no engine of its own");
        Box::pin(std::future::ready(Err(failure)))
    }

    fn lister(&self, _: &LocalSettings) -> Result<Arc<dyn Lister>, Failure> {
        Err(Failure::new(Cause::Kind(Kind::Invalid), "this dfget cannot read listings of folders"))
    }
}

fn main() -> ExitCode {
    dfget::run(std::env::args_os().skip(1), Arc::new(DaemonOnly)).into()
}
