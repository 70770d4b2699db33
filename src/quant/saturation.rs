//! Pairs of int8 weights whose products with uint8 activations are added in 16 bits that saturate.
//!
//! Processors without VNNI multiply unsigned by signed bytes with `vpmaddubsw`, which adds two neighbouring products:
//!
//! ```text
//! sum = clamp(a[2i] w[2i] + a[2i + 1] w[2i + 1], -32768, 32767),    0 <= a <= 255,  -128 <= w <= 127
//! ```
//!
//! Weights of opposite signs never reach a limit. For two of one sign 255 · 128 = 32640 fits and 255 · 129 = 32895 does not, so
//! a pair could saturate exactly if `|w[2i] + w[2i + 1]| > 128`. Activations are taken as they are stored, before their zero point
//! is subtracted, and int8 ones after 128 was added. `docs/saturation.md` has which elements of a weight are neighbours, and how
//! that was found out.

use super::metrics::ErrorSums;
use super::params::Params;
use super::scheme::Grid;
use crate::simd::dispatched;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// Largest magnitude of the sum of a pair that cannot saturate.
pub const LARGEST_SUM: i32 = 128;

/// The codes of 7 bits that ONNX Runtime calls a reduced range: no two of them can saturate.
pub const REDUCED: Grid = Grid { qmin: -64, qmax: 64 };

/// Smallest and largest code of an unsigned activation.
pub const ALL_CODES: [i32; 2] = [0, 255];

/// What is done about pairs of weights that could saturate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Saturation {
    /// Nothing: the processors that compute with the result have VNNI, or their kernels do not saturate.
    #[serde(rename = "ignore")]
    Ignore,
    /// Such pairs are counted.
    #[serde(rename = "report")]
    Report,
    /// Such pairs are brought closer to 0, as little as it takes.
    #[serde(rename = "nudge")]
    Nudge,
    /// Weights have codes of 7 bits.
    #[serde(rename = "7bit")]
    SevenBit,
}

/// Every treatment with its name.
pub const SATURATIONS: &[(Saturation, &str)] =
    &[(Saturation::Ignore, "ignore"), (Saturation::Report, "report"), (Saturation::Nudge, "nudge"), (Saturation::SevenBit, "7bit")];

impl Saturation {
    /// The name on the command line.
    pub fn name(self) -> &'static str {
        SATURATIONS.iter().find(|entry| entry.0 == self).expect("SATURATIONS lists every variant").1
    }
}

impl std::str::FromStr for Saturation {
    type Err = crate::error::Error;

    fn from_str(text: &str) -> crate::error::Result<Self> {
        crate::method::look_up("saturation", SATURATIONS, |entry| entry.1, text).map(|entry| entry.0)
    }
}

/// Whether two neighbouring weights could saturate with some activation codes.
pub fn could_saturate(pair: [i32; 2]) -> bool {
    could_saturate_within(pair, ALL_CODES)
}

/// Whether two neighbouring weights could saturate with activation codes of this range, both ends included.
pub fn could_saturate_within(pair: [i32; 2], [low, high]: [i32; 2]) -> bool {
    let largest: i32 = pair.iter().map(|weight| (weight * low).max(weight * high)).sum();
    let smallest: i32 = pair.iter().map(|weight| (weight * low).min(weight * high)).sum();
    largest > i32::from(i16::MAX) || smallest < i32::from(i16::MIN)
}

