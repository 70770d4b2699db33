//! What is kept of values that are gone: enough for every observer to name its range.
//!
//! A summary is a histogram of narrow bins, with the exact mean of each bin, beside the extents of the batches. Observers
//! that want bins of equal width, as those that follow PyTorch or ONNX Runtime, have the narrow ones spread over them
//! ([`Summary::even_counts`]), always in the same way.

use super::Values;
use super::custom::ValueStream;
use crate::quant::params::Range;

/// Values that lie close together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bin {
    /// No value is smaller.
    pub low: f32,
    /// No value is larger.
    pub high: f32,
    /// The mean of the values, exact but for its rounding to f32.
    pub mean: f32,
    /// How many there are; at least one.
    pub count: u64,
}

impl Bin {
    /// The interval that the values are taken to fill evenly: as wide as fits the bin around their mean. Values that are
    /// all equal to one end of the bin are thus found to be so.
    fn spread(&self) -> (f64, f64) {
        let mean = f64::from(self.mean);
        let reach = if self.count == 1 { 0.0 } else { (mean - f64::from(self.low)).min(f64::from(self.high) - mean) };
        (mean - reach, mean + reach)
    }
}

/// Minimum and maximum smoothed over batches, as `moving-average` computes them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Smoothed {
    /// The weight of each new batch.
    pub weight: f32,
    /// The running values; [`Range::EMPTY`] before the first batch.
    pub range: Range,
}

/// What is kept of all batches of a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// Smallest and largest value.
    pub extent: Range,
    /// The mean of the batches' minima, and that of their maxima.
    pub mean_extent: Range,
    /// The moving average, where it was asked for before the first batch.
    pub smoothed: Option<Smoothed>,
    /// All values, in ascending order of bins; bins do not overlap.
    pub bins: Vec<Bin>,
}

impl Summary {
    /// The means of the bins, and the numbers of their values.
    pub fn points(&self) -> (Vec<f32>, Vec<f32>) {
        self.bins.iter().map(|bin| (bin.mean, bin.count as f32)).unzip()
    }

    /// The largest magnitude.
    pub fn largest(&self) -> f32 {
        self.extent.min.abs().max(self.extent.max.abs())
    }

    /// The values counted in `bins` bins of equal width over `low..=high`, which contains them.
    pub fn even_counts(&self, bins: usize, low: f32, high: f32) -> Vec<u64> {
        let (low, high) = (f64::from(low), f64::from(high));
        let mut counts = vec![0; bins];
        let place = |x: f64| ((x - low) / (high - low) * bins as f64).clamp(0.0, bins as f64);
        let cell = |place: f64| (place as usize).min(bins - 1);
        for bin in &self.bins {
            let (from, to) = bin.spread();
            let (from, to) = (place(from), place(to));
            // As many values as fall short of each edge, so that their number is right after rounding, too.
            let mut counted = 0;
            let last = cell(to);
            for (cell, sum) in counts.iter_mut().enumerate().take(last).skip(cell(from)) {
                let share = ((cell + 1) as f64 - from) / (to - from);
                let below = ((bin.count as f64 * share).round() as u64).clamp(counted, bin.count);
                *sum += below - counted;
                counted = below;
            }
            counts[last] += bin.count - counted;
        }
        counts
    }

    /// The bins of the magnitudes of all values, in ascending order.
    pub fn magnitudes(&self) -> Vec<Bin> {
        let magnitude = |bin: &Bin| match *bin {
            bin if bin.high <= 0.0 => Bin { low: -bin.high, high: -bin.low, mean: -bin.mean, count: bin.count },
            bin => bin,
        };
        let mut all: Vec<Bin> = self.bins.iter().map(magnitude).collect();
        all.sort_by(|a, b| a.low.total_cmp(&b.low));
        all.dedup_by(|next, bin| {
            let overlap = next.low < bin.high;
            if overlap {
                let count = bin.count + next.count;
                let weighted = |bin: &Bin| f64::from(bin.mean) * (bin.count as f64 / count as f64);
                *bin = Bin { low: bin.low, high: bin.high.max(next.high), mean: (weighted(bin) + weighted(next)) as f32, count };
            }
            overlap
        });
        all
    }
}

/// The values of a summary, each the mean of its bin, in ascending order.
pub(crate) struct Repeated<'a> {
    bins: &'a [Bin],
    /// The bin that is next, and how many of its values were handed out.
    bin: usize,
    taken: u64,
}

/// Values that [`Repeated`] hands out at a time.
const PIECE: u64 = 1 << 14;

impl<'a> Repeated<'a> {
    pub(crate) fn new(summary: &'a Summary) -> Self {
        Repeated { bins: &summary.bins, bin: 0, taken: 0 }
    }
}

