//! How far a quantized model is from the float one: tensor by tensor, or for ONNX models by what they compute from samples.
//! Sums are in f64.
//!
//! ```text
//! SQNR = 10 log10(Σ x² / Σ (x − x')²) dB      MSE = Σ (x − x')² / n      cosine = Σ x x' / √(Σ x² Σ x'²)
//! ```

mod details;
mod layers;
mod onnx;
mod tensors;

pub use crate::gates::Gates;
pub use details::{Details, details};
pub use onnx::{LayerDifference, OutputComparison, OutputDifference, OutputRequest, compare_outputs};
pub use tensors::{Comparison, TensorDifference, compare};

use crate::error::Result;
use crate::formats::{self, ReadOptions};
use serde::Serialize;
use std::path::Path;

/// Whether there is an ONNX model at `path`, by its content.
///
/// # Errors
///
/// As [`formats::open`].
pub fn is_onnx(path: &Path, read: &ReadOptions) -> Result<bool> {
    Ok(formats::open(path, read)?.onnx().is_some())
}

/// The difference of two tensors, of two values, or of two models.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Cosine of the angle between both; `None` where one is all zero.
    pub cosine: Option<f64>,
    /// Largest absolute difference, in real units.
    pub max_abs: f64,
    /// Mean squared difference, in squared real units.
    pub mse: f64,
    /// Signal to noise in dB; `None` where there is no difference, or no signal.
    pub sqnr_db: Option<f64>,
}

impl Difference {
    /// SQNR in dB, infinite where there is no difference: what lost everything it had comes first in an order by it.
    pub(crate) fn quality(&self) -> f64 {
        self.sqnr_db.unwrap_or(if self.mse == 0.0 { f64::INFINITY } else { f64::NEG_INFINITY })
    }
}

/// Sums over elements of both.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sums {
    count: u64,
    error: f64,
    a: f64,
    b: f64,
    product: f64,
    max: f64,
}

impl Sums {
    fn merge(&mut self, other: &Sums) {
        self.count += other.count;
        self.error += other.error;
        self.a += other.a;
        self.b += other.b;
        self.product += other.product;
        self.max = self.max.max(other.max);
    }

    /// Takes in one element of both.
    pub(crate) fn add(&mut self, a: f64, b: f64) {
        // Values that both keep, such as infinities of a mask, do not differ.
        let error = if a == b || (a.is_nan() && b.is_nan()) { 0.0 } else { a - b };
        self.count += 1;
        self.error += error * error;
        self.a += a * a;
        self.b += b * b;
        self.product += a * b;
        self.max = self.max.max(error.abs());
    }

    pub(crate) fn difference(&self) -> Difference {
        let finite = |value: f64| Some(value).filter(|value| value.is_finite());
        Difference {
            cosine: finite(self.product / (self.a * self.b).sqrt()).map(|cosine| cosine.clamp(-1.0, 1.0)),
            // The largest of errors that are no numbers is none.
            max_abs: if self.error.is_nan() { f64::NAN } else { self.max },
            mse: if self.count == 0 { 0.0 } else { self.error / self.count as f64 },
            sqnr_db: finite(10.0 * (self.a / self.error).log10()),
        }
    }
}
