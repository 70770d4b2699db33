//! `qtool quantize`.

mod applies;

use super::Done;
use super::options::{self, DurabilityValue, parse_size};
use super::progress::Bar;
use clap::{Args, ValueEnum};
use qtool::gates::{GateRow, Limit};
use qtool::lint::{ANY, LINT_TARGETS};
use qtool::method::Method;
use qtool::outputs::{OUTPUTS, Output, recorded_run};
use qtool::pipeline::if_changed::{self, Verdict};
use qtool::pipeline::{CalibrationRequest, Destination, HashSource, Prepared, Request};
use qtool::quant::saturation::{SATURATIONS, Saturation};
use qtool::quant::scheme::{CodeType, Convention, Granularity};
use qtool::recipe::presets::{PRESETS, Preset};
use qtool::recipe::{MODES, Mode, Pattern, Recipe};
use qtool::report::junit::Suite;
use qtool::report::{QuantizeReport, html, terminal};
use qtool::target::{TARGETS, Target};
use std::path::{Path, PathBuf};

/// Quantize the weights of a model
///
/// Writes `model.int8.safetensors` and `model.int8.json` beside `model.safetensors`, `model.int8.onnx` and
/// `model.int8.json` beside `model.onnx`; for a directory DIR, `DIR-int8`.
#[derive(Args)]
pub(super) struct Arguments {
    /// A .safetensors file, a directory in Hugging Face layout, or an .onnx file
    model: PathBuf,
    /// Main output: a file for a file, a directory for a directory
    #[arg(help_heading = "Output", long, short)]
    output: Option<PathBuf>,
    /// JSON sidecar [default: the output's name with .json]
    #[arg(help_heading = "Output", long)]
    sidecar: Option<PathBuf>,
    /// Form of the output
    #[arg(help_heading = "Output", long, value_parser = output_names())]
    format: Option<String>,
    /// Write the weights as the floats that their codes stand for, in their own types: as --format fake-quant
    #[arg(help_heading = "Output", long, conflicts_with = "format")]
    fake_quant: bool,
    /// What is quantized: auto, weight-only, dynamic or static; auto is static with samples, else dynamic for matrix
    /// products of ONNX models, and weight-only for the rest [default: auto]
    #[arg(help_heading = "What is quantized", long, value_parser = value::<Mode>)]
    mode: Option<Mode>,
    /// Of an ONNX model, quantize only weights of these operators, such as Conv,MatMul
    #[arg(help_heading = "What is quantized", long, value_name = "TYPES", value_delimiter = ',')]
    op_types: Vec<String>,
    #[command(flatten, next_help_heading = "Activations")]
    samples: options::Samples,
    /// Statistics of activations, as `qtool calibrate` writes them, for ranges; samples beside them only measure layers; repeatable
    #[arg(help_heading = "Activations", long, value_name = "FILE")]
    stats: Vec<PathBuf>,
    /// Ranges of activations of an ONNX model, which are taken as they are: a calibration table of ONNX Runtime in JSON, or a
    /// calibration cache of TensorRT; samples or statistics besides are for values that it lacks
    #[arg(help_heading = "Activations", long, value_name = "FILE")]
    ranges: Option<PathBuf>,
    /// Type of codes of activations: uint8, int8, or uint16 and int16, with which ONNX Runtime computes in float [default: uint8]
    #[arg(help_heading = "Activations", long, value_parser = value::<CodeType>)]
    activations: Option<CodeType>,
    /// How ranges of activations are chosen, as --observer [default: min-max]
    #[arg(help_heading = "Activations", long, value_parser = value::<Method>)]
    activation_observer: Option<Method>,
    /// Least SQNR in dB, else nothing is written and it exits with 3: NUMBER of every output of an ONNX model with samples, of every
    /// quantized tensor without; PATTERN=NUMBER of the outputs and tensors that a glob or re:REGEX matches; repeatable, the later
    /// wins. Of a static ONNX model, NUMBER is also what is to be reached: what costs too much is found by measuring each layer, and
    /// stays in float or gets other ranges; 0 measures nothing [default: 25 is to be reached, but no limit]
    #[arg(help_heading = "Checks", long, value_name = "[PATTERN=]DB", allow_negative_numbers = true, value_parser = value::<Limit>)]
    min_sqnr: Vec<Limit>,
    #[command(flatten, next_help_heading = "Checks")]
    gates: options::Gates,
    #[command(flatten, next_help_heading = "Checks")]
    junit: options::Junit,
    /// Share of decisions in percent that may change on the samples, of outputs of classes: layers are spared, as with --min-sqnr,
    /// until no more do
    #[arg(help_heading = "Checks", long, value_name = "PERCENT", value_parser = percent)]
    max_drop: Option<f64>,
    /// Write the recipe that was followed, with what was found by measuring: JSON if the name ends in .json, else TOML
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    emit_recipe: Option<PathBuf>,
    /// Write a page about what was done: one HTML file, with histograms of the tensors that lost most
    #[arg(help_heading = "Output", long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// As --symmetric or --asymmetric, of weights only
    #[arg(help_heading = "Weights", long, value_enum)]
    weight_symmetry: Option<Symmetry>,
    /// As --symmetric or --asymmetric, of activations only
    #[arg(help_heading = "Activations", long, value_enum)]
    activation_symmetry: Option<Symmetry>,
    /// A preset that `qtool recipe list` names, rules in TOML or JSON, or the sidecar of an earlier run
    #[arg(help_heading = "What is quantized", long, value_name = "NAME|FILE")]
    recipe: Option<PathBuf>,
    /// Run the commands that the recipe names as observers
    #[arg(help_heading = "What is quantized", long)]
    allow_commands: bool,
    /// Type of codes: int8, uint8, int4 or uint4 [default: int8]
    #[arg(help_heading = "Weights", long, value_parser = value::<CodeType>)]
    weights: Option<CodeType>,
    /// Preset of modes, types and groups, for Hugging Face directories in the form compressed-tensors
    #[arg(help_heading = "What is quantized", long, value_parser = scheme_names())]
    scheme: Option<String>,
    /// What computes with the result; sets types and conventions that suit it and were not asked for [default: any]
    #[arg(help_heading = "What is quantized", long, value_parser = target_names())]
    target: Option<String>,
    /// Pairs of int8 weights of an ONNX model whose products with uint8 activations could saturate on x86 processors without VNNI:
    /// ignored, counted, changed as little as it takes, or avoided by codes of 7 bits [default: report; ignore or 7bit by target]
    #[arg(help_heading = "Weights", long, value_name = "HOW", value_parser = saturation_names())]
    saturation: Option<String>,
    /// Write an ONNX model even if the target would not compute in integers what is to be (qtool lint)
    #[arg(help_heading = "Checks", long)]
    no_lint: bool,
    /// Zero points in the middle of the codes, of weights and activations
    #[arg(help_heading = "Weights", long, overrides_with = "asymmetric")]
    symmetric: bool,
    /// Zero points where ranges need them, of weights and activations [default: weights symmetric, activations asymmetric]
    #[arg(help_heading = "Weights", long)]
    asymmetric: bool,
    /// Which values share a scale: per-tensor, per-channel or per-group:SIZE [default: per-channel]
    #[arg(help_heading = "Weights", long, value_parser = value::<Granularity>)]
    granularity: Option<Granularity>,
    /// Channel axis; negative counts from the last [default: 0]
    #[arg(help_heading = "Weights", long, allow_negative_numbers = true)]
    axis: Option<i64>,
    #[arg(help_heading = "Weights", long, value_parser = value::<Method>, help = observer_help())]
    observer: Option<Method>,
    #[arg(help_heading = "Weights", long, value_parser = value::<Method>, help = rounding_help())]
    rounding: Option<Method>,
    #[arg(help_heading = "Weights", long, value_name = "METHOD", value_parser = value::<Method>, help = transform_help())]
    transform: Vec<Method>,
    /// Whose arithmetic: torch, ort or compressed-tensors [default: ort for ONNX, else torch]
    #[arg(help_heading = "Weights", long, value_parser = value::<Convention>)]
    convention: Option<Convention>,
    /// Quantize only tensors that match: a glob, or re:REGEX; repeatable
    #[arg(help_heading = "What is quantized", long, value_name = "PATTERN", value_parser = pattern)]
    include: Vec<Pattern>,
    /// Keep tensors that match; repeatable
    #[arg(help_heading = "What is quantized", long, value_name = "PATTERN", value_parser = pattern)]
    exclude: Vec<Pattern>,
    /// Keep smaller tensors that no operator or layer is known to compute with: of ONNX models only tables [default: 1024]
    #[arg(help_heading = "What is quantized", long, value_name = "N")]
    min_elements: Option<u64>,
    /// Of a model from quantization-aware training, observe weights anew and copy the state of its fake quantizers
    #[arg(help_heading = "What is quantized", long)]
    ignore_qat: bool,
    /// Keep weights with NaN or infinities instead of stopping
    #[arg(help_heading = "What is quantized", long)]
    allow_non_finite: bool,
    /// Print what would be done, and write nothing
    #[arg(help_heading = "Output", long)]
    dry_run: bool,
    #[command(flatten, next_help_heading = "Run")]
    threads: options::Threads,
    /// Budget for buffers, not counting pages of files that the kernel can drop
    #[arg(help_heading = "Run", long, value_name = "SIZE", default_value = "512MiB", value_parser = parse_size)]
    max_memory: u64,
    /// Seed of methods that draw random numbers [default: 0, or that of the sidecar that is the recipe]
    #[arg(help_heading = "Run", long, value_name = "N")]
    seed: Option<u64>,
    /// Replace existing outputs
    #[arg(help_heading = "Output", long)]
    force: bool,
    /// Do nothing if the output is there, whole, and was written with this option by this version from the same model, samples,
    /// recipe and options, all judged by content; else replace it
    #[arg(help_heading = "Output", long, conflicts_with_all = ["dry_run", "in_place"])]
    if_changed: bool,
    /// Allow the output to be the input
    #[arg(help_heading = "Output", long)]
    in_place: bool,
    /// Whether files are on the disk when success is reported
    #[arg(help_heading = "Output", long, value_enum, default_value = "fsync")]
    durability: DurabilityValue,
    /// Whether the content of the model is hashed: auto does so up to 64 MiB, and hashes the header of larger ones
    #[arg(help_heading = "Output", long, value_enum, default_value = "auto")]
    hash_source: HashSourceValue,
    #[command(flatten, next_help_heading = "Run")]
    read: options::Read,
    #[command(flatten, next_help_heading = "Run")]
    print: options::Output,
    /// List every tensor in the summary
    #[arg(help_heading = "Run", long, short)]
    verbose: bool,
}

