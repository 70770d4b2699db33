//! An observer by name: one of qtool's, a command, or one that a program registered.

use super::custom::{Command, Registered};
use super::summary::Summary;
use super::{Batch, OBSERVERS, Observer, ObserverEntry, Parameter, Target, moving_average};
use crate::error::{Error, Result};
use crate::method::{Method, look_up};
use crate::quant::params::Range;
use std::sync::Arc;

/// An observer chosen by name, its number checked: builds one [`Observer`] for each group.
#[derive(Clone)]
pub struct ObserverChoice(Kind);

#[derive(Clone)]
enum Kind {
    Own {
        entry: &'static ObserverEntry,
        value: f64,
    },
    /// Whether it may run.
    Command(Arc<Command>, bool),
    Registered(Registered),
}

impl ObserverChoice {
    /// Looks `method` up in [`OBSERVERS`]; [`Observers::choose`](super::custom::Observers::choose) knows those of a recipe, too.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if there is no such observer, if it takes no number, or if the number is out of its range.
    pub fn new(method: &Method) -> Result<Self> {
        Self::among(method, &[])
    }

    /// As [`ObserverChoice::new`], where there are `others`, which `method` is none of.
    pub(crate) fn among(method: &Method, others: &[&str]) -> Result<Self> {
        let known: Vec<&str> = OBSERVERS.iter().map(|entry| entry.name).chain(others.iter().copied()).collect();
        look_up("observer", &known, |name| name, &method.name)?;
        let entry = look_up("observer", OBSERVERS, |entry| entry.name, &method.name)?;
        let value = Parameter::check(entry.parameter.as_ref(), "observer", method)?;
        Ok(ObserverChoice(Kind::Own { entry, value }))
    }

    pub(crate) fn of_command(command: Arc<Command>, may_run: bool) -> Self {
        ObserverChoice(Kind::Command(command, may_run))
    }

    pub(crate) fn of_registered(registered: Registered) -> Self {
        ObserverChoice(Kind::Registered(registered))
    }

    fn entry(&self) -> Option<&'static ObserverEntry> {
        match self.0 {
            Kind::Own { entry, .. } => Some(entry),
            Kind::Command(..) | Kind::Registered(_) => None,
        }
    }

    /// The command that is to be asked, if it is one.
    pub(crate) fn command(&self) -> Option<&Command> {
        match &self.0 {
            Kind::Own { .. } | Kind::Registered(_) => None,
            Kind::Command(command, _) => Some(command),
        }
    }

    /// Whether it is no command, or one that may run: the last check before it would.
    pub(crate) fn may_run(&self) -> Result<(), String> {
        match &self.0 {
            Kind::Command(command, false) => Err(format!("observer {:?}: expected permission to run, found none", command.observer.name)),
            _ => Ok(()),
        }
    }

    /// Whether ranges that it chose, one a group, can be used.
    ///
    /// # Errors
    ///
    /// Which one cannot; none if the observer is one of qtool.
    pub(crate) fn check(&self, ranges: &[Range]) -> Result<(), String> {
        if let Kind::Registered(registered) = &self.0 { registered.check(ranges) } else { Ok(()) }
    }

    /// The method with its number spelled out, as it goes into the sidecar.
    pub fn method(&self) -> Method {
        match &self.0 {
            Kind::Own { entry, value } => Method { name: entry.name.to_owned(), value: entry.parameter.map(|_| *value) },
            Kind::Command(command, _) => Method::new(&command.observer.name),
            Kind::Registered(registered) => Method::new(&registered.name),
        }
    }

    /// A new observer.
    ///
    /// # Panics
    ///
    /// If it is a command, which is not shown batches.
    pub fn build(&self, target: &Target) -> Box<dyn Observer> {
        match &self.0 {
            Kind::Own { entry, value } => (entry.build)(*value, target),
            Kind::Registered(registered) => registered.build(target),
            Kind::Command(command, _) => panic!("the command {:?} is asked for ranges, not shown batches", command.observer.name),
        }
    }

    /// Whether a batch's extent is all that matters; its values may then be left out.
    pub fn is_extent_only(&self) -> bool {
        self.entry().is_some_and(|entry| entry.extent_only)
    }

    /// Whether what a layer's inputs were matters, where that is known.
    pub fn looks_at_inputs(&self) -> bool {
        self.entry().is_some_and(|entry| entry.looks_at_inputs)
    }

    /// Whether the range of a group is chosen from the values of that group alone, and cannot be wrong.
    pub(crate) fn is_local(&self) -> bool {
        self.entry().is_some_and(|entry| entry.joint.is_none())
    }

    /// The choice for all groups of a tensor at once, for methods whose groups depend on each other.
    pub fn joint(&self, target: &Target) -> Option<impl Fn(&[Batch<'_>]) -> Vec<Range> + use<>> {
        let Kind::Own { entry, value } = self.0 else { return None };
        let target = *target;
        entry.joint.map(|search| move |groups: &[Batch<'_>]| search(groups, value, &target))
    }

    /// The range for all batches that `summary` is of; [`Range::EMPTY`] if there was none.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if the summary lacks what this observer needs: `moving-average` must have been asked for, with the
    /// same number, before the first batch; commands are given values, not summaries.
    pub fn range_of(&self, summary: &Summary, target: &Target) -> Result<Range> {
        if summary.bins.is_empty() {
            return Ok(Range::EMPTY);
        }
        let range = match &self.0 {
            Kind::Own { entry, value } => (entry.from_summary)(*value, summary, target),
            Kind::Command(..) => None,
            Kind::Registered(registered) => Some(registered.observe_once(Batch { extent: summary.extent, values: summary }, target)),
        };
        range.ok_or_else(|| {
            let method = self.method();
            let found = summary.smoothed.map_or("none".to_owned(), |smoothed| format!("those of {}:{}", method.name, smoothed.weight));
            Error::Usage(format!("observer {method}: expected statistics with its running values, found {found}"))
                .with_hint(format!("calibrate again with the observer {method}: its result depends on the order of samples"))
        })
    }

    /// The weight that `moving-average` gives to a new batch, for statistics to keep its running values; `None` for other
    /// observers.
    pub fn averaging_weight(&self) -> Option<f32> {
        match &self.0 {
            Kind::Own { entry, value } if entry.name == moving_average::ENTRY.name => Some(*value as f32),
            _ => None,
        }
    }

    /// The range of one batch on its own.
    ///
    /// # Panics
    ///
    /// As [`ObserverChoice::build`].
    pub fn observe_once(&self, batch: Batch<'_>, target: &Target) -> Range {
        let mut observer = self.build(target);
        observer.observe(batch);
        observer.range()
    }
}
