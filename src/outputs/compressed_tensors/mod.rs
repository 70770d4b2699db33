//! The form that transformers and vLLM load: a Hugging Face directory whose `config.json` says how its Linear modules are
//! quantized, as [compressed-tensors](https://github.com/vllm-project/compressed-tensors) defines it.
//!
//! A Linear module `X` with weights `[out, in]` becomes, with integer activations (`int-quantized`, modes `dynamic` and `static`)
//!
//! ```text
//! X.weight        I8 [out, in]             X.weight_scale  [out, 1], or [out, in / group]
//! ```
//!
//! and with float activations (`pack-quantized`, mode `weight-only`)
//!
//! ```text
//! X.weight_packed I32 [out, in * bits / 32]: codes moved up to be unsigned, the first in the lowest bits of a word
//! X.weight_scale  [out, 1], or [out, in / group]
//! X.weight_shape  I64 [2]: out, in
//! X.weight_zero_point I32 [out * bits / 32, in / group], where zero points are not 0: rows packed as codes are
//! ```
//!
//! With activations by ranges from samples (mode `static`) there are besides
//!
//! ```text
//! X.input_scale   [1]                      X.input_zero_point  I8 [1], where zero points are not 0
//! ```
//!
//! Scales have the type of the weight. Embeddings, `lm_head` and gates of experts stay in float unless they are asked for.
//! Left out: block-wise scales, floats of eight and four bits, sparsity.

mod config;
mod modules;
pub(crate) mod read;

use super::container::{Entry, Order};
use super::onnx::rewrite::Chosen;
use super::weight_files::{WeightFiles, marked_metadata};
use super::{Content, Output, OutputLayout};
use crate::error::{Error, Result};
use crate::model::{Layout, Model};
use crate::plan::Plan;
use crate::quant::params::Params;
use crate::quant::scheme::{CodeType, Convention, Granularity};
use crate::recipe::{Mode, Recipe};
use crate::tensor::{Dtype, encode_f32};
use bytes::Bytes;
use config::Config;
use std::collections::BTreeMap;

pub(crate) struct CompressedTensors;

/// Bits of a word of packed codes.
const WORD: usize = 32;

/// What activations are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Activations {
    /// Floats.
    Float,
    /// Integers, one scale a token, found when the model runs.
    Dynamic,
    /// Integers, one scale for all, known before.
    Static {
        /// Whether zero points are 0.
        symmetric: bool,
    },
}

/// How the Linear modules of one group are quantized.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Scheme {
    activations: Activations,
    bits: u32,
    symmetric: bool,
    /// `None` for one scale a channel.
    group_size: Option<usize>,
}

impl Scheme {
    /// What compressed-tensors calls the way in which the weights are stored.
    fn format(&self) -> &'static str {
        if self.activations == Activations::Float { "pack-quantized" } else { "int-quantized" }
    }
}

impl Output for CompressedTensors {
    fn name(&self) -> &'static str {
        "compressed-tensors"
    }

    fn summary(&self) -> &'static str {
        "a Hugging Face directory that transformers and vLLM load"
    }

    fn is_for(&self, model: &Model) -> bool {
        model.onnx().is_none() && matches!(model.layout(), Layout::Directory { .. })
    }

    fn needs_params(&self, _model: &Model) -> bool {
        false
    }

    fn convention(&self, _model: &Model) -> Convention {
        Convention::CompressedTensors
    }

    fn quantizes_activations(&self) -> bool {
        true
    }

    fn adapt(&self, recipe: &mut Recipe) {
        // The same codes, moved to be signed.
        if recipe.activations.dtype == CodeType::Uint8 {
            recipe.activations.dtype = CodeType::Int8;
        }
    }

    fn parameter_suffixes(&self) -> Option<[&'static str; 2]> {
        Some(["_scale", "_zero_point"])
    }

    fn ready(&self, model: Model, recipe: &Recipe) -> Result<Model> {
        if !self.is_for(&model) {
            return Err(Error::malformed(model.path(), "format: expected a directory in Hugging Face layout, found a file")
                .with_hint("--format compressed-tensors needs the model's config.json beside its weights"));
        }
        let config = Config::read(model.path(), model.follows_links())?;
        if let Some(kind) = config.has_no_linear_modules() {
            let message =
                format!("config.json: model_type: expected a model of Linear modules, found {kind:?}, whose weights are transposed");
            return Err(Error::malformed(model.path(), message));
        }
        check_settings(recipe)?;
        let others = modules::others(&model, recipe);
        Ok(model.without_weights(others))
    }

    fn lay_out(&self, model: &Model, plan: &Plan, chosen: &Chosen, _name: &str) -> Result<OutputLayout> {
        let config = Config::read(model.path(), model.follows_links())?;
        let schemes = schemes(model, plan, chosen)?;
        modules::check_fused(model, &schemes)?;
        let mut files = WeightFiles::new(model);
        for (index, source) in model.files().iter().enumerate() {
            let (mut entries, mut contents) = (Vec::new(), Vec::new());
            for (tensor, info) in model.tensors().iter().enumerate().filter(|(_, t)| t.file == index).map(|(i, t)| (i, &t.info)) {
                match schemes.get(&tensor) {
                    None => {
                        entries.push(Entry { name: info.name.clone(), dtype: info.dtype, shape: info.shape.clone(), codes: None });
                        contents.push(Content::Source(tensor));
                    }
                    Some(scheme) => {
                        add_linear(&info.name, info.dtype, &info.shape, tensor, scheme, &mut entries, &mut contents);
                        if let Activations::Static { symmetric } = scheme.activations {
                            let module = modules::module_of(&info.name);
                            add_input(module, info.dtype, chosen.activations[module], symmetric, &mut entries, &mut contents);
                        }
                    }
                }
            }
            files.add(source, &marked_metadata(source), &entries, contents, Order::Aligned)?;
        }
        let (files, index) = files.finish();
        let ignored = modules::ignored(model, &schemes, &config);
        let by_module = schemes.iter().map(|(tensor, scheme)| (modules::module_of(&model.tensors()[*tensor].info.name), scheme));
        let merged = config.with_quantization(&config::quantization_config(by_module, &ignored));
        Ok(OutputLayout { files, documents: index.into_iter().chain([(config::NAME.to_owned(), merged)]).collect() })
    }
}