/// The form that --fake-quant is short for.
const FAKE_QUANT: &str = "fake-quant";

#[derive(Clone, Copy, ValueEnum)]
enum Symmetry {
    Symmetric,
    Asymmetric,
}

#[derive(Clone, Copy, ValueEnum)]
enum HashSourceValue {
    Auto,
    Always,
    Header,
}

/// Reads a value by its own rules, so that the message is the library's.
pub(super) fn value<T: std::str::FromStr<Err = qtool::Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: qtool::Error| e.to_string())
}

/// A share from a percentage.
fn percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|_| format!("expected a number from 0 to 100, found {text:?}"))?;
    if (0.0..=100.0).contains(&percent) { Ok(percent / 100.0) } else { Err(format!("expected a number from 0 to 100, found {text}")) }
}

fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::new(text).map_err(|e| e.to_string())
}

fn output_names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(
        OUTPUTS.iter().map(|output| clap::builder::PossibleValue::new(output.name()).help(output.summary())),
    )
}

fn target_names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(
        TARGETS.iter().map(|target| clap::builder::PossibleValue::new(target.name).help(target.summary)),
    )
}

fn saturation_names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(SATURATIONS.iter().map(|entry| entry.1))
}

fn scheme_names() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(
        PRESETS
            .iter()
            .filter(|preset| preset.is_scheme)
            .map(|scheme| clap::builder::PossibleValue::new(scheme.name).help(scheme.summary())),
    )
}

