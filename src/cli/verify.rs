//! `qtool verify`.

use super::Done;

/// verify
#[derive(clap::Args)]
pub(super) struct Arguments {
    file: std::path::PathBuf,
}

pub(super) fn run(_arguments: &Arguments) -> Done {
    Ok(())
}
