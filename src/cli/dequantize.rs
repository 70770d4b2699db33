//! `qtool dequantize`.

use super::options::{self, DurabilityValue};
use super::progress::Bar;
use super::{Done, print};
use qtool::pipeline::Destination;
use std::path::PathBuf;

/// Write the float model that a quantized one stands for: original names, types and order
///
/// `model.int8.safetensors` becomes `model.int8.float.safetensors` unless -o says otherwise; `model.int8.onnx`
/// becomes `model.int8.float.onnx`; a directory DIR, `DIR-float`. An ONNX model needs no sidecar, and may be another tool's.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// An output of qtool (its sidecar, its file of weights or its directory), or a quantized .onnx file
    quantized: PathBuf,
    /// The float model
    #[arg(long, short)]
    output: Option<PathBuf>,
    /// Replace an existing output
    #[arg(long)]
    force: bool,
    /// Whether files are on the disk when success is reported
    #[arg(long, value_enum, default_value = "fsync")]
    durability: DurabilityValue,
    #[command(flatten)]
    threads: options::Threads,
    #[command(flatten)]
    read: options::Read,
    /// Print nothing but errors
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(arguments: &Arguments) -> Done {
    let destination = Destination {
        output: arguments.output.clone(),
        sidecar: None,
        force: arguments.force,
        in_place: false,
        durability: arguments.durability.into(),
    };
    let threads = arguments.threads.count();
    let bar = Bar::new(arguments.quiet);
    let written = qtool::dequantize::dequantize(&arguments.quantized, &destination, &arguments.read.options(), threads, &bar);
    bar.finish();
    let written = written?;
    if arguments.quiet { Ok(()) } else { print::text(&format!("wrote {}\n", qtool::error::show_path(&written))) }
}
