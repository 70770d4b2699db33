//! The calibration objective of a layer, and its factor, by which errors of one weight are made good by the next.
//!
//! For weights `W [rows, features]`, inputs `X` and their Gram matrix `H = X^T X / n` the objective is, row by row,
//!
//! ```text
//! |X (w - w')|^2 / n = e H e^T,  e = w - w'
//! ```
//!
//! With features in an order from the last to the first and `H + damping I = L L^T`, it is a sum over features,
//!
//! ```text
//! e (H + damping I) e^T = sum over b of (L[b][b] v[b])^2,   v[b] = e[b] + sum over a > b of e[a] L[a][b] / L[b][b]
//! ```
//!
//! so that the best code for feature `b`, once those after it are fixed, is the one nearest to `w[b]` plus that sum. This is
//! the update of GPTQ ([Frantar et al. 2022](https://arxiv.org/abs/2210.17323)) without the inverse of the Hessian, as the
//! nearest plane of Babai ([Chen et al. 2025](https://arxiv.org/abs/2507.18553)).

use super::blocks::Blocks;
use crate::simd::dispatched;

/// Rows of weights that are dealt with side by side.
pub(crate) const LANES: usize = 16;

/// Features whose sums are computed together.
const WIDTH: usize = 8;

/// One value for each row of a tile.
pub(crate) type Lane = [f32; LANES];

/// The objective of one layer.
pub(crate) struct Hessian {
    /// `X^T X / n`, not damped.
    pub(crate) gram: Blocks,
    diagonal: Vec<f64>,
}

/// The order in which features are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FeatureOrder {
    /// Those with the largest inputs first.
    ByActivation,
    /// As they come.
    AsStored,
}

impl Hessian {
    /// Of a Gram matrix that is a sum over `rows` inputs.
    pub(crate) fn new(mut gram: Blocks, rows: u64) -> Self {
        gram.scale(1.0 / rows.max(1) as f64);
        let diagonal = (0..gram.n()).map(|i| gram.get(i, i)).collect();
        Hessian { gram, diagonal }
    }

    /// Number of features.
    pub(crate) fn features(&self) -> usize {
        self.gram.n()
    }

    /// The mean squares of features.
    pub(crate) fn diagonal(&self) -> &[f64] {
        &self.diagonal
    }

    /// Row `i` of the symmetric matrix, `H[i][..]`.
    pub(crate) fn row(&self, i: usize, row: &mut [f32]) {
        for (j, entry) in row.iter_mut().enumerate() {
            *entry = self.gram.get(i.max(j), i.min(j)) as f32;
        }
    }

    /// The factor of `H + damping * mean(diag H) I`, damped more if that is not positive definite.
    pub(crate) fn factor(&self, order: FeatureOrder, damping: f64, threads: usize) -> Factor {
        let n = self.features();
        let mut positions: Vec<usize> = (0..n).collect();
        if order == FeatureOrder::ByActivation {
            positions.sort_by(|a, b| self.diagonal[*b].total_cmp(&self.diagonal[*a]));
        }
        // The last position is rounded first.
        positions.reverse();
        let mean = self.diagonal.iter().sum::<f64>() / n.max(1) as f64;
        let mut damping = damping.max(SMALLEST_DAMPING) * if mean > 0.0 { mean } else { 1.0 };
        loop {
            let mut damped = Blocks::zeros(n);
            for (a, i) in positions.iter().copied().enumerate() {
                for (b, j) in positions[..=a].iter().copied().enumerate() {
                    damped.set(a, b, self.gram.get(i.max(j), i.min(j)));
                }
                damped.set(a, a, self.diagonal[i] + damping);
            }
            if let Some(lower) = damped.cholesky(threads) {
                return Factor::new(&lower, positions, damping);
            }
            damping *= MORE_DAMPING;
        }
    }
}

/// Least damping, relative to the mean of the diagonal: more than rounding can take from the smallest pivot.
const SMALLEST_DAMPING: f64 = 1e-9;

/// How much more is tried where a matrix is not positive definite.
const MORE_DAMPING: f64 = 10.0;

/// `L[a][b] / L[b][b]` of the damped objective, laid out for [`Factor::sweep`].
pub(crate) struct Factor {
    /// The feature at each position; the last is rounded first.
    positions: Vec<usize>,
    /// `L[b][b]^2`.
    pivots: Vec<f64>,
    /// For each block of [`WIDTH`] positions, the coefficients of all positions after it.
    panels: Vec<Vec<[f32; WIDTH]>>,
    /// Within each block: `inner[a][b]` for `a > b`.
    inner: Vec<[[f32; WIDTH]; WIDTH]>,
    damping: f64,
}

/// What a sweep over a tile found.
pub(crate) struct Swept {
    /// The objective of each row, without damping.
    pub(crate) objective: [f64; LANES],
}

