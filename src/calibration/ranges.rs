//! CHOOSE: range, scale and zero point of every value of a model that is quantized, from statistics or a file of ranges.

use super::stats::ActivationStats;
use super::tables::{GIVEN, Given, RangeTable};
use crate::error::{Error, Result, list_names, show_name};
use crate::graph::activations::{QuantizedValues, RangeSource};
use crate::method::Method;
use crate::observers::custom::{Command, Observers, Question, Subject};
use crate::observers::summary::Repeated;
use crate::observers::{ObserverChoice, Target};
use crate::quant::params::{ParamRule, Params, Range};
use crate::quant::scheme::{CodeType, Convention, Granularity};
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

/// Most values that a message lists.
const LISTED: usize = 4;

/// Most values of an activation that a command is given: 1 GiB of them.
const MOST_VALUES: u64 = 1 << 28;

/// Chooses from statistics, each value with each observer once.
pub(crate) struct Ranges<'a> {
    path: &'a Path,
    activations: &'a BTreeMap<String, ActivationStats>,
    table: Option<&'a RangeTable>,
    rule: ParamRule,
    observers: Observers,
    codes: CodeType,
    known: Mutex<HashMap<(String, String), Choice>>,
}

impl<'a> Ranges<'a> {
    /// For the types that `recipe` has for activations, which are floats of type `dtype` otherwise; `path` is the model's.
    pub(crate) fn new(path: &'a Path, activations: &'a BTreeMap<String, ActivationStats>, recipe: &Recipe, dtype: Dtype) -> Self {
        let settings = &recipe.activations;
        let rule = ParamRule::new(recipe.settings.convention.unwrap_or(Convention::Ort), settings.dtype, settings.symmetric, dtype);
        let observers = recipe.observers.clone();
        Ranges { path, activations, table: None, rule, observers, codes: settings.dtype, known: Mutex::default() }
    }

    /// The same, but for values of which `table` has ranges, which are taken as they are.
    pub(crate) fn with_table(self, table: Option<&'a RangeTable>) -> Self {
        Ranges { table, ..self }
    }

    /// For all `values`, with the observers of `recipe`.
    ///
    /// # Errors
    ///
    /// As [`Ranges::choose`].
    pub(crate) fn choose_all(&self, values: &QuantizedValues, recipe: &Recipe) -> Result<BTreeMap<String, Choice>> {
        self.check_table(values)?;
        let choose = |(name, source): (&String, &RangeSource)| {
            Ok((name.clone(), self.choose(name, source, recipe.activations.observer_of(source.origin(name)))?))
        };
        values.values.iter().map(choose).collect()
    }

    /// A table that lacks values, which nothing else has a range of, is an error that names them.
    fn check_table(&self, values: &QuantizedValues) -> Result<()> {
        let Some(table) = self.table else { return Ok(()) };
        let lacks = |(name, source): &(&String, &RangeSource)| {
            let is_observed = self.activations.contains_key(source.origin(name));
            !matches!(source, RangeSource::Known(_)) && self.given(name, source).is_none() && !is_observed
        };
        let lacking: Vec<&String> = values.values.iter().filter(lacks).map(|(name, _)| name).collect();
        if lacking.is_empty() {
            return Ok(());
        }
        let (count, lacking) = (values.values.len(), list_names(lacking, LISTED));
        let error = Error::malformed(table.path(), format!("ranges: expected one for each of {count} values, found none of {lacking}"));
        Err(error.with_hint("--samples PATH besides gives ranges to values that the file lacks; --exclude keeps layers in float"))
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
        if let Some(choice) = self.given(name, source) {
            return Ok(choice);
        }
        let observer = self.observers.choose(observer)?;
        let range = match source {
            RangeSource::Known(range) => *range,
            RangeSource::Observed | RangeSource::SameAs(_) => self.observed(source.origin(name), &observer)?,
        };
        let choice = Choice { observer: observer.method(), range: range.with_zero(), params: self.rule.choose_params(range) };
        self.known.lock().expect(lock).insert(key, choice.clone());
        Ok(choice)
    }

    /// What follows from the range that a file has of a value, or of the one whose elements it has.
    fn given(&self, name: &str, source: &RangeSource) -> Option<Choice> {
        let Given { range, scale } = *self.table?.get(source.origin(name)).or_else(|| self.table?.get(name))?;
        let mut params = self.rule.choose_params(range);
        // The range is rounded, and its scale may be a bit off the one that it was made of.
        let is_of_scale = self.rule.symmetric && self.rule.grid.qmax - self.rule.grid.qmin == 2 * 127;
        if let Some(scale) = scale.filter(|scale| is_of_scale && scale.is_normal()) {
            params.scale = scale;
        }
        Some(Choice { observer: Method::new(GIVEN), range: range.with_zero(), params })
    }

    fn observed(&self, name: &str, observer: &ObserverChoice) -> Result<Range> {
        let missing = || {
            let error = Error::malformed(self.path, format!("value {}: expected statistics of it, found none", show_name(name)));
            error.with_hint("run `qtool calibrate` again with the options of this run")
        };
        let target = Target { rule: self.rule, single_batch: false };
        let stats = self.activations.get(name).ok_or_else(missing)?;
        let wrong = |message| Error::malformed(self.path, format!("value {}: {message}", show_name(name)));
        if let Some(command) = observer.command() {
            observer.may_run().map_err(wrong)?;
            return self.ask(name, stats, command).map_err(wrong);
        }
        let range = stats.range(observer, &target)?;
        observer.check(&[range]).map_err(wrong)?;
        Ok(range)
    }

    /// Asks a command for the range of an activation, whose values it is given in ascending order.
    fn ask(&self, name: &str, stats: &ActivationStats, command: &Command) -> Result<Range, String> {
        let count = stats.values();
        if count > MOST_VALUES {
            let found = count;
            return Err(format!(
                "observer {:?}: expected at most {MOST_VALUES} values to give to it, found {found}",
                command.observer.name
            ));
        }
        if count == 0 {
            return Ok(Range::EMPTY);
        }
        let question = Question {
            subject: Subject::Activation,
            name,
            shape: &[count as usize],
            granularity: Granularity::PerTensor.to_string(),
            axis: None,
            codes: self.codes,
            symmetric: self.rule.symmetric,
            groups: 1,
        };
        let ranges = command.ask(&question, &mut Repeated::new(&stats.summary()))?;
        Ok(ranges[0])
    }
}

/// The parameters among what was chosen.
pub(crate) fn params_of(choices: &BTreeMap<String, Choice>) -> BTreeMap<String, Params> {
    choices.iter().map(|(name, choice)| (name.clone(), choice.params)).collect()
}
