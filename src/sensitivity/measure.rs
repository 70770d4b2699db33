//! What quantizing costs, measured: outputs of a simulated model against those of the float one, over some samples.
//!
//! ```text
//! noise = Σ (x − x')² / Σ x²        SQNR = −10 log10(noise) dB
//! ```
//!
//! Noise of an output is that of the output's elements over all samples. Errors of different weights and values hardly
//! depend on each other, so their noise adds up, nearly.

use super::simulate::{Trial, rounded_weight, simulate};
use crate::calibration::array::{Array, decisions};
use crate::calibration::engine::{self, EngineChoice};
use crate::calibration::samples::Samples;
use crate::error::{Error, Result};
use crate::formats::onnx::proto::ModelProto;
use crate::graph::lower;
use crate::graph::onnx_model::OnnxModel;
use crate::model::Model;
use crate::outputs::onnx::rewrite::ParamsOf;
use crate::plan::Plan;
use crate::stream::{self, Progress};
use bytes::Bytes;
use std::collections::HashMap;

/// Noise of each float output, in the order of [`Bench::outputs`].
pub(super) type Noise = Vec<f64>;

/// SQNR in dB of the worst output.
pub(super) fn sqnr_db(noise: &[f64]) -> f64 {
    -10.0 * noise.iter().fold(0.0, |worst: f64, noise| worst.max(*noise)).log10()
}

/// A float model, samples, and what it makes of them.
pub(super) struct Bench<'a> {
    pub model: &'a Model,
    pub onnx: &'a OnnxModel,
    engine: EngineChoice,
    samples: Vec<Sample>,
    /// Names of the outputs that are floats and not constant.
    outputs: Vec<String>,
    /// Quantized weights.
    rounded: HashMap<usize, Bytes>,
    threads: usize,
}

struct Sample {
    inputs: Vec<(String, Array)>,
    expected: Vec<Array>,
}

/// Where a bench comes from.
pub(crate) struct Setup<'a> {
    pub model: &'a Model,
    pub onnx: &'a OnnxModel,
    pub samples: &'a Samples,
    /// Most samples that are used; they are taken from all over.
    pub limit: usize,
    pub engine: EngineChoice,
    pub threads: usize,
}

impl<'a> Bench<'a> {
    /// Runs the float model.
    ///
    /// # Errors
    ///
    /// As [`Samples::load`] and [`engine::Engine::run`].
    pub(super) fn new(setup: &Setup<'a>, plan: &Plan, params: &ParamsOf) -> Result<Self> {
        let Setup { model, onnx, samples, limit, engine, threads } = *setup;
        let count = limit.clamp(1, samples.len());
        let float = load(engine, model, onnx.file.proto.clone())?;
        let graph = onnx.file.proto.graph.as_deref();
        let all: Vec<String> = graph.into_iter().flat_map(|graph| &graph.output).map(|value| value.name.clone()).collect();
        let samples = stream::map(count, threads, |i| -> Result<Sample> {
            let inputs = samples.load(i * samples.len() / count)?;
            let expected = float.run(&inputs, &all)?;
            Ok(Sample { inputs, expected })
        });
        let mut samples = samples.into_iter().collect::<Result<Vec<_>>>()?;
        let is_float: Vec<bool> = (0..all.len()).map(|i| samples.iter().all(|sample| sample.expected[i].floats().is_some())).collect();
        let outputs = all.into_iter().zip(&is_float).filter(|(_, is_float)| **is_float).map(|(name, _)| name).collect();
        for sample in &mut samples {
            let mut is_float = is_float.iter();
            sample.expected.retain(|_| *is_float.next().expect("one for each output"));
        }
        let tensors: Vec<usize> = plan.quantized().collect();
        let rounded = stream::map(tensors.len(), threads, |i| {
            let tensor = tensors[i];
            plan.scheme(tensor).map(|scheme| (tensor, rounded_weight(model, tensor, scheme, &params[&tensor])))
        });
        Ok(Bench { model, onnx, engine, samples, outputs, rounded: rounded.into_iter().flatten().collect(), threads })
    }

    /// Number of samples.
    pub(super) fn samples(&self) -> usize {
        self.samples.len()
    }

