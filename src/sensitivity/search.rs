//! Which layers to spare when quantizing all of them costs too much: found by measurement, greedily.
//!
//! 1. Everything is quantized and measured. Where the worst output keeps enough signal, nothing changes.
//! 2. Another observer for all values is tried, which may be all that it takes.
//! 3. Each layer is quantized alone: its noise is what sparing it gains.
//! 4. Of the layers that cost most, every value is quantized alone with several observers, and takes the best.
//! 5. Matrix products that lose much by fixed ranges find theirs when the model runs, which is still in integers.
//! 6. Others, and small weights that are stored as codes but computed with in float, go on in float: those first that gain most for their multiply-adds, of which at least
//!    [`LEAST_INTEGER_SHARE`] stay in integers. After each round everything is measured again.
//!
//! What was found is a recipe: rules and observers that make the same choice without measuring.

use super::cost;
use super::measure::{Bench, Noise, Setup, sqnr_db, unmeasured};
use super::simulate::Trial;
use crate::calibration::ranges::{self, Ranges};
use crate::calibration::stats::Statistics;
use crate::error::Result;
use crate::graph::activations::RangeSource;
use crate::method::Method;
use crate::outputs::onnx::rewrite::ParamsOf;
use crate::plan::{LayerMode, Plan};
use crate::quant::params::Params;
use crate::recipe::{Activations, Mode, Pattern, Recipe, Rule, Weights};
use crate::stream::Progress;
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Signal to noise in dB that the worst output is to keep, unless another is asked for: about where the decisions of
/// classifiers and detectors begin to differ from those of the float model.
pub const DEFAULT_MIN_SQNR_DB: f64 = 25.0;

/// Share of the multiply-adds, of layers with constant weights, that stays in integers whatever is lost.
const LEAST_INTEGER_SHARE: f64 = 0.9;

/// Share of the elements of weights that become floats again at most: the output is to be small, too.
const MOST_FLOAT_SIZE: f64 = 0.1;

/// Multiply-adds that measuring may take, about: some seconds on one core. It decides how many samples are used.
const WORK: f64 = 1e10;

/// Samples that are used, at least and at most.
const SAMPLES: (usize, usize) = (1, 8);

/// Samples that everything together is measured on, at least: it decides what is reported.
const CHECKED_SAMPLES: usize = 4;

/// Most layers whose values are measured with several observers.
const REFINED_LAYERS: usize = 16;

/// What the layers that are not refined may add, as a share of the noise that is allowed.
const NEGLIGIBLE: f64 = 0.25;

/// An observer is replaced by one with less than this share of its noise: those in use are not for small gains.
const WORTH_IT: f64 = 0.8;

/// A layer that adds less than this share of the noise that is allowed is never spared.
const TOO_LITTLE: f64 = 0.02;

/// Weights that are only stored as codes may be spared if they are no more than this share of all.
const SMALL_TENSOR: f64 = 0.02;

/// What sparing any layer costs, as a share of all multiply-adds: values are converted around it.
const FIXED_COST: f64 = 0.003;

/// Most rounds of sparing layers.
const ROUNDS: usize = 5;

/// Observers that are tried besides the one in use: for all values together the first few. None, if one was asked for.
fn candidates(asked_for: &Activations) -> Vec<Method> {
    if asked_for.observer != Activations::default().observer {
        return Vec::new();
    }
    let percentile = |value| Method { name: "percentile".into(), value: Some(value) };
    vec![percentile(99.99), Method::new("mse"), Method::new("min-max"), percentile(99.9)]
}

/// How many of them are tried for all values together.
const FOR_ALL: usize = 2;

/// What was measured, for people and programs.
#[derive(Clone, Debug, Serialize)]
pub struct Findings {
    /// Samples that it was measured on.
    pub samples: usize,
    /// SQNR in dB that was asked for.
    pub min_sqnr_db: f64,
    /// SQNR in dB of the worst output with everything in integers.
    pub all_quantized_db: f64,
    /// SQNR in dB of the worst output as it was decided.
    pub sqnr_db: f64,
    /// Tensors whose layers go on in float.
    pub spared: Vec<String>,
    /// Tensors whose layers find the ranges of their inputs when the model runs.
    pub dynamic: Vec<String>,
    /// The observer of all other values, if it is another than was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observer: Option<Method>,
    /// Values with another observer.
    pub observers: BTreeMap<String, Method>,
}

