//! Reads the form back: the same tensors as the plain form has them, so that one reader serves both.

use super::config::{self, Config};
use crate::error::{Error, Result, show_name};
use crate::method::Method;
use crate::model::{Model, ModelTensor};
use crate::outputs::document::{ActivationRecord, Document, OutputRecord, SourceRecord, TensorRecord, Values};
use crate::quant::metrics::Metrics;
use crate::quant::packing::{packed_len, packed_shape};
use crate::quant::scheme::{CodeType, Convention, Grid};
use crate::recipe::Recipe;
use crate::tensor::{Dtype, TensorInfo};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

/// Whether a sidecar says that the output has this form.
pub(crate) fn is_form_of(document: &Document) -> bool {
    document.output.form == crate::recipe::presets::Preset::SCHEME_FORM
}

/// Whether the `config.json` of a directory says that the model is in this form.
pub(crate) fn is_form_of_others(dir: &Path, follows_links: bool) -> bool {
    Config::read_any(dir, follows_links).is_ok_and(|config| config.is_of_this_form())
}

/// What a sidecar would say of a model that others wrote in this form: names and dimensions of tensors tell.
///
/// # Errors
///
/// [`Error::Tensor`] for codes without scales, of other widths than 4 and 8 bits, or with an index of groups.
pub(crate) fn describe(model: &Model) -> Result<Document> {
    let index = model.index();
    let (mut tensors, mut activations, mut used) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
    for (name, scale) in &index {
        let Some(module) = name.strip_suffix(".weight_scale") else { continue };
        let part = |suffix: &str| index.get(format!("{module}{suffix}").as_str()).copied();
        let wrong = |message: &str| model.tensor_error(*scale, message.to_owned());
        let info = |tensor: usize| &model.tensors()[tensor].info;
        if part(".weight_g_idx").is_some() {
            return Err(wrong("expected groups of neighbouring features, found an index of groups"));
        }
        let (codes, shape) = match (part(".weight"), part(".weight_packed"), part(".weight_shape")) {
            (Some(codes), None, _) if info(codes).dtype == Dtype::I8 => (CodeType::Int8, info(codes).shape.clone()),
            (None, Some(packed), Some(shape)) if info(packed).dtype == Dtype::I32 => {
                let shape: Vec<usize> =
                    integers(&model.tensors()[shape]).ok_or_else(|| wrong("weight_shape: expected I64 [2] or I32 [2]"))?;
                let words = *info(packed).shape.last().unwrap_or(&0);
                let columns = *shape.last().unwrap_or(&0);
                let codes =
                    [CodeType::Int4, CodeType::Int8].into_iter().find(|codes| words == columns.div_ceil(32 / codes.bits() as usize));
                (codes.ok_or_else(|| wrong("weight_packed: expected codes of 4 or 8 bits, found others"))?, shape)
            }
            _ => return Err(wrong("expected int8 codes in weight, or packed ones with their weight_shape, found neither")),
        };
        let columns = *shape.last().unwrap_or(&0);
        let groups = info(*scale).shape.get(1).copied().unwrap_or(1).max(1);
        let is_grouped = groups > 1;
        let zero_point = part(".weight_zero_point");
        let record = TensorRecord {
            axis: Some(if is_grouped { 1 } else { 0 }),
            convention: Convention::CompressedTensors,
            dtype: codes,
            error: Metrics::default(),
            granularity: if is_grouped { "per_group" } else { "per_channel" }.to_owned(),
            group_size: is_grouped.then(|| columns / groups),
            observer: Method::new("min-max"),
            qmax: codes.grid().qmax,
            qmin: codes.grid().qmin,
            rounding: Method::new(crate::algorithms::NEAREST).to_string(),
            saturation: None,
            scale: Values::Tensor { tensor: (*name).to_owned() },
            scheme: if zero_point.is_none() { "symmetric" } else { "asymmetric" }.to_owned(),
            shape,
            source_dtype: info(*scale).dtype.name().to_owned(),
            zero_point: match zero_point {
                None => Values::Inline(vec![0]),
                Some(tensor) => Values::Tensor { tensor: info(tensor).name.clone() },
            },
        };
        if let Some(scale) = part(".input_scale") {
            let record = activation(model, scale, part(".input_zero_point"))?;
            activations.extend(record.map(|record| (module.to_owned(), record)));
        }
        let parts =
            [".weight", ".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape", ".input_scale", ".input_zero_point"];
        used.extend(parts.iter().filter_map(|suffix| part(suffix)));
        tensors.insert(format!("{module}.weight"), record);
    }
    let is_packed = |tensor: &&usize| model.tensors()[**tensor].info.name.ends_with(".weight_packed");
    if let Some(lost) = index.values().filter(|tensor| !used.contains(tensor)).find(is_packed) {
        return Err(model.tensor_error(*lost, "expected packed codes with their weight_scale, found none of it"));
    }
    let kept = (model.tensors().iter().enumerate()).filter(|(tensor, _)| !used.contains(tensor));
    Ok(Document {
        blake3: None,
        activations,
        calibration: None,
        format: crate::outputs::document::FORMAT.to_owned(),
        kept: kept.map(|(_, tensor)| (tensor.info.name.clone(), "not quantized".to_owned())).collect(),
        output: OutputRecord { files: Vec::new(), form: crate::recipe::presets::Preset::SCHEME_FORM.to_owned() },
        qtool_version: env!("CARGO_PKG_VERSION").to_owned(),
        recipe: Recipe::default(),
        request: None,
        seed: 0,
        source: SourceRecord { files: Vec::new() },
        tensors,
        version: crate::outputs::document::VERSION,
    })
}

