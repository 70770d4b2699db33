//! `qtool compare`.

use super::progress::Bar;
use super::quantize::value;
use super::{Done, options, print};
use qtool::compare::{OutputComparison, OutputRequest, compare, compare_outputs, details};
use qtool::gates::{self, GateRow, Gates, Kind, Limit};
use qtool::report::distribution::COUNTED;
use qtool::report::junit::Suite;
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
    #[command(flatten)]
    inputs: options::Inputs,
    /// Compare values within ONNX models too: with all that came before, and alone
    #[arg(long)]
    layers: bool,
    /// Least SQNR in dB: NUMBER of every output of ONNX models, of every tensor of others; PATTERN=NUMBER of what a glob or
    /// re:REGEX matches, with --layers values within models too; repeatable, the later wins
    #[arg(long, value_name = "[PATTERN=]DB", allow_negative_numbers = true, value_parser = value::<Limit>)]
    min_sqnr: Vec<Limit>,
    #[command(flatten)]
    gates: options::Gates,
    #[command(flatten)]
    junit: options::Junit,
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
    let Arguments { float, report, junit, .. } = arguments;
    report.check()?;
    junit.check(&[report.report.as_ref(), Some(float), Some(&arguments.quantized)])?;
    let judged = junit.tell(COMMAND, judge(arguments))?;
    junit.write(|| Suite::of_gates(COMMAND, &judged.rows))?;
    let failing = gates::failing_count(&judged.rows);
    match gates::failing(&judged.rows).next() {
        None => Ok(()),
        Some(first) => {
            let Judgement { all, what, .. } = judged;
            Err(print::check_failed(format!("{failing} of {all} {what} fail the gates, worst {first}")))
        }
    }
}

/// What the command is called.
const COMMAND: &str = "compare";

/// What became of the gates, among how many things they are about.
struct Judgement {
    rows: Vec<GateRow>,
    all: usize,
    what: &'static str,
}

fn judge(arguments: &Arguments) -> Result<Judgement, print::Failed> {
    let Arguments { float, quantized, min_sqnr, .. } = arguments;
    let gates = arguments.gates.with_min_sqnr(min_sqnr);
    let read = arguments.read.options();
    if qtool::compare::is_onnx(float, &read)? {
        return judge_outputs(arguments, &gates);
    }
    let of_graphs = [
        (!arguments.inputs.source().is_empty(), arguments.inputs.option()),
        (arguments.layers, "--layers"),
        (!gates.min_top1.is_empty(), "--min-top1"),
    ];
    if let Some((_, option)) = of_graphs.into_iter().find(|(is_given, _)| *is_given) {
        let message = format!("{option}: expected an ONNX model, which can be run, found another kind");
        return Err(qtool::Error::Usage(message).into());
    }
    let threads = arguments.threads.count();
    let found = compare(float, quantized, &read, threads)?;
    let rows = found.judge(&gates)?;
    arguments.report.write(|command| {
        let worst = found.tensors.iter().filter(|tensor| tensor.difference.sqnr_db.is_some()).take(COUNTED);
        let names: Vec<&str> = worst.map(|tensor| tensor.name.as_str()).collect();
        let details = details(float, quantized, &names, &read, threads)?;
        Ok(html::comparison([float, quantized], &found, &rows, &details, command))
    })?;
    let judged = options::Judged { found: &found, gates: &rows };
    arguments.print.show(&judged, || terminal::comparison(&found, &rows))?;
    Ok(Judgement { rows, all: found.tensors.len(), what: "tensors" })
}

fn judge_outputs(arguments: &Arguments, gates: &Gates) -> Result<Judgement, print::Failed> {
    let bar = Bar::new(arguments.print.quiet);
    let request = OutputRequest {
        float: arguments.float.clone(),
        quantized: arguments.quantized.clone(),
        samples: arguments.inputs.source(),
        limit: arguments.inputs.samples_limit,
        limits: arguments.read.limits().samples,
        layers: arguments.layers,
        read: arguments.read.options(),
        threads: arguments.threads.count(),
    };
    let found = compare_outputs(&request, &bar);
    bar.finish();
    let found: OutputComparison = found.map_err(|error| arguments.inputs.explain(error))?;
    let rows = found.judge(gates)?;
    arguments.report.write(|command| {
        let (float, quantized) = (&arguments.float, &arguments.quantized);
        let details = details(float, quantized, &[], &arguments.read.options(), arguments.threads.count())?;
        Ok(html::output_comparison([float, quantized], &found, &rows, &details, command))
    })?;
    let judged = options::Judged { found: &found, gates: &rows };
    arguments.print.show(&judged, || terminal::output_comparison(&found, &rows))?;
    let outputs = found.outputs.len();
    match found.layers.as_ref().filter(|_| rows.iter().any(|row| row.kind == Kind::Layer)) {
        Some(layers) => Ok(Judgement { rows, all: outputs + layers.len(), what: "outputs and layers" }),
        None => Ok(Judgement { rows, all: outputs, what: "outputs" }),
    }
}
