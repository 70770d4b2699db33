//! Constants that pass through QuantizeLinear and DequantizeLinear.
//!
//! ```text
//! weight [→ Transpose] → QuantizeLinear [→ Clip] → DequantizeLinear [→ Transpose] → Conv, MatMul, Gemm …
//! codes                                          → DequantizeLinear [→ Transpose] → Conv, MatMul, Gemm …
//! ```
//!
//! Of weights of layers the pair goes, so that the layer takes floats as in any float model, and its parameters are
//! remembered with the constant; codes become the floats that they stand for, which the same parameters turn into the same
//! codes again. Any other constant becomes codes at once, and only its DequantizeLinear stays.
//!
//! A Clip of codes narrows their grid, as exporters write 7 bits; a Clip of the floats is computed.

use super::sites::{Site, find};
use crate::error::show_name;
use crate::formats::onnx::proto::{GraphProto, TensorProto};
use crate::formats::onnx::tensor::code_of;
use crate::graph::index::GraphIndex;
use crate::graph::names::Names;
use crate::graph::ops::operator;
use crate::graph::sweep;
use crate::graph::weights::swaps_last_two;
use crate::outputs::onnx::rewrite::element_code;
use crate::quant::granularity::GroupLayout;
use crate::quant::kernel::{Arithmetic, quantize};
use crate::quant::params::Params;
use crate::quant::scheme::{CodeType, Granularity, Grid};
use crate::tensor::encode_f32;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// How the weight of a layer was trained.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TrainedConstant {
    pub codes: CodeType,
    /// The codes that are used.
    pub grid: Grid,
    pub params: Arc<[Params]>,
    /// The axis that scales are along, of the weight as it is stored.
    pub axis: Option<usize>,
}

/// By the name of an initializer of the top graph.
pub(super) type TrainedConstants = BTreeMap<String, TrainedConstant>;

/// Changes to constants and to the inputs of nodes.
#[derive(Default)]
struct Changes {
    /// What nodes take instead of a value.
    renamed: BTreeMap<String, String>,
    /// What DequantizeLinear nodes take instead of their codes.
    dequantized: BTreeMap<usize, String>,
    added: Vec<TensorProto>,
    removed: BTreeSet<String>,
}

/// Takes the pairs off all weights of layers and makes codes of other constants.
///
/// # Errors
///
/// What is wrong, with the names of node and tensor: parameters that cannot be, an axis that the constant does not have, or
/// several ways to quantize one constant.
pub(super) fn fold(graph: &mut GraphProto, names: &mut Names) -> Result<TrainedConstants, String> {
    let unused = sweep::unused(graph);
    super::clips::fold(graph);
    let index = GraphIndex::new(graph);
    let sites = find(&index)?;
    let mut trained = TrainedConstants::new();
    check_agreement(&index, &sites)?;
    let of_layers: Vec<&Site> = sites.iter().filter(|site| is_of_layer(&index, site)).collect();
    let of_layer: HashSet<usize> = of_layers.iter().map(|site| site.dequantize).collect();
    let steps: BTreeSet<usize> = of_layers.iter().flat_map(|site| site.path.nodes.iter().chain([&site.dequantize])).copied().collect();
    let mut known: BTreeMap<&str, bool> = BTreeMap::new();
    for value in sites.iter().flat_map(|site| &site.path.values) {
        let is_shared = || index.is_visible(value) || index.uses(value).iter().any(|place| !steps.contains(&place.node));
        known.entry(value).or_insert_with(is_shared);
    }
    let mut changes = Changes::default();
    let mut copies: BTreeMap<(String, bool), String> = BTreeMap::new();
    for site in &sites {
        let tensor = index.constant(&site.constant).ok_or("the index finds constants")?;
        let shared = site.path.values.iter().any(|value| known[value.as_str()]);
        let is_direct = site.path.values.len() == 1;
        let is_ours = of_layer.contains(&site.dequantize) && (is_direct || !shared);
        let key = (site.constant.clone(), is_ours);
        match (is_ours, site.quantize.is_some()) {
            (true, true) => {
                let value = match (shared, copies.get(&key)) {
                    (false, _) => site.path.values.last().cloned().unwrap_or_default(),
                    (true, Some(name)) => name.clone(),
                    (true, None) => {
                        let name = names.fresh(&format!("{}_trained", site.constant));
                        changes.added.push(TensorProto { name: name.clone(), ..tensor.clone() });
                        name
                    }
                };
                let stored = if shared { value.clone() } else { site.constant.clone() };
                copies.insert(key, value.clone());
                changes.renamed.insert(index.graph.node[site.dequantize].output[0].clone(), value);
                trained.insert(stored, site.trained.clone());
            }
            (true, false) => {
                let name = match copies.get(&key) {
                    Some(name) => name.clone(),
                    None => {
                        let name = if shared { names.fresh(&format!("{}_trained", site.constant)) } else { site.constant.clone() };
                        if !shared {
                            changes.removed.insert(name.clone());
                        }
                        changes.added.push(floats(tensor, site, name.clone())?);
                        name
                    }
                };
                copies.insert(key, name.clone());
                changes.renamed.insert(index.graph.node[site.dequantize].output[0].clone(), name.clone());
                trained.insert(name, site.trained.clone());
            }
            (false, true) if is_direct => {
                let name = match copies.get(&key) {
                    Some(name) => name.clone(),
                    None => {
                        let name = names.fresh(&format!("{}_quantized", site.constant));
                        changes.added.push(codes(tensor, site, name.clone())?);
                        name
                    }
                };
                copies.insert(key, name.clone());
                changes.dequantized.insert(site.dequantize, name);
            }
            (false, _) => {}
        }
    }
    changes.make(graph);
    sweep::remove(graph, &unused);
    Ok(trained)
}

