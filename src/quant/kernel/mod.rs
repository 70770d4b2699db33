//! The loops over values: extent, codes, and back.
//!
//! They are plain loops over fixed-width blocks, compiled for several instruction sets ([`crate::simd`]) and chosen
//! at run time. Every path gives the same bits: blocks and lanes are the same, nothing is fused or reassociated.

pub(crate) mod search;

use super::metrics::ErrorSums;
use super::params::{Params, Range};
use super::scheme::{Convention, Grid};
use crate::simd::{dispatched, prefetch};
use crate::tensor::{Dtype, round_to};

/// Values per step of the unrolled loops. With 64-byte registers the best of 16, 32 and 64 for [`quantize`].
const LANES: usize = 16;

/// Values whose squares are summed in f32 before the sum goes to f64: 128 per lane keeps the error below 1e-5.
const BLOCK: usize = 128 * LANES;

/// Values that are quantized between two prefetches: as many bytes of f32 as a core has requests to memory in flight.
const STRIDE: usize = 32 * LANES;

/// Adding and subtracting 1.5 · 2^23 rounds an f32 of magnitude up to 2^22 to the nearest even integer, which is
/// then found in the low bits of the sum.
const ROUNDING_MAGIC: f32 = 12_582_912.0;

/// Minimum and maximum of a run of values, and whether all were finite.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extent {
    /// Smallest and largest value; meaningless unless `finite`. For no values: +∞ and −∞.
    pub range: Range,
    /// Whether no value was NaN or infinite.
    pub finite: bool,
}

impl Extent {
    /// The extent of no values.
    pub const NONE: Extent = Extent { range: Range { min: f32::INFINITY, max: f32::NEG_INFINITY }, finite: true };

    /// The extent of both.
    pub fn merge(self, other: Extent) -> Extent {
        let range = Range { min: self.range.min.min(other.range.min), max: self.range.max.max(other.range.max) };
        Extent { range, finite: self.finite && other.finite }
    }

    /// The range of values seen, [`Range::EMPTY`] if there were none.
    pub fn range(&self) -> Range {
        if self.range.min <= self.range.max { self.range } else { Range::EMPTY }
    }
}

dispatched! {
    /// Minimum, maximum and finiteness of `values`.
    pub fn min_max(values: &[f32]) -> Extent {
        const WIDE: usize = 4 * LANES;
        let mut low = [f32::INFINITY; WIDE];
        let mut high = [f32::NEG_INFINITY; WIDE];
        let mut magnitude = [0i32; WIDE];
        let (chunks, rest) = values.as_chunks::<WIDE>();
        for chunk in chunks {
            for i in 0..WIDE {
                let value = chunk[i];
                low[i] = if value < low[i] { value } else { low[i] };
                high[i] = if value > high[i] { value } else { high[i] };
                magnitude[i] = magnitude[i].max((value.to_bits() & 0x7fff_ffff) as i32);
            }
        }
        for (i, &value) in rest.iter().enumerate() {
            low[i] = if value < low[i] { value } else { low[i] };
            high[i] = if value > high[i] { value } else { high[i] };
            magnitude[i] = magnitude[i].max((value.to_bits() & 0x7fff_ffff) as i32);
        }
        let finite = magnitude.iter().all(|bits| *bits < f32::INFINITY.to_bits() as i32);
        let fold = |all: [f32; WIDE], pick: fn(f32, f32) -> f32, start| all.iter().copied().fold(start, pick);
        let range = Range { min: fold(low, f32::min, f32::INFINITY), max: fold(high, f32::max, f32::NEG_INFINITY) };
        Extent { range, finite }
    }
}

dispatched! {
    /// Widens the extent of each column, `low[i]` to `high[i]`, by the value of a row; `magnitude[i]` is the largest
    /// magnitude as bits, by which values that are not finite can be told.
    pub(crate) fn widen_columns(row: &[f32], low: &mut [f32], high: &mut [f32], magnitude: &mut [i32]) -> () {
        for (((value, low), high), magnitude) in row.iter().zip(low).zip(high).zip(magnitude) {
            *low = if *value < *low { *value } else { *low };
            *high = if *value > *high { *value } else { *high };
            *magnitude = (*magnitude).max((value.to_bits() & 0x7fff_ffff) as i32);
        }
    }
}

/// How a value becomes a code, given scale and zero point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arithmetic {
    /// `round(value * (1 / scale)) + zero_point`, as PyTorch's FBGEMM kernels.
    Reciprocal,
    /// `round(value / scale) + zero_point`, as ONNX's QuantizeLinear.
    Divide,
    /// `round(clamp(value / scale + zero_point))` with each step rounded to a type, as compressed-tensors.
    AddThenRound(Dtype),
}

