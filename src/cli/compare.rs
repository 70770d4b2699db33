//! `qtool compare`.

use super::{Done, options, print};
use qtool::compare::Gates;
use qtool::report::terminal;
use std::path::PathBuf;

/// Measure how far a quantized model is from the float one; exit 3 if it fails a gate
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The float model
    float: PathBuf,
    /// An output of qtool, or another float model
    quantized: PathBuf,
    /// Least SQNR of every tensor, in dB
    #[arg(long, value_name = "DB", allow_negative_numbers = true, value_parser = options::parse_finite)]
    min_sqnr: Option<f64>,
    /// Largest mean squared error of every tensor
    #[arg(long, value_name = "X", value_parser = options::parse_finite)]
    max_mse: Option<f64>,
    #[command(flatten)]
    threads: options::Threads,
    #[command(flatten)]
    read: options::Read,
    #[command(flatten)]
    print: options::Output,
}

pub(super) fn run(arguments: &Arguments) -> Done {
    let Arguments { float, quantized, min_sqnr, max_mse, .. } = arguments;
    let found = qtool::compare::compare(float, quantized, &arguments.read.options(), arguments.threads.count())?;
    let failing = found.failing(&Gates { min_sqnr: *min_sqnr, max_mse: *max_mse });
    arguments.print.show(&found, || terminal::comparison(&found, &failing))?;
    match failing.as_slice() {
        [] => Ok(()),
        [worst, ..] => Err(print::check_failed(format!(
            "{} of {} tensors fail the gates, worst {}",
            failing.len(),
            found.tensors.len(),
            qtool::error::show_name(&worst.name)
        ))),
    }
}
