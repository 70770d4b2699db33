//! `entropy[:BINS]`: the range whose 128 levels tell least apart from the histogram of the values.
//!
//! Of the ranges symmetric about 0 that hold 64 to `BINS / 2` bins on either side, the one with the least
//! Kullback-Leibler divergence between
//!
//! ```text
//! p = the bins inside, those outside added to the first and last
//! q = the bins inside averaged in 128 groups, each average truncated to an integer, in place of p's filled bins
//! KL(p, q) = sum(p * log(p / q)), both smoothed by 1e-4 where they are 0 and normalized, in f32
//! ```
//!
//! As `HistogramCollector.compute_entropy` of
//! [`onnxruntime.quantization.calibrate`](https://github.com/microsoft/onnxruntime/blob/main/onnxruntime/python/tools/quantization/calibrate.py),
//! to the bit with a correctly rounded logarithm. Its default of 128 bins leaves one candidate, the whole range, so
//! that it is min-max; the default here is 2048. Made for activations with `BINS` well below the number of values; for
//! a channel of a few thousand weights it costs milliseconds.

use super::numpy_histogram::{Histogram, SymmetricHistogram, histogram};
use super::summary::Summary;
use super::{Batch, Observer, ObserverEntry, Parameter};
use crate::quant::params::Range;

pub(super) const ENTRY: ObserverEntry = ObserverEntry {
    name: "entropy",
    parameter: Some(Parameter { name: "BINS", default: 2048.0, min: 128.0, max: 8192.0, is_whole: true }),
    summary: "the range with the least Kullback-Leibler divergence, of a histogram of BINS",
    build: |bins, _| Box::new(Entropy { bins: bins as usize, seen: None }),
    from_summary: |bins, summary, _| Some(of_summary(bins as usize, summary)),
    joint: None,
    extent_only: false,
    looks_at_inputs: false,
};

/// Levels that a range is thought to be quantized to, whatever the code type.
const LEVELS: usize = 128;

/// Bins that batches of growing extent may lead to; the search takes time in proportion to the square.
const MOST_BINS: usize = 16_384;

/// What 0 becomes when distributions are smoothed.
const SMOOTHING: f64 = 1e-4;

struct Entropy {
    bins: usize,
    /// The extent and, if it is within f32, the histogram.
    seen: Option<(Range, Option<SymmetricHistogram>)>,
}

impl Observer for Entropy {
    fn observe(&mut self, Batch { extent, values }: Batch<'_>) {
        let largest = extent.min.abs().max(extent.max.abs());
        let counted = (2.0 * largest).is_finite();
        self.seen = Some(match self.seen.take() {
            None => (extent, counted.then(|| SymmetricHistogram::new(values, largest, self.bins, MOST_BINS))),
            Some((seen, mut counts)) => {
                if !counted {
                    counts = None;
                }
                if let Some(counts) = &mut counts {
                    counts.add(values, largest);
                }
                (Range { min: seen.min.min(extent.min), max: seen.max.max(extent.max) }, counts)
            }
        });
    }

    fn range(&self) -> Range {
        match &self.seen {
            None => Range::EMPTY,
            Some((seen, None)) => *seen,
            Some((seen, Some(counts))) => {
                let range = least_divergence(&counts.histogram);
                Range { min: range.min.max(seen.min), max: range.max.min(seen.max) }
            }
        }
    }
}

fn of_summary(bins: usize, summary: &Summary) -> Range {
    let (extent, largest) = (summary.extent, summary.largest());
    if !(2.0 * largest).is_finite() {
        return extent;
    }
    let empty = histogram(&[0.0; 0].as_slice(), |x| x, bins, -largest, largest);
    let (low, high) = (empty.edges[0], empty.edges[bins]);
    let range = least_divergence(&Histogram { counts: summary.even_counts(bins, low, high), ..empty });
    Range { min: range.min.max(extent.min), max: range.max.min(extent.max) }
}

