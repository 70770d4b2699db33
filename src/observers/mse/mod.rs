//! `mse`: the range whose codes come closest to the values in the sense of least squares.
//!
//! ```text
//! minimize over scale s and zero point z:   f(s, z) = sum((x - s * clamp(round(x / s), qmin - z, qmax - z))^2)
//! ```
//!
//! `f` is continuous in `s` and a parabola between any two values `|x| / (k + 1/2)` at which a code changes, with
//! hundreds of local minima in a row of a few thousand values. Three searches share the work:
//!
//! - [`sweep`], for up to 512 values: visits every parabola, so the optimum is exact.
//! - [`fine`], for rows of 8-bit codes: a grid as fine as `f` is rough, restricted to where clipping may pay.
//! - [`wide`], for everything else: a grid over the whole interval, on the values or on a histogram of them.
//!
//! The best candidates are then compared with each other and with min-max on the values themselves, with the scale
//! that [`ParamRule::choose_params`] makes of the range, so the choice is never worse than min-max. The scale may be
//! up to a code wider than min-max: a range whose ends fall half a code short of the last code loses nothing.

mod fine;
mod moments;
mod space;
mod sweep;
mod wide;

use super::summary::Summary;
use super::{Batch, Observer, ObserverEntry, Target, Values};
use crate::quant::params::{ParamRule, Params, Range};
use moments::Moments;
use space::Space;

pub(super) const ENTRY: ObserverEntry = ObserverEntry {
    name: "mse",
    parameter: None,
    summary: "the range with the least squared error, searched for without a coarse grid",
    build: |_, target| Box::new(Mse::new(target)),
    from_summary: |_, summary, target| Some(of_summary(&target.rule, summary)),
    joint: None,
    extent_only: false,
    looks_at_inputs: false,
};

/// Values that a batch may have to be searched as they are; larger ones go through a histogram of 8192 bins.
const LARGEST_ROW: usize = 1 << 15;

/// Values that a group may have for the exact sweep, which costs some 50 ns a value.
const LARGEST_SWEEP: usize = 512;

struct Mse {
    rule: ParamRule,
    single_batch: bool,
    seen: Seen,
}

enum Seen {
    Nothing,
    /// One batch: its choice, and its values for the histogram that a second batch would need.
    Row(Range, Vec<f32>),
    /// One large batch: its choice and its histogram.
    Large(Range, Moments),
    Several(Moments),
}

impl Mse {
    fn new(target: &Target) -> Self {
        Mse { rule: target.rule, single_batch: target.single_batch, seen: Seen::Nothing }
    }
}

impl Observer for Mse {
    fn observe(&mut self, batch: Batch<'_>) {
        self.seen = match std::mem::replace(&mut self.seen, Seen::Nothing) {
            Seen::Nothing if batch.values.len() <= LARGEST_ROW => match batch.values.as_slice() {
                Some(row) if self.single_batch => Seen::Row(search_row(&self.rule, batch.extent, row), Vec::new()),
                _ => {
                    let mut row = Vec::with_capacity(batch.values.len());
                    batch.values.for_each_piece(&mut |piece| row.extend_from_slice(piece));
                    Seen::Row(search_row(&self.rule, batch.extent, &row), row)
                }
            },
            Seen::Nothing => {
                let mut moments = Moments::new(batch.extent);
                moments.add(batch.extent, batch.values);
                Seen::Large(search_large(&self.rule, &moments, batch.values), moments)
            }
            Seen::Row(_, row) => {
                let mut moments = Moments::new(batch.extent);
                moments.add(crate::quant::kernel::min_max(&row).range(), &row.as_slice());
                moments.add(batch.extent, batch.values);
                Seen::Several(moments)
            }
            Seen::Large(_, mut moments) | Seen::Several(mut moments) => {
                moments.add(batch.extent, batch.values);
                Seen::Several(moments)
            }
        };
    }

    fn range(&self) -> Range {
        match &self.seen {
            Seen::Nothing => Range::EMPTY,
            Seen::Row(range, _) | Seen::Large(range, _) => *range,
            Seen::Several(moments) => search_points(&self.rule, moments.extent(), moments.points()),
        }
    }
}

fn search_row(rule: &ParamRule, extent: Range, row: &[f32]) -> Range {
    let Some(space) = Space::new(rule, extent) else { return extent };
    let found = if row.len() <= LARGEST_SWEEP {
        sweep::search(&space, row)
    } else {
        fine::search(&space, row).unwrap_or_else(|| wide::search(&space, row, None))
    };
    compare(&space, found, &row)
}

fn search_large(rule: &ParamRule, moments: &Moments, values: &dyn Values) -> Range {
    let Some(space) = Space::new(rule, moments.extent()) else { return moments.extent() };
    let (means, counts) = moments.points();
    compare(&space, wide::search(&space, &means, Some(&counts)), values)
}

/// The best range for `means` that stand for `counts` values each.
fn search_points(rule: &ParamRule, extent: Range, (means, counts): (Vec<f32>, Vec<f32>)) -> Range {
    let Some(space) = Space::new(rule, extent) else { return extent };
    let finalists = space.finalists(&wide::search(&space, &means, Some(&counts)));
    space.best(&finalists, |trials| space.weighted_errors(&means, &counts, trials))
}

fn of_summary(rule: &ParamRule, summary: &Summary) -> Range {
    search_points(rule, summary.extent, summary.points())
}

/// The best of `found` and of min-max on the values themselves.
fn compare(space: &Space, found: Vec<Params>, values: &dyn Values) -> Range {
    space.best(&space.finalists(&found), |trials| {
        let mut errors = vec![0.0; trials.len()];
        values.for_each_piece(&mut |piece| {
            errors.iter_mut().zip(space.true_errors(piece, trials)).for_each(|(sum, error)| *sum += error);
        });
        errors
    })
}

#[cfg(test)]
mod tests;
