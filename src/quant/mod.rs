//! From a range to scale and zero point, from values to codes: the arithmetic of quantization.
//!
//! ```text
//! code  = clamp(round_half_even(value / scale) + zero_point, qmin, qmax)
//! value ≈ (code - zero_point) * scale
//! ```
//!
//! [`scheme`] names what can be asked for, [`params`] chooses scale and zero point as the reference
//! implementations do, [`granularity`] says which values share them, [`kernel`] computes codes, [`metrics`]
//! measures what was lost, [`packing`] stores codes of four bits, and [`saturation`] keeps pairs of codes within what
//! kernels of processors without VNNI add.

pub mod granularity;
pub mod kernel;
pub mod metrics;
pub mod packing;
pub mod params;
pub mod saturation;
pub mod scheme;