/// The codes nearest to `targets` that cannot saturate and are no farther from 0 than those of `pair`:
///
/// ```text
/// minimize  sum of weights[i] * (code[i] - targets[i])^2,    |code[0] + code[1]| <= 128
/// ```
///
/// Targets are in units of codes, unrounded; weights are squared scales. A pair that cannot saturate stays as it is.
pub fn nudge(pair: [i32; 2], targets: [f64; 2], weights: [f64; 2]) -> [i32; 2] {
    let sum = pair[0] + pair[1];
    if sum.abs() <= LARGEST_SUM {
        return pair;
    }
    // The minimum is on the edge: convex in the first code, of which the integer nearest to the real minimum is the best.
    let wanted = LARGEST_SUM * sum.signum();
    let best = (weights[0] * targets[0] + weights[1] * (f64::from(wanted) - targets[1])) / (weights[0] + weights[1]);
    let [one_end, other_end] = [pair[0], wanted - pair[1]];
    let ends = [one_end.min(other_end), one_end.max(other_end)];
    let best = if best.is_finite() { best.round_ties_even() } else { f64::from(pair[0]) };
    let first = best.clamp(f64::from(ends[0]), f64::from(ends[1])) as i32;
    [first, wanted - first]
}

/// Which elements of a weight are multiplied side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// Those at `2i` and `2i + 1` along an axis.
    Axis {
        /// Product of the dimensions before the axis.
        outer: usize,
        /// Length of the axis.
        len: usize,
        /// Product of the dimensions after the axis.
        inner: usize,
    },
    /// The same pairs in every row of so many elements, by their places in it.
    Rows {
        /// Elements of a row.
        row: usize,
        /// Places in a row.
        pairs: Arc<[[usize; 2]]>,
    },
}

impl Pairing {
    /// Neighbours along `axis` of a tensor of `shape`.
    pub fn along(shape: &[usize], axis: usize) -> Self {
        let (outer, inner) = (shape[..axis].iter().product(), shape[axis + 1..].iter().product());
        Pairing::Axis { outer, len: shape[axis], inner }
    }

    /// Neighbours in a convolution of `[out, in / groups, positions]`, which sums over all channels of the first position,
    /// then over those of the second, and so on.
    pub fn convolution([rows, channels, positions]: [usize; 3]) -> Self {
        match (channels, positions) {
            (1, _) => Pairing::Axis { outer: rows, len: positions, inner: 1 },
            _ if channels % 2 == 0 || positions == 1 => Pairing::Axis { outer: rows, len: channels, inner: positions },
            _ => {
                let place = |k: usize| k % channels * positions + k / channels;
                let row = channels * positions;
                Pairing::Rows { row, pairs: (0..row / 2).map(|i| [place(2 * i), place(2 * i + 1)]).collect() }
            }
        }
    }

    /// Elements of the smallest run that holds whole pairs, wherever it begins at a multiple of its length.
    pub fn unit(&self) -> usize {
        match *self {
            Pairing::Axis { outer, len, inner } if outer == 1 || len % 2 == 0 => 2 * inner,
            Pairing::Axis { len, inner, .. } => len * inner,
            Pairing::Rows { row, .. } => row,
        }
    }

    /// Pairs among `elements`, which begin and end at a multiple of [`Pairing::unit`] or at the tensor's end: calls
    /// `each(first, second, step, count)` for `count` pairs, whose elements follow at distances of `step`.
    pub fn for_each_run(&self, elements: Range<usize>, mut each: impl FnMut(usize, usize, usize, usize)) {
        match self {
            Pairing::Axis { len, inner, .. } => {
                let (row, mut at) = (len * inner, elements.start);
                while at < elements.end {
                    let end = (at / row * row + row).min(elements.end);
                    if *inner == 1 {
                        each(at, at + 1, 2, (end - at) / 2);
                    } else {
                        (at..end).step_by(2 * inner).filter(|at| at + inner < end).for_each(|at| each(at, at + inner, 1, *inner));
                    }
                    at = end;
                }
            }
            Pairing::Rows { row, pairs } => {
                for start in elements.step_by(*row) {
                    pairs.iter().for_each(|[first, second]| each(start + first, start + second, 1, 1));
                }
            }
        }
    }

    /// Number of pairs of a tensor of so many elements.
    pub fn count(&self, elements: usize) -> u64 {
        match self {
            Pairing::Axis { outer, len, inner } => (outer * (len / 2) * inner) as u64,
            Pairing::Rows { row, pairs } => (elements / row * pairs.len()) as u64,
        }
    }
}

