//! Transforms of ONNX models: channels of activations are divided where the graph lets factors be folded
//! ([`crate::graph::folds`]), each place by the factors that a transform proposes and its layers gain most by.

use super::site::{Before, Best, Extremes, Grid, Inputs, Site, Weight, part, summary};
use crate::calibration::inputs::stats::InputStats;
use crate::formats::onnx::proto::{GraphProto, TensorProto};
use crate::graph::channels::{Channels, tensor};
use crate::graph::folds::{Fold, Neighbour, Part};
use crate::plan::TensorScheme;
use std::collections::{BTreeMap, HashMap};

/// When a transform changes an ONNX model.
#[derive(Clone, Copy)]
pub(crate) enum OnGraph {
    /// Before ranges are observed.
    Before(&'static dyn Folding),
    /// When parameters of weights are known: biases take the mean error of outputs.
    Biases,
}

/// Proposes factors.
pub(crate) trait Folding: Sync {
    /// Factors that are tried at a place with such inputs, one a channel; `value` is the number that was given. How many there
    /// are does not depend on inputs.
    fn factors(&self, value: Option<f64>, site: &Site<'_>, inputs: &Extremes) -> Vec<Vec<f32>>;

    /// Whether it has anything to propose at a place.
    fn is_for(&self, fold: &Fold) -> bool;

    /// What such a place is, for errors.
    fn expected(&self) -> &'static str;

    /// How often all places are visited at most: a change at one may make another at the next worth while.
    fn rounds(&self) -> usize {
        1
    }
}

/// An activation and whether its channels are the last axis, and not axis 1.
pub(crate) type Watched = (String, bool);

/// The places of a graph, with what is known of them.
pub(crate) struct Places {
    folds: Vec<Fold>,
    inputs: BTreeMap<Watched, Inputs>,
    /// How weights are quantized that are.
    schemes: HashMap<String, TensorScheme>,
    /// Of activations that become integers.
    grids: HashMap<String, Grid>,
    threads: usize,
}

/// The activations that have to be watched, with the number of their channels.
pub(crate) fn watched(folds: &[Fold]) -> BTreeMap<Watched, usize> {
    let of_fold = |fold: &Fold| {
        let before = fold.before.iter().map(|layer| ((layer.input.clone(), fold.is_last), layer.inputs.count));
        let divided = fold.between.iter().chain([&fold.value]).map(|value| ((value.clone(), fold.is_last), fold.count));
        before.chain(divided).collect::<Vec<_>>()
    };
    folds.iter().flat_map(of_fold).collect()
}

impl Places {
    /// `stats` are those of the [`watched`] activations, of each half of the samples, parts above zero first, then parts below; `schemes` say how weights are
    /// quantized, `grids` how activations are, by name.
    pub(crate) fn new(
        folds: Vec<Fold>,
        stats: BTreeMap<Watched, Vec<InputStats>>,
        schemes: HashMap<String, TensorScheme>,
        grids: HashMap<String, Grid>,
        threads: usize,
    ) -> Self {
        let inputs = stats.into_iter().map(|(watched, halves)| (watched, inputs_of(&halves))).collect();
        Places { folds, inputs, schemes, grids, threads }
    }

