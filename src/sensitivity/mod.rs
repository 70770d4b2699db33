//! CHOOSE by measurement: what quantizing each layer costs the outputs of an ONNX model, and which layers to spare.

pub(crate) mod cost;
mod measure;
mod rank;
mod search;
mod simulate;
mod units;

pub(crate) use measure::Setup;
pub use rank::{LayerSensitivity, Ranking};
pub use search::{DEFAULT_MIN_SQNR_DB, Decisions, Findings};
pub(crate) use search::{Search, search};
