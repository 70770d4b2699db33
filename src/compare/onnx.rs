//! How far the outputs of a quantized ONNX model are from those of the float one, over samples.

use super::layers::Layers;
use super::{Difference, Sums};
use crate::calibration::array::{Array, Data, decisions};
use crate::calibration::engine::{self, EngineChoice};
use crate::calibration::samples::{InputSpec, SampleLimits, SampleSource, Samples};
use crate::error::{Error, Result, show_name};
use crate::formats::onnx::proto::{DimensionProto, GraphProto, ModelProto, ValueInfoProto};
use crate::formats::onnx::tensor::element_type;
use crate::formats::{self, ReadOptions};
use crate::gates::{GateRow, Gates, Kind, Measure, Subject};
use crate::graph::lower;
use crate::model::Model;
use crate::outputs::quantized::check_recorded;
use crate::recipe::Pattern;
use crate::stream::{self, Progress};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// What to compare.
#[derive(Clone, Debug, Default)]
pub struct OutputRequest {
    /// The float model.
    pub float: PathBuf,
    /// The quantized model.
    pub quantized: PathBuf,
    /// Samples.
    pub samples: SampleSource,
    /// Most samples that are used.
    pub limit: Option<usize>,
    /// Bounds on files of samples.
    pub limits: SampleLimits,
    /// Whether values within the models are compared too.
    pub layers: bool,
    /// How models are read.
    pub read: ReadOptions,
    /// How many threads work.
    pub threads: usize,
}

/// The result of [`compare_outputs`].
#[derive(Clone, Debug, Serialize)]
pub struct OutputComparison {
    /// Number of samples.
    pub samples: usize,
    /// All outputs, in the model's order.
    pub outputs: Vec<OutputDifference>,
    /// Float values that both models have, worst first, where they were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<LayerDifference>>,
}

/// One output of an [`OutputComparison`].
#[derive(Clone, Debug, Serialize)]
pub struct OutputDifference {
    /// Its name.
    pub name: String,
    /// How it differs, over all samples.
    #[serde(flatten)]
    pub difference: Difference,
    /// Share of rows whose largest value is in the same place, where the last axis may be one of classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top1: Option<f64>,
}

/// One value of both models.
#[derive(Clone, Debug, Serialize)]
pub struct LayerDifference {
    /// Its name.
    pub name: String,
    /// The operator that it comes from in the float model.
    pub op: String,
    /// How it differs, with all that came before.
    #[serde(flatten)]
    pub difference: Difference,
    /// How it would differ if all that came before were exact.
    pub local: Difference,
}

impl OutputComparison {
    /// Judges every output; and the values within the models that patterns name, where they were compared.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if a pattern matches none of them, or there are limits of [`Measure::Top1`] and no output of classes.
    pub fn judge(&self, gates: &Gates) -> Result<Vec<GateRow>> {
        let layers = self.layers.as_deref().unwrap_or_default();
        let is_known = |measure, pattern: &Pattern| {
            let of_output =
                |output: &OutputDifference| (measure != Measure::Top1 || output.top1.is_some()) && pattern.matches(&output.name);
            let of_layer = |layer: &LayerDifference| measure != Measure::Top1 && pattern.matches(&layer.name);
            self.outputs.iter().any(of_output) || layers.iter().any(of_layer)
        };
        let (what, hint) = match &self.layers {
            Some(_) => ("an output or a value within the models", "`qtool compare --layers` without gates lists all"),
            None => ("an output", "--layers compares values within the models too"),
        };
        gates.check_patterns(what, is_known).map_err(|e| e.with_hint(hint))?;
        // An output is a value too; it is judged once.
        let within = layers.iter().filter(|layer| self.outputs.iter().all(|output| output.name != layer.name));
        let of_layers = within.flat_map(|layer| {
            let subject = Subject { kind: Kind::Layer, name: &layer.name, difference: layer.difference, top1: None };
            gates.judge(&subject, false, |pattern| pattern.matches(&layer.name))
        });
        Ok(self.judge_outputs(gates)?.into_iter().chain(of_layers).collect())
    }

