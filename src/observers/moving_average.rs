//! `moving-average[:C]`: minimum and maximum smoothed over batches, so that one odd batch does not set the range.
//!
//! ```text
//! first batch: min, max          then: min = min + c * (batch min - min), max likewise, all in f32
//! ```
//!
//! As [`MovingAverageMinMaxObserver`](https://github.com/pytorch/pytorch/blob/main/torch/ao/quantization/observer.py),
//! whose `averaging_constant` is `c`. The order of batches matters. For a weight, which is one batch, it is min-max.

use super::{Batch, Observer, ObserverEntry, Parameter};
use crate::quant::params::Range;

pub(super) const ENTRY: ObserverEntry = ObserverEntry {
    name: "moving-average",
    parameter: Some(Parameter { name: "C", default: 0.01, min: 0.0, max: 1.0, is_whole: false }),
    summary: "minimum and maximum averaged over batches, each new one weighing C",
    build: |value, _| Box::new(MovingAverage { weight: value as f32, range: None }),
    from_summary: |value, summary, _| summary.smoothed.filter(|smoothed| smoothed.weight == value as f32).map(|smoothed| smoothed.range),
    joint: None,
    extent_only: true,
    looks_at_inputs: false,
};

struct MovingAverage {
    weight: f32,
    range: Option<Range>,
}

impl Observer for MovingAverage {
    fn observe(&mut self, Batch { extent, .. }: Batch<'_>) {
        self.range = Some(smooth(self.weight, self.range, extent));
    }

    fn range(&self) -> Range {
        self.range.unwrap_or(Range::EMPTY)
    }
}

/// The running minimum and maximum after a batch of `extent`, which has `weight`; `None` before the first.
pub(crate) fn smooth(weight: f32, running: Option<Range>, extent: Range) -> Range {
    let towards = |old: f32, new: f32| old + weight * (new - old);
    running.map_or(extent, |running| Range { min: towards(running.min, extent.min), max: towards(running.max, extent.max) })
}