fn observer_help() -> String {
    let entries = qtool::observers::OBSERVERS.iter().map(|entry| match entry.parameter {
        Some(parameter) => format!("{}[:{}]", entry.name, parameter.name),
        None => entry.name.to_owned(),
    });
    format!("How the range is chosen: {} [default: min-max]", entries.collect::<Vec<_>>().join(", "))
}

fn rounding_help() -> String {
    let entries = qtool::algorithms::ROUNDINGS.iter().map(|entry| match entry.parameter {
        Some(parameter) => format!("{}[:{}]", entry.name, parameter.name),
        None => entry.name.to_owned(),
    });
    format!("How codes are chosen, all but the first by samples: {} [default: nearest]", entries.collect::<Vec<_>>().join(", "))
}

fn transform_help() -> String {
    let entries = qtool::algorithms::transforms::TRANSFORMS.iter().map(|entry| match entry.parameter {
        Some(parameter) => format!("{}[:{}]", entry.name, parameter.name),
        None => entry.name.to_owned(),
    });
    format!("Change the float model before, by samples: {}; repeatable, in order", entries.collect::<Vec<_>>().join(", "))
}

impl Arguments {
    /// What is to be reached, and the limits: 0 without a pattern is none.
    fn min_sqnr(&self) -> qtool::Result<(Option<f64>, Vec<Limit>)> {
        let mut limits = self.min_sqnr.clone();
        let mut wanted = None;
        for limit in limits.iter_mut().filter(|limit| limit.pattern.is_none()) {
            wanted = match limit.value {
                Some(db) if db < 0.0 => {
                    return Err(qtool::Error::Usage(format!("--min-sqnr: expected a number of at least 0, found {db}")));
                }
                Some(0.0) => limit.value.take(),
                db => db,
            };
        }
        Ok((wanted, limits))
    }

