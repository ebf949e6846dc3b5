//! Placeholder.
/// A.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {}
/// R.
///
/// # Errors
/// Never.
pub fn run(_: &Args) -> anyhow::Result<()> {
    Ok(())
}
