//! Weights that are quantized and floats again, for whoever evaluates a scheme or goes on training in a float framework:
//!
//! ```text
//! value' = (code - zero_point) * scale          in f32, then rounded to the tensor's own type, to nearest even
//! ```
//!
//! which is what `qtool dequantize` makes of the ordinary output. Names, shapes, types, free text and the order of bytes are those
//! of the model, of an ONNX model the graph too; activations are left alone. Parameters are in the sidecar, those of groups too,
//! as tensors of their own would be in the way of those who load the model.

use super::container::{Container, Entry, Order};
use super::onnx::{file, rewrite::Chosen};
use super::weight_files::WeightFiles;
use super::{Content, FileLayout, Output, OutputLayout};
use crate::error::{Error, Result};
use crate::formats::mmap::MappedFile;
use crate::formats::onnx::proto::{Payload, TensorProto};
use crate::graph::onnx_model::OnnxModel;
use crate::graph::{given, scopes};
use crate::model::{Layout, Model};
use crate::plan::Plan;
use crate::quant::scheme::{CodeType, Granularity};
use crate::recipe::{Mode, Recipe};
use std::ops::Range;

pub(crate) struct FakeQuant;

/// Name on the command line and in sidecars.
pub(crate) const NAME: &str = "fake-quant";

/// Most groups whose parameters a sidecar takes: about 100 MiB of text.
const MOST_GROUPS: u64 = 1 << 23;

impl Output for FakeQuant {
    fn name(&self) -> &'static str {
        NAME
    }

    fn summary(&self) -> &'static str {
        "the model with quantized weights as floats of their own types"
    }

    fn is_for(&self, _model: &Model) -> bool {
        true
    }

    fn needs_params(&self, model: &Model) -> bool {
        // Methods that look at inputs of layers find them in the graph before.
        model.onnx().is_some()
    }

    fn tag(&self, codes: CodeType) -> String {
        format!("fake-{}", codes.name())
    }

    fn keeps_graph(&self) -> bool {
        true
    }

    /// Whatever the recipe says of activations, only weights change.
    fn adapt(&self, recipe: &mut Recipe) {
        recipe.mode = Mode::WeightOnly;
        recipe.settings.mode = None;
        recipe.rules.iter_mut().for_each(|rule| rule.mode = None);
    }

    fn parameter_suffixes(&self) -> Option<[&'static str; 2]> {
        None
    }

    fn lay_out(&self, model: &Model, plan: &Plan, _chosen: &Chosen, name: &str) -> Result<OutputLayout> {
        check_groups(model, plan)?;
        match model.onnx() {
            Some(onnx) => Ok(OutputLayout { files: onnx_files(model, onnx, plan, name), documents: Vec::new() }),
            None => safetensors_files(model, plan),
        }
    }
}

/// Refuses more groups than a sidecar can hold.
fn check_groups(model: &Model, plan: &Plan) -> Result<()> {
    let schemes = plan.quantized().filter_map(|tensor| plan.scheme(tensor));
    let grouped = schemes.filter(|scheme| matches!(scheme.granularity, Granularity::PerGroup(_)));
    let found = grouped.map(|scheme| scheme.layout.groups() as u64).sum();
    if found <= MOST_GROUPS {
        return Ok(());
    }
    let what = "groups whose scales are in the sidecar".into();
    let error = Error::Limit { file: model.path().to_owned(), what, limit: MOST_GROUPS, found };
    Err(error.with_hint("`qtool dequantize` makes the same floats of an output of --format sidecar or qdq"))
}

/// The model's own files, with other bytes for quantized tensors.
fn safetensors_files(model: &Model, plan: &Plan) -> Result<OutputLayout> {
    let (mut files, mut as_given) = (WeightFiles::new(model), true);
    for (index, source) in model.files().iter().enumerate() {
        let tensors = model.in_header_order(index);
        let entry = |tensor: &usize| {
            let info = &model.tensors()[*tensor].info;
            Entry { name: info.name.clone(), dtype: info.dtype, shape: info.shape.clone(), codes: None }
        };
        let entries: Vec<Entry> = tensors.iter().map(entry).collect();
        let own = own_places(model, &tensors, source.header().len(), source.bytes().len());
        as_given &= own.is_some();
        let content = |tensor: usize| if plan.scheme(tensor).is_some() { Content::Values(tensor) } else { Content::Source(tensor) };
        let contents = tensors.into_iter().map(content).collect();
        match own {
            Some(places) => {
                let container = Container { header: source.header().to_vec(), places, len: source.bytes().len() as u64 };
                files.add_laid_out(source, &entries, contents, container)?;
            }
            None => files.add(source, source.metadata(), &entries, contents, Order::AsGiven)?,
        }
    }
    let (files, index) = files.finish();
    let index = match model.layout() {
        Layout::Directory { index: Some(name) } if as_given => {
            Some((name.to_owned(), MappedFile::open(&model.path().join(name))?.bytes().to_vec()))
        }
        _ => index,
    };
    Ok(OutputLayout { files, documents: index.into_iter().collect() })
}

/// Where the tensors of a file are, if they still are all that it holds: state of fake quantizers may have been left out.
fn own_places(model: &Model, tensors: &[usize], start: usize, len: usize) -> Option<Vec<Range<u64>>> {
    let place = |tensor: &usize| &model.tensors()[*tensor].info.bytes;
    let mut sorted: Vec<&Range<usize>> = tensors.iter().map(place).collect();
    sorted.sort_by_key(|place| (place.start, place.end));
    let end = sorted.iter().try_fold(start, |end, place| (place.start == end).then_some(place.end));
    let is_named = tensors.iter().all(|tensor| model.tensors()[*tensor].former_name.is_none());
    (end == Some(len) && is_named).then(|| tensors.iter().map(|tensor| place(tensor).start as u64..place(tensor).end as u64).collect())
}

/// The model with other values of constants, and of nothing else.
fn onnx_files(model: &Model, onnx: &OnnxModel, plan: &Plan, name: &str) -> Vec<FileLayout> {
    let (mut proto, mut deferred) = (onnx.file.proto.clone(), Vec::new());
    scopes::for_each_mut(&mut proto, &mut |number, graph| {
        for constant in &mut graph.initializer {
            let tensor = onnx.tensor(&(number, constant.name.clone())).filter(|tensor| plan.scheme(*tensor).is_some());
            let Some(tensor) = tensor else { continue };
            let values = Payload::Deferred { id: deferred.len(), len: model.tensor_bytes(tensor).len() as u64 };
            deferred.push(Content::Values(tensor));
            *constant = TensorProto {
                raw_data: Some(values),
                float_data: Default::default(),
                int32_data: Default::default(),
                double_data: Default::default(),
                ..std::mem::take(constant)
            };
        }
    });
    if let Some(given) = &onnx.file.given {
        given::restore(&mut proto, given);
    }
    file::lay_out(proto, &deferred, name, onnx.file.has_external_data)
}
