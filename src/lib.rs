//! Quantizes the weights of neural networks: float model files in, int8 (and smaller) files out.
//!
//! A run is five verbs: **read** ([`formats`]) → **observe** ([`observers`]) → **choose** and **quantize**
//! ([`plan`], [`quant`]) → **write** ([`outputs`]); [`pipeline`] is the page that shows them in order.

pub mod error;
pub mod method;
pub mod observers;
pub mod quant;
pub mod tensor;

pub use error::{Error, Result};
