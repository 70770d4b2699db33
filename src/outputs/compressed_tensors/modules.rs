//! Which tensors of a checkpoint are weights of Linear modules, told by their names: a checkpoint does not say.

use super::config::Config;
use super::{Scheme, WORD};
use crate::error::{Error, Result, show_name};
use crate::model::Model;
use crate::quant::scheme::Granularity;
use crate::recipe::{Mode, Recipe, Weights};
use crate::tensor::{Dtype, TensorInfo};
use std::collections::{BTreeMap, BTreeSet};

/// What the weight of a Linear module is called, after the module's name.
const WEIGHT: &str = ".weight";

/// The output layer, which stays in float unless it is asked for.
const HEAD: &str = "lm_head";

/// Last parts of names of embeddings.
const EMBEDDINGS: &[&str] = &["embed_tokens", "embed_positions", "tok_embeddings", "wte", "wpe", "embed_in"];

/// Last parts of names of modules that choose among experts: small, and what they lose is lost twice.
const GATES: &[&str] = &["gate", "router", "shared_expert_gate"];

/// Modules that runtimes fuse into one, which must share a scheme.
const FUSED: &[&[&str]] = &[&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"], &["w1", "w3"]];

/// The module whose weight a tensor is.
pub(super) fn module_of(tensor: &str) -> &str {
    tensor.strip_suffix(WEIGHT).unwrap_or(tensor)
}

fn last_part(module: &str) -> &str {
    module.rsplit('.').next().unwrap_or(module)
}

/// The tensors that do not become codes, by number, and why.
pub(super) fn others(model: &Model, recipe: &Recipe) -> BTreeMap<usize, String> {
    let reason = |(number, tensor): (usize, &crate::model::ModelTensor)| {
        let resolved = recipe.resolve(|rule| tensor.is_subject_of(rule));
        let is_asked_for = recipe.include.iter().any(|pattern| tensor.is_matched_by(pattern))
            || matches!(resolved.decided_by.and_then(|rule| rule.weights), Some(Weights::Codes(_)));
        let settings = &resolved.settings;
        let packed = !matches!(settings.mode.unwrap_or(recipe.mode), Mode::Dynamic | Mode::Static);
        let bits = settings.weights.bits() as usize;
        let why = match not_linear(&tensor.info) {
            None if !is_asked_for => usually_float(module_of(&tensor.info.name)),
            why => why,
        };
        let why = why.or_else(|| does_not_divide(tensor.info.shape[1], settings.granularity, packed.then_some(WORD / bits)));
        why.map(|why| (number, why))
    };
    model.tensors().iter().enumerate().filter_map(reason).collect()
}

fn not_linear(info: &TensorInfo) -> Option<String> {
    let module = module_of(&info.name);
    if info.shape.len() != 2 || module == info.name {
        return Some(if info.shape.len() == 2 { "no weight of a module".into() } else { format!("rank {}", info.shape.len()) });
    }
    if is_embedding(module) {
        return Some("an embedding".into());
    }
    match info.dtype {
        Dtype::F32 | Dtype::F16 | Dtype::BF16 => None,
        other => Some(format!("{other}, of which compressed-tensors has no scales")),
    }
}

fn is_embedding(module: &str) -> bool {
    let part = last_part(module);
    EMBEDDINGS.contains(&part) || part.ends_with("embedding") || part.ends_with("embeddings")
}

fn usually_float(module: &str) -> Option<String> {
    match last_part(module) {
        HEAD => Some(format!("{HEAD} stays in float unless it is included")),
        part if GATES.contains(&part) => Some("a gate of experts, which stays in float unless it is included".into()),
        _ => None,
    }
}

fn does_not_divide(columns: usize, granularity: Granularity, per_word: Option<usize>) -> Option<String> {
    match granularity {
        Granularity::PerGroup(size) if !columns.is_multiple_of(size) => {
            Some(format!("groups of {size} do not divide {columns} input features"))
        }
        _ => per_word
            .filter(|count| !columns.is_multiple_of(*count))
            .map(|count| format!("{columns} input features do not fill words of {count}")),
    }
}

/// The Linear modules that stay in float.
pub(super) fn ignored(model: &Model, schemes: &BTreeMap<usize, Scheme>, config: &Config) -> BTreeSet<String> {
    let names = model.tensors().iter().enumerate().filter(|(number, tensor)| {
        let info = &tensor.info;
        let is_linear = info.shape.len() == 2 && info.name.ends_with(WEIGHT) && !is_embedding(module_of(&info.name));
        is_linear && !schemes.contains_key(number)
    });
    let mut ignored: BTreeSet<String> = names.map(|(_, tensor)| module_of(&tensor.info.name).to_owned()).collect();
    // A tied head has no tensor of its own.
    let has_head = schemes.keys().any(|tensor| last_part(module_of(&model.tensors()[*tensor].info.name)) == HEAD);
    if !has_head || config.ties_embeddings() {
        ignored.insert(HEAD.to_owned());
    }
    ignored
}

/// Refuses schemes that differ among modules which runtimes fuse.
///
/// # Errors
///
/// [`Error::Usage`] naming two of them.
pub(super) fn check_fused(model: &Model, schemes: &BTreeMap<usize, Scheme>) -> Result<()> {
    let index = model.index();
    let number_of = |module: &str| index.get(format!("{module}{WEIGHT}").as_str()).copied();
    for (number, tensor) in model.tensors().iter().enumerate() {
        let module = module_of(&tensor.info.name);
        let part = last_part(module);
        let Some(fused) = FUSED.iter().find(|fused| fused.contains(&part)) else { continue };
        let parent = &module[..module.len() - part.len()];
        for other in fused.iter().filter(|other| **other != part) {
            let Some(other_number) = number_of(&format!("{parent}{other}")) else { continue };
            if schemes.get(&number) != schemes.get(&other_number) {
                let names = format!("{} and {}", show_name(module), show_name(&format!("{parent}{other}")));
                let error = Error::Usage(format!("{names}: expected one scheme, as runtimes fuse them, found two"));
                return Err(error.with_hint("let rules, --include and --exclude match all of them"));
            }
        }
    }
    Ok(())
}
