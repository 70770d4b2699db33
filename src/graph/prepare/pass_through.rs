//! Removes nodes whose output is their input: Identity, and Dropout when the model is not training.
//!
//! Who took the output takes the input instead. Where the output is the graph's own, the node that produces the input
//! takes over its name; where the input is the graph's own too, the node stays.

use super::visible::Visible;
use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::graph::bodies;
use crate::graph::index::GraphIndex;
use std::collections::{HashMap, HashSet};

/// Removes such nodes and returns how many. `outer` are the constants of the graphs around this one.
pub(super) fn remove(graph: &mut GraphProto, opset: i64, outer: &Visible<'_>) -> usize {
    // What becomes of the names of outputs: the inputs' names, all renaming done.
    let mut inward: HashMap<String, String> = HashMap::new();
    // Values that get the name of an output of the graph.
    let mut outward: HashMap<String, String> = HashMap::new();
    let mut gone = HashSet::new();
    let index = GraphIndex::new(graph);
    let defined = bodies::definitions(graph);
    for (i, node) in graph.node.iter().enumerate() {
        let Some((input, output)) = passes_through(node, opset, &index, outer) else { continue };
        let source = inward.get(input).map_or(input, String::as_str).to_owned();
        if !index.is_output(output) {
            if !index.is_captured(output) || !(defined.contains(output) || defined.contains(source.as_str())) {
                inward.insert(output.to_owned(), source);
                gone.insert(i);
            }
        } else if index.producer(&source).is_some()
            && !index.is_visible(&source)
            && !index.is_captured(output)
            && !outward.contains_key(&source)
        {
            outward.insert(source, output.to_owned());
            gone.insert(i);
        }
    }
    if gone.is_empty() {
        return 0;
    }
    let renamed: HashMap<String, String> =
        inward.iter().map(|(from, to)| (from.clone(), outward.get(to).unwrap_or(to).clone())).chain(outward.clone()).collect();
    let mut i = 0..;
    graph.node.retain(|_| i.next().is_none_or(|i| !gone.contains(&i)));
    for node in &mut graph.node {
        for name in &mut node.input {
            if let Some(new) = renamed.get(name) {
                name.clone_from(new);
            }
        }
        for name in &mut node.output {
            if let Some(new) = outward.get(name) {
                name.clone_from(new);
            }
        }
        node.bodies_mut().for_each(|body| bodies::rename(body, &renamed));
    }
    graph.value_info.retain(|value| !renamed.contains_key(&value.name));
    gone.len()
}

/// The input and the output of a node that only hands on its input.
fn passes_through<'n>(node: &'n NodeProto, opset: i64, index: &GraphIndex<'_>, outer: &Visible<'_>) -> Option<(&'n str, &'n str)> {
    let (input, output) = (node.input(0)?, node.output.first().filter(|name| !name.is_empty())?);
    let is_unused = |name: &String| name.is_empty() || (index.uses(name).is_empty() && !index.is_visible(name));
    let passes = match node.op_type.as_str() {
        _ if !node.is_standard() => false,
        "Identity" => true,
        // Its second output, the mask, depends on it.
        "Dropout" if !node.output[1..].iter().all(is_unused) => false,
        "Dropout" => match node.input(2) {
            None if opset < 7 => node.int("is_test", 0) != 0,
            None => true,
            Some(training) => {
                let constant = index.constant(training).or_else(|| outer.get(training));
                constant.and_then(TensorProto::to_ints).is_some_and(|values| values == [0])
            }
        },
        _ => false,
    };
    passes.then_some((input, output.as_str()))
}
