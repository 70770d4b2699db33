//! Options that several commands share, and how their values are read.

use super::print;
use clap::{Args, ValueEnum};
use qtool::calibration::samples::{Drawn, SampleSource};
use qtool::error::escape;
use qtool::formats::ReadOptions;
use qtool::gates::{self, GateRow};
use qtool::limits::{self, LIMITS, LimitEntry, Limits};
use qtool::outputs::staging::{Durability, resolve};
use qtool::pipeline::CalibrationRequest;
use qtool::report::html;
use qtool::report::junit::{self, Suite};
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// How a model is read.
#[derive(Args)]
pub(super) struct Read {
    /// Let symbolic links lead out of a model's directory
    #[arg(long)]
    follow_symlinks: bool,
    /// Change a bound on what files may ask for, for files that you trust; repeatable
    #[arg(long = "limit", value_name = "NAME=VALUE", value_parser = parse_limit, long_help = limits_help())]
    limits: Vec<Bound>,
}

impl Read {
    /// As the readers of models take it.
    pub(super) fn options(&self) -> ReadOptions {
        ReadOptions { follow_symlinks: self.follow_symlinks, ..self.limits().read }
    }

    /// All bounds, of which later ones win.
    pub(super) fn limits(&self) -> Limits {
        let mut limits = Limits::default();
        for Bound { entry, value } in &self.limits {
            entry.set(&mut limits, *value).expect("the value was checked when it was parsed");
        }
        limits
    }
}

/// A bound and what it is set to.
#[derive(Clone, Copy)]
struct Bound {
    entry: &'static LimitEntry,
    value: u64,
}

fn parse_limit(text: &str) -> Result<Bound, String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("expected NAME=VALUE, found {text:?}"))?;
    let entry = limits::find(name).map_err(|error| error.to_string())?;
    let value = match entry.is_bytes {
        true => parse_size(value)?,
        false => value.parse().map_err(|_| format!("expected a number, found {value:?}"))?,
    };
    entry.set(&mut Limits::default(), value).map_err(|error| error.to_string())?;
    Ok(Bound { entry, value })
}

/// Every bound with its default.
fn limits_help() -> String {
    let default = Limits::default();
    let line = |entry: &LimitEntry| {
        let most = if entry.most == u64::MAX { String::new() } else { format!(", at most {}", entry.most) };
        format!("  {:17} {} [default: {}{most}]", entry.name, entry.help, entry.get(&default))
    };
    let lines: Vec<String> = LIMITS.iter().map(line).collect();
    format!(
        "Change a bound on what files may ask for, for files that you trust; repeatable. A file beyond one is refused.\n\n{}",
        lines.join("\n")
    )
}

/// How much a command prints.
#[derive(Args)]
pub(super) struct Output {
    /// Print one JSON document on standard output
    #[arg(long)]
    pub json: bool,
    /// Print nothing but errors
    #[arg(long, short)]
    pub quiet: bool,
}

impl Output {
    /// Prints a result as asked for: as JSON, as text, or not at all.
    pub(super) fn show(&self, value: &impl serde::Serialize, text: impl FnOnce() -> String) -> Result<(), print::Failed> {
        match (self.json, self.quiet) {
            (true, _) => print::json(value),
            (false, true) => Ok(()),
            (false, false) => print::text(&text()),
        }
    }
}

/// What a model runs on.
#[derive(Args)]
pub(super) struct Inputs {
    /// Inputs of an ONNX model: .npz, .npy, .safetensors or .pb files, or directories of them; for quantize and calibrate also
    /// recorded inputs of the layers of a checkpoint in .safetensors files; repeatable
    #[arg(long, value_name = "PATH")]
    samples: Vec<PathBuf>,
    /// Use only the first samples
    #[arg(long, value_name = "N")]
    pub samples_limit: Option<usize>,
    /// Random inputs of an ONNX model in place of samples, to try what it takes; accuracy needs real ones
    #[arg(long, value_name = "N", conflicts_with = "samples", value_parser = clap::value_parser!(u32).range(1..))]
    synthetic: Option<u32>,
    /// Dimensions of random inputs, where the model leaves some open: x=1x3x224x224; repeatable [default: 1 for each that is open]
    #[arg(long, value_name = "NAME=DIMS", requires = "synthetic", value_parser = parse_shape)]
    input_shape: Vec<(String, Vec<usize>)>,
}

impl Inputs {
    /// The option that gives them.
    pub(super) fn option(&self) -> &'static str {
        if self.synthetic.is_some() { "--synthetic" } else { "--samples" }
    }

    /// An error of a run on random inputs, with what may mend it: a model need not run on the smallest that it takes.
    pub(super) fn explain(&self, error: qtool::Error) -> qtool::Error {
        let is_of_engine = error.exit_code() == 1 && error.hint().is_some_and(|hint| hint.contains("ORT_DYLIB_PATH"));
        if self.synthetic.is_none() || !self.input_shape.is_empty() || !is_of_engine {
            return error;
        }
        let shapes = "random inputs have 1 for each dimension that the model leaves open: --input-shape NAME=1x3x224x224 gives others";
        let hint = format!("{shapes}; else, {}", error.hint().unwrap_or_default());
        error.with_hint(hint)
    }

    /// As the library takes it.
    pub(super) fn source(&self) -> SampleSource {
        match self.synthetic {
            Some(count) => SampleSource::Drawn(Drawn { count: count as usize, shapes: self.input_shape.clone() }),
            None => SampleSource::Files(self.samples.clone()),
        }
    }
}