/// What the search works with.
pub(crate) struct Search<'a> {
    pub setup: Setup<'a>,
    pub recipe: &'a Recipe,
    pub plan: &'a Plan,
    pub weights: &'a ParamsOf,
    pub statistics: &'a Statistics,
    /// Least SQNR of the worst output, in dB.
    pub min_sqnr_db: f64,
    pub ranges: &'a Ranges<'a>,
    /// The plan of a recipe.
    pub plan_of: &'a dyn Fn(&Recipe) -> Result<Plan>,
}

/// A weight that layers of the top graph compute with in integers, or a small one that is only stored as codes.
struct Unit {
    tensor: usize,
    layers: Vec<usize>,
    /// Its share of all multiply-adds.
    share: f64,
    /// Its share of the elements of all weights.
    size: f64,
    /// The values that its layers take and give.
    values: BTreeSet<String>,
    /// Whether ranges may be found when the model runs.
    is_product: bool,
    /// With all that it quantizes.
    noise: Noise,
    /// With ranges of its input found when the model runs, where that is better.
    dynamic_noise: Option<Noise>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// As the plan has it.
    Planned,
    Dynamic,
    Float,
}

impl Unit {
    /// Of no layer yet.
    fn new(tensor: usize) -> Self {
        Unit {
            tensor,
            layers: Vec::new(),
            share: 0.0,
            size: 0.0,
            values: BTreeSet::new(),
            is_product: true,
            noise: Noise::new(),
            dynamic_noise: None,
            state: State::Planned,
        }
    }

    /// What it adds as it is.
    fn current(&self) -> Option<&Noise> {
        match self.state {
            State::Planned => Some(&self.noise),
            State::Dynamic => self.dynamic_noise.as_ref(),
            State::Float => None,
        }
    }
}

/// The recipe to go on with and what was measured; the same recipe, and why, where the engine cannot measure.
pub(crate) fn search(search: &Search<'_>, progress: &dyn Progress) -> Result<(Recipe, Result<Findings, String>)> {
    match search.run(progress) {
        Ok((recipe, findings)) => Ok((recipe, Ok(findings))),
        // The float model ran before, so it is the engine that lacks something, and not the input that is wrong.
        Err(error) if error.exit_code() == 1 => Ok((search.recipe.clone(), Err(unmeasured(&error)))),
        Err(error) => Err(error),
    }
}