    /// Judges every output.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if there are limits of [`Measure::Top1`] and no output of classes.
    pub(crate) fn judge_outputs(&self, gates: &Gates) -> Result<Vec<GateRow>> {
        if !gates.of(Measure::Top1).is_empty() && self.outputs.iter().all(|output| output.top1.is_none()) {
            return Err(Error::Usage("--min-top1: expected an output of classes, found none".into()));
        }
        let judge = |output: &OutputDifference| {
            let subject = Subject { kind: Kind::Output, name: &output.name, difference: output.difference, top1: output.top1 };
            gates.judge(&subject, true, |pattern| pattern.matches(&output.name))
        };
        Ok(self.outputs.iter().flat_map(judge).collect())
    }
}

/// Runs both models on samples and compares their outputs.
///
/// # Errors
///
/// [`Error::Usage`] without samples; as [`formats::open`], [`Samples::open`] and [`engine::Engine::for_each_value`];
/// [`Error::Malformed`] if the models do not take and give the same, or the quantized one has operators that are not known.
pub fn compare_outputs(request: &OutputRequest, progress: &dyn Progress) -> Result<OutputComparison> {
    if request.samples.is_empty() {
        let missing = Error::Usage("compare: expected samples to run ONNX models on, found none".into());
        return Err(missing.with_hint("give --samples PATH: .npz, .npy, .safetensors or .pb files, or directories of them"));
    }
    let float = graph_of(formats::open(&request.float, &request.read)?)?;
    let quantized = formats::open(&request.quantized, &request.read)?;
    check_recorded(&quantized, request.threads)?;
    let mut quantized = graph_of(quantized)?;
    let of = |proto: &ModelProto| proto.graph.as_deref().map(|graph| (outputs(graph), inputs(graph))).unwrap_or_default();
    let ((outputs, inputs), (other_outputs, other_inputs)) = (of(&float), of(&quantized));
    let input_names = |inputs: &[InputSpec]| inputs.iter().map(|input| input.name.clone()).collect::<Vec<_>>();
    same_names(&request.quantized, "inputs", &input_names(&inputs), &input_names(&other_inputs))?;
    same_names(&request.quantized, "outputs", &outputs, &other_outputs)?;
    let samples = Samples::of(&request.samples, &inputs, request.limit, None, &request.limits)?;
    lower::to_float(&mut quantized).map_err(|e| Error::malformed(&request.quantized, e))?;
    let options = engine::Options::default();
    let load = |path: &Path, proto| engine::load_model(EngineChoice::Auto, path, proto, &options);
    let float_engine = load(&request.float, float.clone())?;
    let layers = match request.layers {
        true => Some(Layers::new(&float, &quantized, &request.quantized, &*float_engine, &samples)?),
        false => None,
    };
    drop(float);
    let quantized_engine = load(&request.quantized, quantized)?;
    progress.begin_samples(samples.len() as u64);
    let done = stream::map(samples.len(), request.threads, |index| -> Result<_> {
        let sample = samples.load(index)?;
        let expected = float_engine.run(&sample, &outputs)?;
        let found = quantized_engine.run(&sample, &outputs)?;
        let pairs = outputs.iter().zip(expected.iter().zip(&found));
        let of_sample: Vec<Accumulated> = pairs
            .map(|(name, (expected, found))| {
                Accumulated::of(expected, found).map_err(|e| {
                    let e = format!("output {} with {}: {e}", show_name(name), samples.describe(index));
                    Error::malformed(&request.quantized, e)
                })
            })
            .collect::<Result<_>>()?;
        let of_layers = layers.as_ref().map(|layers| layers.compare(&sample, &*float_engine, &*quantized_engine)).transpose()?;
        progress.advance(1);
        Ok((of_sample, of_layers))
    });
    let mut totals = vec![Accumulated::default(); outputs.len()];
    let mut layer_totals = vec![<[Sums; 2]>::default(); layers.as_ref().map_or(0, Layers::len)];
    for sample in done {
        let (of_outputs, of_layers) = sample?;
        totals.iter_mut().zip(&of_outputs).for_each(|(total, sums)| total.merge(sums));
        for (total, sums) in layer_totals.iter_mut().zip(of_layers.into_iter().flatten()) {
            total.iter_mut().zip(&sums).for_each(|(total, sums)| total.merge(sums));
        }
    }
    let outputs = outputs.into_iter().zip(&totals).map(|(name, total)| OutputDifference {
        name,
        difference: total.sums.difference(),
        top1: (total.rows > 0 && !total.is_no_classes).then(|| total.agreeing as f64 / total.rows as f64),
    });
    Ok(OutputComparison { samples: samples.len(), outputs: outputs.collect(), layers: layers.map(|layers| layers.report(&layer_totals)) })
}

