//! One safetensors file: `u64` little-endian header length, a JSON header, tensor bytes.
//!
//! The [format](https://github.com/huggingface/safetensors#format) says what a header holds:
//! `{"NAME": {"dtype": "F32", "shape": [2, 3], "data_offsets": [BEGIN, END]}, "__metadata__": {"KEY": "TEXT"}}`.
//! Offsets count from the end of the header, cover it without holes or overlap, and fit shape and type.
//! Stricter than the reference reader: a duplicate name, an unknown field of an entry, dimensions whose product
//! overflows even beside a 0, and a rank above 64 are errors.

use super::{MappedFile, ReadOptions, parse_object, shorten};
use crate::error::{Error, Result};
use crate::limits::raised_by;
use crate::model::{Layout, Model, SourceFile};
use crate::tensor::{Dtype, TensorInfo};
use serde::Deserialize;
use std::path::Path;

/// Bytes of the header's length.
const PREFIX: usize = 8;

/// Key of free text in the header.
const METADATA: &str = "__metadata__";

/// Whether a file that begins with `bytes` can be safetensors: a length, then JSON's opening brace.
pub(super) fn recognizes(bytes: &[u8]) -> bool {
    bytes.get(PREFIX..).is_some_and(|rest| rest.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{'))
}

/// Why a file that nothing recognizes is not safetensors.
pub(super) fn describe_bad_start(path: &Path, bytes: &[u8]) -> Error {
    let (expected, found) = match bytes.get(PREFIX..) {
        None => ("at least the 8 bytes of its length".to_owned(), format!("{} bytes", bytes.len())),
        Some(rest) => {
            let length = u64::from_le_bytes(bytes[..PREFIX].try_into().expect("8 bytes"));
            if length > rest.len() as u64 {
                (format!("a header of {length} bytes as the first 8 bytes say"), format!("{} bytes", rest.len()))
            } else {
                let start: Vec<u8> = rest.iter().take(8).flat_map(|b| std::ascii::escape_default(*b)).collect();
                ("a JSON object after the header's length".to_owned(), format!("{:?}", String::from_utf8_lossy(&start)))
            }
        }
    };
    Error::malformed(path, format!("safetensors header: expected {expected}, found {found}"))
}

pub(super) fn open_model(file: MappedFile, options: &ReadOptions) -> Result<Model> {
    let path = file.path().to_owned();
    let (source, tensors) = read_file(file, options)?;
    Ok(Model::new(path, Layout::File, vec![(source, tensors)]))
}

/// Reads and checks the header of `file`. Tensors come in the order of their bytes.
pub(super) fn read_file(file: MappedFile, options: &ReadOptions) -> Result<(SourceFile, Vec<TensorInfo>)> {
    let path = file.path().to_owned();
    let bytes = file.bytes();
    let prefix = bytes.first_chunk::<PREFIX>().ok_or_else(|| describe_bad_start(&path, bytes))?;
    let length = u64::from_le_bytes(*prefix);
    let available = (bytes.len() - PREFIX) as u64;
    if length > available {
        return Err(super::not_a_model(&path, bytes));
    }
    if length > options.max_header_bytes {
        let (what, limit) = ("safetensors header bytes".to_owned(), options.max_header_bytes);
        return Err(raised_by(Error::Limit { file: path, what, limit, found: length }, "header-bytes"));
    }
    let data_start = PREFIX + length as usize;
    let header = &bytes[PREFIX..data_start];
    let malformed = |message: String| Error::malformed(&path, format!("safetensors header: {message}"));
    let text = std::str::from_utf8(header).map_err(|e| malformed(format!("expected UTF-8, found {e}")))?;
    let members = parse_object(text).map_err(|e| malformed(format!("expected a JSON object of tensors, found {e}")))?;

    let mut metadata = Vec::new();
    let mut tensors = Vec::with_capacity(members.len());
    for (name, value) in members {
        if name == METADATA {
            metadata = read_metadata(value.get()).map_err(|e| malformed(format!("{METADATA}: {e}")))?;
        } else {
            tensors.push(TensorInfo { position: tensors.len(), ..read_entry(&path, name.into_owned(), value.get(), data_start, options)? });
        }
    }
    tensors.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    check_coverage(&path, &tensors, data_start, bytes.len())?;
    // Only now, as what does not fit the file is malformed rather than large.
    if let Some(tensor) = tensors.iter().find(|tensor| tensor.elements() as u64 > options.max_elements) {
        let what = format!("tensor {}: elements", crate::error::show_name(&tensor.name));
        let (limit, found) = (options.max_elements, tensor.elements() as u64);
        return Err(raised_by(Error::Limit { file: path, what, limit, found }, "elements"));
    }
    Ok((SourceFile { data_start, metadata, file: file.into() }, tensors))
}

fn read_metadata(text: &str) -> Result<Vec<(String, String)>, String> {
    let members = parse_object(text).map_err(|e| format!("expected an object of texts, found {e}"))?;
    let pair = |(key, value): (std::borrow::Cow<'_, str>, &serde_json::value::RawValue)| {
        let text: String = serde_json::from_str(value.get()).map_err(|e| shorten(&format!("key {key:?}: expected a text, found {e}")))?;
        Ok((key.into_owned(), text))
    };
    members.into_iter().map(pair).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

fn read_entry(path: &Path, name: String, text: &str, data_start: usize, options: &ReadOptions) -> Result<TensorInfo> {
    let fail = |message: String| Err(Error::tensor(path, &name, message));
    if name.len() as u64 > options.max_name_bytes {
        let what = format!("tensor {}: bytes of its name", crate::error::show_name(&name));
        let (limit, found) = (options.max_name_bytes, name.len() as u64);
        return Err(raised_by(Error::Limit { file: path.to_owned(), what, limit, found }, "name-bytes"));
    }
    let entry: Entry = match serde_json::from_str(text) {
        Ok(entry) => entry,
        Err(e) => return fail(format!("header entry: expected dtype, shape and data_offsets, found {}", shorten(&e.to_string()))),
    };
    let Some(dtype) = Dtype::from_name(&entry.dtype) else {
        return fail(format!("dtype: expected a safetensors type such as F32, found {}", shorten(&format!("{:?}", entry.dtype))));
    };
    if entry.shape.len() as u64 > options.max_rank {
        // A malformed file rather than a large one: no framework has tensors of such a rank.
        let message = format!("rank: expected at most {} dimensions, found {}", options.max_rank, entry.shape.len());
        return Err(raised_by(Error::tensor(path, &name, message), "rank"));
    }
    // Zeros count as ones here, so that the verdict does not depend on the order of dimensions.
    let product = entry.shape.iter().try_fold(1u64, |product, dim| product.checked_mul((*dim).max(1)));
    let bits =
        product.and_then(|product| product.checked_mul(dtype.bits())).filter(|_| entry.shape.iter().all(|d| usize::try_from(*d).is_ok()));
    let Some(bits) = bits else {
        return fail(format!("shape: expected a size in 64 bits, found an overflow of {:?}", entry.shape));
    };
    let bits = if entry.shape.contains(&0) { 0 } else { bits };
    if bits % 8 != 0 {
        return fail(format!("shape: expected whole bytes of {dtype}, found {bits} bits in {:?}", entry.shape));
    }
    let [begin, end] = entry.data_offsets;
    if end.checked_sub(begin) != Some(bits / 8) {
        return fail(format!("data_offsets: expected {} bytes for {dtype} {:?}, found [{begin}, {end}]", bits / 8, entry.shape));
    }
    let absolute = |offset: u64| usize::try_from(offset).ok().and_then(|offset| data_start.checked_add(offset));
    let (Some(start), Some(end)) = (absolute(begin), absolute(end)) else {
        return fail(format!("data_offsets: expected offsets within the file, found [{begin}, {end}]"));
    };
    Ok(TensorInfo { name, dtype, shape: entry.shape.into_iter().map(|d| d as usize).collect(), position: 0, bytes: start..end })
}

/// Tensors, sorted by offset, must follow each other from the end of the header to the end of the file.
fn check_coverage(path: &Path, tensors: &[TensorInfo], data_start: usize, file_len: usize) -> Result<()> {
    let mut expected = data_start;
    for tensor in tensors {
        let (found, want) = (tensor.bytes.start - data_start, expected - data_start);
        if found != want {
            let what = if found > want { "a hole" } else { "an overlap with another tensor" };
            return Err(Error::tensor(path, &tensor.name, format!("data_offsets: expected to begin at {want}, found {found}: {what}")));
        }
        expected = tensor.bytes.end;
    }
    if expected != file_len {
        let kind = if expected > file_len { "the file is truncated" } else { "bytes after the last tensor" };
        return Err(Error::malformed(path, format!("size: expected {expected} bytes as the header says, found {file_len}: {kind}")));
    }
    Ok(())
}
