//! Chooses scale and zero point for a range, as the reference implementations do, to the bit.
//!
//! All widen the range to include 0 first, so that 0.0 has a code of its own:
//!
//! ```text
//! lo = min(min, 0)          symmetric: scale = max(-lo, hi) / ((qmax - qmin) / 2)
//! hi = max(max, 0)          affine:    scale = (hi - lo) / (qmax - qmin),  zero_point = round(qmin - lo / scale)
//! ```
//!
//! They differ in the type each step is computed in, in where the zero point is rounded and in what becomes of a
//! range without extent:
//!
//! | | [torch](https://github.com/pytorch/pytorch/blob/main/torch/ao/quantization/observer.py) | [ort](https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/python/tools/quantization/quant_utils.py) | [compressed-tensors](https://github.com/vllm-project/compressed-tensors) |
//! |---|---|---|---|
//! | steps computed in | f32 | f64, scale rounded to the weight's type | the weight's type |
//! | smallest scale | `max(scale, min_scale)` | 1 below the smallest normal | `eps` of the type where 0 |
//! | zero point | `qmin - round(lo / scale)` | `round(qmin - lo / unrounded scale)` | `round(clamp(qmin - lo / scale))` |
//!
//! A range whose extent overflows f32 is computed in f64 by all of them here; the references return infinity.

use super::scheme::{CodeType, Convention, Grid};
use crate::tensor::{Dtype, round_to};

/// A clipping range in real units. It need not include 0; [`ParamRule::choose_params`] widens it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The smallest value that is not clipped.
    pub min: f32,
    /// The largest value that is not clipped.
    pub max: f32,
}

impl Range {
    /// The range of nothing: what an observer that saw no value reports.
    pub const EMPTY: Range = Range { min: 0.0, max: 0.0 };

    /// The range widened to include 0.
    pub fn with_zero(self) -> Range {
        Range { min: self.min.min(0.0), max: self.max.max(0.0) }
    }
}

/// One scale with its zero point: `value = (code - zero_point) * scale`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// The distance between neighbouring codes in real units; finite and positive.
    pub scale: f32,
    /// The code of 0.0, within the grid.
    pub zero_point: i32,
}

/// How a range becomes [`Params`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParamRule {
    /// Whose arithmetic.
    pub convention: Convention,
    /// The codes to spread the range over.
    pub grid: Grid,
    /// Whether the zero point is the middle of the grid and the range is widened to be symmetric.
    pub symmetric: bool,
    /// The type of the weight, which some conventions compute in.
    pub dtype: Dtype,
    /// The smallest scale under [`Convention::Torch`]. Default: 2^-23, as `torch.ao` observers.
    pub min_scale: f32,
    /// Whether parameters are per group along an axis, which [`Convention::Ort`] computes by another formula.
    /// Default: false.
    pub blocked: bool,
}

/// Default of `eps` in `torch.ao.quantization` observers: the f32 machine epsilon.
const TORCH_MIN_SCALE: f32 = f32::EPSILON;

impl Params {
    /// What becomes of `value` once it is quantized to the codes of `clip`, whatever their width: f32 holds all of up to 16 bits.
    #[inline(always)]
    pub(crate) fn fake_quantize(self, value: f32, clip: Grid) -> f32 {
        let zero_point = self.zero_point as f32;
        let code = ((value / self.scale).round_ties_even() + zero_point).clamp(clip.qmin as f32, clip.qmax as f32);
        (code - zero_point) * self.scale
    }
}

impl ParamRule {
    /// The rule for weights of type `dtype` and the whole grid that `convention` uses of `codes`.
    pub fn new(convention: Convention, codes: CodeType, symmetric: bool, dtype: Dtype) -> Self {
        let grid = convention.grid(codes, symmetric);
        ParamRule { convention, grid, symmetric, dtype, min_scale: TORCH_MIN_SCALE, blocked: false }
    }

    /// The same without the lowest code, as symmetric: as many codes on either side of the middle.
    pub fn narrow(self) -> Self {
        let Grid { qmin, qmax } = self.grid;
        // An odd number of codes has one in the middle already.
        ParamRule { grid: Grid { qmin: qmin + (qmax - qmin) % 2, qmax }, ..self }
    }

    /// Scale and zero point for `range`. The scale is finite and positive for every finite range, and what each code stands for is
    /// finite in the weight's type.
    pub fn choose_params(&self, range: Range) -> Params {
        let range = range.with_zero();
        let params = match self.convention {
            Convention::Torch => self.choose_torch(range),
            Convention::Ort if self.blocked => self.choose_ort_blocked(range),
            Convention::Ort => self.choose_ort(range),
            Convention::CompressedTensors => self.choose_compressed_tensors(range),
        };
        self.within_type(if params.scale.is_finite() { params } else { self.choose_wide(range) })
    }

