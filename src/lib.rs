//! Quantizes the weights of neural networks: float model files in, int8 (and smaller) files out.
//!
//! A run is five verbs: **read** ([`formats`]) → **observe** ([`observers`]) → **choose** and **quantize**
//! ([`quant`]) → **write**.

pub mod error;
pub mod formats;
pub mod method;
pub mod model;
pub mod observers;
pub mod quant;
pub mod simd;
pub mod tensor;

pub use error::{Error, Result};
