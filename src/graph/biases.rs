//! Biases of layers that can be changed: constants that nothing else uses.

use super::channels::{Layer, spread, tensor};
use super::index::GraphIndex;
use super::names::Names;
use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto};
use std::collections::HashSet;

/// The constant that is added to the outputs of a layer.
pub(crate) struct Bias {
    pub(crate) name: String,
    /// What has to be added to it for each 1 that products of inputs and the weight are to grow by.
    pub(crate) factor: f64,
}

impl Bias {
    /// That of `node`, with one element for each of `count` channels of its output: its own, or that of the Add after a MatMul.
    pub(crate) fn of(index: &GraphIndex<'_>, node: &NodeProto, count: usize) -> Option<Self> {
        let own = |constant: &str| {
            let constant = index.constant(constant).filter(|constant| constant.elements() == Ok(count))?;
            spread(constant, count, HIGHEST_RANK)?;
            index.only_use(&constant.name).map(|_| constant.name.clone())
        };
        match node.op_type.as_str() {
            "Conv" => Some(Bias { name: own(node.input(2)?)?, factor: 1.0 }),
            "Gemm" => {
                let factor = f64::from(node.float("alpha", 1.0)) / f64::from(node.float("beta", 1.0));
                Some(Bias { name: own(node.input(2)?)?, factor }).filter(|_| factor.is_normal())
            }
            "MatMul" => {
                let sum = index.only_use(node.output.first()?)?;
                let add = Some(&index.graph.node[sum.node]).filter(|node| node.is("Add") && node.input.len() == 2)?;
                Some(Bias { name: own(&add.input[1 - sum.input])?, factor: 1.0 })
            }
            _ => None,
        }
    }
}

/// Most dimensions that runtimes broadcast.
const HIGHEST_RANK: usize = 8;

/// Gives each Conv and Gemm with one of these weights a bias of its own: zeros, if it has none.
pub(crate) fn complete(graph: &mut GraphProto, names: &mut Names, weights: &HashSet<String>) {
    let index = GraphIndex::new(graph);
    let missing = |(place, node): (usize, &NodeProto)| -> Option<(usize, TensorProto)> {
        let is_wanted = matches!(node.op_type.as_str(), "Conv" | "Gemm") && weights.contains(node.input(1)?);
        let layer = Layer::of(&index, node).filter(|_| is_wanted)?;
        let count = layer.output.count;
        if Bias::of(&index, node, count).is_some() {
            return None;
        }
        let values = match node.input(2) {
            None => vec![0.0; count],
            Some(bias) => spread(index.constant(bias)?, count, 2)?.into_iter().map(|value| value as f32).collect(),
        };
        tensor(names.fresh(&format!("{}_bias", layer.weight.name)), layer.weight.data_type?, &[count as i64], &values)
            .map(|bias| (place, bias))
    };
    let new: Vec<(usize, TensorProto)> = graph.node.iter().enumerate().filter_map(missing).collect();
    for (place, bias) in new {
        let inputs = &mut graph.node[place].input;
        inputs.resize(inputs.len().max(3), String::new());
        inputs[2].clone_from(&bias.name);
        graph.initializer.push(bias);
    }
}
