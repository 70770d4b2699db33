//! Histograms as `numpy.histogram` counts them for f32, to the bit: the ground of ONNX Runtime's calibration.
//!
//! ```text
//! edge(i) = i * ((hi - lo) / bins) + lo, the last one hi
//! bin(x)  = trunc((x - lo) / (hi - lo) * bins), moved by one where x lies across an edge
//! ```
//!
//! Source: [`numpy/lib/_histograms_impl.py`](https://github.com/numpy/numpy/blob/main/numpy/lib/_histograms_impl.py).

use super::Values;

/// Bins that growing histograms may have; beyond, pairs are merged, where the reference would exhaust memory.
pub(super) const MOST_BINS: usize = 1 << 20;

/// Counts of values between edges, of which there is one more.
#[derive(Clone, Debug)]
pub(super) struct Histogram {
    pub(super) counts: Vec<u64>,
    pub(super) edges: Vec<f32>,
}

/// Counts `map(value)` in `bins` even bins over `low..=high`; values outside are not counted.
pub(super) fn histogram(values: &dyn Values, map: fn(f32) -> f32, bins: usize, low: f32, high: f32) -> Histogram {
    let (low, high) = if low == high { (low - 0.5, high + 0.5) } else { (low, high) };
    let step = (high - low) / bins as f32;
    let mut edges: Vec<f32> = (0..=bins).map(|i| i as f32 * step + low).collect();
    edges[bins] = high;
    let mut counts = vec![0; bins];
    values.for_each_piece(&mut |piece| {
        for x in piece.iter().copied().map(map).filter(|x| (low..=high).contains(x)) {
            let mut bin = (((x - low) / (high - low) * bins as f32) as usize).min(bins - 1);
            if x < edges[bin] {
                bin = bin.saturating_sub(1);
            }
            if x >= edges[bin + 1] && bin != bins - 1 {
                bin += 1;
            }
            counts[bin] += 1;
        }
    });
    Histogram { counts, edges }
}

/// Counts `map(value)` between `edges`, which ascend; the last bin includes its end.
pub(super) fn histogram_between(values: &dyn Values, map: fn(f32) -> f32, edges: Vec<f32>) -> Histogram {
    let bins = edges.len() - 1;
    let mut counts = vec![0; bins];
    values.for_each_piece(&mut |piece| {
        for x in piece.iter().copied().map(map).filter(|x| (edges[0]..=edges[bins]).contains(x)) {
            counts[edges.partition_point(|edge| *edge <= x).clamp(1, bins) - 1] += 1;
        }
    });
    Histogram { counts, edges }
}

/// A histogram of values over `-threshold..=threshold` that grows by whole bins at both ends, as
/// `HistogramCollector.collect_value` and `merge_histogram` of `onnxruntime.quantization.calibrate`.
pub(super) struct SymmetricHistogram {
    pub(super) histogram: Histogram,
    threshold: f32,
    most_bins: usize,
}

impl SymmetricHistogram {
    pub(super) fn new(values: &dyn Values, threshold: f32, bins: usize, most_bins: usize) -> Self {
        SymmetricHistogram { histogram: histogram(values, |x| x, bins, -threshold, threshold), threshold, most_bins }
    }

    /// Adds a batch whose largest magnitude is `threshold`.
    pub(super) fn add(&mut self, values: &dyn Values, threshold: f32) {
        let same = |x| x;
        let mut bins = self.histogram.counts.len();
        if threshold <= self.threshold {
            let batch = histogram(values, same, bins, -self.threshold, self.threshold);
            add_counts(&mut self.histogram.counts, &batch.counts);
        } else if self.threshold == 0.0 {
            let batch = histogram(values, same, bins, -threshold, threshold);
            add_counts(&mut self.histogram.counts, &batch.counts);
            (self.histogram.edges, self.threshold) = (batch.edges, threshold);
        } else {
            let grown = |bins: usize, old: f32| {
                let stride = 2.0 * old / bins as f32;
                (floor_divide(threshold - old, stride) + 1.0, stride)
            };
            while grown(bins, self.threshold).0 * 2.0 + bins as f32 > self.most_bins as f32 {
                self.halve();
                bins = self.histogram.counts.len();
            }
            let (added, stride) = grown(bins, self.threshold);
            let (more, threshold) = (added as usize, added * stride + self.threshold);
            let mut batch = histogram(values, same, bins + 2 * more, -threshold, threshold);
            add_counts(&mut batch.counts[more..more + bins], &self.histogram.counts);
            (self.histogram, self.threshold) = (batch, threshold);
        }
    }
}

impl SymmetricHistogram {
    /// Merges pairs of bins, with 0 still at an edge: after adding an empty bin at both ends if need be.
    fn halve(&mut self) {
        let counts = &mut self.histogram.counts;
        if !counts.len().is_multiple_of(4) {
            self.threshold += 2.0 * self.threshold / counts.len() as f32;
            counts.insert(0, 0);
            counts.push(0);
        }
        *counts = counts.chunks(2).map(|pair| pair.iter().sum()).collect();
    }
}

pub(super) fn add_counts(to: &mut [u64], counts: &[u64]) {
    to.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
}

/// `numpy.floor_divide` of positive f32.
fn floor_divide(a: f32, b: f32) -> f32 {
    let quotient = (a - a % b) / b;
    let floor = quotient.floor();
    if quotient - floor > 0.5 { floor + 1.0 } else { floor }
}
