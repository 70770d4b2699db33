//! Observers that a Rust program registers.

use crate::error::show_name;
use crate::observers::{Batch, Observer, Target};
use crate::quant::params::Range;
use std::fmt;
use std::sync::Arc;

/// Makes an observer for what the range will be used for.
type Build = dyn Fn(&Target) -> Box<dyn Observer> + Send + Sync;

/// An observer by name.
#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) name: Arc<str>,
    build: Arc<Build>,
}

impl Registered {
    pub(super) fn new(name: &str, build: impl Fn(&Target) -> Box<dyn Observer> + Send + Sync + 'static) -> Self {
        Registered { name: name.into(), build: Arc::new(build) }
    }

    /// A new observer, which has seen nothing.
    pub(crate) fn build(&self, target: &Target) -> Box<dyn Observer> {
        (self.build)(target)
    }

    /// The range of one batch on its own.
    pub(crate) fn observe_once(&self, batch: Batch<'_>, target: &Target) -> Range {
        let mut observer = self.build(target);
        observer.observe(batch);
        observer.range()
    }

    /// Whether ranges can be used, which one observer a group chose.
    ///
    /// # Errors
    ///
    /// The first that cannot.
    pub(crate) fn check(&self, ranges: &[Range]) -> Result<(), String> {
        let is_wrong = |range: &Range| !(range.min.is_finite() && range.max.is_finite() && range.min <= range.max);
        match ranges.iter().position(is_wrong) {
            None => Ok(()),
            Some(group) => {
                let (name, Range { min, max }) = (show_name(&self.name), ranges[group]);
                Err(format!("observer {name}: range of group {group}: expected finite min up to max, found min {min} and max {max}"))
            }
        }
    }
}

impl fmt::Debug for Registered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Registered").field(&self.name).finish()
    }
}
