//! Weights are quantized as they were trained; layers run in integers where their input and output are quantized too.

use super::TrainedGraph;
use crate::error::{Result, list_names};
use crate::formats::onnx::proto::NodeProto;
use crate::graph::activations::{self, RangeSource};
use crate::graph::index::GraphIndex;
use crate::graph::onnx_model::OnnxModel;
use crate::graph::pairs;
use crate::graph::scopes::TOP;
use crate::model::Model;
use crate::plan::{Decision, LayerMode, Plan};
use crate::quant::granularity::GroupLayout;
use crate::quant::kernel::Arithmetic;
use crate::quant::params::{ParamRule, Range};
use crate::quant::scheme::{Convention, Granularity};
use crate::recipe::Mode;
use crate::stream::observe;
use std::collections::{BTreeMap, HashMap};

impl TrainedGraph {
    pub(in crate::qat) fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    /// Quantizes the weights of `plan` as they were trained, apart from those that are kept in float, and no others; layers
    /// whose input or output has no range run in float. `is_calibrated` if samples or statistics will tell ranges.
    ///
    /// Returns what the user is told.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NonFinite`] if a weight holds NaN or infinities.
    pub(in crate::qat) fn apply(&self, model: &Model, plan: &mut Plan, is_calibrated: bool) -> Result<Vec<String>> {
        let onnx = model.onnx().expect("the graph was of an ONNX model");
        let tensors = self.weights.iter().filter_map(|(name, weight)| Some((onnx.tensor(&(TOP, name.clone()))?, weight)));
        let weights: HashMap<usize, _> = tensors.collect();
        for (tensor, decision) in plan.decisions.iter_mut().enumerate() {
            let Decision::Quantize(scheme) = decision else { continue };
            let Some(weight) = weights.get(&tensor) else {
                let reason = "trained in float: no QuantizeLinear or DequantizeLinear".to_owned();
                *decision = Decision::Keep { reason, is_weight: false };
                continue;
            };
            observe::check_finite(model, tensor)?;
            let info = &model.tensors()[tensor].info;
            let middle = if weight.codes.is_signed() { 0 } else { 1 << (weight.codes.bits() - 1) };
            let symmetric = weight.params.iter().all(|params| params.zero_point == middle);
            scheme.codes = weight.codes;
            scheme.granularity = if weight.axis.is_some() { Granularity::PerChannel } else { Granularity::PerTensor };
            scheme.axis = weight.axis.unwrap_or(scheme.axis);
            scheme.layout = GroupLayout::new(&info.shape, scheme.granularity, scheme.axis);
            scheme.rule = ParamRule { grid: weight.grid, ..ParamRule::new(Convention::Ort, weight.codes, symmetric, info.dtype) };
            scheme.clip = weight.grid;
            scheme.arithmetic = Arithmetic::Divide;
            scheme.trained = Some(weight.params.clone());
        }
        plan.choose_modes(model, Mode::Static);
        Ok(choose_layers(onnx, plan, is_calibrated))
    }
}

/// Lets layers run in float that cannot run in integers, and says which and why.
fn choose_layers(onnx: &OnnxModel, plan: &mut Plan, is_calibrated: bool) -> Vec<String> {
    let Some(graph) = &onnx.file.proto.graph else { return Vec::new() };
    let index = GraphIndex::new(graph);
    let mut reasons: BTreeMap<&'static str, Vec<&str>> = BTreeMap::new();
    for (number, layer) in onnx.weights.layers.iter().enumerate() {
        let reason = match plan.layers[number] {
            LayerMode::Static => why_float(&index, onnx, plan, number, is_calibrated),
            // What training did not do: quantizing activations as they come.
            LayerMode::Dynamic => Some("only weights are quantized where activations have no constant parameters"),
            _ => None,
        };
        if let Some(reason) = reason {
            plan.layers[number] = LayerMode::WeightOnly;
            reasons.entry(reason).or_default().push(&layer.name);
        }
    }
    plan.values = activations::find(onnx, &plan.layers, &index);
    for (value, source) in &mut plan.values.values {
        if let (RangeSource::Observed, Some(range)) = (&source, limited(&index, value).filter(|_| !is_calibrated)) {
            *source = RangeSource::Known(range);
        }
    }
    reasons.into_iter().map(|(reason, layers)| format!("in float, as {reason}: {}", list_names(layers, super::LISTED))).collect()
}

/// Why a layer cannot run in integers.
fn why_float(index: &GraphIndex<'_>, onnx: &OnnxModel, plan: &Plan, number: usize, is_calibrated: bool) -> Option<&'static str> {
    let layer = &onnx.weights.layers[number];
    let node = &index.graph.node[layer.node];
    let scheme = onnx.tensor(&layer.weight).and_then(|tensor| plan.scheme(tensor))?;
    if scheme.granularity == Granularity::PerChannel && scheme.axis != layer.axis {
        return Some("scales of the weight are not along its output channels");
    }
    let output = &node.output[0];
    let quantizes = |value: &str| index.uses(value).iter().any(|place| pairs::is_quantize(&index.graph.node[place.node]));
    if layer.op == "Conv" && pairs::only_quantized(index, output).is_none() && quantizes(output) {
        return Some("the output is quantized in several ways, or is also one of the model's");
    }
    if is_calibrated {
        return None;
    }
    let alone = activations::find_for(index, number, layer);
    let is_known = |(value, source): (&String, &RangeSource)| match source {
        RangeSource::Known(_) => true,
        RangeSource::Observed => limited(index, value).is_some(),
        RangeSource::SameAs(_) => false,
    };
    if !node.input(0).is_some_and(|input| alone.given.contains_key(input) || alone.values.get_key_value(input).is_some_and(is_known)) {
        return Some("no range of the input was trained (--samples PATH calibrates it)");
    }
    match alone.values.iter().all(is_known) {
        true => None,
        false => Some("no range of the output was trained (--samples PATH calibrates it)"),
    }
}

/// The range that a Clip between constants leaves the output of a layer, or will leave it.
fn limited(index: &GraphIndex<'_>, value: &str) -> Option<Range> {
    let is_layer = |node: &NodeProto| ["Conv", "Gemm", "MatMul"].iter().any(|op| node.is(op));
    let (_, producer) = index.producer(value)?;
    let source = if producer.is("Clip") { producer.input(0).filter(|input| index.only_use(input).is_some())? } else { value };
    index.producer(source).filter(|(_, node)| is_layer(node))?;
    let made_by = index.producer(value).map(|(_, node)| node);
    let taken_by = index.only_use(value).map(|only| &index.graph.node[only.node]);
    let mut limits = made_by.into_iter().chain(taken_by).filter(|node| node.is("Clip"));
    let (min, max) = limits.find_map(|node| super::clips::bounds(index, node))?;
    (min.is_finite() && max.is_finite() && min < max).then_some(Range { min, max })
}
