//! Symmetric matrices in f64 as blocks, and their Cholesky factors: the same bits on every machine and thread count.
//!
//! ```text
//! H = L L^T, L lower triangular        (Golub and Van Loan, Matrix Computations, section 4.2, blocked)
//! ```
//!
//! Linear algebra libraries divide sums by the size of caches and the width of registers, and so round differently from one
//! machine to the next, which GPTQ would turn into other codes. Here every entry is a sum in one order, of products and sums
//! that IEEE 754 defines; lanes only run over entries.

use crate::simd::dispatched;
use crate::stream::for_each_on_threads;

/// Rows and columns of a block: two of them fill half of a first-level cache.
pub(crate) const SIDE: usize = 64;

/// Entries of a block.
pub(crate) const BLOCK: usize = SIDE * SIDE;

/// Rows and columns that are summed at a time: as many as 16 registers of 32 bytes hold beside what is multiplied.
const ROWS: usize = 4;
const COLUMNS: usize = 8;

/// The lower triangle of a symmetric `[n, n]` matrix, or a lower triangular one: blocks column by column, from the diagonal
/// down, each in row-major order. Beyond `n` there is padding.
#[derive(Clone)]
pub(crate) struct Blocks {
    n: usize,
    entries: Vec<f64>,
}

impl Blocks {
    /// All entries 0.
    pub(crate) fn zeros(n: usize) -> Self {
        Blocks { n, entries: vec![0.0; block_count(n) * BLOCK] }
    }

    /// The matrix of these entries, in their order.
    pub(crate) fn from_entries(n: usize, entries: Vec<f64>) -> Self {
        assert_eq!(entries.len(), block_count(n) * BLOCK, "as many entries as blocks have");
        Blocks { n, entries }
    }

    /// Number of rows and of columns.
    pub(crate) fn n(&self) -> usize {
        self.n
    }

    /// Where the entry of row `i` and column `j` is among all of a matrix of `n` rows; `i` is in no earlier block than `j`.
    pub(crate) fn place(n: usize, i: usize, j: usize) -> usize {
        block_number(n.div_ceil(SIDE), i / SIDE, j / SIDE) * BLOCK + i % SIDE * SIDE + j % SIDE
    }

    /// The entry of row `i` and column `j`, of the lower triangle: `i >= j`.
    pub(crate) fn get(&self, i: usize, j: usize) -> f64 {
        self.entries[Self::place(self.n, i, j)]
    }

    /// Sets an entry of the lower triangle.
    pub(crate) fn set(&mut self, i: usize, j: usize, value: f64) {
        let place = Self::place(self.n, i, j);
        self.entries[place] = value;
    }
}

/// Blocks of a matrix of `n` rows.
pub(crate) fn block_count(n: usize) -> usize {
    let side = n.div_ceil(SIDE);
    side * (side + 1) / 2
}

/// The number of the block at `row` and `column` of `side` blocks.
fn block_number(side: usize, row: usize, column: usize) -> usize {
    column * side - column * (column + 1) / 2 + row
}

dispatched! {
    /// Adds to `block` the products of columns of `x`, whose rows have `width` values, summed over the rows in order:
    ///
    /// ```text
    /// block[i][j] += sum over r of x[r][first_row + i] * x[r][first_column + j]
    /// ```
    ///
    /// Both ranges of columns lie within `width`.
    pub(crate) fn add_products(x: &[f64], width: usize, first_row: usize, first_column: usize, block: &mut [f64]) -> () {
        for i in (0..SIDE).step_by(ROWS) {
            for j in (0..SIDE).step_by(COLUMNS) {
                let mut sums = [[0f64; COLUMNS]; ROWS];
                for row in x.chunks_exact(width) {
                    let left: &[f64; ROWS] = row[first_row + i..][..ROWS].try_into().expect("the range has this length");
                    let right: &[f64; COLUMNS] = row[first_column + j..][..COLUMNS].try_into().expect("the range has this length");
                    for (sums, left) in sums.iter_mut().zip(left) {
                        for (sum, right) in sums.iter_mut().zip(right) {
                            *sum = left.mul_add(*right, *sum);
                        }
                    }
                }
                for (sums, block) in sums.iter().zip(block[i * SIDE..].chunks_mut(SIDE)) {
                    for (sum, entry) in sums.iter().zip(&mut block[j..j + COLUMNS]) {
                        *entry += sum;
                    }
                }
            }
        }
    }
}

