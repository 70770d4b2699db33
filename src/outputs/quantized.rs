//! Reads back what was written: a quantized model whose tensors give real values again.

use super::compressed_tensors::read;
use super::document::{self, Document, TensorRecord, Values};
use super::fake_quant;
use crate::error::{Error, Result};
use crate::formats::{self, ReadOptions};
use crate::model::{Model, SourceFile};
use crate::quant::granularity::GroupLayout;
use crate::quant::kernel::dequantize;
use crate::quant::packing::{packed_shape, unpack_nibbles};
use crate::quant::params::Params;
use crate::quant::scheme::{CodeType, Granularity, Grid};
use crate::stream;
use crate::tensor::Dtype;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An output of ours: its files and what its sidecar says of them.
pub struct QuantizedModel {
    /// The stored tensors.
    pub model: Model,
    /// The sidecar.
    pub document: Document,
    /// Where the sidecar is, or the directory of a model that others wrote.
    pub(crate) sidecar: PathBuf,
    tensors: BTreeMap<usize, QuantizedTensor>,
    auxiliary: BTreeSet<usize>,
}

/// What a tensor was before it was quantized, and how to get its values back.
pub(crate) struct QuantizedTensor {
    pub shape: Vec<usize>,
    pub dtype: Dtype,
    codes: CodeType,
    layout: GroupLayout,
    params: Vec<Params>,
    /// The largest value of `dtype`, if a code could stand for more: then values saturate there, as their sources did not
    /// exceed it.
    limit: Option<f32>,
}

/// The sidecar of ours that lists the files of `model` as its output, of codes and not of floats: where it is and what it says.
pub(crate) fn sidecar_of_codes(model: &Model) -> Option<(PathBuf, Document)> {
    let sidecar = document::find(model.path(), &ReadOptions::default()).ok()?;
    let document = Document::read(&sidecar).ok()?;
    let is_listed = |file: &SourceFile| {
        let bytes = file.bytes().len() as u64;
        document.output.files.iter().any(|record| record.name == file.name() && record.bytes == bytes)
    };
    let is_of_codes = !document.tensors.is_empty() && document.output.form != fake_quant::NAME;
    (is_of_codes && model.files().iter().all(is_listed)).then_some((sidecar, document))
}

/// Makes sure that the content of `model` is as its sidecar says, if there is one that lists its files; returns that.
///
/// # Errors
///
/// [`Error::Malformed`] if the content of one has another hash.
pub(crate) fn check_recorded(model: &Model, threads: usize) -> Result<Option<PathBuf>> {
    let Some((sidecar, document)) = sidecar_of_codes(model) else { return Ok(None) };
    check_content(model, &document, threads)?;
    Ok(Some(sidecar))
}

fn check_content(model: &Model, document: &Document, threads: usize) -> Result<()> {
    let records = &document.output.files;
    let recorded = |file: &SourceFile| records.iter().find(|record| record.name == file.name()).and_then(|record| record.blake3.clone());
    let known: Vec<(&SourceFile, String)> = model.files().iter().filter_map(|file| Some((file, recorded(file)?))).collect();
    let check = |i: usize| {
        let (file, expected) = &known[i];
        let found = blake3::hash(file.bytes()).to_hex();
        if found.as_str() == expected {
            return Ok(());
        }
        let message = format!("content: expected BLAKE3 {expected} as the sidecar says, found {found}");
        Err(Error::malformed(file.path(), message)
            .with_hint("it changed since it was written, or is of another run: `qtool verify` tells more"))
    };
    stream::map(known.len(), threads, check).into_iter().collect()
}

impl QuantizedModel {
    /// Whether it can be told of a path without a sidecar that it holds a quantized model: a directory whose `config.json` says that
    /// it is in the form of compressed-tensors, whoever wrote it.
    pub(crate) fn is_of_others(path: &Path, options: &ReadOptions) -> bool {
        path.is_dir()
            && path.join(document::DIRECTORY_SIDECAR).symlink_metadata().is_err()
            && read::is_form_of_others(path, options.follow_symlinks)
    }

