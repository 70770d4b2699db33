//! The constants that the nodes of a graph can see.

use crate::formats::onnx::proto::{GraphProto, TensorProto};
use crate::graph::bodies;
use std::collections::{HashMap, HashSet};

/// A graph's own constants, and those around it that it does not hide.
#[derive(Default)]
pub(super) struct Visible<'o> {
    own: HashMap<String, TensorProto>,
    /// Other values of the graph.
    hidden: HashSet<String>,
    outer: Option<&'o Visible<'o>>,
}

impl<'o> Visible<'o> {
    /// The constants that `graph` sees within `outer`. Tensors share their bytes with the graph's. What is an input too is
    /// a default, not a constant.
    pub(super) fn within(graph: &GraphProto, outer: &'o Visible<'o>) -> Self {
        let mut visible = Visible { outer: Some(outer), ..Visible::default() };
        bodies::for_each_definition(graph, |name| {
            visible.hidden.insert(name.to_owned());
        });
        let inputs: HashSet<&str> = graph.input.iter().map(|value| value.name.as_str()).collect();
        let own = graph.initializer.iter().filter(|tensor| !inputs.contains(tensor.name.as_str()));
        visible.own.extend(own.map(|tensor| (tensor.name.clone(), tensor.clone())));
        visible
    }

    /// The constant of this name.
    pub(super) fn get(&self, name: &str) -> Option<&TensorProto> {
        match self.own.get(name) {
            None if !self.hidden.contains(name) => self.outer?.get(name),
            own => own,
        }
    }

    /// Adds a constant to the graph's own.
    pub(super) fn insert(&mut self, tensor: TensorProto) {
        self.own.insert(tensor.name.clone(), tensor);
    }
}
