//! How much quantization lost: sums that merge, and the figures made of them.
//!
//! ```text
//! MSE  = sum((x - x')^2) / n        SQNR = 10 log10(sum(x^2) / sum((x - x')^2)) dB
//! ```

use super::params::Params;
use serde::{Deserialize, Serialize};

/// Sums over values and their errors, in f64. Merging in a fixed order gives the same bits on every machine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ErrorSums {
    /// Number of values.
    pub count: u64,
    /// Sum of squared errors, in squared real units.
    pub error: f64,
    /// Sum of squared values.
    pub value: f64,
    /// Largest magnitude of an error, in real units.
    pub max_error: f64,
}

impl ErrorSums {
    /// Adds the sums of other values.
    pub fn merge(&mut self, other: &ErrorSums) {
        self.count += other.count;
        self.error += other.error;
        self.value += other.value;
        self.max_error = self.max_error.max(other.max_error);
    }

    /// Computed in f64 value by value; `codes` are one byte each, in two's complement if `signed`.
    pub fn exact(values: &[f32], codes: &[u8], signed: bool, params: Params) -> Self {
        let mut sums = ErrorSums { count: values.len() as u64, ..Default::default() };
        for (value, code) in values.iter().zip(codes) {
            let value = f64::from(*value);
            let code = if signed { i32::from(*code as i8) } else { i32::from(*code) };
            let error = (value - f64::from(code - params.zero_point) * f64::from(params.scale)).abs();
            sums.error += error * error;
            sums.value += value * value;
            sums.max_error = sums.max_error.max(error);
        }
        sums
    }

    /// The figures of these sums.
    pub fn metrics(&self) -> Metrics {
        let mse = if self.count == 0 { 0.0 } else { self.error / self.count as f64 };
        let sqnr = 10.0 * (self.value / self.error).log10();
        Metrics { max_abs: self.max_error, mse, sqnr_db: sqnr.is_finite().then_some(sqnr) }
    }
}

/// The figures that sidecars and tables show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Largest absolute error, in real units.
    pub max_abs: f64,
    /// Mean squared error, in squared real units.
    pub mse: f64,
    /// Signal to quantization noise in dB; `None` where nothing was lost or there is no signal.
    pub sqnr_db: Option<f64>,
}
