//! Sums of floats that are exact, and so do not depend on the order of what is added.
//!
//! An f32 is an integer of 24 bits times a power of two. Integers are added up for each exponent:
//!
//! ```text
//! x = mantissa * 2^(exponent - 150)       sum = sum over exponents of 2^(exponent - 150) * (sum of mantissas)
//! ```

use crate::quant::params::Range;
use std::collections::BTreeMap;

/// Bits of a mantissa, with the one that is not stored.
const MANTISSA: i64 = (1 << 24) - 1;

/// The sums of the minima and of the maxima of batches.
#[derive(Clone, Debug, Default)]
pub(super) struct ExtentSums {
    /// Sums of mantissas by exponent.
    sums: BTreeMap<u8, [i64; 2]>,
}

/// One exponent of [`ExtentSums`]: the exponent, the sum of the mantissas of minima, that of maxima.
pub(super) type Row = [i64; 3];

impl ExtentSums {
    /// Adds the extent of a batch; below 2^38 batches in all.
    pub(super) fn add(&mut self, extent: Range) {
        for (end, value) in [extent.min, extent.max].into_iter().enumerate() {
            let (exponent, mantissa) = split(value);
            self.sums.entry(exponent).or_default()[end] += mantissa;
        }
    }

    pub(super) fn add_all(&mut self, rows: &[Row]) {
        for [exponent, minima, maxima] in rows {
            let sums = self.sums.entry(*exponent as u8).or_default();
            *sums = [sums[0] + minima, sums[1] + maxima];
        }
    }

    /// All that is not 0, in ascending order of exponents.
    pub(super) fn rows(&self) -> Vec<Row> {
        let rows = self.sums.iter().filter(|(_, sums)| **sums != [0, 0]);
        rows.map(|(exponent, sums)| [i64::from(*exponent), sums[0], sums[1]]).collect()
    }

    /// The means over `batches`, rounded to f32.
    pub(super) fn mean(&self, batches: u64) -> Range {
        let end = |end: usize| {
            let sum: f64 = self.sums.iter().rev().map(|(exponent, sums)| sums[end] as f64 * unit(*exponent)).sum();
            (sum / batches.max(1) as f64) as f32
        };
        Range { min: end(0), max: end(1) }
    }
}

/// What is wrong with rows that were read, for `batches`.
pub(super) fn check_rows(rows: &[Row], batches: u64) -> Result<(), String> {
    let most = i64::try_from(batches).unwrap_or(i64::MAX).saturating_mul(MANTISSA);
    let mut last = 0;
    for row @ [exponent, minima, maxima] in rows {
        if !(last + 1..255).contains(exponent) {
            return Err(format!("expected ascending exponents from 1 to 254, found {exponent} after {last}"));
        }
        if [*minima, *maxima] == [0, 0] || !(-most..=most).contains(minima) || !(-most..=most).contains(maxima) {
            return Err(format!("expected sums of {batches} mantissas, found {row:?}"));
        }
        last = *exponent;
    }
    Ok(())
}

/// Exponent and mantissa with its sign.
fn split(value: f32) -> (u8, i64) {
    let bits = value.to_bits();
    let (exponent, fraction) = (bits >> 23 & 0xff, i64::from(bits & ((1 << 23) - 1)));
    let mantissa = if exponent == 0 { fraction } else { fraction | 1 << 23 };
    (exponent.max(1) as u8, if value < 0.0 { -mantissa } else { mantissa })
}

/// The value of a mantissa's lowest bit: `2^(exponent - 150)`.
pub(super) fn unit(exponent: u8) -> f64 {
    f64::from_bits((u64::from(exponent) + 1023 - 150) << 52)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_number_make_it_up() {
        for value in [0.0, -0.0, 1.0, -1.5, f32::MAX, f32::MIN, 1e-45, -1e-40, f32::MIN_POSITIVE] {
            let (exponent, mantissa) = split(value);
            assert_eq!(mantissa as f64 * unit(exponent), f64::from(value));
        }
    }

    #[test]
    fn sums_do_not_depend_on_the_order() {
        let extents = [(-1.0, 3e38), (-1e-3, 1e-30), (-3e38, 7.25), (0.0, 0.1)].map(|(min, max)| Range { min, max });
        let mut forwards = ExtentSums::default();
        extents.iter().for_each(|extent| forwards.add(*extent));
        let mut parts = [ExtentSums::default(), ExtentSums::default()];
        extents.iter().rev().enumerate().for_each(|(i, extent)| parts[i % 2].add(*extent));
        let mut backwards = ExtentSums::default();
        parts.iter().for_each(|part| backwards.add_all(&part.rows()));
        assert_eq!(forwards.rows(), backwards.rows());
        assert_eq!(check_rows(&forwards.rows(), 4), Ok(()));
        assert_eq!(forwards.mean(4), Range { min: -7.5e37, max: 7.5e37 });
    }

    #[test]
    fn what_cancels_leaves_nothing() {
        let mut sums = ExtentSums::default();
        sums.add(Range { min: -1.5, max: 1.5 });
        sums.add(Range { min: 1.5, max: 1.5 });
        assert_eq!(sums.rows(), [[127, 0, 3 << 23]]);
        assert_eq!(sums.mean(2), Range { min: 0.0, max: 1.5 });
        assert!(check_rows(&[[127, 0, 0]], 2).is_err() && check_rows(&[[127, 1, 1], [127, 1, 1]], 2).is_err());
        assert!(check_rows(&[[127, 1 << 30, 0]], 2).is_err() && check_rows(&[[255, 1, 1]], 2).is_err());
    }
}
