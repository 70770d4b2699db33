//! All graphs of a model: the top one and the bodies of control flow, numbered as they are met.

use crate::formats::onnx::proto::{GraphProto, ModelProto};

/// The number of the top graph.
pub(crate) const TOP: usize = 0;

/// One graph of a model.
pub(crate) struct Scope<'g> {
    pub graph: &'g GraphProto,
    /// The graph that holds it; its own number for the top graph.
    pub parent: usize,
    /// Names of nodes and attributes on the way to it, such as `if_node/then_branch`; empty for the top graph.
    pub path: String,
}

/// Every graph, each after the one that holds it.
pub(crate) fn scopes(model: &ModelProto) -> Vec<Scope<'_>> {
    let mut found = Vec::new();
    if let Some(graph) = &model.graph {
        collect(graph, TOP, String::new(), &mut found);
    }
    found
}

fn collect<'g>(graph: &'g GraphProto, parent: usize, path: String, found: &mut Vec<Scope<'g>>) {
    let own = found.len();
    found.push(Scope { graph, parent, path: path.clone() });
    for (i, node) in graph.node.iter().enumerate() {
        let label = || if node.name.is_empty() { format!("{}_{i}", node.op_type) } else { node.name.clone() };
        for attribute in &node.attribute {
            for body in attribute.g.as_deref().into_iter().chain(&attribute.graphs) {
                let separator = if path.is_empty() { "" } else { "/" };
                collect(body, own, format!("{path}{separator}{}/{}", label(), attribute.name), found);
            }
        }
    }
}

/// Calls `change` with every graph and its number, in the order of [`scopes`], each before those that it holds, as it was
/// before the change.
pub(crate) fn for_each_mut(model: &mut ModelProto, change: &mut dyn FnMut(usize, &mut GraphProto)) {
    if let Some(graph) = &mut model.graph {
        visit(graph, &mut 0, change);
    }
}

fn visit(graph: &mut GraphProto, next: &mut usize, change: &mut dyn FnMut(usize, &mut GraphProto)) {
    let own = *next;
    *next += 1;
    // Bodies first, as the change may move nodes; numbers are those of the order in which they are met.
    for node in &mut graph.node {
        node.bodies_mut().for_each(|body| visit(body, next, change));
    }
    change(own, graph);
}
