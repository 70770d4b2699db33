//! Which layers to spare when quantizing all of them costs too much: found by measurement, greedily.
//!
//! 1. Everything is quantized and measured. Where the worst output keeps enough signal, nothing changes.
//! 2. Another observer for all values is tried, which may be all that it takes.
//! 3. Each layer is quantized alone: its noise is what sparing it gains.
//! 4. Of the layers that cost most, every value is quantized alone with several observers, and takes the best.
//! 5. Matrix products that lose much by fixed ranges find theirs when the model runs, which is still in integers.
//! 6. Others, and small weights that are stored as codes but computed with in float, go on in float: those first that gain
//!    most for their multiply-adds, of which at least nine tenths stay in integers.
//!    After each round everything is measured again.
//!
//! What was found is a recipe: rules and observers that make the same choice without measuring.

use super::cost;
use super::measure::{Bench, Noise, Setup, sqnr_db, unmeasured};
use super::simulate::Trial;
use super::units::{State, TOO_LITTLE, Unit, add, descending, predicted, refined_count, spare, worst};
use crate::calibration::ranges::{self, Ranges};
use crate::calibration::stats::Statistics;
use crate::error::{Error, Result};
use crate::graph::activations::RangeSource;
use crate::method::Method;
use crate::outputs::onnx::rewrite::ParamsOf;
use crate::plan::{LayerMode, Plan};
use crate::quant::params::Params;
use crate::recipe::{Activations, Mode, Pattern, Recipe, Rule, Weights};
use crate::stream::Progress;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

/// Signal to noise in dB that the worst output is to keep, unless another is asked for: about where the decisions of
/// classifiers and detectors begin to differ from those of the float model.
pub const DEFAULT_MIN_SQNR_DB: f64 = 25.0;

/// Multiply-adds that measuring may take, about: some seconds on one core. It decides how many samples are used.
const WORK: f64 = 1e10;

/// Samples that are used, at least and at most.
const SAMPLES: (usize, usize) = (1, 8);

/// How much more is asked for at a time while too many decisions change, in dB, and how often.
const RAISE_DB: f64 = 3.0;
const RAISES: usize = 8;

/// Samples that everything together is measured on, at least: it decides what is reported.
pub(super) const CHECKED_SAMPLES: usize = 4;

/// An observer is replaced by one with less than this share of its noise: those in use are not for small gains.
const WORTH_IT: f64 = 0.8;

/// Weights that are only stored as codes may be spared if they are no more than this share of all.
const SMALL_TENSOR: f64 = 0.02;

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
    /// Share of decisions that changed, 0 to 1, and the largest that was asked for, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decisions: Option<Decisions>,
}

/// Decisions of the output that changes most of them: rows of classes whose largest value is another.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Decisions {
    /// Share that changed, 0 to 1.
    pub changed: f64,
    /// Largest share that was asked for.
    pub max_changed: f64,
}

impl Findings {
    /// Of a model in which nothing was changed.
    fn of(bench: &Bench<'_>, min_sqnr_db: f64, noise: &Noise) -> Self {
        Findings {
            samples: bench.samples(),
            min_sqnr_db,
            all_quantized_db: sqnr_db(noise),
            sqnr_db: sqnr_db(noise),
            spared: Vec::new(),
            dynamic: Vec::new(),
            observer: None,
            observers: BTreeMap::new(),
            decisions: None,
        }
    }

    fn note_observer(&mut self, chosen: &Recipe, asked_for: &Recipe) {
        let observer = &chosen.activations.observer;
        self.observer = (*observer != asked_for.activations.observer).then(|| observer.clone());
    }
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
    /// Largest share of decisions that may change, 0 to 1, if that is a condition too.
    pub max_drop: Option<f64>,
    pub ranges: &'a Ranges<'a>,
    /// The plan of a recipe.
    pub plan_of: &'a dyn Fn(&Recipe) -> Result<Plan>,
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

impl<'a> Search<'a> {
    /// As [`Search::run_for`]; then for more and more, until no more decisions change than may, or nothing helps.
    fn run(&self, progress: &dyn Progress) -> Result<(Recipe, Findings)> {
        let mut best = self.run_for(self.min_sqnr_db, progress)?;
        let Some(max_changed) = self.max_drop else { return Ok(best) };
        let changed = |found: &Findings| found.decisions.map_or(0.0, |decisions| decisions.changed);
        let mut wanted = self.min_sqnr_db.max(best.1.sqnr_db.floor());
        for _ in 0..RAISES {
            if changed(&best.1) <= max_changed {
                break;
            }
            wanted += RAISE_DB;
            let next = self.run_for(wanted, progress)?;
            let is_last = next.1.sqnr_db < wanted;
            if changed(&next.1) < changed(&best.1) {
                best = next;
            }
            if is_last {
                break;
            }
        }
        Ok(best)
    }

