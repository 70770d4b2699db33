//! What is known of the values of a graph without running it: constants, element types, numbers of dimensions, and whether
//! anything uses them.
//!
//! Types are those that the model declares; where it does not, they follow from those of the inputs for operators that keep
//! them. What is not known stays unknown.

use crate::formats::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::formats::onnx::tensor::{BFLOAT16, DOUBLE, FLOAT, FLOAT16, INT64, UINT8};
use crate::graph::index::GraphIndex;
use std::collections::{HashMap, HashSet};

/// Element type and number of dimensions, as far as they are known.
#[derive(Clone, Copy, Default)]
struct Known {
    element: Option<i64>,
    rank: Option<usize>,
    /// Number of elements, if there is one dimension: the length of shapes is the number of dimensions elsewhere.
    len: Option<usize>,
}

impl Known {
    fn of(tensor: &TensorProto) -> Self {
        let len = if tensor.dims.len() == 1 { tensor.elements().ok() } else { None };
        Known { element: tensor.data_type, rank: Some(tensor.dims.len()), len }
    }
}

/// What is known of the values of a graph and of those around it.
#[derive(Default)]
pub(crate) struct Facts<'o> {
    /// What is known around the graph.
    outer: Option<&'o Facts<'o>>,
    /// Whether the only floats of the model are those of 32 bits.
    only_floats: bool,
    known: HashMap<String, Known>,
    constants: HashMap<String, TensorProto>,
    used: HashSet<String>,
}

impl<'o> Facts<'o> {
    /// Nothing but whether the model's only floats are those of 32 bits.
    pub(crate) fn new(only_floats: bool) -> Self {
        Facts { only_floats, ..Facts::default() }
    }

    /// What is known in a graph, given what is known around it.
    pub(crate) fn of(graph: &GraphProto, outer: &'o Facts<'o>) -> Self {
        let mut facts = Facts { outer: Some(outer), ..Facts::new(outer.only_floats) };
        let index = GraphIndex::new(graph);
        facts.used = graph
            .node
            .iter()
            .flat_map(|node| &node.output)
            .filter(|name| !index.uses(name).is_empty() || index.is_visible(name))
            .cloned()
            .collect();
        for tensor in &graph.initializer {
            facts.know(&tensor.name, Known::of(tensor));
            if !index.is_input(&tensor.name) {
                facts.constants.insert(tensor.name.clone(), tensor.clone());
            }
        }
        graph.input.iter().chain(&graph.output).chain(&graph.value_info).for_each(|value| facts.know(&value.name, declared(value)));
        for node in &graph.node {
            if let (true, Some(tensor), Some(output)) =
                (node.is("Constant"), node.attribute("value").and_then(|a| a.t.as_deref()), node.output.first())
            {
                facts.know(output, Known::of(tensor));
                facts.constants.insert(output.clone(), tensor.clone());
            }
            for (i, output) in node.output.iter().enumerate() {
                let inferred = facts.inferred(node, i);
                facts.know(output, inferred);
            }
        }
        facts
    }

    /// The element type of a value.
    pub(crate) fn element(&self, value: &str) -> Option<i64> {
        self.get(value).element.or_else(|| (self.only_floats && !value.is_empty()).then_some(FLOAT))
    }

    /// The number of dimensions of a value.
    pub(crate) fn rank(&self, value: &str) -> Option<usize> {
        self.get(value).rank
    }

    fn get(&self, value: &str) -> Known {
        match self.known.get(value) {
            Some(known) => *known,
            None => self.outer.map(|outer| outer.get(value)).unwrap_or_default(),
        }
    }

    /// The constant of this name.
    pub(crate) fn constant(&self, value: &str) -> Option<&TensorProto> {
        match self.known.get(value) {
            Some(_) => self.constants.get(value),
            None => self.outer?.constant(value),
        }
    }

