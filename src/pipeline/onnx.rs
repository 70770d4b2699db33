//! What an ONNX model needs before anything is decided about it: the operators' version that the output's nodes take.

use crate::error::{Error, Result};
use crate::graph::onnx_model::into_model;
use crate::model::Model;
use crate::quant::scheme::Granularity;
use crate::recipe::{Mode, Recipe};

/// The version that has DynamicQuantizeLinear.
const DYNAMIC: i64 = 11;

/// The version whose DequantizeLinear takes one scale a channel.
const PER_AXIS: i64 = 13;

/// The version whose DequantizeLinear takes blocks, and codes of four and sixteen bits.
const BLOCKED: i64 = 21;

/// The model in the version that `recipe` needs; other kinds of models as they are.
pub(super) fn ready(model: Model, recipe: &Recipe) -> Result<Model> {
    let Some(onnx) = model.onnx() else { return Ok(model) };
    let settings = &recipe.settings;
    let is_blocked = matches!(settings.granularity, Granularity::PerGroup(_)) || settings.weights.bits() < 8;
    let needed = match settings.granularity {
        _ if is_blocked => BLOCKED,
        Granularity::PerTensor if recipe.mode == Mode::WeightOnly => DYNAMIC,
        _ => PER_AXIS,
    };
    if onnx.file.proto.opset() >= needed || onnx.weights.layers.is_empty() {
        return Ok(model);
    }
    let found = format!("opset: expected {needed} or newer, found {}", onnx.file.proto.opset());
    Err(Error::malformed(model.path(), found))
}

#[allow(dead_code)]
fn again(model: Model) -> Option<Result<Model>> {
    model.into_onnx().map(|onnx| into_model(onnx.file))
}
