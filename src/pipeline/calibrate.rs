//! Calibration on its own: observe, and keep the statistics for later runs of `quantize`, or for `merge`.

use super::checkpoint;
use super::onnx::{self, CalibrationRequest};
use crate::calibration::inputs::recorded::Recorded;
use crate::calibration::inputs::stats::Detail;
use crate::calibration::stats::{self, Statistics};
use crate::error::{Error, Result};
use crate::formats::{self, ReadOptions};
use crate::method::Method;
use crate::observers::ObserverChoice;
use crate::outputs::staging::{Durability, check_free, not_replaceable};
use crate::outputs::target::spare;
use crate::plan::Plan;
use crate::qat;
use crate::recipe::{Activations, Mode, Recipe};
use crate::stream::Progress;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Everything that a run of `calibrate` is told.
pub struct CalibrateRequest {
    /// The model.
    pub model: PathBuf,
    /// What it runs on.
    pub calibration: CalibrationRequest,
    /// The observer that the statistics are for; all but `moving-average` can be asked of any statistics.
    pub observer: Method,
    /// Whether of layers' inputs only ranges, means and maxima are kept, which are small.
    pub ranges_only: bool,
    /// Where statistics go.
    pub output: PathBuf,
    /// Whether an existing file is replaced.
    pub force: bool,
    /// Whether the file is made to last before success is reported.
    pub durability: Durability,
    /// Bounds of the reader.
    pub read: ReadOptions,
    /// Threads that run samples.
    pub threads: usize,
}

/// What was observed.
#[derive(Clone, Debug, Serialize)]
pub struct CalibrationReport {
    /// Number of samples.
    pub samples: usize,
    /// Number of values that were watched.
    pub activations: usize,
    /// The file of statistics.
    pub output: PathBuf,
}

/// Runs the samples and writes what was observed of every value that static quantization could quantize; of a checkpoint,
/// what was recorded of the inputs of layers.
///
/// # Errors
///
/// As [`formats::open`]; [`Error::Malformed`] if samples are not the model's inputs or the engine cannot run it;
/// [`Error::Usage`] if the output exists or nothing could be quantized.
pub fn calibrate(request: &CalibrateRequest, progress: &dyn Progress) -> Result<CalibrationReport> {
    check_output(&request.output, request.force)?;
    let model = formats::open(&request.model, &request.read)?;
    if model.onnx().is_none() {
        let recorded =
            Recorded::open(request.calibration.samples.recorded()?, &model, checkpoint::selection(&request.calibration), request.threads)?;
        let detail = if request.ranges_only { Detail::Features } else { Detail::Gram };
        let weight = ObserverChoice::new(&request.observer)?.averaging_weight();
        let statistics = recorded.statistics(onnx::identity(&model), detail, weight, request.threads, progress)?;
        recorded.check_unchanged()?;
        model.check_unchanged()?;
        return write(&statistics, &request.output, request.force, request.durability);
    }
    let activations = Activations { observer: request.observer.clone(), ..Activations::default() };
    let recipe = Recipe { mode: Mode::Static, activations, ..Recipe::default() };
    let (model, trained) = qat::import(onnx::ready(model, &recipe)?, &recipe)?;
    let mut plan = Plan::new(&model, &recipe)?;
    if trained.is_of_graph() {
        trained.apply(&model, &mut plan, true)?;
    }
    if plan.values.values.is_empty() {
        return Err(Error::malformed(&request.model, "layers: expected some that can run in integers, found none"));
    }
    let observer = ObserverChoice::new(&request.observer)?;
    let statistics = onnx::statistics(&model, &plan, &request.calibration, &observer, request.threads, progress)?;
    model.check_unchanged()?;
    write(&statistics, &request.output, request.force, request.durability)
}

/// Writes the statistics of one run over the samples of all `parts`.
///
/// # Errors
///
/// As [`stats::merge`]; [`Error::Usage`] if the output exists.
pub fn merge(parts: &[PathBuf], output: &Path, force: bool, durability: Durability) -> Result<CalibrationReport> {
    check_output(output, force)?;
    spare(output, parts)?;
    let parts = parts.iter().map(|path| Statistics::read(path)).collect::<Result<Vec<_>>>()?;
    write(&stats::merge(parts)?, output, force, durability)
}

/// Statistics replace nothing but statistics.
fn check_output(output: &Path, force: bool) -> Result<()> {
    check_free(output, force)?;
    if output.symlink_metadata().is_err()
        || output.metadata().is_ok_and(|file| file.is_file() && file.len() == 0)
        || Statistics::recognizes(output)
    {
        return Ok(());
    }
    Err(not_replaceable(output, "output", "statistics of qtool", "-o writes elsewhere; if it can go, remove it first"))
}

fn write(statistics: &Statistics, output: &Path, force: bool, durability: Durability) -> Result<CalibrationReport> {
    statistics.write(output, force, durability)?;
    let (samples, activations) = (statistics.samples(), statistics.activations.len());
    Ok(CalibrationReport { samples, activations, output: output.to_owned() })
}
