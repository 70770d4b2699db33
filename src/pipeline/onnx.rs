//! What an ONNX model needs besides: the operators' version that the output's nodes take, ranges of activations, and
//! weight scales that leave room for biases.

use crate::calibration::engine::{self, EngineChoice};
use crate::calibration::observe::{self, Watch};
use crate::calibration::samples::{InputSpec, SampleLimits, Samples};
use crate::calibration::stats::{self, ModelIdentity, Statistics};
use crate::error::{Error, Result, show_name};
use crate::formats::onnx::proto::{NodeProto, TensorProto};
use crate::formats::onnx::tensor::element_type;
use crate::graph::activations::RangeSource;
use crate::graph::cost;
use crate::graph::index::GraphIndex;
use crate::graph::onnx_model::{OnnxModel, into_model};
use crate::graph::prepare::{PrepareOptions, prepare};
use crate::graph::scopes::{TOP, scopes};
use crate::graph::version::raise_opset;
use crate::graph::weights::Layer;
use crate::method::Method;
use crate::model::Model;
use crate::observers::{ObserverChoice, Target};
use crate::outputs::document::{ActivationRecord, CalibrationRecord};
use crate::outputs::onnx::rewrite::{Chosen, ParamsOf};
use crate::outputs::onnx::static_qdq::weight_scale_for_bias;
use crate::plan::{LayerMode, Plan};
use crate::quant::params::{ParamRule, Params, Range};
use crate::quant::scheme::{CodeType, Convention, Granularity};
use crate::recipe::{Mode, Recipe};
use crate::stream::Progress;
use crate::tensor::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The version that has DynamicQuantizeLinear.
const DYNAMIC: i64 = 11;

/// The version whose DequantizeLinear takes one scale a channel.
const PER_AXIS: i64 = 13;

/// The version whose DequantizeLinear makes F16.
const HALF: i64 = 19;

/// The version whose DequantizeLinear takes blocks, and codes of four bits.
const BLOCKED: i64 = 21;

/// Where statistics of activations come from.
#[derive(Clone, Debug, Default)]
pub struct CalibrationRequest {
    /// Files and directories of samples.
    pub samples: Vec<PathBuf>,
    /// Files of statistics.
    pub stats: Vec<PathBuf>,
    /// Most samples that are used.
    pub limit: Option<usize>,
    /// Of the samples, every `count`-th from `index` on: `(index, count)`.
    pub part: Option<(usize, usize)>,
    /// Bounds of the readers of samples.
    pub limits: SampleLimits,
    /// What runs the model.
    pub engine: EngineChoice,
}

impl CalibrationRequest {
    /// Whether there is nothing to calibrate with.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty() && self.stats.is_empty()
    }
}

/// The model as it is to be rewritten: simplified, and in the version that `recipe` needs. Other kinds of models as they
/// are.
pub(super) fn ready(model: Model, recipe: &Recipe) -> Result<Model> {
    if model.onnx().is_none() {
        return Ok(model);
    }
    let settings = &recipe.settings;
    let is_blocked = matches!(settings.granularity, Granularity::PerGroup(_)) || settings.weights.bits() < 8;
    let is_half =
        model.tensors().iter().any(|tensor| tensor.role.axis().is_some() && matches!(tensor.info.dtype, Dtype::F16 | Dtype::BF16));
    let needed = match settings.granularity {
        _ if is_blocked => BLOCKED,
        _ if is_half => HALF,
        Granularity::PerTensor if recipe.mode != Mode::Static => DYNAMIC,
        _ => PER_AXIS,
    };
    let mut onnx = model.into_onnx().expect("it is an ONNX model");
    if onnx.weights.layers.is_empty() {
        return into_model(onnx.file);
    }
    let path = onnx.file.path.clone();
    // First what does not depend on the version, as there is less to convert then.
    prepare(&mut onnx.file.proto, PrepareOptions { fold_affine: recipe.mode == Mode::Static, ..PrepareOptions::default() });
    raise_opset(&mut onnx.file.proto, needed).map_err(|e| Error::malformed(&path, e))?;
    into_model(onnx.file)
}

