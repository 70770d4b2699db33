//! The error of a histogram quantized to 256 levels, and PyTorch's order of summation.
//!
//! A source bin with density `d` that covers `b..e` of a level whose center is at 0 loses
//!
//! ```text
//! norm(b, e) = d * (e^3 - b^3) / 3
//! ```
//!
//! and one that spans several levels loses a part in the first, a part in the last and whole levels between.
//! `HistogramObserver._compute_quantization_error` of `torch.ao.quantization`, step by step in f32.

use super::BINS;
use crate::simd::dispatched;

/// Levels that the error is computed for: `2^bits` of torch's 8-bit types.
const LEVELS: usize = 256;

pub(super) struct Norm {
    density: Vec<f32>,
    terms: Vec<f32>,
    bin_width: f64,
}

impl Norm {
    pub(super) fn new(counts: &[f32], min: f32, max: f32) -> Self {
        let bin_width = (f64::from(max) - f64::from(min)) / BINS as f64;
        Norm { density: counts.iter().map(|count| count / bin_width as f32).collect(), terms: vec![0.0; BINS], bin_width }
    }

    /// The error if the bins `start..=end` are spread over the levels and the others saturate.
    pub(super) fn error(&mut self, start: usize, end: usize) -> f64 {
        let level_width = self.bin_width * (end as f64 - start as f64 + 1.0) / LEVELS as f64;
        if level_width == 0.0 {
            return 0.0;
        }
        fill_terms(&self.density, start as i32, self.bin_width as f32, level_width, &mut self.terms);
        f64::from(torch_sum(&self.terms))
    }
}

/// 1.5 * 2^52: adding and subtracting it rounds an f64 to the nearest integer.
const ROUNDING_MAGIC: f64 = 6_755_399_441_055_744.0;

/// As `ROUNDING_MAGIC`, for f32.
const ROUNDING_MAGIC_F32: f32 = 12_582_912.0;

/// `floor(a / b)` as torch computes it, `(a - fmod(a, b)) / b` rounded, clamped to the levels. All of `a` below 0 is
/// level 0, and `a / b` is below 2^22.
#[inline(always)]
fn level(a: f32, b: f32) -> f32 {
    let (wide_a, wide_b) = (f64::from(a), f64::from(b));
    let quotient = wide_a / wide_b + ROUNDING_MAGIC - ROUNDING_MAGIC;
    // Exact: the quotient has at most 22 bits and `b` has 24.
    let nearest = wide_a - quotient * wide_b;
    let remainder = if nearest < 0.0 { nearest + wide_b } else { nearest } as f32;
    let quotient = (a - remainder) / b;
    let whole = (quotient + ROUNDING_MAGIC_F32) - ROUNDING_MAGIC_F32;
    let above = if whole > 0.0 { whole } else { 0.0 };
    if above < (LEVELS - 1) as f32 { above } else { (LEVELS - 1) as f32 }
}

#[inline(always)]
fn cube(x: f32) -> f32 {
    (x * x) * x
}

dispatched! {
    fn fill_terms(density: &[f32], start: i32, bin_width: f32, level_width: f64, terms: &mut [f32]) -> () {
        let (width, half) = (level_width as f32, (level_width / 2.0) as f32);
        for (i, (term, density)) in terms.iter_mut().zip(density).enumerate() {
            let begin = (i as i32 - start) as f32 * bin_width;
            let end = begin + bin_width;
            let first = level(begin, width);
            let last = level(end, width);
            let norm = |from: f32, to: f32| density * ((cube(to) - cube(from)) / 3.0);
            let first_center = (first + 0.5) * width;
            let last_center = last * width + half;
            let mut sum = 0.0 + norm(begin - first_center, half);
            sum += (last - first - 1.0) * norm(-half, half);
            sum += norm(-half, end - last_center);
            *term = sum;
        }
    }
}

/// The sum of [`BINS`] f32 as ATen's cascade computes it with 8-lane vectors: 4 x 8 running sums over 16 rows at a
/// time, added up.
pub(super) fn torch_sum(values: &[f32]) -> f32 {
    assert_eq!(values.len(), BINS, "the cascade is written out for this length");
    let (rows, _) = values.as_chunks::<32>();
    let mut total = [0f32; 32];
    for chunk in rows.chunks(16) {
        let mut sums = [0f32; 32];
        for row in chunk {
            for i in 0..32 {
                sums[i] += row[i];
            }
        }
        for i in 0..32 {
            total[i] += sums[i];
        }
    }
    let mut sum = 0.0;
    for i in 0..8 {
        sum += ((total[i] + total[i + 8]) + total[i + 16]) + total[i + 24];
    }
    sum
}