/// What was found of pairs of a weight, and what was done about them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SaturationSums {
    /// Pairs that could saturate with some activation codes, before anything was done about it.
    pub possible: u64,
    /// Of these, pairs that could with the activation codes that were observed, where that is known.
    pub within_range: u64,
    /// Elements that were changed.
    pub changed: u64,
    /// What that added to the sum of squared errors, in squared real units.
    pub extra_error: f64,
}

impl SaturationSums {
    /// Adds what was found of other pairs.
    pub fn merge(&mut self, other: &SaturationSums) {
        self.possible += other.possible;
        self.within_range += other.within_range;
        self.changed += other.changed;
        self.extra_error += other.extra_error;
    }
}

/// How the pairs of one weight are gone through.
#[derive(Clone, Debug)]
pub struct PairCheck {
    /// Which elements are pairs: more than one way where several operators take the weight.
    pub pairings: Vec<Pairing>,
    /// Whether pairs that could saturate are changed.
    pub nudges: bool,
    /// The range of activation codes that were observed, as kernels take them, where it is known.
    pub observed: Option<[i32; 2]>,
    /// Sums that saturate on samples, and sums that were looked at, where that was counted.
    pub on_samples: Option<[u64; 2]>,
}

impl PairCheck {
    /// Elements of the smallest run that holds whole pairs of every pairing, wherever it begins at a multiple of its length.
    pub fn unit(&self) -> usize {
        self.pairings.iter().map(Pairing::unit).fold(1, least_common_multiple)
    }

    /// Number of pairs of a tensor of so many elements.
    pub fn count(&self, elements: usize) -> u64 {
        self.pairings.iter().map(|pairing| pairing.count(elements)).sum()
    }

    /// Goes through the pairs among `elements` of a tensor, whose int8 codes and values these are, and changes codes if that
    /// is asked for; `params` are those of an element. What changes is added to `errors`.
    ///
    /// Codes only move towards 0, so that what one pairing changes leaves the pairs of another as harmless as they were.
    pub fn apply(
        &self,
        elements: Range<usize>,
        values: &[f32],
        codes: &mut [u8],
        params: impl Fn(usize) -> Params,
        errors: &mut ErrorSums,
    ) -> SaturationSums {
        let (mut found, start) = (SaturationSums::default(), elements.start);
        for pairing in &self.pairings {
            pairing.for_each_run(elements.clone(), |first, second, step, count| {
                found.possible += u64::from(possible(codes, first - start, second - start, step, count));
            });
        }
        match self.observed {
            None => {}
            Some(ALL_CODES) => found.within_range = found.possible,
            Some(range) => self.for_each_possible(&elements, codes, |pair, _, _| {
                found.within_range += u64::from(could_saturate_within(pair, range));
            }),
        }
        if !self.nudges || found.possible == 0 {
            return found;
        }
        let before = codes.to_vec();
        self.for_each_possible(&elements, codes, |pair, places, codes| {
            let params = places.map(|place| params(start + place));
            let scales = params.map(|params| f64::from(params.scale));
            let target = |i: usize| f64::from(values[places[i]]) / scales[i] + f64::from(params[i].zero_point);
            let nudged = nudge(pair, [target(0), target(1)], scales.map(|scale| scale * scale));
            places.iter().zip(nudged).for_each(|(place, code)| codes[*place] = code as u8);
        });
        for place in (0..codes.len()).filter(|place| codes[*place] != before[*place]) {
            let (params, value) = (params(start + place), f64::from(values[place]));
            let error = |code: u8| value - f64::from(i32::from(code as i8) - params.zero_point) * f64::from(params.scale);
            let [former, new] = [error(before[place]), error(codes[place])];
            found.changed += 1;
            found.extra_error += new * new - former * former;
            errors.max_error = errors.max_error.max(new.abs());
        }
        errors.error += found.extra_error;
        found
    }

