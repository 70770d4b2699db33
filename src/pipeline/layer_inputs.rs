//! What layers of an ONNX model take, for methods that look at it: the float model runs on samples.

use super::checkpoint;
use super::onnx::{self, CalibrationRequest};
use crate::algorithms::blocks::{BLOCK, block_count};
use crate::algorithms::solve::View;
use crate::algorithms::solver::Layer;
use crate::calibration::array::Array;
use crate::calibration::engine;
use crate::calibration::inputs::LayerInputs;
use crate::calibration::inputs::patches::Geometry;
use crate::calibration::inputs::stats::{Detail, InputStats};
use crate::calibration::stats::Statistics;
use crate::error::{Error, Result, show_name};
use crate::graph::onnx_model::OnnxModel;
use crate::graph::scopes::TOP;
use crate::graph::weights;
use crate::model::Model;
use crate::plan::{Decision, Plan};
use crate::stream::{self, Progress};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

/// Fewest features of groups of channels: rounding gains little where there is little to make errors good with.
const FEWEST_FEATURES: usize = 32;

/// How inputs are made of a value.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    /// Its rows along the last axis.
    Rows,
    /// The patches that a convolution multiplies, of each group of channels.
    Patches(Geometry),
    /// All channels of each position of every other sample, what is above zero and then what is below, negated: so the largest magnitudes are both
    /// ends of ranges.
    Channels {
        /// Whether they are the last axis, and not axis 1.
        is_last: bool,
        /// Whether it is the even samples, or the odd ones.
        half: usize,
    },
}

impl Kind {
    fn groups(&self) -> usize {
        if let Kind::Patches(geometry) = self { geometry.groups } else { 1 }
    }

    /// Whether it is made of this sample.
    fn is_of(&self, sample: usize) -> bool {
        if let Kind::Channels { half, .. } = self { sample % 2 == *half } else { true }
    }

    /// Inputs of each group; `None` if the value has too few dimensions.
    fn rows(&self, array: &Array) -> Option<Vec<Vec<f32>>> {
        match self {
            Kind::Rows => Some(vec![array.floats()?.to_vec()]),
            Kind::Patches(geometry) => geometry.rows(array),
            Kind::Channels { is_last, .. } => Some(vec![both_signs(array, *is_last)?]),
        }
    }
}

fn both_signs(array: &Array, is_last: bool) -> Option<Vec<f32>> {
    let (values, shape) = (array.floats()?, &array.shape);
    let (channels, inner) = match is_last {
        true => (*shape.last()?, 1),
        false => (*shape.get(1)?, shape[2..].iter().product()),
    };
    let mut rows = Vec::with_capacity(2 * values.len());
    for block in values.chunks_exact((channels * inner).max(1)) {
        for position in 0..inner {
            let row = || block[position..].iter().step_by(inner);
            rows.extend(row().map(|value| value.max(0.0)));
            rows.extend(row().map(|value| (-value).max(0.0)));
        }
    }
    Some(rows)
}

/// What layers take.
pub(super) struct Observed {
    pub(super) inputs: LayerInputs,
    /// The tensors whose layers it is known of.
    pub(super) layers: BTreeMap<usize, Layer>,
    /// What is said of other layers.
    pub(super) note: Option<String>,
}

