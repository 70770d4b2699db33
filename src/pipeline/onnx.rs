//! What an ONNX model needs besides: the operators' version that the output's nodes take, ranges of activations, and
//! weight scales that leave room for biases.

use super::Request;
use crate::calibration::engine::{self, EngineChoice};
use crate::calibration::observe::{Watch, observe as observe_samples};
use crate::calibration::ranges::{Choice, Ranges};
use crate::calibration::samples::{InputSpec, SampleLimits, SampleSource, Samples, drawn, list_files};
use crate::calibration::stats::{self, ActivationStats, ModelIdentity, Statistics};
use crate::calibration::tables::RangeTable;
use crate::error::{Error, Result, show_name, show_path};
use crate::formats::onnx::proto::{NodeProto, TensorProto};
use crate::formats::onnx::tensor::element_type;
use crate::formats::{self, ReadOptions};
use crate::graph::activations::RangeSource;
use crate::graph::given;
use crate::graph::index::GraphIndex;
use crate::graph::names::Names;
use crate::graph::onnx_model::{OnnxModel, into_model};
use crate::graph::prepare::{PrepareOptions, prepare};
use crate::graph::scopes::{TOP, scopes};
use crate::graph::version::raise_opset;
use crate::graph::weights::Layer;
use crate::lint::{self, NodeVerdict};
use crate::model::Model;
use crate::observers::ObserverChoice;
use crate::outputs::document::{ActivationRecord, CalibrationRecord};
use crate::outputs::onnx::rewrite::{Chosen, ParamsOf};
use crate::outputs::onnx::static_qdq::weight_scale_for_bias;
use crate::outputs::{Output, QuantizedGraph};
use crate::plan::{LayerMode, Plan};
use crate::qat;
use crate::quant::params::{Params, Range};
use crate::quant::scheme::{Granularity, Grid};
use crate::recipe::{Mode, Recipe, Weights};
use crate::sensitivity::{self, DEFAULT_MIN_SQNR_DB, Findings, Search, Setup, cost};
use crate::stream::{Progress, observe};
use crate::tensor::Dtype;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

/// The version that has DynamicQuantizeLinear.
const DYNAMIC: i64 = 11;

/// The version whose DequantizeLinear takes one scale a channel.
const PER_AXIS: i64 = 13;

/// The version whose DequantizeLinear makes F16.
const HALF: i64 = 19;

/// The version whose DequantizeLinear takes blocks, and codes of four and of sixteen bits.
const BLOCKED: i64 = 21;

/// Where statistics of activations come from.
#[derive(Clone, Debug, Default)]
pub struct CalibrationRequest {
    /// Samples.
    pub samples: SampleSource,
    /// Files of statistics.
    pub stats: Vec<PathBuf>,
    /// A file of ranges, for an ONNX model: a calibration table of ONNX Runtime, or a calibration cache of TensorRT.
    pub ranges: Option<PathBuf>,
    /// Most samples that are used.
    pub limit: Option<usize>,
    /// Of the samples, every `count`-th from `index` on: `(index, count)`.
    pub part: Option<(usize, usize)>,
    /// Bounds of the readers of samples.
    pub limits: SampleLimits,
    /// What runs the model.
    pub engine: EngineChoice,
    /// Whether recorded inputs that belong to no layer of a checkpoint are left out.
    pub ignore_unused: bool,
}

impl CalibrationRequest {
    /// Whether there is nothing that tells more than ranges do.
    pub fn is_empty(&self) -> bool {
        self.samples.is_empty() && self.stats.is_empty()
    }

    /// The samples, as inputs of the model.
    ///
    /// # Errors
    ///
    /// As [`Samples::of`].
    pub(super) fn open(&self, onnx: &OnnxModel) -> Result<Samples> {
        Samples::of(&self.samples, &inputs(onnx), self.limit, self.part, &self.limits)
    }

    /// The files of statistics, which are of the model.
    ///
    /// # Errors
    ///
    /// As [`Statistics::read`] and [`Statistics::check_model`].
    pub(super) fn read_stats(&self, model: &Model) -> Result<Vec<Statistics>> {
        let parts = self.stats.iter().map(|path| Statistics::read(path)).collect::<Result<Vec<_>>>()?;
        if !parts.is_empty() {
            let identity = identity(model);
            parts.iter().try_for_each(|part| part.check_model(&identity))?;
        }
        Ok(parts)
    }

