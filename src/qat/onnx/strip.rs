//! Takes all pairs out of a graph: what is left is the float model that was trained, to be quantized as any other.
//!
//! Constant codes, int32 ones of biases among them, become the floats that they stand for. Parameters of activations do not
//! matter; a DequantizeLinear whose codes are computed in another way stays.

use super::sites;
use crate::error::show_name;
use crate::formats::onnx::proto::{GraphProto, NodeProto, TensorProto};
use crate::formats::onnx::tensor::INT32;
use crate::graph::index::GraphIndex;
use crate::graph::names::Names;
use crate::graph::pairs;
use crate::graph::sweep;
use std::collections::{BTreeMap, HashMap};

/// Takes out the pairs of the top graph.
///
/// # Errors
///
/// What is wrong with parameters of constant codes, with the name of the node.
pub(crate) fn strip(graph: &mut GraphProto, names: &mut Names) -> Result<(), String> {
    let unused = sweep::unused(graph);
    super::clips::fold(graph);
    let index = GraphIndex::new(graph);
    let mut renamed: HashMap<String, String> = HashMap::new();
    let mut kept: BTreeMap<usize, NodeProto> = BTreeMap::new();
    let mut added = Vec::new();
    // By constant, scale, zero point and axis.
    let mut made: HashMap<([Option<&str>; 3], i64), String> = HashMap::new();
    for (place, node) in graph.node.iter().enumerate().filter(|(_, node)| pairs::is_dequantize(node)) {
        let (Some(codes), Some(output)) = (node.input(0), node.output.first()) else { continue };
        let source = match index.constant(codes) {
            Some(tensor) => {
                let key = ([0, 1, 2].map(|input| node.input(input)), node.int("axis", 1));
                match made.get(&key) {
                    Some(name) => String::clone(name),
                    None => {
                        let Some(constant) = floats(&index, place, node, tensor, names)? else { continue };
                        let name = constant.name.clone();
                        added.push(constant);
                        made.insert(key, name.clone());
                        name
                    }
                }
            }
            None => match quantized(&index, codes).filter(|(quantize, _)| is_same(&index, quantize, node)) {
                Some((_, value)) => renamed.get(value).cloned().unwrap_or_else(|| value.to_owned()),
                None => continue,
            },
        };
        if index.is_visible(output) {
            let name = node.name.clone();
            kept.insert(place, NodeProto::new("Identity", name, vec![source], vec![output.clone()]));
        } else {
            renamed.insert(output.clone(), source);
        }
    }
    for (place, node) in kept {
        graph.node[place] = node;
    }
    super::tidy::rename(graph, &renamed);
    graph.initializer.extend(added);
    sweep::remove(graph, &unused);
    Ok(())
}

/// The QuantizeLinear that makes codes, perhaps narrowed or handed on, and the value that it takes.
fn quantized<'g>(index: &GraphIndex<'g>, codes: &'g str) -> Option<(&'g NodeProto, &'g str)> {
    let mut value = codes;
    for _ in 0..LONGEST_PATH {
        let (_, node) = index.producer(value)?;
        if pairs::is_quantize(node) {
            return Some((node, node.input(0)?));
        }
        value = node.input(0).filter(|_| node.is("Clip") || node.is("Identity"))?;
    }
    None
}

/// Whether two nodes have the same parameters, so that one undoes the other: else they change values, and stay.
fn is_same(index: &GraphIndex<'_>, quantize: &NodeProto, dequantize: &NodeProto) -> bool {
    match (pairs::read(index, quantize), pairs::read(index, dequantize)) {
        (Ok(Some(one)), Ok(Some(other))) => one == other,
        _ => (1..3).all(|input| quantize.input(input) == dequantize.input(input)),
    }
}

/// Most nodes between the nodes of a pair.
const LONGEST_PATH: usize = 8;

/// The floats that constant codes stand for, if they are of a type that is read.
fn floats(
    index: &GraphIndex<'_>,
    place: usize,
    node: &NodeProto,
    tensor: &TensorProto,
    names: &mut Names,
) -> Result<Option<TensorProto>, String> {
    let name = names.fresh(&format!("{}_dequantized", tensor.name.strip_suffix("_quantized").unwrap_or(&tensor.name)));
    if tensor.data_type != Some(INT32) {
        let site = sites::site(index, place, node)?;
        return site.map(|site| super::weights::floats(tensor, &site, name)).transpose();
    }
    // A bias: one scale, or one for each element of its only axis.
    let scales = node.input(1).and_then(|scale| index.constant(scale)).and_then(TensorProto::to_floats);
    let (Some(scales), Some(codes)) = (scales, tensor.to_ints()) else { return Ok(None) };
    if scales.len() != 1 && scales.len() != codes.len() {
        let (label, shown) = (show_name(node.label()), show_name(&tensor.name));
        return Err(format!("node {label}: tensor {shown}: scale: expected one or {}, found {}", codes.len(), scales.len()));
    }
    let scale = |i: usize| if scales.len() == 1 { scales[0] } else { scales[i] };
    let values: Vec<f32> = codes.iter().enumerate().map(|(i, code)| *code as f32 * scale(i)).collect();
    Ok(Some(TensorProto::floats(name, &tensor.dims, &values)))
}