/// What a model takes.
pub(super) fn inputs(onnx: &OnnxModel) -> Vec<InputSpec> {
    let Some(graph) = &onnx.file.proto.graph else { return Vec::new() };
    let index = GraphIndex::new(graph);
    let spec = |value: &crate::formats::onnx::proto::ValueInfoProto| {
        let tensor = value.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
        let dtype = tensor.and_then(|tensor| element_type(tensor.elem_type?)?.dtype);
        let dims = tensor.and_then(|tensor| tensor.shape.as_ref()).map(|shape| &shape.dim);
        let fixed = |dim: &crate::formats::onnx::proto::DimensionProto| dim.dim_value.and_then(|value| usize::try_from(value).ok());
        let shape = dims.map(|dims| dims.iter().map(fixed).collect());
        InputSpec { name: value.name.clone(), dtype, shape }
    };
    graph.input.iter().filter(|value| index.initializer(&value.name).is_none()).map(spec).collect()
}

/// What tells the model from others: the content of all its files.
pub(super) fn identity(model: &Model) -> ModelIdentity {
    let mut hasher = blake3::Hasher::new();
    for file in model.files() {
        hasher.update(file.bytes());
    }
    let name = model.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    ModelIdentity { name, bytes: model.bytes(), blake3: hasher.finalize() }
}

/// **Observes** activations: statistics from files, or from samples that the model runs on.
pub(super) fn statistics(
    model: &Model,
    plan: &Plan,
    calibration: &CalibrationRequest,
    observer: &Method,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Statistics> {
    let identity = identity(model);
    if !calibration.stats.is_empty() {
        let parts = calibration.stats.iter().map(|path| Statistics::read(path)).collect::<Result<Vec<_>>>()?;
        parts.iter().try_for_each(|part| part.check_model(&identity))?;
        return stats::merge(parts);
    }
    let onnx = model.onnx().ok_or_else(|| Error::Usage("--samples: expected an ONNX model, found another".into()))?;
    let samples = Samples::open(&calibration.samples, &inputs(onnx), calibration.limit, calibration.part, &calibration.limits)?;
    let observed = plan.values.values.iter().filter(|(_, source)| **source == RangeSource::Observed).map(|(name, _)| name.clone());
    let counted = counted(onnx, plan).map(|(_, _, value)| value.to_owned());
    let observer = ObserverChoice::new(observer)?;
    let watch = Watch {
        path: model.path(),
        model: identity,
        values: observed.chain(counted).collect::<BTreeSet<String>>().into_iter().collect(),
        averaging_weight: observer.averaging_weight(),
    };
    let engine = engine::load_model(calibration.engine, model.path(), onnx.file.proto.clone(), &engine::Options::default())?;
    progress.begin_samples(samples.len() as u64);
    observe::observe(&*engine, &samples, watch, threads, progress)
}

/// Layers of the top graph, each with the value that tells what it costs.
fn counted<'m>(onnx: &'m OnnxModel, plan: &'m Plan) -> impl Iterator<Item = (usize, &'m Layer, &'m str)> {
    let layers = onnx.weights.layers.iter().enumerate().filter(|(_, layer)| layer.scope == TOP);
    layers.filter_map(|(i, layer)| {
        // An activation function that goes gives as many elements as it takes.
        let output = plan.values.outputs.get(&i).map(|output| output.value.as_str());
        Some((i, layer, output.or_else(|| cost::counted_value(onnx, layer))?))
    })
}

/// The share of multiply-adds, of operators of the top graph with constant weights, that are of integers.
pub(super) fn integer_share(model: &Model, plan: &Plan, statistics: &Statistics) -> Option<f64> {
    let onnx = model.onnx()?;
    let (mut integer, mut all) = (0u64, 0u64);
    for (i, layer, value) in counted(onnx, plan) {
        let (Some(stats), Some(tensor)) = (statistics.activations.get(value), onnx.tensor(&layer.weight)) else { continue };
        let cost = cost::multiply_adds(layer, &model.tensors()[tensor].info.shape, stats.values());
        all += cost;
        if matches!(plan.layers[i], LayerMode::Static | LayerMode::Dynamic) {
            integer += cost;
        }
    }
    (all > 0).then(|| integer as f64 / all as f64)
}

/// Operators that only quantized models have.
fn is_of_quantized_models(node: &NodeProto) -> bool {
    const NAMES: &[&str] = &["QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits", "GatherBlockQuantized"];
    NAMES.contains(&node.op_type.as_str()) || node.op_type.starts_with("QLinear") || node.op_type.starts_with("DynamicQuantize")
}

