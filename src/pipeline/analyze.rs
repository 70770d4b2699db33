//! What each layer of an ONNX model costs when it is quantized, measured on samples; nothing is written.

use super::onnx::{self, CalibrationRequest};
use super::plan_of;
use crate::calibration::ranges::Ranges;
use crate::calibration::stats::Statistics;
use crate::error::{Error, Result};
use crate::formats::{self, ReadOptions};
use crate::quant::scheme::Convention;
use crate::recipe::{Mode, Recipe};
use crate::sensitivity::{Ranking, Search, Setup};
use crate::stream::{Progress, observe};
use crate::tensor::Dtype;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Everything that a run of `analyze` is told.
pub struct AnalyzeRequest {
    /// The model: an ONNX file.
    pub model: PathBuf,
    /// What is asked for. `auto` is static.
    pub recipe: Recipe,
    /// Samples that it is measured on.
    pub calibration: CalibrationRequest,
    /// Bounds of the reader.
    pub read: ReadOptions,
    /// Threads that work.
    pub threads: usize,
}

/// Measures each layer alone, and everything together.
///
/// # Errors
///
/// As [`formats::open`], [`crate::plan::Plan::new`] and [`crate::calibration::samples::Samples::open`]; [`Error::Usage`] without
/// samples, or if an observer is a command that may not run; [`Error::Malformed`] if the model is not ONNX, the engine cannot run it, or nothing is quantized.
pub fn analyze(mut request: AnalyzeRequest, progress: &dyn Progress) -> Result<Ranking> {
    let AnalyzeRequest { recipe, calibration, .. } = &mut request;
    if recipe.mode == Mode::Auto {
        recipe.mode = Mode::Static;
    }
    recipe.settings.convention.get_or_insert(Convention::Ort);
    if calibration.samples.is_empty() {
        let error = Error::Usage("analyze: expected --samples, found none".into());
        return Err(error.with_hint("--samples PATH gives inputs of the model"));
    }
    let AnalyzeRequest { recipe, calibration, threads, .. } = &request;
    recipe.observers.check_allowed(recipe.observers_in_use())?;
    let model = formats::open(&request.model, &request.read)?;
    if model.onnx().is_none() {
        return Err(Error::malformed(model.path(), "analyze: expected an ONNX model, found a checkpoint, which has no graph to run"));
    }
    let model = onnx::ready(model, recipe)?;
    let plan = plan_of(&model, recipe)?;
    let nothing = || Error::malformed(model.path(), "layers: expected some that can be quantized, found none");
    let onnx = model.onnx().filter(|_| plan.quantized().next().is_some()).ok_or_else(nothing)?;
    let statistics = match plan.values.values.is_empty() {
        false => {
            let observer = recipe.observers.choose(&recipe.activations.observer)?;
            onnx::statistics(&model, &plan, calibration, &observer, *threads, progress)?
        }
        true => Statistics::new(onnx::identity(&model), BTreeMap::new()),
    };
    let ranges = Ranges::new(model.path(), &statistics.activations, recipe, Dtype::F32);
    let samples = calibration.open(onnx)?;
    let setup = Setup { model: &model, onnx, samples: &samples, limit: samples.len(), engine: calibration.engine, threads: *threads };
    let weights = observe::all_params(&model, &plan, *threads)?;
    let plan_of = |recipe: &Recipe| plan_of(&model, recipe);
    let (statistics, weights) = (&statistics, &weights);
    let search =
        Search { setup, recipe, plan: &plan, weights, statistics, min_sqnr_db: 0.0, max_drop: None, ranges: &ranges, plan_of: &plan_of };
    let ranking = search.rank(progress)?;
    model.check_unchanged()?;
    Ok(ranking)
}
