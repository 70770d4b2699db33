//! Sums of floats in fixed point, which are exact and so do not depend on how what is added was divided.
//!
//! A number is `high * 4 + low * 2^-48` with `0 <= low < 2^50`; what is smaller than 2^-48 is dropped from every number that is
//! added.

use crate::simd::dispatched;

/// Bits of `low`.
const LOW_BITS: u32 = 50;

/// The value of the lowest bit of `high`.
const HIGH_UNIT: f64 = 4.0;

/// The value of the lowest bit of `low`: `HIGH_UNIT * 2^-LOW_BITS`.
const LOW_UNIT: f64 = HIGH_UNIT / (1u64 << LOW_BITS) as f64;

/// Below this magnitude sums neither overflow nor lose bits of `high`.
pub(crate) const LARGEST_SUM: f64 = HIGH_UNIT * (1u64 << 62) as f64;

/// Sums side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FixedSums {
    pub(crate) high: Vec<i64>,
    pub(crate) low: Vec<i64>,
}

impl FixedSums {
    /// So many sums, all 0.
    pub(crate) fn zeros(len: usize) -> Self {
        FixedSums { high: vec![0; len], low: vec![0; len] }
    }

    /// Adds one number to each sum.
    pub(crate) fn add(&mut self, values: &[f64]) {
        add(&mut self.high, &mut self.low, values);
    }

    /// Adds the sums of other numbers.
    pub(crate) fn merge(&mut self, other: &FixedSums) {
        let sums = self.high.iter_mut().zip(&mut self.low);
        for ((high, low), (other_high, other_low)) in sums.zip(other.high.iter().zip(&other.low)) {
            carry(high, low, *other_high, *other_low);
        }
    }

    /// The sums, rounded to f64.
    pub(crate) fn values(&self) -> impl Iterator<Item = f64> {
        self.high.iter().zip(&self.low).map(|(high, low)| *high as f64 * HIGH_UNIT + *low as f64 * LOW_UNIT)
    }

    /// High and low parts of consecutive sums, `len` at a time.
    pub(super) fn chunks_mut(&mut self, len: usize) -> impl Iterator<Item = (&mut [i64], &mut [i64])> + Send {
        self.high.chunks_exact_mut(len).zip(self.low.chunks_exact_mut(len))
    }

    /// Whether low parts are within their bounds, as they are in all sums of this type.
    pub(super) fn is_canonical(&self) -> bool {
        self.high.len() == self.low.len() && self.low.iter().all(|low| (0..1 << LOW_BITS).contains(low))
    }
}

dispatched! {
    /// Adds one number to each sum; magnitudes are below [`LARGEST_SUM`].
    pub(crate) fn add(high: &mut [i64], low: &mut [i64], values: &[f64]) -> () {
        for ((high, low), value) in high.iter_mut().zip(low).zip(values) {
            let whole = (value / HIGH_UNIT).floor();
            // Exact: both are multiples of the value's lowest bit, and the difference is below HIGH_UNIT.
            let rest = value - whole * HIGH_UNIT;
            carry(high, low, whole as i64, (rest / LOW_UNIT) as i64);
        }
    }
}

#[inline(always)]
fn carry(high: &mut i64, low: &mut i64, add_high: i64, add_low: i64) {
    let sum = *low + add_low;
    *high = high.wrapping_add(add_high).wrapping_add(sum >> LOW_BITS);
    *low = sum & ((1 << LOW_BITS) - 1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_exact_and_do_not_depend_on_the_order() {
        let numbers = [1.5, -3.25e9, 2f64.powi(-40), -2f64.powi(-40), 7e15, 0.0, -0.1, 1e-20, -7e15, 3.25e9];
        let mut forwards = FixedSums::zeros(1);
        numbers.iter().for_each(|number| forwards.add(&[*number]));
        let (mut odd, mut even) = (FixedSums::zeros(1), FixedSums::zeros(1));
        numbers.iter().rev().enumerate().for_each(|(i, number)| [&mut odd, &mut even][i % 2].add(&[*number]));
        odd.merge(&even);
        assert_eq!(forwards, odd);
        assert!(forwards.is_canonical());
        let sum = forwards.values().next().unwrap();
        assert!((sum - 1.4).abs() <= 2.0 * LOW_UNIT, "{sum}");
    }
}
