//! Statistics of activations that add up exactly, and ranges from them.
//!
//! Calibration can be divided over machines: [`merge`] of the statistics of parts is what one run over all samples
//! would have kept, bit for bit, however samples were divided and parts grouped. To that end all that is kept of a value
//! ([`ActivationStats`]) is made of integers and extrema: a histogram whose bins do not depend on the data, which also has
//! the sums of its values. Every [observer](crate::observers) chooses its range from that. Only
//! `moving-average` depends on the order of samples; statistics that were asked for it refuse to be merged.
//!
//! Of the inputs of layers of a checkpoint means, maxima and Gram matrices are kept besides, which add up exactly too
//! (`calibration::inputs`). A file of statistics is described in `docs/statistics.md`.

mod activation;
mod exact;
mod file;
mod histogram;
mod sample;

use crate::calibration::inputs::stats::InputStats;
use crate::error::{Error, Result, show_name, show_path};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

pub use activation::{ActivationStats, Refusal};
pub use sample::sample_hash;

/// What tells one model from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelIdentity {
    /// Its file name, for messages: a model may be renamed.
    pub name: String,
    /// The size of its files, in bytes.
    pub bytes: u64,
    /// The hash of its files' content.
    pub blake3: blake3::Hash,
}

impl ModelIdentity {
    /// Whether it is the same model, by whatever name.
    pub fn is(&self, other: &ModelIdentity) -> bool {
        (self.bytes, self.blake3) == (other.bytes, other.blake3)
    }

    fn describe(&self) -> String {
        format!("{} of {} bytes with BLAKE3 {}", show_name(&self.name), self.bytes, self.blake3.to_hex())
    }
}

/// What a calibration keeps: which model, which samples, and statistics by name of activation.
#[derive(Clone)]
pub struct Statistics {
    /// The model that was run.
    pub model: ModelIdentity,
    /// Statistics by name of the value in the model's graph.
    pub activations: BTreeMap<String, ActivationStats>,
    /// What is kept of the inputs of layers besides, by name of the layer.
    pub(crate) inputs: BTreeMap<String, InputStats>,
    samples: BTreeSet<[u8; 32]>,
    file: Option<PathBuf>,
}

impl Statistics {
    /// Of no samples yet.
    pub fn new(model: ModelIdentity, activations: BTreeMap<String, ActivationStats>) -> Self {
        Statistics { model, activations, inputs: BTreeMap::new(), samples: BTreeSet::new(), file: None }
    }

    /// Notes that a sample with this [`sample_hash`] is observed. `false` if it was there before, as when data hold it
    /// twice: it is not to be observed again, or parts would not add up to what one run keeps.
    #[must_use]
    pub fn add_sample(&mut self, hash: blake3::Hash) -> bool {
        self.samples.insert(hash.into())
    }

    /// Number of samples.
    pub fn samples(&self) -> usize {
        self.samples.len()
    }

    /// A hash of all samples, whatever their order.
    pub fn samples_hash(&self) -> blake3::Hash {
        let mut hasher = blake3::Hasher::new();
        self.samples.iter().for_each(|sample| {
            hasher.update(sample);
        });
        hasher.finalize()
    }

    /// The file that they were read from.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Whether they are statistics of `model`.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] with what tells both models apart.
    pub fn check_model(&self, model: &ModelIdentity) -> Result<()> {
        if self.model.is(model) {
            return Ok(());
        }
        let (expected, found) = (model.describe(), self.model.describe());
        Err(self
            .error(format!("model: expected statistics of {expected}, found those of {found}"))
            .with_hint("run `qtool calibrate` with this model: the names of values alone do not say what they are"))
    }

    fn error(&self, message: String) -> Error {
        Error::malformed(self.path(), message)
    }

    fn path(&self) -> &Path {
        self.file.as_deref().unwrap_or(Path::new("statistics of this run"))
    }

    /// Adds `part`.
    fn add(&mut self, part: &Statistics) -> Result<()> {
        let ours = show_path(self.path()).to_string();
        if !self.model.is(&part.model) {
            let (expected, found) = (self.model.describe(), part.model.describe());
            return Err(part.error(format!("model: expected {expected} as in {ours}, found {found}")));
        }
        let names = |all: &Statistics| all.activations.keys().cloned().collect::<BTreeSet<String>>();
        // Recorded inputs have no more layers than inputs came to: in one part there may be experts that no token was sent to.
        let are_recorded = !(self.inputs.is_empty() && part.inputs.is_empty());
        if let Some(name) = names(self).symmetric_difference(&names(part)).next().filter(|_| !are_recorded) {
            let (with, without) = if part.activations.contains_key(name) { ("one", "none") } else { ("none", "one") };
            return Err(part.error(format!("activation {}: expected {without} as in {ours}, found {with}", show_name(name))));
        }
        let shared = self.samples.intersection(&part.samples).count();
        if shared > 0 {
            let found = if shared == 1 { "1 that is".to_owned() } else { format!("{shared} that are") };
            return Err(part
                .error(format!("samples: expected none of those of {ours}, found {found}"))
                .with_hint("merge every part once; parts of one run must not share samples"));
        }
        merge_by_name(&mut self.activations, &part.activations, part.path(), ActivationStats::merge)?;
        merge_by_name(&mut self.inputs, &part.inputs, part.path(), InputStats::merge)?;
        self.samples.extend(&part.samples);
        if part.model.name < self.model.name {
            self.model.name.clone_from(&part.model.name);
        }
        Ok(())
    }
}

/// Adds what a part in the file `path` has to what is there of the same name.
fn merge_by_name<S: Clone>(
    sums: &mut BTreeMap<String, S>,
    part: &BTreeMap<String, S>,
    path: &Path,
    merge: impl Fn(&mut S, &S) -> Result<(), Refusal>,
) -> Result<()> {
    for (name, stats) in part {
        match sums.get_mut(name) {
            Some(sum) => merge(sum, stats).map_err(|refusal| Error::tensor(path, name, refusal.to_string()))?,
            None => drop(sums.insert(name.clone(), stats.clone())),
        }
    }
    Ok(())
}

/// What one run over the samples of all parts would have kept; `parts` may come in any order. A single part may be one
/// that cannot be merged.
///
/// # Errors
///
/// [`Error::Usage`] if there are no parts; [`Error::Malformed`] if they are of different models, have different
/// activations or share samples; [`Error::Tensor`] if one has a moving average.
pub fn merge(parts: Vec<Statistics>) -> Result<Statistics> {
    let mut parts = parts.into_iter();
    let nothing = || Error::Usage("merge: expected statistics of one run or more, found none".to_owned());
    let mut merged = parts.next().ok_or_else(nothing)?;
    for part in parts {
        merged.add(&part)?;
    }
    Ok(merged)
}
