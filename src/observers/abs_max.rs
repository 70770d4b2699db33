//! `abs-max`: the largest magnitude seen, at both ends.
//!
//! As the MinMax calibrator of ONNX Runtime with `symmetric`. Symmetric schemes widen any range so; with an affine
//! one, the zero point comes out in the middle of the grid.

use super::{Batch, Observer, ObserverEntry};
use crate::quant::params::Range;

pub(super) const ENTRY: ObserverEntry = ObserverEntry {
    name: "abs-max",
    parameter: None,
    summary: "the largest magnitude, at both ends; clips nothing",
    build: |_, _| Box::new(AbsMax { largest: None }),
    from_summary: |_, summary, _| Some(around_zero(summary.largest())),
    joint: None,
    extent_only: true,
    looks_at_inputs: false,
};

struct AbsMax {
    largest: Option<f32>,
}

impl Observer for AbsMax {
    fn observe(&mut self, Batch { extent, .. }: Batch<'_>) {
        self.largest = Some(self.largest.unwrap_or(0.0).max(extent.min.abs()).max(extent.max.abs()));
    }

    fn range(&self) -> Range {
        self.largest.map_or(Range::EMPTY, around_zero)
    }
}

fn around_zero(largest: f32) -> Range {
    Range { min: -largest, max: largest }
}
