//! Where each channel of an activation can be divided by a factor without changing what the model computes: the constants
//! that make the channel are divided by it, and the weights that meet it multiplied.
//!
//! ```text
//! W2 f(W1 x + b1) = (W2 diag(s)) f(diag(s)^-1 (W1 x + b1))     for s > 0 and f(s x) = s f(x)
//! ```
//!
//! `f` may be what rectifies or pools, a product with something else, or a sum of what is divided itself
//! ([Nagel et al. 2019](https://arxiv.org/abs/1906.04721), section 4.1).

use super::channels::{Channels, Layer, along_channels, is_float, spread};
use super::index::GraphIndex;
use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto};

/// A constant that nothing else uses, and the channel of the activation that each of its elements belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) channels: Channels,
}

/// A layer that makes the channels: what it takes and gives, and its weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) input: String,
    pub(crate) output: String,
    pub(crate) weight: Part,
    /// Channels of what it takes, in its weight.
    pub(crate) inputs: Channels,
}

/// One activation whose channels can be divided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fold {
    /// The activation.
    pub(crate) value: String,
    /// Whether channels are its last axis, and not axis 1.
    pub(crate) is_last: bool,
    /// Number of channels.
    pub(crate) count: usize,
    /// What is divided: weights and biases of layers, scales and biases of norms, constants.
    pub(crate) divided: Vec<Part>,
    /// The layers among what is divided.
    pub(crate) before: Vec<Neighbour>,
    /// Values between them and the activation, which are divided too.
    pub(crate) between: Vec<String>,
    /// Weights of all layers that take the activation, which are multiplied.
    pub(crate) after: Vec<Part>,
}

/// Every place of a graph, in the order of its nodes. No constant is divided at two of them.
pub(crate) fn find(graph: &GraphProto) -> Vec<Fold> {
    let index = GraphIndex::new(graph);
    let values = graph.node.iter().flat_map(|node| &node.output).filter(|name| !name.is_empty());
    values.filter_map(|value| Fold::at(&index, value)).collect()
}

impl Fold {
    fn at(index: &GraphIndex<'_>, value: &str) -> Option<Self> {
        let uses = index.uses(value);
        if uses.is_empty() || index.is_visible(value) {
            return None;
        }
        let (mut after, mut kinds) = (Vec::new(), Vec::new());
        for taken in uses {
            let layer = Layer::of(index, &index.graph.node[taken.node]).filter(|_| taken.input == 0)?;
            kinds.push((is_last(&layer)?, layer.shape.len(), layer.input.count));
            after.push(Part { name: only(index, &layer.weight.name)?, channels: layer.input });
        }
        let (is_last, rank, count) = kinds[0];
        if kinds.iter().any(|kind| *kind != kinds[0]) {
            return None;
        }
        let mut fold =
            Fold { value: value.to_owned(), is_last, count, divided: Vec::new(), before: Vec::new(), between: Vec::new(), after };
        fold.trace(index, value, rank, 0).then_some(fold)
    }

    /// Finds what makes the channels of a value. What was found on a way that leads nowhere is forgotten.
    fn trace(&mut self, index: &GraphIndex<'_>, value: &str, rank: usize, depth: usize) -> bool {
        let (divided, before, between) = (self.divided.len(), self.before.len(), self.between.len());
        if depth > 0 {
            self.between.push(value.to_owned());
        }
        let found = depth < DEEPEST && self.trace_node(index, value, rank, depth).is_some();
        if !found {
            self.divided.truncate(divided);
            self.before.truncate(before);
            self.between.truncate(between);
        }
        found
    }

