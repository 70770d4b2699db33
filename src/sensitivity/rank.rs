//! What each layer costs alone: the ranking that sparing layers starts from, for people to read.

use super::cost;
use super::measure::{Bench, Setup, sqnr_db};
use super::search::{CHECKED_SAMPLES, Search};
use super::simulate::Trial;
use super::units::{Unit, descending, worst};
use crate::error::Result;
use crate::stream::Progress;
use serde::Serialize;
use std::collections::BTreeMap;

/// What quantizing one weight, and the values that its layers take and give, costs the worst output.
#[derive(Clone, Debug, Serialize)]
pub struct LayerSensitivity {
    /// The weight.
    pub tensor: String,
    /// The (first) operator that takes it.
    pub op: String,
    /// Share of all multiply-adds with constant weights, 0 to 1.
    pub multiply_adds: f64,
    /// SQNR in dB of the worst output with nothing else quantized; infinite if that changes nothing.
    pub sqnr_db: f64,
    /// The same of the weight alone.
    pub weight_sqnr_db: f64,
    /// The same of the values alone, where they are quantized.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation_sqnr_db: Option<f64>,
}

/// Every layer with what it costs.
#[derive(Clone, Debug, Serialize)]
pub struct Ranking {
    /// Samples that it was measured on.
    pub samples: usize,
    /// SQNR in dB of the worst output with everything quantized.
    pub all_quantized_db: f64,
    /// Those that cost most first.
    pub layers: Vec<LayerSensitivity>,
}

impl Search<'_> {
    /// Measures every layer alone, and everything.
    ///
    /// # Errors
    ///
    /// As [`Bench::new`] and [`Bench::noise`].
    pub(crate) fn rank(&self, progress: &dyn Progress) -> Result<Ranking> {
        let Search { plan, setup, recipe, .. } = self;
        let costs = cost::of_layers(setup.model, plan, self.statistics);
        let units = self.units(&costs, 1.0);
        let limit = setup.limit.min(CHECKED_SAMPLES);
        let bench = Bench::new(&Setup { limit, ..*setup }, plan, self.weights)?;
        let params = self.params_of(plan, recipe)?;
        let everything = self.everything(plan, recipe)?;
        let parts = |unit: &Unit| {
            let values: BTreeMap<_, _> = unit.values.iter().filter_map(|name| Some((name.clone(), *params.get(name)?))).collect();
            let weights = [unit.tensor].into();
            [
                Trial { weights, values: values.clone(), ..Trial::default() },
                Trial { weights: [unit.tensor].into(), ..Trial::default() },
                Trial { values, ..Trial::default() },
            ]
        };
        let trials: Vec<Trial> = units.iter().flat_map(parts).chain([everything]).collect();
        progress.begin_measurements(trials.len() as u64);
        let mut noise = bench.noise(plan, &trials, bench.samples(), progress)?;
        let all = noise.pop().unwrap_or_default();
        let mut ranked: Vec<(&Unit, &[Vec<f64>])> = units.iter().zip(noise.chunks_exact(3)).collect();
        ranked.sort_by(|a, b| descending(worst(&a.1[0]), worst(&b.1[0])).then(a.0.tensor.cmp(&b.0.tensor)));
        let describe = |(unit, noise): (&Unit, &[Vec<f64>])| {
            let tensor = &setup.model.tensors()[unit.tensor];
            LayerSensitivity {
                tensor: tensor.info.name.clone(),
                op: tensor.role.op().unwrap_or_default().to_owned(),
                multiply_adds: unit.share,
                sqnr_db: sqnr_db(&noise[0]),
                weight_sqnr_db: sqnr_db(&noise[1]),
                activation_sqnr_db: (!unit.values.is_empty()).then(|| sqnr_db(&noise[2])),
            }
        };
        Ok(Ranking { samples: bench.samples(), all_quantized_db: sqnr_db(&all), layers: ranked.into_iter().map(describe).collect() })
    }
}