    /// The same with a smaller scale where the outermost code would stand for more than the weight's type can hold, as by rounding it
    /// can for weights close to the largest number: masks are. The reference implementations make infinities of these.
    fn within_type(&self, Params { scale, zero_point }: Params) -> Params {
        // Others are computed in f32.
        let dtype = if matches!(self.dtype, Dtype::F16 | Dtype::BF16) { self.dtype } else { Dtype::F32 };
        let steps = (self.grid.qmin - zero_point).abs().max(self.grid.qmax - zero_point) as f32;
        let is_held = |scale: f32| round_to(dtype, steps * scale).is_finite();
        // Runtimes may store it in the weight's type.
        if is_held(scale) && is_held(round_to(dtype, scale)) {
            return Params { scale, zero_point };
        }
        let nearest = round_to(dtype, dtype.largest() / steps);
        let scale = if is_held(nearest) { nearest } else { round_to(dtype, nearest * (1.0 - epsilon(dtype))) };
        Params { scale, zero_point }
    }

    /// `UniformQuantizationObserverBase._calculate_qparams`, all in f32.
    fn choose_torch(&self, Range { min: lo, max: hi }: Range) -> Params {
        let Grid { qmin, qmax } = self.grid;
        if self.symmetric {
            let half_steps = (qmax - qmin) as f32 / 2.0;
            let scale = ((-lo).max(hi) / half_steps).max(self.min_scale);
            return Params { scale, zero_point: self.middle() };
        }
        let scale = ((hi - lo) / (qmax - qmin) as f32).max(self.min_scale);
        let zero_point = (qmin - (lo / scale).round_ties_even() as i32).clamp(qmin, qmax);
        Params { scale, zero_point }
    }

    /// `quant_utils.compute_scale_zp` of ONNX Runtime 1.32.
    fn choose_ort(&self, Range { min: lo, max: hi }: Range) -> Params {
        let Grid { qmin, qmax } = self.grid;
        let (lo, hi) = if self.symmetric { (-(-lo).max(hi), (-lo).max(hi)) } else { (lo, hi) };
        let scale = (f64::from(hi) - f64::from(lo)) / f64::from(qmax - qmin);
        let stored = round_to(if self.dtype == Dtype::F16 { Dtype::F16 } else { Dtype::F32 }, scale as f32);
        let tiny = match self.dtype {
            Dtype::F16 => stored < F16_SMALLEST_SUBNORMAL,
            _ => scale < f64::from(f32::MIN_POSITIVE),
        };
        if tiny {
            return Params { scale: 1.0, zero_point: 0i32.clamp(qmin, qmax) };
        }
        let zero_point = if self.symmetric {
            (f64::from(qmin + qmax) / 2.0).round_ties_even()
        } else {
            (f64::from(qmin) - f64::from(lo) / scale).round_ties_even()
        };
        Params { scale: stored, zero_point: (zero_point as i32).clamp(qmin, qmax) }
    }

    /// `quant_utils.compute_scale_zp_blocked` of ONNX Runtime 1.32: the extent is rounded to the weight's type before
    /// it is divided, and the zero point follows from the scale as stored.
    fn choose_ort_blocked(&self, Range { min: lo, max: hi }: Range) -> Params {
        let Grid { qmin, qmax } = self.grid;
        let rd = |value: f32| round_to(if self.dtype == Dtype::F16 { Dtype::F16 } else { Dtype::F32 }, value);
        let (lo, hi) = if self.symmetric { (-(-lo).max(hi), (-lo).max(hi)) } else { (lo, hi) };
        let scale = rd((f64::from(rd(hi - lo)) / f64::from(qmax - qmin)) as f32);
        let tiny = if self.dtype == Dtype::F16 { F16_SMALLEST_SUBNORMAL } else { f32::MIN_POSITIVE };
        if scale < tiny {
            return Params { scale: 1.0, zero_point: if self.symmetric { self.middle() } else { 0 } };
        }
        let zero_point = if self.symmetric {
            (f64::from(qmin + qmax) / 2.0).round_ties_even()
        } else {
            (f64::from(qmin) - f64::from(lo) / f64::from(scale)).round_ties_even()
        };
        Params { scale, zero_point: (zero_point as i32).clamp(qmin, qmax) }
    }

    /// `compressed_tensors.quantization.utils.calculate_qparams`, every step rounded to the weight's type.
    fn choose_compressed_tensors(&self, Range { min: lo, max: hi }: Range) -> Params {
        let Grid { qmin, qmax } = self.grid;
        let rd = |value: f32| round_to(self.dtype, value);
        let (lo, hi, steps) = (rd(lo), rd(hi), (qmax - qmin) as f32);
        let (scale, zero_point) = if self.symmetric {
            (rd((-lo).max(hi) / rd(steps / 2.0)), self.middle())
        } else {
            let scale = rd(rd(hi - lo) / rd(steps));
            let exact = rd(qmin as f32 - rd(lo / scale)).clamp(qmin as f32, qmax as f32);
            // 0 / 0 is NaN, which the cast to an integer makes 0 here as it does in the reference on x86.
            (scale, (exact.round_ties_even() as i32).clamp(qmin, qmax))
        };
        Params { scale: if scale == 0.0 { epsilon(self.dtype) } else { scale }, zero_point }
    }

