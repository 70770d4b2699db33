//! Observers: from values to a clipping range.
//!
//! An observer sees batches and then names a range; scale and zero point follow from the range by
//! [`ParamRule::choose_params`]. For a weight, each group (channel, tensor, run of elements) is one batch of its own
//! observer. For an activation, each sample is a batch of the same observer; or the samples were observed by another
//! run, and the range is chosen from what it kept of them, a [`Summary`].
//!
//! A new observer is a file with an implementation of [`Observer`], its `mod` line and its entry in [`OBSERVERS`];
//! the command line, recipes, help and the conformance tests read the table. Those of users are in [`custom`].

mod abs_max;
mod choice;
pub mod custom;
mod entropy;
mod histogram;
mod mean_min_max;
mod memoryless_mse;
mod min_max;
mod moving_average;
mod mse;
mod numpy_histogram;
mod output_mse;
mod percentile;
pub mod summary;

use crate::error::{Error, Result};
use crate::method::Method;
use crate::quant::params::{ParamRule, Range};
use summary::Summary;

pub use choice::ObserverChoice;
pub(crate) use moving_average::smooth;

/// Values that can be read more than once, in pieces: they may be larger than memory.
pub trait Values: Sync {
    /// Number of values.
    fn len(&self) -> usize;

    /// Whether there is no value.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Calls `each` with successive pieces, in order. Pieces are the same at every call.
    fn for_each_piece(&self, each: &mut dyn FnMut(&[f32]));

    /// All values, where they lie in memory side by side.
    fn as_slice(&self) -> Option<&[f32]> {
        None
    }
}

impl<T: AsRef<[f32]> + Sync + ?Sized> Values for T {
    fn len(&self) -> usize {
        self.as_ref().len()
    }

    fn for_each_piece(&self, each: &mut dyn FnMut(&[f32])) {
        each(self.as_ref());
    }

    fn as_slice(&self) -> Option<&[f32]> {
        Some(self.as_ref())
    }
}

/// Finite values that belong together, with their extent.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    /// Smallest and largest value. Not widened to include 0.
    pub extent: Range,
    /// The values; at least one.
    pub values: &'a dyn Values,
}

/// Chooses a clipping range from the batches it is shown.
pub trait Observer: Send {
    /// Takes in one batch.
    fn observe(&mut self, batch: Batch<'_>);

    /// The range for all batches so far, in real units, not widened to include 0; [`Range::EMPTY`] before the first.
    fn range(&self) -> Range;
}

/// What the range will be used for; observers that weigh clipping against rounding look at the grid.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// How the range will become scale and zero point.
    pub rule: ParamRule,
    /// Whether there will be only one batch, as for weights: nothing need be kept of it.
    pub single_batch: bool,
}

/// A number that a method takes after its colon.
#[derive(Clone, Copy, Debug)]
pub struct Parameter {
    /// Name in help, such as `P`.
    pub name: &'static str,
    /// Value if none is given.
    pub default: f64,
    /// Smallest value.
    pub min: f64,
    /// Largest value.
    pub max: f64,
    /// Whether it is a number of something.
    pub is_whole: bool,
}

impl Parameter {
    /// The number of `method`, or the default of what it takes.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if it takes none, or if the number is out of its range or not whole where it must be.
    pub(crate) fn check(parameter: Option<&Parameter>, kind: &str, method: &Method) -> Result<f64> {
        let name = &method.name;
        match (parameter, method.value) {
            (None, Some(value)) => Err(Error::Usage(format!("{kind} {name}: expected no number, found {value}"))),
            (None, None) => Ok(0.0),
            (Some(parameter), value) => {
                let value = value.unwrap_or(parameter.default);
                if !(parameter.min..=parameter.max).contains(&value) {
                    let Parameter { name: number, min, max, .. } = parameter;
                    return Err(Error::Usage(format!("{kind} {name}: expected {number} from {min} to {max}, found {value}")));
                }
                if parameter.is_whole && value.fract() != 0.0 {
                    return Err(Error::Usage(format!("{kind} {name}: expected a whole number of {}, found {value}", parameter.name)));
                }
                Ok(value)
            }
        }
    }
}

/// Ranges of all groups of a tensor at once, for methods whose choice for one group depends on the others.
pub type JointSearch = fn(groups: &[Batch<'_>], value: f64, target: &Target) -> Vec<Range>;

/// One row of [`OBSERVERS`].
pub struct ObserverEntry {
    /// Name on the command line, in recipes and sidecars.
    pub name: &'static str,
    /// The number it takes, if it takes one.
    pub parameter: Option<Parameter>,
    /// One line of help.
    pub summary: &'static str,
    /// Makes an observer; the number is the parameter's default where there is none.
    pub build: fn(value: f64, target: &Target) -> Box<dyn Observer>,
    /// The range for all batches that a summary is of, of which there was at least one; `None` if the summary lacks what
    /// this observer needs. The number is as for `build`.
    pub from_summary: fn(value: f64, summary: &Summary, target: &Target) -> Option<Range>,
    /// Where groups are not independent of each other, the choice for all groups of a tensor at once.
    pub joint: Option<JointSearch>,
    /// Whether a batch's extent is all it looks at.
    pub extent_only: bool,
    /// Whether it looks at what a layer's inputs were, where that is known.
    pub looks_at_inputs: bool,
}

/// Every observer.
pub const OBSERVERS: &[ObserverEntry] = &[
    min_max::ENTRY,
    moving_average::ENTRY,
    percentile::ENTRY,
    mse::ENTRY,
    output_mse::ENTRY,
    entropy::ENTRY,
    histogram::ENTRY,
    memoryless_mse::ENTRY,
    abs_max::ENTRY,
    mean_min_max::ENTRY,
];
