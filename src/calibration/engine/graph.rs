//! Who computes what from what, and how to run it piece by piece.
//!
//! An engine holds every value that is asked of it until the run ends. To observe all values of a model in bounded
//! memory, the nodes are run in pieces, each on the values that earlier pieces left behind: those that later pieces need
//! are kept, all others are observed and dropped. Each node runs once, so that pieces cost no more than one run.

use crate::formats::onnx::proto::{GraphProto, NodeProto, ValueInfoProto};
use std::collections::{BinaryHeap, HashMap, HashSet};

/// A value of the graph, by its place in [`Graph::names`].
pub(super) type ValueId = usize;

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The sample.
    Input,
    /// The model.
    Constant,
    /// A node, by its place in the file.
    Node(usize),
}

/// The nodes of a model and the values between them.
pub(super) struct Graph {
    names: Vec<String>,
    ids: HashMap<String, ValueId>,
    sources: Vec<Source>,
    /// The element type, where the model declares it: `TensorProto.DataType`.
    element_types: Vec<Option<i64>>,
    nodes: Vec<Node>,
    /// The nodes, each after those whose values it needs; in the file's order where that is one.
    order: Vec<usize>,
}

struct Node {
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
}

impl Graph {
    /// Reads the graph of a model.
    ///
    /// # Errors
    ///
    /// What was expected and what was found: a value that nothing computes, that two nodes compute, or that needs itself.
    pub(super) fn new(graph: &GraphProto) -> Result<Self, String> {
        let mut this = Graph {
            names: Vec::new(),
            ids: HashMap::new(),
            sources: Vec::new(),
            element_types: Vec::new(),
            nodes: Vec::new(),
            order: Vec::new(),
        };
        for tensor in &graph.initializer {
            this.add(&tensor.name, Source::Constant)?;
        }
        let is_constant = |node: &&NodeProto| node.is("Constant");
        for name in graph.node.iter().filter(is_constant).flat_map(|node| &node.output) {
            this.add(name, Source::Constant)?;
        }
        for input in &graph.input {
            // Models of old list their initializers among the inputs.
            if !this.ids.contains_key(&input.name) {
                this.add(&input.name, Source::Input)?;
            }
        }
        for (index, node) in graph.node.iter().enumerate().filter(|(_, node)| !node.is("Constant")) {
            for name in node.output.iter().filter(|name| !name.is_empty()) {
                this.add(name, Source::Node(index))?;
            }
        }
        for node in &graph.node {
            let inputs = if node.is("Constant") { Vec::new() } else { this.inputs_of(node)? };
            let outputs = node.output.iter().filter_map(|name| this.ids.get(name).copied()).collect();
            this.nodes.push(Node { inputs, outputs });
        }
        for info in graph.input.iter().chain(&graph.value_info).chain(&graph.output) {
            if let Some(id) = this.ids.get(&info.name) {
                this.element_types[*id] = this.element_types[*id].or(declared_type(info));
            }
        }
        for tensor in &graph.initializer {
            this.element_types[this.ids[&tensor.name]] = tensor.data_type;
        }
        this.order = this.sorted(&graph.node)?;
        Ok(this)
    }

    fn add(&mut self, name: &str, source: Source) -> Result<(), String> {
        let id = self.names.len();
        if self.ids.insert(name.to_owned(), id).is_some() {
            return Err(format!("value {name:?}: expected it to be computed once, found it twice"));
        }
        self.names.push(name.to_owned());
        self.sources.push(source);
        self.element_types.push(None);
        Ok(())
    }