    /// For extents beyond f32: the affine formula in f64.
    fn choose_wide(&self, Range { min: lo, max: hi }: Range) -> Params {
        let Grid { qmin, qmax } = self.grid;
        let (lo, hi) = (f64::from(lo), f64::from(hi));
        let (lo, hi) = if self.symmetric { (-(-lo).max(hi), (-lo).max(hi)) } else { (lo, hi) };
        let scale = (hi - lo) / f64::from(qmax - qmin);
        let zero_point = if self.symmetric { self.middle() } else { (f64::from(qmin) - lo / scale).round_ties_even() as i32 };
        Params { scale: (scale as f32).min(f32::MAX), zero_point: zero_point.clamp(qmin, qmax) }
    }

    /// The codes that values are clipped to: the grid, but where a scale was rounded down to F16 as ONNX Runtime does, all
    /// of the type, as the largest values need one code more.
    pub fn clip(&self, codes: CodeType) -> Grid {
        match (self.convention, self.dtype) {
            (Convention::Ort, Dtype::F16) => codes.grid(),
            _ => self.grid,
        }
    }

    /// The zero point of symmetric schemes: 0 for signed codes, 128 for uint8.
    pub fn middle(&self) -> i32 {
        match self.grid {
            Grid { qmin, .. } if qmin < 0 => 0,
            Grid { qmin, qmax } => (qmin + qmax + 1) / 2,
        }
    }
}

const F16_SMALLEST_SUBNORMAL: f32 = 1.0 / (1 << 24) as f32;

/// Machine epsilon of the types that compressed-tensors computes in.
fn epsilon(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::F16 => 2f32.powi(-10),
        Dtype::BF16 => 2f32.powi(-7),
        _ => f32::EPSILON,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_stands_for_a_finite_number() {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
            let largest = dtype.largest();
            for convention in [Convention::Torch, Convention::Ort, Convention::CompressedTensors] {
                for codes in [CodeType::Int8, CodeType::Uint8, CodeType::Int4, CodeType::Uint4] {
                    for (symmetric, blocked) in [(true, false), (false, false), (true, true), (false, true)] {
                        let rule = ParamRule { blocked, ..ParamRule::new(convention, codes, symmetric, dtype) };
                        for (min, max) in
                            [(-largest, largest), (-largest, 0.0), (0.0, largest), (-largest, 1.0), (-largest * 0.999, largest)]
                        {
                            let params = rule.choose_params(Range { min, max });
                            for code in [rule.grid.qmin, rule.grid.qmax] {
                                let value = (code - params.zero_point) as f32 * round_to(dtype, params.scale);
                                let place = format!("{convention} {codes} {dtype} {symmetric} {blocked} {min} {max} {params:?}");
                                assert!(round_to(dtype, value).is_finite(), "{place}");
                                // The range is kept, but for half a step where only the lowest code is so far out.
                                let reach = f64::from(params.scale) * f64::from(rule.grid.qmax - rule.grid.qmin);
                                assert!(reach > 0.93 * (f64::from(max) - f64::from(min)), "{place}: {reach}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_finite_range_has_a_finite_positive_scale_and_a_zero_point_on_the_grid() {
        let ends = [0.0, 1e-45, 1e-38, 1e-9, 0.7, 3.0, 6.1e4, f32::MAX];
        for convention in [Convention::Torch, Convention::Ort, Convention::CompressedTensors] {
            for codes in [CodeType::Int8, CodeType::Uint8, CodeType::Int4, CodeType::Uint4] {
                for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
                    for (symmetric, low, high) in ends.iter().flat_map(|a| ends.iter().flat_map(move |b| [(true, a, b), (false, a, b)])) {
                        if dtype == Dtype::F16 && low.max(*high) > 65504.0 {
                            continue;
                        }
                        let rule = ParamRule::new(convention, codes, symmetric, dtype);
                        for range in [Range { min: -low, max: *high }, Range { min: *low, max: *high }, Range { min: -high, max: -low }] {
                            let params = rule.choose_params(range);
                            let what = format!("{convention} {codes} {dtype} symmetric {symmetric} {range:?}: {params:?}");
                            assert!(params.scale.is_finite() && params.scale > 0.0, "{what}");
                            assert!((rule.grid.qmin..=rule.grid.qmax).contains(&params.zero_point), "{what}");
                        }
                    }
                }
            }
        }
    }
}