fn least_divergence(Histogram { counts, edges }: &Histogram) -> Range {
    let (bins, middle) = (counts.len(), counts.len() / 2);
    if !edges.is_sorted_by(|a, b| a < b) {
        // So narrow that f32 cannot tell its bins apart, which is an error in the reference.
        return Range { min: edges[0], max: edges[bins] };
    }
    let mut candidate = Candidate::default();
    let mut best = (f32::INFINITY, None);
    for reach in LEVELS / 2..=middle {
        let (start, end) = (middle - reach, (middle + reach + 1).min(bins));
        let range = Range { min: edges[start], max: edges[end.min(bins)] };
        let divergence = candidate.divergence(counts, start, end);
        if divergence < best.0 || best.1.is_none() {
            best = (divergence, Some(range));
        }
    }
    best.1.unwrap_or(Range { min: edges[0], max: edges[bins] })
}

/// Buffers for the distributions of one candidate, and logarithms already computed.
struct Candidate {
    p: Vec<u64>,
    q: Vec<u64>,
    smooth_p: Vec<f32>,
    smooth_q: Vec<f32>,
    terms: Vec<f32>,
    logarithms: Vec<(u32, f32)>,
}

impl Default for Candidate {
    fn default() -> Self {
        let logarithms = vec![(1f32.to_bits(), 0.0); 4096];
        Candidate { p: vec![], q: vec![], smooth_p: vec![], smooth_q: vec![], terms: vec![], logarithms }
    }
}

impl Candidate {
    /// The divergence of the bins `start..end`; infinite where the reference has no answer.
    fn divergence(&mut self, counts: &[u64], start: usize, end: usize) -> f32 {
        let inside = &counts[start..end];
        let width = inside.len() / LEVELS;
        self.p.clear();
        self.p.extend_from_slice(inside);
        self.p[0] += counts[..start].iter().sum::<u64>();
        *self.p.last_mut().expect("a candidate has 128 bins or more") += counts[end..].iter().sum::<u64>();
        self.q.clear();
        self.q.resize(inside.len(), 0);
        for level in 0..LEVELS {
            let bins = level * width..(level + 1) * width;
            let last = if level == LEVELS - 1 { inside.len() } else { bins.end };
            let filled = self.p[bins.clone()].iter().filter(|count| **count != 0).count();
            if filled != 0 {
                let sum: u64 = inside[bins.start..last].iter().sum();
                self.q[bins].fill((sum as f64 / filled as f64) as u64);
            }
        }
        if !(smooth(&self.p, &mut self.smooth_p) && smooth(&self.q, &mut self.smooth_q)) {
            return f32::INFINITY;
        }
        let (sum_p, sum_q) = (pairwise_sum(&self.smooth_p), pairwise_sum(&self.smooth_q));
        self.terms.clear();
        for (p, q) in self.smooth_p.iter().zip(&self.smooth_q) {
            let (p, q) = (p / sum_p, q / sum_q);
            let known = &mut self.logarithms[slot(p / q)];
            if known.0 != (p / q).to_bits() {
                *known = ((p / q).to_bits(), f64::from(p / q).ln() as f32);
            }
            self.terms.push(if p > 0.0 && q > 0.0 { p * known.1 } else { f32::INFINITY });
        }
        pairwise_sum(&self.terms)
    }
}

fn slot(ratio: f32) -> usize {
    (ratio.to_bits().wrapping_mul(0x9e37_79b1) >> 20) as usize
}

/// Takes from filled bins what it gives to empty ones; `false` if there is not enough to take.
fn smooth(counts: &[u64], smooth: &mut Vec<f32>) -> bool {
    let empty = counts.iter().filter(|count| **count == 0).count();
    let filled = counts.len() - empty;
    let taken = SMOOTHING * empty as f64 / filled as f64;
    if filled == 0 || taken >= 1.0 {
        return false;
    }
    smooth.clear();
    smooth.extend(counts.iter().map(|count| if *count == 0 { SMOOTHING as f32 } else { *count as f32 - taken as f32 }));
    true
}

/// NumPy's `add.reduce` for f32: eight running sums up to 128 elements, halves beyond.
pub(super) fn pairwise_sum(values: &[f32]) -> f32 {
    let n = values.len();
    if n < 8 {
        return values.iter().fold(-0.0, |sum, value| sum + value);
    }
    if n > 128 {
        let half = n / 2 / 8 * 8;
        return pairwise_sum(&values[..half]) + pairwise_sum(&values[half..]);
    }
    let (chunks, rest) = values.as_chunks::<8>();
    let mut r = chunks[0];
    for chunk in &chunks[1..] {
        for i in 0..8 {
            r[i] += chunk[i];
        }
    }
    let sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    rest.iter().fold(sum, |sum, value| sum + value)
}
