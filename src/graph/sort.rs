//! Puts nodes in order again after edits: each after those that it takes values from, otherwise as they were.

use super::bodies::for_each_taken;
use crate::formats::onnx::proto::GraphProto;
use std::collections::{BTreeSet, HashMap};

/// Sorts the nodes of a graph without circles. Bodies count as part of their node.
pub(crate) fn sort(graph: &mut GraphProto) {
    let mut makers: HashMap<&str, usize> = HashMap::new();
    for (place, node) in graph.node.iter().enumerate() {
        makers.extend(node.output.iter().filter(|name| !name.is_empty()).map(|name| (name.as_str(), place)));
    }
    let (mut missing, mut needed_by) = (vec![0usize; graph.node.len()], vec![Vec::new(); graph.node.len()]);
    for (place, node) in graph.node.iter().enumerate() {
        let mut needs = BTreeSet::new();
        for_each_taken(node, &mut |name| needs.extend(makers.get(name).copied().filter(|maker| *maker != place)));
        missing[place] = needs.len();
        needs.into_iter().for_each(|maker: usize| needed_by[maker].push(place));
    }
    let mut ready: BTreeSet<usize> = (0..missing.len()).filter(|place| missing[*place] == 0).collect();
    let mut order = Vec::with_capacity(missing.len());
    while let Some(place) = ready.pop_first() {
        order.push(place);
        for next in &needed_by[place] {
            missing[*next] -= 1;
            if missing[*next] == 0 {
                ready.insert(*next);
            }
        }
    }
    let mut nodes: Vec<_> = std::mem::take(&mut graph.node).into_iter().map(Some).collect();
    graph.node = order.into_iter().filter_map(|place| nodes[place].take()).collect();
    // Only of nodes in a circle, which readers refuse.
    graph.node.extend(nodes.into_iter().flatten());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::onnx::proto::NodeProto;

    #[test]
    fn nodes_come_after_what_they_take_and_otherwise_stay_in_order() {
        let node = |name: &str, input: &[&str], output: &str| {
            NodeProto::new("Op", name.into(), input.iter().map(|name| (*name).to_owned()).collect(), vec![output.into()])
        };
        let mut graph = GraphProto {
            node: vec![node("1", &["x", "c"], "a"), node("2", &["x"], "b"), node("3", &["b"], "c"), node("4", &["a"], "d")],
            ..GraphProto::default()
        };
        sort(&mut graph);
        let names: String = graph.node.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names, "2314");
    }
}
