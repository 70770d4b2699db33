//! Whether what a recipe is about is there: every pattern, rule, layer and operator that it names.

use crate::error::{Error, Result, show_name};
use crate::graph::ops::OPERATORS;
use crate::method::{look_up, meant};
use crate::model::{Model, Role};
use crate::recipe::{Pattern, Recipe, Rule};
use std::collections::{BTreeSet, HashSet};

/// That every pattern, rule and layer of `recipe` is about some tensor.
///
/// # Errors
///
/// [`Error::Usage`] for the first pattern, rule or layer that is about none, or operator that qtool does not know.
pub(super) fn check_matches(model: &Model, recipe: &Recipe) -> Result<()> {
    for (field, pattern) in recipe.patterns() {
        if !model.tensors().iter().any(|tensor| tensor.is_matched_by(pattern)) {
            return Err(advised(Error::Usage(format!("{field} {}", no_match(&pattern_text(pattern)))), model, Some(pattern)));
        }
    }
    for wanted in &recipe.op_types {
        look_up("--op-types", OPERATORS, |operator| operator.op_type, wanted)?;
    }
    check_op_types(model, recipe)?;
    let there: HashSet<&str> = model.tensors().iter().filter_map(|tensor| tensor.role.op()).collect();
    for layer in &recipe.layers {
        let is_there = match (&layer.op, model.onnx()) {
            (Some(op), Some(_)) => there.contains(op.as_str()),
            // Checkpoints have no operators; `declare` has looked for their tensors.
            _ => true,
        };
        if !is_there {
            let message = format!("layer {}", no_match(&layer.criteria()));
            let error = layer.place.as_ref().map_or_else(|| Error::Usage(message.clone()), |place| place.error(&message));
            return Err(error.with_hint("the input must be a constant of floats with two dimensions or more"));
        }
    }
    recipe.rules.iter().try_for_each(|rule| check_rule(model, recipe, rule))
}

/// Some of the operators that were asked for have weights in the model.
fn check_op_types(model: &Model, recipe: &Recipe) -> Result<()> {
    if recipe.op_types.is_empty() {
        return Ok(());
    }
    if model.onnx().is_none() {
        return Err(Error::Usage("--op-types: expected an ONNX model, whose operators are known, found another kind".into()));
    }
    let there: BTreeSet<&str> = model.tensors().iter().filter_map(|tensor| tensor.role.op()).collect();
    if recipe.op_types.iter().any(|wanted| there.contains(wanted.as_str())) {
        return Ok(());
    }
    let there = there.into_iter().collect::<Vec<_>>().join(", ");
    let error =
        Error::Usage(format!("--op-types: expected operators that have weights in this model, found {}", recipe.op_types.join(", ")));
    Err(error.with_hint(if there.is_empty() { "no operator has".into() } else { format!("those of {there} have") }))
}

fn check_rule(model: &Model, recipe: &Recipe, rule: &Rule) -> Result<()> {
    let at = |message: &str| match &rule.place {
        Some(place) => place.error(message),
        None => Error::Usage(format!("recipe rule: {message}")),
    };
    for wanted in rule.op.iter().flat_map(|op| op.names()) {
        if model.onnx().is_none() {
            return Err(at("op: expected an ONNX model, whose operators are known, found another kind"));
        }
        let custom = recipe.layers.iter().filter_map(|layer| layer.op.as_deref());
        let known: Vec<&str> = OPERATORS.iter().map(|operator| operator.op_type).chain(custom).collect();
        look_up("op", &known, |name| name, wanted).map_err(|e| at(&e.to_string()))?;
    }
    match model.tensors().iter().any(|tensor| tensor.is_subject_of(rule)) {
        true => Ok(()),
        false => Err(advised(at(&format!("rule {}", no_match(&rule.criteria()))), model, rule.pattern.as_ref())),
    }
}

fn pattern_text(pattern: &Pattern) -> String {
    show_name(pattern.as_str()).to_string()
}

fn no_match(criteria: &str) -> String {
    format!("{criteria}: expected at least one tensor to match, found none")
}

/// The error with the name that was likely meant, or with how to see all names.
fn advised(error: Error, model: &Model, pattern: Option<&Pattern>) -> Error {
    let names = || model.tensors().iter().flat_map(|tensor| tensor.names());
    let alike = pattern.and_then(Pattern::as_name).and_then(|name| meant(name, names()));
    match alike {
        Some(name) => error.with_hint(format!("did you mean {}?", show_name(name))),
        None => error.with_hint("`qtool inspect MODEL` lists the names"),
    }
}

/// What operators that a recipe's `[[layer]]` declares for checkpoints are called.
const CUSTOM: &str = "custom";

/// The checkpoint with the layers that `recipe` declares; ONNX models have theirs by operators.
///
/// # Errors
///
/// [`Error::Usage`] if a layer is for another kind of model, matches no tensor, or one that has no such axis.
pub(crate) fn declare(model: Model, recipe: &Recipe) -> Result<Model> {
    let mut found = std::collections::BTreeMap::new();
    for layer in &recipe.layers {
        let wrong = |message: String| layer.place.as_ref().map_or_else(|| Error::Usage(message.clone()), |place| place.error(&message));
        match (&layer.op, model.onnx()) {
            (None, Some(_)) => {
                return Err(wrong(
                    "layer: expected `op` and `input` for an ONNX model, whose operators say what weights are, found neither".into(),
                ));
            }
            (Some(_), None) => return Err(wrong("layer: expected `match` only for a model without operators, found `op`".into())),
            (Some(_), Some(_)) => continue,
            (None, None) => {}
        }
        let pattern = layer.pattern.as_ref().expect("a layer without `op` has a pattern");
        let mut is_there = false;
        for (number, tensor) in model.tensors().iter().enumerate().filter(|(_, tensor)| tensor.is_matched_by(pattern)) {
            let info = &tensor.info;
            let Some(axis) = layer.channels(info.shape.len()) else {
                let shape = format!("tensor {} of {} dimensions", show_name(&info.name), info.shape.len());
                return Err(wrong(format!(
                    "layer {}: expected a weight of two dimensions or more with that axis, found {shape}",
                    layer.criteria()
                )));
            };
            is_there = true;
            let name = info.name.strip_suffix(".weight").unwrap_or(&info.name).to_owned();
            found.insert(number, (name, axis));
        }
        if !is_there {
            return Err(advised(wrong(format!("layer {}", no_match(&layer.criteria()))), &model, Some(pattern)));
        }
    }
    // What cannot be a weight stays none.
    found.retain(|tensor, _| !matches!(model.tensors()[*tensor].role, Role::Other { .. }));
    Ok(model.with_layers(found, CUSTOM))
}