impl Search<'_> {
    fn run(&self, progress: &dyn Progress) -> Result<(Recipe, Findings)> {
        let Search { setup, recipe, plan, .. } = self;
        let onnx = setup.onnx;
        let costs = self.costs();
        let mut units = self.units(&costs);
        let per_sample = costs.values().sum::<u64>() as f64 / self.statistics.samples().max(1) as f64;
        let affordable = WORK / (per_sample * units.len() as f64).max(1.0);
        let few = (affordable as usize).clamp(SAMPLES.0, SAMPLES.1).min(setup.limit);
        let limit = few.max(CHECKED_SAMPLES).min(setup.limit);
        progress.begin_measurements(2);
        let bench = Bench::new(&Setup { limit, ..*setup }, plan, self.weights)?;
        progress.advance(1);
        let allowed = 10f64.powf(-self.min_sqnr_db / 10.0);
        let params = self.params_of(plan, recipe)?;
        let everything = |plan: &Plan, params: BTreeMap<String, Params>| Trial {
            weights: plan.quantized().collect(),
            values: params,
            dynamic: plan.layers_of(onnx, LayerMode::Dynamic).map(|(layer, _)| layer).collect(),
        };
        let measure = |trials: &[Trial]| bench.noise(plan, trials, few, progress);
        let full = bench.noise(plan, &[everything(plan, params.clone())], limit, progress)?.remove(0);
        let all_quantized_db = sqnr_db(&full);
        let mut found = Findings {
            samples: bench.samples(),
            min_sqnr_db: self.min_sqnr_db,
            all_quantized_db,
            sqnr_db: all_quantized_db,
            spared: Vec::new(),
            dynamic: Vec::new(),
            observer: None,
            observers: BTreeMap::new(),
        };
        if worst(&full) <= allowed || units.is_empty() {
            return Ok(((*recipe).clone(), found));
        }

        // Another observer for all values.
        let (mut recipe, mut least) = ((*recipe).clone(), full.clone());
        for observer in candidates(&self.recipe.activations).into_iter().take(FOR_ALL) {
            let mut trial_recipe = self.recipe.clone();
            trial_recipe.activations.observer = observer;
            let trial = everything(plan, self.params_of(plan, &trial_recipe)?);
            progress.begin_measurements(1);
            let measured = bench.noise(plan, &[trial], limit, progress)?.remove(0);
            if worst(&measured) < WORTH_IT * worst(&least) {
                (recipe, least) = (trial_recipe, measured);
            }
        }
        let observer = &recipe.activations.observer;
        found.observer = (*observer != self.recipe.activations.observer).then(|| observer.clone());
        if worst(&least) <= allowed {
            found.sqnr_db = sqnr_db(&least);
            return Ok((recipe, found));
        }
        let params = self.params_of(plan, &recipe)?;

        // Each layer alone, and all that is no choice.
        let of_units: BTreeSet<usize> = units.iter().map(|unit| unit.tensor).collect();
        let rest = Trial { values: BTreeMap::new(), ..everything(plan, BTreeMap::new()) };
        let rest = Trial { weights: rest.weights.difference(&of_units).copied().collect(), ..rest };
        let select = |names: &BTreeSet<String>| names.iter().map(|name| (name.clone(), params[name])).collect::<BTreeMap<_, _>>();
        let alone = units.iter().map(|unit| Trial { weights: [unit.tensor].into(), values: select(&unit.values), ..Trial::default() });
        let trials: Vec<Trial> = alone.chain([rest]).collect();
        progress.begin_measurements(trials.len() as u64);
        let mut noise = measure(&trials)?;
        let rest = noise.pop().unwrap_or_default();
        units.iter_mut().zip(noise).for_each(|(unit, noise)| unit.noise = noise);
        units.sort_by(|a, b| descending(worst(&a.noise), worst(&b.noise)).then(a.tensor.cmp(&b.tensor)));

        let refined = refined_count(&units, allowed);
        found.observers = self.refine(&recipe, &mut units[..refined], allowed, &measure, progress)?;
        recipe.activations.observers.extend(found.observers.clone());

        // Spares layers until enough is left, by what is predicted, and measures what that gives.
        let already_float = 1.0 - self.integer_share(&costs);
        let mut best: Option<(Recipe, Noise, Vec<State>)> = None;
        for round in 0..ROUNDS {
            let trial_recipe = self.with_rules(&recipe, &units, allowed);
            let trial_plan = (self.plan_of)(&trial_recipe)?;
            let trial_params = self.params_of(&trial_plan, &trial_recipe)?;
            progress.begin_measurements(1);
            let measured = bench.noise(&trial_plan, &[everything(&trial_plan, trial_params)], limit, progress)?.remove(0);
            let is_better = best.as_ref().is_none_or(|(_, noise, _)| worst(&measured) < worst(noise));
            if is_better {
                best = Some((trial_recipe, measured.clone(), units.iter().map(|unit| unit.state).collect()));
            }
            if worst(&measured) <= allowed || round + 1 == ROUNDS {
                break;
            }
            // What is predicted is off by so much.
            let off = (worst(&measured) / worst(&predicted(&units, &rest)).max(f64::MIN_POSITIVE)).clamp(0.25, 4.0);
            if !spare(&mut units, &rest, allowed / off, already_float) {
                break;
            }
        }
        let Some((recipe, noise, states)) = best.filter(|(_, noise, _)| worst(noise) < worst(&full)) else {
            (found.observer, found.observers) = (None, BTreeMap::new());
            return Ok((self.recipe.clone(), found));
        };
        let named = |state: State| {
            let chosen = units.iter().zip(&states).filter(move |(_, of_unit)| **of_unit == state);
            chosen.map(|(unit, _)| setup.model.tensors()[unit.tensor].info.name.clone()).collect::<Vec<_>>()
        };
        (found.sqnr_db, found.spared, found.dynamic) = (sqnr_db(&noise), named(State::Float), named(State::Dynamic));
        Ok((recipe, found))
    }

    fn params_of(&self, plan: &Plan, recipe: &Recipe) -> Result<BTreeMap<String, Params>> {
        Ok(ranges::params_of(&self.ranges.choose_all(&plan.values, recipe)?))
    }

    /// Multiply-adds of each layer over all samples of the statistics.
    fn costs(&self) -> BTreeMap<usize, u64> {
        cost::of_layers(self.setup.model, self.plan, self.statistics)
    }

    /// The share of multiply-adds that the plan has in integers.
    fn integer_share(&self, costs: &BTreeMap<usize, u64>) -> f64 {
        cost::integer_share(self.plan, costs).unwrap_or(1.0)
    }

    fn units(&self, costs: &BTreeMap<usize, u64>) -> Vec<Unit> {
        let onnx = self.setup.onnx;
        let total = costs.values().sum::<u64>().max(1) as f64;
        let mut units: BTreeMap<usize, Unit> = BTreeMap::new();
        for (number, layer) in self.plan.layers_of(onnx, LayerMode::Static) {
            let Some(tensor) = onnx.tensor(&layer.weight) else { continue };
            let unit = units.entry(tensor).or_insert_with(|| Unit::new(tensor));
            unit.layers.push(number);
            unit.share += costs.get(&number).copied().unwrap_or(0) as f64 / total;
            unit.is_product &= matches!(layer.op.as_str(), "MatMul" | "Gemm");
            unit.values.extend(onnx.node(layer).input(0).map(str::to_owned));
            unit.values.extend(self.plan.values.outputs.get(&number).map(|output| output.value.clone()));
        }
        let tensors = self.setup.model.tensors();
        let of = |tensor: usize| tensors[tensor].info.elements() as f64;
        let all: f64 = self.plan.quantized().map(of).sum();
        let small =
            self.plan.layers_of(onnx, LayerMode::WeightOnly).filter_map(|(number, layer)| Some((number, onnx.tensor(&layer.weight)?)));
        units.values_mut().for_each(|unit| unit.size = of(unit.tensor) / all);
        for (number, tensor) in small.filter(|(_, tensor)| of(*tensor) <= SMALL_TENSOR * all) {
            let stored = Unit { layers: vec![number], size: of(tensor) / all, is_product: false, ..Unit::new(tensor) };
            units.entry(tensor).or_insert(stored);
        }
        units.into_values().collect()
    }

    /// Measures weights and values of `units` apart, lets each value have the observer that loses least, and corrects the
    /// noise of the units by it. Returns the observers that differ from the recipe's.
    fn refine(
        &self,
        recipe: &Recipe,
        units: &mut [Unit],
        allowed: f64,
        measure: &dyn Fn(&[Trial]) -> Result<Vec<Noise>>,
        progress: &dyn Progress,
    ) -> Result<BTreeMap<String, Method>> {
        let values: BTreeSet<String> = units.iter().flat_map(|unit| unit.values.clone()).collect();
        let own = |value: &String| recipe.activations.observer_of(value).clone();
        let quantize = |value: &String, method: &Method| -> Result<Trial> {
            let choice = self.ranges.choose(value, &self.plan.values.values[value], method)?;
            Ok(Trial { values: [(value.clone(), choice.params)].into(), ..Trial::default() })
        };
        let products: Vec<usize> = (0..units.len()).filter(|unit| units[*unit].is_product).collect();
        let mut trials: Vec<Trial> = values.iter().map(|value| quantize(value, &own(value))).collect::<Result<_>>()?;
        trials.extend(units.iter().map(|unit| Trial { weights: [unit.tensor].into(), ..Trial::default() }));
        trials.extend(products.iter().map(|unit| {
            let Unit { tensor, layers, .. } = &units[*unit];
            Trial { weights: [*tensor].into(), dynamic: layers.iter().copied().collect(), ..Trial::default() }
        }));
        progress.begin_measurements(trials.len() as u64);
        let mut noise = measure(&trials)?;
        let with_dynamic = noise.split_off(values.len() + units.len());
        let of_weights = noise.split_off(values.len());
        let mut best: BTreeMap<&String, (Method, Noise)> =
            values.iter().zip(noise).map(|(value, noise)| (value, (own(value), noise))).collect();

        // Other observers for the values that matter.
        let matters = |value: &&String| {
            let is_observed = self.plan.values.values.get(value.as_str()) == Some(&RangeSource::Observed);
            is_observed && worst(&best[value].1) > TOO_LITTLE * allowed
        };
        let methods = candidates(&self.recipe.activations);
        let others = values.iter().filter(matters).flat_map(|value| methods.iter().map(move |method| (value, method)));
        let others: Vec<(&String, &Method)> = others.filter(|(value, method)| **method != own(value)).collect();
        let trials: Vec<Trial> = others.iter().map(|(value, method)| quantize(value, method)).collect::<Result<_>>()?;
        progress.begin_measurements(trials.len() as u64);
        for ((value, method), noise) in others.into_iter().zip(measure(&trials)?) {
            let entry = best.get_mut(value).expect("the value was measured with its own observer");
            let needed = if entry.0 == own(value) { WORTH_IT } else { 1.0 };
            if worst(&noise) < needed * worst(&entry.1) {
                *entry = (method.clone(), noise);
            }
        }

        for (unit, of_weight) in units.iter_mut().zip(of_weights) {
            unit.noise = unit.values.iter().filter_map(|value| best.get(value)).fold(of_weight, |sum, (_, noise)| add(&sum, noise));
        }
        for (unit, dynamic) in products.into_iter().zip(with_dynamic) {
            let is_better = worst(&dynamic) < WORTH_IT * worst(&units[unit].noise);
            units[unit].dynamic_noise = is_better.then_some(dynamic);
        }
        let changed = best.into_iter().filter(|(value, (method, _))| *method != own(value));
        Ok(changed.map(|(value, (method, _))| (value.clone(), method)).collect())
    }

    /// `recipe` with a rule for each layer that is not static any more.
    fn with_rules(&self, recipe: &Recipe, units: &[Unit], allowed: f64) -> Recipe {
        let mut recipe = recipe.clone();
        let mut chosen: Vec<&Unit> = units.iter().filter(|unit| unit.state != State::Planned).collect();
        chosen.sort_by_key(|unit| unit.tensor);
        for unit in chosen {
            let name = &self.setup.model.tensors()[unit.tensor].info.name;
            let (part, share) = (100.0 * worst(&unit.noise) / allowed, 100.0 * unit.share);
            let reason =
                format!("measured: adds {part:.0} % of the noise that {:.1} dB allow; {share:.2} % of multiply-adds", self.min_sqnr_db);
            let rule = Rule { reason: Some(reason), ..Rule::new(Pattern::exact(name)) };
            recipe.rules.push(match unit.state {
                State::Dynamic => Rule { mode: Some(Mode::Dynamic), ..rule },
                _ => Rule { weights: Some(Weights::Keep), ..rule },
            });
        }
        recipe
    }
}