impl ValueStream for Repeated<'_> {
    fn rewind(&mut self) {
        (self.bin, self.taken) = (0, 0);
    }

    fn next(&mut self, values: &mut Vec<f32>) {
        let mut room = PIECE;
        while let Some(bin) = self.bins.get(self.bin).filter(|_| room > 0) {
            let count = room.min(bin.count - self.taken);
            values.extend(std::iter::repeat_n(bin.mean, count as usize));
            room -= count;
            self.taken += count;
            if self.taken == bin.count {
                (self.bin, self.taken) = (self.bin + 1, 0);
            }
        }
    }
}

/// As many values as there were, each the mean of its bin, in ascending order.
impl Values for Summary {
    fn len(&self) -> usize {
        self.bins.iter().map(|bin| bin.count as usize).sum()
    }

    fn for_each_piece(&self, each: &mut dyn FnMut(&[f32])) {
        let (mut all, mut piece) = (Repeated::new(self), Vec::new());
        loop {
            piece.clear();
            all.next(&mut piece);
            if piece.is_empty() {
                break;
            }
            each(&piece);
        }
    }
}

/// The value that a share of all values of `bins` does not exceed, to a fraction of a bin; `bins` ascend.
pub fn value_at(bins: &[Bin], share: f64) -> f32 {
    let (Some(first), Some(last)) = (bins.first(), bins.last()) else { return 0.0 };
    if share <= 0.0 {
        return first.low;
    }
    let wanted = share * bins.iter().map(|bin| bin.count as f64).sum::<f64>();
    let mut below = 0.0;
    for bin in bins.iter().filter(|_| share < 1.0) {
        let count = bin.count as f64;
        if below + count >= wanted {
            let (from, to) = bin.spread();
            return (from + (to - from) * ((wanted - below) / count)) as f32;
        }
        below += count;
    }
    last.high
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(bins: &[(f32, f32, f32, u64)]) -> Summary {
        let bins: Vec<Bin> =
            bins.iter().map(|(low, high, mean, count)| Bin { low: *low, high: *high, mean: *mean, count: *count }).collect();
        let extent = bins.first().zip(bins.last()).map_or(Range::EMPTY, |(first, last)| Range { min: first.low, max: last.high });
        Summary { extent, mean_extent: extent, smoothed: None, bins }
    }

    #[test]
    fn values_are_spread_over_bins_of_equal_width() {
        struct Case {
            bins: &'static [(f32, f32, f32, u64)],
            low: f32,
            high: f32,
            expected: &'static [u64],
        }
        let cases = [
            Case { bins: &[], low: -1.0, high: 1.0, expected: &[0, 0, 0, 0] },
            Case { bins: &[(0.0, 0.0, 0.0, 7)], low: -2.0, high: 2.0, expected: &[0, 0, 7, 0] },
            Case { bins: &[(2.0, 2.0, 2.0, 7)], low: -2.0, high: 2.0, expected: &[0, 0, 0, 7] },
            // Over three bins, a quarter in the first.
            Case { bins: &[(0.5, 2.5, 1.5, 100)], low: 0.0, high: 4.0, expected: &[25, 50, 25, 0] },
            Case { bins: &[(0.5, 2.5, 1.5, 3)], low: 0.0, high: 4.0, expected: &[1, 1, 1, 0] },
            // The mean says that all are equal.
            Case { bins: &[(1.0, 4.0, 1.0, 9)], low: 0.0, high: 4.0, expected: &[0, 9, 0, 0] },
            // A single value is where its mean is.
            Case { bins: &[(0.0, 4.0, 2.5, 1)], low: 0.0, high: 4.0, expected: &[0, 0, 1, 0] },
        ];
        for case in cases {
            assert_eq!(summary(case.bins).even_counts(4, case.low, case.high), case.expected, "{:?}", case.bins);
        }
    }

    #[test]
    fn shares_of_values() {
        let bins = summary(&[(-2.0, -1.0, -1.5, 10), (0.0, 0.0, 0.0, 80), (1.0, 2.0, 1.5, 10)]).bins;
        for (share, expected) in [(0.0, -2.0), (0.05, -1.5), (0.1, -1.0), (0.11, 0.0), (0.9, 0.0), (0.95, 1.5), (0.99, 1.9), (1.0, 2.0)] {
            assert!((value_at(&bins, share) - expected).abs() < 1e-6, "{share}: {} instead of {expected}", value_at(&bins, share));
        }
        assert_eq!(value_at(&[], 0.5), 0.0);
    }

    #[test]
    fn magnitudes_of_both_signs_share_their_bins() {
        let magnitudes = summary(&[(-2.0, -1.0, -1.75, 10), (-0.5, -0.25, -0.3, 2), (0.0, 0.0, 0.0, 5), (1.0, 2.0, 1.25, 30)]).magnitudes();
        let expected = summary(&[(0.0, 0.0, 0.0, 5), (0.25, 0.5, 0.3, 2), (1.0, 2.0, 1.375, 40)]).bins;
        assert_eq!(magnitudes, expected);
    }
}
