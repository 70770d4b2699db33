//! `config.json`: what it says of the model, and the same with `quantization_config`.

use super::{Activations, Scheme};
use crate::error::{Error, Result};
use crate::formats::mmap::MappedFile;
use crate::formats::parse_object;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The file's name.
pub(super) const NAME: &str = "config.json";

/// Longest configuration that is read, in bytes.
const MAX_BYTES: u64 = 16 << 20;

/// The key that says how a model is quantized.
const KEY: &str = "quantization_config";

/// The version of compressed-tensors whose rules are followed.
const VERSION: &str = "0.20.0";

/// Types of models whose layers are `Conv1D`, with transposed weights, instead of Linear.
const OF_CONV1D: &[&str] = &["ctrl", "decision_transformer", "gpt2", "imagegpt", "openai-gpt"];

/// The configuration of a model, its members in order and as they were written.
pub(super) struct Config {
    members: Vec<(String, String)>,
}

impl Config {
    /// Reads the configuration of a float model in `dir`.
    ///
    /// # Errors
    ///
    /// As [`Config::read_any`]; [`Error::Malformed`] if the model is quantized already.
    pub(super) fn read(dir: &Path, follows_links: bool) -> Result<Self> {
        let config = Config::read_any(dir, follows_links)?;
        if config.is_quantized() {
            let error = Error::malformed(&dir.join(NAME), format!("{KEY}: expected none, found that the model is quantized already"));
            return Err(error.with_hint("start from the float model"));
        }
        Ok(config)
    }

    /// Reads the configuration in `dir`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if there is none; [`Error::Limit`]; [`Error::Malformed`] if it is not one JSON object.
    pub(super) fn read_any(dir: &Path, follows_links: bool) -> Result<Self> {
        let path = crate::formats::beside(dir, NAME, follows_links)?;
        let file = MappedFile::open(&path)?;
        let found = file.bytes().len() as u64;
        if found > MAX_BYTES {
            return Err(Error::Limit { file: path, what: "bytes of the configuration".into(), limit: MAX_BYTES, found });
        }
        let malformed = |message: String| Error::malformed(&path, message);
        let text = std::str::from_utf8(file.bytes()).map_err(|e| malformed(format!("expected UTF-8, found {e}")))?;
        let members = parse_object(text).map_err(|e| malformed(format!("expected a JSON object, found {e}")))?;
        let members: Vec<(String, String)> = members.into_iter().map(|(key, value)| (key.into_owned(), value.get().to_owned())).collect();
        Ok(Config { members })
    }

    /// Whether it says how the model is quantized.
    pub(super) fn is_quantized(&self) -> bool {
        // Something there that cannot be read, as it nests too deep, is not nothing.
        self.members.iter().any(|(name, text)| name == KEY && text != "null")
    }

    /// Whether it says that the model is in this form.
    pub(super) fn is_of_this_form(&self) -> bool {
        self.get(KEY).is_some_and(|value| value["quant_method"] == "compressed-tensors")
    }

    fn get(&self, key: &str) -> Option<Value> {
        let (_, text) = self.members.iter().find(|(name, _)| name == key)?;
        serde_json::from_str(text).ok()
    }

    /// The type of the model, if its layers are no Linear modules.
    pub(super) fn has_no_linear_modules(&self) -> Option<String> {
        let kind = self.get("model_type")?.as_str()?.to_owned();
        OF_CONV1D.contains(&kind.as_str()).then_some(kind)
    }

    /// Whether the output layer has the weights of the embedding.
    pub(super) fn ties_embeddings(&self) -> bool {
        self.get("tie_word_embeddings").is_some_and(|value| value == json!(true))
    }

    /// The text with `quantization` as its last member.
    pub(super) fn with_quantization(&self, quantization: &Value) -> Vec<u8> {
        let made = serde_json::to_string_pretty(quantization).expect("a JSON value can be written").replace('\n', "\n  ");
        self.text(Some((KEY, made.as_str())))
    }

    /// The text without what it says of quantization.
    pub(super) fn without_quantization(&self) -> Vec<u8> {
        self.text(None)
    }

