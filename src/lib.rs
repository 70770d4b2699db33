//! Quantizes the weights of neural networks: float model files in, int8 (and smaller) files out.
//!
//! A run is five verbs: **read** ([`formats`]) → **observe** ([`observers`], [`calibration`]) → **choose** ([`recipe`]) and
//! **quantize** ([`quant`], [`algorithms`]) → **write** ([`outputs`]); [`pipeline`] is the page that shows them in order. What the program
//! `qtool` does is a [`Request`], decided on by [`Prepared::new`] and carried out by [`Prepared::run`]:
//!
//! ```
//! use qtool::{Prepared, Request, Silent};
//!
//! # let dir = tempfile::tempdir()?;
//! # let model = dir.path().join("model.safetensors");
//! # std::fs::copy(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/silero_vad_16k.safetensors"), &model)?;
//! let mut request = Request::new(&model); // int8 per channel, beside the model
//! request.recipe.settings.observer = "mse".parse()?;
//! request.recipe.exclude.push(qtool::recipe::Pattern::new("conv1*")?);
//!
//! let report = Prepared::new(request)?.run(&Silent)?;
//! assert_eq!(report.output.file_name().unwrap(), "model.int8.safetensors");
//! assert!(report.total.unwrap().sqnr_db.unwrap() > 35.0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Shapes are `[outermost, …, innermost]`, elements in row-major order; sizes are in bytes unless they are said to be in elements; errors of
//! quantization are in real units, or in dB of signal to noise.
//!
//! An [`Observer`] of one's own is registered by name, and is then used as those of qtool are:
//!
//! ```
//! use qtool::{Batch, Observer, Range, Recipe};
//!
//! /// Half of what there is.
//! struct Half(Range);
//!
//! impl Observer for Half {
//!     fn observe(&mut self, batch: Batch<'_>) {
//!         self.0 = Range { min: batch.extent.min / 2.0, max: batch.extent.max / 2.0 };
//!     }
//!
//!     fn range(&self) -> Range {
//!         self.0
//!     }
//! }
//!
//! let mut recipe = Recipe::default();
//! recipe.observers.register("half", |_target| Box::new(Half(Range::EMPTY)))?;
//! recipe.settings.observer = "half".parse()?;
//! # Ok::<(), qtool::Error>(())
//! ```
//!
//! [`quant`] quantizes tensors in memory. `tests/examples` has a program for each of these.
//!
//! Modules that are not on this page are the program's own, and change without notice.

#![deny(missing_docs)]

pub mod algorithms;
pub mod calibration;
pub mod compare;
pub mod dequantize;
pub mod error;
pub mod formats;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
pub mod gates;
mod graph;
pub mod inspect;
pub mod limits;
pub mod lint;
pub mod method;
pub mod model;
pub mod observers;
pub mod outputs;
pub mod pipeline;
#[doc(hidden)]
pub mod plan;
mod qat;
pub mod quant;
mod random;
pub mod recipe;
pub mod report;
#[doc(hidden)]
pub mod sensitivity;
#[doc(hidden)]
pub mod simd;
#[doc(hidden)]
pub mod stream;
#[doc(hidden)]
pub mod target;
pub mod tensor;
pub mod verify;
#[doc(hidden)]
pub mod visible;

pub use error::{Error, Result};
pub use observers::custom::Observers;
pub use observers::{Batch, Observer, Target, Values};
pub use pipeline::{Prepared, Request};
pub use quant::params::Range;
pub use recipe::Recipe;
#[doc(inline)]
pub use stream::{Progress, Silent};
