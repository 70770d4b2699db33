//! Targets: what computes with the result, and the types and conventions that suit it. One row a target.
//!
//! A target is an option as others are: what it sets holds for a recipe too, and options that name a type or convention win over it,
//! unless the target could not run the result.

use crate::error::Error;
use crate::method::look_up;
use crate::quant::saturation::Saturation;
use crate::quant::scheme::{CodeType, Convention};
use crate::recipe::Recipe;
use serde_json::Value;
use std::collections::BTreeMap;

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
            // Codes of four bits are weights in float.
            if recipe.settings.weights == CodeType::Int8 {
                recipe.settings.weights = CodeType::Uint8;
                // The codes of int8, moved up by 128.
                recipe.settings.narrow_range = true;
            }
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

    /// What of `asked`, other than the defaults, it has changed on the way to `result`: names of fields, as `default.weights`.
    pub fn overrides(&self, asked: &Recipe, result: &Recipe) -> Vec<String> {
        let mut changed = asked.clone();
        self.apply(&mut changed);
        let default = fields(&Recipe::default());
        let (changed, result) = (fields(&changed), fields(result));
        let is_lost = |(name, value): &(String, Value)| {
            let differs = |other: &BTreeMap<String, Value>| other.get(name) != Some(value);
            differs(&changed) && differs(&result) && differs(&default)
        };
        fields(asked).into_iter().filter(is_lost).map(|(name, _)| name).collect()
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

/// What targets may set, by name.
fn fields(recipe: &Recipe) -> BTreeMap<String, Value> {
    let parts = [
        ("default", serde_json::to_value(&recipe.settings)),
        ("activations", serde_json::to_value(&recipe.activations)),
        ("saturation", serde_json::to_value(recipe.saturation)),
    ];
    let mut fields = BTreeMap::new();
    for (name, value) in parts {
        match value.expect("a recipe can be written in JSON") {
            Value::Object(inner) => fields.extend(inner.into_iter().map(|(key, value)| (format!("{name}.{key}"), value))),
            value => drop(fields.insert(name.to_owned(), value)),
        }
    }
    fields
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

    #[test]
    fn what_a_target_takes_from_a_recipe_is_named() {
        let read = |recipe: &str| serde_json::from_str::<Recipe>(recipe).expect("a recipe");
        let overrides = |target: &str, recipe: &str| {
            let target = target.parse::<&Target>().unwrap();
            let mut result = read(recipe);
            target.apply(&mut result);
            target.overrides(&read(recipe), &result)
        };
        let asked = r#"{"default": {"weights": "int4", "convention": "torch"}, "activations": {"dtype": "uint16"}}"#;
        assert_eq!(overrides("tensorrt", asked), ["activations.dtype", "default.convention"]);
        assert_eq!(overrides("ort-cpu-avx2", asked), ["default.convention"]);
        assert!(overrides("any", asked).is_empty() && overrides("tensorrt", r#"{"min_elements": 3}"#).is_empty());
        // An option may ask for it again.
        assert!("ort-cpu".parse::<&Target>().unwrap().overrides(&read(asked), &read(asked)).is_empty());
    }
}