    /// Spares layers until the worst output keeps so much, in dB.
    fn run_for(&self, min_sqnr_db: f64, progress: &dyn Progress) -> Result<(Recipe, Findings)> {
        let (recipe, mut found, run) = self.spare(min_sqnr_db, progress)?;
        if let Some(max_changed) = self.max_drop {
            let changed = run.changed_decisions(&(self.plan_of)(&recipe)?, &recipe)?;
            let missing = || Error::Usage("--max-drop: expected an output of classes, found none".into());
            found.decisions = Some(Decisions { changed: changed.ok_or_else(missing)?, max_changed });
        }
        Ok((recipe, found))
    }

    fn spare<'s>(&'s self, min_sqnr_db: f64, progress: &'s dyn Progress) -> Result<(Recipe, Findings, Run<'s, 'a>)> {
        let costs = cost::of_layers(self.setup.model, self.plan, self.statistics);
        let mut units = self.units(&costs, SMALL_TENSOR);
        let per_sample = costs.values().sum::<u64>() as f64 / self.statistics.samples().max(1) as f64;
        let affordable = WORK / (per_sample * units.len() as f64).max(1.0);
        let few = (affordable as usize).clamp(SAMPLES.0, SAMPLES.1).min(self.setup.limit);
        let limit = few.max(CHECKED_SAMPLES).min(self.setup.limit);
        progress.begin_measurements(2);
        let bench = Bench::new(&Setup { limit, ..self.setup }, self.plan, self.weights)?;
        progress.advance(1);
        let run = Run { search: self, bench, few, progress, min_sqnr_db, allowed: 10f64.powf(-min_sqnr_db / 10.0) };
        let full = run.everything(self.plan, self.recipe)?;
        let mut found = Findings::of(&run.bench, min_sqnr_db, &full);
        if worst(&full) <= run.allowed || units.is_empty() {
            return Ok((self.recipe.clone(), found, run));
        }
        let (mut recipe, least) = run.best_observer(&full)?;
        found.note_observer(&recipe, self.recipe);
        if worst(&least) <= run.allowed {
            found.sqnr_db = sqnr_db(&least);
            return Ok((recipe, found, run));
        }
        let rest = run.measure_alone(&mut units, &recipe)?;
        let refined = refined_count(&units, run.allowed);
        found.observers = run.refine(&recipe, &mut units[..refined])?;
        recipe.activations.observers.extend(found.observers.clone());
        let already_float = 1.0 - cost::integer_share(self.plan, &costs).unwrap_or(1.0);
        let (recipe, noise) = run.spare_until_enough(&mut units, &rest, &recipe, already_float)?;
        if worst(&noise) >= worst(&full) {
            let found = Findings::of(&run.bench, min_sqnr_db, &full);
            return Ok((self.recipe.clone(), found, run));
        }
        let named = |state: State| {
            let chosen = units.iter().filter(move |unit| unit.state == state);
            chosen.map(|unit| self.setup.model.tensors()[unit.tensor].info.name.clone()).collect::<Vec<_>>()
        };
        (found.sqnr_db, found.spared, found.dynamic) = (sqnr_db(&noise), named(State::Float), named(State::Dynamic));
        Ok((recipe, found, run))
    }

    /// All that `plan` quantizes.
    pub(super) fn everything(&self, plan: &Plan, recipe: &Recipe) -> Result<Trial> {
        let dynamic = plan.layers_of(self.setup.onnx, LayerMode::Dynamic).map(|(layer, _)| layer).collect();
        Ok(Trial { weights: plan.quantized().collect(), values: self.params_of(plan, recipe)?, dynamic })
    }

    pub(super) fn params_of(&self, plan: &Plan, recipe: &Recipe) -> Result<BTreeMap<String, Params>> {
        Ok(ranges::params_of(&self.ranges.choose_all(&plan.values, recipe)?))
    }