/// The graph of an ONNX model, with the values of its constants at hand.
fn graph_of(model: Model) -> Result<ModelProto> {
    let path = model.path().to_owned();
    match model.into_onnx() {
        Some(onnx) => Ok(onnx.file.proto),
        None => Err(Error::malformed(&path, "format: expected ONNX, as the other model, found another")),
    }
}

fn outputs(graph: &GraphProto) -> Vec<String> {
    graph.output.iter().map(|value| value.name.clone()).collect()
}

/// What a model takes.
fn inputs(graph: &GraphProto) -> Vec<InputSpec> {
    let spec = |value: &ValueInfoProto| {
        let tensor = value.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
        let fixed = |dim: &DimensionProto| dim.dim_value.and_then(|value| usize::try_from(value).ok());
        InputSpec {
            name: value.name.clone(),
            dtype: tensor.and_then(|tensor| element_type(tensor.elem_type?)?.dtype),
            shape: tensor.and_then(|tensor| tensor.shape.as_ref()).map(|shape| shape.dim.iter().map(fixed).collect()),
        }
    };
    let is_constant = |value: &&ValueInfoProto| graph.initializer.iter().any(|tensor| tensor.name == value.name);
    graph.input.iter().filter(|value| !is_constant(value)).map(spec).collect()
}

fn same_names(path: &Path, what: &str, expected: &[String], found: &[String]) -> Result<()> {
    let list = |names: &[String]| names.iter().map(|name| show_name(name).to_string()).collect::<Vec<_>>().join(", ");
    let (mut a, mut b) = (expected.to_vec(), found.to_vec());
    a.sort();
    b.sort();
    match a == b {
        true => Ok(()),
        false => {
            Err(Error::malformed(path, format!("{what}: expected those of the float model, {}, found {}", list(expected), list(found))))
        }
    }
}

/// Sums over one value of both models.
#[derive(Clone, Copy, Default)]
struct Accumulated {
    sums: Sums,
    rows: u64,
    agreeing: u64,
    is_no_classes: bool,
}

impl Accumulated {
    fn of(expected: &Array, found: &Array) -> std::result::Result<Self, String> {
        let mut this = Accumulated { sums: sums_of(expected, found)?, ..Accumulated::default() };
        match decisions(expected, found) {
            Some([rows, agreeing]) => (this.rows, this.agreeing) = (rows, agreeing),
            None => this.is_no_classes = true,
        }
        Ok(this)
    }

    fn merge(&mut self, other: &Accumulated) {
        self.sums.merge(&other.sums);
        self.rows += other.rows;
        self.agreeing += other.agreeing;
        self.is_no_classes |= other.is_no_classes;
    }
}

/// Sums over all elements of two arrays of one shape.
pub(super) fn sums_of(expected: &Array, found: &Array) -> std::result::Result<Sums, String> {
    if expected.shape != found.shape {
        return Err(format!("shape: expected {:?} as in the float model, found {:?}", expected.shape, found.shape));
    }
    let mut sums = Sums::default();
    let mut add = |a: f64, b: f64| sums.add(a, b);
    match (&expected.data, &found.data) {
        (Data::Float(a), Data::Float(b)) => a.iter().zip(b).for_each(|(a, b)| add(f64::from(*a), f64::from(*b))),
        (Data::Int(a), Data::Int(b)) => a.iter().zip(b).for_each(|(a, b)| add(*a as f64, *b as f64)),
        _ => return Err(format!("expected {} as in the float model, found {}", expected.dtype, found.dtype)),
    }
    Ok(sums)
}
