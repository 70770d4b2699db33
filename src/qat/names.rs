//! Which tensors of a checkpoint are the state of fake quantizers, and what each of them quantizes, by name.
//!
//! | tensors | of |
//! |---|---|
//! | `P.weight_fake_quant.*` | `P.weight`: `torch.ao.nn.qat` modules, in eager mode and FX, and `_LearnableFakeQuantize` |
//! | `P.weight_fake_quantizer.*` | `P.weight`: torchao's `FakeQuantizedLinear` |
//! | `P.parametrizations.weight.0.*` | `P.weight`, stored as `P.parametrizations.weight.original` |
//! | `P.activation_post_process.*` | the output of `P` |
//! | `P.activation_fake_quantizer.*` | `P.input`: torchao |
//! | `P.activation_post_process_3.*` | a value of an FX graph; of an exported graph (PT2E) also a weight, if the recipe says so |
//!
//! `P` is whatever stands before, with `module.` and `_orig_mod.` where wrappers put them.

use crate::model::Model;
use std::collections::BTreeMap;

/// Weights whose fake quantizers have a name of their own, beside the weight.
const OF_WEIGHTS: &[&str] = &["weight_fake_quant", "weight_fake_quantizer"];

/// torchao's name for what quantizes a module's input.
const OF_INPUTS: &str = "activation_fake_quantizer";

/// `torch.ao`'s name for what watches a module's output, and for observers within fake quantizers.
pub(super) const POST_PROCESS: &str = "activation_post_process";

/// Where `torch.nn.utils.parametrize` puts modules and what they are applied to.
const PARAMETRIZATIONS: &str = "parametrizations";

/// A parametrized tensor before its parametrizations.
pub(super) const ORIGINAL: &str = "original";

/// State that fake quantizers have, and observers alone have not.
const OWN_STATE: &[&str] = &["scale", "zero_point", "fake_quant_enabled"];

/// What a fake quantizer quantizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Site {
    /// The weight of the module with this name, which is empty for a model that is one module.
    Weight(String),
    /// The tensor of this name, which has this fake quantizer as a parametrization.
    Parametrized(String),
    /// The tensor of this name, as the recipe says of a fake quantizer of an exported graph.
    Exported {
        weight: String,
        /// The module of batch normalization that it is multiplied by before.
        batch_norm: Option<String>,
    },
    /// The activation of this name.
    Activation(String),
}

/// The state of one fake quantizer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FakeQuantizer {
    /// What its tensors' names begin with, without the last dot.
    pub root: String,
    pub site: Site,
    /// Its tensors, by what follows [`root`](Self::root) and a dot.
    pub tensors: BTreeMap<String, usize>,
}

/// `module.name`, or `name` if the module is the whole model.
pub(super) fn join(module: &str, name: &str) -> String {
    if module.is_empty() { name.to_owned() } else { format!("{module}.{name}") }
}

/// The fake quantizers of a model, in the order of their names.
pub(super) fn find(model: &Model) -> Vec<FakeQuantizer> {
    let mut found: BTreeMap<String, FakeQuantizer> = BTreeMap::new();
    for (tensor, stored) in model.tensors().iter().enumerate() {
        let Some((root, site, rest)) = split(&stored.info.name) else { continue };
        let quantizer = found.entry(root.clone()).or_insert_with(|| FakeQuantizer { root, site, tensors: BTreeMap::new() });
        quantizer.tensors.insert(rest, tensor);
    }
    let is_one = |quantizer: &FakeQuantizer| OWN_STATE.iter().any(|state| quantizer.tensors.contains_key(*state));
    found.into_values().filter(is_one).collect()
}

/// The fake quantizer that a tensor would belong to, what that is for, and the rest of the tensor's name.
fn split(name: &str) -> Option<(String, Site, String)> {
    let dots = name.match_indices('.').map(|(at, _)| at);
    let mut start = 0;
    for end in dots {
        let part = &name[start..end];
        let (module, rest) = (&name[..start.saturating_sub(1)], &name[end + 1..]);
        let root = || name[..end].to_owned();
        start = end + 1;
        let numbered = part.strip_prefix(POST_PROCESS).and_then(|rest| rest.strip_prefix('_'));
        if OF_WEIGHTS.contains(&part) {
            return Some((root(), Site::Weight(module.to_owned()), rest.to_owned()));
        }
        if part == POST_PROCESS {
            let name = if module.is_empty() { part } else { module };
            return Some((root(), Site::Activation(name.to_owned()), rest.to_owned()));
        }
        if part == OF_INPUTS {
            return Some((root(), Site::Activation(join(module, "input")), rest.to_owned()));
        }
        if numbered.is_some_and(is_number) {
            return Some((root(), Site::Activation(root()), rest.to_owned()));
        }
        if part == PARAMETRIZATIONS
            && let Some((parameter, rest)) = rest.split_once('.')
            && let Some((number, rest)) = rest.split_once('.')
            && is_number(number)
        {
            let root = format!("{}.{parameter}.{number}", root());
            return Some((root, Site::Parametrized(join(module, parameter)), rest.to_owned()));
        }
    }
    None
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// What the names of all that belongs to a parametrized tensor begin with: `P.parametrizations.weight.` of `P.weight`.
pub(super) fn parametrizations_of(tensor: &str) -> String {
    let (module, parameter) = tensor.rsplit_once('.').unwrap_or(("", tensor));
    format!("{}.{parameter}.", join(module, PARAMETRIZATIONS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_is_quantized() {
        let weight = |module: &str| Site::Weight(module.into());
        let activation = |name: &str| Site::Activation(name.into());
        struct Case {
            name: &'static str,
            expected: Option<(&'static str, Site, &'static str)>,
        }
        let cases = [
            Case { name: "fc.weight", expected: None },
            Case { name: "fc.scale", expected: None },
            Case { name: "weight_fake_quant.scale", expected: Some(("weight_fake_quant", weight(""), "scale")) },
            Case {
                name: "module._orig_mod.fc.weight_fake_quant.activation_post_process.min_val",
                expected: Some(("module._orig_mod.fc.weight_fake_quant", weight("module._orig_mod.fc"), "activation_post_process.min_val")),
            },
            Case {
                name: "a.b.activation_post_process.activation_post_process.eps",
                expected: Some(("a.b.activation_post_process", activation("a.b"), "activation_post_process.eps")),
            },
            Case {
                name: "activation_post_process_12.scale",
                expected: Some(("activation_post_process_12", activation("activation_post_process_12"), "scale")),
            },
            Case { name: "activation_post_process_x.scale", expected: None },
            Case { name: "fc.weight_fake_quantizer.scale", expected: Some(("fc.weight_fake_quantizer", weight("fc"), "scale")) },
            Case {
                name: "fc.activation_fake_quantizer.scale",
                expected: Some(("fc.activation_fake_quantizer", activation("fc.input"), "scale")),
            },
            Case {
                name: "fc.parametrizations.weight.0.scale",
                expected: Some(("fc.parametrizations.weight.0", Site::Parametrized("fc.weight".into()), "scale")),
            },
            Case { name: "fc.parametrizations.weight.original0", expected: None },
        ];
        for Case { name, expected } in cases {
            let expected = expected.map(|(root, site, rest)| (root.to_owned(), site, rest.to_owned()));
            assert_eq!(split(name), expected, "{name}");
        }
        assert_eq!(parametrizations_of("a.fc.weight"), "a.fc.parametrizations.weight.");
        assert_eq!(parametrizations_of("weight"), "parametrizations.weight.");
    }
}
