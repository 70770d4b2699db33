//! Judges what a run wrote before it appears: what fails a gate never does.
//!
//! Tensors are judged by what was lost when they were quantized, as the sidecar records it: after transforms, of which the float model
//! that goes in knows nothing. Outputs are judged by running the float model and the model that was written on all samples, as
//! `compare` does.

use super::Request;
use super::stored::StoredWeights;
use crate::compare::{self, Difference, OutputRequest, Sums};
use crate::error::{Error, Result};
use crate::gates::{GateRow, Gates, Kind, Measure, Subject};
use crate::model::Model;
use crate::outputs::OutputLayout;
use crate::outputs::assemble::Staged;
use crate::outputs::onnx::rewrite::ParamsOf;
use crate::outputs::quantized::{DequantizeScratch, QuantizedModel};
use crate::plan::Plan;
use crate::recipe::Pattern;
use crate::stream::quantize::Outcome;
use crate::stream::{self, Progress};
use std::collections::BTreeMap;
use std::ops::Range;

/// Elements that are compared at a time.
const PIECE: usize = 1 << 16;

/// The outputs that are compared: those of an ONNX model that samples are given for.
fn outputs<'m>(model: &'m Model, request: &Request) -> Vec<&'m str> {
    let graph = model.onnx().filter(|_| !request.calibration.samples.is_empty()).and_then(|onnx| onnx.file.proto.graph.as_deref());
    graph.into_iter().flat_map(|graph| &graph.output).map(|value| value.name.as_str()).collect()
}

/// Makes sure, before the work, that there is something to judge.
///
/// # Errors
///
/// [`Error::Usage`] if a pattern matches nothing, or a limit is for outputs and none will be compared.
pub(super) fn check(model: &Model, request: &Request) -> Result<()> {
    let (gates, outputs) = (&request.gates, outputs(model, request));
    let samples = "outputs of an ONNX model are compared on --samples";
    if !gates.of(Measure::Top1).is_empty() && outputs.is_empty() {
        return Err(Error::Usage("--min-top1: expected outputs to compare, found none".into()).with_hint(samples));
    }
    let is_known = |measure, pattern: &Pattern| {
        let of_tensor = || measure != Measure::Top1 && model.tensors().iter().any(|tensor| tensor.is_matched_by(pattern));
        outputs.iter().any(|output| pattern.matches(output)) || of_tensor()
    };
    let what = if outputs.is_empty() { "a tensor" } else { "a tensor or an output" };
    let result = gates.check_patterns(what, is_known);
    if model.onnx().is_some() && outputs.is_empty() { result.map_err(|e| e.with_hint(samples)) } else { result }
}

/// What was written, and what is asked of it.
pub(super) struct Judge<'a> {
    pub request: &'a Request,
    pub model: &'a Model,
    pub plan: &'a Plan,
    pub layout: &'a OutputLayout,
    /// Parameters of weights, of forms that hold them in an ONNX model.
    pub params: &'a ParamsOf,
    pub outcomes: &'a BTreeMap<usize, Outcome>,
    pub threads: usize,
}

