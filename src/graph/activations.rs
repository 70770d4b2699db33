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
use crate::formats::onnx::proto::NodeProto;
use crate::plan::LayerMode;
use crate::quant::params::Range;
use std::collections::{BTreeMap, BTreeSet, HashMap};

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

/// Finds what has to be quantized for one layer of the top graph, of this number, to run in integers.
pub(crate) fn find_for(index: &GraphIndex<'_>, number: usize, layer: &Layer) -> QuantizedValues {
    let mut found = QuantizedValues::default();
    if layer.scope == TOP {
        found.add_layer(index, number, layer);
        found.add_known_ranges(index);
    }
    found
}

/// Finds what has to be quantized for the layers of the top graph that are to run in integers.
pub(crate) fn find(onnx: &OnnxModel, modes: &[LayerMode], index: &GraphIndex<'_>) -> QuantizedValues {
    let mut found = QuantizedValues::default();
    let layers = onnx.weights.layers.iter().enumerate();
    for (number, layer) in layers.filter(|(number, layer)| modes[*number] == LayerMode::Static && layer.scope == TOP) {
        found.add_layer(index, number, layer);
    }
    found.add_known_ranges(index);
    found.add_origins(index);
    found
}

impl QuantizedValues {
    /// Adds what one layer takes and gives.
    fn add_layer(&mut self, index: &GraphIndex<'_>, number: usize, layer: &Layer) {
        let node = &index.graph.node[layer.node];
        if let Some(input) = node.input(0) {
            match pairs::given(index, input) {
                Some(given) => drop(self.given.insert(input.to_owned(), given)),
                None => drop(self.values.insert(input.to_owned(), RangeSource::Observed)),
            }
        }
        if let Some(quantize) = pairs::only_quantized(index, &node.output[0]) {
            self.given_outputs.insert(number, quantize);
        } else if layer.op == "Conv" {
            let output = layer_output(index, &node.output[0]);
            self.values.insert(output.value.clone(), RangeSource::Observed);
            self.outputs.insert(number, output);
        }
    }

    /// Values whose range their operator tells.
    fn add_known_ranges(&mut self, index: &GraphIndex<'_>) {
        let of_layers: BTreeSet<&str> = self.outputs.values().map(|output| output.value.as_str()).collect();
        let is_known = |node: &NodeProto| node.is_standard() && IN_UNIT_RANGE.contains(&node.op_type.as_str());
        for (value, source) in self.values.iter_mut().filter(|(value, _)| !of_layers.contains(value.as_str())) {
            if index.producer(value).is_some_and(|(_, node)| is_known(node)) {
                *source = RangeSource::Known(UNIT);
            }
        }
    }

    /// Values that have the elements of outputs of layers.
    fn add_origins(&mut self, index: &GraphIndex<'_>) {
        let of_layers: BTreeSet<&str> = self.outputs.values().map(|output| output.value.as_str()).collect();
        let names: Vec<String> = self.values.keys().filter(|value| !of_layers.contains(value.as_str())).cloned().collect();
        let mut known = HashMap::new();
        for value in &names {
            let origin = moved_from(index, value, &of_layers, &mut known);
            if let (Some(origin), Some(source)) = (origin, self.values.get_mut(value)) {
                *source = RangeSource::SameAs(origin.to_owned());
            }
        }
    }
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
/// `known` remembers what was found, so that values with a part of the way in common do not go it again.
fn moved_from<'v>(
    index: &GraphIndex<'v>,
    value: &'v str,
    quantized: &BTreeSet<&'v str>,
    known: &mut HashMap<&'v str, Option<&'v str>>,
) -> Option<&'v str> {
    let moves = |node: &&NodeProto| node.is_standard() && MOVES_DATA.contains(&node.op_type.as_str());
    let (mut value, mut way) = (value, Vec::new());
    let origin = loop {
        if let Some(origin) = quantized.get(value) {
            break Some(*origin);
        }
        if let Some(origin) = known.get(value) {
            break *origin;
        }
        way.push(value);
        match index.producer(value).map(|(_, node)| node).filter(moves).and_then(|node| node.input(0)) {
            Some(input) => value = input,
            None => break None,
        }
    };
    known.extend(way.into_iter().map(|value| (value, origin)));
    origin
}
