//! Folds `y * factor + offset`, with a factor and an offset for each channel, into the layer beside it.
//!
//! With a layer `y = W x + b` for each channel of its output:
//!
//! ```text
//! BatchNormalization:  factor = scale / sqrt(variance + epsilon)   offset = B - mean * factor
//! after a layer:       W' = factor * W                             b' = factor * b + offset
//! before a layer:      W' = W * factor (over its input's channels) b' = b + W offset
//! ```
//!
//! Computed in f64 from the stored values and rounded once. BatchNormalization is folded into Conv, ConvTranspose, Gemm and
//! MatMul of matrices (whose bias is an Add), and into a Conv or Gemm after it if nothing is padded, as padding would see
//! another zero. Mul, Add, Sub and Div by a constant are folded into a Conv or ConvTranspose before them.

use super::Folded;
use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::graph::channels::{self, Layer, along_channels, spread};
use crate::graph::index::GraphIndex;
use crate::graph::names::Names;
use std::collections::{HashMap, HashSet};

/// Longest chain that is folded into a layer. Exporters write three or four.
const ROUNDS: usize = 16;

/// One value for each channel.
struct Affine {
    factor: Vec<f64>,
    offset: Vec<f64>,
}

/// One change of the graph.
struct Plan {
    /// The node that goes, or becomes an Add of the bias if its layer cannot hold one.
    folded: usize,
    /// The node whose weight changes.
    layer: usize,
    weight: TensorProto,
    /// The node whose input `bias_input` is the bias.
    bias_of: usize,
    bias_input: usize,
    bias: TensorProto,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// `folded` takes what the node `bias_of` produces.
    After,
    /// `folded` produces what the layer takes.
    Before,
    /// `folded` takes what the layer produces, and stays as the Add of the bias.
    Becomes,
}

/// Folds whatever can be folded, and says what it was.
pub(super) fn fold(graph: &mut GraphProto, opset: i64, names: &mut Names, folded: &mut Vec<Folded>) {
    // Before version 7 Add and Mul broadcast in another way, and BatchNormalization had a mode for tests.
    if opset < 7 {
        return;
    }
    for _ in 0..ROUNDS {
        let plans = plans(graph, opset);
        if plans.is_empty() {
            return;
        }
        let mut gone = HashSet::new();
        let mut stored = HashMap::new();
        for plan in plans {
            folded.push(Folded {
                node: graph.node[plan.folded].label().to_owned(),
                op_type: graph.node[plan.folded].op_type.clone(),
                into: graph.node[plan.layer].label().to_owned(),
            });
            if plan.place != Place::Becomes {
                gone.insert(plan.folded);
            }
            apply(graph, plan, names, &mut stored);
        }
        let mut i = 0..;
        graph.node.retain(|_| i.next().is_none_or(|i| !gone.contains(&i)));
        for tensor in &mut graph.initializer {
            if let Some(new) = stored.remove(&tensor.name) {
                *tensor = new;
            }
        }
        let mut new: Vec<TensorProto> = stored.into_values().collect();
        new.sort_by(|a, b| a.name.cmp(&b.name));
        graph.initializer.extend(new);
    }
}

fn apply(graph: &mut GraphProto, plan: Plan, names: &mut Names, stored: &mut HashMap<String, TensorProto>) {
    let nodes = &mut graph.node;
    let weight_input = 1;
    let old_weight = nodes[plan.layer].input[weight_input].clone();
    let mut weight = plan.weight;
    if weight.name.is_empty() {
        weight.name = names.fresh(&format!("{old_weight}_folded"));
    }
    let mut bias = plan.bias;
    if bias.name.is_empty() {
        bias.name = names.fresh(&bias_name(&old_weight));
    }
    nodes[plan.layer].input[weight_input].clone_from(&weight.name);
    let first = |names: &[String]| names.first().cloned().unwrap_or_default();
    match plan.place {
        Place::After => nodes[plan.bias_of].output = vec![first(&nodes[plan.folded].output)],
        Place::Before => nodes[plan.layer].input[0] = first(&nodes[plan.folded].input),
        Place::Becomes => {
            let node = &mut nodes[plan.folded];
            let output = vec![first(&node.output)];
            *node = NodeProto {
                op_type: "Add".into(),
                input: vec![first(&node.input), String::new()],
                output,
                attribute: Vec::new(),
                ..std::mem::take(node)
            };
        }
    }
    let node = &mut nodes[plan.bias_of];
    if node.input.len() <= plan.bias_input {
        node.input.resize(plan.bias_input + 1, String::new());
    }
    node.input[plan.bias_input].clone_from(&bias.name);
    // The bias has Gemm's factor in it.
    node.attribute.retain(|attribute| attribute.name != "beta");
    stored.insert(weight.name.clone(), weight);
    stored.insert(bias.name.clone(), bias);
}