/// How the inputs of a module are quantized, if all of them are with one scale: to int8, with zero point 0 if there is none.
fn activation(model: &Model, scale: usize, zero_point: Option<usize>) -> Result<Option<ActivationRecord>> {
    let stored = |tensor: usize| &model.tensors()[tensor];
    if !stored(scale).info.dtype.is_decodable() {
        let found = stored(scale).info.dtype;
        return Err(model.tensor_error(scale, format!("dtype: expected floats, found {found}")));
    }
    let &[scale] = model.values(scale, 0..stored(scale).info.elements().min(2), &mut Vec::new()) else { return Ok(None) };
    let code = |tensor: usize| match (&stored(tensor).info, &stored(tensor).data[..]) {
        (TensorInfo { dtype: Dtype::I8, .. }, [code]) => Ok(i32::from(code.cast_signed())),
        (TensorInfo { dtype, shape, .. }, _) => Err(model.tensor_error(tensor, format!("expected I8 [1], found {dtype} {shape:?}"))),
    };
    let zero_point = zero_point.map_or(Ok(0), code)?;
    let dtype = CodeType::Int8;
    let end = |code: i32| (code - zero_point) as f32 * scale;
    let Grid { qmin, qmax } = dtype.grid();
    Ok(Some(ActivationRecord { dtype, max: end(qmax), min: end(qmin), observer: Method::new("min-max"), scale, zero_point }))
}

/// Two integers, as dimensions.
fn integers(tensor: &ModelTensor) -> Option<Vec<usize>> {
    let bytes = &tensor.data;
    let numbers: Vec<i64> = match tensor.info.dtype {
        Dtype::I64 => bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect(),
        Dtype::I32 => bytes.as_chunks::<4>().0.iter().map(|bytes| i64::from(i32::from_le_bytes(*bytes))).collect(),
        _ => return None,
    };
    let numbers: Vec<usize> = numbers.into_iter().map(|number| usize::try_from(number).ok()).collect::<Option<_>>()?;
    (numbers.len() == 2).then_some(numbers)
}

