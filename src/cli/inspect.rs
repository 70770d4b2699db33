//! `qtool inspect`.

use super::Done;

/// inspect
#[derive(clap::Args)]
pub(super) struct Arguments {
    file: std::path::PathBuf,
}

pub(super) fn run(_arguments: &Arguments) -> Done {
    Ok(())
}
