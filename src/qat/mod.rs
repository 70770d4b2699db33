//! Quantization-aware training: scales and zero points that were trained are taken over instead of being observed.
//!
//! State dicts of PyTorch hold the state of fake quantizers beside the weights they are for ([`names`]). What becomes of
//! them is what `torch.ao.quantization.convert` makes of the module that the state was saved from, to the bit: it shows
//! the weight to its fake quantizer once more, which updates ranges if its observer is still on
//!
//! ```text
//! min = min + 0.01 * (smallest weight - min)          max = max + 0.01 * (largest weight - max)
//! ```
//!
//! (0.01 is the `averaging_constant` of all of PyTorch's configurations; it is not in the state), and computes scales
//! anew from the ranges, whatever scales are stored; learned ones (`_LearnableFakeQuantize`, torchao) are taken as they
//! are. The codes that a weight was trained for follow from ranges and scales ([`params`]). `docs/qat.md` has all rules.
//!
//! The state of exported graphs (PT2E) does not say which weight a fake quantizer is for; a recipe's `[[fake_quantizer]]` does.
//! `convert_pt2e` does not show weights to observers again. ONNX models have their quantization in the graph: [`onnx`].
//!
//! Left out: embeddings with float zero points; parametrizations other than fake quantizers.

mod fold;
mod names;
pub(crate) mod onnx;
mod params;
mod state;
mod weights;

use crate::error::{Error, Result, show_name};
use crate::model::Model;
use crate::outputs::document::ActivationRecord;
use crate::plan::{Decision, Plan};
use crate::quant::granularity::GroupLayout;
use crate::quant::kernel::Arithmetic;
use crate::quant::params::{ParamRule, Params, Range};
use crate::quant::scheme::{CodeType, Convention, Granularity, Grid};
use crate::recipe::Recipe;
use crate::stream::observe;
use names::{FakeQuantizer, Site};
use params::Codes;
use state::{State, Watched, named};
use std::collections::{BTreeMap, HashMap, HashSet};

/// What the sidecar says of ranges that were trained, in the place of an observer.
pub(crate) const TRAINED: &str = "trained";

/// `averaging_constant` of `MovingAverageMinMaxObserver` where none is given.
const AVERAGING_CONSTANT: f32 = 0.01;

/// What was trained.
#[derive(Default)]
pub(crate) struct Trained {
    /// Weights by name.
    weights: BTreeMap<String, TrainedWeight>,
    /// Activations by name, as the sidecar lists them.
    pub activations: BTreeMap<String, ActivationRecord>,
    /// What the user is told.
    pub notes: Vec<String>,
    /// Of an ONNX model, what its graph said.
    graph: Option<onnx::TrainedGraph>,
}

/// How a weight is quantized.
#[derive(Clone, Debug, PartialEq)]
struct TrainedWeight {
    params: Vec<Params>,
    granularity: Granularity,
    axis: usize,
    /// The codes that it was trained for; `None` if nothing says, so that they are those of the recipe.
    codes: Option<Codes>,
    eps: f32,
    /// Whether zero points beyond the codes are moved to them, as learned ones are when they are used.
    clamps: bool,
}

/// Takes what was trained out of a model: tensors of fake quantizers are left out, weights have the names and values that
/// they have outside of training.
///
/// # Errors
///
/// [`crate::Error::Tensor`] naming a tensor whose state cannot be what PyTorch saved, or is of a layout that is not read; for
/// ONNX models as [`onnx::import`].
pub(crate) fn import(model: Model, recipe: &Recipe) -> Result<(Model, Trained)> {
    if onnx::has_pairs(&model) && !recipe.ignore_qat {
        name_exported(&model, &mut [], recipe)?;
        return onnx::import(model);
    }
    let mut trained = Trained::default();
    let mut quantizers = if model.onnx().is_some() || recipe.ignore_qat { Vec::new() } else { names::find(&model) };
    if !recipe.ignore_qat {
        name_exported(&model, &mut quantizers, recipe)?;
    }
    if quantizers.is_empty() {
        return Ok((model, trained));
    }
    let index = model.index();
    let parts = weights::Parts::new(&model, &quantizers);
    let (mut changes, mut former, mut updated, mut unused) = (fold::Changes::new(), BTreeMap::new(), 0, 0);
    for quantizer in &quantizers {
        let state = State::read(&model, quantizer)?;
        match &quantizer.site {
            Site::Activation(name) => match activation(&model, quantizer, &state, recipe)? {
                Some(_) if trained.activations.contains_key(name) => return Err(twice(&model, quantizer, name)),
                Some(record) => drop(trained.activations.insert(name.clone(), record)),
                None => unused += 1,
            },
            Site::Weight(_) | Site::Parametrized(_) | Site::Exported { .. } => {
                let found = weights::find(&model, &index, quantizer, &parts)?;
                updated += usize::from(state.is_observing);
                if found.stored_name != found.name {
                    former.insert(found.name.clone(), found.stored_name.clone());
                }
                let weight = weights::read(&model, &index, quantizer, &state, &found, recipe, &mut changes)?;
                if let Some((name, _)) = trained.weights.get_key_value(&found.name) {
                    return Err(twice(&model, quantizer, name));
                }
                trained.weights.insert(found.name, weight);
            }
        }
        changes.extend(quantizer.tensors.values().map(|tensor| (*tensor, None)));
    }
    drop((index, parts));
    trained.notes = notes(&trained, updated, unused);
    let model = model.with_changed(changes);
    let index = model.index();
    let layers = trained.weights.iter().filter_map(|(name, weight)| Some((*index.get(name.as_str())?, (name.clone(), weight.axis))));
    let layers: BTreeMap<usize, (String, usize)> = layers.collect();
    let former: HashMap<usize, String> = former.into_iter().filter_map(|(name, old)| Some((*index.get(name.as_str())?, old))).collect();
    drop(index);
    Ok((model.with_layers(layers, "FakeQuantize").with_former_names(&former), trained))
}

