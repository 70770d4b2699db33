//! `memoryless-mse`: of min-max and up to 19 ranges each one percent narrower, the one with the least error.
//!
//! ```text
//! for i in 0..20:  p = 1 - i / 100,  range = (min * p, max * p),  error = sum(|x - x'|^2.4)
//! ```
//!
//! As `memoryless_mse` of [llm-compressor](https://github.com/vllm-project/llm-compressor) with its defaults
//! (`maxshrink` 0.2, `patience` 5, `grid` 100, `norm` 2.4). The search ends after five steps in which no group of the
//! tensor improved, so what one group gets depends on the others. Under the convention `compressed-tensors` every step
//! is rounded to the weight's type as there; sums are taken in f64. "Memoryless": the last batch counts; of a summary, all do.

use super::summary::Summary;
use super::{Batch, Observer, ObserverEntry, Target, Values};
use crate::quant::kernel::{Arithmetic, dequantize, quantize};
use crate::quant::params::{ParamRule, Range};
use crate::quant::scheme::Convention;
use crate::tensor::{Dtype, round_to};

pub(super) const ENTRY: ObserverEntry = ObserverEntry {
    name: "memoryless-mse",
    parameter: None,
    summary: "llm-compressor's search: up to 20 % narrower than min-max, error to the power 2.4",
    build: |_, target| Box::new(MemorylessMse { target: *target, range: Range::EMPTY }),
    from_summary: |_, summary, target| Some(of_summary(summary, &target.rule)),
    joint: Some(|groups, _, target| search(&groups.iter().map(Group::of).collect::<Vec<_>>(), &target.rule)),
    extent_only: false,
    looks_at_inputs: false,
};

const STEPS: usize = 20;
const GRID: f64 = 100.0;
const PATIENCE: usize = 5;
const EXPONENT: f64 = 2.4;

struct MemorylessMse {
    target: Target,
    range: Range,
}

impl Observer for MemorylessMse {
    fn observe(&mut self, batch: Batch<'_>) {
        self.range = search(&[Group::of(&batch)], &self.target.rule)[0];
    }

    fn range(&self) -> Range {
        self.range
    }
}

/// Values that share a range.
struct Group<'a> {
    extent: Range,
    values: &'a dyn Values,
    /// How often each value counts, if not once.
    weights: Option<&'a [f32]>,
}

impl<'a> Group<'a> {
    fn of(batch: &Batch<'a>) -> Self {
        Group { extent: batch.extent, values: batch.values, weights: None }
    }
}

fn of_summary(summary: &Summary, rule: &ParamRule) -> Range {
    let (means, counts) = summary.points();
    search(&[Group { extent: summary.extent, values: &means, weights: Some(&counts) }], rule)[0]
}

fn search(groups: &[Group<'_>], rule: &ParamRule) -> Vec<Range> {
    let dtype = computed_in(rule);
    // An error counts if it is below the largest finite number.
    let mut best: Vec<(f64, Range)> = groups.iter().map(|group| (f64::from(dtype.largest()), group.extent)).collect();
    let mut idle = 0;
    for step in 0..STEPS {
        let share = (1.0 - step as f64 / GRID) as f32;
        let mut improved = false;
        for (group, best) in groups.iter().zip(&mut best) {
            let Range { min, max } = group.extent;
            let range = Range { min: round_to(dtype, min * share), max: round_to(dtype, max * share) };
            let error = error(group, range, rule, dtype);
            if error < best.0 {
                *best = (error, range);
                improved = true;
            }
        }
        idle = if improved { 0 } else { idle + 1 };
        if idle == PATIENCE {
            break;
        }
    }
    best.into_iter().map(|(_, range)| range).collect()
}

/// The type that every step is rounded to.
fn computed_in(rule: &ParamRule) -> Dtype {
    match (rule.convention, rule.dtype) {
        (Convention::CompressedTensors, dtype @ (Dtype::F16 | Dtype::BF16)) => dtype,
        _ => Dtype::F32,
    }
}

fn error(group: &Group<'_>, range: Range, rule: &ParamRule, dtype: Dtype) -> f64 {
    let params = rule.choose_params(range);
    let arithmetic = Arithmetic::of(rule.convention, rule.dtype);
    let narrow = dtype != Dtype::F32;
    let exponent = if narrow { f64::from(round_to(dtype, EXPONENT as f32)) } else { EXPONENT };
    let (mut codes, mut back) = (Vec::new(), Vec::new());
    let mut sum = 0f64;
    let mut weights = group.weights.unwrap_or_default();
    group.values.for_each_piece(&mut |piece| {
        codes.resize(piece.len(), 0);
        back.resize(piece.len(), 0.0);
        if rule.grid.fits_a_byte() {
            quantize(piece, params, arithmetic, rule.grid, &mut codes);
            dequantize(&codes, rule.grid.qmin < 0, params, &mut back);
        } else {
            back.iter_mut().zip(piece).for_each(|(back, x)| *back = params.fake_quantize(*x, rule.grid));
        }
        for (x, back) in piece.iter().zip(&back) {
            let lost = f64::from(round_to(dtype, round_to(dtype, *back) - x).abs()).powf(exponent);
            // Each power is rounded to the type, f32 included: powers of the smallest values become 0.
            let weight = weights.split_off_first().map_or(1.0, |weight| f64::from(*weight));
            sum += weight * f64::from(round_to(dtype, lost as f32));
        }
    });
    if narrow { f64::from(round_to(dtype, sum as f32)) } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::scheme::CodeType;

    /// The error of codes of 16 bits is so small that each percent of a range costs more.
    #[test]
    fn wide_codes_keep_the_whole_range() {
        let row: Vec<f32> = (0..4000).map(|i| (i as f32 / 2000.0 - 1.0).powi(3)).collect();
        for codes in [CodeType::Int16, CodeType::Uint16, CodeType::Int8] {
            let rule = ParamRule::new(Convention::Ort, codes, false, Dtype::F32);
            let extent = Range { min: -1.0, max: row[3999] };
            let found = search(&[Group { extent, values: &row.as_slice(), weights: None }], &rule)[0];
            assert!(found.max >= extent.max * 0.98 && found.min <= extent.min * 0.98, "{codes}: {found:?}");
        }
    }
}
