//! Transforms of ONNX models: what they are told, and where their changes go.

use super::Request;
use super::layer_inputs;
use crate::algorithms::solver::Solver;
use crate::algorithms::transforms::bias_correction::{self, Quantized};
use crate::algorithms::transforms::on_graph::{self, OnGraph, Places};
use crate::algorithms::transforms::{find, site::Grid};
use crate::error::{Error, Result};
use crate::graph::biases::{self, Bias};
use crate::graph::folds::{self, Fold, Part};
use crate::graph::index::GraphIndex;
use crate::graph::names::Names;
use crate::graph::onnx_model::{OnnxModel, into_model};
use crate::graph::scopes::TOP;
use crate::model::Model;
use crate::outputs::onnx::rewrite::ParamsOf;
use crate::plan::{LayerMode, Plan, TensorScheme};
use crate::quant::kernel;
use crate::quant::metrics::ErrorSums;
use crate::quant::params::Params;
use crate::quant::saturation::PairCheck;
use crate::recipe::Recipe;
use crate::stream::Progress;
use std::collections::{BTreeSet, HashMap, HashSet};

/// The model with all changes of `recipe` in it that come before ranges are observed, and what was done, a sentence each. Other
/// models than ONNX as they are.
///
/// # Errors
///
/// [`Error::Usage`] without samples; [`Error::Malformed`] if there is nothing in the model that a transform could change; as
/// [`layer_inputs::channels`].
pub(super) fn before(
    model: Model,
    plan: &Plan,
    request: &Request,
    threads: usize,
    progress: &dyn Progress,
) -> Result<(Model, Vec<String>)> {
    let (methods, calibration) = (&request.recipe.transforms, &request.calibration);
    let (Some(onnx), Some(first)) = (model.onnx(), methods.first()) else { return Ok((model, Vec::new())) };
    if calibration.samples.is_empty() || !calibration.stats.is_empty() {
        let found = "found statistics, which were observed before it";
        return Err(Error::Usage(format!("--transform {first}: expected --samples, {found}")));
    }
    let wanted = methods.iter().map(|method| Ok((method, find(method)?.on_graph()?))).collect::<Result<Vec<_>>>()?;
    let folds = match (&onnx.file.proto.graph, wanted.iter().any(|(_, on_graph)| matches!(on_graph, OnGraph::Before(_)))) {
        (Some(graph), true) => folds::find(graph),
        _ => Vec::new(),
    };
    let refused = wanted.iter().find_map(|(method, on_graph)| match on_graph {
        OnGraph::Before(folding) if !folds.iter().any(|fold| folding.is_for(fold)) => Some((method, folding)),
        _ => None,
    });
    if let Some((method, folding)) = refused {
        return Err(Error::malformed(model.path(), format!("{}: expected {}, found none", method.name, folding.expected())));
    }
    let stats = layer_inputs::channels(&model, &on_graph::watched(&folds), calibration, threads, progress)?;
    let (schemes, grids) = (schemes(onnx, plan, &folds), grids(onnx, plan, &folds));
    let weights: HashSet<String> = layers(onnx, plan).map(|(weight, _)| weight.to_owned()).collect();
    let former = model.tensors().iter().filter_map(|tensor| Some((tensor.info.name.clone(), tensor.former_name.clone()?)));
    let former: HashMap<String, String> = former.collect();
    let mut places = Places::new(folds, stats, schemes, grids, threads);
    let mut onnx = model.into_onnx().expect("it is an ONNX model");
    let mut names = Names::of(&onnx.file.proto);
    let mut notes = Vec::new();
    let graph = onnx.file.proto.graph.get_or_insert_default();
    for (method, on_graph) in wanted {
        match on_graph {
            OnGraph::Before(folding) => notes.push(format!("{}: {}", method.name, places.apply(folding, method.value, graph))),
            OnGraph::Biases => biases::complete(graph, &mut names, &weights),
        }
    }
    let model = into_model(onnx.file, onnx.custom)?;
    let renamed = model.tensors().iter().enumerate().filter_map(|(tensor, stored)| Some((tensor, former.get(&stored.info.name)?.clone())));
    let renamed = renamed.collect();
    Ok((model.with_former_names(&renamed), notes))
}

/// Weights in the top graph that layers compute with, and how.
fn layers<'m>(onnx: &'m OnnxModel, plan: &'m Plan) -> impl Iterator<Item = (&'m str, LayerMode)> {
    let layers = onnx.weights.layers.iter().zip(&plan.layers).filter(|(layer, mode)| layer.weight.0 == TOP && **mode != LayerMode::Keep);
    layers.map(|(layer, mode)| (layer.weight.1.as_str(), *mode))
}

/// How weights of these places are quantized.
fn schemes(onnx: &OnnxModel, plan: &Plan, folds: &[Fold]) -> HashMap<String, TensorScheme> {
    let in_use: HashSet<&str> = layers(onnx, plan).map(|(weight, _)| weight).collect();
    let parts = folds.iter().flat_map(|fold| fold.after.iter().chain(&fold.divided)).filter(|part| in_use.contains(part.name.as_str()));
    let scheme = |name: &String| plan.scheme(onnx.tensor(&(TOP, name.clone()))?).map(|scheme| (name.clone(), scheme.clone()));
    parts.filter_map(|part| scheme(&part.name)).collect()
}

