//! What is kept of one activation.

use super::exact::{self, ExtentSums, Row};
use super::histogram::{self, Histogram, Tally};
use crate::error::Result;
use crate::observers::summary::{Bin, Smoothed, Summary};
use crate::observers::{ObserverChoice, Target, smooth};
use crate::quant::kernel::{Extent, min_max};
use crate::quant::params::Range;

/// Most values of one activation: beyond, sums might not fit their integers.
const MOST_VALUES: u64 = 1 << 38;

/// Why values or statistics are not taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// A value is NaN or infinite.
    #[error("values: expected finite numbers, found NaN or Inf")]
    NotFinite,
    /// There would be too many values.
    #[error("values: expected at most 2^38, found more")]
    TooMany,
    /// Running values depend on the order of samples.
    #[error("moving average: expected statistics that can be merged, found running values, which depend on the order of samples")]
    OrderMatters,
    /// Sums of products would not fit.
    #[error("values: expected squares whose sum is below 2^64, found larger ones")]
    TooLarge,
    /// Rows of other lengths, or other things kept of them.
    #[error("inputs: expected statistics of the same features, found others")]
    Features,
}

/// Counts, extent, sums and histogram of one activation.
///
/// But for the moving average, it is the same whatever the order of the values and however they were divided and
/// merged: it is made of integers.
#[derive(Clone)]
pub struct ActivationStats {
    values: u64,
    batches: u64,
    extent: Extent,
    extents: ExtentSums,
    histogram: Histogram,
    smoothed: Option<Smoothed>,
}

impl Default for ActivationStats {
    fn default() -> Self {
        ActivationStats::new()
    }
}

impl ActivationStats {
    /// Of no values.
    pub fn new() -> Self {
        ActivationStats {
            values: 0,
            batches: 0,
            extent: Extent::NONE,
            extents: ExtentSums::default(),
            histogram: Histogram::default(),
            smoothed: None,
        }
    }

    /// Of no values, for the observer `moving-average` with this weight for new batches
    /// ([`ObserverChoice::averaging_weight`]): such statistics cannot be merged.
    pub fn with_moving_average(weight: f32) -> Self {
        ActivationStats { smoothed: Some(Smoothed { weight, range: Range::EMPTY }), ..ActivationStats::new() }
    }

    /// Takes in one batch: the values of one sample, all at once. A batch without values counts for nothing.
    ///
    /// # Errors
    ///
    /// [`Refusal::NotFinite`], [`Refusal::TooMany`]; nothing has been taken in then.
    pub fn observe(&mut self, values: &[f32]) -> Result<(), Refusal> {
        if values.is_empty() {
            return Ok(());
        }
        let extent = min_max(values);
        if !extent.finite {
            return Err(Refusal::NotFinite);
        }
        if values.len() as u64 > MOST_VALUES - self.values {
            return Err(Refusal::TooMany);
        }
        // One zero: which of both a minimum is depends on the order of values.
        let range = Range { min: extent.range.min + 0.0, max: extent.range.max + 0.0 };
        if let Some(smoothed) = &mut self.smoothed {
            smoothed.range = smooth(smoothed.weight, (self.batches > 0).then_some(smoothed.range), range);
        }
        self.extent = self.extent.merge(Extent { range, finite: true });
        self.extents.add(range);
        self.histogram.count(values);
        self.values += values.len() as u64;
        self.batches += 1;
        Ok(())
    }

    /// Adds what is kept of other values of the same activation.
    ///
    /// # Errors
    ///
    /// [`Refusal::OrderMatters`] if either has a moving average, [`Refusal::TooMany`]; nothing has changed then.
    pub fn merge(&mut self, other: &ActivationStats) -> Result<(), Refusal> {
        if self.smoothed.is_some() || other.smoothed.is_some() {
            return Err(Refusal::OrderMatters);
        }
        if other.values > MOST_VALUES - self.values {
            return Err(Refusal::TooMany);
        }
        self.extent = self.extent.merge(other.extent);
        self.extents.add_all(&other.extents.rows());
        self.histogram.add_all(&other.histogram.tallies());
        self.values += other.values;
        self.batches += other.batches;
        Ok(())
    }

    /// Number of values.
    pub fn values(&self) -> u64 {
        self.values
    }

    /// Number of batches that had values.
    pub fn batches(&self) -> u64 {
        self.batches
    }

    /// Smallest and largest value; [`Range::EMPTY`] if there was none.
    pub fn extent(&self) -> Range {
        self.extent.range()
    }

    /// The running minimum and maximum, where they were asked for.
    pub fn moving_average(&self) -> Option<Smoothed> {
        self.smoothed
    }

    /// The sum of all values, exact but for the rounding of some thousand f64 additions.
    pub fn sum(&self) -> f64 {
        self.histogram.tallies().iter().map(|(number, tally)| histogram::sum_of(*number, *tally)).sum()
    }

    /// The sum of the squares of all values, each taken to be the mean of its bin: at most 2^-18 / 4 below the true one,
    /// relative to it.
    pub fn sum_of_squares(&self) -> f64 {
        let square = |(number, tally): &(i32, Tally)| {
            let sum = histogram::sum_of(*number, *tally);
            sum * (sum / tally.count as f64)
        };
        self.histogram.tallies().iter().map(square).sum()
    }

