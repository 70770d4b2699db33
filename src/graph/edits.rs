//! Changes to one graph, collected while its index is in use and then made at once, so that nodes stay in order.

use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use std::collections::{BTreeMap, HashMap, HashSet};

/// Changes by the place of nodes as they were.
#[derive(Default)]
pub(crate) struct Edits {
    /// Nodes that come first of all.
    pub first: Vec<NodeProto>,
    /// Nodes that come before another.
    pub before: BTreeMap<usize, Vec<NodeProto>>,
    /// What another node becomes; nothing, if it is empty.
    pub replaced: BTreeMap<usize, Vec<NodeProto>>,
    /// Nodes that come after another.
    pub after: BTreeMap<usize, Vec<NodeProto>>,
    /// Types of values that nothing tells otherwise.
    pub types: Vec<ValueInfoProto>,
    /// New constants.
    initializers: Vec<TensorProto>,
    /// Their places by name; of several of one name, that of the first.
    places: HashMap<String, usize>,
    /// Constants that go.
    pub removed_initializers: HashSet<String>,
}

impl Edits {
    /// Adds a constant and returns its name.
    pub(crate) fn add(&mut self, tensor: TensorProto) -> String {
        let name = tensor.name.clone();
        self.places.entry(name.clone()).or_insert(self.initializers.len());
        self.initializers.push(tensor);
        name
    }

    /// The constants that were added.
    pub(crate) fn added(&self) -> &[TensorProto] {
        &self.initializers
    }

    /// The constant of this name that was added.
    pub(crate) fn find(&self, name: &str) -> Option<&TensorProto> {
        self.places.get(name).map(|place| &self.initializers[*place])
    }

    /// Makes the changes. What was known of the type of a value that has gone goes too.
    pub(crate) fn apply(mut self, graph: &mut GraphProto) {
        let old = std::mem::take(&mut graph.node);
        graph.node = std::mem::take(&mut self.first);
        for (i, node) in old.into_iter().enumerate() {
            graph.node.extend(self.before.remove(&i).unwrap_or_default());
            match self.replaced.remove(&i) {
                Some(nodes) => graph.node.extend(nodes),
                None => graph.node.push(node),
            }
            graph.node.extend(self.after.remove(&i).unwrap_or_default());
        }
        graph.initializer.retain(|tensor| !self.removed_initializers.contains(&tensor.name));
        graph.initializer.extend(self.initializers);
        if !self.types.is_empty() {
            add_types(graph, self.types);
        }
    }
}

/// Adds the types of values that have none.
fn add_types(graph: &mut GraphProto, types: Vec<ValueInfoProto>) {
    let mut places: HashMap<String, usize> = HashMap::new();
    for (place, value) in graph.output.iter().chain(&graph.value_info).enumerate() {
        places.entry(value.name.clone()).or_insert(place);
    }
    for value in types {
        let outputs = graph.output.len();
        match places.get(&value.name) {
            Some(place) => {
                let known = if *place < outputs { &mut graph.output[*place] } else { &mut graph.value_info[*place - outputs] };
                known.r#type = known.r#type.take().or(value.r#type);
            }
            None => {
                places.insert(value.name.clone(), outputs + graph.value_info.len());
                graph.value_info.push(value);
            }
        }
    }
}
