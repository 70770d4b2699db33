//! Removes nodes and initializers that nothing uses any more.

use super::index::GraphIndex;
use crate::formats::onnx::proto::GraphProto;
use std::collections::HashSet;

/// Values that nothing uses: neither a node, nor a body, nor the graph's caller.
pub(crate) fn unused(graph: &GraphProto) -> HashSet<String> {
    let index = GraphIndex::new(graph);
    let produced = graph.node.iter().flat_map(|node| &node.output).filter(|name| !name.is_empty());
    let stored = graph.initializer.iter().map(|tensor| &tensor.name);
    produced.chain(stored).filter(|name| is_unused(&index, name)).cloned().collect()
}

fn is_unused(index: &GraphIndex<'_>, name: &str) -> bool {
    index.uses(name).is_empty() && !index.is_visible(name)
}

/// Removes nodes and initializers that nothing uses, except those that nothing used `before` either, and what was known
/// of the types of values that have gone.
pub(crate) fn remove(graph: &mut GraphProto, before: &HashSet<String>) {
    loop {
        let index = GraphIndex::new(graph);
        let goes = |name: &String| is_unused(&index, name) && !before.contains(name);
        let dead_nodes: HashSet<usize> = (0..graph.node.len())
            .filter(|i| {
                let mut named = graph.node[*i].output.iter().filter(|name| !name.is_empty());
                named.clone().any(goes) && named.all(|name| is_unused(&index, name))
            })
            .collect();
        let dead_tensors: HashSet<String> =
            graph.initializer.iter().map(|tensor| &tensor.name).filter(|name| goes(name) && !index.is_input(name)).cloned().collect();
        if dead_nodes.is_empty() && dead_tensors.is_empty() {
            break;
        }
        let mut i = 0..;
        graph.node.retain(|_| i.next().is_none_or(|i| !dead_nodes.contains(&i)));
        graph.initializer.retain(|tensor| !dead_tensors.contains(&tensor.name));
    }
    let mut known: HashSet<&str> = graph.node.iter().flat_map(|node| &node.output).map(String::as_str).collect();
    known.extend(graph.initializer.iter().map(|tensor| tensor.name.as_str()));
    known.extend(graph.input.iter().map(|value| value.name.as_str()));
    graph.value_info.retain(|value| known.contains(value.name.as_str()));
}
