//! Names that nothing in a model has yet.

use crate::formats::onnx::proto::{GraphProto, ModelProto};
use std::collections::{HashMap, HashSet};

/// All names of values and nodes of a model, and new ones beside them.
pub(crate) struct Names {
    taken: HashSet<String>,
    /// By what was wanted and taken, the last number that was put behind it.
    numbers: HashMap<String, usize>,
}

impl Names {
    pub(crate) fn of(model: &ModelProto) -> Self {
        let mut names = Names { taken: HashSet::new(), numbers: HashMap::new() };
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
        while !self.taken.insert(name.clone()) {
            // Names are never given back, so that smaller numbers are all taken.
            let number = self.numbers.entry(wanted.to_owned()).or_insert(1);
            *number += 1;
            name = format!("{wanted}_{number}");
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_first_numbers_that_are_free() {
        let mut names = Names { taken: ["w", "w_3", "w_2_2"].map(String::from).into(), numbers: HashMap::new() };
        let wanted = ["w", "w", "v", "w_2", "v", "w", "w_2", "w_4"];
        assert_eq!(wanted.map(|name| names.fresh(name)), ["w_2", "w_4", "v", "w_2_3", "v_2", "w_5", "w_2_4", "w_4_2"]);
    }

    #[test]
    fn many_names_of_one_are_found_without_counting_from_the_first() {
        // That would be five thousand million names.
        let mut names = Names { taken: HashSet::new(), numbers: HashMap::new() };
        let last = (0..100_000).map(|_| names.fresh("w")).last();
        assert_eq!(last.as_deref(), Some("w_100000"));
    }
}
