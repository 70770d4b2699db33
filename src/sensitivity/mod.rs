//! CHOOSE by measurement: what quantizing each layer costs the outputs of an ONNX model, and which layers to spare.

pub(crate) mod cost;
mod measure;
mod search;
mod simulate;
mod units;

pub(crate) use measure::Setup;
pub use search::{DEFAULT_MIN_SQNR_DB, Findings};
pub(crate) use search::{Search, search};
