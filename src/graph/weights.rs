//! Finds the weights of a model: constants that a row of [`OPERATORS`](super::ops::OPERATORS) says are weights, also
//! behind operators that only rename, cast, transpose or reshape them, and in the bodies of control flow.

use super::index::GraphIndex;
use super::ops::{WeightInput, operator};
use super::scopes::{Scope, scopes};
use crate::formats::onnx::proto::{ModelProto, NodeProto, TensorProto};
use crate::recipe::CustomLayer;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A constant of a model, by the graph it is in and its name there.
pub(crate) type Key = (usize, String);

/// One node that takes a weight.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// The graph it is in.
    pub scope: usize,
    /// Its place in that graph.
    pub node: usize,
    /// Its name, or its operator and place.
    pub name: String,
    /// Its operator.
    pub op: String,
    /// Which of its inputs is the weight.
    pub input: usize,
    /// The weight.
    pub weight: Key,
    /// What happens to the weight on the way.
    pub path: WeightPath,
    /// The axis of output channels, of the weight as it is stored.
    pub axis: usize,
}

impl Layer {
    /// Graph, node and input.
    pub(crate) fn place(&self) -> (usize, usize, usize) {
        (self.scope, self.node, self.input)
    }
}

/// What lies between a stored constant and the node that takes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WeightPath {
    /// Nodes on the way, in the layer's graph, from the constant on.
    pub nodes: Vec<usize>,
    /// Whether the last two axes are swapped.
    pub transposed: bool,
    /// The type it is cast to.
    pub cast_to: Option<i64>,
}

/// What was found.
pub(crate) struct Weights {
    /// Nodes with their weights, by graph and place.
    pub layers: Vec<Layer>,
    /// Constants that are no weights, or that cannot be quantized, and why.
    pub others: BTreeMap<Key, String>,
    /// Names of constants as they are shown, unique in the model.
    pub shown: BTreeMap<Key, String>,
}

/// Finds all weights, `custom` saying which inputs of operators of other domains are some.
pub(crate) fn find(model: &ModelProto, custom: &[CustomLayer]) -> Weights {
    let scopes = scopes(model);
    let indexes: Vec<GraphIndex<'_>> = scopes.iter().map(|scope| GraphIndex::new(scope.graph)).collect();
    let mut by_operator: HashMap<(&str, &str), Vec<&CustomLayer>> = HashMap::new();
    for layer in custom {
        layer.operator().into_iter().for_each(|operator| by_operator.entry(operator).or_default().push(layer));
    }
    let mut found = Weights { layers: Vec::new(), others: BTreeMap::new(), shown: shown_names(&scopes) };
    for (number, index) in indexes.iter().enumerate() {
        for (place, node) in index.graph.node.iter().enumerate() {
            let known = operator(node);
            let of_operator = known.into_iter().flat_map(|operator| operator.weights);
            let declared = by_operator.get(&(node.domain.as_str(), node.op_type.as_str())).into_iter().flatten().copied();
            let inputs = of_operator.map(WeightOf::Known).chain(declared.map(WeightOf::Custom));
            for weight in inputs {
                let Some(value) = node.input(weight.input()) else { continue };
                let Some((key, path, tensor)) = trace(&scopes, &indexes, number, value) else { continue };
                let name = shown_node(&scopes[number], node, place);
                let rank = tensor.dims.len();
                if !weight.is_about(&name, &key.1) {
                    continue;
                }
                let Some(mut axis) = weight.axis(node, rank) else {
                    found.others.entry(key).or_insert_with(|| format!("rank {rank} as input {} of {}", weight.input(), node.op_type));
                    continue;
                };
                if path.transposed && axis + 2 >= rank {
                    axis = 2 * rank - 3 - axis;
                }
                let op = weight.op(node);
                found.layers.push(Layer { scope: number, node: place, name, op, input: weight.input(), weight: key, path, axis });
                if known.is_some_and(|operator| operator.op_type == "MatMul") {
                    // Both inputs constant: one of them is enough.
                    break;
                }
            }
        }
    }
    keep_others(&scopes, &indexes, &mut found);
    found
}

/// An input that is a weight, as the table of operators says or the recipe does.
enum WeightOf<'a> {
    Known(&'a WeightInput),
    Custom(&'a CustomLayer),
}

impl WeightOf<'_> {
    fn input(&self) -> usize {
        match self {
            WeightOf::Known(weight) => weight.input,
            WeightOf::Custom(layer) => layer.input.unwrap_or_default(),
        }
    }

    /// The axis of output channels of a weight of so many dimensions.
    fn axis(&self, node: &NodeProto, rank: usize) -> Option<usize> {
        match self {
            WeightOf::Known(weight) => (weight.axis)(node, rank),
            WeightOf::Custom(layer) => layer.channels(rank),
        }
    }

    /// Whether a node and a constant of these names are meant.
    fn is_about(&self, node: &str, constant: &str) -> bool {
        match self {
            WeightOf::Known(_) => true,
            WeightOf::Custom(layer) => layer.pattern.as_ref().is_none_or(|pattern| pattern.matches(node) || pattern.matches(constant)),
        }
    }

    /// What the operator is called.
    fn op(&self, node: &NodeProto) -> String {
        match self {
            WeightOf::Known(_) => node.op_type.clone(),
            WeightOf::Custom(layer) => layer.op.clone().unwrap_or_default(),
        }
    }
}

