//! `qtool lint`.

use super::{Done, options, print};
use qtool::lint::LINT_TARGETS;
use qtool::report::lint as text;
use std::path::PathBuf;

/// Tell which nodes of an ONNX model a runtime computes in integers, and why not the others; exit 3 if one is quantized in vain
///
/// Models of any tool are judged by the rules of docs/lint.md; nothing is run.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// An .onnx file
    model: PathBuf,
    /// What computes with it
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(LINT_TARGETS), default_value = LINT_TARGETS[0])]
    target: String,
    #[command(flatten)]
    read: options::Read,
    #[command(flatten)]
    print: options::Output,
    /// List every node, also those that compute in integers
    #[arg(long, short)]
    verbose: bool,
}

pub(super) fn run(arguments: &Arguments) -> Done {
    let report = qtool::lint::lint(&arguments.model, &arguments.target, &arguments.read.options())?;
    arguments.print.show(&report, || text::lint(&report, arguments.verbose))?;
    match report.first_failure() {
        None => Ok(()),
        Some(first) => Err(print::check_failed(text::failure(&report, first))),
    }
}
