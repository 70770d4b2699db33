//! What was found of pairs of int8 weights whose products processors without VNNI add in 16 bits, over all weights of a model.

use super::counted;
use crate::model::Model;
use crate::outputs::document::SaturatedSums;
use crate::outputs::record;
use crate::plan::Plan;
use crate::quant::metrics::ErrorSums;
use crate::quant::saturation::Saturation;
use crate::stream::quantize::Outcome;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Sums over all weights that were checked. Counts are of codes as they were rounded, before any was changed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SaturationReport {
    /// What was asked for.
    pub treatment: Saturation,
    /// Weights that were checked.
    pub tensors: usize,
    /// Of these, weights with pairs that could saturate.
    pub tensors_possible: usize,
    /// Pairs in all.
    pub pairs: u64,
    /// Pairs that could saturate with some activation codes.
    pub possible: u64,
    /// Pairs that could saturate with codes between the smallest and the largest that were observed, of weights of which that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub within_observed: Option<u64>,
    /// What was counted on samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub samples: Option<SaturatedSums>,
    /// Codes that were changed.
    pub changed: u64,
    /// What that added to the sum of squared errors, in squared real units.
    pub extra_squared_error: f64,
    /// Signal to noise of the weights that were checked, in dB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqnr_db: Option<f64>,
    /// The same before codes were changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sqnr_db_before: Option<f64>,
}

impl SaturationReport {
    /// `None` if no weight was checked.
    pub(crate) fn new(model: &Model, plan: &Plan, outcomes: &BTreeMap<usize, Outcome>) -> Option<Self> {
        let mut report = SaturationReport {
            treatment: plan.saturation,
            tensors: 0,
            tensors_possible: 0,
            pairs: 0,
            possible: 0,
            within_observed: None,
            samples: None,
            changed: 0,
            extra_squared_error: 0.0,
            sqnr_db: None,
            sqnr_db_before: None,
        };
        let mut errors = ErrorSums::default();
        for (tensor, outcome) in outcomes {
            let Some(found) = record::saturation(model, plan, *tensor, outcome) else { continue };
            report.tensors += 1;
            report.tensors_possible += usize::from(found.possible > 0);
            report.pairs += found.pairs;
            report.possible += found.possible;
            report.changed += found.changed;
            report.extra_squared_error += found.extra_squared_error;
            if let Some(within) = found.within_observed {
                *report.within_observed.get_or_insert(0) += within;
            }
            if let Some(SaturatedSums { saturated, sums }) = found.samples {
                let all = report.samples.get_or_insert_default();
                all.saturated += saturated;
                all.sums += sums;
            }
            errors.merge(&outcome.sums);
        }
        report.sqnr_db = errors.metrics().sqnr_db;
        if report.changed > 0 {
            report.sqnr_db_before = ErrorSums { error: errors.error - report.extra_squared_error, ..errors }.metrics().sqnr_db;
        }
        (report.tensors > 0).then_some(report)
    }

    /// One line for people, or two; nothing if no pair could saturate and nothing was done about it.
    pub(super) fn text(&self) -> String {
        let SaturationReport { possible, pairs, tensors_possible, .. } = self;
        let mut text = String::new();
        if *possible == 0 {
            return match self.treatment {
                Saturation::SevenBit => {
                    format!("saturation without VNNI: none; codes have 7 bits in {}\n", counted(self.tensors, "tensor"))
                }
                _ => text,
            };
        }
        let of = format!("{possible} of {pairs} pairs of int8 weights, in {}", counted(*tensors_possible, "tensor"));
        let _ = match (self.treatment, self.sqnr_db_before, self.sqnr_db) {
            (Saturation::Nudge, Some(before), Some(after)) => writeln!(
                text,
                "saturation without VNNI: none; {} codes were changed of {of}: SQNR {before:.2} → {after:.2} dB",
                self.changed
            ),
            _ => writeln!(text, "saturation without VNNI: {of}, could saturate; --saturation nudge changes these"),
        };
        if let Some(SaturatedSums { saturated, sums }) = self.samples {
            let share = 100.0 * saturated as f64 / sums.max(1) as f64;
            let _ = writeln!(text, "on the samples: {saturated} of {sums} sums of pairs {}({share:.4} %)", self.verb());
        } else if let Some(within) = self.within_observed {
            let _ = writeln!(text, "within the activation codes of the samples: {within} pairs {}", self.could());
        }
        text
    }

    fn verb(&self) -> &'static str {
        if self.treatment == Saturation::Nudge { "saturated before " } else { "saturate " }
    }

    fn could(&self) -> &'static str {
        if self.treatment == Saturation::Nudge { "could before" } else { "could" }
    }
}
