//! CHOOSE: what becomes of every tensor, and why, before any value is read.

mod check;
pub(crate) mod saturation;

pub(crate) use check::declare;

use crate::algorithms::RoundingChoice;
use crate::error::{Error, Result, show_name};
use crate::graph::activations::{self, QuantizedValues};
use crate::graph::index::GraphIndex;
use crate::graph::onnx_model::OnnxModel;
use crate::graph::scopes::TOP;
use crate::graph::weights::Layer;
use crate::method::Method;
use crate::model::{Model, ModelTensor, Role};
use crate::observers::{ObserverChoice, Target};
use crate::qat::TRAINED;
use crate::quant::granularity::GroupLayout;
use crate::quant::kernel::Arithmetic;
use crate::quant::params::{ParamRule, Params};
use crate::quant::saturation::{PairCheck, REDUCED, Saturation};
use crate::quant::scheme::{CodeType, Granularity, Grid};
use crate::recipe::{Mode, Recipe, Resolved, Weights};
use crate::tensor::Dtype;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// How one tensor is quantized.
#[derive(Clone)]
pub struct TensorScheme {
    /// The type of codes.
    pub codes: CodeType,
    /// Which values share a scale, as it was asked for.
    pub granularity: Granularity,
    /// The channel axis.
    pub axis: usize,
    /// Which values share a scale, element by element.
    pub layout: GroupLayout,
    /// How ranges are chosen.
    pub observer: ObserverChoice,
    /// How codes are chosen.
    pub rounding: RoundingChoice,
    /// How ranges become scale and zero point.
    pub rule: ParamRule,
    /// The codes that values are clipped to.
    pub clip: Grid,
    /// How values become codes.
    pub arithmetic: Arithmetic,
    /// How layers of an ONNX model compute with it, where a rule says so.
    pub mode: Option<Mode>,
    /// Scale and zero point of every group, where they were trained and are not observed.
    pub(crate) trained: Option<Arc<[Params]>>,
}

impl TensorScheme {
    /// Whether what a layer's inputs were makes a difference.
    pub(crate) fn looks_at_inputs(&self) -> bool {
        !self.rounding.is_nearest() || self.trained.is_none() && self.observer.looks_at_inputs()
    }

    /// How ranges are chosen, by the name that sidecars give it.
    pub(crate) fn observer_method(&self) -> Method {
        if self.trained.is_some() { Method::new(TRAINED) } else { self.observer.method() }
    }

    /// What observers are told.
    pub fn target(&self) -> Target {
        Target { rule: self.rule, single_batch: true }
    }
}

/// What becomes of one tensor.
#[derive(Clone)]
pub enum Decision {
    /// It becomes codes.
    Quantize(Box<TensorScheme>),
    /// It is copied bit for bit.
    Keep {
        /// Why.
        reason: String,
        /// Whether it is a weight by type and shape, so that a NaN in it is still worth an error.
        is_weight: bool,
    },
}

/// How an operator of an ONNX model computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerMode {
    /// In float, as before.
    Keep,
    /// In float, with a weight made of codes.
    WeightOnly,
    /// In integers, with activations quantized when it runs.
    Dynamic,
    /// In integers, with activations quantized by ranges that are known before.
    Static,
}

/// Decisions for all tensors of a model, in the model's order.
pub struct Plan {
    /// One decision a tensor.
    pub decisions: Vec<Decision>,
    /// What is quantized where no rule says otherwise.
    pub(crate) mode: Mode,
    /// One for each layer of an ONNX model.
    pub(crate) layers: Vec<LayerMode>,
    /// The first layer that takes a tensor, if it is the weight of some.
    first_layers: HashMap<usize, usize>,
    /// The values of an ONNX model that are quantized with known ranges.
    pub(crate) values: QuantizedValues,
    /// The codes of activations.
    pub(crate) activation_codes: CodeType,
    /// Whether their zero points are in the middle of the codes.
    pub(crate) symmetric_activations: bool,
    /// The pairs that are checked of weights of an ONNX model, by tensor.
    pub(crate) pairs: BTreeMap<usize, PairCheck>,
    /// What is done about them.
    pub(crate) saturation: Saturation,
    /// Whether biases of layers that compute in integers stay floats.
    pub(crate) float_biases: bool,
}

