//! `qtool compare`.

use super::progress::Bar;
use super::{Done, options, print};
use qtool::compare::{Gates, OutputComparison, OutputRequest, compare, compare_outputs, details};
use qtool::error::show_name;
use qtool::report::distribution::COUNTED;
use qtool::report::{html, terminal};
use std::path::PathBuf;

/// Measure how far a quantized model is from the float one; exit 3 if it fails a gate
///
/// ONNX models are run on samples and judged by their outputs, other models by their tensors.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The float model
    float: PathBuf,
    /// An output of qtool, or another model
    quantized: PathBuf,
    /// Inputs of ONNX models: .npz, .npy, .safetensors or .pb files, or directories of them; repeatable
    #[arg(long, value_name = "PATH")]
    samples: Vec<PathBuf>,
    /// Use only the first samples
    #[arg(long, value_name = "N")]
    samples_limit: Option<usize>,
    /// Compare values within ONNX models too: with all that came before, and alone
    #[arg(long)]
    layers: bool,
    /// Least SQNR of every tensor or output, in dB
    #[arg(long, value_name = "DB", allow_negative_numbers = true, value_parser = options::parse_finite)]
    min_sqnr: Option<f64>,
    /// Largest mean squared error of every tensor or output
    #[arg(long, value_name = "X", value_parser = options::parse_finite)]
    max_mse: Option<f64>,
    /// Least cosine of every tensor or output
    #[arg(long, value_name = "X", allow_negative_numbers = true, value_parser = options::parse_finite)]
    min_cosine: Option<f64>,
    /// Largest absolute error of every tensor or output
    #[arg(long, value_name = "X", value_parser = options::parse_finite)]
    max_abs: Option<f64>,
    /// Least share of rows of an output whose largest value is in the same place, from 0 to 1
    #[arg(long, value_name = "X", value_parser = options::parse_finite)]
    min_top1: Option<f64>,
    #[command(flatten)]
    report: options::Report,
    #[command(flatten)]
    threads: options::Threads,
    #[command(flatten)]
    read: options::Read,
    #[command(flatten)]
    print: options::Output,
}

pub(super) fn run(arguments: &Arguments) -> Done {
    let Arguments { float, quantized, min_sqnr, max_mse, min_cosine, max_abs, min_top1, .. } = arguments;
    let gates = Gates { min_sqnr: *min_sqnr, max_mse: *max_mse, min_cosine: *min_cosine, max_abs: *max_abs, min_top1: *min_top1 };
    let read = arguments.read.options();
    arguments.report.check()?;
    if qtool::compare::is_onnx(float, &read)? {
        return run_onnx(arguments, &gates);
    }
    if !arguments.samples.is_empty() || arguments.layers || min_top1.is_some() {
        let message = "--samples, --layers, --min-top1: expected an ONNX model, found another";
        return Err(qtool::Error::Usage(message.into()).into());
    }
    let threads = arguments.threads.count();
    let found = compare(float, quantized, &read, threads)?;
    let failing = found.failing(&gates);
    arguments.report.write(|command| {
        let worst = found.tensors.iter().filter(|tensor| tensor.difference.sqnr_db.is_some()).take(COUNTED);
        let names: Vec<&str> = worst.map(|tensor| tensor.name.as_str()).collect();
        let details = details(float, quantized, &names, &read, threads)?;
        Ok(html::comparison([float, quantized], &found, &failing, &details, command))
    })?;
    arguments.print.show(&found, || terminal::comparison(&found, &failing))?;
    match failing.as_slice() {
        [] => Ok(()),
        [worst, ..] => Err(check_failed(failing.len(), found.tensors.len(), "tensors", &worst.name)),
    }
}

fn run_onnx(arguments: &Arguments, gates: &Gates) -> Done {
    let bar = Bar::new(arguments.print.quiet);
    let request = OutputRequest {
        float: arguments.float.clone(),
        quantized: arguments.quantized.clone(),
        samples: arguments.samples.clone(),
        limit: arguments.samples_limit,
        limits: arguments.read.limits().samples,
        layers: arguments.layers,
        read: arguments.read.options(),
        threads: arguments.threads.count(),
    };
    let found = compare_outputs(&request, &bar);
    bar.finish();
    let found: OutputComparison = found?;
    if gates.min_top1.is_some() && found.outputs.iter().all(|output| output.top1.is_none()) {
        return Err(qtool::Error::Usage("--min-top1: expected an output of classes, found none".into()).into());
    }
    let failing = found.failing(gates);
    arguments.report.write(|command| {
        let (float, quantized) = (&arguments.float, &arguments.quantized);
        let details = details(float, quantized, &[], &arguments.read.options(), arguments.threads.count())?;
        Ok(html::output_comparison([float, quantized], &found, &failing, &details, command))
    })?;
    arguments.print.show(&found, || terminal::output_comparison(&found, &failing))?;
    match failing.as_slice() {
        [] => Ok(()),
        [first, ..] => Err(check_failed(failing.len(), found.outputs.len(), "outputs", &first.name)),
    }
}

fn check_failed(failing: usize, all: usize, what: &str, worst: &str) -> print::Failed {
    print::check_failed(format!("{failing} of {all} {what} fail the gates, worst {}", show_name(worst)))
}