/// A name and dimensions; names may have `=` in them, and scalars have no dimensions.
fn parse_shape(text: &str) -> Result<(String, Vec<usize>), String> {
    let wrong = || format!("expected NAME=DIMS such as x=1x3x224x224, found {text:?}");
    let (name, dims) = text.rsplit_once('=').ok_or_else(wrong)?;
    let parsed = dims.split(['x', ',']).map(|dim| dim.trim().parse().map_err(|_| wrong())).collect::<Result<_, _>>();
    Ok((name.to_owned(), if dims.is_empty() { Vec::new() } else { parsed? }))
}

/// What a model is calibrated with.
#[derive(Args)]
pub(super) struct Samples {
    #[command(flatten)]
    pub inputs: Inputs,
    /// Leave out recorded inputs that belong to no layer
    #[arg(long)]
    pub ignore_unused: bool,
    /// Largest sample, in memory: as --limit sample-bytes=SIZE [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_sample_bytes: Option<u64>,
}

impl Samples {
    /// As the library takes it.
    pub(super) fn request(&self, read: &Read) -> CalibrationRequest {
        let mut limits = read.limits().samples;
        limits.max_sample_bytes = self.max_sample_bytes.unwrap_or(limits.max_sample_bytes);
        CalibrationRequest {
            samples: self.inputs.source(),
            limit: self.inputs.samples_limit,
            ignore_unused: self.ignore_unused,
            limits,
            ..CalibrationRequest::default()
        }
    }
}

/// How many threads work.
#[derive(Args)]
pub(super) struct Threads {
    /// Threads [default: all cores]
    #[arg(long, value_name = "N")]
    threads: Option<NonZeroUsize>,
}

impl Threads {
    /// What was asked for, or all cores.
    pub(super) fn count(&self) -> usize {
        self.threads.or_else(|| std::thread::available_parallelism().ok()).map_or(1, NonZeroUsize::get)
    }
}

/// A size such as `64MiB`, `1GiB`, `500MB` or a number of bytes.
pub(super) fn parse_size(text: &str) -> Result<u64, String> {
    const UNITS: &[(&str, u64)] = &[
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("kB", 1000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
    ];
    let (number, unit) = UNITS.iter().find_map(|(name, unit)| text.strip_suffix(name).map(|number| (number, *unit))).unwrap_or((text, 1));
    let wrong = || format!("expected a size such as 512MiB, found {text:?}");
    number.trim().parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)
}

/// A page about what was found.
#[derive(Args)]
pub(super) struct Report {
    /// Write a page about it: one HTML file
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Replace an existing report
    #[arg(long, requires = "report")]
    pub force: bool,
}

impl Report {
    /// Makes sure, before the work, that the page can be written.
    pub(super) fn check(&self) -> qtool::Result<()> {
        self.report.as_deref().map_or(Ok(()), |path| html::check_free(path, self.force))
    }

    /// Writes the page, if one was asked for.
    pub(super) fn write(&self, page: impl FnOnce(&str) -> qtool::Result<html::Page>) -> qtool::Result<()> {
        let Some(path) = &self.report else { return Ok(()) };
        page(&command_line())?.write(path, self.force, Durability::Fsync)
    }
}

/// What a comparison must not fall short of, besides SQNR.
#[derive(Args)]
pub(super) struct Gates {
    /// Largest mean squared error; NUMBER or PATTERN=NUMBER as --min-sqnr
    #[arg(long, value_name = "[PATTERN=]X", allow_negative_numbers = true, value_parser = |text: &str| within(text, 0.0..=f64::MAX))]
    max_mse: Vec<gates::Limit>,
    /// Least cosine; NUMBER or PATTERN=NUMBER as --min-sqnr
    #[arg(long, value_name = "[PATTERN=]X", allow_negative_numbers = true, value_parser = |text: &str| within(text, -1.0..=1.0))]
    min_cosine: Vec<gates::Limit>,
    /// Largest absolute error; NUMBER or PATTERN=NUMBER as --min-sqnr
    #[arg(long, value_name = "[PATTERN=]X", allow_negative_numbers = true, value_parser = |text: &str| within(text, 0.0..=f64::MAX))]
    max_abs: Vec<gates::Limit>,
    /// Least share of rows of an output whose largest value is in the same place, from 0 to 1; NUMBER or PATTERN=NUMBER as --min-sqnr
    #[arg(long, value_name = "[PATTERN=]X", allow_negative_numbers = true, value_parser = |text: &str| within(text, 0.0..=1.0))]
    min_top1: Vec<gates::Limit>,
}