    fn trace_node(&mut self, index: &GraphIndex<'_>, value: &str, rank: usize, depth: usize) -> Option<()> {
        let (_, node) = index.producer(value)?;
        let known = node.is_standard() && node.output[0] == value && node.output.iter().skip(1).all(|name| is_unused(index, name));
        if !known {
            return None;
        }
        if let Some(layer) = Layer::of(index, node) {
            return self.take_layer(index, &layer);
        }
        let go_on = |fold: &mut Self, input: usize| {
            let value = node.input(input)?;
            index.only_use(value)?;
            fold.trace(index, value, rank, depth + 1).then_some(())
        };
        match node.op_type.as_str() {
            "Relu" | "LeakyRelu" | "PRelu" | "Identity" | "MaxPool" | "AveragePool" | "GlobalMaxPool" | "GlobalAveragePool" => {
                // Pools go over other axes than the channels'.
                (!self.is_last || !node.op_type.ends_with("Pool")).then_some(())?;
                go_on(self, 0)
            }
            "BatchNormalization" | "InstanceNormalization" if !self.is_last && node.int("training_mode", 0) == 0 => {
                self.take_vectors(index, node, &[1, 2])
            }
            "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" if self.is_last && node.int("axis", -1) == -1 => {
                self.take_vectors(index, node, &[1, 2])
            }
            "Mul" | "Add" | "Sub" if node.input.len() == 2 => {
                let is_product = node.op_type == "Mul";
                match (0..2).find_map(|side| Some((side, index.constant(&node.input[side])?))) {
                    Some((side, constant)) if is_product && constant.elements() == Ok(1) => go_on(self, 1 - side),
                    Some((_, constant)) if is_product => self.take_constant(index, constant, rank),
                    Some((side, constant)) => {
                        self.take_constant(index, constant, rank)?;
                        go_on(self, 1 - side)
                    }
                    None if is_product => go_on(self, 0).or_else(|| go_on(self, 1)),
                    None => go_on(self, 0).and_then(|()| go_on(self, 1)),
                }
            }
            "Div" if node.input.len() == 2 && index.constant(&node.input[1]).is_some() => go_on(self, 0),
            _ => None,
        }
    }

    fn take_layer(&mut self, index: &GraphIndex<'_>, layer: &Layer<'_>) -> Option<()> {
        (layer.output.count == self.count && is_last(layer)? == self.is_last).then_some(())?;
        let weight = Part { name: only(index, &layer.weight.name)?, channels: layer.output };
        if let Some(bias) = layer.node.input(2) {
            let bias = index.constant(bias).filter(|bias| bias.elements() == Ok(self.count))?;
            self.divided.push(Part { name: only(index, &bias.name)?, channels: Channels::columns(self.count, self.count) });
        }
        self.divided.push(weight.clone());
        let (input, output) = (layer.node.input(0)?.to_owned(), layer.node.output[0].clone());
        self.before.push(Neighbour { input, output, weight, inputs: layer.input });
        Some(())
    }

    /// Vectors among a node's inputs, one element a channel; those that are not there are left out.
    fn take_vectors(&mut self, index: &GraphIndex<'_>, node: &NodeProto, inputs: &[usize]) -> Option<()> {
        node.input(1)?;
        for name in inputs.iter().filter_map(|input| node.input(*input)) {
            let vector = index.constant(name).filter(|vector| is_float(vector) && vector.dims == [self.count as i64])?;
            self.divided.push(Part { name: only(index, &vector.name)?, channels: Channels::columns(self.count, self.count) });
        }
        Some(())
    }

    /// A constant with one element a channel.
    fn take_constant(&mut self, index: &GraphIndex<'_>, constant: &TensorProto, rank: usize) -> Option<()> {
        (constant.elements() == Ok(self.count)).then_some(())?;
        if self.is_last { spread(constant, self.count, HIGHEST_RANK) } else { along_channels(constant, self.count, rank) }?;
        self.divided.push(Part { name: only(index, &constant.name)?, channels: Channels::columns(self.count, self.count) });
        Some(())
    }
}

/// Most nodes between a layer and what its input's channels are made of.
const DEEPEST: usize = 16;

/// Most dimensions that runtimes broadcast.
const HIGHEST_RANK: usize = 8;

/// Whether a layer's channels are along the last axis; `None` if its input is transposed.
fn is_last(layer: &Layer<'_>) -> Option<bool> {
    match layer.node.op_type.as_str() {
        "MatMul" => Some(true),
        "Gemm" => (layer.node.int("transA", 0) == 0).then_some(true),
        _ => Some(false),
    }
}

fn only(index: &GraphIndex<'_>, constant: &str) -> Option<String> {
    index.only_use(constant).map(|_| constant.to_owned())
}