/// Model and sidecar as they would be in the plain form: codes under the weights' own names, unsigned where they are packed;
/// scales in f32, zero points in a byte each; nothing else beside them.
///
/// # Errors
///
/// [`Error::Tensor`] if a tensor is missing or has other dimensions than the sidecar says.
pub(crate) fn as_plain(model: Model, mut document: Document) -> Result<(Model, Document)> {
    let path = model.path().to_owned();
    let mut by_name: HashMap<String, usize> = model.index().into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect();
    let mut changed: HashMap<usize, Option<(TensorInfo, Bytes)>> = HashMap::new();
    for (name, record) in &mut document.tensors {
        let wrong = |what: &str| Error::tensor(&path, name, format!("{what}: expected what the sidecar says, found another"));
        let is_packed = !by_name.contains_key(name);
        let mut take = |suffix: &str| by_name.remove(&format!("{name}{suffix}"));
        let tensor = |number: usize| &model.tensors()[number];
        let [rows, columns] = record.shape[..] else { return Err(wrong("shape")) };
        let elements = rows.checked_mul(columns).ok_or_else(|| wrong("shape"))?;
        if record.dtype.bits() > 8 {
            return Err(wrong("dtype"));
        }
        let groups = record.group_size.map_or(Some(1), |size| columns.checked_div(size)).ok_or_else(|| wrong("group_size"))?;
        if is_packed {
            let codes = take("_packed").ok_or_else(|| wrong("codes"))?;
            let (unsigned, half) = match record.dtype {
                CodeType::Int4 => (CodeType::Uint4, 8),
                _ => (CodeType::Uint8, 128),
            };
            let shape = packed_shape(unsigned, &record.shape);
            let info = TensorInfo { name: name.clone(), dtype: Dtype::U8, shape, ..tensor(codes).info.clone() };
            if packed_len(unsigned, elements) != tensor(codes).data.len() || tensor(codes).info.dtype != Dtype::I32 {
                return Err(wrong("codes"));
            }
            changed.insert(codes, Some((info, tensor(codes).data.clone())));
            if let Values::Inline(zero_points) = &mut record.zero_point {
                zero_points.iter_mut().for_each(|zero_point| *zero_point = zero_point.saturating_add(half));
            }
            record.dtype = unsigned;
            record.qmin = unsigned.grid().qmin;
            record.qmax = unsigned.grid().qmax;
            take("_shape").into_iter().for_each(|shape| drop(changed.insert(shape, None)));
        }
        let scales = take("_scale").ok_or_else(|| wrong("scales"))?;
        let stored = tensor(scales);
        let fits = stored.info.dtype.is_decodable() && rows.checked_mul(groups) == Some(stored.info.elements());
        if !fits {
            return Err(wrong("scales"));
        }
        let keeps_scales = matches!(record.scale, Values::Tensor { .. });
        changed.insert(scales, keeps_scales.then(|| floats(&model, scales, &[rows, groups])));
        if let Values::Tensor { tensor: named } = &record.zero_point {
            let zero_points = by_name.remove(named.as_str()).ok_or_else(|| wrong("zero points"))?;
            let made = unpacked(tensor(zero_points), rows, groups, record.dtype.bits()).ok_or_else(|| wrong("zero points"))?;
            changed.insert(zero_points, Some(made));
        }
    }
    // What they say of activations is in the sidecar too.
    for layer in document.activations.keys() {
        for name in [".input_scale", ".input_zero_point"] {
            by_name.remove(&format!("{layer}{name}")).into_iter().for_each(|tensor| drop(changed.insert(tensor, None)));
        }
    }
    Ok((model.with_changed(changed), document))
}

fn floats(model: &Model, tensor: usize, shape: &[usize]) -> (TensorInfo, Bytes) {
    let stored = &model.tensors()[tensor].info;
    let values = model.values(tensor, 0..stored.elements(), &mut Vec::new()).to_vec();
    let info = TensorInfo { dtype: Dtype::F32, shape: shape.to_vec(), ..stored.clone() };
    (info, values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into())
}

/// Zero points, a byte each, of words that hold `32 / bits` rows.
fn unpacked(tensor: &ModelTensor, rows: usize, groups: usize, bits: u32) -> Option<(TensorInfo, Bytes)> {
    let per_word = (32 / bits) as usize;
    let words: Vec<u32> = tensor.data.chunks_exact(4).map(|word| u32::from_le_bytes(word.try_into().expect("it has four bytes"))).collect();
    if words.len() != rows.div_ceil(per_word).checked_mul(groups)? || tensor.info.dtype != Dtype::I32 {
        return None;
    }
    let value = |row: usize, group: usize| words[row / per_word * groups + group] >> ((row % per_word) as u32 * bits) & ((1 << bits) - 1);
    let values: Vec<u8> = (0..rows).flat_map(|row| (0..groups).map(move |group| value(row, group) as u8)).collect();
    let info = TensorInfo { dtype: Dtype::U8, shape: vec![rows, groups], ..tensor.info.clone() };
    Some((info, values.into()))
}

/// `config.json` without what it says of quantization, for the float model.
///
/// # Errors
///
/// As [`Config::read`].
pub(crate) fn float_config(model: &Model) -> Result<(String, Vec<u8>)> {
    let dir = model.path();
    let config = Config::read_any(dir, model.follows_links())?;
    if !config.is_quantized() {
        let found = format!("{}: expected to be quantized, found that it is not", show_name(config::NAME));
        return Err(Error::malformed(dir, found));
    }
    Ok((config::NAME.to_owned(), config.without_quantization()))
}
