//! Completes the pairs of a model so that runtimes find integer operators between them, without changing what it computes.
//!
//! Quantizing is monotone, and what is quantized already stays as it is when it is quantized the same way again. With Q and
//! D for a pair's nodes, M for an operator that only moves data (or Concat), R for Relu or Clip, `=` holds exactly:
//!
//! ```text
//! push     M(D(c))         = D(Q(M(D(c))))          what is moved keeps its parameters
//! pull     Q(M(x))         = Q(M(D(Q(x))))          and so does what is to be moved
//!          Q(R(x))         = Q(R(D(Q(x))))
//! absorb   Q(R(x))         = Q(x)                   if the smallest code is that of R's lower limit, and the largest of its upper
//! ```
//!
//! Only one step changes values: where the output of a convolution is quantized for some who take it and not for others
//! ([`share`]), it is quantized for all of them, as a convolution runs in integers only then.

use super::clips::bounds;
use super::tidy::rename;
use super::weights::TrainedConstants;
use crate::formats::onnx::proto::{GraphProto, NodeProto};
use crate::graph::activations::MOVES_DATA;
use crate::graph::index::{GraphIndex, Use};
use crate::graph::names::Names;
use crate::graph::pairs::{self, Given};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A pair that is to be put behind a value, for some who take it.
struct Insertion {
    value: String,
    like: Given,
    uses: BTreeSet<Use>,
}

/// Operators besides layers that run in integers between quantized values.
const INTEGER_OPERATORS: &[&str] = &["Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", "Softmax"];

/// Most rounds, in each of which pairs reach one operator further.
const ROUNDS: usize = 8;

/// Most nodes that are looked through one after the other.
const LONGEST_WAY: usize = 64;

/// A graph being completed.
pub(super) struct Completion<'a> {
    pub names: &'a mut Names,
    pub trained: &'a TrainedConstants,
    /// Values that have a pair now, with its parameters.
    pub inserted: BTreeMap<String, Given>,
    /// Values that were quantized for some only.
    pub shared: Vec<String>,
}

