//! IR versions, which say how messages are written rather than what operators do.

use crate::formats::onnx::proto::{GraphProto, ModelProto};
use std::collections::HashSet;

/// Operator sets with the first IR version that came with them, from
/// [Versioning](https://github.com/onnx/onnx/blob/main/docs/Versioning.md#released-versions).
const RELEASES: &[(i64, i64)] = &[(7, 3), (9, 4), (10, 5), (11, 6), (12, 7), (15, 8), (19, 9), (21, 10), (23, 11)];

/// The IR version that a version of the standard operators came with.
pub(super) fn of_opset(opset: i64) -> i64 {
    RELEASES.iter().rev().find(|(from, _)| *from <= opset).map_or(3, |(_, ir)| *ir)
}

/// Raises the IR version to at least `to`.
///
/// Before version 4 a graph listed its constants among its inputs, which let nobody replace them; since then what is
/// listed there is only a default. So they leave the inputs.
pub(crate) fn raise_ir(model: &mut ModelProto, to: i64) {
    let from = model.ir_version.unwrap_or(0);
    if from >= to {
        return;
    }
    model.ir_version = Some(to);
    if from < 4
        && let Some(graph) = &mut model.graph
    {
        drop_constant_inputs(graph, 0);
    }
}

/// Removes constants from a graph's inputs, but for the first `given`, which the node around it fills by position.
fn drop_constant_inputs(graph: &mut GraphProto, given: usize) {
    let constants: HashSet<&str> = graph.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    let mut place = 0..;
    graph.input.retain(|value| place.next().is_some_and(|i| i < given) || !constants.contains(value.name.as_str()));
    for node in &mut graph.node {
        // If takes a condition, which is no input of its bodies.
        let given = if node.is("If") { 0 } else { node.input.len() };
        node.bodies_mut().for_each(|body| drop_constant_inputs(body, given));
    }
}