    /// Opens an output given as its sidecar, its file of weights or its directory; or a directory that others wrote in the form of
    /// compressed-tensors.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if a file is missing, [`Error::Malformed`] or [`Error::Tensor`] if sidecar and tensors do not fit.
    pub fn open(output: &Path, options: &ReadOptions) -> Result<Self> {
        let (sidecar, model, document) = if Self::is_of_others(output, options) {
            let model = formats::open(output, options)?;
            let document = read::describe(&model)?;
            (output.to_owned(), model, document)
        } else {
            let sidecar = document::find(output, options)?;
            let document = Document::read(&sidecar)?;
            let model = formats::open(&weights_of(output, &sidecar, &document, options)?, options)?;
            (sidecar, model, document)
        };
        let (model, document) = if read::is_form_of(&document) { read::as_plain(model, document)? } else { (model, document) };
        let (mut tensors, mut auxiliary) = (BTreeMap::new(), BTreeSet::new());
        let index = model.index();
        let is_float = document.output.form == fake_quant::NAME;
        for (name, record) in &document.tensors {
            let Some(&tensor) = index.get(name.as_str()) else {
                return Err(Error::tensor(&sidecar, name, "sidecar: expected the tensor in the file of weights, found none"));
            };
            if is_float {
                let info = &model.tensors()[tensor].info;
                if info.shape != record.shape || info.dtype.name() != record.source_dtype {
                    let expected = format!("{} {:?} as the sidecar says", record.source_dtype, record.shape);
                    return Err(model.tensor_error(tensor, format!("expected {expected}, found {} {:?}", info.dtype, info.shape)));
                }
                continue;
            }
            let quantized = read_tensor(&model, &index, tensor, record, &mut auxiliary)?;
            tensors.insert(tensor, quantized);
        }
        if let Some(name) = document.kept.keys().find(|name| !index.contains_key(name.as_str())) {
            return Err(Error::tensor(&sidecar, name, "sidecar: expected the tensor in the file of weights, found none"));
        }
        for (tensor, stored) in model.tensors().iter().enumerate() {
            let name = stored.info.name.as_str();
            let is_quantized = tensors.contains_key(&tensor) || is_float && document.tensors.contains_key(name);
            let roles = [is_quantized, document.kept.contains_key(name), auxiliary.contains(&tensor)];
            if roles.iter().filter(|role| **role).count() != 1 {
                return Err(model
                    .tensor_error(tensor, "sidecar: expected to be quantized, kept or to hold parameters, found none or several of it"));
            }
        }
        drop(index);
        Ok(QuantizedModel { model, document, sidecar, tensors, auxiliary })
    }

    /// Makes sure that the files of weights are those that the sidecar was written with.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] if the content of one has another hash.
    pub(crate) fn check_content(&self, threads: usize) -> Result<()> {
        check_content(&self.model, &self.document, threads)
    }

    /// The tensors of the float model: those that hold scales and zero points are left out.
    pub fn tensors(&self) -> impl Iterator<Item = usize> {
        (0..self.model.tensors().len()).filter(|tensor| !self.auxiliary.contains(tensor))
    }

    /// Dimensions in the float model.
    pub fn shape(&self, tensor: usize) -> &[usize] {
        self.tensors.get(&tensor).map_or(&self.model.tensors()[tensor].info.shape, |quantized| &quantized.shape)
    }

    /// Type in the float model.
    pub fn dtype(&self, tensor: usize) -> Dtype {
        self.tensors.get(&tensor).map_or(self.model.tensors()[tensor].info.dtype, |quantized| quantized.dtype)
    }

    /// Whether the tensor is stored as codes.
    pub fn is_quantized(&self, tensor: usize) -> bool {
        self.tensors.contains_key(&tensor)
    }

    /// Scale and zero point of every group of a quantized tensor, and the codes in use.
    pub(crate) fn grid(&self, tensor: usize) -> Option<(&[Params], Grid)> {
        let record = self.document.tensors.get(&self.model.tensors()[tensor].info.name)?;
        Some((&self.tensors.get(&tensor)?.params, Grid { qmin: record.qmin, qmax: record.qmax }))
    }

    /// Values of a tensor as f32: dequantized, or as they are stored.
    pub(crate) fn values<'a>(&'a self, tensor: usize, elements: Range<usize>, scratch: &'a mut DequantizeScratch) -> &'a [f32] {
        let Some(quantized) = self.tensors.get(&tensor) else {
            return self.model.values(tensor, elements, &mut scratch.values);
        };
        let stored = self.model.tensor_bytes(tensor);
        let signed = quantized.codes.is_signed();
        let codes = if quantized.codes.bits() == 8 {
            &stored[elements.clone()]
        } else {
            // Whole bytes, from an even element on.
            let even = elements.start & !1;
            scratch.codes.resize(elements.end - even, 0);
            unpack_nibbles(&stored[even / 2..elements.end.div_ceil(2)], signed, &mut scratch.codes);
            &scratch.codes[elements.start - even..]
        };
        let start = elements.start;
        scratch.values.resize(elements.len(), 0.0);
        quantized.layout.for_each_run(elements, |group, run| {
            let run = run.start - start..run.end - start;
            let params = quantized.params[if quantized.params.len() == 1 { 0 } else { group }];
            dequantize(&codes[run.clone()], signed, params, &mut scratch.values[run]);
        });
        if let Some(limit) = quantized.limit {
            scratch.values.iter_mut().for_each(|value| *value = value.clamp(-limit, limit));
        }
        &scratch.values
    }
}

/// Buffers of [`QuantizedModel::values`].
#[derive(Default)]
pub(crate) struct DequantizeScratch {
    pub values: Vec<f32>,
    codes: Vec<u8>,
}

