//! Removes nodes and initializers that nothing uses any more.

use super::bodies::for_each_taken;
use crate::formats::onnx::proto::GraphProto;
use std::collections::{HashMap, HashSet};

/// Values that nothing uses: neither a node, nor a body, nor the graph's caller.
pub(crate) fn unused(graph: &GraphProto) -> HashSet<String> {
    let uses = uses(graph);
    let produced = graph.node.iter().flat_map(|node| &node.output).filter(|name| !name.is_empty());
    let stored = graph.initializer.iter().map(|tensor| &tensor.name);
    produced.chain(stored).filter(|name| !uses.contains_key(*name)).cloned().collect()
}

/// How often each value is used.
fn uses(graph: &GraphProto) -> HashMap<String, usize> {
    let mut uses = HashMap::new();
    let mut count = |name: &str| *uses.entry(name.to_owned()).or_default() += 1;
    graph.node.iter().for_each(|node| for_each_taken(node, &mut count));
    graph.output.iter().for_each(|value| count(&value.name));
    uses
}

/// Removes nodes and initializers that nothing uses, except those that nothing used `before` either, and what was known
/// of the types of values that have gone.
pub(crate) fn remove(graph: &mut GraphProto, before: &HashSet<String>) {
    let mut uses = uses(graph);
    // From the last to the first, so that what only a removed node used is known to go when its turn comes.
    let mut kept = Vec::with_capacity(graph.node.len());
    for node in std::mem::take(&mut graph.node).into_iter().rev() {
        let mut named = node.output.iter().filter(|name| !name.is_empty());
        let is_unused = |name: &String| !uses.contains_key(name);
        if named.clone().all(is_unused) && named.any(|name| !before.contains(name)) {
            for_each_taken(&node, &mut |name| match uses.get_mut(name) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(uses.remove(name)),
            });
        } else {
            kept.push(node);
        }
    }
    kept.reverse();
    graph.node = kept;
    let inputs: HashSet<&str> = graph.input.iter().map(|value| value.name.as_str()).collect();
    graph
        .initializer
        .retain(|tensor| uses.contains_key(&tensor.name) || before.contains(&tensor.name) || inputs.contains(tensor.name.as_str()));
    let mut known = inputs;
    known.extend(graph.node.iter().flat_map(|node| &node.output).map(String::as_str));
    known.extend(graph.initializer.iter().map(|tensor| tensor.name.as_str()));
    graph.value_info.retain(|value| known.contains(value.name.as_str()));
}
