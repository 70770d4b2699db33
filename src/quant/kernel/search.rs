//! The loops of a search for the best scale: squared errors of a run of values at several scales in one pass.
//!
//! ```text
//! y = value / scale        error = (y - clamp(round(y), low, high))^2        in units of the scale squared
//! ```
//!
//! Without clamping the error is the distance of `y` from the nearest integer, which is what remains of `y` in fixed
//! point once its integer bits have overflowed: on 16-bit integers one multiplication finds it
//! ([`rounding_errors`]). Values near the ends of the range, where clamping matters, go through [`clamped_errors`].

use super::{BLOCK, LANES, ROUNDING_MAGIC};
use crate::simd::dispatched;

/// Scales that one pass tries.
pub(crate) const SCALES: usize = 4;

/// Values per step of the loops over floats.
const WIDE: usize = 4 * LANES;

/// Values that share one flag of [`to_fixed`].
pub(crate) const FLAGGED: usize = WIDE;

/// Codes and scales that one pass over values tries: `1 / scale` and the ends of the grid minus the zero point.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trials {
    /// How many of them there are.
    pub(crate) count: usize,
    pub(crate) reciprocal: [f32; SCALES],
    pub(crate) low: [f32; SCALES],
    pub(crate) high: [f32; SCALES],
}

#[inline(always)]
fn clamped_error(value: f32, reciprocal: f32, low: f32, high: f32) -> f32 {
    let y = value * reciprocal;
    let above = if y > low { y } else { low };
    let clamped = if above < high { above } else { high };
    let lost = y - ((clamped + ROUNDING_MAGIC) - ROUNDING_MAGIC);
    lost * lost
}

dispatched! {
    /// Sums of squared errors at each trial, in units of its scale squared.
    pub(crate) fn clamped_errors(values: &[f32], trials: &Trials) -> [f64; SCALES] {
        let mut sums = [0f64; SCALES];
        for block in values.chunks(BLOCK) {
            for (t, sum) in sums.iter_mut().enumerate().take(trials.count) {
                let (reciprocal, low, high) = (trials.reciprocal[t], trials.low[t], trials.high[t]);
                let mut lanes = [0f32; WIDE];
                let (chunks, rest) = block.as_chunks::<WIDE>();
                for chunk in chunks {
                    for i in 0..WIDE {
                        lanes[i] += clamped_error(chunk[i], reciprocal, low, high);
                    }
                }
                for (lane, value) in lanes.iter_mut().zip(rest) {
                    *lane += clamped_error(*value, reciprocal, low, high);
                }
                *sum += f64::from(sum_lanes(lanes));
            }
        }
        sums
    }
}

dispatched! {
    /// As [`clamped_errors`], each value counted `weights` times.
    pub(crate) fn weighted_errors(values: &[f32], weights: &[f32], trials: &Trials) -> [f64; SCALES] {
        let mut sums = [0f64; SCALES];
        for (values, weights) in values.chunks(BLOCK).zip(weights.chunks(BLOCK)) {
            for (t, sum) in sums.iter_mut().enumerate().take(trials.count) {
                let (reciprocal, low, high) = (trials.reciprocal[t], trials.low[t], trials.high[t]);
                let mut lanes = [0f32; WIDE];
                let (chunks, rest) = values.as_chunks::<WIDE>();
                let (weight_chunks, weight_rest) = weights.as_chunks::<WIDE>();
                for (chunk, weights) in chunks.iter().zip(weight_chunks) {
                    for i in 0..WIDE {
                        lanes[i] += weights[i] * clamped_error(chunk[i], reciprocal, low, high);
                    }
                }
                for ((lane, value), weight) in lanes.iter_mut().zip(rest).zip(weight_rest) {
                    *lane += weight * clamped_error(*value, reciprocal, low, high);
                }
                *sum += f64::from(sum_lanes(lanes));
            }
        }
        sums
    }
}

