//! `qtool inspect`.

use super::{Done, options};
use qtool::report::{html, terminal};
use std::path::PathBuf;

/// List the tensors of a model: types, shapes, ranges, and what would be quantized
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// A .safetensors file, a directory in Hugging Face layout, or an .onnx file
    model: PathBuf,
    /// Read headers only: no ranges and histograms
    #[arg(long)]
    headers: bool,
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
    arguments.report.check()?;
    let threads = arguments.threads.count();
    let found = qtool::inspect::inspect(&arguments.model, &arguments.read.options(), !arguments.headers, threads)?;
    arguments.report.write(|command| Ok(html::inspection(&arguments.model, &found, command)))?;
    arguments.print.show(&found, || terminal::inspection(&found))
}
