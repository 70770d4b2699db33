//! What `mse` searches: the scales and zero points that a rule can make of a range, and their errors.

use crate::quant::kernel::search::{SCALES, Trials, clamped_errors, weighted_errors};
use crate::quant::kernel::{Arithmetic, quantize};
use crate::quant::params::{ParamRule, Params, Range};
use crate::quant::scheme::Convention;
use crate::tensor::Dtype;

/// Scales and zero points for values of one extent.
pub(super) struct Space {
    pub(super) rule: ParamRule,
    /// The extent, widened to include 0.
    pub(super) extent: Range,
    /// What min-max gives.
    pub(super) widest: Params,
    /// The extent as the batch reported it: the answer if min-max is best.
    reported: Range,
}

impl Space {
    /// `None` where min-max is all there is: no extent, one beyond f32, or one so small that the rule's smallest
    /// scale takes its place.
    pub(super) fn new(rule: &ParamRule, reported: Range) -> Option<Self> {
        let extent = reported.with_zero();
        let width = if rule.symmetric { 2.0 * (-extent.min).max(extent.max) } else { extent.max - extent.min };
        let widest = rule.choose_params(extent);
        let steps = (rule.grid.qmax - rule.grid.qmin) as f32;
        let faithful = width.is_finite() && width > 1e-30 && (widest.scale * steps / width - 1.0).abs() < 0.01;
        faithful.then_some(Space { rule: *rule, extent, widest, reported })
    }

    /// The ends of the grid minus the zero point.
    pub(super) fn ends(&self, zero_point: i32) -> (f32, f32) {
        ((self.rule.grid.qmin - zero_point) as f32, (self.rule.grid.qmax - zero_point) as f32)
    }

    /// The largest scale worth trying: the last code lies half a step inside the range.
    pub(super) fn largest_scale(&self) -> f64 {
        let steps = f64::from(self.rule.grid.qmax - self.rule.grid.qmin);
        f64::from(self.widest.scale) * steps / (steps - 1.0)
    }

    /// What the rule makes of the range that `scale` and `zero_point` stand for.
    pub(super) fn params(&self, scale: f64, zero_point: i32) -> Params {
        self.rule.choose_params(self.range(scale, zero_point))
    }

    fn range(&self, scale: f64, zero_point: i32) -> Range {
        let (qmin, qmax) = (self.rule.grid.qmin, self.rule.grid.qmax);
        let (low, high) = if self.rule.symmetric {
            (f64::from(qmin - qmax) / 2.0, f64::from(qmax - qmin) / 2.0)
        } else {
            (f64::from(qmin - zero_point), f64::from(qmax - zero_point))
        };
        Range { min: (low * scale) as f32, max: (high * scale) as f32 }
    }

    /// Sums of squared errors of `values`, in squared real units, one for each of `trials`.
    pub(super) fn errors(&self, values: &[f32], trials: &[Params]) -> Vec<f64> {
        self.each_pass(trials, |pass| clamped_errors(values, pass))
    }

    /// As [`Space::errors`], each value counted `weights` times.
    pub(super) fn weighted_errors(&self, values: &[f32], weights: &[f32], trials: &[Params]) -> Vec<f64> {
        self.each_pass(trials, |pass| weighted_errors(values, weights, pass))
    }

    /// As [`Space::errors`], with the arithmetic of the convention where it rounds in a narrower type.
    pub(super) fn true_errors(&self, values: &[f32], trials: &[Params]) -> Vec<f64> {
        let arithmetic = Arithmetic::of(self.rule.convention, self.rule.dtype);
        if !matches!(arithmetic, Arithmetic::AddThenRound(Dtype::F16 | Dtype::BF16)) {
            return self.errors(values, trials);
        }
        let mut codes = vec![0; values.len()];
        trials.iter().map(|params| quantize(values, *params, arithmetic, self.rule.grid, &mut codes).error).collect()
    }

    fn each_pass(&self, trials: &[Params], errors: impl Fn(&Trials) -> [f64; SCALES]) -> Vec<f64> {
        let mut all = Vec::with_capacity(trials.len());
        for chunk in trials.chunks(SCALES) {
            let mut pass = Trials { count: chunk.len(), ..Trials::default() };
            for (t, params) in chunk.iter().enumerate() {
                pass.reciprocal[t] = 1.0 / params.scale;
                (pass.low[t], pass.high[t]) = self.ends(params.zero_point);
            }
            let sums = errors(&pass);
            all.extend(chunk.iter().zip(sums).map(|(params, sum)| sum * f64::from(params.scale) * f64::from(params.scale)));
        }
        all
    }

    /// The ranges that the last comparison is between: min-max first, then the best of `found`; where scales are
    /// rounded to a narrow type, the neighbours of the first as well.
    pub(super) fn finalists(&self, found: &[Params]) -> Vec<Range> {
        let step = match (self.rule.convention, self.rule.dtype) {
            (Convention::CompressedTensors, Dtype::BF16) => 1.0 / 128.0,
            (Convention::CompressedTensors | Convention::Ort, Dtype::F16) => 1.0 / 1024.0,
            _ => 0.0,
        };
        let mut finalists = vec![self.reported];
        finalists.extend(found.iter().take(SCALES - 1).map(|params| self.range(f64::from(params.scale), params.zero_point)));
        if let (true, Some(first)) = (step > 0.0, found.first()) {
            let scale = f64::from(first.scale);
            finalists.extend([1.0 - step, 1.0 + step].map(|factor| self.range(scale * factor, first.zero_point)));
        }
        finalists
    }

    /// The finalist whose parameters have the least error; min-max unless another is better.
    pub(super) fn best(&self, finalists: &[Range], errors: impl FnOnce(&[Params]) -> Vec<f64>) -> Range {
        let params: Vec<Params> = finalists.iter().map(|range| self.rule.choose_params(*range)).collect();
        let errors = errors(&params);
        finalists[(1..finalists.len()).fold(0, |best, t| if errors[t] < errors[best] { t } else { best })]
    }
}
