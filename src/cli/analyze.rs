//! `qtool analyze`.

use super::Done;
use super::options;
use super::progress::Bar;
use qtool::pipeline::analyze::{AnalyzeRequest, analyze};
use qtool::recipe::{Mode, Recipe};
use qtool::report::terminal;
use std::path::PathBuf;

/// Measure what quantizing each layer of an ONNX model alone costs its outputs; write nothing
///
/// The ranking that `quantize --min-sqnr` and `--max-drop` start from. Layers that cost most come first.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// An .onnx file
    model: PathBuf,
    #[command(flatten)]
    samples: options::Samples,
    /// What is quantized: static, dynamic or weight-only [default: static]
    #[arg(long, value_parser = super::quantize::value::<Mode>)]
    mode: Option<Mode>,
    /// Rules in TOML or JSON, or the sidecar of an earlier run
    #[arg(long)]
    recipe: Option<PathBuf>,
    /// Run the commands that the recipe names as observers
    #[arg(long)]
    allow_commands: bool,
    #[command(flatten)]
    threads: options::Threads,
    #[command(flatten)]
    read: options::Read,
    #[command(flatten)]
    print: options::Output,
}

pub(super) fn run(arguments: &Arguments) -> Done {
    let mut recipe = arguments.recipe.as_deref().map(Recipe::named).transpose()?.unwrap_or_default();
    recipe.mode = arguments.mode.unwrap_or(recipe.mode);
    if arguments.allow_commands {
        recipe.observers.allow_commands();
    }
    let bar = Bar::new(arguments.print.quiet);
    let request = AnalyzeRequest {
        model: arguments.model.clone(),
        recipe,
        calibration: arguments.samples.request(&arguments.read),
        read: arguments.read.options(),
        threads: arguments.threads.count(),
    };
    let ranking = analyze(request, &bar);
    bar.finish();
    let ranking = ranking.map_err(|error| arguments.samples.inputs.explain(error))?;
    arguments.print.show(&ranking, || terminal::ranking(&ranking))
}