    /// The recipe as it is given, which can be read only once where it comes through a pipe.
    fn given_recipe(&self) -> qtool::Result<Recipe> {
        Ok(self.recipe.as_deref().map(Recipe::named).transpose()?.unwrap_or_default())
    }

    /// What is asked for: `recipe` with what the options change of it.
    fn request(&self, mut recipe: Recipe) -> qtool::Result<Request> {
        if self.allow_commands {
            recipe.observers.allow_commands();
        }
        let target: Option<&Target> = self.target.as_deref().map(str::parse).transpose()?;
        target.into_iter().for_each(|target| target.apply(&mut recipe));
        let scheme = self.scheme.as_deref().map(Preset::scheme).transpose()?;
        scheme.into_iter().for_each(|scheme| scheme.apply_scheme(&mut recipe));
        let settings = &mut recipe.settings;
        settings.weights = self.weights.unwrap_or(settings.weights);
        settings.granularity = self.granularity.unwrap_or(settings.granularity);
        settings.axis = self.axis.unwrap_or(settings.axis);
        settings.convention = self.convention.or(settings.convention);
        let both = (self.symmetric || self.asymmetric).then_some(self.symmetric);
        let symmetric = |one: Option<Symmetry>| one.map(|one| matches!(one, Symmetry::Symmetric)).or(both);
        settings.symmetric = symmetric(self.weight_symmetry).unwrap_or(settings.symmetric);
        if let Some(observer) = &self.observer {
            settings.observer = observer.clone();
        }
        if let Some(rounding) = &self.rounding {
            recipe.settings.rounding = rounding.clone();
        }
        recipe.transforms.extend(self.transform.iter().cloned());
        recipe.min_elements = self.min_elements.unwrap_or(recipe.min_elements);
        let (wanted, min_sqnr) = self.min_sqnr()?;
        recipe.min_sqnr = wanted.or(recipe.min_sqnr);
        let saturation: Option<Saturation> = self.saturation.as_deref().map(str::parse).transpose()?;
        recipe.saturation = saturation.or(recipe.saturation);
        recipe.allow_non_finite |= self.allow_non_finite;
        recipe.ignore_qat |= self.ignore_qat;
        recipe.include.extend(self.include.iter().cloned());
        recipe.exclude.extend(self.exclude.iter().cloned());
        recipe.activations.dtype = self.activations.unwrap_or(recipe.activations.dtype);
        if let Some(observer) = &self.activation_observer {
            recipe.activations.observer = observer.clone();
        }
        recipe.activations.symmetric = symmetric(self.activation_symmetry).unwrap_or(recipe.activations.symmetric);
        target.map_or(Ok(()), |target| target.check(&recipe))?;
        recipe.mode = self.mode.unwrap_or(recipe.mode);
        recipe.op_types.extend(self.op_types.iter().cloned());
        let named = |name: &String| *OUTPUTS.iter().find(|output| output.name() == name).expect("clap has checked the name");
        if self.fake_quant && scheme.is_some() {
            let error = qtool::Error::Usage("--fake-quant: expected no --scheme, found one, which keeps other layers".into());
            return Err(error.with_hint("quantize by the scheme, then `qtool dequantize` the result: the floats that its codes stand for"));
        }
        let fake_quant = self.fake_quant.then(|| FAKE_QUANT.to_owned());
        let form = self.format.clone().or(fake_quant).or_else(|| scheme.map(|_| Preset::SCHEME_FORM.to_owned()));
        if let (Some(FAKE_QUANT), Some(mode @ (Mode::Dynamic | Mode::Static))) = (form.as_deref(), self.mode) {
            let (_, mode) = MODES.iter().find(|entry| entry.0 == mode).expect("every mode has a name");
            return Err(qtool::Error::Usage(format!("--mode: expected weight-only with --format {FAKE_QUANT}, found {mode}")));
        }
        let form: Option<&'static dyn Output> = form.as_ref().map(named);
        let recorded = self.recipe.as_deref().and_then(recorded_run);
        Ok(Request {
            model: self.model.clone(),
            destination: Destination {
                output: self.output.clone(),
                sidecar: self.sidecar.clone(),
                // What is only looked at may be there.
                force: self.force || self.dry_run,
                in_place: self.in_place,
                durability: self.durability.into(),
            },
            recipe_file: self.recipe.clone(),
            recipe,
            form,
            recorded_form: recorded.as_ref().and_then(|run| run.form),
            read: self.read.options(),
            threads: self.threads.count(),
            max_memory: self.max_memory,
            hash_source: match self.hash_source {
                HashSourceValue::Auto => HashSource::Auto,
                HashSourceValue::Always => HashSource::Always,
                HashSourceValue::Header => HashSource::Header,
            },
            seed: self.seed.or(recorded.map(|run| run.seed)).unwrap_or_default(),
            max_drop: self.max_drop,
            record: None,
            replaces_output: false,
            gates: self.gates.with_min_sqnr(&min_sqnr),
            emit_recipe: self.emit_recipe.clone(),
            page: self.report.clone(),
            lint: if self.no_lint {
                None
            } else {
                Some(LINT_TARGETS.iter().find(|name| target.is_some_and(|target| target.name == **name)).copied().unwrap_or(ANY))
            },
            calibration: CalibrationRequest { stats: self.stats.clone(), ranges: self.ranges.clone(), ..self.samples.request(&self.read) },
        })
    }
}

