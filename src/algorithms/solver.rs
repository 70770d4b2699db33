//! Solves the layers of a model one at a time, each with all threads: memory stays bounded by the largest layer.

use super::Context;
use super::hessian::Hessian;
use super::solve::{Gain, Prepared, Problem, Solved, View};
use crate::calibration::inputs::LayerInputs;
use crate::calibration::inputs::stats::Detail;
use crate::error::{Error, Result, show_name};
use crate::model::Model;
use crate::plan::Plan;
use crate::quant::params::Params;
use crate::stream::observe;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

/// One quantized tensor whose layer's inputs are known.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// How its elements make a matrix.
    pub(crate) view: View,
    /// Names of the inputs of equal shares of its rows: one, but for grouped convolutions.
    pub(crate) inputs: Vec<String>,
}

/// Layers that are solved, and where their inputs are known from.
pub(crate) struct Solver<'a> {
    model: &'a Model,
    plan: &'a Plan,
    inputs: &'a LayerInputs,
    layers: BTreeMap<usize, Layer>,
    context: Context,
    working: Mutex<Recent>,
    gains: Mutex<BTreeMap<usize, Gain>>,
}

/// What was prepared last, by inputs and method: layers that have the same inputs follow each other.
type Recent = VecDeque<((blake3::Hash, String), Arc<Prepared>)>;

/// How many are remembered.
const REMEMBERED: usize = 2;

const UNPOISONED: &str = "no thread panics while it holds this lock";

impl<'a> Solver<'a> {
    pub(crate) fn new(model: &'a Model, plan: &'a Plan, inputs: &'a LayerInputs, layers: BTreeMap<usize, Layer>, context: Context) -> Self {
        Solver { model, plan, inputs, layers, context, working: Mutex::default(), gains: Mutex::default() }
    }

    /// Whether a tensor's codes are chosen here.
    pub(crate) fn is_for(&self, tensor: usize) -> bool {
        self.layers.contains_key(&tensor)
    }

    /// Parameters and codes of a tensor; parameters that are `known` are kept.
    ///
    /// # Errors
    ///
    /// [`crate::Error::NonFinite`] if the weight holds NaN or infinities; as [`LayerInputs::inputs`].
    pub(crate) fn solve(&self, tensor: usize, known: Option<&[Params]>) -> Result<Solved> {
        let solved = self.with_problem(tensor, |problem| {
            let params = match known {
                Some(known) => known.to_vec(),
                None => problem.choose(self.observed(tensor)?),
            };
            Ok(problem.round(params))
        })?;
        self.gains.lock().expect(UNPOISONED).insert(tensor, solved.gain);
        Ok(solved)
    }

    /// Parameters of a tensor.
    ///
    /// # Errors
    ///
    /// As [`Solver::solve`].
    pub(crate) fn params(&self, tensor: usize) -> Result<Vec<Params>> {
        self.with_problem(tensor, |problem| Ok(problem.choose(self.observed(tensor)?)))
    }

    /// Tensors whose codes are chosen here.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = usize> {
        self.layers.keys().copied()
    }

    fn observed(&self, tensor: usize) -> Result<Vec<Params>> {
        let scheme = self.plan.scheme(tensor).expect("only quantized tensors are solved");
        let ranges = observe::all_groups(self.model, tensor, scheme)?;
        Ok(ranges.into_iter().map(|range| scheme.rule.choose_params(range)).collect())
    }

    /// One at a time, as each works with all threads and takes memory.
    fn with_problem<T>(&self, tensor: usize, work: impl FnOnce(&Problem<'_>) -> Result<T>) -> Result<T> {
        let mut recent = self.working.lock().expect(UNPOISONED);
        observe::check_finite(self.model, tensor)?;
        let layer = &self.layers[&tensor];
        let scheme = self.plan.scheme(tensor).expect("only quantized tensors are solved");
        let prepared = layer.inputs.iter().map(|name| self.prepared(&mut recent, name, tensor)).collect::<Result<Vec<_>>>()?;
        let mut scratch = Vec::new();
        let elements = self.model.tensors()[tensor].info.elements();
        let values = self.model.values(tensor, 0..elements, &mut scratch);
        let problem = Problem::new(values, layer.view, scheme, &prepared, self.context);
        work(&problem.with_pairs(self.plan.pairs.get(&tensor)))
    }

    fn prepared(&self, recent: &mut Recent, name: &str, tensor: usize) -> Result<Arc<Prepared>> {
        let scheme = self.plan.scheme(tensor).expect("only quantized tensors are solved");
        let key = (self.inputs.fingerprint(name), scheme.rounding.method().to_string());
        if let Some((_, prepared)) = recent.iter().find(|(known, _)| *known == key) {
            return Ok(prepared.clone());
        }
        // Before the next is made, or both would be in memory.
        recent.truncate(REMEMBERED - 1);
        let stats = self.inputs.inputs(name, Detail::Gram, self.context.threads)?;
        let missing = || {
            let error = Error::Usage(format!("--stats: expected the Gram matrix of the inputs of {}, found none", show_name(name)));
            error.with_hint("run `qtool calibrate` without --ranges-only")
        };
        let mut gram = stats.gram().ok_or_else(missing)?;
        if let Some(divisors) = self.inputs.divisors(name) {
            gram.divide_features(divisors);
        }
        let hessian = Arc::new(Hessian::new(gram, stats.rows()));
        drop(stats);
        let prepared = Arc::new(Prepared { rounding: scheme.rounding.prepare(hessian.clone(), self.context), hessian });
        recent.push_front((key, prepared.clone()));
        Ok(prepared)
    }

    /// What was gained for each tensor that was solved.
    pub(crate) fn into_gains(self) -> BTreeMap<usize, Gain> {
        self.gains.into_inner().expect(UNPOISONED)
    }
}
