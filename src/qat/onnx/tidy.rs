//! One pair for each way in which a value is quantized, with a scale and a zero point that are scalars.
//!
//! Exporters write a pair for every operator that takes a value, leave zero points of 0 out and give scalars one dimension;
//! ONNX Runtime makes integer operators only where a value has one consumer and all parameters are there.

use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::graph::index::GraphIndex;
use crate::graph::names::Names;
use crate::graph::pairs::{self, Linear};
use crate::outputs::onnx::rewrite::element_code;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Gives every pair of one scale a scalar scale and a scalar zero point, as constants.
pub(super) fn make_scalar(graph: &mut GraphProto, names: &mut Names) {
    let index = GraphIndex::new(graph);
    let mut made: BTreeMap<String, TensorProto> = BTreeMap::new();
    let mut inputs: BTreeMap<usize, ([String; 2], bool)> = BTreeMap::new();
    for (place, node) in graph.node.iter().enumerate() {
        let Some((linear, params)) = single(&index, node).and_then(|linear| Some((linear.clone(), linear.single()?))) else { continue };
        let mut scalar = |name: &str| -> Option<String> {
            let tensor = index.constant(name)?;
            if tensor.dims.is_empty() {
                return Some(name.to_owned());
            }
            let made = made.entry(name.to_owned()).or_insert_with(|| {
                let name = names.fresh(&format!("{name}_scalar"));
                TensorProto { name, dims: Vec::new(), ..tensor.clone() }
            });
            Some(made.name.clone())
        };
        let Some(scale) = node.input(1).and_then(&mut scalar) else { continue };
        let zero_point = match node.input(2) {
            Some(name) => scalar(name),
            None => {
                let key = format!("\0{}", linear.codes);
                let made = made.entry(key).or_insert_with(|| {
                    let bytes = vec![0; linear.codes.bits() as usize / 8];
                    TensorProto::raw(names.fresh(&format!("{}_zero_point", linear.codes)), element_code(linear.codes), &[], bytes)
                });
                debug_assert_eq!(params.zero_point, 0, "what is left out is 0");
                Some(made.name.clone())
            }
        };
        let Some(zero_point) = zero_point else { continue };
        inputs.insert(place, ([scale, zero_point], linear.codes.bits() == 8));
    }
    for (place, ([scale, zero_point], is_standard)) in inputs {
        let node = &mut graph.node[place];
        // Those of 16 bits are ONNX Runtime's own in models before opset 21.
        if is_standard {
            node.domain.clear();
        }
        node.input.resize(3, String::new());
        node.input[1] = scale;
        node.input[2] = zero_point;
    }
    graph.initializer.extend(made.into_values());
}

/// Makes one of all QuantizeLinear nodes that do the same to the same value, and of DequantizeLinear nodes.
pub(super) fn merge(graph: &mut GraphProto) {
    for is_wanted in [pairs::is_quantize, pairs::is_dequantize] {
        let index = GraphIndex::new(graph);
        let mut first: HashMap<(String, String), (usize, Linear)> = HashMap::new();
        let (mut renamed, mut gone) = (HashMap::new(), HashSet::new());
        for (place, node) in graph.node.iter().enumerate().filter(|(_, node)| is_wanted(node)) {
            let (Some(linear), Some(input), Some(output)) = (single(&index, node), node.input(0), node.output.first()) else { continue };
            if index.is_visible(output) {
                continue;
            }
            // The type of the scale is that of the floats.
            let dtype = node.input(1).and_then(|scale| index.constant(scale)).and_then(|scale| scale.data_type);
            let key = (input.to_owned(), format!("{dtype:?} {linear:?}"));
            match first.get(&key) {
                Some((other, same)) if *same == linear => {
                    renamed.insert(output.clone(), graph.node[*other].output[0].clone());
                    gone.insert(place);
                }
                _ => drop(first.insert(key, (place, linear))),
            }
        }
        let mut place = 0..;
        graph.node.retain(|_| place.next().is_none_or(|place| !gone.contains(&place)));
        rename(graph, &renamed);
    }
}

/// Lets nodes of the graph take other values than they do.
pub(super) fn rename(graph: &mut GraphProto, renamed: &HashMap<String, String>) {
    for input in graph.node.iter_mut().flat_map(|node| &mut node.input) {
        if let Some(new) = renamed.get(input) {
            input.clone_from(new);
        }
    }
}

/// The parameters of a node of a pair, if there is one scale.
fn single(index: &GraphIndex<'_>, node: &NodeProto) -> Option<Linear> {
    let is_of_pair = pairs::is_quantize(node) || pairs::is_dequantize(node);
    let linear = if is_of_pair { pairs::read(index, node).ok().flatten()? } else { return None };
    linear.single().map(|_| linear)
}
