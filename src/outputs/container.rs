//! The safetensors container as it is written: header and places.
//!
//! The header is padded with spaces to 8 bytes and its members are in the order given.

use crate::tensor::Dtype;
use serde_json::json;
use std::ops::Range;

/// A tensor to be written.
pub(crate) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl Entry {
    /// Size in bytes.
    pub(crate) fn len(&self) -> u64 {
        (self.shape.iter().product::<usize>() as u64 * self.dtype.bits()).div_ceil(8)
    }
}

/// A header with its length prefix, and the place of each entry in the file, in bytes.
pub(crate) struct Container {
    pub header: Vec<u8>,
    pub places: Vec<Range<u64>>,
    pub len: u64,
}

/// Alignment of the data section, in bytes, as the reference writer's.
const ALIGNMENT: usize = 8;

/// The order of tensor bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    /// Wide types first, so that every tensor is aligned to its element size although codes may have any length, which
    /// PyTorch's loader needs. Within a width, as given.
    WidestFirst,
    /// As given.
    AsGiven,
}

pub(crate) fn lay_out(entries: &[Entry], metadata: &[(String, String)], data: Order) -> Container {
    let mut order: Vec<usize> = (0..entries.len()).collect();
    if data == Order::WidestFirst {
        order.sort_by_key(|i| std::cmp::Reverse(entries[*i].dtype.bits().max(8)));
    }
    let mut places = vec![0..0; entries.len()];
    let mut end = 0;
    for i in order {
        places[i] = end..end + entries[i].len();
        end = places[i].end;
    }
    let mut members = Vec::with_capacity(entries.len() + 1);
    if !metadata.is_empty() {
        // One line, keys in the order of the source: a map type would shuffle or sort them.
        let pairs: Vec<String> = metadata.iter().map(|(key, text)| format!("{}:{}", json!(key), json!(text))).collect();
        members.push(format!("\"__metadata__\":{{{}}}", pairs.join(",")));
    }
    for (entry, place) in entries.iter().zip(&places) {
        let Entry { name, dtype, shape } = entry;
        let (name, shape) = (json!(name), json!(shape));
        members.push(format!(r#"{name}:{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{},{}]}}"#, place.start, place.end));
    }
    let mut text = format!("{{{}}}", members.join(","));
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(ALIGNMENT) - text.len()));
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(text.as_bytes());
    let start = header.len() as u64;
    for place in &mut places {
        *place = place.start + start..place.end + start;
    }
    Container { header, places, len: start + end }
}
