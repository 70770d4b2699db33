//! Names that nothing in a model has yet.

use crate::formats::onnx::proto::{GraphProto, ModelProto};
use std::collections::HashSet;

/// All names of values and nodes of a model, and new ones beside them.
pub(crate) struct Names {
    taken: HashSet<String>,
}

impl Names {
    pub(crate) fn of(model: &ModelProto) -> Self {
        let mut names = Names { taken: HashSet::new() };
        if let Some(graph) = &model.graph {
            names.collect(graph);
        }
        names
    }

    fn collect(&mut self, graph: &GraphProto) {
        self.taken.extend(graph.initializer.iter().map(|tensor| tensor.name.clone()));
        self.taken.extend(graph.input.iter().chain(&graph.output).chain(&graph.value_info).map(|value| value.name.clone()));
        for node in &graph.node {
            self.taken.insert(node.name.clone());
            self.taken.extend(node.input.iter().chain(&node.output).cloned());
            node.bodies().for_each(|body| self.collect(body));
        }
    }

    /// `wanted`, or with the first number that makes it new.
    pub(crate) fn fresh(&mut self, wanted: &str) -> String {
        let mut name = wanted.to_owned();
        let mut number = 1;
        while !self.taken.insert(name.clone()) {
            number += 1;
            name = format!("{wanted}_{number}");
        }
        name
    }
}
