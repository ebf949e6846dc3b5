//! The binary.

use std::process::ExitCode;
use std::sync::Arc;

use dfget::backend::LocalParts;

fn main() -> ExitCode {
    dfget::run(std::env::args_os().skip(1), Arc::new(LocalParts)).into()
}
