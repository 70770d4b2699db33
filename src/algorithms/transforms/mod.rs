//! Easier weights: changes to a float model that leave what it computes as it is, so that less is lost when it is quantized.
//!
//! A new one is a file with an implementation of `Transform`, its `mod` line and its entry in [`TRANSFORMS`].

mod architectures;
pub(crate) mod bias_correction;
mod equalize;
pub(crate) mod on_graph;
pub(crate) mod site;
mod smooth_quant;

use super::Context;
use super::solver::Layer;
use crate::calibration::inputs::LayerInputs;
use crate::error::{Error, Result};
use crate::method::{Method, look_up};
use crate::model::Model;
use crate::observers::Parameter;
use crate::plan::Plan;
use on_graph::OnGraph;
use std::collections::BTreeMap;

/// A checkpoint with what is known of its layers' inputs, before it is quantized.
pub(crate) struct Calibrated<'a> {
    pub(crate) model: &'a mut Model,
    pub(crate) plan: &'a Plan,
    pub(crate) inputs: &'a mut LayerInputs,
    /// The quantized tensors whose inputs are known.
    pub(crate) layers: &'a BTreeMap<usize, Layer>,
    pub(crate) context: Context,
}

/// A change to a model.
pub(crate) trait Transform: Sync {
    /// Changes the model where that loses less on the samples; `value` is the number that was given. Returns what was done, in
    /// a sentence.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if there is nothing in the model that it could change.
    fn apply(&self, value: Option<f64>, calibrated: Calibrated<'_>) -> Result<String>;
}

/// A row of [`TRANSFORMS`].
pub struct TransformEntry {
    /// Name on the command line, in recipes and sidecars.
    pub name: &'static str,
    /// The number it takes, if it takes one; without it, the best is searched for.
    pub parameter: Option<Parameter>,
    /// One line of help.
    pub summary: &'static str,
    /// How checkpoints are changed, if they can be.
    checkpoint: Option<&'static dyn Transform>,
    /// How ONNX models are, if they can be.
    graph: Option<OnGraph>,
}

/// Every transform.
pub const TRANSFORMS: &[TransformEntry] = &[smooth_quant::ENTRY, equalize::ENTRY, bias_correction::ENTRY];

/// The entry of a method, whose number is checked.
///
/// # Errors
///
/// [`Error::Usage`] if there is no such transform, if it takes no number, or if the number is out of its range.
pub(crate) fn find(method: &Method) -> Result<&'static TransformEntry> {
    let entry = look_up("transform", TRANSFORMS, |entry| entry.name, &method.name)?;
    Parameter::check(entry.parameter.as_ref(), "transform", method).map(|_| entry)
}

impl TransformEntry {
    fn on_checkpoint(&self) -> Result<&'static dyn Transform> {
        self.checkpoint.ok_or_else(|| {
            let error = Error::Usage(format!("--transform {}: expected an ONNX model, found a checkpoint, which has no graph", self.name));
            error.with_hint("--transform smooth-quant is for checkpoints of known decoders")
        })
    }

    /// How ONNX models are changed.
    ///
    /// # Errors
    ///
    /// [`Error::Usage`] if they cannot be.
    pub(crate) fn on_graph(&self) -> Result<OnGraph> {
        self.graph.ok_or_else(|| Error::Usage(format!("--transform {}: expected a checkpoint, found an ONNX model", self.name)))
    }
}

/// Applies `methods` to a checkpoint in order. Returns what each did.
///
/// # Errors
///
/// As [`find`] and [`Transform::apply`].
pub(crate) fn apply(methods: &[Method], mut calibrated: Calibrated<'_>) -> Result<Vec<String>> {
    let each = |method: &Method| {
        let Calibrated { model, plan, inputs, layers, context } = &mut calibrated;
        let calibrated = Calibrated { model, plan, inputs, layers, context: *context };
        find(method)?.on_checkpoint()?.apply(method.value, calibrated).map(|done| format!("{}: {done}", method.name))
    };
    methods.iter().map(each).collect()
}

/// Refuses transforms that are not for the kind of model, and an order in which one would undo what another did.
pub(crate) fn check(methods: &[Method], is_graph: bool) -> Result<()> {
    for method in methods {
        let entry = find(method)?;
        if is_graph { entry.on_graph().map(drop) } else { entry.on_checkpoint().map(drop) }?;
    }
    let place = methods.iter().position(|method| method.name == bias_correction::NAME);
    match place.filter(|place| place + 1 < methods.len()) {
        Some(_) => Err(Error::Usage(format!("--transform {}: expected to be the last, found another after it", bias_correction::NAME))),
        None => Ok(()),
    }
}
