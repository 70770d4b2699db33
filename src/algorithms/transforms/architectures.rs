//! Where known decoders let factors be folded: a tensor whose outputs, feature by feature, are the inputs of some layers.

use crate::error::{Error, Result};
use crate::formats::mmap::MappedFile;
use crate::formats::{beside, parse_object};
use crate::model::Model;
use std::collections::HashMap;

/// One place in each block of an architecture.
struct Fold {
    /// The norm, or the Linear module, that comes before.
    before: &'static str,
    /// All layers that take its outputs.
    after: &'static [&'static str],
}

struct Architecture {
    /// `model_type` of `config.json`.
    models: &'static [&'static str],
    folds: &'static [Fold],
}

/// Norms multiply by their weight, and `down_proj` takes the product of `up_proj` and what an activation function made of
/// `gate_proj`.
const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        models: &["llama", "mistral", "qwen2", "qwen3"],
        folds: &[
            Fold { before: "input_layernorm", after: &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"] },
            Fold { before: "post_attention_layernorm", after: &["mlp.gate_proj", "mlp.up_proj"] },
            Fold { before: "mlp.up_proj", after: &["mlp.down_proj"] },
        ],
    },
    Architecture {
        models: &["phi3"],
        folds: &[
            Fold { before: "input_layernorm", after: &["self_attn.qkv_proj"] },
            Fold { before: "post_attention_layernorm", after: &["mlp.gate_up_proj"] },
        ],
    },
];

/// Tensors by number: what comes before, and the layers that take its outputs.
pub(super) struct Place {
    pub(super) before: usize,
    /// The bias of what comes before.
    pub(super) bias: Option<usize>,
    pub(super) after: Vec<usize>,
}

/// All places of a model.
///
/// # Errors
///
/// [`Error::Malformed`] if it says of no known architecture that it is one.
pub(super) fn places(model: &Model) -> Result<Vec<Place>> {
    let kind = model_type(model);
    let architecture = ARCHITECTURES.iter().find(|architecture| kind.as_deref().is_some_and(|kind| architecture.models.contains(&kind)));
    let Some(architecture) = architecture else {
        let known: Vec<&str> = ARCHITECTURES.iter().flat_map(|architecture| architecture.models).copied().collect();
        let found = kind.map_or("none".to_owned(), |kind| format!("{kind:?}"));
        return Err(Error::malformed(
            model.path(),
            format!(
                "smooth-quant: expected a model_type of {} in config.json, to know what comes before a layer, found {found}",
                known.join(", ")
            ),
        ));
    };
    let index = model.index();
    let mut places = Vec::new();
    for name in model.tensors().iter().map(|tensor| tensor.info.name.as_str()) {
        for fold in architecture.folds {
            let Some(block) = name.strip_suffix(".weight").and_then(|module| module.strip_suffix(fold.before)) else { continue };
            if !block.is_empty() && !block.ends_with('.') {
                continue;
            }
            places.extend(place(model, &index, block, fold));
        }
    }
    Ok(places)
}

fn place(model: &Model, index: &HashMap<&str, usize>, block: &str, fold: &Fold) -> Option<Place> {
    let number = |module: &str, kind: &str| index.get(format!("{block}{module}.{kind}").as_str()).copied();
    let before = number(fold.before, "weight")?;
    let after = fold.after.iter().map(|module| number(module, "weight")).collect::<Option<Vec<usize>>>()?;
    let features = *model.tensors()[before].info.shape.first()?;
    let fits = after.iter().all(|tensor| matches!(model.tensors()[*tensor].info.shape[..], [_, width] if width == features));
    fits.then_some(Place { before, bias: number(fold.before, "bias"), after })
}

fn model_type(model: &Model) -> Option<String> {
    let file = MappedFile::open(&beside(model.path(), "config.json", model.follows_links()).ok()?).ok()?;
    let members = parse_object(std::str::from_utf8(file.bytes()).ok()?).ok()?;
    let (_, value) = members.into_iter().find(|(key, _)| key == "model_type")?;
    serde_json::from_str(value.get()).ok()
}
