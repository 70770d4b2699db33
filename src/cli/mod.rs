//! The command line: the only place that knows clap, indicatif and anyhow, prints, and decides exit codes.

mod analyze;
mod calibrate;
mod compare;
mod completions;
mod dequantize;
mod inspect;
mod lint;
mod man;
pub(crate) mod memory;
mod options;
mod print;
mod progress;
mod quantize;
mod recipe;
mod signals;
mod verify;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use print::Failed;
use qtool::simd::InstructionSet;
use std::process::ExitCode;
use std::sync::OnceLock;

/// Turns the float weights of a neural network into int8 (and smaller) files.
#[derive(Parser)]
#[command(name = "qtool", version, long_version = long_version(), propagate_version = true, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Quantize(Box<quantize::Arguments>),
    Analyze(analyze::Arguments),
    Calibrate(calibrate::Arguments),
    Merge(calibrate::MergeArguments),
    Dequantize(dequantize::Arguments),
    Inspect(inspect::Arguments),
    Compare(compare::Arguments),
    Lint(lint::Arguments),
    Verify(verify::Arguments),
    Recipe(recipe::Arguments),
    Completions(completions::Arguments),
    Man(man::Arguments),
}

const EXIT_CODES: &str = "Exit codes: 0 done; 1 bad or unsupported input; 2 wrong usage or recipe; 3 a check failed; \
4 I/O error; 5 an input changed during the run; 6 a limit was exceeded; 128+N died by signal N.";

/// What clap calls wrong usage.
const USAGE: u8 = 2;

fn long_version() -> &'static str {
    let chosen = qtool::simd::instruction_set();
    let paths: Vec<&str> = InstructionSet::ALL.iter().map(|path| path.name()).collect();
    let features = if cfg!(feature = "ort") { "ort" } else { "none" };
    let version = env!("CARGO_PKG_VERSION");
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| format!("{version}\ninstruction paths: {}; in use: {}\nfeatures: {features}", paths.join(", "), chosen.name()))
}

/// The command line with the exit codes on every page.
fn command() -> clap::Command {
    Arguments::command().after_help(EXIT_CODES).mut_subcommands(|command| command.after_help(EXIT_CODES))
}

pub(crate) fn main() -> ExitCode {
    memory::handle_panics();
    let parsed = command().try_get_matches().and_then(|matches| Arguments::from_arg_matches(&matches));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => return print::clap_error(&error),
    };
    signals::install();
    // A panic is a bug; it must not look like one of the documented outcomes of a check or a write.
    let done = std::panic::catch_unwind(|| run(arguments));
    signals::yield_to();
    match done {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => print::failure(&error),
        Err(_) => print::failure(&anyhow::anyhow!("internal error: this is a bug of qtool")),
    }
}

fn run(arguments: Arguments) -> Done {
    match arguments.command {
        Command::Quantize(arguments) => quantize::run(&arguments),
        Command::Analyze(arguments) => analyze::run(&arguments),
        Command::Calibrate(arguments) => calibrate::run(&arguments),
        Command::Merge(arguments) => calibrate::run_merge(&arguments),
        Command::Dequantize(arguments) => dequantize::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Lint(arguments) => lint::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Recipe(arguments) => recipe::run(&arguments),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::Man(arguments) => man::run(&arguments),
    }
}

/// The result of a command.
type Done = Result<(), Failed>;
