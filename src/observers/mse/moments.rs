//! Counts and sums of values in fine bins: what `mse` keeps of values that are too many to keep.
//!
//! Bins cover `-span..span` evenly, `span` a power of two, and grow by merging pairs, which is exact: the result does
//! not depend on how values are divided into batches, up to the rounding of sums.

use crate::observers::Values;
use crate::quant::params::Range;

/// Bins; with 8-bit codes 16 or more to a code. 96 KiB in all.
const BINS: usize = 8192;

pub(super) struct Moments {
    span: f32,
    counts: Vec<u32>,
    sums: Vec<f64>,
    extent: Range,
}

impl Moments {
    /// Without values, ready for those of `extent`.
    pub(super) fn new(extent: Range) -> Self {
        Moments { span: span_of(extent), counts: vec![0; BINS], sums: vec![0.0; BINS], extent }
    }

    pub(super) fn extent(&self) -> Range {
        self.extent
    }

    pub(super) fn add(&mut self, extent: Range, values: &dyn Values) {
        self.extent = Range { min: self.extent.min.min(extent.min), max: self.extent.max.max(extent.max) };
        while self.span < span_of(extent) {
            self.double();
        }
        let factor = BINS as f32 / 2.0 / self.span;
        values.for_each_piece(&mut |piece| {
            for value in piece {
                let bin = ((value * factor + BINS as f32 / 2.0) as usize).min(BINS - 1);
                self.counts[bin] = self.counts[bin].saturating_add(1);
                self.sums[bin] += f64::from(*value);
            }
        });
    }

    fn double(&mut self) {
        let (mut counts, mut sums) = (vec![0u32; BINS], vec![0.0; BINS]);
        for bin in 0..BINS {
            let merged = BINS / 4 + bin / 2;
            counts[merged] = counts[merged].saturating_add(self.counts[bin]);
            sums[merged] += self.sums[bin];
        }
        (self.counts, self.sums, self.span) = (counts, sums, 2.0 * self.span);
    }

    /// The mean and the number of values of each bin that has any.
    pub(super) fn points(&self) -> (Vec<f32>, Vec<f32>) {
        let filled = self.counts.iter().zip(&self.sums).filter(|(count, _)| **count > 0);
        filled.map(|(count, sum)| ((sum / f64::from(*count)) as f32, *count as f32)).unzip()
    }
}

/// The power of two above the magnitude of both ends.
fn span_of(extent: Range) -> f32 {
    let magnitude = (-extent.min).max(extent.max).clamp(1e-30, 1e38);
    let power = f32::from_bits(magnitude.to_bits() & 0x7f80_0000);
    2.0 * power
}
