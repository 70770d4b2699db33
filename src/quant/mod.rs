//! From a range to scale and zero point, from values to codes: the arithmetic of quantization.
//!
//! ```text
//! code  = clamp(round_half_even(value / scale) + zero_point, qmin, qmax)
//! value ≈ (code - zero_point) * scale
//! ```
//!
//! [`scheme`] names what can be asked for, [`params`] chooses scale and zero point as the reference
//! implementations do, [`granularity`] says which values share them, [`kernel`] computes codes, [`metrics`]
//! measures what was lost, and [`packing`] stores codes of four bits.

pub mod granularity;
pub mod kernel;
pub mod metrics;
pub mod packing;
pub mod params;
pub mod scheme;
