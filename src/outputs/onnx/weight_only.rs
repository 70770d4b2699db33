//! Weight-only: codes are stored, and DequantizeLinear makes floats of them when the model runs.
//!
//! A matrix product gets a DequantizeLinear of its own, as ONNX Runtime makes MatMulNBits only of one that feeds one node;
//! a Gemm with a transposed weight gets the codes transposed for the same reason. An embedding looks its rows up as codes
//! and scales them then, so that the table is never dequantized whole.

use super::rewrite::{Rewriter, WeightNames};
use crate::formats::onnx::proto::{AttributeProto, NodeProto};
use crate::formats::onnx::tensor::DOUBLE;
use crate::graph::weights::Layer;
use crate::quant::scheme::Granularity;

/// Rewrites one layer.
pub(super) fn rewrite(rewriter: &mut Rewriter<'_>, layer: &Layer) {
    let node = &rewriter.indexes[layer.scope].graph.node[layer.node];
    if node.is("Gather") && !layer.path.transposed && is_rows_of_floats(rewriter, layer) {
        return look_up_codes(rewriter, layer, node);
    }
    let swaps = node.is("Gemm") && node.int("transB", 0) != 0 && node.float("alpha", 1.0) == 1.0 && node.float("beta", 1.0) == 1.0;
    let weight = rewriter.weight(layer, layer.path.transposed != swaps);
    let value = rewriter.names.fresh(&format!("{}_dequantized", layer.weight.1));
    let mut nodes = dequantize(rewriter, &weight, &value);
    let mut consumer = current(rewriter, layer);
    consumer.input[layer.input] = value;
    if swaps {
        consumer.attribute.retain(|attribute| attribute.name != "transB");
    }
    finish_cast(rewriter, layer, &mut nodes);
    nodes.push(consumer);
    replace(rewriter, layer, nodes);
}

/// DequantizeLinear of a weight.
pub(super) fn dequantize(rewriter: &mut Rewriter<'_>, weight: &WeightNames, value: &str) -> Vec<NodeProto> {
    let name = rewriter.names.fresh(&format!("{value}_DequantizeLinear"));
    let mut node = NodeProto::new("DequantizeLinear", name, inputs([&weight.codes, &weight.scale, &weight.zero_point]), vec![value.into()]);
    if let Some(axis) = weight.axis {
        node.attribute.push(AttributeProto::int("axis", axis as i64));
    }
    if let Some(block) = weight.block {
        node.attribute.push(AttributeProto::int("block_size", block as i64));
    }
    vec![node]
}

/// A node as it is now: as it was, or with the changes already made to it.
fn current(rewriter: &Rewriter<'_>, layer: &Layer) -> NodeProto {
    let nodes = rewriter.edits[layer.scope].replaced.get(&layer.node);
    let changed = nodes.and_then(|nodes| nodes.last()).cloned();
    changed.unwrap_or_else(|| rewriter.indexes[layer.scope].graph.node[layer.node].clone())
}

/// Puts `nodes`, of which the last is the layer itself, in its place; what was put before it for another weight stays.
pub(super) fn replace(rewriter: &mut Rewriter<'_>, layer: &Layer, nodes: Vec<NodeProto>) {
    let place = rewriter.edits[layer.scope].replaced.entry(layer.node).or_default();
    place.pop();
    place.extend(nodes);
}

/// Weights of f64 have f32 scales, and are cast after.
fn finish_cast(rewriter: &mut Rewriter<'_>, layer: &Layer, nodes: &mut Vec<NodeProto>) {
    let (tensor, _) = rewriter.scheme(layer).expect("only layers with quantized weights are rewritten");
    let is_double = match layer.path.cast_to {
        Some(to) => to == DOUBLE,
        None => rewriter.model.tensors()[tensor].info.dtype == crate::tensor::Dtype::F64,
    };
    let Some(last) = nodes.last_mut().filter(|_| is_double) else { return };
    let (single, double) = (rewriter.names.fresh(&format!("{}_f32", last.output[0])), last.output[0].clone());
    last.output[0] = single.clone();
    let mut cast = NodeProto::new("Cast", rewriter.names.fresh(&format!("{double}_Cast")), vec![single], vec![double]);
    cast.attribute.push(AttributeProto::int("to", DOUBLE));
    nodes.push(cast);
}