/// What there is to know of a model that says itself that it is quantized.
pub(super) fn already_quantized(model: &Model) -> Option<String> {
    let scopes = scopes(&model.onnx()?.file.proto);
    let nodes = scopes.iter().flat_map(|scope| &scope.graph.node).filter(|node| is_of_quantized_models(node));
    let types: BTreeSet<&str> = nodes.map(|node| node.op_type.as_str()).collect();
    let types: Vec<&str> = types.into_iter().collect();
    (!types.is_empty()).then(|| format!("the model is quantized already, at least in part: it has {}", types.join(", ")))
}

/// What was chosen for activations.
pub(super) struct Activations {
    pub records: BTreeMap<String, ActivationRecord>,
    pub calibration: CalibrationRecord,
}

/// **Chooses** scale and zero point of every value that is quantized.
pub(super) fn choose_activations(model: &Model, plan: &Plan, recipe: &Recipe, statistics: &Statistics) -> Result<Activations> {
    let settings = &recipe.activations;
    let observer = ObserverChoice::new(&settings.observer)?;
    let rule = ParamRule::new(recipe.settings.convention.unwrap_or(Convention::Ort), settings.dtype, settings.symmetric, Dtype::F32);
    let target = Target { rule, single_batch: false };
    let observed = |name: &str| -> Result<Range> {
        let missing = || {
            let error = Error::malformed(model.path(), format!("value {}: expected statistics of it, found none", show_name(name)));
            error.with_hint("run `qtool calibrate` again with the options of this run")
        };
        statistics.activations.get(name).ok_or_else(missing)?.range(&observer, &target)
    };
    let mut records = BTreeMap::new();
    for (name, source) in &plan.values.values {
        let range = match source {
            RangeSource::Observed => observed(name)?,
            RangeSource::SameAs(origin) => observed(origin)?,
            RangeSource::Unit => Range { min: 0.0, max: 1.0 },
        };
        let Params { scale, zero_point } = rule.choose_params(range);
        let Range { min, max } = range.with_zero();
        let record = ActivationRecord { dtype: settings.dtype, max, min, observer: observer.method(), scale, zero_point };
        records.insert(name.clone(), record);
    }
    let samples = statistics.samples() as u64;
    Ok(Activations { records, calibration: CalibrationRecord { blake3: statistics.samples_hash().to_hex().to_string(), samples } })
}

/// Raises weight scales where a bias, whose scale is that of the product, would not fit 32 bits.
pub(super) fn leave_room_for_biases(model: &Model, plan: &Plan, activations: &BTreeMap<String, Params>, weights: &mut ParamsOf) {
    let Some(onnx) = model.onnx() else { return };
    let Some(graph) = &onnx.file.proto.graph else { return };
    let index = GraphIndex::new(graph);
    for (layer, _) in onnx.weights.layers.iter().zip(&plan.layers).filter(|(_, mode)| **mode == LayerMode::Static) {
        let node = &graph.node[layer.node];
        let bias = node.input(2).and_then(|bias| index.constant(bias)).and_then(TensorProto::to_floats);
        let input = node.input(0).and_then(|input| activations.get(input));
        let params = onnx.tensor(&layer.weight).and_then(|tensor| weights.get_mut(&tensor));
        let (Some(bias), Some(input), Some(params)) = (bias, input, params) else { continue };
        let channels = params.len();
        for (channel, params) in params.iter_mut().enumerate() {
            let largest = bias.iter().enumerate().filter(|(i, _)| channels == 1 || *i == channel).map(|(_, value)| value.abs());
            params.scale = weight_scale_for_bias(params.scale, input.scale, largest.fold(0.0, f32::max));
        }
    }
}

/// Any parameters of the right number, for a layout before any value is read.
pub(super) fn placeholders(plan: &Plan) -> Chosen {
    let any = Params { scale: 1.0, zero_point: 0 };
    let weights = plan.quantized().filter_map(|tensor| plan.scheme(tensor).map(|scheme| (tensor, vec![any; scheme.layout.groups()])));
    Chosen { weights: weights.collect(), activations: plan.values.values.keys().map(|name| (name.clone(), any)).collect() }
}

/// The codes that activations can have.
pub(super) fn check_activation_codes(codes: CodeType) -> Result<()> {
    match codes.bits() {
        8 => Ok(()),
        _ => Err(Error::Usage(format!("--activations: expected uint8 or int8, found {codes}"))),
    }
}
