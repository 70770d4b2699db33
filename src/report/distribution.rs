//! How values are spread before and after they are quantized, beside the grid of codes that they go to.
//!
//! Long tensors are sampled in evenly spread pieces, always the same ones.

use crate::quant::params::{Params, Range};
use crate::quant::scheme::Grid;
use std::ops;

/// Bins of a histogram.
pub const BINS: usize = 64;

/// Most tensors, and most activations, whose values are counted: those that lose most.
pub const COUNTED: usize = 24;

/// Most values that a histogram counts, about.
const SAMPLED: usize = 1 << 18;

/// Elements that are read at a time; even, for codes of four bits.
const PIECE: usize = 1 << 12;

/// Counts of the values of one tensor or activation.
#[derive(Clone, Debug, PartialEq)]
pub struct Distribution {
    /// Its name.
    pub name: String,
    /// From the first to the last bin.
    pub range: Range,
    /// Counts in equal bins.
    pub before: Vec<u64>,
    /// The same of what the codes stand for; empty where it is not known.
    pub after: Vec<u64>,
    /// Where the codes are.
    pub grid: Option<CodeGrid>,
}

/// What the codes of a tensor stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CodeGrid {
    /// The codes in use.
    pub codes: Grid,
    /// Scale and zero point of the group whose scale is the median.
    pub params: Params,
    /// What the group with the widest range can hold without clipping.
    pub widest: Range,
    /// What the one with the narrowest can.
    pub narrowest: Range,
    /// How many groups there are.
    pub groups: usize,
}

impl CodeGrid {
    /// Of the parameters of all groups; `None` if there is none.
    pub(crate) fn new(params: &[Params], codes: Grid) -> Option<Self> {
        let mut order: Vec<&Params> = params.iter().collect();
        order.sort_by(|a, b| a.scale.total_cmp(&b.scale));
        let (first, last, median) = (order.first()?, order.last()?, order[order.len() / 2]);
        Some(CodeGrid { codes, params: *median, widest: held(last, codes), narrowest: held(first, codes), groups: params.len() })
    }

    /// The value of a code in the group whose scale is the median.
    pub fn value(&self, code: i32) -> f64 {
        f64::from(code - self.params.zero_point) * f64::from(self.params.scale)
    }
}

/// The values of the smallest and the largest code.
fn held(params: &Params, codes: Grid) -> Range {
    let value = |code: i32| (f64::from(code - params.zero_point) * f64::from(params.scale)) as f32;
    Range { min: value(codes.qmin), max: value(codes.qmax) }
}

impl Distribution {
    /// Of a tensor of so many elements. `read` appends the values of some of them before and after; the latter may stay empty.
    pub(crate) fn of(
        name: &str,
        elements: usize,
        grid: Option<CodeGrid>,
        mut read: impl FnMut(ops::Range<usize>, &mut Vec<f32>, &mut Vec<f32>),
    ) -> Self {
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let step = PIECE * elements.div_ceil(SAMPLED).max(1);
        for start in (0..elements).step_by(step) {
            read(start..(start + PIECE).min(elements), &mut before, &mut after);
        }
        let ends = grid.iter().flat_map(|grid| [grid.widest.min, grid.widest.max]);
        let range = extent(before.iter().chain(&after).copied().chain(ends));
        Distribution { name: name.to_owned(), range, before: count(&before, range), after: count(&after, range), grid }
    }

    /// Number of values that were counted.
    pub fn counted(&self) -> u64 {
        self.before.iter().sum()
    }
}

/// From the smallest to the largest of the finite values.
fn extent(values: impl Iterator<Item = f32>) -> Range {
    let mut found = values.filter(|value| value.is_finite());
    let Some(first) = found.next() else { return Range::EMPTY };
    found.fold(Range { min: first, max: first }, |range, value| Range { min: range.min.min(value), max: range.max.max(value) })
}

/// Counts of finite values in equal bins; none of no values.
fn count(values: &[f32], range: Range) -> Vec<u64> {
    if values.is_empty() {
        return Vec::new();
    }
    let mut counts = vec![0; BINS];
    let width = (f64::from(range.max) - f64::from(range.min)).max(f64::MIN_POSITIVE);
    for value in values.iter().filter(|value| value.is_finite()) {
        let place = (f64::from(*value) - f64::from(range.min)) / width * BINS as f64;
        counts[(place as usize).min(BINS - 1)] += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32]) -> Distribution {
        Distribution::of("w", values.len(), None, |elements, before, _| before.extend_from_slice(&values[elements]))
    }

    #[test]
    fn every_value_is_counted_once_whatever_the_values() {
        let cases: &[&[f32]] = &[&[], &[0.0; 3], &[1.5], &[-1.0, 1.0, 0.5], &[f32::MAX, -f32::MAX], &[1e-45, 0.0]];
        for values in cases {
            let found = of(values);
            assert_eq!(found.counted(), values.len() as u64, "{values:?}");
            assert!(found.after.is_empty());
        }
        assert_eq!(of(&[f32::NAN, 1.0, f32::INFINITY]).counted(), 1);
    }

    #[test]
    fn the_grid_is_that_of_the_median_and_the_range_that_of_the_extremes() {
        let params = [3.0, 1.0, 2.0].map(|scale| Params { scale, zero_point: 1 });
        let grid = CodeGrid::new(&params, Grid { qmin: 0, qmax: 3 }).unwrap();
        assert_eq!((grid.widest, grid.narrowest), (Range { min: -3.0, max: 6.0 }, Range { min: -1.0, max: 2.0 }));
        assert_eq!((0..=3).map(|code| grid.value(code)).collect::<Vec<_>>(), [-2.0, 0.0, 2.0, 4.0]);
        assert_eq!(CodeGrid::new(&[], Grid { qmin: 0, qmax: 3 }), None);
    }
}
