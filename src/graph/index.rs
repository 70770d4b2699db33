//! Who produces and who consumes each value of one graph.

use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto};
use crate::quant::params::Params;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};

/// Parameters, or what is wrong with them.
type ReadParams = Result<Arc<[Params]>, String>;

/// A node's input: which node, which of its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Use {
    pub node: usize,
    pub input: usize,
}

/// An index of one graph; bodies of control flow are graphs of their own, and what they take from this one is captured.
pub(crate) struct GraphIndex<'g> {
    pub graph: &'g GraphProto,
    producers: HashMap<&'g str, usize>,
    uses: HashMap<&'g str, Vec<Use>>,
    captured: HashSet<&'g str>,
    outputs: HashSet<&'g str>,
    inputs: HashMap<&'g str, usize>,
    initializers: HashMap<&'g str, usize>,
    /// What was read of scales and zero points, by their places among the initializers.
    params: Mutex<HashMap<[Option<usize>; 2], ReadParams>>,
}

impl<'g> GraphIndex<'g> {
    pub(crate) fn new(graph: &'g GraphProto) -> Self {
        let mut index = GraphIndex {
            graph,
            producers: HashMap::new(),
            uses: HashMap::new(),
            captured: HashSet::new(),
            outputs: graph.output.iter().map(|value| value.name.as_str()).collect(),
            inputs: graph.input.iter().enumerate().map(|(i, value)| (value.name.as_str(), i)).collect(),
            initializers: graph.initializer.iter().enumerate().map(|(i, tensor)| (tensor.name.as_str(), i)).collect(),
            params: Mutex::default(),
        };
        for (i, node) in graph.node.iter().enumerate() {
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                index.producers.insert(name, i);
            }
            for (input, name) in node.input.iter().enumerate().filter(|(_, name)| !name.is_empty()) {
                index.uses.entry(name).or_default().push(Use { node: i, input });
            }
            node.bodies().for_each(|body| capture(body, &mut index.captured));
        }
        index
    }

    /// The node that a value comes from.
    pub(crate) fn producer(&self, value: &str) -> Option<(usize, &'g NodeProto)> {
        self.producers.get(value).map(|node| (*node, &self.graph.node[*node]))
    }

    /// The nodes of this graph that take a value, in order.
    pub(crate) fn uses(&self, value: &str) -> &[Use] {
        self.uses.get(value).map_or(&[], Vec::as_slice)
    }

    /// The one node input that takes a value which nobody else can see: it is no output, and no body takes it.
    pub(crate) fn only_use(&self, value: &str) -> Option<Use> {
        match self.uses(value) {
            [only] if !self.is_visible(value) => Some(*only),
            _ => None,
        }
    }

    /// Whether a value is seen beyond this graph's nodes: as its output, or in a body.
    pub(crate) fn is_visible(&self, value: &str) -> bool {
        self.outputs.contains(value) || self.captured.contains(value)
    }

    /// Whether a value is an output of the graph.
    pub(crate) fn is_output(&self, value: &str) -> bool {
        self.outputs.contains(value)
    }

    /// Whether a body of control flow takes a value (or has one of that name itself).
    pub(crate) fn is_captured(&self, value: &str) -> bool {
        self.captured.contains(value)
    }

    /// Whether a value is an input of the graph.
    pub(crate) fn is_input(&self, value: &str) -> bool {
        self.inputs.contains_key(value)
    }

    /// The graph's input of this name.
    pub(crate) fn input(&self, name: &str) -> Option<&'g ValueInfoProto> {
        self.inputs.get(name).map(|input| &self.graph.input[*input])
    }

    /// The initializer of this name, whose value nobody can replace: it is no input.
    pub(crate) fn constant(&self, value: &str) -> Option<&'g TensorProto> {
        self.initializer(value).filter(|_| !self.is_input(value))
    }

    /// What a scale and a zero point, both initializers, say together: read once.
    pub(super) fn params_of(&self, (scale, zero_point): (&str, Option<&str>), read: impl FnOnce() -> ReadParams) -> ReadParams {
        let place = |name| self.initializers.get(name).copied();
        let mut known = self.params.lock().expect("reading does not panic");
        known.entry([place(scale), zero_point.and_then(place)]).or_insert_with(read).clone()
    }

    /// The initializer of this name.
    pub(crate) fn initializer(&self, value: &str) -> Option<&'g TensorProto> {
        self.initializers.get(value).map(|i| &self.graph.initializer[*i])
    }
}

/// Every name that the nodes of a body take, from whatever graph.
fn capture<'g>(body: &'g GraphProto, captured: &mut HashSet<&'g str>) {
    captured.extend(body.output.iter().map(|value| value.name.as_str()));
    for node in &body.node {
        captured.extend(node.input.iter().map(String::as_str));
        node.bodies().for_each(|body| capture(body, captured));
    }
}
