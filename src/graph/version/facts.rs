//! What is known of the values of a graph without running it: constants, element types, numbers of dimensions, and whether
//! anything uses them.
//!
//! Types are those that the model declares; where it does not, they follow from those of the inputs for operators that keep
//! them. What is not known stays unknown.

use crate::formats::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::formats::onnx::tensor::{BFLOAT16, DOUBLE, FLOAT, FLOAT16, INT64};
use crate::graph::index::GraphIndex;
use std::collections::{HashMap, HashSet};

/// Element type and number of dimensions, as far as they are known.
#[derive(Clone, Copy, Default)]
struct Known {
    element: Option<i64>,
    rank: Option<usize>,
}

/// What is known of the values of a graph and of those around it.
#[derive(Clone, Default)]
pub(super) struct Facts {
    /// Whether the only floats of the model are those of 32 bits.
    only_floats: bool,
    known: HashMap<String, Known>,
    constants: HashMap<String, TensorProto>,
    used: HashSet<String>,
}

impl Facts {
    /// Nothing but whether the model's only floats are those of 32 bits.
    pub(super) fn new(only_floats: bool) -> Self {
        Facts { only_floats, ..Facts::default() }
    }

    /// What is known in a graph, given what is known around it.
    pub(super) fn of(graph: &GraphProto, outer: &Facts) -> Self {
        let mut facts = outer.clone();
        let index = GraphIndex::new(graph);
        facts.used = graph
            .node
            .iter()
            .flat_map(|node| &node.output)
            .filter(|name| !index.uses(name).is_empty() || index.is_visible(name))
            .cloned()
            .collect();
        for tensor in &graph.initializer {
            facts.know(&tensor.name, Known { element: tensor.data_type, rank: Some(tensor.dims.len()) });
            if !index.is_input(&tensor.name) {
                facts.constants.insert(tensor.name.clone(), tensor.clone());
            }
        }
        graph.input.iter().chain(&graph.output).chain(&graph.value_info).for_each(|value| facts.know(&value.name, declared(value)));
        for node in &graph.node {
            if let (true, Some(tensor), Some(output)) =
                (node.is("Constant"), node.attribute("value").and_then(|a| a.t.as_deref()), node.output.first())
            {
                facts.know(output, Known { element: tensor.data_type, rank: Some(tensor.dims.len()) });
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
    pub(super) fn element(&self, value: &str) -> Option<i64> {
        let known = self.known.get(value).and_then(|known| known.element);
        known.or_else(|| (self.only_floats && !value.is_empty()).then_some(FLOAT))
    }

    /// The number of dimensions of a value.
    pub(super) fn rank(&self, value: &str) -> Option<usize> {
        self.known.get(value).and_then(|known| known.rank)
    }

    /// The constant of this name.
    pub(super) fn constant(&self, value: &str) -> Option<&TensorProto> {
        self.constants.get(value)
    }

    /// Whether an output of a node of this graph goes anywhere.
    pub(super) fn is_used(&self, value: &str) -> bool {
        self.used.contains(value)
    }

    /// Takes in what is new.
    fn know(&mut self, value: &str, new: Known) {
        let known = self.known.entry(value.to_owned()).or_default();
        known.element = known.element.or(new.element);
        known.rank = known.rank.or(new.rank);
    }

    /// What follows for an output of a node from its inputs.
    fn inferred(&self, node: &NodeProto, output: usize) -> Known {
        let known = |i: usize| node.input(i).and_then(|name| self.known.get(name)).copied().unwrap_or_default();
        let first = known(0);
        let ranks = || (0..node.input.len()).map(|i| known(i).rank).collect::<Option<Vec<_>>>();
        let with = |rank: Option<usize>| Known { rank, ..first };
        let int = |name: &str, default| node.int(name, default);
        let count = |attribute: &str, input: usize| {
            let named = node.attribute(attribute).map(|attribute| attribute.ints.len());
            named.or_else(|| self.constant(node.input(input)?)?.elements().ok())
        };
        match node.op_type.as_str() {
            _ if !node.is_standard() => Known::default(),
            "Abs"
            | "BatchNormalization"
            | "AveragePool"
            | "Ceil"
            | "Clip"
            | "Concat"
            | "Conv"
            | "ConvTranspose"
            | "CumSum"
            | "Elu"
            | "Erf"
            | "Exp"
            | "Floor"
            | "GlobalAveragePool"
            | "GlobalMaxPool"
            | "HardSigmoid"
            | "HardSwish"
            | "Hardmax"
            | "Identity"
            | "InstanceNormalization"
            | "LRN"
            | "LayerNormalization"
            | "LeakyRelu"
            | "Log"
            | "LogSoftmax"
            | "LpNormalization"
            | "MeanVarianceNormalization"
            | "Neg"
            | "PRelu"
            | "Pad"
            | "Reciprocal"
            | "Relu"
            | "Resize"
            | "Round"
            | "Selu"
            | "Sigmoid"
            | "Sign"
            | "Slice"
            | "Softmax"
            | "Softplus"
            | "Softsign"
            | "Split"
            | "Sqrt"
            | "Tanh"
            | "ThresholdedRelu"
            | "Tile"
            | "Transpose"
            | "Upsample" => first,
            "Dropout" | "MaxPool" if output == 0 => first,
            "Add" | "Div" | "Max" | "Mean" | "Min" | "Mul" | "Pow" | "Sub" | "Sum" => {
                with(ranks().and_then(|ranks| ranks.into_iter().max()))
            }
            "Cast" => Known { element: node.attribute("to").and_then(|to| to.i), ..first },
            "Shape" => Known { element: Some(INT64), rank: Some(1) },
            "Flatten" | "Gemm" => with(Some(2)),
            "MatMul" => with(ranks().filter(|ranks| ranks.iter().all(|rank| *rank >= 2)).and_then(|ranks| ranks.into_iter().max())),
            "Gather" => with(ranks().and_then(|ranks| ranks.into_iter().sum::<usize>().checked_sub(1))),
            "Reshape" => with(node.input(1).and_then(|shape| self.constant(shape)).and_then(|shape| shape.elements().ok())),
            "Unsqueeze" => with(first.rank.zip(count("axes", 1)).and_then(|(rank, axes)| rank.checked_add(axes))),
            "Squeeze" => with(first.rank.zip(count("axes", 1)).and_then(|(rank, axes)| rank.checked_sub(axes))),
            "GRU" | "LSTM" | "RNN" => with(Some(if output == 0 { 4 } else { 3 })),
            "ReduceL1" | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceMax" | "ReduceMean" | "ReduceMin" | "ReduceProd"
            | "ReduceSum" | "ReduceSumSquare" => with(if int("keepdims", 1) != 0 {
                first.rank
            } else {
                first.rank.zip(count("axes", 1)).and_then(|(rank, axes)| rank.checked_sub(axes))
            }),
            _ => Known::default(),
        }
    }
}

/// What a model declares of a value.
fn declared(value: &ValueInfoProto) -> Known {
    let Some(tensor) = value.r#type.as_deref().and_then(|value| value.tensor_type.as_deref()) else { return Known::default() };
    Known { element: tensor.elem_type.filter(|code| *code != 0), rank: tensor.shape.as_deref().map(|shape| shape.dim.len()) }
}

/// Whether nothing in a model is, or becomes, a float of another size than 32 bits.
pub(super) fn only_floats(model: &ModelProto) -> bool {
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
