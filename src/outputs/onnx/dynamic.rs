//! Dynamic: weights are codes, activations are quantized when the model runs, products are of integers.
//!
//! ```text
//! a, a_scale, a_zero_point = DynamicQuantizeLinear(x)
//! y = Cast(MatMulInteger(a, codes, a_zero_point, zero_point)) * (a_scale * scale)  [+ bias]
//! ```
//!
//! is what ONNX Runtime turns into one DynamicQuantizeMatMul. A recurrent layer becomes its DynamicQuantizeLSTM.

use super::rewrite::{Rewriter, WeightNames};
use super::weight_only::{inputs, replace};
use crate::formats::onnx::proto::{AttributeProto, NodeProto, ValueInfoProto};
use crate::formats::onnx::tensor::FLOAT;
use crate::graph::weights::Layer;
use std::collections::HashMap;

/// Values that are quantized already: by graph and name, the names of codes, scale and zero point.
pub(super) type Quantized = HashMap<(usize, String), [String; 3]>;

/// Rewrites a MatMul or a Gemm.
pub(super) fn rewrite_product(rewriter: &mut Rewriter<'_>, layer: &Layer, quantized: &mut Quantized) {
    let node = rewriter.indexes[layer.scope].graph.node[layer.node].clone();
    let swaps = node.is("Gemm") && node.int("transB", 0) != 0;
    let weight = rewriter.weight_for_integers(layer, layer.path.transposed != swaps);
    let mut nodes = Vec::new();
    let activation = node.input[0].clone();
    let key = (layer.scope, activation.clone());
    let [codes, scale, zero_point] = match quantized.get(&key) {
        Some(names) => names.clone(),
        None => {
            let names = ["quantized", "scale", "zero_point"].map(|what| rewriter.names.fresh(&format!("{activation}_{what}")));
            let name = rewriter.names.fresh(&format!("{activation}_DynamicQuantizeLinear"));
            nodes.push(NodeProto::new("DynamicQuantizeLinear", name, vec![activation], names.to_vec()));
            quantized.insert(key, names.clone());
            names
        }
    };
    nodes.extend(integer_product(rewriter, &node, [&codes, &scale, &zero_point], &weight));
    replace(rewriter, layer, nodes);
}

/// `Cast(MatMulInteger(codes, weight)) * (scale * weight scale) [+ bias]` in place of `node`, whose name the last step takes.
pub(super) fn integer_product(
    rewriter: &mut Rewriter<'_>,
    node: &NodeProto,
    [codes, scale, zero_point]: [&str; 3],
    weight: &WeightNames,
) -> Vec<NodeProto> {
    let (out, mut nodes) = (&node.output[0], Vec::new());
    let mut step = |rewriter: &mut Rewriter<'_>, op: &str, what: &str, input: Vec<String>| {
        let value = rewriter.names.fresh(&format!("{out}_{what}"));
        nodes.push(NodeProto::new(op, rewriter.names.fresh(&format!("{value}_{op}")), input, vec![value.clone()]));
        value
    };
    let product = step(rewriter, "MatMulInteger", "int32", inputs([codes, &weight.codes, zero_point, &weight.zero_point]));
    let float = step(rewriter, "Cast", "float", vec![product]);
    let scales = step(rewriter, "Mul", "scales", inputs([scale, &weight.scale]));
    let scaled = step(rewriter, "Mul", "scaled", vec![float, scales]);
    if let Some(bias) = node.input(2) {
        step(rewriter, "Add", "biased", vec![scaled, bias.to_owned()]);
    }
    for node in nodes.iter_mut().filter(|node| node.op_type == "Cast") {
        node.attribute.push(AttributeProto::int("to", FLOAT));
    }
    let last = nodes.last_mut().expect("there are always four steps");
    last.output[0].clone_from(out);
    last.name.clone_from(&node.name);
    nodes
}

/// Rewrites an LSTM with both of its weights.
pub(super) fn rewrite_lstm(rewriter: &mut Rewriter<'_>, input_weight: &Layer, recurrent_weight: &Layer) {
    let mut node = rewriter.indexes[input_weight.scope].graph.node[input_weight.node].clone();
    // [directions, gates, in] → [directions, in, gates]
    let w = rewriter.weight_for_integers(input_weight, !input_weight.path.transposed);
    let r = rewriter.weight_for_integers(recurrent_weight, !recurrent_weight.path.transposed);
    node.op_type = "DynamicQuantizeLSTM".into();
    node.domain = "com.microsoft".into();
    rewriter.import("com.microsoft");
    node.input.resize(8, String::new());
    node.input[1].clone_from(&w.codes);
    node.input[2].clone_from(&r.codes);
    for (layer, weight) in [(input_weight, w), (recurrent_weight, r)] {
        for constant in [&weight.scale, &weight.zero_point] {
            node.input.push(rewriter.for_each_direction(layer, constant));
        }
    }
    // Shape inference knows no operators of ONNX Runtime: [steps, directions, batch, hidden], then the last states.
    let directions = rewriter.dimension(input_weight, 0);
    let hidden = node.attribute("hidden_size").and_then(|size| size.i);
    let shapes = [&[None, directions, None, hidden][..], &[directions, None, hidden], &[directions, None, hidden]];
    let outputs = node.output.iter().zip(shapes).filter(|(name, _)| !name.is_empty());
    let types = outputs.map(|(name, shape)| ValueInfoProto::tensor(name.clone(), FLOAT, shape));
    rewriter.edits[input_weight.scope].types.extend(types);
    replace(rewriter, input_weight, vec![node]);
}
