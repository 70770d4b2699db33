//! The search for rows of 8-bit codes, as dense as the error is rough and no wider than it can pay.
//!
//! Values inside the range lose `s^2 / 12` each on average, those outside what is clipped, so that the error is
//!
//! ```text
//! f(s) = n s^2 / 12 * (1 ± r) + clipped(s)       r = 0.9 / sqrt(n), the spread of a mean of n uniform squares
//! ```
//!
//! The smooth part limits the search: where it exceeds its minimum by a few `r`, luck does not make up for it. In
//! codes, the optimum lies at most `n / (12 h)` (`h` half the grid) and the luck of one clipped value below min-max.
//! Rounding errors become independent once codes of typical size `c` have moved by a quarter, so scales `1 / (8 c)`
//! apart show all minima. The rounding error of values that stay inside comes from 16-bit arithmetic
//! ([`rounding_errors`]); only values near the ends are clamped. The zero point does not change it, so where it is
//! free it follows from what is clipped.

use super::space::Space;
use crate::quant::kernel::search::{FLAGGED, SCALES, rounding_errors, to_fixed};
use crate::quant::params::Params;

/// Spacing of scales, relative, times the typical code, for rows of 4096 values. Loses 0.003 dB before refinement.
const SPACING: f64 = 0.13;

/// How many spreads above its minimum the smooth part may be.
const SPREADS: f64 = 3.5;

/// Steps from a good scale to those tried around it, in steps of the grid.
const NEAR: [f64; SCALES] = [-0.3, -0.12, 0.12, 0.3];

/// The best scales found, best first; `None` if the range is too few codes wide for the model.
pub(super) fn search(space: &Space, values: &[f32]) -> Option<Vec<Params>> {
    let row = Row::new(space, values)?;
    let spread = 0.9 / row.n.sqrt();
    let spacing = (SPACING / row.typical_code * (row.n / 4096.0).sqrt().clamp(0.25, 1.25)).clamp(1e-4, 0.02);
    let (largest, smallest) = (space.largest_scale(), f64::from(space.widest.scale) * (1.0 - row.reach / row.half));
    let count = ((largest / smallest).ln() / spacing).ceil() as i32 + 1;
    let mut zero_point = space.widest.zero_point;
    let grid: Vec<(f64, Params)> = (0..count)
        .map(|i| {
            let scale = largest * (-f64::from(i) * spacing).exp();
            zero_point = row.zero_point(space, scale, zero_point);
            (row.smooth(space, scale, zero_point), space.params(scale, zero_point))
        })
        .collect();
    let least = grid.iter().fold(f64::INFINITY, |least, (smooth, _)| least.min(*smooth));
    // Where most values round to 0 the smooth part says little.
    let limit = if row.typical_code < 2.0 { f64::INFINITY } else { least * (1.0 + SPREADS * spread) };
    let trials: Vec<Params> = grid.into_iter().filter(|(smooth, _)| *smooth <= limit).map(|(_, params)| params).collect();
    let errors = row.errors(space, &trials);
    let mut tried: Vec<(f64, Params)> = errors.into_iter().zip(trials).collect();
    let vertices = vertices(space, &tried, spacing);
    tried.extend(row.errors(space, &vertices).into_iter().zip(vertices));
    tried.sort_by(|a, b| a.0.total_cmp(&b.0));
    let near: Vec<Params> = distant(&tried, spacing, if row.n < 2048.0 { 3 } else { 1 })
        .iter()
        .flat_map(|best| NEAR.map(|x| space.params(f64::from(best.scale) * (1.0 + x * spacing), best.zero_point)))
        .collect();
    tried.extend(row.errors(space, &near).into_iter().zip(near));
    tried.sort_by(|a, b| a.0.total_cmp(&b.0));
    // The more values, the less the rounding to 16 bits can mistake the order of the best.
    tried.truncate(if row.n < 2048.0 { SCALES } else { 1 });
    Some(tried.into_iter().map(|(_, params)| params).collect())
}

/// The first `count` of `tried` that are at least one step of the grid apart.
fn distant(tried: &[(f64, Params)], spacing: f64, count: usize) -> Vec<Params> {
    let mut kept: Vec<Params> = Vec::with_capacity(count);
    for (_, params) in tried {
        if kept.len() < count && kept.iter().all(|other| (params.scale / other.scale - 1.0).abs() >= spacing as f32) {
            kept.push(*params);
        }
    }
    kept
}

/// The minima of parabolas through each of the best local minima of a grid and its neighbours.
fn vertices(space: &Space, grid: &[(f64, Params)], spacing: f64) -> Vec<Params> {
    let error = |i: usize| grid.get(i).map_or(f64::INFINITY, |(error, _)| *error);
    let mut minima: Vec<usize> = (0..grid.len()).filter(|i| error(*i) <= error(i + 1) && (*i == 0 || error(*i) < error(i - 1))).collect();
    minima.sort_by(|a, b| error(*a).total_cmp(&error(*b)));
    minima.truncate(SCALES);
    let vertex = |i: usize| {
        let (before, at, after) = (if i == 0 { f64::INFINITY } else { error(i - 1) }, error(i), error(i + 1));
        let offset = 0.5 * (before - after) / (before - 2.0 * at + after);
        // The grid runs towards smaller scales.
        let offset = if offset.is_finite() { offset } else { 0.4 };
        space.params(f64::from(grid[i].1.scale) * (1.0 - offset * spacing), grid[i].1.zero_point)
    };
    minima.into_iter().map(vertex).collect()
}

