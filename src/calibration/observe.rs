//! Runs samples through a float model and keeps statistics of its values.

use super::engine::Engine;
use super::samples::Samples;
use super::stats::{ActivationStats, ModelIdentity, Statistics, sample_hash};
use crate::error::{Error, Result};
use crate::stream::{self, Progress};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;

/// What is watched, and how.
pub(crate) struct Watch<'a> {
    /// The model's file, for messages.
    pub path: &'a Path,
    /// What tells the model from others.
    pub model: ModelIdentity,
    /// Names of float values.
    pub values: Vec<String>,
    /// Weight of a new sample in a moving average, where one is asked for: samples are then observed in order.
    pub averaging_weight: Option<f32>,
}

/// Statistics of all samples, which `threads` threads run; the same whatever their number.
///
/// # Errors
///
/// As [`Engine::for_each_value`] and [`Samples::load`]; [`Error::Malformed`] naming a value that is no float or not finite.
pub(crate) fn observe(
    engine: &dyn Engine,
    samples: &Samples,
    watch: Watch<'_>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Statistics> {
    let new = || Mutex::new(watch.averaging_weight.map_or_else(ActivationStats::new, ActivationStats::with_moving_average));
    let stats: Vec<Mutex<ActivationStats>> = watch.values.iter().map(|_| new()).collect();
    let statistics = Mutex::new(Statistics::new(watch.model, BTreeMap::new()));
    let threads = if watch.averaging_weight.is_some() { 1 } else { threads };
    let lock = "no thread panics while it holds this lock";
    let done = stream::map(samples.len(), threads, |index| -> Result<()> {
        let sample = samples.load(index)?;
        let hash = sample_hash(sample.iter().map(|(name, array)| (name.as_str(), array)));
        if statistics.lock().expect(lock).add_sample(hash) {
            engine.for_each_value(&sample, &watch.values, &mut |value, array| {
                let wrong = |found: String| {
                    let name = crate::error::show_name(&watch.values[value]);
                    Err(Error::malformed(watch.path, format!("value {name} with {}: {found}", samples.describe(index))))
                };
                let Some(floats) = array.floats() else { return wrong(format!("expected floats, found {}", array.dtype)) };
                match stats[value].lock().expect(lock).observe(floats) {
                    Ok(()) => Ok(()),
                    Err(refusal) => wrong(refusal.to_string()),
                }
            })?;
        }
        progress.advance(1);
        Ok(())
    });
    done.into_iter().collect::<Result<()>>()?;
    let mut statistics = statistics.into_inner().expect(lock);
    let stats = stats.into_iter().map(|stats| stats.into_inner().expect(lock));
    statistics.activations = watch.values.into_iter().zip(stats).collect();
    Ok(statistics)
}