impl Judge<'_> {
    /// Judges quantized tensors, and outputs where they are compared.
    ///
    /// # Errors
    ///
    /// As [`compare::compare_outputs`]; what fails a gate is no error here.
    pub(super) fn rows(&self, staged: &Staged, progress: &dyn Progress) -> Result<Vec<GateRow>> {
        let outputs = outputs(self.model, self.request);
        let mut rows = self.of_tensors(staged, outputs.is_empty())?;
        let gates = &self.request.gates;
        let is_judged =
            |output: &&str| Measure::all().any(|measure| gates.limit(measure, true, |pattern| pattern.matches(output)).is_some());
        if outputs.iter().any(is_judged) {
            rows.extend(self.of_outputs(staged, gates, progress)?);
        }
        Ok(rows)
    }

    fn of_outputs(&self, staged: &Staged, gates: &Gates, progress: &dyn Progress) -> Result<Vec<GateRow>> {
        let calibration = &self.request.calibration;
        let request = OutputRequest {
            float: self.request.model.clone(),
            quantized: staged.weights.last().cloned().unwrap_or_default(),
            samples: calibration.samples.clone(),
            limit: calibration.limit,
            limits: calibration.limits,
            layers: false,
            read: self.request.read,
            threads: self.threads,
        };
        compare::compare_outputs(&request, progress)?.judge_outputs(gates)
    }

    /// `are_subject`: whether limits without a pattern are for tensors.
    fn of_tensors(&self, staged: &Staged, are_subject: bool) -> Result<Vec<GateRow>> {
        let Judge { request, model, plan, outcomes, .. } = self;
        let tensors: Vec<usize> = plan.quantized().filter(|tensor| outcomes.contains_key(tensor)).collect();
        let has_cosine = |tensor: &&usize| {
            let matches = |pattern: &Pattern| model.tensors()[**tensor].is_matched_by(pattern);
            request.gates.limit(Measure::Cosine, are_subject, matches).is_some()
        };
        let cosines = self.cosines(staged, &tensors.iter().filter(has_cosine).copied().collect::<Vec<_>>())?;
        let judge = |tensor: usize| {
            let stored = &model.tensors()[tensor];
            let metrics = outcomes[&tensor].sums.metrics();
            let cosine = cosines.get(&tensor).copied().flatten();
            let difference = Difference { cosine, max_abs: metrics.max_abs, mse: metrics.mse, sqnr_db: metrics.sqnr_db };
            let subject = Subject { kind: Kind::Tensor, name: &stored.info.name, difference, top1: None };
            request.gates.judge(&subject, are_subject, |pattern| stored.is_matched_by(pattern))
        };
        Ok(tensors.into_iter().flat_map(judge).collect())
    }

    /// The cosine of each of `tensors`, which sums of errors do not tell: from what was written.
    fn cosines(&self, staged: &Staged, tensors: &[usize]) -> Result<BTreeMap<usize, Option<f64>>> {
        let Judge { request, model, plan, layout, params, threads, .. } = self;
        if tensors.is_empty() {
            return Ok(BTreeMap::new());
        }
        let found = if model.onnx().is_some() {
            let stored = StoredWeights::open(model, plan, params, layout, &staged.weights)?;
            stream::map(tensors.len(), *threads, |i| {
                let weight = stored.of(tensors[i])?;
                self.cosine(tensors[i], &mut |elements, values| weight.append(elements, values))
            })
        } else {
            let written = QuantizedModel::open(&staged.root, &request.read)?;
            let index = written.model.index();
            stream::map(tensors.len(), *threads, |i| {
                let counterpart = *index.get(model.tensors()[tensors[i]].info.name.as_str())?;
                let mut scratch = DequantizeScratch::default();
                self.cosine(tensors[i], &mut |elements, values| {
                    values.extend_from_slice(written.values(counterpart, elements, &mut scratch))
                })
            })
        };
        Ok(tensors.iter().copied().zip(found).collect())
    }

    /// The cosine of a tensor and of what `append` gives of it.
    fn cosine(&self, tensor: usize, append: &mut dyn FnMut(Range<usize>, &mut Vec<f32>)) -> Option<f64> {
        let (mut scratch, mut written, mut sums) = (Vec::new(), Vec::new(), Sums::default());
        let elements = self.model.tensors()[tensor].info.elements();
        for start in (0..elements).step_by(PIECE) {
            let piece = start..(start + PIECE).min(elements);
            written.clear();
            append(piece.clone(), &mut written);
            let values = self.model.values(tensor, piece, &mut scratch);
            values.iter().zip(&written).for_each(|(a, b)| sums.add(f64::from(*a), f64::from(*b)));
        }
        sums.difference().cosine
    }
}
