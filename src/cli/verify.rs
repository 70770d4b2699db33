//! `qtool verify`.

use super::progress::Bar;
use super::{Done, options};
use qtool::report::junit::Suite;
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
    junit: options::Junit,
    #[command(flatten)]
    print: options::Output,
}

pub(super) fn run(arguments: &Arguments) -> Done {
    let Arguments { junit, output, .. } = arguments;
    junit.check(&[Some(output)])?;
    let bar = Bar::new(arguments.print.quiet);
    let found = qtool::verify::verify(output, &arguments.read.options(), &bar);
    bar.finish();
    let found = junit.tell("verify", found)?;
    junit.write(|| Suite::of_verification(&found))?;
    arguments.print.show(&found, || terminal::verification(&found))?;
    Ok(found.check()?)
}
