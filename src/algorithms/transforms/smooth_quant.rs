//! SmoothQuant: features with large inputs are divided by a factor, and the weights that meet them multiplied by it.
//!
//! ```text
//! X W^T = (X diag(s)^-1) (W diag(s))^T,   s[j] = max |X[:, j]|^alpha / max |W[:, j]|^(1 - alpha)
//! ```
//!
//! [Xiao et al. 2022](https://arxiv.org/abs/2211.10438), equation 4. The division is folded into the norm, or the Linear module,
//! that the inputs come from. Without a number `alpha` is searched for at each place, by the expected change of outputs (see
//! `site`). Where no `alpha` gains, nothing is changed.

use super::architectures::{self, Place};
use super::on_graph::{Folding, OnGraph};
use super::site::{Best, Extremes, Grid, Inputs, Site, Weight, balanced, summary};
use super::{Calibrated, Transform, TransformEntry};
use crate::calibration::inputs::stats::{Detail, InputStats};
use crate::error::Result;
use crate::graph::channels::Channels;
use crate::graph::folds::Fold;
use crate::model::Model;
use crate::observers::Parameter;
use crate::plan::{Decision, Plan, TensorScheme};
use crate::recipe::Mode;

pub(super) const ENTRY: TransformEntry = TransformEntry {
    name: "smooth-quant",
    // Without a number it is searched for, so that the default stands for nothing.
    parameter: Some(Parameter { name: "ALPHA", default: 0.5, min: 0.0, max: 1.0, is_whole: false }),
    summary: "large inputs are made smaller and their weights larger; how much is searched for unless ALPHA says it",
    checkpoint: Some(&SmoothQuant),
    graph: Some(OnGraph::Before(&SmoothQuant)),
};

struct SmoothQuant;

/// Values of alpha that are tried.
const ALPHAS: [f64; 9] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];

/// Steps of codes of eight bits.
const STEPS: f64 = 255.0;

/// The smallest maximum that is taken for one, as the reference has it.
const SMALLEST: f32 = 1e-5;

impl Folding for SmoothQuant {
    fn factors(&self, alpha: Option<f64>, site: &Site<'_>, inputs: &Extremes) -> Vec<Vec<f32>> {
        let (inputs, weights) = (inputs.abs_max(), site.largest_after());
        let factors = |alpha: &f64| {
            let factor = |(input, weight): (&f32, &f32)| {
                let factor = f64::from(input.max(SMALLEST)).powf(*alpha) / f64::from(weight.max(SMALLEST)).powf(1.0 - alpha);
                factor.max(f64::from(SMALLEST))
            };
            balanced(inputs.iter().zip(&weights).map(factor).collect())
        };
        alpha.as_ref().map_or(&ALPHAS[..], std::slice::from_ref).iter().map(factors).collect()
    }

    fn is_for(&self, _fold: &Fold) -> bool {
        true
    }

    fn expected(&self) -> &'static str {
        "a norm or a layer whose outputs reach others only by way of what rectifies, pools, adds or multiplies"
    }
}

impl Transform for SmoothQuant {
    fn apply(&self, alpha: Option<f64>, calibrated: Calibrated<'_>) -> Result<String> {
        let Calibrated { model, plan, inputs, layers, context } = calibrated;
        let places = architectures::places(model)?;
        let mut gains = Vec::new();
        for place in &places {
            let known: Vec<(usize, &str)> =
                place.after.iter().filter_map(|tensor| Some((*tensor, layers.get(tensor)?.inputs.first()?.as_str()))).collect();
            let Some((_, first)) = known.first().filter(|_| known.len() == place.after.len()) else { continue };
            let stats = inputs.inputs(first, Detail::Features, context.threads)?;
            let site = site_of(model, plan, place, &stats);
            drop(stats);
            let best = site.best(|inputs| self.factors(alpha, &site, inputs), context.threads);
            drop(site);
            let Some(Best { factors, gain }) = best else { continue };
            let inverse: Vec<f32> = factors.iter().map(|factor| 1.0 / factor).collect();
            let is_copied = |tensor: usize| matches!(plan.decisions[tensor], Decision::Keep { .. });
            [Some(place.before), place.bias]
                .into_iter()
                .flatten()
                .for_each(|tensor| model.rescale(tensor, Some(&inverse), None, is_copied(tensor)));
            place.after.iter().for_each(|tensor| model.rescale(*tensor, None, Some(&factors), is_copied(*tensor)));
            known.iter().for_each(|(_, name)| inputs.divide(name, &factors));
            gains.push(gain);
        }
        Ok(summary(places.len(), &gains))
    }
}

fn site_of<'a>(model: &Model, plan: &'a Plan, place: &Place, stats: &InputStats) -> Site<'a> {
    let weight = |tensor: &usize| {
        let elements = model.tensors()[*tensor].info.elements();
        let values = model.values(*tensor, 0..elements, &mut Vec::new()).to_vec();
        Weight { values, channels: Channels::columns(stats.abs_max().len(), elements), scheme: plan.scheme(*tensor) }
    };
    let after: Vec<Weight<'_>> = place.after.iter().map(weight).collect();
    let is_integer = |scheme: &TensorScheme| matches!(scheme.mode.unwrap_or(plan.mode), Mode::Static | Mode::Dynamic);
    let integers = after.iter().filter_map(|weight| weight.scheme).any(is_integer);
    let largest = stats.abs_max().to_vec();
    let extremes = Extremes { low: largest.clone(), high: largest, rows: stats.rows() };
    let inputs = Inputs { extremes: vec![extremes], squares: stats.mean_squares() };
    Site { inputs, after, before: Vec::new(), between: Vec::new(), grid: integers.then_some(Grid { steps: STEPS, symmetric: false }) }
}