impl Arithmetic {
    /// What `convention` does to weights of type `dtype`.
    pub fn of(convention: Convention, dtype: Dtype) -> Self {
        match convention {
            Convention::Torch => Arithmetic::Reciprocal,
            Convention::Ort => Arithmetic::Divide,
            Convention::CompressedTensors => Arithmetic::AddThenRound(dtype),
        }
    }
}

/// Quantizes `values`, which share `params`, to `codes`, one byte each (two's complement), clamped to `grid`.
/// Returns what was lost.
///
/// Values must be finite. As all code lies on the grid before it is rounded, values of any size saturate.
///
/// # Panics
///
/// If `values` and `codes` differ in length; in builds with debug assertions, if codes of `grid` do not fit into a byte.
pub fn quantize(values: &[f32], params: Params, arithmetic: Arithmetic, grid: Grid, codes: &mut [u8]) -> ErrorSums {
    quantize_ahead(values, params, arithmetic, grid, codes, &[])
}

/// As [`quantize`], while `ahead`, which will be read soon, is fetched from memory: this loop computes and the pass that
/// finds extents waits for memory, so that each hides the other.
pub(crate) fn quantize_ahead(
    values: &[f32],
    params: Params,
    arithmetic: Arithmetic,
    grid: Grid,
    codes: &mut [u8],
    ahead: &[u8],
) -> ErrorSums {
    assert_eq!(values.len(), codes.len(), "one code a value");
    debug_assert!(grid.fits_a_byte(), "codes are bytes: {grid:?}");
    let low = (grid.qmin - params.zero_point) as f32;
    let high = (grid.qmax - params.zero_point) as f32;
    let scaled = match arithmetic {
        Arithmetic::Reciprocal => quantize_reciprocal(values, 1.0 / params.scale, low, high, params.zero_point, codes, ahead),
        Arithmetic::Divide => quantize_divide(values, params.scale, low, high, params.zero_point, codes, ahead),
        // With zero point 0 and no intermediate type, adding it first changes nothing.
        Arithmetic::AddThenRound(Dtype::F16 | Dtype::BF16) => quantize_add_then_round(values, params, arithmetic, grid, codes),
        Arithmetic::AddThenRound(_) if params.zero_point != 0 => quantize_add_then_round(values, params, arithmetic, grid, codes),
        Arithmetic::AddThenRound(_) => quantize_divide(values, params.scale, low, high, 0, codes, ahead),
    };
    scaled.in_real_units(values, codes, grid.qmin < 0, params)
}

/// Sums in units of the scale: `error` and `value` are sums of squares, `max_error` the largest magnitude.
#[derive(Clone, Copy)]
struct ScaledSums {
    error: f64,
    value: f64,
    max_error: f32,
}

impl ScaledSums {
    fn in_real_units(self, values: &[f32], codes: &[u8], signed: bool, params: Params) -> ErrorSums {
        let scale = f64::from(params.scale);
        let sums = ErrorSums {
            count: values.len() as u64,
            error: self.error * scale * scale,
            value: self.value * scale * scale,
            max_error: f64::from(self.max_error) * scale,
        };
        // Where squares leave the range of f32 (values far below or above the scale) the slow way is exact.
        if self.error.is_finite() && self.value.is_finite() && self.value >= f64::from(f32::MIN_POSITIVE) {
            sums
        } else {
            ErrorSums::exact(values, codes, signed, params)
        }
    }
}

/// Running sums of one block, one per lane, in units of the scale.
struct Lanes {
    error: [f32; LANES],
    value: [f32; LANES],
    max_error: [f32; LANES],
}

impl Lanes {
    /// The code of `y = value / scale`, clamped to `low..=high` before the zero point is added.
    #[inline(always)]
    fn code(&mut self, lane: usize, y: f32, low: f32, high: f32, zero_point: i32) -> u8 {
        let above = if y > low { y } else { low };
        let clamped = if above < high { above } else { high };
        let shifted = clamped + ROUNDING_MAGIC;
        let lost = y - (shifted - ROUNDING_MAGIC);
        self.error[lane] += lost * lost;
        self.value[lane] += y * y;
        let magnitude = lost.abs();
        self.max_error[lane] = if magnitude > self.max_error[lane] { magnitude } else { self.max_error[lane] };
        (shifted.to_bits() as i32).wrapping_add(zero_point) as u8
    }
}