/// The name of a weight's bias, as PyTorch would call it.
fn bias_name(weight: &str) -> String {
    match weight.strip_suffix("weight").filter(|prefix| prefix.ends_with('.')) {
        Some(prefix) => format!("{prefix}bias"),
        None => format!("{weight}_bias"),
    }
}

/// Changes that do not touch each other.
fn plans(graph: &GraphProto, opset: i64) -> Vec<Plan> {
    let index = GraphIndex::new(graph);
    let mut touched = HashSet::new();
    let mut plans: Vec<Plan> = Vec::new();
    for (i, node) in graph.node.iter().enumerate() {
        let found = match node.op_type.as_str() {
            "BatchNormalization" => batch_normalization(&index, i, node, opset),
            "Mul" | "Add" | "Sub" | "Div" => elementwise(&index, i, node),
            _ => None,
        };
        if let Some(plan) = found.filter(|plan| [plan.folded, plan.layer, plan.bias_of].iter().all(|node| !touched.contains(node))) {
            touched.extend([plan.folded, plan.layer, plan.bias_of]);
            plans.push(plan);
        }
    }
    plans
}

/// The layer that produces `value` for nobody else than one input of a node, with its place.
fn layer_before<'g>(index: &GraphIndex<'g>, value: &str) -> Option<(usize, Layer<'g>)> {
    index.only_use(value)?;
    let (i, node) = index.producer(value)?;
    Layer::of(index, node).map(|layer| (i, layer))
}

fn batch_normalization(index: &GraphIndex<'_>, i: usize, node: &NodeProto, opset: i64) -> Option<Plan> {
    let affine = Affine::of_batch_normalization(index, node, opset)?;
    let input = node.input(0)?;
    if let Some((l, layer)) = layer_before(index, input) {
        let new = layer.then(index, &affine.factor, &affine.offset);
        return match layer.node.op_type.as_str() {
            // A product of more dimensions has its channels along another axis than 1.
            "MatMul" if rank(index, layer.node.input(0)?) != Some(2) => None,
            "MatMul" => Plan { place: Place::Becomes, ..Plan::new(i, l, new?, i, 1, Place::After) }.into(),
            _ => Plan::new(i, l, new?, l, 2, Place::After).into(),
        };
    }
    if let Some(plan) = after_biased_product(index, i, input, &affine) {
        return Some(plan);
    }
    let output = index.only_use(node.output.first()?).filter(|only| only.input == 0)?;
    let next = &index.graph.node[output.node];
    let layer = Layer::of(index, next)?;
    if !(next.is("Conv") && is_unpadded(next) || next.is("Gemm") && next.int("transA", 0) == 0) {
        return None;
    }
    Plan::new(i, output.node, layer.after(index, &affine.factor, &affine.offset)?, output.node, 2, Place::Before).into()
}

/// Folds into a MatMul of matrices and the Add of its bias.
fn after_biased_product(index: &GraphIndex<'_>, i: usize, input: &str, affine: &Affine) -> Option<Plan> {
    index.only_use(input)?;
    let (a, add) = index.producer(input).filter(|(_, node)| node.is("Add") && node.input.len() == 2 && node.attribute.is_empty())?;
    for side in 0..2 {
        let (Some(bias), Some((l, layer))) = (index.constant(add.input(1 - side)?), layer_before(index, add.input(side)?)) else {
            continue;
        };
        if !layer.node.is("MatMul") || rank(index, layer.node.input(0)?) != Some(2) || bias.data_type != layer.weight.data_type {
            continue;
        }
        let count = layer.output.count;
        let values = spread(bias, count, 2)?;
        let offset: Vec<f64> =
            (0..count).map(|c| Some(values[c] * affine.factor.get(c)? + affine.offset.get(c)?)).collect::<Option<_>>()?;
        let mut new = layer.then(index, &affine.factor, &offset)?;
        if index.only_use(&bias.name).is_some() {
            new.bias.name.clone_from(&bias.name);
        }
        return Some(Plan::new(i, l, new, a, 1 - side, Place::After));
    }
    None
}