dispatched! {
    /// `target -= factor * source`, entry by entry.
    pub(crate) fn subtract_multiple(target: &mut [f64], factor: f64, source: &[f64]) -> () {
        for (target, source) in target.iter_mut().zip(source) {
            *target -= factor * source;
        }
    }
}

/// Rows whose products are summed in f32: few enough for an error of some 1e-7 of the sum.
const SHORT: usize = 64;

dispatched! {
    /// As [`add_products`] for values in f32, of which [`SHORT`] rows at a time are summed in f32.
    pub(crate) fn add_short_products(x: &[f32], width: usize, first_row: usize, first_column: usize, block: &mut [f64]) -> () {
        const WIDE: usize = 2 * COLUMNS;
        for rows in x.chunks(SHORT * width) {
            for i in (0..SIDE).step_by(ROWS) {
                for j in (0..SIDE).step_by(WIDE) {
                    let mut sums = [[0f32; WIDE]; ROWS];
                    for row in rows.chunks_exact(width) {
                        let left: &[f32; ROWS] = row[first_row + i..][..ROWS].try_into().expect("the range has this length");
                        let right: &[f32; WIDE] = row[first_column + j..][..WIDE].try_into().expect("the range has this length");
                        for (sums, left) in sums.iter_mut().zip(left) {
                            for (sum, right) in sums.iter_mut().zip(right) {
                                *sum = left.mul_add(*right, *sum);
                            }
                        }
                    }
                    for (sums, block) in sums.iter().zip(block[i * SIDE..].chunks_mut(SIDE)) {
                        for (sum, entry) in sums.iter().zip(&mut block[j..j + WIDE]) {
                            *entry += f64::from(*sum);
                        }
                    }
                }
            }
        }
    }
}

impl Blocks {
    /// Multiplies every entry.
    pub(crate) fn scale(&mut self, factor: f64) {
        self.entries.iter_mut().for_each(|entry| *entry *= factor);
    }

    /// The Gram matrix of the same inputs with each feature divided by a number.
    pub(crate) fn divide_features(&mut self, divisors: &[f32]) {
        for i in 0..self.n {
            for j in (0..self.n).filter(|j| i / SIDE >= j / SIDE) {
                let place = Self::place(self.n, i, j);
                self.entries[place] /= f64::from(divisors[i]) * f64::from(divisors[j]);
            }
        }
    }