    fn text(&self, last: Option<(&str, &str)>) -> Vec<u8> {
        let kept = self.members.iter().filter(|(key, _)| key != KEY).map(|(key, text)| (key.as_str(), text.as_str()));
        let members: Vec<String> = kept.chain(last).map(|(key, text)| format!("  {}: {text}", json!(key))).collect();
        format!("{{\n{}\n}}\n", members.join(",\n")).into_bytes()
    }
}

/// The value of `quantization_config`: one group of modules for each scheme. The one group of a model that has no other is
/// all Linear modules but those of `ignored`; several list theirs.
pub(super) fn quantization_config<'s>(modules: impl Iterator<Item = (&'s str, &'s Scheme)>, ignored: &BTreeSet<String>) -> Value {
    let mut groups: BTreeMap<&Scheme, Vec<&str>> = BTreeMap::new();
    modules.for_each(|(module, scheme)| groups.entry(scheme).or_default().push(module));
    let formats: BTreeSet<&str> = groups.keys().map(|scheme| scheme.format()).collect();
    let format = match formats.iter().next() {
        Some(only) if formats.len() == 1 => only,
        Some(_) => "mixed-precision",
        None => "dense",
    };
    let is_only = groups.len() == 1;
    let group = |(number, (scheme, modules)): (usize, (&Scheme, Vec<&str>))| {
        let targets: Vec<&str> = if is_only { vec!["Linear"] } else { modules };
        let weights = arguments(scheme.bits, scheme.symmetric, if scheme.group_size.is_some() { "group" } else { "channel" }, false);
        let weights = with(weights, "group_size", json!(scheme.group_size));
        let activations = match scheme.activations {
            Activations::Float => Value::Null,
            Activations::Dynamic => arguments(8, true, "token", true),
            Activations::Static { symmetric } => arguments(8, symmetric, "tensor", false),
        };
        let group = json!({"format": scheme.format(), "input_activations": activations, "output_activations": null,
            "targets": targets, "weights": weights});
        (format!("group_{number}"), group)
    };
    let config_groups: Map<String, Value> = groups.into_iter().enumerate().map(group).collect();
    json!({"config_groups": config_groups, "format": format, "global_compression_ratio": null,
        "ignore": ignored, "kv_cache_scheme": null, "quant_method": "compressed-tensors", "quantization_status": "compressed",
        "sparsity_config": {}, "transform_config": {}, "version": VERSION})
}

/// `QuantizationArgs` of compressed-tensors.
fn arguments(bits: u32, symmetric: bool, strategy: &str, dynamic: bool) -> Value {
    json!({"actorder": null, "block_structure": null, "dynamic": dynamic, "group_size": null, "num_bits": bits, "observer": null,
        "observer_kwargs": {}, "scale_dtype": null, "strategy": strategy, "symmetric": symmetric, "type": "int", "zp_dtype": null})
}

fn with(mut object: Value, key: &str, value: Value) -> Value {
    object[key] = value;
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_stays_as_it_was_written() {
        let text = |key: &str, text: &str| (key.to_owned(), text.to_owned());
        let config = Config { members: vec![text("b", "1.50"), text("a\"", "[1,  2]"), text(KEY, "null")] };
        let merged = String::from_utf8(config.with_quantization(&json!({"x": 1}))).unwrap();
        assert_eq!(merged, "{\n  \"b\": 1.50,\n  \"a\\\"\": [1,  2],\n  \"quantization_config\": {\n    \"x\": 1\n  }\n}\n");
    }

    #[test]
    fn one_scheme_is_for_all_linear_modules_and_several_list_theirs() {
        let eight = Scheme { activations: Activations::Dynamic, bits: 8, symmetric: true, group_size: None };
        let four = Scheme { activations: Activations::Float, bits: 4, symmetric: false, group_size: Some(32) };
        let one = quantization_config([("a", &eight), ("b", &eight)].into_iter(), &BTreeSet::new());
        assert_eq!((&one["config_groups"]["group_0"]["targets"], &one["format"]), (&json!(["Linear"]), &json!("int-quantized")));
        let two = quantization_config([("a", &eight), ("b", &four)].into_iter(), &["lm_head".to_owned()].into());
        assert_eq!(two["config_groups"]["group_0"]["targets"], json!(["b"]));
        assert_eq!(two["config_groups"]["group_0"]["weights"]["group_size"], 32);
        assert_eq!((&two["format"], &two["ignore"]), (&json!("mixed-precision"), &json!(["lm_head"])));
    }
}
