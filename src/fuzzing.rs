//! What `tests/fuzz` needs of the insides: the feature `fuzzing` of this crate, and no part of its interface.

use crate::formats::onnx::proto::{Message, ModelProto};
use crate::simd::{InstructionSet, widest};
use std::cell::Cell;

thread_local! {
    pub(crate) static FORCED: Cell<Option<InstructionSet>> = const { Cell::new(None) };
}

/// What `work` does with the loops compiled for each of the instruction sets that this processor has. `work` stays on its thread.
pub fn on_each_instruction_set<R>(mut work: impl FnMut() -> R) -> Vec<(InstructionSet, R)> {
    let sets = InstructionSet::ALL.iter().copied().filter(|set| *set <= widest());
    let results = sets.map(|set| {
        FORCED.set(Some(set));
        (set, work())
    });
    let results = results.collect();
    FORCED.set(None);
    results
}

/// Reads an ONNX model without checking what it says; if that succeeds, how it is shown, and what is written of it.
pub fn onnx_round_trip(model: &[u8]) -> Option<(String, Vec<u8>)> {
    let model = ModelProto::parse(model.to_vec().into()).ok()?;
    Some((format!("{model:?}"), model.to_bytes().expect("nothing of a model that was read is deferred")))
}

/// Loops over values that the rest of the interface reaches only with others around them. Lengths must agree.
pub mod kernels {
    use crate::quant::kernel::search::{self, SCALES, Trials};
    use crate::quant::params::Params;
    use crate::quant::scheme::Grid;

    /// See `quant::kernel::widen_columns`.
    pub fn widen_columns(row: &[f32], low: &mut [f32], high: &mut [f32], magnitude: &mut [i32]) {
        crate::quant::kernel::widen_columns(row, low, high, magnitude);
    }

    /// See `quant::kernel::search::clamped_errors` and `weighted_errors`: with `weights` the latter.
    pub fn errors(values: &[f32], weights: Option<&[f32]>, trials: [(f32, f32, f32); SCALES]) -> [f64; SCALES] {
        let trials = Trials {
            count: SCALES,
            reciprocal: trials.map(|trial| trial.0),
            low: trials.map(|trial| trial.1),
            high: trials.map(|trial| trial.2),
        };
        match weights {
            Some(weights) => search::weighted_errors(values, weights, &trials),
            None => search::clamped_errors(values, &trials),
        }
    }

    /// See `quant::kernel::search::to_fixed`.
    pub fn to_fixed(values: &[f32], factor: f32, low: f32, high: f32) -> (Vec<i16>, Vec<u8>, f64) {
        let (mut fixed, mut flags) = (vec![0; values.len()], vec![0; values.len().div_ceil(search::FLAGGED)]);
        let squares = search::to_fixed(values, factor, low, high, &mut fixed, &mut flags);
        (fixed, flags, squares)
    }

    /// See `quant::kernel::search::rounding_errors`.
    pub fn rounding_errors(fixed: &[i16], whole: [i16; SCALES], part: [i16; SCALES]) -> [u64; SCALES] {
        search::rounding_errors(fixed, whole, part)
    }

    /// See `calibration::inputs::sums::add`: what becomes of one pair of numbers for each value.
    pub fn add_to_sums(high: &mut [i64], low: &mut [i64], values: &[f64]) {
        crate::calibration::inputs::sums::add(high, low, values);
    }

    /// See `calibration::inputs::stats::add_row`.
    pub fn add_row(row: &[f32], sums: &mut [f64], squares: &mut [f64], abs_max: &mut [f32]) {
        crate::calibration::inputs::stats::add_row(row, sums, squares, abs_max);
    }

    /// See `algorithms::output_mse::weighted_error`.
    pub fn weighted_error(values: &[f32], weights: &[f32], params: Params, clip: Grid) -> f32 {
        crate::algorithms::output_mse::weighted_error(values, weights, params, clip)
    }

    /// See `algorithms::output_mse::dot`.
    pub fn dot(left: &[f32], right: &[f32]) -> f32 {
        crate::algorithms::output_mse::dot(left, right)
    }

    /// See `algorithms::blocks::subtract_multiple`.
    pub fn subtract_multiple(target: &mut [f64], factor: f64, source: &[f64]) {
        crate::algorithms::blocks::subtract_multiple(target, factor, source);
    }

    /// See `algorithms::adaround::add_multiple`.
    pub fn add_multiple(target: &mut [f32], factor: f32, source: &[f32]) {
        crate::algorithms::adaround::add_multiple(target, factor, source);
    }

    /// See `algorithms::hessian::add_errors`.
    pub fn add_errors(panel: &[[f32; 8]], errors: &[[f32; 16]], sums: &mut [[f32; 16]; 8]) {
        crate::algorithms::hessian::add_errors(panel, errors, sums);
    }

    /// See `algorithms::blocks::add_short_products`: the products of 64 features, of which `x` has rows.
    pub fn add_short_products(x: &[f32], block: &mut [f64]) {
        crate::algorithms::blocks::add_short_products(x, 64, 0, 0, block);
    }
}