/// The error that two fake quantizers are for the same.
fn twice(model: &Model, quantizer: &FakeQuantizer, name: &str) -> Error {
    model.tensor_error(named(quantizer), format!("expected one fake quantizer of {}, found another before", show_name(name)))
}

/// Gives fake quantizers of exported graphs the weights that the recipe says they are for.
fn name_exported(model: &Model, quantizers: &mut [FakeQuantizer], recipe: &Recipe) -> Result<()> {
    if recipe.fake_quantizers.is_empty() {
        return Ok(());
    }
    let tensors: HashSet<&str> = model.tensors().iter().map(|tensor| tensor.info.name.as_str()).collect();
    let is_numbered = |quantizer: &&mut FakeQuantizer| matches!(quantizer.site, Site::Activation(_));
    let numbered = quantizers.iter_mut().filter(is_numbered);
    let mut numbered: HashMap<String, &mut FakeQuantizer> = numbered.map(|quantizer| (quantizer.root.clone(), quantizer)).collect();
    for named in &recipe.fake_quantizers {
        // Each is for one weight.
        let Some(quantizer) = numbered.remove(&named.name) else {
            return Err(named.error("expected state of a fake quantizer of that name in the model, found none"));
        };
        if !tensors.contains(named.weight.as_str()) {
            return Err(named.error(&format!("weight: expected a tensor {}, found none", show_name(&named.weight))));
        }
        quantizer.site = Site::Exported { weight: named.weight.clone(), batch_norm: named.batch_norm.clone() };
    }
    Ok(())
}

fn notes(trained: &Trained, updated: usize, unused: usize) -> Vec<String> {
    let (weights, activations) = (trained.weights.len(), trained.activations.len());
    let mut notes = vec![format!(
        "quantization-aware training: parameters of {weights} weights and {activations} activations are taken over; --ignore-qat observes anew"
    )];
    if updated > 0 {
        notes.push(format!(
            "{updated} observers of weights are still on: they see the weights once more, as torch.ao.quantization.convert has it"
        ));
    }
    if unused > 0 {
        notes.push(format!("{unused} fake quantizers of activations have seen nothing and are left out"));
    }
    if weights == 0 {
        notes.push("no weight has trained parameters of its own: their ranges are observed (of an exported graph, [[fake_quantizer]] tables of a recipe name \
             those of weights: docs/qat.md)"
                .into());
    }
    notes
}

/// What the sidecar records of an activation; `None` if nothing was ever seen of it.
fn activation(model: &Model, quantizer: &FakeQuantizer, state: &State, recipe: &Recipe) -> Result<Option<ActivationRecord>> {
    let [stored] = *state.params.as_slice() else {
        let message = format!("expected one scale of an activation, found {}", state.params.len());
        let hint = "in exported graphs it may be for a weight: a recipe's [[fake_quantizer]] says for which (docs/qat.md); --ignore-qat \
                    observes weights anew";
        return Err(model.tensor_error(named(quantizer), message).with_hint(hint));
    };
    let (codes, params) = match &state.watched {
        Watched::Nothing if !state.is_learned => return Ok(None),
        Watched::Ranges(ranges) if !state.is_learned => {
            let Some(codes) = params::infer(&Codes::of_activations(), state.kind, ranges, state.eps, &state.params) else {
                return Err(not_from_ranges(model, quantizer));
            };
            (Some(codes), codes.choose(ranges[0], state.eps))
        }
        _ => (None, stored),
    };
    let signed = codes.map_or(params.zero_point < 0, |codes| codes.grid.qmin < 0);
    let dtype = match (codes.is_some() || signed, signed) {
        (true, true) => CodeType::Int8,
        (true, false) => CodeType::Uint8,
        (false, _) => recipe.activations.dtype,
    };
    let grid = codes.map_or(dtype.grid(), |codes| codes.grid);
    // Learned ones are clamped when they are used.
    let zero_point = if state.is_learned { params.zero_point.clamp(grid.qmin, grid.qmax) } else { params.zero_point };
    if !(grid.qmin..=grid.qmax).contains(&zero_point) {
        let Grid { qmin, qmax } = grid;
        let at = quantizer.tensors.get("zero_point").copied().unwrap_or(named(quantizer));
        return Err(model.tensor_error(at, format!("expected a zero point from {qmin} to {qmax}, found {zero_point}")));
    }
    let end = |code: i32| ((f64::from(code) - f64::from(zero_point)) * f64::from(params.scale)) as f32;
    let (min, max) = (end(grid.qmin).max(f32::MIN), end(grid.qmax).min(f32::MAX));
    let observer = crate::method::Method::new(TRAINED);
    Ok(Some(ActivationRecord { dtype, max, min, observer, scale: params.scale, zero_point }))
}

