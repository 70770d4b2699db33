//! Which operators are about codes.

use crate::formats::onnx::proto::{GraphProto, ModelProto, NodeProto};

/// Standard operators that make, take or compute with codes.
const STANDARD: &[&str] =
    &["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul"];

/// Operators of ONNX Runtime whose names do not say so.
const NAMED_OTHERWISE: &[&str] = &["MatMulNBits", "MatMulBnb4", "MatMulFpQ4", "MatMulIntegerToFloat", "MatMulInteger16", "NhwcMaxPool"];

/// Operators that give elements of their first input and nothing else, so that they do to floats what they do to codes.
pub(super) const MOVE_DATA: &[&str] =
    &["MaxPool", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Expand", "Tile", "Identity", "Gather"];

/// Whether a node makes, takes or computes with codes.
pub(super) fn is_quantized(node: &NodeProto) -> bool {
    let name = node.op_type.as_str();
    if node.is_standard() {
        return STANDARD.contains(&name);
    }
    // QLinearAdd, QAttention, QGemm, but not QuickGelu.
    let is_prefixed = name.strip_prefix('Q').is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_uppercase()));
    let of_runtime = node.domain.starts_with("com.microsoft") || node.domain.starts_with("com.ms.");
    of_runtime && (is_prefixed || name.contains("Quantize") || NAMED_OTHERWISE.contains(&name))
}

/// The first node of a graph, its bodies included, that is about codes.
pub(super) fn first_quantized(graph: &GraphProto) -> Option<&NodeProto> {
    first_of(&graph.node)
}

/// The first node about codes in the functions of a model.
pub(super) fn first_in_functions(model: &ModelProto) -> Option<&NodeProto> {
    model.functions.iter().find_map(|function| first_of(&function.node))
}

fn first_of(nodes: &[NodeProto]) -> Option<&NodeProto> {
    nodes.iter().find_map(|node| if is_quantized(node) { Some(node) } else { node.bodies().find_map(first_quantized) })
}

/// Whether a model has a node of `domain`, in whatever graph or function.
pub(super) fn uses_domain(model: &ModelProto, domain: &str) -> bool {
    fn any(nodes: &[NodeProto], domain: &str) -> bool {
        nodes.iter().any(|node| node.domain == domain || node.bodies().any(|body| any(&body.node, domain)))
    }
    let graphs = model.graph.iter().map(|graph| &graph.node);
    graphs.chain(model.functions.iter().map(|function| &function.node)).any(|nodes| any(nodes, domain))
}