impl Factor {
    fn new(lower: &Blocks, positions: Vec<usize>, damping: f64) -> Self {
        let n = positions.len();
        let pivot = |b: usize| lower.get(b, b);
        let coefficient = |a: usize, b: usize| if a < n && b < n { (lower.get(a, b) / pivot(b)) as f32 } else { 0.0 };
        let starts = (0..n).step_by(WIDTH);
        let panel = |start: usize| (start + WIDTH..n).map(|a| std::array::from_fn(|k| coefficient(a, start + k))).collect();
        let inner =
            |start: usize| std::array::from_fn(|m| std::array::from_fn(|k| if m > k { coefficient(start + m, start + k) } else { 0.0 }));
        Factor {
            pivots: (0..n).map(|b| pivot(b).powi(2)).collect(),
            panels: starts.clone().map(panel).collect(),
            inner: starts.map(inner).collect(),
            positions,
            damping,
        }
    }

    /// The feature at each position.
    pub(crate) fn positions(&self) -> &[usize] {
        &self.positions
    }

    /// Goes over the features of a tile of rows, `weights[position]`, in order: `round(position, targets)` gives the values
    /// that stand for them, `errors[position]` becomes the difference.
    pub(crate) fn sweep(&self, weights: &[Lane], errors: &mut [Lane], mut round: impl FnMut(usize, &Lane) -> Lane) -> Swept {
        let n = self.positions.len();
        let (mut objective, mut squares) = ([0f64; LANES], [0f64; LANES]);
        for (block, (panel, inner)) in self.panels.iter().zip(&self.inner).enumerate().rev() {
            let start = block * WIDTH;
            let end = (start + WIDTH).min(n);
            let mut sums = [[0f32; LANES]; WIDTH];
            add_errors(panel, &errors[end..], &mut sums);
            for position in (start..end).rev() {
                let k = position - start;
                let target: Lane = std::array::from_fn(|r| weights[position][r] + sums[k][r]);
                let rounded = round(position, &target);
                let error: Lane = std::array::from_fn(|r| weights[position][r] - rounded[r]);
                for r in 0..LANES {
                    let left = f64::from(target[r] - rounded[r]);
                    objective[r] += self.pivots[position] * left * left;
                    squares[r] += f64::from(error[r]).powi(2);
                }
                for (sums, coefficient) in sums[..k].iter_mut().zip(&inner[k]) {
                    sums.iter_mut().zip(&error).for_each(|(sum, error)| *sum += coefficient * error);
                }
                errors[position] = error;
            }
        }
        Swept { objective: std::array::from_fn(|r| (objective[r] - self.damping * squares[r]).max(0.0)) }
    }
}

/// Sums that are kept in registers at a time. With all of [`WIDTH`], what the compiler makes of it is 3 times (AVX2) to 40 times
/// (AVX-512) slower.
const AT_A_TIME: usize = WIDTH / 2;

dispatched! {
    /// `sums[k] += sum over a of panel[a][k] * errors[a]`, in the order of `a`.
    pub(crate) fn add_errors(panel: &[[f32; WIDTH]], errors: &[Lane], sums: &mut [Lane; WIDTH]) -> () {
        for first in (0..WIDTH).step_by(AT_A_TIME) {
            let mut local: [Lane; AT_A_TIME] = std::array::from_fn(|k| sums[first + k]);
            for (coefficients, errors) in panel.iter().zip(errors) {
                for k in 0..AT_A_TIME {
                    for r in 0..LANES {
                        local[k][r] = coefficients[first + k].mul_add(errors[r], local[k][r]);
                    }
                }
            }
            sums[first..][..AT_A_TIME].copy_from_slice(&local);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::blocks::tests::gram;
    use super::*;

    #[test]
    fn a_sweep_finds_the_objective_of_any_errors() {
        let (n, rows) = (37, 90);
        let (matrix, x) = gram(n, rows, 3);
        let hessian = Hessian::new(matrix, rows as u64);
        let errors: Vec<Lane> = (0..n).map(|i| std::array::from_fn(|r| ((i * 7 + r * 13) % 11) as f32 - 5.0)).collect();
        for order in [FeatureOrder::ByActivation, FeatureOrder::AsStored] {
            let factor = hessian.factor(order, 0.01, 1);
            let weights: Vec<Lane> = factor.positions().iter().map(|feature| errors[*feature]).collect();
            let mut found = vec![[0.0; LANES]; n];
            let swept = factor.sweep(&weights, &mut found, |_, _| [0.0; LANES]);
            assert_eq!(found, weights);
            for r in 0..LANES {
                let output = |row: &[f64]| row.iter().zip(&errors).map(|(x, e)| x * f64::from(e[r])).sum::<f64>();
                let expected = x.chunks(n).map(|row| output(row).powi(2)).sum::<f64>() / rows as f64;
                assert!((swept.objective[r] - expected).abs() <= 1e-4 * expected, "{order:?}, {r}: {} {expected}", swept.objective[r]);
            }
        }
    }

    #[test]
    fn inputs_that_are_all_zero_have_a_factor() {
        let hessian = Hessian::new(Blocks::zeros(5), 10);
        let factor = hessian.factor(FeatureOrder::ByActivation, 0.01, 1);
        let swept = factor.sweep(&[[1.0; LANES]; 5], &mut [[0.0; LANES]; 5], |_, target| *target);
        assert_eq!(swept.objective, [0.0; LANES]);
    }
}