    /// What a node reads, the bodies of control flow included.
    fn inputs_of(&self, node: &NodeProto) -> Result<Vec<ValueId>, String> {
        let mut inputs = Vec::new();
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            let found = self.ids.get(name);
            inputs.push(*found.ok_or_else(|| format!("value {name:?}: expected a node that computes it, found none"))?);
        }
        let mut used = HashSet::new();
        node.bodies().for_each(|body| collect_names(body, &mut used));
        inputs.extend(used.into_iter().filter_map(|name| self.ids.get(name).copied()));
        inputs.sort_unstable();
        inputs.dedup();
        Ok(inputs)
    }

    fn sorted(&self, nodes: &[NodeProto]) -> Result<Vec<usize>, String> {
        let source_node = |id: &ValueId| match self.sources[*id] {
            Source::Node(index) => Some(index),
            Source::Input | Source::Constant => None,
        };
        let mut waiting: Vec<usize> = vec![0; self.nodes.len()];
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate() {
            for source in node.inputs.iter().filter_map(source_node) {
                users[source].push(index);
                waiting[index] += 1;
            }
        }
        // The lowest number first: a file that is in order stays so.
        let mut ready: BinaryHeap<_> = (0..waiting.len()).filter(|index| waiting[*index] == 0).map(std::cmp::Reverse).collect();
        let mut order = Vec::with_capacity(nodes.len());
        while let Some(std::cmp::Reverse(index)) = ready.pop() {
            order.push(index);
            for user in &users[index] {
                waiting[*user] -= 1;
                if waiting[*user] == 0 {
                    ready.push(std::cmp::Reverse(*user));
                }
            }
        }
        match waiting.iter().position(|count| *count > 0) {
            None => Ok(order.into_iter().filter(|index| !nodes[*index].is("Constant")).collect()),
            Some(index) => {
                let node = &nodes[index];
                Err(format!("node {:?} ({}): expected inputs that do not depend on its outputs, found a cycle", node.name, node.op_type))
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn id(&self, name: &str) -> Option<ValueId> {
        self.ids.get(name).copied()
    }

    pub(super) fn name(&self, id: ValueId) -> &str {
        &self.names[id]
    }

    pub(super) fn source(&self, id: ValueId) -> Source {
        self.sources[id]
    }

    pub(super) fn element_type(&self, id: ValueId) -> Option<i64> {
        self.element_types[id]
    }

    /// Every value that is not a constant, in the order in which they become known.
    pub(super) fn values(&self) -> impl Iterator<Item = ValueId> + '_ {
        let inputs = (0..self.len()).filter(|id| self.sources[*id] == Source::Input);
        inputs.chain(self.order.iter().flat_map(|index| self.nodes[*index].outputs.iter().copied()))
    }

    /// Plans a run that computes `wanted`.
    pub(super) fn run(&self, wanted: &[ValueId]) -> Run<'_> {
        let mut is_wanted = vec![false; self.len()];
        wanted.iter().for_each(|id| is_wanted[*id] = true);
        let mut needed = is_wanted.clone();
        let mut steps = Vec::new();
        for index in self.order.iter().rev() {
            let node = &self.nodes[*index];
            if node.outputs.iter().any(|id| needed[*id]) {
                node.inputs.iter().for_each(|id| needed[*id] = true);
                steps.push(*index);
            }
        }
        steps.reverse();
        let (mut made_at, mut last_use) = (vec![None; self.len()], vec![None; self.len()]);
        for (position, index) in steps.iter().enumerate() {
            self.nodes[*index].inputs.iter().for_each(|id| last_use[*id] = Some(position));
            self.nodes[*index].outputs.iter().for_each(|id| made_at[*id] = Some(position));
        }
        Run { graph: self, steps, is_wanted, made_at, last_use, position: 0, longest: FIRST_PIECE }
    }
}

/// All names that a body and the bodies within it mention: its own among them, which are not the graph's.
fn collect_names<'a>(body: &'a GraphProto, names: &mut HashSet<&'a str>) {
    names.extend(body.output.iter().map(|output| output.name.as_str()));
    for node in &body.node {
        names.extend(node.input.iter().map(String::as_str));
        node.bodies().for_each(|inner| collect_names(inner, names));
    }
}

fn declared_type(info: &ValueInfoProto) -> Option<i64> {
    info.r#type.as_ref()?.tensor_type.as_ref()?.elem_type
}

/// Nodes in the first piece of a model whose sizes are not known yet. Each next one may be twice as long.
const FIRST_PIECE: usize = 4;

/// Most nodes in a piece: engines walk them recursively.
const LONGEST_PIECE: usize = 512;

/// One way through the graph.
pub(super) struct Run<'a> {
    graph: &'a Graph,
    steps: Vec<usize>,
    is_wanted: Vec<bool>,
    /// By value: the step that computes it, and the last one that reads it.
    made_at: Vec<Option<usize>>,
    last_use: Vec<Option<usize>>,
    position: usize,
    longest: usize,
}

