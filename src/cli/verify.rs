//! `qtool verify`.

use super::progress::Bar;
use super::{Done, options, print};
use qtool::report::terminal;
use std::path::PathBuf;

/// Check that an output is whole: sidecar, hashes, every member; exit 3 if not
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The sidecar, the file of weights or the directory
    output: PathBuf,
    #[command(flatten)]
    read: options::Read,
    #[command(flatten)]
    print: options::Output,
}

pub(super) fn run(arguments: &Arguments) -> Done {
    let bar = Bar::new(arguments.print.quiet);
    let found = qtool::verify::verify(&arguments.output, &arguments.read.options(), &bar);
    bar.finish();
    let found = found?;
    arguments.print.show(&found, || terminal::verification(&found))?;
    match found.findings.as_slice() {
        [] => Ok(()),
        [first, ..] => Err(print::check_failed(format!("output is not whole: {first}"))),
    }
}