/// Runs the samples and keeps what layers take of which `plan` looks at the inputs; other layers are put on the path without
/// samples, which the note says.
///
/// # Errors
///
/// As [`Samples::open`] and [`engine::Engine::for_each_value`]; [`Error::Limit`] if all Gram matrices do not fit `max_memory`;
/// [`Error::Usage`] without samples.
pub(super) fn observe(
    model: &Model,
    plan: &mut Plan,
    calibration: &CalibrationRequest,
    max_memory: u64,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Option<Observed>> {
    let Some(onnx) = model.onnx() else { return Ok(None) };
    let wanted: BTreeSet<usize> =
        plan.quantized().filter(|tensor| plan.scheme(*tensor).is_some_and(|scheme| scheme.looks_at_inputs())).collect();
    if wanted.is_empty() || calibration.is_empty() {
        return Ok(None);
    }
    if calibration.samples.is_empty() {
        return Err(Error::Usage(
            "methods that look at inputs of layers: expected --samples, found statistics, which have no Gram matrices".into(),
        ));
    }
    let (layers, sources) = find(model, onnx, &wanted, FEWEST_FEATURES);
    let mut without = Vec::new();
    for tensor in wanted.iter().filter(|tensor| !layers.contains_key(tensor)) {
        let Decision::Quantize(scheme) = &mut plan.decisions[*tensor] else { continue };
        checkpoint::forget_inputs(scheme, false);
        without.push(model.tensors()[*tensor].info.name.as_str());
    }
    let bytes: u64 = sources.values().flatten().map(|source| source.bytes()).sum();
    if bytes > max_memory {
        let what = "bytes of the Gram matrices of all layers".into();
        let error = Error::Limit { file: model.path().to_owned(), what, limit: max_memory, found: bytes };
        return Err(error.with_hint("raise --max-memory, or let a rule of a recipe choose other methods for some layers"));
    }
    let mut statistics = Statistics::new(onnx::identity(model), BTreeMap::new());
    statistics.inputs = Run { model, onnx, calibration, detail: Detail::Gram, threads, progress }.stats(&sources)?;
    Ok(Some(Observed { inputs: LayerInputs::known(statistics), layers, note: checkpoint::note_without(&without) }))
}

/// Layers, and what is known of their inputs but Gram matrices, by name.
#[derive(Default)]
pub(super) struct Means {
    pub(super) layers: BTreeMap<usize, Layer>,
    pub(super) stats: BTreeMap<String, InputStats>,
}

/// Layers of `wanted` tensors with means of their inputs.
///
/// # Errors
///
/// As [`observe`].
pub(super) fn means(
    model: &Model,
    wanted: &BTreeSet<usize>,
    calibration: &CalibrationRequest,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Means> {
    let Some(onnx) = model.onnx() else { return Ok(Means::default()) };
    let (layers, sources) = find(model, onnx, wanted, 1);
    let stats = Run { model, onnx, calibration, detail: Detail::Features, threads, progress }.stats(&sources)?;
    Ok(Means { layers, stats })
}

/// Channels of values, of which `values` says whether they are the last axis, and how many there are: of every other sample, and of
/// the rest if there is one; what is above zero, then what is below, negated.
///
/// # Errors
///
/// As [`observe`].
pub(super) fn channels(
    model: &Model,
    values: &BTreeMap<(String, bool), usize>,
    calibration: &CalibrationRequest,
    threads: usize,
    progress: &dyn Progress,
) -> Result<BTreeMap<(String, bool), Vec<InputStats>>> {
    let Some(onnx) = model.onnx() else { return Ok(BTreeMap::new()) };
    let mut sources: BTreeMap<String, Vec<Source>> = BTreeMap::new();
    let name = |value: &str, is_last: bool, half: usize| format!("{value}/{is_last}/{half}");
    for ((value, is_last), count) in values {
        for half in 0..2 {
            let kind = Kind::Channels { is_last: *is_last, half };
            let source = Source { kind, names: vec![name(value, *is_last, half)], features: 2 * count };
            sources.entry(value.clone()).or_default().push(source);
        }
    }
    let mut stats = Run { model, onnx, calibration, detail: Detail::Features, threads, progress }.stats(&sources)?;
    let mut take = |key: &(String, bool)| {
        let halves = (0..2).filter_map(|half| stats.remove(&name(&key.0, key.1, half))).filter(|stats| stats.rows() > 0);
        (key.clone(), halves.collect())
    };
    Ok(values.keys().map(&mut take).collect())
}

/// Inputs that are made of one value.
pub(super) struct Source {
    kind: Kind,
    /// Of each group of channels.
    pub(super) names: Vec<String>,
    features: usize,
}

impl Source {
    fn bytes(&self) -> u64 {
        (self.names.len() * block_count(self.features) * BLOCK * 2 * size_of::<i64>()) as u64
    }
}

/// Layers that can be solved, and what their inputs are made of, by value.
pub(super) fn find(
    model: &Model,
    onnx: &OnnxModel,
    wanted: &BTreeSet<usize>,
    fewest: usize,
) -> (BTreeMap<usize, Layer>, BTreeMap<String, Vec<Source>>) {
    let (mut layers, mut sources): (BTreeMap<usize, Layer>, BTreeMap<String, Vec<Source>>) = Default::default();
    let mut refused = BTreeSet::new();
    for layer in &onnx.weights.layers {
        let Some(tensor) = onnx.tensor(&layer.weight).filter(|tensor| wanted.contains(tensor)) else { continue };
        let shape = &model.tensors()[tensor].info.shape;
        // One node, for now: inputs of several would have to be added up.
        match describe(onnx, layer, shape, fewest).filter(|_| !layers.contains_key(&tensor)) {
            None => drop(refused.insert(tensor)),
            Some((value, kind, view)) => {
                let groups = kind.groups();
                let known = sources.entry(value.to_owned()).or_default();
                let names: Vec<String> = match known.iter().find(|source| source.kind == kind && source.features == view.features) {
                    Some(source) => source.names.clone(),
                    None => {
                        let number = known.len();
                        let names: Vec<String> = (0..groups).map(|group| format!("{value}/{number}/{group}")).collect();
                        known.push(Source { kind, names: names.clone(), features: view.features });
                        names
                    }
                };
                layers.insert(tensor, Layer { view, inputs: names });
            }
        }
    }
    layers.retain(|tensor, _| !refused.contains(tensor));
    let used: BTreeSet<&String> = layers.values().flat_map(|layer| &layer.inputs).collect();
    sources.values_mut().for_each(|sources| sources.retain(|source| used.contains(&source.names[0])));
    sources.retain(|_, sources| !sources.is_empty());
    (layers, sources)
}

/// The value that a layer takes, how inputs are made of it, and the weight as a matrix; `None` if it is of another kind.
fn describe<'m>(onnx: &'m OnnxModel, layer: &weights::Layer, shape: &[usize], fewest: usize) -> Option<(&'m str, Kind, View)> {
    let node = onnx.node(layer);
    let is_plain = layer.path.nodes.len() <= usize::from(layer.path.transposed);
    if layer.scope != TOP || !is_plain || layer.input != 1 {
        return None;
    }
    let value = node.input(0)?;
    match (layer.op.as_str(), shape) {
        ("Conv", [rows, rest @ ..]) => {
            let features: usize = rest.iter().product();
            let geometry = Geometry::new(node, shape)?;
            let fits = *rows > 0 && rows % geometry.groups == 0 && (geometry.groups == 1 || features >= fewest);
            fits.then_some((value, Kind::Patches(geometry), View { rows: *rows, features, row_step: features, feature_step: 1 }))
        }
        ("MatMul" | "Gemm", [first, second]) if node.int("transA", 0) == 0 => {
            let view = match layer.axis {
                0 => View { rows: *first, features: *second, row_step: *second, feature_step: 1 },
                _ => View { rows: *second, features: *first, row_step: 1, feature_step: *second },
            };
            Some((value, Kind::Rows, view))
        }
        _ => None,
    }
}

/// A pass over the samples.
pub(super) struct Run<'a> {
    pub(super) model: &'a Model,
    pub(super) onnx: &'a OnnxModel,
    pub(super) calibration: &'a CalibrationRequest,
    pub(super) detail: Detail,
    pub(super) threads: usize,
    pub(super) progress: &'a dyn Progress,
}

