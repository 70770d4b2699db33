//! Quantizes the weights of neural networks: float model files in, int8 (and smaller) files out.
//!
//! A run is five verbs: **read** ([`formats`]) → **observe** ([`observers`]) → **choose** and **quantize**
//! ([`plan`], [`quant`]) → **write** ([`outputs`]); [`pipeline`] is the page that shows them in order.

pub mod calibration;
pub mod compare;
pub mod dequantize;
pub mod error;
pub mod formats;
mod graph;
pub mod inspect;
pub mod method;
pub mod model;
pub mod observers;
pub mod outputs;
pub mod pipeline;
pub mod plan;
pub mod quant;
pub mod recipe;
pub mod report;
pub mod scheme;
pub mod sensitivity;
pub mod simd;
pub mod stream;
pub mod target;
pub mod tensor;
pub mod verify;

pub use error::{Error, Result};
