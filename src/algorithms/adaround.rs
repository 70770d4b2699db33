//! Learned rounding: codes that minimise the objective of AdaRound, the change of the layer's outputs.
//!
//! ```text
//! minimise over codes   e H e^T,   e = w - (codes - zero_point) * scale
//! ```
//!
//! [Nagel et al. 2020](https://arxiv.org/abs/2004.10568) (equations 13 and 20) relax this quadratic problem over whole numbers
//! and follow gradients. Here it is solved over whole numbers themselves: from the codes of GPTQ, the one code of a row whose
//! change gains most at a time, until none gains, as coordinate descent does
//! ([Behdin et al. 2023](https://arxiv.org/abs/2309.01885)); then, a number of times, some codes drawn at random
//! are moved, the descent goes on from there, and the better of both is kept.

use super::gptq;
use super::hessian::{Factor, FeatureOrder};
use super::tile::{Codes, Tile};
use super::{Rounding, RoundingEntry};
use crate::observers::Parameter;
use crate::random::Random;
use crate::simd::dispatched;
use std::sync::Arc;

pub(crate) const ENTRY: RoundingEntry = RoundingEntry {
    name: "adaround",
    parameter: Some(Parameter { name: "ROUNDS", default: 16.0, min: 0.0, max: 10_000.0, is_whole: true }),
    summary: "codes are learned: from those of gptq by descent, and from moves drawn at random",
    prepare: Some(|rounds, hessian, context| {
        let factor = hessian.factor(FeatureOrder::ByActivation, gptq::DAMPING.default, context.threads);
        let positions = factor.positions();
        let n = positions.len();
        let mut dense = vec![0f32; n * n];
        for (a, i) in positions.iter().enumerate() {
            for (b, j) in positions.iter().enumerate() {
                dense[a * n + b] = hessian.gram.get(*i.max(j), *i.min(j)) as f32;
            }
        }
        Arc::new(AdaRound { factor, dense, rounds: rounds as usize, seed: context.seed })
    }),
};

struct AdaRound {
    factor: Factor,
    /// `H`, by position.
    dense: Vec<f32>,
    rounds: usize,
    seed: u64,
}

/// Most passes over a row: descents end far earlier.
const PASSES: usize = 100;

/// Codes that are moved at a time: one of so many.
const MOVED: usize = 64;

/// One row while it is learned.
#[derive(Clone)]
struct Row {
    codes: Vec<i32>,
    /// `H e`.
    gradient: Vec<f32>,
    /// What the objective has lost since the row was begun; negative.
    change: f64,
}

impl Rounding for AdaRound {
    fn round(&self, tile: &Tile) -> Codes {
        let mut codes = gptq::round(&self.factor, tile);
        let n = tile.weights.len();
        for r in 0..tile.count {
            let scales: Vec<f32> = (0..n).map(|position| tile.scales(position)[r]).collect();
            let error = |position: usize| tile.weights[position][r] - tile.values(position, &codes[position])[r];
            let errors: Vec<f32> = (0..n).map(error).collect();
            let mut gradient = vec![0f32; n];
            errors.iter().enumerate().for_each(|(i, error)| add_multiple(&mut gradient, *error, self.row(i)));
            let mut best = Row { codes: codes.iter().map(|codes| codes[r]).collect(), gradient, change: 0.0 };
            self.descend(&mut best, tile, &scales);
            let mut random = Random::new(self.seed, tile.first + r);
            for _ in 0..self.rounds {
                let mut row = best.clone();
                for _ in 0..n.div_ceil(MOVED) {
                    let position = random.below(n);
                    // Towards what the gradient prefers.
                    let step = if row.gradient[position] > 0.0 { 1 } else { -1 };
                    self.step(&mut row, tile, &scales, position, step);
                }
                self.descend(&mut row, tile, &scales);
                if row.change < best.change {
                    best = row;
                }
            }
            codes.iter_mut().zip(&best.codes).for_each(|(codes, code)| codes[r] = *code);
        }
        codes
    }

    fn factor(&self) -> &Factor {
        &self.factor
    }
}

impl AdaRound {
    fn row(&self, position: usize) -> &[f32] {
        let n = self.factor.positions().len();
        &self.dense[position * n..(position + 1) * n]
    }

    /// Changes single codes as long as one gains.
    fn descend(&self, row: &mut Row, tile: &Tile, scales: &[f32]) {
        for _ in 0..PASSES {
            let mut changed = false;
            for position in (0..scales.len()).rev() {
                let curvature = self.row(position)[position] * scales[position];
                // The objective of a step of d codes changes by d s (d s H[i][i] - 2 (H e)[i]).
                let steps = (row.gradient[position] / curvature).round_ties_even();
                if steps != 0.0 && steps.is_finite() {
                    changed |= self.step(row, tile, scales, position, steps as i32);
                }
            }
            if !changed {
                break;
            }
        }
    }

    /// Moves one code by `steps`, if the grid has the code; returns whether it gained.
    fn step(&self, row: &mut Row, tile: &Tile, scales: &[f32], position: usize, steps: i32) -> bool {
        let code = row.codes[position].saturating_add(steps);
        if !tile.holds(code) {
            return false;
        }
        let moved = steps as f32 * scales[position];
        let curvature = self.row(position)[position];
        let change = f64::from(moved) * (f64::from(moved) * f64::from(curvature) - 2.0 * f64::from(row.gradient[position]));
        row.codes[position] = code;
        row.change += change;
        add_multiple(&mut row.gradient, -moved, self.row(position));
        change < 0.0
    }
}

dispatched! {
    /// `target += factor * source`, entry by entry.
    pub(crate) fn add_multiple(target: &mut [f32], factor: f32, source: &[f32]) -> () {
        for (target, source) in target.iter_mut().zip(source) {
            *target += factor * source;
        }
    }
}