    /// What observers choose ranges from.
    pub fn summary(&self) -> Summary {
        let extent = self.extent();
        let bin = |(number, tally): (i32, Tally)| {
            let mean = (histogram::sum_of(number, tally) / tally.count as f64) as f32;
            let (low, high) = match (number, histogram::magnitudes_of(number)) {
                (0, _) => (0.0, 0.0),
                (1.., (near, far)) => (near, far),
                (_, (near, far)) => (-far, -near),
            };
            // The bins of the largest magnitudes end at infinity; no bin goes beyond the extent.
            Bin { low: low.max(extent.min).min(mean), high: high.min(extent.max).max(mean), mean, count: tally.count }
        };
        Summary {
            extent,
            mean_extent: self.extents.mean(self.batches),
            smoothed: self.smoothed.filter(|_| self.batches > 0),
            bins: self.histogram.tallies().into_iter().map(bin).collect(),
        }
    }

    /// The range that `observer` chooses for `target`; [`Range::EMPTY`] if there was no value. For several observers, ask
    /// each for the range of one [`ActivationStats::summary`].
    ///
    /// # Errors
    ///
    /// As [`ObserverChoice::range_of`].
    pub fn range(&self, observer: &ObserverChoice, target: &Target) -> Result<Range> {
        observer.range_of(&self.summary(), target)
    }

    /// Memory that it takes, in bytes.
    pub fn memory(&self) -> usize {
        size_of::<Self>() - size_of::<Histogram>() + self.histogram.memory()
    }

    /// All that is stored of it.
    pub(super) fn parts(&self) -> Parts {
        Parts {
            values: self.values,
            batches: self.batches,
            extent: self.extent(),
            extents: self.extents.rows(),
            tallies: self.histogram.tallies(),
            smoothed: self.smoothed,
        }
    }

    /// The statistics that have these parts.
    ///
    /// # Errors
    ///
    /// Which part disagrees with the others, and how.
    pub(super) fn from_parts(parts: Parts) -> Result<Self, (&'static str, String)> {
        parts.check()?;
        let Parts { values, batches, extent, extents, tallies, smoothed } = parts;
        let mut stats = ActivationStats { values, batches, smoothed, ..ActivationStats::new() };
        if values > 0 {
            stats.extent.range = extent;
        }
        stats.extents.add_all(&extents);
        stats.histogram.add_all(&tallies);
        Ok(stats)
    }
}

/// What statistics of an activation consist of.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parts {
    pub(super) values: u64,
    pub(super) batches: u64,
    pub(super) extent: Range,
    pub(super) extents: Vec<Row>,
    /// By ascending number of bin.
    pub(super) tallies: Vec<(i32, Tally)>,
    pub(super) smoothed: Option<Smoothed>,
}

impl Parts {
    /// Whether there are values that have these parts, as far as can be told.
    fn check(&self) -> Result<(), (&'static str, String)> {
        let Parts { values, batches, extent, .. } = *self;
        if values > MOST_VALUES || batches > values || (batches == 0) != (values == 0) {
            return Err(("totals", format!("expected at most 2^38 values, and batches of one value or more, found {values} in {batches}")));
        }
        let canonical = |end: f32| end.is_finite() && (end != 0.0 || end.is_sign_positive());
        if !(extent.min <= extent.max && canonical(extent.min) && canonical(extent.max)) || values == 0 && extent != Range::EMPTY {
            return Err(("extent", format!("expected a finite minimum and maximum, found {} and {}", extent.min, extent.max)));
        }
        self.check_tallies()?;
        exact::check_rows(&self.extents, batches).map_err(|message| ("extents", message))?;
        let mut sums = ExtentSums::default();
        sums.add_all(&self.extents);
        let mean = sums.mean(batches);
        if values > 0 && !(extent.min <= mean.min && mean.min <= mean.max && mean.max <= extent.max) || values == 0 && mean != Range::EMPTY
        {
            return Err(("extents", format!("expected means within the extent, found {} and {}", mean.min, mean.max)));
        }
        if let Some(Smoothed { weight, range }) = self.smoothed {
            let finite = range.min.is_finite() && range.max.is_finite();
            if !(0.0..=1.0).contains(&weight) || !finite || values == 0 && range != Range::EMPTY {
                return Err(("moving_average", format!("expected a weight from 0 to 1 and finite ends, found {weight} and {range:?}")));
            }
        }
        Ok(())
    }

    fn check_tallies(&self) -> Result<(), (&'static str, String)> {
        let mut counted = 0u64;
        for (number, Tally { count, remainders }) in &self.tallies {
            if number.unsigned_abs() >= histogram::FIRST_INFINITE as u32 {
                return Err(("bins", format!("expected bins of finite numbers, found {number}")));
            }
            let fits = *count > 0 && *count <= MOST_VALUES && *remainders <= count * histogram::LARGEST_REMAINDER;
            if !fits || *number == 0 && *remainders != 0 {
                return Err((
                    "counts",
                    format!("bin {number}: expected a count and remainders that fit it, found {count} and {remainders}"),
                ));
            }
            counted = counted.saturating_add(*count);
        }
        if let Some(pair) = self.tallies.windows(2).find(|pair| pair[0].0 >= pair[1].0) {
            return Err(("bins", format!("expected ascending numbers, found {} after {}", pair[1].0, pair[0].0)));
        }
        if counted != self.values {
            return Err(("counts", format!("expected the {} values of the totals, found {counted}", self.values)));
        }
        let ends = self.tallies.first().zip(self.tallies.last()).map(|(first, last)| (first.0, last.0));
        let of_extent = (self.values > 0).then(|| {
            let number = |end: f32| histogram::number_of(end.to_bits());
            (number(self.extent.min), number(self.extent.max))
        });
        if ends != of_extent {
            return Err((
                "bins",
                format!("expected the ends of the extent in the first and last, found {ends:?} instead of {of_extent:?}"),
            ));
        }
        Ok(())
    }
}