impl Plan {
    /// Decides for every tensor of `model` by `recipe`.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if a pattern matches no tensor, an observer does not exist or an axis is out of bounds.
    pub fn new(model: &Model, recipe: &Recipe) -> Result<Self> {
        check::check_matches(model, recipe)?;
        for method in recipe.observers_in_use() {
            recipe.observers.choose(method)?;
        }
        RoundingChoice::new(&recipe.settings.rounding)?;
        let mut decisions = Vec::with_capacity(model.tensors().len());
        for tensors in model.tensors().chunks(RESOLVED_AT_ONCE) {
            for resolved in recipe.resolve_all(tensors.len(), |rule, tensor| tensors[tensor].is_subject_of(rule)) {
                decisions.push(decide(model, decisions.len(), recipe, resolved)?);
            }
        }
        let mut plan = Plan {
            decisions,
            mode: recipe.mode,
            layers: Vec::new(),
            first_layers: HashMap::new(),
            values: QuantizedValues::default(),
            activation_codes: recipe.activations.dtype,
            symmetric_activations: recipe.activations.symmetric,
            pairs: BTreeMap::new(),
            saturation: recipe.saturation.unwrap_or(Saturation::Report),
            float_biases: recipe.activations.float_biases,
        };
        plan.choose_modes(model, recipe.mode);
        if plan.saturation == Saturation::SevenBit {
            plan.reduce_ranges(model);
        }
        Ok(plan)
    }

    /// Decides how each layer of an ONNX model computes.
    pub(crate) fn choose_modes(&mut self, model: &Model, mode: Mode) {
        let Some(onnx) = model.onnx() else { return };
        self.layers = onnx.weights.layers.iter().map(|layer| self.layer_mode(model, onnx, layer, mode)).collect();
        for (number, layer) in onnx.weights.layers.iter().enumerate() {
            if let Some(tensor) = onnx.tensor(&layer.weight) {
                self.first_layers.entry(tensor).or_insert(number);
            }
        }
        // Both weights of a recurrent layer, or none.
        for (i, layer) in onnx.weights.layers.iter().enumerate() {
            let is_recurrent = self.layers[i] == LayerMode::Dynamic && layer.op == "LSTM";
            let same = |other: &usize| {
                let other = &onnx.weights.layers[*other];
                other.scope == layer.scope && other.node == layer.node
            };
            let pair: Vec<usize> = [i.wrapping_sub(1), i, i + 1].into_iter().filter(|j| *j < self.layers.len()).filter(same).collect();
            if is_recurrent && (pair.len() != 2 || pair.iter().any(|j| self.layers[*j] != LayerMode::Dynamic)) {
                self.layers[i] = LayerMode::WeightOnly;
            }
        }
        if let Some(graph) = &onnx.file.proto.graph {
            self.values = activations::find(onnx, &self.layers, &GraphIndex::new(graph));
        }
    }

    /// Gives int8 weights that are multiplied in integers codes of 7 bits.
    fn reduce_ranges(&mut self, model: &Model) {
        let Some(onnx) = model.onnx() else { return };
        for (number, layer) in onnx.weights.layers.iter().enumerate() {
            let tensor = onnx.tensor(&layer.weight).filter(|tensor| saturation::multiplies_in_pairs(self, number, *tensor));
            if let Some(Decision::Quantize(scheme)) = tensor.map(|tensor| &mut self.decisions[tensor]) {
                scheme.rule.grid = REDUCED;
                scheme.clip = REDUCED;
            }
        }
    }

