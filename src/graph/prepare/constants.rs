//! Constant nodes become initializers of the same graph.
//!
//! A Constant that is an output of its graph stays, as runtimes disagree on constants that are outputs; so do sparse
//! constants, and texts that are not in a tensor.

use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto};
use std::collections::HashSet;

/// Turns Constant nodes into initializers and returns how many.
pub(super) fn to_initializers(graph: &mut GraphProto) -> usize {
    let outputs: HashSet<String> = graph.output.iter().map(|value| value.name.clone()).collect();
    let before = graph.node.len();
    let initializers = &mut graph.initializer;
    graph.node.retain(|node| match value(node) {
        Some(tensor) if !outputs.contains(&tensor.name) => {
            initializers.push(tensor);
            false
        }
        _ => true,
    });
    before - graph.node.len()
}

/// The value of a Constant node, under the name of its output.
fn value(node: &NodeProto) -> Option<TensorProto> {
    let (true, [name], [attribute]) = (node.is("Constant"), &node.output[..], &node.attribute[..]) else { return None };
    if name.is_empty() || !attribute.ref_attr_name.is_empty() {
        return None;
    }
    let name = name.clone();
    match attribute.name.as_str() {
        "value" => attribute.t.as_deref().map(|tensor| TensorProto { name, ..tensor.clone() }),
        "value_float" => attribute.f.map(|value| TensorProto::floats(name, &[], &[value])),
        "value_floats" => Some(TensorProto::floats(name, &[attribute.floats.len() as i64], &attribute.floats)),
        "value_int" => attribute.i.map(|value| TensorProto::ints(name, &[], &[value])),
        "value_ints" => Some(TensorProto::ints(name, &[attribute.ints.len() as i64], &attribute.ints)),
        _ => None,
    }
}