/// How many of `units`, which come by descending noise, are worth a closer look.
fn refined_count(units: &[Unit], allowed: f64) -> usize {
    let mut left: f64 = units.iter().map(|unit| worst(&unit.noise)).sum();
    let mut count = 0;
    while count < units.len().min(REFINED_LAYERS) && left > NEGLIGIBLE * allowed {
        left -= worst(&units[count].noise);
        count += 1;
    }
    count
}

/// The noise of everything, by adding up.
fn predicted(units: &[Unit], rest: &Noise) -> Noise {
    units.iter().filter_map(Unit::current).fold(rest.clone(), |sum, noise| add(&sum, noise))
}

/// Spares units until no more than `allowed` is predicted; whether there was one to spare.
fn spare(units: &mut [Unit], rest: &Noise, allowed: f64, already_float: f64) -> bool {
    let mut is_any = false;
    while worst(&predicted(units, rest)) > allowed {
        let float = || units.iter().filter(|unit| unit.state == State::Float);
        let spent = already_float + float().map(|unit| unit.share).sum::<f64>();
        let spent_size = float().map(|unit| unit.size).sum::<f64>();
        let fits = |unit: &Unit| spent + unit.share <= 1.0 - LEAST_INTEGER_SHARE && spent_size + unit.size <= MOST_FLOAT_SIZE;
        // What each step gains, and what it costs.
        let step = |unit: &Unit| -> Option<(State, f64)> {
            let now = worst(unit.current()?);
            match (&unit.dynamic_noise, unit.state) {
                (Some(dynamic), State::Planned) => Some((State::Dynamic, (now - worst(dynamic)) / FIXED_COST)),
                _ if now < TOO_LITTLE * allowed || !fits(unit) => None,
                _ => Some((State::Float, now / (unit.share + FIXED_COST))),
            }
        };
        let steps = units.iter().enumerate().filter_map(|(i, unit)| step(unit).map(|(state, gain)| (i, state, gain)));
        let Some((i, state, _)) = steps.min_by(|a, b| descending(a.2, b.2).then(a.0.cmp(&b.0))) else { break };
        units[i].state = state;
        is_any = true;
    }
    is_any
}

