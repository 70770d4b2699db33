//! Calibration on its own: observe, and keep the statistics for later runs of `quantize`, or for `merge`.

use super::onnx::{self, CalibrationRequest};
use crate::calibration::stats::{self, Statistics};
use crate::error::{Error, Result};
use crate::formats::{self, ReadOptions};
use crate::method::Method;
use crate::outputs::staging::Durability;
use crate::plan::Plan;
use crate::recipe::{Activations, Mode, Recipe};
use crate::stream::Progress;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Everything that a run of `calibrate` is told.
pub struct CalibrateRequest {
    /// The ONNX model.
    pub model: PathBuf,
    /// What it runs on.
    pub calibration: CalibrationRequest,
    /// The observer that the statistics are for; all but `moving-average` can be asked of any statistics.
    pub observer: Method,
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

/// Runs the samples and writes what was observed of every value that static quantization could quantize.
///
/// # Errors
///
/// As [`formats::open`]; [`Error::Malformed`] if samples are not the model's inputs or the engine cannot run it;
/// [`Error::Usage`] if the output exists or nothing could be quantized.
pub fn calibrate(request: &CalibrateRequest, progress: &dyn Progress) -> Result<CalibrationReport> {
    check_free(&request.output, request.force)?;
    let model = formats::open(&request.model, &request.read)?;
    if model.onnx().is_none() {
        let error = Error::malformed(&request.model, "model: expected an ONNX model, found a file of weights");
        return Err(error.with_hint("weights have no graph that samples could run through"));
    }
    let activations = Activations { observer: request.observer.clone(), ..Activations::default() };
    let recipe = Recipe { mode: Mode::Static, activations, ..Recipe::default() };
    let model = onnx::ready(model, &recipe)?;
    let plan = Plan::new(&model, &recipe)?;
    if plan.values.values.is_empty() {
        return Err(Error::malformed(&request.model, "layers: expected some that can run in integers, found none"));
    }
    let statistics = onnx::statistics(&model, &plan, &request.calibration, &request.observer, request.threads, progress)?;
    model.check_unchanged()?;
    write(&statistics, &request.output, request.force, request.durability)
}

/// Writes the statistics of one run over the samples of all `parts`.
///
/// # Errors
///
/// As [`stats::merge`]; [`Error::Usage`] if the output exists.
pub fn merge(parts: &[PathBuf], output: &Path, force: bool, durability: Durability) -> Result<CalibrationReport> {
    check_free(output, force)?;
    let parts = parts.iter().map(|path| Statistics::read(path)).collect::<Result<Vec<_>>>()?;
    write(&stats::merge(parts)?, output, force, durability)
}

fn write(statistics: &Statistics, output: &Path, force: bool, durability: Durability) -> Result<CalibrationReport> {
    statistics.write(output, force, durability)?;
    let (samples, activations) = (statistics.samples(), statistics.activations.len());
    Ok(CalibrationReport { samples, activations, output: output.to_owned() })
}

/// Before the work rather than after it.
fn check_free(output: &Path, force: bool) -> Result<()> {
    if !force && output.symlink_metadata().is_ok() {
        return Err(crate::outputs::staging::already_exists(output));
    }
    let dir = crate::outputs::staging::parent(output);
    dir.metadata().map_err(|e| Error::io(dir, "open output directory", e)).map(drop)
}