/// Halves that are added to each other, so that the sum of lanes is vector code too.
#[inline(always)]
fn sum_lanes(lanes: [f32; WIDE]) -> f32 {
    let mut halves = [0f32; LANES];
    for i in 0..LANES {
        halves[i] = (lanes[i] + lanes[i + LANES]) + (lanes[i + 2 * LANES] + lanes[i + 3 * LANES]);
    }
    halves.iter().sum()
}

dispatched! {
    /// Rounds `value * factor` to 16 bits, with 0 in place of values below `low` or above `high`, which may not fit.
    /// `flags[i]` is not 0 if one of the values from `i * FLAGGED` on is such a value. Returns the sum of squares of
    /// the others, in fixed-point units.
    pub(crate) fn to_fixed(values: &[f32], factor: f32, low: f32, high: f32, fixed: &mut [i16], flags: &mut [u8]) -> f64 {
        let mut squares = 0f64;
        let mut lanes = [0f32; FLAGGED];
        let (value_chunks, value_rest) = values.as_chunks::<FLAGGED>();
        let (fixed_chunks, fixed_rest) = fixed.as_chunks_mut::<FLAGGED>();
        for (step, (values, fixed)) in value_chunks.iter().zip(fixed_chunks).enumerate() {
            let mut beyond = [0i32; FLAGGED];
            for i in 0..FLAGGED {
                let value = values[i];
                let outside = (value < low) | (value > high);
                let y = if outside { 0.0 } else { value * factor };
                lanes[i] += y * y;
                beyond[i] = i32::from(outside);
                fixed[i] = (y + ROUNDING_MAGIC).to_bits() as i16;
            }
            flags[step] = beyond.iter().fold(0, |all, b| all | b) as u8;
            if step % 64 == 63 {
                squares += f64::from(sum_lanes(lanes));
                lanes = [0f32; FLAGGED];
            }
        }
        let mut beyond = false;
        for (value, fixed) in value_rest.iter().zip(fixed_rest) {
            let outside = (*value < low) | (*value > high);
            let y = if outside { 0.0 } else { *value * factor };
            squares += f64::from(y) * f64::from(y);
            beyond |= outside;
            *fixed = (y + ROUNDING_MAGIC).to_bits() as i16;
        }
        if let Some(flag) = flags.get_mut(value_chunks.len()) {
            *flag = u8::from(beyond);
        }
        squares + f64::from(sum_lanes(lanes))
    }
}

/// Integers per step of [`rounding_errors`], and steps whose squares of 14 bits are added in 16.
const FIXED_LANES: usize = 64;
const FIXED_STEPS: usize = 4;

dispatched! {
    /// Sums over `fixed` of the squared distance of `x * (whole + part / 2^16) / 2^16` from the nearest integer, for
    /// each pair of `whole` and `part`, in units of 2^-16. The length must be a multiple of 256.
    pub(crate) fn rounding_errors(fixed: &[i16], whole: [i16; SCALES], part: [i16; SCALES]) -> [u64; SCALES] {
        const BLOCK: usize = FIXED_LANES * FIXED_STEPS;
        let mut sums = [0u64; SCALES];
        // The lanes of 32 bits hold 2^16 sums of 16 bits.
        for blocks in fixed.as_chunks::<BLOCK>().0.chunks(1 << 16) {
            for (t, sum) in sums.iter_mut().enumerate() {
                let mut lanes = [0u32; FIXED_LANES];
                for block in blocks {
                    let mut squares = [0u16; FIXED_LANES];
                    for chunk in block.as_chunks::<FIXED_LANES>().0 {
                        for i in 0..FIXED_LANES {
                            let fine = ((i32::from(chunk[i]) * i32::from(part[t])) >> 16) as i16;
                            let lost = chunk[i].wrapping_mul(whole[t]).wrapping_add(fine);
                            let square = ((i32::from(lost) * i32::from(lost)) >> 16) as u16;
                            squares[i] = squares[i].saturating_add(square);
                        }
                    }
                    for i in 0..FIXED_LANES {
                        lanes[i] += u32::from(squares[i]);
                    }
                }
                *sum += lanes.iter().map(|lane| u64::from(*lane)).sum::<u64>();
            }
        }
        sums
    }
}
