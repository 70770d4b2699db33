//! Where constants are quantized: every DequantizeLinear whose codes are constant, or made of a constant.

use super::weights::TrainedConstant;
use crate::error::show_name;
use crate::formats::onnx::proto::{NodeProto, TensorProto};
use crate::graph::index::GraphIndex;
use crate::graph::pairs::{self, Linear};
use crate::quant::params::Params;
use crate::quant::scheme::{CodeType, Grid};
use crate::tensor::Dtype;
use std::collections::HashMap;
use std::sync::Arc;

/// A DequantizeLinear of a constant.
pub(super) struct Site {
    /// The node.
    pub dequantize: usize,
    /// The QuantizeLinear before it, if the constant is floats.
    pub quantize: Option<usize>,
    /// The constant.
    pub constant: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// The type of the floats.
    pub dtype: Dtype,
    pub path: Path,
    pub trained: TrainedConstant,
}

/// What lies between a constant and the DequantizeLinear.
#[derive(Default)]
pub(super) struct Path {
    /// Values from the constant to what is quantized, or to the codes.
    pub values: Vec<String>,
    /// Nodes from the constant on, the QuantizeLinear last.
    pub nodes: Vec<usize>,
}

/// Most nodes on the way.
const LONGEST_PATH: usize = 8;

/// Finds all of them.
///
/// # Errors
///
/// What is wrong with parameters of a node, with its name, or with them and the constant.
pub(super) fn find(index: &GraphIndex<'_>) -> Result<Vec<Site>, String> {
    let mut sites = Vec::new();
    // Nodes with the same names of scale and zero point share what these say.
    let mut known: HashMap<[Option<&str>; 2], Arc<[Params]>> = HashMap::new();
    for (place, node) in index.graph.node.iter().enumerate().filter(|(_, node)| pairs::is_dequantize(node)) {
        if let Some(mut site) = site(index, place, node)? {
            let params = known.entry([node.input(1), node.input(2)]).or_insert_with(|| site.trained.params.clone());
            site.trained.params = params.clone();
            sites.push(site);
        }
    }
    Ok(sites)
}

/// What a DequantizeLinear makes floats of, if that is a constant.
pub(super) fn site(index: &GraphIndex<'_>, place: usize, node: &NodeProto) -> Result<Option<Site>, String> {
    let Some(linear) = super::read(index, node)? else { return Ok(None) };
    let (Some(codes), false) = (node.input(0), linear.codes.bits() != 8) else { return Ok(None) };
    let all = linear.codes.grid();
    let (mut grid, mut value, mut nodes) = (all, codes, Vec::new());
    let (quantize, mut path, constant) = match index.constant(codes) {
        Some(tensor) => (None, Path { values: vec![codes.to_owned()], nodes: vec![] }, tensor),
        None => {
            if let Some((clip, narrowed, input)) = clip_of_codes(index, value, linear.codes) {
                (grid, value) = (narrowed, input);
                nodes.push(clip);
            }
            let Some((quantize, quantizer)) = index.producer(value).filter(|(_, node)| pairs::is_quantize(node)) else { return Ok(None) };
            let Some((path, constant)) = quantizer.input(0).and_then(|value| trace(index, value)) else { return Ok(None) };
            let same = super::read(index, quantizer)?;
            if same.as_ref() != Some(&linear) {
                return Err(format!(
                    "node {}: tensor {}: expected the scale and zero point of its QuantizeLinear, node {}, found others",
                    show_name(node.label()),
                    show_name(&constant.name),
                    show_name(quantizer.label())
                ));
            }
            nodes.push(quantize);
            (Some(quantize), path, constant)
        }
    };
    path.nodes.extend(nodes);
    let stored = constant.shape()?;
    if stored.contains(&0) {
        return Ok(None);
    }
    let axis = trained_axis(index, &path, &stored, &linear).map_err(|message| {
        let at = quantize.unwrap_or(place);
        format!("node {}: tensor {}: {message}", show_name(index.graph.node[at].label()), show_name(&constant.name))
    })?;
    let dtype = node.input(1).and_then(|scale| index.constant(scale)).and_then(TensorProto::dtype).unwrap_or(Dtype::F32);
    if quantize.is_none() && dtype == Dtype::BF16 {
        // Its eight bits do not hold what all codes stand for, so that these would not be found again.
        return Ok(None);
    }
    let trained = TrainedConstant { codes: linear.codes, grid, params: linear.params, axis };
    Ok(Some(Site { dequantize: place, quantize, constant: constant.name.clone(), shape: stored, dtype, path, trained }))
}

/// The constant floats that a value is, perhaps transposed, and the way to it.
fn trace<'g>(index: &GraphIndex<'g>, value: &str) -> Option<(Path, &'g TensorProto)> {
    let mut path = Path { values: vec![value.to_owned()], nodes: vec![] };
    let mut value = value.to_owned();
    for _ in 0..LONGEST_PATH {
        if let Some(constant) = index.constant(&value) {
            let is_float = constant.dtype().is_some_and(|dtype| dtype.is_decodable());
            return is_float.then_some((path, constant));
        }
        let (place, node) = index.producer(&value)?;
        if !(node.is("Identity") || node.is("Transpose")) {
            return None;
        }
        value = node.input(0)?.to_owned();
        path.values.insert(0, value.clone());
        path.nodes.insert(0, place);
    }
    None
}

/// The axis that scales are along, of the constant as it is stored: where the path transposes, another than is written.
///
/// # Errors
///
/// What was expected and what was found, if there is no such axis or it has another number of indices.
fn trained_axis(index: &GraphIndex<'_>, path: &Path, stored: &[usize], linear: &Linear) -> Result<Option<usize>, String> {
    let Some(written) = linear.axis else { return Ok(None) };
    let rank = stored.len();
    let wrong = || format!("axis: expected one of the {rank} dimensions, found {written}");
    let counted = if written < 0 { written + rank as i64 } else { written };
    let mut axis = usize::try_from(counted).ok().filter(|axis| *axis < rank).ok_or_else(wrong)?;
    for node in path.nodes.iter().rev().map(|place| &index.graph.node[*place]).filter(|node| node.is("Transpose")) {
        let order = node.attribute("perm").map(|perm| &perm.ints);
        axis = match order {
            None => rank - 1 - axis,
            Some(order) => order.get(axis).and_then(|axis| usize::try_from(*axis).ok()).filter(|axis| *axis < rank).ok_or_else(wrong)?,
        };
    }
    match (stored[axis], linear.params.len()) {
        (expected, found) if expected == found => Ok(Some(axis)),
        (expected, found) => Err(format!("scale: expected {expected}, one for each index of axis {written}, found {found}")),
    }
}

/// The codes that a Clip of codes leaves, and what it takes: which node it is.
pub(super) fn clip_of_codes<'g>(index: &GraphIndex<'g>, value: &str, codes: CodeType) -> Option<(usize, Grid, &'g str)> {
    let (place, node) = index.producer(value).filter(|(_, node)| node.is("Clip"))?;
    let bound = |input: usize, default: i32| match node.input(input) {
        None => Some(default),
        Some(name) => index.constant(name)?.to_ints()?.first().and_then(|bound| i32::try_from(*bound).ok()),
    };
    let all = codes.grid();
    let grid = Grid { qmin: bound(1, all.qmin)?.max(all.qmin), qmax: bound(2, all.qmax)?.min(all.qmax) };
    Some((place, grid, node.input(0)?)).filter(|_| grid.qmin <= grid.qmax)
}
