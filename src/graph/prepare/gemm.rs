//! Makes one Gemm of a MatMul of matrices and the Add of its bias.
//!
//! ONNX Runtime does so before it looks for quantized operators, and then finds a Gemm between DequantizeLinear whose bias
//! is still float, which it leaves in float. A Gemm from the start has its bias quantized with its weight, which may be a
//! constant that a Transpose hands on.

use super::Folded;
use crate::formats::onnx::proto::{GraphProto, NodeProto};
use crate::graph::facts::Facts;
use crate::graph::index::GraphIndex;
use crate::graph::weights::swaps_last_two;
use std::collections::{BTreeMap, HashSet};

/// Fuses all of them. Each Gemm has the name of its MatMul and the output of its Add.
pub(super) fn fuse(graph: &mut GraphProto, folded: &mut Vec<Folded>) {
    let nothing = Facts::default();
    let facts = Facts::of(graph, &nothing);
    let index = GraphIndex::new(graph);
    let (mut fused, mut gone) = (BTreeMap::new(), HashSet::new());
    for (place, node) in graph.node.iter().enumerate() {
        let Some((add, bias)) = bias_of(node, &index, &facts) else { continue };
        let mut gemm = node.clone();
        gemm.op_type = "Gemm".into();
        gemm.input.push(bias.to_owned());
        gemm.output.clone_from(&graph.node[add].output);
        folded.push(Folded { node: graph.node[add].label().to_owned(), op_type: "Add".into(), into: gemm.label().to_owned() });
        fused.insert(place, gemm);
        gone.insert(add);
    }
    let nodes = std::mem::take(&mut graph.node).into_iter().enumerate();
    let kept = nodes.filter(|(place, _)| !gone.contains(place));
    graph.node = kept.map(|(place, node)| fused.remove(&place).unwrap_or(node)).collect();
}

/// The Add that nobody else stands before, and the constant that it adds to each row of the product.
fn bias_of<'g>(node: &NodeProto, index: &GraphIndex<'g>, facts: &Facts<'_>) -> Option<(usize, &'g str)> {
    let [input, weight] = &node.input[..] else { return None };
    if !node.is("MatMul") || facts.rank(input) != Some(2) {
        return None;
    }
    let (weight, columns) = match index.producer(weight).filter(|(_, node)| node.is("Transpose") && swaps_last_two(node)) {
        None => (index.constant(weight)?, 1),
        Some((_, transpose)) => (index.constant(transpose.input(0)?)?, 0),
    };
    let columns = *weight.dims.get(columns).filter(|_| weight.dims.len() == 2)?;
    let only = index.only_use(node.output.first()?)?;
    let add = &index.graph.node[only.node];
    let bias = add.input(1 - only.input.min(1)).filter(|_| add.is("Add"))?;
    let fits = index.constant(bias).is_some_and(|bias| bias.dims == [columns] && bias.data_type == weight.data_type);
    fits.then_some((only.node, bias))
}
