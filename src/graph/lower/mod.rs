//! Rewrites quantized operators into float operators that compute the same values, so that an engine which knows few
//! quantized operators, or computes them with saturation, judges a quantized model as ONNX defines it.
//!
//! Codes are carried as floats: every code and every sum of their products that fits 24 bits is one exactly, and longer
//! sums are off by less than a ten-millionth. Constant codes become float constants. Operators that only move values stay.
//! Names of values stay.

mod codes;
mod emit;
mod operators;

use crate::error::show_name;
use crate::formats::onnx::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use crate::formats::onnx::tensor::{INT4, INT8, UINT4, UINT8};
use crate::graph::bodies::for_each_taken;
use crate::graph::names::Names;
use emit::Emit;
use std::collections::{HashMap, HashSet};

/// Operators that move values, or choose among them, so that codes come out where codes go in.
const MOVERS: &[&str] = &[
    "Clip",
    "Concat",
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Gather",
    "GatherElements",
    "GatherND",
    "Identity",
    "Max",
    "MaxPool",
    "Min",
    "Pad",
    "Relu",
    "Reshape",
    "Resize",
    "ScatterElements",
    "ScatterND",
    "Slice",
    "SpaceToDepth",
    "Split",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// What is known of the values that a graph sees.
#[derive(Clone, Default)]
struct Known {
    /// Constants that nobody can replace.
    constants: HashMap<String, TensorProto>,
    /// Codes that are carried as floats.
    carried: HashSet<String>,
    /// Numbers of dimensions.
    ranks: HashMap<String, usize>,
}

impl Known {
    fn add(&mut self, graph: &GraphProto) {
        for value in graph.input.iter().chain(&graph.value_info) {
            self.constants.remove(&value.name);
            let shape = value.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref()?.shape.as_ref());
            if let Some(shape) = shape {
                self.ranks.insert(value.name.clone(), shape.dim.len());
            }
        }
        let inputs: HashSet<&str> = graph.input.iter().map(|input| input.name.as_str()).collect();
        for tensor in &graph.initializer {
            self.ranks.insert(tensor.name.clone(), tensor.dims.len());
            if !inputs.contains(tensor.name.as_str()) {
                self.constants.insert(tensor.name.clone(), tensor.clone());
            }
        }
    }

    /// What a node that stays tells of its outputs.
    fn follow(&mut self, node: &NodeProto) {
        let (Some(output), first) = (node.output.first(), node.input(0)) else { return };
        if node.is("Constant")
            && let Some(tensor) = node.attribute("value").and_then(|value| value.t.as_deref())
        {
            self.ranks.insert(output.clone(), tensor.dims.len());
            self.constants.insert(output.clone(), TensorProto { name: output.clone(), ..tensor.clone() });
        }
        if matches!(node.op_type.as_str(), "Identity" | "Transpose")
            && let Some(rank) = first.and_then(|name| self.ranks.get(name)).copied()
        {
            self.ranks.insert(output.clone(), rank);
        }
        if MOVERS.contains(&node.op_type.as_str()) && node.input.iter().any(|name| self.carried.contains(name)) {
            self.carried.insert(output.clone());
            self.carried.extend(node.output.iter().skip(1).filter(|_| node.op_type == "Split").cloned());
        }
    }
}

/// Rewrites `model` in place.
///
/// # Errors
///
/// What was expected and what was found, for an operator of ONNX Runtime that is not known here, or one that is used in an
/// unusual way.
pub(crate) fn to_float(model: &mut ModelProto) -> Result<(), String> {
    let (opset, mut names) = (model.opset(), Names::of(model));
    let Some(graph) = model.graph.as_deref_mut() else { return Err("graph: expected one, found none".into()) };
    lower(graph, &Known::default(), opset, &mut names)?;
    let mut used: HashSet<String> = graph.output.iter().map(|value| value.name.clone()).collect();
    let mut take = |name: &str| {
        used.insert(name.to_owned());
    };
    graph.node.iter().for_each(|node| for_each_taken(node, &mut take));
    drop_unused(graph, &used)
}

fn lower(graph: &mut GraphProto, outer: &Known, opset: i64, names: &mut Names) -> Result<(), String> {
    let mut known = outer.clone();
    known.add(graph);
    let mut nodes = Vec::with_capacity(graph.node.len());
    for mut node in std::mem::take(&mut graph.node) {
        for body in node.bodies_mut() {
            lower(body, &known, opset, names)?;
        }
        let label = node.label().to_owned();
        let op_type = node.op_type.clone();
        let mut emit = Emit::new(&known, names, opset, &node);
        let explain = |e: String| format!("node {} ({op_type}): {e}", show_name(&label));
        let carried = operators::rewrite(&node, &mut emit).map_err(explain)?;
        let Some(carried) = carried else {
            // Codes that are carried as floats meet constant codes.
            if node.is_standard() && MOVERS.contains(&op_type.as_str()) && node.input.iter().any(|name| known.carried.contains(name)) {
                for name in &mut node.input {
                    if known.constants.get(name).is_some_and(|tensor| matches!(tensor.data_type, Some(INT8 | UINT8))) {
                        *name = emit.as_float(name);
                    }
                }
            }
            let emitted = emit.finish();
            nodes.extend(emitted.0);
            graph.initializer.extend(emitted.1);
            known.follow(&node);
            nodes.push(node);
            continue;
        };
        let emitted = emit.finish();
        nodes.extend(emitted.0);
        graph.initializer.extend(emitted.1);
        known.carried.extend(carried);
    }
    graph.node = nodes;
    // Types of codes are others now.
    graph.value_info.clear();
    graph.output.iter_mut().for_each(|output| output.r#type = None);
    Ok(())
}

/// Drops constants that nothing takes any more, and makes bytes of codes that are left with four bits.
fn drop_unused(graph: &mut GraphProto, used: &HashSet<String>) -> Result<(), String> {
    graph.initializer.retain(|tensor| used.contains(&tensor.name));
    for tensor in &mut graph.initializer {
        let wide = match tensor.data_type {
            Some(INT4) => INT8,
            Some(UINT4) => UINT8,
            _ => continue,
        };
        let bytes: Vec<u8> = codes::ints(tensor)?.into_iter().map(|code| code as u8).collect();
        *tensor = TensorProto::raw(std::mem::take(&mut tensor.name), wide, &tensor.dims, bytes);
    }
    for body in graph.node.iter_mut().flat_map(NodeProto::bodies_mut) {
        drop_unused(body, used)?;
    }
    Ok(())
}