/// Codes of activations: those that layers of these places take, and all whose ranges are known before.
fn grids(onnx: &OnnxModel, plan: &Plan, folds: &[Fold]) -> HashMap<String, Grid> {
    let modes: HashMap<&str, LayerMode> = layers(onnx, plan).collect();
    let is_dynamic = |part: &Part| modes.get(part.name.as_str()) == Some(&LayerMode::Dynamic);
    let dynamic = folds.iter().filter(|fold| fold.after.iter().any(is_dynamic)).map(|fold| &fold.value);
    let dynamic = dynamic.map(|value| (value.clone(), Grid { steps: 255.0, symmetric: false }));
    let steps = f64::from((1u32 << plan.activation_codes.bits()) - 1);
    let known = plan.values.values.keys().map(|value| (value.clone(), Grid { steps, symmetric: plan.symmetric_activations }));
    dynamic.chain(known).collect()
}

/// Whether biases are to take the mean errors of outputs.
pub(super) fn corrects_biases(recipe: &Recipe) -> bool {
    recipe.transforms.iter().any(|method| method.name == bias_correction::NAME)
}

/// The biases of `model`'s layers, whose weights are quantized with `params`, with the mean errors of outputs in them: each as a tensor's
/// number and its values.
///
/// # Errors
///
/// As [`layer_inputs::means`] and [`Solver::solve`]; [`Error::Malformed`] if no layer has a bias.
pub(super) fn correct_biases(
    model: &Model,
    plan: &Plan,
    params: &ParamsOf,
    solver: Option<&Solver<'_>>,
    means: &layer_inputs::Means,
) -> Result<Vec<(usize, Vec<f32>)>> {
    let Some((onnx, graph)) = model.onnx().and_then(|onnx| Some((onnx, onnx.file.proto.graph.as_ref()?))) else { return Ok(Vec::new()) };
    let index = GraphIndex::new(graph);
    let mut corrected = Vec::new();
    for layer in onnx.weights.layers.iter().filter(|layer| layer.scope == TOP) {
        let Some(tensor) = onnx.tensor(&layer.weight) else { continue };
        let (Some(known), Some(params), Some(scheme)) = (means.layers.get(&tensor), params.get(&tensor), plan.scheme(tensor)) else {
            continue;
        };
        let Some(bias) = Bias::of(&index, &graph.node[layer.node], known.view.rows) else { continue };
        let Some(place) = onnx.tensor(&(TOP, bias.name)).filter(|place| model.tensors()[*place].info.dtype.is_decodable()) else {
            continue;
        };
        let mut scratch = Vec::new();
        let values = model.values(tensor, 0..model.tensors()[tensor].info.elements(), &mut scratch);
        let codes = match solver.filter(|solver| solver.is_for(tensor)) {
            Some(solver) => solver.solve(tensor, Some(params))?.codes,
            None => nearest(values, params, scheme, plan.pairs.get(&tensor)),
        };
        let inputs: Vec<Vec<f64>> = known.inputs.iter().map(|input| means.stats[input].means()).collect();
        let corrections = Quantized { values, codes: &codes, params, scheme }.corrections(known.view, &inputs);
        let mut scratch = Vec::new();
        let old = model.values(place, 0..known.view.rows, &mut scratch);
        corrected.push((place, old.iter().zip(corrections).map(|(old, by)| (f64::from(*old) + by * bias.factor) as f32).collect()));
    }
    if corrected.is_empty() {
        let found = format!("{}: expected a layer with a bias, found none", bias_correction::NAME);
        return Err(Error::malformed(model.path(), found));
    }
    Ok(corrected)
}

/// Tensors that layers compute with.
pub(super) fn in_layers(model: &Model, plan: &Plan) -> BTreeSet<usize> {
    let Some(onnx) = model.onnx() else { return BTreeSet::new() };
    let tensors = layers(onnx, plan).filter_map(|(weight, _)| onnx.tensor(&(TOP, weight.to_owned())));
    tensors.filter(|tensor| plan.scheme(*tensor).is_some()).collect()
}

/// The nearest codes of all values, with pairs changed if there are some to check.
pub(super) fn nearest(values: &[f32], params: &[Params], scheme: &TensorScheme, pairs: Option<&PairCheck>) -> Vec<u8> {
    let mut codes = vec![0; values.len()];
    scheme.layout.for_each_run(0..values.len(), |group, run| {
        kernel::quantize(&values[run.clone()], params[group], scheme.arithmetic, scheme.clip, &mut codes[run]);
    });
    if let Some(pairs) = pairs {
        let params_of = |element: usize| params[scheme.layout.group_of(element)];
        pairs.apply(0..values.len(), values, &mut codes, params_of, &mut ErrorSums::default());
    }
    codes
}