impl Completion<'_> {
    /// Does everything.
    pub(super) fn run(&mut self, graph: &mut GraphProto) {
        for _ in 0..ROUNDS {
            let before = (self.inserted.len(), self.shared.len(), graph.node.len());
            let pushed = self.push(&GraphIndex::new(graph));
            self.insert(graph, pushed);
            self.share(graph);
            absorb(graph);
            let pulled = self.pull(&GraphIndex::new(graph));
            self.insert(graph, pulled);
            super::tidy::merge(graph);
            crate::graph::sort::sort(graph);
            if before == (self.inserted.len(), self.shared.len(), graph.node.len()) {
                break;
            }
        }
    }

    /// Pairs for values that only were moved since they were quantized, and that an integer operator takes.
    fn push(&self, index: &GraphIndex<'_>) -> Vec<Insertion> {
        let mut on_grid: HashMap<&str, Given> = HashMap::new();
        let mut wanted: BTreeMap<&str, BTreeSet<Use>> = BTreeMap::new();
        for node in &index.graph.node {
            let Some(output) = node.output.first().filter(|output| !output.is_empty()) else { continue };
            if let Some(given) = pairs::given(index, output) {
                on_grid.insert(output, given);
                continue;
            }
            let mut inputs = moved(node).unwrap_or_default().map(|input| on_grid.get(input.as_str()));
            if node.is("Clip") {
                continue;
            }
            let Some(first) = inputs.next().flatten().cloned() else { continue };
            if inputs.all(|other| other.is_some_and(|other| is_same(other, &first))) {
                on_grid.insert(output, first);
            }
        }
        for value in on_grid.keys().filter(|value| pairs::given(index, value).is_none()) {
            let uses = index.uses(value).iter().filter(|place| self.takes_codes(index, **place));
            let uses: BTreeSet<Use> = uses.copied().collect();
            if !uses.is_empty() {
                wanted.insert(value, uses);
            }
        }
        // What is between is moved as codes as well.
        let mut reached: Vec<&str> = wanted.keys().copied().collect();
        while let Some(value) = reached.pop() {
            let Some((place, node)) = index.producer(value) else { continue };
            for (input, moved) in moved(node).unwrap_or_default().enumerate() {
                if pairs::given(index, moved).is_none()
                    && let Some((value, _)) = on_grid.get_key_value(moved.as_str())
                    && wanted.entry(value).or_default().insert(Use { node: place, input })
                {
                    reached.push(value);
                }
            }
        }
        wanted.into_iter().map(|(value, uses)| Insertion { value: value.to_owned(), like: on_grid[value].clone(), uses }).collect()
    }

    /// Pairs for outputs of integer operators that are only moved, or limited, before they are quantized.
    fn pull(&self, index: &GraphIndex<'_>) -> Vec<Insertion> {
        let mut insertions = Vec::new();
        for node in index.graph.node.iter().filter(|node| pairs::is_quantize(node)) {
            let (Some(value), Some(like)) = (node.input(0), given_by(index, node)) else { continue };
            let Some((place, producer)) = index.producer(value).filter(|_| index.only_use(value).is_some()) else { continue };
            for (input, value) in moved(producer).unwrap_or_default().enumerate() {
                self.pull_to(index, value, Use { node: place, input }, &like, LONGEST_WAY, &mut insertions);
            }
        }
        insertions
    }

    /// Notes pairs from `value` at most `longest` nodes backwards; whether there is an integer operator to reach.
    fn pull_to(
        &self,
        index: &GraphIndex<'_>,
        value: &str,
        user: Use,
        like: &Given,
        longest: usize,
        insertions: &mut Vec<Insertion>,
    ) -> bool {
        let is_only = |_: &(usize, &NodeProto)| longest > 0 && index.only_use(value) == Some(user);
        let Some((place, node)) = index.producer(value).filter(is_only) else { return false };
        let mut reaches = self.gives_codes(index, node);
        if !reaches {
            for (input, value) in moved(node).unwrap_or_default().enumerate() {
                reaches |= self.pull_to(index, value, Use { node: place, input }, like, longest - 1, insertions);
            }
        }
        if reaches {
            insertions.push(Insertion { value: value.to_owned(), like: like.clone(), uses: BTreeSet::from([user]) });
        }
        reaches
    }

    /// Quantizes outputs of convolutions for all who take them, if some take them quantized.
    fn share(&mut self, graph: &mut GraphProto) {
        let index = GraphIndex::new(graph);
        let mut changes: Vec<(Use, String)> = Vec::new();
        for (place, node) in graph.node.iter().enumerate().filter(|(_, node)| pairs::is_quantize(node)) {
            let (Some(value), Some(codes)) = (node.input(0), node.output.first()) else { continue };
            let dequantize = index.only_use(codes).map(|only| &graph.node[only.node]).filter(|node| pairs::is_dequantize(node));
            let Some(floats) = dequantize.map(|node| &node.output[0]).filter(|floats| pairs::given(&index, floats).is_some()) else {
                continue;
            };
            let others: Vec<Use> = index.uses(value).iter().filter(|other| other.node != place).copied().collect();
            let is_quantized_otherwise = others.iter().any(|other| pairs::is_quantize(&graph.node[other.node]));
            if others.is_empty() || is_quantized_otherwise || index.is_visible(value) || !self.is_of_convolution(&index, value) {
                continue;
            }
            changes.extend(others.into_iter().map(|other| (other, floats.clone())));
            self.shared.push(value.to_owned());
        }
        for (Use { node, input }, floats) in changes {
            graph.node[node].input[input] = floats;
        }
    }

    /// Whether a value is the output of a convolution in integers, perhaps limited.
    fn is_of_convolution(&self, index: &GraphIndex<'_>, value: &str) -> bool {
        let mut value = value;
        for _ in 0..LONGEST_WAY {
            let Some((_, node)) = index.producer(value) else { return false };
            if node.is("Conv") {
                return self.gives_codes(index, node);
            }
            let Some(input) = node.input(0).filter(|input| is_limit(node) && index.only_use(input).is_some()) else { return false };
            value = input;
        }
        false
    }

    /// Whether a node runs in integers if this input is quantized: a layer with a trained weight, or an operator whose output is
    /// quantized.
    fn takes_codes(&self, index: &GraphIndex<'_>, place: Use) -> bool {
        let node = &index.graph.node[place.node];
        match node.op_type.as_str() {
            _ if !node.is_standard() => false,
            "Conv" | "Gemm" => place.input == 0 && self.has_codes(index, node.input(1)),
            "MatMul" => place.input < 2 && self.has_codes(index, node.input(1 - place.input)),
            op_type => INTEGER_OPERATORS.contains(&op_type) && pairs::only_quantized(index, &node.output[0]).is_some(),
        }
    }

    /// Whether a node runs in integers if its output is quantized.
    fn gives_codes(&self, index: &GraphIndex<'_>, node: &NodeProto) -> bool {
        let is_given = |input: usize| node.input(input).is_some_and(|value| pairs::given(index, value).is_some());
        match node.op_type.as_str() {
            _ if !node.is_standard() => false,
            "Conv" | "Gemm" | "MatMul" => is_given(0) && self.has_codes(index, node.input(1)),
            // It is moved data as long as its inputs are not all quantized.
            "Concat" => false,
            op_type => INTEGER_OPERATORS.contains(&op_type) && (0..node.input.len()).all(is_given),
        }
    }

    /// Whether a value is a trained weight, transposed or not, or made of codes.
    fn has_codes(&self, index: &GraphIndex<'_>, value: Option<&str>) -> bool {
        let mut value = value;
        for _ in 0..LONGEST_WAY {
            let Some(name) = value else { return false };
            match index.producer(name) {
                _ if self.trained.contains_key(name) => return true,
                Some((_, node)) if pairs::is_dequantize(node) => return true,
                Some((_, node)) if node.is("Transpose") || node.is("Identity") => value = node.input(0),
                _ => return false,
            }
        }
        false
    }

    fn insert(&mut self, graph: &mut GraphProto, insertions: Vec<Insertion>) {
        for Insertion { value, like, uses } in insertions {
            let [codes, floats] = ["quantized", "dequantized"].map(|what| self.names.fresh(&format!("{value}_{what}")));
            for Use { node, input } in uses {
                graph.node[node].input[input].clone_from(&floats);
            }
            let mut node = |op_type: &str, input: &str, output: &str| {
                let name = self.names.fresh(&format!("{output}_{op_type}"));
                let inputs = vec![input.to_owned(), like.scale.clone(), like.zero_point.clone()];
                graph.node.push(NodeProto::new(op_type, name, inputs, vec![output.to_owned()]));
            };
            node("QuantizeLinear", &value, &codes);
            node("DequantizeLinear", &codes, &floats);
            self.inserted.insert(value, like);
        }
    }
}