    /// Calls `each(pair, places, codes)` for each pair among `elements` that could saturate as `codes` are then.
    fn for_each_possible(&self, elements: &Range<usize>, codes: &mut [u8], mut each: impl FnMut([i32; 2], [usize; 2], &mut [u8])) {
        for pairing in &self.pairings {
            pairing.for_each_run(elements.clone(), |first, second, step, count| {
                let (first, second) = (first - elements.start, second - elements.start);
                if possible(codes, first, second, step, count) == 0 {
                    return;
                }
                for i in 0..count {
                    let places = [first + i * step, second + i * step];
                    let pair = places.map(|place| i32::from(codes[place] as i8));
                    if could_saturate(pair) {
                        each(pair, places, codes);
                    }
                }
            });
        }
    }
}

dispatched! {
    /// Pairs of a run that could saturate.
    fn possible(codes: &[u8], first: usize, second: usize, step: usize, count: usize) -> u32 {
        let could = |a: u8, b: u8| u32::from((i16::from(a as i8) + i16::from(b as i8)).abs() > LARGEST_SUM as i16);
        match step {
            1 => codes[first..first + count].iter().zip(&codes[second..second + count]).map(|(a, b)| could(*a, *b)).sum(),
            _ => codes[first..first + 2 * count].chunks_exact(2).map(|pair| could(pair[0], pair[1])).sum(),
        }
    }
}

