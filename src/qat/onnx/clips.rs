//! Clips of constant floats are computed: some exporters limit a weight to the range of its codes before they quantize it.

use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::graph::channels::tensor;
use crate::graph::index::GraphIndex;
use std::collections::BTreeMap;

/// Puts constants in the place of nodes that clip them.
pub(super) fn fold(graph: &mut GraphProto) {
    let index = GraphIndex::new(graph);
    let clipped = |node: &NodeProto| {
        let output = node.output.first().filter(|output| node.is("Clip") && !index.is_visible(output))?;
        clip(&index, node, output.clone()).map(|constant| (output.clone(), constant))
    };
    let mut constants: BTreeMap<String, TensorProto> = graph.node.iter().filter_map(clipped).collect();
    graph.node.retain(|node| !node.output.first().is_some_and(|output| constants.contains_key(output)));
    graph.initializer.extend(std::mem::take(&mut constants).into_values());
}

/// The constant that a Clip makes of another.
fn clip(index: &GraphIndex<'_>, node: &NodeProto, name: String) -> Option<TensorProto> {
    let constant = index.constant(node.input(0)?)?;
    let (low, high) = bounds(index, node)?;
    let limited = |value: f32| if value.is_nan() { value } else { value.max(low).min(high) };
    let values: Vec<f32> = constant.to_floats()?.into_iter().map(limited).collect();
    // Values that are no numbers stay where they are, to be noticed there.
    tensor(name, constant.data_type?, &constant.dims, &values)
}

/// The bounds of a Clip of floats, infinite where there is none; `None` unless they are constants.
pub(super) fn bounds(index: &GraphIndex<'_>, node: &NodeProto) -> Option<(f32, f32)> {
    let bound = |input: usize, default: f32| match node.input(input) {
        None => Some(default),
        Some(name) => match index.constant(name)?.to_floats()?[..] {
            [bound] if !bound.is_nan() => Some(bound),
            _ => None,
        },
    };
    // Before opset 11 they were attributes.
    if node.attribute("min").is_some() || node.attribute("max").is_some() {
        return None;
    }
    Some((bound(1, f32::NEG_INFINITY)?, bound(2, f32::INFINITY)?))
}
