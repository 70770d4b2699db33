//! GPTQ: weights are rounded one feature after another, and what is left of the error of each goes to those that follow.
//!
//! ```text
//! code[b] = nearest(w[b] + sum over a > b of e[a] L[a][b] / L[b][b]),   e[b] = w[b] - (code[b] - zero_point) * scale
//! ```
//!
//! with the factor `L` of the damped Gram matrix of inputs ([`super::hessian`]), as
//! [Frantar et al. 2022](https://arxiv.org/abs/2210.17323). Scales of all groups are chosen before, from the weights as they
//! were, so that features can be taken by activation without an index of groups in the file.

use super::hessian::{Factor, FeatureOrder, Hessian, LANES};
use super::tile::{Codes, Tile};
use super::{Context, Rounding, RoundingEntry};
use crate::observers::Parameter;
use std::sync::Arc;

pub(crate) const ENTRY: RoundingEntry = RoundingEntry {
    name: "gptq",
    parameter: Some(DAMPING),
    summary: "errors are made good by later weights, those with the largest inputs first",
    prepare: Some(|damping, hessian, context| prepare(FeatureOrder::ByActivation, damping, &hessian, context)),
};

/// The same without the order of activations.
pub(crate) const AS_STORED: RoundingEntry = RoundingEntry {
    name: "gptq-in-order",
    parameter: Some(DAMPING),
    summary: "gptq, weights as they come",
    prepare: Some(|damping, hessian, context| prepare(FeatureOrder::AsStored, damping, &hessian, context)),
};

/// What is added to the diagonal, relative to its mean; 0.01 as the reference.
pub(super) const DAMPING: Parameter = Parameter { name: "DAMP", default: 0.01, min: 0.0, max: 1.0, is_whole: false };

struct Gptq {
    factor: Factor,
}

fn prepare(order: FeatureOrder, damping: f64, hessian: &Hessian, context: Context) -> Arc<dyn Rounding> {
    Arc::new(Gptq { factor: hessian.factor(order, damping, context.threads) })
}

impl Rounding for Gptq {
    fn round(&self, tile: &Tile) -> Codes {
        round(&self.factor, tile)
    }

    fn factor(&self) -> &Factor {
        &self.factor
    }
}

/// Rounds each feature to the code nearest to its target.
pub(super) fn round(factor: &Factor, tile: &Tile) -> Codes {
    let n = tile.weights.len();
    let (mut codes, mut errors) = (vec![[0; LANES]; n], vec![[0.0; LANES]; n]);
    factor.sweep(&tile.weights, &mut errors, |position, targets| {
        codes[position] = tile.codes(position, targets);
        tile.values(position, &codes[position])
    });
    codes
}