    /// Whether an output of a node of this graph goes anywhere.
    pub(crate) fn is_used(&self, value: &str) -> bool {
        self.used.contains(value)
    }

    /// Takes in what is new. Where the model declares another number of dimensions than follows, neither is believed.
    fn know(&mut self, value: &str, new: Known) {
        let known = self.known.entry(value.to_owned()).or_default();
        known.element = known.element.or(new.element);
        known.rank = match (known.rank, new.rank) {
            (Some(old), Some(new)) if old != new => None,
            (old, new) => old.or(new),
        };
        known.len = known.len.or(new.len);
    }

    /// What follows for an output of a node from its inputs.
    fn inferred(&self, node: &NodeProto, output: usize) -> Known {
        let known = |i: usize| node.input(i).map(|name| self.get(name)).unwrap_or_default();
        let first = known(0);
        let highest = || (0..node.input.len()).map(|i| known(i).rank).try_fold(0, |highest, rank| Some(rank?.max(highest)));
        let ranked = |rank: Option<usize>| Known { rank, len: None, ..first };
        let line = |len: Option<usize>| Known { rank: Some(1), len, ..first };
        let axes = || match node.attribute("axes") {
            Some(axes) => Some(axes.ints.len()),
            None => known(1).len,
        };
        match node.op_type.as_str() {
            _ if !node.is_standard() || (output > 0 && !SEVERAL_OUTPUTS.contains(&node.op_type.as_str())) => Known::default(),
            "Shape" => {
                let whole = node.attribute("start").is_none() && node.attribute("end").is_none();
                Known { element: Some(INT64), rank: Some(1), len: first.rank.filter(|_| whole) }
            }
            "Concat" if first.rank == Some(1) => line((0..node.input.len()).map(|i| known(i).len).sum()),
            "Slice" if first.rank == Some(1) => line(first.len.and_then(|len| self.sliced(node, len))),
            "Gather" if first.rank == Some(1) => Known { element: first.element, ..known(1) },
            "Gather" => ranked(first.rank.zip(known(1).rank).and_then(|(data, indices)| (data + indices).checked_sub(1))),
            "QuantizeLinear" => Known { element: known(2).element.or(Some(UINT8)), ..first },
            "DequantizeLinear" => Known { element: known(1).element, ..first },
            "Cast" => Known { element: node.attribute("to").and_then(|to| to.i), ..first },
            "Flatten" | "Gemm" => ranked(Some(2)),
            "MatMul" => ranked(highest().filter(|_| (0..2).all(|i| known(i).rank >= Some(2)))),
            "Reshape" => ranked(known(1).len),
            "Unsqueeze" if first.rank == Some(0) && axes() == Some(1) => line(Some(1)),
            "Unsqueeze" => ranked(first.rank.zip(axes()).map(|(rank, axes)| rank + axes)),
            "Squeeze" => ranked(first.rank.zip(axes()).and_then(|(rank, axes)| rank.checked_sub(axes))),
            "GRU" | "LSTM" | "RNN" => ranked(Some(if output == 0 { 4 } else { 3 })),
            op_type if op_type.starts_with("Reduce") => ranked(match node.int("keepdims", 1) {
                0 => first.rank.zip(axes()).and_then(|(rank, axes)| rank.checked_sub(axes)),
                _ => first.rank,
            }),
            op_type if BROADCASTING.contains(&op_type) => ranked(highest()),
            op_type if SAME_SHAPE.contains(&op_type) => first,
            op_type if SAME_RANK.contains(&op_type) => ranked(first.rank),
            _ => Known::default(),
        }
    }