/// The error for a state in which ranges and scales disagree, so that nothing says which codes they are for.
fn not_from_ranges(model: &Model, quantizer: &FakeQuantizer) -> Error {
    let message = "expected scales and zero points as min_val and max_val give them for codes of 2 to 8 bits, found others";
    model.tensor_error(named(quantizer), message).with_hint("--ignore-qat observes anew")
}

impl Trained {
    /// Whether nothing was.
    pub(crate) fn is_empty(&self) -> bool {
        self.weights.is_empty() && self.activations.is_empty() && self.graph.as_ref().is_none_or(onnx::TrainedGraph::is_empty)
    }

    /// Whether it is what the graph of an ONNX model said.
    pub(crate) fn is_of_graph(&self) -> bool {
        self.graph.is_some()
    }

    /// The type of codes that all activations of a graph were trained for, if it is one.
    pub(crate) fn activation_codes(&self) -> Option<CodeType> {
        self.graph.as_ref()?.activation_codes
    }

    /// Quantizes the weights of `plan` as they were trained, apart from those that are kept in float. `is_calibrated` if samples
    /// or statistics will tell ranges. Returns what the user is told.
    ///
    /// # Errors
    ///
    /// [`crate::Error::Tensor`] if the codes that the recipe asks for do not hold those a weight was trained for;
    /// [`crate::Error::NonFinite`] if the weight holds NaN or infinities.
    pub(crate) fn apply(&self, model: &Model, plan: &mut Plan, is_calibrated: bool) -> Result<Vec<String>> {
        if let Some(graph) = &self.graph {
            return graph.apply(model, plan, is_calibrated);
        }
        for (tensor, decision) in plan.decisions.iter_mut().enumerate() {
            let info = &model.tensors()[tensor].info;
            let (Decision::Quantize(scheme), Some(weight)) = (decision, self.weights.get(&info.name)) else { continue };
            observe::check_finite(model, tensor)?;
            let all = scheme.codes.grid();
            let grid = weight.codes.map_or(all, |codes| codes.grid);
            let is_held = |code: i32| (all.qmin..=all.qmax).contains(&code);
            if !(is_held(grid.qmin) && is_held(grid.qmax)) {
                let Grid { qmin, qmax } = grid;
                let message = format!("expected codes that {} holds, found a weight that was trained for {qmin} to {qmax}", scheme.codes);
                return Err(model.tensor_error(tensor, message).with_hint("--weights int8 holds them; --ignore-qat observes anew"));
            }
            let mut params = weight.params.clone();
            if weight.clamps {
                params.iter_mut().for_each(|params| params.zero_point = params.zero_point.clamp(grid.qmin, grid.qmax));
            }
            if let Some(found) = params.iter().find(|params| !(grid.qmin..=grid.qmax).contains(&params.zero_point)) {
                let message = format!("expected zero points from {} to {}, found {}", grid.qmin, grid.qmax, found.zero_point);
                return Err(model.tensor_error(tensor, message));
            }
            let middle = if grid.qmin < 0 { 0 } else { (grid.qmin + grid.qmax + 1) / 2 };
            let symmetric = params.iter().all(|params| params.zero_point == middle);
            let rule = ParamRule::new(Convention::Torch, scheme.codes, symmetric, info.dtype);
            let blocked = matches!(weight.granularity, Granularity::PerGroup(_));
            scheme.granularity = weight.granularity;
            scheme.axis = weight.axis;
            scheme.layout = GroupLayout::new(&info.shape, weight.granularity, weight.axis);
            scheme.rule = ParamRule { grid, min_scale: weight.eps, blocked, ..rule };
            scheme.clip = grid;
            scheme.arithmetic = Arithmetic::of(Convention::Torch, info.dtype);
            scheme.trained = Some(params.into());
        }
        Ok(Vec::new())
    }
}

/// The range of `values` after an observer with the range `before` has seen them.
fn update(before: Range, values: Range) -> Range {
    let moved = |before: f32, now: f32| before + AVERAGING_CONSTANT * (now - before);
    Range { min: moved(before.min, values.min), max: moved(before.max, values.max) }
}