    /// What may be spared: what runs in integers, and weights that are only stored as codes up to a share of the elements of all.
    pub(super) fn units(&self, costs: &BTreeMap<usize, u64>, largest_stored: f64) -> Vec<Unit> {
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
        for (number, tensor) in small.filter(|(_, tensor)| of(*tensor) <= largest_stored * all) {
            let stored = Unit { layers: vec![number], size: of(tensor) / all, is_product: false, ..Unit::new(tensor) };
            units.entry(tensor).or_insert(stored);
        }
        units.into_values().collect()
    }

    /// `recipe` with a rule for each layer that is not static any more.
    fn with_rules(&self, recipe: &Recipe, units: &[Unit], min_sqnr_db: f64) -> Recipe {
        let mut recipe = recipe.clone();
        let allowed = 10f64.powf(-min_sqnr_db / 10.0);
        let mut chosen: Vec<&Unit> = units.iter().filter(|unit| unit.state != State::Planned).collect();
        chosen.sort_by_key(|unit| unit.tensor);
        for unit in chosen {
            let name = &self.setup.model.tensors()[unit.tensor].info.name;
            let (part, share) = (100.0 * worst(&unit.noise) / allowed, 100.0 * unit.share);
            let reason = format!("measured: adds {part:.0} % of the noise that {min_sqnr_db:.1} dB allow; {share:.2} % of multiply-adds");
            let rule = Rule { reason: Some(reason), ..Rule::new(Pattern::exact(name)) };
            recipe.rules.push(match unit.state {
                State::Dynamic => Rule { mode: Some(Mode::Dynamic), ..rule },
                _ => Rule { weights: Some(Weights::Keep), ..rule },
            });
        }
        recipe
    }
}

/// A search under way.
struct Run<'s, 'a> {
    search: &'s Search<'a>,
    bench: Bench<'a>,
    /// Samples that parts are measured on.
    few: usize,
    progress: &'s dyn Progress,
    min_sqnr_db: f64,
    /// The noise that the worst output may have.
    allowed: f64,
}

impl Run<'_, '_> {
    /// Noise of parts of the model.
    fn measure(&self, trials: &[Trial]) -> Result<Vec<Noise>> {
        self.progress.begin_measurements(trials.len() as u64);
        self.bench.noise(self.search.plan, trials, self.few, self.progress)
    }

    /// Noise of all that `plan` quantizes, with the observers of `recipe`.
    fn everything(&self, plan: &Plan, recipe: &Recipe) -> Result<Noise> {
        self.progress.begin_measurements(1);
        Ok(self.bench.noise(plan, &[self.search.everything(plan, recipe)?], self.bench.samples(), self.progress)?.remove(0))
    }

    /// Share of decisions that change with all that `plan` quantizes.
    fn changed_decisions(&self, plan: &Plan, recipe: &Recipe) -> Result<Option<f64>> {
        self.bench.changed_decisions(plan, &self.search.everything(plan, recipe)?)
    }

    /// The recipe with the observer for all values that loses least, and its noise; `full` is that of the recipe as it is.
    fn best_observer(&self, full: &Noise) -> Result<(Recipe, Noise)> {
        let mut best = (self.search.recipe.clone(), full.clone());
        for observer in candidates(&self.search.recipe.activations).into_iter().take(FOR_ALL) {
            let mut recipe = self.search.recipe.clone();
            recipe.activations.observer = observer;
            let noise = self.everything(self.search.plan, &recipe)?;
            if worst(&noise) < WORTH_IT * worst(&best.1) {
                best = (recipe, noise);
            }
        }
        Ok(best)
    }

    /// Measures every unit alone, and sorts them by what they cost, dearest first; returns the noise of all that is no choice.
    fn measure_alone(&self, units: &mut [Unit], recipe: &Recipe) -> Result<Noise> {
        let Search { plan, setup, .. } = self.search;
        let params = self.search.params_of(plan, recipe)?;
        let select = |names: &BTreeSet<String>| names.iter().map(|name| (name.clone(), params[name])).collect::<BTreeMap<_, _>>();
        let of_units: BTreeSet<usize> = units.iter().map(|unit| unit.tensor).collect();
        let rest = Trial {
            weights: plan.quantized().filter(|tensor| !of_units.contains(tensor)).collect(),
            dynamic: plan.layers_of(setup.onnx, LayerMode::Dynamic).map(|(layer, _)| layer).collect(),
            ..Trial::default()
        };
        let alone = units.iter().map(|unit| Trial { weights: [unit.tensor].into(), values: select(&unit.values), ..Trial::default() });
        let mut noise = self.measure(&alone.chain([rest]).collect::<Vec<_>>())?;
        let rest = noise.pop().unwrap_or_default();
        units.iter_mut().zip(noise).for_each(|(unit, noise)| unit.noise = noise);
        units.sort_by(|a, b| descending(worst(&a.noise), worst(&b.noise)).then(a.tensor.cmp(&b.tensor)));
        Ok(rest)
    }