/// Inputs of a node of which it gives elements only, or elements that are limited.
fn moved(node: &NodeProto) -> Option<std::slice::Iter<'_, String>> {
    let op_type = node.op_type.as_str();
    match op_type {
        _ if !node.is_standard() => None,
        "Concat" => Some(node.input.iter()),
        _ if MOVES_DATA.contains(&op_type) || is_limit(node) => Some(node.input.get(..1)?.iter()),
        _ => None,
    }
}

fn is_limit(node: &NodeProto) -> bool {
    node.is("Relu") || node.is("Clip")
}

fn is_same(a: &Given, b: &Given) -> bool {
    a.params == b.params && a.dtype == b.dtype
}

/// The parameters of a QuantizeLinear of one scale.
pub(super) fn given_by(index: &GraphIndex<'_>, node: &NodeProto) -> Option<Given> {
    let linear = pairs::read(index, node).ok().flatten()?;
    let [codes, scale, zero_point] = [node.output.first().map(String::as_str), node.input(1), node.input(2)];
    let own = |name: Option<&str>| name.map(str::to_owned);
    Some(Given { codes: own(codes)?, scale: own(scale)?, zero_point: own(zero_point)?, params: linear.single()?, dtype: linear.codes })
}

/// Removes what limits a value to what its codes hold anyway.
fn absorb(graph: &mut GraphProto) {
    let index = GraphIndex::new(graph);
    let (mut renamed, mut gone) = (HashMap::new(), HashSet::new());
    for node in graph.node.iter().filter(|node| pairs::is_quantize(node)) {
        let (Some(value), Some(given)) = (node.input(0), given_by(&index, node)) else { continue };
        let mut source = value;
        while let Some((place, limit)) = index.producer(source).filter(|(_, node)| is_limit(node) && index.only_use(source).is_some()) {
            let (Some((low, high)), Some(input)) = (limits(&index, limit), limit.input(0)) else { break };
            let grid = given.dtype.grid();
            let code = |end: f32| {
                let code = (f64::from(end / given.params.scale)).round_ties_even() + f64::from(given.params.zero_point);
                code.clamp(f64::from(grid.qmin), f64::from(grid.qmax)) as i32
            };
            if (code(low), code(high)) != (grid.qmin, grid.qmax) {
                break;
            }
            gone.insert(place);
            source = input;
        }
        if source != value {
            renamed.insert(value.to_owned(), source.to_owned());
        }
    }
    rename(graph, &renamed);
    let mut place = 0..;
    graph.node.retain(|_| place.next().is_none_or(|place| !gone.contains(&place)));
}

/// The limits of a Relu or a Clip.
fn limits(index: &GraphIndex<'_>, node: &NodeProto) -> Option<(f32, f32)> {
    if node.is("Relu") { Some((0.0, f32::INFINITY)) } else { bounds(index, node) }
}
