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
    /// Where it is in the graph that holds it; anywhere for the top graph.
    pub place: BodyPlace,
}

/// Where a body is in the graph that holds it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BodyPlace {
    node: usize,
    attribute: usize,
    /// Which graph of the attribute's list; none if it holds one graph.
    listed: Option<usize>,
}

impl BodyPlace {
    /// The body at this place of `graph`.
    pub(crate) fn find(self, graph: &GraphProto) -> Option<&GraphProto> {
        let attribute = graph.node.get(self.node)?.attribute.get(self.attribute)?;
        match self.listed {
            None => attribute.g.as_deref(),
            Some(number) => attribute.graphs.get(number),
        }
    }
}

/// Every graph, each after the one that holds it.
pub(crate) fn scopes(model: &ModelProto) -> Vec<Scope<'_>> {
    let mut found = Vec::new();
    if let Some(graph) = &model.graph {
        collect(graph, TOP, String::new(), BodyPlace::default(), &mut found);
    }
    found
}

fn collect<'g>(graph: &'g GraphProto, parent: usize, path: String, place: BodyPlace, found: &mut Vec<Scope<'g>>) {
    let own = found.len();
    found.push(Scope { graph, parent, path: path.clone(), place });
    for (i, node) in graph.node.iter().enumerate() {
        let label = || if node.name.is_empty() { format!("{}_{i}", node.op_type) } else { node.name.clone() };
        for (number, attribute) in node.attribute.iter().enumerate() {
            let one = attribute.g.as_deref().map(|body| (None, body));
            let several = attribute.graphs.iter().enumerate().map(|(listed, body)| (Some(listed), body));
            for (listed, body) in one.into_iter().chain(several) {
                let separator = if path.is_empty() { "" } else { "/" };
                let place = BodyPlace { node: i, attribute: number, listed };
                collect(body, own, format!("{path}{separator}{}/{}", label(), attribute.name), place, found);
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