impl Changes {
    fn make(self, graph: &mut GraphProto) {
        for (place, node) in graph.node.iter_mut().enumerate() {
            if let Some(codes) = self.dequantized.get(&place) {
                node.input[0].clone_from(codes);
            }
            for input in &mut node.input {
                if let Some(new) = self.renamed.get(input) {
                    input.clone_from(new);
                }
            }
        }
        graph.initializer.retain(|tensor| !self.removed.contains(&tensor.name));
        graph.initializer.extend(self.added);
    }
}

/// One constant is quantized in one way only.
fn check_agreement(index: &GraphIndex<'_>, sites: &[Site]) -> Result<(), String> {
    let mut first: BTreeMap<&str, &Site> = BTreeMap::new();
    for site in sites {
        let known = first.entry(&site.constant).or_insert(site);
        if known.trained != site.trained {
            let label = |site: &Site| show_name(index.graph.node[site.quantize.unwrap_or(site.dequantize)].label()).to_string();
            let (one, other) = (label(known), label(site));
            return Err(format!(
                "node {other}: tensor {}: expected the scales and zero points of node {one}, which quantizes it too, found others",
                show_name(&site.constant)
            ));
        }
    }
    Ok(())
}

/// Whether what a DequantizeLinear makes is the weight of operators only, and can be found behind what lies between.
fn is_of_layer(index: &GraphIndex<'_>, site: &Site) -> bool {
    let transposes = site.path.nodes.iter().filter(|place| index.graph.node[**place].is("Transpose"));
    let places: Vec<usize> = transposes.copied().collect();
    if places.len() > 1 || places.iter().any(|place| !swaps_last_two(&index.graph.node[*place])) {
        return false;
    }
    feeds_layers(index, &index.graph.node[site.dequantize].output[0], site.shape.len(), places.is_empty(), LONGEST_PATH)
}

/// Most nodes between a DequantizeLinear and the operator that takes the weight.
const LONGEST_PATH: usize = 8;

/// Whether every use of a value of so many dimensions is as a weight, perhaps transposed on the way if it `may_transpose`.
fn feeds_layers(index: &GraphIndex<'_>, value: &str, rank: usize, may_transpose: bool, longest: usize) -> bool {
    let uses = index.uses(value);
    if uses.is_empty() || longest == 0 || index.is_visible(value) {
        return false;
    }
    uses.iter().all(|place| {
        let node = &index.graph.node[place.node];
        let further = |may_transpose| feeds_layers(index, &node.output[0], rank, may_transpose, longest - 1);
        match node.op_type.as_str() {
            "Identity" if node.is_standard() => further(may_transpose),
            "Transpose" if node.is_standard() => may_transpose && swaps_last_two(node) && further(false),
            _ => operator(node).is_some_and(|operator| {
                operator.weights.iter().any(|weight| weight.input == place.input && (weight.axis)(node, rank).is_some())
            }),
        }
    })
}

/// The floats that constant codes stand for.
pub(super) fn floats(tensor: &TensorProto, site: &Site, name: String) -> Result<TensorProto, String> {
    let codes = tensor.to_ints().ok_or_else(|| format!("tensor {}: expected integers, found none", show_name(&tensor.name)))?;
    let mut values = vec![0f32; codes.len()];
    for_each_run(site, codes.len(), |params, run| {
        for (value, code) in values[run.clone()].iter_mut().zip(&codes[run]) {
            *value = (*code as i32 - params.zero_point) as f32 * params.scale;
        }
    });
    let code = code_of(site.dtype).unwrap_or(crate::formats::onnx::tensor::FLOAT);
    let mut bytes = vec![0; values.len() * site.dtype.bytes().unwrap_or(4) as usize];
    encode_f32(site.dtype, &values, &mut bytes);
    Ok(TensorProto::raw(name, code, &tensor.dims, bytes))
}

/// The codes of constant floats, as QuantizeLinear computes them.
fn codes(tensor: &TensorProto, site: &Site, name: String) -> Result<TensorProto, String> {
    let wrong = |what: &str| format!("tensor {}: expected {what}", show_name(&tensor.name));
    let values = tensor.to_floats().ok_or_else(|| wrong("floats, found another type"))?;
    if let Some(found) = values.iter().find(|value| !value.is_finite()) {
        return Err(wrong(&format!("finite numbers to quantize, found {found}")));
    }
    let mut codes = vec![0u8; values.len()];
    for_each_run(site, values.len(), |params, run| {
        quantize(&values[run.clone()], params, Arithmetic::Divide, site.trained.grid, &mut codes[run]);
    });
    Ok(TensorProto::raw(name, element_code(site.trained.codes), &tensor.dims, codes))
}

/// Calls `each` with every run of elements that share parameters.
fn for_each_run(site: &Site, elements: usize, mut each: impl FnMut(Params, std::ops::Range<usize>)) {
    let layout = match site.trained.axis {
        None => GroupLayout::new(&site.shape, Granularity::PerTensor, 0),
        Some(axis) => GroupLayout::new(&site.shape, Granularity::PerChannel, axis),
    };
    layout.for_each_run(0..elements, |group, run| each(site.trained.params[group], run));
}