impl Gates {
    /// As the library takes them.
    pub(super) fn with_min_sqnr(&self, min_sqnr: &[gates::Limit]) -> qtool::gates::Gates {
        qtool::gates::Gates {
            min_sqnr: min_sqnr.to_vec(),
            max_mse: self.max_mse.clone(),
            min_cosine: self.min_cosine.clone(),
            max_abs: self.max_abs.clone(),
            min_top1: self.min_top1.clone(),
        }
    }
}

/// A limit of what is in `range`.
fn within(text: &str, range: RangeInclusive<f64>) -> Result<gates::Limit, String> {
    let limit: gates::Limit = super::quantize::value(text)?;
    match limit.value {
        Some(value) if !range.contains(&value) && *range.end() == f64::MAX => {
            Err(format!("expected a number of at least 0, found {value}"))
        }
        Some(value) if !range.contains(&value) => {
            Err(format!("expected a number from {} to {}, found {value}", range.start(), range.end()))
        }
        _ => Ok(limit),
    }
}

/// A file for CI systems.
#[derive(Args)]
pub(super) struct Junit {
    /// Write what became of each check as JUnit XML, whatever the outcome; an earlier such file is replaced
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}

impl Junit {
    /// Makes sure, before the work, that the file can be written, and that it is none of `others`.
    pub(super) fn check(&self, others: &[Option<&PathBuf>]) -> qtool::Result<()> {
        let Some(path) = &self.junit else { return Ok(()) };
        junit::check_free(path)?;
        match others.iter().flatten().any(|other| resolve(other) == resolve(path)) {
            true => Err(qtool::Error::Usage("--junit: expected a file of its own, found that of another option".into())),
            false => Ok(()),
        }
    }

    /// Writes the file, if one was asked for.
    pub(super) fn write(&self, suite: impl FnOnce() -> Suite) -> qtool::Result<()> {
        self.junit.as_deref().map_or(Ok(()), |path| suite().write(path))
    }

    /// Tells of a run that ended before anything was judged; gives its error back.
    pub(super) fn tell<T>(&self, command: &str, done: Result<T, impl Into<print::Failed>>) -> Result<T, print::Failed> {
        done.map_err(Into::into).inspect_err(|error| {
            // The error itself is what is reported.
            let _ = self.write(|| Suite::of_error(command, &error.to_string()));
        })
    }
}

/// A result together with what became of its gates.
#[derive(serde::Serialize)]
pub(super) struct Judged<'a, T> {
    #[serde(flatten)]
    pub found: &'a T,
    #[serde(skip_serializing_if = "<[GateRow]>::is_empty")]
    pub gates: &'a [GateRow],
}

/// The command that this program was run with, on one line that can be pasted into a shell.
pub(super) fn command_line() -> String {
    let words = std::env::args_os().skip(1).map(|word| quoted(word.as_bytes()));
    std::iter::once("qtool".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// A word as shells take it: as it is, between quotes, or with escapes (`$'…'`, POSIX 2024) where it has control characters or
/// is not in UTF-8.
fn quoted(word: &[u8]) -> String {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./+,:@%=".contains(byte);
    match std::str::from_utf8(word) {
        Ok(text) if !text.is_empty() && word.iter().all(is_plain) => text.to_owned(),
        Ok(text) if escape(text) == text && !text.contains('\'') => format!("'{text}'"),
        _ => {
            let escaped = word.iter().map(|byte| match byte {
                b'\'' | b'\\' => format!("\\{}", char::from(*byte)),
                b' '..=b'~' => char::from(*byte).to_string(),
                byte => format!("\\x{byte:02x}"),
            });
            format!("$'{}'", escaped.collect::<String>())
        }
    }
}

/// Whether outputs are on the disk when success is reported.
#[derive(Clone, Copy, ValueEnum)]
pub(super) enum DurabilityValue {
    /// Every file and directory is synced
    Fsync,
    /// The kernel writes when it likes
    None,
}

impl From<DurabilityValue> for Durability {
    fn from(value: DurabilityValue) -> Self {
        match value {
            DurabilityValue::Fsync => Durability::Fsync,
            DurabilityValue::None => Durability::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_as_shells_read_them() {
        let words = ["", "-o", "a/b.c", "conv1*", "it's", "back\\slash", "both '\\", "line\nfeed", "ü", "\u{202e}", "$x `y` !z"];
        let quoted_words = words.map(|word| quoted(word.as_bytes())).join(" ");
        assert!(quoted_words.starts_with(r"'' -o a/b.c 'conv1*' $'it\'s' 'back\slash' "), "{quoted_words}");
        assert_eq!(quoted(b"\xff"), r"$'\xff'");
        let bash = std::process::Command::new("bash").args(["-c", &format!("printf '%s\\0' {quoted_words}")]).output();
        if let Ok(done) = bash {
            assert_eq!(String::from_utf8(done.stdout).unwrap().split_terminator('\0').collect::<Vec<_>>(), words, "{quoted_words}");
        }
    }
}
