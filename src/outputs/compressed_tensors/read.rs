//! Reads the form back: the same tensors as the plain form has them, so that one reader serves both.

use super::config::{self, Config};
use crate::error::{Error, Result, show_name};
use crate::model::{Model, ModelTensor};
use crate::outputs::document::{Document, Values};
use crate::quant::packing::{packed_len, packed_shape};
use crate::quant::scheme::CodeType;
use crate::tensor::{Dtype, TensorInfo};
use bytes::Bytes;
use std::collections::HashMap;
use std::path::Path;

/// Whether a sidecar says that the output has this form.
pub(crate) fn is_form_of(document: &Document) -> bool {
    document.output.form == crate::scheme::Scheme::FORM
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
            if packed_len(unsigned, elements) != tensor(codes).data.len() {
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
    if words.len() != rows.div_ceil(per_word).checked_mul(groups)? {
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
pub(crate) fn float_config(dir: &Path) -> Result<(String, Vec<u8>)> {
    let config = Config::read_any(dir)?;
    if !config.is_quantized() {
        let found = format!("{}: expected to be quantized, found that it is not", show_name(config::NAME));
        return Err(Error::malformed(dir, found));
    }
    Ok((config::NAME.to_owned(), config.without_quantization()))
}
