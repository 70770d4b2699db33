//! Clips of constant floats are computed: some exporters limit a weight to the range of its codes before they quantize it.

use super::tidy::rename;
use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::graph::channels::tensor;
use crate::graph::index::GraphIndex;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Puts constants in the place of nodes that clip them, one for all that clip the same in the same way.
pub(super) fn fold(graph: &mut GraphProto) {
    let index = GraphIndex::new(graph);
    let mut made: BTreeMap<(&str, [u32; 2]), TensorProto> = BTreeMap::new();
    let mut renamed: HashMap<String, String> = HashMap::new();
    let mut gone: HashSet<usize> = HashSet::new();
    for (place, node) in graph.node.iter().enumerate().filter(|(_, node)| node.is("Clip")) {
        let Some(output) = node.output.first().filter(|output| !index.is_visible(output)) else { continue };
        let (Some(input), Some((low, high))) = (node.input(0), bounds(&index, node)) else { continue };
        let key = (input, [low.to_bits(), high.to_bits()]);
        if let Some(constant) = made.get(&key) {
            renamed.insert(output.clone(), constant.name.clone());
        } else if let Some(constant) = clip(&index, node, output.clone()) {
            made.insert(key, constant);
        } else {
            continue;
        }
        gone.insert(place);
    }
    let made: Vec<TensorProto> = made.into_values().collect();
    let mut place = 0..;
    graph.node.retain(|_| place.next().is_none_or(|place| !gone.contains(&place)));
    rename(graph, &renamed);
    graph.initializer.extend(made);
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
