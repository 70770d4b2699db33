//! What a run was asked for: defaults, patterns and ordered rules. A recipe is read from TOML or JSON, and the one in
//! force is recorded in the sidecar, which is itself accepted as a recipe. `docs/recipes.md` has all fields.
//!
//! ```toml
//! [default]                        # for every tensor
//! weights = "int8"
//! granularity = "per-channel"
//! [[rule]]                         # later rules win, field by field
//! match = "re:.*\\.mlp\\..*"
//! granularity = "per-group:128"
//! observer = "mse"
//! [[rule]]
//! match = "*.lm_head.weight"
//! weights = "keep"
//! ```

mod fake_quantizer;
mod layer;
mod pattern;
mod place;
pub mod presets;
mod read;
mod rule;
mod settings;
mod shape;

use crate::error::{Error, Result, show_path};
use crate::method::Method;
use crate::observers::custom::Observers;
use crate::quant::saturation::Saturation;
use serde::{Deserialize, Serialize};
use std::path::Path;

pub use fake_quantizer::FakeQuantizer;
pub use layer::CustomLayer;
pub use pattern::Pattern;
pub use rule::{Operators, Rule};
pub use settings::{Activations, MODES, Mode, Settings, Weights};
pub use shape::Shape;

/// Everything that decides the bytes of an output, apart from the model and the output's form.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Recipe {
    /// How activations are quantized, where they are.
    pub activations: Activations,
    /// Whether weights with NaN or infinities stay in float instead of stopping the run.
    pub allow_non_finite: bool,
    /// What holds where no rule says otherwise.
    #[serde(rename = "default")]
    pub settings: Settings,
    /// Tensors that stay as they are.
    pub exclude: Vec<Pattern>,
    /// Which weights the numbered fake quantizers of an exported graph are for.
    #[serde(rename = "fake_quantizer", skip_serializing_if = "Vec::is_empty")]
    pub fake_quantizers: Vec<FakeQuantizer>,
    /// If not empty, only these are quantized, whatever their size.
    pub include: Vec<Pattern>,
    /// Whether state of quantization-aware training is treated as any other tensors. Default: false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub ignore_qat: bool,
    /// Layers of one's own.
    #[serde(rename = "layer", skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<CustomLayer>,
    /// What is quantized: weights, or activations too. Default: `auto`.
    pub mode: Mode,
    /// If not empty, of ONNX models only weights of these operators are quantized, and those that `auto` would treat
    /// otherwise in the mode that is asked for.
    pub op_types: Vec<String>,
    /// Smaller tensors stay in float. Default: 1024 elements.
    pub min_elements: u64,
    /// Signal to noise in dB that every output of an ONNX model is to keep on the samples; layers that cost too much are
    /// spared. 0 measures nothing. Default: [`DEFAULT_MIN_SQNR_DB`](crate::sensitivity::DEFAULT_MIN_SQNR_DB).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_sqnr: Option<f64>,
    /// Observers besides those of qtool, which rules may name.
    #[serde(rename = "observer", skip_serializing_if = "Observers::has_no_commands")]
    pub observers: Observers,
    /// Exceptions, in order.
    #[serde(rename = "rule")]
    pub rules: Vec<Rule>,
    /// What is done about pairs of int8 weights of an ONNX model whose products could saturate on processors without VNNI. Default:
    /// they are counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saturation: Option<Saturation>,
    /// What is done to the float model before, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub transforms: Vec<Method>,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            activations: Activations::default(),
            allow_non_finite: false,
            settings: Settings::default(),
            exclude: vec![],
            fake_quantizers: vec![],
            include: vec![],
            ignore_qat: false,
            layers: vec![],
            mode: Mode::Auto,
            op_types: vec![],
            min_elements: 1024,
            min_sqnr: None,
            observers: Observers::default(),
            rules: vec![],
            saturation: None,
            transforms: vec![],
        }
    }
}

/// What a recipe says about one tensor.
pub struct Resolved<'r> {
    /// The settings after all rules that match.
    pub settings: Settings,
    /// The last rule that decided whether it is quantized, if any did.
    pub decided_by: Option<&'r Rule>,
}

impl Recipe {
    /// Reads a recipe in TOML or JSON, or the recipe that a sidecar records. Observers that it names may be registered later.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the file cannot be read, [`Error::Usage`] with line and column if it is not a recipe, or one that
    /// contradicts itself, [`Error::Limit`] if it is too long.
    pub fn read(path: &Path) -> Result<Self> {
        Ok(read::read(path, false)?.in_directory_of(path))
    }

    /// The preset of that name ([`presets::PRESETS`]), or else the recipe in a file, all of whose observers must exist.
    ///
    /// # Errors
    ///
    /// As [`Recipe::read`].
    pub fn named(name: &Path) -> Result<Self> {
        match presets::find(name) {
            Some(preset) => Ok(preset.recipe()),
            None => Ok(read::read(name, true).map_err(|e| presets::with_suggestion(e, name))?.in_directory_of(name)),
        }
    }

    fn in_directory_of(mut self, path: &Path) -> Self {
        self.observers = self.observers.in_directory(crate::outputs::staging::parent(path));
        self
    }

    /// The recipe as a file of this name holds it: in JSON if the name ends so, else in TOML.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if TOML has no form for a value of it.
    pub fn to_text(&self, path: &Path) -> Result<String> {
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            let text = crate::visible::to_json(self).expect("a recipe has string keys only");
            return Ok(text + "\n");
        }
        crate::visible::to_toml(self).map_err(|e| Error::Usage(format!("{}: recipe: {e}", show_path(path))))
    }

    /// The settings for a tensor, which `matches` says whether a rule is about.
    pub fn resolve(&self, matches: impl Fn(&Rule) -> bool) -> Resolved<'_> {
        self.resolve_all(1, |rule, _| matches(rule)).remove(0)
    }

    /// The settings for some tensors, by number. Rules are the outer loop, as what a pattern is compiled to is larger than names.
    pub(crate) fn resolve_all(&self, tensors: usize, matches: impl Fn(&Rule, usize) -> bool) -> Vec<Resolved<'_>> {
        let unresolved = || Resolved { settings: self.settings.clone(), decided_by: None };
        let mut all: Vec<Resolved<'_>> = std::iter::repeat_with(unresolved).take(tensors).collect();
        for rule in &self.rules {
            for (_, resolved) in all.iter_mut().enumerate().filter(|(tensor, _)| matches(rule, *tensor)) {
                rule.apply(&mut resolved.settings);
                if rule.weights.is_some() {
                    resolved.decided_by = Some(rule);
                }
            }
        }
        all
    }

    /// Every observer that it names.
    pub(crate) fn observers_in_use(&self) -> impl Iterator<Item = &Method> {
        let of_rules = self.rules.iter().filter_map(|rule| rule.observer.as_ref());
        let of_values = std::iter::once(&self.activations.observer).chain(self.activations.observers.values());
        std::iter::once(&self.settings.observer).chain(of_rules).chain(of_values)
    }

    /// Patterns outside of rules, each with the field it came from.
    pub(crate) fn patterns(&self) -> impl Iterator<Item = (&'static str, &Pattern)> {
        let include = self.include.iter().map(|pattern| ("include", pattern));
        include.chain(self.exclude.iter().map(|pattern| ("exclude", pattern)))
    }
}

#[cfg(test)]
mod tests;