    /// Share of the decisions that a simulated model makes in another way, of the output with most of them: rows whose largest
    /// value is another. `None` if no output has classes.
    ///
    /// # Errors
    ///
    /// As [`engine::Engine::run`].
    pub(super) fn changed_decisions(&self, plan: &Plan, trial: &Trial) -> Result<Option<f64>> {
        let engine = load(self.engine, self.model, self.simulated(plan, trial)?)?;
        let counted = stream::map(self.samples.len(), self.threads, |s| -> Result<Vec<Option<[u64; 2]>>> {
            let found = engine.run(&self.samples[s].inputs, &self.outputs)?;
            Ok(self.samples[s].expected.iter().zip(&found).map(|(expected, found)| decisions(expected, found)).collect())
        });
        let mut totals = vec![Some([0, 0]); self.outputs.len()];
        for counted in counted {
            for (total, counted) in totals.iter_mut().zip(counted?) {
                *total = total.zip(counted).map(|(total, counted)| [total[0] + counted[0], total[1] + counted[1]]);
            }
        }
        let shares = totals.into_iter().flatten().filter(|[rows, _]| *rows > 0).map(|[rows, same]| (rows - same) as f64 / rows as f64);
        Ok(shares.reduce(f64::max))
    }

    /// The model of a trial, in operators that the engine knows.
    fn simulated(&self, plan: &Plan, trial: &Trial) -> Result<ModelProto> {
        let mut proto = simulate(self.onnx, plan, trial, &self.rounded);
        if plan.activation_codes.bits() > 8 {
            // The embedded engine has no such codes.
            lower::to_float(&mut proto).map_err(|e| Error::malformed(self.model.path(), e))?;
        }
        Ok(proto)
    }

    /// Noise of all `trials`, in order, each on the first `count` samples.
    ///
    /// # Errors
    ///
    /// As [`engine::Engine::run`].
    pub(super) fn noise(&self, plan: &Plan, trials: &[Trial], count: usize, progress: &dyn Progress) -> Result<Vec<Noise>> {
        // With few trials, threads share the samples of each.
        let inner = if trials.len() < self.threads { self.threads } else { 1 };
        let measured = stream::map(trials.len(), self.threads / inner, |i| {
            let engine = load(self.engine, self.model, self.simulated(plan, &trials[i])?)?;
            let sums = stream::map(count.min(self.samples.len()), inner, |s| -> Result<Vec<[f64; 2]>> {
                let found = engine.run(&self.samples[s].inputs, &self.outputs)?;
                Ok(self.samples[s].expected.iter().zip(&found).map(|(expected, found)| error_and_signal(expected, found)).collect())
            });
            let mut total = vec![[0.0; 2]; self.outputs.len()];
            for sums in sums {
                for (total, sums) in total.iter_mut().zip(sums?) {
                    total[0] += sums[0];
                    total[1] += sums[1];
                }
            }
            progress.advance(1);
            Ok(total.into_iter().map(|[error, signal]| if error == 0.0 { 0.0 } else { error / signal }).collect())
        });
        measured.into_iter().collect()
    }
}

fn load(engine: EngineChoice, model: &Model, proto: ModelProto) -> Result<Box<dyn engine::Engine>> {
    engine::load_model(engine, model.path(), proto, &engine::Options::default())
}

/// `Σ (x − x')²` and `Σ x²`; an output of another size has lost all.
fn error_and_signal(expected: &Array, found: &Array) -> [f64; 2] {
    let (a, b) = (expected.floats().unwrap_or_default(), found.floats().unwrap_or_default());
    if a.len() != b.len() {
        return [f64::INFINITY, 1.0];
    }
    a.iter().zip(b).fold([0.0; 2], |[error, signal], (a, b)| {
        let (a, b) = (f64::from(*a), f64::from(*b));
        // Values that both have, such as infinities of a mask, do not differ.
        let difference = if a == b || a.is_nan() && b.is_nan() { 0.0 } else { a - b };
        // A number that became none, or the other way round, has lost all.
        let difference = if difference.is_nan() { f64::INFINITY } else { difference };
        [error + difference * difference, signal + if a.is_finite() { a * a } else { 0.0 }]
    })
}

/// What to say of an engine that could not measure.
pub(super) fn unmeasured(error: &Error) -> String {
    format!("layers were not measured, so that all of them run in integers: {error}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibration::array::Data;
    use crate::tensor::Dtype;

    #[test]
    fn outputs_that_became_no_numbers_have_lost_all() {
        let array = |values: &[f32]| Array { dtype: Dtype::F32, shape: vec![values.len()], data: Data::Float(values.to_vec()) };
        let expected = array(&[1.0, f32::INFINITY, f32::NAN, 2.0]);
        assert_eq!(error_and_signal(&expected, &expected), [0.0, 5.0]);
        assert_eq!(error_and_signal(&expected, &array(&[1.0, f32::INFINITY, f32::NAN, f32::NAN]))[0], f64::INFINITY);
        assert_eq!(error_and_signal(&expected, &array(&[1.0, 3.0, f32::NAN, 2.0]))[0], f64::INFINITY);
    }
}