/// What the command is called.
const COMMAND: &str = "quantize";

pub(super) fn run(arguments: &Arguments) -> Done {
    let Arguments { junit, print, .. } = arguments;
    junit.check(&[Some(&arguments.model), arguments.report.as_ref(), arguments.emit_recipe.as_ref(), arguments.output.as_ref()])?;
    let started = std::time::Instant::now();
    let given = junit.tell(COMMAND, arguments.given_recipe())?;
    let mut request = junit.tell(COMMAND, arguments.request(given.clone()))?;
    let overridden = arguments.overridden(&given, &request.recipe);
    let mut reason = None;
    if arguments.if_changed {
        let bar = Bar::new(print.quiet);
        let verdict = if_changed::look(&mut request, &bar);
        bar.finish();
        match junit.tell(COMMAND, verdict)? {
            Verdict::Unchanged(found) => {
                junit.write(|| Suite::of_skipped(COMMAND, "unchanged: gates held when the output was written"))?;
                return print.show(&found, || terminal::unchanged(&found));
            }
            Verdict::Changed(what) => reason = Some(what),
        }
    }
    let prepared = junit.tell(COMMAND, Prepared::new(request))?;
    let applies = arguments.check_kind(&prepared).and_then(|()| arguments.check_something(&prepared));
    junit.tell(COMMAND, applies)?;
    let notes: Vec<String> = arguments.notes(&prepared).into_iter().chain(overridden).collect();
    if arguments.dry_run {
        junit.tell(COMMAND, prepared.check_calibration())?;
        let report = prepared.report();
        let report = QuantizeReport { notes: report.notes.iter().chain(&notes).cloned().collect(), ..report };
        junit.write(|| Suite::of_skipped(COMMAND, "dry run: nothing was written that gates could judge"))?;
        return print.show(&report, || terminal::plan(&report, prepared.buffer_bytes()));
    }
    if junit.junit.is_some() {
        let planned = prepared.report();
        junit.check(&[Some(&planned.output), Some(&planned.sidecar)])?;
    }
    let bar = Bar::new(print.quiet);
    let report = prepared.run(&bar).map_err(|error| arguments.samples.inputs.explain(error));
    bar.finish();
    let report = match report {
        Err(qtool::Error::Gates { model, rows }) => {
            junit.write(|| Suite::of_gates(COMMAND, &rows))?;
            print.show(&Refused { gates: &rows }, || terminal::verdict(&rows).trim_start().to_owned())?;
            return Err(qtool::Error::Gates { model, rows }.into());
        }
        report => junit.tell(COMMAND, report)?,
    };
    let notes = reason.map(|reason| format!("--if-changed: {reason}")).into_iter().chain(report.notes).chain(notes).collect();
    let report = QuantizeReport { notes, ..report };
    junit.write(|| Suite::of_gates(COMMAND, &report.gates))?;
    if let (Some(path), Some(details)) = (&arguments.report, &report.details) {
        let page = html::quantization(&arguments.model, &report, details, &options::command_line());
        page.write(path, arguments.force, arguments.durability.into())?;
    }
    let others: Vec<&Path> = arguments.report.iter().chain(&arguments.emit_recipe).chain(&junit.junit).map(PathBuf::as_path).collect();
    print.show(&report, || terminal::summary(&report, &others, started.elapsed(), arguments.verbose))
}

/// What `--json` prints where gates fail: nothing was written that more could be said of.
#[derive(serde::Serialize)]
struct Refused<'a> {
    gates: &'a [GateRow],
}