#[inline(always)]
fn quantize_with(
    values: &[f32],
    low: f32,
    high: f32,
    zero_point: i32,
    codes: &mut [u8],
    ahead: &[u8],
    scaled: impl Fn(f32) -> f32,
) -> ScaledSums {
    let mut sums = ScaledSums { error: 0.0, value: 0.0, max_error: 0.0 };
    let share = ahead.len().div_ceil(values.len().div_ceil(STRIDE).max(1)).max(1);
    let mut ahead = ahead.chunks(share);
    for (values, codes) in values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)) {
        let mut lanes = Lanes { error: [0.0; LANES], value: [0.0; LANES], max_error: [0.0; LANES] };
        for (values, codes) in values.chunks(STRIDE).zip(codes.chunks_mut(STRIDE)) {
            prefetch(ahead.next().unwrap_or_default());
            let (value_chunks, value_rest) = values.as_chunks::<LANES>();
            let (code_chunks, code_rest) = codes.as_chunks_mut::<LANES>();
            for (values, codes) in value_chunks.iter().zip(code_chunks) {
                for i in 0..LANES {
                    codes[i] = lanes.code(i, scaled(values[i]), low, high, zero_point);
                }
            }
            for (i, (value, code)) in value_rest.iter().zip(code_rest).enumerate() {
                *code = lanes.code(i, scaled(*value), low, high, zero_point);
            }
        }
        sums.error += lanes.error.iter().map(|sum| f64::from(*sum)).sum::<f64>();
        sums.value += lanes.value.iter().map(|sum| f64::from(*sum)).sum::<f64>();
        sums.max_error = lanes.max_error.iter().copied().fold(sums.max_error, f32::max);
    }
    sums
}

dispatched! {
    fn quantize_reciprocal(values: &[f32], reciprocal: f32, low: f32, high: f32, zero_point: i32, codes: &mut [u8], ahead: &[u8]) -> ScaledSums {
        quantize_with(values, low, high, zero_point, codes, ahead, |value| value * reciprocal)
    }
}

dispatched! {
    fn quantize_divide(values: &[f32], scale: f32, low: f32, high: f32, zero_point: i32, codes: &mut [u8], ahead: &[u8]) -> ScaledSums {
        quantize_with(values, low, high, zero_point, codes, ahead, |value| value / scale)
    }
}

/// The order of steps of `compressed_tensors.quantization.lifecycle.forward._quantize`.
fn quantize_add_then_round(values: &[f32], params: Params, arithmetic: Arithmetic, grid: Grid, codes: &mut [u8]) -> ScaledSums {
    let Arithmetic::AddThenRound(dtype) = arithmetic else { unreachable!("only called for AddThenRound") };
    let zero_point = params.zero_point as f32;
    let mut sums = ScaledSums { error: 0.0, value: 0.0, max_error: 0.0 };
    for (value, code) in values.iter().zip(codes) {
        let shifted = round_to(dtype, round_to(dtype, value / params.scale) + zero_point);
        let rounded = shifted.clamp(grid.qmin as f32, grid.qmax as f32).round_ties_even();
        let y = value / params.scale;
        let lost = y - (rounded - zero_point);
        sums.error += f64::from(lost) * f64::from(lost);
        sums.value += f64::from(y) * f64::from(y);
        sums.max_error = sums.max_error.max(lost.abs());
        *code = rounded as i32 as u8;
    }
    sums
}

/// Parameters of neighbouring columns laid out for [`quantize_columns`].
#[derive(Debug, Default)]
pub struct ColumnParams {
    scale: Vec<f32>,
    reciprocal: Vec<f32>,
    zero_point: Vec<i32>,
}

impl ColumnParams {
    /// Of `params`, one a column.
    pub fn new(params: &[Params]) -> Self {
        ColumnParams {
            scale: params.iter().map(|p| p.scale).collect(),
            reciprocal: params.iter().map(|p| 1.0 / p.scale).collect(),
            zero_point: params.iter().map(|p| p.zero_point).collect(),
        }
    }
}

