//! From the ranges that fake quantizers watched to scales and zero points, as `torch.ao.quantization` computes them.
//!
//! A state dict holds a quantizer's ranges and the scales of its last step, but not the codes it was made for. Those
//! follow from both: they are the ones for which the ranges give these scales, to the bit. [`Kind::Plain`] fake quantizers
//! compute scales as observers do ([`ParamRule`]); [`Kind::Fused`] ones by another formula
//! ([`ChooseQuantizationParams`](https://github.com/pytorch/pytorch/blob/main/aten/src/ATen/native/quantized/cpu/QuantUtils.h)),
//! while `convert` computes the scales of both as observers do.

use crate::quant::params::{ParamRule, Params, Range};
use crate::quant::scheme::{Convention, Grid};
use crate::tensor::Dtype;

/// Which formula wrote the scales of a state dict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// `FakeQuantize`: that of its observer.
    Plain,
    /// `FusedMovingAvgObsFakeQuantize`: that of a kernel.
    Fused,
}

/// The codes that a quantizer was made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Codes {
    pub grid: Grid,
    /// The one zero point of symmetric schemes.
    pub symmetric: Option<i32>,
}

/// Smallest scale of the kernel of fused quantizers: `SMALL_SCALE_THRESHOLD`.
const SMALL_SCALE: f32 = 6.1e-5;

/// What takes the place of a scale that the kernel of fused quantizers cannot divide by.
const NO_SCALE: f64 = 0.1;

/// Widths of codes that are tried, in bits.
const WIDTHS: std::ops::RangeInclusive<u32> = 2..=8;

impl Codes {
    /// Scale and zero point of a range as `_calculate_qparams` of an observer gives them; `eps` is the smallest scale.
    pub(super) fn choose(&self, range: Range, eps: f32) -> Params {
        let (grid, symmetric) = (self.grid, self.symmetric.is_some());
        let rule = ParamRule { convention: Convention::Torch, grid, symmetric, dtype: Dtype::F32, min_scale: eps, blocked: false };
        let params = rule.choose_params(range);
        Params { zero_point: self.symmetric.unwrap_or(params.zero_point), ..params }
    }

    /// What weights may have been trained for: signed codes, those with a zero point of 0 before others, wide before narrow.
    pub(super) fn of_weights() -> Vec<Codes> {
        let mut codes = Vec::new();
        for bits in WIDTHS.rev() {
            let qmax = (1 << (bits - 1)) - 1;
            let grids = [Grid { qmin: -qmax - 1, qmax }, Grid { qmin: -qmax, qmax }];
            codes.extend(grids.iter().map(|grid| Codes { grid: *grid, symmetric: Some(0) }));
            codes.extend(grids.iter().map(|grid| Codes { grid: *grid, symmetric: None }));
        }
        codes
    }

    /// What activations may have been trained for: unsigned codes before signed ones.
    pub(super) fn of_activations() -> Vec<Codes> {
        let mut codes = Vec::new();
        for bits in WIDTHS.rev() {
            let grid = Grid { qmin: 0, qmax: (1 << bits) - 1 };
            codes.push(Codes { grid, symmetric: None });
            // Of eight bits the middle is 128, of others, and where the ends were given, the one that is rounded down.
            codes.extend([grid.qmax / 2, grid.qmax / 2 + 1].map(|middle| Codes { grid, symmetric: Some(middle) }));
        }
        let mut signed = Codes::of_weights();
        signed.sort_by_key(|codes| (codes.grid.qmin - codes.grid.qmax, codes.symmetric.is_some()));
        codes.extend(signed);
        codes
    }
}

/// The first of `candidates` for which all `ranges` give the scales and zero points that were stored beside them.
pub(super) fn infer(candidates: &[Codes], kind: Kind, ranges: &[Range], eps: f32, stored: &[Params]) -> Option<Codes> {
    let fits = |codes: &&Codes| {
        let gives = |range: Range| match kind {
            Kind::Plain => codes.choose(range, eps),
            Kind::Fused => choose_fused(range, codes),
        };
        ranges.iter().zip(stored).all(|(range, params)| gives(*range) == *params)
    };
    candidates.iter().find(fits).copied()
}

/// `ChooseQuantizationParams` with `preserve_sparsity` for symmetric codes, in f64 until the scale is stored.
fn choose_fused(range: Range, codes: &Codes) -> Params {
    let Grid { qmin, qmax } = codes.grid;
    let (mut lo, mut hi) = (range.min, range.max);
    let is_balanced = lo < 0.0 && hi > 0.0 && codes.symmetric.is_some();
    if is_balanced {
        let (below, above) = (-((qmax - qmin) / 2 + 1), (qmax - qmin) / 2);
        let scale = f64::from((lo / below as f32).abs().max((hi / above as f32).abs()));
        (lo, hi) = ((scale * f64::from(below)) as f32, (scale * f64::from(above)) as f32);
    }
    (lo, hi) = (lo.min(0.0), hi.max(0.0));
    let mut scale = (f64::from(hi) - f64::from(lo)) / f64::from(qmax - qmin);
    if scale as f32 == 0.0 || (1.0 / scale as f32).is_infinite() {
        scale = NO_SCALE;
    }
    if scale < f64::from(SMALL_SCALE) {
        let amplifier = SMALL_SCALE / scale as f32;
        scale = f64::from(SMALL_SCALE);
        if lo == 0.0 {
            hi = SMALL_SCALE * (qmax - qmin) as f32;
        } else if hi == 0.0 {
            lo = -SMALL_SCALE * (qmax - qmin) as f32;
        } else {
            (lo, hi) = (lo * amplifier, hi * amplifier);
        }
    }
    let (below, above) = (f64::from(lo) / scale, f64::from(hi) / scale);
    let (from_min, from_max) = (f64::from(qmin) - below, f64::from(qmax) - above);
    let (min_error, max_error) = (f64::from(qmin.abs()) - below.abs(), f64::from(qmax.abs()) - above.abs());
    let exact = match is_balanced {
        true => f64::from(qmin + qmax) / 2.0,
        false if min_error < max_error => from_min,
        false => from_max,
    };
    let zero_point = exact.clamp(f64::from(qmin), f64::from(qmax)).round_ties_even() as i32;
    Params { scale: scale as f32, zero_point }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_follow_from_ranges_and_scales() {
        let ranges = [Range { min: -0.7, max: 1.1 }, Range { min: -3.0, max: 0.2 }];
        for kind in [Kind::Plain, Kind::Fused] {
            for candidates in [Codes::of_weights(), Codes::of_activations()] {
                for codes in &candidates {
                    // The kernel knows of no middle but its own.
                    if kind == Kind::Fused && codes.grid.qmin == 0 && codes.symmetric.is_some() {
                        continue;
                    }
                    let stored = ranges.map(|range| match kind {
                        Kind::Plain => codes.choose(range, f32::EPSILON),
                        Kind::Fused => choose_fused(range, codes),
                    });
                    let found = infer(&candidates, kind, &ranges, f32::EPSILON, &stored);
                    assert_eq!(found, Some(*codes), "{kind:?}");
                }
            }
        }
        let strange = ranges.map(|_| Params { scale: 1.0, zero_point: 3 });
        assert_eq!(infer(&Codes::of_weights(), Kind::Plain, &ranges, f32::EPSILON, &strange), None);
    }
}