/// A row divided into values that no candidate clips, in 16 bits, and the others.
struct Row {
    n: f64,
    half: f64,
    /// How many codes below min-max the search goes.
    reach: f64,
    fixed: Vec<i16>,
    factor: f64,
    typical_code: f64,
    tail: Vec<f32>,
    below: End,
    above: End,
}

impl Row {
    fn new(space: &Space, values: &[f32]) -> Option<Self> {
        let n = values.len() as f64;
        let half = f64::from(space.rule.grid.qmax - space.rule.grid.qmin) / 2.0;
        let reach = n / (12.0 * half) + 2.0 * (0.3 * n.sqrt()).sqrt() + 2.0;
        if reach > half / 3.0 {
            return None;
        }
        let scale = space.widest.scale;
        let (low, high) = space.ends(space.widest.zero_point);
        let low = (low + reach as f32).min(0.0) * scale;
        let high = (high - reach as f32).max(0.0) * scale;
        let factor = 32767.0 / (-space.extent.min).max(space.extent.max);
        let mut fixed = vec![0; values.len().next_multiple_of(256)];
        let mut flags = vec![0; values.len().div_ceil(FLAGGED)];
        let squares = to_fixed(values, factor, low, high, &mut fixed[..values.len()], &mut flags);
        let mut tail = Vec::with_capacity(values.len() / 16);
        let (mut below, mut above) = (End::new(-low, scale), End::new(high, scale));
        for (chunk, _) in values.chunks(FLAGGED).zip(flags).filter(|(_, flag)| *flag != 0) {
            for value in chunk.iter().filter(|value| **value < low || **value > high) {
                tail.push(*value);
                if *value > high { above.add(*value) } else { below.add(-value) }
            }
        }
        below.finish();
        above.finish();
        let typical_code = (squares / n).sqrt() / f64::from(factor * scale);
        Some(Row { n, half, reach, fixed, factor: f64::from(factor), typical_code: typical_code.max(0.01), tail, below, above })
    }

    /// The expected error, in squared real units.
    fn smooth(&self, space: &Space, scale: f64, zero_point: i32) -> f64 {
        self.n * scale * scale / 12.0 + self.clipped(space, scale, zero_point)
    }

    fn clipped(&self, space: &Space, scale: f64, zero_point: i32) -> f64 {
        let (low, high) = space.ends(zero_point);
        self.below.clipped(f64::from(-low) * scale) + self.above.clipped(f64::from(high) * scale)
    }

    /// The zero point that clips least, found from a neighbouring scale's.
    fn zero_point(&self, space: &Space, scale: f64, start: i32) -> i32 {
        if space.rule.symmetric {
            return start;
        }
        let allowed = |zero_point: i32| {
            let (low, high) = space.ends(zero_point);
            f64::from(-low) * scale >= self.below.start && f64::from(high) * scale >= self.above.start
        };
        let mut best = (self.clipped(space, scale, start), start);
        for direction in [-1, 1] {
            let mut next = start + direction;
            while (space.rule.grid.qmin..=space.rule.grid.qmax).contains(&next) {
                let clipped = self.clipped(space, scale, next);
                if clipped >= best.0 && allowed(best.1) {
                    break;
                }
                best = (clipped, next);
                next += direction;
            }
        }
        best.1
    }

    /// Sums of squared errors, in squared real units.
    fn errors(&self, space: &Space, trials: &[Params]) -> Vec<f64> {
        let mut all = space.errors(&self.tail, trials);
        for (chunk, errors) in trials.chunks(SCALES).zip(all.chunks_mut(SCALES)) {
            let (mut whole, mut part) = ([0i16; SCALES], [0i16; SCALES]);
            for (t, params) in chunk.iter().enumerate() {
                let step = 65536.0 / (f64::from(params.scale) * self.factor);
                whole[t] = step.round() as i16;
                part[t] = ((step - step.round()) * 65536.0) as i16;
            }
            let sums = rounding_errors(&self.fixed, whole, part);
            for ((error, sum), params) in errors.iter_mut().zip(sums).zip(chunk) {
                *error += sum as f64 / 65536.0 * f64::from(params.scale) * f64::from(params.scale);
            }
        }
        all
    }
}

/// Buckets to a code in [`End`].
const BUCKETS: f64 = 4.0;

/// Magnitudes beyond `start` at one end, in buckets, and then the sums over each bucket and all beyond it.
struct End {
    start: f64,
    width: f64,
    /// Number, sum and sum of squares.
    sums: Vec<[f64; 3]>,
}

impl End {
    fn new(start: f32, scale: f32) -> Self {
        End { start: f64::from(start), width: f64::from(scale) / BUCKETS, sums: Vec::new() }
    }

    fn add(&mut self, magnitude: f32) {
        let x = f64::from(magnitude);
        let bucket = ((x - self.start) / self.width) as usize;
        if bucket >= self.sums.len() {
            self.sums.resize(bucket + 1, [0.0; 3]);
        }
        let sums = &mut self.sums[bucket];
        *sums = [sums[0] + 1.0, sums[1] + x, sums[2] + x * x];
    }

    fn finish(&mut self) {
        for bucket in (1..self.sums.len()).rev() {
            let beyond = self.sums[bucket];
            let sums = &mut self.sums[bucket - 1];
            *sums = [sums[0] + beyond[0], sums[1] + beyond[1], sums[2] + beyond[2]];
        }
    }

    /// The squared distance from `end` of all magnitudes beyond it, to the nearest bucket.
    fn clipped(&self, end: f64) -> f64 {
        let bucket = ((end - self.start) / self.width).max(0.0).round() as usize;
        self.sums.get(bucket).map_or(0.0, |[n, sum, squares]| (squares - 2.0 * end * sum + end * end * n).max(0.0))
    }
}
