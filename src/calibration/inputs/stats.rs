//! What is kept of the inputs of one layer, which add up exactly however samples are divided.
//!
//! ```text
//! H = sum over rows of x^T x  [features, features]      mean = sum over rows of x / rows      abs_max = max over rows of |x|
//! ```

use super::sums::{self, FixedSums, LARGEST_SUM};
use crate::algorithms::blocks::{BLOCK, Blocks, SIDE, add_short_products, block_count};
use crate::calibration::stats::Refusal;
use crate::quant::kernel::min_max;
use crate::simd::dispatched;
use crate::stream::for_each_on_threads;

/// Rows whose products are summed in floats before they are added in fixed point.
const PIECE: usize = 1024;

/// Statistics of the inputs `[rows, features]` of a layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct InputStats {
    features: usize,
    rows: u64,
    abs_max: Vec<f32>,
    sums: FixedSums,
    squares: FixedSums,
    /// In the order of [`Blocks`].
    gram: FixedSums,
}

/// What is kept of inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detail {
    /// Means, mean squares and maxima of features.
    Features,
    /// The Gram matrix too.
    Gram,
}

/// Most features of which products are summed: their sums take 8 GiB.
const MOST_FEATURES: usize = 1 << 15;

impl InputStats {
    /// The limit, if that is too many features.
    pub(crate) fn too_many(features: usize, detail: Detail) -> Option<u64> {
        (detail == Detail::Gram && features > MOST_FEATURES).then_some(MOST_FEATURES as u64)
    }

    /// Of no rows yet.
    pub(crate) fn new(features: usize, detail: Detail) -> Self {
        let gram = if detail == Detail::Gram { block_count(features) * BLOCK } else { 0 };
        InputStats {
            features,
            rows: 0,
            abs_max: vec![0.0; features],
            sums: FixedSums::zeros(features),
            squares: FixedSums::zeros(features),
            gram: FixedSums::zeros(gram),
        }
    }

    /// Number of rows.
    pub(crate) fn rows(&self) -> u64 {
        self.rows
    }

    /// The largest magnitude of each feature.
    pub(crate) fn abs_max(&self) -> &[f32] {
        &self.abs_max
    }

    /// The mean of each feature.
    pub(crate) fn means(&self) -> Vec<f64> {
        let rows = self.rows.max(1) as f64;
        self.sums.values().map(|sum| sum / rows).collect()
    }

    /// The mean square of each feature.
    pub(crate) fn mean_squares(&self) -> Vec<f64> {
        let rows = self.rows.max(1) as f64;
        self.squares.values().map(|sum| sum / rows).collect()
    }

    /// Adds a batch of rows, one after the other; `threads` threads multiply.
    ///
    /// # Errors
    ///
    /// A value that is not finite, or sums that grow too large.
    pub(crate) fn observe(&mut self, values: &[f32], threads: usize) -> Result<(), Refusal> {
        if !min_max(values).finite {
            return Err(Refusal::NotFinite);
        }
        let features = self.features;
        let side = features.div_ceil(SIDE) * SIDE;
        let mut wide = vec![0f32; PIECE.min(values.len() / features.max(1)) * side];
        for piece in values.chunks(PIECE * features) {
            let rows = piece.len() / features;
            let wide = &mut wide[..rows * side];
            let (mut sums, mut squares) = (vec![0f64; features], vec![0f64; features]);
            for (row, wide) in piece.chunks_exact(features).zip(wide.chunks_exact_mut(side)) {
                wide[..features].copy_from_slice(row);
                add_row(row, &mut sums, &mut squares, &mut self.abs_max);
            }
            self.rows += rows as u64;
            self.check_size()?;
            self.sums.add(&sums);
            self.squares.add(&squares);
            if self.gram.high.is_empty() {
                continue;
            }
            let wide = &*wide;
            let blocks = features.div_ceil(SIDE);
            let numbers = (0..blocks).flat_map(|column| (column..blocks).map(move |row| (row, column)));
            for_each_on_threads(numbers.zip(self.gram.chunks_mut(BLOCK)), threads, |((row, column), (high, low))| {
                let mut products = [0f64; BLOCK];
                add_short_products(wide, side, row * SIDE, column * SIDE, &mut products);
                sums::add(high, low, &products);
            });
        }
        Ok(())
    }

    /// Adds the statistics of other rows.
    ///
    /// # Errors
    ///
    /// Sums that grow too large; numbers of features that differ.
    pub(crate) fn merge(&mut self, other: &InputStats) -> Result<(), Refusal> {
        if self.features != other.features || self.gram.high.len() != other.gram.high.len() {
            return Err(Refusal::Features);
        }
        self.rows += other.rows;
        self.abs_max.iter_mut().zip(&other.abs_max).for_each(|(ours, other)| *ours = ours.max(*other));
        self.check_size()?;
        self.sums.merge(&other.sums);
        self.squares.merge(&other.squares);
        self.gram.merge(&other.gram);
        Ok(())
    }

    fn check_size(&self) -> Result<(), Refusal> {
        let largest = f64::from(self.abs_max.iter().copied().fold(1.0, f32::max));
        if largest * largest * self.rows as f64 >= LARGEST_SUM { Err(Refusal::TooLarge) } else { Ok(()) }
    }

    /// All that is stored of it.
    pub(crate) fn parts(&self) -> InputParts {
        let triangle = |entries: &[i64]| lower_triangle(self.features).map(|(i, j)| entries[Blocks::place(self.features, i, j)]).collect();
        let gram = || FixedSums { high: triangle(&self.gram.high), low: triangle(&self.gram.low) };
        InputParts {
            rows: self.rows,
            abs_max: self.abs_max.clone(),
            sums: self.sums.clone(),
            squares: self.squares.clone(),
            gram: (!self.gram.high.is_empty()).then(gram),
        }
    }