    /// Changes the constants of `graph` wherever layers gain by it. Returns what was done, in a sentence.
    pub(crate) fn apply(&mut self, folding: &dyn Folding, value: Option<f64>, graph: &mut GraphProto) -> String {
        let places: HashMap<String, usize> = graph.initializer.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect();
        let mut gains = vec![1.0; self.folds.len()];
        for _ in 0..folding.rounds() {
            let mut is_done = true;
            for (number, fold) in self.folds.iter().enumerate().filter(|(_, fold)| folding.is_for(fold)) {
                let Some(site) = self.site(fold, |name| Some(&graph.initializer[*places.get(name)?])) else { continue };
                let Some(Best { factors, gain }) = site.best(|inputs| folding.factors(value, &site, inputs), self.threads) else {
                    continue;
                };
                drop(site);
                let Some(changed) = changed(fold, &factors, |name| Some(&graph.initializer[*places.get(name)?])) else { continue };
                changed.into_iter().for_each(|tensor| {
                    let place = places[&tensor.name];
                    graph.initializer[place] = tensor;
                });
                for value in fold.between.iter().chain([&fold.value]) {
                    let inputs = self.inputs.get_mut(&(value.clone(), fold.is_last)).expect("all of a fold is watched");
                    *inputs = inputs.divided(&factors);
                }
                gains[number] *= gain;
                is_done &= gain < WORTH_ANOTHER_ROUND;
            }
            if is_done {
                break;
            }
        }
        gains.retain(|gain| *gain > 1.0);
        summary(self.folds.iter().filter(|fold| folding.is_for(fold)).count(), &gains)
    }

    fn site<'s, 'g>(&'s self, fold: &Fold, constant: impl Fn(&str) -> Option<&'g TensorProto>) -> Option<Site<'s>> {
        let inputs = |value: &str| self.inputs.get(&(value.to_owned(), fold.is_last));
        let weight = |part: &Part| {
            let Part { name, channels } = part;
            Some(Weight { values: constant(name)?.to_floats()?, channels: *channels, scheme: self.schemes.get(name) })
        };
        let before = |layer: &Neighbour| {
            let squares = inputs(&layer.input)?.squares.clone();
            let outputs = &inputs(&layer.output)?.squares;
            let parts = inputs(&fold.value)?.squares.iter().zip(outputs).map(|(after, before)| part(*after, *before)).collect();
            Some(Before { weight: weight(&layer.weight)?, inputs: layer.inputs, squares, parts })
        };
        let site = Site {
            inputs: inputs(&fold.value)?.clone(),
            after: fold.after.iter().map(weight).collect::<Option<_>>()?,
            before: fold.before.iter().map(before).collect::<Option<_>>()?,
            between: fold.between.iter().filter_map(|value| Some((inputs(value)?.clone(), *self.grids.get(value)?))).collect(),
            grid: self.grids.get(&fold.value).copied(),
        };
        site.after.iter().any(|weight| weight.scheme.is_some()).then_some(site)
    }
}

/// How much less outputs have to change in one round for another to be worth its time: 0.04 dB.
const WORTH_ANOTHER_ROUND: f64 = 1.01;

/// All constants of a place with its factors in them; `None` if one would not be finite.
fn changed<'g>(fold: &Fold, factors: &[f32], constant: impl Fn(&str) -> Option<&'g TensorProto>) -> Option<Vec<TensorProto>> {
    let inverse: Vec<f32> = factors.iter().map(|factor| 1.0 / factor).collect();
    let multiplied = |name: &str, channels: Channels, factors: &[f32]| {
        let old = constant(name)?;
        let mut values = old.to_floats()?;
        let factors = channels.spread(factors, values.len());
        values.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
        tensor(old.name.clone(), old.data_type?, &old.dims, &values)
    };
    let divided = fold.divided.iter().map(|part| multiplied(&part.name, part.channels, &inverse));
    divided.chain(fold.after.iter().map(|part| multiplied(&part.name, part.channels, factors))).collect()
}

fn inputs_of(halves: &[InputStats]) -> Inputs {
    let rows: u64 = halves.iter().map(InputStats::rows).sum();
    let mut inputs = Inputs::default();
    for stats in halves {
        let (high, low) = stats.abs_max().split_at(stats.abs_max().len() / 2);
        inputs.extremes.push(Extremes { low: low.to_vec(), high: high.to_vec(), rows: stats.rows() });
        let squares = stats.mean_squares();
        let (above, below) = squares.split_at(squares.len() / 2);
        let share = stats.rows() as f64 / rows.max(1) as f64;
        inputs.squares.resize(above.len(), 0.0);
        inputs.squares.iter_mut().zip(above.iter().zip(below)).for_each(|(square, (above, below))| *square += share * (above + below));
    }
    inputs
}
