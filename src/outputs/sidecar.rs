//! The plain form: codes under the tensors' own names in safetensors, parameters in a JSON sidecar.
//!
//! Codes of eight bits are stored as I8 or U8 in the tensor's shape, codes of four bits as U8, two to a byte. Scales of
//! tensors and channels are in the JSON; those of groups are too many and become tensors `NAME.scale` and, unless the
//! scheme is symmetric, `NAME.zero_point`. Everything else is copied bit for bit.

use super::container::{Entry, Order};
use super::onnx::rewrite::Chosen;
use super::weight_files::{WeightFiles, marked_metadata};
use super::{Content, Output, OutputLayout};
use crate::error::{Error, Result, show_name};
use crate::model::Model;
use crate::plan::{Decision, Plan, TensorScheme};
use crate::quant::packing::packed_shape;
use crate::quant::scheme::Granularity;
use crate::tensor::Dtype;
use std::collections::HashSet;

pub(crate) struct Sidecar;

/// What is appended to a tensor's name for the tensors that go with it.
pub(crate) const SCALE: &str = ".scale";
pub(crate) const ZERO_POINT: &str = ".zero_point";

/// Names by which other tools find the scale of a tensor; a model that has them already is quantized, or would be
/// mistaken for it.
const TAKEN_SUFFIXES: &[&str] = &[SCALE, ZERO_POINT, "_scale", "_zero_point"];

impl Output for Sidecar {
    fn name(&self) -> &'static str {
        "sidecar"
    }

    fn summary(&self) -> &'static str {
        "codes in safetensors, scales and zero points in a JSON file beside it"
    }

    fn note(&self, model: &Model) -> Option<&'static str> {
        let is_of_transformers = model.companions().iter().any(|name| name.as_os_str() == "config.json");
        is_of_transformers
            .then_some("the codes are for programs that read the sidecar; what from_pretrained and vLLM load, --scheme writes")
    }

    fn is_for(&self, model: &Model) -> bool {
        model.onnx().is_none()
    }

    fn needs_params(&self, _model: &Model) -> bool {
        false
    }

    fn lay_out(&self, model: &Model, plan: &Plan, _chosen: &Chosen, _name: &str) -> Result<OutputLayout> {
        if model.onnx().is_some() {
            return Err(Error::Usage("--format sidecar: expected a safetensors model, found an ONNX model".into()));
        }
        check_names(model, plan)?;
        let mut files = WeightFiles::new(model);
        for (index, source) in model.files().iter().enumerate() {
            let (mut entries, mut contents) = (Vec::new(), Vec::new());
            for (tensor, info) in model.tensors().iter().enumerate().filter(|(_, t)| t.file == index).map(|(i, t)| (i, &t.info)) {
                match plan.scheme(tensor) {
                    None => {
                        entries.push(Entry { name: info.name.clone(), dtype: info.dtype, shape: info.shape.clone(), codes: None });
                        contents.push(Content::Source(tensor));
                    }
                    Some(scheme) => add_quantized(&info.name, &info.shape, tensor, scheme, &mut entries, &mut contents),
                }
            }
            files.add(source, &marked_metadata(source), &entries, contents, Order::Aligned)?;
        }
        let (files, index) = files.finish();
        Ok(OutputLayout { files, documents: index.into_iter().collect() })
    }
}

fn add_quantized(name: &str, shape: &[usize], tensor: usize, scheme: &TensorScheme, entries: &mut Vec<Entry>, contents: &mut Vec<Content>) {
    let dtype = if scheme.codes.is_signed() && scheme.codes.bits() == 8 { Dtype::I8 } else { Dtype::U8 };
    let codes = Some(entries.len());
    entries.push(Entry { name: name.to_owned(), dtype, shape: packed_shape(scheme.codes, shape), codes: None });
    contents.push(Content::Codes(tensor));
    if let Granularity::PerGroup(_) = scheme.granularity {
        let last = shape.last().copied().unwrap_or(1);
        let mut groups = shape.to_vec();
        if let Some(dim) = groups.last_mut() {
            *dim = last.div_ceil(scheme.layout.group_len());
        }
        entries.push(Entry { name: format!("{name}{SCALE}"), dtype: Dtype::F32, shape: groups.clone(), codes });
        contents.push(Content::Scales(tensor));
        if !scheme.rule.symmetric {
            let dtype = if scheme.codes.is_signed() { Dtype::I8 } else { Dtype::U8 };
            entries.push(Entry { name: format!("{name}{ZERO_POINT}"), dtype, shape: groups, codes });
            contents.push(Content::ZeroPoints(tensor));
        }
    }
}

/// Refuses a model in which a weight has companions of the names that are given to scales and zero points.
fn check_names(model: &Model, plan: &Plan) -> Result<()> {
    let names: HashSet<&str> = model.tensors().iter().map(|tensor| tensor.info.name.as_str()).collect();
    for (tensor, decision) in plan.decisions.iter().enumerate() {
        if matches!(decision, Decision::Keep { is_weight: false, .. }) {
            continue;
        }
        let name = &model.tensors()[tensor].info.name;
        if let Some(taken) = TAKEN_SUFFIXES.iter().map(|suffix| format!("{name}{suffix}")).find(|taken| names.contains(taken.as_str())) {
            let message = format!("names: expected {} to be free for its parameters, found it in the model already", show_name(&taken));
            let error: Error = model.tensor_error(tensor, message);
            return Err(error.with_hint("if the model is quantized already there is nothing to do; else --exclude this tensor"));
        }
    }
    Ok(())
}