    /// The statistics that have these parts.
    ///
    /// # Errors
    ///
    /// Which part disagrees with the others, and how.
    pub(crate) fn from_parts(parts: InputParts) -> Result<Self, (&'static str, String)> {
        let InputParts { rows, abs_max, sums, squares, gram } = parts;
        let features = abs_max.len();
        if rows == 0 || features == 0 || !abs_max.iter().all(|max| *max >= 0.0 && max.is_finite()) {
            return Err(("abs_max", "expected finite magnitudes of features of a row or more, found others".into()));
        }
        if !sums.is_canonical() || sums.high.len() != features {
            return Err(("sum_low", "expected lower parts below 2^50, one a feature, found others".into()));
        }
        if !squares.is_canonical() || squares.high.len() != features || squares.high.iter().any(|high| *high < 0) {
            return Err(("square_low", "expected sums of squares, one a feature, found others".into()));
        }
        let detail = if gram.is_some() { Detail::Gram } else { Detail::Features };
        let mut stats = InputStats { rows, abs_max, sums, squares, ..InputStats::new(features, detail) };
        stats.check_size().map_err(|refusal| ("abs_max", refusal.to_string()))?;
        if let Some(gram) = gram {
            if !gram.is_canonical() || gram.high.len() != lower_triangle(features).count() {
                return Err(("gram_low", "expected lower parts below 2^50, one a pair of features, found others".into()));
            }
            for ((i, j), (high, low)) in lower_triangle(features).zip(gram.high.iter().zip(&gram.low)) {
                // A diagonal block has both halves.
                for place in [(i, j), (j, i)].into_iter().filter(|(i, j)| i / SIDE >= j / SIDE) {
                    let place = Blocks::place(features, place.0, place.1);
                    (stats.gram.high[place], stats.gram.low[place]) = (*high, *low);
                }
            }
            if (0..features).any(|i| stats.gram.high[Blocks::place(features, i, i)] < 0) {
                return Err(("gram_high", "expected sums of squares, found a negative one".into()));
            }
        }
        Ok(stats)
    }

    /// The Gram matrix `H`, not divided by the number of rows; `None` where it was not asked for.
    pub(crate) fn gram(&self) -> Option<Blocks> {
        (!self.gram.high.is_empty()).then(|| Blocks::from_entries(self.features, self.gram.values().collect()))
    }
}

/// What statistics of inputs consist of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct InputParts {
    pub(crate) rows: u64,
    /// Of each feature.
    pub(crate) abs_max: Vec<f32>,
    /// Of each feature.
    pub(crate) sums: FixedSums,
    /// Of the squares of each feature.
    pub(crate) squares: FixedSums,
    /// Of each pair of features: row by row of the lower triangle.
    pub(crate) gram: Option<FixedSums>,
}

/// Row and column of each entry, row by row.
fn lower_triangle(n: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..n).flat_map(|i| (0..=i).map(move |j| (i, j)))
}

dispatched! {
    /// Adds each value, its square and its magnitude to what is known of its feature.
    pub(crate) fn add_row(row: &[f32], sums: &mut [f64], squares: &mut [f64], abs_max: &mut [f32]) -> () {
        for (((value, sum), square), largest) in row.iter().zip(sums).zip(squares).zip(abs_max) {
            let exact = f64::from(*value);
            *sum += exact;
            *square += exact * exact;
            *largest = largest.max(value.abs());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(rows: usize, features: usize, seed: u32) -> Vec<f32> {
        (0..rows * features).map(|i| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32 / 4e6 - 2.0).collect()
    }

    #[test]
    fn parts_add_up_to_the_whole_whatever_the_threads() {
        let features = 70;
        let batches = [batch(300, features, 1), batch(1, features, 2), batch(1513, features, 3)];
        let mut whole = InputStats::new(features, Detail::Gram);
        batches.iter().for_each(|values| whole.observe(values, 1).unwrap());
        let mut parts = InputStats::new(features, Detail::Gram);
        for values in batches.iter().rev() {
            let mut part = InputStats::new(features, Detail::Gram);
            part.observe(values, 3).unwrap();
            parts.merge(&part).unwrap();
        }
        assert_eq!((&whole.gram, &whole.sums, &whole.abs_max), (&parts.gram, &parts.sums, &parts.abs_max));
        assert_eq!(whole.rows(), 1814);
        assert_eq!(InputStats::from_parts(whole.parts()).unwrap(), whole);
        let gram = whole.gram().unwrap();
        for (i, j) in [(0, 0), (5, 3), (69, 0), (69, 69), (64, 63)] {
            let rows = batches.iter().flat_map(|values| values.chunks(features));
            let expected: f64 = rows.map(|row| f64::from(row[i]) * f64::from(row[j])).sum();
            let size = (gram.get(i, i) * gram.get(j, j)).sqrt();
            assert!((gram.get(i, j) - expected).abs() <= 1e-6 * size, "{i}, {j}");
        }
        let mean: f64 = batches.iter().flat_map(|values| values.chunks(features)).map(|row| f64::from(row[7])).sum::<f64>() / 1814.0;
        assert!((whole.means()[7] - mean).abs() < 1e-9);
    }

    #[test]
    fn what_is_not_finite_or_too_large_is_refused() {
        for value in [f32::NAN, f32::INFINITY, 1e18, 1e38] {
            assert!(InputStats::new(1, Detail::Gram).observe(&[0.0, value], 1).is_err());
        }
    }
}
