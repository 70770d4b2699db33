//! `qtool compare`.

use super::Done;

/// compare
#[derive(clap::Args)]
pub(super) struct Arguments {
    file: std::path::PathBuf,
}

pub(super) fn run(_arguments: &Arguments) -> Done {
    Ok(())
}
