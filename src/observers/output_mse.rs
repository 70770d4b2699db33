//! `output-mse`: the range whose codes change a layer's outputs least, where its inputs are known; else that of `mse`.
//!
//! The search by inputs is in [`crate::algorithms::output_mse`]; it begins at the range that is found here.

use super::{ObserverEntry, mse};

pub(super) const ENTRY: ObserverEntry = ObserverEntry {
    name: "output-mse",
    summary: "the range with the least squared error of the layer's outputs on samples; without samples, mse",
    looks_at_inputs: true,
    ..mse::ENTRY
};
