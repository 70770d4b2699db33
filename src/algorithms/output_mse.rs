//! Scales and zero points that change a layer's outputs least, rather than its weights.
//!
//! ```text
//! minimise over p   |X (w - w'(p))|^2 = e H e^T,   range(p) = p * [min, max] of the group
//! ```
//!
//! for each row, one group after the other, the others as they were chosen last. Candidates are screened by the diagonal of
//! `H`, which is exact where features do not depend on each other, and the best of them compared by the whole of it. It is
//! the objective of [Frantar et al. 2022](https://arxiv.org/abs/2210.17323), of which `mse` sees `H = I`.

use super::hessian::Hessian;
use super::tile::Layer;
use crate::quant::params::{ParamRule, Params, Range};
use crate::quant::scheme::Grid;
use crate::simd::dispatched;
use crate::stream;

/// Ranges that are tried: shares of the group's own.
const CANDIDATES: usize = 80;

/// The smallest of these shares.
const SMALLEST: f32 = 0.25;

/// How many candidates are compared by the whole objective.
const FINALISTS: usize = 5;

/// Parameters of each group of each row of `layer`, whose own are where the search begins.
pub(crate) fn choose(layer: &Layer<'_>, rule: &ParamRule, hessian: &Hessian, threads: usize) -> Vec<Params> {
    let n = layer.features;
    let mut gram = vec![0f32; n * n];
    gram.chunks_mut(n).enumerate().for_each(|(i, row)| hessian.row(i, row));
    let diagonal: Vec<f32> = hessian.diagonal().iter().map(|value| *value as f32).collect();
    let rows = stream::map(layer.rows(), threads, |row| {
        let search = Search { weights: &layer.weights[row * n..(row + 1) * n], group: layer.group, rule, clip: layer.clip, gram: &gram };
        search.run(&diagonal, &layer.params[row * layer.groups()..(row + 1) * layer.groups()])
    });
    rows.into_iter().flatten().collect()
}

/// One row.
struct Search<'a> {
    weights: &'a [f32],
    group: usize,
    rule: &'a ParamRule,
    clip: Grid,
    gram: &'a [f32],
}

impl Search<'_> {
    fn run(&self, diagonal: &[f32], start: &[Params]) -> Vec<Params> {
        let n = self.weights.len();
        let finalists: Vec<Vec<Params>> = self
            .weights
            .chunks(self.group)
            .zip(diagonal.chunks(self.group))
            .zip(start)
            .map(|((weights, diagonal), start)| self.screen(weights, diagonal, *start))
            .collect();
        let mut chosen: Vec<Params> = finalists.iter().map(|finalists| finalists[0]).collect();
        let mut errors = vec![0f32; n];
        for ((weights, errors), params) in self.weights.chunks(self.group).zip(errors.chunks_mut(self.group)).zip(&chosen) {
            self.errors(weights, *params, errors);
        }
        // H e.
        let mut gradient: Vec<f32> = self.gram.chunks_exact(n).map(|row| dot(row, &errors)).collect();
        let mut trial = vec![0f32; self.group.min(n)];
        for (group, finalists) in finalists.iter().enumerate() {
            let start = group * self.group;
            let end = (start + self.group).min(n);
            let mut best = (0.0, None);
            for params in finalists.iter().filter(|params| **params != chosen[group]) {
                let trial = &mut trial[..end - start];
                self.errors(&self.weights[start..end], *params, trial);
                trial.iter_mut().zip(&errors[start..end]).for_each(|(trial, error)| *trial -= error);
                // (e + d) H (e + d) - e H e = 2 d H e + d H d
                let linear = 2.0 * dot(trial, &gradient[start..end]);
                let quadratic: f32 = (start..end).zip(&*trial).map(|(i, d)| d * dot(&self.gram[i * n + start..i * n + end], trial)).sum();
                if linear + quadratic < best.0 {
                    best = (linear + quadratic, Some(*params));
                }
            }
            let Some(params) = best.1 else { continue };
            chosen[group] = params;
            let mut changed = vec![0f32; end - start];
            self.errors(&self.weights[start..end], params, &mut changed);
            for (i, error) in (start..end).zip(changed) {
                let difference = error - errors[i];
                errors[i] = error;
                if difference != 0.0 {
                    gradient.iter_mut().zip(&self.gram[i * n..(i + 1) * n]).for_each(|(sum, entry)| *sum += difference * entry);
                }
            }
        }
        if self.objective(&chosen) <= self.objective(start) { chosen } else { start.to_vec() }
    }

    /// The change of outputs with the nearest codes.
    fn objective(&self, params: &[Params]) -> f32 {
        let n = self.weights.len();
        let mut errors = vec![0f32; n];
        for ((weights, errors), params) in self.weights.chunks(self.group).zip(errors.chunks_mut(self.group)).zip(params) {
            self.errors(weights, *params, errors);
        }
        self.gram.chunks_exact(n).zip(&errors).map(|(row, error)| error * dot(row, &errors)).sum()
    }

    /// The best candidates by the diagonal, the very best first, and where the search begins.
    fn screen(&self, weights: &[f32], diagonal: &[f32], start: Params) -> Vec<Params> {
        let (min, max) = weights.iter().fold((0f32, 0f32), |(min, max), value| (min.min(*value), max.max(*value)));
        let candidates = (0..CANDIDATES).map(|i| {
            let share = 1.0 - (1.0 - SMALLEST) * i as f32 / (CANDIDATES - 1) as f32;
            self.rule.choose_params(Range { min: min * share, max: max * share })
        });
        let mut scored: Vec<(f64, Params)> =
            candidates.chain([start]).map(|params| (f64::from(weighted_error(weights, diagonal, params, self.clip)), params)).collect();
        scored.sort_by(|a, b| a.0.total_cmp(&b.0));
        scored.dedup_by(|a, b| a.1 == b.1);
        let mut finalists: Vec<Params> = scored.into_iter().take(FINALISTS).map(|(_, params)| params).collect();
        finalists.push(start);
        finalists
    }

    fn errors(&self, weights: &[f32], params: Params, errors: &mut [f32]) {
        errors.iter_mut().zip(weights).for_each(|(error, weight)| *error = error_of(*weight, params, self.clip));
    }
}

#[inline(always)]
fn error_of(weight: f32, params: Params, clip: Grid) -> f32 {
    weight - params.fake_quantize(weight, clip)
}

/// Lanes of sums, which are added up at the end.
const LANES: usize = 16;

dispatched! {
    /// `sum of weights[i] * error[i]^2`, in lanes.
    pub(crate) fn weighted_error(values: &[f32], weights: &[f32], params: Params, clip: Grid) -> f32 {
        let mut sums = [0f32; LANES];
        for (values, weights) in values.chunks(LANES).zip(weights.chunks(LANES)) {
            for ((sum, value), weight) in sums.iter_mut().zip(values).zip(weights) {
                let error = error_of(*value, params, clip);
                *sum += weight * (error * error);
            }
        }
        sums.iter().sum()
    }
}

dispatched! {
    /// The sum of products, in lanes.
    pub(crate) fn dot(left: &[f32], right: &[f32]) -> f32 {
        let mut sums = [0f32; LANES];
        for (left, right) in left.chunks(LANES).zip(right.chunks(LANES)) {
            for ((sum, left), right) in sums.iter_mut().zip(left).zip(right) {
                *sum += left * right;
            }
        }
        sums.iter().sum()
    }
}
