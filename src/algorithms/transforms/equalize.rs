//! Cross-layer equalization: channels between two layers get weights of the same size on both sides.
//!
//! ```text
//! s[c] = (max |W1[c]| / max |W2[:, c]|)^(1/2),   W1' = diag(s)^-1 W1,   b1' = diag(s)^-1 b1,   W2' = W2 diag(s)
//! ```
//!
//! [Nagel et al. 2019](https://arxiv.org/abs/1906.04721), equation 11, with powers of `s` below 1 tried too: where weights have
//! a scale for each channel, the range of the activation counts more than theirs. A place is changed where its layers are expected
//! to gain (see `site`), and all are visited until none gains.

use super::TransformEntry;
use super::on_graph::{Folding, OnGraph};
use super::site::{Extremes, Site, balanced};
use crate::graph::folds::Fold;

pub(super) const ENTRY: TransformEntry = TransformEntry {
    name: "equalize",
    parameter: None,
    summary: "channels between layers of an ONNX model get weights of the same size on both sides",
    checkpoint: None,
    graph: Some(OnGraph::Before(&Equalize)),
};

struct Equalize;

/// Powers of the factors that are tried.
const POWERS: [f64; 4] = [0.25, 0.5, 0.75, 1.0];

/// Most rounds, as chains of hundreds of layers take.
const ROUNDS: usize = 10;

impl Folding for Equalize {
    fn factors(&self, _value: Option<f64>, site: &Site<'_>, _inputs: &Extremes) -> Vec<Vec<f32>> {
        let (before, after) = (site.largest_before(), site.largest_after());
        let factors = |power: &f64| {
            let factor = |(before, after): (&f32, &f32)| match f64::from(*before) / f64::from(*after) {
                ratio if ratio.is_normal() => ratio.powf(power / 2.0),
                _ => 1.0,
            };
            balanced(before.iter().zip(&after).map(factor).collect())
        };
        POWERS.iter().map(factors).collect()
    }

    fn is_for(&self, fold: &Fold) -> bool {
        !fold.before.is_empty()
    }

    fn expected(&self) -> &'static str {
        "a layer whose outputs reach others only by way of what rectifies, pools, adds or multiplies"
    }

    fn rounds(&self) -> usize {
        ROUNDS
    }
}
