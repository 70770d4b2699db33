//! The exact optimum over scales, by visiting every code change in order.
//!
//! For fixed codes `k` the error is a parabola in the scale whose least value is reached at `s = A / B`:
//!
//! ```text
//! sum((x - s k)^2) = X - 2 s A + s^2 B       A = sum(x k),  B = sum(k^2)       least value X - A^2 / B
//! ```
//!
//! Nearest codes are the best codes for a scale, so the optimum over scales is the largest `A^2 / B` over all
//! assignments that occur. As `s` grows, the code of one value at a time steps towards 0, at `s = |x| / (k - 1/2)`.

use super::space::Space;
use crate::quant::params::Params;

/// Zero points on either side of min-max's that are swept where the zero point is free.
const ZERO_POINTS: i32 = 3;

pub(super) fn search(space: &Space, values: &[f32]) -> Vec<Params> {
    let squares: f64 = values.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    let mut best = Best { gain: squares - space.errors(values, &[space.widest])[0], params: space.widest };
    let mut events = Vec::new();
    let middle = space.widest.zero_point;
    let others = if space.rule.symmetric { 0 } else { ZERO_POINTS };
    let zero_points = (0..=others).flat_map(|d| [middle - d, middle + d].into_iter().take(if d == 0 { 1 } else { 2 }));
    for zero_point in zero_points.filter(|z| (space.rule.grid.qmin..=space.rule.grid.qmax).contains(z)) {
        let ends = space.ends(zero_point);
        let largest = space.largest_scale();
        let smallest = smallest_scale(values, ends, largest, squares - best.gain);
        if smallest < largest {
            let (gain, scale) = sweep(values, ends, smallest, largest, &mut events);
            if gain > best.gain {
                best = Best { gain, params: space.params(scale, zero_point) };
            }
        }
    }
    vec![best.params]
}

struct Best {
    gain: f64,
    params: Params,
}

/// A scale below which the error of clipped values alone exceeds `error`.
fn smallest_scale(values: &[f32], (low, high): (f32, f32), largest: f64, error: f64) -> f64 {
    let clipped = |scale: f64| {
        let (low, high) = (low * scale as f32, high * scale as f32);
        let beyond = |x: &f32| (x - high).max(0.0) + (low - x).max(0.0);
        f64::from(values.iter().map(beyond).map(|x| x * x).sum::<f32>())
    };
    let (mut below, mut above) = (0.0, largest);
    if clipped(largest) > error {
        return largest;
    }
    for _ in 0..10 {
        let middle = (below + above) / 2.0;
        if clipped(middle) > error { below = middle } else { above = middle }
    }
    below.max(largest / 64.0)
}

/// The largest gain `A^2 / B` of the assignments between two scales, and its `A / B`.
fn sweep(values: &[f32], (low, high): (f32, f32), smallest: f64, largest: f64, events: &mut Vec<u64>) -> (f64, f64) {
    events.clear();
    let (mut a, mut b) = (0f64, 0f64);
    for (index, x) in values.iter().enumerate() {
        let magnitude = f64::from(x.abs());
        let end = f64::from(if *x < 0.0 { -low } else { high });
        let code = |scale: f64| (magnitude / scale + 0.5).floor().min(end);
        let (first, last) = (code(smallest), code(largest));
        a += magnitude * first;
        b += first * first;
        for k in (last as u64 + 1)..=(first as u64) {
            let scale = (magnitude / (k as f64 - 0.5)) as f32;
            events.push(u64::from(scale.to_bits()) << 32 | (index as u64) << 16 | k);
        }
    }
    events.sort_unstable();
    let mut best = (0.0, largest);
    let mut consider = |a: f64, b: f64| {
        if b > 0.0 && a * a > best.0 * b {
            best = (a * a / b, a / b);
        }
    };
    consider(a, b);
    for event in events.iter() {
        let (index, k) = ((event >> 16 & 0xffff) as usize, (event & 0xffff) as f64);
        a -= f64::from(values[index].abs());
        b -= 2.0 * k - 1.0;
        consider(a, b);
    }
    best
}