/// Refuses what compressed-tensors has no form for, whatever the tensor.
fn check_settings(recipe: &Recipe) -> Result<()> {
    let codes = recipe.activations.dtype;
    if codes != CodeType::Int8 {
        return Err(Error::Usage(format!("--format compressed-tensors: expected --activations int8, found {codes}")));
    }
    if recipe.settings.axis != 0 || recipe.rules.iter().any(|rule| rule.axis.is_some_and(|axis| axis != 0)) {
        return Err(Error::Usage("--format compressed-tensors: expected axis 0, the output features, found another".into()));
    }
    Ok(())
}

/// The scheme of each quantized tensor.
fn schemes(model: &Model, plan: &Plan, chosen: &Chosen) -> Result<BTreeMap<usize, Scheme>> {
    let of_tensor = |tensor: usize| {
        let scheme = plan.scheme(tensor).expect("the tensor is quantized");
        let refuse = |expected: &str, found: &str| {
            Err(Error::Usage(format!(
                "{}: expected {expected}, found {found}",
                crate::error::show_name(&model.tensors()[tensor].info.name)
            )))
        };
        let is_known = chosen.activations.contains_key(modules::module_of(&model.tensors()[tensor].info.name));
        let activations = match scheme.mode.unwrap_or(plan.mode) {
            Mode::Static if is_known => Activations::Static { symmetric: plan.symmetric_activations },
            Mode::Dynamic | Mode::Static => Activations::Dynamic,
            Mode::Auto | Mode::WeightOnly => Activations::Float,
        };
        if !scheme.codes.is_signed() {
            return refuse("int8 or int4, as compressed-tensors stores codes", scheme.codes.name());
        }
        let group_size = match scheme.granularity {
            Granularity::PerChannel => None,
            Granularity::PerGroup(size) => Some(size),
            Granularity::PerTensor => return refuse("scales per channel or per group", "per tensor"),
        };
        let symmetric = scheme.rule.symmetric;
        if activations != Activations::Float && (scheme.codes.bits() != 8 || !symmetric) {
            return refuse("symmetric int8 weights where activations are integers", "others");
        }
        if !symmetric && group_size.is_none() {
            return refuse("per-group scales where zero points are not 0", "per channel");
        }
        Ok((tensor, Scheme { activations, bits: scheme.codes.bits(), symmetric, group_size }))
    };
    plan.quantized().map(of_tensor).collect()
}

/// The tensors of one Linear module. Parameters follow their codes, as they are known later.
fn add_linear(
    name: &str,
    dtype: Dtype,
    shape: &[usize],
    tensor: usize,
    scheme: &Scheme,
    entries: &mut Vec<Entry>,
    contents: &mut Vec<Content>,
) {
    let (rows, columns) = (shape[0], shape[1]);
    let groups = scheme.group_size.map_or(1, |size| columns / size);
    let place = entries.len();
    let mut add = |suffix: &str, dtype: Dtype, shape: Vec<usize>, codes: Option<usize>, content: Content| {
        entries.push(Entry { name: format!("{name}{suffix}"), dtype, shape, codes });
        contents.push(content);
    };
    if scheme.activations != Activations::Float {
        add("", Dtype::I8, shape.to_vec(), None, Content::Codes(tensor));
        return add("_scale", dtype, vec![rows, groups], Some(place), Content::ScalesInType(tensor));
    }
    let per_word = WORD / scheme.bits as usize;
    add("_packed", Dtype::I32, vec![rows, columns / per_word], None, Content::UnsignedCodes(tensor));
    add("_scale", dtype, vec![rows, groups], Some(place), Content::ScalesInType(tensor));
    if !scheme.symmetric {
        add("_zero_point", Dtype::I32, vec![rows.div_ceil(per_word), groups], Some(place), Content::PackedZeroPoints(tensor));
    }
    let dims: Vec<u8> = shape.iter().flat_map(|dim| (*dim as i64).to_le_bytes()).collect();
    add("_shape", Dtype::I64, vec![2], None, Content::Literal(Bytes::from(dims)));
}

/// Scale and zero point of the inputs of one Linear module.
fn add_input(module: &str, dtype: Dtype, params: Params, symmetric: bool, entries: &mut Vec<Entry>, contents: &mut Vec<Content>) {
    let mut add = |suffix: &str, dtype: Dtype, bytes: Vec<u8>| {
        entries.push(Entry { name: format!("{module}{suffix}"), dtype, shape: vec![1], codes: None });
        contents.push(Content::Literal(Bytes::from(bytes)));
    };
    let mut scale = vec![0; dtype.bytes().expect("float types have whole bytes") as usize];
    encode_f32(dtype, &[params.scale], &mut scale);
    add(".input_scale", dtype, scale);
    if !symmetric {
        add(".input_zero_point", Dtype::I8, vec![params.zero_point as u8]);
    }
}
