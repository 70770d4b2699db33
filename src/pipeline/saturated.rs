//! Counts the sums of pairs of products that saturate without VNNI on samples, of weights as they were rounded.
//!
//! The float model runs, and what layers take is quantized as they quantize it: with known parameters where these are chosen before, else by
//! the extent of each value as DynamicQuantizeLinear does it. That earlier layers are quantized is left out.

use super::layer_inputs::{self, Run};
use super::onnx::CalibrationRequest;
use super::transforms::nearest;
use crate::algorithms::solve::View;
use crate::algorithms::solver::Solver;
use crate::calibration::inputs::stats::Detail;
use crate::error::Result;
use crate::model::Model;
use crate::outputs::onnx::rewrite::Chosen;
use crate::plan::Plan;
use crate::quant::kernel::{self, Arithmetic};
use crate::quant::params::{ParamRule, Params, Range};
use crate::quant::saturation::{PairCheck, could_saturate};
use crate::quant::scheme::{CodeType, Convention};
use crate::stream::Progress;
use crate::tensor::Dtype;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};

/// Sums of pairs that could saturate which are looked at for each weight, about.
const MOST_SUMS: u64 = 1 << 28;

/// A pair that could saturate: the features that it multiplies, and its codes.
struct Pair {
    features: [u32; 2],
    codes: [i32; 2],
}

/// The pairs of a weight that multiply the same inputs.
struct Share {
    tensor: usize,
    possible: Vec<Pair>,
    /// How many there are besides and with these.
    pairs: u64,
    /// Parameters of activations, unless they are found for each value.
    params: Option<Params>,
}

/// What a pass over the samples goes by.
pub(super) struct Counting<'a> {
    pub(super) model: &'a Model,
    pub(super) plan: &'a Plan,
    pub(super) chosen: &'a Chosen,
    pub(super) solver: Option<&'a Solver<'a>>,
    pub(super) calibration: &'a CalibrationRequest,
    /// Most bytes that pairs take; weights whose pairs do not fit are left out.
    pub(super) max_memory: u64,
    pub(super) threads: usize,
    pub(super) progress: &'a dyn Progress,
}

impl Counting<'_> {
    /// Puts what was counted into `checks`, of weights that one layer of the main graph takes.
    ///
    /// # Errors
    ///
    /// As [`layer_inputs::observe`].
    pub(super) fn count(&self, checks: &mut BTreeMap<usize, PairCheck>) -> Result<()> {
        let Counting { model, plan, calibration, threads, progress, .. } = *self;
        let Some(onnx) = model.onnx() else { return Ok(()) };
        let wanted: BTreeSet<usize> = checks.iter().filter(|(_, check)| check.pairings.len() == 1).map(|(tensor, _)| *tensor).collect();
        let (layers, sources) = layer_inputs::find(model, onnx, &wanted, 1);
        let mut shares: BTreeMap<&str, Vec<Share>> = BTreeMap::new();
        let mut counts: BTreeMap<usize, [AtomicU64; 2]> = BTreeMap::new();
        let names = sources.iter().flat_map(|(value, sources)| sources.iter().map(move |source| (value, &source.names)));
        let values: HashMap<&str, &str> =
            names.flat_map(|(value, names)| names.iter().map(|name| (name.as_str(), value.as_str()))).collect();
        let mut takers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (tensor, layer) in &layers {
            values.get(layer.inputs[0].as_str()).into_iter().for_each(|value| takers.entry(value).or_default().push(*tensor));
        }
        let mut free = self.max_memory;
        for value in sources.keys() {
            for (tensor, layer) in takers.get(value.as_str()).into_iter().flatten().map(|tensor| (tensor, &layers[tensor])) {
                let is_static = plan.mode_of(model, *tensor) == Some("static");
                let params = if is_static { self.chosen.activations.get(value).copied() } else { None };
                let each = self.shares(*tensor, &checks[tensor], layer.view, layer.inputs.len())?;
                let bytes = each.iter().map(|(_, possible)| size_of_val(&possible[..]) as u64).sum();
                let Some(left) = free.checked_sub(bytes) else { continue };
                free = left;
                counts.insert(*tensor, Default::default());
                for (name, (pairs, possible)) in layer.inputs.iter().zip(each) {
                    shares.entry(name).or_default().push(Share { tensor: *tensor, possible, pairs, params });
                }
            }
        }
        if counts.is_empty() {
            return Ok(());
        }
        let run = Run { model, onnx, calibration, detail: Detail::Features, threads, progress };
        run.for_each(&sources, &|input, array, samples| {
            for share in shares.get(input.name).into_iter().flatten() {
                let params = share.params.unwrap_or_else(|| dynamic_params(array));
                let codes = if share.params.is_some() { plan.activation_codes } else { CodeType::Uint8 };
                let [saturated, sums] = share.count(input.rows, input.features, params, codes, MOST_SUMS / samples as u64);
                counts[&share.tensor][0].fetch_add(saturated, Ordering::Relaxed);
                counts[&share.tensor][1].fetch_add(sums, Ordering::Relaxed);
            }
            Ok(())
        })?;
        for (tensor, counted) in counts {
            let check = checks.get_mut(&tensor).expect("only weights with checks are counted");
            check.on_samples = Some(counted.map(AtomicU64::into_inner));
        }
        Ok(())
    }

    /// The number of pairs, and those that could saturate, of equal shares of a weight's rows.
    fn shares(&self, tensor: usize, check: &PairCheck, view: View, count: usize) -> Result<Vec<(u64, Vec<Pair>)>> {
        let (model, params) = (self.model, &self.chosen.weights[&tensor]);
        let elements = model.tensors()[tensor].info.elements();
        let codes = match self.solver.filter(|solver| solver.is_for(tensor)) {
            Some(solver) => solver.solve(tensor, Some(params))?.codes,
            None => {
                let scheme = self.plan.scheme(tensor).expect("only quantized tensors have checks");
                nearest(model.values(tensor, 0..elements, &mut Vec::new()), params, scheme, None)
            }
        };
        let place = |element: usize| match view.feature_step {
            1 => (element / view.row_step, element % view.row_step),
            step => (element % step, element / step),
        };
        let rows = view.rows / count.max(1);
        let mut shares: Vec<(u64, Vec<Pair>)> = (0..count).map(|_| (0, Vec::new())).collect();
        check.pairings[0].for_each_run(0..elements, |first, second, step, count| {
            for i in 0..count {
                let elements = [first + i * step, second + i * step];
                let (row, feature) = place(elements[0]);
                let (_, other) = place(elements[1]);
                let (pairs, possible) = &mut shares[row / rows];
                *pairs += 1;
                let codes = elements.map(|element| i32::from(codes[element] as i8));
                if could_saturate(codes) {
                    possible.push(Pair { features: [feature as u32, other as u32], codes });
                }
            }
        });
        Ok(shares)
    }
}