fn worst(noise: &[f64]) -> f64 {
    noise.iter().copied().fold(0.0, f64::max)
}

fn add(a: &[f64], b: &[f64]) -> Noise {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn descending(a: f64, b: f64) -> Ordering {
    b.total_cmp(&a)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(tensor: usize, share: f64, noise: f64, dynamic_noise: Option<f64>) -> Unit {
        let dynamic_noise = dynamic_noise.map(|noise| vec![noise]);
        Unit { share, noise: vec![noise], dynamic_noise, ..Unit::new(tensor) }
    }

    struct Case {
        /// Share of multiply-adds, noise, noise with dynamic ranges.
        units: &'static [(f64, f64, Option<f64>)],
        already_float: f64,
        expected: &'static [State],
    }

    #[test]
    fn those_are_spared_that_gain_most_for_what_they_cost() {
        use State::{Dynamic, Float, Planned};
        let cases = [
            // Enough is left.
            Case { units: &[(0.5, 0.4, None), (0.5, 0.4, None)], already_float: 0.0, expected: &[Planned, Planned] },
            // The small one of two that lose the same.
            Case {
                units: &[(0.05, 0.8, None), (0.01, 0.8, None), (0.94, 0.1, None)],
                already_float: 0.0,
                expected: &[Planned, Float, Planned],
            },
            // Both, as one is not enough.
            Case {
                units: &[(0.05, 2.0, None), (0.01, 2.0, None), (0.94, 0.1, None)],
                already_float: 0.0,
                expected: &[Float, Float, Planned],
            },
            // Not more than a tenth.
            Case {
                units: &[(0.08, 2.0, None), (0.04, 2.0, None), (0.88, 0.1, None)],
                already_float: 0.0,
                expected: &[Planned, Float, Planned],
            },
            Case { units: &[(0.03, 2.0, None), (0.97, 0.1, None)], already_float: 0.08, expected: &[Planned, Planned] },
            // Dynamic ranges cost nothing, and are tried before.
            Case { units: &[(0.5, 2.0, Some(0.2)), (0.01, 0.3, None)], already_float: 0.0, expected: &[Dynamic, Planned] },
            Case { units: &[(0.05, 9.0, Some(2.0)), (0.95, 0.3, None)], already_float: 0.0, expected: &[Float, Planned] },
            // What adds next to nothing is left alone, whatever is missing.
            Case { units: &[(0.5, 2.0, None), (0.001, 0.01, None)], already_float: 0.0, expected: &[Planned, Planned] },
        ];
        for Case { units, already_float, expected } in cases {
            let mut found: Vec<Unit> =
                units.iter().enumerate().map(|(i, (share, noise, dynamic))| unit(i, *share, *noise, *dynamic)).collect();
            let is_any = spare(&mut found, &vec![0.0], 1.0, already_float);
            assert!(found.iter().map(|unit| unit.state).eq(expected.iter().copied()), "{units:?}");
            assert_eq!(is_any, expected.iter().any(|state| *state != Planned), "{units:?}");
        }
    }

    #[test]
    fn layers_are_looked_at_until_the_rest_is_negligible() {
        let units = |noise: &[f64]| noise.iter().enumerate().map(|(i, noise)| unit(i, 0.1, *noise, None)).collect::<Vec<_>>();
        assert_eq!(refined_count(&units(&[]), 1.0), 0);
        assert_eq!(refined_count(&units(&[0.1, 0.1]), 1.0), 0);
        assert_eq!(refined_count(&units(&[3.0, 0.2, 0.1, 0.01]), 1.0), 2);
        assert_eq!(refined_count(&units(&[1.0; 40]), 1.0), REFINED_LAYERS);
    }
}
