//! Whether options of `qtool quantize` have something to say in the run that they are for.

use super::Arguments;
use qtool::error::{show_name, show_path};
use qtool::pipeline::{ActivationUse, Prepared};
use qtool::recipe::presets::Preset;
use qtool::recipe::{Mode, Recipe};
use qtool::report::TensorOutcome;
use qtool::target::Target;
use std::path::Path;

impl Arguments {
    /// Options for another kind of model are mistakes.
    pub(super) fn check_kind(&self, prepared: &Prepared) -> qtool::Result<()> {
        let is_onnx = prepared.is_onnx();
        let needs_graph = self.target.as_deref().and_then(|name| name.parse::<&Target>().ok()).and_then(|target| target.needs_graph);
        let (option, expected) = match needs_graph {
            Some(true) if !is_onnx => ("--target", "an ONNX model, which it takes"),
            Some(false) if is_onnx => ("--target", "a checkpoint, which it takes"),
            _ if self.saturation.is_some() && !is_onnx => ("--saturation", "an ONNX model, whose operators are known"),
            _ => return Ok(()),
        };
        Err(qtool::Error::Usage(format!("{option}: expected {expected}, found another kind")))
    }

    /// A run that was asked for some tensors, and would quantize none, is a mistake.
    pub(super) fn check_something(&self, prepared: &Prepared) -> qtool::Result<()> {
        if self.include.is_empty() {
            return Ok(());
        }
        let report = prepared.report();
        let mut kept = report.tensors.iter().filter_map(|tensor| match &tensor.outcome {
            TensorOutcome::Quantize { .. } => None,
            TensorOutcome::Keep { reason } => Some((&tensor.name, reason)),
        });
        if kept.clone().count() < report.tensors.len() {
            return Ok(());
        }
        let include = |name: &str| self.include.iter().any(|pattern| pattern.matches(name));
        let first = kept.find(|(name, _)| include(name)).map(|(name, reason)| format!(": {}: {reason}", show_name(name)));
        let found = format!("--include: expected some weight to quantize, found none{}", first.unwrap_or_default());
        Err(qtool::Error::Usage(found).with_hint("--dry-run without it tells of every tensor why it is kept"))
    }

    /// What the user may not expect of options: that nothing in the model follows them, or how they differ from others.
    pub(super) fn notes(&self, prepared: &Prepared) -> Vec<String> {
        let ActivationUse { known, at_run_time } = prepared.activations();
        // Dynamic operators of ONNX choose codes themselves.
        let has_codes = known || at_run_time && !prepared.is_onnx();
        let unused = [
            (self.mode == Some(Mode::Static) && !known, "--mode static: no layer's activations have known ranges"),
            (self.mode == Some(Mode::Dynamic) && !at_run_time, "--mode dynamic: no layer finds ranges while the model runs"),
            (self.activations.is_some() && !has_codes, "--activations: no layer's activations get codes before the model runs"),
            (
                self.activation_symmetry.is_some() && !has_codes,
                "--activation-symmetry: no layer's activations get codes before the model runs",
            ),
            (self.activation_observer.is_some() && !known, "--activation-observer: no layer's activations have known ranges"),
        ];
        let why = match prepared.is_onnx() {
            true => {
                "those of Conv, MatMul and Gemm can have, with --samples and weights of 8 bits per channel or tensor; others are weight-only"
            }
            false => "with --format compressed-tensors or a --scheme they can",
        };
        let has_samples = !self.samples.inputs.source().is_empty();
        let is_unused = has_samples && prepared.is_onnx() && !known && !prepared.looks_at_inputs() && self.mode != Some(Mode::Static);
        let samples = is_unused.then(|| format!("{}: not used, as no layer has known ranges; {why}", self.samples.inputs.option()));
        let stands_for = !prepared.is_onnx() && has_samples && !self.stats.is_empty();
        let superseded = stands_for.then(|| format!("{}: not used, as --stats say what layers take", self.samples.inputs.option()));
        let looks_in_vain = prepared.looks_at_inputs() && !has_samples && self.stats.is_empty();
        let observer =
            looks_in_vain.then(|| "methods that look at what layers take are, without samples, those that look at weights only".to_owned());
        let wanting = prepared.wants_ranges();
        let wants = (wanting > 0 && !has_samples && self.stats.is_empty() && self.ranges.is_none()).then(|| {
            format!(
                "{} with codes as weights in float: --samples puts such layers in integers",
                if wanting == 1 { "1 layer computes".to_owned() } else { format!("{wanting} layers compute") }
            )
        });
        let unused = unused.into_iter().filter(|(is_unused, _)| *is_unused).map(|(_, what)| format!("{what}; {why}"));
        let name = self.recipe.as_deref().and_then(Path::to_str).unwrap_or_default();
        let is_scheme = Preset::scheme(name).is_ok() && self.format.is_none() && self.scheme.is_none() && self.model.is_dir();
        let of_scheme = is_scheme
            .then(|| format!("--recipe {name} has the rules only: --scheme {name} writes a directory that transformers and vLLM load"));
        unused.chain(observer).chain(samples).chain(superseded).chain(wants).chain(of_scheme).chain(self.in_the_way(prepared)).collect()
    }

    /// What the target changes of the `given` recipe, on the way to `result`.
    pub(super) fn overridden(&self, given: &Recipe, result: &Recipe) -> Option<String> {
        let target: &Target = self.target.as_deref()?.parse().ok()?;
        let lost = target.overrides(given, result);
        (!lost.is_empty()).then(|| format!("--target {} takes the place of what the recipe says: {}", target.name, lost.join(", ")))
    }

    /// What only a dry run may meet.
    fn in_the_way(&self, prepared: &Prepared) -> Option<String> {
        if !self.dry_run || self.force || self.in_place {
            return None;
        }
        let report = prepared.report();
        let written = [Some(&report.output), Some(&report.sidecar), self.emit_recipe.as_ref(), self.report.as_ref()];
        let there = written.into_iter().flatten().find(|path| path.exists())?;
        Some(format!("{} is there already: it takes --force to replace it", show_path(there)))
    }
}
