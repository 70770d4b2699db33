//! What layers cost: multiply-adds, from the number of values that went through them.

use crate::calibration::stats::Statistics;
use crate::graph::onnx_model::OnnxModel;
use crate::graph::scopes::TOP;
use crate::graph::weights::Layer;
use crate::model::Model;
use crate::plan::{LayerMode, Plan};
use std::collections::BTreeMap;

/// Layers of the top graph with a constant weight, each with the value whose number of elements tells what it costs: what a
/// convolution gives, what others take.
pub(crate) fn counted<'m>(onnx: &'m OnnxModel, plan: &'m Plan) -> impl Iterator<Item = (usize, &'m Layer, &'m str)> {
    let layers = onnx.weights.layers.iter().enumerate().filter(|(_, layer)| layer.scope == TOP);
    layers.filter_map(|(i, layer)| {
        let node = onnx.node(layer);
        let counted = match layer.op.as_str() {
            "Conv" => node.output.first().map(String::as_str),
            "MatMul" | "Gemm" | "ConvTranspose" => node.input(if layer.input == 0 { 1 } else { 0 }),
            _ => None,
        };
        // An activation function that goes gives as many elements as it takes.
        let output = plan.values.outputs.get(&i).map(|output| output.value.as_str());
        Some((i, layer, output.or(counted)?))
    })
}

/// Multiply-adds of each layer, by number, over all samples of `statistics`.
pub(crate) fn of_layers(model: &Model, plan: &Plan, statistics: &Statistics) -> BTreeMap<usize, u64> {
    let Some(onnx) = model.onnx() else { return BTreeMap::new() };
    let layers = counted(onnx, plan).filter_map(|(i, layer, value)| {
        let elements = statistics.activations.get(value)?.values();
        let weight = &model.tensors()[onnx.tensor(&layer.weight)?].info.shape;
        Some((i, elements * multiply_adds(layer, weight)))
    });
    layers.collect()
}

/// The share of these multiply-adds that `plan` has in integers: with activations of 16 bits runtimes compute in float.
pub(crate) fn integer_share(plan: &Plan, costs: &BTreeMap<usize, u64>) -> Option<f64> {
    let is_integer = |layer: usize| match plan.layers[layer] {
        LayerMode::Static => plan.activation_codes.bits() == 8,
        LayerMode::Dynamic => true,
        LayerMode::Keep | LayerMode::WeightOnly => false,
    };
    let (all, integer) =
        costs.iter().fold((0u64, 0u64), |(all, integer), (layer, cost)| (all + cost, integer + if is_integer(*layer) { *cost } else { 0 }));
    (all > 0).then(|| integer as f64 / all as f64)
}

/// Multiply-adds for each element of the counted value.
fn multiply_adds(layer: &Layer, weight: &[usize]) -> u64 {
    let each: usize = match layer.op.as_str() {
        // [out, in / groups, kernel ...], and [in, out / groups, kernel ...]
        "Conv" | "ConvTranspose" => weight.iter().skip(1).product(),
        // The channels of the output.
        _ => weight[layer.axis],
    };
    each as u64
}
