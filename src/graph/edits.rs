//! Changes to one graph, collected while its index is in use and then made at once, so that nodes stay in order.

use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use std::collections::{BTreeMap, HashSet};

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
    pub initializers: Vec<TensorProto>,
    /// Constants that go.
    pub removed_initializers: HashSet<String>,
}

impl Edits {
    /// Adds a constant and returns its name.
    pub(crate) fn add(&mut self, tensor: TensorProto) -> String {
        let name = tensor.name.clone();
        self.initializers.push(tensor);
        name
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
        for value in self.types {
            match graph.output.iter_mut().chain(&mut graph.value_info).find(|known| known.name == value.name) {
                Some(known) => known.r#type = known.r#type.take().or(value.r#type),
                None => graph.value_info.push(value),
            }
        }
    }
}