    pub(crate) fn layer_mode(&self, model: &Model, onnx: &OnnxModel, layer: &Layer, mode: Mode) -> LayerMode {
        let Some(tensor) = onnx.tensor(&layer.weight) else { return LayerMode::Keep };
        let Some(scheme) = self.scheme(tensor) else { return LayerMode::Keep };
        let info = &model.tensors()[tensor].info;
        let is_f32 = info.dtype == Dtype::F32 && layer.path.cast_to.is_none();
        let is_int8 = scheme.codes.bits() == 8 && !matches!(scheme.granularity, Granularity::PerGroup(_));
        let node = onnx.node(layer);
        let fits = match layer.op.as_str() {
            // Integer products of stacked matrices take one zero point for each matrix.
            "MatMul" => layer.input == 1 && info.shape.len() == 2,
            "Gemm" => {
                node.int("transA", 0) == 0 && node.float("alpha", 1.0) == 1.0 && (node.float("beta", 1.0) == 1.0 || node.input(2).is_none())
            }
            // ONNX Runtime's operator takes zero points of 0, or of 128.
            "LSTM" => scheme.rule.symmetric,
            _ => false,
        };
        let is_static = layer.scope == TOP && (fits && layer.op != "LSTM" || layer.op == "Conv");
        match scheme.mode.unwrap_or(mode) {
            Mode::Static if is_f32 && is_int8 && is_static => LayerMode::Static,
            // Dynamic products are sums of 32 bits, too.
            Mode::Auto | Mode::Dynamic | Mode::Static if is_f32 && is_int8 && fits && !self.float_biases => LayerMode::Dynamic,
            _ => LayerMode::WeightOnly,
        }
    }

    /// How operators compute with a tensor: the first that takes it, if it is a weight of an ONNX model.
    pub(crate) fn mode_of(&self, model: &Model, tensor: usize) -> Option<&'static str> {
        let onnx = model.onnx()?;
        debug_assert_eq!(onnx.weights.layers.len(), self.layers.len(), "the plan is for this model");
        Some(match self.layers[*self.first_layers.get(&tensor)?] {
            LayerMode::Keep => "float",
            LayerMode::WeightOnly => "weight-only",
            LayerMode::Dynamic => "dynamic",
            LayerMode::Static => "static",
        })
    }

    /// The scheme of a tensor that is quantized.
    pub fn scheme(&self, tensor: usize) -> Option<&TensorScheme> {
        match &self.decisions[tensor] {
            Decision::Quantize(scheme) => Some(scheme),
            Decision::Keep { .. } => None,
        }
    }

    /// The layers of an ONNX model that compute in this way, with their numbers.
    pub(crate) fn layers_of<'m>(&'m self, onnx: &'m OnnxModel, mode: LayerMode) -> impl Iterator<Item = (usize, &'m Layer)> {
        let layers = onnx.weights.layers.iter().enumerate();
        layers.filter(move |(number, _)| self.layers[*number] == mode)
    }

    /// The params of weights that were trained, which are not observed.
    pub(crate) fn trained(&self) -> impl Iterator<Item = (usize, Vec<Params>)> {
        self.quantized().filter_map(|tensor| Some((tensor, self.scheme(tensor)?.trained.as_ref()?.to_vec())))
    }

    /// The tensors that are quantized.
    pub fn quantized(&self) -> impl Iterator<Item = usize> {
        (0..self.decisions.len()).filter(|tensor| self.scheme(*tensor).is_some())
    }
}

/// How many tensors rules are applied to at once.
const RESOLVED_AT_ONCE: usize = 256;