fn least_common_multiple(a: usize, b: usize) -> usize {
    let (mut divisor, mut rest) = (a, b);
    while rest != 0 {
        (divisor, rest) = (rest, divisor % rest);
    }
    a / divisor.max(1) * b
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `vpmaddubsw` does, of one pair.
    fn saturating_sum(activations: [i32; 2], pair: [i32; 2]) -> i32 {
        let exact = activations[0] * pair[0] + activations[1] * pair[1];
        exact.clamp(i32::from(i16::MIN), i32::from(i16::MAX))
    }

    fn all_pairs() -> impl Iterator<Item = [i32; 2]> {
        (-128..=127).flat_map(|a| (-128..=127).map(move |b| [a, b]))
    }

    #[test]
    fn a_pair_could_saturate_if_some_activations_make_it() {
        // The sum is linear in each activation: its extremes are at the corners.
        for range in [[0, 255], [0, 128], [100, 200], [128, 255], [0, 0], [255, 255]] {
            let corners = range.iter().flat_map(|a| range.iter().map(move |b| [*a, *b])).collect::<Vec<_>>();
            for pair in all_pairs() {
                let exact = |[a, b]: [i32; 2]| a * pair[0] + b * pair[1];
                let expected = corners.iter().any(|corner| saturating_sum(*corner, pair) != exact(*corner));
                assert_eq!(could_saturate_within(pair, range), expected, "{pair:?} {range:?}");
                if range == ALL_CODES {
                    assert_eq!(could_saturate(pair), expected);
                    assert_eq!(expected, (pair[0] + pair[1]).abs() > LARGEST_SUM, "{pair:?}");
                }
            }
        }
    }

    #[test]
    fn no_pair_of_the_reduced_range_could_saturate() {
        let codes = REDUCED.qmin..=REDUCED.qmax;
        assert!(codes.clone().all(|a| codes.clone().all(|b| !could_saturate([a, b]))));
    }

    /// Every pair of weights, each with values that round to it from below, from above and exactly.
    #[test]
    fn nudging_is_the_least_change_after_which_no_pair_could_saturate() {
        let mut changed = 0;
        for pair in all_pairs() {
            for (offsets, weights) in
                [([0.0, 0.0], [1.0, 1.0]), ([0.4, -0.3], [1.0, 1.0]), ([-0.5, 0.45], [0.25, 0.25]), ([0.1, -0.2], [4.0, 1.0])]
            {
                let targets = [f64::from(pair[0]) + offsets[0], f64::from(pair[1]) + offsets[1]];
                let found = nudge(pair, targets, weights);
                assert!(!could_saturate(found), "{pair:?} {found:?}");
                if !could_saturate(pair) {
                    assert_eq!(found, pair);
                    continue;
                }
                changed += 1;
                let sign = (pair[0] + pair[1]).signum();
                let cost = |codes: [i32; 2]| (0..2).map(|i| weights[i] * (f64::from(codes[i]) - targets[i]).powi(2)).sum::<f64>();
                // All pairs that could not saturate and are no farther from 0.
                let towards_zero = |code: i32| (0..=code.abs()).map(move |size| size * sign);
                let others = towards_zero(pair[0]).flat_map(|a| towards_zero(pair[1]).map(move |b| [a, b]));
                let least = others.filter(|pair| !could_saturate(*pair)).map(cost).fold(f64::INFINITY, f64::min);
                assert!(cost(found) <= least * (1.0 + 1e-12), "{pair:?} {offsets:?}: {found:?} costs {}, {least} would do", cost(found));
                assert!((0..2).all(|i| found[i] * sign >= 0 && found[i].abs() <= pair[i].abs()), "{pair:?} {found:?}");
            }
        }
        assert_eq!(changed, 4 * all_pairs().filter(|pair| could_saturate(*pair)).count());
    }

    #[test]
    fn one_step_is_taken_from_the_code_that_was_rounded_up() {
        assert_eq!(nudge([65, 64], [64.6, 64.4], [1.0; 2]), [64, 64]);
        assert_eq!(nudge([65, 64], [65.4, 63.6], [1.0; 2]), [65, 63]);
        assert_eq!(nudge([-70, -59], [-70.2, -58.9], [1.0; 2]), [-70, -58]);
    }

    fn pairs_of(pairing: &Pairing, elements: Range<usize>) -> Vec<[usize; 2]> {
        let mut found = Vec::new();
        pairing.for_each_run(elements, |first, second, step, count| {
            found.extend((0..count).map(|i| [first + i * step, second + i * step]));
        });
        found.sort();
        found
    }

    /// Pairs of a weight that is multiplied in the order in which `place` gives its elements, row by row.
    fn in_order(rows: usize, len: usize, place: impl Fn(usize, usize) -> usize) -> Vec<[usize; 2]> {
        let mut pairs: Vec<[usize; 2]> = (0..rows)
            .flat_map(|row| (0..len / 2).map(move |i| (row, i)))
            .map(|(row, i)| [place(row, 2 * i), place(row, 2 * i + 1)])
            .collect();
        pairs.sort();
        pairs
    }

    #[test]
    fn pairs_are_those_of_the_order_that_kernels_sum_in() {
        // [K, N] of a MatMul, [N, K] of a Gemm with transB.
        for [k, n] in [[4, 3], [5, 3], [1, 4], [2, 1], [7, 1]] {
            let pairing = Pairing::along(&[k, n], 0);
            assert_eq!(pairs_of(&pairing, 0..k * n), in_order(n, k, |column, row| row * n + column), "MatMul {k} {n}");
            let pairing = Pairing::along(&[n, k], 1);
            assert_eq!(pairs_of(&pairing, 0..k * n), in_order(n, k, |row, feature| row * k + feature), "Gemm {n} {k}");
        }
        // The columns of an image in channels-last order.
        for [rows, channels, positions] in [[2, 4, 9], [2, 3, 4], [3, 1, 9], [2, 5, 1], [2, 3, 3], [1, 7, 2]] {
            let row = channels * positions;
            let place = |out: usize, k: usize| out * row + k % channels * positions + k / channels;
            let pairing = Pairing::convolution([rows, channels, positions]);
            assert_eq!(pairs_of(&pairing, 0..rows * row), in_order(rows, row, place), "Conv {rows} {channels} {positions}");
        }
    }

    #[test]
    fn pieces_of_whole_units_have_all_pairs() {
        let shapes: [&[usize]; 5] = [&[6, 4], &[7, 5], &[3, 4, 5], &[3, 5, 2], &[2, 3, 1]];
        let axes = shapes.iter().flat_map(|shape| (0..shape.len()).map(move |axis| (*shape, Pairing::along(shape, axis))));
        let convolutions = [[4, 3, 5], [4, 4, 3], [4, 1, 3]].map(|[m, c, p]| (vec![m, c, p], Pairing::convolution([m, c, p])));
        let all = axes.map(|(shape, pairing)| (shape.to_vec(), pairing)).chain(convolutions);
        for (shape, pairing) in all {
            let elements: usize = shape.iter().product();
            let whole = pairs_of(&pairing, 0..elements);
            assert_eq!(whole.len() as u64, pairing.count(elements), "{shape:?} {pairing:?}");
            for units in 1..4 {
                let step = units * pairing.unit();
                let mut pieces: Vec<[usize; 2]> =
                    (0..elements).step_by(step).flat_map(|start| pairs_of(&pairing, start..(start + step).min(elements))).collect();
                pieces.sort();
                assert_eq!(pieces, whole, "{shape:?} {pairing:?} by {step}");
            }
        }
    }

    #[test]
    fn a_check_counts_and_changes_what_it_says() {
        let params = Params { scale: 0.5, zero_point: 0 };
        let values: Vec<f32> = (0..60).map(|i| ((i * 53 % 150) as f32 - 20.0) * 0.5 + 0.1).collect();
        let stored: Vec<u8> = values.iter().map(|value| (value / 0.5).round_ties_even() as i8 as u8).collect();
        let shape = [6, 10];
        let check = |pairings: Vec<Pairing>, nudges: bool| PairCheck { pairings, nudges, observed: Some([0, 200]), on_samples: None };
        let both = || vec![Pairing::along(&shape, 0), Pairing::along(&shape, 1)];
        for pairings in [vec![Pairing::along(&shape, 0)], vec![Pairing::along(&shape, 1)], both()] {
            let before = ErrorSums::exact(&values, &stored, true, params);
            let (mut codes, mut errors) = (stored.clone(), before);
            let counted = check(pairings.clone(), false).apply(0..60, &values, &mut codes, |_| params, &mut errors);
            assert_eq!((&codes, &errors), (&stored, &before), "counting changes nothing");
            assert!(counted.possible > counted.within_range && counted.within_range > 0, "{counted:?}");
            let nudging = check(pairings.clone(), true);
            let found = nudging.apply(0..60, &values, &mut codes, |_| params, &mut errors);
            let differing = codes.iter().zip(&stored).filter(|(a, b)| a != b).count() as u64;
            assert_eq!((found.possible, found.within_range, found.changed), (counted.possible, counted.within_range, differing));
            assert!(differing > 0);
            let exact = ErrorSums::exact(&values, &codes, true, params);
            assert!((errors.error - exact.error).abs() < 1e-9 * exact.error);
            assert!((before.error + found.extra_error - exact.error).abs() < 1e-9 * exact.error);
            assert_eq!(errors.max_error, exact.max_error);
            let mut again = codes.clone();
            let rest = nudging.apply(0..60, &values, &mut again, |_| params, &mut errors);
            assert_eq!((rest, again), (SaturationSums::default(), codes.clone()), "nothing is left");
            // Two rows at a time, or a few columns: the same codes.
            let mut pieces = stored.clone();
            for (start, codes) in (0..).step_by(20).zip(pieces.chunks_mut(20)) {
                let elements = start..start + codes.len();
                nudging.apply(elements.clone(), &values[elements], codes, |_| params, &mut ErrorSums::default());
            }
            assert_eq!(pieces, codes);
        }
    }
}
