//! Results for people and programs: plain data that [`terminal`] prints, `--json` serializes, [`html`] shows and CI systems read as [`junit`].

pub mod distribution;
pub mod html;
pub mod junit;
pub mod lint;
pub mod saturation;
pub mod terminal;

use crate::algorithms::solve::Gain;
use crate::gates::GateRow;
use crate::lint::NodeVerdict;
use crate::model::Model;
use crate::outputs::document::{ActivationRecord, SaturationRecord};
use crate::outputs::record;
use crate::outputs::target::Target;
use crate::plan::{Decision, Plan};
use crate::quant::metrics::{ErrorSums, Metrics};
use crate::quant::params::Range;
use crate::quant::scheme::CodeType;
use crate::sensitivity::Findings;
use crate::stream::quantize::Outcome;
use distribution::Distribution;
use saturation::SaturationReport;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// `1 tensor`, `2 tensors`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// What became of a model, or would.
#[derive(Clone, Debug, Serialize)]
pub struct QuantizeReport {
    /// Size of the model's files of weights, in bytes.
    pub bytes_before: u64,
    /// Size of the output's files of weights, in bytes.
    pub bytes_after: u64,
    /// What the model's directory holds and the output does not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_behind: Vec<PathBuf>,
    /// Main output.
    pub output: PathBuf,
    /// Its sidecar.
    pub sidecar: PathBuf,
    /// Share of the multiply-adds of operators with constant weights that are of integers, where samples told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub integer_share: Option<f64>,
    /// What the output was not to fall short of, and does not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gates: Vec<GateRow>,
    /// What was measured on samples, and which layers were spared for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub findings: Option<Findings>,
    /// What else there is to know: how the model was changed before, why nothing was done.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// What was found of pairs of int8 weights that could saturate, where there are such pairs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saturation: Option<SaturationReport>,
    /// Every tensor, in the model's order.
    pub tensors: Vec<TensorReport>,
    /// Error over all quantized tensors; absent before the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<Metrics>,
    /// What a page shows besides, if it was asked for.
    #[serde(skip)]
    pub details: Option<Details>,
}

/// What a page shows of a run besides its [`QuantizeReport`].
#[derive(Clone, Debug, Default)]
pub struct Details {
    /// The form of the output.
    pub form: &'static str,
    /// The recipe that was followed, in TOML.
    pub recipe: String,
    /// Number of samples that ranges of activations come from, if any do.
    pub samples: Option<u64>,
    /// Of the tensors that lost most, worst first.
    pub distributions: Vec<Distribution>,
    /// Values that are quantized with known ranges: first those that clip most.
    pub activations: Vec<ActivationDetails>,
    /// What a runtime makes of the nodes of an ONNX model, if that was looked at.
    pub lint: Vec<NodeVerdict>,
}

/// How one activation is quantized, and what it was on the samples.
#[derive(Clone, Debug)]
pub struct ActivationDetails {
    /// Its name.
    pub name: String,
    /// Range, scale and zero point.
    pub record: ActivationRecord,
    /// Smallest and largest value, where values were observed.
    pub observed: Option<Range>,
    /// Share of the values that are beyond the chosen range, 0 to 1, about.
    pub clipped: Option<f64>,
    /// All values, of those that clip most.
    pub distribution: Option<Distribution>,
}

/// One tensor of a [`QuantizeReport`].
#[derive(Clone, Debug, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// The type it had.
    pub source_dtype: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// What becomes of it.
    #[serde(flatten)]
    pub outcome: TensorOutcome,
}

/// What becomes of a tensor.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "action", rename_all = "lowercase")]
pub enum TensorOutcome {
    /// Quantized.
    Quantize {
        /// The type of codes.
        dtype: CodeType,
        /// Which values share a scale.
        granularity: String,
        /// How operators of an ONNX model compute with it: `weight-only`, `dynamic` or `static`.
        #[serde(skip_serializing_if = "Option::is_none")]
        mode: Option<&'static str>,
        /// How ranges are chosen.
        observer: String,
        /// How codes are chosen.
        rounding: String,
        /// By how much less the layer's outputs change on the samples than with the nearest codes, in dB of their squared error.
        #[serde(skip_serializing_if = "Option::is_none")]
        output_gain_db: Option<f64>,
        /// Of pairs of int8 weights that are multiplied with uint8 activations; absent before the run.
        #[serde(skip_serializing_if = "Option::is_none")]
        saturation: Option<Box<SaturationRecord>>,
        /// What was lost; absent before the run.
        #[serde(skip_serializing_if = "Option::is_none")]
        error: Option<Metrics>,
    },
    /// Copied bit for bit.
    Keep {
        /// Why.
        reason: String,
    },
}

impl QuantizeReport {
    pub(crate) fn new(model: &Model, plan: &Plan, outcomes: &BTreeMap<usize, Outcome>, target: &Target, bytes_after: u64) -> Self {
        let mut total = ErrorSums::default();
        outcomes.values().for_each(|outcome| total.merge(&outcome.sums));
        let report = |(tensor, decision): (usize, &Decision)| {
            let info = &model.tensors()[tensor].info;
            let outcome = match decision {
                Decision::Keep { reason, .. } => TensorOutcome::Keep { reason: reason.clone() },
                Decision::Quantize(scheme) => TensorOutcome::Quantize {
                    dtype: scheme.codes,
                    granularity: scheme.granularity.to_string(),
                    mode: plan.mode_of(model, tensor),
                    observer: scheme.observer_method().to_string(),
                    rounding: scheme.rounding.method().to_string(),
                    output_gain_db: None,
                    saturation: outcomes.get(&tensor).and_then(|outcome| record::saturation(model, plan, tensor, outcome)).map(Box::new),
                    error: outcomes.get(&tensor).map(|outcome| outcome.sums.metrics()),
                },
            };
            TensorReport { name: info.name.clone(), source_dtype: info.dtype.name().to_owned(), shape: info.shape.clone(), outcome }
        };
        QuantizeReport {
            bytes_before: model.bytes(),
            bytes_after,
            integer_share: None,
            gates: Vec::new(),
            findings: None,
            left_behind: model.left_behind().to_vec(),
            notes: Vec::new(),
            saturation: SaturationReport::new(model, plan, outcomes),
            output: target.output.clone(),
            sidecar: target.sidecar.clone().unwrap_or_default(),
            tensors: plan.decisions.iter().enumerate().map(report).collect(),
            total: (!outcomes.is_empty()).then(|| total.metrics()),
            details: None,
        }
    }

    /// The same with what algorithms gained for tensors.
    pub(crate) fn with_gains(mut self, model: &Model, gains: &BTreeMap<usize, Gain>) -> Self {
        for (tensor, gain) in gains.iter().filter(|(_, gain)| gain.rows > 0) {
            if let TensorOutcome::Quantize { output_gain_db, .. } = &mut self.tensors[*tensor].outcome {
                let db = 10.0 * (gain.nearest / gain.chosen).log10();
                *output_gain_db = Some(db).filter(|db| db.is_finite());
            }
            if gain.nearest_rows > 0 {
                let name = crate::error::show_name(&model.tensors()[*tensor].info.name);
                self.notes.push(format!(
                    "{name}: {} of {} rows keep the nearest codes, which are better on the samples",
                    gain.nearest_rows, gain.rows
                ));
            }
        }
        self
    }
}