fn decide(model: &Model, tensor: usize, recipe: &Recipe, resolved: Resolved<'_>) -> Result<Decision> {
    let stored = &model.tensors()[tensor];
    let info = &stored.info;
    let asked_for = recipe.include.iter().any(|pattern| stored.is_matched_by(pattern))
        || matches!(resolved.decided_by.and_then(|rule| rule.weights), Some(Weights::Codes(_)));
    if let Some(reason) = unsuitable(stored, asked_for) {
        return Ok(Decision::Keep { reason, is_weight: false });
    }
    if let Some(pattern) = recipe.exclude.iter().find(|pattern| stored.is_matched_by(pattern)) {
        return Ok(Decision::Keep { reason: format!("excluded by {:?}", pattern.as_str()), is_weight: false });
    }
    if !recipe.include.is_empty() && !asked_for {
        return Ok(Decision::Keep { reason: "not matched by --include".into(), is_weight: false });
    }
    if let Some(rule) = resolved.decided_by.filter(|rule| rule.weights == Some(Weights::Keep)) {
        let reason = rule.reason.clone().unwrap_or_else(|| format!("kept by the rule for {}", rule.criteria()));
        return Ok(Decision::Keep { reason, is_weight: false });
    }
    let is_known_weight = matches!(stored.role, Role::Weight { .. });
    if let (Role::Weight { op, .. }, false) = (&stored.role, recipe.op_types.is_empty())
        && !recipe.op_types.iter().any(|wanted| wanted == op)
    {
        return Ok(Decision::Keep { reason: format!("{op} is not among --op-types"), is_weight: false });
    }
    // A small table is looked up, not computed with: codes of it save nothing.
    let is_table = matches!(&stored.role, Role::Weight { op, .. } if op == "Gather");
    if !asked_for && (!is_known_weight || is_table) && (info.elements() as u64) < recipe.min_elements {
        let reason = format!("{} elements, fewer than {}", info.elements(), recipe.min_elements);
        return Ok(Decision::Keep { reason, is_weight: true });
    }
    let settings = resolved.settings;
    let rank = info.shape.len();
    let axis = stored.role.axis().map_or(settings.axis, |axis| axis as i64);
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    let Some(axis) = usize::try_from(axis).ok().filter(|axis| *axis < rank) else {
        let found = format!("axis: expected one of the {rank} dimensions of tensor {}, found {}", show_name(&info.name), settings.axis);
        return Err(Error::Usage(found).with_hint("give such tensors a rule of their own, or --exclude them"));
    };
    if model.onnx().is_none()
        && stored.role.axis().is_some_and(|axis| axis != 0)
        && matches!(settings.granularity, Granularity::PerGroup(_))
    {
        let found = format!("granularity: expected groups along the last axis, tensor {} has channels there", show_name(&info.name));
        return Err(Error::Usage(found).with_hint("give such layers a rule with `granularity = \"per-channel\"`"));
    }
    let convention = settings.convention.unwrap_or_else(|| model.default_convention());
    let rule = ParamRule::new(convention, settings.weights, settings.symmetric, info.dtype);
    let granularity = match settings.granularity {
        // Kernels of convolutions have no long axis to divide.
        Granularity::PerGroup(_) if model.onnx().is_some() && rank != 2 => Granularity::PerChannel,
        // Operators that use it along different axes leave no axis for channels.
        Granularity::PerChannel if matches!(stored.role, Role::Weight { axis: None, .. }) => Granularity::PerTensor,
        granularity => granularity,
    };
    let rule = ParamRule { blocked: matches!(granularity, Granularity::PerGroup(_)), ..rule };
    let rule = if settings.narrow_range && settings.symmetric { rule.narrow() } else { rule };
    Ok(Decision::Quantize(Box::new(TensorScheme {
        codes: settings.weights,
        granularity,
        axis,
        layout: match (model.onnx(), granularity) {
            // Along what a product sums over.
            (Some(_), Granularity::PerGroup(size)) => GroupLayout::blocks(&info.shape, block_axis(rank, axis), size),
            (_, granularity) => GroupLayout::new(&info.shape, granularity, axis),
        },
        observer: recipe.observers.choose(&settings.observer)?,
        rounding: RoundingChoice::new(&settings.rounding)?,
        rule,
        clip: rule.clip(settings.weights),
        arithmetic: Arithmetic::of(convention, info.dtype),
        mode: settings.mode,
        trained: None,
    })))
}

/// The axis of blocks of an ONNX weight: of matrices the one that is not the channels', else the last.
pub(crate) fn block_axis(rank: usize, channels: usize) -> usize {
    if channels + 1 == rank { rank.saturating_sub(2) } else { rank - 1 }
}

/// Why a tensor is not a weight that could be quantized, if it is not.
pub(crate) fn unsuitable(tensor: &ModelTensor, asked_for: bool) -> Option<String> {
    let info = &tensor.info;
    let dtype = info.dtype;
    if let Role::Other { reason } = &tensor.role {
        return Some(reason.clone());
    }
    if !dtype.is_decodable() && dtype.kind() == "float" {
        return Some(format!("float dtype {dtype} is not converted"));
    }
    if !dtype.is_decodable() {
        let note = if dtype.bits() == 8 && dtype.kind() == "integer" { ", perhaps quantized already" } else { "" };
        return Some(format!("{} dtype {dtype}{note}", dtype.kind()));
    }
    if info.shape.contains(&0) {
        return Some("no elements".into());
    }
    if info.shape.len() < 2 {
        return Some(format!("rank {}", info.shape.len()));
    }
    (dtype.is_fp8() && !asked_for).then(|| format!("{dtype} has 8 bits already; --include it to quantize"))
}
