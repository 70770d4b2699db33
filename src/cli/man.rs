//! `qtool man`.

use super::{Done, print};
use anyhow::Context;
use std::path::PathBuf;

/// Print the manual page, or write one page for each command
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Write qtool.1, qtool-quantize.1, … to this directory instead
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Done {
    let command = super::command();
    if let Some(dir) = &arguments.directory {
        let io = |source| qtool::Error::Io { path: dir.clone(), action: "write", source };
        std::fs::create_dir_all(dir).map_err(io)?;
        return clap_mangen::generate_to(command, dir).map_err(io).context("manual pages");
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    print::result(&String::from_utf8_lossy(&page))
}
