//! Which tensors of a model each rule of a recipe is about; nothing is written.

use super::{onnx, plan_of};
use crate::error::Result;
use crate::formats::{self, ReadOptions};
use crate::model::ModelTensor;
use crate::plan;
use crate::recipe::{Recipe, Rule};
use serde::Serialize;
use std::path::Path;

/// What [`check_recipe`] found of one rule.
#[derive(Clone, Debug, Serialize)]
pub struct RuleMatch {
    /// Its criteria, as text.
    pub criteria: String,
    /// How many tensors they fit, whether or not they can be quantized.
    pub tensors: usize,
    /// How many of these are weights that can be quantized.
    pub weights: usize,
}

/// Decides what `recipe` would make of the model at `path`, and counts the tensors of each rule.
///
/// # Errors
///
/// As [`formats::open`] and [`Plan::new`](crate::plan::Plan::new).
pub fn check_recipe(path: &Path, recipe: &Recipe, read: &ReadOptions) -> Result<Vec<RuleMatch>> {
    let model = onnx::ready(formats::open(path, read)?, recipe)?;
    let model = plan::declare(model, recipe)?;
    plan_of(&model, recipe)?;
    let found = |rule: &Rule| {
        let tensors: Vec<&ModelTensor> = model.tensors().iter().filter(|tensor| tensor.is_subject_of(rule)).collect();
        let weights = tensors.iter().filter(|tensor| plan::unsuitable(tensor, true).is_none()).count();
        RuleMatch { criteria: rule.criteria(), tensors: tensors.len(), weights }
    };
    Ok(recipe.rules.iter().map(found).collect())
}