/// Quantizes one row whose columns `first..` each have their own parameters (channels along the last axis).
/// Returns what was lost. The arithmetic must not be [`Arithmetic::AddThenRound`].
pub fn quantize_columns(
    row: &[f32],
    columns: &ColumnParams,
    first: usize,
    arithmetic: Arithmetic,
    grid: Grid,
    codes: &mut [u8],
) -> ErrorSums {
    let n = row.len();
    let (scale, zero_point) = (&columns.scale[first..][..n], &columns.zero_point[first..][..n]);
    let (error, value, max_error) = match arithmetic {
        Arithmetic::Reciprocal => {
            columns_loop(row, scale, &columns.reciprocal[first..][..n], true, zero_point, grid.qmin, grid.qmax, codes)
        }
        _ => columns_loop(row, scale, scale, false, zero_point, grid.qmin, grid.qmax, codes),
    };
    if !max_error.is_finite() {
        // What a code stands for is beyond f32.
        let mut sums = ErrorSums::default();
        for i in 0..n {
            let params = Params { scale: scale[i], zero_point: zero_point[i] };
            sums.merge(&ErrorSums::exact(&row[i..=i], &codes[i..=i], grid.qmin < 0, params));
        }
        return sums;
    }
    ErrorSums { count: n as u64, error, value, max_error: f64::from(max_error) }
}

/// One step of [`columns_loop`].
struct ColumnLanes {
    error: [f64; LANES],
    value: [f64; LANES],
    max_error: [f32; LANES],
}

impl ColumnLanes {
    #[inline(always)]
    fn code(&mut self, lane: usize, x: f32, y: f32, scale: f32, zero_point: i32, grid: (i32, i32)) -> u8 {
        let (low, high) = ((grid.0 - zero_point) as f32, (grid.1 - zero_point) as f32);
        let above = if y > low { y } else { low };
        let clamped = if above < high { above } else { high };
        let shifted = clamped + ROUNDING_MAGIC;
        let lost = x - (shifted - ROUNDING_MAGIC) * scale;
        self.error[lane] += f64::from(lost) * f64::from(lost);
        self.value[lane] += f64::from(x) * f64::from(x);
        let magnitude = lost.abs();
        self.max_error[lane] = if magnitude > self.max_error[lane] { magnitude } else { self.max_error[lane] };
        (shifted.to_bits() as i32).wrapping_add(zero_point) as u8
    }
}

dispatched! {
    #[allow(clippy::too_many_arguments)]
    fn columns_loop(row: &[f32], scale: &[f32], factor: &[f32], multiply: bool, zero_point: &[i32], qmin: i32, qmax: i32, codes: &mut [u8]) -> (f64, f64, f32) {
        let mut lanes = ColumnLanes { error: [0.0; LANES], value: [0.0; LANES], max_error: [0.0; LANES] };
        let scaled = |x: f32, factor: f32| if multiply { x * factor } else { x / factor };
        let (rows, scales) = (row.as_chunks::<LANES>(), scale.as_chunks::<LANES>());
        let (factors, zero_points, codes) = (factor.as_chunks::<LANES>(), zero_point.as_chunks::<LANES>(), codes.as_chunks_mut::<LANES>());
        for ((((x, s), f), z), codes) in rows.0.iter().zip(scales.0).zip(factors.0).zip(zero_points.0).zip(codes.0) {
            for i in 0..LANES {
                codes[i] = lanes.code(i, x[i], scaled(x[i], f[i]), s[i], z[i], (qmin, qmax));
            }
        }
        for (i, ((((x, s), f), z), code)) in rows.1.iter().zip(scales.1).zip(factors.1).zip(zero_points.1).zip(codes.1).enumerate() {
            *code = lanes.code(i, *x, scaled(*x, *f), *s, *z, (qmin, qmax));
        }
        (lanes.error.iter().sum(), lanes.value.iter().sum(), lanes.max_error.iter().copied().fold(0.0, f32::max))
    }
}

/// Back to real units: `values[i] = (codes[i] - zero_point) * scale` in f32, codes one byte each.
pub fn dequantize(codes: &[u8], signed: bool, params: Params, values: &mut [f32]) {
    if signed {
        dequantize_loop(codes, 0x80, params.zero_point + 0x80, params.scale, values);
    } else {
        dequantize_loop(codes, 0, params.zero_point, params.scale, values);
    }
}