impl Share {
    /// Sums that saturate, and sums, of evenly spaced rows of inputs, so many that about `most` sums are computed.
    fn count(&self, rows: &[f32], features: usize, params: Params, codes: CodeType, most: u64) -> [u64; 2] {
        let count = rows.len() / features.max(1);
        let work = count as u64 * self.possible.len() as u64;
        let step = usize::try_from(work.div_ceil(most.max(1))).unwrap_or(usize::MAX).max(1);
        // Kernels make unsigned codes of signed ones: the top bit is the other way round.
        let flip = if codes.is_signed() { 0x80 } else { 0 };
        let (mut quantized, mut saturated, mut looked_at) = (vec![0; features], 0, 0);
        for row in rows.chunks_exact(features.max(1)).step_by(step) {
            kernel::quantize(row, params, Arithmetic::Divide, codes.grid(), &mut quantized);
            looked_at += 1;
            let exceeds = |pair: &&Pair| {
                let [a, b] = pair.features.map(|feature| i32::from(quantized[feature as usize] ^ flip));
                i16::try_from(a * pair.codes[0] + b * pair.codes[1]).is_err()
            };
            saturated += self.possible.iter().filter(exceeds).count() as u64;
        }
        [saturated, looked_at * self.pairs]
    }
}

/// Parameters as DynamicQuantizeLinear finds them.
fn dynamic_params(values: &[f32]) -> Params {
    let min = values.iter().copied().fold(0.0, f32::min);
    let max = values.iter().copied().fold(0.0, f32::max);
    ParamRule::new(Convention::Ort, CodeType::Uint8, false, Dtype::F32).choose_params(Range { min, max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_codes() {
        let pair = |features: [u32; 2], codes: [i32; 2]| Pair { features, codes };
        let possible = vec![pair([0, 1], [127, 127]), pair([2, 3], [-100, -100]), pair([0, 3], [100, 29])];
        let share = Share { tensor: 0, possible, pairs: 10, params: None };
        let params = Params { scale: 1.0, zero_point: 0 };
        // 129 * 127 + 130 * 127 = 32893, 160 * -100 + 168 * -100 = -32800, 255 * 129 = 32895.
        let rows = [129.0, 130.0, 160.0, 168.0, 129.0, 129.0, 163.0, 164.0, 255.0, 0.0, 0.0, 300.0];
        assert_eq!(share.count(&rows, 4, params, CodeType::Uint8, 1 << 20), [3, 30]);
        // The same codes from int8 activations.
        let params = Params { scale: 1.0, zero_point: -128 };
        assert_eq!(share.count(&rows, 4, params, CodeType::Int8, 1 << 20), [3, 30]);
        // Every other row: the first and the third.
        assert_eq!(share.count(&rows, 4, Params { scale: 1.0, zero_point: 0 }, CodeType::Uint8, 5), [3, 20]);
    }
}