pub(super) fn inputs<const N: usize>(names: [&str; N]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn is_rows_of_floats(rewriter: &Rewriter<'_>, layer: &Layer) -> bool {
    let Some((tensor, scheme)) = rewriter.scheme(layer) else { return false };
    let is_float = rewriter.model.tensors()[tensor].info.dtype == crate::tensor::Dtype::F32 && layer.path.cast_to.is_none();
    // Four bits cannot be gathered before opset 21 knows the type.
    is_float && scheme.codes.bits() == 8 && !matches!(scheme.granularity, Granularity::PerGroup(_))
}

/// Gather of codes, then of their scales: `rows = (codes[i] - zero_point[i]) * scale[i]`.
fn look_up_codes(rewriter: &mut Rewriter<'_>, layer: &Layer, node: &NodeProto) {
    let weight = rewriter.weight(layer, false);
    let out = node.output[0].clone();
    let rows = rewriter.names.fresh(&format!("{out}_quantized"));
    let mut gather = node.clone();
    gather.input[0] = weight.codes.clone();
    gather.output[0] = rows.clone();
    if weight.axis.is_none() {
        let name = rewriter.names.fresh(&format!("{out}_DequantizeLinear"));
        let dequantize = NodeProto::new("DequantizeLinear", name, inputs([&rows, &weight.scale, &weight.zero_point]), vec![out]);
        return replace(rewriter, layer, vec![gather, dequantize]);
    }
    let mut nodes = vec![gather];
    let column = |rewriter: &mut Rewriter<'_>, nodes: &mut Vec<NodeProto>, source: &str, what: &str| {
        // [rows] → [rows, 1], so that what is gathered broadcasts over a row.
        let unsqueezed = rewriter.column(layer.weight.0, source);
        let value = rewriter.names.fresh(&format!("{out}_{what}"));
        let mut gather = NodeProto::new(
            "Gather",
            rewriter.names.fresh(&format!("{value}_Gather")),
            vec![unsqueezed, node.input[1].clone()],
            vec![value.clone()],
        );
        gather.attribute.push(AttributeProto::int("axis", 0));
        nodes.push(gather);
        value
    };
    let scale = column(rewriter, &mut nodes, &weight.scale, "scale");
    let cast_of = |rewriter: &mut Rewriter<'_>, nodes: &mut Vec<NodeProto>, value: &str| {
        let float = rewriter.names.fresh(&format!("{value}_float"));
        let mut cast = NodeProto::new("Cast", rewriter.names.fresh(&format!("{float}_Cast")), vec![value.into()], vec![float.clone()]);
        cast.attribute.push(AttributeProto::int("to", crate::formats::onnx::tensor::FLOAT));
        nodes.push(cast);
        float
    };
    let mut float = cast_of(rewriter, &mut nodes, &rows);
    if !weight.is_symmetric {
        let zero_point = column(rewriter, &mut nodes, &weight.zero_point, "zero_point");
        let zero_point = cast_of(rewriter, &mut nodes, &zero_point);
        let centred = rewriter.names.fresh(&format!("{out}_centred"));
        nodes.push(NodeProto::new("Sub", rewriter.names.fresh(&format!("{centred}_Sub")), vec![float, zero_point], vec![centred.clone()]));
        float = centred;
    }
    nodes.push(NodeProto::new("Mul", rewriter.names.fresh(&format!("{out}_Mul")), vec![float, scale], vec![out.clone()]));
    replace(rewriter, layer, nodes);
}
