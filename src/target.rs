//! Targets: what computes with the result, and the types and conventions that suit it. One row a target.
//!
//! A target only sets what was not asked for: explicit options win, unless the target could not run the result.

use crate::error::Error;
use crate::method::look_up;
use crate::quant::saturation::Saturation;
use crate::quant::scheme::{CodeType, Convention};
use crate::recipe::Recipe;

/// A row of [`TARGETS`].
pub struct Target {
    /// Name on the command line.
    pub name: &'static str,
    /// What it is, in a few words.
    pub summary: &'static str,
    /// Whether it runs models with a graph only (ONNX), or without only (checkpoints); `None` if both.
    pub needs_graph: Option<bool>,
    apply: fn(&mut Recipe),
    /// What it cannot run of a recipe, if there is something.
    refuses: fn(&Recipe) -> Option<&'static str>,
}

/// Every target; the first is the default and changes nothing.
pub const TARGETS: &[Target] = &[
    Target { name: "any", summary: "whatever loads the form", needs_graph: None, apply: |_| {}, refuses: |_| None },
    Target {
        name: "ort-cpu",
        summary: "ONNX Runtime on processors with VNNI, AMX or dot products: uint8 activations, int8 weights",
        needs_graph: Some(true),
        apply: |recipe| {
            recipe.settings.convention = Some(Convention::Ort);
            recipe.saturation = Some(Saturation::Ignore);
        },
        refuses: |_| None,
    },
    // Products of uint8 and int8 are added in pairs of 16 bits there, and saturate; those of uint8 and uint8 are not.
    Target {
        name: "ort-cpu-avx2",
        summary: "ONNX Runtime on older processors, whose kernels for int8 weights saturate: uint8 weights around 128",
        needs_graph: Some(true),
        apply: |recipe| {
            recipe.settings.convention = Some(Convention::Ort);
            recipe.settings.weights = CodeType::Uint8;
            // The codes of int8, moved up by 128.
            recipe.settings.narrow_range = true;
            // Where int8 is asked for all the same: of weights of few large pairs, nudging loses less, of most others more.
            recipe.saturation = Some(Saturation::SevenBit);
        },
        refuses: |_| None,
    },
    Target {
        name: "tensorrt",
        summary: "TensorRT, which takes no zero points: int8 activations and weights, symmetric",
        needs_graph: Some(true),
        apply: |recipe| {
            recipe.settings.convention = Some(Convention::Ort);
            recipe.activations.dtype = CodeType::Int8;
            recipe.activations.symmetric = true;
            recipe.saturation = Some(Saturation::Ignore);
            // It dequantizes no int32.
            recipe.activations.float_biases = true;
        },
        refuses: |recipe| {
            let is_symmetric = recipe.settings.symmetric && recipe.activations.symmetric;
            let is_signed = recipe.settings.weights.is_signed() && recipe.activations.dtype.is_signed();
            (!is_symmetric || !is_signed).then_some("symmetric int8 weights and activations, whose zero points are 0")
        },
    },
    Target {
        name: "vllm",
        summary: "vLLM and compressed-tensors",
        needs_graph: Some(false),
        apply: |recipe| {
            recipe.settings.convention = Some(Convention::CompressedTensors);
            recipe.saturation = Some(Saturation::Ignore);
        },
        refuses: |_| None,
    },
];

impl Target {
    /// Sets what suits the target.
    pub fn apply(&self, recipe: &mut Recipe) {
        (self.apply)(recipe);
    }

    /// Whether the target can run what `recipe` asks for.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] with what it takes.
    pub fn check(&self, recipe: &Recipe) -> Result<(), Error> {
        match (self.refuses)(recipe) {
            Some(expected) => Err(Error::Usage(format!("--target {}: expected {expected}, found others asked for", self.name))),
            None => Ok(()),
        }
    }
}

impl std::str::FromStr for &'static Target {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        look_up("--target", TARGETS, |target| target.name, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_runs_what_it_sets_itself() {
        for target in TARGETS {
            let mut recipe = Recipe::default();
            target.apply(&mut recipe);
            assert!(target.check(&recipe).is_ok(), "{}", target.name);
            assert_eq!(target.name.parse::<&Target>().unwrap().name, target.name);
        }
    }
}
