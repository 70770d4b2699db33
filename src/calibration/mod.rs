//! OBSERVE activations: samples run through the float model, and what its values were.

pub mod array;
pub mod engine;
pub(crate) mod inputs;
pub(crate) mod observe;
pub(crate) mod ranges;
pub mod samples;
pub mod stats;
pub(crate) mod tables;
