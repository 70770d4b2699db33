//! What a page shows of a run besides the report: values of the tensors that lost most, before and after, and activations.

use super::stored::StoredWeights;
use crate::calibration::stats::ActivationStats;
use crate::error::Result;
use crate::formats::ReadOptions;
use crate::model::Model;
use crate::outputs::OutputLayout;
use crate::outputs::document::ActivationRecord;
use crate::outputs::onnx::rewrite::ParamsOf;
use crate::outputs::quantized::{DequantizeScratch, QuantizedModel};
use crate::outputs::target::Target;
use crate::plan::Plan;
use crate::quant::params::{Params, Range};
use crate::report::distribution::{BINS, COUNTED, CodeGrid, Distribution};
use crate::report::{ActivationDetails, QuantizeReport, TensorOutcome};
use crate::stream;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What was written, and from what.
pub(super) struct Written<'a> {
    pub model: &'a Model,
    pub plan: &'a Plan,
    pub layout: &'a OutputLayout,
    pub target: &'a Target,
    /// Parameters of weights, of forms that hold them in an ONNX model.
    pub params: &'a ParamsOf,
    pub read: &'a ReadOptions,
    pub threads: usize,
}

impl Written<'_> {
    /// Histograms of the tensors that lost most, worst first, from the output as it is on the disk.
    ///
    /// # Errors
    ///
    /// As [`QuantizedModel::open`].
    pub(super) fn distributions(&self, report: &QuantizeReport) -> Result<Vec<Distribution>> {
        let sqnr = |tensor: usize| match &report.tensors[tensor].outcome {
            TensorOutcome::Quantize { error: Some(error), .. } => error.sqnr_db,
            _ => None,
        };
        let mut worst: Vec<(usize, f64)> = self.plan.quantized().filter_map(|tensor| Some((tensor, sqnr(tensor)?))).collect();
        worst.sort_by(|a, b| a.1.total_cmp(&b.1));
        worst.truncate(COUNTED);
        if self.model.onnx().is_some() { self.of_onnx(&worst) } else { self.of_checkpoint(&worst) }
    }

    fn of_checkpoint(&self, worst: &[(usize, f64)]) -> Result<Vec<Distribution>> {
        let Target { output, sidecar, is_directory, .. } = self.target;
        let written = if *is_directory { output } else { sidecar.as_ref().unwrap_or(output) };
        let written = QuantizedModel::open(written, self.read)?;
        let index = written.model.index();
        let of = |i: usize| {
            let info = &self.model.tensors()[worst[i].0].info;
            let counterpart = *index.get(info.name.as_str())?;
            let (mut scratch, mut written_scratch) = (Vec::new(), DequantizeScratch::default());
            let grid = written.grid(counterpart).and_then(|(params, codes)| CodeGrid::new(params, codes));
            Some(Distribution::of(&info.name, info.elements(), grid, |elements, before, after| {
                before.extend_from_slice(self.model.values(worst[i].0, elements.clone(), &mut scratch));
                after.extend_from_slice(written.values(counterpart, elements, &mut written_scratch));
            }))
        };
        Ok(stream::map(worst.len(), self.threads, of).into_iter().flatten().collect())
    }

    fn of_onnx(&self, worst: &[(usize, f64)]) -> Result<Vec<Distribution>> {
        let paths: Vec<PathBuf> = (self.layout.files.iter().enumerate())
            .map(|(file, layout)| {
                let is_main = file + 1 == self.layout.files.len();
                if is_main { self.target.output.clone() } else { self.target.output.with_file_name(&layout.name) }
            })
            .collect();
        let stored = StoredWeights::open(self.model, self.plan, self.params, self.layout, &paths)?;
        let of = |i: usize| {
            let tensor = worst[i].0;
            let info = &self.model.tensors()[tensor].info;
            let (scheme, params) = (self.plan.scheme(tensor)?, self.params.get(&tensor)?);
            let weight = stored.of(tensor)?;
            let mut scratch = Vec::new();
            Some(Distribution::of(&info.name, info.elements(), CodeGrid::new(params, scheme.clip), |elements, before, after| {
                before.extend_from_slice(self.model.values(tensor, elements.clone(), &mut scratch));
                weight.append(elements, after);
            }))
        };
        Ok(stream::map(worst.len(), self.threads, of).into_iter().flatten().collect())
    }
}

/// What is known of each activation: first those of whose values most are clipped.
pub(super) fn activations(
    records: &BTreeMap<String, ActivationRecord>,
    stats: &BTreeMap<String, ActivationStats>,
) -> Vec<ActivationDetails> {
    let mut details: Vec<ActivationDetails> = records.iter().map(|(name, record)| of_activation(name, record, stats.get(name))).collect();
    // Names are in order, and stay so where as much is clipped.
    details.sort_by(|a, b| b.clipped.unwrap_or(-1.0).total_cmp(&a.clipped.unwrap_or(-1.0)));
    for detail in details.iter_mut().take(COUNTED) {
        detail.distribution = stats.get(&detail.name).filter(|stats| stats.values() > 0).map(|stats| histogram(detail, stats));
    }
    details
}

fn of_activation(name: &str, record: &ActivationRecord, stats: Option<&ActivationStats>) -> ActivationDetails {
    let stats = stats.filter(|stats| stats.values() > 0);
    let clipped = stats.map(|stats| {
        let beyond = |mean: f32| mean < record.min || mean > record.max;
        let clipped: u64 = stats.summary().bins.iter().filter(|bin| beyond(bin.mean)).map(|bin| bin.count).sum();
        clipped as f64 / stats.values() as f64
    });
    let observed = stats.map(ActivationStats::extent);
    ActivationDetails { name: name.to_owned(), record: record.clone(), observed, clipped, distribution: None }
}

fn histogram(detail: &ActivationDetails, stats: &ActivationStats) -> Distribution {
    let (record, extent) = (&detail.record, stats.extent());
    let params = Params { scale: record.scale, zero_point: record.zero_point };
    let grid = CodeGrid::new(&[params], record.dtype.grid());
    let ends = grid.map_or(Range { min: record.min, max: record.max }, |grid| grid.widest);
    let range = Range { min: extent.min.min(ends.min), max: extent.max.max(ends.max) };
    let before = if range.min < range.max { stats.summary().even_counts(BINS, range.min, range.max) } else { vec![stats.values()] };
    Distribution { name: detail.name.clone(), range, before, after: Vec::new(), grid }
}
