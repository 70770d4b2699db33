//! What a checkpoint needs besides: inputs of its layers, which were recorded, as it has no graph to run.

use super::onnx::CalibrationRequest;
use crate::algorithms::RoundingChoice;
use crate::algorithms::solve::View;
use crate::algorithms::solver::Layer;
use crate::calibration::inputs::LayerInputs;
use crate::calibration::inputs::recorded::{Recorded, Selection};
use crate::calibration::ranges::{Choice, Ranges};
use crate::calibration::stats::{self, ActivationStats};
use crate::error::{Result, list_names};
use crate::graph::activations::RangeSource;
use crate::method::Method;
use crate::model::{Model, ModelTensor};
use crate::observers::ObserverChoice;
use crate::outputs::document::CalibrationRecord;
use crate::plan::{Decision, Plan, TensorScheme};
use crate::quant::scheme::Granularity;
use crate::recipe::{Mode, Recipe};
use crate::tensor::Dtype;
use std::collections::{BTreeMap, BTreeSet};

/// What the weight of a layer is called, after the layer's name.
const WEIGHT: &str = ".weight";

/// Most layers that a note lists.
const LISTED: usize = 4;

/// Opens recorded inputs, or statistics of them.
///
/// # Errors
///
/// As [`Recorded::open`]; as [`Statistics::read`] and [`stats::merge`].
pub(super) fn open_inputs(model: &Model, calibration: &CalibrationRequest, threads: usize) -> Result<LayerInputs> {
    if calibration.stats.is_empty() {
        return Ok(LayerInputs::recorded(Recorded::open(calibration.samples.recorded()?, model, selection(calibration), threads)?));
    }
    Ok(LayerInputs::known(stats::merge(calibration.read_stats(model)?)?))
}

pub(super) fn selection(calibration: &CalibrationRequest) -> Selection {
    Selection { limit: calibration.limit, part: calibration.part, ignore_unused: calibration.ignore_unused }
}

/// What a sidecar records of the samples.
pub(super) fn calibration_record(inputs: &LayerInputs) -> CalibrationRecord {
    let (samples, hash) = inputs.identity();
    CalibrationRecord { blake3: Some(hash.to_hex().to_string()), ranges: None, samples: Some(samples as u64), synthetic: false }
}

/// The layers of quantized tensors whose inputs are known and matter: `all` of them, or those whose methods look at inputs.
/// Others are put on the path without samples; the note says which.
pub(super) fn adjust(model: &Model, plan: &mut Plan, inputs: &LayerInputs, all: bool) -> (BTreeMap<usize, Layer>, Option<String>) {
    let known: BTreeSet<&str> = inputs.layers().into_iter().collect();
    let (mut layers, mut without) = (BTreeMap::new(), Vec::new());
    let mode = plan.mode;
    for (tensor, decision) in plan.decisions.iter_mut().enumerate() {
        let Decision::Quantize(scheme) = decision else { continue };
        let info = &model.tensors()[tensor].info;
        let name = layer_of(&info.name);
        if let Some(name) = name.filter(|name| known.contains(name))
            && let Some(view) = view(&model.tensors()[tensor], scheme)
        {
            if all || scheme.looks_at_inputs() {
                layers.insert(tensor, Layer { view, inputs: vec![name.to_owned()] });
            }
            continue;
        }
        let is_static = scheme.mode.unwrap_or(mode) == Mode::Static;
        if scheme.looks_at_inputs() || is_static {
            without.push(name.unwrap_or(&info.name));
            forget_inputs(scheme, is_static);
        }
    }
    (layers, note_without(&without))
}

/// What is said of layers whose inputs are not known.
pub(super) fn note_without(names: &[&str]) -> Option<String> {
    let listed = || list_names(names, LISTED);
    (!names.is_empty()).then(|| format!("inputs are not known, so the nearest codes are taken: {}", listed()))
}

/// The layer whose weight a tensor is.
pub(super) fn layer_of(tensor: &str) -> Option<&str> {
    tensor.strip_suffix(WEIGHT)
}

/// A weight `[out, in]` of a Linear module, or `[in, out]` of one that a recipe says is transposed, with scales that do not go
/// across features.
fn view(tensor: &ModelTensor, scheme: &TensorScheme) -> Option<View> {
    let [height, width] = *tensor.info.shape else { return None };
    match tensor.role.axis() {
        Some(1) => Some(View { rows: width, features: height, row_step: 1, feature_step: width }),
        _ if scheme.axis == 0 || scheme.granularity != Granularity::PerChannel => {
            Some(View { rows: height, features: width, row_step: width, feature_step: 1 })
        }
        _ => None,
    }
}

/// Quantizes as without samples: the nearest codes, and activations while the model runs.
pub(super) fn forget_inputs(scheme: &mut TensorScheme, is_static: bool) {
    scheme.rounding = RoundingChoice::nearest();
    if scheme.observer.looks_at_inputs() {
        scheme.observer = ObserverChoice::new(&Method::new("mse")).expect("there is such an observer");
    }
    if is_static {
        scheme.mode = Some(Mode::Dynamic);
    }
}

/// Range, scale and zero point of the inputs of each layer that is quantized with them, by its name; and what they were on the
/// samples.
///
/// # Errors
///
/// As [`Recorded::inputs`] and [`Ranges::choose`].
pub(super) fn choose_activations(
    model: &Model,
    plan: &Plan,
    recipe: &Recipe,
    inputs: &LayerInputs,
    threads: usize,
) -> Result<(BTreeMap<String, Choice>, BTreeMap<String, ActivationStats>)> {
    let is_static = |tensor: &usize| plan.scheme(*tensor).is_some_and(|scheme| scheme.mode.unwrap_or(plan.mode) == Mode::Static);
    let tensors: Vec<usize> = plan.quantized().filter(is_static).collect();
    if tensors.is_empty() {
        return Ok(Default::default());
    }
    let observer = recipe.observers.choose(&recipe.activations.observer)?;
    let activations = inputs.activations(observer.averaging_weight(), threads)?;
    let mut ranges: BTreeMap<Dtype, Ranges<'_>> = BTreeMap::new();
    let mut choices = BTreeMap::new();
    for info in tensors.into_iter().map(|tensor| &model.tensors()[tensor].info) {
        let Some(name) = layer_of(&info.name) else { continue };
        let ranges = ranges.entry(info.dtype).or_insert_with(|| Ranges::new(model.path(), &activations, recipe, info.dtype));
        choices.insert(name.to_owned(), ranges.choose(name, &RangeSource::Observed, recipe.activations.observer_of(name))?);
    }
    drop(ranges);
    Ok((choices, activations))
}