/// Inputs of a group of channels, made of the value of one sample.
pub(super) struct Input<'a> {
    pub(super) name: &'a str,
    /// `[rows, features]`.
    pub(super) rows: &'a [f32],
    pub(super) features: usize,
}

/// Takes inputs, all of the value that they are made of, and the number of samples.
type Each<'a> = &'a (dyn Fn(Input<'_>, &[f32], usize) -> std::result::Result<(), String> + Sync);

impl Run<'_> {
    /// Statistics of inputs, by name.
    fn stats(&self, sources: &BTreeMap<String, Vec<Source>>) -> Result<BTreeMap<String, InputStats>> {
        let Run { model, detail, .. } = *self;
        if let Some((limit, source)) = sources.values().flatten().find_map(|s| Some((InputStats::too_many(s.features, detail)?, s))) {
            let what = format!("features of value {}, for methods that look at their products", show_name(&source.names[0]));
            return Err(Error::Limit { file: model.path().to_owned(), what, limit, found: source.features as u64 });
        }
        let new = |source: &Source| {
            source.names.iter().map(|name| (name.clone(), Mutex::new(InputStats::new(source.features, detail)))).collect::<Vec<_>>()
        };
        let stats: BTreeMap<String, Mutex<InputStats>> = sources.values().flatten().flat_map(new).collect();
        let lock = "no thread panics while it holds this lock";
        self.for_each(sources, &|input, _, _| {
            stats[input.name].lock().expect(lock).observe(input.rows, 1).map_err(|refusal| refusal.to_string())
        })?;
        Ok(stats.into_iter().map(|(name, stats)| (name, stats.into_inner().expect(lock))).collect())
    }

    /// Runs the samples, on several threads, and hands over what inputs are made of.
    ///
    /// # Errors
    ///
    /// As [`observe`]; [`Error::Malformed`] with what `each` says.
    pub(super) fn for_each(&self, sources: &BTreeMap<String, Vec<Source>>, each: Each<'_>) -> Result<()> {
        let Run { model, onnx, calibration, threads, progress, .. } = *self;
        let samples = calibration.open(onnx)?;
        let engine = engine::load_model(calibration.engine, model.path(), onnx.file.proto.clone(), &engine::Options::default())?;
        let values: Vec<String> = sources.keys().cloned().collect();
        progress.begin_samples(samples.len() as u64);
        let done = stream::map(samples.len(), threads, |index| -> Result<()> {
            let sample = samples.load(index)?;
            engine.for_each_value(&sample, &values, &mut |value, array| {
                let name = &values[value];
                let wrong = |found: String| {
                    Error::malformed(model.path(), format!("value {} with {}: {found}", show_name(name), samples.describe(index)))
                };
                for source in sources[name].iter().filter(|source| source.kind.is_of(index)) {
                    let found = || wrong(format!("expected an input of a layer, found dimensions {:?}", array.shape));
                    let rows = source.kind.rows(array).ok_or_else(found)?;
                    for (name, rows) in source.names.iter().zip(&rows) {
                        if !rows.len().is_multiple_of(source.features) {
                            return Err(wrong(format!("expected rows of {} features, found {:?}", source.features, array.shape)));
                        }
                        let input = Input { name, rows, features: source.features };
                        each(input, array.floats().unwrap_or_default(), samples.len()).map_err(wrong)?;
                    }
                }
                Ok(())
            })?;
            progress.advance(1);
            Ok(())
        });
        done.into_iter().collect()
    }
}