    /// Every file that is read.
    pub(super) fn files(&self) -> Result<Vec<PathBuf>> {
        let (samples, _) = list_files(self.samples.files())?;
        Ok(samples.into_iter().chain(self.stats.iter().chain(&self.ranges).cloned()).collect())
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
    let is_wide = recipe.mode == Mode::Static && recipe.activations.dtype.bits() > 8;
    let needed = match settings.granularity {
        _ if is_blocked || is_wide => BLOCKED,
        _ if is_half => HALF,
        Granularity::PerTensor if recipe.mode != Mode::Static => DYNAMIC,
        _ => PER_AXIS,
    };
    let has_pairs = qat::onnx::has_pairs(&model);
    let mut onnx = model.into_onnx().expect("it is an ONNX model");
    let custom = recipe.layers.clone();
    let is_stripped = has_pairs && recipe.ignore_qat;
    if let (true, Some(mut graph)) = (is_stripped, onnx.file.proto.graph.clone()) {
        let mut names = Names::of(&onnx.file.proto);
        qat::onnx::strip(&mut graph, &mut names).map_err(|e| Error::malformed(&onnx.file.path, e))?;
        onnx.file.proto.graph = Some(graph);
    }
    if is_stripped || !custom.is_empty() {
        onnx = into_model(onnx.file, custom.clone())?.into_onnx().expect("it is still one");
    }
    if onnx.weights.layers.is_empty() && (is_stripped || !has_pairs) {
        return into_model(onnx.file, custom);
    }
    let path = onnx.file.path.clone();
    // First what does not depend on the version, as there is less to convert then.
    let before = weights_of_nodes(&onnx);
    prepare(&mut onnx.file.proto, PrepareOptions { fold_affine: recipe.mode == Mode::Static, ..PrepareOptions::default() });
    raise_opset(&mut onnx.file.proto, needed).map_err(|e| Error::malformed(&path, e))?;
    let model = into_model(onnx.file, custom)?;
    let after = model.onnx().map(weights_of_nodes).unwrap_or_default();
    let renamed = after.into_iter().filter_map(|(node, (tensor, name))| {
        let (_, former) = before.get(&node).filter(|(_, former)| *former != name)?;
        Some((tensor?, former.clone()))
    });
    let renamed = renamed.collect();
    Ok(model.with_former_names(&renamed))
}

/// The model as its file has it, with its constants at hand, for a form that keeps the graph. Other kinds of models as they are.
pub(super) fn as_given(model: Model, recipe: &Recipe, options: &ReadOptions) -> Result<Model> {
    let Some(onnx) = model.onnx() else { return Ok(model) };
    let mut file = formats::onnx::read_again(&onnx.file, options)?;
    file.given = Some(Box::new(file.proto.clone()));
    given::lift(&mut file.proto);
    into_model(file, recipe.layers.clone())
}

/// Tensor and name of the weights of every node that takes one, by graph, node (its name, or its output's) and input.
fn weights_of_nodes(onnx: &OnnxModel) -> HashMap<(usize, String, usize), (Option<usize>, String)> {
    let entry = |layer: &Layer| {
        let node = onnx.node(layer);
        ((layer.scope, node.label().to_owned(), layer.input), (onnx.tensor(&layer.weight), onnx.weights.shown[&layer.weight].clone()))
    };
    onnx.weights.layers.iter().map(entry).collect()
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
    observer: &ObserverChoice,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Statistics> {
    if !calibration.stats.is_empty() {
        return stats::merge(calibration.read_stats(model)?);
    }
    let identity = identity(model);
    if calibration.samples.is_empty() && calibration.ranges.is_some() {
        return Ok(Statistics::new(identity, BTreeMap::new()));
    }
    let onnx = model.onnx().ok_or_else(|| Error::Usage("--samples: expected an ONNX model, found another".into()))?;
    let samples = calibration.open(onnx)?;
    // Also those that have the range of another: it may stay in float, and then they need their own.
    let observed = plan.values.values.iter().filter(|(_, source)| !matches!(source, RangeSource::Known(_))).map(|(name, _)| name.clone());
    let counted = cost::counted(onnx, plan).map(|(_, _, value)| value.to_owned());
    let watch = Watch {
        path: model.path(),
        model: identity,
        values: observed.chain(counted).collect::<BTreeSet<String>>().into_iter().collect(),
        averaging_weight: observer.averaging_weight(),
    };
    let engine = engine::load_model(calibration.engine, model.path(), onnx.file.proto.clone(), &engine::Options::default())?;
    progress.begin_samples(samples.len() as u64);
    observe_samples(&*engine, &samples, watch, threads, progress)
}

/// Operators that only quantized models have.
fn is_of_quantized_models(node: &NodeProto) -> bool {
    const NAMES: &[&str] = &["QuantizeLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits", "GatherBlockQuantized"];
    NAMES.contains(&node.op_type.as_str()) || node.op_type.starts_with("QLinear") || node.op_type.starts_with("DynamicQuantize")
}

/// Whether a model quantizes values itself, with parameters that are taken over.
pub(super) fn is_trained(model: &Model, recipe: &Recipe) -> bool {
    !recipe.ignore_qat && qat::onnx::has_pairs(model)
}

/// What there is to know of a model that says itself that it is quantized.
pub(super) fn already_quantized(model: &Model, recipe: &Recipe) -> Option<String> {
    if qat::onnx::has_pairs(model) {
        return recipe
            .ignore_qat
            .then(|| "pairs of QuantizeLinear and DequantizeLinear are taken out, and ranges observed anew".to_owned());
    }
    let scopes = scopes(&model.onnx()?.file.proto);
    let nodes = scopes.iter().flat_map(|scope| &scope.graph.node).filter(|node| is_of_quantized_models(node));
    let types: BTreeSet<&str> = nodes.map(|node| node.op_type.as_str()).collect();
    let types: Vec<&str> = types.into_iter().collect();
    (!types.is_empty()).then(|| format!("the model is quantized already, at least in part: it has {}", types.join(", ")))
}

/// What a sidecar records of values that are quantized.
pub(super) fn records(choices: &BTreeMap<String, Choice>, recipe: &Recipe) -> BTreeMap<String, ActivationRecord> {
    let dtype = recipe.activations.dtype;
    let record = |choice: &Choice| {
        let Choice { observer, range: Range { min, max }, params: Params { scale, zero_point } } = choice.clone();
        ActivationRecord { dtype, max, min, observer, scale, zero_point }
    };
    choices.iter().map(|(name, choice)| (name.clone(), record(choice))).collect()
}

/// What a sidecar records of the samples and of the file of ranges.
pub(super) fn calibration_record(statistics: &Statistics, request: &CalibrationRequest, table: Option<&RangeTable>) -> CalibrationRecord {
    let samples = Some(statistics.samples() as u64).filter(|samples| *samples > 0);
    let blake3 = samples.map(|_| statistics.samples_hash().to_hex().to_string());
    let synthetic = request.stats.is_empty() && request.samples.drawn().is_some();
    CalibrationRecord { blake3, ranges: table.map(RangeTable::record), samples, synthetic }
}

/// Samples are there and are the model's inputs, and statistics are of the model.
pub(super) fn check_calibration(model: &Model, calibration: &CalibrationRequest) -> Result<()> {
    let Some(onnx) = model.onnx() else { return Ok(()) };
    if !calibration.samples.is_empty() {
        calibration.open(onnx)?;
    }
    calibration.read_stats(model).map(drop)
}

/// What is to be noted of samples that are random.
pub(super) fn note_drawn(model: &Model, calibration: &CalibrationRequest) -> Option<String> {
    Some(drawn::note(calibration.samples.drawn()?, &inputs(model.onnx()?)))
}

/// The file of ranges, if there is one, and what is to be noted of it.
///
/// # Errors
///
/// As [`RangeTable::read`]; [`Error::Usage`] if the model has no graph.
pub(super) fn open_table(model: &Model, request: &Request) -> Result<(Option<RangeTable>, Option<String>)> {
    let Some(path) = &request.calibration.ranges else { return Ok((None, None)) };
    let onnx = model.onnx().ok_or_else(|| Error::Usage("--ranges: expected an ONNX model, found another".into()))?;
    let table = RangeTable::read(path)?;
    // As its file has it, with the values that are gone by now.
    let note = table.note_unknown(&formats::onnx::read_again(&onnx.file, &request.read)?.proto);
    Ok((Some(table), note))
}

/// **Chooses** by measurement which layers are spared so that every output keeps enough signal: the recipe to go on with
/// and what was found, or why nothing could be.
pub(super) fn search(
    model: &Model,
    plan: &Plan,
    request: &Request,
    statistics: &Statistics,
    ranges: &Ranges<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Option<(Recipe, Result<Findings, String>)>> {
    let (recipe, calibration) = (&request.recipe, &request.calibration);
    let min_sqnr_db = recipe.min_sqnr.unwrap_or(DEFAULT_MIN_SQNR_DB);
    let (Some(onnx), true) = (model.onnx(), min_sqnr_db > 0.0 || request.max_drop.is_some()) else { return Ok(None) };
    if calibration.samples.is_empty() {
        let reason = "without samples layers were not measured, and all of them run in integers: --samples besides measures them";
        return Ok(Some((recipe.clone(), Err(reason.to_owned()))));
    }
    let samples = calibration.open(onnx)?;
    // Each thread has the model, and all of them the weights as they are quantized.
    let affordable = (request.max_memory / model.bytes().max(1)).saturating_sub(1) as usize;
    if affordable == 0 {
        let needed = crate::report::terminal::bytes(2 * model.bytes());
        let reason = format!("layers were not measured, and all of them run in integers: that takes --max-memory {needed}");
        return Ok(Some((recipe.clone(), Err(reason))));
    }
    let threads = threads.min(affordable);
    let setup = Setup { model, onnx, samples: &samples, limit: samples.len(), engine: calibration.engine, threads };
    let weights = observe::all_params(model, plan, threads)?;
    let found = sensitivity::search(
        &Search {
            setup,
            recipe,
            plan,
            weights: &weights,
            statistics,
            min_sqnr_db,
            max_drop: request.max_drop,
            ranges,
            plan_of: &|recipe| super::plan_of(model, recipe),
        },
        progress,
    )?;
    let (recipe, findings) = found;
    Ok(Some((Recipe { min_sqnr: Some(0.0), ..recipe }, findings)))
}

/// Codes of activations that were observed.
pub(super) struct ObservedCodes<'a> {
    pub(super) model: &'a Model,
    pub(super) plan: &'a Plan,
    pub(super) activations: &'a BTreeMap<String, Params>,
    pub(super) observed: &'a BTreeMap<String, ActivationStats>,
}

impl ObservedCodes<'_> {
    /// The smallest and the largest that a layer takes, as unsigned bytes, if they have known parameters and were observed.
    pub(super) fn of(&self, layer: &Layer) -> Option<[i32; 2]> {
        let ObservedCodes { model, plan, activations, observed } = *self;
        let node = model.onnx().filter(|_| layer.scope == TOP)?.node(layer);
        let value = node.input(0)?;
        let (params, Range { min, max }) = (activations.get(value)?, observed.get(value)?.extent());
        let Grid { qmin, qmax } = plan.activation_codes.grid();
        // What a convolution pads with is 0.
        let (min, max) = if layer.op == "Conv" { (min.min(0.0), max.max(0.0)) } else { (min, max) };
        let code = |value: f32| {
            let code = f64::from((value / params.scale).round_ties_even()) + f64::from(params.zero_point);
            code.clamp(f64::from(qmin), f64::from(qmax)) as i32 - qmin
        };
        Some([code(min), code(max)])
    }
}

/// Raises weight scales where a bias, whose scale is that of the product, would not fit 32 bits; trained ones stay.
pub(super) fn leave_room_for_biases(model: &Model, plan: &Plan, activations: &BTreeMap<String, Params>, weights: &mut ParamsOf) {
    let Some(onnx) = model.onnx() else { return };
    let Some(graph) = &onnx.file.proto.graph else { return };
    let index = GraphIndex::new(graph);
    let is_trained = |tensor: usize| plan.scheme(tensor).is_some_and(|scheme| scheme.trained.is_some());
    for (layer, _) in onnx.weights.layers.iter().zip(&plan.layers).filter(|(_, mode)| **mode == LayerMode::Static) {
        let node = &graph.node[layer.node];
        let bias = node.input(2).and_then(|bias| index.constant(bias)).and_then(TensorProto::to_floats);
        let input = node.input(0).and_then(|input| activations.get(input));
        let params = onnx.tensor(&layer.weight).filter(|tensor| !is_trained(*tensor)).and_then(|tensor| weights.get_mut(&tensor));
        let (Some(bias), Some(input), Some(params)) = (bias, input, params) else { continue };
        let channels = params.len();
        for (channel, params) in params.iter_mut().enumerate() {
            let largest = bias.iter().enumerate().filter(|(i, _)| channels == 1 || *i == channel).map(|(_, value)| value.abs());
            params.scale = weight_scale_for_bias(params.scale, input.scale, largest.fold(0.0, f32::max));
        }
    }
}

/// Any parameters of the right number, for a layout before any value is read.
pub(super) fn placeholders(model: &Model, plan: &Plan) -> Chosen {
    let any = Params { scale: 1.0, zero_point: 0 };
    let weights = plan.quantized().filter_map(|tensor| plan.scheme(tensor).map(|scheme| (tensor, vec![any; scheme.layout.groups()])));
    let layers = plan.quantized().filter_map(|tensor| super::checkpoint::layer_of(&model.tensors()[tensor].info.name));
    // Such that activation functions go, as most do.
    let smallest = Params { scale: f32::MIN_POSITIVE, zero_point: plan.activation_codes.grid().qmin };
    let values = plan.values.values.keys().chain(plan.values.given.keys()).map(|name| (name.clone(), smallest));
    match model.onnx() {
        None => Chosen { activations: layers.map(|name| (name.to_owned(), any)).collect(), ..Chosen::default() },
        Some(_) => Chosen { weights: weights.collect(), activations: values.collect() },
    }
}

/// Whether weights and activations can have the codes that were asked for, in this form.
pub(super) fn check_codes(recipe: &Recipe, form: &dyn Output) -> Result<()> {
    let rules = recipe.rules.iter().filter_map(|rule| match rule.weights {
        Some(Weights::Codes(codes)) => Some(codes),
        _ => None,
    });
    if let Some(codes) = [recipe.settings.weights].into_iter().chain(rules).find(|codes| codes.bits() > 8) {
        return Err(Error::Usage(format!("weights: expected int8, uint8, int4 or uint4, found {codes}")));
    }
    let codes = recipe.activations.dtype;
    match codes.bits() {
        8 => Ok(()),
        16 if form.name() != QOPERATOR => Ok(()),
        16 => Err(Error::Usage(format!("--activations: expected uint8 or int8 with --format {QOPERATOR}, found {codes}"))),
        _ => Err(Error::Usage(format!("--activations: expected uint8, int8, uint16 or int16, found {codes}"))),
    }
}

/// The form whose operators take codes of 8 bits only.
pub(super) const QOPERATOR: &str = "qoperator";

/// Whether layers that are to compute in integers will, by the rules of a target: what is to be noted if it need not be so, and what becomes
/// of all nodes.
///
/// # Errors
///
/// [`Error::Check`] if one of them will not and the target is a certain one.
pub(super) fn check_graph(graph: &QuantizedGraph, target: &str, output: &Path) -> Result<(Option<String>, Vec<NodeVerdict>)> {
    let rules = if target == lint::ANY { lint::LINT_TARGETS[0] } else { target };
    let verdicts = lint::judge(&graph.proto, rules);
    let is_ours = |node: &&NodeVerdict| !node.is_weight_only && node.codes.iter().any(|codes| graph.for_integers.contains(codes));
    let ours: Vec<&NodeVerdict> = verdicts.iter().filter(is_ours).collect();
    let failing: Vec<&NodeVerdict> = ours.iter().filter(|node| node.fails()).copied().collect();
    let Some((node, finding)) = failing.first().and_then(|node| Some((*node, node.findings.first()?))) else { return Ok((None, verdicts)) };
    let (name, count, fix) = (show_name(&node.node).to_string(), failing.len(), finding.fix);
    let what = format!("{count} of {} layers in integers, first {name}: {}: {}", ours.len(), finding.rule, finding.found);
    if target == lint::ANY {
        return Ok((Some(format!("ONNX Runtime will compute in float, or refuse, {what} (qtool lint)")), verdicts));
    }
    let found = format!("{}: expected nodes that {target} computes in integers, found others for {what}", show_path(output));
    Err(Error::Check(found).with_hint(format!("{fix}; --no-lint writes it all the same")))
}