/// Folds arithmetic with a constant into the convolution before it.
fn elementwise(index: &GraphIndex<'_>, i: usize, node: &NodeProto) -> Option<Plan> {
    if !node.is_standard() || node.input.len() != 2 || node.output.len() != 1 || !node.attribute.is_empty() {
        return None;
    }
    let side = (0..2).find(|side| index.constant(&node.input[*side]).is_some())?;
    let (l, layer) = layer_before(index, &node.input[1 - side])?;
    let constant = index.constant(&node.input[side]).filter(|constant| constant.data_type == layer.weight.data_type)?;
    if !matches!(layer.node.op_type.as_str(), "Conv" | "ConvTranspose") {
        return None;
    }
    let count = layer.output.count;
    let c = along_channels(constant, count, layer.shape.len())?;
    let all = |value: f64| vec![value; count];
    let affine = match (node.op_type.as_str(), side) {
        ("Add", _) => Affine { factor: all(1.0), offset: c },
        ("Mul", _) => Affine { factor: c, offset: all(0.0) },
        ("Sub", 1) => Affine { factor: all(1.0), offset: c.iter().map(|c| -c).collect() },
        ("Sub", _) => Affine { factor: all(-1.0), offset: c },
        ("Div", 1) => Affine { factor: c.iter().map(|c| 1.0 / c).collect(), offset: all(0.0) },
        _ => return None,
    };
    let new = layer.then(index, &affine.factor, &affine.offset)?;
    Some(Plan::new(i, l, new, l, 2, Place::After))
}

impl Plan {
    fn new(folded: usize, layer: usize, new: channels::Folded, bias_of: usize, bias_input: usize, place: Place) -> Self {
        Plan { folded, layer, weight: new.weight, bias_of, bias_input, bias: new.bias, place }
    }
}

impl Affine {
    fn of_batch_normalization(index: &GraphIndex<'_>, node: &NodeProto, opset: i64) -> Option<Self> {
        let unused = |name: &String| name.is_empty() || (index.uses(name).is_empty() && !index.is_visible(name));
        let usual = node.is_standard() && node.input.len() == 5 && node.output.iter().skip(1).all(unused);
        // Each position had its own statistics.
        let positional = opset < 9 && node.int("spatial", 1) != 1;
        if !usual || positional || node.int("training_mode", 0) != 0 {
            return None;
        }
        let values = |input: usize| {
            let constant =
                index.constant(node.input(input)?).filter(|constant| constant.dims.len() == 1 && channels::is_float(constant))?;
            constant.to_floats()
        };
        let (scale, bias, mean, variance) = (values(1)?, values(2)?, values(3)?, values(4)?);
        if [bias.len(), mean.len(), variance.len()] != [scale.len(); 3] {
            return None;
        }
        let epsilon = f64::from(node.float("epsilon", 1e-5));
        let factor: Vec<f64> = scale.iter().zip(&variance).map(|(s, v)| f64::from(*s) / (f64::from(*v) + epsilon).sqrt()).collect();
        let offset = bias.iter().zip(&mean).zip(&factor).map(|((b, m), f)| f64::from(*b) - f64::from(*m) * f).collect();
        Some(Affine { factor, offset })
    }
}

/// Whether a convolution never looks beyond its input.
fn is_unpadded(node: &NodeProto) -> bool {
    let auto = node.attribute("auto_pad").and_then(|attribute| attribute.s.as_deref()).unwrap_or(b"NOTSET");
    let pads = node.attribute("pads").map_or(&[][..], |attribute| &attribute.ints);
    match auto {
        b"VALID" => true,
        b"NOTSET" | b"" => pads.iter().all(|pad| *pad == 0),
        _ => false,
    }
}

/// The number of dimensions of a value, if the model says.
fn rank(index: &GraphIndex<'_>, value: &str) -> Option<usize> {
    let graph = index.graph;
    let typed = graph.value_info.iter().chain(&graph.input).chain(&graph.output).find(|typed| typed.name == value)?;
    Some(typed.r#type.as_deref()?.tensor_type.as_deref()?.shape.as_deref()?.dim.len())
}
