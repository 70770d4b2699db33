//! Better codes from calibration: algorithms that look at what a layer computes, not only at its weights.
//!
//! With the Gram matrix of a layer's inputs (`hessian`) a `Rounding` chooses codes so that the layer's *outputs* change
//! least. A new one is a file with an implementation, its `mod` line and its entry in [`ROUNDINGS`]; the command line,
//! recipes, help and the conformance tests read the table.

pub(crate) mod adaround;
pub(crate) mod blocks;
mod gptq;
pub(crate) mod hessian;
pub(crate) mod output_mse;
pub(crate) mod solve;
pub(crate) mod solver;
pub(crate) mod tile;
pub mod transforms;

use crate::error::Result;
use crate::method::{Method, look_up};
use crate::observers::Parameter;
use hessian::{Factor, Hessian};
use std::sync::Arc;
use tile::{Codes, Tile};

/// Chooses codes of tiles of rows of one layer.
pub(crate) trait Rounding: Send + Sync {
    /// Codes of every feature, by position of the factor's order, for each row of the tile.
    fn round(&self, tile: &Tile) -> Codes;

    /// The factor of the objective that tiles are in the order of.
    fn factor(&self) -> &Factor;
}

/// A row of [`ROUNDINGS`].
pub struct RoundingEntry {
    /// Name on the command line, in recipes and sidecars.
    pub name: &'static str,
    /// The number it takes, if it takes one.
    pub parameter: Option<Parameter>,
    /// One line of help.
    pub summary: &'static str,
    prepare: Option<Prepare>,
}

/// Makes a [`Rounding`] for layers with these inputs; the number is the parameter's default where there is none.
type Prepare = fn(value: f64, hessian: Arc<Hessian>, context: Context) -> Arc<dyn Rounding>;

/// What algorithms are told besides.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Context {
    /// For what is drawn at random.
    pub(crate) seed: u64,
    /// Threads that work.
    pub(crate) threads: usize,
}

/// Every way of rounding. The first needs no samples.
pub const ROUNDINGS: &[RoundingEntry] = &[
    RoundingEntry { name: NEAREST, parameter: None, summary: "the nearest code, half to even", prepare: None },
    gptq::ENTRY,
    gptq::AS_STORED,
    adaround::ENTRY,
];

/// The way of rounding that looks at nothing but the value.
pub(crate) const NEAREST: &str = "nearest";

/// A way of rounding chosen by name, its number checked.
#[derive(Clone)]
pub struct RoundingChoice {
    entry: &'static RoundingEntry,
    value: f64,
}

impl RoundingChoice {
    /// Looks `method` up in [`ROUNDINGS`].
    ///
    /// # Errors
    ///
    /// [`crate::Error::Usage`] if there is no such method, if it takes no number, or if the number is out of its range.
    pub fn new(method: &Method) -> Result<Self> {
        let entry = look_up("rounding", ROUNDINGS, |entry| entry.name, &method.name)?;
        Ok(RoundingChoice { entry, value: Parameter::check(entry.parameter.as_ref(), "rounding", method)? })
    }

    /// The nearest code, whatever the inputs.
    pub(crate) fn nearest() -> Self {
        RoundingChoice { entry: &ROUNDINGS[0], value: 0.0 }
    }

    /// The method with its number spelled out, as it goes into the sidecar.
    pub fn method(&self) -> Method {
        Method { name: self.entry.name.to_owned(), value: self.entry.parameter.map(|_| self.value) }
    }

    /// Whether it takes the nearest code, whatever the inputs.
    pub fn is_nearest(&self) -> bool {
        self.entry.prepare.is_none()
    }

    /// The method for layers with these inputs; `None` for the nearest codes.
    pub(crate) fn prepare(&self, hessian: Arc<Hessian>, context: Context) -> Option<Arc<dyn Rounding>> {
        self.entry.prepare.map(|prepare| prepare(self.value, hessian, context))
    }
}