dispatched! {
    /// Flipping the top bit of a signed code and adding 128 to the zero point makes both kinds one.
    fn dequantize_loop(codes: &[u8], flip: u8, zero_point: i32, scale: f32, values: &mut [f32]) -> () {
        for (value, code) in values.iter_mut().zip(codes) {
            *value = (i32::from(code ^ flip) - zero_point) as f32 * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, one value at a time.
    fn plain(value: f32, params: Params, arithmetic: Arithmetic, grid: Grid) -> u8 {
        let y = match arithmetic {
            Arithmetic::Reciprocal => value * (1.0 / params.scale),
            _ => value / params.scale,
        };
        (f64::from(y.round_ties_even()) + f64::from(params.zero_point)).clamp(f64::from(grid.qmin), f64::from(grid.qmax)) as i32 as u8
    }

    fn awkward_values() -> Vec<f32> {
        let mut values: Vec<f32> = (-3000..3000).map(|i| i as f32 * 0.25).collect();
        values.extend([f32::MAX, f32::MIN, 1e-45, -1e-45, 0.0, -0.0, f32::MIN_POSITIVE, 4_194_304.5, -4_194_303.5, 1e30, -1e30]);
        values
    }

    #[test]
    fn quantize_is_the_definition_on_ties_and_extremes() {
        let values = awkward_values();
        for grid in [Grid { qmin: -128, qmax: 127 }, Grid { qmin: 0, qmax: 255 }, Grid { qmin: -8, qmax: 7 }] {
            for zero_point in [grid.qmin, 0, grid.qmax] {
                for scale in [0.5, 1.0, 0.003, 1e-20, 1e20] {
                    for arithmetic in [Arithmetic::Reciprocal, Arithmetic::Divide] {
                        let params = Params { scale, zero_point };
                        let mut codes = vec![0; values.len()];
                        quantize(&values, params, arithmetic, grid, &mut codes);
                        for (value, code) in values.iter().zip(&codes) {
                            assert_eq!(*code, plain(*value, params, arithmetic, grid), "{value} {params:?} {arithmetic:?}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn columns_give_the_codes_of_single_values() {
        let values: Vec<f32> = (0..37).map(|i| (i as f32 - 18.0) * 0.37).collect();
        let params: Vec<Params> = (0..37).map(|i| Params { scale: 0.01 * (i + 1) as f32, zero_point: i - 20 }).collect();
        let grid = Grid { qmin: -128, qmax: 127 };
        for arithmetic in [Arithmetic::Reciprocal, Arithmetic::Divide] {
            let mut codes = vec![0; values.len()];
            quantize_columns(&values, &ColumnParams::new(&params), 0, arithmetic, grid, &mut codes);
            for i in 0..values.len() {
                assert_eq!(codes[i], plain(values[i], params[i], arithmetic, grid), "column {i}");
            }
        }
    }

    #[test]
    fn errors_of_columns_beyond_f32_are_numbers() {
        let row = [f32::MIN, 1.0, f32::MAX];
        let params = vec![Params { scale: f32::MAX / 127.5, zero_point: 0 }; 3];
        let mut codes = [0; 3];
        let grid = Grid { qmin: -128, qmax: 127 };
        let sums = quantize_columns(&row, &ColumnParams::new(&params), 0, Arithmetic::Reciprocal, grid, &mut codes);
        let exact = ErrorSums::exact(&row, &codes, true, params[0]);
        assert!(codes[0] == 0x80 && sums == exact && sums.max_error.is_finite(), "{sums:?} {exact:?}");
    }

    #[test]
    fn min_max_finds_extremes_and_non_finite_values_at_every_position() {
        for n in [1, 15, 16, 63, 64, 65, 200] {
            for at in 0..n {
                let mut values = vec![0.5f32; n];
                values[at] = -3.0;
                let extent = min_max(&values);
                assert_eq!((extent.range.min, extent.finite), (-3.0, true), "{at} of {n}");
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    values[at] = bad;
                    assert!(!min_max(&values).finite, "{bad} at {at} of {n}");
                }
            }
        }
    }

    #[test]
    fn errors_are_those_of_the_dequantized_values() {
        let values: Vec<f32> = (0..5000).map(|i| ((i * 7919) % 5003) as f32 / 5003.0 - 0.3).collect();
        let params = Params { scale: 0.0031, zero_point: -7 };
        let mut codes = vec![0; values.len()];
        let sums = quantize(&values, params, Arithmetic::Divide, Grid { qmin: -128, qmax: 127 }, &mut codes);
        let exact = ErrorSums::exact(&values, &codes, true, params);
        assert!((sums.error / exact.error - 1.0).abs() < 1e-4, "{} {}", sums.error, exact.error);
        assert!((sums.value / exact.value - 1.0).abs() < 1e-5);
        assert!((sums.max_error / exact.max_error - 1.0).abs() < 1e-4);
        let mut back = vec![0.0; values.len()];
        dequantize(&codes, true, params, &mut back);
        let worst = values.iter().zip(&back).map(|(a, b)| f64::from(a - b).abs()).fold(0.0, f64::max);
        assert!((worst / exact.max_error - 1.0).abs() < 1e-3);
    }
}