    /// Measures weights and values of `units` apart, lets each value have the observer that loses least, and corrects the
    /// noise of the units by it. Returns the observers that differ from the recipe's.
    fn refine(&self, recipe: &Recipe, units: &mut [Unit]) -> Result<BTreeMap<String, Method>> {
        let values: BTreeSet<String> = units.iter().flat_map(|unit| unit.values.clone()).collect();
        let own = |value: &String| recipe.activations.observer_of(value).clone();
        let quantize = |value: &String, method: &Method| -> Result<Trial> {
            let choice = self.search.ranges.choose(value, &self.search.plan.values.values[value], method)?;
            Ok(Trial { values: [(value.clone(), choice.params)].into(), ..Trial::default() })
        };
        let products: Vec<usize> = (0..units.len()).filter(|unit| units[*unit].is_product).collect();
        let mut trials: Vec<Trial> = values.iter().map(|value| quantize(value, &own(value))).collect::<Result<_>>()?;
        trials.extend(units.iter().map(|unit| Trial { weights: [unit.tensor].into(), ..Trial::default() }));
        trials.extend(products.iter().map(|unit| {
            let Unit { tensor, layers, .. } = &units[*unit];
            Trial { weights: [*tensor].into(), dynamic: layers.iter().copied().collect(), ..Trial::default() }
        }));
        let mut noise = self.measure(&trials)?;
        let with_dynamic = noise.split_off(values.len() + units.len());
        let of_weights = noise.split_off(values.len());
        let mut best: BTreeMap<&String, (Method, Noise)> =
            values.iter().zip(noise).map(|(value, noise)| (value, (own(value), noise))).collect();

        // Other observers for the values that matter.
        let matters = |value: &&String| {
            let is_observed = self.search.plan.values.values.get(value.as_str()) == Some(&RangeSource::Observed);
            is_observed && worst(&best[value].1) > TOO_LITTLE * self.allowed
        };
        let methods = candidates(&self.search.recipe.activations);
        let others = values.iter().filter(matters).flat_map(|value| methods.iter().map(move |method| (value, method)));
        let others: Vec<(&String, &Method)> = others.filter(|(value, method)| **method != own(value)).collect();
        let trials: Vec<Trial> = others.iter().map(|(value, method)| quantize(value, method)).collect::<Result<_>>()?;
        for ((value, method), noise) in others.into_iter().zip(self.measure(&trials)?) {
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

    /// Spares units until enough is left, by what is predicted, and measures what that gives. Returns the best recipe and its
    /// noise, and leaves the units as they are in it.
    fn spare_until_enough(&self, units: &mut [Unit], rest: &Noise, recipe: &Recipe, already_float: f64) -> Result<(Recipe, Noise)> {
        let mut best: Option<(Recipe, Noise, Vec<State>)> = None;
        for round in 0..ROUNDS {
            let trial = self.search.with_rules(recipe, units, self.min_sqnr_db);
            let noise = self.everything(&(self.search.plan_of)(&trial)?, &trial)?;
            let (now, predicted) = (worst(&noise), worst(&predicted(units, rest)));
            if best.as_ref().is_none_or(|(_, noise, _)| now < worst(noise)) {
                best = Some((trial, noise, units.iter().map(|unit| unit.state).collect()));
            }
            // What is predicted is off by so much.
            let off = (now / predicted.max(f64::MIN_POSITIVE)).clamp(0.25, 4.0);
            if now <= self.allowed || round + 1 == ROUNDS || !spare(units, rest, self.allowed / off, already_float) {
                break;
            }
        }
        let (recipe, noise, states) = best.expect("there is a round at least");
        units.iter_mut().zip(states).for_each(|(unit, state)| unit.state = state);
        Ok((recipe, noise))
    }
}
