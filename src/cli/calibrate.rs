//! `qtool calibrate` and `qtool merge`.

use super::Done;
use super::options::{self, DurabilityValue};
use super::progress::Bar;
use qtool::method::Method;
use qtool::pipeline::CalibrationRequest;
use qtool::pipeline::calibrate::{CalibrateRequest, calibrate, merge};
use qtool::report::terminal;
use std::path::PathBuf;

/// Observe the activations of an ONNX model, or recorded inputs of the layers of a checkpoint; write statistics
///
/// `qtool quantize MODEL --stats STATS` then quantizes without samples, and `qtool merge` adds up what several runs saw.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// An .onnx file; a .safetensors file or a directory in Hugging Face layout
    model: PathBuf,
    #[command(flatten)]
    samples: options::Samples,
    /// The file of statistics, in safetensors
    #[arg(long, short)]
    output: PathBuf,
    /// Of the samples, only every N-th from the I-th on, counted from 0, so that N runs see all
    #[arg(long, value_name = "I/N", value_parser = parse_part)]
    part: Option<(usize, usize)>,
    /// The observer that statistics are for; only moving-average needs to be named
    #[arg(long, default_value = "min-max")]
    activation_observer: Method,
    /// Of recorded inputs keep only ranges, means and maxima: not what --rounding gptq looks at, which is large
    #[arg(long)]
    ranges_only: bool,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Whether the file is on the disk when success is reported
    #[arg(long, value_enum, default_value = "fsync")]
    durability: DurabilityValue,
    #[command(flatten)]
    threads: options::Threads,
    #[command(flatten)]
    read: options::Read,
    #[command(flatten)]
    print: options::Output,
}

fn parse_part(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(index, count)| Some((index.parse().ok()?, count.parse().ok()?)));
    numbers.filter(|(index, count)| index < count).ok_or_else(|| format!("expected I/N with I from 0 to N - 1, found {text:?}"))
}

pub(super) fn run(arguments: &Arguments) -> Done {
    let bar = Bar::new(arguments.print.quiet);
    let request = CalibrateRequest {
        model: arguments.model.clone(),
        calibration: CalibrationRequest { part: arguments.part, ..arguments.samples.request(&arguments.read) },
        observer: arguments.activation_observer.clone(),
        ranges_only: arguments.ranges_only,
        output: arguments.output.clone(),
        force: arguments.force,
        durability: arguments.durability.into(),
        read: arguments.read.options(),
        threads: arguments.threads.count(),
    };
    let report = calibrate(&request, &bar);
    bar.finish();
    let report = report.map_err(|error| arguments.samples.inputs.explain(error))?;
    arguments.print.show(&report, || terminal::calibration(&report))
}

/// Add up the statistics of several runs of calibrate: the same as one run over all samples
#[derive(clap::Args)]
pub(super) struct MergeArguments {
    /// Files of statistics
    #[arg(required = true)]
    stats: Vec<PathBuf>,
    /// The file of all statistics
    #[arg(long, short)]
    output: PathBuf,
    /// Replace an existing file
    #[arg(long)]
    force: bool,
    /// Whether the file is on the disk when success is reported
    #[arg(long, value_enum, default_value = "fsync")]
    durability: DurabilityValue,
    #[command(flatten)]
    print: options::Output,
}

pub(super) fn run_merge(arguments: &MergeArguments) -> Done {
    let report = merge(&arguments.stats, &arguments.output, arguments.force, arguments.durability.into())?;
    arguments.print.show(&report, || terminal::calibration(&report))
}