    /// The lower triangular `L` of this matrix `H = L L^T`; `None` if it is not positive definite.
    pub(crate) fn cholesky(mut self, threads: usize) -> Option<Self> {
        let side = self.n.div_ceil(SIDE);
        for i in self.n..side * SIDE {
            self.set(i, i, 1.0);
        }
        let width = side * SIDE;
        // The columns of one step as rows, negated in `minus` so that products can be added.
        let mut panel = vec![0f64; SIDE * width];
        let mut rest = &mut self.entries[..];
        for step in 0..side {
            let (column, below) = rest.split_at_mut((side - step) * BLOCK);
            rest = below;
            let (diagonal, under) = column.split_at_mut(BLOCK);
            factor_block(diagonal)?;
            let start = (step + 1) * SIDE;
            for (b, block) in under.chunks_exact(BLOCK).enumerate() {
                for (r, row) in block.chunks_exact(SIDE).enumerate() {
                    row.iter().enumerate().for_each(|(c, value)| panel[c * width + start + b * SIDE + r] = *value);
                }
            }
            for c in 0..SIDE {
                let (before, from) = panel.split_at_mut(c * width);
                let current = &mut from[start..width];
                for (m, other) in before.chunks_exact(width).enumerate() {
                    subtract_multiple(current, diagonal[c * SIDE + m], &other[start..]);
                }
                let pivot = diagonal[c * SIDE + c];
                current.iter_mut().for_each(|value| *value /= pivot);
            }
            for (b, block) in under.chunks_exact_mut(BLOCK).enumerate() {
                for (r, row) in block.chunks_exact_mut(SIDE).enumerate() {
                    row.iter_mut().enumerate().for_each(|(c, value)| *value = panel[c * width + start + b * SIDE + r]);
                }
            }
            let left = side - step - 1;
            let numbers = (0..left).flat_map(|column| (column..left).map(move |row| (row, column)));
            for_each_on_threads(numbers.zip(rest.chunks_exact_mut(BLOCK)), threads, |((row, column), block)| {
                let mut products = [0f64; BLOCK];
                add_products(&panel, width, start + row * SIDE, start + column * SIDE, &mut products);
                block.iter_mut().zip(&products).for_each(|(entry, product)| *entry -= product);
            });
        }
        Some(self)
    }
}

/// Factors one block in place, and clears what is above its diagonal.
fn factor_block(block: &mut [f64]) -> Option<()> {
    for j in 0..SIDE {
        for i in j..SIDE {
            let dot: f64 = (0..j).map(|m| block[i * SIDE + m] * block[j * SIDE + m]).sum();
            let value = block[i * SIDE + j] - dot;
            if i == j {
                if !(value > 0.0 && value.is_finite()) {
                    return None;
                }
                block[j * SIDE + j] = value.sqrt();
            } else {
                block[i * SIDE + j] = value / block[j * SIDE + j];
            }
        }
        block[j * SIDE + j + 1..(j + 1) * SIDE].fill(0.0);
    }
    Some(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// `X^T X` of `rows` rows of pseudo-random values, and X.
    pub(crate) fn gram(n: usize, rows: usize, seed: u64) -> (Blocks, Vec<f64>) {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
        };
        let x: Vec<f64> = (0..rows * n).map(|i| next() * (1.0 + (i % n % 7) as f64)).collect();
        let mut matrix = Blocks::zeros(n);
        for (i, j) in (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))) {
            matrix.set(i, j, (0..rows).map(|r| x[r * n + i] * x[r * n + j]).sum());
        }
        (matrix, x)
    }

    #[test]
    fn factors_give_the_matrix_back_whatever_the_threads() {
        for n in [1, 2, 63, 64, 65, 200] {
            let (matrix, _) = gram(n, 2 * n + 3, 7);
            let factor = matrix.clone().cholesky(1).expect("it is positive definite");
            let again = matrix.clone().cholesky(3).expect("it is positive definite");
            assert!(factor.entries.iter().zip(&again.entries).all(|(a, b)| a.to_bits() == b.to_bits()), "{n}");
            for (i, j) in (0..n).flat_map(|i| (0..=i).map(move |j| (i, j))) {
                let product: f64 = (0..=j).map(|m| factor.get(i, m) * factor.get(j, m)).sum();
                let size = (matrix.get(i, i) * matrix.get(j, j)).sqrt();
                assert!((product - matrix.get(i, j)).abs() <= 1e-12 * size, "{n}: {i}, {j}");
            }
        }
    }

    #[test]
    fn a_matrix_that_is_not_positive_definite_has_no_factor() {
        let mut matrix = Blocks::zeros(3);
        (0..3).for_each(|i| matrix.set(i, i, 1.0));
        matrix.set(2, 1, 1.5);
        assert!(matrix.cholesky(1).is_none());
        assert!(Blocks::zeros(2).cholesky(1).is_none());
    }
}