/// Reasons for all constants that no layer takes, and for weights that others than layers take too.
fn keep_others(scopes: &[Scope<'_>], indexes: &[GraphIndex<'_>], found: &mut Weights) {
    let weights: HashSet<&Key> = found.layers.iter().map(|layer| &layer.weight).collect();
    let mut others: BTreeMap<Key, String> = BTreeMap::new();
    for (number, scope) in scopes.iter().enumerate() {
        for tensor in &scope.graph.initializer {
            let key = (number, tensor.name.clone());
            if indexes[number].is_input(&tensor.name) {
                others.insert(key, "also an input of the graph, so that callers may replace it".into());
            } else if !weights.contains(&key) {
                let reason = match indexes[number].uses(&tensor.name) {
                    [] if indexes[number].is_captured(&tensor.name) => "no weight of a known operator, used in a body".into(),
                    [] => "not used".into(),
                    [first, ..] => format!("input {} of {}", first.input, scope.graph.node[first.node].op_type),
                };
                others.insert(key, reason);
            }
        }
    }
    for (key, reason) in others {
        found.others.entry(key).or_insert(reason);
    }
    let others = &found.others;
    found.layers.retain(|layer| !others.contains_key(&layer.weight));
}

/// Most nodes between a constant and the node that takes it.
const LONGEST_PATH: usize = 8;

/// The constant that `value` is made of, and how.
fn trace<'g>(scopes: &[Scope<'g>], indexes: &[GraphIndex<'g>], scope: usize, value: &str) -> Option<(Key, WeightPath, &'g TensorProto)> {
    let mut path = WeightPath::default();
    let mut value = value.to_owned();
    for _ in 0..LONGEST_PATH {
        let Some((place, node)) = indexes[scope].producer(&value) else { break };
        match node.op_type.as_str() {
            _ if !node.is_standard() || indexes[scope].is_visible(&value) => return None,
            "Identity" => {}
            "Cast" => path.cast_to = path.cast_to.or(Some(node.int("to", 0))),
            "Transpose" if !path.transposed && swaps_last_two(node) => path.transposed = true,
            _ => return None,
        }
        path.nodes.insert(0, place);
        value = node.input(0)?.to_owned();
    }
    // In this graph, or in one around it.
    let mut holder = scope;
    loop {
        if let Some(tensor) = indexes[holder].initializer(&value) {
            let is_float = tensor.dtype().is_some_and(|dtype| dtype.is_decodable());
            return is_float.then_some(((holder, value), path, tensor));
        }
        if indexes[holder].producer(&value).is_some() || indexes[holder].is_input(&value) || scopes[holder].parent == holder {
            return None;
        }
        holder = scopes[holder].parent;
    }
}

/// Whether a Transpose swaps the last two axes, as it says itself.
pub(crate) fn swaps_last_two(node: &NodeProto) -> bool {
    let Some(perm) = node.attribute("perm").map(|attribute| &attribute.ints) else { return false };
    let rank = perm.len() as i64;
    rank >= 2
        && perm[..perm.len() - 2].iter().enumerate().all(|(i, axis)| *axis == i as i64)
        && perm[perm.len() - 2..] == [rank - 1, rank - 2]
}

/// The name of a node as it is shown: its own, or its operator and place.
pub(crate) fn shown_node(scope: &Scope<'_>, node: &NodeProto, place: usize) -> String {
    let name = if node.name.is_empty() { format!("{}_{place}", node.op_type) } else { node.name.clone() };
    if scope.path.is_empty() { name } else { format!("{}/{name}", scope.path) }
}

fn shown_names(scopes: &[Scope<'_>]) -> BTreeMap<Key, String> {
    let mut count: HashMap<&str, usize> = HashMap::new();
    for tensor in scopes.iter().flat_map(|scope| &scope.graph.initializer) {
        *count.entry(&tensor.name).or_default() += 1;
    }
    let mut shown = BTreeMap::new();
    for (number, scope) in scopes.iter().enumerate() {
        for tensor in &scope.graph.initializer {
            let name = if count[tensor.name.as_str()] == 1 { tensor.name.clone() } else { format!("{}/{}", scope.path, tensor.name) };
            shown.insert((number, tensor.name.clone()), name);
        }
    }
    shown
}
