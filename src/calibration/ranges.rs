//! CHOOSE: range, scale and zero point of every value of a model that is quantized, from statistics.

use super::stats::Statistics;
use crate::error::{Error, Result, show_name};
use crate::graph::activations::{QuantizedValues, RangeSource};
use crate::method::Method;
use crate::observers::{ObserverChoice, Target};
use crate::quant::params::{ParamRule, Params, Range};
use crate::quant::scheme::Convention;
use crate::recipe::Recipe;
use crate::tensor::Dtype;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Mutex;

/// What was chosen for one value.
#[derive(Clone, Debug)]
pub(crate) struct Choice {
    /// The observer, with its number.
    pub observer: Method,
    /// The range, with 0.
    pub range: Range,
    /// Scale and zero point.
    pub params: Params,
}

/// Chooses from statistics, each value with each observer once.
pub(crate) struct Ranges<'a> {
    path: &'a Path,
    statistics: &'a Statistics,
    rule: ParamRule,
    known: Mutex<HashMap<(String, String), Choice>>,
}

impl<'a> Ranges<'a> {
    /// For the types that `recipe` has for activations; `path` is the model's.
    pub(crate) fn new(path: &'a Path, statistics: &'a Statistics, recipe: &Recipe) -> Self {
        let settings = &recipe.activations;
        let rule = ParamRule::new(recipe.settings.convention.unwrap_or(Convention::Ort), settings.dtype, settings.symmetric, Dtype::F32);
        Ranges { path, statistics, rule, known: Mutex::default() }
    }

    /// For all `values`, with the observers of `recipe`.
    ///
    /// # Errors
    ///
    /// As [`Ranges::choose`].
    pub(crate) fn choose_all(&self, values: &QuantizedValues, recipe: &Recipe) -> Result<BTreeMap<String, Choice>> {
        let choose = |(name, source): (&String, &RangeSource)| {
            let origin = if let RangeSource::SameAs(origin) = source { origin } else { name };
            Ok((name.clone(), self.choose(name, source, recipe.activations.observer_of(origin))?))
        };
        values.values.iter().map(choose).collect()
    }

    /// For the value `name` with `observer`.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if there are no statistics of it; [`Error::Usage`] if there is no such observer, or not with
    /// these statistics.
    pub(crate) fn choose(&self, name: &str, source: &RangeSource, observer: &Method) -> Result<Choice> {
        let lock = "no thread panics while it holds this lock";
        let key = (name.to_owned(), observer.to_string());
        if let Some(choice) = self.known.lock().expect(lock).get(&key) {
            return Ok(choice.clone());
        }
        let observer = ObserverChoice::new(observer)?;
        let range = match source {
            RangeSource::Observed => self.observed(name, &observer)?,
            RangeSource::SameAs(origin) => self.observed(origin, &observer)?,
            RangeSource::Unit => Range { min: 0.0, max: 1.0 },
        };
        let choice = Choice { observer: observer.method(), range: range.with_zero(), params: self.rule.choose_params(range) };
        self.known.lock().expect(lock).insert(key, choice.clone());
        Ok(choice)
    }

    fn observed(&self, name: &str, observer: &ObserverChoice) -> Result<Range> {
        let missing = || {
            let error = Error::malformed(self.path, format!("value {}: expected statistics of it, found none", show_name(name)));
            error.with_hint("run `qtool calibrate` again with the options of this run")
        };
        let target = Target { rule: self.rule, single_batch: false };
        self.statistics.activations.get(name).ok_or_else(missing)?.range(observer, &target)
    }
}

/// The parameters among what was chosen.
pub(crate) fn params_of(choices: &BTreeMap<String, Choice>) -> BTreeMap<String, Params> {
    choices.iter().map(|(name, choice)| (name.clone(), choice.params)).collect()
}
