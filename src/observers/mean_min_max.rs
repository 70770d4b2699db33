//! `mean-min-max`: the mean of the batches' minima, and that of their maxima.
//!
//! As the MinMax calibrator of ONNX Runtime with `moving_average`, in one `collect_data`: `numpy.nanmean` of f32, which
//! adds in pairs. All batches weigh the same, in any order. For a weight, which is one batch, it is min-max.

use super::entropy::pairwise_sum;
use super::{Batch, Observer, ObserverEntry};
use crate::quant::params::Range;

pub(super) const ENTRY: ObserverEntry = ObserverEntry {
    name: "mean-min-max",
    parameter: None,
    summary: "the mean of the minima and of the maxima of batches",
    build: |_, _| Box::new(MeanMinMax::default()),
    from_summary: |_, summary, _| Some(summary.mean_extent),
    joint: None,
    extent_only: true,
    looks_at_inputs: false,
};

#[derive(Default)]
struct MeanMinMax {
    minima: Vec<f32>,
    maxima: Vec<f32>,
}

impl Observer for MeanMinMax {
    fn observe(&mut self, Batch { extent, .. }: Batch<'_>) {
        self.minima.push(extent.min);
        self.maxima.push(extent.max);
    }

    fn range(&self) -> Range {
        if self.minima.is_empty() { Range::EMPTY } else { Range { min: mean(&self.minima), max: mean(&self.maxima) } }
    }
}

fn mean(values: &[f32]) -> f32 {
    let mean = pairwise_sum(values) / values.len() as f32;
    // Sums beyond f32 are infinite in the reference.
    if mean.is_finite() { mean } else { (values.iter().map(|value| f64::from(*value)).sum::<f64>() / values.len() as f64) as f32 }
}
