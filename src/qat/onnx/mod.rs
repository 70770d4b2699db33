//! ONNX models exported after quantization-aware training, whose weights and activations pass through QuantizeLinear and
//! DequantizeLinear.
//!
//! 1. [`weights`]: the pairs of weights go, and what they say is remembered with the constant;
//! 2. [`tidy`]: one pair for each way in which a value is quantized, with scalar parameters;
//! 3. [`complete`]: pairs where integer operators need them and training tells their parameters;
//! 4. [`apply`]: weights are quantized as they were trained; what stays in float, and why.
//!
//! The pairs of activations stay in the graph as they are, so that every value is quantized where training quantized it and
//! nowhere else. Layers between them are then written as those of any static model. [`strip`](mod@strip) takes all pairs out instead.
//!
//! Pairs in bodies of control flow and in functions are left alone.

mod apply;
mod clips;
mod complete;
mod sites;
mod strip;
mod tidy;
mod weights;

use super::{TRAINED, Trained};
use crate::error::{Error, Result, list_names, show_name};
use crate::formats::onnx::proto::NodeProto;
use crate::graph::index::GraphIndex;
use crate::graph::names::Names;
use crate::graph::onnx_model::{OnnxModel, into_model};
use crate::graph::pairs::{self, Given, Linear};
use crate::graph::prepare::fuse_biases;
use crate::graph::sweep;
use crate::method::Method;
use crate::model::Model;
use crate::outputs::document::ActivationRecord;
use crate::quant::scheme::{CodeType, Grid};
use complete::Completion;
use std::collections::BTreeMap;
use weights::TrainedConstants;

pub(crate) use strip::strip;

/// What the graph of a model said of its weights.
pub(super) struct TrainedGraph {
    weights: TrainedConstants,
    /// The type of activations, if it is one.
    pub activation_codes: Option<CodeType>,
}

/// Whether a model quantizes values itself, in its top graph.
pub(crate) fn has_pairs(model: &Model) -> bool {
    let graph = model.onnx().and_then(|onnx| onnx.file.proto.graph.as_deref());
    graph.is_some_and(|graph| {
        let index = GraphIndex::new(graph);
        // What is wrong with one is told when it is imported.
        let is_read = |node: &NodeProto| !matches!(pairs::read(&index, node), Ok(None));
        graph.node.iter().any(|node| is_of_pair(node) && is_read(node))
    })
}

/// Takes what was trained out of a model, and completes it.
///
/// # Errors
///
/// [`Error::Malformed`] naming the node and the constant: a scale that is no constant or not positive and finite, a zero point
/// of another shape or type, an axis that there is not, or a constant that is quantized in several ways.
pub(super) fn import(model: Model) -> Result<(Model, Trained)> {
    let OnnxModel { mut file, custom, .. } = model.into_onnx().expect("the caller has looked");
    let wrong =
        |message: String| Error::malformed(&file.path, message).with_hint("--ignore-qat takes the pairs out and observes ranges anew");
    let mut names = Names::of(&file.proto);
    let Some(mut graph) = file.proto.graph.take() else {
        return Ok((into_model(file, custom)?, Trained::default()));
    };
    let unused = sweep::unused(&graph);
    check(&GraphIndex::new(&graph)).map_err(wrong)?;
    let weights = weights::fold(&mut graph, &mut names).map_err(wrong)?;
    fuse_biases(&mut graph);
    tidy::make_scalar(&mut graph, &mut names);
    tidy::merge(&mut graph);
    let mut activations = records(&GraphIndex::new(&graph));
    let mut completion = Completion { names: &mut names, trained: &weights, inserted: BTreeMap::new(), shared: Vec::new() };
    completion.run(&mut graph);
    let (inserted, shared) = (completion.inserted, completion.shared);
    for (value, given) in &inserted {
        activations.entry(value.clone()).or_insert_with(|| record(given.dtype, given.dtype.grid(), given));
    }
    sweep::remove(&mut graph, &unused);
    file.proto.graph = Some(graph);
    let model = into_model(file, custom)?;
    let mut types = activations.values().map(|record| record.dtype);
    let first = types.next();
    let activation_codes = first.filter(|first| types.all(|other| other == *first));
    let notes = notes(weights.len(), &activations, &inserted, &shared);
    let graph = TrainedGraph { weights, activation_codes };
    Ok((model, Trained { activations, notes, graph: Some(graph), ..Trained::default() }))
}

/// Whether all parameters can be what they say.
fn check(index: &GraphIndex<'_>) -> Result<(), String> {
    index.graph.node.iter().filter(|node| is_of_pair(node)).try_for_each(|node| read(index, node).map(drop))
}

fn is_of_pair(node: &NodeProto) -> bool {
    pairs::is_quantize(node) || pairs::is_dequantize(node)
}

/// The parameters of a node of a pair, or what is wrong with them, with its name.
fn read(index: &GraphIndex<'_>, node: &NodeProto) -> Result<Option<Linear>, String> {
    pairs::read(index, node).map_err(|message| format!("node {}: {message}", show_name(node.label())))
}

/// What the sidecar records of values that a graph quantizes: by the name of the value, or of its codes where it is quantized
/// in several ways.
fn records(index: &GraphIndex<'_>) -> BTreeMap<String, ActivationRecord> {
    let mut records = BTreeMap::new();
    for node in index.graph.node.iter().filter(|node| pairs::is_quantize(node)) {
        let (Some(given), Some(value)) = (complete::given_by(index, node), node.input(0)) else { continue };
        let narrowed = index.only_use(&given.codes).map(|only| &index.graph.node[only.node].output[0]);
        let grid = narrowed.and_then(|output| sites::clip_of_codes(index, output, given.dtype)).map(|(_, grid, _)| grid);
        let name = if records.contains_key(value) { given.codes.clone() } else { value.to_owned() };
        records.insert(name, record(given.dtype, grid.unwrap_or_else(|| given.dtype.grid()), &given));
    }
    records
}

fn record(dtype: CodeType, grid: Grid, given: &Given) -> ActivationRecord {
    let params = given.params;
    let end = |code: i32| ((f64::from(code) - f64::from(params.zero_point)) * f64::from(params.scale)) as f32;
    let (min, max) = (end(grid.qmin).max(f32::MIN), end(grid.qmax).min(f32::MAX));
    ActivationRecord { dtype, max, min, observer: Method::new(TRAINED), scale: params.scale, zero_point: params.zero_point }
}

fn notes(
    weights: usize,
    activations: &BTreeMap<String, ActivationRecord>,
    inserted: &BTreeMap<String, Given>,
    shared: &[String],
) -> Vec<String> {
    let taken = activations.keys().filter(|name| !inserted.contains_key(*name)).count();
    let mut notes = vec![format!(
        "quantization-aware training: parameters of {weights} weights and {taken} activations are taken over; --ignore-qat observes anew"
    )];
    if !inserted.is_empty() {
        notes.push(format!("{} values have the parameters of others whose elements they are", inserted.len()));
    }
    if !shared.is_empty() {
        let names = list_names(shared, LISTED);
        notes.push(format!("quantized for all who take them, as training had it for some only: {names}"));
    }
    notes
}

/// Most names that a note lists.
const LISTED: usize = 5;