    /// Number of elements of a slice of so many along one axis, forwards from a constant to a constant.
    fn sliced(&self, node: &NodeProto, len: usize) -> Option<usize> {
        let one = |attribute: &str, input: usize| {
            let constant = node.input(input).and_then(|name| self.constant(name)).and_then(TensorProto::to_ints);
            let values = constant.or_else(|| node.attribute(attribute).map(|attribute| attribute.ints.clone()))?;
            <[i64; 1]>::try_from(values).ok().map(|[value]| value)
        };
        if node.input(4).is_some() && one("steps", 4) != Some(1) {
            return None;
        }
        let size = i64::try_from(len).ok()?;
        let place = |at: i64| (if at < 0 { at.saturating_add(size) } else { at }).clamp(0, size);
        usize::try_from(place(one("ends", 2)?) - place(one("starts", 1)?)).ok()
    }
}

/// Operators whose outputs other than the first are known too.
const SEVERAL_OUTPUTS: &[&str] = &["GRU", "LSTM", "RNN", "Split"];

/// Operators of inputs of one type that broadcast.
const BROADCASTING: &[&str] = &["Add", "Div", "Max", "Mean", "Min", "Mul", "Pow", "Sub", "Sum"];

/// Operators whose output has the type and the shape of their first input.
#[rustfmt::skip]
const SAME_SHAPE: &[&str] = &[
    "Abs", "BatchNormalization", "Ceil", "Clip", "CumSum", "Dropout", "Elu", "Erf", "Exp", "Floor", "HardSigmoid", "HardSwish", "Hardmax",
    "Identity", "InstanceNormalization", "LRN", "LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization",
    "MeanVarianceNormalization", "Neg", "PRelu", "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Softmax", "Softplus", "Softsign",
    "Sqrt", "Tanh", "ThresholdedRelu",
];

/// Operators whose output has the type and the number of dimensions of their first input.
#[rustfmt::skip]
const SAME_RANK: &[&str] = &[
    "AveragePool", "Concat", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "MaxPool", "Pad", "Resize", "Slice", "Split",
    "Tile", "Transpose", "Upsample",
];

/// What a model declares of a value.
fn declared(value: &ValueInfoProto) -> Known {
    let Some(tensor) = value.r#type.as_deref().and_then(|value| value.tensor_type.as_deref()) else { return Known::default() };
    let dims = tensor.shape.as_deref().map(|shape| &shape.dim);
    let len = dims.filter(|dims| dims.len() == 1).and_then(|dims| dims[0].dim_value).and_then(|len| usize::try_from(len).ok());
    Known { element: tensor.elem_type.filter(|code| *code != 0), rank: dims.map(Vec::len), len }
}

/// Whether nothing in a model is, or becomes, a float of another size than 32 bits.
pub(crate) fn only_floats(model: &ModelProto) -> bool {
    let functions = model.functions.iter().flat_map(|function| &function.node);
    model.graph.as_deref().is_none_or(graph_has_only_floats) && functions.into_iter().all(node_has_only_floats)
}

fn graph_has_only_floats(graph: &GraphProto) -> bool {
    let declared = graph.input.iter().chain(&graph.output).chain(&graph.value_info).map(|value| declared(value).element);
    let stored = graph.initializer.iter().map(|tensor| tensor.data_type);
    declared.chain(stored).all(is_not_another_float) && graph.node.iter().all(node_has_only_floats)
}

/// Types are attributes that are called `to` or `dtype`, or those of tensors.
fn node_has_only_floats(node: &NodeProto) -> bool {
    let attributes = node.attribute.iter().all(|attribute| {
        let named = matches!(attribute.name.as_str(), "to" | "dtype" | "output_datatype" | "output_dtype");
        let tensors = attribute.t.as_deref().into_iter().chain(&attribute.tensors);
        (!named || is_not_another_float(attribute.i)) && tensors.into_iter().all(|tensor| is_not_another_float(tensor.data_type))
    });
    // Operators of others may make whatever they like.
    node.is_standard() && attributes && node.bodies().all(graph_has_only_floats)
}

fn is_not_another_float(code: Option<i64>) -> bool {
    !matches!(code, Some(DOUBLE | FLOAT16 | BFLOAT16))
}