/// The file or directory of weights that belongs to a sidecar.
fn weights_of(output: &Path, sidecar: &Path, document: &Document, options: &ReadOptions) -> Result<PathBuf> {
    let dir = super::staging::parent(sidecar);
    if sidecar.file_name().is_some_and(|name| name == document::DIRECTORY_SIDECAR) {
        return Ok(if output.is_dir() { output.to_owned() } else { dir.to_owned() });
    }
    if output != sidecar {
        return Ok(output.to_owned());
    }
    match document.output.files.as_slice() {
        [weights] if is_contained(&weights.name) => formats::contained(dir, &weights.name, options),
        _ => Err(Error::malformed(
            sidecar,
            "sidecar: expected one file of weights beside it, found another number or a path that leads elsewhere",
        )),
    }
}

/// Whether a file name of a sidecar stays in the sidecar's directory.
pub(crate) fn is_contained(name: &str) -> bool {
    use std::path::Component;
    !name.is_empty() && !name.contains('\0') && Path::new(name).components().all(|part| matches!(part, Component::Normal(_)))
}

fn read_tensor(
    model: &Model,
    index: &std::collections::HashMap<&str, usize>,
    tensor: usize,
    record: &TensorRecord,
    auxiliary: &mut BTreeSet<usize>,
) -> Result<QuantizedTensor> {
    let fail = |message: String| Err(model.tensor_error(tensor, message));
    let info = &model.tensors()[tensor].info;
    let codes = record.dtype;
    if codes.bits() > 8 {
        return fail(format!("sidecar: dtype: expected codes of 8 bits or fewer, found {codes}"));
    }
    let stored = if codes == CodeType::Int8 { Dtype::I8 } else { Dtype::U8 };
    let elements = record.shape.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim)).filter(|elements| *elements > 0);
    let fits = elements.is_some() && info.dtype == stored && info.shape == packed_shape(codes, &record.shape);
    if !fits {
        return fail(format!(
            "expected {codes} codes of shape {:?} as the sidecar says, found {} {:?}",
            record.shape, info.dtype, info.shape
        ));
    }
    let Some(dtype) = Dtype::from_name(&record.source_dtype).filter(|dtype| dtype.is_decodable()) else {
        return fail(format!("sidecar: source_dtype: expected a float type, found {:?}", record.source_dtype));
    };
    let axis = record.axis.unwrap_or(0);
    let granularity = match (record.granularity.as_str(), record.group_size) {
        ("per_tensor", None) => Granularity::PerTensor,
        ("per_channel", None) if axis < record.shape.len() => Granularity::PerChannel,
        ("per_group", Some(size)) if size > 0 => Granularity::PerGroup(size),
        _ => return fail(format!("sidecar: expected a granularity with its axis or group_size, found {:?}", record.granularity)),
    };
    let layout = GroupLayout::new(&record.shape, granularity, axis);
    let mut auxiliary_of = |name: &str, dtype: Dtype| -> Result<usize> {
        let found = index.get(name).copied().filter(|t| {
            let info = &model.tensors()[*t].info;
            info.dtype == dtype && info.elements() == layout.groups()
        });
        let found = found.ok_or_else(|| {
            model.tensor_error(tensor, format!("sidecar: expected a tensor {name:?} of {} {dtype} values, found none", layout.groups()))
        })?;
        auxiliary.insert(found);
        Ok(found)
    };
    let scales: Vec<f32> = match &record.scale {
        Values::Inline(scales) => scales.clone(),
        Values::Tensor { tensor: name } => {
            let scales = auxiliary_of(name, Dtype::F32)?;
            model.values(scales, 0..layout.groups(), &mut Vec::new()).to_vec()
        }
    };
    let zero_points: Vec<i32> = match &record.zero_point {
        Values::Inline(zero_points) => zero_points.clone(),
        Values::Tensor { tensor: name } => {
            let dtype = if codes.is_signed() { Dtype::I8 } else { Dtype::U8 };
            let bytes = model.tensor_bytes(auxiliary_of(name, dtype)?);
            bytes.iter().map(|byte| if codes.is_signed() { i32::from(*byte as i8) } else { i32::from(*byte) }).collect()
        }
    };
    if scales.len() != layout.groups() || ![1, layout.groups()].contains(&zero_points.len()) {
        return fail(format!(
            "sidecar: expected {} scales and zero points, found {} and {}",
            layout.groups(),
            scales.len(),
            zero_points.len()
        ));
    }
    if let Some(scale) = scales.iter().find(|scale| !(scale.is_finite() && **scale > 0.0)) {
        return fail(format!("sidecar: scale: expected a finite positive number, found {scale}"));
    }
    let grid = codes.grid();
    if let Some(zero_point) = zero_points.iter().find(|z| !(grid.qmin..=grid.qmax).contains(*z)) {
        return fail(format!("sidecar: zero_point: expected {} to {}, found {zero_point}", grid.qmin, grid.qmax));
    }
    let zero_point = |group: usize| if zero_points.len() == 1 { zero_points[0] } else { zero_points[group] };
    let params = scales.iter().enumerate().map(|(group, scale)| Params { scale: *scale, zero_point: zero_point(group) }).collect();
    let steps = (grid.qmax - grid.qmin) as f32;
    let limit = Some(dtype.largest()).filter(|limit| scales.iter().any(|scale| scale * steps >= *limit));
    Ok(QuantizedTensor { shape: record.shape.clone(), dtype, codes, layout, params, limit })
}
