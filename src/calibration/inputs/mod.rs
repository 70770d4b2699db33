//! OBSERVE what layers take: statistics of layer inputs, from recorded tensors, from a file, or from a graph that ran.

pub(crate) mod patches;
pub(crate) mod recorded;
pub(crate) mod stats;
pub(crate) mod sums;

use super::stats::{ActivationStats, Statistics};
use crate::error::{Error, Result};
use recorded::Recorded;
use stats::{Detail, InputStats};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// Where statistics of layer inputs come from; layers have the names of their modules.
pub(crate) struct LayerInputs {
    source: Source,
    /// What features of the inputs of layers are divided by since they were observed.
    divisors: BTreeMap<String, Vec<f32>>,
}

enum Source {
    /// Tensors that were recorded, read for one layer at a time.
    Recorded(Recorded),
    /// All of them in memory.
    Known(Box<Statistics>),
}

impl LayerInputs {
    /// From recorded inputs.
    pub(crate) fn recorded(recorded: Recorded) -> Self {
        LayerInputs { source: Source::Recorded(recorded), divisors: BTreeMap::new() }
    }

    /// From statistics.
    pub(crate) fn known(statistics: Statistics) -> Self {
        LayerInputs { source: Source::Known(Box::new(statistics)), divisors: BTreeMap::new() }
    }

    /// Number of samples, and a hash of all of them whatever their order.
    pub(crate) fn identity(&self) -> (usize, blake3::Hash) {
        match &self.source {
            Source::Recorded(recorded) => recorded.identity(),
            Source::Known(statistics) => (statistics.samples(), statistics.samples_hash()),
        }
    }

    /// Names of layers that there is something of.
    pub(crate) fn layers(&self) -> Vec<&str> {
        match &self.source {
            Source::Recorded(recorded) => recorded.layers().collect(),
            Source::Known(statistics) => statistics.inputs.keys().map(String::as_str).collect(),
        }
    }

    /// What is known of the inputs of a layer as they were observed, of which there is something.
    ///
    /// # Errors
    ///
    /// As [`Recorded::inputs`].
    pub(crate) fn inputs(&self, layer: &str, detail: Detail, threads: usize) -> Result<Cow<'_, InputStats>> {
        match &self.source {
            Source::Recorded(recorded) => recorded.inputs(layer, detail, threads).map(Cow::Owned),
            Source::Known(statistics) => Ok(Cow::Borrowed(&statistics.inputs[layer])),
        }
    }

    /// What the features of a layer's inputs are divided by since they were observed.
    pub(crate) fn divisors(&self, layer: &str) -> Option<&[f32]> {
        self.divisors.get(layer).map(Vec::as_slice)
    }

    /// Notes that the model now divides the features of a layer's inputs by these numbers.
    pub(crate) fn divide(&mut self, layer: &str, divisors: &[f32]) {
        let known = self.divisors.entry(layer.to_owned()).or_insert_with(|| vec![1.0; divisors.len()]);
        known.iter_mut().zip(divisors).for_each(|(known, divisor)| *known *= divisor);
    }

    /// Statistics of all values of the inputs of each layer.
    ///
    /// # Errors
    ///
    /// As [`Recorded::activations`]; [`Error::Usage`] for statistics of inputs that are divided since.
    pub(crate) fn activations(&self, averaging_weight: Option<f32>, threads: usize) -> Result<BTreeMap<String, ActivationStats>> {
        match &self.source {
            Source::Recorded(recorded) => recorded.activations(&self.divisors, averaging_weight, threads),
            Source::Known(statistics) if self.divisors.is_empty() => Ok(statistics.activations.clone()),
            Source::Known(_) => {
                let error =
                    Error::Usage("--stats: expected --samples, as ranges of activations change with --transform, found statistics".into());
                Err(error.with_hint("dynamic ranges of activations need no samples"))
            }
        }
    }

    /// The same for layers with the same inputs, and for no others.
    pub(crate) fn fingerprint(&self, layer: &str) -> blake3::Hash {
        let observed = match &self.source {
            Source::Recorded(recorded) => recorded.fingerprint(layer),
            Source::Known(_) => blake3::hash(layer.as_bytes()),
        };
        let Some(divisors) = self.divisors.get(layer) else { return observed };
        let mut hasher = blake3::Hasher::new();
        hasher.update(observed.as_bytes());
        for divisor in divisors {
            hasher.update(&divisor.to_le_bytes());
        }
        hasher.finalize()
    }

    /// Whether what is read from is still as it was.
    ///
    /// # Errors
    ///
    /// As [`Recorded::check_unchanged`].
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        match &self.source {
            Source::Recorded(recorded) => recorded.check_unchanged(),
            Source::Known(_) => Ok(()),
        }
    }
}
