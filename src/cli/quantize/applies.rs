//! Whether options of `qtool quantize` have something to say in the run that they are for.

use super::Arguments;
use qtool::pipeline::{ActivationUse, Prepared};
use qtool::recipe::Mode;
use qtool::recipe::presets::Preset;
use qtool::target::Target;
use std::path::Path;

impl Arguments {
    /// Options that nothing in the run would follow are mistakes.
    pub(super) fn check_applies(&self, prepared: &Prepared) -> qtool::Result<()> {
        let ActivationUse { known, at_run_time } = prepared.activations();
        let is_onnx = prepared.is_onnx();
        // Dynamic operators of ONNX choose codes themselves.
        let has_codes = known || at_run_time && !is_onnx;
        let what = if is_onnx { "layers" } else { "layers of this form" };
        let needs_graph = self.target.as_deref().and_then(|name| name.parse::<&Target>().ok()).and_then(|target| target.needs_graph);
        let for_target = if is_onnx { "a checkpoint, which it takes" } else { "an ONNX model, which it takes" };
        let mistakes = [
            (self.mode == Some(Mode::Static) && !known, "--mode static", format!("{what} whose activations can have known ranges")),
            (self.mode == Some(Mode::Dynamic) && !at_run_time, "--mode dynamic", format!("{what} that find ranges while the model runs")),
            (self.activations.is_some() && !has_codes, "--activations", format!("{what} whose activations are quantized by known ranges")),
            (self.activation_symmetry.is_some() && !has_codes, "--activation-symmetry", format!("{what} whose activations are quantized")),
            (self.activation_observer.is_some() && !known, "--activation-observer", format!("{what} whose activations have known ranges")),
            (needs_graph == Some(!is_onnx), "--target", for_target.into()),
            (self.saturation.is_some() && !is_onnx, "--saturation", "an ONNX model".into()),
        ];
        let Some((_, option, expected)) = mistakes.into_iter().find(|(is_mistake, ..)| *is_mistake) else { return Ok(()) };
        let hint = match is_onnx {
            true => {
                "int8 and uint8 weights of Conv, MatMul and Gemm, per channel or per tensor; --samples gives ranges; --dry-run lists the mode of each"
            }
            false => "of a checkpoint, --format compressed-tensors or a --scheme quantizes activations",
        };
        Err(qtool::Error::Usage(format!("{option}: expected {expected}, found none")).with_hint(hint))
    }

    /// What the user may not expect of options, though they were followed.
    pub(super) fn notes(&self, prepared: &Prepared) -> Vec<String> {
        let name = self.recipe.as_deref().and_then(Path::to_str).unwrap_or_default();
        let scheme = Preset::scheme(name).ok().filter(|_| self.format.is_none() && self.scheme.is_none() && self.model.is_dir());
        let of_scheme = scheme
            .map(|_| format!("--recipe {name} has the rules only: --scheme {name} writes a directory that transformers and vLLM load"));
        let report = prepared.report();
        let is_there = self.dry_run && !self.force && !self.in_place && report.output.exists();
        of_scheme.into_iter().chain(is_there.then(|| "the output is there already: it takes --force to replace it".to_owned())).collect()
    }
}
