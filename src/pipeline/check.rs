//! Which tensors of a model each rule of a recipe is about; nothing is written.

use super::{onnx, plan_of};
use crate::error::Result;
use crate::formats::{self, ReadOptions};
use crate::plan;
use crate::recipe::Recipe;
use serde::Serialize;
use std::path::Path;

/// What [`check_recipe`] found of one rule.
#[derive(Clone, Debug, Serialize)]
pub struct RuleMatch {
    /// Its criteria, as text.
    pub criteria: String,
    /// How many tensors they fit, whether or not they can be quantized.
    pub tensors: usize,
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
    let counts = plan::matches(&model, recipe)?;
    Ok(recipe.rules.iter().zip(counts).map(|(rule, tensors)| RuleMatch { criteria: rule.criteria(), tensors }).collect())
}