/// Nodes that are run together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The values that it starts from, constants not among them.
    pub feeds: Vec<ValueId>,
    /// The values that it has to hand out.
    pub fetches: Vec<ValueId>,
    /// The values that no one needs any more once it is done, unless the caller wants them.
    pub done: Vec<ValueId>,
}

impl Run<'_> {
    pub(super) fn is_wanted(&self, id: ValueId) -> bool {
        self.is_wanted[id]
    }

    /// Whether a node that has not run yet reads the value.
    pub(super) fn is_needed_later(&self, id: ValueId) -> bool {
        self.last_use[id].is_some_and(|last| last >= self.position)
    }

    /// The next nodes whose values, with the `held` bytes of those that are kept already, take at most `memory` bytes by
    /// what is known of their `sizes`; at least one node. `None` at the end.
    pub(super) fn next_piece(&mut self, held: u64, memory: u64, sizes: &[Option<u64>]) -> Option<Piece> {
        if self.position == self.steps.len() {
            return None;
        }
        let (start, end) = (self.position, self.end_of_piece(held, memory, sizes));
        self.position = end;
        let nodes = || self.steps[start..end].iter().map(|index| &self.graph.nodes[*index]);
        let made: HashSet<ValueId> = nodes().flat_map(|node| &node.outputs).copied().collect();
        let mut read: Vec<ValueId> = nodes().flat_map(|node| &node.inputs).copied().collect();
        read.sort_unstable();
        read.dedup();
        let is_fed = |id: &ValueId| !made.contains(id) && self.graph.sources[*id] != Source::Constant;
        Some(Piece {
            feeds: read.iter().copied().filter(is_fed).collect(),
            fetches: nodes()
                .flat_map(|node| &node.outputs)
                .copied()
                .filter(|id| self.is_wanted[*id] || self.is_needed_later(*id))
                .collect(),
            done: read.iter().copied().filter(|id| is_fed(id) && !self.is_needed_later(*id)).collect(),
        })
    }

    fn end_of_piece(&mut self, held: u64, memory: u64, sizes: &[Option<u64>]) -> usize {
        let start = self.position;
        let guess = sizes.iter().flatten().copied().max().unwrap_or(0);
        let size = |id: ValueId| sizes[id].unwrap_or(guess);
        let mut bytes = held;
        let mut unknown = 0;
        let mut end = start;
        while end < self.steps.len() && end - start < LONGEST_PIECE {
            let node = &self.graph.nodes[self.steps[end]];
            let is_kept = |id: ValueId| self.is_wanted[id] || self.last_use[id].is_some_and(|last| last > end);
            // Values from inside the piece that were needed up to here only.
            let ends_here = |id: &&ValueId| {
                !self.is_wanted[**id] && self.last_use[**id] == Some(end) && self.made_at[**id].is_some_and(|made| made >= start)
            };
            let more = node.outputs.iter().filter(|id| is_kept(**id)).fold(bytes, |sum, id| sum.saturating_add(size(*id)));
            bytes = node.inputs.iter().filter(ends_here).fold(more, |sum, id| sum.saturating_sub(size(*id)));
            unknown += usize::from(node.outputs.iter().any(|id| is_kept(*id) && sizes[*id].is_none()));
            if end > start && (bytes > memory || unknown > self.longest) {
                break;
            }
            end += 1;
        }
        self.longest = self.longest.saturating_mul(2).min(LONGEST_PIECE);
        end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(op_type: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        NodeProto::new(op_type, String::new(), owned(inputs), owned(outputs))
    }

    fn info(name: &str) -> ValueInfoProto {
        ValueInfoProto { name: name.into(), ..ValueInfoProto::default() }
    }

    /// x → a → b → c → y, and y reads a too.
    fn chain() -> GraphProto {
        GraphProto {
            input: vec![info("x")],
            output: vec![info("y")],
            node: vec![
                node("Relu", &["x"], &["a"]),
                node("Constant", &[], &["k"]),
                node("Add", &["a", "k"], &["b"]),
                node("Relu", &["b"], &["c"]),
                node("Add", &["c", "a"], &["y"]),
                node("Relu", &["x"], &["unused"]),
            ],
            ..GraphProto::default()
        }
    }

    fn pieces(graph: &Graph, wanted: &[&str], memory: u64, sizes: &[Option<u64>]) -> Vec<[String; 3]> {
        let wanted: Vec<ValueId> = wanted.iter().map(|name| graph.id(name).unwrap()).collect();
        let names = |ids: &[ValueId]| ids.iter().map(|id| graph.name(*id)).collect::<Vec<_>>().join(" ");
        let mut run = graph.run(&wanted);
        let mut all = Vec::new();
        while let Some(piece) = run.next_piece(0, memory, sizes) {
            all.push([names(&piece.feeds), names(&piece.fetches), names(&piece.done)]);
        }
        all
    }

    #[test]
    fn pieces_feed_each_other_and_forget_what_is_used_up() {
        let graph = Graph::new(&chain()).unwrap();
        let sizes = vec![Some(8); graph.len()];
        let one_by_one = [["x", "a", "x"], ["a", "b", ""], ["b", "c", "b"], ["a c", "y", "a c"]];
        assert_eq!(pieces(&graph, &["a", "b", "c", "y"], 0, &sizes), one_by_one.map(|piece| piece.map(str::to_owned)));
        let at_once = [["x", "a b c y", "x"]];
        assert_eq!(pieces(&graph, &["a", "b", "c", "y"], 32, &sizes), at_once.map(|piece| piece.map(str::to_owned)));
        let in_two = [["x", "a b", "x"], ["a b", "c y", "a b"]];
        assert_eq!(pieces(&graph, &["a", "b", "c", "y"], 16, &sizes), in_two.map(|piece| piece.map(str::to_owned)));
        let only_the_end = [["x", "y", "x"]];
        assert_eq!(pieces(&graph, &["y"], 16, &sizes), only_the_end.map(|piece| piece.map(str::to_owned)));
        assert_eq!(pieces(&graph, &["x"], 16, &sizes), Vec::<[String; 3]>::new());
    }

    #[test]
    fn pieces_grow_while_sizes_are_unknown() {
        let mut graph = GraphProto { input: vec![info("v0")], ..GraphProto::default() };
        graph.node = (0..40).map(|i| node("Relu", &[&format!("v{i}")], &[&format!("v{}", i + 1)])).collect();
        let graph = Graph::new(&graph).unwrap();
        let wanted: Vec<ValueId> = graph.values().collect();
        let mut run = graph.run(&wanted);
        let unknown = vec![None; graph.len()];
        let lengths: Vec<usize> = std::iter::from_fn(|| run.next_piece(0, 1 << 20, &unknown)).map(|piece| piece.fetches.len()).collect();
        assert_eq!(lengths, [4, 8, 16, 12]);
    }

    #[test]
    fn nodes_in_disorder_are_put_in_order() {
        let mut proto = chain();
        proto.node.reverse();
        let graph = Graph::new(&proto).unwrap();
        let values: Vec<&str> = graph.values().map(|id| graph.name(id)).collect();
        assert_eq!(values, ["x", "unused", "a", "b", "c", "y"]);
    }

    #[test]
    fn bodies_read_values_of_the_graph_around_them() {
        let mut branch = node("If", &["x"], &["z"]);
        let body = GraphProto { node: vec![node("Relu", &["c"], &["inner"])], output: vec![info("inner")], ..GraphProto::default() };
        branch.attribute.push(crate::formats::onnx::proto::AttributeProto { g: Some(Box::new(body)), ..Default::default() });
        let mut proto = chain();
        proto.node.push(branch);
        let graph = Graph::new(&proto).unwrap();
        let sizes = vec![Some(8); graph.len()];
        assert_eq!(pieces(&graph, &["z"], 0, &sizes).last().unwrap()[0], "x c");
    }

    #[test]
    fn impossible_graphs_are_refused() {
        let cases: [(Vec<NodeProto>, &str); 3] = [
            (vec![node("Relu", &["x"], &["a"]), node("Relu", &["x"], &["a"])], "twice"),
            (vec![node("Relu", &["nothing"], &["a"])], "none"),
            (vec![node("Relu", &["b"], &["a"]), node("Relu", &["a"], &["b"])], "cycle"),
        ];
        for (node, expected) in cases {
            let graph = GraphProto { input: vec![info("x")], node, ..GraphProto::default() };
            let error = Graph::new(&graph).map(|_| ()).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