fn is_unused(index: &GraphIndex<'_>, value: &str) -> bool {
    value.is_empty() || (index.uses(value).is_empty() && !index.is_visible(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::onnx::proto::{AttributeProto, ModelProto};
    use crate::graph::prepare::tests::{model, node, with};

    fn constant(name: &str, dims: &[i64]) -> TensorProto {
        let values: Vec<f32> = (0..dims.iter().product()).map(|i| i as f32 - 3.0).collect();
        super::super::channels::tensor(name.into(), 1, dims, &values).unwrap()
    }

    fn found(model: &ModelProto) -> Vec<Fold> {
        find(model.graph.as_deref().unwrap())
    }

    fn names(parts: &[Part]) -> Vec<&str> {
        parts.iter().map(|part| part.name.as_str()).collect()
    }

    fn chain(between: Vec<NodeProto>) -> ModelProto {
        let constants = vec![
            constant("w1", &[4, 3, 1, 1]),
            constant("b1", &[4]),
            constant("w2", &[2, 4, 3, 3]),
            constant("each", &[4, 1, 1]),
            constant("last", &[4]),
            constant("one", &[1]),
        ];
        let mut nodes = vec![node("Conv", &["x", "w1", "b1"], &["h"])];
        nodes.extend(between);
        nodes.push(node("Conv", &["v", "w2"], &["y"]));
        model(4, nodes, constants)
    }

    #[test]
    fn what_scales_with_its_input_is_passed() {
        let kinds = ["Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "Identity"];
        let passed = kinds.map(|kind| vec![node(kind, &["h"], &["v"])]);
        let sums = [
            vec![node("Mul", &["one", "h"], &["v"])],
            vec![node("Div", &["h", "each"], &["v"])],
            vec![node("Relu", &["h"], &["r"]), node("MaxPool", &["r"], &["v"])],
        ];
        for between in passed.into_iter().chain(sums) {
            let model = chain(between);
            let [fold] = &found(&model)[..] else { panic!("{:?}", found(&model)) };
            assert_eq!((names(&fold.divided), names(&fold.after), fold.count), (vec!["b1", "w1"], vec!["w2"], 4));
            assert_eq!((fold.value.as_str(), fold.before[0].output.as_str()), ("v", "h"));
        }
        let with_constant = found(&chain(vec![node("Add", &["h", "each"], &["v"])]));
        assert_eq!(names(&with_constant[0].divided), ["each", "b1", "w1"]);
        // A constant that multiplies channels is enough.
        assert_eq!(names(&found(&chain(vec![node("Mul", &["h", "each"], &["v"])]))[0].divided), ["each"]);
    }

    #[test]
    fn anything_else_is_not() {
        for between in [
            vec![node("Sigmoid", &["h"], &["v"])],
            vec![node("Add", &["h", "one"], &["v"])],
            // Along the width, not the channels.
            vec![node("Add", &["h", "last"], &["v"])],
            vec![node("Div", &["one", "h"], &["v"])],
            vec![node("Relu", &["h"], &["v"]), node("Exp", &["v"], &["other"])],
            vec![node("Relu", &["h"], &["v"]), node("Exp", &["h"], &["other"])],
            vec![node("Relu", &["h"], &["r"]), node("Add", &["r", "x"], &["v"])],
        ] {
            let model = chain(between);
            assert_eq!(found(&model), [], "{:?}", model.graph.unwrap().node);
        }
        let mut visible = chain(vec![node("Relu", &["h"], &["v"])]);
        visible.graph.as_mut().unwrap().output[0].name = "v".into();
        assert_eq!(found(&visible), []);
        let mut shared = chain(vec![node("Relu", &["h"], &["v"])]);
        shared.graph.as_mut().unwrap().node.push(node("Conv", &["x", "w1"], &["other"]));
        assert_eq!(found(&shared), []);
    }

    #[test]
    fn of_a_gated_product_the_linear_side_is_divided_and_norms_are() {
        let constants = ["up", "gate", "down"].map(|name| constant(name, &[4, 4])).into_iter();
        let constants = constants.chain([constant("scale", &[4]), constant("shift", &[4])]).collect();
        let axis = vec![AttributeProto::int("axis", -1)];
        let nodes = vec![
            with("LayerNormalization", &["x", "scale", "shift"], &["n"], axis),
            node("MatMul", &["n", "gate"], &["g"]),
            node("Sigmoid", &["g"], &["s"]),
            node("Mul", &["g", "s"], &["silu"]),
            node("MatMul", &["n", "up"], &["u"]),
            node("Mul", &["silu", "u"], &["v"]),
            node("MatMul", &["v", "down"], &["y"]),
        ];
        let [norm, gated] = &found(&model(2, nodes, constants))[..] else { panic!("expected two places") };
        assert_eq!((names(&norm.divided), names(&norm.after), norm.before.len()), (vec!["scale", "shift"], vec!["gate", "up"], 0));
        assert_eq!((names(&gated.divided), names(&gated.after), &gated.between[..]), (vec!["up"], vec!["down"], &["u".to_owned()][..]));
        assert!(norm.is_last && gated.is_last);
    }
}
