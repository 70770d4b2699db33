//! Names in the bodies of control flow.

use crate::formats::onnx::proto::{GraphProto, NodeProto};
use std::collections::{HashMap, HashSet};

/// Visits every name that a graph gives to a value of its own, not those of bodies within.
pub(crate) fn for_each_definition<'g>(graph: &'g GraphProto, mut visit: impl FnMut(&'g str)) {
    graph.input.iter().for_each(|value| visit(&value.name));
    graph.initializer.iter().for_each(|tensor| visit(&tensor.name));
    graph.node.iter().flat_map(|node| &node.output).for_each(|name| visit(name));
}

/// Every name that the bodies of a graph's nodes, and those within, give to values of their own. None of them is a name of
/// the graph around in a valid model.
pub(crate) fn definitions(graph: &GraphProto) -> HashSet<&str> {
    let mut found = HashSet::new();
    for body in graph.node.iter().flat_map(NodeProto::bodies) {
        for_each_definition(body, |name| {
            found.insert(name);
        });
        found.extend(definitions(body));
    }
    found
}

/// Visits every name that a node takes, itself and in its bodies, from whatever graph.
pub(crate) fn for_each_taken<'g>(node: &'g NodeProto, visit: &mut dyn FnMut(&'g str)) {
    node.input.iter().filter(|name| !name.is_empty()).for_each(|name| visit(name));
    for body in node.bodies() {
        body.output.iter().for_each(|value| visit(&value.name));
        body.node.iter().for_each(|node| for_each_taken(node, visit));
    }
}

/// Gives other names to values that a body takes from around it.
pub(crate) fn rename(body: &mut GraphProto, renamed: &HashMap<String, String>) {
    let apply = |name: &mut String| {
        if let Some(new) = renamed.get(name) {
            name.clone_from(new);
        }
    };
    body.output.iter_mut().for_each(|value| apply(&mut value.name));
    for node in &mut body.node {
        node.input.iter_mut().for_each(apply);
        node.bodies_mut().for_each(|inner| rename(inner, renamed));
    }
}
