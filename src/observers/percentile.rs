//! `percentile[:P]`: the range that holds `P` percent of the values.
//!
//! ```text
//! symmetric: histogram of |x| over min |x| ..= max |x|, threshold t = the edge where the share reaches P;  -t, t
//! affine:    histogram of x over -max |x| ..= max |x|, (100 - P) / 2 percent cut at each end
//! ```
//!
//! Either is then clipped to what was observed. Of a summary, the shares are found within its narrower bins; of batches,
//! with 2048 bins, as `HistogramCollector` of
//! [`onnxruntime.quantization.calibrate`](https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/python/tools/quantization/calibrate.py),
//! whose default is 99.999. Whether the range is symmetric follows from the scheme.

use super::numpy_histogram::{Histogram, MOST_BINS, SymmetricHistogram, add_counts, histogram, histogram_between};
use super::summary::{Summary, value_at};
use super::{Batch, Observer, ObserverEntry, Parameter, Target, Values};
use crate::quant::params::Range;

pub(super) const ENTRY: ObserverEntry = ObserverEntry {
    name: "percentile",
    parameter: Some(Parameter { name: "P", default: 99.99, min: 50.0, max: 100.0, is_whole: false }),
    summary: "the range that holds P percent of the values",
    build: |percent, target| Box::new(Percentile { percent, symmetric: target.rule.symmetric, seen: None }),
    from_summary: |percent, summary, target| Some(of_summary(percent, summary, target)),
    joint: None,
    extent_only: false,
    looks_at_inputs: false,
};

const BINS: usize = 2048;

struct Percentile {
    percent: f64,
    symmetric: bool,
    seen: Option<(Range, Counts)>,
}

enum Counts {
    Magnitudes(Histogram),
    Values(SymmetricHistogram),
    /// The extent is beyond f32: there is no histogram to speak of.
    TooWide,
}

impl Observer for Percentile {
    fn observe(&mut self, Batch { extent, values }: Batch<'_>) {
        let largest = extent.min.abs().max(extent.max.abs());
        self.seen = Some(match self.seen.take() {
            None if !(2.0 * largest).is_finite() => (extent, Counts::TooWide),
            None if self.symmetric => (extent, Counts::Magnitudes(histogram(values, f32::abs, BINS, smallest_magnitude(values), largest))),
            None => (extent, Counts::Values(SymmetricHistogram::new(values, largest, BINS, MOST_BINS))),
            Some((seen, counts)) => {
                let counts = match counts {
                    _ if !(2.0 * largest).is_finite() => Counts::TooWide,
                    Counts::Magnitudes(old) => Counts::Magnitudes(add_magnitudes(old, values, largest)),
                    Counts::Values(mut old) => {
                        old.add(values, largest);
                        Counts::Values(old)
                    }
                    Counts::TooWide => Counts::TooWide,
                };
                (Range { min: seen.min.min(extent.min), max: seen.max.max(extent.max) }, counts)
            }
        });
    }

    fn range(&self) -> Range {
        let Some((seen, counts)) = &self.seen else { return Range::EMPTY };
        let range = match counts {
            Counts::Magnitudes(histogram) => {
                let threshold = edge_at(histogram, self.percent / 100.0);
                Range { min: -threshold, max: threshold }
            }
            Counts::Values(SymmetricHistogram { histogram, .. }) => {
                let cut = (100.0 - self.percent) / 200.0;
                Range { min: edge_at(histogram, cut), max: edge_at(histogram, 1.0 - cut) }
            }
            Counts::TooWide => *seen,
        };
        Range { min: range.min.max(seen.min), max: range.max.min(seen.max) }
    }
}

fn of_summary(percent: f64, summary: &Summary, target: &Target) -> Range {
    let range = if target.rule.symmetric {
        let threshold = value_at(&summary.magnitudes(), percent / 100.0);
        Range { min: -threshold, max: threshold }
    } else {
        let cut = (100.0 - percent) / 200.0;
        Range { min: value_at(&summary.bins, cut), max: value_at(&summary.bins, 1.0 - cut) }
    };
    Range { min: range.min.max(summary.extent.min), max: range.max.min(summary.extent.max) }
}

fn smallest_magnitude(values: &dyn Values) -> f32 {
    let mut smallest = f32::INFINITY;
    values.for_each_piece(&mut |piece| smallest = piece.iter().fold(smallest, |least, x| least.min(x.abs())));
    smallest
}

/// The left edge of the bin in which the share of values reaches `share`.
fn edge_at(histogram: &Histogram, share: f64) -> f32 {
    let total = histogram.counts.iter().sum::<u64>() as f64;
    let mut reached = 0.0;
    let bin = histogram.counts.iter().position(|count| {
        reached += *count as f64 / total;
        reached >= share
    });
    histogram.edges[bin.unwrap_or(histogram.counts.len())]
}

/// `HistogramCollector.collect_absolute_value`: bins of the first width are appended until they reach `largest`.
fn add_magnitudes(mut old: Histogram, values: &dyn Values, largest: f32) -> Histogram {
    let last = old.edges[old.edges.len() - 1];
    if largest > last {
        while (largest - last) / (old.edges[1] - old.edges[0]) + old.counts.len() as f32 > MOST_BINS as f32 {
            old = halve(old);
        }
        let (last, width) = (old.edges[old.edges.len() - 1], old.edges[1] - old.edges[0]);
        old.edges.extend(arange(last + width, largest + width, width));
    }
    let mut merged = histogram_between(values, f32::abs, old.edges);
    add_counts(&mut merged.counts, &old.counts);
    merged
}

/// Merges pairs of bins, after adding an empty one at the end if their number is odd.
fn halve(Histogram { mut counts, mut edges }: Histogram) -> Histogram {
    if !counts.len().is_multiple_of(2) {
        let end = edges[edges.len() - 1];
        edges.push(end + (end - edges[edges.len() - 2]));
        counts.push(0);
    }
    Histogram { counts: counts.chunks(2).map(|pair| pair.iter().sum()).collect(), edges: edges.into_iter().step_by(2).collect() }
}

/// `numpy.arange` in f32: the step is the difference of the first two elements.
fn arange(start: f32, stop: f32, step: f32) -> Vec<f32> {
    let length = f64::from((stop - start) / step).ceil().max(0.0) as usize;
    let delta = (start + step) - start;
    (0..length).map(|i| if i == 1 { start + step } else { start + i as f32 * delta }).collect()
}
