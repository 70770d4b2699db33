//! `histogram`: the range with the least L2 error of a histogram, narrowed bin by bin from both ends.
//!
//! 2048 bins over the extent; their content is taken to be uniform and to be quantized to 256 levels, whatever the
//! code type. Starting from all bins, the side with fewer values in its next bins is moved inwards as long as the
//! error falls. As `HistogramObserver._non_linear_param_search` of
//! [`torch.ao.quantization`](https://github.com/pytorch/pytorch/blob/main/torch/ao/quantization/observer.py), which
//! computes in f32 with f64 steps; the order of operations here is the same, so the range is the same to the bit.
//! ([`super::mse`] finds better ranges: this search stops at the first increase.)

mod norm;

use super::summary::Summary;
use super::{Batch, Observer, ObserverEntry, Values};
use crate::quant::params::Range;
use norm::{Norm, torch_sum};

pub(super) const ENTRY: ObserverEntry = ObserverEntry {
    name: "histogram",
    parameter: None,
    summary: "PyTorch's search for the least L2 error of a histogram",
    build: |_, _| Box::new(TorchHistogram { seen: None }),
    from_summary: |_, summary, _| Some(of_summary(summary)),
    joint: None,
    extent_only: false,
    looks_at_inputs: false,
};

const BINS: usize = 2048;

/// Bins that an old histogram's bins are divided into before they are put into wider ones.
const UPSAMPLING: usize = 16;

/// A count in f32 stops here, as adding 1 changes nothing.
const LARGEST_COUNT: u32 = 1 << 24;

/// By how much of all values the search moves its targets at a time.
const STEP: f64 = 1e-5;

struct TorchHistogram {
    /// The extent and the counts of bins.
    seen: Option<(Range, Vec<f32>)>,
}

impl Observer for TorchHistogram {
    fn observe(&mut self, Batch { extent, values }: Batch<'_>) {
        self.seen = Some(match self.seen.take() {
            None => (extent, count(values, extent)),
            Some((old, counts)) => {
                let both = Range { min: old.min.min(extent.min), max: old.max.max(extent.max) };
                let mut merged = count(values, both);
                let counts = if both == old { counts } else { rebin(&counts, old, both) };
                merged.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
                (both, merged)
            }
        });
    }

    fn range(&self) -> Range {
        match &self.seen {
            None => Range::EMPTY,
            Some((extent, counts)) if (extent.max - extent.min).is_finite() => search(counts, *extent),
            Some((extent, _)) => *extent,
        }
    }
}

fn of_summary(summary: &Summary) -> Range {
    let extent @ Range { min, max } = summary.extent;
    if !(max - min).is_finite() {
        return extent;
    }
    let (low, high) = ends(extent);
    let counts: Vec<f32> = summary.even_counts(BINS, low, high).into_iter().map(|count| count as f32).collect();
    search(&counts, extent)
}

/// The ends of the bins, of which a constant has some, too.
fn ends(Range { min, max }: Range) -> (f32, f32) {
    if min == max { (min - 1.0, max + 1.0) } else { (min, max) }
}

/// `torch.histc`: values in even bins over `range`, which contains them.
fn count(values: &dyn Values, range: Range) -> Vec<f32> {
    let (low, high) = ends(range);
    let mut counts = vec![0u32; BINS];
    values.for_each_piece(&mut |piece| {
        for value in piece {
            let bin = ((value - low) * BINS as f32 / (high - low)) as usize;
            let count = &mut counts[bin.min(BINS - 1)];
            *count = (*count + 1).min(LARGEST_COUNT);
        }
    });
    counts.into_iter().map(|count| count as f32).collect()
}

/// `HistogramObserver._combine_histograms`: the old counts in the bins of a wider range.
fn rebin(counts: &[f32], old: Range, new: Range) -> Vec<f32> {
    if old.min == old.max {
        let total = torch_sum(counts);
        return count(&[old.min].as_slice(), new).into_iter().map(|count| count * total).collect();
    }
    let middle = 0.5 * ((old.max - old.min) / (BINS * UPSAMPLING) as f32);
    let edges: Vec<f32> = (0..=BINS).map(|i| linspace(new, BINS + 1, i)).collect();
    let mut rebinned = vec![0.0; BINS];
    for i in 0..BINS * UPSAMPLING {
        let center = linspace(old, BINS * UPSAMPLING + 1, i) + middle;
        let bin = edges.partition_point(|edge| *edge <= center).clamp(1, BINS) - 1;
        rebinned[bin] += counts[i / UPSAMPLING] / UPSAMPLING as f32;
    }
    rebinned
}

/// Element `i` of `torch.linspace` with `n` elements, as compiled for AVX2: from the nearer end, fused.
fn linspace(Range { min, max }: Range, n: usize, i: usize) -> f32 {
    let step = (max - min) / (n - 1) as f32;
    if i < n / 2 { step.mul_add(i as f32, min) } else { (-step).mul_add((n - 1 - i) as f32, max) }
}

/// `HistogramObserver._non_linear_param_search`.
fn search(counts: &[f32], Range { min, max }: Range) -> Range {
    let bin_width = (max - min) / BINS as f32;
    let total = f64::from(torch_sum(counts));
    let mut running = 0f64;
    let sums: Vec<f32> = counts
        .iter()
        .map(|count| {
            running += f64::from(*count);
            running as f32
        })
        .collect();
    let mut norm = Norm::new(counts, min, max);
    let (mut low_share, mut high_share) = (0.0, 1.0);
    let (mut start, mut end) = (0, BINS - 1);
    let mut least = f64::INFINITY;
    while low_share < high_share {
        let (next_low, next_high) = (low_share + STEP, high_share - STEP);
        let (low_count, high_count) = ((next_low * total) as f32, (next_high * total) as f32);
        let (mut left, mut right) = (start, end);
        while left < end && sums[left] < low_count {
            left += 1;
        }
        while right > start && sums[right] > high_count {
            right -= 1;
        }
        let next = if left - start > end - right {
            low_share = next_low;
            (left, end)
        } else {
            high_share = next_high;
            (start, right)
        };
        if next == (start, end) {
            continue;
        }
        let error = norm.error(next.0, next.1);
        if error > least {
            break;
        }
        least = error;
        (start, end) = next;
    }
    Range { min: min + bin_width * start as f32, max: min + bin_width * (end + 1) as f32 }
}
