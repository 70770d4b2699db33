//! Which values of a graph are quantized when operators run in integers, and where ranges can be known or shared.
//!
//! A convolution runs in integers only between quantized values, so its output is quantized for everybody who takes it;
//! a Relu, or a Clip at 0, that is its only consumer is done by the codes themselves, and goes, if their range ends at 0. A
//! matrix product needs a quantized input only, and gives floats. Everything else computes in float: what normalizes,
//! gates or attends loses most by eight bits and gains least.
//!
//! Where a model quantizes values itself, these have the parameters that it gives them, and are not quantized again.
//!
//! Operators that only move data keep the parameters of what they move, so that quantizing it again changes nothing.

use super::index::GraphIndex;
use super::onnx_model::OnnxModel;
use super::pairs::{self, Given};
use super::scopes::TOP;
use super::weights::Layer;
use crate::plan::LayerMode;
use crate::quant::params::Range;
use std::collections::{BTreeMap, BTreeSet};

/// Operators whose output holds values of their first input and nothing else (or, at the border, zeros and smallest values).
pub(crate) const MOVES_DATA: &[&str] =
    &["MaxPool", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Expand", "Tile", "Identity"];

/// Operators whose results are in [0, 1] whatever comes in.
const IN_UNIT_RANGE: &[&str] = &["Softmax", "Sigmoid", "HardSigmoid"];

/// Their range.
const UNIT: Range = Range { min: 0.0, max: 1.0 };

/// What is quantized.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct QuantizedValues {
    /// Every value that is quantized, with how its range is found.
    pub values: BTreeMap<String, RangeSource>,
    /// For layers whose output is quantized, by number: what that output is.
    pub outputs: BTreeMap<usize, LayerOutput>,
    /// Inputs of layers that the model makes of codes itself.
    pub given: BTreeMap<String, Given>,
    /// For layers whose output the model quantizes itself, by number: the node that does.
    pub given_outputs: BTreeMap<usize, usize>,
}

/// Where the range of a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RangeSource {
    /// Samples.
    Observed,
    /// It is the range of another value, whose elements it has.
    SameAs(String),
    /// It is known whatever comes in.
    Known(Range),
}

impl RangeSource {
    /// The value whose range `name` has: another one, or itself.
    pub(crate) fn origin<'a>(&'a self, name: &'a str) -> &'a str {
        if let RangeSource::SameAs(origin) = self { origin } else { name }
    }
}

/// The quantized output of a layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LayerOutput {
    /// The value: the layer's own output, or that of the activation function that goes.
    pub value: String,
    /// The node that goes, if codes begin at 0: Relu, or Clip from 0.
    pub absorbed: Option<usize>,
    /// The largest value that it lets through, of a Clip that has one.
    pub limit: Option<f32>,
}

/// Finds what has to be quantized for one layer of the top graph to run in integers.
pub(crate) fn find_for(onnx: &OnnxModel, index: &GraphIndex<'_>, layer: &Layer) -> QuantizedValues {
    let is_it = |other: &Layer| (other.scope, other.node, other.input) == (layer.scope, layer.node, layer.input);
    let modes: Vec<LayerMode> =
        onnx.weights.layers.iter().map(|other| if is_it(other) { LayerMode::Static } else { LayerMode::Keep }).collect();
    find(onnx, &modes, index)
}

/// Finds what has to be quantized for the layers of the top graph that are to run in integers.
pub(crate) fn find(onnx: &OnnxModel, modes: &[LayerMode], index: &GraphIndex<'_>) -> QuantizedValues {
    let mut found = QuantizedValues::default();
    let layers = || onnx.weights.layers.iter().enumerate().filter(|(i, layer)| modes[*i] == LayerMode::Static && layer.scope == TOP);
    for (i, layer) in layers() {
        let node = &index.graph.node[layer.node];
        if let Some(input) = node.input(0) {
            match pairs::given(index, input) {
                Some(given) => drop(found.given.insert(input.to_owned(), given)),
                None => drop(found.values.insert(input.to_owned(), RangeSource::Observed)),
            }
        }
        if let Some(quantize) = pairs::only_quantized(index, &node.output[0]) {
            found.given_outputs.insert(i, quantize);
        } else if layer.op == "Conv" {
            let output = layer_output(index, &node.output[0]);
            found.values.insert(output.value.clone(), RangeSource::Observed);
            found.outputs.insert(i, output);
        }
    }
    let quantized_by_layers: BTreeSet<&str> = found.outputs.values().map(|output| output.value.as_str()).collect();
    let mut sources = BTreeMap::new();
    for value in found.values.keys().filter(|value| !quantized_by_layers.contains(value.as_str())) {
        if let Some((_, node)) = index.producer(value).filter(|(_, node)| node.is_standard()) {
            if IN_UNIT_RANGE.contains(&node.op_type.as_str()) {
                sources.insert(value.clone(), RangeSource::Known(UNIT));
            } else if let Some(origin) = moved_from(index, value, &quantized_by_layers) {
                sources.insert(value.clone(), RangeSource::SameAs(origin));
            }
        }
    }
    found.values.extend(sources);
    found
}

/// The value that a layer's output becomes before it is quantized.
fn layer_output(index: &GraphIndex<'_>, output: &str) -> LayerOutput {
    let unchanged = LayerOutput { value: output.to_owned(), absorbed: None, limit: None };
    let Some(only) = index.only_use(output) else { return unchanged };
    let node = &index.graph.node[only.node];
    let number = |input: usize| {
        let values = node.input(input).and_then(|name| index.constant(name)).and_then(|tensor| tensor.to_floats())?;
        if let [number] = values[..] { Some(number) } else { None }
    };
    let limit = match node.op_type.as_str() {
        "Relu" if node.is_standard() => None,
        "Clip" if node.is_standard() && only.input == 0 && number(1) == Some(0.0) => match (node.input(2), number(2)) {
            (Some(_), None) => return unchanged,
            (_, limit) => limit,
        },
        _ => return unchanged,
    };
    LayerOutput { value: node.output[0].clone(), absorbed: Some(only.node), limit }
}

/// The value quantized by a layer whose elements `value` has, if only data is moved in between.
fn moved_from(index: &GraphIndex<'_>, value: &str, quantized: &BTreeSet<&str>) -> Option<String> {
    let mut value = value;
    while !quantized.contains(value) {
        let (_, node) = index.producer(value)?;
        if !node.is_standard() || !MOVES_DATA.contains(&node.op_type.as_str()) {
            return None;
        }
        value = node.input(0)?;
    }
    Some(value.to_owned())
}
