//! Whether options of `qtool quantize` have something to say in the run that they are for.

use super::Arguments;
use qtool::pipeline::{ActivationUse, Prepared};
use qtool::recipe::Mode;
use qtool::recipe::presets::Preset;
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
        let unused = unused.into_iter().filter(|(is_unused, _)| *is_unused).map(|(_, what)| format!("{what}; {why}"));
        let name = self.recipe.as_deref().and_then(Path::to_str).unwrap_or_default();
        let is_scheme = Preset::scheme(name).is_ok() && self.format.is_none() && self.scheme.is_none() && self.model.is_dir();
        let of_scheme = is_scheme
            .then(|| format!("--recipe {name} has the rules only: --scheme {name} writes a directory that transformers and vLLM load"));
        let is_in_the_way = self.dry_run && !self.force && !self.in_place && prepared.report().output.exists();
        let in_the_way = is_in_the_way.then(|| "the output is there already: it takes --force to replace it".to_owned());
        unused.chain(of_scheme).chain(in_the_way).collect()
    }
}
